//! A service of two clusters: which backends each node sees, and how that follows what the other cluster does.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use super::meshes::{Admin, Expected, Mesh, WEST_EAST, eventually, eventually_within, rows};

pub(super) const NODES: [&str; 4] = ["west-control-plane", "west-worker", "east-control-plane", "east-worker"];
pub(super) const WEST: [&str; 2] = ["west-control-plane", "west-worker"];
pub(super) const EAST: [&str; 2] = ["east-control-plane", "east-worker"];
pub(super) const WEST_BACKENDS: [&str; 2] = ["10.0.0.10", "10.0.1.10"];
pub(super) const EAST_BACKENDS: [&str; 2] = ["10.1.0.10", "10.1.1.10"];
pub(super) const ALL_BACKENDS: [&str; 4] = ["10.0.0.10", "10.0.1.10", "10.1.0.10", "10.1.1.10"];
/// The workload of east-worker in its configuration.
const WORKLOAD: &str = "  static:
    - namespace: default
      name: webpod-2
      addresses: [10.1.1.10]
      labels: {app: webpod}
";
/// How long a cluster may be silent here before its backends are unreachable.
pub(super) const REMOTE_TIMEOUT: Duration = Duration::from_secs(5);

/// The ports of `webpod` in the topologies.
const ONE_PORT: &str = "      ports: [{name: http, port: 80}]\n";

/// A lab with services whose configurations the test may change.
pub(super) struct Services {
    pub(super) mesh: Mesh,
    folder: tempfile::TempDir,
    topology: &'static str,
}

impl Services {
    /// The west/east lab.
    pub(super) fn up() -> Self {
        Self::of("west-east", WEST_EAST)
    }

    /// A topology whose configurations end with the section `services`.
    pub(super) fn of(topology: &'static str, expected: Expected) -> Self {
        Self::of_changed(topology, expected, |text| text)
    }

    /// The same with a topology that is changed before.
    pub(super) fn of_changed(
        topology: &'static str,
        expected: Expected,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let (_, file) = lab::catalog::list().into_iter().find(|(name, _)| name == topology).expect("the topology");
        let source = file.parent().expect("a folder of topologies").to_owned();
        let folder = tempfile::tempdir().expect("a folder");
        let copied = Command::new("cp").arg("-r").args([&file, &source.join(topology)]).arg(folder.path()).status();
        assert!(copied.is_ok_and(|status| status.success()), "the topology is copied");
        for (node, _) in expected {
            let path = config(folder.path(), topology, node);
            let text = fs::read_to_string(&path).expect("the configuration is read");
            let timeout = format!("  remote_timeout_s: {}\n", REMOTE_TIMEOUT.as_secs());
            fs::write(&path, text + &timeout).expect("the configuration is written");
        }
        let file = folder.path().join(format!("{topology}.clab.yml"));
        let text = fs::read_to_string(&file).expect("the topology is read");
        fs::write(&file, change(text)).expect("the topology is written");
        let mesh = Mesh::up(file.to_str().expect("a path of plain text"), expected);
        Self { mesh, folder, topology }
    }

    /// Changes the configuration of nodes in place, as the lab has the file itself, and lets them read it again.
    pub(super) fn edit(&self, nodes: &[&str], from: &str, to: &str) {
        for node in nodes {
            let path = config(self.folder.path(), self.topology, node);
            let text = fs::read_to_string(&path).expect("the configuration is read");
            assert!(text.contains(from), "{node} has {from:?}:\n{text}");
            fs::write(&path, text.replace(from, to)).expect("the configuration is written");
            self.mesh.daemon(node).reload().expect("reloaded");
        }
    }

    /// Gives `webpod` a port of the nodes, 30080, and `more` ports beside the one it has, each as the configuration writes it.
    pub(super) fn open_node_port(&self, nodes: &[&str], more: &[&str]) {
        let ports = [&["{name: http, port: 80, node_port: 30080}"], more].concat().join(", ");
        self.edit(nodes, ONE_PORT, &format!("      type: node_port\n      ports: [{ports}]\n"));
    }

    /// Gives `webpod` another port beside the one it has.
    pub(super) fn add_port(&self, nodes: &[&str], port: &str) {
        self.edit(nodes, ONE_PORT, &format!("      ports: [{{name: http, port: 80}}, {port}]\n"));
    }

