//! Sees what arrives in a pod, without any tool in it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use lab::{Error, Node, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

/// Longest packet worth reading: headers of IP and ICMP are at its start.
const PACKET_LEN: usize = 256;
/// RFC 791: the source address is in octets 12 to 15; the low half of the first octet is the header's length in words.
const SOURCE: std::ops::Range<usize> = 12..16;
const WORD_LEN: usize = 4;
/// RFC 792.
const ECHO_REQUEST: u8 = 8;

/// A raw socket in a pod, collecting ICMP from now on.
#[derive(Debug)]
pub(crate) struct Witness {
    socket: OwnedFd,
}

impl Witness {
    /// Starts to listen.
    pub(crate) fn listen(pod: &Node) -> Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let opened = pod.within(|| socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp))?;
        let socket = opened.map_err(|source| Error::System { operation: "open a raw socket".to_owned(), source })?;
        Ok(Self { socket })
    }

    /// The source addresses of all echo requests that arrived since.
    pub(crate) fn echo_requests(&self) -> Result<BTreeSet<String>> {
        let mut sources = BTreeSet::new();
        let mut packet = [0; PACKET_LEN];
        loop {
            match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Ok(length) => sources.extend(echo_source(&packet[..length]).map(|source| source.to_string())),
                Err(Errno::EAGAIN) => return Ok(sources),
                Err(Errno::EINTR) => {}
                Err(source) => return Err(Error::System { operation: "read a raw socket".to_owned(), source }),
            }
        }
    }
}

/// Who sent this packet, if it is an echo request.
fn echo_source(packet: &[u8]) -> Option<Ipv4Addr> {
    let header_len = usize::from(packet.first()? & 0x0f) * WORD_LEN;
    let source: [u8; 4] = packet.get(SOURCE)?.try_into().ok()?;
    (*packet.get(header_len)? == ECHO_REQUEST).then_some(Ipv4Addr::from(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_echo_requests_count() {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[SOURCE].copy_from_slice(&[10, 0, 1, 20]);
        packet[20] = ECHO_REQUEST;
        assert_eq!(echo_source(&packet), Some(Ipv4Addr::new(10, 0, 1, 20)));
        packet[20] = 0;
        assert_eq!(echo_source(&packet), None);
        assert_eq!(echo_source(&packet[..10]), None);
    }
}
