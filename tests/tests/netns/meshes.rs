//! A lab that runs daemons, and the questions tests ask its nodes.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use lab::{Lab, Node, Options};
use serde_json::Value;

/// How long anything may take on a busy machine.
pub(super) const READY: Duration = Duration::from_secs(30);

/// Nodes with the routes they must have, each as (prefix, gateway).
pub(super) type Expected = &'static [(&'static str, &'static [(&'static str, &'static str)])];

/// What every topology of the west/east kind ends with.
pub(super) const WEST_EAST: Expected = &[
    (
        "west-control-plane",
        &[("10.0.1.0/24", "172.18.0.5"), ("10.1.0.0/24", "172.18.0.3"), ("10.1.1.0/24", "172.18.0.2")],
    ),
    ("west-worker", &[("10.0.0.0/24", "172.18.0.4"), ("10.1.0.0/24", "172.18.0.3"), ("10.1.1.0/24", "172.18.0.2")]),
    (
        "east-control-plane",
        &[("10.0.0.0/24", "172.18.0.4"), ("10.0.1.0/24", "172.18.0.5"), ("10.1.1.0/24", "172.18.0.2")],
    ),
    ("east-worker", &[("10.0.0.0/24", "172.18.0.4"), ("10.0.1.0/24", "172.18.0.5"), ("10.1.0.0/24", "172.18.0.3")]),
];

/// A lab with every expected route in place.
pub(super) struct Mesh {
    pub(super) lab: Lab,
    expected: Expected,
    family: &'static str,
}

impl Mesh {
    /// Brings `topology` up and waits for its routes, and for nothing else.
    pub(super) fn up(topology: &str, expected: Expected) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mesh-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Lab::up(topology, &Options { name: Some(name), ..Options::default() }).expect("the lab comes up");
        let is_ipv6 = expected.iter().flat_map(|(_, routes)| *routes).any(|(prefix, _)| prefix.contains(':'));
        let mesh = Self { lab, expected, family: if is_ipv6 { "-6" } else { "-4" } };
        mesh.wait_for_routes();
        mesh
    }

    pub(super) fn node(&self, name: &str) -> Node {
        self.lab.node(name).expect("the node exists")
    }

    pub(super) fn daemon(&self, node: &str) -> lab::Daemon {
        self.node(node).daemon("meshd").expect("the daemon exists")
    }

    /// Waits until every node has exactly the expected routes of ours.
    pub(super) fn wait_for_routes(&self) {
        for (node, expected) in self.expected {
            self.wait_for_routes_of(node, &pairs(expected));
        }
    }

    pub(super) fn wait_for_routes_of(&self, node: &str, expected: &BTreeSet<(String, String)>) {
        let mut last = BTreeSet::new();
        let reached = eventually(|| {
            last = self.routes(node);
            last == *expected
        });
        assert!(reached, "routes of {node} are {last:?}, not {expected:?}; its log:\n{}", self.log(node));
    }

    /// Demands the expected routes now.
    pub(super) fn assert_routes(&self) {
        for (node, _) in self.expected {
            self.assert_routes_of(&[node]);
        }
    }

    /// Demands the expected routes of these nodes now.
    pub(super) fn assert_routes_of(&self, nodes: &[&str]) {
        for (node, expected) in self.expected.iter().filter(|(node, _)| nodes.contains(node)) {
            assert_eq!(self.routes(node), pairs(expected), "routes of {node}");
        }
    }

    /// Routes of ours in the kernel as (prefix, gateway), nexthop objects resolved.
    pub(super) fn routes(&self, node: &str) -> BTreeSet<(String, String)> {
        let command = ["ip", "-j", self.family, "route", "show", "proto", "77"];
        let routes = self.node(node).exec(&command).expect("ip runs").json().expect("ip prints JSON");
        let field = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        rows(&routes).iter().map(|row| (field(row, "dst"), field(row, "gateway"))).collect()
    }

    /// Waits until `meshd status` says that all is well.
    pub(super) fn wait_healthy(&self, nodes: &[&str]) {
        for node in nodes {
            self.node(node).wait_healthy(READY).unwrap_or_else(|error| panic!("{error}; its log:\n{}", self.log(node)));
        }
    }

    pub(super) fn log(&self, node: &str) -> String {
        self.daemon(node).log().unwrap_or_default()
    }

    /// What `meshd` answers on a node, asked until the daemon answers at all. An answer counts also when the command ends
    /// with 1, as `status` of a node with problems does.
    pub(super) fn ask(&self, node: &str, words: &[&str]) -> Value {
        let command: Vec<&str> = ["meshd"].iter().chain(words).chain(&["-o", "json"]).copied().collect();
        let mut answer = Value::Null;
        let mut said = String::new();
        let answered = eventually(|| {
            let output = self.node(node).exec(&command).expect("meshd runs");
            let parsed = serde_json::from_str(&output.stdout);
            said = output.stdout + &output.stderr;
            parsed.map(|json| answer = json).is_ok()
        });
        assert!(answered, "{command:?} on {node}: {said}; its log:\n{}", self.log(node));
        answer
    }

    /// Takes the lab down after a look for panics.
    pub(super) fn finish(self) {
        for (node, _) in self.expected {
            let log = self.log(node);
            assert!(!log.contains("panicked"), "{node} panicked:\n{log}");
        }
        self.lab.down().expect("the lab goes down");
    }
}