    /// Switches the nodes of a cluster from one form of direct server return to the next, and looks each time; `backends` are those
    /// that they show.
    pub(super) fn with_each_form(&self, nodes: &[&str], backends: &[&str], mut look: impl FnMut(&str)) {
        let mut last = "  enabled: true\n".to_owned();
        for form in ["option", "ipip", "geneve"] {
            let section = format!("  enabled: true\n  mode: dsr\n  dsr: {form}\n");
            self.edit(nodes, &last, &section);
            last = section;
            for node in nodes {
                self.mesh.daemon(node).restart().expect("restarted");
            }
            self.wait(nodes, backends);
            look(form);
        }
    }

    /// `webpod` as a node shows it.
    pub(super) fn webpod(&self, node: &str) -> Value {
        let answer = self.mesh.ask(node, &["get", "services"]);
        rows(&answer).first().cloned().unwrap_or(Value::Null)
    }

    /// The backends of `webpod` that a node shows, with `(state)` unless they are active, and `+` when they are preferred.
    pub(super) fn backends(&self, node: &str) -> Vec<String> {
        let row = self.webpod(node);
        let Some(backends) = row["backends"].as_array() else { return Vec::new() };
        let text = |backend: &Value| {
            let state = backend["state"].as_str().unwrap_or_default();
            let state = if state == "active" { String::new() } else { format!(" ({state})") };
            let preferred = if backend["preferred"] == true { "+" } else { "" };
            format!("{}{state}{preferred}", backend["address"].as_str().unwrap_or_default())
        };
        backends.iter().map(text).collect()
    }

    pub(super) fn wait(&self, nodes: &[&str], expected: &[&str]) {
        for node in nodes {
            let is = || self.backends(node) == expected;
            assert!(eventually(is), "{node} has {:?}, not {expected:?}:\n{}", self.backends(node), self.mesh.log(node));
        }
    }

    /// Addresses that get new connections.
    pub(super) fn used(&self, node: &str) -> BTreeSet<String> {
        let answer = self.mesh.ask(node, &["get", "backends", "default/webpod"]);
        let used = rows(&answer).iter().filter(|row| row["used"] == true);
        used.map(|row| row["address"].as_str().unwrap_or_default().to_owned()).collect()
    }

    pub(super) fn wait_used(&self, nodes: &[&str], expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|address| (*address).to_owned()).collect();
        for node in nodes {
            let is = || self.used(node) == expected;
            assert!(eventually(is), "{node} uses {:?}, not {expected:?}", self.used(node));
        }
    }
}

fn config(folder: &Path, topology: &str, node: &str) -> PathBuf {
    folder.join(topology).join(node).join("meshd.yaml")
}

#[test]
fn every_node_sees_the_backends_of_both_clusters() {
    let lab = Services::up();
    lab.wait(&NODES, &ALL_BACKENDS);
    let backend = |address: &str, cluster: &str| json!({"address": address, "port": 80, "cluster": cluster, "state": "active", "preferred": false});
    let backends = [
        backend("10.0.0.10", "west"),
        backend("10.0.1.10", "west"),
        backend("10.1.0.10", "east"),
        backend("10.1.1.10", "east"),
    ];
    for (nodes, address) in [(WEST, "10.2.0.80"), (EAST, "10.3.0.80")] {
        let frontend = format!("{address}:80/tcp");
        let expected = json!([{"namespace": "default", "name": "webpod", "frontend": frontend, "type": "ClusterIP",
            "affinity": "none", "backends": backends}]);
        for node in nodes {
            assert_eq!(lab.mesh.ask(node, &["get", "services", "webpod"]), expected, "{node}");
            lab.wait_used(&[node], &ALL_BACKENDS);
        }
    }
    // A backend is local to the node whose workload it is.
    let answer = lab.mesh.ask("west-worker", &["get", "backends", "webpod"]);
    let of = |address: &str| rows(&answer).iter().find(|row| row["address"] == address).expect("the backend").clone();
    assert_eq!((&of("10.0.1.10")["local"], &of("10.0.0.10")["local"]), (&json!(true), &json!(false)));
    assert_eq!((&of("10.0.0.10")["node_address"], &of("10.1.0.10")["local"]), (&json!("172.18.0.4"), &json!(false)));
    // Both forms are in the store, and the worker, which is not the writer, wrote neither.
    let store = Admin::embedded(lab.mesh.node("west-control-plane"));
    let record: Value =
        serde_json::from_str(&store.get("cilium/state/services/v1/west/default/webpod")).expect("a service");
    assert_eq!(
        (&record["shared"], &record["clusterID"], &record["selector"]),
        (&json!(true), &json!(1), &json!({"app": "webpod"}))
    );
    assert_eq!(record["backends"].as_object().map(serde_json::Map::len), Some(2), "{record}");
    let slices =
        store.run(&["get", "--prefix", "--keys-only", "--", "cilium/state/endpointslices/v1/west/default/webpod-ipv4"]);
    assert!(!slices.ok().expect("listed").trim().is_empty(), "no slice is published");
    for node in NODES {
        assert_eq!(lab.mesh.ask(node, &["get", "rejected"]), json!([]), "refusals on {node}");
    }
    lab.mesh.finish();
}

