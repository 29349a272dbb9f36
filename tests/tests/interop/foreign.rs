//! The routers among themselves.

use tests::routers::{Blueprint, EXABGP_API, Network, Path};

/// What a path of the harness must look like after it crossed a session.
fn assert_attributes(path: &Path, as_path: &str, next_hop: &str) {
    assert_eq!((path.origin.as_str(), path.as_path.as_str()), ("igp", as_path), "{path:?}");
    assert_eq!(path.next_hops.first().map(String::as_str), Some(next_hop), "{path:?}");
    assert_eq!(path.communities, ["65001:1".to_owned(), "65001:2".to_owned()].into(), "{path:?}");
    assert_eq!(path.large, ["4200000001:1:2".to_owned()].into(), "{path:?}");
    assert_eq!(path.extended, ["rt:65001:7".to_owned()].into(), "{path:?}");
}

const BIRD: &str = "
router id 192.0.2.1;
protocol static { ipv4; route 10.1.0.0/24 blackhole {
  bgp_community.add((65001,1)); bgp_community.add((65001,2));
  bgp_large_community.add((4200000001,1,2)); bgp_ext_community.add((rt,65001,7)); }; }
protocol static { ipv6; route fd10:1::/64 blackhole; }
protocol bgp { local 192.0.2.1 as 4200000001; neighbor 192.0.2.2 as 65002; connect delay time 1; connect retry time 1;
  ipv4 { import all; export all; }; ipv6 { import all; export all; }; }
";

const FRR: &str = "
router bgp 65002
 bgp router-id 192.0.2.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.1 remote-as 4200000001
 neighbor 192.0.2.1 timers connect 1
 address-family ipv4 unicast
  network 10.2.0.0/24 route-map marked
 exit-address-family
 address-family ipv6 unicast
  network fd10:2::/64
  neighbor 192.0.2.1 activate
 exit-address-family
route-map marked permit 10
 set community 65001:1 65001:2
 set large-community 4200000001:1:2
 set extcommunity rt 65001:7
";

/// BIRD and FRR on one switch, with addresses of both families.
fn bird_and_frr() -> Network {
    tests::need_root();
    Network::up(&[
        Blueprint::bird("bird", BIRD).address("192.0.2.1/24").address("fd00::1/64"),
        Blueprint::frr("frr", FRR).address("192.0.2.2/24").address("fd00::2/64"),
    ])
    .unwrap()
}

#[test]
fn bird_and_frr_tell_the_same() {
    let network = bird_and_frr();
    let (bird, frr) = (network.router("bird").unwrap(), network.router("frr").unwrap());
    bird.wait_established("192.0.2.2").unwrap();
    frr.wait_established("192.0.2.1").unwrap();
    assert_attributes(&frr.wait_path("10.1.0.0/24").unwrap(), "4200000001", "192.0.2.1");
    assert_attributes(&bird.wait_path("10.2.0.0/24").unwrap(), "65002", "192.0.2.2");
    assert_eq!(frr.wait_path("fd10:1::/64").unwrap().next_hops.first().unwrap(), "fd00::1");
    assert_eq!(bird.wait_path("fd10:2::/64").unwrap().next_hops.first().unwrap(), "fd00::2");
    assert_eq!(bird.complaints().unwrap(), Vec::<String>::new());
    assert_eq!(frr.complaints().unwrap(), Vec::<String>::new());
    network.down().unwrap();
}

#[test]
fn a_crash_and_a_restart_are_seen() {
    let network = bird_and_frr();
    let (bird, frr) = (network.router("bird").unwrap(), network.router("frr").unwrap());
    bird.wait_path("10.2.0.0/24").unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    frr.kill9().unwrap();
    bird.wait_down("192.0.2.2").unwrap();
    frr.start().unwrap();
    bird.wait_established("192.0.2.2").unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    bird.stop().unwrap();
    frr.wait_no_path("10.1.0.0/24").unwrap();
    bird.start().unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    network.down().unwrap();
}

#[test]
fn gobgp_and_exabgp_tell_the_same() {
    tests::need_root();
    let gobgp = "
global: {config: {as: 65002, router-id: 192.0.2.2}}
neighbors:
  - config: {neighbor-address: 192.0.2.1, peer-as: 65001}
    afi-safis: [{config: {afi-safi-name: ipv4-unicast}}, {config: {afi-safi-name: ipv6-unicast}}]
";
    let exabgp = format!(
        "neighbor 192.0.2.2 {{ router-id 192.0.2.1; local-address 192.0.2.1; local-as 65001; peer-as 65002;
           family {{ ipv4 unicast; ipv6 unicast; }}
           {EXABGP_API} }}"
    );
    let network = Network::up(&[
        Blueprint::exabgp("exabgp", &exabgp).address("192.0.2.1/24").address("fd00::1/64"),
        Blueprint::gobgp("gobgp", gobgp).address("192.0.2.2/24").address("fd00::2/64"),
    ])
    .unwrap();
    let (exabgp, gobgp) = (network.router("exabgp").unwrap(), network.router("gobgp").unwrap());
    gobgp.wait_established("192.0.2.1").unwrap();
    exabgp.wait_established("192.0.2.2").unwrap();
    exabgp
        .tell(
            "announce route 10.1.0.0/24 next-hop 192.0.2.1 med 50 community [65001:1 65001:2] \
             large-community [4200000001:1:2] extended-community [target:65001:7]",
        )
        .unwrap();
    let path = gobgp.wait_path("10.1.0.0/24").unwrap();
    assert_attributes(&path, "65001", "192.0.2.1");
    assert_eq!(path.med, Some(50));
    gobgp
        .run(&[
            "gobgp",
            "global",
            "rib",
            "add",
            "10.2.0.0/24",
            "origin",
            "igp",
            "community",
            "65001:1,65001:2",
            "large-community",
            "4200000001:1:2",
            "rt",
            "65001:7",
        ])
        .unwrap();
    assert_attributes(&exabgp.wait_path("10.2.0.0/24").unwrap(), "65002", "192.0.2.2");
    gobgp.run(&["gobgp", "global", "rib", "add", "-a", "ipv6", "fd10:2::/64", "nexthop", "fd00::2"]).unwrap();
    assert_eq!(exabgp.wait_path("fd10:2::/64").unwrap().next_hops, ["fd00::2"]);
    exabgp.tell("withdraw route 10.1.0.0/24 next-hop 192.0.2.1").unwrap();
    gobgp.wait_no_path("10.1.0.0/24").unwrap();
    assert_eq!(gobgp.complaints().unwrap(), Vec::<String>::new());
    assert_eq!(exabgp.complaints().unwrap(), Vec::<String>::new());
    network.down().unwrap();
}
