//! The ways of a packet from the client to the server that are compared.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use meshd_abi::{
    Backend, BackendState, CidrKey, Identity, NO_TABLE, NeighborKey, NextHop, Service, ServiceKey, Settings, V4,
    hop_flags, identity_flags, mesh_flags, settings_flags,
};
use meshd_core::id::IfIndex;
use meshd_datapath::{Maps, Program};

use super::{
    place::{CLIENT_LINK, MACS, Place, UP_LINK},
    traffic::PORT,
    tunnel::{VxlanDevice, Written},
};
use crate::world;

/// Services; the one that is asked comes last where there is an order.
const SERVICES: u16 = 1_000;
/// Prefixes that keep their source, none of which the server is in.
const EXCLUDED: u16 = 257;
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 2);
const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);
/// Ports that stand for others: as many as a burst of connections to one address asks for.
const PORTS: (u16, u16) = (20_000, 45_000);

/// A way.
pub(super) trait Way: Sync {
    /// What figures call it.
    fn name(&self) -> &'static str;
    /// False where the machine has not what it needs.
    fn is_there(&self) -> bool {
        true
    }
    /// What clients ask for.
    fn target(&self) -> SocketAddr {
        SocketAddr::from((SERVER, PORT))
    }
    /// Sets it up.
    fn begin(&self, place: &mut Place) -> anyhow::Result<()>;
    /// Takes it down.
    fn end(&self, place: &mut Place) -> anyhow::Result<()>;
}

/// Through one router.
pub(super) const ROUTED: &[&dyn Way] = &[
    &Routing("routing"),
    &Nft { name: "nft-dnat-1", rules: one_service, target: SERVICE },
    &Nft { name: "nft-dnat-1000", rules: many_services, target: SERVICE },
    &Iptables,
    &Ours { name: "tc", programs: NEAR, target: SERVICE, place: Server::Near },
    &Ours { name: "tc-far", programs: FAR, target: SERVICE, place: Server::Far },
    &Nft { name: "nft-masquerade", rules: masquerade, target: SocketAddr::new(std::net::IpAddr::V4(SERVER), PORT) },
    &Ours {
        name: "tc-masquerade",
        programs: FAR,
        target: SocketAddr::new(std::net::IpAddr::V4(SERVER), PORT),
        place: Server::Outside,
    },
];

/// Between two nodes.
pub(super) const MESH: &[&dyn Way] = &[
    &MeshRouting,
    &VxlanDevice,
    &Written { name: "own-vxlan", geneve: false, fast: false },
    &Written { name: "own-vxlan-fast", geneve: false, fast: true },
    &Written { name: "own-geneve-fast", geneve: true, fast: true },
];

/// The server is a workload of the same node.
const NEAR: &[(Program, IfIndex)] = &[
    (Program::WorkloadEgress, CLIENT_LINK),
    (Program::WorkloadEgress, UP_LINK),
    (Program::WorkloadIngress, CLIENT_LINK),
    (Program::WorkloadIngress, UP_LINK),
];
/// The server is behind the uplink.
const FAR: &[(Program, IfIndex)] = &[
    (Program::WorkloadEgress, CLIENT_LINK),
    (Program::UplinkEgress, UP_LINK),
    (Program::WorkloadIngress, CLIENT_LINK),
    (Program::UplinkIngress, UP_LINK),
];

/// Nothing but routing: no rule, so no connection is tracked.
struct Routing(&'static str);

impl Way for Routing {
    fn name(&self) -> &'static str {
        self.0
    }
    fn begin(&self, _: &mut Place) -> anyhow::Result<()> {
        Ok(())
    }
    fn end(&self, _: &mut Place) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Rules of nftables.
struct Nft {
    name: &'static str,
    rules: fn() -> String,
    target: SocketAddr,
}

impl Way for Nft {
    fn name(&self) -> &'static str {
        self.name
    }
    fn target(&self) -> SocketAddr {
        self.target
    }
    fn begin(&self, place: &mut Place) -> anyhow::Result<()> {
        feed("nft", &["-f", "-"], &(self.rules)())?;
        // What was reset is gone before the next round.
        place.in_router(0, "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close=1")
    }
    fn end(&self, place: &mut Place) -> anyhow::Result<()> {
        place.in_router(0, "nft flush ruleset")
    }
}

