//! TCP-AO (RFC 5925), where the kernel has it: Linux 6.7 with `CONFIG_TCP_AO`.
//!
//! Keys are given to the kernel socket by socket. From then on it drops what comes from the peer unsigned or wrongly signed;
//! a kernel without TCP-AO refuses the key, and with it the session: nothing is ever sent unsigned instead.

use std::{ffi::c_int, io, os::fd::AsRawFd as _, sync::OnceLock};

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::{Secret, TransportError, failed, set_option};

/// Longest key (`TCP_AO_MAXKEYLEN`).
pub const KEY_MAX: usize = 80;
/// Options of `linux/tcp.h`, which libc does not know.
const TCP_AO_ADD_KEY: c_int = 38;
const TCP_AO_DEL_KEY: c_int = 39;

/// How packets are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC-SHA-1-96 (RFC 5926).
    HmacSha1,
    /// AES-128-CMAC-96 (RFC 5926).
    AesCmac,
    /// HMAC-SHA-256, cut to 96 bits.
    HmacSha256,
}

impl Algorithm {
    /// As the kernel's crypto layer calls it.
    const fn name(self) -> &'static [u8] {
        match self {
            Self::HmacSha1 => b"hmac(sha1)",
            Self::AesCmac => b"cmac(aes128)",
            Self::HmacSha256 => b"hmac(sha256)",
        }
    }
}

/// A master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AoKey {
    /// The key.
    pub secret: Secret,
    /// Its number in what we send.
    pub send_id: u8,
    /// Its number in what we receive.
    pub receive_id: u8,
    /// How packets are signed.
    pub algorithm: Algorithm,
}

/// This kernel cannot sign with TCP-AO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this kernel has no TCP-AO: it needs Linux 6.7 or newer with CONFIG_TCP_AO=y")]
pub struct NoTcpAo;

/// Does this kernel have TCP-AO? Asked once; a value that is no key is refused in another way where it has. It has four octets,
/// because less is refused before the option is looked at.
///
/// # Errors
/// [`NoTcpAo`] when the option is unknown; whatever else the system says is taken for a yes, because the real key will be
/// refused with its own reason then.
pub fn probe() -> Result<(), NoTcpAo> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let has_it = KNOWN.get_or_init(|| {
        let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)) else { return true };
        let answer = set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, TCP_AO_ADD_KEY, &0_u32);
        !answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENOPROTOOPT))
    });
    if *has_it { Ok(()) } else { Err(NoTcpAo) }
}

/// `struct tcp_ao_add` of `linux/tcp.h`.
#[repr(C, align(8))]
struct TcpAoAdd {
    address: SockAddrStorage,
    algorithm: [u8; 64],
    ifindex: i32,
    /// Bit 0: sign with it at once; bit 1: ask the peer to. The others are zero.
    flags: u32,
    reserved: u16,
    prefix_len: u8,
    send_id: u8,
    receive_id: u8,
    /// Octets of a signature; 0 for twelve.
    mac_len: u8,
    key_flags: u8,
    key_len: u8,
    key: [u8; KEY_MAX],
}

/// `struct tcp_ao_del` of `linux/tcp.h`.
#[repr(C, align(8))]
struct TcpAoDel {
    address: SockAddrStorage,
    ifindex: i32,
    /// Bit 2: on a listener, without waiting for those who use it. The others are zero.
    flags: u32,
    reserved: u16,
    prefix_len: u8,
    send_id: u8,
    receive_id: u8,
    current_key: u8,
    receive_next: u8,
    key_flags: u8,
}

/// `TcpAoDel::flags`: `del_async`.
const DELETE_ASYNC: u32 = if cfg!(target_endian = "little") { 1 << 2 } else { 1 << 29 };

