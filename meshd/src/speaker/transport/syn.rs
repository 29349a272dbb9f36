//! How far a peer was that opened a connection to us, as its first packet said (GTSM, RFC 5082).
//!
//! The kernel can be told the least hop limit of what a socket takes, but a listener has peers at many distances, and once a
//! connection is accepted its handshake is over, and data may have come. So a listener keeps the header of each SYN, and
//! whose hop limit was too low is sent away before a byte of its is read, or one of ours is sent.
//!
//! What is ugly: between the handshake and the option, the kernel looks at no hop limit. Somebody far away who guesses
//! addresses, ports and sequence numbers in these microseconds gets a segment in. And in a flood of connections the kernel may
//! answer with cookies and keep no SYN. Such a connection is taken only as long as nothing has come by it: what comes
//! from then on is judged by the kernel.

use std::{ffi::c_int, io, os::fd::AsRawFd as _};

use socket2::Socket;

use super::{TransportError, failed, set_option};

/// Octets of the headers that are looked at: the hop limit is in both families near the start.
const HEADER_LEN: usize = 20;

/// An accepted connection that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The system refused something.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer is too far away.
    #[error(
        "the connection came with a hop limit of {hop_limit}, and the peer has to prove with {least} that it is near: both sides must have \
         ttl_security, with the number of hops there are"
    )]
    TooFar {
        /// The hop limit of the first packet.
        hop_limit: u8,
        /// What it has to be at least.
        least: u8,
    },
    /// Whether it is cannot be known any more.
    #[error("connections come so fast that the kernel cannot say how far away the peer of this one is")]
    Unproved,
}

/// Has a listener keep the SYN of each connection.
pub(super) fn keep(listener: &Socket) -> Result<(), TransportError> {
    let headers: c_int = 1;
    set_option(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, &headers)
        .map_err(failed("keep the first packets of connections"))
}

/// Checks the SYN of an accepted connection, whose socket has the option already that makes the kernel check the rest.
pub(super) fn check(connection: &Socket, least: u8) -> Result<(), AcceptError> {
    match hop_limit(connection).map_err(failed("read the first packet of the connection"))? {
        Some(hop_limit) if hop_limit < least => Err(AcceptError::TooFar { hop_limit, least }),
        Some(_) => Ok(()),
        None if is_unread(connection).map_err(failed("look whether something was received"))? => {
            Err(AcceptError::Unproved)
        }
        None => Ok(()),
    }
}

/// The hop limit of the connection's SYN, if the kernel has kept it. It says so once.
fn hop_limit(connection: &Socket) -> io::Result<Option<u8>> {
    // TCP headers follow, and the kernel gives all or nothing.
    let mut headers = [0_u8; 256];
    let mut length = libc::socklen_t::try_from(headers.len()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` octets to `headers`, and how many to `length`; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SAVED_SYN,
            headers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let header = headers.get(..usize::try_from(length).unwrap_or_default()).unwrap_or_default();
    let Some(header) = header.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    Ok(match header[0] >> 4 {
        4 => Some(header[8]),
        6 => Some(header[7]),
        _ => None,
    })
}

/// Something has come that nobody has read.
fn is_unread(connection: &Socket) -> io::Result<bool> {
    match connection.peek(&mut [std::mem::MaybeUninit::uninit(); 1]) {
        Ok(count) => Ok(count > 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;
    use crate::speaker::transport::{Distance, Transport, accepted, listen, listener};

    /// What happens to a connection that comes with this hop limit.
    fn connect(local: IpAddr, hop_limit: u8, distance: Distance) -> Result<(), AcceptError> {
        let listening = listener(SocketAddr::new(local, 0), None).expect("a listener");
        listen(&listening).expect("it listens");
        let address = listening.local_addr().expect("an address");
        let client = super::super::new_socket(local).expect("a socket");
        super::super::set_hop_limit(&client, local, hop_limit).expect("a hop limit");
        client.set_nonblocking(false).expect("blocking");
        client.connect(&address).expect("a connection");
        listening.set_nonblocking(false).expect("blocking");
        let (connection, _) = listening.accept().expect("a connection");
        accepted(&connection, local, &Transport { distance, ..Transport::default() })
    }

    #[test]
    fn the_first_packet_says_how_far_the_peer_is() {
        for local in ["127.0.0.1", "::1"] {
            let local = local.parse().expect("an address");
            connect(local, 255, Distance::Secured(1)).expect("near");
            connect(local, 254, Distance::Secured(2)).expect("near enough");
            for (hop_limit, hops, least) in [(254, 1, 255), (64, 1, 255), (253, 2, 254)] {
                let refused = connect(local, hop_limit, Distance::Secured(hops)).expect_err("too far");
                let expected = |error: &AcceptError| matches!(error, AcceptError::TooFar { hop_limit: it, least: of } if (*it, *of) == (hop_limit, least));
                assert!(expected(&refused), "{local} {hop_limit}: {refused}");
            }
            for unproved in [Distance::Adjacent, Distance::Multihop(3)] {
                connect(local, 64, unproved).expect("nothing is to be proved");
            }
        }
    }
}
