//! OpenMetrics text, made from the same answer as `meshd status`.

use std::{
    fmt,
    sync::atomic::{AtomicI64, AtomicU64},
};

use meshd_core::probe::{PathReport, Way};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    bgp_view::BgpSummaryView,
    flow_view::{FlowKind, Verdict},
    view::{Health, StatusView},
};

/// Content type of the answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabel {
    cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemLabel {
    component: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlowLabel {
    r#type: String,
    verdict: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabel {
    map: String,
}

type Gauges<L> = Family<L, Gauge<i64, AtomicI64>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabel {
    cluster: String,
    node: String,
    family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WayLabel {
    cluster: String,
    node: String,
    family: &'static str,
    way: &'static str,
}

/// What probes found out.
fn register_paths(registry: &mut Registry, paths: &[PathReport]) {
    if paths.is_empty() {
        return;
    }
    let (tunnelled, switches): (Gauges<PathLabel>, Family<PathLabel, Counter<u64, AtomicU64>>) = Default::default();
    let answered: Family<WayLabel, Counter<u64, AtomicU64>> = Family::default();
    let lost: Family<WayLabel, Counter<u64, AtomicU64>> = Family::default();
    let rtt: Family<WayLabel, Gauge<f64, AtomicU64>> = Family::default();
    for path in paths {
        let (cluster, node) = (path.key.cluster.to_string(), path.key.node.to_string());
        let family = if path.key.ipv4 { "ipv4" } else { "ipv6" };
        let label = PathLabel { cluster: cluster.clone(), node: node.clone(), family };
        tunnelled.get_or_create(&label).set(i64::from(path.row.broken));
        switches.get_or_create(&label).inc_by(path.probe.switches());
        for (way, word) in [(Way::Native, "native"), (Way::Tunnel, "tunnel")] {
            let label = WayLabel { cluster: cluster.clone(), node: node.clone(), family, way: word };
            let stream = path.probe.stream(way);
            answered.get_or_create(&label).inc_by(stream.answered);
            lost.get_or_create(&label).inc_by(stream.lost);
            if let Some(time) = stream.rtt {
                rtt.get_or_create(&label).set(time.as_secs_f64());
            }
        }
    }
    registry.register(
        "probes_path_tunnelled",
        "1 while workloads' packets to the node go through the tunnel",
        tunnelled,
    );
    registry.register("probes_path_switches", "How often another way was taken", switches);
    registry.register("probes_answered", "Path probes that were answered", answered);
    registry.register("probes_lost", "Path probes that were not", lost);
    registry.register("probes_rtt_seconds", "Time to the last answer", rtt);
}

/// Renders the metrics of one moment.
///
/// # Errors
/// When a text cannot be formatted.
pub fn render(status: &StatusView, bgp: Option<&BgpSummaryView>, paths: &[PathReport]) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("meshd");
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        let gauge: Gauge<i64, AtomicI64> = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge(&mut registry, "healthy", "1 when the health is ok", u64::from(status.health == Health::Ok));
    gauge(&mut registry, "routes_desired_count", "Routes this node wants", status.routes.desired);
    gauge(&mut registry, "routes_installed_count", "Wanted routes the kernel holds", status.routes.installed);
    gauge(&mut registry, "routes_error_count", "Wanted routes in error", status.routes.errors);

    let masquerade = &status.masquerade;
    if masquerade.enabled {
        let help = "Prefixes that are excluded from masquerade";
        gauge(&mut registry, "masquerade_exclusions_count", help, masquerade.exclusions_installed);
        let help = "Prefixes that are not excluded because there are too many";
        gauge(&mut registry, "masquerade_exclusions_left_out_count", help, masquerade.exclusions_left_out);
        gauge(&mut registry, "masquerade_installed", "1 when the rules are in place", u64::from(masquerade.installed));
        for (name, help, value) in [
            (
                "masquerade_connections",
                "Connections masqueraded by the rules in place",
                masquerade.masqueraded_connections,
            ),
            ("masquerade_kept_connections", "Connections that kept their source by them", masquerade.kept_connections),
        ] {
            let counter: Counter<u64, AtomicU64> = Counter::default();
            counter.inc_by(value);
            registry.register(name, help, counter);
        }
    }

    let datapath = &status.datapath;
    if datapath.enabled {
        let packets: Family<ReasonLabel, Counter<u64, AtomicU64>> = Family::default();
        for (reason, count) in &datapath.packets {
            packets.get_or_create(&ReasonLabel { reason: reason.clone() }).inc_by(*count);
        }
        registry.register("datapath_packets", "Packets by what the datapath did with them", packets);
        let (used, room): (Gauges<MapLabel>, Gauges<MapLabel>) = Default::default();
        for map in &datapath.maps {
            let label = MapLabel { map: map.name.clone() };
            used.get_or_create(&label).set(i64::try_from(map.used).unwrap_or(i64::MAX));
            room.get_or_create(&label).set(i64::try_from(map.room).unwrap_or(i64::MAX));
        }
        let flows: Family<FlowLabel, Counter<u64, AtomicU64>> = Family::default();
        for kind in FlowKind::ALL.iter().filter(|_| datapath.flows.is_some()) {
            let verdict = if *kind == FlowKind::Drop { Verdict::Dropped } else { Verdict::Forwarded };
            let label = FlowLabel { r#type: kind.to_string(), verdict: verdict.to_string() };
            let told = datapath.flows.as_ref().and_then(|flows| flows.told.get(kind.word())).copied();
            flows.get_or_create(&label).inc_by(told.unwrap_or(0));
        }
        registry.register("datapath_flows", "Flows that the programs told", flows);
        if let Some(flows) = &datapath.flows {
            gauge(&mut registry, "datapath_flow_followers_count", "Readers who follow the flows", flows.followers);
        }
        registry.register("datapath_map_entries", "Elements in use of a map of the datapath", used);
        registry.register("datapath_map_capacity", "Elements a map of the datapath has room for", room);
    }

    if let Some(store) = &status.store {
        gauge(&mut registry, "store_keys_count", "Keys of the embedded store", store.keys);
        gauge(&mut registry, "store_connections_count", "Open connections of the embedded store", store.connections);
        gauge(&mut registry, "store_watches_count", "Open watches of the embedded store", store.watches);
        gauge(&mut registry, "store_answers_bytes", "Memory of answers that clients have not read", store.answer_bytes);
        let waiting = "Requests that wait until other answers have been read";
        gauge(&mut registry, "store_answers_waiting_count", waiting, store.answers_waiting);
        let refused: Counter<u64, AtomicU64> = Counter::default();
        refused.inc_by(store.answers_refused);
        registry.register("store_answers_refused", "Requests that waited for that in vain", refused);
    }

    register_paths(&mut registry, paths);
    let problems: Gauges<ProblemLabel> = Family::default();
    for problem in &status.problems {
        problems.get_or_create(&ProblemLabel { component: problem.component.clone() }).set(1);
    }
    registry.register("problem", "1 for each component with a problem", problems);

    type Read = fn(&super::view::PeerView) -> i64;
    let per_peer: [(&str, &str, Read); 6] = [
        ("peer_connected", "1 while the store of the cluster answers", |peer| peer.connected.into()),
        ("peer_ready", "1 when every table of the cluster is complete", |peer| peer.ready.into()),
        ("peer_nodes_count", "Nodes learned from the cluster", |peer| peer.nodes.try_into().unwrap_or(i64::MAX)),
        ("peer_endpoints_count", "Endpoints learned from the cluster", |peer| {
            peer.endpoints.try_into().unwrap_or(i64::MAX)
        }),
        ("peer_identities_count", "Identities learned from the cluster", |peer| {
            peer.identities.try_into().unwrap_or(i64::MAX)
        }),
        ("peer_stale", "1 while the rows of the cluster are only remembered", |peer| peer.stale_since.is_some().into()),
    ];
    for (name, help, read) in per_peer {
        let family: Gauges<ClusterLabel> = Family::default();
        for peer in &status.peers {
            family.get_or_create(&ClusterLabel { cluster: peer.cluster.clone() }).set(read(peer));
        }
        registry.register(name, help, family);
    }
    let reconnections: Family<ClusterLabel, Counter<u64, AtomicU64>> = Family::default();
    for peer in &status.peers {
        reconnections.get_or_create(&ClusterLabel { cluster: peer.cluster.clone() }).inc_by(peer.reconnections);
    }
    registry.register("peer_reconnections", "Times the connection was built anew", reconnections);

    if let Some(bgp) = bgp {
        super::bgp_metrics::register(&mut registry, bgp);
    }

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
