//! From numbers and addresses to names, by the tables of one moment.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;
use jiff::Timestamp;
use meshd_abi::{FlowEvent, Reason, V4, V6, connection_flags, event_kind, event_place};
use meshd_core::{
    derive::LocalNode,
    id::{ClusterName, IfIndex, NumericIdentity},
    observed::ServiceName,
};

use crate::{
    api::flow_view::{Direction, FlowEndView, FlowKind, FlowServiceView, FlowView, TranslatedView, Verdict},
    pipeline::Snapshot,
};

/// Names of services by their number in the maps.
pub type ServiceNumbers = OrdMap<u32, ServiceName>;

/// The tables, with what is looked up by another key than theirs.
pub(super) struct Names {
    local: Arc<LocalNode>,
    snapshot: Arc<Snapshot>,
    services: ServiceNumbers,
    clusters: BTreeMap<u16, ClusterName>,
    /// Made when the first flow asks for it.
    nodes: Option<BTreeMap<IpAddr, (ClusterName, Arc<str>)>>,
}

impl Names {
    pub(super) fn new(local: Arc<LocalNode>, own_id: u16, snapshot: Arc<Snapshot>, services: ServiceNumbers) -> Self {
        let mut clusters = BTreeMap::new();
        for (name, tables) in &snapshot.observed.clusters {
            let row = tables.nodes.iter().next().map(|(_, row)| row.cluster_id.get());
            let id = tables.peer.as_deref().and_then(|peer| peer.id).map(|id| id.get()).or(row);
            clusters.extend(id.map(|id| (id, name.clone())));
        }
        clusters.insert(own_id, local.cluster.clone());
        Self { local, snapshot, services, clusters, nodes: None }
    }

    /// True while these tables are the last ones.
    pub(super) fn is_of(&self, snapshot: &Arc<Snapshot>, services: &ServiceNumbers) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot) && self.services.ptr_eq(services)
    }

    /// A record with names; `boot` is what to add to the monotonic clock. `None` for a record of no kind that is known.
    pub(super) fn flow(&mut self, event: &FlowEvent, boot: jiff::SignedDuration) -> Option<FlowView> {
        let kind = match event.kind {
            event_kind::NEW => FlowKind::New,
            event_kind::CHANGE => FlowKind::Change,
            event_kind::CLOSE => FlowKind::Close,
            event_kind::DROP => FlowKind::Drop,
            _ => return None,
        };
        let (place, direction) = match event.place {
            event_place::TO_NETWORK => ("to_network", Direction::Egress),
            event_place::FROM_WORKLOAD => ("from_workload", Direction::Egress),
            event_place::TO_WORKLOAD => ("to_workload", Direction::Ingress),
            _ => ("from_network", Direction::Ingress),
        };
        let since_boot = jiff::SignedDuration::from_nanos(i64::try_from(event.time).unwrap_or(i64::MAX));
        let port = u16::from_be;
        let new_destination = address(event, &event.new_destination);
        let source = self.end(
            address(event, &event.source),
            port(event.source_port),
            event.source_identity,
            event.source_cluster,
        );
        let far = self.end(
            new_destination,
            port(event.new_destination_port),
            event.destination_identity,
            event.destination_cluster,
        );
        let is_translated = (event.source, event.source_port, event.destination, event.destination_port)
            != (event.new_source, event.new_source_port, event.new_destination, event.new_destination_port);
        let (destination, translated) = if is_translated {
            let near = if (event.source, event.source_port) == (event.new_source, event.new_source_port) {
                source.clone()
            } else {
                self.end(address(event, &event.new_source), port(event.new_source_port), 0, 0)
            };
            let asked = if event.destination == event.new_destination {
                FlowEndView { port: port(event.destination_port), ..far.clone() }
            } else {
                self.end(address(event, &event.destination), port(event.destination_port), 0, 0)
            };
            (asked, Some(TranslatedView { source: near, destination: far }))
        } else {
            (far, None)
        };
        let service = (event.service != 0).then(|| {
            let name = self.services.get(&event.service);
            FlowServiceView {
                number: event.service,
                namespace: name.map(|name| name.namespace.to_string()),
                name: name.map(|name| name.name.to_string()),
            }
        });
        let link = self.snapshot.observed.links.get(&IfIndex(event.link)).map(|link| link.name.to_string());
        let reason = Reason::ALL.get(usize::from(event.reason)).map_or("unknown", |reason| reason.word());
        Some(FlowView {
            kind,
            time: Timestamp::UNIX_EPOCH.checked_add(boot.saturating_add(since_boot)).unwrap_or(Timestamp::UNIX_EPOCH),
            verdict: if kind == FlowKind::Drop { Verdict::Dropped } else { Verdict::Forwarded },
            reason: reason.to_owned(),
            direction,
            place: place.to_owned(),
            is_reply: event.connection_flags & connection_flags::REPLY != 0,
            family: event.family,
            protocol: protocol(event.protocol),
            tcp_flags: (event.protocol == TCP).then(|| tcp_flags(event.tcp_flags)),
            length: event.length,
            source,
            destination,
            translated,
            service,
            link,
            link_index: event.link,
            node: self.local.name.to_string(),
        })
    }

    fn end(&mut self, address: IpAddr, port: u16, identity: u32, cluster: u16) -> FlowEndView {
        let mut view = FlowEndView {
            address: Some(address),
            port,
            identity: (identity != 0).then_some(identity),
            cluster: self.clusters.get(&cluster).map(ToString::to_string),
            ..FlowEndView::default()
        };
        if self.local.addresses.contains(&address) {
            view.cluster = Some(self.local.cluster.to_string());
            view.node = Some(self.local.name.to_string());
            return view;
        }
        if NumericIdentity(identity).is_reserved() && identity != 0 {
            if let Some((cluster, node)) = self.node(address) {
                view.cluster = Some(cluster.to_string());
                view.node = Some(node.to_string());
            }
            return view;
        }
        if identity == 0 {
            return view;
        }
        let prefix = IpNet::from(address);
        let clusters = &self.snapshot.observed.clusters;
        let of = |name: &ClusterName| clusters.get(name).and_then(|tables| tables.endpoints.get(&prefix));
        let found = match self.clusters.get(&cluster) {
            Some(name) => of(name).map(|row| (name, row)),
            None => clusters.keys().find_map(|name| of(name).map(|row| (name, row))),
        };
        if let Some((name, row)) = found {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            view.cluster = Some(name.to_string());
            view.namespace = text(&row.namespace);
            view.workload = text(&row.name);
        }
        view
    }

    fn node(&mut self, address: IpAddr) -> Option<(ClusterName, Arc<str>)> {
        let snapshot = &self.snapshot;
        let nodes = self.nodes.get_or_insert_with(|| {
            let mut nodes = BTreeMap::new();
            for (cluster, tables) in &snapshot.observed.clusters {
                for (name, row) in tables.nodes.iter() {
                    let entry = (cluster.clone(), Arc::<str>::from(name.to_string()));
                    nodes.extend(row.addresses.iter().map(|address| (address.ip, entry.clone())));
                }
            }
            nodes
        });
        nodes.get(&address).cloned()
    }
}

