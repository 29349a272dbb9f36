//! A path to a peer dies without a word: BFD (RFC 5880, 5881, 5882) notices, and routes move.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tests::{
    links::set_link,
    routers::{Blueprint, DEADLINE, Network, Path, Router},
};

use super::configurations::{NODE, configuration};

/// What a path may take to be declared dead at 50 ms times 3.
const DETECTION_MAX: Duration = Duration::from_millis(200);
/// What routes may take to be elsewhere.
const MOVE_MAX: Duration = Duration::from_millis(300);

/// Lines of the section `bgp` of ours.
const OUR_BGP: &str = r#"  multipath: {ebgp: 4, relax: true}
  import: {accept: ["0.0.0.0/0 le 32"]}
  policies: {all: [{}]}
  peer_groups:
    watched:
      export: [all]
      families: {ipv4: {}}
      bfd: {transmit_ms: 50, receive_ms: 50, multiplier: 3}
  peers:
    - {address: 192.0.2.1, remote_as: 65001, group: watched}
    - {address: 192.0.2.2, remote_as: 65002, group: watched}
    - {address: 192.0.2.3, remote_as: 65003, group: watched, bfd: {enabled: false}}"#;

/// One path that only BIRD has, one that a longer way also leads to, and many that FRR has just as well.
const BIRD: &str = r#"
router id 192.0.2.1;
protocol static { ipv4; ROUTES }
protocol bfd { interface "eth0" { min rx interval 50 ms; min tx interval 50 ms; multiplier 3; }; }
protocol bgp ours { local 192.0.2.1 as 65001; neighbor 192.0.2.10 as 65000; bfd on; error wait time 1, 2; connect delay time 1; connect retry time 1;
  ipv4 { import all; export where source = RTS_STATIC; }; }
"#;

const FRR: &str = "
router bgp 65002
 bgp router-id 192.0.2.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.10 remote-as 65000
 neighbor 192.0.2.10 timers connect 1
 neighbor 192.0.2.10 bfd
 neighbor 192.0.2.10 bfd profile quick
 address-family ipv4 unicast
";

const BFDD: &str = "
bfd
 profile quick
  receive-interval 50
  transmit-interval 50
  detect-multiplier 3
";

const BACKUP: &str = "
router id 192.0.2.3;
protocol static { ipv4; route 10.1.0.0/24 blackhole { bgp_path.prepend(65003); }; }
protocol bgp ours { local 192.0.2.3 as 65003; neighbor 192.0.2.10 as 65000; connect delay time 1; connect retry time 1;
  ipv4 { import all; export where source = RTS_STATIC; }; }
";

/// Prefixes that both have.
const SHARED: u8 = 50;
/// The ports of the switch by router.
const BIRD_PORT: &str = "port0";
const FRR_PORT: &str = "port1";

fn world() -> Network {
    tests::need_root();
    let shared = |line: &dyn Fn(u8) -> String| (0..SHARED).map(line).collect::<String>();
    let routes = shared(&|number| format!("route 10.5.{number}.0/24 blackhole; "));
    let bird = BIRD.replace("ROUTES", &format!("route 10.1.0.0/24 blackhole; route 10.11.0.0/24 blackhole; {routes}"));
    let networks = shared(&|number| format!("  network 10.5.{number}.0/24\n"));
    let frr = format!("{FRR}  network 10.2.0.0/24\n{networks} exit-address-family\n");
    Network::up(&[
        Blueprint::bird("bird", &bird).address("192.0.2.1/24"),
        Blueprint::frr("frr", &frr).bfdd(BFDD).address("192.0.2.2/24"),
        Blueprint::bird("backup", BACKUP).address("192.0.2.3/24"),
        Blueprint::meshd("ours", &configuration(NODE, 65_000, OUR_BGP)).address("192.0.2.10/24"),
    ])
    .unwrap()
}

fn neighbor(ours: &Router, address: &str) -> anyhow::Result<Value> {
    let neighbors = ours.node().exec(&["meshd", "bgp", "neighbors", "-o", "json"])?.json()?;
    let found = neighbors.as_array().and_then(|list| list.iter().find(|it| it["address"] == address));
    found.cloned().with_context(|| format!("no {address} in {neighbors}"))
}

fn wait_neighbor(ours: &Router, address: &str, is_established: bool, bfd: &str) {
    ours.wait(&format!("{address} established: {is_established}, BFD {bfd}"), || {
        let peer = neighbor(ours, address)?;
        ensure!((peer["state"] == "established") == is_established && peer["bfd"] == bfd, "{peer}");
        Ok(())
    })
    .unwrap();
}

/// Gateways of a route, sorted; the kernel is asked for what a nexthop object means.
fn gateways(ours: &Router, prefix: &str) -> anyhow::Result<Vec<String>> {
    let routes = ours.node().exec(&["ip", "-4", "-j", "route", "show", prefix])?.json()?;
    let route = &routes[0];
    let hops = route["nexthops"].as_array().cloned().unwrap_or_else(|| vec![route.clone()]);
    let mut gateways: Vec<String> = hops.iter().filter_map(|hop| hop["gateway"].as_str()).map(str::to_owned).collect();
    gateways.sort();
    Ok(gateways)
}

