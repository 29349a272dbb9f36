//! The tunnel's link in the kernel: one VXLAN device that takes the far end of each packet from its route.
//!
//! The device resolves no addresses (`IFF_NOARP`): what it sends carries its own link-layer address as the destination as well,
//! and the far end takes every frame for its own (see `kernel/nftables/arrivals.rs`). Every function opens a socket of its own and
//! blocks for as long as the kernel needs; they are called rarely.

use std::{fs, io, net::Ipv4Addr, path::Path, sync::Arc};

use meshd_core::{
    id::{IfIndex, TUNNEL_LINK},
    plan::{HeldTunnel, TunnelStep, TunnelWish},
};
use nix::errno::Errno;

use super::{
    encode::dump_request,
    socket::{
        DumpError, HEADER_LEN, RECEIVE_LEN, RouteSocket, align, answer, attributes, dump, frames, u32_at, u32_value,
    },
    wire::*,
};
use crate::kernel::KernelError;

/// Sysctls of the link. Packets come from workloads to which the way back may just have changed, so the source is checked
/// loosely; nobody needs link-local addresses on it.
const SYSCTLS: [(&str, &str); 3] =
    [("ipv4/conf", "rp_filter=2"), ("ipv6/conf", "addr_gen_mode=1"), ("ipv6/conf", "accept_ra=0")];

/// Why the link is not as it should be.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TunnelError {
    /// No socket.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel refused.
    #[error("failed to {operation} the link: {errno}{}", said(message.as_ref()))]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Its answer.
        errno: Errno,
        /// Its words.
        message: Option<Arc<str>>,
    },
    /// A sysctl cannot be written.
    #[error("failed to set {name} of the link: {reason}")]
    Sysctl {
        /// Which.
        name: &'static str,
        /// Why.
        reason: String,
    },
}

impl TunnelError {
    /// Another link has the UDP port.
    #[must_use]
    pub fn is_port_taken(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::EADDRINUSE | Errno::EEXIST, .. })
    }
}

fn said(message: Option<&Arc<str>>) -> String {
    message.map(|message| format!(" ({message})")).unwrap_or_default()
}

/// A VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanLink {
    /// Its name.
    pub name: String,
    /// Its UDP port.
    pub port: u16,
    /// Administratively up.
    pub up: bool,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelLinks {
    /// The link with our name.
    pub held: Option<HeldTunnel>,
    /// VXLAN links of others.
    pub foreign: Vec<VxlanLink>,
}

/// Looks at every VXLAN link, and at the one with our name whatever it is.
///
/// # Errors
/// [`TunnelError::Kernel`] without a socket, [`TunnelError::Refused`] when the dump fails.
pub fn look() -> Result<TunnelLinks, TunnelError> {
    /// A dump that failed.
    struct Failed(DumpError);
    impl From<DumpError> for Failed {
        fn from(error: DumpError) -> Self {
            Self(error)
        }
    }
    let socket = RouteSocket::open_for_dumps()?;
    let mut links = TunnelLinks::default();
    let request = dump_request(1, RTM_GETLINK, &[0; 16]);
    let read = dump(&socket, &request, 1, false, |frame| {
        if frame.kind == RTM_NEWLINK {
            links.take(frame.payload);
        }
        Ok::<(), Failed>(())
    });
    read.map_err(|Failed(error)| {
        let errno = match error {
            DumpError::Interrupted => Errno::EINTR,
            DumpError::Failed(errno) => errno,
        };
        TunnelError::Refused { operation: "look at", errno, message: None }
    })?;
    Ok(links)
}

impl TunnelLinks {
    fn take(&mut self, payload: &[u8]) {
        let Some(header) = payload.first_chunk::<16>() else { return };
        let (index, flags) = (IfIndex(u32_at(header, 4)), u32_at(header, 8));
        let (mut name, mut mtu, mut vxlan) = (String::new(), 0, None);
        for (kind, value) in attributes(&payload[16..]) {
            match kind {
                IFLA_IFNAME => name = text(value),
                IFLA_MTU => mtu = u32_value(value).unwrap_or_default(),
                IFLA_LINKINFO => vxlan = Vxlan::read(value),
                _ => {}
            }
        }
        if name == TUNNEL_LINK {
            let ready = flags & (IFF_UP | IFF_NOARP) == IFF_UP | IFF_NOARP;
            let port = vxlan.filter(Vxlan::is_as_made).map(|vxlan| vxlan.port);
            self.held = Some(HeldTunnel { index, port, mtu, ready });
        } else if let Some(vxlan) = vxlan {
            self.foreign.push(VxlanLink { name, port: vxlan.port, up: flags & IFF_UP != 0 });
        }
    }
}

/// What the kernel says about a VXLAN link.
#[derive(Debug, Clone, Copy, Default)]
struct Vxlan {
    port: u16,
    external: bool,
    learning: bool,
    takes_no_checksum: bool,
}

