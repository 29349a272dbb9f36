//! Entries of maps as people and scripts read them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use meshd_abi::{
    Address, BackendState, CidrKey, Connection, ConnectionKey, Identity, NO_TABLE, NextHop, Scope, Settings, V4, V6,
    connection_flags, identity_flags, mesh_flags, service_flags,
};
use meshd_datapath::{DatapathError, FamilyMaps, Maps};
use serde::Serialize;

use super::printer::Row;

/// A frontend of a service.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct FrontendView {
    /// Address that is asked.
    pub(super) address: IpAddr,
    /// Port that is asked.
    pub(super) port: u16,
    /// `tcp`, `udp`, `sctp` or a number.
    pub(super) protocol: String,
    /// Who asks: `external` or `internal`.
    pub(super) scope: String,
    /// Number of the service.
    pub(super) service: u32,
    /// `maglev` or `random`.
    pub(super) algorithm: String,
    /// Slots of its Maglev table; 0 without one.
    pub(super) slots: u32,
    /// First chunk of the table.
    pub(super) chunk: Option<u32>,
    /// How long a client stays with its backend; `null`: it does not.
    pub(super) session_affinity_s: Option<u64>,
    /// `dsr`, `source_ranges`, `by_source`, `kill_removed`, `node_port`.
    pub(super) flags: Vec<String>,
    /// Who answers.
    pub(super) backends: Vec<BackendView>,
}

/// A backend of a frontend.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct BackendView {
    /// Its place in the table of backends.
    pub(super) index: u32,
    /// Address.
    pub(super) address: IpAddr,
    /// Port.
    pub(super) port: u16,
    /// `active`, `terminating`, `removed`, `killed` or `free`.
    pub(super) state: String,
    /// A workload of this node?
    pub(super) local: bool,
    /// Where its packets go; `null`: the kernel is asked.
    pub(super) next_hop: Option<NextHopView>,
}

/// A neighbor.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct NextHopView {
    /// Index of the link.
    pub(super) link: u32,
    /// Its link-layer address.
    pub(super) mac: String,
    /// Longest packet.
    pub(super) mtu: u16,
}

/// A direction of a known connection.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct ConnectionView {
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or a number.
    pub(super) protocol: String,
    /// Source as a packet arrives.
    pub(super) source: SocketAddr,
    /// Destination as it arrives.
    pub(super) destination: SocketAddr,
    /// Source as it leaves.
    pub(super) new_source: SocketAddr,
    /// Destination as it leaves.
    pub(super) new_destination: SocketAddr,
    /// `forward` or `reply`.
    pub(super) direction: String,
    /// Number of the service; `null` without one.
    pub(super) service: Option<u32>,
    /// Place of the backend in its table; `null` for answers and without one.
    pub(super) backend: Option<u32>,
    /// `snat`, `masquerade`, `dsr`, `local`, `answered`, `closing`.
    pub(super) flags: Vec<String>,
    /// How long ago it began.
    pub(super) age_s: u64,
    /// How long ago its last packet was.
    pub(super) idle_s: u64,
}

/// Ports in use towards a destination.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct PortsView {
    /// The destination.
    pub(super) destination: SocketAddr,
    /// Its protocol.
    pub(super) protocol: String,
    /// Ports of this node that talk to it.
    pub(super) used: u32,
    /// How many there are.
    pub(super) room: u32,
}

/// An address and who has it, or a prefix and what is known of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct IdentityView {
    /// Address, or a prefix in its usual form.
    pub(super) address: String,
    /// Numeric identity.
    pub(super) identity: u32,
    /// Id of its cluster; `null`: unknown.
    pub(super) cluster_id: Option<u16>,
    /// `local`, `node`, `this_node`, `tunnel`.
    pub(super) flags: Vec<String>,
}

/// A prefix that masquerade knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PrefixView {
    /// The prefix.
    pub(super) prefix: IpNet,
    /// Do workloads of this node have addresses of it?
    pub(super) own: bool,
    /// Do packets to it keep their source?
    pub(super) keep_source: bool,
}

/// What several tables are read with.
pub(super) struct Reader {
    members: Vec<u32>,
    next_hops: Vec<NextHop>,
    settings: Settings,
}

