//! From observed rows to exact exclusions.

use super::*;
use crate::{
    id::{ClusterId, MaxClusters},
    observed::{Change, ClusterChange, KeptBy, KernelChange, LinkRow, NodeAddress, NodeAddressKind, NodeRow},
};
use jiff::Timestamp;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn local() -> LocalNode {
    LocalNode {
        cluster: "west".parse().unwrap(),
        name: "a".parse().unwrap(),
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        pod_cidrs: vec![net("10.0.1.0/24"), net("fd00:0:1::/64")],
        zone: None,
    }
}

struct World {
    observed: Observed,
    desired: Desired,
    routes: super::super::RouteDeriver,
    masquerade: MasqueradeDeriver,
}

impl World {
    fn new(limit: usize) -> Self {
        let mut routes = super::super::RouteDeriver::new(local(), BTreeMap::new());
        routes.settle();
        let masquerade = MasqueradeDeriver::with_limit(local(), limit);
        Self { observed: Observed::default(), desired: Desired::default(), routes, masquerade }
    }

    fn tell(&mut self, change: Change) {
        self.observed.apply(change, Timestamp::UNIX_EPOCH);
        let touched = self.observed.take_touched();
        self.routes.update(&self.observed, &touched, Timestamp::UNIX_EPOCH, &mut self.desired);
        self.masquerade.update(&self.observed, &touched, &mut self.desired);
    }

    fn on(&mut self, kept: &[&str]) {
        let kept = kept.iter().map(|text| (net(text), KeptBy::Configuration)).collect();
        let row = MasqueradeRow { kept, ..MasqueradeRow::default() };
        self.tell(Change::Masquerade(MasqueradeSetting::On(Arc::new(row))));
    }

    fn node(&mut self, cluster: &str, name: &str, row: Option<(&[&str], &[&str])>) {
        let row = row.map(|(addresses, pod_cidrs)| {
            let address = |(i, ip): (usize, &&str)| NodeAddress {
                kind: [NodeAddressKind::InternalIP, NodeAddressKind::ExternalIP, NodeAddressKind::CiliumInternalIP]
                    [i % 3],
                ip: ip.parse().unwrap(),
            };
            Arc::new(NodeRow {
                health: Box::default(),
                ingress: Box::default(),
                cluster_id: ClusterId::new(2, MaxClusters::C255).unwrap(),
                addresses: addresses.iter().enumerate().map(address).collect(),
                pod_cidrs: pod_cidrs.iter().map(|text| net(text)).collect(),
                labels: Default::default(),
            })
        });
        let change = ClusterChange::Node(name.parse().unwrap(), row);
        self.tell(Change::Cluster(cluster.parse().unwrap(), vec![change]));
    }

    fn set(&self, set: ExclusionSet) -> Vec<String> {
        let of = self.desired.masquerade.exclusions.iter().filter(|((of, _), ())| *of == set);
        of.map(|((_, prefix), ())| prefix.to_string()).collect()
    }

