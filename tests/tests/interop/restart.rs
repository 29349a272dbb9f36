//! A speaker goes away and comes back, ours or theirs, while packets go through: graceful restart (RFC 4724) and what comes
//! after it when the speaker stays away (RFC 9494). BFD watches the paths all the while: it ends with the process that is
//! killed, and must not be taken for a path that is dead (RFC 5882 section 4.3.2).

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lab::Running;
use nix::sys::signal::Signal;
use tests::{
    routers::{Blueprint, Network, Router},
    traffic::Traffic,
};

use super::configurations::{NODE, configuration};

/// Until both sessions have to be back after our restart.
const BACK_WITHIN: Duration = Duration::from_secs(3);
/// BFD as it is configured here takes this long to notice an end.
const BFD_NOTICES: Duration = Duration::from_millis(600);

/// `left` and `right` are hosts behind BIRD and FRR, with us between them. A third peer is configured and never there: nobody
/// may be kept waiting for it.
const OUR_BGP: &str = r#"  import: {accept: ["0.0.0.0/0 le 32"]}
  policies: {all: [{}]}
  peers:
    - {address: 192.0.2.1, remote_as: 65001, export: [all], families: {ipv4: {}}, bfd: {transmit_ms: 200, receive_ms: 200}}
    - {address: 192.0.2.5, remote_as: 65002, export: [all], families: {ipv4: {}}, bfd: {transmit_ms: 200, receive_ms: 200, multiplier: 3}}
    - {address: 198.51.100.9, remote_as: 65009, export: [all], families: {ipv4: {}}}"#;

/// What makes us watch the path to FRR.
const OUR_BFD_WITH_FRR: &str = ", bfd: {transmit_ms: 200, receive_ms: 200, multiplier: 3}";

const BIRD: &str = r#"
router id 192.0.2.1;
graceful restart wait 15;
protocol kernel { graceful restart yes; ipv4 { import none; export where source = RTS_BGP; }; }
protocol static { ipv4; route 10.1.0.0/24 via "eth1"; route 10.11.0.0/24 blackhole; }
protocol bfd { interface "eth2" { min rx interval 200 ms; min tx interval 200 ms; multiplier 3; }; }
protocol bgp ours { local 192.0.2.1 as 65001; bfd graceful; neighbor 192.0.2.2 as 65000; connect delay time 1; connect retry time 1;
  graceful restart yes; graceful restart time 60; ipv4 { import all; export where source = RTS_STATIC; }; }
"#;

const FRR: &str = "
router bgp 65002
 bgp router-id 192.0.2.5
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.6 remote-as 65000
 neighbor 192.0.2.6 timers connect 1
 neighbor 192.0.2.6 bfd
 neighbor 192.0.2.6 bfd profile watch
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 address-family ipv4 unicast
  network 10.2.0.0/24
  network 10.12.0.0/24
 exit-address-family
";

const BFDD: &str = "
bfd
 profile watch
  receive-interval 200
  transmit-interval 200
";

const LEFT: &str = "10.1.0.2";
const RIGHT: &str = "10.2.0.2";
/// What the kernel of our node has while everybody is there.
const WANTED: [&str; 4] = ["10.1.0.0/24", "10.11.0.0/24", "10.12.0.0/24", "10.2.0.0/24"];

struct Chain {
    network: Network,
    bird: Router,
    ours: Router,
    frr: Router,
}

