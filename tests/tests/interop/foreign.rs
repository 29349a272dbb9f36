//! The routers among themselves.

use tests::routers::{Network, Path};

use super::configurations::{Bird, Frr, assert_content, assert_marked, exabgp, gobgp, originate};

/// What a path of the harness must look like after it crossed one session.
fn assert_attributes(path: &Path, as_path: &str, next_hop: &str) {
    assert_marked(path, as_path);
    assert_eq!(path.next_hops.first().map(String::as_str), Some(next_hop), "{path:?}");
}

/// BIRD and FRR on one switch, with addresses of both families.
fn bird_and_frr() -> Network {
    tests::need_root();
    let bird = Bird { peer: ("192.0.2.2", 65_002), ..Bird::USUAL };
    let frr = Frr { peer: ("192.0.2.1", 4_200_000_001), ..Frr::USUAL };
    Network::up(&[bird.blueprint("bird"), frr.blueprint("frr")]).unwrap()
}

#[test]
fn bird_and_frr_tell_the_same() {
    let network = bird_and_frr();
    let (bird, frr) = (network.router("bird").unwrap(), network.router("frr").unwrap());
    bird.wait_established("192.0.2.2").unwrap();
    frr.wait_established("192.0.2.1").unwrap();
    assert_attributes(&frr.wait_path("10.1.0.0/24").unwrap(), "4200000001", "192.0.2.1");
    assert_attributes(&bird.wait_path("10.2.0.0/24").unwrap(), "65002", "192.0.2.2");
    assert_eq!(frr.wait_path("fd10:1::/64").unwrap().next_hops.first().unwrap(), "fd00::1");
    assert_eq!(bird.wait_path("fd10:2::/64").unwrap().next_hops.first().unwrap(), "fd00::2");
    assert_content(&network, &["bird", "frr"]);
    network.down().unwrap();
}

#[test]
fn a_crash_and_a_restart_are_seen() {
    let network = bird_and_frr();
    let (bird, frr) = (network.router("bird").unwrap(), network.router("frr").unwrap());
    bird.wait_path("10.2.0.0/24").unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    frr.kill9().unwrap();
    bird.wait_down("192.0.2.2").unwrap();
    frr.start().unwrap();
    bird.wait_established("192.0.2.2").unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    bird.stop().unwrap();
    frr.wait_no_path("10.1.0.0/24").unwrap();
    bird.start().unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    network.down().unwrap();
}

#[test]
fn gobgp_and_exabgp_tell_the_same() {
    tests::need_root();
    let network = Network::up(&[
        exabgp("exabgp", 1, ("192.0.2.2", 4_200_000_002), ""),
        gobgp("gobgp", 2, ("192.0.2.1", 4_200_000_001), false),
    ])
    .unwrap();
    let (exabgp, gobgp) = (network.router("exabgp").unwrap(), network.router("gobgp").unwrap());
    gobgp.wait_established("192.0.2.1").unwrap();
    exabgp.wait_established("192.0.2.2").unwrap();
    originate(&exabgp, 1, false);
    originate(&gobgp, 2, true);
    assert_attributes(&gobgp.wait_path("10.1.0.0/24").unwrap(), "4200000001", "192.0.2.1");
    assert_attributes(&exabgp.wait_path("10.2.0.0/24").unwrap(), "4200000002", "192.0.2.2");
    assert_eq!(gobgp.wait_path("fd10:1::/64").unwrap().next_hops, ["fd00::1"]);
    assert_eq!(exabgp.wait_path("fd10:2::/64").unwrap().next_hops, ["fd00::2"]);
    exabgp.tell("announce route 10.1.1.0/24 next-hop 192.0.2.1 med 50").unwrap();
    assert_eq!(gobgp.wait_path("10.1.1.0/24").unwrap().med, Some(50));
    exabgp.tell("withdraw route 10.1.0.0/24 next-hop 192.0.2.1").unwrap();
    gobgp.wait_no_path("10.1.0.0/24").unwrap();
    assert_content(&network, &["gobgp", "exabgp"]);
    network.down().unwrap();
}
