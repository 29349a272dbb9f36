use super::super::tests::{World, connected, link, node, via, without};
use super::*;
use crate::{
    id::IfIndex,
    observed::{BgpChange, BgpHop, Change},
};

fn next_hop(text: &str) -> BgpNextHop {
    match text.split_once('%') {
        Some((address, link)) => {
            let link = Some(IfIndex(link.parse().expect("an index")));
            BgpNextHop { address: address.parse().expect("an address"), link }
        }
        None => BgpNextHop { address: text.parse().expect("an address"), link: None },
    }
}

fn hops(texts: &[&str]) -> BgpTarget {
    let hop = |text: &&str| {
        let (text, weight) = text.split_once('*').unwrap_or((text, "1"));
        BgpHop { next_hop: next_hop(text), weight: weight.parse().expect("a weight") }
    };
    BgpTarget::Via { hops: texts.iter().map(hop).collect(), ipv4: true }
}

fn learn(world: &mut World, prefix: &str, via: &[&str]) {
    let mut changes: Vec<BgpChange> = hops(via).hops().iter().map(|hop| BgpChange::Watch(hop.next_hop)).collect();
    let hops = (!via.is_empty()).then(|| hops(via));
    changes.push(BgpChange::Route(prefix.parse().expect("a prefix"), hops));
    world.tell(Change::Bgp(changes));
}

/// `prefix: where to`, the hops with their shares where these differ.
fn routes(world: &World) -> Vec<String> {
    let line = |(prefix, key): (IpNet, TargetKey)| {
        let target = world.desired.targets.get(&key).expect("every route has a target");
        let hop = |(index, hop): (usize, &Hop)| {
            let share = target.weights.get(index).map(|weight| format!("*{weight}")).unwrap_or_default();
            format!("{}%{}{share}", hop.via, hop.dev)
        };
        let hops: Vec<String> = target.hops.iter().enumerate().map(hop).collect();
        let problem = target.problem.as_ref().map(ToString::to_string).unwrap_or_default();
        let group = if target.uses_group() { " (group)" } else { "" };
        let drops = if target.drops { "blackhole" } else { "" };
        format!("{prefix}: {}{drops}{problem}{group}", hops.join(" "))
    };
    world.desired.all_routes().map(line).collect()
}

#[test]
fn next_hops_on_link_and_behind_a_gateway_are_found() {
    let mut world = World::new();
    learn(&mut world, "192.0.2.0/24", &["172.18.0.9"]);
    learn(&mut world, "198.51.100.0/24", &["10.9.0.1"]);
    learn(&mut world, "203.0.113.0/24", &["fe80::1%3"]);
    assert_eq!(
        routes(&world),
        [
            "192.0.2.0/24: 172.18.0.9%2",
            "198.51.100.0/24: no next hop can be used: 10.9.0.1: no route leads to it",
            "203.0.113.0/24: fe80::1%3",
        ]
    );
    world.kernel(vec![via("10.9.0.0/24", "172.18.0.1", 2)]);
    assert_eq!(routes(&world)[1], "198.51.100.0/24: 172.18.0.1%2");
    world.kernel(vec![link(3, false, 9000)]);
    assert_eq!(routes(&world)[2], "203.0.113.0/24: no next hop can be used: fe80::1%3: link 3 is down or gone");
    world.kernel(vec![link(3, true, 9000), without(connected("172.18.0.0/16", 2))]);
    assert_eq!(routes(&world)[2], "203.0.113.0/24: fe80::1%3");
    assert!(routes(&world)[0].ends_with("172.18.0.9: no route leads to it"), "{:?}", routes(&world));
}

/// A dead next hop leaves the target of all routes at once, and the target stays a group.
#[test]
fn a_dead_next_hop_changes_one_row() {
    let mut world = World::new();
    let both = ["172.18.0.8", "172.18.0.9*3"];
    for number in 0..100 {
        learn(&mut world, &format!("192.0.{number}.0/24"), &both);
    }
    assert_eq!(routes(&world)[7], "192.0.7.0/24: 172.18.0.8%2*1 172.18.0.9%2*3 (group)");
    let before = world.desired.clone();
    world.tell(Change::Bgp(vec![BgpChange::Dead(next_hop("172.18.0.9"), true)]));
    assert_eq!(routes(&world)[7], "192.0.7.0/24: 172.18.0.8%2 (group)");
    assert_eq!(world.desired.bgp.diff(&before.bgp).count(), 0);
    assert_eq!(world.desired.targets.diff(&before.targets).count(), 1);
    world.tell(Change::Bgp(vec![BgpChange::Dead(next_hop("172.18.0.9"), false)]));
    assert_eq!(routes(&world)[7], "192.0.7.0/24: 172.18.0.8%2*1 172.18.0.9%2*3 (group)");
}

/// A prefix that a node of the mesh holds is the node's; BGP's path waits for it to go.
#[test]
fn a_node_of_the_mesh_wins_over_a_path() {
    let mut world = World::new();
    learn(&mut world, "10.1.0.0/24", &["172.18.0.9"]);
    assert_eq!(routes(&world), ["10.1.0.0/24: 172.18.0.9%2"]);
    world.node("east", "a", node(2, &["172.18.0.3"], &["10.1.0.0/24"]));
    assert_eq!(routes(&world), ["10.1.0.0/24: 172.18.0.3%2"]);
    learn(&mut world, "10.1.0.0/24", &["172.18.0.8"]);
    assert_eq!(routes(&world), ["10.1.0.0/24: 172.18.0.3%2"]);
    world.node("east", "a", None);
    assert_eq!(routes(&world), ["10.1.0.0/24: 172.18.0.8%2"]);
    learn(&mut world, "10.1.0.0/24", &[]);
    assert_eq!(routes(&world), Vec::<String>::new());
    assert!(world.desired.targets.is_empty(), "{:?}", world.desired.targets);
}

#[test]
fn a_next_hop_nobody_uses_is_forgotten() {
    let mut world = World::new();
    learn(&mut world, "192.0.2.0/24", &["172.18.0.9"]);
    assert!(world.desired.next_hops.get(&next_hop("172.18.0.9")).expect("an answer").is_reachable());
    learn(&mut world, "192.0.2.0/24", &[]);
    world.tell(Change::Bgp(vec![BgpChange::Unwatch(next_hop("172.18.0.9"))]));
    assert!(world.desired.next_hops.is_empty());
}

/// RFC 7999: nothing has to be reached for packets to be dropped, whatever becomes of the next hops of others.
#[test]
fn packets_are_dropped_for_both_families_without_a_next_hop() {
    let mut world = World::new();
    let drop = |prefix: &str| BgpChange::Route(prefix.parse().expect("a prefix"), Some(BgpTarget::Drop));
    world.tell(Change::Bgp(vec![drop("192.0.2.7/32"), drop("2001:db8::7/128")]));
    learn(&mut world, "192.0.2.0/24", &["172.18.0.9"]);
    world.tell(Change::Bgp(vec![BgpChange::Dead(next_hop("172.18.0.9"), true)]));
    let lines = routes(&world);
    assert!(lines.contains(&"192.0.2.7/32: blackhole".to_owned()), "{lines:?}");
    assert!(lines.contains(&"2001:db8::7/128: blackhole".to_owned()), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("192.0.2.0/24: no next hop")), "{lines:?}");
    learn(&mut world, "192.0.2.7/32", &["172.18.0.8"]);
    assert!(routes(&world).contains(&"192.0.2.7/32: 172.18.0.8%2".to_owned()), "{:?}", routes(&world));
}
