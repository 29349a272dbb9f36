use super::super::tests::{World, link, node, via};
use super::*;
use crate::{
    derive::{PathPolicy, TunnelSettings},
    id::IfIndex,
    observed::{Change, KernelChange, LinkRow},
};

fn tunnel(index: u32, up: bool) -> KernelChange {
    let KernelChange::Link(_, Some(row)) = link(index, up, 1450) else { unreachable!("a link") };
    KernelChange::Link(IfIndex(index), Some(LinkRow { name: TUNNEL_LINK.into(), ..row }))
}

fn policy(mode: PathMode) -> PathPolicy {
    PathPolicy {
        mode,
        tunnel: Some(TunnelSettings { port: 8472, vni: 2, geneve: false, any_source: false }),
        ..PathPolicy::default()
    }
}

fn found(row: Option<PathRow>) -> Change {
    let key = PathKey { cluster: "east".parse().unwrap(), node: "a".parse().unwrap(), ipv4: true };
    Change::Paths(vec![(key, row)])
}

const BROKEN: PathRow = PathRow { broken: true, native_mtu: None, tunnel_mtu: None };

/// Every route as `prefix hops`, or `prefix ! problem`.
fn routes(world: &World) -> Vec<String> {
    let line = |(prefix, key): (IpNet, TargetKey)| {
        let target = world.desired.targets.get(&key).unwrap();
        let hops: Vec<String> = target.hops.iter().map(ToString::to_string).collect();
        let mtu = if target.narrow { format!(" mtu {}", target.mtu) } else { String::new() };
        match &target.problem {
            Some(problem) => format!("{prefix} ! {}", problem.to_string().split(';').next().unwrap()),
            None => format!("{prefix} {}{mtu}", hops.join(" ")),
        }
    };
    world.desired.all_routes().map(line).collect()
}

fn world(mode: PathMode) -> World {
    let mut world = World::new();
    world.policy(policy(mode));
    world.kernel(vec![tunnel(7, true)]);
    world.node("east", "a", node(2, &["172.18.0.3"], &["10.1.0.0/24"]));
    world
}

const NATIVE: &str = "10.1.0.0/24 via 172.18.0.3 dev 2";
const TUNNELLED: &str = "10.1.0.0/24 encap 172.18.0.3 id 2 dev 7";
const PINNED: &str = "10.1.0.0/32 via 172.18.0.3 dev 2";

#[test]
fn a_broken_path_leads_through_the_tunnel_and_its_probes_stay_native() {
    let mut world = world(PathMode::Auto);
    assert_eq!(routes(&world), [NATIVE]);
    world.tell(found(Some(BROKEN)));
    assert_eq!(routes(&world), [TUNNELLED, PINNED]);
    world.tell(found(None));
    assert_eq!(routes(&world), [NATIVE]);
    // What probes found counts for nobody who decides by himself.
    world.tell(found(Some(BROKEN)));
    world.policy(policy(PathMode::Native));
    assert_eq!(routes(&world), [NATIVE]);
    world.policy(PathPolicy { tunnel: None, ..policy(PathMode::Auto) });
    assert_eq!(routes(&world), [NATIVE]);
    world.policy(policy(PathMode::Tunnel));
    assert_eq!(routes(&world), [TUNNELLED]);
    world.policy(policy(PathMode::Auto));
    world.node("east", "a", None);
    assert_eq!(routes(&world), [] as [&str; 0], "and nothing of the probes is left");
}

#[test]
fn without_the_tunnel_s_link_a_broken_path_stays_native() {
    let mut world = world(PathMode::Auto);
    world.tell(found(Some(BROKEN)));
    world.kernel(vec![tunnel(7, false)]);
    assert_eq!(routes(&world), [NATIVE]);
    world.kernel(vec![KernelChange::Link(IfIndex(7), None), tunnel(9, true)]);
    assert_eq!(routes(&world), ["10.1.0.0/24 encap 172.18.0.3 id 2 dev 9", PINNED], "made again");
    world.policy(policy(PathMode::Tunnel));
    world.kernel(vec![KernelChange::Link(IfIndex(9), None)]);
    assert_eq!(routes(&world), ["10.1.0.0/24 ! the tunnel's link meshd_vxlan is not up"]);
}

#[test]
fn a_node_behind_a_gateway_is_reached_through_the_tunnel() {
    let mut world = world(PathMode::Auto);
    world.kernel(vec![via("192.0.2.0/24", "172.18.0.1", 2)]);
    world.node("east", "a", node(2, &["192.0.2.7"], &["10.1.0.0/24", "fd00:1::/64"]));
    let through = ["10.1.0.0/24 encap 192.0.2.7 id 2 dev 7", "fd00:1::/64 encap 192.0.2.7 id 2 dev 7"];
    assert_eq!(routes(&world), through);
    world.policy(policy(PathMode::Native));
    assert!(routes(&world)[0].contains("not on-link"), "{:?}", routes(&world));
}

#[test]
fn a_narrow_path_says_so_on_its_routes() {
    let mut world = world(PathMode::Auto);
    world.tell(found(Some(PathRow { native_mtu: Some(1396), ..PathRow::default() })));
    assert_eq!(routes(&world), ["10.1.0.0/24 via 172.18.0.3 dev 2 mtu 1396", PINNED]);
    world.tell(found(Some(PathRow { tunnel_mtu: Some(1340), ..BROKEN })));
    assert_eq!(routes(&world), ["10.1.0.0/24 encap 172.18.0.3 id 2 dev 7 mtu 1340", PINNED]);
    // An underlay that is narrower than the tunnel's link.
    world.tell(found(Some(BROKEN)));
    world.kernel(vec![link(2, true, 1400)]);
    assert_eq!(routes(&world), ["10.1.0.0/24 encap 172.18.0.3 id 2 dev 7 mtu 1350", PINNED]);
}
