//! A link whose far side is this process: packets that are routed to it are read, and what is written comes out of it as if a
//! workload had sent it. It goes when the process does.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use meshd_core::id::{IfIndex, MAIN_TABLE};
use nix::{errno::Errno, net::if_::if_nametoindex};

use super::{
    tunnel::{Message, TunnelError, ask, link, write_sysctls},
    wire::*,
};

/// `TUNSETIFF` of linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// Routes to it are somebody's own, not of our protocol: among those every one is taken back that leads to no node.
const RTPROT_STATIC: u8 = 4;
/// Packets up to this size pass, whatever the other links take.
const MTU: u32 = 65_535;

/// The link, while it is open.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Makes a link of this name that is up, with a route to each of the addresses.
    ///
    /// # Errors
    /// Without `/dev/net/tun`, or when the kernel refuses; also while another process has the link.
    pub fn open(name: &str, addresses: &[IpAddr]) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: a structure of plain C values, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap_or_default();
        // SAFETY: `request` is a live `ifreq`, which is what this request reads and writes.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        Errno::result(result)?;
        let tun = Self(file);
        tun.configure(name, addresses).map_err(io::Error::other)?;
        Ok(tun)
    }

    fn configure(&self, name: &str, addresses: &[IpAddr]) -> Result<(), TunnelError> {
        let refused = |errno| TunnelError::Refused { operation: "find", errno, message: None };
        let index = if_nametoindex(name).map_err(refused)?;
        write_sysctls(name)?;
        let mut message = link(RTM_NEWLINK, 0, IfIndex(index), IFF_UP);
        message.attribute(IFLA_MTU, &MTU.to_ne_bytes());
        ask("set up", message)?;
        for address in addresses {
            let (family, length) = if address.is_ipv4() { (AF_INET, 32) } else { (AF_INET6, 128) };
            let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
            let table = u8::try_from(MAIN_TABLE).unwrap_or_default();
            let scope = if address.is_ipv4() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
            message.bytes(&[family, length, 0, 0, table, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0]);
            match address {
                IpAddr::V4(address) => message.attribute(RTA_DST, &address.octets()),
                IpAddr::V6(address) => message.attribute(RTA_DST, &address.octets()),
            }
            message.attribute(RTA_OIF, &index.to_ne_bytes());
            ask("route probes to", message)?;
        }
        Ok(())
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Sends one packet as a workload would.
    ///
    /// # Errors
    /// When the kernel takes no more.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write(packet).map(|_| ())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
