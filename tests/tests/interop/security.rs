//! Sessions that are signed (TCP-MD5, RFC 2385) or demand a distance (GTSM, RFC 5082): the right ones come up, and the
//! others do not. That something does not happen is said by the kernels, which count what they drop.

use anyhow::ensure;
use tests::routers::{Blueprint, Network, Router};

use super::configurations::{
    Bird, Frr, KEY_FILE, OURS, assert_content, neighbor, ours, reconfigure, wait_counted, wait_failure, wait_problem,
    with_key,
};

/// Never up, and not up now.
fn assert_never_up(ours: &Router, peer: &str) {
    let view = neighbor(ours, peer).unwrap();
    assert_eq!(view["established_count"], 0, "{view}");
    assert_ne!(view["state"], "established", "{view}");
}

#[test]
fn a_key_opens_sessions_in_both_directions_and_on_a_link() {
    tests::need_root();
    let frr = Frr {
        session: &["password hush", "passive"],
        more: &[
            "neighbor eth1 interface remote-as 4200000000",
            "neighbor eth1 password hush",
            "neighbor eth1 timers connect 1",
        ],
        ..Frr::USUAL
    };
    let bird = Bird { peer: ("fd00::10", 4_200_000_000), session: "password \"hush\";", ..Bird::USUAL };
    let ours = with_key(
        ours(
            &[
                &format!("group: open, address: 192.0.2.2, remote_as: 65002, password_file: {KEY_FILE}"),
                &format!(
                    "group: open, address: \"fd00::1\", remote_as: 4200000001, passive: true, password_file: {KEY_FILE}"
                ),
                &format!("group: open, interface: eth1, remote_as: 65002, password_file: {KEY_FILE}"),
            ],
            "",
        ),
        "hush",
    );
    let zebra = "interface eth1\n no ipv6 nd suppress-ra\n ipv6 nd ra-interval 1\n";
    let network = Network::with_links(
        &[frr.blueprint("frr").zebra(zebra), bird.blueprint("bird"), ours],
        &[("frr:eth1", "ours:eth1")],
    )
    .unwrap();
    let ours = network.router("ours").unwrap();
    for (peer, end) in [("192.0.2.2", "remote_address"), ("fd00::1", "local_address")] {
        ours.wait_established(peer).unwrap();
        let view = neighbor(&ours, peer).unwrap();
        assert!(view[end].as_str().unwrap().ends_with(":179"), "who connected? {view}");
        assert_eq!(view["authentication"], "tcp-md5", "{view}");
    }
    ours.wait_established("eth1").unwrap();
    network.router("frr").unwrap().wait_established("eth1").unwrap();
    network.router("bird").unwrap().wait_path("10.0.1.0/24").unwrap();
    assert_content(&network, &["frr", "bird", "ours"]);
    network.down().unwrap();
}

/// The key of a peer that is configured by link is known to the listener as soon as the link's router is: whoever has it may
/// connect to us, and whoever has another one or none may not.
#[test]
fn a_peer_on_a_link_connects_to_us_with_its_key() {
    tests::need_root();
    let on_link = |link: &str| {
        format!("group: open, interface: {link}, remote_as: external, passive: true, password_file: {KEY_FILE}")
    };
    let ours = with_key(ours(&[&on_link("eth1"), &on_link("eth2"), &on_link("eth3")], ""), "hush");
    let zebra = "interface eth1\n no ipv6 nd suppress-ra\n ipv6 nd ra-interval 1\n";
    let frr = |name: &str, number: u8, session: &[&str]| {
        Frr { number, peer: ("eth1", 4_200_000_000), session, ..Frr::USUAL }.blueprint(name).zebra(zebra)
    };
    let network = Network::with_links(
        &[frr("right", 2, &["password hush"]), frr("wrong", 3, &["password push"]), frr("none", 4, &[]), ours],
        &[("right:eth1", "ours:eth1"), ("wrong:eth1", "ours:eth2"), ("none:eth1", "ours:eth3")],
    )
    .unwrap();
    let ours = network.router("ours").unwrap();
    ours.wait_established("eth1").unwrap();
    let view = neighbor(&ours, "eth1").unwrap();
    assert!(view["local_address"].as_str().unwrap().ends_with(":179"), "who connected? {view}");
    assert_eq!(view["authentication"], "tcp-md5", "{view}");
    wait_counted(&ours, "TcpExtTCPMD5Failure");
    wait_counted(&ours, "TcpExtTCPMD5NotFound");
    assert_never_up(&ours, "eth2");
    assert_never_up(&ours, "eth3");
    network.down().unwrap();
}

