//! Echo packets on the wire: how they go out, and how they are heard when they come back.
//!
//! An echo packet is addressed to ourselves and handed to the other side over the link, whose forwarding plane sends it back
//! as it would any packet that comes by the wrong door (RFC 5881 section 4). It goes out of a socket that writes the IP header
//! itself: the kernel resolves the other side's address, and leaves the destination in the header alone.
//!
//! It comes from an address of this node outside the subnets of the link. From one inside, the other side would tell us with
//! ICMP redirects that there is a shorter way. As the other side may look whether it has a way to the source (reverse path
//! filtering), addresses of the loopback device, which routing protocols spread, come first.
//!
//! Coming back, it has an own address as its source. Over IPv4 the kernel takes that for a forgery (a martian) and drops it, which is as it
//! should be; so a packet socket on the link, with a filter for this port, hears it before. Over IPv6 there is no such
//! rule, and an ordinary socket does.

use std::{
    io::{self, Read as _},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use bgp::{
    Moment,
    bfd::{Arrival, ECHO_PORT, Hops, Path},
};
use ipnet::IpNet;
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};
use thiserror::Error;

use super::{
    Device,
    addresses::{Addresses, Own},
    datagram,
    sockets::{PACKET_LEN_MAX, PACKETS_MAX, Receiver, bind_to_device, destination},
};

/// Why echo packets cannot be sent or heard.
#[derive(Debug, Error)]
pub(super) enum EchoError {
    #[error("echo packets cannot be addressed to {0}, which is link-local: no router forwards them")]
    LinkLocal(IpAddr),
    #[error("no link has the address {0}")]
    NoLink(IpAddr),
    #[error(
        "no address of this node outside the subnets of {0} is there to send from: give the loopback device one of the same family"
    )]
    NoSource(String),
    #[error("failed to {operation}: {source}")]
    System { operation: &'static str, source: io::Error },
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> EchoError {
    move |source| EchoError::System { operation, source }
}

/// The address to send from over `link`: of the same family as `local`, outside the link's subnets, and one that routers forward.
fn choose_source(own: &[Own], link: &str, local: IpAddr) -> Option<IpAddr> {
    let subnets: Vec<IpNet> = own.iter().filter(|own| own.link == link).map(|own| own.net).collect();
    let may_be_source = |address: IpAddr| {
        let is_forwarded = match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        is_forwarded && address.is_ipv4() == local.is_ipv4() && !subnets.iter().any(|subnet| subnet.contains(&address))
    };
    let candidates = own.iter().filter(|own| may_be_source(own.net.addr()));
    candidates.map(|own| (!own.is_loopback, own.net.addr())).min().map(|(_, address)| address)
}

/// The link that has an address.
fn link_of(own: &[Own], local: IpAddr) -> Option<Device> {
    let name = own.iter().find(|own| own.net.addr() == local && !own.is_loopback)?.link.clone();
    let index = nix::net::if_::if_nametoindex(name.as_str()).ok()?;
    Some(Device { index, name })
}

/// Which ear hears the packets of a session: one for each link over IPv4, one for everything over IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EarKey {
    V4(u32),
    V6,
}

/// The mouth of one session.
#[derive(Debug)]
pub(super) struct EchoSender {
    socket: Socket,
    to: SockAddr,
    local: IpAddr,
    source: IpAddr,
    ear: EarKey,
}

impl EchoSender {
    /// Opens it, with the addresses that the node has, or had when they were read last.
    pub(super) fn open(
        path: &Path,
        device: Option<&Device>,
        addresses: &mut Addresses,
        now: Moment,
    ) -> Result<Self, EchoError> {
        let is_link_local = match path.local {
            IpAddr::V4(_) => false,
            IpAddr::V6(local) => local.is_unicast_link_local(),
        };
        if is_link_local {
            return Err(EchoError::LinkLocal(path.local));
        }
        let own = addresses.recent(now).map_err(failed("list the addresses of this node"))?;
        let device = device.cloned().or_else(|| link_of(own, path.local)).ok_or(EchoError::NoLink(path.local))?;
        let source =
            choose_source(own, &device.name, path.local).ok_or_else(|| EchoError::NoSource(device.name.clone()))?;
        let (domain, ear) = match path.local {
            IpAddr::V4(_) => (Domain::IPV4, EarKey::V4(device.index)),
            IpAddr::V6(_) => (Domain::IPV6, EarKey::V6),
        };
        // With this protocol the header is ours to write.
        let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)))
            .map_err(failed("make a raw socket for echo packets"))?;
        bind_to_device(&socket, Some(&device)).map_err(failed("bind the socket of echo packets to its link"))?;
        // The port of a raw address is a protocol, and here there is none to give.
        let to = destination(path.remote, 0, Some(&device));
        Ok(Self { socket, to, local: path.local, source, ear })
    }

    /// Where its packets come from.
    pub(super) const fn source(&self) -> IpAddr {
        self.source
    }

    /// Who hears them when they come back.
    pub(super) const fn ear(&self) -> EarKey {
        self.ear
    }

    /// Sends a packet. A full socket buffer loses it, as a full link would.
    pub(super) fn send(&self, payload: &[u8]) -> io::Result<()> {
        match self.socket.send_to(&datagram::encode(self.source, self.local, payload), &self.to) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Hears what comes back.
#[derive(Debug)]
pub(super) enum EchoEar {
    V4 { socket: Socket, device: u32 },
    V6(Box<Receiver>),
}

impl EchoEar {
    pub(super) fn open(key: EarKey) -> Result<Self, EchoError> {
        match key {
            EarKey::V4(device) => {
                let socket = packet_socket(device).map_err(failed("open a packet socket for echo packets"))?;
                Ok(Self::V4 { socket, device })
            }
            EarKey::V6 => {
                let receiver = Receiver::open_at(ECHO_PORT, Hops::Single, false);
                Ok(Self::V6(Box::new(receiver.map_err(failed("listen for echo packets over IPv6"))?)))
            }
        }
    }

    /// Hands over what has come back.
    pub(super) fn read(&mut self, mut take: impl FnMut(&Arrival, &[u8])) -> io::Result<()> {
        let (socket, device) = match self {
            Self::V6(receiver) => return receiver.read(take),
            Self::V4 { socket, device } => (&*socket, *device),
        };
        let mut buffer = [0; PACKET_LEN_MAX];
        for _ in 0..PACKETS_MAX {
            let octets = match (&mut &*socket).read(&mut buffer) {
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The link went down, or came up again: that is for the session to notice.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if let Some(heard) = datagram::decode_ipv4(octets) {
                let (source, destination) = (heard.source.into(), heard.destination.into());
                take(&Arrival { hops: Hops::Single, source, destination, device, ttl: heard.ttl }, heard.payload);
            }
        }
        Ok(())
    }
}

impl AsFd for EchoEar {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::V4 { socket, .. } => socket.as_fd(),
            Self::V6(receiver) => receiver.as_fd(),
        }
    }
}

