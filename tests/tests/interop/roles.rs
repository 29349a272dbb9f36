//! Roles and the attribute that keeps routes from leaking (RFC 9234), with BIRD and FRR.

use anyhow::{Context as _, ensure};
use tests::routers::{Network, Router};

use super::configurations::{Bird, Frr, OURS, neighbor, ours, wait_failure, wait_log};

/// Waits until ours has judged a path to the prefix and returns its status and reason.
fn judged(ours: &Router, prefix: &str) -> (String, String) {
    ours.wait(&format!("a judgement of {prefix}"), || {
        let paths = ours.json(&format!("bgp rib {prefix}"))?;
        let path = paths.get(0).with_context(|| paths.to_string())?;
        let text = |name: &str| path[name].as_str().unwrap_or_default().to_owned();
        ensure!(text("status") != "waiting", "{path}");
        Ok((text("status"), text("reason")))
    })
    .unwrap()
}

#[test]
fn right_pairs_come_up_and_nothing_leaks_between_them() {
    tests::need_root();
    let leaky = "protocol static leak { ipv4; route 10.66.0.0/24 blackhole { bgp_otc = 65500; }; }";
    let network = Network::up(&[
        Frr { session: &["local-role provider"], ..Frr::USUAL }.blueprint("provider"),
        Bird { session: "local role customer;", ..Bird::USUAL }.blueprint("customer"),
        Bird { number: 5, session: "local role peer;", ..Bird::USUAL }.blueprint("peer"),
        // It says no role, and so hands on what a customer must not.
        Bird { number: 6, more: leaky, ..Bird::USUAL }.blueprint("leaky"),
        ours(
            &[
                "group: open, address: 192.0.2.2, remote_as: 65002, role: customer",
                "group: open, address: 192.0.2.1, remote_as: 4200000001, role: provider",
                "group: open, address: 192.0.2.5, remote_as: 4200000005, role: peer",
                "group: open, address: 192.0.2.6, remote_as: 4200000006, role: provider",
            ],
            "",
        ),
    ])
    .unwrap();
    let router = |name| network.router(name).unwrap();
    let ours = router("ours");
    for (name, number, role) in [("provider", 2, "customer"), ("customer", 1, "provider"), ("peer", 5, "peer")] {
        router(name).wait_established(OURS).unwrap();
        let address = format!("192.0.2.{number}");
        ours.wait_established(&address).unwrap();
        assert_eq!(neighbor(&ours, &address).unwrap()["role"], role);
    }
    // What a customer is told is marked with our AS; what the provider was told about came from below and is not.
    let otc = |path: tests::routers::Path| path.other.get("BGP.otc").cloned();
    assert_eq!(otc(router("customer").wait_path("10.0.1.0/24").unwrap()).as_deref(), Some("4200000000"));
    assert_eq!(otc(router("peer").wait_path("10.0.1.0/24").unwrap()).as_deref(), Some("4200000000"));
    assert_eq!(router("provider").wait_path("10.1.0.0/24").unwrap().other.get("otc"), None);
    // What comes from the provider goes to customers only, with the provider's mark; what comes from a peer as well.
    assert_eq!(otc(router("customer").wait_path("10.2.0.0/24").unwrap()).as_deref(), Some("65002"));
    assert_eq!(otc(router("customer").wait_path("10.5.0.0/24").unwrap()).as_deref(), Some("4200000005"));
    router("peer").wait_path("10.1.0.0/24").unwrap();
    assert_eq!(router("peer").paths_to("10.2.0.0/24").unwrap(), []);
    assert_eq!(router("provider").paths_to("10.5.0.0/24").unwrap(), []);
    // A marked path from below is a leak.
    let (status, reason) = judged(&ours, "10.66.0.0/24");
    assert_eq!(status, "rejected", "{reason}");
    assert!(reason.contains("leak"), "{reason}");
    assert_eq!(router("customer").paths_to("10.66.0.0/24").unwrap(), []);
    network.down().unwrap();
}

#[test]
fn wrong_pairs_are_refused_by_either_side() {
    tests::need_root();
    let network = Network::up(&[
        Frr { session: &["local-role customer"], ..Frr::USUAL }.blueprint("frr"),
        Bird { session: "local role provider;", ..Bird::USUAL }.blueprint("bird"),
        Bird { number: 5, ..Bird::USUAL }.blueprint("silent"),
        Bird { number: 6, session: "local role customer; require roles;", ..Bird::USUAL }.blueprint("strict"),
        ours(
            &[
                "group: open, address: 192.0.2.2, remote_as: 65002, role: customer",
                "group: open, address: 192.0.2.1, remote_as: 4200000001, role: provider",
                "group: open, address: 192.0.2.5, remote_as: 4200000005, role: provider, role_strict: true",
                "group: open, address: 192.0.2.6, remote_as: 4200000006",
            ],
            "",
        ),
    ])
    .unwrap();
    let router = |name| network.router(name).unwrap();
    let ours = router("ours");
    for number in [1, 2, 5, 6] {
        wait_failure(&ours, &format!("192.0.2.{number}"), "Role Mismatch");
    }
    wait_log(&router("frr"), "Role Mismatch");
    for name in ["bird", "silent", "strict"] {
        wait_log(&router(name), "Role mismatch");
    }
    for number in [1, 2, 5, 6] {
        assert_eq!(neighbor(&ours, &format!("192.0.2.{number}")).unwrap()["established_count"], 0);
    }
    network.down().unwrap();
}