/// IP protocol number of TCP.
const TCP: u8 = 6;

fn address(event: &FlowEvent, words: &[u32; 4]) -> IpAddr {
    if event.family == 4 {
        Ipv4Addr::from(V4(words[0]).octets()).into()
    } else {
        Ipv6Addr::from(V6(*words).octets()).into()
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn tcp_flags(flags: u8) -> Vec<String> {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    NAMES.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 != 0).map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use meshd_abi::Address as _;
    use meshd_core::{
        id::{ClusterId, MaxClusters},
        observed::{EndpointRow, NodeAddress, NodeAddressKind, NodeRow},
    };

    use super::*;

    fn words(address: &str) -> [u32; 4] {
        match address.parse::<IpAddr>().unwrap() {
            IpAddr::V4(address) => V4::from_octets(address.octets()).words(),
            IpAddr::V6(address) => V6::from_octets(address.octets()).words(),
        }
    }

    fn names() -> Names {
        let (west, east) = (ClusterName::from_str("west").unwrap(), ClusterName::from_str("east").unwrap());
        let mut snapshot = Snapshot::default();
        let endpoint = |identity, name: &str| EndpointRow {
            identity: NumericIdentity(identity),
            host: None,
            encryption_key: 0,
            namespace: "default".into(),
            name: name.into(),
        };
        let own = snapshot.observed.clusters.entry(west.clone()).or_default();
        own.endpoints.upsert("10.0.1.10/32".parse().unwrap(), endpoint(70_001, "client"));
        let remote = snapshot.observed.clusters.entry(east).or_default();
        remote.endpoints.upsert("10.1.1.10/32".parse().unwrap(), endpoint(140_001, "webpod-2"));
        let node = NodeRow {
            health: Box::default(),
            ingress: Box::default(),
            cluster_id: ClusterId::new(2, MaxClusters::default()).unwrap(),
            addresses: [NodeAddress { kind: NodeAddressKind::InternalIP, ip: "172.18.0.2".parse().unwrap() }].into(),
            pod_cidrs: [].into(),
            labels: Default::default(),
        };
        remote.nodes.upsert("east-worker".parse().unwrap(), node.into());
        let local = LocalNode {
            cluster: west,
            name: "west-worker".parse().unwrap(),
            addresses: vec!["172.18.0.5".parse().unwrap()],
            pod_cidrs: Vec::new(),
            zone: None,
        };
        let name = ServiceName { namespace: "default".into(), name: "webpod".into() };
        Names::new(local.into(), 1, snapshot.into(), OrdMap::unit(9, name))
    }

    /// A client of west through a service to a backend in east.
    fn event() -> FlowEvent {
        FlowEvent {
            time: 2_500_000_000,
            source: words("10.0.1.10"),
            destination: words("10.2.0.80"),
            new_source: words("10.0.1.10"),
            new_destination: words("10.1.1.10"),
            source_identity: 70_001,
            destination_identity: 140_001,
            service: 9,
            link: 7,
            length: 74,
            source_port: 40_000u16.to_be(),
            destination_port: 80u16.to_be(),
            new_source_port: 40_000u16.to_be(),
            new_destination_port: 8_080u16.to_be(),
            source_cluster: 1,
            destination_cluster: 2,
            protocol: TCP,
            family: 4,
            kind: event_kind::NEW,
            reason: Reason::NewConnection as u8,
            place: event_place::FROM_WORKLOAD,
            tcp_flags: 2,
            connection_flags: 0,
            reserved: 0,
        }
    }

    #[test]
    fn both_ends_and_the_service_get_their_names() {
        let boot = jiff::SignedDuration::from_secs(1_000);
        let flow = names().flow(&event(), boot).unwrap();
        let expected = FlowView {
            time: Timestamp::from_millisecond(1_002_500).unwrap(),
            link: None,
            service: Some(FlowServiceView {
                number: 9,
                namespace: Some("default".into()),
                name: Some("webpod".into()),
            }),
            ..crate::flows::testing::flow()
        };
        assert_eq!(flow, expected);
    }

    #[test]
    fn nodes_answers_and_what_is_unknown() {
        let boot = jiff::SignedDuration::ZERO;
        let node = FlowEvent {
            source: words("172.18.0.2"),
            source_identity: 6,
            source_cluster: 2,
            new_source: words("172.18.0.5"),
            kind: event_kind::CLOSE,
            service: 77,
            connection_flags: connection_flags::REPLY,
            tcp_flags: 0x11,
            place: event_place::TO_WORKLOAD,
            ..event()
        };
        let flow = names().flow(&node, boot).unwrap();
        let of = |end: &FlowEndView| (end.cluster.clone().unwrap_or_default(), end.node.clone().unwrap_or_default());
        assert_eq!(of(&flow.source), ("east".to_owned(), "east-worker".to_owned()));
        assert_eq!(of(&flow.translated.unwrap().source), ("west".to_owned(), "west-worker".to_owned()));
        assert_eq!(
            (flow.is_reply, flow.direction, flow.tcp_flags.unwrap().join("|")),
            (true, Direction::Ingress, "FIN|ACK".into())
        );
        assert_eq!(flow.service, Some(FlowServiceView { number: 77, namespace: None, name: None }));

        let drop = FlowEvent {
            family: 6,
            source: words("2001:db8::7"),
            new_source: words("2001:db8::7"),
            destination: words("fd02::80"),
            new_destination: words("fd02::80"),
            new_destination_port: 80u16.to_be(),
            source_identity: 0,
            source_cluster: 0,
            destination_identity: 0,
            destination_cluster: 0,
            service: 0,
            kind: event_kind::DROP,
            reason: Reason::NoBackend as u8,
            protocol: 17,
            ..event()
        };
        let flow = names().flow(&drop, boot).unwrap();
        assert_eq!(
            (flow.verdict, flow.reason.as_str(), flow.protocol.as_str()),
            (Verdict::Dropped, "no_backend", "udp")
        );
        assert_eq!((&flow.translated, &flow.service, &flow.tcp_flags), (&None, &None, &None));
        assert_eq!((flow.source.identity, flow.destination.port), (None, 80));
        assert!(names().flow(&FlowEvent { kind: 99, ..drop }, boot).is_none());
    }
}