impl Reader {
    pub(super) fn new(maps: &Maps) -> Result<Self, DatapathError> {
        let mut members = maps.members.all()?;
        members.sort_unstable_by_key(|(place, _)| *place);
        let mut next_hops = maps.next_hops.all()?;
        next_hops.sort_unstable_by_key(|(index, _)| *index);
        Ok(Self {
            members: members.into_iter().map(|(_, backend)| backend).collect(),
            next_hops: next_hops.into_iter().map(|(_, hop)| hop).collect(),
            settings: maps.settings.get(&0)?.unwrap_or_default(),
        })
    }

    pub(super) fn frontends<A: Address>(&self, maps: &FamilyMaps<A>) -> Result<Vec<FrontendView>, DatapathError> {
        let mut views = Vec::new();
        for (key, service) in maps.services.all()? {
            let begin = service.members as usize;
            let members = self.members.get(begin..begin + usize::from(service.count)).unwrap_or_default();
            let mut backends = Vec::with_capacity(members.len());
            for index in members {
                backends.extend(maps.backends.get(index)?.map(|backend| BackendView {
                    index: *index,
                    address: ip(backend.address),
                    port: u16::from_be(backend.port),
                    state: state(backend.state).to_owned(),
                    local: backend.local != 0,
                    next_hop: self.next_hop(backend.next_hop),
                }));
            }
            let is_maglev = service.table != NO_TABLE;
            views.push(FrontendView {
                address: ip(key.address),
                port: u16::from_be(key.port),
                protocol: protocol(key.protocol),
                scope: if key.scope == Scope::Internal as u8 { "internal" } else { "external" }.to_owned(),
                service: service.id,
                algorithm: if is_maglev { "maglev" } else { "random" }.to_owned(),
                slots: if is_maglev { service.slots } else { 0 },
                chunk: is_maglev.then_some(service.table),
                session_affinity_s: (service.affinity != 0).then(|| seconds(service.affinity)),
                flags: words(
                    service.flags.into(),
                    &[
                        (service_flags::DSR.into(), "dsr"),
                        (service_flags::SOURCE_RANGES.into(), "source_ranges"),
                        (service_flags::BY_SOURCE.into(), "by_source"),
                        (service_flags::KILL_REMOVED.into(), "kill_removed"),
                    ],
                ),
                backends,
            });
        }
        Ok(views)
    }

    pub(super) fn ports<A: Address>(&self, maps: &FamilyMaps<A>) -> Result<Vec<PortsView>, DatapathError> {
        let mut used: BTreeMap<(SocketAddr, u8), u32> = BTreeMap::new();
        maps.connections.walk(|key, connection| {
            let wanted = connection_flags::SNAT | connection_flags::REPLY;
            if connection.flags & wanted == wanted {
                *used.entry((socket(key.source, key.source_port), key.protocol)).or_default() += 1;
            }
        })?;
        let room = self.settings.port_count.into();
        let view = |((destination, number), used)| PortsView { destination, protocol: protocol(number), used, room };
        Ok(used.into_iter().map(view).collect())
    }

    fn next_hop(&self, index: u32) -> Option<NextHopView> {
        let hop = self.next_hops.get(index as usize).filter(|hop| index != 0 && hop.link != 0)?;
        let mac: Vec<String> = hop.destination.iter().map(|octet| format!("{octet:02x}")).collect();
        Some(NextHopView { link: hop.link, mac: mac.join(":"), mtu: hop.mtu })
    }
}