impl Chain {
    /// When FRR restarts, its BFD daemon lets go of the session and begins a new one, and its own bgpd then resets the session
    /// because of that: between those two, BFD and graceful restart do not go together, whoever is at the other end.
    fn up(frr_bfd: bool) -> Self {
        tests::need_root();
        let without = |text: &str, what: &[&str]| what.iter().fold(text.to_owned(), |text, it| text.replace(it, ""));
        let ours = configuration("name: ours, addresses: [192.0.2.2]", 65_000, OUR_BGP);
        let (mut ours, mut frr) = (ours, FRR.to_owned());
        if !frr_bfd {
            ours = without(&ours, &[OUR_BFD_WITH_FRR]);
            frr = without(&frr, &[" neighbor 192.0.2.6 bfd\n", " neighbor 192.0.2.6 bfd profile watch\n"]);
        }
        let host = |name: &str, address: &str, gateway: &str| {
            Blueprint::plain(name)
                .run(&format!("ip address add {address}/24 dev eth1"))
                .run(&format!("ip route add default via {gateway}"))
        };
        let addressed = |router: Blueprint, one: &str, other: &str| {
            router
                .run(&format!("ip address add {one} dev eth1"))
                .run(&format!("ip address add {other} dev eth2"))
                .run("sysctl -q -w net.ipv4.ip_forward=1")
        };
        let network = Network::with_links(
            &[
                host("left", LEFT, "10.1.0.1"),
                addressed(Blueprint::bird_with("bird", BIRD, "-R"), "10.1.0.1/24", "192.0.2.1/30"),
                addressed(Blueprint::meshd("ours", &ours), "192.0.2.2/30", "192.0.2.6/30").address("198.51.100.2/24"),
                addressed(Blueprint::frr("frr", &frr).bfdd(BFDD), "192.0.2.5/30", "10.2.0.1/24"),
                host("right", RIGHT, "10.2.0.1"),
            ],
            &[
                ("left:eth1", "bird:eth1"),
                ("bird:eth2", "ours:eth1"),
                ("ours:eth2", "frr:eth1"),
                ("frr:eth2", "right:eth1"),
            ],
        )
        .unwrap();
        let router = |name: &str| network.router(name).unwrap();
        let (bird, ours, frr) = (router("bird"), router("ours"), router("frr"));
        let chain = Self { bird, ours, frr, network };
        chain.wait_installed(&WANTED);
        chain.bird.wait_path("10.2.0.0/24").unwrap();
        chain.frr.wait_path("10.1.0.0/24").unwrap();
        chain.wait_bfd("192.0.2.1", "up");
        if frr_bfd {
            chain.wait_bfd("192.0.2.5", "up");
        }
        let ping = || chain.network.router("left")?.run(&["ping", "-c", "1", "-W", "1", RIGHT]).map(drop);
        chain.ours.wait("a packet there and back", ping).unwrap();
        chain
    }

    /// Waits for what BFD says of the path to a peer.
    fn wait_bfd(&self, peer: &str, wanted: &str) {
        let ask = || {
            let neighbors = self.ours.node().exec(&["meshd", "bgp", "neighbors", "-o", "json"])?.json()?;
            let found = neighbors.as_array().and_then(|list| list.iter().find(|it| it["address"] == peer));
            let bfd = &found.context("no such neighbor")?["bfd"];
            ensure!(bfd == wanted, "it is {bfd}");
            Ok(())
        };
        self.ours.wait(&format!("BFD with {peer} {wanted}"), ask).unwrap();
    }

    /// Packets in both directions.
    fn traffic(&self) -> [Traffic; 2] {
        let node = |name: &str| self.network.router(name).unwrap().node().clone();
        let (left, right) = (node("left"), node("right"));
        [
            Traffic::start(&left, &right, RIGHT.parse().unwrap()).unwrap(),
            Traffic::start(&right, &left, LEFT.parse().unwrap()).unwrap(),
        ]
    }

    /// Every packet arrived, and our node's kernel was left alone. Returns how many there were.
    fn assert_nothing_lost(&self, traffic: [Traffic; 2], monitor: Running) -> u64 {
        let counted = traffic.map(|stream| stream.finish().unwrap());
        let changes = changes(monitor);
        println!("{counted:?}");
        let fine = counted.iter().all(|stream| stream.lost() == 0 && stream.sent > 100) && changes.is_empty();
        assert!(fine, "{counted:?}\n{changes:#?}\n{}", self.story());
        counted.iter().map(|stream| stream.sent).sum()
    }

    /// What explains a failure: the logs, and what our sessions said.
    fn story(&self) -> String {
        let logs = [&self.bird, &self.frr, &self.ours].map(|router| router.log().unwrap_or_default());
        let said = |peer| self.ours.run(&["meshd", "bgp", "messages", peer]).unwrap_or_default();
        format!("{}\n{}\n{}", logs.concat(), said("192.0.2.1"), said("192.0.2.5"))
    }

