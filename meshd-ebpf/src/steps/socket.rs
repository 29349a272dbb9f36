//! Sockets that name a service, or ask for their peer.
//!
//! A socket that names a service gets a backend in its place before the kernel looks for a route, so its packets are ordinary packets
//! to the backend: no program translates them, and a workload that asks its own service talks to itself without any detour.
//! What the socket asked for is remembered by its cookie, so that it sees the service as its peer.
//!
//! An IPv6 socket may name an IPv4 address (`::ffff:10.2.0.1`): that is a service of IPv4.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use meshd_abi::{
    AffinityValue, Reason, Scope, Service, ServiceKey, SocketClient, SocketKey, SocketValue, V4, V6, service_flags,
};
use meshd_steps::{choose::mix, header::protocol};

use super::{serve, ticks};
use crate::maps::{
    self,
    sockets::{self, Sockets},
};

/// The call goes on.
pub const GO_ON: i32 = 1;
/// The call fails, with the error that was set before.
const REFUSE: i32 = 0;
/// `ECONNREFUSED`: nobody listens there.
const REFUSED: i32 = 111;
/// Third word of an IPv4 address in an IPv6 one (RFC 4291 section 2.5.5.2).
const MAPPED: u32 = 0xffff_u32.to_be();

/// An address and a port in network byte order.
struct Peer<A> {
    address: A,
    port: u16,
}

/// An IPv4 socket names a destination: connect(2), or sendto(2) without a connection.
#[inline(always)]
pub fn name4(ctx: &SockAddrContext) -> i32 {
    match forward(ctx, V4(word4(ctx))) {
        Ok(Some(backend)) => write4(ctx, &backend),
        Ok(None) => GO_ON,
        Err(_) => refuse(),
    }
}

/// The same of an IPv6 socket.
#[inline(always)]
pub fn name6(ctx: &SockAddrContext) -> i32 {
    let words = words6(ctx);
    if is_mapped(&words) {
        return match forward(ctx, V4(words[3])) {
            Ok(Some(backend)) => write_mapped(ctx, &backend),
            Ok(None) => GO_ON,
            Err(_) => refuse(),
        };
    }
    match forward(ctx, V6(words)) {
        Ok(Some(backend)) => write6(ctx, &backend),
        Ok(None) => GO_ON,
        Err(_) => refuse(),
    }
}

/// An IPv4 socket is told who its peer is: getpeername(2), or the sender of a datagram.
#[inline(always)]
pub fn peer4(ctx: &SockAddrContext) -> i32 {
    match backward(ctx, V4(word4(ctx))) {
        Some(frontend) => write4(ctx, &frontend),
        None => GO_ON,
    }
}

/// The same of an IPv6 socket.
#[inline(always)]
pub fn peer6(ctx: &SockAddrContext) -> i32 {
    let words = words6(ctx);
    if is_mapped(&words) {
        return match backward(ctx, V4(words[3])) {
            Some(frontend) => write_mapped(ctx, &frontend),
            None => GO_ON,
        };
    }
    match backward(ctx, V6(words)) {
        Some(frontend) => write6(ctx, &frontend),
        None => GO_ON,
    }
}

/// The backend for a destination; `None` when it is no service.
#[inline(always)]
fn forward<A: Sockets>(ctx: &SockAddrContext, address: A) -> Result<Option<Peer<A>>, Reason> {
    let protocol = protocol_of(ctx);
    if protocol != protocol::TCP && protocol != protocol::UDP {
        return Ok(None);
    }
    let port = port_of(ctx);
    let Some(service) = A::service(&ServiceKey::new(address, port, protocol, Scope::Internal)) else {
        return Ok(None);
    };
    let cookie = cookie_of(ctx);
    let index = choose::<A>(ctx, service, protocol, cookie)?;
    let backend = A::backend(index).ok_or(Reason::NoBackend)?;
    let backend_of = Peer { address: backend.address, port: backend.port };
    let key = socket_key(cookie, &backend_of, protocol);
    // A datagram goes where the one before went: what is there need not be written again.
    let is_known =
        A::socket(&key).is_some_and(|known| known.address == address && known.port == port && known.backend == index);
    if !is_known {
        A::put_socket(&key, &SocketValue { address, service: service.id, backend: index, port, reserved: 0 });
        sockets::note(Reason::SocketTranslated);
    }
    Ok(Some(backend_of))
}

