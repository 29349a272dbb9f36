//! The addresses of this node, as they were a moment ago.
//!
//! Listing them costs a message for every one there is, and a node can have thousands. The thread that asks has packets to
//! send every few milliseconds, so all sessions share one reading, and who needs a newer one waits for its time.

use std::{io, net::IpAddr, time::Duration};

use bgp::Moment;
use ipnet::IpNet;
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
    sys::socket::SockaddrStorage,
};

/// Time between two readings.
const READ_INTERVAL: Duration = Duration::from_secs(5);

/// An address of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) link: String,
    /// The link is the loopback device.
    pub(super) is_loopback: bool,
    /// The address, with the subnet that it makes reachable over the link.
    pub(super) net: IpNet,
}

/// How addresses are listed.
pub(super) type List = fn() -> io::Result<Vec<Own>>;

/// What was read last.
#[derive(Debug)]
pub(super) struct Addresses {
    list: List,
    /// Or why they are not known.
    own: Result<Vec<Own>, String>,
    read_at: Option<Moment>,
}

impl Addresses {
    /// Nothing is read yet.
    pub(super) const fn new(list: List) -> Self {
        Self { list, own: Ok(Vec::new()), read_at: None }
    }

    /// The addresses, which are read when that is due.
    pub(super) fn recent(&mut self, now: Moment) -> io::Result<&[Own]> {
        if self.is_due(now) {
            // What cannot be read now is tried again no earlier than what was.
            self.read_at = Some(now);
            self.own = (self.list)().map_err(|error| error.to_string());
        }
        match &self.own {
            Ok(own) => Ok(own),
            Err(error) => Err(io::Error::other(error.clone())),
        }
    }

    /// Whether whoever needs them now has them read.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.read_at.is_none_or(|at| at.after(READ_INTERVAL) <= now)
    }

    /// When to look again for whoever does not find what it needs: with the next reading, and so with everybody else.
    pub(super) fn next(&self, now: Moment) -> Moment {
        let due = self.read_at.map(|at| at.after(READ_INTERVAL));
        due.filter(|due| *due > now).unwrap_or_else(|| now.after(READ_INTERVAL))
    }
}

/// What the kernel says.
pub(super) fn list() -> io::Result<Vec<Own>> {
    let ip = |address: SockaddrStorage| -> Option<IpAddr> {
        match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(address), _) => Some(IpAddr::V4(address.ip())),
            (None, Some(address)) => Some(IpAddr::V6(address.ip())),
            (None, None) => None,
        }
    };
    let own = |entry: InterfaceAddress| {
        let address = entry.address.and_then(ip)?;
        let net = match entry.netmask.and_then(ip) {
            Some(mask) => IpNet::with_netmask(address, mask).ok()?,
            None => IpNet::from(address),
        };
        let is_loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        Some(Own { link: entry.interface_name, is_loopback, net })
    };
    Ok(getifaddrs()?.filter_map(own).collect())
}
