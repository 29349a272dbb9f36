mod slices;

use std::collections::BTreeMap;

use super::*;
use crate::{
    clustermesh::{Key, Keyspace, VALUE_MAX},
    id::MaxClusters,
};

const STORE: u64 = 0xabc;
const CONFIG: &[u8] = br#"{"id":2,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#;

fn id(n: u32) -> ClusterId {
    ClusterId::new(n, MaxClusters::C255).unwrap()
}

fn settings() -> Settings {
    Settings {
        cluster: "east".parse().unwrap(),
        endpoints: vec!["https://east:2379".into()],
        own_cluster: "west".parse().unwrap(),
        own_id: id(1),
        max_clusters: MaxClusters::C255,
        own_node: "west-worker".parse().unwrap(),
        own_pod_cidrs: vec!["10.0.1.0/24".parse().unwrap()],
        own_addresses: vec!["172.18.0.5".parse().unwrap()],
        accept: Accept {
            pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
            node_cidrs: vec!["172.18.0.0/16".parse().unwrap()],
        },
        known_id: None,
        listed_from: BTreeMap::new(),
        timers: Timers::default(),
        page_limit: 2,
        seed: 1,
    }
}

/// A reader with a clock of its own.
struct Bench {
    reader: Reader,
    at: Duration,
    store: u64,
    revision: i64,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let mut reader = Reader::new(settings);
        let mut out = Output::default();
        reader.start(Duration::ZERO, &mut out);
        assert_eq!(out.commands, [Command::Connect { after: Duration::ZERO }]);
        Self { reader, at: Duration::ZERO, store: STORE, revision: 10 }
    }

    fn give(&mut self, input: Input) -> Output {
        let mut out = Output::default();
        let now =
            Now { elapsed: self.at, wall: Timestamp::UNIX_EPOCH + jiff::SignedDuration::try_from(self.at).unwrap() };
        self.reader.handle(input, now, &mut out);
        out
    }

    fn header(&self) -> Header {
        Header { store_id: self.store, revision: self.revision }
    }

    fn page(&mut self, target: Target, records: &[(&str, &[u8])], more: bool) -> Output {
        let records: Vec<Record> = records.iter().map(|(key, value)| written(key, value)).collect();
        self.give(Input::Page { target, header: self.header(), count: records.len(), records, more })
    }

    fn events(&mut self, target: Target, records: Vec<Record>) -> Output {
        self.give(Input::Events { target, header: self.header(), records })
    }

    /// Ticks at every deadline until `elapsed` from now; returns all that was said.
    fn pass(&mut self, elapsed: Duration) -> Output {
        let end = self.at + elapsed;
        let mut all = Output::default();
        while let Some(due) = self.reader.deadline().filter(|due| *due <= end) {
            self.at = self.at.max(due);
            let out = self.give(Input::Tick);
            all.commands.extend(out.commands);
            all.changes.extend(out.changes);
        }
        self.at = end;
        all
    }

    fn connected(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        let out = bench.give(Input::Connected);
        assert_eq!(lists(&out), [Target::Heartbeat, Target::Config]);
        bench.page(Target::Heartbeat, &[(".", b"")], false);
        bench
    }

    /// Config accepted and claimed, waiting for canaries.
    fn configured(settings: Settings) -> Self {
        let mut bench = Self::connected(settings);
        bench.config(CONFIG);
        bench
    }

    fn config(&mut self, value: &[u8]) -> Output {
        let mut out = self.page(Target::Config, &[("cilium/cluster-config/east", value)], false);
        if let Some(Command::Claim(_)) = out.commands.iter().find(|command| matches!(command, Command::Claim(_))) {
            let more = self.give(Input::Claimed(Ok(())));
            out.commands.extend(more.commands);
            out.changes.extend(more.changes);
        }
        out
    }

    /// All four kinds listed empty except for one node.
    fn ready(settings: Settings) -> Self {
        let mut bench = Self::configured(settings);
        bench.list(&[(&node_key("a"), &node("a", "10.1.0.0"))]);
        assert!(bench.reader.row().is_ready(), "{:?}", bench.reader.row());
        bench
    }

    /// All canaries, then all four kinds, of which only nodes have records. Returns what the lists changed.
    fn list(&mut self, nodes: &[(&str, &[u8])]) -> Output {
        let canaries: Vec<String> = Kind::ALL.iter().map(|kind| canary(*kind)).collect();
        let mut canaries: Vec<(&str, &[u8])> = canaries.iter().map(|key| (key.as_str(), &b"t"[..])).collect();
        canaries.sort_unstable();
        self.page(Target::Canaries, &canaries, false);
        let mut all = self.page(Target::Records(Kind::Nodes), nodes, false);
        for kind in [Kind::Identities, Kind::Endpoints, Kind::Services] {
            all.changes.extend(self.page(Target::Records(kind), &[], false).changes);
        }
        all
    }

    /// Connects again and lists everything.
    fn relist(&mut self, nodes: &[(&str, &[u8])]) -> Output {
        self.give(Input::Connected);
        self.page(Target::Heartbeat, &[(".", b"")], false);
        self.config(CONFIG);
        let out = self.list(nodes);
        for target in Target::ALL {
            self.give(Input::Watching(target, self.header()));
        }
        out
    }

    fn problem(&self) -> &str {
        self.reader.row().problem.as_ref().map_or("", |problem| &problem.message)
    }
}

