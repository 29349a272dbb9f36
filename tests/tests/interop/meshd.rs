//! Ours between the others: what one of them says, another one hears through us, and the kernel of our node has it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::routers::{Blueprint, Network, Path};

const MESHD: &str = r#"
cluster: {name: west, id: 1}
node: {name: ours, addresses: [192.0.2.10], pod_cidrs: [10.0.1.0/24]}
store: {mode: embedded, listen: "127.0.0.1:2379"}
bgp:
  asn: 4200000000
  import: {accept: ["0.0.0.0/0 le 32", "::/0 le 128"]}
  policies: {all: [{}]}
  advertise: [{pod_cidrs: true}]
  peers:
    - {address: 192.0.2.1, remote_as: 4200000001, export: [all], families: {ipv4: {}, ipv6: {}}}
    - {address: 192.0.2.2, remote_as: 65002, export: [all], families: {ipv4: {}, ipv6: {}}}
"#;

const BIRD: &str = "
router id 192.0.2.1;
protocol static { ipv4; route 10.1.0.0/24 blackhole {
  bgp_med = 7; bgp_community.add((65001,1)); bgp_community.add((65001,2));
  bgp_large_community.add((4200000001,1,2)); bgp_ext_community.add((rt,65001,7)); }; }
protocol static { ipv6; route fd10:1::/64 blackhole; }
protocol bgp { local 192.0.2.1 as 4200000001; neighbor 192.0.2.10 as 4200000000; connect delay time 1; connect retry time 1;
  ipv4 { import all; export all; }; ipv6 { import all; export all; }; }
";

const FRR: &str = "
router bgp 65002
 bgp router-id 192.0.2.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.10 remote-as 4200000000
 neighbor 192.0.2.10 timers connect 1
 address-family ipv4 unicast
  network 10.2.0.0/24 route-map marked
 exit-address-family
 address-family ipv6 unicast
  network fd10:2::/64
  neighbor 192.0.2.10 activate
 exit-address-family
route-map marked permit 10
 set community 65001:1 65001:2
 set large-community 4200000001:1:2
 set extcommunity rt 65001:7
";

fn world() -> Network {
    tests::need_root();
    Network::up(&[
        Blueprint::bird("bird", BIRD).address("192.0.2.1/24").address("fd00::1/64"),
        Blueprint::frr("frr", FRR).address("192.0.2.2/24").address("fd00::2/64").zebra(""),
        Blueprint::meshd("ours", MESHD).address("192.0.2.10/24").address("fd00::10/64"),
    ])
    .unwrap()
}

fn assert_attributes(path: &Path, as_path: &str) {
    assert_eq!((path.origin.as_str(), path.as_path.as_str()), ("igp", as_path), "{path:?}");
    assert_eq!(path.communities, ["65001:1".to_owned(), "65001:2".to_owned()].into(), "{path:?}");
    assert_eq!(path.large, ["4200000001:1:2".to_owned()].into(), "{path:?}");
    assert_eq!(path.extended, ["rt:65001:7".to_owned()].into(), "{path:?}");
}

/// What the kernel of our node must have, and nothing else of ours.
const WANTED: [&str; 4] =
    ["10.1.0.0/24 via 192.0.2.1", "10.2.0.0/24 via 192.0.2.2", "fd10:1::/64 via fd00::1", "fd10:2::/64 via fd00::2"];

fn wait_installed(network: &Network, wanted: &[&str]) {
    let ask = || {
        let routes = installed(network);
        anyhow::ensure!(routes == wanted, "the kernel has {routes:?}");
        Ok(())
    };
    network.router("ours").unwrap().wait("the kernel has the routes", ask).unwrap();
}

/// Routes of ours at the kernel, as `PREFIX via GATEWAY`.
fn installed(network: &Network) -> Vec<String> {
    let ours = network.router("ours").unwrap();
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let output = ours.node().exec(&["ip", family, "-j", "route", "show", "proto", "77"]).unwrap();
        for route in output.json().unwrap().as_array().unwrap() {
            routes.push(format!("{} via {}", route["dst"].as_str().unwrap(), route["gateway"].as_str().unwrap()));
        }
    }
    routes.sort();
    routes
}

#[test]
fn paths_go_through_us_with_all_their_attributes() {
    let network = world();
    let (bird, frr) = (network.router("bird").unwrap(), network.router("frr").unwrap());
    let path = frr.wait_path("10.1.0.0/24").unwrap();
    assert_attributes(&path, "4200000000 4200000001");
    assert_eq!(path.med, None, "MED does not go from one AS through the next (RFC 4271 section 5.1.4)");
    assert_attributes(&bird.wait_path("10.2.0.0/24").unwrap(), "4200000000 65002");
    frr.wait_path("fd10:1::/64").unwrap();
    bird.wait_path("fd10:2::/64").unwrap();
    frr.wait_path("10.0.1.0/24").unwrap();
    wait_installed(&network, &WANTED);
    assert_eq!(bird.complaints().unwrap(), Vec::<String>::new());
    assert_eq!(frr.complaints().unwrap(), Vec::<String>::new());
    network.down().unwrap();
}

/// kill -9 and a restart: the kernel hears nothing of it, and the peers keep our paths.
#[test]
fn a_killed_speaker_comes_back_without_a_change_of_routes() {
    let network = world();
    let (frr, ours) = (network.router("frr").unwrap(), network.router("ours").unwrap());
    frr.wait_path("10.1.0.0/24").unwrap();
    wait_installed(&network, &WANTED);
    let monitor = ours.node().spawn(&["ip", "monitor", "route", "nexthop"]).unwrap();
    ours.kill9().unwrap();
    frr.wait_down("192.0.2.10").unwrap();
    ours.start().unwrap();
    frr.wait_established("192.0.2.10").unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    let heard = monitor.stop(Signal::SIGINT, Duration::from_secs(5)).unwrap();
    let changes: Vec<&str> = heard.stdout.lines().filter(|line| line.contains("proto 77")).collect();
    assert_eq!(changes, Vec::<&str>::new());
    assert_eq!(installed(&network), WANTED);
    network.down().unwrap();
}
