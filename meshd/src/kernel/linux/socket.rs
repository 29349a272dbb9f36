//! Netlink sockets and the frames on them.
//!
//! One thread owns each socket (I7). Sockets are opened inside the wanted network namespace by the thread that uses them
//! and stay in it whatever happens to the thread.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::{MsgFlags, recv, send, setsockopt, sockopt},
};

use super::{
    filter::Filter,
    wire::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR},
};
use crate::kernel::KernelError;

/// Bytes of one receive buffer. The kernel sizes its dump messages by the largest buffer it has seen, up to 32 KiB.
pub(crate) const RECEIVE_LEN: usize = 64 * 1024;
/// A dump that sends nothing for this long has failed.
const DUMP_TIMEOUT_S: i64 = 10;
/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;

/// The network namespace sockets are opened in.
#[derive(Debug, Clone, Default)]
pub struct Netns(Option<Arc<OwnedFd>>);

impl Netns {
    /// The namespace of the calling thread.
    #[must_use]
    pub fn current() -> Self {
        Self(None)
    }

    /// The namespace behind a file such as `/run/netns/NAME` or `/proc/PID/ns/net`. Entering it needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self(Some(Arc::new(File::open(path)?.into()))))
    }

    /// Moves the calling thread into the namespace.
    pub(crate) fn enter(&self) -> Result<(), KernelError> {
        match &self.0 {
            None => Ok(()),
            Some(fd) => setns(fd, CloneFlags::CLONE_NEWNET).map_err(KernelError::errno("enter the network namespace")),
        }
    }
}

/// A bound netlink socket, of routing unless it says otherwise.
#[derive(Debug)]
pub(crate) struct RouteSocket {
    inner: Socket,
    port: u32,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, KernelError> {
        Self::open_of(NETLINK_ROUTE)
    }

    /// Opens a socket to ask about sockets.
    pub(crate) fn open_for_sockets() -> Result<Self, KernelError> {
        let socket = Self::open_of(NETLINK_SOCK_DIAG)?;
        socket.set_receive_timeout(DUMP_TIMEOUT_S)?;
        Ok(socket)
    }

    fn open_of(protocol: isize) -> Result<Self, KernelError> {
        let mut inner = Socket::new(protocol).map_err(KernelError::socket("open a netlink socket"))?;
        let address: SocketAddr = inner.bind_auto().map_err(KernelError::socket("bind a netlink socket"))?;
        Ok(Self { inner, port: address.port_number() })
    }

    /// Opens a socket for dumps: the kernel checks requests strictly and applies their filters itself.
    pub(crate) fn open_for_dumps() -> Result<Self, KernelError> {
        let socket = Self::open()?;
        socket.inner.set_netlink_get_strict_chk(true).map_err(KernelError::socket("ask for strict dump requests"))?;
        socket.set_ext_ack()?;
        socket.set_receive_timeout(DUMP_TIMEOUT_S)?;
        Ok(socket)
    }

    /// Opens a socket that receives the multicast `groups` through `filter`, with a receive buffer of `buffer` bytes.
    pub(crate) fn open_for_events(groups: &[u32], filter: &Filter, buffer: usize) -> Result<Self, KernelError> {
        let socket = Self::open()?;
        socket.set_receive_buffer(buffer)?;
        // The filter comes first, so that nothing unwanted is queued between the two.
        filter.attach(socket.as_fd())?;
        socket.join(groups)?;
        Ok(socket)
    }

    /// Receives the multicast `groups` from now on.
    pub(crate) fn join(&self, groups: &[u32]) -> Result<(), KernelError> {
        for group in groups {
            let failed = KernelError::socket("subscribe to a netlink group");
            self.inner.add_membership(*group).map_err(failed)?;
        }
        Ok(())
    }

    /// Receives the multicast `groups` no longer; what is queued stays.
    pub(crate) fn leave(&self, groups: &[u32]) -> Result<(), KernelError> {
        for group in groups {
            let failed = KernelError::socket("leave a netlink group");
            self.inner.drop_membership(*group).map_err(failed)?;
        }
        Ok(())
    }

    /// The address the kernel writes into messages caused by this socket (`nlmsg_pid`).
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Answers carry a text (`NLMSGERR_ATTR_MSG`) and do not repeat the request.
    pub(crate) fn set_ext_ack(&self) -> Result<(), KernelError> {
        let failed = "ask for extended acknowledgements";
        self.inner.set_ext_ack(true).map_err(KernelError::socket(failed))?;
        self.inner.set_cap_ack(true).map_err(KernelError::socket(failed))
    }

    /// Sets the receive buffer past `net.core.rmem_max` (needs `CAP_NET_ADMIN`); the kernel doubles the number.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> Result<(), KernelError> {
        setsockopt(&self.inner, sockopt::RcvBufForce, &bytes)
            .map_err(KernelError::errno("size the receive buffer of a netlink socket"))
    }

    /// Sets the send buffer past `net.core.wmem_max`; a single send may not be larger than it.
    pub(crate) fn set_send_buffer(&self, bytes: usize) -> Result<(), KernelError> {
        setsockopt(&self.inner, sockopt::SndBufForce, &bytes)
            .map_err(KernelError::errno("size the send buffer of a netlink socket"))
    }

    /// Makes blocking receives give up after a while with `EAGAIN`.
    pub(crate) fn set_receive_timeout(&self, seconds: i64) -> Result<(), KernelError> {
        setsockopt(&self.inner, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(seconds, 0))
            .map_err(KernelError::errno("set the receive timeout of a netlink socket"))
    }

    /// Sends one or more whole messages. The kernel works through them before this returns.
    pub(crate) fn send(&self, messages: &[u8]) -> Result<(), Errno> {
        loop {
            match send(self.inner.as_raw_fd(), messages, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => return other.map(|_| ()),
            }
        }
    }

    /// Receives one datagram; waits for it.
    ///
    /// # Errors
    /// `ENOBUFS` when the kernel dropped messages for this socket, `EMSGSIZE` when the datagram was larger than `buffer`.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.receive_with(buffer, MsgFlags::empty())
    }

    /// Receives one datagram if there is one (`EAGAIN` otherwise).
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.receive_with(buffer, MsgFlags::MSG_DONTWAIT)
    }

    fn receive_with(&self, buffer: &mut [u8], flags: MsgFlags) -> Result<usize, Errno> {
        loop {
            // With MSG_TRUNC the kernel returns the whole length, which is how a cut datagram is told.
            match recv(self.inner.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => {}
                Ok(length) if length > buffer.len() => return Err(Errno::EMSGSIZE),
                other => return other,
            }
        }
    }
}

