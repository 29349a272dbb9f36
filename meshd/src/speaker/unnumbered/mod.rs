//! Finding the peer of an unnumbered session: whoever advertises itself as a router on the link.
//!
//! A session that is configured by link alone has no address to connect to. Routers on a link say their link-local address
//! in router advertisements, so this room listens to those and sends some itself: a lifetime of zero, which makes nobody's
//! default route lead here, and no prefix, which configures nobody's address. Both sides then know each other within a
//! few seconds of the link coming up, whatever addresses it has.
//!
//! Only links with such a session are listened to. More than one router on a link means that the link is not
//! point-to-point; the one heard first stays until it has been silent for [`SILENCE_MAX`].

pub mod advertisement;

use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::AsRawFd as _,
    time::Duration,
};

use meshd_core::id::IfIndex;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::debug;

use advertisement::{HOP_LIMIT, ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION};

/// Time between two advertisements at first; the peer should not wait.
const PERIOD_FIRST: Duration = Duration::from_secs(1);
/// Advertisements sent at the first pace.
const FIRST_COUNT: u32 = 5;
/// Time between two advertisements later.
const PERIOD: Duration = Duration::from_secs(10);
/// A router that was silent for so long is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Every node on a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Every router on a link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Longest message that is looked at; advertisements fit into one packet of the smallest MTU.
const MESSAGE_MAX: usize = 1_280;

/// Speaks and listens on one link until it is dropped; `heard` is told the router, or that it has fallen silent.
///
/// # Errors
/// When the link refuses, or goes away.
pub async fn follow(link: IfIndex, name: &str, mut heard: impl FnMut(Option<Ipv6Addr>)) -> io::Result<()> {
    // SAFETY: the socket is moved into the registration and lives as long as it; nothing closes its descriptor before.
    let socket = unsafe { AsyncFd::register(open(link, name)?) }?;
    let mut ticks = interval_at(Instant::now(), PERIOD_FIRST);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0;
    let mut router: Option<(Ipv6Addr, Instant)> = None;
    loop {
        let silent_at = router.map(|(_, at)| at + SILENCE_MAX);
        let silence = async {
            match silent_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ticks.tick() => {
                advertise(socket.get_ref(), link)?;
                sent += 1;
                if sent == FIRST_COUNT {
                    ticks = interval_at(Instant::now() + PERIOD, PERIOD);
                    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                }
            }
            ready = socket.readable() => {
                let mut ready = ready?;
                match ready.try_io(|socket| receive(socket.get_ref())) {
                    Ok(message) => match message? {
                        Some(Heard::Router(address)) => {
                            let others = router.filter(|(known, _)| *known != address);
                            if others.is_none() {
                                heard(Some(address));
                                router = Some((address, Instant::now()));
                            }
                        }
                        // Somebody has just come up and asks.
                        Some(Heard::Question) => advertise(socket.get_ref(), link)?,
                        None => {}
                    },
                    Err(_would_block) => {}
                }
            }
            () = silence => {
                router = None;
                heard(None);
            }
        }
    }
}

enum Heard {
    Router(Ipv6Addr),
    Question,
}

fn open(link: IfIndex, name: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(name.as_bytes()))?;
    let level = libc::IPPROTO_ICMPV6;
    // `struct icmp6_filter`: a bit for each type that is not wanted.
    let mut filter = [u32::MAX; 8];
    for wanted in [ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT] {
        filter[usize::from(wanted / 32)] &= !(1 << (wanted % 32));
    }
    super::transport::set_option(socket.as_raw_fd(), level, ICMP6_FILTER, &filter)?;
    setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
    socket.set_unicast_hops_v6(HOP_LIMIT.into())?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_multicast_if_v6(link.0)?;
    socket.join_multicast_v6(&ALL_NODES, link.0)?;
    socket.join_multicast_v6(&ALL_ROUTERS, link.0)?;
    Ok(socket)
}

/// `linux/icmpv6.h`.
const ICMP6_FILTER: libc::c_int = 1;

fn advertise(socket: &Socket, link: IfIndex) -> io::Result<()> {
    let everybody = SockAddr::from(SocketAddrV6::new(ALL_NODES, 0, 0, link.0));
    match socket.send_to(&advertisement::encode(None), &everybody) {
        Ok(_) => Ok(()),
        // No link-local address yet, or a link that is down: the next tick tries again.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AddrNotAvailable
                    | io::ErrorKind::NetworkDown
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::WouldBlock
            ) =>
        {
            debug!(%error, link = link.0, "cannot advertise this router yet");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Reads one message; `None` when it is none that counts.
fn receive(socket: &Socket) -> io::Result<Option<Heard>> {
    let mut message = [0; MESSAGE_MAX];
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut parts = [io::IoSliceMut::new(&mut message)];
    let received = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let hop_limit = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv6HopLimit(hops) => u8::try_from(hops).ok(),
        _ => None,
    });
    let (source, octets) = (received.address, received.bytes);
    if received.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    let (Some(source), Some(hop_limit)) = (source, hop_limit) else { return Ok(None) };
    let message = &message[..octets];
    if message.first() == Some(&ROUTER_SOLICITATION) {
        return Ok((hop_limit == HOP_LIMIT).then_some(Heard::Question));
    }
    match advertisement::decode(message, source.ip(), hop_limit) {
        Ok(advertisement) => Ok(Some(Heard::Router(advertisement.router))),
        Err(reason) => {
            debug!(%source, %reason, "ignored a router advertisement");
            Ok(None)
        }
    }
}