/// Instructions of a classic BPF program, by what they do.
mod op {
    pub(super) const LOAD_WORD: u16 = 0x20;
    pub(super) const LOAD_HALF: u16 = 0x28;
    pub(super) const LOAD_OCTET: u16 = 0x30;
    pub(super) const LOAD_HALF_BEHIND: u16 = 0x48;
    pub(super) const LOAD_HEADER_LEN: u16 = 0xb1;
    pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
    pub(super) const JUMP_IF_ANY: u16 = 0x45;
    pub(super) const RETURN: u16 = 0x06;
}

/// Whom a packet was for, in the words of the kernel (`SKF_AD_OFF + SKF_AD_PKTTYPE`).
const PACKET_TYPE: u32 = 0xffff_f004;

/// Whole UDP packets to the port of echo packets, for this node; the offsets are those of the IPv4 header. Everything else is
/// passed by at the cost of this program.
const FILTER: [SockFilter; 11] = [
    SockFilter::new(op::LOAD_WORD, 0, 0, PACKET_TYPE),
    SockFilter::new(op::JUMP_IF_EQUAL, 0, 8, libc::PACKET_HOST as u32),
    SockFilter::new(op::LOAD_OCTET, 0, 0, 9),
    SockFilter::new(op::JUMP_IF_EQUAL, 0, 6, libc::IPPROTO_UDP as u32),
    SockFilter::new(op::LOAD_HALF, 0, 0, 6),
    SockFilter::new(op::JUMP_IF_ANY, 4, 0, 0x3fff),
    SockFilter::new(op::LOAD_HEADER_LEN, 0, 0, 0),
    SockFilter::new(op::LOAD_HALF_BEHIND, 0, 0, 2),
    SockFilter::new(op::JUMP_IF_EQUAL, 0, 1, ECHO_PORT as u32),
    SockFilter::new(op::RETURN, 0, 0, PACKET_LEN_MAX as u32),
    SockFilter::new(op::RETURN, 0, 0, 0),
];

/// A socket that sees the IPv4 packets of a link that the filter lets through, from the IP header on.
fn packet_socket(device: u32) -> io::Result<Socket> {
    // Without a protocol it hears nothing, until the filter is in place.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)?;
    socket.attach_filter(&FILTER)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: i32::try_from(device).map_err(|_| Errno::ENODEV)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: the address is a live value of the size given; the kernel copies it.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(bound)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(link: &str, net: &str) -> Own {
        Own { link: link.to_owned(), is_loopback: link == "lo", net: net.parse().expect("an address") }
    }

    #[test]
    fn packets_come_from_outside_the_subnets_of_the_link() {
        let own = [
            own("lo", "127.0.0.1/8"),
            own("lo", "::1/128"),
            own("lo", "10.255.1.1/32"),
            own("eth0", "192.0.2.1/24"),
            own("eth0", "169.254.0.1/16"),
            own("eth0", "fd00::1/64"),
            own("eth0", "fe80::1/64"),
            own("eth1", "10.0.1.1/24"),
            own("eth1", "192.0.2.77/32"),
            own("eth1", "fd00:1::1/64"),
            own("eth1", "fe80::2/64"),
        ];
        let choose = |own: &[Own], link, local: &str| {
            choose_source(own, link, local.parse().expect("an address")).map(|address| address.to_string())
        };
        // One of the loopback device comes first, else the lowest: never one that the other side has on the link.
        assert_eq!(choose(&own, "eth0", "192.0.2.1").as_deref(), Some("10.255.1.1"));
        assert_eq!(choose(&own[3..], "eth0", "192.0.2.1").as_deref(), Some("10.0.1.1"));
        assert_eq!(choose(&own, "eth0", "fd00::1").as_deref(), Some("fd00:1::1"));
        assert_eq!(choose(&own, "eth1", "fd00:1::1").as_deref(), Some("fd00::1"));
        assert_eq!(choose(&own[..7], "eth0", "fd00::1"), None);
        assert_eq!(choose(&own[3..7], "eth0", "192.0.2.1"), None);
    }
}
