//! Tables to JSON shapes.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use meshd_core::{
    derive::LocalNode,
    desired::{Conflict, Exclusion, ExclusionSet, MasqueradeWish, NodeTarget, RouteMode as Mode, TargetKey},
    id::{ClusterName, NodeName},
    observed::{ClusterTables, Kind, Labels, MasqueradeSetting, NodeAddressKind},
    plan::{Action, MasqueradeStep},
    probe::{PathReport, Stream, Way},
    table::RowState,
};

use super::flow_view::FlowCountsView;
use super::view::{
    ActionView, DatapathView, EndpointView, ExclusionView, IdentityView, MapView, MasqueradeView, NextHopView,
    NodeAddressView, NodeView, PathView, PeerView, PlanView, PrefixView, ProbeState, ProbeView, ProgramView,
    RejectedView, RouteMode, RouteView, RowStatus,
};
use crate::{
    pipeline::Snapshot,
    reconcilers::{
        datapath::{DatapathStatus, LinkStatus, MapStatus},
        masquerade::{MasqueradeState, describe},
        routes::RouteState,
    },
};

/// Remote clusters, by name. `sources` says where each is configured.
#[must_use]
pub fn peers(snapshot: &Snapshot, local: &LocalNode, sources: &BTreeMap<ClusterName, String>) -> Vec<PeerView> {
    let known = snapshot.observed.clusters.iter();
    let mut views: BTreeMap<ClusterName, PeerView> = known
        .filter(|(name, _)| **name != local.cluster)
        .map(|(name, tables)| (name.clone(), peer(name, tables, sources.get(name))))
        .collect();
    for (name, source) in sources {
        views.entry(name.clone()).or_insert_with(|| peer(name, &ClusterTables::default(), Some(source)));
    }
    views.into_values().collect()
}

fn peer(name: &ClusterName, tables: &ClusterTables, source: Option<&String>) -> PeerView {
    let row = tables.peer.as_deref();
    PeerView {
        cluster: name.to_string(),
        id: row.and_then(|row| row.id).map(|id| id.get().into()),
        connected: row.is_some_and(|row| row.connected),
        ready: row.is_some_and(meshd_core::observed::PeerRow::is_ready),
        nodes: tables.count(Kind::Nodes) as u64,
        endpoints: tables.count(Kind::Endpoints) as u64,
        identities: tables.count(Kind::Identities) as u64,
        services: tables.count(Kind::Services) as u64,
        reconnections: row.map_or(0, |row| row.reconnections),
        last_failure: row.and_then(|row| row.last_failure.as_ref()).map(|failure| failure.at),
        problem: row.and_then(|row| row.problem.as_ref()).map(|failure| failure.message.to_string()),
        stale_since: tables.stale_since,
        kept_until: row.and_then(|row| row.kept_until),
        address: row.and_then(|row| row.endpoints.first()).map(ToString::to_string),
        store_id: row.and_then(|row| row.store_id).map(|id| format!("{id:x}")),
        source: source.cloned(),
    }
}

/// Every node we know, our own included.
#[must_use]
pub fn nodes(snapshot: &Snapshot, local: &LocalNode, paths: &[PathReport]) -> Vec<NodeView> {
    let own = NodeView {
        cluster: local.cluster.to_string(),
        name: local.name.to_string(),
        addresses: local
            .addresses
            .iter()
            .map(|ip| NodeAddressView { kind: "InternalIP".into(), address: *ip })
            .collect(),
        pod_cidrs: local.pod_cidrs.clone(),
        local: true,
        paths: Vec::new(),
        stale_since: None,
    };
    let mut views = vec![own];
    for (cluster, tables) in &snapshot.observed.clusters {
        for (name, row) in tables.nodes.iter() {
            if *cluster == local.cluster && *name == local.name {
                continue;
            }
            let address =
                |a: &meshd_core::observed::NodeAddress| NodeAddressView { kind: kind(a.kind).into(), address: a.ip };
            views.push(NodeView {
                cluster: cluster.to_string(),
                name: name.to_string(),
                addresses: row.addresses.iter().map(address).collect(),
                pod_cidrs: row.pod_cidrs.to_vec(),
                local: false,
                paths: paths_of(paths, cluster, name),
                stale_since: tables.stale_since,
            });
        }
    }
    views.sort_by(|a, b| (&a.cluster, &a.name).cmp(&(&b.cluster, &b.name)));
    views
}

fn kind(kind: NodeAddressKind) -> &'static str {
    match kind {
        NodeAddressKind::InternalIP => "InternalIP",
        NodeAddressKind::ExternalIP => "ExternalIP",
        NodeAddressKind::CiliumInternalIP => "CiliumInternalIP",
        NodeAddressKind::Other => "Other",
    }
}

