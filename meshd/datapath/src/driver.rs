//! What a link's driver does for XDP, as the kernel tells over generic netlink (family `netdev`, Linux 6.3 and newer).

use std::{io, os::fd::AsRawFd as _};

use meshd_core::id::IfIndex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_NAME` and `CTRL_ATTR_FAMILY_ID`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
const FAMILY_ID: u16 = 1;
/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES` and the bit `NETDEV_XDP_ACT_NDO_XMIT` in it.
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_XDP: u16 = 3;
const TRANSMITS: u64 = 1 << 2;
/// `NLM_F_REQUEST`, and the type of an error.
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// Octets of the headers of netlink and generic netlink.
const HEADERS: usize = 20;
/// Octets of the longest answer.
const ANSWER: usize = 8_192;

/// True when the driver sends what XDP gives it; false as well when the kernel does not know the question.
pub(crate) fn transmits(link: IfIndex) -> io::Result<bool> {
    let Some(family) = known(ask(CONTROL, GET_FAMILY, (FAMILY_NAME, b"netdev\0")))? else { return Ok(false) };
    let id =
        attribute(&family, FAMILY_ID).and_then(|octets| Some(u16::from_ne_bytes(octets.get(..2)?.try_into().ok()?)));
    let Some(id) = id else { return Ok(false) };
    let Some(device) = known(ask(id, GET_DEVICE, (DEVICE_INDEX, &link.0.to_ne_bytes())))? else { return Ok(false) };
    let features = attribute(&device, DEVICE_XDP);
    let features = features.and_then(|octets| Some(u64::from_ne_bytes(octets.get(..8)?.try_into().ok()?)));
    Ok(features.is_some_and(|features| features & TRANSMITS != 0))
}

/// Takes the answer that there is no such family or device for what it is.
fn known(answer: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks one question with one attribute; the answer's attributes.
fn ask(family: u16, command: u8, (kind, value): (u16, &[u8])) -> io::Result<Vec<u8>> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric)?;
    let padded = value.len().next_multiple_of(4);
    let length = HEADERS + 4 + padded;
    let mut question = Vec::with_capacity(length);
    question.extend((length as u32).to_ne_bytes());
    question.extend(family.to_ne_bytes());
    question.extend(REQUEST.to_ne_bytes());
    question.extend([0; 8]);
    question.extend([command, 1, 0, 0]);
    question.extend((4 + value.len() as u16).to_ne_bytes());
    question.extend(kind.to_ne_bytes());
    question.extend(value);
    question.resize(length, 0);
    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER];
    let received = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(received);
    let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel's answer is cut short");
    let word = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if word(4).ok_or_else(short)? == ERROR {
        let code = answer.get(16..20).and_then(|octets| octets.try_into().ok()).map(i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(-code.ok_or_else(short)?));
    }
    answer.get(HEADERS..).map(<[u8]>::to_vec).ok_or_else(short)
}

/// The value of the first attribute of a kind.
fn attribute(mut all: &[u8], kind: u16) -> Option<&[u8]> {
    while let [a, b, c, d, rest @ ..] = all {
        let length = usize::from(u16::from_ne_bytes([*a, *b])).checked_sub(4)?;
        let value = rest.get(..length)?;
        if u16::from_ne_bytes([*c, *d]) == kind {
            return Some(value);
        }
        all = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_and_not_beyond_the_end() {
        let all = [5, 0, 9, 0, 1, 0, 0, 0, 8, 0, 3, 0, 1, 2, 3, 4];
        let all = if cfg!(target_endian = "little") { all } else { return };
        assert_eq!(attribute(&all, 3), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&all, 9), Some(&[1][..]));
        assert_eq!(attribute(&all, 7), None);
        assert_eq!(attribute(&all[..14], 3), None);
        assert_eq!(attribute(&[3, 0, 9, 0], 9), None);
    }
}
