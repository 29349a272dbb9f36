//! How many prefixes a peer may send, and how many peers may come by themselves.

use std::collections::BTreeSet;

use anyhow::ensure;
use tests::routers::{Network, Router};

use super::configurations::{Bird, Frr, OURS, neighbor, ours, wait_log, wait_problem, wait_reset};

/// Adds prefixes to what FRR originates, or takes them away.
fn networks(frr: &Router, verb: &str) {
    let lines: Vec<String> = (1..=3).map(|third| format!("{verb} 10.20.{third}.0/24")).collect();
    let lines = ["router bgp 65002", "address-family ipv4"].into_iter().chain(lines.iter().map(String::as_str));
    frr.configure(&lines.collect::<Vec<_>>()).unwrap();
}

/// FRR with a path of its own, to which ours allows three.
fn limited(and: &str) -> Network {
    tests::need_root();
    let peer = format!(
        "group: open, address: 192.0.2.2, remote_as: 65002, families: {{ipv4: {{max_prefixes: {{limit: 3, {and}}}}}}}"
    );
    let network = Network::up(&[Frr::USUAL.blueprint("frr"), ours(&[&peer], "")]).unwrap();
    network.router("ours").unwrap().wait_path("10.2.0.0/24").unwrap();
    network
}

#[test]
fn too_many_prefixes_end_the_session_for_a_while() {
    let network = limited("restart_after_s: 1");
    let (frr, ours) = (network.router("frr").unwrap(), network.router("ours").unwrap());
    networks(&frr, "network");
    wait_reset(&ours, "192.0.2.2", "more than 3");
    wait_problem(&ours, "192.0.2.2", "more than 3");
    wait_log(&frr, "6/1 (Cease/Maximum Number of Prefixes Reached)");
    // Nothing of it is kept.
    ours.wait_no_path("10.2.0.0/24").unwrap();
    networks(&frr, "no network");
    ours.wait_established("192.0.2.2").unwrap();
    ours.wait_path("10.2.0.0/24").unwrap();
    assert!(neighbor(&ours, "192.0.2.2").unwrap()["established_count"].as_u64() >= Some(2));
    network.down().unwrap();
}

#[test]
fn a_torn_down_session_stays_down_until_somebody_resets_it() {
    let network = limited("action: teardown");
    let (frr, ours) = (network.router("frr").unwrap(), network.router("ours").unwrap());
    networks(&frr, "network");
    wait_reset(&ours, "192.0.2.2", "more than 3");
    networks(&frr, "no network");
    // FRR comes again and is refused.
    let refused = || neighbor(&ours, "192.0.2.2").map(|view| view["connections_refused"].as_u64().unwrap_or_default());
    let before = refused().unwrap();
    ours.wait("another attempt of FRR", || {
        let now = refused()?;
        ensure!(now > before, "{now} connections were refused, as before");
        Ok(())
    })
    .unwrap();
    assert_eq!(neighbor(&ours, "192.0.2.2").unwrap()["state"], "idle");
    ours.text("bgp reset 192.0.2.2").unwrap();
    ours.wait_established("192.0.2.2").unwrap();
    ours.wait_path("10.2.0.0/24").unwrap();
    network.down().unwrap();
}

/// Their limit: we send one prefix of ours, and then what a third one gives us.
#[test]
fn their_limit_is_told_by_us() {
    tests::need_root();
    // Of different attributes, so that they come in several messages: FRR counts between them.
    let many: String = (1..=4)
        .map(|third| format!("route 10.30.{third}.0/24 blackhole {{ bgp_community.add((65009,{third})); }}; "))
        .collect();
    let more = format!("protocol static more {{ ipv4; {many} }}");
    let network = Network::up(&[
        Frr { ipv4: &["maximum-prefix 2"], ..Frr::USUAL }.blueprint("frr"),
        Bird { ipv4: "import all; export none;", more: &more, ..Bird::USUAL }.blueprint("bird"),
        ours(
            &[
                "group: open, address: 192.0.2.2, remote_as: 65002",
                "group: open, address: 192.0.2.1, remote_as: 4200000001",
            ],
            "",
        ),
    ])
    .unwrap();
    let (frr, bird, ours) =
        (network.router("frr").unwrap(), network.router("bird").unwrap(), network.router("ours").unwrap());
    frr.wait_path("10.0.1.0/24").unwrap();
    ours.wait_established("192.0.2.1").unwrap();
    bird.run(&["sh", "-c", "sed 's/export none/export all/' /etc/bird/bird.conf > /run/bird.conf"]).unwrap();
    bird.text("configure \"/run/bird.conf\"").unwrap();
    wait_reset(&ours, "192.0.2.2", "Maximum Number of Prefixes Reached");
    wait_problem(&ours, "192.0.2.2", "Maximum Number of Prefixes Reached");
    network.down().unwrap();
}

fn dynamic(ours: &Router) -> anyhow::Result<BTreeSet<String>> {
    let summary = ours.json("bgp summary")?;
    let rows = summary["neighbors"].as_array().into_iter().flatten();
    let here = rows.filter(|row| row["dynamic"] == true && row["state"] == "established");
    Ok(here.filter_map(|row| row["peer"].as_str()).map(str::to_owned).collect())
}

/// Two may come, the third one when one of them has gone.
#[test]
fn peers_come_by_themselves_up_to_a_limit() {
    tests::need_root();
    let routers = [1, 5, 6].map(|number| Bird { number, ..Bird::USUAL }.blueprint(&format!("bird{number}")));
    let mut blueprints = routers.to_vec();
    blueprints.push(ours(&["group: open, range: 192.0.2.0/29, limit: 2, remote_as: external"], ""));
    let network = Network::up(&blueprints).unwrap();
    let ours = network.router("ours").unwrap();
    ours.wait("two of three", || {
        let here = dynamic(&ours)?;
        ensure!(here.len() == 2, "{here:?}");
        Ok(())
    })
    .unwrap();
    wait_log(&ours, "the range 192.0.2.0/29 has 2 peers already");
    let first = dynamic(&ours).unwrap();
    let all: BTreeSet<String> = [1, 5, 6].map(|number| format!("192.0.2.{number}")).into();
    let (leaves, comes) = (first.first().unwrap(), all.difference(&first).next().unwrap());
    let bird = |address: &str| network.router(&format!("bird{}", address.rsplit('.').next().unwrap())).unwrap();
    assert_eq!(bird(comes).established().unwrap().len(), 0);
    bird(leaves).text("disable toward").unwrap();
    ours.wait("the third in place of the first", || {
        let here = dynamic(&ours)?;
        ensure!(here.contains(comes) && !here.contains(leaves), "{here:?}");
        Ok(())
    })
    .unwrap();
    // Who has gone is not remembered, and comes back when there is room again.
    let rows = ours.json("bgp summary").unwrap();
    assert_eq!(rows["neighbors"].as_array().map(Vec::len), Some(2), "{rows}");
    bird(comes).text("disable toward").unwrap();
    bird(leaves).text("enable toward").unwrap();
    bird(leaves).wait_established(OURS).unwrap();
    bird(leaves).wait_path("10.0.1.0/24").unwrap();
    network.down().unwrap();
}