fn written(key: &str, value: &[u8]) -> Record {
    // "." stands for the heartbeat.
    let key = if key == "." { "cilium/.heartbeat" } else { key };
    Record { key: key.into(), value: Some(value.into()) }
}

fn deleted(key: &str) -> Record {
    Record { key: key.into(), value: None }
}

fn canary(kind: Kind) -> String {
    Key::canary(Keyspace::State, &"east".parse().unwrap(), kind).to_string()
}

fn node_key(name: &str) -> String {
    format!("cilium/state/nodes/v1/east/{name}")
}

fn node(name: &str, cidr: &str) -> Vec<u8> {
    format!(
        r#"{{"Name":"{name}","Cluster":"east","ClusterID":2,"IPAddresses":[{{"Type":"InternalIP","IP":"172.18.0.3"}}],
        "IPv4AllocCIDR":{{"IP":"{cidr}","Mask":"////AA=="}}}}"#
    )
    .into_bytes()
}

fn lists(out: &Output) -> Vec<Target> {
    out.commands
        .iter()
        .filter_map(|command| match command {
            Command::List { target, .. } => Some(*target),
            Command::Connect { .. } | Command::Watch { .. } | Command::Claim(_) => None,
        })
        .collect()
}

fn reconnects(out: &Output) -> bool {
    out.commands.iter().any(|command| matches!(command, Command::Connect { .. }))
}

/// Changes without the peer row, in short.
fn rows(out: &Output) -> Vec<String> {
    out.changes
        .iter()
        .filter_map(|change| {
            Some(match change {
                ClusterChange::Peer(_) | ClusterChange::Kept(_) => return None,
                ClusterChange::Node(name, Some(_)) => format!("+{name}"),
                ClusterChange::Node(name, None) => format!("-{name}"),
                ClusterChange::Rejected(key, row) => {
                    format!("{}{}", if row.is_some() { "refused " } else { "healed " }, key.rsplit('/').next()?)
                }
                ClusterChange::Stale(_) => "stale".to_owned(),
                other => format!("{other:?}"),
            })
        })
        .collect()
}

#[test]
fn a_cluster_is_read_behind_its_canaries_and_then_followed() {
    let mut bench = Bench::configured(settings());
    assert!(bench.reader.row().connected);
    assert_eq!(bench.reader.row().id, Some(id(2)));
    let out = bench.page(Target::Canaries, &[(&canary(Kind::Nodes), b"t")], false);
    assert_eq!(lists(&out), [Target::Records(Kind::Nodes)], "only what has its canary is read");
    let nodes = Target::Records(Kind::Nodes);
    let out =
        bench.page(nodes, &[(&node_key("a"), &node("a", "10.1.0.0")), (&node_key("b"), &node("b", "10.1.1.0"))], true);
    assert_eq!(rows(&out), ["ListBegin(Nodes)", "+a", "+b"]);
    let Some(Command::List { revision: 10, from, .. }) = out.commands.first() else { panic!("no next page: {out:?}") };
    assert_eq!(*from, [node_key("b").as_bytes(), b"\0"].concat());
    bench.revision = 12;
    let out = bench.page(nodes, &[(&node_key("c"), &node("c", "10.1.2.0"))], false);
    assert_eq!(rows(&out), ["+c", "ListEnd(Nodes)"]);
    let watches_from_11 = |c: &Command| matches!(c, Command::Watch { revision: 11, target, .. } if *target == nodes);
    assert!(out.commands.iter().any(watches_from_11), "one after the revision of the first page: {out:?}");
    bench.give(Input::Watching(nodes, bench.header()));
    let out = bench.events(nodes, vec![deleted(&node_key("a")), written(&node_key("d"), &node("d", "10.1.3.0"))]);
    assert_eq!(rows(&out), ["-a", "+d"]);
    let out = bench
        .events(Target::Canaries, vec![written(&canary(Kind::Nodes), b"t"), written(&canary(Kind::Services), b"t")]);
    assert_eq!(lists(&out), [Target::Records(Kind::Services)], "each kind is started once");
    for kind in [Kind::Identities, Kind::Endpoints] {
        assert_eq!(lists(&bench.events(Target::Canaries, vec![written(&canary(kind), b"t")])), [Target::Records(kind)]);
        assert!(!rows(&bench.page(Target::Records(kind), &[], false)).contains(&"Fresh".to_owned()));
    }
    let out = bench.page(Target::Records(Kind::Services), &[], false);
    assert_eq!(rows(&out), ["ListBegin(Services)", "ListEnd(Services)", "Fresh"]);
    assert!(bench.reader.row().is_ready());
    assert_eq!(bench.problem(), "");
}

