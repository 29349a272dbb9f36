//! Ours: `meshd run` with a `bgp:` section.

use std::{fmt::Write as _, process::Command};

use tests::{bgp::speaker::Identity, routers::Blueprint};

use super::daemon::{ASN, Peer, ROUTER_ID, Task};

/// Whether the binary that would be started knows how to speak BGP.
pub(super) fn is_able() -> bool {
    let Ok(meshd) = lab::catalog::meshd() else { return false };
    let asked = Command::new(meshd).args(["bgp", "summary", "--help"]).output();
    asked.is_ok_and(|answer| answer.status.success())
}

/// The node that runs it.
pub(super) fn blueprint(task: &Task) -> Blueprint {
    Blueprint::meshd("daemon", &configuration(task))
}

fn configuration(task: &Task) -> String {
    let mut text = format!(
        "cluster: {{name: bench, id: 1}}
node: {{name: daemon, addresses: [{ROUTER_ID}]}}
store: {{mode: embedded, listen: \"127.0.0.1:2379\"}}
routing: {{mode: native}}
bgp:
  asn: {ASN}
  router_id: {ROUTER_ID}
  import: {{accept: [0.0.0.0/0 le 32], default_route: true, install: {}, max_routes: 10000000}}
  policies:
    everything: [{{name: all}}]
    nothing: [{{name: none, then: reject}}]
  peers:
",
        task.fib
    );
    for Peer { identity: Identity { asn, address, .. }, export } in &task.peers {
        let export = if *export { "everything" } else { "nothing" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    - {{address: {address}, remote_as: {asn}, passive: true, export: [{export}]}}");
    }
    text
}