/// Picks a backend: the one the namespace had, as long as it takes new connections, otherwise by lot; the datagrams of a socket stay
/// together, because several may belong to one conversation.
#[inline(always)]
fn choose<A: Sockets>(ctx: &SockAddrContext, service: &Service, protocol: u8, cookie: u64) -> Result<u32, Reason> {
    if service.count == 0 {
        return Err(Reason::NoBackend);
    }
    let by_client = service.affinity != 0 || service.flags & service_flags::BY_SOURCE != 0;
    // SAFETY: the context is valid while the program runs.
    let namespace = if by_client { unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } } else { 0 };
    let client =
        SocketClient { namespace_low: namespace as u32, namespace_high: (namespace >> 32) as u32, service: service.id };
    let now = if service.affinity == 0 { 0 } else { ticks() };
    if service.affinity != 0 {
        if let Some(last) = sockets::affinity(&client) {
            if now.wrapping_sub(last.used) <= service.affinity && serve::serves::<A>(last.backend, service.id) {
                if last.used != now {
                    sockets::put_affinity(&client, &AffinityValue { backend: last.backend, used: now });
                }
                return Ok(last.backend);
            }
        }
    }
    let hash = if service.flags & service_flags::BY_SOURCE != 0 {
        mix(namespace, seed())
    } else if protocol == protocol::UDP {
        mix(cookie, seed() ^ service.id)
    } else {
        // SAFETY: the helper takes nothing.
        unsafe { bpf_get_prandom_u32() }
    };
    let index = serve::pick::<A>(service, hash)?;
    if service.affinity != 0 {
        sockets::put_affinity(&client, &AffinityValue { backend: index, used: now });
    }
    Ok(index)
}

#[inline(always)]
fn seed() -> u32 {
    maps::settings().map_or(0, |settings| settings.seed)
}

/// The service that this socket asked for when it got a backend.
#[inline(always)]
fn backward<A: Sockets>(ctx: &SockAddrContext, address: A) -> Option<Peer<A>> {
    let backend = Peer { address, port: port_of(ctx) };
    let asked = A::socket(&socket_key(cookie_of(ctx), &backend, protocol_of(ctx)))?;
    Some(Peer { address: asked.address, port: asked.port })
}

#[inline(always)]
fn socket_key<A: Sockets>(cookie: u64, backend: &Peer<A>, protocol: u8) -> SocketKey<A> {
    SocketKey {
        cookie_low: cookie as u32,
        cookie_high: (cookie >> 32) as u32,
        address: backend.address,
        port: backend.port,
        protocol,
        reserved: 0,
    }
}

#[inline(always)]
fn refuse() -> i32 {
    sockets::note(Reason::SocketRefused);
    // SAFETY: the kernel takes any error number.
    unsafe { bpf_set_retval(-REFUSED) };
    REFUSE
}

#[inline(always)]
fn is_mapped(words: &[u32; 4]) -> bool {
    words[0] == 0 && words[1] == 0 && words[2] == MAPPED
}

#[inline(always)]
fn cookie_of(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

// The verifier rewrites each access to the context by its offset and size, so the compiler may neither join nor split them.

#[inline(always)]
fn protocol_of(ctx: &SockAddrContext) -> u8 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() as u8 }
}

#[inline(always)]
fn port_of(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as above. The port is in the first two octets of the field.
    unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() as u16 }
}

#[inline(always)]
fn word4(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as above.
    unsafe { (&raw const (*ctx.sock_addr).user_ip4).read_volatile() }
}

#[inline(always)]
fn words6(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: as above.
    unsafe {
        let at = (&raw const (*ctx.sock_addr).user_ip6).cast::<u32>();
        [at.read_volatile(), at.add(1).read_volatile(), at.add(2).read_volatile(), at.add(3).read_volatile()]
    }
}

#[inline(always)]
fn write4(ctx: &SockAddrContext, to: &Peer<V4>) -> i32 {
    // SAFETY: as above.
    unsafe { (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(to.address.0) };
    write_port(ctx, to.port)
}

#[inline(always)]
fn write_mapped(ctx: &SockAddrContext, to: &Peer<V4>) -> i32 {
    // SAFETY: as above.
    unsafe { (&raw mut (*ctx.sock_addr).user_ip6[3]).write_volatile(to.address.0) };
    write_port(ctx, to.port)
}

#[inline(always)]
fn write6(ctx: &SockAddrContext, to: &Peer<V6>) -> i32 {
    let [a, b, c, d] = to.address.0;
    // SAFETY: as above.
    unsafe {
        let at = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
        at.write_volatile(a);
        at.add(1).write_volatile(b);
        at.add(2).write_volatile(c);
        at.add(3).write_volatile(d);
    }
    write_port(ctx, to.port)
}

#[inline(always)]
fn write_port(ctx: &SockAddrContext, port: u16) -> i32 {
    // SAFETY: as above.
    unsafe { (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(port)) };
    GO_ON
}