/// Accepted prefixes of other nodes and of our own.
#[must_use]
pub fn prefixes(snapshot: &Snapshot, local: &LocalNode) -> Vec<PrefixView> {
    let own = local.pod_cidrs.iter().map(|prefix| PrefixView {
        prefix: *prefix,
        cluster: local.cluster.to_string(),
        node: local.name.to_string(),
        stale_since: None,
    });
    let learned = snapshot.desired.routes.iter().filter_map(|(prefix, row)| {
        let target = row.target.node()?;
        Some(PrefixView {
            prefix: *prefix,
            cluster: target.cluster.to_string(),
            node: target.node.to_string(),
            stale_since: snapshot.observed.clusters.get(&target.cluster).and_then(|tables| tables.stale_since),
        })
    });
    let mut views: Vec<PrefixView> = own.chain(learned).collect();
    views.sort_by_key(|view| view.prefix);
    views
}

fn paths_of(paths: &[PathReport], cluster: &ClusterName, node: &NodeName) -> Vec<PathView> {
    let view = |stream: &Stream| ProbeView {
        state: match stream {
            Stream { answered: 0, .. } => ProbeState::Silent,
            Stream { lost_in_row: 0, .. } => ProbeState::Ok,
            Stream { .. } => ProbeState::Lost,
        },
        rtt_s: stream.rtt.map(|rtt| rtt.as_secs_f64()),
        answered: stream.answered,
        lost: stream.lost,
    };
    let from = paths.partition_point(|path| (&path.key.cluster, &path.key.node) < (cluster, node));
    let own = paths[from..].iter().take_while(|path| (&path.key.cluster, &path.key.node) == (cluster, node));
    own.map(|path| PathView {
        family: if path.key.ipv4 { "ipv4" } else { "ipv6" }.to_owned(),
        mode: if path.row.broken { RouteMode::Tunnel } else { RouteMode::Native },
        native: view(path.probe.stream(Way::Native)),
        tunnel: view(path.probe.stream(Way::Tunnel)),
        native_mtu: path.row.native_mtu,
        tunnel_mtu: path.row.tunnel_mtu,
        switches: path.probe.switches(),
    })
    .collect()
}

/// Desired routes with their state at the kernel.
#[must_use]
pub fn routes(snapshot: &Snapshot, states: &[RouteState]) -> Vec<RouteView> {
    let state_of: BTreeMap<IpNet, &RowState> = states.iter().map(|state| (state.prefix, &state.state)).collect();
    let view = |(prefix, leads_to): (IpNet, TargetKey)| {
        let target = snapshot.desired.targets.get(&leads_to);
        let (status, error) = match state_of.get(&prefix) {
            Some(RowState::Done) => (RowStatus::Done, None),
            Some(RowState::Error(message)) => (RowStatus::Error, Some(message.to_string())),
            Some(RowState::Pending) | None => (RowStatus::Pending, None),
        };
        let link = |index| snapshot.observed.links.get(&index).map(|link| link.name.to_string());
        let hops = target.map_or(&[][..], |target| &target.hops);
        RouteView {
            prefix,
            next_hops: hops.iter().map(|hop| NextHopView { via: Some(hop.via), dev: link(hop.dev) }).collect(),
            mode: match target.map(|target| target.mode) {
                Some(Mode::Tunnel) => RouteMode::Tunnel,
                Some(Mode::Bgp) => RouteMode::Bgp,
                Some(Mode::Native) => RouteMode::Native,
                None => {
                    if leads_to.node().is_some() {
                        RouteMode::Native
                    } else {
                        RouteMode::Bgp
                    }
                }
            },
            mtu: target.map(|target| target.mtu).filter(|mtu| *mtu > 0),
            cluster: leads_to.node().map(|target| target.cluster.to_string()),
            node: leads_to.node().map(|target| target.node.to_string()),
            status,
            error,
        }
    };
    let mut views: Vec<RouteView> = snapshot.desired.all_routes().map(view).collect();
    views.sort_by_key(|view| view.prefix);
    views
}

/// Refused records, and prefixes another cluster owns or that would take the underlay away.
#[must_use]
pub fn rejected(snapshot: &Snapshot) -> Vec<RejectedView> {
    let mut views = Vec::new();
    for (cluster, tables) in &snapshot.observed.clusters {
        for (key, row) in tables.rejected.iter() {
            views.push(RejectedView {
                cluster: cluster.to_string(),
                key: key.to_string(),
                kind: row.kind.map_or("record", record_kind).to_owned(),
                reason: row.reason.to_string(),
                since: row.since,
            });
        }
    }
    let conflict = |((prefix, target), conflict): (&(IpNet, NodeTarget), &Arc<Conflict>)| RejectedView {
        cluster: target.cluster.to_string(),
        key: format!("{} {prefix}", target.node),
        kind: "prefix".to_owned(),
        reason: conflict.to_string(),
        since: conflict.since,
    };
    views.extend(snapshot.desired.conflicts.iter().map(conflict));
    views
}

fn record_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Nodes => "node",
        Kind::Identities => "identity",
        Kind::Endpoints => "ip",
        Kind::Services => "service",
    }
}

/// Identities of every cluster.
#[must_use]
pub fn identities(snapshot: &Snapshot) -> Vec<IdentityView> {
    let mut views = Vec::new();
    for (cluster, tables) in &snapshot.observed.clusters {
        views.extend(tables.identities.iter().map(|(id, row)| IdentityView {
            id: Some(id.0),
            cluster: cluster.to_string(),
            labels: labels(&row.labels),
            stale_since: tables.stale_since,
        }));
    }
    views
}

