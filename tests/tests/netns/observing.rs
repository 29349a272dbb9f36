//! What people see of connections: flows while they happen, and the maps while nobody runs.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    meshes::{Admin, eventually, rows},
    service_traffic::{WEST_SERVICE, open, up},
    services::{EAST, Services, WEST},
};

const NODE: &str = "west-worker";
/// A record of a prefix in the store of the other cluster.
const PREFIX: &str = "cilium/state/ip/v1/default/10.1.151.0/24";

/// Flows that a command printed, one a line; what it says besides is in the output of one that was followed.
fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn observe(lab: &Services, words: &[&str]) -> Vec<Value> {
    let command: Vec<&str> = ["meshd", "observe", "-o", "json", "--last", "100"].iter().chain(words).copied().collect();
    lines(&lab.mesh.node(NODE).exec(&command).expect("meshd runs").ok().expect("flows"))
}

#[test]
fn connections_and_drops_are_told_with_names_and_maps_are_shown_without_a_daemon() {
    let (lab, webpods) = up();
    let node = lab.mesh.node(NODE);
    let pod = lab.mesh.node("west-worker-webpod");
    let live = node.spawn(&["meshd", "observe", "--follow", "-o", "json", "--workload", "default/webpod-2"]);
    let live = live.expect("somebody follows");
    let follows = || lab.mesh.ask(NODE, &["status"])["datapath"]["flows"]["followers"] == 1;
    assert!(eventually(follows), "{}", lab.mesh.ask(NODE, &["status"])["datapath"]);

    // What the other cluster says of a prefix is known of the addresses inside that nobody has.
    let store = Admin::embedded(lab.mesh.node("east-control-plane"));
    let prefix = json!({"IP": "10.1.151.0", "Mask": "////AA==", "HostIP": "172.18.0.200", "ID": 131_500, "Key": 0, "Metadata": ""});
    store.put(PREFIX, &prefix.to_string());
    let known =
        || lab.mesh.node(NODE).exec(&["meshd", "bpf", "ipcache", "get", "10.1.151.7", "-o", "json"]).expect("runs");
    assert!(eventually(|| known().success()), "{:?}, {}", known(), lab.mesh.ask(NODE, &["get", "rejected"]));
    let row = &known().json().expect("JSON")[0];
    assert_eq!(row, &json!({"address": "10.1.151.0/24", "identity": 131_500, "cluster_id": 2, "flags": []}));
    let all = lab.mesh.ask(NODE, &["bpf", "ipcache"]);
    assert!(rows(&all).contains(row) && rows(&all).len() > 1, "{all}");
    store.delete(PREFIX);
    assert!(eventually(|| !known().success()), "{:?}", known());

    // From a workload through the service to a backend of the other cluster.
    let (stream, backend) = loop {
        let (stream, backend, _) = open(&pod, WEST_SERVICE);
        if backend.to_string().starts_with("10.1.") {
            break (stream, backend);
        }
    };
    let client = stream.local_addr().expect("an address");
    let of = |kind: &str| {
        let port = client.port().to_string();
        let told =
            observe(&lab, &["--type", kind, "--port", &port, "--service", "default/webpod", "--cluster", "east"]);
        told.into_iter().find(|flow| flow["is_reply"] == false)
    };
    assert!(eventually(|| of("new").is_some()), "{:?}", observe(&lab, &[]));
    let new = of("new").expect("it was there");
    for (at, expected) in [
        ("/verdict", json!("forwarded")),
        ("/reason", json!("new_connection")),
        ("/direction", json!("egress")),
        ("/place", json!("from_workload")),
        ("/protocol", json!("tcp")),
        ("/tcp_flags", json!(["SYN"])),
        ("/node", json!(NODE)),
        ("/source/address", json!("10.0.1.10")),
        ("/source/cluster", json!("west")),
        ("/source/namespace", json!("default")),
        ("/source/workload", json!("webpod-2")),
        ("/destination/address", json!("10.2.0.80")),
        ("/destination/port", json!(80)),
        ("/translated/destination/address", json!(backend.to_string())),
        ("/translated/destination/cluster", json!("east")),
        ("/service/name", json!("webpod")),
    ] {
        assert_eq!(new.pointer(at), Some(&expected), "{at} of {new}");
    }
    let names = new.pointer("/translated/destination/workload").and_then(Value::as_str);
    assert!(names.is_some_and(|name| name.starts_with("webpod-")), "{new}");
    assert!(new["link"].is_string() && new["source"]["identity"].is_u64(), "{new}");
    let text = node.exec(&["meshd", "observe", "--type", "new"]).expect("meshd runs").stdout;
    assert!(text.contains("default/webpod-2 (10.0.1.10:"), "{text}");
    assert!(text.contains("-> default/webpod (10.2.0.80:80) => default/webpod-"), "{text}");

    // The tables say who that is: webpods of both clusters have this name.
    let endpoints = lab.mesh.ask(NODE, &["get", "endpoints", "webpod-2"]);
    let own = rows(&endpoints).iter().find(|row| row["cluster"] == "west").expect("the own workload");
    assert_eq!(
        (&own["address"], &own["identity"]),
        (&json!("10.0.1.10/32"), &new["source"]["identity"]),
        "{endpoints}"
    );
    let table = node.exec(&["meshd", "get", "endpoints"]).expect("meshd runs").stdout;
    assert!(table.starts_with("ADDRESS ") && table.contains("default/webpod-2"), "{table}");

    // The maps say the same of it, whether somebody runs or not.
    let at = client.to_string();
    let known = |when: &str| {
        let answer = lab.mesh.ask(NODE, &["bpf", "ct", "get", &at]);
        let forward = rows(&answer)
            .iter()
            .find(|row| row["direction"] == "forward")
            .unwrap_or_else(|| panic!("{when}: {answer}"));
        assert_eq!(forward["destination"], "10.2.0.80:80", "{when}");
        assert_eq!(forward["new_destination"], format!("{backend}:80"), "{when}");
        assert!(rows(&answer).iter().any(|row| row["direction"] == "reply"), "{when}: {answer}");
    };
    known("while it runs");
    lab.mesh.daemon(NODE).kill9().expect("killed");
    known("while nobody runs");
    let frontends = lab.mesh.ask(NODE, &["bpf", "lb", "get", "10.2.0.80:80"]);
    let frontend = rows(&frontends).iter().find(|row| row["scope"] == "internal").expect("a frontend");
    let states: Vec<&Value> = rows(&frontend["backends"]).iter().map(|backend| &backend["state"]).collect();
    assert_eq!(states, [&json!("active"); 4], "{frontends}");
    let identity = lab.mesh.ask(NODE, &["bpf", "ipcache", "get", "10.0.1.10"]);
    assert_eq!((&identity[0]["identity"], &identity[0]["cluster_id"]), (&new["source"]["identity"], &json!(1)));
    assert_eq!(identity[0]["flags"], json!(["local"]));
    for (words, said) in [
        (["observe", "--last", "1"].as_slice(), "failed to connect to the daemon"),
        (&["bpf", "lb", "flush", "--force"], "the daemon keeps it"),
        (&["bpf", "ct", "flush"], "hint: `meshd bpf ct flush --force`"),
        (&["bpf", "ct", "get", "192.0.2.77"], "nothing in ct has this address"),
    ] {
        let command: Vec<&str> = ["meshd"].iter().chain(words).copied().collect();
        let output = node.exec(&command).expect("meshd runs");
        assert!(!output.success() && output.stderr.contains(said), "{words:?}: {output:?}");
    }
    let table = node.exec(&["meshd", "bpf", "ct"]).expect("meshd runs").stdout;
    assert!(table.starts_with("PROTOCOL   SOURCE ") && table.contains(&at), "{table}");
    // Whoever followed is told that the daemon went.
    let told = live.finish(Duration::from_secs(10)).expect("it ends");
    let told_live = lines(&told.stdout);
    let is_told = |flow: &Value| flow["type"] == "new" && flow["source"]["port"] == client.port();
    assert!(told_live.iter().any(is_told), "{told:?}");
    assert!(!told.success() && (told.stdout + &told.stderr).contains("error: "), "it says that the daemon went");
    lab.mesh.daemon(NODE).start().expect("started");

    // Its end is told by the next daemon, who knows its service by name as well.
    let ready =
        || lab.mesh.ask(NODE, &["status"])["datapath"]["programs"].as_array().is_some_and(|list| !list.is_empty());
    assert!(eventually(ready), "{}", lab.mesh.log(NODE));
    lab.wait(&[NODE], &super::services::ALL_BACKENDS);
    drop(stream);
    assert!(eventually(|| of("close").is_some()), "{:?}", observe(&lab, &[]));

    // Nobody answers any more: that is told as it happens.
    let live = node.spawn(&["meshd", "observe", "-f", "-o", "json", "--verdict", "dropped"]).expect("somebody follows");
    assert!(eventually(follows), "{}", lab.mesh.ask(NODE, &["status"])["datapath"]);
    for cluster in [WEST, EAST] {
        lab.edit(&cluster, "labels: {app: webpod}", "labels: {app: other}");
    }
    let to: SocketAddr = WEST_SERVICE.parse().expect("an address");
    let client = lab.mesh.node("west-worker-client");
    let dropped = || {
        client.within(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err()).expect("inside")
            && lines(&live.so_far().expect("its output")).iter().any(|flow| flow["reason"] == "no_backend")
    };
    assert!(eventually(dropped), "{:?}", live.so_far());
    let told = live.stop(Signal::SIGINT, Duration::from_secs(10)).expect("it ends");
    assert!(told.success(), "an interrupted reader has what it wanted: {told:?}");
    let drop = lines(&told.stdout).into_iter().find(|flow| flow["reason"] == "no_backend").expect("a drop");
    assert_eq!((&drop["type"], &drop["service"]["name"]), (&json!("drop"), &json!("webpod")), "{drop}");
    assert_eq!((&drop["source"]["address"], &drop["translated"]), (&json!("10.0.1.20"), &Value::Null), "{drop}");
    webpods.stop();
    lab.mesh.finish();
}