fn one_service() -> String {
    format!(
        "table ip bench {{ chain pre {{ type nat hook prerouting priority dstnat;
           ip daddr {} tcp dport {} dnat to {SERVER}:{PORT}; }}
         }}",
        SERVICE.ip(),
        SERVICE.port()
    )
}

/// A verdict map from frontends to chains, one for each service.
fn many_services() -> String {
    let (mut chains, mut elements) = (String::new(), String::new());
    for number in 0..SERVICES {
        let (address, port, to) = other_service(number);
        let _ = writeln!(chains, "chain s{number} {{ meta l4proto tcp dnat to {to}:{PORT}; }}");
        let _ = write!(elements, "{address} . tcp . {port} : goto s{number}, ");
    }
    format!(
        "table ip bench {{ {chains}
           chain asked {{ meta l4proto tcp dnat to {SERVER}:{PORT}; }}
           map services {{ type ipv4_addr . inet_proto . inet_service : verdict;
             elements = {{ {elements} {} . tcp . {} : goto asked }} }}
           chain pre {{ type nat hook prerouting priority dstnat; ip daddr . ip protocol . th dport vmap @services; }}
         }}",
        SERVICE.ip(),
        SERVICE.port()
    )
}

fn masquerade() -> String {
    let excluded: Vec<String> = (0..EXCLUDED).map(excluded).map(|prefix| format!("{prefix}/24")).collect();
    format!(
        "table ip bench {{ set excluded {{ type ipv4_addr; flags interval; elements = {{ {} }} }}
           chain post {{ type nat hook postrouting priority srcnat; oifname wan0 ip daddr != @excluded masquerade; }}
         }}",
        excluded.join(", ")
    )
}

/// Frontend and backend of a service that nobody asks.
fn other_service(number: u16) -> (Ipv4Addr, u16, Ipv4Addr) {
    let [high, low] = number.to_be_bytes();
    (Ipv4Addr::new(10, 97, high, low), 80, Ipv4Addr::new(10, 66, high, low))
}

fn excluded(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(172, 16 + high, low, 0)
}

/// Rules of iptables, of which the last one is that of the service that is asked.
struct Iptables;

impl Way for Iptables {
    fn name(&self) -> &'static str {
        "iptables-dnat-1000"
    }
    fn is_there(&self) -> bool {
        Command::new("iptables-restore").arg("--version").output().is_ok_and(|output| output.status.success())
    }
    fn target(&self) -> SocketAddr {
        SERVICE
    }
    fn begin(&self, place: &mut Place) -> anyhow::Result<()> {
        let mut rules = String::from("*nat\n");
        let mut rule = |address: &dyn std::fmt::Display, port: u16, to: Ipv4Addr| {
            let _ = writeln!(
                rules,
                "-A PREROUTING -d {address}/32 -p tcp -m tcp --dport {port} -j DNAT --to-destination {to}:{PORT}"
            );
        };
        for number in 0..SERVICES {
            let (address, port, to) = other_service(number);
            rule(&address, port, to);
        }
        rule(&SERVICE.ip(), SERVICE.port(), SERVER);
        rules.push_str("COMMIT\n");
        feed("iptables-restore", &[], &rules)?;
        place.in_router(0, "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close=1")
    }
    fn end(&self, place: &mut Place) -> anyhow::Result<()> {
        // Whichever of the two kinds this iptables is: without rules and chains no connection is tracked.
        place.in_router(0, "iptables -t nat -F; nft flush ruleset")
    }
}

/// Our programs in TC.
struct Ours {
    name: &'static str,
    programs: &'static [(Program, IfIndex)],
    target: SocketAddr,
    place: Server,
}

/// Where the server is for our programs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    /// A workload of this node.
    Near,
    /// A workload of another node.
    Far,
    /// Outside of the mesh.
    Outside,
}

