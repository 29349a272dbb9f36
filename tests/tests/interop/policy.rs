//! What passes without any policy (RFC 8212), and what never does.

use anyhow::{Context as _, ensure};
use tests::routers::{Network, Router};

use super::configurations::{
    Bird, Frr, OURS, frr_and_bird_with, installed, neighbor, ours, reconfigure, wait_installed,
};

/// Waits until every prefix of the list is at ours and rejected, and returns why.
fn wait_rejected(ours: &Router, prefixes: &[&str]) -> Vec<String> {
    let ask = |prefix: &str| {
        let paths = ours.json(&format!("bgp rib {prefix}"))?;
        let path = paths.get(0).with_context(|| format!("no path to {prefix}"))?;
        ensure!(path["status"] == "rejected" && path["accepted"] == false, "{path}");
        path["reason"].as_str().map(str::to_owned).context("a reason")
    };
    ours.wait("the rejections", || prefixes.iter().map(|prefix| ask(prefix)).collect()).unwrap()
}

#[test]
fn without_a_policy_nothing_passes_in_either_direction() {
    tests::need_root();
    let network = Network::up(&[
        // Theirs is open, ours is not.
        Frr::USUAL.blueprint("frr"),
        // Ours is open, theirs is not.
        Frr { number: 5, more: &["bgp ebgp-requires-policy"], ..Frr::USUAL }.blueprint("careful"),
        Bird::USUAL.blueprint("bird"),
        ours(
            &[
                "address: 192.0.2.2, remote_as: 65002, families: {ipv4: {}, ipv6: {}}, timers: {connect_retry_s: 1}",
                "group: open, address: 192.0.2.5, remote_as: 65005",
                "group: open, address: 192.0.2.1, remote_as: 4200000001",
            ],
            "",
        ),
    ])
    .unwrap();
    let router = |name| network.router(name).unwrap();
    let (frr, careful, bird, ours) = (router("frr"), router("careful"), router("bird"), router("ours"));
    let reasons = wait_rejected(&ours, &["10.2.0.0/24", "fd10:2::/64"]);
    assert!(reasons.iter().all(|reason| reason.contains("polic")), "{reasons:?}");
    // What we advertise ourselves is told, what others gave us is not.
    frr.wait_path("10.0.1.0/24").unwrap();
    bird.wait_path("10.0.1.0/24").unwrap();
    ours.wait_path("10.1.0.0/24").unwrap();
    wait_installed(&ours, "77", &["10.1.0.0/24 via 192.0.2.1", "fd10:1::/64 via fd00::1"]);
    assert_eq!(frr.paths_to("10.1.0.0/24").unwrap(), []);
    assert_eq!(bird.paths_to("10.2.0.0/24").unwrap(), []);
    // The careful one took nothing of what we sent, and sent nothing.
    careful.wait_established(OURS).unwrap();
    careful
        .wait("the discarded updates", || {
            let text = careful.text(&format!("show bgp neighbors {OURS}"))?;
            let families = text.matches("Inbound updates discarded due to missing policy").count();
            ensure!(families == 2, "{text}");
            Ok(())
        })
        .unwrap();
    let view = neighbor(&ours, "192.0.2.5").unwrap();
    assert_eq!((&view["received"], &view["advertised"]), (&0.into(), &3.into()), "{view}");
    network.down().unwrap();
}

/// Import policies that accept everything do not accept what is ours.
#[test]
fn own_prefixes_are_refused_whatever_policies_say() {
    tests::need_root();
    let own = "protocol static own { ipv4; route 10.0.1.0/24 blackhole; route 10.0.1.128/25 blackhole; \
               route 192.0.2.10/32 blackhole; route 10.0.0.0/16 blackhole; route 0.0.0.0/0 blackhole; \
               route 169.254.0.0/16 blackhole; }";
    let network = Network::up(&[
        Bird { more: own, ..Bird::USUAL }.blueprint("bird"),
        ours(&["group: open, address: 192.0.2.1, remote_as: 4200000001"], ""),
    ])
    .unwrap();
    let ours = network.router("ours").unwrap();
    ours.wait_path("10.1.0.0/24").unwrap();
    let refused = ["10.0.1.128/25", "192.0.2.10/32", "10.0.0.0/16", "0.0.0.0/0", "169.254.0.0/16"];
    let reasons = wait_rejected(&ours, &refused);
    println!("{reasons:#?}");
    // Beside our own path to it.
    ours.wait("the refused path beside ours", || {
        let paths = ours.json("bgp rib 10.0.1.0/24")?;
        let theirs = paths.as_array().into_iter().flatten().find(|path| path["peer"] == "192.0.2.1");
        ensure!(theirs.is_some_and(|path| path["status"] == "rejected"), "{paths}");
        Ok(())
    })
    .unwrap();
    wait_installed(&ours, "77", &["10.1.0.0/24 via 192.0.2.1", "fd10:1::/64 via fd00::1"]);
    let page = ours.text("bgp received 192.0.2.1").unwrap();
    for prefix in refused {
        assert!(page.contains(prefix), "{prefix} was received: {page}");
    }
    network.down().unwrap();
}

/// What is installed is another matter than what is told: the import of routes into the kernel is turned off, limited and turned
/// on while the daemon runs, and peers notice nothing.
#[test]
fn what_is_installed_follows_the_configuration() {
    let network = frr_and_bird_with("import: {install: true, max_routes: 100}");
    let ours = network.router("ours").unwrap();
    let all = [
        "10.1.0.0/24 via 192.0.2.1",
        "10.2.0.0/24 via 192.0.2.2",
        "fd10:1::/64 via fd00::1",
        "fd10:2::/64 via fd00::2",
    ];
    wait_installed(&ours, "77", &all);
    reconfigure(&ours, "install: true", "install: false");
    wait_installed(&ours, "77", &[]);
    reconfigure(&ours, "max_routes: 100", "max_routes: 2");
    reconfigure(&ours, "install: false", "install: true");
    ours.wait("two routes", || {
        let routes = installed(&ours, "77")?;
        ensure!(routes.len() == 2, "{routes:?}");
        Ok(())
    })
    .unwrap();
    let refused = || ours.node().exec(&["meshd", "status"]).unwrap().stdout.contains("were refused");
    assert!(refused());
    reconfigure(&ours, "max_routes: 2", "max_routes: 4");
    wait_installed(&ours, "77", &all);
    assert!(!refused());
    for address in ["192.0.2.1", "192.0.2.2"] {
        let view = neighbor(&ours, address).unwrap();
        assert_eq!(view["established_count"], 1, "{view}");
    }
    network.down().unwrap();
}
