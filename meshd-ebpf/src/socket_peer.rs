//! Socket programs `socket_peer4` and `socket_peer6`: the peer of a connected socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::steps::socket;

/// getpeername(2) of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn socket_peer4(ctx: SockAddrContext) -> i32 {
    socket::peer4(&ctx)
}

/// getpeername(2) of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn socket_peer6(ctx: SockAddrContext) -> i32 {
    socket::peer6(&ctx)
}
