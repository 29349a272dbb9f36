//! IPv4 over IPv6 next hops (RFC 8950), on sessions between addresses and on links alone.

use anyhow::ensure;
use tests::routers::{Network, Router};

use super::configurations::{Bird, Frr, OURS_AS, OURS_V6, assert_content, assert_marked, installed, neighbor, ours};

/// Waits until the kernel has these IPv4 prefixes of a protocol by IPv6 next hops, and no other ones.
fn wait_over_ipv6(router: &Router, protocol: &str, wanted: &[&str]) {
    router
        .wait("IPv4 routes over IPv6", || {
            let routes = installed(router, protocol)?;
            let ipv4: Vec<&String> = routes.iter().filter(|route| !route.starts_with("fd")).collect();
            let is_right = |(route, prefix): (&&String, &&str)| route.starts_with(&format!("{prefix} via inet6 "));
            ensure!(ipv4.len() == wanted.len() && ipv4.iter().zip(wanted).all(is_right), "it has {routes:?}");
            Ok(())
        })
        .unwrap();
}

/// A packet there and back, between addresses inside of what both sides advertise.
fn assert_reaches(from: &Router, source: &str, to: &str) {
    from.run(&["ping", "-c", "1", "-W", "5", "-I", source, to]).unwrap();
}

#[test]
fn ipv4_goes_over_ipv6_between_addresses() {
    tests::need_root();
    let frr = Frr { peer: (OURS_V6, OURS_AS), session: &["capability extended-nexthop"], ..Frr::USUAL };
    let bird = Bird {
        peer: (OURS_V6, OURS_AS),
        ipv4: "import all; export all; extended next hop on;",
        more: "protocol kernel { ipv4 { export where source = RTS_BGP; }; }",
        ..Bird::USUAL
    };
    let network = Network::up(&[
        frr.blueprint("frr").run("ip address add 10.2.0.1/32 dev lo"),
        bird.blueprint("bird").run("ip address add 10.1.0.1/32 dev lo"),
        ours(
            &[
                "group: open, address: \"fd00::2\", remote_as: 65002",
                "group: open, address: \"fd00::1\", remote_as: 4200000001",
            ],
            "",
        )
        .run("ip address add 10.0.1.1/32 dev lo"),
    ])
    .unwrap();
    let (frr, bird, ours) =
        (network.router("frr").unwrap(), network.router("bird").unwrap(), network.router("ours").unwrap());
    assert_marked(&frr.wait_path("10.1.0.0/24").unwrap(), "4200000000 4200000001");
    assert_marked(&bird.wait_path("10.2.0.0/24").unwrap(), "4200000000 65002");
    wait_over_ipv6(&ours, "77", &["10.1.0.0/24", "10.2.0.0/24"]);
    wait_over_ipv6(&frr, "bgp", &["10.0.1.0/24", "10.1.0.0/24"]);
    wait_over_ipv6(&bird, "bird", &["10.0.1.0/24", "10.2.0.0/24"]);
    assert_reaches(&ours, "10.0.1.1", "10.2.0.1");
    assert_reaches(&ours, "10.0.1.1", "10.1.0.1");
    for peer in ["fd00::1", "fd00::2"] {
        let view = neighbor(&ours, peer).unwrap();
        assert_eq!(view["families"][0]["extended_next_hop"], true, "{view}");
    }
    assert_content(&network, &["frr", "bird", "ours"]);
    network.down().unwrap();
}

#[test]
fn a_link_is_enough_for_a_session_with_frr() {
    tests::need_root();
    let frr = Frr { peer: ("eth1", OURS_AS), ..Frr::USUAL };
    let network = Network::with_links(
        &[
            frr.blueprint("frr")
                .zebra("interface eth1\n no ipv6 nd suppress-ra\n ipv6 nd ra-interval 1\n")
                .run("ip address add 10.2.0.1/32 dev lo"),
            ours(&["group: open, interface: eth1, remote_as: external"], "").run("ip address add 10.0.1.1/32 dev lo"),
        ],
        &[("frr:eth1", "ours:eth1")],
    )
    .unwrap();
    let (frr, ours) = (network.router("frr").unwrap(), network.router("ours").unwrap());
    frr.wait_established("eth1").unwrap();
    ours.wait_established("eth1").unwrap();
    assert_marked(&frr.wait_path("10.0.1.0/24").unwrap(), "4200000000");
    assert_marked(&ours.wait_path("10.2.0.0/24").unwrap(), "65002");
    wait_over_ipv6(&ours, "77", &["10.2.0.0/24"]);
    wait_over_ipv6(&frr, "bgp", &["10.0.1.0/24"]);
    ours.wait_path("fd10:2::/64").unwrap();
    assert_reaches(&ours, "10.0.1.1", "10.2.0.1");
    // The other side is told at once when the link is lost, and found again when it is back.
    ours.run(&["ip", "link", "set", "eth1", "down"]).unwrap();
    ours.wait_down("eth1").unwrap();
    wait_over_ipv6(&ours, "77", &[]);
    ours.run(&["ip", "link", "set", "eth1", "up"]).unwrap();
    wait_over_ipv6(&ours, "77", &["10.2.0.0/24"]);
    wait_over_ipv6(&frr, "bgp", &["10.0.1.0/24"]);
    assert_reaches(&ours, "10.0.1.1", "10.2.0.1");
    network.down().unwrap();
}