    fn wait_installed(&self, wanted: &[&str]) {
        let ask = || {
            let routes = installed(&self.ours)?;
            ensure!(routes == wanted, "the kernel has {routes:?}");
            Ok(())
        };
        self.ours.wait("the kernel has the routes", ask).unwrap();
    }
}

/// Routes of ours at the kernel.
fn installed(ours: &Router) -> anyhow::Result<Vec<String>> {
    let routes = ours.node().exec(&["ip", "-4", "-j", "route", "show", "proto", "77"])?.json()?;
    let mut routes: Vec<String> = routes
        .as_array()
        .context("no list of routes")?
        .iter()
        .filter_map(|route| route["dst"].as_str())
        .map(str::to_owned)
        .collect();
    routes.sort();
    Ok(routes)
}

/// Everything the kernel says about routes and nexthop objects.
fn monitor(ours: &Router) -> Running {
    ours.node().spawn(&["ip", "monitor", "route", "nexthop"]).unwrap()
}

/// Changes of ours that were heard.
fn changes(monitor: Running) -> Vec<String> {
    let heard = monitor.stop(Signal::SIGINT, Duration::from_secs(5)).unwrap();
    heard.stdout.lines().filter(|line| line.contains("proto 77")).map(str::to_owned).collect()
}

/// Packets that the node has sent on for others.
fn forwarded(ours: &Router) -> u64 {
    let text = ours.run(&["cat", "/proc/net/snmp"]).unwrap();
    let lines: Vec<Vec<&str>> =
        text.lines().filter(|line| line.starts_with("Ip:")).map(|line| line.split(' ').collect()).collect();
    let column = lines[0].iter().position(|name| *name == "ForwDatagrams").unwrap();
    lines[1][column].parse().unwrap()
}

/// The best path is stale, or is not.
fn wait_stale(router: &Router, prefix: &str, stale: bool) {
    router
        .wait(&format!("{prefix} stale: {stale}"), || {
            let paths = router.paths_to(prefix)?;
            let best = paths.iter().find(|path| path.best == Some(true)).context("there is no path")?;
            ensure!(best.stale == stale, "{paths:?}");
            Ok(())
        })
        .unwrap();
}

/// BIRD keeps our paths although we are away; it does not mark them one by one.
fn wait_bird_keeps(bird: &Router, keeps: bool) {
    let ask = || {
        let text = bird.run(&["birdc", "show", "protocols", "all", "ours"])?;
        ensure!(text.contains("Neighbor graceful restart active") == keeps, "{text}");
        Ok(())
    };
    bird.wait(&format!("our paths kept: {keeps}"), ask).unwrap();
}

#[test]
fn no_packet_is_lost_while_we_are_killed_and_start_again() {
    let chain = Chain::up(true);
    let (bird, ours, frr) = (&chain.bird, &chain.ours, &chain.frr);
    // Back at once, before the peers' BFD has noticed anything; while it notices; and when it has.
    for away in [0, 300, 1_500].map(Duration::from_millis) {
        let before = forwarded(ours);
        let (traffic, monitor) = (chain.traffic(), monitor(ours));
        ours.kill9().unwrap();
        sleep(away);
        if away > BFD_NOTICES {
            wait_bird_keeps(bird, true);
            assert_eq!(bird.paths_to("10.2.0.0/24").unwrap().len(), 1);
            wait_stale(frr, "10.1.0.0/24", true);
        }
        let started = Instant::now();
        ours.start().unwrap();
        bird.wait_established("192.0.2.2").unwrap();
        frr.wait_established("192.0.2.6").unwrap();
        let back = started.elapsed();
        println!("both sessions were back after {back:?}, having been away for {away:?}");
        assert!(back < BACK_WITHIN, "{back:?}");
        wait_bird_keeps(bird, false);
        wait_stale(frr, "10.1.0.0/24", false);
        for peer in ["192.0.2.1", "192.0.2.5"] {
            chain.wait_bfd(peer, "up");
        }
        sleep(BFD_NOTICES);
        let sent = chain.assert_nothing_lost(traffic, monitor);
        assert!(forwarded(ours) - before >= sent);
        assert_eq!(installed(ours).unwrap(), WANTED);
    }

    // What a peer takes back while we are away goes when we are back, although one peer never comes.
    ours.kill9().unwrap();
    frr.run(&[
        "vtysh",
        "-c",
        "conf t",
        "-c",
        "router bgp 65002",
        "-c",
        "address-family ipv4 unicast",
        "-c",
        "no network 10.12.0.0/24",
    ])
    .unwrap();
    ours.start().unwrap();
    bird.wait_no_path("10.12.0.0/24").unwrap();
    chain.wait_installed(&["10.1.0.0/24", "10.11.0.0/24", "10.2.0.0/24"]);
    chain.network.down().unwrap();
}

