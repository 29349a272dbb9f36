//! Clusters that publish endpoint slices and no JSON records of services.

use super::*;
use crate::{
    clustermesh::endpointslice::{self, EndpointSlice, SERVICE_NAME_LABEL, SliceEndpoint, SlicePort},
    observed::{Labels, Protocol},
};

const SLICES: Target = Target::Records(Kind::Services);
const CONFIG: &[u8] =
    br#"{"id":2,"capabilities":{"syncedCanaries":true,"endpointSlicesExportMode":"endpointslices-only"}}"#;

fn key(name: &str) -> String {
    format!("cilium/state/endpointslices/v1/east/default/{name}")
}

fn value(name: &str, service: &str, address: &str) -> Vec<u8> {
    let slice = EndpointSlice {
        cluster_id: id(2),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        labels: Labels::of_node([(SERVICE_NAME_LABEL, service)]),
        ipv4: true,
        endpoints: vec![SliceEndpoint { addresses: vec![address.parse().unwrap()], ..SliceEndpoint::default() }],
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: Some(80), app_protocol: None }],
    };
    endpointslice::encode(&settings().cluster, &slice)
}

fn slice(name: &str, service: &str, address: &str) -> Record {
    written(&key(name), &value(name, service, address))
}

/// What is told of services and of refused records.
fn told(out: &Output) -> Vec<String> {
    let text = |change: &ClusterChange| match change {
        ClusterChange::Service(name, Some(row)) => {
            let backends: Vec<String> = row.backends.keys().map(ToString::to_string).collect();
            Some(format!("+{} {}", name.name, backends.join(" ")))
        }
        ClusterChange::Service(name, None) => Some(format!("-{}", name.name)),
        ClusterChange::Kept(key) => Some(format!("kept {key:?}").split(['"', '(']).next().unwrap_or_default().into()),
        ClusterChange::Rejected(key, Some(row)) => Some(format!("refused {key}: {}", row.reason)),
        ClusterChange::Rejected(key, None) => Some(format!("healed {key}")),
        ClusterChange::ListEnd(Kind::Services) => Some("end".to_owned()),
        _ => None,
    };
    out.changes.iter().filter_map(text).collect()
}

const CANARY: &str = "cilium/synced/east/cilium/state/endpointslices/v1";

/// Configured, and everything but services is listed; the canaries of slices are among those that are there, or not.
fn bench(has_slices: bool) -> Bench {
    let mut bench = Bench::connected(settings());
    bench.config(CONFIG);
    canaries(&mut bench, has_slices);
    for kind in [Kind::Nodes, Kind::Identities, Kind::Endpoints] {
        bench.page(Target::Records(kind), &[], false);
    }
    bench
}

fn canaries(bench: &mut Bench, has_slices: bool) -> Output {
    let mut keys = [Kind::Nodes, Kind::Identities, Kind::Endpoints].map(canary).to_vec();
    keys.extend(has_slices.then(|| CANARY.to_owned()));
    keys.sort_unstable();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"t"[..])).collect();
    bench.page(Target::Canaries, &records, false)
}

#[test]
fn they_are_read_when_their_canary_is_there() {
    let mut bench = bench(false);
    bench.pass(Duration::from_secs(6));
    assert_eq!(
        bench.problem(),
        "canary endpointslices/v1 of east is missing: its control plane has not finished writing these records"
    );
    // JSON records, should there be any, are not what the cluster announces.
    let out = bench.events(Target::Canaries, vec![written(&canary(Kind::Services), b"t")]);
    assert_eq!(lists(&out), []);
    let out = bench.events(Target::Canaries, vec![written(CANARY, b"t")]);
    let [Command::List { target: SLICES, from, .. }] = &out.commands[..] else { panic!("no list: {out:?}") };
    assert_eq!(String::from_utf8_lossy(from), "cilium/state/endpointslices/v1/east/");

    // Nothing is told before the list is complete.
    let first = value("a", "api", "10.1.0.1");
    let out = bench.page(SLICES, &[(&key("a"), &first)], true);
    assert!(told(&out).is_empty(), "{out:?}");
    let out = bench.page(SLICES, &[(&key("b"), &value("b", "api", "10.1.0.2"))], false);
    assert_eq!(told(&out), ["+api 10.1.0.1 10.1.0.2", "end"]);
    assert!(bench.reader.row().is_ready(), "{:?}", bench.reader.row());
    assert_eq!(bench.problem(), "");

    let out = bench.events(SLICES, vec![slice("c", "api", "10.1.0.3"), slice("d", "other", "10.1.0.4")]);
    assert_eq!(told(&out), ["+api 10.1.0.1 10.1.0.2 10.1.0.3", "+other 10.1.0.4"]);
    let out = bench.events(SLICES, vec![deleted(&key("d")), deleted(&key("unknown"))]);
    assert_eq!(told(&out), ["-other"]);
}