#[test]
fn services_follow_sharing_affinity_and_scale() {
    let lab = Services::up();
    lab.wait(&NODES, &ALL_BACKENDS);
    // What east does not share, west does not see, and what west shares is none of that.
    lab.edit(&EAST, "      global: true\n", "      global: true\n      shared: false\n");
    lab.wait(&WEST, &WEST_BACKENDS);
    lab.wait(&EAST, &ALL_BACKENDS);
    lab.edit(&EAST, "      shared: false\n", "");
    lab.wait(&WEST, &ALL_BACKENDS);

    lab.edit(&WEST, "      global: true\n", "      global: true\n      affinity: local\n");
    lab.wait(&WEST, &["10.0.0.10+", "10.0.1.10+", "10.1.0.10", "10.1.1.10"]);
    lab.wait_used(&WEST, &WEST_BACKENDS);
    lab.wait(&EAST, &ALL_BACKENDS);
    assert_eq!(lab.webpod("west-worker")["affinity"], "local");
    let output = lab.mesh.node("west-worker").exec(&["meshd", "get", "services"]).expect("meshd runs").stdout;
    assert!(output.contains("10.0.0.10:80 (active) (preferred), "), "{output}");
    lab.edit(&WEST, "affinity: local", "affinity: remote");
    lab.wait(&WEST, &["10.0.0.10", "10.0.1.10", "10.1.0.10+", "10.1.1.10+"]);
    lab.wait_used(&WEST, &EAST_BACKENDS);

    // One workload of east is another one by its labels, and the other is gone: west's own come in again.
    lab.edit(&["east-control-plane"], "labels: {app: webpod}", "labels: {app: other}");
    lab.wait_used(&WEST, &["10.1.1.10"]);
    lab.edit(&["east-worker"], WORKLOAD, "");
    lab.wait(&NODES, &WEST_BACKENDS);
    lab.wait_used(&WEST, &WEST_BACKENDS);
    lab.edit(&["east-control-plane"], "labels: {app: other}", "labels: {app: webpod}");
    lab.edit(&["east-worker"], "workloads:\n", &format!("workloads:\n{WORKLOAD}"));
    lab.wait_used(&WEST, &EAST_BACKENDS);
    lab.mesh.finish();
}

#[test]
fn a_silent_cluster_keeps_its_backends_in_the_list_and_gets_no_new_connections() {
    let lab = Services::up();
    lab.wait(&NODES, &ALL_BACKENDS);
    lab.mesh.daemon("east-control-plane").kill9().expect("killed");
    let silent = ["10.0.0.10", "10.0.1.10", "10.1.0.10 (unreachable)", "10.1.1.10 (unreachable)"];
    for node in WEST {
        let is = || lab.backends(node) == silent;
        assert!(eventually_within(REMOTE_TIMEOUT * 6, is), "{node} has {:?}", lab.backends(node));
    }
    lab.wait_used(&WEST, &WEST_BACKENDS);
    // The other node of east lost its own store, not its workloads: it goes on with all it can reach.
    assert_eq!(lab.backends("east-worker"), ALL_BACKENDS);
    let output = lab.mesh.node("west-worker").exec(&["meshd", "get", "services"]).expect("meshd runs").stdout;
    assert!(output.contains("10.1.0.10:80 (unreachable)"), "{output}");
    // What east shared is remembered across a restart: it is silent, not gone.
    lab.mesh.daemon("west-worker").restart().expect("restarted");
    lab.wait(&["west-worker"], &silent);
    lab.mesh.daemon("east-control-plane").start().expect("started");
    lab.wait(&NODES, &ALL_BACKENDS);
    lab.wait_used(&WEST, &ALL_BACKENDS);
    lab.mesh.finish();
}