impl Way for Ours {
    fn name(&self) -> &'static str {
        self.name
    }
    fn target(&self) -> SocketAddr {
        self.target
    }
    fn begin(&self, place: &mut Place) -> anyhow::Result<()> {
        fill(&place.programs(0)?.maps, self.place)?;
        place.attach(0, self.programs)
    }
    fn end(&self, place: &mut Place) -> anyhow::Result<()> {
        place.detach(0, self.programs)?;
        let programs = place.programs(0)?;
        crate::drain_events(programs)?;
        // As the daemon does with what is over.
        world::forget::<V4>(&programs.maps)
    }
}

/// The tables of a node that has a thousand and one services and masquerades.
fn fill(maps: &Maps, place: Server) -> anyhow::Result<()> {
    let address = |ip: Ipv4Addr| V4::from_octets(ip.octets());
    let settings = Settings {
        source4: address(Ipv4Addr::new(10, 65, 0, 1)),
        ports: PORTS.0,
        port_count: PORTS.1,
        flags: settings_flags::MASQUERADE | settings_flags::EVENTS | settings_flags::IPV6_CHECKSUM_FLAG,
        seed: 7_606,
        events_per_tick: crate::EVENTS_PER_TICK,
        ..Settings::default()
    };
    maps.settings.put(&0, &settings)?;
    for (index, link, at) in [(1, CLIENT_LINK, 0), (2, UP_LINK, 2)] {
        let (source, destination) = (mac(MACS[at])?, mac(MACS[at + 1])?);
        maps.next_hops
            .put(&index, &NextHop { link: link.0, mtu: 1_500, destination, source, flags: hop_flags::PEER })?;
        maps.neighbors.put(&NeighborKey { link: link.0, address: destination, reserved: 0 }, &index)?;
    }
    let own = Identity { identity: 300, way: 0, flags: identity_flags::LOCAL, cluster: 1 };
    maps.v4.identities.put(&address(CLIENT), &own)?;
    match place {
        Server::Near => maps.v4.identities.put(&address(SERVER), &own)?,
        Server::Far => maps.v4.identities.put(&address(SERVER), &Identity { flags: 0, ..own })?,
        Server::Outside => drop(maps.v4.identities.remove(&address(SERVER))?),
    }
    for number in 0..EXCLUDED {
        maps.v4.mesh.put(&CidrKey { length: 24, address: address(excluded(number)) }, &mesh_flags::KEEP_SOURCE)?;
    }
    let put = |index: u16, frontend: (Ipv4Addr, u16), backend: Ipv4Addr, local: bool| -> anyhow::Result<()> {
        let id = u32::from(index);
        let key = ServiceKey { address: address(frontend.0), port: frontend.1.to_be(), protocol: 6, scope: 1 };
        let service = Service { id, table: NO_TABLE, slots: 1, members: id, affinity: 0, count: 1, flags: 0 };
        let backend = Backend {
            address: address(backend),
            next_hop: 2,
            port: PORT.to_be(),
            state: BackendState::Active as u8,
            local: u8::from(local),
            owner: id,
        };
        maps.members.put(&id, &id)?;
        maps.v4.backends.put(&id, &backend)?;
        Ok(maps.v4.services.put(&key, &service)?)
    };
    for number in 0..SERVICES {
        let (frontend, port, backend) = other_service(number);
        put(number + 2, (frontend, port), backend, false)?;
    }
    put(1, (Ipv4Addr::new(10, 96, 0, 10), SERVICE.port()), SERVER, place == Server::Near)
}

/// The octets of a link-layer address.
pub(super) fn mac(text: &str) -> anyhow::Result<[u8; 6]> {
    let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<_, _>>()?;
    octets.try_into().ok().context("six octets")
}

/// Between two nodes by routes.
struct MeshRouting;

impl Way for MeshRouting {
    fn name(&self) -> &'static str {
        "mesh-routing"
    }
    fn begin(&self, place: &mut Place) -> anyhow::Result<()> {
        place.in_router(0, "ip route replace 10.65.0.0/24 via 192.0.2.2")?;
        place.in_router(1, "ip route replace 10.64.0.0/24 via 192.0.2.1")
    }
    fn end(&self, _: &mut Place) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Runs a command in the first router's namespace with this text at its input.
fn feed(command: &str, words: &[&str], text: &str) -> anyhow::Result<()> {
    let mut child = Command::new(command)
        .args(words)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run {command}"))?;
    child.stdin.take().context("its input is ours")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
