//! What a service's configuration says about who answers, by real connections: policies, addresses from outside, weights, zones, the
//! smallest number of own backends, and backends that leave.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use lab::Node;

use super::{
    meshes::eventually,
    service_traffic::{WEST_SERVICE, ask, ask_udp, assert_seen, backends, echo, open, packets, up, wait_open},
    services::{ALL_BACKENDS, EAST, EAST_BACKENDS, Services, WEST, WEST_BACKENDS},
};

/// The node that is asked, its backend and its client.
const NODE: &str = "west-worker";
const OWN: &str = "10.0.1.10";
/// The other node of the cluster, and its backend.
const OTHER_NODE: &str = "west-control-plane";
const OTHER: &str = "10.0.0.10";
/// What west's configurations say of the service.
const SELECTOR: &str = "      selector: {app: webpod}\n";
const GLOBAL: &str = "      global: true\n";
/// How long a connection that must not come about is waited for.
const BRIEF: Duration = Duration::from_millis(300);

fn meets(from: &Node, to: &str, expected: &[&str]) {
    let is = || backends(&ask(from, to, 60)) == expected;
    assert!(eventually(is), "{} meets {:?} at {to}, not {expected:?}", from.name(), ask(from, to, 60));
}

/// Waits until nobody answers, and the node has counted why.
fn meets_nobody(lab: &Services, from: &Node, to: &str) {
    let before = packets(lab, NODE, "no_backend");
    let address: SocketAddr = to.parse().expect("an address");
    let is_refused = || {
        from.within(|| TcpStream::connect_timeout(&address, BRIEF).is_err()).expect("inside")
            && packets(lab, NODE, "no_backend") > before
    };
    assert!(eventually(is_refused), "somebody answers {} at {to}", from.name());
}

/// Demands that backends got their shares of so many connections, within six standard deviations of a fair choice.
fn assert_shares(answers: &BTreeMap<(String, String), usize>, weights: &[(&str, f64)]) {
    let all = answers.values().sum::<usize>() as f64;
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    assert_eq!(backends(answers), weights.iter().map(|(backend, _)| *backend).collect::<Vec<_>>(), "{answers:?}");
    for (((own, _), count), (_, weight)) in answers.iter().zip(weights) {
        let part = weight / sum;
        let most = 6.0 * (all * part * (1.0 - part)).sqrt();
        assert!(
            (*count as f64 - all * part).abs() <= most,
            "{own}: {count} of {all}, not {part} ± {most}: {answers:?}"
        );
    }
}

