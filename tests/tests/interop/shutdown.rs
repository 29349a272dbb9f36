//! The end of a session in words (RFC 9003), and the time before it (RFC 8326).

use anyhow::ensure;
use tests::routers::{Network, Router};

use super::configurations::{
    Frr, OURS, OURS_AS, exabgp, frr_and_bird, neighbor, ours, reconfigure, wait_log, wait_problem, wait_reset,
};

/// Waits until `meshd bgp neighbors` has these words of the peer's operator.
fn wait_words(ours: &Router, peer: &str, words: &str) {
    ours.wait(&format!("{words:?} of {peer}"), || {
        let view = neighbor(ours, peer)?;
        ensure!(view["last_reset"]["communication"] == words, "{}", view["last_reset"]);
        Ok(())
    })
    .unwrap();
}

#[test]
fn words_go_from_operator_to_operator() {
    let network = frr_and_bird();
    let router = |name| network.router(name).unwrap();
    let (frr, bird, ours) = (router("frr"), router("bird"), router("ours"));
    // Theirs.
    let line = "neighbor 192.0.2.10 shutdown message new disks until noon";
    frr.configure(&["router bgp 65002", line]).unwrap();
    bird.text("disable toward \"the roof leaks\"").unwrap();
    wait_words(&ours, "192.0.2.2", "new disks until noon");
    wait_words(&ours, "192.0.2.1", "the roof leaks");
    for (peer, words) in [("192.0.2.2", "new disks until noon"), ("192.0.2.1", "the roof leaks")] {
        wait_problem(&ours, peer, words);
        let page = ours.text(&format!("bgp neighbors {peer}")).unwrap();
        assert!(page.contains(words), "{page}");
    }
    frr.configure(&["router bgp 65002", "no neighbor 192.0.2.10 shutdown"]).unwrap();
    bird.text("enable toward").unwrap();
    for peer in ["192.0.2.1", "192.0.2.2"] {
        ours.wait_established(peer).unwrap();
    }
    // Ours: a reset, and a shutdown in the configuration.
    ours.run(&["meshd", "bgp", "reset", "192.0.2.1", "--message", "once more"]).unwrap();
    wait_log(&bird, "once more");
    bird.wait_established(OURS).unwrap();
    let peer = "address: 192.0.2.2, ";
    reconfigure(&ours, peer, &format!("{peer}shutdown: \"moving to rack nine\", "));
    frr.wait_down(OURS).unwrap();
    wait_log(&frr, "moving to rack nine");
    assert_eq!(neighbor(&ours, "192.0.2.2").unwrap()["shutdown"], true);
    ours.wait_established("192.0.2.1").unwrap();
    reconfigure(&ours, "shutdown: \"moving to rack nine\", ", "");
    frr.wait_established(OURS).unwrap();
    network.down().unwrap();
}

/// Paths are first made the last choice and only then taken away; a log is asked for what was there for two seconds.
#[test]
fn a_drained_node_is_avoided_before_it_leaves() {
    tests::need_root();
    let network = Network::up(&[
        Frr::USUAL.blueprint("frr"),
        exabgp("exabgp", 3, (OURS, OURS_AS), ""),
        ours(
            &[
                "group: open, address: 192.0.2.2, remote_as: 65002",
                "group: open, address: 192.0.2.3, remote_as: 4200000003",
            ],
            "",
        ),
    ])
    .unwrap();
    let router = |name| network.router(name).unwrap();
    let (frr, exabgp, ours) = (router("frr"), router("exabgp"), router("ours"));
    for router in [&frr, &exabgp] {
        assert!(!router.wait_path("10.0.1.0/24").unwrap().communities.contains("65535:0"));
    }
    frr.text("debug bgp updates in").unwrap();
    let before = exabgp.received().unwrap().len();
    let said = ours.json("drain").unwrap();
    assert_eq!(said["closed_sessions"], 2, "{said}");
    wait_log(&frr, "65001:1 65001:2 graceful-shutdown");
    wait_log(&frr, "this node is being drained");
    for router in [&frr, &exabgp] {
        router.wait_no_path("10.0.1.0/24").unwrap();
    }
    let heard = exabgp.received().unwrap().split_off(before);
    let updates: Vec<String> =
        heard.iter().map(|message| message["neighbor"]["message"]["update"].to_string()).collect();
    let announced = updates.iter().filter(|update| update.contains("10.0.1.0/24")).collect::<Vec<_>>();
    assert!(announced.iter().all(|update| update.contains("[65535,0]")), "{announced:#?}");
    assert!(!announced.is_empty() && announced.iter().all(|update| !update.contains("withdraw")), "{announced:#?}");
    // They keep on asking, and nobody answers.
    for peer in ["192.0.2.2", "192.0.2.3"] {
        wait_reset(&ours, peer, "stopped by the operator");
        assert_eq!(neighbor(&ours, peer).unwrap()["state"], "idle");
    }
    network.down().unwrap();
}

/// The same from the other side: who says that it leaves is the last choice.
#[test]
fn a_peer_that_leaves_is_avoided() {
    let network = frr_and_bird();
    let (frr, ours) = (network.router("frr").unwrap(), network.router("ours").unwrap());
    frr.configure(&["router bgp 65002", "bgp graceful-shutdown"]).unwrap();
    ours.wait("the last choice", || {
        let paths = ours.paths_to("10.2.0.0/24")?;
        let is_last = paths.iter().all(|path| path.local_pref == Some(0) && path.communities.contains("65535:0"));
        ensure!(is_last && paths.len() == 1, "{paths:?}");
        Ok(())
    })
    .unwrap();
    network.down().unwrap();
}