fn labels(labels: &Labels) -> BTreeMap<String, String> {
    let key = |source: &str, key: &str| if source.is_empty() { key.to_owned() } else { format!("{source}:{key}") };
    labels.iter().map(|(source, name, value)| (key(source, name), value.to_owned())).collect()
}

/// Endpoints of every cluster.
#[must_use]
pub fn endpoints(snapshot: &Snapshot) -> Vec<EndpointView> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut views = Vec::new();
    for (cluster, tables) in &snapshot.observed.clusters {
        views.extend(tables.endpoints.iter().map(|(prefix, row)| EndpointView {
            address: *prefix,
            cluster: cluster.to_string(),
            node_address: row.host,
            identity: Some(row.identity.0),
            namespace: text(&row.namespace),
            name: text(&row.name),
            stale_since: tables.stale_since,
        }));
    }
    views
}

/// What is excluded from masquerade, and whether the kernel knows.
#[must_use]
pub fn exclusions(snapshot: &Snapshot, state: &MasqueradeState) -> Vec<ExclusionView> {
    let reason = |(set, prefix): &Exclusion| match (set, &snapshot.observed.masquerade) {
        (ExclusionSet::Kept, MasqueradeSetting::On(row)) => row.kept.get(prefix).map_or("kept", |by| by.as_str()),
        (set, _) => set.as_str(),
    };
    let status = |exclusion: &Exclusion| match (state.held.excludes(exclusion), &state.error) {
        (true, _) => RowStatus::Done,
        (false, Some(_)) => RowStatus::Error,
        (false, None) => RowStatus::Pending,
    };
    let view = |(exclusion, ()): (&Exclusion, &())| ExclusionView {
        prefix: exclusion.1,
        reason: reason(exclusion).to_owned(),
        status: status(exclusion),
    };
    let mut views: Vec<ExclusionView> = snapshot.desired.masquerade.exclusions.iter().map(view).collect();
    views.sort_by_key(|view| view.prefix);
    views
}

/// The state of the datapath.
#[must_use]
pub fn datapath(status: &DatapathStatus, flows: Option<FlowCountsView>) -> DatapathView {
    let program = |link: &LinkStatus| ProgramView {
        program: link.program.to_owned(),
        link: link.link.clone(),
        attached: link.outcome.as_ref().ok().cloned(),
        error: link.outcome.as_ref().err().cloned(),
    };
    let map = |map: &MapStatus| MapView { name: map.name.to_owned(), used: map.used, room: map.room };
    DatapathView {
        enabled: true,
        programs: status.programs.iter().map(program).collect(),
        maps: status.maps.iter().map(map).collect(),
        direct_return: status.direct_return.map(str::to_owned),
        tunnel: status.tunnel.map(str::to_owned),
        fast_path: status.fast_path,
        lacking: status.lacking.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
        packets: status.packets.iter().map(|(reason, packets)| (reason.word().to_owned(), *packets)).collect(),
        flows,
    }
}

/// The state of masquerade in figures.
#[must_use]
pub fn masquerade(snapshot: &Snapshot, state: &MasqueradeState) -> MasqueradeView {
    let desired = &snapshot.desired.masquerade;
    let MasqueradeWish::On(rules) = &desired.wish else { return MasqueradeView::default() };
    let table = state.held.table();
    MasqueradeView {
        enabled: true,
        installed: state.installed,
        by: if state.by_programs { "programs" } else { "nftables" }.to_owned(),
        uplinks: rules.uplinks.iter().map(ToString::to_string).collect(),
        exclusions: desired.exclusions.len() as u64,
        exclusions_installed: table.map_or(0, |table| {
            table.exclusions.iter().filter(|exclusion| desired.exclusions.contains(exclusion)).count() as u64
        }),
        exclusions_left_out: desired.left_out as u64,
        masqueraded_connections: table.map_or(0, |table| table.masqueraded),
        kept_connections: table.map_or(0, |table| table.kept),
    }
}

/// Actions as lines of a plan.
#[must_use]
pub fn plan(actions: &[Action], masquerade: Option<&MasqueradeStep>) -> PlanView {
    let view = |action: &Action| {
        let text = action.to_string();
        let mut words = text.splitn(4, ' ').skip(1);
        let object = [words.next(), words.next()].into_iter().flatten().collect::<Vec<_>>().join(" ");
        ActionView { op: action.verb().to_owned(), object, detail: words.next().unwrap_or_default().to_owned() }
    };
    let step = masquerade.map(|step| {
        let text = describe(step);
        let mut words = text.splitn(5, ' ');
        let op = words.next().unwrap_or_default().to_owned();
        let object = words.by_ref().take(3).collect::<Vec<_>>().join(" ");
        ActionView { op, object, detail: words.next().unwrap_or_default().to_owned() }
    });
    PlanView { actions: actions.iter().map(view).chain(step).collect() }
}