/// A peer is killed and comes back, and no packet is lost; then it comes back without one of its prefixes, which goes. `edit`
/// prints its configuration without that.
fn assert_outlived(
    chain: &Chain,
    peer: &Router,
    [stays, goes]: [&str; 2],
    (file, edit): (&str, &str),
    while_away: impl FnOnce(),
) {
    let ours = &chain.ours;
    let (traffic, monitor) = (chain.traffic(), monitor(ours));
    peer.kill9().unwrap();
    wait_stale(ours, stays, true);
    while_away();
    peer.start().unwrap();
    wait_stale(ours, stays, false);
    chain.assert_nothing_lost(traffic, monitor);

    peer.kill9().unwrap();
    wait_stale(ours, goes, true);
    peer.run(&["sh", "-c", &format!("{edit} {file} > /run/new && cat /run/new > {file}")]).unwrap();
    peer.start().unwrap();
    let left: Vec<&str> = WANTED.into_iter().filter(|prefix| *prefix != goes).collect();
    chain.wait_installed(&left);
    wait_stale(ours, stays, false);
}

#[test]
fn no_packet_is_lost_while_frr_is_killed_and_starts_again() {
    let chain = Chain::up(false);
    let edit = ("/etc/frr/bgpd.conf", "grep -v 10.12.0.0");
    assert_outlived(&chain, &chain.frr, ["10.2.0.0/24", "10.12.0.0/24"], edit, || ());
    chain.network.down().unwrap();
}

#[test]
fn no_packet_is_lost_while_bird_is_killed_and_starts_again() {
    let chain = Chain::up(true);
    let edit = ("/etc/bird/bird.conf", "sed 's/ route 10.11[^;]*;//'");
    assert_outlived(&chain, &chain.bird, ["10.1.0.0/24", "10.11.0.0/24"], edit, || chain.wait_bfd("192.0.2.1", "down"));
    chain.network.down().unwrap();
}

/// The community of paths that are kept for long (RFC 9494 section 4.6).
const LLGR_STALE: &str = "65535:6";

/// Lines of the section `bgp` of ours, which may be away for two seconds and keeps what others said for longer.
const LONG_BGP: &str = r#"  import: {accept: ["0.0.0.0/0 le 32"]}
  policies: {all: [{}]}
  graceful_restart: {restart_time_s: 2, long_lived_s: 30}
  peers:
    - {address: 192.0.2.1, remote_as: 65001, export: [all], families: {ipv4: {}}, timers: {connect_retry_s: 1}}
    - {address: 192.0.2.2, remote_as: 65002, export: [all], families: {ipv4: {}}, timers: {connect_retry_s: 1}}
    - {address: 192.0.2.3, remote_as: 65003, export: [all], families: {ipv4: {}}, timers: {connect_retry_s: 1}}"#;