#[test]
fn bad_ones_are_named_and_take_nothing_back() {
    let mut bench = bench(true);
    // What an earlier run knew of a service stays while one of its slices cannot be read.
    let (far, good) = (value("a", "api", "192.0.2.1"), value("b", "api", "10.1.0.2"));
    let out = bench.page(SLICES, &[(&key("a"), &far), (&key("b"), &good), (&key("junk"), b"junk")], false);
    let lines = told(&out);
    assert!(lines[0].starts_with(&format!("refused {}: addresses 192.0.2.1", key("a"))), "{lines:?}");
    assert!(lines[1].starts_with(&format!("refused {}: malformed zstd frame", key("junk"))), "{lines:?}");
    assert_eq!(lines[2..], ["kept Service", "end"]);
    let out = bench.events(SLICES, vec![slice("a", "api", "10.1.0.1"), deleted(&key("junk"))]);
    assert_eq!(
        told(&out),
        [format!("healed {}", key("a")), format!("healed {}", key("junk")), "+api 10.1.0.1 10.1.0.2".to_owned()]
    );
    // What a slice said before it was damaged stays.
    let out = bench.events(SLICES, vec![written(&key("a"), b"junk")]);
    let lines = told(&out);
    assert_eq!((lines.len(), &*lines[1]), (2, "+api 10.1.0.1 10.1.0.2"), "{lines:?}");
    // A slice that says of no service whose it is, and keys that are none.
    let foreign = written("cilium/state/endpointslices/v1/north/default/x", b"{");
    let out = bench.events(SLICES, vec![foreign, written(&key("b/c"), b"{"), deleted(&key("b/c"))]);
    let lines = told(&out);
    assert!(lines[0].contains("north") && lines[1].starts_with("refused"), "{lines:?}");
    assert!(lines[2].starts_with("healed"), "{lines:?}");
}

#[test]
fn what_a_new_list_lacks_goes_at_its_end_and_not_before() {
    let mut bench = bench(true);
    let (a, b, c) = (value("a", "api", "10.1.0.1"), value("b", "api", "10.1.0.2"), value("c", "old", "10.1.0.3"));
    bench.page(SLICES, &[(&key("a"), &a), (&key("b"), &b), (&key("c"), &c)], false);
    bench.give(Input::WatchCompacted(SLICES));
    assert!(told(&bench.page(SLICES, &[(&key("a"), &a)], true)).is_empty());
    assert_eq!(told(&bench.page(SLICES, &[], false)), ["+api 10.1.0.1", "-old", "end"]);

    // A store that came back with other data: for a while both are believed.
    bench.give(Input::Lost("gone".into()));
    bench.store += 1;
    bench.give(Input::Connected);
    bench.page(Target::Heartbeat, &[(".", b"")], false);
    bench.config(CONFIG);
    canaries(&mut bench, true);
    let out = bench.page(SLICES, &[(&key("b"), &b)], false);
    assert_eq!(told(&out), ["+api 10.1.0.1 10.1.0.2"]);
    for target in Target::ALL {
        bench.give(Input::Watching(target, bench.header()));
    }
    assert_eq!(told(&bench.pass(Duration::from_secs(61))), ["+api 10.1.0.2", "end"]);
}

#[test]
fn a_cluster_that_writes_json_again_is_read_so() {
    let mut bench = bench(true);
    bench.page(SLICES, &[(&key("a"), &value("a", "api", "10.1.0.1"))], false);
    let both = br#"{"id":2,"capabilities":{"endpointSlicesExportMode":"services-and-endpointslices"}}"#;
    let out = bench.events(Target::Config, vec![written("cilium/cluster-config/east", both)]);
    assert!(reconnects(&out));
    bench.give(Input::Connected);
    bench.page(Target::Heartbeat, &[(".", b"")], false);
    let out = bench.config(both);
    let of_services = |command: &Command| matches!(command, Command::List { target: SLICES, from, .. } if from.starts_with(b"cilium/state/services/"));
    assert!(out.commands.iter().any(of_services), "{out:?}");
    let json = br#"{"cluster":"east","namespace":"default","name":"api","backends":{"10.1.0.7":{"http":{"Protocol":"TCP","Port":80}}},"shared":true,"clusterID":2}"#;
    let out = bench.page(SLICES, &[("cilium/state/services/v1/east/default/api", json)], false);
    assert_eq!(told(&out), ["+api 10.1.0.7", "end"]);
}
