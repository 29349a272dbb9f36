//! Two clusters on a network without IPv4.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use super::{
    meshes::{Expected, Mesh, eventually, ping},
    service_traffic::{Webpods, ask, ask_udp, assert_seen, backends, packets, wait_open},
    services::Services,
};

const ROUTES: Expected = &[
    ("alpha-1", &[("fd10:a2::/64", "fd18::12"), ("fd10:b1::/64", "fd18::21"), ("fd10:b2::/64", "fd18::22")]),
    ("alpha-2", &[("fd10:a1::/64", "fd18::11"), ("fd10:b1::/64", "fd18::21"), ("fd10:b2::/64", "fd18::22")]),
    ("beta-1", &[("fd10:a1::/64", "fd18::11"), ("fd10:a2::/64", "fd18::12"), ("fd10:b2::/64", "fd18::22")]),
    ("beta-2", &[("fd10:a1::/64", "fd18::11"), ("fd10:a2::/64", "fd18::12"), ("fd10:b1::/64", "fd18::21")]),
];
const NODES: [&str; 4] = ["alpha-1", "alpha-2", "beta-1", "beta-2"];
const ALPHA: [&str; 2] = ["alpha-1", "alpha-2"];
const BETA: [&str; 2] = ["beta-1", "beta-2"];
const BACKENDS: [&str; 4] = ["fd10:a1::10", "fd10:a2::10", "fd10:b1::10", "fd10:b2::10"];
/// `webpod` in alpha.
const SERVICE: &str = "[fd20:a::80]:80";
/// The source that a workload sees when it meets itself.
const LOOPBACK: &str = "fd77:6d65:7368:6400::1";

#[test]
fn pods_of_two_ipv6_clusters_talk() {
    let mesh = Mesh::up("single-l2-ipv6", ROUTES);
    for pod in ["alpha-1-client", "alpha-2-client"] {
        for target in ["fd10:b1::10", "fd10:b2::10"] {
            assert_eq!(ping(&mesh.node(pod), target), 62, "{pod} to {target}");
        }
    }
    assert_eq!(ping(&mesh.node("beta-2-client"), "fd10:a1::10"), 62);
    mesh.wait_healthy(&["alpha-1", "alpha-2", "beta-1", "beta-2"]);
    for (node, _) in ROUTES {
        assert_eq!(mesh.ask(node, &["plan"]), serde_json::json!({"actions": []}), "plan of {node}");
        assert_eq!(mesh.ask(node, &["get", "rejected"]), serde_json::json!([]), "refusals on {node}");
    }
    mesh.finish();
}

/// The lab with servers in its webpods, reached through the service.
fn up() -> (Services, Webpods) {
    let lab = Services::of("single-l2-ipv6", ROUTES);
    lab.wait(&NODES, &BACKENDS);
    let places = NODES.into_iter().zip(BACKENDS.map(|address| address.parse::<IpAddr>().expect("an address")));
    let webpods = Webpods::start_at(&lab, places);
    wait_open(&lab, &lab.mesh.node("alpha-2-client"), SERVICE);
    (lab, webpods)
}