impl AsFd for RouteSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// Why a dump did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DumpError {
    /// The table changed under it.
    Interrupted,
    /// The kernel refused it, or the socket failed.
    Failed(Errno),
}

/// One dump: sends `request`, numbered `seq`, and hands every message to `each`. When `strict`, a dump that the kernel
/// calls inconsistent is broken off; the socket is then not fit for another one.
pub(crate) fn dump<E: From<DumpError>>(
    socket: &RouteSocket,
    request: &[u8],
    seq: u32,
    strict: bool,
    mut each: impl FnMut(&Frame<'_>) -> Result<(), E>,
) -> Result<(), E> {
    socket.send(request).map_err(DumpError::Failed)?;
    let mut buffer = vec![0; RECEIVE_LEN];
    loop {
        let length = socket.receive(&mut buffer).map_err(DumpError::Failed)?;
        for frame in frames(&buffer[..length]).filter(|frame| frame.seq == seq) {
            if strict && frame.flags & NLM_F_DUMP_INTR != 0 {
                return Err(DumpError::Interrupted.into());
            }
            if let NLMSG_DONE | NLMSG_ERROR = frame.kind {
                // The end of a dump carries an error number too.
                return match answer(&frame) {
                    (None, _) => Ok(()),
                    (Some(errno), _) => Err(DumpError::Failed(errno).into()),
                };
            }
            each(&frame)?;
        }
    }
}

/// One netlink message inside a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// `nlmsg_type`
    pub(crate) kind: u16,
    /// `nlmsg_flags`
    pub(crate) flags: u16,
    /// `nlmsg_seq`
    pub(crate) seq: u32,
    /// `nlmsg_pid`: port of the socket that caused it, 0 for the kernel itself.
    pub(crate) port: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
    /// Header and payload.
    pub(crate) whole: &'a [u8],
}

/// The messages of a datagram. Ends at the first one that does not fit.
pub(crate) fn frames(mut datagram: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER_LEN>()?;
        let length = u32_at(header, 0) as usize;
        let whole = datagram.get(..length)?;
        let payload = whole.get(HEADER_LEN..)?;
        datagram = datagram.get(align(length)..).unwrap_or_default();
        Some(Frame {
            kind: u16_at(header, 4),
            flags: u16_at(header, 6),
            seq: u32_at(header, 8),
            port: u32_at(header, 12),
            payload,
            whole,
        })
    })
}

/// The attributes in `bytes`, as (type, value). Ends at the first one that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16_at(header, 0));
        let value = bytes.get(..length)?.get(4..)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        // The two upper bits say "nested" and "network byte order".
        Some((u16_at(header, 2) & 0x3fff, value))
    })
}

/// Netlink aligns everything to four bytes.
pub(crate) fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// The `u16` in host byte order at `offset`; the caller has checked the length.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes([bytes[offset], bytes[offset + 1]])
}

/// The `u32` in host byte order at `offset`; the caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

/// A `u32` attribute value in host byte order.
pub(crate) fn u32_value(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Error number and text of an `NLMSG_ERROR` payload; `None` as number is an acknowledgement.
pub(crate) fn answer(frame: &Frame<'_>) -> (Option<Errno>, Option<Arc<str>>) {
    const NLM_F_CAPPED: u16 = 0x100;
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let Some(code) = u32_value(frame.payload) else { return (Some(Errno::EBADMSG), None) };
    if code == 0 {
        return (None, None);
    }
    let errno = Errno::from_raw(code.cast_signed().wrapping_neg());
    let mut message = None;
    if frame.flags & NLM_F_ACK_TLVS != 0 {
        let request = frame.payload.get(4..).unwrap_or_default();
        let repeated = match request.first_chunk::<4>() {
            Some(length) if frame.flags & NLM_F_CAPPED == 0 => align(u32::from_ne_bytes(*length) as usize),
            _ => HEADER_LEN,
        };
        message = attributes(request.get(repeated..).unwrap_or_default())
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').into());
    }
    (Some(errno), message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_walked_without_panic(bytes: Vec<u8>) {
            for frame in frames(&bytes) {
                answer(&frame);
                attributes(frame.payload).count();
            }
            attributes(&bytes).count();
        }
    }

    #[test]
    fn a_refusal_is_told_with_its_text() {
        let mut payload = Vec::new();
        payload.extend((-17i32).to_ne_bytes());
        payload.extend([0u8; HEADER_LEN]);
        payload.extend(8u16.to_ne_bytes());
        payload.extend(1u16.to_ne_bytes());
        payload.extend(b"no!\0");
        let frame = Frame { kind: 2, flags: 0x300, seq: 1, port: 0, payload: &payload, whole: &payload };
        assert_eq!(answer(&frame), (Some(Errno::EEXIST), Some("no!".into())));
    }
}
