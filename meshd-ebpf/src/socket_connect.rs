//! Socket programs `socket_connect4` and `socket_connect6`: connect(2) to a service.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::steps::socket;

/// connect(2) of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn socket_connect4(ctx: SockAddrContext) -> i32 {
    socket::name4(&ctx)
}

/// connect(2) of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn socket_connect6(ctx: SockAddrContext) -> i32 {
    socket::name6(&ctx)
}
