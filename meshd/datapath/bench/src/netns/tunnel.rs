//! Between two nodes through a tunnel: by the kernel's device, and by frames that our programs write and read.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use meshd_abi::{Identity, NextHop, Settings, Tunnel, V4, V6, hop_flags, identity_flags, settings_flags};
use meshd_core::id::IfIndex;
use meshd_datapath::{Maps, Program};

use super::{
    place::{MACS, Place, SERVER_MACS},
    ways::{CLIENT, SERVER, Way, mac},
};

/// The device's, and so the port of frames of either kind.
const PORT: u16 = 8_472;
/// The number of the far end among those of a node.
const FAR: u32 = 5;
/// Next hops: the workload of the node, and the far end.
const HOME: u32 = 2;
const AWAY: u32 = 3;
/// Largest packet that goes in.
const MTU: u16 = 1_450;

/// A node: its address, the workload behind it, links to workload and network, and link-layer addresses of its link and the next one.
struct Node {
    address: Ipv4Addr,
    workload: Ipv4Addr,
    links: [&'static str; 2],
    macs: (usize, usize),
    /// Link-layer addresses of the workload's link and of the workload.
    home: (&'static str, &'static str),
}

const NODES: [Node; 2] = [
    Node {
        address: Ipv4Addr::new(192, 0, 2, 1),
        workload: CLIENT,
        links: ["cl", "wan0"],
        macs: (2, 3),
        home: (MACS[0], MACS[1]),
    },
    Node {
        address: Ipv4Addr::new(192, 0, 2, 2),
        workload: SERVER,
        links: ["sv", "s0"],
        macs: (3, 2),
        home: SERVER_MACS,
    },
];

/// The tunnel's link in every node.
const LINK: &str = "vx";

/// By the kernel's VXLAN device, which learns the far end from the route.
pub(super) struct VxlanDevice;

impl Way for VxlanDevice {
    fn name(&self) -> &'static str {
        "vxlan-device"
    }
    fn begin(&self, place: &mut Place) -> anyhow::Result<()> {
        routes(place)
    }
    fn end(&self, _: &mut Place) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Routes through the device, which stays once it is there.
fn routes(place: &Place) -> anyhow::Result<()> {
    // Each its own address: a device drops what comes from its own.
    for (number, prefix, far) in [(0, "10.65.0.0/24", NODES[1].address), (1, "10.64.0.0/24", NODES[0].address)] {
        let (own, other) = (link_address(number), link_address(1 - number));
        place.in_router(
            number,
            &format!(
                "ip link show {LINK} >/dev/null 2>&1 || {{
                   ip link add {LINK} address {own} type vxlan external dstport {PORT}
                   ip link set {LINK} up
                   ip neigh replace 169.254.77.7 lladdr {other} dev {LINK} nud permanent
                 }}
                 ip route replace {prefix} encap ip id 7 dst {far} via 169.254.77.7 dev {LINK} onlink"
            ),
        )?;
    }
    Ok(())
}

fn link_address(number: usize) -> String {
    format!("02:00:00:00:77:0{number}")
}

/// By our programs, on all links of both nodes as the daemon has them.
pub(super) struct Written {
    pub(super) name: &'static str,
    pub(super) geneve: bool,
    /// Past routing and packet filter (`routing.fast_path`).
    pub(super) fast: bool,
}

impl Way for Written {
    fn name(&self) -> &'static str {
        self.name
    }
    fn begin(&self, place: &mut Place) -> anyhow::Result<()> {
        routes(place)?;
        for number in 0..NODES.len() {
            let links = links(place, number)?;
            fill(&place.programs(number)?.maps, number, &links, self)?;
            place.attach(number, &programs(links))?;
        }
        Ok(())
    }
    fn end(&self, place: &mut Place) -> anyhow::Result<()> {
        for number in 0..NODES.len() {
            let links = links(place, number)?;
            place.detach(number, &programs(links))?;
            crate::drain_events(place.programs(number)?)?;
        }
        Ok(())
    }
}

/// Links of a node: to the workload, to the network, to the tunnel.
fn links(place: &Place, number: usize) -> anyhow::Result<[IfIndex; 3]> {
    let [workload, uplink] = NODES[number].links;
    let link = |name| place.link(number, name);
    Ok([link(workload)?, link(uplink)?, link(LINK)?])
}

fn programs([workload, uplink, tunnel]: [IfIndex; 3]) -> [(Program, IfIndex); 6] {
    [
        (Program::WorkloadEgress, workload),
        (Program::UplinkEgress, uplink),
        (Program::TunnelEgress, tunnel),
        (Program::TunnelIngress, tunnel),
        (Program::WorkloadIngress, workload),
        (Program::UplinkIngress, uplink),
    ]
}

/// The tables of a node that has one other node behind the tunnel.
fn fill(maps: &Maps, number: usize, links: &[IfIndex; 3], way: &Written) -> anyhow::Result<()> {
    let address = |ip: Ipv4Addr| V4::from_octets(ip.octets());
    let (own, far) = (&NODES[number], &NODES[1 - number]);
    let settings = Settings {
        source4: address(own.address),
        flags: settings_flags::EVENTS
            | settings_flags::IPV6_CHECKSUM_FLAG
            | settings_flags::TUNNEL_FILTER
            | if way.geneve { settings_flags::TUNNEL_GENEVE } else { 0 }
            | if way.fast { settings_flags::FAST_PATH } else { 0 },
        seed: 7_606,
        events_per_tick: crate::EVENTS_PER_TICK,
        tunnel_link: links[2].0,
        tunnel_mac: mac(&link_address(number))?,
        tunnel_port: PORT,
        tunnel_vni: 2,
        ..Settings::default()
    };
    maps.settings.put(&0, &settings)?;
    let workload = identity_flags::LOCAL;
    let (this, other) = (identity_flags::NODE | identity_flags::THIS_NODE, identity_flags::NODE);
    for (ip, identity, way, flags) in [
        (own.address, 1, 0, this),
        (far.address, 6, 0, other),
        (own.workload, 300, HOME, workload),
        (far.workload, 301, AWAY, 0),
    ] {
        let identity = Identity { identity, way, flags, cluster: 1 };
        maps.v4.identities.put(&address(ip), &identity).context("an identity")?;
    }
    let (source, destination) = (mac(MACS[own.macs.0])?, mac(MACS[own.macs.1])?);
    maps.next_hops.put(&1, &NextHop { link: links[1].0, mtu: 1_500, destination, source, flags: 0 })?;
    let (source, destination) = (mac(own.home.0)?, mac(own.home.1)?);
    let home = NextHop { link: links[0].0, mtu: 1_500, destination, source, flags: hop_flags::PEER };
    maps.next_hops.put(&HOME, &home)?;
    let (source, destination) = (mac(&link_address(number))?, Tunnel::link_address(FAR));
    let away = NextHop { link: links[2].0, mtu: MTU, destination, source, flags: hop_flags::TUNNEL };
    maps.next_hops.put(&AWAY, &away)?;
    let end = V6::mapped(address(far.address));
    maps.tunnels.put(&FAR, &Tunnel { address: end, next_hop: 1, mtu: MTU, reserved: 0 })?;
    Ok(maps.far_ends.put(&end, &FAR)?)
}
