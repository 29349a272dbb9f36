//! Several paths for one prefix (RFC 7911): taken from BIRD, told to FRR and to BIRD.

use std::collections::BTreeSet;

use anyhow::ensure;
use tests::routers::{Network, Router};

use super::configurations::{Bird, Frr, assert_content, neighbor, ours};

const PREFIX: &str = "10.9.0.0/24";

/// Waits until a router has as many paths to the prefix, told apart by their communities, and returns their identifiers.
fn wait_paths(router: &Router, wanted: &[&str]) -> BTreeSet<u32> {
    let wanted: BTreeSet<String> = wanted.iter().map(|community| (*community).to_owned()).collect();
    let ask = || {
        // FRR says what it chose also to where it came from.
        let mut paths = router.paths_to(PREFIX)?;
        paths.retain(|path| path.from.as_deref() != Some("192.0.2.2"));
        let found: BTreeSet<String> = paths.iter().flat_map(|path| path.communities.clone()).collect();
        ensure!(paths.len() == wanted.len() && found == wanted, "it has {paths:?}");
        Ok(paths.iter().filter_map(|path| path.path_id).collect())
    };
    router.wait(&format!("the paths {wanted:?}"), ask).unwrap()
}

#[test]
fn several_paths_are_taken_and_told() {
    tests::need_root();
    let two = "
protocol static one { ipv4 { preference 110; }; route 10.9.0.0/24 blackhole { bgp_community.add((65009,1)); }; }
protocol static two { ipv4 { preference 120; }; route 10.9.0.0/24 blackhole { bgp_community.add((65009,2)); }; }
";
    let giver = Bird { ipv4: "import all; export all; add paths on;", more: two, ..Bird::USUAL };
    let taker = Bird { number: 5, ipv4: "import all; export all; add paths rx;", ..Bird::USUAL };
    let network = Network::up(&[
        giver.blueprint("giver"),
        taker.blueprint("taker"),
        Frr::USUAL.blueprint("frr"),
        ours(
            &[
                "group: open, address: 192.0.2.1, remote_as: 4200000001, families: {ipv4: {add_path: {receive: true}}}",
                "group: open, address: 192.0.2.5, remote_as: 4200000005, families: {ipv4: {add_path: {send: all}}}",
                "group: open, address: 192.0.2.2, remote_as: 65002, families: {ipv4: {add_path: {send: all}}}",
            ],
            "",
        ),
    ])
    .unwrap();
    let router = |name| network.router(name).unwrap();
    let (giver, ours) = (router("giver"), router("ours"));
    assert_eq!(wait_paths(&ours, &["65009:1", "65009:2"]).len(), 2);
    for taker in ["taker", "frr"] {
        wait_paths(&router(taker), &["65009:1", "65009:2"]);
    }
    // FRR tells the identifiers it was given.
    assert_eq!(wait_paths(&router("frr"), &["65009:1", "65009:2"]).len(), 2);
    assert_eq!(neighbor(&ours, "192.0.2.1").unwrap()["families"][0]["add_path_receive"], true);
    assert_eq!(neighbor(&ours, "192.0.2.2").unwrap()["families"][0]["add_path_send"], true);
    // One of them goes, the other one stays, and comes back.
    giver.text("disable two").unwrap();
    for taker in ["ours", "taker", "frr"] {
        wait_paths(&router(taker), &["65009:1"]);
    }
    giver.text("enable two").unwrap();
    for taker in ["ours", "taker", "frr"] {
        wait_paths(&router(taker), &["65009:1", "65009:2"]);
    }
    giver.text("disable one").unwrap();
    giver.text("disable two").unwrap();
    for taker in ["ours", "taker", "frr"] {
        wait_paths(&router(taker), &[]);
    }
    assert_content(&network, &["giver", "taker", "frr", "ours"]);
    network.down().unwrap();
}
