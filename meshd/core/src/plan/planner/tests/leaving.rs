//! Routes that go with their nexthop object, and routes that are looked at once.

use super::*;
use crate::observed::BgpTargetId;

fn prefix(number: u32) -> IpNet {
    format!("10.{}.{}.0/24", number / 256, number % 256).parse().unwrap()
}

/// So many routes to node `a` at the kernel, and one to node `b`.
fn several(count: u32) -> (Kernel, RoutePlanner, Desired) {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    for number in 0..count {
        desired.routes.upsert(prefix(number), Arc::new(RouteRow { target: target("a") }));
    }
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    want(&mut desired, "192.0.2.0/24", "b");
    desired.targets.upsert(target("b"), hops(&["172.18.0.4"]));
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, at(0));
    (kernel, planner, desired)
}

fn without_a(desired: &Desired, count: u32) -> Desired {
    let mut desired = desired.clone();
    (0..count).for_each(|number| drop(desired.routes.remove(&prefix(number))));
    desired.targets.remove(&target("a"));
    desired
}

/// The kernel says nothing of the routes that go with an object: the planner knows all the same.
#[test]
fn many_routes_over_one_object_go_with_it_and_come_back() {
    let (mut kernel, mut planner, desired) = several(4);
    planner.set_desired(&without_a(&desired, 4), true);
    assert_eq!(settle(&mut planner, &mut kernel, at(1)), ["delete nexthop 77000000 with its 4 routes"]);
    assert_eq!((kernel.routes.len(), planner.actual_routes()), (1, 1));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(2));
    assert_eq!(done.len(), 5, "{done:?}");
    assert_eq!(kernel.routes.len(), 5);
}

#[test]
fn few_routes_are_deleted_one_by_one() {
    let (mut kernel, mut planner, desired) = several(2);
    planner.set_desired(&without_a(&desired, 2), true);
    let done = settle(&mut planner, &mut kernel, at(1));
    assert_eq!(
        done,
        ["delete route 10.0.0.0/24 metric 77", "delete route 10.0.1.0/24 metric 77", "delete nexthop 77000000"]
    );
}

#[test]
fn an_object_that_one_wanted_route_needs_stays() {
    let (mut kernel, mut planner, mut desired) = several(5);
    (0..4).for_each(|number| drop(desired.routes.remove(&prefix(number))));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(1));
    assert_eq!(done.len(), 4, "{done:?}");
    assert!(done.iter().all(|action| action.starts_with("delete route")), "{done:?}");
}

#[test]
fn nothing_is_flushed_before_everybody_was_heard() {
    let (kernel, _, desired) = several(4);
    let mut planner = start(&kernel, true);
    planner.set_desired(&without_a(&desired, 4), false);
    assert!(planner.plan(at(1)).0.iter().all(|action| !action.is_delete()));
    planner.set_desired(&without_a(&desired, 4), true);
    let (actions, _) = planner.plan(at(2));
    assert!(actions.iter().any(|action| matches!(action, Action::DeleteNexthop { routes: 4, .. })), "{actions:?}");
}

/// What somebody wanted in this run may go before everybody was heard.
#[test]
fn retired_routes_go_with_their_object() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let (_, _, desired) = several(4);
    planner.set_desired(&desired, false);
    settle(&mut planner, &mut kernel, at(0));
    planner.set_desired(&without_a(&desired, 4), false);
    assert_eq!(settle(&mut planner, &mut kernel, at(1)), ["delete nexthop 77000000 with its 4 routes"]);
}

#[test]
fn routes_of_a_refused_flush_go_one_by_one() {
    let (mut kernel, mut planner, desired) = several(4);
    planner.set_desired(&without_a(&desired, 4), true);
    let (actions, _) = planner.plan(at(1));
    assert_eq!(actions.len(), 1, "{actions:?}");
    assert_eq!(planner.plan(at(1)).0, [], "it is under way");
    // One of its routes is wanted again meanwhile.
    let mut one = without_a(&desired, 4);
    want(&mut one, "10.0.2.0/24", "b");
    planner.set_desired(&one, true);
    let (moved, _) = planner.plan(at(1));
    assert_eq!(
        moved.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["replace route 10.0.2.0/24 nhid 77000001 metric 77"]
    );
    let told: Vec<ActualChange> = moved.iter().flat_map(|action| kernel.apply(action).unwrap()).collect();
    planner.refused(&actions[0], "EBUSY", at(1));
    let (single, _) = planner.plan(at(1));
    let prefixes: Vec<IpNet> = single.iter().filter_map(Action::prefix).collect();
    assert_eq!(prefixes, [prefix(0), prefix(1), prefix(3)], "the move of the fourth is not heard yet");
    single.iter().for_each(|action| kernel.apply(action).unwrap().into_iter().for_each(|it| planner.observe(it)));
    told.into_iter().for_each(|change| planner.observe(change));
    assert_eq!(settle(&mut planner, &mut kernel, at(2)), ["delete nexthop 77000000"]);
    assert_eq!(kernel.routes.len(), 2);
}

