//! Ours between the others: what one of them says, another one hears through us, and the kernel of our node has it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::routers::Network;

use super::configurations::{Bird, Frr, assert_content, assert_marked, installed, ours, wait_installed};

fn world() -> Network {
    tests::need_root();
    Network::up(&[
        Bird::USUAL.blueprint("bird"),
        Frr::USUAL.blueprint("frr"),
        ours(
            &[
                "group: open, address: 192.0.2.1, remote_as: 4200000001",
                "group: open, address: 192.0.2.2, remote_as: 65002",
            ],
            "",
        ),
    ])
    .unwrap()
}

/// What the kernel of our node must have, and nothing else of ours.
const WANTED: [&str; 4] =
    ["10.1.0.0/24 via 192.0.2.1", "10.2.0.0/24 via 192.0.2.2", "fd10:1::/64 via fd00::1", "fd10:2::/64 via fd00::2"];

#[test]
fn paths_go_through_us_with_all_their_attributes() {
    let network = world();
    let (bird, frr) = (network.router("bird").unwrap(), network.router("frr").unwrap());
    let path = frr.wait_path("10.1.0.0/24").unwrap();
    assert_marked(&path, "4200000000 4200000001");
    assert_eq!(path.med, None, "MED does not go from one AS through the next (RFC 4271 section 5.1.4)");
    assert_marked(&bird.wait_path("10.2.0.0/24").unwrap(), "4200000000 65002");
    frr.wait_path("fd10:1::/64").unwrap();
    bird.wait_path("fd10:2::/64").unwrap();
    frr.wait_path("10.0.1.0/24").unwrap();
    wait_installed(&network.router("ours").unwrap(), "77", &WANTED);
    assert_content(&network, &["bird", "frr", "ours"]);
    network.down().unwrap();
}

/// kill -9 and a restart: the kernel hears nothing of it, and the peers keep our paths.
#[test]
fn a_killed_speaker_comes_back_without_a_change_of_routes() {
    let network = world();
    let (frr, ours) = (network.router("frr").unwrap(), network.router("ours").unwrap());
    frr.wait_path("10.1.0.0/24").unwrap();
    wait_installed(&network.router("ours").unwrap(), "77", &WANTED);
    let monitor = ours.node().spawn(&["ip", "monitor", "route", "nexthop"]).unwrap();
    ours.kill9().unwrap();
    frr.wait_down("192.0.2.10").unwrap();
    ours.start().unwrap();
    frr.wait_established("192.0.2.10").unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    let heard = monitor.stop(Signal::SIGINT, Duration::from_secs(5)).unwrap();
    let changes: Vec<&str> = heard.stdout.lines().filter(|line| line.contains("proto 77")).collect();
    assert_eq!(changes, Vec::<&str>::new());
    assert_eq!(installed(&ours, "77").unwrap(), WANTED);
    network.down().unwrap();
}