fn wait_gateways(ours: &Router, prefix: &str, wanted: &[&str]) {
    ours.wait(&format!("{prefix} goes to {wanted:?}"), || {
        let gateways = gateways(ours, prefix)?;
        ensure!(gateways == wanted, "it goes to {gateways:?}");
        Ok(())
    })
    .unwrap();
}

/// When the kernel stopped to send packets for a prefix to a gateway. Asked of procfs, which takes microseconds.
fn wait_moved(ours: &Router, prefix: [u8; 4], gateway: [u8; 4]) -> Instant {
    let hex = |address: [u8; 4]| format!("{:08X}", u32::from_le_bytes(address));
    let (prefix, gateway) = (hex(prefix), hex(gateway));
    let moved = ours.node().within(|| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let table = std::fs::read_to_string("/proc/thread-self/net/route")?;
            let now = Instant::now();
            let is_route =
                |line: &&str| line.split('\t').nth(1) == Some(&prefix) && line.split('\t').nth(2) == Some(&gateway);
            if table.lines().find(is_route).is_none() {
                return Ok(now);
            }
            if now >= deadline {
                bail!("it is still there");
            }
        }
    });
    moved.unwrap().unwrap()
}

/// The other end of a cable is pulled: our link stays up, nothing comes any more.
fn set_port(network: &Network, port: &str, state: &str) {
    network.switch().unwrap().within(|| set_link(port, state == "up")).unwrap().unwrap();
}

/// When our log says that a path died.
fn detected(ours: &Router, since: jiff::Timestamp) -> anyhow::Result<jiff::Timestamp> {
    let log = ours.log()?;
    let line = |line: &&str| line.contains("the path to a BGP peer is dead");
    let times = log.lines().filter(line).filter_map(|line| line.split_whitespace().next()?.parse().ok());
    times.into_iter().find(|at| *at >= since).context("it says nothing")
}

/// Pulls a cable: the path is soon known to be dead, and the kernel soon sends nothing for a prefix to the gateway behind it.
fn assert_moves_when_cut(network: &Network, port: &str, prefix: [u8; 4], gateway: [u8; 4]) {
    let ours = network.router("ours").unwrap();
    set_port(network, port, "down");
    // The path is cut when the link is down, not when that was asked for.
    let (cut, cut_at) = (jiff::Timestamp::try_from(SystemTime::now()).unwrap(), Instant::now());
    let moved = wait_moved(&ours, prefix, gateway) - cut_at;
    let found = ours.wait("a line in the log", || detected(&ours, cut)).unwrap();
    let noticed = Duration::try_from(found.duration_since(cut)).unwrap();
    println!("{port}: noticed after {noticed:?}, moved after {moved:?}");
    assert!(noticed < DETECTION_MAX, "{noticed:?}");
    assert!(moved < MOVE_MAX, "{moved:?}");
}

#[test]
fn a_dead_path_is_noticed_and_routes_move() {
    let network = world();
    let ours = network.router("ours").unwrap();
    wait_neighbor(&ours, "192.0.2.1", true, "up");
    wait_neighbor(&ours, "192.0.2.2", true, "up");
    wait_gateways(&ours, "10.1.0.0/24", &["192.0.2.1"]);
    wait_gateways(&ours, "10.11.0.0/24", &["192.0.2.1"]);
    wait_gateways(&ours, "10.5.49.0/24", &["192.0.2.1", "192.0.2.2"]);
    ours.wait_established("192.0.2.3").unwrap();
    ours.wait("both ways to 10.1.0.0/24", || {
        let from = |path: &Path| path.from.as_deref() == Some("192.0.2.3");
        ensure!(ours.paths_to("10.1.0.0/24")?.iter().any(from));
        Ok(())
    })
    .unwrap();

    assert_moves_when_cut(&network, BIRD_PORT, [10, 1, 0, 0], [192, 0, 2, 1]);
    wait_neighbor(&ours, "192.0.2.1", false, "down");
    let status = ours.node().exec(&["meshd", "status"]).unwrap();
    assert!(!status.success() && status.stdout.contains("192.0.2.1"), "{}", status.stdout);
    wait_gateways(&ours, "10.1.0.0/24", &["192.0.2.3"]);
    wait_gateways(&ours, "10.11.0.0/24", &[]);
    wait_gateways(&ours, "10.5.49.0/24", &["192.0.2.2"]);

    set_port(&network, BIRD_PORT, "up");
    wait_neighbor(&ours, "192.0.2.1", true, "up");
    wait_gateways(&ours, "10.1.0.0/24", &["192.0.2.1"]);
    wait_gateways(&ours, "10.5.49.0/24", &["192.0.2.1", "192.0.2.2"]);

    assert_moves_when_cut(&network, FRR_PORT, [10, 2, 0, 0], [192, 0, 2, 2]);
    wait_neighbor(&ours, "192.0.2.2", false, "down");
    network.down().unwrap();
}