/// Deletions that are under way count: the rest goes at once.
#[test]
fn the_rest_of_routes_that_leave_in_portions_goes_with_the_object() {
    let (mut kernel, mut planner, desired) = several(6);
    let mut fewer = desired.clone();
    (0..2).for_each(|number| drop(fewer.routes.remove(&prefix(number))));
    planner.set_desired(&fewer, true);
    let (first, _) = planner.plan(at(1));
    assert_eq!(first.len(), 2, "{first:?}");
    planner.set_desired(&without_a(&desired, 6), true);
    let (second, _) = planner.plan(at(1));
    assert_eq!(
        second.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["delete nexthop 77000000 with its 6 routes"]
    );
    first.iter().for_each(|action| kernel.apply(action).unwrap().into_iter().for_each(|it| planner.observe(it)));
    let Action::DeleteNexthop { id, .. } = second[0] else { panic!("{second:?}") };
    kernel.apply(&Action::DeleteNexthop { id, routes: 4 }).unwrap().into_iter().for_each(|it| planner.observe(it));
    assert_eq!(settle(&mut planner, &mut kernel, at(2)), Vec::<String>::new());
    assert_eq!(planner.actual_routes(), 1);
}

/// `ip nexthop del` by somebody else takes routes along without a word.
#[test]
fn routes_of_an_object_that_somebody_deletes_are_installed_again() {
    let (mut kernel, mut planner, _) = several(3);
    let id = NexthopId(77_000_000);
    kernel.nexthops.remove(&id);
    kernel.routes.retain(|_, via| *via != RouteVia::Object(id));
    planner.observe(ActualChange::Nexthop(id, None));
    let done = settle(&mut planner, &mut kernel, at(1));
    assert_eq!(done.len(), 4, "{done:?}");
    assert_eq!(kernel.routes.len(), 4);
}

/// While a first look at all routes goes on, routes that arrive before and behind it are planned once: the kernel refuses to
/// add what is on its way already.
#[test]
fn routes_that_arrive_during_the_first_look_are_planned_once() {
    let kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    let behind = TargetKey::Bgp(BgpTargetId(0));
    desired.targets.upsert(behind.clone(), hops(&["172.18.0.9"]));
    let count = 2 * PLAN_ACTIONS_MAX as u32;
    let net = |number: u32| -> IpNet {
        format!("10.{}.{}.{}/32", number >> 16, number >> 8 & 255, number & 255).parse().unwrap()
    };
    for number in (0..count).step_by(2) {
        desired.bgp.put(net(number), BgpTargetId(0));
    }
    planner.set_desired(&desired, true);
    let mut planned = planner.plan(at(0)).0;
    for number in (1..count).step_by(2) {
        desired.bgp.put(net(number), BgpTargetId(0));
    }
    planner.set_desired(&desired, true);
    // A second set of next hops is no reason to look at the routes of the first one again.
    desired.targets.upsert(TargetKey::Bgp(BgpTargetId(1)), hops(&["172.18.0.8"]));
    desired.bgp.put("192.0.2.0/24".parse().unwrap(), BgpTargetId(1));
    planner.set_desired(&desired, true);
    loop {
        let (round, _) = planner.plan(at(0));
        if round.is_empty() {
            break;
        }
        planned.extend(round);
    }
    let mut prefixes: Vec<IpNet> = planned.iter().filter_map(Action::prefix).collect();
    assert_eq!(prefixes.len(), count as usize + 1);
    prefixes.sort_unstable();
    prefixes.dedup();
    assert_eq!(prefixes.len(), count as usize + 1);
}

/// Routes whose next hop could not be told when they were looked at are planned when it can.
#[test]
fn routes_of_a_set_that_gets_its_next_hop_later_are_planned() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    let behind = TargetKey::Bgp(BgpTargetId(0));
    desired.targets.upsert(behind.clone(), problem(RouteProblem::KernelUnknown));
    desired.bgp.put(prefix(1), BgpTargetId(0));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(0)), Vec::<String>::new());
    desired.targets.upsert(behind, hops(&["172.18.0.9"]));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(1)).len(), 2);
}

/// A prefix that changes hands keeps the route it has under the old metric until the new one is installed: also while there is
/// no next hop, and when the kernel refuses. The first rows of the mesh are looked at in another way than later ones.
#[test]
fn a_route_under_another_metric_stays_until_its_successor_is_installed() {
    let mut kernel = Kernel::default();
    let mut planner = RoutePlanner::new(PlannerOptions { bgp_metric: Metric(90), ..options(true) });
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    let mut desired = Desired::default();
    desired.bgp.put(prefix(0), BgpTargetId(0));
    desired.targets.upsert(TargetKey::Bgp(BgpTargetId(0)), hops(&["172.18.0.9"]));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(0)).len(), 2);

    want(&mut desired, "10.0.0.0/24", "a");
    desired.targets.upsert(target("a"), problem(RouteProblem::KernelUnknown));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(1)), Vec::<String>::new());
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    assert_eq!(settle(&mut planner, &mut kernel, at(2)), Vec::<String>::new());

    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    let (actions, _) = planner.plan(at(3));
    assert!(actions.iter().all(|action| !action.is_delete()), "{actions:?}");
    for action in &actions {
        match action {
            Action::PutRoute { .. } => planner.refused(action, "ENOBUFS", at(3)),
            _ => kernel.apply(action).unwrap().into_iter().for_each(|change| planner.observe(change)),
        }
    }
    assert_eq!(planner.plan(at(3)).0, []);
    let done = settle(&mut planner, &mut kernel, at(1_000));
    assert_eq!(done, ["add route 10.0.0.0/24 nhid 77000001 metric 77", "delete route 10.0.0.0/24 metric 90"]);

    desired.routes.remove(&prefix(0));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(2_000));
    assert_eq!(done, ["add route 10.0.0.0/24 nhid 77000000 metric 90", "delete route 10.0.0.0/24 metric 77"]);
}
