//! TCP sockets as a BGP session needs them: bound, signed, and closed to strangers.
//!
//! What a session demands of its packets is asked of the kernel before the first of them is sent: keys of TCP-MD5 (RFC
//! 2385) or TCP-AO ([`ao`]), the hop limit of GTSM (RFC 5082), source address and device. Whatever the kernel refuses ends the attempt:
//! a session that was configured with a key never runs without one.

pub mod ao;
mod syn;

use std::{
    ffi::c_int,
    fmt, io,
    mem::size_of,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd as _, RawFd},
};

pub use ao::{AoKey, NoTcpAo};
use ipnet::IpNet;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
pub use syn::AcceptError;
use tokio::{io::Interest, net::TcpStream};

/// Longest key of TCP-MD5 (`TCP_MD5SIG_MAXKEYLEN`).
pub const MD5_KEY_MAX: usize = 80;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// The kernel lets one more wait.
pub(super) const WAITING_MAX: i32 = BACKLOG + 1;
/// Internetwork control: what routers send their routing protocols with.
const TOS_INTERNETWORK_CONTROL: u32 = 0xc0;

/// What was read from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// So many octets; 0 at the end of the stream.
    pub(super) octets: usize,
    /// There may be more to read at once.
    pub(super) more: bool,
}

/// Reads what has arrived, if anything has.
///
/// What does not fill the buffer was all there was (`man 7 epoll`, on edge-triggered readiness): the runtime learns it here,
/// and nobody reads again before the kernel says that more came. (Urgent data, which BGP has no use for, ends a read early:
/// whoever sends it waits for their next segment.)
pub(super) fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut received = None;
    let result = stream.try_io(Interest::READABLE, || {
        let octets = recv(stream.as_raw_fd(), buffer, MsgFlags::empty())?;
        let more = octets == buffer.len();
        received = Some(Received { octets, more });
        if more || octets == 0 { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    });
    match result {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(received),
    }
}

/// A shared secret. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the octets of a key.
    #[must_use]
    pub fn new(octets: Vec<u8>) -> Self {
        Self(octets)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How packets are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// TCP-MD5.
    Md5(Secret),
    /// TCP-AO.
    Ao(AoKey),
}

/// How far away the peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// A neighbor on the link, by the hop limit it sends with: 1. What external sessions have unless they say more.
    Adjacent,
    /// At most so many hops away, proved by the hop limit of what arrives (GTSM, RFC 5082).
    Secured(u8),
    /// At most so many hops away, not proved.
    Multihop(u8),
}

/// What a session demands of its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// How packets are signed.
    pub key: Option<Key>,
    /// How far away the peer may be.
    pub distance: Distance,
    /// Own address to use.
    pub source: Option<IpAddr>,
    /// Name of the device (or VRF) to send through and receive from.
    pub device: Option<String>,
}

impl Default for Transport {
    fn default() -> Self {
        Self { key: None, distance: Distance::Multihop(255), source: None, device: None }
    }
}

/// A failed operation on a socket.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation}: {source}")]
pub struct TransportError {
    operation: String,
    source: io::Error,
}

impl TransportError {
    /// The error of the system.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> TransportError {
    let operation = operation.into();
    |source| TransportError { operation, source }
}

/// A socket from which [`SocketAddr`] can be connected to, with everything that `transport` demands.
///
/// # Errors
/// Whatever the kernel refuses.
pub fn outgoing(remote: SocketAddr, transport: &Transport) -> Result<Socket, TransportError> {
    let socket = new_socket(remote.ip())?;
    demand(&socket, remote.ip(), transport)?;
    if let Some(key) = &transport.key {
        set_key(&socket, IpNet::from(remote.ip()), None, Some(key))?;
    }
    if let Some(local) = source_for(remote, transport) {
        socket.bind(&SockAddr::from(local)).map_err(failed(format!("use {} as the own address", local.ip())))?;
    }
    Ok(socket)
}

/// The own address that is demanded.
fn source_for(remote: SocketAddr, transport: &Transport) -> Option<SocketAddr> {
    let source = transport.source?;
    Some(match (source, remote) {
        (IpAddr::V6(source), SocketAddr::V6(remote)) if source.is_unicast_link_local() => {
            SocketAddr::V6(SocketAddrV6::new(source, 0, 0, remote.scope_id()))
        }
        _ => SocketAddr::new(source, 0),
    })
}

/// The own address that a connection to `remote` would have; its port means nothing. Nothing is sent.
///
/// # Errors
/// Whatever the kernel refuses, above all where there is no route.
pub fn local_for(remote: SocketAddr, transport: &Transport) -> Result<SocketAddr, TransportError> {
    if let Some(local) = source_for(remote, transport) {
        return Ok(local);
    }
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP));
    let socket = socket.map_err(failed("make a socket"))?;
    if let Some(device) = &transport.device {
        bind_device(&socket, device)?;
    }
    let operation = || format!("find the own address for {remote}");
    socket.connect(&SockAddr::from(remote)).map_err(failed(operation()))?;
    let local = socket.local_addr().map_err(failed(operation()))?;
    local.as_socket().ok_or_else(|| failed(operation())(io::ErrorKind::Unsupported.into()))
}