    fn rules(&self) -> &MasqueradeRules {
        match &self.desired.masquerade.wish {
            MasqueradeWish::On(rules) => rules,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_source_of_exclusions_is_heard_and_off_forgets_them() {
    let mut world = World::new(EXCLUSIONS_MAX);
    world.node("east", "e", Some((&["172.18.0.2", "198.51.100.2", "10.1.0.7"], &["10.1.0.0/24", "fd00:1::/64"])));
    assert_eq!(world.desired.masquerade.wish, MasqueradeWish::Unknown);
    assert!(world.desired.masquerade.exclusions.is_empty());
    world.on(&["192.168.0.0/16", "fe80::/10"]);
    let nodes = ["10.1.0.7/32", "172.18.0.2/32", "192.0.2.1/32", "198.51.100.2/32", "2001:db8::1/128"];
    for _ in 0..2 {
        assert_eq!(world.set(ExclusionSet::Kept), ["192.168.0.0/16", "fe80::/10"]);
        assert_eq!(world.set(ExclusionSet::Pods), ["10.0.1.0/24", "10.1.0.0/24", "fd00:0:1::/64", "fd00:1::/64"]);
        assert_eq!(world.set(ExclusionSet::Nodes), nodes);
        world.tell(Change::Masquerade(MasqueradeSetting::Off));
        assert_eq!(world.desired.masquerade.wish, MasqueradeWish::Off);
        assert!(world.desired.masquerade.exclusions.is_empty());
        world.on(&["192.168.0.0/16", "fe80::/10"]);
    }
    // A node that moves, a prefix that it gives up, and its end.
    world.node("east", "e", Some((&["172.18.0.9"], &["10.1.0.0/24"])));
    assert_eq!(world.set(ExclusionSet::Nodes), ["172.18.0.9/32", "192.0.2.1/32", "2001:db8::1/128"]);
    assert_eq!(world.set(ExclusionSet::Pods), ["10.0.1.0/24", "10.1.0.0/24", "fd00:0:1::/64"]);
    world.node("east", "e", None);
    assert_eq!(world.set(ExclusionSet::Nodes), ["192.0.2.1/32", "2001:db8::1/128"]);
    assert_eq!(world.set(ExclusionSet::Pods), ["10.0.1.0/24", "fd00:0:1::/64"]);
}

#[test]
fn an_address_of_two_nodes_stays_until_both_are_gone() {
    let mut world = World::new(EXCLUSIONS_MAX);
    world.on(&[]);
    world.node("east", "e", Some((&["172.18.0.2"], &[])));
    world.node("north", "n", Some((&["172.18.0.2"], &[])));
    world.node("east", "e", None);
    assert!(world.set(ExclusionSet::Nodes).contains(&"172.18.0.2/32".to_owned()));
    world.node("north", "n", None);
    assert!(!world.set(ExclusionSet::Nodes).contains(&"172.18.0.2/32".to_owned()));
}

#[test]
fn of_nested_prefixes_the_outermost_is_there() {
    let mut set = PrefixSet::default();
    let (outer, left, right, deep) = (net("10.0.0.0/8"), net("10.1.0.0/16"), net("10.2.0.0/16"), net("10.1.1.0/24"));
    assert_eq!(set.add(deep), [(deep, true)]);
    assert_eq!(set.add(left), [(deep, false), (left, true)]);
    assert_eq!(set.add(right), [(right, true)]);
    assert_eq!(set.add(left), []);
    assert_eq!(set.add(outer), [(left, false), (right, false), (outer, true)]);
    assert_eq!(set.remove(deep), []);
    assert_eq!(set.add(deep), []);
    assert_eq!(set.remove(left), []);
    assert_eq!(set.remove(outer), [(outer, false), (left, true), (right, true)]);
    assert_eq!(set.remove(left), [(left, false), (deep, true)]);
    assert_eq!(set.remove(net("10.9.0.0/16")), []);
    assert_eq!(set.add(net("::/0")), [(net("::/0"), true)], "the families are apart");
}

#[test]
fn the_limit_keeps_what_people_asked_for_and_room_is_used_again() {
    let mut world = World::new(5);
    world.node("east", "e", Some((&["172.18.0.2"], &["10.1.0.0/24"])));
    world.on(&[]);
    // Three prefixes of workloads and two of three node addresses.
    let masquerade = &world.desired.masquerade;
    assert_eq!((masquerade.exclusions.len(), masquerade.left_out), (5, 1));
    assert_eq!(world.set(ExclusionSet::Nodes), ["172.18.0.2/32", "192.0.2.1/32"]);
    world.on(&["203.0.113.0/24", "198.51.100.0/24"]);
    assert_eq!(world.set(ExclusionSet::Kept).len(), 2);
    assert_eq!(world.set(ExclusionSet::Pods).len(), 3);
    assert_eq!((world.set(ExclusionSet::Nodes).len(), world.desired.masquerade.left_out), (0, 3));
    world.node("east", "e", None);
    assert_eq!(world.set(ExclusionSet::Nodes), ["192.0.2.1/32"]);
    assert_eq!(world.desired.masquerade.left_out, 1);
    world.on(&[]);
    assert_eq!((world.desired.masquerade.exclusions.len(), world.desired.masquerade.left_out), (4, 0));
}

#[test]
fn uplinks_are_the_links_with_the_nodes_addresses_unless_named() {
    let mut world = World::new(EXCLUSIONS_MAX);
    let link = |index, name: &str, loopback| {
        let row = LinkRow { name: name.into(), up: true, running: true, loopback, mtu: 1500, kind: None, mac: None };
        KernelChange::Link(IfIndex(index), Some(row))
    };
    let address = |index, text: &str, there: bool| {
        let key = AddressKey { link: IfIndex(index), address: text.parse().unwrap() };
        KernelChange::Address(key, there.then_some(AddressRow { usable: true }))
    };
    world.tell(Change::Kernel(vec![
        link(1, "lo", true),
        link(2, "eth0", false),
        link(3, "cni0", false),
        link(4, "eth1", false),
        address(1, "192.0.2.1/32", true),
        address(2, "192.0.2.1/24", true),
        address(3, "10.0.1.1/24", true),
        address(4, "2001:db8::1/64", true),
    ]));
    world.on(&[]);
    assert_eq!(world.rules().uplinks, ["eth0".into(), "eth1".into()].into());
    assert_eq!(world.rules().sources.len(), 2);
    world.tell(Change::Kernel(vec![address(4, "2001:db8::1/64", false), link(2, "uplink", false)]));
    assert_eq!(world.rules().uplinks, ["uplink".into()].into());
    let address = "192.0.2.7".parse().unwrap();
    let row = MasqueradeRow { uplinks: vec!["bond0".into()], addresses: vec![address], ..MasqueradeRow::default() };
    world.tell(Change::Masquerade(MasqueradeSetting::On(Arc::new(row))));
    let rules = world.rules();
    assert_eq!((&rules.uplinks, rules.ipv4, rules.ipv6), (&["bond0".into()].into(), Some(address), None));
}