impl ConnectionView {
    pub(super) fn new<A: Address>(key: &ConnectionKey<A>, connection: &Connection<A>, now: u32) -> Self {
        let Connection { tuple, to, service, used, began, flags, closed_by: _, reserved: _ } = connection;
        let is_reply = flags & connection_flags::REPLY != 0;
        // A program may be ahead of the clock that was read here.
        let since = |then: u32| seconds(now.saturating_sub(then));
        Self {
            protocol: protocol(key.protocol),
            source: socket(key.source, key.source_port),
            destination: socket(key.destination, key.destination_port),
            new_source: socket(tuple.source, tuple.source_port),
            new_destination: socket(tuple.destination, tuple.destination_port),
            direction: if is_reply { "reply" } else { "forward" }.to_owned(),
            service: (*service != 0).then_some(*service),
            backend: (!is_reply && *to != 0).then_some(*to),
            flags: words(
                (*flags).into(),
                &[
                    (connection_flags::SNAT.into(), "snat"),
                    (connection_flags::MASQUERADE.into(), "masquerade"),
                    (connection_flags::DSR.into(), "dsr"),
                    (connection_flags::LOCAL.into(), "local"),
                    (connection_flags::STACK.into(), "stack"),
                    (connection_flags::ANSWERED.into(), "answered"),
                    (connection_flags::CLOSING.into(), "closing"),
                ],
            ),
            age_s: since(*began),
            idle_s: since(*used),
        }
    }
}

impl IdentityView {
    pub(super) fn new(address: impl ToString, identity: &Identity) -> Self {
        Self {
            address: address.to_string(),
            identity: identity.identity,
            cluster_id: (identity.cluster != 0).then_some(identity.cluster),
            flags: words(
                identity.flags.into(),
                &[
                    (identity_flags::LOCAL.into(), "local"),
                    (identity_flags::NODE.into(), "node"),
                    (identity_flags::THIS_NODE.into(), "this_node"),
                    (identity_flags::TUNNEL.into(), "tunnel"),
                ],
            ),
        }
    }
}

impl PrefixView {
    pub(super) const fn new(prefix: IpNet, flags: u32) -> Self {
        Self { prefix, own: flags & mesh_flags::OWN != 0, keep_source: flags & mesh_flags::KEEP_SOURCE != 0 }
    }
}

impl Row for FrontendView {
    const HEADING: &'static [&'static str] =
        &["FRONTEND", "SCOPE", "SERVICE", "ALGORITHM", "BACKENDS", "AFFINITY", "FLAGS", "CHUNK"];
    const SHORT: usize = 5;

    fn cells(&self) -> Vec<String> {
        let backend = |backend: &BackendView| {
            let local = if backend.local { " local" } else { "" };
            format!("{} ({}{local})", SocketAddr::new(backend.address, backend.port), backend.state)
        };
        vec![
            format!("{}/{}", SocketAddr::new(self.address, self.port), self.protocol),
            self.scope.clone(),
            self.service.to_string(),
            if self.slots == 0 { self.algorithm.clone() } else { format!("{} {}", self.algorithm, self.slots) },
            self.backends.iter().map(backend).collect::<Vec<_>>().join(", "),
            self.session_affinity_s.map(|seconds| format!("{seconds} s")).unwrap_or_default(),
            self.flags.join(","),
            self.chunk.map(|chunk| chunk.to_string()).unwrap_or_default(),
        ]
    }
}

impl Row for ConnectionView {
    const HEADING: &'static [&'static str] = &[
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "NEW SOURCE",
        "NEW DESTINATION",
        "DIRECTION",
        "FLAGS",
        "AGE",
        "IDLE",
        "SERVICE",
        "BACKEND",
    ];
    const SHORT: usize = 9;

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
        vec![
            self.protocol.clone(),
            self.source.to_string(),
            self.destination.to_string(),
            self.new_source.to_string(),
            self.new_destination.to_string(),
            self.direction.clone(),
            self.flags.join(","),
            format!("{}s", self.age_s),
            format!("{}s", self.idle_s),
            number(self.service),
            number(self.backend),
        ]
    }
}

impl Row for PortsView {
    const HEADING: &'static [&'static str] = &["DESTINATION", "PROTOCOL", "USED", "PORTS"];
    const SHORT: usize = 4;

    fn cells(&self) -> Vec<String> {
        vec![self.destination.to_string(), self.protocol.clone(), self.used.to_string(), self.room.to_string()]
    }
}

impl Row for IdentityView {
    const HEADING: &'static [&'static str] = &["ADDRESS", "IDENTITY", "CLUSTER ID", "FLAGS"];
    const SHORT: usize = 4;

    fn cells(&self) -> Vec<String> {
        vec![
            self.address.clone(),
            self.identity.to_string(),
            self.cluster_id.map(|id| id.to_string()).unwrap_or_default(),
            self.flags.join(","),
        ]
    }
}

