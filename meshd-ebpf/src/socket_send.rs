//! Socket programs `socket_send4` and `socket_send6`: datagrams to a service, of sockets that are not connected.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::steps::socket;

/// sendto(2) or sendmsg(2) of an IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn socket_send4(ctx: SockAddrContext) -> i32 {
    socket::name4(&ctx)
}

/// sendto(2) or sendmsg(2) of an IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn socket_send6(ctx: SockAddrContext) -> i32 {
    socket::name6(&ctx)
}
