//! The routes of the west/east lab: what they must be, and what a node has.

use std::collections::BTreeMap;

use lab::{Node, Result};

/// Prefix to gateway.
pub(crate) type Table = BTreeMap<String, String>;

/// Every node with its routes, and no others.
pub(crate) const EXPECTED: &[(&str, &[(&str, &str)])] = &[
    (
        "west-control-plane",
        &[("10.0.1.0/24", "172.18.0.5"), ("10.1.0.0/24", "172.18.0.3"), ("10.1.1.0/24", "172.18.0.2")],
    ),
    ("west-worker", &[("10.0.0.0/24", "172.18.0.4"), ("10.1.0.0/24", "172.18.0.3"), ("10.1.1.0/24", "172.18.0.2")]),
    (
        "east-control-plane",
        &[("10.1.1.0/24", "172.18.0.2"), ("10.0.0.0/24", "172.18.0.4"), ("10.0.1.0/24", "172.18.0.5")],
    ),
    ("east-worker", &[("10.1.0.0/24", "172.18.0.3"), ("10.0.0.0/24", "172.18.0.4"), ("10.0.1.0/24", "172.18.0.5")]),
];

/// A list of routes in the form that can be compared.
pub(crate) fn table(routes: &[(&str, &str)]) -> Table {
    routes.iter().map(|(prefix, gateway)| ((*prefix).to_owned(), (*gateway).to_owned())).collect()
}

/// The routes of a node that carry meshd's mark.
pub(crate) fn owned_routes(node: &Node) -> Result<Table> {
    let routes = node.exec(&["ip", "-j", "-4", "route", "show", "proto", "77"])?.json()?;
    let text = |route: &serde_json::Value, key: &str| route[key].as_str().unwrap_or("none").to_owned();
    let routes = routes.as_array().cloned().unwrap_or_default();
    Ok(routes.iter().map(|route| (text(route, "dst"), text(route, "gateway"))).collect())
}