/// Gives a socket the key for all addresses of a prefix.
pub(super) fn add(socket: &Socket, peers: IpNet, key: &AoKey) -> Result<(), TransportError> {
    let operation = || format!("set the TCP-AO key for {peers}");
    let octets = &key.secret.0;
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, format!("a key has 1 to {KEY_MAX} octets"));
    let key_len = u8::try_from(octets.len()).ok().filter(|length| (1..=KEY_MAX).contains(&usize::from(*length)));
    let key_len = key_len.ok_or_else(|| failed(operation())(too_long()))?;
    let mut option = TcpAoAdd {
        address: storage(peers),
        algorithm: [0; 64],
        ifindex: 0,
        flags: 0,
        reserved: 0,
        prefix_len: peers.prefix_len(),
        send_id: key.send_id,
        receive_id: key.receive_id,
        mac_len: 0,
        key_flags: 0,
        key_len,
        key: [0; KEY_MAX],
    };
    let name = key.algorithm.name();
    option.algorithm[..name.len()].copy_from_slice(name);
    option.key[..octets.len()].copy_from_slice(octets);
    set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, TCP_AO_ADD_KEY, &option).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => failed(operation())(io::Error::new(io::ErrorKind::Unsupported, NoTcpAo)),
            _ => failed(operation())(error),
        }
    })
}

/// Takes a key away from a listener.
pub(super) fn delete(listener: &Socket, peers: IpNet, key: &AoKey) -> Result<(), TransportError> {
    let option = TcpAoDel {
        address: storage(peers),
        ifindex: 0,
        flags: DELETE_ASYNC,
        reserved: 0,
        prefix_len: peers.prefix_len(),
        send_id: key.send_id,
        receive_id: key.receive_id,
        current_key: 0,
        receive_next: 0,
        key_flags: 0,
    };
    match set_option(listener.as_raw_fd(), libc::IPPROTO_TCP, TCP_AO_DEL_KEY, &option) {
        // Taking away what is not there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result.map_err(failed(format!("take the TCP-AO key of {peers} away"))),
    }
}

fn storage(peers: IpNet) -> SockAddrStorage {
    SockAddr::from(std::net::SocketAddr::new(peers.addr(), 0)).as_storage()
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_options_have_the_layout_of_the_kernel() {
        assert_eq!(size_of::<TcpAoAdd>(), 288);
        assert_eq!(offset_of!(TcpAoAdd, algorithm), 128);
        assert_eq!(offset_of!(TcpAoAdd, ifindex), 192);
        assert_eq!(offset_of!(TcpAoAdd, flags), 196);
        assert_eq!(offset_of!(TcpAoAdd, reserved), 200);
        assert_eq!(offset_of!(TcpAoAdd, prefix_len), 202);
        assert_eq!(offset_of!(TcpAoAdd, send_id), 203);
        assert_eq!(offset_of!(TcpAoAdd, receive_id), 204);
        assert_eq!(offset_of!(TcpAoAdd, mac_len), 205);
        assert_eq!(offset_of!(TcpAoAdd, key_flags), 206);
        assert_eq!(offset_of!(TcpAoAdd, key_len), 207);
        assert_eq!(offset_of!(TcpAoAdd, key), 208);
        assert_eq!(size_of::<TcpAoDel>(), 144);
        assert_eq!(offset_of!(TcpAoDel, ifindex), 128);
        assert_eq!(offset_of!(TcpAoDel, flags), 132);
        assert_eq!(offset_of!(TcpAoDel, reserved), 136);
        assert_eq!(offset_of!(TcpAoDel, prefix_len), 138);
        assert_eq!(offset_of!(TcpAoDel, send_id), 139);
        assert_eq!(offset_of!(TcpAoDel, receive_id), 140);
        assert_eq!(offset_of!(TcpAoDel, current_key), 141);
        assert_eq!(offset_of!(TcpAoDel, receive_next), 142);
        assert_eq!(offset_of!(TcpAoDel, key_flags), 143);
    }

    #[test]
    fn a_key_is_taken_or_the_kernel_is_named() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let peers: IpNet = "192.0.2.1/32".parse().expect("a prefix");
        let key = |octets: usize| AoKey {
            secret: Secret::new(vec![7; octets]),
            send_id: 1,
            receive_id: 2,
            algorithm: Algorithm::HmacSha1,
        };
        for octets in [0, KEY_MAX + 1, 300] {
            let error = add(&socket, peers, &key(octets)).expect_err("refused");
            assert!(error.to_string().contains("1 to 80 octets"), "{error}");
        }
        match (probe(), add(&socket, peers, &key(16))) {
            (Ok(()), Ok(())) => delete(&socket, peers, &key(16)).expect("it is there"),
            (Err(NoTcpAo), Err(error)) => {
                assert!(error.to_string().contains("192.0.2.1/32"), "{error}");
                assert!(error.to_string().contains("CONFIG_TCP_AO"), "{error}");
            }
            (probed, added) => panic!("{probed:?}, {added:?}"),
        }
    }
}
