//! The rows of every table as columns; the wide form has more of them.

use std::fmt::Display;
use std::net::IpAddr;

use jiff::Timestamp;

use super::failure::Failure;
use super::output;
use crate::api::view::{
    BackendView, EndpointView, ExclusionView, IdentityView, NextHopView, NodeView, PeerView, PrefixView, RejectedView,
    RouteView, ServiceBackendView, ServiceView,
};

/// A heading and rows of as many cells.
pub(super) struct Rows {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Rows {
    pub(super) fn print(self) -> Result<(), Failure> {
        output::text(&self.into_text())
    }

    pub(super) fn into_text(self) -> String {
        output::columns(&self.heading, self.rows)
    }

    fn drop_column(&mut self, nth: usize) {
        self.heading.remove(nth);
        for row in &mut self.rows {
            row.remove(nth);
        }
    }

    /// Builds the table; the cells after the `short` first ones are for the wide form.
    fn build<T>(
        views: &[T],
        wide: bool,
        short: usize,
        heading: &[&'static str],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> Self {
        let keep = if wide { heading.len() } else { short };
        let row = |view| {
            let mut row = cells(view);
            row.truncate(keep);
            row
        };
        Self { heading: heading[..keep].to_vec(), rows: views.iter().map(row).collect() }
    }
}

pub(super) fn nodes(views: &[NodeView], wide: bool) -> Rows {
    let heading = ["CLUSTER", "NODE", "ADDRESSES", "POD CIDRS", "STATE", "PATHS", "ADDRESS TYPES"];
    Rows::build(views, wide, 6, &heading, |view| {
        vec![
            view.cluster.clone(),
            view.name.clone(),
            joined(view.addresses.iter().map(|address| address.address)),
            joined(&view.pod_cidrs),
            if view.local { "local".to_owned() } else { stale(view.stale_since) },
            joined(view.paths.iter().map(|path| {
                format!("{} {} (native {}, tunnel {})", path.family, path.mode, path.native.state, path.tunnel.state)
            })),
            joined(view.addresses.iter().map(|address| format!("{}={}", address.kind, address.address))),
        ]
    })
}

pub(super) fn prefixes(views: &[PrefixView], wide: bool) -> Rows {
    Rows::build(views, wide, 4, &["PREFIX", "CLUSTER", "NODE", "STATE"], |view| {
        vec![view.prefix.to_string(), view.cluster.clone(), view.node.clone(), stale(view.stale_since)]
    })
}

pub(super) fn routes(views: &[RouteView], wide: bool) -> Rows {
    Rows::build(views, wide, 6, &["PREFIX", "VIA", "MODE", "CLUSTER", "NODE", "STATUS", "MTU", "ERROR"], |view| {
        vec![
            view.prefix.to_string(),
            joined(view.next_hops.iter().map(next_hop)),
            view.mode.to_string(),
            optional(view.cluster.as_ref()),
            optional(view.node.as_ref()),
            view.status.to_string(),
            optional(view.mtu),
            optional(view.error.as_ref()),
        ]
    })
}

pub(super) fn exclusions(views: &[ExclusionView], wide: bool) -> Rows {
    Rows::build(views, wide, 3, &["PREFIX", "REASON", "STATUS"], |view| {
        vec![view.prefix.to_string(), view.reason.clone(), view.status.to_string()]
    })
}

/// Backends printed of each service in the short form.
const BACKENDS_MAX: usize = 8;

pub(super) fn services(views: &[ServiceView], wide: bool) -> Rows {
    let heading = ["NAMESPACE", "NAME", "TYPE", "FRONTEND", "AFFINITY", "BACKENDS", "BACKENDS WITH CLUSTER"];
    let mut rows = Rows::build(views, true, 6, &heading, |view| {
        let preferred = |backend: &BackendView| if backend.preferred { " (preferred)" } else { "" };
        let short = |b: &BackendView| format!("{}:{} ({}){}", bracketed(b.address), b.port, b.state, preferred(b));
        let long = |b: &BackendView| {
            format!("{}:{} {} ({}){}", bracketed(b.address), b.port, b.cluster, b.state, preferred(b))
        };
        let shown = view.backends.iter().take(BACKENDS_MAX).map(short);
        let rest = view.backends.len().saturating_sub(BACKENDS_MAX);
        vec![
            view.namespace.clone(),
            view.name.clone(),
            view.kind.clone(),
            optional(view.frontend.as_ref()),
            view.affinity.clone(),
            joined(shown.chain((rest > 0).then(|| format!("and {rest} more")))),
            joined(view.backends.iter().map(long)),
        ]
    });
    // The wide form says more in place of the short list.
    rows.drop_column(if wide { 5 } else { 6 });
    rows
}

pub(super) fn backends(views: &[ServiceBackendView], wide: bool) -> Rows {
    let heading = [
        "NAMESPACE",
        "SERVICE",
        "PORT",
        "BACKEND",
        "CLUSTER",
        "STATE",
        "USED",
        "WEIGHT",
        "AFFINITY",
        "LOCAL",
        "NODE ADDRESS",
        "ZONE",
    ];
    Rows::build(views, wide, 8, &heading, |view| {
        let preferred = if view.preferred { " (preferred)" } else { "" };
        vec![
            view.namespace.clone(),
            view.service.clone(),
            format!("{}/{}", view.port_name, view.protocol),
            format!("{}:{}", bracketed(view.address), view.port),
            view.cluster.clone(),
            format!("{}{preferred}", view.state),
            yes(view.used).to_owned(),
            view.weight.to_string(),
            view.affinity.clone(),
            yes(view.local).to_owned(),
            optional(view.node_address),
            optional(view.zone.clone()),
        ]
    })
}

pub(super) fn identities(views: &[IdentityView], wide: bool) -> Rows {
    Rows::build(views, wide, 3, &["ID", "CLUSTER", "LABELS", "STATE"], |view| {
        vec![
            view.id.map_or_else(|| "pending".to_owned(), |id| id.to_string()),
            view.cluster.clone(),
            joined(view.labels.iter().map(|(key, value)| format!("{key}={value}"))),
            stale(view.stale_since),
        ]
    })
}

pub(super) fn endpoints(views: &[EndpointView], wide: bool) -> Rows {
    let heading = ["ADDRESS", "CLUSTER", "IDENTITY", "WORKLOAD", "NODE ADDRESS", "STATE"];
    Rows::build(views, wide, 5, &heading, |view| {
        let workload = match (&view.namespace, &view.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            (None, Some(name)) => name.clone(),
            (_, None) => String::new(),
        };
        // A single address is printed without its length.
        let address = if view.address.prefix_len() == view.address.max_prefix_len() {
            view.address.addr().to_string()
        } else {
            view.address.to_string()
        };
        vec![
            address,
            view.cluster.clone(),
            optional(view.identity),
            workload,
            optional(view.node_address),
            stale(view.stale_since),
        ]
    })
}

pub(super) fn peers(views: &[PeerView], wide: bool) -> Rows {
    let heading = [
        "CLUSTER",
        "ID",
        "STATE",
        "NODES",
        "ENDPOINTS",
        "IDENTITIES",
        "SERVICES",
        "PROBLEM",
        "RECONNECTIONS",
        "LAST FAILURE",
        "KEPT UNTIL",
        "ADDRESS",
        "STORE",
        "SOURCE",
    ];
    Rows::build(views, wide, 8, &heading, |view| {
        vec![
            view.cluster.clone(),
            optional(view.id),
            peer_state(view).to_owned(),
            view.nodes.to_string(),
            view.endpoints.to_string(),
            view.identities.to_string(),
            view.services.to_string(),
            optional(view.problem.as_ref()),
            view.reconnections.to_string(),
            optional(view.last_failure),
            optional(view.kept_until),
            optional(view.address.as_ref()),
            optional(view.store_id.as_ref()),
            optional(view.source.as_ref()),
        ]
    })
}

pub(super) fn rejected(views: &[RejectedView], wide: bool) -> Rows {
    Rows::build(views, wide, 4, &["CLUSTER", "KIND", "KEY", "REASON", "SINCE"], |view| {
        vec![view.cluster.clone(), view.kind.clone(), view.key.clone(), view.reason.clone(), view.since.to_string()]
    })
}

/// One word for the state of a peer.
pub(super) fn peer_state(view: &PeerView) -> &'static str {
    match (view.connected, view.ready, view.stale_since) {
        (true, true, _) => "ready",
        (true, false, _) => "connected",
        (false, _, Some(_)) => "stale",
        (false, _, None) => "not connected",
    }
}

fn next_hop(hop: &NextHopView) -> String {
    match (hop.via, &hop.dev) {
        (Some(via), Some(dev)) => format!("{via} dev {dev}"),
        (Some(via), None) => via.to_string(),
        (None, Some(dev)) => format!("dev {dev}"),
        (None, None) => String::new(),
    }
}

fn stale(since: Option<Timestamp>) -> String {
    since.map_or_else(|| "live".to_owned(), |since| format!("stale since {since:.0}"))
}

/// An address as it stands before a port.
fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn optional(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn joined(items: impl IntoIterator<Item = impl Display>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::{BackendState, RouteMode, RowStatus};

    #[test]
    fn services_show_states_and_what_is_preferred() {
        let backend = |address: &str, state, preferred| BackendView {
            address: address.parse().unwrap(),
            port: 80,
            cluster: "east".to_owned(),
            state,
            preferred,
        };
        let view = ServiceView {
            namespace: "default".to_owned(),
            name: "webpod".to_owned(),
            frontend: Some("10.2.0.80:80/tcp".to_owned()),
            kind: "ClusterIP".to_owned(),
            affinity: "remote".to_owned(),
            backends: vec![
                backend("10.1.0.10", BackendState::Active, true),
                backend("fd00::1", BackendState::Unreachable, false),
            ],
        };
        let short = services(std::slice::from_ref(&view), false).into_text();
        let line = short.lines().nth(1).unwrap();
        assert!(line.ends_with("remote     10.1.0.10:80 (active) (preferred), [fd00::1]:80 (unreachable)"), "{short}");
        let wide = services(std::slice::from_ref(&view), true).into_text();
        assert!(wide.lines().nth(1).unwrap().contains("10.1.0.10:80 east (active) (preferred)"), "{wide}");
        let many = ServiceView { backends: vec![backend("10.1.0.10", BackendState::Active, false); 11], ..view };
        assert!(services(&[many], false).into_text().trim_end().ends_with("and 3 more"));
    }

    #[test]
    fn routes_are_columns_and_the_wide_form_has_more() {
        let hop = |via: &str| NextHopView { via: via.parse().ok(), dev: Some("eth0".to_owned()) };
        let done = RouteView {
            prefix: "10.1.0.0/24".parse().unwrap(),
            next_hops: vec![hop("172.18.0.3"), hop("172.19.0.3")],
            mode: RouteMode::Native,
            mtu: None,
            cluster: Some("east".to_owned()),
            node: Some("east-worker".to_owned()),
            status: RowStatus::Done,
            error: None,
        };
        let failed = RouteView {
            next_hops: Vec::new(),
            status: RowStatus::Error,
            error: Some("172.18.0.2 is not on-link".to_owned()),
            ..done.clone()
        };
        let views = [done, failed];
        let short = routes(&views, false).into_text();
        let lines: Vec<Vec<&str>> = short
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[0], ["PREFIX", "VIA", "MODE", "CLUSTER", "NODE", "STATUS"]);
        assert_eq!(
            lines[1],
            ["10.1.0.0/24", "172.18.0.3 dev eth0, 172.19.0.3 dev eth0", "native", "east", "east-worker", "done"]
        );
        assert_eq!(lines[2], ["10.1.0.0/24", "-", "native", "east", "east-worker", "error"]);
        let wide = routes(&views, true).into_text();
        assert!(wide.lines().next().unwrap().ends_with("STATUS   MTU   ERROR"), "{wide}");
        assert!(wide.lines().nth(2).unwrap().ends_with("error    -     172.18.0.2 is not on-link"), "{wide}");
    }
}
