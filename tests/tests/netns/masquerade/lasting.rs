//! What lasts: the table through kills, restarts and other people's hands; and that a large one is no burden.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    FAR_POD, NODE, NODE_ADDRESSES, OUTSIDE, POD, POD_ADDRESSES, shell, up, wait_installed,
    witness::{Kind, Witness, ask, over_udp},
};
use crate::netns::meshes::{Mesh, eventually};

/// Questions of ever new connections to one address, each of which must be seen to come from the expected one.
struct Questions {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    wrong: thread::JoinHandle<Vec<String>>,
}

impl Questions {
    fn start(mesh: &Mesh, target: &str, expected: &'static str) -> Self {
        let address: IpAddr = target.parse().expect("an address");
        let (stop, asked, pod) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), mesh.node(POD));
        let (stopped, counted) = (stop.clone(), asked.clone());
        let wrong = thread::spawn(move || {
            let questions = || {
                let mut wrong = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let seen = over_udp(address).unwrap_or_else(|error| error.to_string());
                    if seen != expected {
                        wrong.push(seen);
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            };
            pod.within(questions).expect("inside")
        });
        Self { stop, asked, wrong }
    }

    /// Waits for so many more.
    fn await_more(&self, more: u64) {
        let until = self.asked.load(Ordering::Relaxed) + more;
        assert!(eventually(|| self.asked.load(Ordering::Relaxed) >= until), "questions are not answered");
    }

    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let wrong = self.wrong.join().expect("the questions end");
        (self.asked.load(Ordering::Relaxed), wrong)
    }
}

fn table(mesh: &Mesh) -> String {
    shell(mesh, NODE, "nft list table inet meshd 2>/dev/null || true")
}

#[test]
fn a_kill_a_restart_and_a_replacement_show_no_wrong_source() {
    let (mesh, _folder) = up("masquerade: {enabled: true}");
    wait_installed(&mesh);
    let _far = Witness::start(&mesh.node("east-worker-webpod"), &FAR_POD);
    let _outside = Witness::start(&mesh.node("outside"), &OUTSIDE);
    // Somebody else's rule waits for a gap, too.
    shell(&mesh, NODE, "iptables-nft -t nat -A POSTROUTING -s 10.0.0.0/8 ! -o cni0 -j MASQUERADE");
    // The handles change when the table is another one.
    let handles = |mesh: &Mesh| shell(mesh, NODE, "nft -a list table inet meshd | grep -o 'handle [0-9]*'");
    let first = handles(&mesh);
    let inside = Questions::start(&mesh, FAR_POD[0], POD_ADDRESSES[0]);
    let outside = Questions::start(&mesh, OUTSIDE[0], NODE_ADDRESSES[0]);
    inside.await_more(100);
    let daemon = mesh.daemon(NODE);
    daemon.kill9().expect("killed");
    inside.await_more(100);
    assert_eq!(handles(&mesh), first, "nobody runs, and the table is there");
    daemon.start().expect("started");
    mesh.wait_healthy(&[NODE]);
    wait_installed(&mesh);
    outside.await_more(100);
    assert_eq!(handles(&mesh), first, "it was taken over");
    daemon.stop().expect("stopped");
    assert_eq!(handles(&mesh), first, "stopping leaves it");
    daemon.start().expect("started");
    wait_installed(&mesh);
    // A rule that somebody added makes the table be replaced, ten times.
    for _ in 0..10 {
        shell(&mesh, NODE, "nft insert rule inet meshd source_nat ip protocol 253 accept");
        assert!(eventually(|| !table(&mesh).contains("253")), "{}", table(&mesh));
        inside.await_more(10);
    }
    assert_ne!(handles(&mesh), first);
    for (what, questions) in [("inside", inside), ("outside", outside)] {
        let (asked, wrong) = questions.finish();
        assert!(asked > 300, "{what}: {asked} questions are no proof");
        assert_eq!(wrong, [""; 0], "{what}: of {asked}");
    }
    mesh.finish();
}