#[test]
fn local_policies_keep_connections_on_the_node_they_meet() {
    const PORT: &str = "172.18.0.5:30080";
    const OTHER_PORT: &str = "172.18.0.4:30080";
    const EXTERNAL: &str = "198.51.100.90:80";
    let (lab, webpods) = up();
    let outside = lab.mesh.node("east-worker");
    let [inside, other_inside] = ["west-worker-client", "west-control-plane-client"].map(|pod| lab.mesh.node(pod));
    let route = ["ip", "route", "add", "198.51.100.90", "via", "172.18.0.5"];
    outside.exec(&route).and_then(lab::Output::ok).expect("a route");
    lab.open_node_port(&WEST, &[]);
    lab.edit(&WEST, GLOBAL, &format!("{GLOBAL}      external_ips: [198.51.100.90]\n"));
    for to in [PORT, EXTERNAL] {
        wait_open(&lab, &outside, to);
        meets(&outside, to, &ALL_BACKENDS);
        let seen = |own: &str| if own == OWN { "172.18.0.2" } else { "172.18.0.5" };
        assert_seen(to, &ask(&outside, to, 60), &ALL_BACKENDS, seen);
    }

    lab.edit(&WEST, GLOBAL, &format!("{GLOBAL}      external_traffic_policy: local\n"));
    for (to, own) in [(PORT, OWN), (EXTERNAL, OWN), (OTHER_PORT, OTHER)] {
        meets(&outside, to, &[own]);
        assert_seen(to, &ask(&outside, to, 60), &[own], |_| "172.18.0.2");
    }
    meets(&inside, WEST_SERVICE, &ALL_BACKENDS);

    lab.edit(&WEST, "external_traffic_policy: local\n", "internal_traffic_policy: local\n");
    meets(&inside, WEST_SERVICE, &[OWN]);
    meets(&other_inside, WEST_SERVICE, &[OTHER]);
    meets(&outside, PORT, &ALL_BACKENDS);

    // A node without a backend of its own answers nobody whom it would have to send to another one.
    lab.edit(&[NODE], "labels: {app: webpod}", "labels: {app: other}");
    meets_nobody(&lab, &inside, WEST_SERVICE);
    meets(&other_inside, WEST_SERVICE, &[OTHER]);
    lab.edit(&WEST, "internal_traffic_policy: local\n", "external_traffic_policy: local\n");
    for to in [PORT, EXTERNAL] {
        meets_nobody(&lab, &outside, to);
    }
    meets(&outside, OTHER_PORT, &[OTHER]);
    meets(&inside, WEST_SERVICE, &[OTHER, EAST_BACKENDS[0], EAST_BACKENDS[1]]);
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn weights_and_the_smallest_number_of_own_backends_decide_who_is_asked() {
    let (lab, webpods) = up();
    let client = lab.mesh.node("west-worker-client");
    let weights = |east: u16| {
        let backends = lab.mesh.ask(NODE, &["get", "backends", "webpod"]);
        super::meshes::rows(&backends).iter().filter(|row| row["cluster"] == "east").all(|row| row["weight"] == east)
    };
    let (mut far, own, _) = loop {
        let (stream, own, client) = open(&client, WEST_SERVICE);
        if EAST_BACKENDS.contains(&own.to_string().as_str()) {
            break (stream, own, client);
        }
    };
    lab.edit(&WEST, GLOBAL, &format!("{GLOBAL}      cluster_weights: {{east: 25}}\n"));
    assert!(eventually(|| weights(25)), "{}", lab.mesh.ask(NODE, &["get", "backends", "webpod"]));
    let shares: Vec<(&str, f64)> =
        WEST_BACKENDS.map(|own| (own, 100.0)).into_iter().chain(EAST_BACKENDS.map(|own| (own, 25.0))).collect();
    assert_shares(&ask(&client, WEST_SERVICE, 1_000), &shares);
    lab.edit(&WEST, "cluster_weights: {east: 25}", "cluster_weights: {east: 0}");
    meets(&client, WEST_SERVICE, &WEST_BACKENDS);
    echo(&mut far, b"still here").unwrap_or_else(|error| panic!("{own} lost its connection: {error}"));

    // As long as there are two of our own, they answer alone.
    lab.edit(&WEST, "cluster_weights: {east: 0}", "affinity: local\n      local_minimum: 2");
    lab.wait_used(&[NODE], &WEST_BACKENDS);
    meets(&client, WEST_SERVICE, &WEST_BACKENDS);
    lab.edit(&[OTHER_NODE], "labels: {app: webpod}", "labels: {app: other}");
    meets(&client, WEST_SERVICE, &[OWN, EAST_BACKENDS[0], EAST_BACKENDS[1]]);
    lab.edit(&WEST, "      local_minimum: 2\n", "");
    meets(&client, WEST_SERVICE, &[OWN]);
    lab.edit(&[OTHER_NODE], "labels: {app: other}", "labels: {app: webpod}");
    lab.edit(&WEST, "      affinity: local\n", "");
    meets(&client, WEST_SERVICE, &ALL_BACKENDS);

    // Datagrams follow a client's first one.
    let udp = "{name: dns, protocol: udp, port: 80}";
    lab.add_port(&EAST, udp);
    lab.add_port(&WEST, udp);
    let by_datagrams = || backends(&ask_udp(&client, WEST_SERVICE, 60)) == ALL_BACKENDS;
    let is_asked = || lab.mesh.ask(NODE, &["get", "services", "webpod"]).to_string().contains(":80/udp");
    assert!(eventually(is_asked) && eventually(by_datagrams), "{:?}", ask_udp(&client, WEST_SERVICE, 60));
    lab.edit(&WEST, SELECTOR, &format!("{SELECTOR}      session_affinity_s: 600\n"));
    let is_kept = || backends(&ask_udp(&client, WEST_SERVICE, 60)).len() == 1;
    assert!(eventually(is_kept), "{:?}", ask_udp(&client, WEST_SERVICE, 60));
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn backends_that_leave_and_zones_decide_who_is_asked() {
    let (lab, webpods) = up();
    let client = lab.mesh.node("west-worker-client");
    let listed = |own: &str, other: &str| {
        format!("      backends: [{{address: {OWN}, zone: z1{own}}}, {{address: {OTHER}, zone: z2{other}}}]\n")
    };
    let (active, leaving) = ("", ", state: terminating");
    lab.edit(&WEST, SELECTOR, &listed(active, active));
    meets(&client, WEST_SERVICE, &ALL_BACKENDS);
    let mut stream = loop {
        let (stream, own, _) = open(&client, WEST_SERVICE);
        if own.to_string() == OTHER {
            break stream;
        }
    };
    lab.edit(&WEST, &listed(active, active), &listed(active, leaving));
    meets(&client, WEST_SERVICE, &[OWN, EAST_BACKENDS[0], EAST_BACKENDS[1]]);
    let answers = ask(&client, WEST_SERVICE, 200);
    assert!(!backends(&answers).contains(&OTHER), "it gets no new connection: {answers:?}");
    echo(&mut stream, b"still here").expect("and keeps those it has");
    lab.edit(&WEST, &listed(active, leaving), &listed(active, active));
    meets(&client, WEST_SERVICE, &ALL_BACKENDS);
    echo(&mut stream, b"still here").expect("also when it is back");

    // Its zone is the node's from its next start on.
    let move_to_zone = |node: &str| {
        let name = format!("  name: {node}\n");
        lab.edit(&[node], &name, &format!("{name}  labels: {{topology.kubernetes.io/zone: z1}}\n"));
        lab.mesh.daemon(node).restart().expect("restarted");
    };
    lab.edit(&WEST, GLOBAL, &format!("{GLOBAL}      topology: zone\n"));
    move_to_zone(NODE);
    lab.wait_used(&[NODE], &[OWN]);
    meets(&client, WEST_SERVICE, &[OWN]);
    // Who has no zone asks everybody.
    meets(&lab.mesh.node("west-control-plane-client"), WEST_SERVICE, &ALL_BACKENDS);
    // What another cluster publishes says where its backends are.
    let [far, near] = EAST_BACKENDS;
    move_to_zone("east-worker");
    meets(&client, WEST_SERVICE, &[OWN, near]);
    lab.edit(&WEST, &listed(active, active), &listed(leaving, active));
    meets(&client, WEST_SERVICE, &[near]);
    // Nobody in the zone serves any more, so all the others do.
    lab.edit(&["east-worker"], "labels: {app: webpod}", "labels: {app: other}");
    meets(&client, WEST_SERVICE, &[OTHER, far]);
    webpods.stop();
    lab.mesh.finish();
}