#[test]
fn a_wrong_key_or_none_opens_nothing_and_is_named() {
    tests::need_root();
    let wrong = Bird { session: "password \"loud\";", ..Bird::USUAL };
    let none = Bird { number: 5, ..Bird::USUAL };
    let waited_for = Bird { number: 6, session: "password \"loud\";", ..Bird::USUAL };
    let peer = |number: u8, more: &str| {
        let asn = 4_200_000_000 + u32::from(number);
        format!("group: open, address: 192.0.2.{number}, remote_as: {asn}, password_file: {KEY_FILE}{more}")
    };
    let ours = with_key(ours(&[&peer(1, ""), &peer(5, ""), &peer(6, ", passive: true")], ""), "hush");
    let network =
        Network::up(&[wrong.blueprint("wrong"), none.blueprint("none"), waited_for.blueprint("waited"), ours]).unwrap();
    let ours = network.router("ours").unwrap();
    // Theirs at our door, and ours at theirs.
    wait_counted(&ours, "TcpExtTCPMD5Failure");
    wait_counted(&ours, "TcpExtTCPMD5NotFound");
    wait_counted(&network.router("wrong").unwrap(), "TcpExtTCPMD5Failure");
    wait_counted(&network.router("none").unwrap(), "TcpExtTCPMD5Unexpected");
    for peer in ["192.0.2.1", "192.0.2.5"] {
        wait_failure(&ours, peer, "both sides must have the same TCP-MD5 key");
        wait_problem(&ours, peer, "both sides must have the same TCP-MD5 key");
        assert_never_up(&ours, peer);
    }
    wait_problem(&ours, "192.0.2.6", "nothing came that is signed with the same TCP-MD5 key");
    assert_never_up(&ours, "192.0.2.6");
    assert_eq!(network.router("wrong").unwrap().established().unwrap().len(), 0);
    network.down().unwrap();
}

#[test]
fn neighbors_prove_that_they_are_near() {
    tests::need_root();
    let frr = Frr { session: &["ttl-security hops 1"], ..Frr::USUAL };
    let careless = Bird::USUAL;
    let demanding = Bird { number: 5, session: "ttl security on;", ..Bird::USUAL };
    let ours = ours(
        &[
            "group: open, address: 192.0.2.2, remote_as: 65002, ttl_security: 1",
            "group: open, address: 192.0.2.1, remote_as: 4200000001, ttl_security: 1",
            "group: open, address: 192.0.2.5, remote_as: 4200000005, passive: true",
        ],
        "",
    );
    let network =
        Network::up(&[frr.blueprint("frr"), careless.blueprint("careless"), demanding.blueprint("demanding"), ours])
            .unwrap();
    let ours = network.router("ours").unwrap();
    network.router("frr").unwrap().wait_established(OURS).unwrap();
    ours.wait_established("192.0.2.2").unwrap();
    // One that does not prove it is dropped by our kernel, and ours by that of one that demands it.
    wait_counted(&ours, "TcpExtTCPMinTTLDrop");
    wait_counted(&network.router("demanding").unwrap(), "TcpExtTCPMinTTLDrop");
    wait_problem(&ours, "192.0.2.1", "not established");
    assert_never_up(&ours, "192.0.2.1");
    // BIRD demands it once it has connected: when it is late, it hears our OPEN before that and answers, but nothing after it.
    let up = network.router("demanding").unwrap().established().unwrap();
    assert!(!up.contains(OURS), "{up:?}");
    network.down().unwrap();
}

/// BIRD two hops away, behind a router, and ours that knows it with these settings beside its address and AS.
fn far_away(settings: &str) -> Network {
    tests::need_root();
    let far = "
router id 198.51.100.2;
protocol bgp toward { local 198.51.100.2 as 4200000007; neighbor 192.0.2.10 as 4200000000; multihop 2; ttl security on;
  connect delay time 1; connect retry time 1; error wait time 1, 2; ipv4 { import all; export all; }; }
";
    let peer = format!("group: open, address: 198.51.100.2, remote_as: 4200000007, {settings}");
    Network::with_links(
        &[
            Blueprint::bird("far", far)
                .run("ip address add 198.51.100.2/24 dev eth1")
                .run("ip route add 192.0.2.0/24 via 198.51.100.1"),
            Blueprint::plain("between")
                .address("192.0.2.20/24")
                .run("ip address add 198.51.100.1/24 dev eth1")
                .run("sysctl -qw net.ipv4.ip_forward=1"),
            ours(&[&peer], "").run("ip route add 198.51.100.0/24 via 192.0.2.20"),
        ],
        &[("far:eth1", "between:eth1")],
    )
    .unwrap()
}

#[test]
fn a_peer_behind_a_router_is_too_far_unless_it_may_be() {
    let network = far_away("ttl_security: 1");
    let ours = network.router("ours").unwrap();
    wait_counted(&ours, "TcpExtTCPMinTTLDrop");
    assert_never_up(&ours, "198.51.100.2");
    reconfigure(&ours, "ttl_security: 1", "ttl_security: 2");
    ours.wait_established("198.51.100.2").unwrap();
    network.router("far").unwrap().wait_path("10.0.1.0/24").unwrap();
    network.down().unwrap();
}

/// The peer speaks first, and what it says comes before anything can be demanded of its connection: its first packet is looked at.
#[test]
fn a_connection_from_too_far_away_is_closed_before_anything_is_said() {
    let network = far_away("passive: true, ttl_security: 1");
    let ours = network.router("ours").unwrap();
    let refused = |least: u64| {
        ours.wait("refused connections", || {
            let view = neighbor(&ours, "198.51.100.2")?;
            let why = view["last_refusal"].as_str().unwrap_or_default();
            ensure!(why.contains("hop limit of 254") && why.contains("prove with 255"), "{view}");
            ensure!(view["connections_refused"].as_u64().is_some_and(|count| count >= least), "{view}");
            Ok(view)
        })
        .unwrap()
    };
    // Each time it says OPEN, and is not answered.
    let view = refused(3);
    for direction in ["received", "sent"] {
        assert_eq!(view["messages"][direction]["open"], 0, "{view}");
    }
    assert_never_up(&ours, "198.51.100.2");
    reconfigure(&ours, "ttl_security: 1", "ttl_security: 2");
    ours.wait_established("198.51.100.2").unwrap();
    network.down().unwrap();
}
