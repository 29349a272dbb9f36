//! Do packets of workloads arrive at a node?
//!
//! What breaks in practice is not the way between two nodes but the one between their workloads: a fabric that does not know the
//! PodCIDRs, a firewall that lets nothing through but nodes. So a probe looks like a packet of a workload: it goes from an address
//! of our PodCIDR that no workload has to the one of the other node's ([`probe_address`]), through the whole forwarding path of
//! both nodes. Beside it goes one in a tunnel's header. The other node says which it has seen, by a packet between the nodes themselves.
//!
//! A path is called broken only when the native probes get lost *and* those in the tunnel arrive ([`PathProbe`]): a node that is restarted,
//! gone, or does not run meshd answers neither, and is left where it is.
//!
//! Everything here is pure: packets as bytes ([`packet`]), time and random numbers as arguments ([`Prober`]).

pub mod packet;
mod path;
mod prober;
mod size;

pub use path::{PathProbe, ProbeSettings, Stream, Switch, Way};
pub use prober::{Outgoing, PROBES_PER_S_MAX, PathEvent, PathReport, Prober, Subject};
pub use size::{SIZE_MIN, SizeProbe, SizeStep};

use std::net::IpAddr;

use ipnet::IpNet;

/// The address of a PodCIDR at which probes arrive, one that is never given to a workload: the first one of IPv4 (the network's own
/// address), and the last one of IPv6, which is among the reserved anycast addresses (RFC 2526); the first one of IPv6 is that of
/// all its routers. `None` for prefixes without an address to spare.
#[must_use]
pub fn probe_address(cidr: &IpNet) -> Option<IpAddr> {
    match cidr {
        IpNet::V4(cidr) if cidr.prefix_len() <= 30 => Some(cidr.network().into()),
        IpNet::V6(cidr) if cidr.prefix_len() <= 120 => Some(cidr.broadcast().into()),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// The prefix of one family that stands for a node's workloads, and its probe address.
#[must_use]
pub fn probed_prefix<'a>(cidrs: impl IntoIterator<Item = &'a IpNet>, ipv4: bool) -> Option<(IpNet, IpAddr)> {
    let of_family = cidrs.into_iter().filter(|cidr| cidr.addr().is_ipv4() == ipv4);
    of_family.filter_map(|cidr| Some((*cidr, probe_address(cidr)?))).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_arrive_where_no_workload_is() {
        for (cidr, address) in [
            ("10.0.1.0/24", Some("10.0.1.0")),
            ("10.0.1.4/30", Some("10.0.1.4")),
            ("10.0.1.4/31", None),
            ("fd00:1::/64", Some("fd00:1::ffff:ffff:ffff:ffff")),
            ("fd00:1::/126", None),
        ] {
            let address = address.map(|address| address.parse().unwrap());
            assert_eq!(probe_address(&cidr.parse().unwrap()), address, "{cidr}");
        }
    }
}
