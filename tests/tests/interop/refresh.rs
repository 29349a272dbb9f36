//! Route refresh (RFC 2918, 7313): everything is sent again in the session that is there, whoever asks for it.

use anyhow::ensure;
use serde_json::Value;
use tests::routers::Router;

use super::configurations::{OURS, assert_content, frr_and_bird, neighbor};

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Messages of a kind from (`received`) or to (`sent`) a peer of ours.
fn messages(ours: &Router, peer: &str, direction: &str, kind: &str) -> anyhow::Result<u64> {
    Ok(number(&neighbor(ours, peer)?["messages"][direction][kind]))
}

/// Waits until a count has grown by at least so many.
fn wait_more(router: &Router, what: &str, before: u64, by: u64, count: impl Fn() -> anyhow::Result<u64>) {
    router
        .wait(&format!("{by} more {what} than {before}"), || {
            let now = count()?;
            ensure!(now >= before + by, "there are {now}");
            Ok(())
        })
        .unwrap();
}

/// Their import policy changes, which shows on what they have already been told once they ask for it again.
#[test]
fn we_send_again_what_they_ask_for() {
    let network = frr_and_bird();
    let router = |name| network.router(name).unwrap();
    let (frr, bird, ours) = (router("frr"), router("bird"), router("ours"));
    let asked = messages(&ours, "192.0.2.2", "received", "route_refresh").unwrap();
    let sent = messages(&ours, "192.0.2.2", "sent", "update").unwrap();
    frr.configure(&["route-map preferred permit 10", "set local-preference 333"]).unwrap();
    frr.configure(&["router bgp 65002", "address-family ipv4", "neighbor 192.0.2.10 route-map preferred in"]).unwrap();
    frr.text("clear bgp ipv4 unicast 192.0.2.10 soft in").unwrap();
    frr.wait("the new preference", || {
        let paths = frr.paths_to("10.1.0.0/24")?;
        ensure!(paths.iter().all(|path| path.local_pref == Some(333)), "{paths:?}");
        Ok(())
    })
    .unwrap();
    wait_more(&ours, "requests", asked, 1, || messages(&ours, "192.0.2.2", "received", "route_refresh"));
    wait_more(&ours, "UPDATEs", sent, 1, || messages(&ours, "192.0.2.2", "sent", "update"));

    let asked = messages(&ours, "192.0.2.1", "received", "route_refresh").unwrap();
    let sent = messages(&ours, "192.0.2.1", "sent", "update").unwrap();
    let marked = messages(&ours, "192.0.2.1", "sent", "route_refresh").unwrap();
    bird.text("reload in toward").unwrap();
    wait_more(&ours, "requests", asked, 2, || messages(&ours, "192.0.2.1", "received", "route_refresh"));
    wait_more(&ours, "UPDATEs", sent, 2, || messages(&ours, "192.0.2.1", "sent", "update"));
    // BIRD knows the enhanced refresh: a mark before and one behind, for each family.
    wait_more(&ours, "marks", marked, 4, || messages(&ours, "192.0.2.1", "sent", "route_refresh"));
    bird.wait_path("10.2.0.0/24").unwrap();
    assert_eq!(neighbor(&ours, "192.0.2.1").unwrap()["established_count"], 1);
    assert_eq!(neighbor(&ours, "192.0.2.2").unwrap()["established_count"], 1);
    assert_content(&network, &["frr", "bird", "ours"]);
    network.down().unwrap();
}

#[test]
fn they_send_again_what_we_ask_for() {
    let network = frr_and_bird();
    let router = |name| network.router(name).unwrap();
    let (frr, ours) = (router("frr"), router("ours"));
    let stats = |name: &str| -> anyhow::Result<u64> {
        let peers = frr.json("show bgp neighbors")?;
        Ok(number(&peers[OURS]["messageStats"][name]))
    };
    let (asked, sent, received) =
        (stats("routeRefreshRecv").unwrap(), stats("updatesSent").unwrap(), stats("updatesRecv").unwrap());
    let report = ours.json("bgp reset 192.0.2.2 soft").unwrap();
    assert_eq!(report["requested"], serde_json::json!(["ipv4", "ipv6"]), "{report}");
    assert_eq!(report["resent"], serde_json::json!(["ipv4", "ipv6"]), "{report}");
    wait_more(&frr, "requests", asked, 2, || stats("routeRefreshRecv"));
    wait_more(&frr, "UPDATEs of FRR", sent, 2, || stats("updatesSent"));
    wait_more(&frr, "UPDATEs of ours", received, 2, || stats("updatesRecv"));
    let sent = messages(&ours, "192.0.2.1", "received", "update").unwrap();
    ours.json("bgp reset 192.0.2.1 soft").unwrap();
    wait_more(&ours, "UPDATEs of BIRD", sent, 2, || messages(&ours, "192.0.2.1", "received", "update"));
    // BIRD sends marks, and nothing was swept with them.
    wait_more(&ours, "marks", 0, 4, || messages(&ours, "192.0.2.1", "received", "route_refresh"));
    for (prefix, peer) in [("10.1.0.0/24", "192.0.2.1"), ("10.2.0.0/24", "192.0.2.2")] {
        // FRR says what it chose also to where it came from.
        let paths = ours.paths_to(prefix).unwrap();
        assert!(paths.iter().any(|path| path.best == Some(true) && path.from.as_deref() == Some(peer)), "{paths:?}");
        assert_eq!(neighbor(&ours, peer).unwrap()["established_count"], 1);
    }
    assert_content(&network, &["frr", "bird", "ours"]);
    network.down().unwrap();
}
