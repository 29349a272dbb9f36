//! Sockets: four ears for all sessions, one mouth for each.

use std::{
    ffi::OsString,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use bgp::bfd::{Arrival, Hops};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrLike, SockaddrStorage, recvmmsg, setsockopt,
        sockopt,
    },
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Device;

/// Control packets of a single hop (RFC 5881 section 4).
const PORT_SINGLE_HOP: u16 = 3784;
/// Control packets of several hops (RFC 5883 section 5).
const PORT_MULTIHOP: u16 = 4784;
/// Source ports are from here to the end (RFC 5881 section 4).
const SOURCE_PORT_MIN: u16 = 49_152;
/// Source ports tried before opening a socket is given up for this time.
const SOURCE_PORTS_TRIED_MAX: u16 = 64;
/// TTL of everything sent.
const TTL: u8 = 255;
/// Traffic class CS6: network control.
const TRAFFIC_CLASS: i32 = 0xc0;
/// Packets read by one system call.
const BATCH_LEN: usize = 32;
/// Batches read before timers get their turn.
const BATCHES_MAX: usize = 64;
/// Octets of a packet that are read; the longest that any RFC describes has 52.
pub(super) const PACKET_LEN_MAX: usize = 128;
/// Packets that are read at most from one socket before timers get their turn.
pub(super) const PACKETS_MAX: usize = BATCH_LEN * BATCHES_MAX;

const fn port(hops: Hops) -> u16 {
    match hops {
        Hops::Single => PORT_SINGLE_HOP,
        Hops::Multi => PORT_MULTIHOP,
    }
}

fn udp(is_v4: bool) -> io::Result<Socket> {
    let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if !is_v4 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// The address from which the kernel would send to `remote`: what a session's local address is when nobody chose one.
pub fn source_address(remote: IpAddr, device: Option<&Device>) -> io::Result<IpAddr> {
    let socket = udp(remote.is_ipv4())?;
    bind_to_device(&socket, device)?;
    socket.connect(&destination(remote, PORT_SINGLE_HOP, device))?;
    UdpSocket::from(socket).local_addr().map(|address| address.ip())
}

pub(super) fn bind_to_device(socket: &Socket, device: Option<&Device>) -> io::Result<()> {
    match device {
        Some(device) => Ok(setsockopt(socket, sockopt::BindToDevice, &OsString::from(&device.name))?),
        None => Ok(()),
    }
}

pub(super) fn destination(address: IpAddr, port: u16, device: Option<&Device>) -> SockAddr {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            SocketAddrV6::new(address, port, 0, device.map_or(0, |device| device.index)).into()
        }
        address => SocketAddr::new(address, port).into(),
    }
}

/// The mouth of one session.
#[derive(Debug)]
pub(super) struct Transmitter {
    socket: Socket,
    to: SockAddr,
}

impl Transmitter {
    /// Opens it. `port_hint` is where the search for a free source port begins.
    pub(super) fn open(
        hops: Hops,
        local: IpAddr,
        remote: IpAddr,
        device: Option<&Device>,
        port_hint: u32,
    ) -> io::Result<Self> {
        let socket = udp(local.is_ipv4())?;
        bind_to_device(&socket, device)?;
        if local.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4Ttl, &i32::from(TTL))?;
            setsockopt(&socket, sockopt::Ipv4Tos, &TRAFFIC_CLASS)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6Ttl, &i32::from(TTL))?;
            setsockopt(&socket, sockopt::Ipv6TClass, &TRAFFIC_CLASS)?;
        }
        // It only sends; what somebody sends to it need not be kept.
        socket.set_recv_buffer_size(0)?;
        let mut tries = 0;
        loop {
            let offset = port_hint.wrapping_add(u32::from(tries)) % u32::from(u16::MAX - SOURCE_PORT_MIN + 1);
            let source_port = SOURCE_PORT_MIN + u16::try_from(offset).unwrap_or(0);
            match socket.bind(&destination(local, source_port, device)) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < SOURCE_PORTS_TRIED_MAX => tries += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(Self { socket, to: destination(remote, port(hops), device) })
    }

    /// Sends a packet. A full socket buffer loses it, as a full link would.
    pub(super) fn send(&self, octets: &[u8]) -> io::Result<()> {
        match self.socket.send_to(octets, &self.to) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// An ear: everything that comes to one port in one family.
pub(super) struct Receiver {
    socket: Socket,
    hops: Hops,
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Box<[[u8; PACKET_LEN_MAX]; BATCH_LEN]>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("socket", &self.socket).field("hops", &self.hops).finish_non_exhaustive()
    }
}

fn headers() -> MultiHeaders<SockaddrStorage> {
    let space = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, libc::c_int);
    MultiHeaders::preallocate(BATCH_LEN, Some(space))
}

impl Receiver {
    pub(super) fn open(hops: Hops, is_v4: bool) -> io::Result<Self> {
        Self::open_at(port(hops), hops, is_v4)
    }

    /// Opens it at another port than the one of control packets.
    pub(super) fn open_at(port: u16, hops: Hops, is_v4: bool) -> io::Result<Self> {
        let socket = udp(is_v4)?;
        let any = if is_v4 {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        socket.bind(&SocketAddr::new(any, port).into())?;
        Ok(Self { socket, hops, headers: headers(), buffers: Box::new([[0; PACKET_LEN_MAX]; BATCH_LEN]) })
    }

    /// Hands over what has arrived. Packets without the kernel's information, which do not happen, are left out.
    pub(super) fn read(&mut self, mut take: impl FnMut(&Arrival, &[u8])) -> io::Result<()> {
        for _ in 0..BATCHES_MAX {
            let mut slices = self.buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            let fd = self.socket.as_raw_fd();
            let messages = match recvmmsg(fd, &mut self.headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None) {
                Ok(messages) => messages,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let (mut count, mut complete) = (0, true);
            for message in messages {
                count += 1;
                let octets = message.iovs().next().unwrap_or_default();
                match arrival(&message, self.hops) {
                    Some(arrival) => take(&arrival, octets),
                    None => complete = false,
                }
            }
            if !complete {
                // The kernel writes back how much of the room for its information it used, and the next call has no more.
                self.headers = headers();
            }
            if count < BATCH_LEN {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn arrival(message: &RecvMsg<'_, '_, SockaddrStorage>, hops: Hops) -> Option<Arrival> {
    let source = message.address?;
    let source = match source.family()? {
        nix::sys::socket::AddressFamily::Inet => IpAddr::V4(source.as_sockaddr_in()?.ip()),
        _ => IpAddr::V6(source.as_sockaddr_in6()?.ip()),
    };
    let (mut target, mut ttl) = (None, None);
    for information in message.cmsgs().ok()? {
        match information {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let destination = Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr));
                target = Some((IpAddr::V4(destination), u32::try_from(info.ipi_ifindex).ok()?));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                target = Some((IpAddr::V6(info.ipi6_addr.s6_addr.into()), info.ipi6_ifindex));
            }
            ControlMessageOwned::Ipv4Ttl(value) | ControlMessageOwned::Ipv6HopLimit(value) => {
                ttl = u8::try_from(value).ok();
            }
            _ => {}
        }
    }
    let (destination, device) = target?;
    Some(Arrival { hops, source, destination, device, ttl: ttl? })
}