#[test]
fn what_somebody_deletes_comes_back_and_drain_takes_it_away() {
    let (mesh, _folder) = up("masquerade: {enabled: true}");
    wait_installed(&mesh);
    shell(&mesh, NODE, "nft 'add table inet other; add set inet other pods4 { type ipv4_addr; }'");
    let outside = Witness::start(&mesh.node("outside"), &OUTSIDE);
    let source = || ask(&mesh.node(POD), &outside, OUTSIDE[0], Kind::Udp);
    let whole = table(&mesh);
    let without_counts = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let is_count = |i: usize| i > 0 && matches!(words[i - 1], "packets" | "bytes");
        (0..words.len()).filter(|i| !is_count(*i)).map(|i| words[i]).collect::<Vec<_>>().join(" ")
    };
    for harm in [
        "nft delete table inet meshd",
        "nft flush chain inet meshd source_nat",
        "nft delete element inet meshd pods4 '{ 10.1.1.0/24 }'",
        "nft add element inet meshd kept4 '{ 203.0.113.0/24 }'",
        "nft add element inet meshd uplinks '{ eth7 }'",
        "nft flush set inet meshd own4",
        "nft add chain inet meshd mine",
        "nft flush ruleset",
    ] {
        shell(&mesh, NODE, harm);
        let is_back = eventually(|| without_counts(&table(&mesh)) == without_counts(&whole));
        assert!(is_back, "after {harm}: {}\nwas {whole}\n{}", table(&mesh), mesh.log(NODE));
        assert_eq!(source(), NODE_ADDRESSES[0], "after {harm}");
    }
    shell(&mesh, NODE, "nft 'add table inet other; add set inet other pods4 { type ipv4_addr; }'");
    let drained = mesh.ask(NODE, &["drain"]);
    assert_eq!(drained["errors"], json!([]), "{drained}");
    assert_eq!(table(&mesh), "");
    assert!(shell(&mesh, NODE, "nft list tables").contains("inet other"));
    mesh.finish();
}

#[test]
fn ten_thousand_exclusions_are_installed_and_changed_fast() {
    let prefixes: Vec<String> = (0..10_000).map(|i| format!("100.{}.{}.0/25", 64 + i / 256, i % 256)).collect();
    let (mesh, _folder) = up("masquerade: {enabled: true}");
    wait_installed(&mesh);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("exclude");
    std::fs::write(&file, format!("nonMasqueradeCIDRs: [{}]", prefixes.join(", "))).expect("written");
    // The lab's file is a copy that only the daemon's node sees.
    let program = format!(
        "sed 's#^masquerade:.*#masquerade: {{enabled: true, agent_file: {}}}#' /etc/meshd/meshd.yaml > /run/many.yaml",
        file.display()
    );
    shell(&mesh, NODE, &program);
    mesh.daemon(NODE).stop().expect("stopped");
    let begun = Instant::now();
    let mut daemon = mesh.node(NODE).spawn(&["meshd", "run", "--config", "/run/many.yaml"]).expect("started");
    let installed = |more: u64| {
        let masquerade = &mesh.ask(NODE, &["status"])["masquerade"];
        let count = masquerade["exclusions_installed"].as_u64().unwrap_or(0);
        masquerade["exclusions"] == masquerade["exclusions_installed"] && count >= 10_000 + more
    };
    assert!(eventually(|| installed(0)), "{:#}", mesh.ask(NODE, &["status"]));
    let all = begun.elapsed();
    let changed = Instant::now();
    let new = file.with_extension("new");
    std::fs::write(&new, format!("nonMasqueradeCIDRs: [203.0.113.0/24, {}]", prefixes.join(", "))).expect("written");
    std::fs::rename(&new, &file).expect("renamed");
    let has_one_more = || {
        let asked = mesh.node(NODE).exec(&["nft", "get", "element", "inet", "meshd", "kept4", "{ 203.0.113.0/24 }"]);
        asked.is_ok_and(|answer| answer.success())
    };
    assert!(eventually(has_one_more), "{:#}", mesh.ask(NODE, &["status"]));
    let one = changed.elapsed();
    println!("10,000 exclusions: from the start of the daemon {all:?}, one more {one:?}");
    assert!(all < Duration::from_secs(10) && one < Duration::from_secs(3), "{all:?}, {one:?}");
    daemon.signal(nix::sys::signal::Signal::SIGTERM).expect("signalled");
    mesh.finish();
}