/// A store as its cluster's administrator sees it.
pub(super) struct Admin {
    node: Node,
    options: Vec<String>,
}

impl Admin {
    /// The embedded store of a node.
    pub(super) fn embedded(node: Node) -> Self {
        let pki = |file: &str| format!("/etc/meshd/pki/{file}");
        let mut options = vec!["--endpoints=https://127.0.0.1:2379".to_owned()];
        options.extend([
            format!("--cacert={}", pki("ca.crt")),
            format!("--cert={}", pki("admin.crt")),
            format!("--key={}", pki("admin.key")),
        ]);
        Self { node, options }
    }

    /// A real etcd, whose node has the credentials in its environment.
    pub(super) fn etcd(node: Node) -> Self {
        Self { node, options: Vec::new() }
    }

    pub(super) fn put(&self, key: &str, value: &str) {
        self.run(&["put", "--", key, value]).ok().unwrap_or_else(|error| panic!("put {key}: {error}"));
    }

    pub(super) fn delete(&self, key: &str) {
        self.run(&["del", "--", key]).ok().unwrap_or_else(|error| panic!("delete {key}: {error}"));
    }

    /// The value of a key; empty when there is none.
    pub(super) fn get(&self, key: &str) -> String {
        let output = self.run(&["get", "--print-value-only", "--", key]).ok();
        output.unwrap_or_else(|error| panic!("get {key}: {error}")).trim_end().to_owned()
    }

    /// Revision of the last change of a key; 0 when there is none.
    pub(super) fn revision(&self, key: &str) -> i64 {
        let answer = self.run(&["get", "-w", "json", "--", key]).json().expect("etcdctl prints JSON");
        answer["kvs"][0]["mod_revision"].as_i64().unwrap_or(0)
    }

    pub(super) fn run(&self, words: &[&str]) -> lab::Output {
        let mut command = vec!["env", "ETCDCTL_API=3", "etcdctl"];
        command.extend(self.options.iter().map(String::as_str));
        command.extend(words);
        self.node.exec(&command).expect("etcdctl runs")
    }
}

/// Polls until the condition holds or [`READY`] has passed.
pub(super) fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    eventually_within(READY, &mut holds)
}

/// Polls until the condition holds or the time is over.
pub(super) fn eventually_within(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// One answered ping from `pod`, with the TTL or hop limit its answer arrived with.
pub(super) fn ping(pod: &Node, target: &str) -> u32 {
    let mut last = String::new();
    let mut ttl = None;
    // The first packet may meet a neighbor entry that is not there yet.
    eventually(|| {
        last = pod.exec(&["ping", "-n", "-c", "1", "-W", "1", target]).expect("ping runs").stdout;
        ttl = last.split("ttl=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        ttl.is_some()
    });
    ttl.unwrap_or_else(|| panic!("{} gets no answer from {target}: {last}", pod.name()))
}

/// The rows of a JSON list.
pub(super) fn rows(list: &Value) -> &[Value] {
    list.as_array().unwrap_or_else(|| panic!("not a list: {list}"))
}

/// A column of a JSON list.
pub(super) fn column(list: &Value, name: &str) -> BTreeSet<String> {
    rows(list).iter().map(|row| row[name].as_str().unwrap_or_default().to_owned()).collect()
}

pub(super) fn pairs(expected: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    expected.iter().map(|(prefix, via)| ((*prefix).to_owned(), (*via).to_owned())).collect()
}