impl Vxlan {
    fn read(info: &[u8]) -> Option<Self> {
        let find = |wanted| attributes(info).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        if text(find(IFLA_INFO_KIND)?) != "vxlan" {
            return None;
        }
        let mut vxlan = Self::default();
        for (kind, value) in attributes(find(IFLA_INFO_DATA)?) {
            let is_set = value.first().is_some_and(|value| *value != 0);
            match kind {
                IFLA_VXLAN_PORT => vxlan.port = value.first_chunk().map_or(0, |port| u16::from_be_bytes(*port)),
                IFLA_VXLAN_COLLECT_METADATA => vxlan.external = is_set,
                IFLA_VXLAN_LEARNING => vxlan.learning = is_set,
                IFLA_VXLAN_UDP_ZERO_CSUM6_RX => vxlan.takes_no_checksum = is_set,
                _ => {}
            }
        }
        Some(vxlan)
    }

    fn is_as_made(&self) -> bool {
        self.external && !self.learning && self.takes_no_checksum
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// Takes one step.
///
/// # Errors
/// What the kernel refused.
pub fn carry_out(step: &TunnelStep) -> Result<(), TunnelError> {
    match *step {
        TunnelStep::Create(wish) => {
            ask("make", create(&wish))?;
            set_up(IfIndex(0))
        }
        TunnelStep::SetMtu(index, mtu) => {
            let mut message = link(RTM_NEWLINK, 0, index, 0);
            message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
            ask("size", message)
        }
        TunnelStep::SetUp(index) => set_up(index),
        TunnelStep::Delete(index) => ask("remove", link(RTM_DELLINK, 0, index, 0)),
    }
}

fn create(wish: &TunnelWish) -> Message {
    let mut message = link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, IfIndex(0), 0);
    message.attribute(IFLA_IFNAME, TUNNEL_LINK.as_bytes());
    message.attribute(IFLA_MTU, &wish.mtu.to_ne_bytes());
    message.nested(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_KIND, b"vxlan");
        info.nested(IFLA_INFO_DATA, |data| {
            data.attribute(IFLA_VXLAN_COLLECT_METADATA, &[1]);
            data.attribute(IFLA_VXLAN_LEARNING, &[0]);
            data.attribute(IFLA_VXLAN_PORT, &wish.port.to_be_bytes());
            data.attribute(IFLA_VXLAN_UDP_ZERO_CSUM6_TX, &[1]);
            data.attribute(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, &[1]);
        });
    });
    message
}

/// Sysctls first: with the link up the kernel would begin to make addresses.
fn set_up(index: IfIndex) -> Result<(), TunnelError> {
    write_sysctls(TUNNEL_LINK)?;
    let mut message = link(RTM_NEWLINK, 0, index, IFF_UP | IFF_NOARP);
    if index == IfIndex(0) {
        message.attribute(IFLA_IFNAME, TUNNEL_LINK.as_bytes());
    }
    ask("set up", message)
}

/// Sets [`SYSCTLS`] for a link of ours.
pub(super) fn write_sysctls(link: &str) -> Result<(), TunnelError> {
    for (folder, setting) in SYSCTLS {
        let Some((name, value)) = setting.split_once('=') else { continue };
        let path = Path::new("/proc/sys/net").join(folder).join(link).join(name);
        match fs::write(path, value) {
            // A kernel without IPv6, or a /proc that may not be written: the link works, and what differs is seen in use.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(TunnelError::Sysctl { name, reason: error.to_string() });
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Gives the link an address of the node. Without any, the kernel's loose check of sources drops every packet to which the way back is
/// another link, as it is while the two ends change ways; and what the node itself sends to workloads gets this source.
///
/// # Errors
/// What the kernel refused.
pub fn give_address(link: IfIndex, address: Ipv4Addr) -> Result<(), TunnelError> {
    let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
    message.bytes(&[AF_INET, 32, 0, RT_SCOPE_UNIVERSE]);
    message.bytes(&link.0.to_ne_bytes());
    message.attribute(IFA_LOCAL, &address.octets());
    message.attribute(IFA_LABEL, TUNNEL_LINK.as_bytes());
    ask("give an address to", message)
}

/// A message about a link that sets `flags`.
pub(super) fn link(kind: u16, create: u16, index: IfIndex, flags: u32) -> Message {
    let mut message = Message::new(kind, create);
    message.bytes(&[0; 4]);
    for word in [index.0, flags, flags] {
        message.0.extend(word.to_ne_bytes());
    }
    message
}

/// A netlink message under construction.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new(kind: u16, flags: u16) -> Self {
        let mut message = Self(vec![0; HEADER_LEN]);
        message.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.0[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.0[8..12].copy_from_slice(&1u32.to_ne_bytes());
        message
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(align(self.0.len()), 0);
    }

    fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NLA_F_NESTED).to_ne_bytes());
        content(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

pub(super) fn ask(operation: &'static str, message: Message) -> Result<(), TunnelError> {
    let refused = |errno, message| TunnelError::Refused { operation, errno, message };
    let socket = RouteSocket::open()?;
    socket.set_ext_ack()?;
    let Message(mut bytes) = message;
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    socket.send(&bytes).map_err(|errno| refused(errno, None))?;
    let mut buffer = vec![0; RECEIVE_LEN];
    let length = socket.receive(&mut buffer).map_err(|errno| refused(errno, None))?;
    for frame in frames(&buffer[..length]).filter(|frame| frame.kind == NLMSG_ERROR) {
        if let (Some(errno), message) = answer(&frame) {
            return Err(refused(errno, message));
        }
    }
    Ok(())
}
