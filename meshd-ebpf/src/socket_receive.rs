//! Socket programs `socket_receive4` and `socket_receive6`: the sender of a datagram.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::steps::socket;

/// recvfrom(2) or recvmsg(2) of an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn socket_receive4(ctx: SockAddrContext) -> i32 {
    socket::peer4(&ctx)
}

/// recvfrom(2) or recvmsg(2) of an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn socket_receive6(ctx: SockAddrContext) -> i32 {
    socket::peer6(&ctx)
}