/// A socket for [`listen`] at `local`, on one device if one is named.
///
/// # Errors
/// Whatever the kernel refuses, above all a port that somebody else has.
pub fn listener(local: SocketAddr, device: Option<&str>) -> Result<Socket, TransportError> {
    let socket = new_socket(local.ip())?;
    socket.set_reuse_address(true).map_err(failed("reuse the port of an earlier run"))?;
    if local.is_ipv6() {
        socket.set_only_v6(true).map_err(failed("listen for IPv6 only"))?;
    }
    if let Some(device) = device {
        bind_device(&socket, device)?;
    }
    // An answer has to reach peers that demand the hop limit of a neighbor. What arrives is judged when it is known whose
    // it is.
    set_hop_limit(&socket, local.ip(), 255)?;
    syn::keep(&socket)?;
    socket.bind(&SockAddr::from(local)).map_err(failed(format!("listen at {local}")))?;
    Ok(socket)
}

/// Lets a listener take connections. The keys of peers have to be set before: what the kernel accepts without a key stays
/// accepted.
///
/// # Errors
/// Whatever the kernel refuses.
pub fn listen(listener: &Socket) -> Result<(), TransportError> {
    listener.listen(BACKLOG).map_err(failed("listen"))
}

/// The next connection that waits to be accepted, if one does.
///
/// # Errors
/// Whatever the kernel refuses.
pub fn next_waiting(listener: &Socket) -> Result<Option<(TcpStream, SocketAddr)>, TransportError> {
    let (socket, remote) = loop {
        match listener.accept() {
            Ok(accepted) => break accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(failed("accept a connection that waits")(error)),
        }
    };
    socket.set_nonblocking(true).map_err(failed("make the connection non-blocking"))?;
    let stream = TcpStream::from_std(socket.into()).map_err(failed("follow a connection"))?;
    let no_address = || io::Error::new(io::ErrorKind::InvalidData, "its address is none of IP");
    let remote = remote.as_socket().ok_or_else(no_address).map_err(failed("accept a connection that waits"))?;
    Ok(Some((stream, remote)))
}

/// Demands of an accepted connection what its session demands: a segment with a wrong hop limit is dropped from now on, and
/// the first one, which opened the connection, must have had a right one.
///
/// # Errors
/// Whatever the kernel refuses, and a peer that is too far away.
pub fn accepted(socket: &Socket, remote: IpAddr, transport: &Transport) -> Result<(), AcceptError> {
    socket.set_nonblocking(true).map_err(failed("make the connection non-blocking"))?;
    socket.set_tcp_nodelay(true).map_err(failed("send without delay"))?;
    set_distance(socket, remote, transport.distance)?;
    match transport.distance {
        Distance::Secured(hops) => syn::check(socket, least_hop_limit(hops)),
        Distance::Adjacent | Distance::Multihop(_) => Ok(()),
    }
}

/// Gives a socket the key of a peer, or of all addresses of a prefix, in place of the one it had, or (`None`) takes that away.
/// From then on the kernel drops what comes from there and is not signed with it.
///
/// # Errors
/// Whatever the kernel refuses.
pub fn set_key(socket: &Socket, peers: IpNet, old: Option<&Key>, new: Option<&Key>) -> Result<(), TransportError> {
    match (old, new) {
        // A key of TCP-AO is not written over.
        (Some(Key::Ao(_)), _) if old == new => return Ok(()),
        // Both have room beside each other, and nothing is taken unsigned in between.
        (Some(Key::Ao(old)), Some(Key::Ao(new))) if old.send_id != new.send_id && old.receive_id != new.receive_id => {
            ao::add(socket, peers, new)?;
            return ao::delete(socket, peers, old);
        }
        (Some(Key::Ao(key)), _) => ao::delete(socket, peers, key)?,
        (Some(Key::Md5(_)) | None, _) => {}
    }
    match new {
        Some(Key::Md5(secret)) => set_md5(socket, peers, Some(secret)),
        Some(Key::Ao(key)) => {
            set_md5(socket, peers, None)?;
            ao::add(socket, peers, key)
        }
        None => set_md5(socket, peers, None),
    }
}

fn new_socket(ip: IpAddr) -> Result<Socket, TransportError> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::STREAM, Some(Protocol::TCP))
        .map_err(failed("make a socket"))?;
    socket.set_nonblocking(true).map_err(failed("make the socket non-blocking"))?;
    socket.set_tcp_nodelay(true).map_err(failed("send without delay"))?;
    match ip {
        IpAddr::V4(_) => socket.set_tos_v4(TOS_INTERNETWORK_CONTROL),
        IpAddr::V6(_) => socket.set_tclass_v6(TOS_INTERNETWORK_CONTROL),
    }
    .map_err(failed("mark packets as network control"))?;
    Ok(socket)
}

