//! Messages about sockets (`linux/sock_diag.h`, `linux/inet_diag.h`), and the talk with the kernel.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use nix::errno::Errno;

use super::Victim;
use crate::kernel::linux::{
    socket::{DumpError, Frame, HEADER_LEN, RouteSocket, answer, dump, frames, u32_at},
    wire::{AF_INET, AF_INET6, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Bytes of `struct inet_diag_sockid`.
const ID_LEN: usize = 48;
/// Where it begins in `struct inet_diag_msg`.
const ID_AT: usize = 4;
/// IP protocol number of TCP.
const TCP: u8 = 6;
/// `TCP_ESTABLISHED`, which is also the state of a connected socket of datagrams.
const ESTABLISHED: u32 = 1 << 1;
/// All states of TCP but those without a process: `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_LISTEN` and `TCP_NEW_SYN_RECV`.
const TCP_STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10 | 1);

/// A socket as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id {
    family: u8,
    bytes: [u8; ID_LEN],
}

impl Id {
    fn of(payload: &[u8]) -> Option<Self> {
        let bytes = payload.get(ID_AT..ID_AT + ID_LEN)?.first_chunk::<ID_LEN>()?;
        Some(Self { family: *payload.first()?, bytes: *bytes })
    }

    fn cookie(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 44)) << 32 | u64::from(u32_at(&self.bytes, 40))
    }

    /// Whom it is connected to. IPv4 behind an IPv6 socket is IPv4.
    fn peer(&self) -> SocketAddr {
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        let octets: [u8; 16] = std::array::from_fn(|at| self.bytes[20 + at]);
        let [a, b, c, d, ..] = octets;
        let ip =
            if self.family == AF_INET { IpAddr::from([a, b, c, d]) } else { Ipv6Addr::from(octets).to_canonical() };
        SocketAddr::new(ip, port)
    }
}

/// Destroys those of `victims` that are in the calling thread's network namespace, and takes them off the list; returns how many.
///
/// # Errors
/// When the kernel refuses to tell or to destroy.
pub(super) fn destroy(victims: &mut BTreeSet<Victim>) -> Result<usize, Errno> {
    let socket = RouteSocket::open_for_sockets().map_err(|error| match error {
        crate::kernel::KernelError::Socket { source, .. } => {
            Errno::from_raw(source.raw_os_error().unwrap_or(nix::libc::EIO))
        }
        crate::kernel::KernelError::Stopped => Errno::EIO,
    })?;
    // The kernel picks by port, so one question serves all that talk to backends with the same one.
    let mut questions: BTreeSet<(u8, u8, u16)> = BTreeSet::new();
    for victim in victims.iter() {
        questions.insert((AF_INET6, victim.protocol, victim.peer.port()));
        if victim.peer.is_ipv4() {
            questions.insert((AF_INET, victim.protocol, victim.peer.port()));
        }
    }
    let mut destroyed = 0;
    for (seq, (family, protocol, port)) in (1..).step_by(2).zip(questions) {
        let mut found = Vec::new();
        let outcome = dump(&socket, &question(family, protocol, port, seq), seq, false, |frame: &Frame<'_>| {
            found.extend(Id::of(frame.payload));
            Ok::<(), DumpError>(())
        });
        match outcome {
            // Not a kernel with this family or protocol: there are no such sockets.
            Ok(()) | Err(DumpError::Failed(Errno::ENOENT)) => {}
            Err(DumpError::Failed(errno)) => return Err(errno),
            Err(DumpError::Interrupted) => return Err(Errno::EAGAIN),
        }
        for id in found {
            let victim = Victim { cookie: id.cookie(), protocol, peer: id.peer() };
            if !victims.remove(&victim) {
                continue;
            }
            match ask(&socket, &message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, seq + 1, protocol, 0, &id), seq + 1) {
                Ok(()) => destroyed += 1,
                // It has ended by itself.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(destroyed)
}

fn ask(socket: &RouteSocket, request: &[u8], seq: u32) -> Result<(), Errno> {
    socket.send(request)?;
    let mut buffer = [0; 1_024];
    loop {
        let length = socket.receive(&mut buffer)?;
        let said = frames(&buffer[..length]).find(|frame| frame.seq == seq && frame.kind == NLMSG_ERROR);
        if let Some(frame) = said {
            return answer(&frame).0.map_or(Ok(()), Err);
        }
    }
}

/// Which sockets of a family and protocol are connected to this port?
fn question(family: u8, protocol: u8, port: u16, seq: u32) -> Vec<u8> {
    let mut id = Id { family, bytes: [0; ID_LEN] };
    id.bytes[2..4].copy_from_slice(&port.to_be_bytes());
    // `INET_DIAG_NOCOOKIE`
    id.bytes[40..48].fill(0xff);
    let states = if protocol == TCP { TCP_STATES } else { ESTABLISHED };
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, seq, protocol, states, &id)
}

/// A message with `struct inet_diag_req_v2`.
fn message(kind: u16, flags: u16, seq: u32, protocol: u8, states: u32, id: &Id) -> Vec<u8> {
    let length = HEADER_LEN + 8 + ID_LEN;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(seq.to_ne_bytes());
    message.extend([0; 4]);
    message.extend([id.family, protocol, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id.bytes);
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_socket_is_read_as_the_kernel_writes_it() {
        let mut payload = vec![AF_INET, 1, 0, 0];
        payload.extend(40_000_u16.to_be_bytes());
        payload.extend(8_080_u16.to_be_bytes());
        payload.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([0; 4]);
        payload.extend(7_u32.to_ne_bytes());
        payload.extend(1_u32.to_ne_bytes());
        payload.extend([0; 20]);
        let id = Id::of(&payload).unwrap();
        assert_eq!((id.peer(), id.cookie()), ("10.1.0.2:8080".parse().unwrap(), 1 << 32 | 7));
        // The same peer of an IPv6 socket.
        payload[0] = AF_INET6;
        payload[24..40].copy_from_slice(&"::ffff:10.1.0.2".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(Id::of(&payload).unwrap().peer(), "10.1.0.2:8080".parse().unwrap());
        // What was read is what is asked for.
        let request = message(SOCK_DESTROY, 5, 9, TCP, 0, &id);
        assert_eq!((request.len(), &request[24..]), (72, &payload_of(&id)[..]));
    }

    fn payload_of(id: &Id) -> [u8; ID_LEN] {
        id.bytes
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            if let Some(id) = Id::of(&bytes) {
                let _ = (id.peer(), id.cookie());
            }
        }
    }
}