impl Row for PrefixView {
    const HEADING: &'static [&'static str] = &["PREFIX", "OWN", "KEEPS SOURCE"];
    const SHORT: usize = 3;

    fn cells(&self) -> Vec<String> {
        let yes = |value| if value { "yes" } else { "no" }.to_owned();
        vec![self.prefix.to_string(), yes(self.own), yes(self.keep_source)]
    }
}

/// The address that a map's words are.
pub(super) fn ip<A: Address>(address: A) -> IpAddr {
    let words = address.words();
    if A::IS_V4 { V4(words[0]).octets().into() } else { V6(words).octets().into() }
}

/// The prefix that a key is; `None` when it is none.
pub(super) fn prefix<A: Address>(key: &CidrKey<A>) -> Option<IpNet> {
    IpNet::new(ip(key.address), u8::try_from(key.length).ok()?).ok()
}

/// An address with a port of network byte order.
pub(super) fn socket<A: Address>(address: A, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), u16::from_be(port))
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn state(state: u8) -> &'static str {
    match state {
        state if state == BackendState::Active as u8 => "active",
        state if state == BackendState::Terminating as u8 => "terminating",
        state if state == BackendState::Removed as u8 => "removed",
        state if state == BackendState::Killed as u8 => "killed",
        _ => "free",
    }
}

/// Ticks of 2^30 nanoseconds in seconds.
fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << 30) / 1_000_000_000
}

/// Words of the bits that are set.
fn words(bits: u32, names: &[(u32, &str)]) -> Vec<String> {
    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use meshd_abi::Tuple;

    use super::*;

    #[test]
    fn a_connection_is_a_row_and_its_times_are_seconds() {
        let v4 = |a| V4::from_octets([10, 0, 0, a]);
        let port = |port: u16| port.to_be();
        let key = ConnectionKey {
            source: v4(1),
            destination: v4(2),
            source_port: port(40_000),
            destination_port: port(80),
            protocol: 6,
            reserved: [0; 3],
        };
        let tuple =
            Tuple { source: v4(3), destination: v4(4), source_port: port(50_000), destination_port: port(8_080) };
        let flags = connection_flags::SNAT | connection_flags::ANSWERED;
        let entry =
            Connection { tuple, to: 7, service: 3, used: 995, began: 900, flags, closed_by: 0, reserved: [0; 2] };
        let view = ConnectionView::new(&key, &entry, 1_000);
        assert_eq!(
            serde_json::to_value(&view).unwrap(),
            serde_json::json!({
                "protocol": "tcp", "source": "10.0.0.1:40000", "destination": "10.0.0.2:80",
                "new_source": "10.0.0.3:50000", "new_destination": "10.0.0.4:8080", "direction": "forward",
                "service": 3, "backend": 7, "flags": ["snat", "answered"], "age_s": 107, "idle_s": 5,
            })
        );
        assert_eq!(view.cells().len(), ConnectionView::HEADING.len());
        let ahead =
            ConnectionView::new(&key, &Connection { used: 1_001, flags: connection_flags::REPLY, ..entry }, 1_000);
        assert_eq!((ahead.idle_s, ahead.backend, ahead.direction.as_str()), (0, None, "reply"));
    }

    #[test]
    fn identities_and_prefixes_are_rows() {
        let flags = identity_flags::NODE | identity_flags::THIS_NODE;
        let view =
            IdentityView::new(ip(V6::from_octets([0xfd; 16])), &Identity { identity: 1, way: 0, flags, cluster: 0 });
        assert_eq!(view.cells(), ["fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd", "1", "", "node,this_node"]);
        let key = |length| CidrKey { length, address: V4::from_octets([10, 1, 0, 0]) };
        let range = prefix(&key(16)).unwrap();
        assert_eq!(PrefixView::new(range, mesh_flags::KEEP_SOURCE).cells(), ["10.1.0.0/16", "no", "yes"]);
        assert_eq!(prefix(&key(33)), None);
        let known = Identity { identity: 300, way: 0, flags: 0, cluster: 2 };
        assert_eq!(IdentityView::new(range, &known).cells(), ["10.1.0.0/16", "300", "2", ""]);
    }
}
