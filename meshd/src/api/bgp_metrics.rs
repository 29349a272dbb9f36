//! The part of the metrics that is about BGP.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::bgp_view::{BgpFamilyView, BgpNeighborRow, BgpStationView, BgpSummaryView, BgpTableView};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerFamilyLabel {
    peer: String,
    family: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    family: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StationLabel {
    station: String,
}

type Gauges<L> = Family<L, Gauge<i64, AtomicI64>>;
type Counters<L> = Family<L, Counter<u64, AtomicU64>>;

/// Adds what there is of the speaker.
pub(super) fn register(registry: &mut Registry, bgp: &BgpSummaryView) {
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        let gauge: Gauge<i64, AtomicI64> = Gauge::default();
        gauge.set(signed(value));
        registry.register(name, help, gauge);
    };
    let counter = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        let counter: Counter<u64, AtomicU64> = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    gauge(registry, "bgp_peers_count", "BGP peers", bgp.peers);
    gauge(registry, "bgp_peers_established_count", "BGP peers with an established session", bgp.established);
    gauge(registry, "bgp_attribute_sets_count", "Distinct sets of path attributes", bgp.attribute_sets);

    counter(registry, "bgp_strangers_refused", "Connections of nobody that is a peer", bgp.strangers);

    type OfTable = fn(&BgpTableView) -> u64;
    let per_table: [(&str, &str, OfTable); 2] = [
        ("bgp_prefixes_count", "Prefixes with paths", |table| table.prefixes),
        ("bgp_paths_count", "Paths", |table| table.paths),
    ];
    for (name, help, read) in per_table {
        let family: Gauges<FamilyLabel> = Family::default();
        for table in &bgp.tables {
            family.get_or_create(&FamilyLabel { family: table.family.clone() }).set(signed(read(table)));
        }
        registry.register(name, help, family);
    }

    let established: Gauges<PeerLabel> = Family::default();
    for peer in &bgp.neighbors {
        established.get_or_create(&label(peer)).set((peer.state == "established").into());
    }
    registry.register("bgp_peer_established", "1 while the session is established", established);
    let blocked: Gauges<PeerLabel> = Family::default();
    for peer in &bgp.neighbors {
        blocked.get_or_create(&label(peer)).set(signed(peer.send_blocked_s.unwrap_or(0)));
    }
    let help = "For how long the peer has taken nothing of what waits to be sent";
    registry.register("bgp_peer_send_blocked_seconds", help, blocked);

    type OfFamily = fn(&BgpFamilyView) -> u64;
    let per_family: [(&str, &str, OfFamily); 5] = [
        ("bgp_peer_paths_received_count", "Paths the peer sent", |family| family.received),
        ("bgp_peer_paths_accepted_count", "Paths of the peer that import policy accepted", |family| family.accepted),
        ("bgp_peer_paths_best_count", "Paths of the peer that are best", |family| family.best),
        ("bgp_peer_paths_stale_count", "Paths of the peer that are stale", |family| family.stale),
        ("bgp_peer_paths_advertised_count", "Paths the peer is told", |family| family.advertised),
    ];
    for (name, help, read) in per_family {
        let family: Gauges<PeerFamilyLabel> = Family::default();
        for (peer, of) in bgp.neighbors.iter().flat_map(|peer| peer.families.iter().map(move |of| (peer, of))) {
            let label = PeerFamilyLabel { peer: peer.peer.clone(), family: of.family.clone() };
            family.get_or_create(&label).set(signed(read(of)));
        }
        registry.register(name, help, family);
    }

    type OfPeer = fn(&BgpNeighborRow) -> u64;
    let per_peer: [(&str, &str, OfPeer); 6] = [
        ("bgp_peer_updates_received", "UPDATE messages from the peer", |peer| peer.updates_received),
        ("bgp_peer_updates_sent", "UPDATE messages to the peer", |peer| peer.updates_sent),
        ("bgp_peer_messages_received", "Messages from the peer", |peer| peer.messages_received),
        ("bgp_peer_messages_sent", "Messages to the peer", |peer| peer.messages_sent),
        ("bgp_peer_connections_refused", "Connections of the peer that were not taken", |peer| {
            peer.connections_refused
        }),
        ("bgp_peer_downs", "Times an established session ended", |peer| peer.downs),
    ];
    for (name, help, read) in per_peer {
        let family: Counters<PeerLabel> = Family::default();
        for peer in &bgp.neighbors {
            family.get_or_create(&label(peer)).inc_by(read(peer));
        }
        registry.register(name, help, family);
    }
    register_watchers(registry, bgp);
}

/// Adds what there is of BMP stations and MRT files.
fn register_watchers(registry: &mut Registry, bgp: &BgpSummaryView) {
    type OfStation = fn(&BgpStationView) -> u64;
    let station_label = |station: &BgpStationView| StationLabel { station: station.address.clone() };
    if !bgp.stations.is_empty() {
        let connected: Gauges<StationLabel> = Family::default();
        for station in &bgp.stations {
            connected.get_or_create(&station_label(station)).set(station.connected.into());
        }
        registry.register("bgp_bmp_station_connected", "1 while the BMP station is connected", connected);
        let per_station: [(&str, &str, OfStation); 2] = [
            ("bgp_bmp_station_sent_bytes", "Octets the BMP station was sent", |station| station.sent_bytes),
            ("bgp_bmp_station_overflows", "Times the BMP station read too slowly", |station| station.overflows),
        ];
        for (name, help, read) in per_station {
            let family: Counters<StationLabel> = Family::default();
            for station in &bgp.stations {
                family.get_or_create(&station_label(station)).inc_by(read(station));
            }
            registry.register(name, help, family);
        }
    }
    if let Some(log) = &bgp.mrt_log {
        let numbers = [
            ("bgp_mrt_log_written_bytes", "Octets written into MRT files of messages", log.written_bytes),
            ("bgp_mrt_log_records_lost", "Records that did not get into MRT files of messages", log.lost),
        ];
        for (name, help, value) in numbers {
            let counter: Counter<u64, AtomicU64> = Counter::default();
            counter.inc_by(value);
            registry.register(name, help, counter);
        }
    }
}

fn label(peer: &BgpNeighborRow) -> PeerLabel {
    PeerLabel { peer: peer.peer.clone() }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