fn demand(socket: &Socket, remote: IpAddr, transport: &Transport) -> Result<(), TransportError> {
    if let Some(device) = &transport.device {
        bind_device(socket, device)?;
    }
    set_distance(socket, remote, transport.distance)
}

fn bind_device(socket: &Socket, device: &str) -> Result<(), TransportError> {
    socket.bind_device(Some(device.as_bytes())).map_err(failed(format!("bind to device {device}")))
}

fn set_distance(socket: &Socket, remote: IpAddr, distance: Distance) -> Result<(), TransportError> {
    match distance {
        Distance::Adjacent => set_hop_limit(socket, remote, 1),
        Distance::Multihop(hops) => set_hop_limit(socket, remote, hops),
        Distance::Secured(hops) => {
            set_hop_limit(socket, remote, 255)?;
            let least = c_int::from(least_hop_limit(hops));
            let (level, name) = match remote {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
            };
            set_option(socket.as_raw_fd(), level, name, &least)
                .map_err(failed(format!("demand a hop limit of {least} (GTSM)")))
        }
    }
}

/// With what hop limit arrives what was sent with the greatest from so many hops away.
const fn least_hop_limit(hops: u8) -> u8 {
    255 - hops.saturating_sub(1)
}

fn set_hop_limit(socket: &Socket, ip: IpAddr, hops: u8) -> Result<(), TransportError> {
    let hops = u32::from(hops);
    match ip {
        IpAddr::V4(_) => socket.set_ttl_v4(hops),
        IpAddr::V6(_) => socket.set_unicast_hops_v6(hops),
    }
    .map_err(failed(format!("send with hop limit {hops}")))
}

/// `struct tcp_md5sig` of `linux/tcp.h`.
#[repr(C)]
struct TcpMd5Sig {
    address: SockAddrStorage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    /// The kernel takes only the index of a VRF here, not of a link; 0 means any.
    ifindex: c_int,
    key: [u8; MD5_KEY_MAX],
}

/// `TCP_MD5SIG_FLAG_PREFIX`: the address is a prefix.
const FLAG_PREFIX: u8 = 1;

fn set_md5(socket: &Socket, peers: IpNet, key: Option<&Secret>) -> Result<(), TransportError> {
    let octets = key.map_or(&[][..], |key| &key.0);
    if octets.len() > MD5_KEY_MAX || (key.is_some() && octets.is_empty()) {
        let error = io::Error::new(io::ErrorKind::InvalidInput, format!("a key has 1 to {MD5_KEY_MAX} octets"));
        return Err(failed("set the TCP-MD5 key")(error));
    }
    let mut option = TcpMd5Sig {
        address: SockAddr::from(SocketAddr::new(peers.addr(), 0)).as_storage(),
        flags: FLAG_PREFIX,
        prefix_len: peers.prefix_len(),
        key_len: u16::try_from(octets.len()).unwrap_or_default(),
        ifindex: 0,
        key: [0; MD5_KEY_MAX],
    };
    option.key[..octets.len()].copy_from_slice(octets);
    let result = set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG_EXT, &option);
    match result {
        // Taking away what is not there.
        Err(error) if key.is_none() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result.map_err(failed(format!("set the TCP-MD5 key for {peers}"))),
    }
}

pub(super) fn set_option<T>(socket: RawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: `value` is a live reference to a plain C value of the size given; the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket, level, name, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_has_the_layout_of_the_kernel() {
        assert_eq!(size_of::<TcpMd5Sig>(), 216);
        assert_eq!(std::mem::offset_of!(TcpMd5Sig, flags), 128);
        assert_eq!(std::mem::offset_of!(TcpMd5Sig, key_len), 130);
        assert_eq!(std::mem::offset_of!(TcpMd5Sig, ifindex), 132);
        assert_eq!(std::mem::offset_of!(TcpMd5Sig, key), 136);
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new(b"hush".to_vec())), "(secret)");
    }

    #[test]
    fn keys_of_a_wrong_length_are_refused() {
        let socket = new_socket("127.0.0.1".parse().expect("an address")).expect("a socket");
        let peers = "192.0.2.1/32".parse().expect("a prefix");
        for octets in [vec![], vec![1; MD5_KEY_MAX + 1]] {
            let key = Key::Md5(Secret::new(octets));
            let error = set_key(&socket, peers, None, Some(&key)).expect_err("refused");
            assert!(error.to_string().contains("TCP-MD5"), "{error}");
        }
        set_key(&socket, peers, None, None).expect("nothing to take away");
    }
}
