//! What the machine knows when the configuration does not say it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use meshd_core::id::{IdError, NodeName};
use thiserror::Error;

use super::model::NodeConfig;

/// Documentation addresses (RFC 5737, RFC 3849): connecting a UDP socket to them makes the kernel look the
/// default route up and sends nothing.
const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Why name or address of this node is not known.
#[derive(Debug, Error)]
pub enum HostError {
    /// The host name cannot be read.
    #[error("failed to read the host name from /proc/sys/kernel/hostname")]
    Hostname(#[source] io::Error),
    /// The host name is no node name.
    #[error("the host name cannot be a node name; set node.name")]
    Name(#[source] IdError),
    /// There is no default route to take an address from.
    #[error("no default route to take the node's address from; set node.addresses")]
    NoAddress,
}

/// A node with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedNode {
    /// Its name.
    pub name: NodeName,
    /// Its addresses; at least one.
    pub addresses: Vec<IpAddr>,
}

/// Fills in name and addresses from the machine where the configuration leaves them out.
///
/// # Errors
/// When they are needed and the machine does not know them.
pub fn resolve(node: &NodeConfig) -> Result<ResolvedNode, HostError> {
    let name = match &node.name {
        Some(name) => name.clone(),
        None => {
            let text = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(HostError::Hostname)?;
            text.trim().parse().map_err(HostError::Name)?
        }
    };
    let mut addresses = node.addresses.clone();
    if addresses.is_empty() {
        addresses = [FAR_V4, FAR_V6].into_iter().filter_map(source_towards).collect();
    }
    if addresses.is_empty() {
        return Err(HostError::NoAddress);
    }
    Ok(ResolvedNode { name, addresses })
}

/// The address the kernel would send from; `None` without a route.
fn source_towards(far: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match far {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(far, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    if address.is_unspecified() || address.is_loopback() { None } else { Some(address) }
}