#[test]
fn without_canaries_everything_is_read_at_once() {
    let mut bench = Bench::connected(settings());
    let out = bench.config(br#"{"id":2,"capabilities":{}}"#);
    assert_eq!(lists(&out), Kind::ALL.map(Target::Records));
}

#[test]
fn the_cache_form_reads_the_cache_prefixes() {
    let mut bench = Bench::connected(settings());
    let out = bench.config(br#"{"id":2,"capabilities":{"cached":true}}"#);
    let from: Vec<String> = out
        .commands
        .iter()
        .filter_map(|command| match command {
            Command::List { from, .. } => Some(String::from_utf8(from.clone()).unwrap()),
            Command::Connect { .. } | Command::Watch { .. } | Command::Claim(_) => None,
        })
        .collect();
    assert_eq!(
        from,
        [
            "cilium/cache/nodes/v1/east/",
            "cilium/cache/identities/v1/east/id/",
            "cilium/cache/ip/v1/east/",
            "cilium/cache/services/v1/east/"
        ]
    );
    assert!(bench.reader.row().cached);
}

#[test]
fn a_missing_config_is_a_problem_asked_for_again_and_then_a_reason_to_reconnect() {
    let mut bench = Bench::connected(settings());
    let out = bench.page(Target::Config, &[], false);
    assert!(out.commands.iter().any(|c| matches!(c, Command::Watch { target: Target::Config, .. })));
    assert!(bench.problem().starts_with("cluster-config of east absent in its store"), "{}", bench.problem());
    bench.give(Input::Watching(Target::Config, bench.header()));
    let out = bench.pass(Duration::from_secs(2));
    assert_eq!(lists(&out), [Target::Config], "asked for again before the answer only once");
    let mut asked = 1;
    while bench.at < Duration::from_secs(170) {
        bench.page(Target::Config, &[], false);
        bench.events(Target::Heartbeat, vec![written(".", b"")]);
        asked += lists(&bench.pass(Duration::from_secs(5))).len();
    }
    assert!((8..=30).contains(&asked), "{asked}");
    let out = bench.pass(Duration::from_secs(20));
    assert!(reconnects(&out));
    assert!(bench.problem().starts_with("cluster-config of east absent"), "{}", bench.problem());
    assert!(rows(&out).contains(&"stale".to_owned()));
}

#[test]
fn a_config_that_appears_is_seen_by_its_watch() {
    let mut bench = Bench::connected(settings());
    bench.page(Target::Config, &[], false);
    bench.give(Input::Watching(Target::Config, bench.header()));
    let out = bench.events(Target::Config, vec![written("cilium/cluster-config/east", CONFIG)]);
    assert_eq!(out.commands, [Command::Claim(id(2))]);
    let out = bench.give(Input::Claimed(Ok(())));
    assert_eq!(lists(&out), [Target::Canaries]);
    assert_eq!(bench.problem(), "");
}

#[test]
fn refused_configs_are_problems_and_nothing_is_read() {
    for (value, says) in [
        (&br#"{"id":1,"capabilities":{}}"#[..], "own cluster"),
        (br#"{"capabilities":{}}"#, "no cluster id"),
        (br#"{"id":300,"capabilities":{}}"#, "ids 1 to 255"),
        (br#"{"id":2,"capabilities":{"endpointSlicesExportMode":"new"}}"#, "mode"),
        (b"{", "unreadable"),
    ] {
        let mut bench = Bench::connected(settings());
        let out = bench.config(value);
        assert_eq!(lists(&out), []);
        assert!(bench.problem().contains(says), "{}", bench.problem());
        assert_eq!(bench.reader.row().id, None);
        // Healed by the watch.
        bench.events(Target::Config, vec![written("cilium/cluster-config/east", CONFIG)]);
        bench.give(Input::Claimed(Ok(())));
        assert_eq!(bench.problem(), "");
    }
}

#[test]
fn an_id_that_another_cluster_has_is_refused_until_it_is_free() {
    let mut bench = Bench::connected(settings());
    bench.page(Target::Config, &[("cilium/cluster-config/east", CONFIG)], false);
    let out = bench.give(Input::Claimed(Err("north".parse().unwrap())));
    assert_eq!(lists(&out), []);
    assert!(bench.problem().contains("already used by north"), "{}", bench.problem());
    assert_eq!(lists(&bench.pass(Duration::from_secs(1))), [Target::Config]);
    let out = bench.page(Target::Config, &[("cilium/cluster-config/east", CONFIG)], false);
    assert_eq!(out.commands, [Command::Claim(id(2))]);
    bench.give(Input::Claimed(Ok(())));
    assert_eq!(bench.problem(), "");
}

#[test]
fn another_cluster_id_drops_what_was_learnt() {
    let mut bench = Bench::ready(settings());
    let out = bench.events(
        Target::Config,
        vec![written("cilium/cluster-config/east", br#"{"id":3,"capabilities":{"syncedCanaries":true}}"#)],
    );
    assert!(reconnects(&out) && rows(&out) == ["stale"], "{out:?}");
    bench.give(Input::Connected);
    bench.page(Target::Heartbeat, &[], false);
    let out = bench.config(br#"{"id":3,"capabilities":{"syncedCanaries":true}}"#);
    assert!(matches!(&rows(&out)[..], [drop, accept] if drop == "Drop" && accept.starts_with("Accept(")), "{out:?}");
    assert!(matches!(out.changes.last(), Some(ClusterChange::Peer(row)) if row.id == Some(id(3))));
    // The same holds for rows of before the restart.
    let mut bench = Bench::connected(Settings { known_id: Some(id(9)), ..settings() });
    assert_eq!(rows(&bench.config(CONFIG))[0], "Drop");
}

#[test]
fn a_config_that_goes_or_breaks_later_keeps_what_is_there() {
    for value in [None, Some(&b"{"[..])] {
        let mut bench = Bench::ready(settings());
        let record = Record { key: b"cilium/cluster-config/east".to_vec(), value: value.map(Into::into) };
        let out = bench.events(Target::Config, vec![record]);
        assert!(rows(&out).is_empty() && !reconnects(&out));
        assert!(bench.problem().contains("cluster-config"), "{}", bench.problem());
        assert!(bench.reader.row().is_ready());
        bench.events(Target::Config, vec![written("cilium/cluster-config/east", CONFIG)]);
        assert_eq!(bench.problem(), "");
    }
}

#[test]
fn missing_canaries_are_a_problem_after_a_grace_time() {
    let mut bench = Bench::configured(settings());
    bench.page(Target::Canaries, &[(&canary(Kind::Nodes), b"t")], false);
    assert_eq!(bench.problem(), "");
    bench.pass(Duration::from_secs(6));
    assert!(bench.problem().starts_with("canaries identities/v1, ip/v1, services/v1 of east"), "{}", bench.problem());
    for kind in [Kind::Identities, Kind::Endpoints] {
        bench.events(Target::Canaries, vec![written(&canary(kind), b"t")]);
    }
    assert!(bench.problem().starts_with("canary services/v1 of east is missing"), "{}", bench.problem());
    // Canaries of the other form or another cluster vouch for nothing.
    for key in ["cilium/synced/east/cilium/cache/services/v1", "cilium/synced/north/cilium/state/services/v1", "x"] {
        assert_eq!(lists(&bench.events(Target::Canaries, vec![written(key, b"t")])), []);
    }
    assert_eq!(lists(&bench.events(Target::Canaries, vec![deleted(&canary(Kind::Services))])), []);
}

#[test]
fn another_store_id_means_reading_all_again() {
    let mut bench = Bench::ready(settings());
    bench.store = 0xdef;
    let out = bench.events(Target::Heartbeat, vec![written(".", b"")]);
    assert!(reconnects(&out));
    assert_eq!(rows(&out), ["stale"]);
    assert!(bench.problem().contains("changed from abc to def"), "{}", bench.problem());
    bench.give(Input::Connected);
    assert_eq!(bench.reader.row().reconnections, 1);
    // Without canaries in the new store nothing is swept.
    bench.page(Target::Heartbeat, &[], false);
    bench.config(CONFIG);
    let out = bench.page(Target::Canaries, &[], false);
    assert!(rows(&out).is_empty());
    let out = bench.events(Target::Canaries, vec![written(&canary(Kind::Nodes), b"t")]);
    assert_eq!(lists(&out), [Target::Records(Kind::Nodes)]);
    assert_eq!(rows(&bench.page(Target::Records(Kind::Nodes), &[], false)), ["ListBegin(Nodes)"]);
}

/// A reader whose store was replaced by one with `nodes`, all kinds listed.
fn replaced(nodes: &[(&str, &[u8])]) -> (Bench, Output) {
    let mut bench = Bench::ready(settings());
    bench.store = 0xdef;
    assert!(reconnects(&bench.events(Target::Heartbeat, vec![written(".", b"")])));
    let out = bench.relist(nodes);
    (bench, out)
}

#[test]
fn rows_of_the_data_before_are_swept_after_a_grace() {
    let nodes = Target::Records(Kind::Nodes);
    let (mut bench, out) = replaced(&[]);
    assert_eq!(
        rows(&out),
        ["ListBegin(Nodes)", "ListBegin(Identities)", "ListBegin(Endpoints)", "ListBegin(Services)", "Fresh"]
    );
    assert!(bench.reader.row().is_ready());
    let kept_until = bench.reader.row().kept_until.expect("rows are kept");
    assert_eq!(kept_until, Timestamp::from_second(60).unwrap());
    // A node that is slow to come back is told before the sweep.
    bench.pass(Duration::from_secs(30));
    let key = node_key("a");
    assert_eq!(rows(&bench.events(nodes, vec![written(&key, &node("a", "10.1.0.0"))])), ["+a"]);
    assert_eq!(rows(&bench.pass(Duration::from_secs(29))), [""; 0]);
    let ends = ["ListEnd(Nodes)", "ListEnd(Identities)", "ListEnd(Endpoints)", "ListEnd(Services)"];
    assert_eq!(rows(&bench.pass(Duration::from_secs(1))), ends);
    assert_eq!(bench.reader.row().kept_until, None);
    // From here on a list of this data is the truth at once.
    bench.give(Input::WatchCompacted(nodes));
    assert_eq!(rows(&bench.page(nodes, &[], false)), ["ListBegin(Nodes)", "ListEnd(Nodes)", "Fresh"]);
}

#[test]
fn a_new_reader_knows_which_data_the_rows_are_from() {
    let before = Bench::ready(settings());
    let mut bench = Bench::new(Settings { listed_from: before.reader.listed_from().clone(), ..settings() });
    bench.store = 0xdef;
    assert!(!rows(&bench.relist(&[])).iter().any(|row| row.starts_with("ListEnd")));
    assert!(bench.reader.row().kept_until.is_some());
}

#[test]
fn a_broken_connection_does_not_prolong_the_grace() {
    let (mut bench, _) = replaced(&[]);
    bench.pass(Duration::from_secs(40));
    let out = bench.give(Input::Lost("reset".into()));
    let aborts = ["ListAbort(Nodes)", "ListAbort(Identities)", "ListAbort(Endpoints)", "ListAbort(Services)", "stale"];
    assert_eq!(rows(&out), aborts);
    assert_eq!(bench.reader.row().kept_until, None);
    bench.relist(&[]);
    let ends = ["ListEnd(Nodes)", "ListEnd(Identities)", "ListEnd(Endpoints)", "ListEnd(Services)"];
    assert_eq!(rows(&bench.pass(Duration::from_secs(20))), ends);
}

#[test]
fn the_grace_counts_from_the_first_list_and_anew_for_every_change_of_data() {
    let mut bench = Bench::ready(settings());
    let ends = ["ListEnd(Nodes)", "ListEnd(Identities)", "ListEnd(Endpoints)", "ListEnd(Services)"];
    for store in [0xdef, STORE, 0xdef] {
        bench.store = store;
        bench.give(Input::Lost("reset".into()));
        bench.give(Input::Connected);
        bench.page(Target::Heartbeat, &[(".", b"")], false);
        bench.config(CONFIG);
        // The new store answers long before anybody may write into it.
        for target in [Target::Heartbeat, Target::Config, Target::Canaries] {
            bench.give(Input::Watching(target, bench.header()));
        }
        for _ in 0..4 {
            bench.pass(Duration::from_secs(25));
            bench.events(Target::Heartbeat, vec![written(".", b"")]);
        }
        let out = bench.list(&[]);
        assert!(!rows(&out).iter().any(|row| row.starts_with("ListEnd")), "{out:?}");
        for target in Target::ALL {
            bench.give(Input::Watching(target, bench.header()));
        }
        assert_eq!(rows(&bench.pass(Duration::from_secs(60))), ends);
    }
}

#[test]
fn a_list_begun_again_within_the_grace_counts_from_its_own_start() {
    let nodes = Target::Records(Kind::Nodes);
    let (mut bench, _) = replaced(&[]);
    assert_eq!(rows(&bench.give(Input::WatchCompacted(nodes))), ["ListAbort(Nodes)"]);
    assert_eq!(rows(&bench.page(nodes, &[], false)), ["ListBegin(Nodes)", "Fresh"]);
    bench.give(Input::Watching(nodes, bench.header()));
    let ends = ["ListEnd(Nodes)", "ListEnd(Identities)", "ListEnd(Endpoints)", "ListEnd(Services)"];
    assert_eq!(rows(&bench.pass(Duration::from_secs(60))), ends);
}

#[test]
fn answers_without_a_store_id_end_the_connection() {
    let mut bench = Bench::new(settings());
    bench.give(Input::Connected);
    bench.store = 0;
    assert!(reconnects(&bench.page(Target::Heartbeat, &[], false)));
}

#[test]
fn compactions_list_again_without_losing_rows() {
    let nodes = Target::Records(Kind::Nodes);
    let mut bench = Bench::ready(settings());
    let out = bench.give(Input::WatchCompacted(nodes));
    assert!(matches!(&out.commands[..], [Command::List { revision: 0, target, .. }] if *target == nodes));
    assert!(rows(&out).is_empty());
    let key = node_key("b");
    assert_eq!(rows(&bench.page(nodes, &[(&key, &node("b", "10.1.1.0"))], true)), ["ListBegin(Nodes)", "+b"]);
    let out = bench.give(Input::ListCompacted(nodes));
    assert_eq!(rows(&out), ["ListAbort(Nodes)"]);
    assert_eq!(lists(&out), [nodes]);
    let out = bench.page(nodes, &[(&key, &node("b", "10.1.1.0"))], false);
    assert_eq!(rows(&out), ["ListBegin(Nodes)", "+b", "ListEnd(Nodes)", "Fresh"]);
    assert!(out.commands.iter().any(|c| matches!(c, Command::Watch { revision: 11, .. })));
}

#[test]
fn a_lost_connection_keeps_rows_as_stale_and_comes_back() {
    let mut bench = Bench::ready(settings());
    bench.give(Input::WatchCompacted(Target::Records(Kind::Endpoints)));
    bench.page(Target::Records(Kind::Endpoints), &[("cilium/state/ip/v1/default/1", b"")], true);
    let out = bench.give(Input::Lost("gone".into()));
    assert_eq!(rows(&out), ["ListAbort(Endpoints)", "stale"]);
    let row = bench.reader.row();
    assert!(!row.connected && !row.is_ready() && row.synced.is_empty() && row.canaries.is_empty());
    assert_eq!((bench.problem(), row.id), ("gone", Some(id(2))));
    assert_eq!(bench.reader.deadline(), None, "the driver is busy");
    let out = bench.give(Input::Lost("still gone".into()));
    assert!(reconnects(&out) && rows(&out).is_empty());
    let out = bench.give(Input::Connected);
    assert_eq!(lists(&out), [Target::Heartbeat, Target::Config]);
    assert_eq!(bench.problem(), "still gone", "until the store has answered");
    bench.page(Target::Heartbeat, &[], false);
    assert_eq!(bench.problem(), "");
    assert_eq!(bench.reader.row().last_failure.as_ref().map(|f| &*f.message), Some("still gone"));
}

#[test]
fn pauses_between_connections_grow_and_are_short_again_after_success() {
    let mut bench = Bench::new(settings());
    let pause = |out: &Output| match &out.commands[..] {
        [Command::Connect { after }] => *after,
        other => panic!("{other:?}"),
    };
    let pauses: Vec<Duration> = (0..12).map(|_| pause(&bench.give(Input::Lost("no".into())))).collect();
    assert!(pauses[0] <= Duration::from_millis(200));
    assert!(pauses[11] >= Duration::from_secs(15) && pauses[11] <= Duration::from_secs(30));
    let mut bench = Bench::ready(settings());
    assert!(pause(&bench.give(Input::Lost("no".into()))) <= Duration::from_millis(200));
}

#[test]
fn a_silent_heartbeat_ends_the_connection_after_three_checks() {
    let mut bench = Bench::ready(settings());
    for target in Target::ALL {
        bench.give(Input::Watching(target, bench.header()));
    }
    let out = bench.pass(Duration::from_secs(119));
    assert!(!reconnects(&out));
    bench.events(Target::Heartbeat, vec![written(".", b"")]);
    // A deleted heartbeat (its lease ran out) is no heartbeat.
    bench.pass(Duration::from_secs(60));
    bench.events(Target::Heartbeat, vec![deleted("cilium/.heartbeat")]);
    let out = bench.pass(Duration::from_secs(67));
    assert!(!reconnects(&out), "two failing checks at most");
    assert!(bench.problem().starts_with("heartbeat of east has been silent"), "{}", bench.problem());
    let out = bench.pass(Duration::from_secs(10));
    assert!(reconnects(&out));
    assert!(rows(&out).contains(&"stale".to_owned()));
}

#[test]
fn a_heartbeat_in_time_heals_the_check() {
    let mut bench = Bench::ready(settings());
    for target in Target::ALL {
        bench.give(Input::Watching(target, bench.header()));
    }
    while bench.problem().is_empty() {
        bench.pass(Duration::from_secs(1));
    }
    bench.events(Target::Heartbeat, vec![written(".", b"")]);
    assert_eq!(bench.problem(), "");
    assert!(!reconnects(&bench.pass(Duration::from_secs(110))));
}

#[test]
fn refused_records_are_told_and_healed_while_others_stay() {
    let nodes = Target::Records(Kind::Nodes);
    let mut bench = Bench::ready(settings());
    let out = bench.events(
        nodes,
        vec![
            written(&node_key("bad"), b"{"),
            written(&node_key("own"), &node("own", "10.0.1.0")),
            written(&node_key("far"), &node("far", "10.9.0.0")),
            written(&node_key("ok"), &node("ok", "10.1.4.0")),
            written(&node_key("huge"), &vec![b' '; VALUE_MAX + 1]),
        ],
    );
    assert_eq!(rows(&out), ["refused bad", "refused own", "refused far", "+ok", "refused huge"]);
    let out = bench.events(nodes, vec![written(&node_key("bad"), &node("bad", "10.1.5.0")), deleted(&node_key("far"))]);
    assert_eq!(rows(&out), ["healed bad", "+bad", "healed far", "-far"]);
}

#[test]
fn refusals_remembered_are_bounded() {
    let nodes = Target::Records(Kind::Nodes);
    let mut bench = Bench::ready(settings());
    let many = (0..REJECTED_KEYS_MAX + 10).map(|n| written(&node_key(&format!("n{n}")), b"{")).collect();
    assert_eq!(rows(&bench.events(nodes, many)).len(), REJECTED_KEYS_MAX + 10);
    let healed = (0..REJECTED_KEYS_MAX + 10).map(|n| deleted(&node_key(&format!("n{n}")))).collect();
    let healed = rows(&bench.events(nodes, healed));
    assert_eq!(healed.iter().filter(|row| row.starts_with("healed")).count(), REJECTED_KEYS_MAX);
}

#[test]
fn a_refused_range_is_a_problem_of_its_own_and_tried_again() {
    let services = Target::Records(Kind::Services);
    let mut bench = Bench::ready(settings());
    let out = bench.give(Input::Refused(services, "permission denied".into()));
    assert!(rows(&out).is_empty() && !reconnects(&out));
    assert_eq!(bench.problem(), "failed to read services of east: permission denied");
    assert!(!bench.reader.row().is_ready());
    for target in Target::ALL {
        bench.give(Input::Watching(target, bench.header()));
    }
    let out = bench.pass(Duration::from_secs(16));
    assert_eq!(lists(&out), [services]);
    let out = bench.page(services, &[], false);
    assert_eq!(rows(&out), ["ListBegin(Services)", "ListEnd(Services)", "Fresh"]);
    assert_eq!(bench.problem(), "");
}

#[test]
fn pages_that_are_too_large_shrink() {
    let nodes = Target::Records(Kind::Nodes);
    let mut bench = Bench::ready(settings());
    bench.give(Input::WatchCompacted(nodes));
    let out = bench.give(Input::PageTooLarge(nodes));
    assert!(matches!(&out.commands[..], [Command::List { limit: 1, .. }]));
    bench.give(Input::PageTooLarge(nodes));
    assert!(bench.problem().contains("larger than a message"), "{}", bench.problem());
}

/// Rows stay, the operator is told, and the other kinds go on.
#[test]
fn a_list_without_end_is_given_up_and_tried_again() {
    let identities = Target::Records(Kind::Identities);
    let mut bench = Bench::ready(settings());
    for target in Target::ALL {
        bench.give(Input::Watching(target, bench.header()));
    }
    bench.give(Input::WatchCompacted(identities));
    let key = |n: usize| format!("cilium/state/identities/v1/id/{n:07}");
    bench.page(identities, &[(&key(0), b"k8s:a=b;")], true);
    // What would be many pages, in one: it is counted before it is read.
    let records = (1..=LIST_RECORDS_MAX).map(|n| written(&key(n), b"")).collect();
    let out = bench.give(Input::Page { target: identities, header: bench.header(), count: 0, records, more: true });
    assert_eq!(rows(&out), ["ListAbort(Identities)"]);
    assert!(out.commands.is_empty(), "no page more: {:?}", out.commands);
    let problem = bench.problem();
    assert!(problem.starts_with("failed to read identities of east: the list has more than 2000000 "), "{problem}");
    assert!(!bench.reader.row().is_ready() && bench.reader.row().connected);
    let out = bench.pass(Duration::from_secs(16));
    assert_eq!(lists(&out), [identities]);
    bench.page(identities, &[], false);
    assert_eq!((bench.problem(), bench.reader.row().is_ready()), ("", true));
}

/// Only the first page is read, and every look comes later than the one before.
#[test]
fn a_list_that_the_store_counts_as_too_long_is_looked_at_less_and_less_often() {
    let identities = Target::Records(Kind::Identities);
    let mut bench = Bench::ready(settings());
    for target in Target::ALL {
        bench.give(Input::Watching(target, bench.header()));
    }
    bench.give(Input::WatchCompacted(identities));
    let first_page = |bench: &Bench| Input::Page {
        target: identities,
        header: bench.header(),
        records: vec![written("cilium/state/identities/v1/id/0000001", b"")],
        count: LIST_RECORDS_MAX + 1,
        more: true,
    };
    let second = Duration::from_secs(1);
    let mut nominal = 15;
    for _ in 0..12 {
        let out = bench.give(first_page(&bench));
        assert!(out.commands.is_empty() && rows(&out).is_empty(), "{:?}", out.commands);
        let problem = bench.problem();
        assert!(problem.starts_with("failed to read identities of east: the list has more than 2000000 "), "{problem}");
        let mut waited = 0;
        while lists(&bench.pass(second)).is_empty() {
            waited += 1;
            // Everything else lives on.
            bench.events(Target::Heartbeat, vec![written(".", b"")]);
        }
        assert!((nominal / 2 - 1..=nominal).contains(&waited), "{waited} s instead of {nominal} s");
        nominal = (2 * nominal).min(3_600);
    }
    bench.page(identities, &[], false);
    assert_eq!((bench.problem(), bench.reader.row().is_ready()), ("", true));
    // What was complete once starts with the short pause again.
    bench.give(Input::Watching(identities, bench.header()));
    bench.give(Input::WatchCompacted(identities));
    bench.give(first_page(&bench));
    assert_eq!(lists(&bench.pass(Duration::from_secs(16))), [identities]);
}

#[test]
fn watches_must_be_confirmed() {
    let mut bench = Bench::ready(settings());
    let out = bench.pass(Duration::from_secs(31));
    assert!(reconnects(&out));
    assert!(bench.problem().contains("was not confirmed within 30 s"), "{}", bench.problem());
}

#[test]
fn a_store_that_lists_out_of_order_is_left() {
    let nodes = Target::Records(Kind::Nodes);
    let mut bench = Bench::ready(settings());
    bench.give(Input::WatchCompacted(nodes));
    let out = bench.page(nodes, &[(&node_key("b"), b"{"), (&node_key("a"), b"{")], false);
    assert!(reconnects(&out));
}

#[test]
fn the_own_cluster_is_read_without_a_claim_and_without_our_node() {
    let mut own = Settings { cluster: "west".parse().unwrap(), ..settings() };
    own.own_pod_cidrs.clear();
    let mut bench = Bench::new(own);
    bench.give(Input::Connected);
    bench.page(Target::Heartbeat, &[], false);
    let config = br#"{"id":1,"capabilities":{}}"#;
    let out = bench.page(Target::Config, &[("cilium/cluster-config/west", config)], false);
    assert_eq!(lists(&out), Kind::ALL.map(Target::Records));
    let west = |name: &str| {
        let value = String::from_utf8(node(name, "10.0.0.0")).unwrap();
        value.replace("east", "west").replace(r#""ClusterID":2"#, r#""ClusterID":1"#).into_bytes()
    };
    let nodes = Target::Records(Kind::Nodes);
    let (a, b) = ("cilium/state/nodes/v1/west/west-control", "cilium/state/nodes/v1/west/west-worker");
    let out = bench.page(nodes, &[(a, &west("west-control")), (b, &west("west-worker"))], false);
    assert_eq!(rows(&out), ["ListBegin(Nodes)", "+west-control", "ListEnd(Nodes)"]);
    assert!(rows(&bench.events(nodes, vec![deleted(b)])).is_empty());
}

/// Every input in every state: nothing panics, late answers change nothing, and the reader stays alive.
#[test]
fn every_input_in_every_state() {
    let inputs = || {
        let header = Header { store_id: STORE, revision: 10 };
        let mut inputs = vec![Input::Connected, Input::Lost("lost".into()), Input::Tick, Input::Claimed(Ok(()))];
        inputs.push(Input::Claimed(Err("north".parse().unwrap())));
        for target in Target::ALL {
            for more in [false, true] {
                inputs.push(Input::Page { target, header, records: Vec::new(), count: 0, more });
                inputs.push(Input::Page { target, header, records: vec![written("zzz", b"x")], count: 1, more });
            }
            inputs.push(Input::ListCompacted(target));
            inputs.push(Input::PageTooLarge(target));
            inputs.push(Input::Watching(target, header));
            inputs.push(Input::Events { target, header, records: vec![written("zzz", b"x"), deleted("zzz")] });
            inputs.push(Input::WatchCompacted(target));
            inputs.push(Input::Refused(target, "no".into()));
        }
        inputs
    };
    type Build = fn() -> Bench;
    let states: [(&str, Build); 6] = [
        ("connecting", || Bench::new(settings())),
        ("connected", || Bench::connected(settings())),
        ("without config", || {
            let mut bench = Bench::connected(settings());
            bench.page(Target::Config, &[], false);
            bench
        }),
        ("claiming", || {
            let mut bench = Bench::connected(settings());
            bench.page(Target::Config, &[("cilium/cluster-config/east", CONFIG)], false);
            bench
        }),
        ("waiting for canaries", || Bench::configured(settings())),
        ("ready", || Bench::ready(settings())),
    ];
    for (state, build) in states {
        for input in inputs() {
            let mut bench = build();
            let rows_before = bench.reader.row().clone();
            let out = bench.give(input.clone());
            let alive = bench.reader.deadline().is_some() || reconnects(&out) || state == "connecting";
            assert!(alive, "{state}: {input:?} leaves the reader without a deadline");
            if state == "connecting" && !matches!(input, Input::Connected | Input::Lost(_)) {
                assert!(out.commands.is_empty() && out.changes.is_empty(), "{input:?} is late");
                assert_eq!(*bench.reader.row(), rows_before);
            }
            for second in inputs() {
                bench.give(second);
            }
        }
    }
    let mut idle = Reader::new(settings());
    for input in inputs() {
        let mut out = Output::default();
        idle.handle(input, Now { elapsed: Duration::ZERO, wall: Timestamp::UNIX_EPOCH }, &mut out);
        assert!(out.commands.is_empty());
    }
}