#[test]
fn webpod_is_reached_over_ipv6_and_meets_itself() {
    let (lab, webpods) = up();
    // Datagrams get a port of their own.
    lab.add_port(&NODES, "{name: dns, protocol: udp, port: 80}");
    let client = lab.mesh.node("alpha-2-client");
    let answers = ask(&client, SERVICE, 400);
    assert_eq!(backends(&answers), BACKENDS, "{answers:?}");
    for ((_, seen), count) in &answers {
        assert_eq!(seen, "fd10:a2::20", "inside the mesh a pod is seen by its own address");
        // Six standard deviations of a fair choice.
        assert!((48..=152).contains(count), "{answers:?}");
    }
    let by_datagrams = || backends(&ask_udp(&client, SERVICE, 60)) == BACKENDS;
    assert!(eventually(by_datagrams), "{:?}", ask_udp(&client, SERVICE, 60));
    // A backend that asks its own service may meet itself.
    let webpod = lab.mesh.node("alpha-2-webpod");
    for answers in [ask(&webpod, SERVICE, 100), ask_udp(&webpod, SERVICE, 100)] {
        assert_eq!(backends(&answers), BACKENDS, "{answers:?}");
        for (own, seen) in answers.keys() {
            assert_eq!(seen, if own == "fd10:a2::10" { LOOPBACK } else { "fd10:a2::10" }, "{answers:?}");
        }
    }
    // Scaled to zero and back.
    lab.edit(&NODES, "labels: {app: webpod}", "labels: {app: other}");
    let to: SocketAddr = SERVICE.parse().expect("an address");
    let refused = || {
        let patience = Duration::from_millis(300);
        client.within(|| TcpStream::connect_timeout(&to, patience).is_err()).expect("inside")
            && packets(&lab, "alpha-2", "no_backend") > 0
    };
    assert!(eventually(refused), "somebody answers");
    lab.edit(&NODES, "labels: {app: other}", "labels: {app: webpod}");
    let is_back = || {
        let all = lab.used("alpha-2").len() == BACKENDS.len();
        all && backends(&ask(&client, SERVICE, 60)) == BACKENDS
    };
    assert!(eventually(is_back), "{:?}", lab.used("alpha-2"));
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn a_client_keeps_its_backend_over_ipv6() {
    let (lab, webpods) = up();
    lab.add_port(&NODES, "{name: dns, protocol: udp, port: 80}");
    let client = lab.mesh.node("alpha-2-client");
    let by = |is_tcp: bool| if is_tcp { ask(&client, SERVICE, 60) } else { ask_udp(&client, SERVICE, 60) };
    for is_tcp in [true, false] {
        assert!(eventually(|| backends(&by(is_tcp)) == BACKENDS), "{:?}", by(is_tcp));
    }
    let section = "      selector: {app: webpod}\n";
    lab.edit(&ALPHA, section, &format!("{section}      session_affinity_s: 600\n"));
    let chosen = [true, false].map(|is_tcp| {
        assert!(eventually(|| backends(&by(is_tcp)).len() == 1), "{:?}", by(is_tcp));
        backends(&by(is_tcp))[0].to_owned()
    });
    // Its backend goes: another one is kept.
    let at = BACKENDS.iter().position(|backend| **backend == chosen[1]).expect("one of them");
    lab.edit(&[NODES[at]], "labels: {app: webpod}", "labels: {app: other}");
    let has_moved = || {
        let answers = by(false);
        let found = backends(&answers);
        found.len() == 1 && found[0] != chosen[1]
    };
    assert!(eventually(has_moved), "{:?}, and before it was {}", by(false), chosen[1]);
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn node_ports_are_reached_over_ipv6_with_and_without_translated_sources() {
    const TCP: &str = "[fd18::12]:30080";
    const UDP: &str = "[fd18::12]:30081";
    let (lab, webpods) = up();
    lab.add_port(&BETA, "{name: dns, protocol: udp, port: 80}");
    lab.open_node_port(&ALPHA, &["{name: dns, protocol: udp, port: 80, node_port: 30081}"]);
    // A node of the other cluster is outside as far as this one is concerned.
    let outside = lab.mesh.node("beta-2");
    wait_open(&lab, &outside, TCP);
    let all = || backends(&ask_udp(&outside, UDP, 60)) == BACKENDS;
    assert!(eventually(all), "{:?}", ask_udp(&outside, UDP, 60));
    let (client, node) = ("fd18::22", "fd18::12");
    let seen = |when: &str, of: &dyn Fn(&str) -> &'static str| {
        for answers in [ask(&outside, TCP, 100), ask_udp(&outside, UDP, 100)] {
            assert_seen(when, &answers, &BACKENDS, of);
        }
    };
    seen("snat", &|own| if own == "fd10:a2::10" { client } else { node });
    lab.with_each_form(&ALPHA, &BACKENDS, |form| {
        let direct = || ask(&outside, TCP, 60).contains_key(&("fd10:a1::10".to_owned(), client.to_owned()));
        assert!(eventually(direct), "{form}: {:?}", ask(&outside, TCP, 60));
        seen(form, &|own| if own.starts_with("fd10:a") { client } else { node });
    });
    webpods.stop();
    lab.mesh.finish();
}