/// A BIRD that may be away for two seconds, and with `long` for some more.
fn bird(number: u8, long: &str, routes: &str) -> Blueprint {
    let configuration = format!(
        "router id 192.0.2.{number};
        protocol static {{ ipv4; {routes} }}
        protocol bgp ours {{ local 192.0.2.{number} as 6500{number}; neighbor 192.0.2.10 as 65000;
          connect delay time 1; connect retry time 1; graceful restart yes; graceful restart time 2; {long}
          ipv4 {{ import all; export where source = RTS_STATIC; }}; }}"
    );
    Blueprint::bird(&format!("bird{number}"), &configuration).address(&format!("192.0.2.{number}/24"))
}

fn gateway(ours: &Router, prefix: &str) -> anyhow::Result<Option<String>> {
    let routes = ours.node().exec(&["ip", "-4", "-j", "route", "show", prefix])?.json()?;
    Ok(routes[0]["gateway"].as_str().map(str::to_owned))
}

fn wait_gateway(ours: &Router, prefix: &str, wanted: Option<&str>) {
    let ask = || {
        let gateway = gateway(ours, prefix)?;
        ensure!(gateway.as_deref() == wanted, "it is {gateway:?}");
        Ok(())
    };
    ours.wait(&format!("{prefix} is reached via {wanted:?}"), ask).unwrap();
}

/// One path, not stale for the router that has it, with or without the community.
fn wait_marked(router: &Router, prefix: &str, marked: bool) {
    let ask = || {
        let path = router.wait_path(prefix)?;
        ensure!(path.communities.contains(LLGR_STALE) == marked, "{path:?}");
        Ok(())
    };
    router.wait(&format!("{prefix} marked as long-lived stale: {marked}"), ask).unwrap();
}

#[test]
fn who_stays_away_for_long_is_the_last_choice() {
    tests::need_root();
    let long = "long lived graceful restart yes; long lived stale time 6;";
    let network = Network::up(&[
        bird(1, long, "route 10.1.0.0/24 blackhole; route 10.11.0.0/24 blackhole;"),
        bird(2, "", "route 10.2.0.0/24 blackhole;"),
        bird(3, long, "route 10.1.0.0/24 blackhole { bgp_path.prepend(65003); }; route 10.3.0.0/24 blackhole;"),
        Blueprint::meshd("ours", &configuration(NODE, 65_000, LONG_BGP)).address("192.0.2.10/24"),
    ])
    .unwrap();
    let router = |name: &str| network.router(name).unwrap();
    let (one, two, three, ours) = (router("bird1"), router("bird2"), router("bird3"), router("ours"));
    for (prefix, via) in [("10.1.0.0/24", "192.0.2.1"), ("10.11.0.0/24", "192.0.2.1"), ("10.2.0.0/24", "192.0.2.2")] {
        wait_gateway(&ours, prefix, Some(via));
    }
    wait_marked(&three, "10.11.0.0/24", false);

    one.kill9().unwrap();
    two.kill9().unwrap();
    // For two seconds nothing happens. Then the other one's path is better, and the only path is still better than none.
    wait_stale(&ours, "10.2.0.0/24", true);
    assert_eq!(gateway(&ours, "10.1.0.0/24").unwrap().as_deref(), Some("192.0.2.1"));
    wait_gateway(&ours, "10.1.0.0/24", Some("192.0.2.3"));
    wait_gateway(&ours, "10.2.0.0/24", None);
    three.wait_no_path("10.2.0.0/24").unwrap();
    wait_marked(&three, "10.11.0.0/24", true);
    wait_gateway(&ours, "10.11.0.0/24", Some("192.0.2.1"));
    wait_gateway(&ours, "10.11.0.0/24", None);
    three.wait_no_path("10.11.0.0/24").unwrap();

    // The same the other way round: we stay away.
    one.start().unwrap();
    wait_marked(&three, "10.11.0.0/24", false);
    wait_gateway(&ours, "10.1.0.0/24", Some("192.0.2.1"));
    ours.kill9().unwrap();
    wait_marked(&three, "10.11.0.0/24", true);
    ours.start().unwrap();
    wait_marked(&three, "10.11.0.0/24", false);
    assert_eq!(gateway(&ours, "10.11.0.0/24").unwrap().as_deref(), Some("192.0.2.1"));
    network.down().unwrap();
}
