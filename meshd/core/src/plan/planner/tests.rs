mod leaving;

use std::sync::Arc;

use super::{super::ActualChange, *};
use crate::{
    desired::{Hop, NodeTarget, RouteMode, RouteProblem, RouteRow, Target},
    id::{IfIndex, MAIN_TABLE, NEXTHOP_IDS, ROUTE_METRIC},
    table::RowState,
};

/// A kernel that does what it is told, tells what it did, and knows the two rules that matter: `EEXIST` for an add of
/// what is there, and a nexthop that goes takes its routes along.
#[derive(Default)]
struct Kernel {
    routes: BTreeMap<ActualKey, RouteVia>,
    nexthops: BTreeMap<NexthopId, ActualNexthop>,
    foreign: Vec<ActualKey>,
    log: Vec<String>,
}

impl Kernel {
    fn dump(&self) -> Vec<ActualChange> {
        let nexthops = self.nexthops.iter().map(|(id, n)| ActualChange::Nexthop(*id, Some(n.clone())));
        let route = |via: &RouteVia| Some(ActualRoute { via: via.clone(), regular: true });
        let routes = self.routes.iter().map(|(key, via)| ActualChange::Route(*key, route(via)));
        let rows = nexthops.chain(routes);
        [ActualChange::DumpBegin].into_iter().chain(rows).chain([ActualChange::DumpEnd]).collect()
    }

    fn apply(&mut self, action: &Action) -> Result<Vec<ActualChange>, String> {
        self.log.push(action.to_string());
        let exists = |there: bool, replace: bool| match (there, replace) {
            (true, false) => Err("EEXIST".to_owned()),
            (false, true) => Err("ENOENT".to_owned()),
            _ => Ok(()),
        };
        match action {
            Action::PutNexthop { id, hop, replace } => {
                exists(self.nexthops.contains_key(id), *replace)?;
                self.nexthops.insert(*id, ActualNexthop::Hop(*hop));
                Ok(vec![ActualChange::Nexthop(*id, Some(ActualNexthop::Hop(*hop)))])
            }
            Action::PutGroup { id, members, replace } => {
                exists(self.nexthops.contains_key(id), *replace)?;
                assert!(members.iter().all(|m| matches!(self.nexthops.get(&m.id), Some(ActualNexthop::Hop(_)))));
                self.nexthops.insert(*id, ActualNexthop::Group(members.clone()));
                Ok(vec![ActualChange::Nexthop(*id, Some(ActualNexthop::Group(members.clone())))])
            }
            Action::PutRoute { key, via, replace } => {
                exists(self.foreign.contains(key) || self.routes.contains_key(key), *replace)?;
                if let RouteVia::Object(id) = via {
                    assert!(self.nexthops.contains_key(id), "route before its nexthop: {action}");
                }
                self.routes.insert(*key, via.clone());
                Ok(vec![ActualChange::Route(*key, Some(ActualRoute { via: via.clone(), regular: true }))])
            }
            Action::DeleteRoute { key } => {
                self.routes.remove(key).ok_or("ESRCH")?;
                Ok(vec![ActualChange::Route(*key, None)])
            }
            Action::DeleteNexthop { id, routes } => {
                let over = |via: &RouteVia| *via == RouteVia::Object(*id);
                assert_eq!(
                    self.routes.values().filter(|via| over(via)).count(),
                    *routes,
                    "{action} would delete others"
                );
                self.nexthops.remove(id).ok_or("ENOENT")?;
                self.routes.retain(|_, via| !over(via));
                Ok(vec![ActualChange::Nexthop(*id, None)])
            }
        }
    }
}

fn options(nexthop_objects: bool) -> PlannerOptions {
    let metric = Metric(ROUTE_METRIC);
    let table = TableId(MAIN_TABLE);
    PlannerOptions { table, metric, bgp_metric: metric, nexthop_objects, flush_routes_min: 3 }
}

fn target(node: &str) -> TargetKey {
    NodeTarget { cluster: "east".parse().unwrap(), node: node.parse().unwrap(), ipv4: true }.into()
}

fn hops(vias: &[&str]) -> Arc<Target> {
    let hops = vias.iter().map(|via| Hop { via: via.parse().unwrap(), dev: IfIndex(2), tunnel: None }).collect();
    Arc::new(Target::native(hops, 1500))
}

fn broken() -> Arc<Target> {
    problem(RouteProblem::NoAddress { node: "east/a".into(), family: "IPv4" })
}

fn problem(problem: RouteProblem) -> Arc<Target> {
    Arc::new(Target::unreachable(problem, RouteMode::Native))
}

fn want(desired: &mut Desired, prefix: &str, node: &str) {
    desired.routes.upsert(prefix.parse().unwrap(), Arc::new(RouteRow { target: target(node) }));
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

/// Plans and applies until nothing is left; returns what was done.
fn settle(planner: &mut RoutePlanner, kernel: &mut Kernel, now: Timestamp) -> Vec<String> {
    kernel.log.clear();
    for _ in 0..100 {
        let (actions, _) = planner.plan(now);
        if actions.is_empty() {
            return std::mem::take(&mut kernel.log);
        }
        let mut told = Vec::new();
        for action in &actions {
            match kernel.apply(action) {
                Ok(changes) => told.extend(changes),
                Err(message) => planner.refused(action, &message, now),
            }
        }
        told.into_iter().for_each(|change| planner.observe(change));
    }
    panic!("the planner never settles: {:?}", kernel.log);
}

fn start(kernel: &Kernel, objects: bool) -> RoutePlanner {
    let mut planner = RoutePlanner::new(options(objects));
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    planner
}

/// A planner that has heard that `kernel` holds what it holds, and wants one route to node `a`.
fn wanting_one(kernel: &Kernel, objects: bool) -> (RoutePlanner, Desired) {
    let mut planner = start(kernel, objects);
    let mut desired = Desired::default();
    want(&mut desired, "10.1.0.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    (planner, desired)
}

/// One route to node `a` at the kernel, with everything that led there.
fn installed() -> (Kernel, RoutePlanner, Desired) {
    let mut kernel = Kernel::default();
    let (mut planner, desired) = wanting_one(&kernel, true);
    settle(&mut planner, &mut kernel, at(0));
    (kernel, planner, desired)
}

#[test]
fn nothing_is_planned_before_the_first_dump() {
    let mut planner = RoutePlanner::new(options(true));
    let mut desired = Desired::default();
    want(&mut desired, "10.1.0.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    assert_eq!(planner.plan(at(0)).0, []);
}

#[test]
fn a_route_is_added_through_its_object_moved_by_one_action_and_taken_back() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    want(&mut desired, "10.1.0.0/24", "a");
    want(&mut desired, "10.1.1.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    assert_eq!(
        settle(&mut planner, &mut kernel, at(0)),
        [
            "add nexthop 77000000 via 172.18.0.3 dev 2",
            "add route 10.1.0.0/24 nhid 77000000 metric 77",
            "add route 10.1.1.0/24 nhid 77000000 metric 77",
        ]
    );
    desired.targets.upsert(target("a"), hops(&["172.18.0.9"]));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(0)), ["replace nexthop 77000000 via 172.18.0.9 dev 2"]);
    planner.set_desired(&Desired::default(), true);
    assert_eq!(
        settle(&mut planner, &mut kernel, at(0)),
        ["delete route 10.1.0.0/24 metric 77", "delete route 10.1.1.0/24 metric 77", "delete nexthop 77000000",]
    );
}

#[test]
fn several_hops_make_a_group_and_shrinking_gives_it_back() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    want(&mut desired, "10.1.0.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3", "172.18.0.4"]));
    planner.set_desired(&desired, true);
    assert_eq!(
        settle(&mut planner, &mut kernel, at(0)),
        [
            "add nexthop 77000000 via 172.18.0.3 dev 2",
            "add nexthop 77000001 via 172.18.0.4 dev 2",
            "add nexthop 77000002 group 77000000 77000001",
            "add route 10.1.0.0/24 nhid 77000002 metric 77",
        ]
    );
    desired.targets.upsert(target("a"), hops(&["172.18.0.4"]));
    planner.set_desired(&desired, true);
    let log = settle(&mut planner, &mut kernel, at(0));
    assert_eq!(kernel.routes.len(), 1);
    assert_eq!(kernel.nexthops.len(), 1, "{log:?}");
    assert!(log.contains(&"replace route 10.1.0.0/24 nhid 77000000 metric 77".to_owned()), "{log:?}");
}

#[test]
fn without_objects_the_hops_are_in_the_route() {
    let mut kernel = Kernel::default();
    let (mut planner, mut desired) = wanting_one(&kernel, false);
    let log = settle(&mut planner, &mut kernel, at(0));
    assert_eq!(log, ["add route 10.1.0.0/24 via 172.18.0.3 dev 2 metric 77"]);
    desired.targets.upsert(target("a"), hops(&["172.18.0.4"]));
    planner.set_desired(&desired, true);
    let log = settle(&mut planner, &mut kernel, at(0));
    assert_eq!(log, ["replace route 10.1.0.0/24 via 172.18.0.4 dev 2 metric 77"]);
}

#[test]
fn a_restart_adopts_what_is_there_and_does_nothing() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    for (prefix, node, via) in [("10.1.0.0/24", "a", "172.18.0.3"), ("10.1.1.0/24", "b", "172.18.0.2")] {
        want(&mut desired, prefix, node);
        desired.targets.upsert(target(node), hops(&[via]));
    }
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, at(0));
    let mut restarted = start(&kernel, true);
    restarted.set_desired(&Desired::default(), false);
    assert_eq!(settle(&mut restarted, &mut kernel, at(0)), [""; 0], "nobody has been heard yet: nothing is pruned");
    // The other node's rows come first: ids must not be swapped.
    let mut only_b = Desired::default();
    want(&mut only_b, "10.1.1.0/24", "b");
    only_b.targets.upsert(target("b"), hops(&["172.18.0.2"]));
    restarted.set_desired(&only_b, false);
    assert_eq!(settle(&mut restarted, &mut kernel, at(0)), [""; 0]);
    restarted.set_desired(&desired, true);
    assert_eq!(settle(&mut restarted, &mut kernel, at(0)), [""; 0]);
    assert_eq!(restarted.counts(), (2, 0));
}

#[test]
fn left_over_routes_wait_until_everybody_was_heard() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    want(&mut desired, "10.1.0.0/24", "a");
    want(&mut desired, "10.1.1.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, at(0));
    let mut restarted = start(&kernel, true);
    restarted.set_desired(&desired, false);
    settle(&mut restarted, &mut kernel, at(0));
    desired.routes.remove(&"10.1.1.0/24".parse().unwrap());
    restarted.set_desired(&desired, false);
    assert_eq!(
        settle(&mut restarted, &mut kernel, at(0)),
        ["delete route 10.1.1.0/24 metric 77"],
        "what this run wanted once may go at once"
    );
    let mut again = start(&kernel, true);
    again.set_desired(&Desired::default(), false);
    assert_eq!(settle(&mut again, &mut kernel, at(0)), [""; 0]);
    again.set_desired(&Desired::default(), true);
    assert_eq!(
        settle(&mut again, &mut kernel, at(0)),
        ["delete route 10.1.0.0/24 metric 77", "delete nexthop 77000000"]
    );
}

#[test]
fn left_over_routes_of_clusters_that_are_gone_do_not_wait() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    for prefix in ["10.1.0.0/24", "10.1.1.0/24", "10.2.0.0/24"] {
        want(&mut desired, prefix, "a");
    }
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, at(0));
    let mut restarted = start(&kernel, true);
    desired.routes.remove(&"10.1.0.0/24".parse().unwrap());
    desired.routes.remove(&"10.2.0.0/24".parse().unwrap());
    restarted.set_desired(&desired, false);
    // One of the two that are known to be left over is wanted by somebody else now.
    restarted.retire(["10.1.0.0/24", "10.1.1.0/24"].map(|prefix| prefix.parse().unwrap()));
    assert_eq!(settle(&mut restarted, &mut kernel, at(0)), ["delete route 10.1.0.0/24 metric 77"]);
    assert_eq!(settle(&mut restarted, &mut kernel, at(60)), [""; 0], "whose the other is nobody knows yet");
}

#[test]
fn drift_is_repaired() {
    let (mut kernel, mut planner, _desired) = installed();
    let key = *kernel.routes.keys().next().unwrap();
    kernel.routes.clear();
    planner.observe(ActualChange::Route(key, None));
    assert_eq!(settle(&mut planner, &mut kernel, at(0)), ["add route 10.1.0.0/24 nhid 77000000 metric 77"]);
    kernel.routes.clear();
    kernel.nexthops.clear();
    planner.observe(ActualChange::Nexthop(NexthopId(77_000_000), None));
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    assert_eq!(
        settle(&mut planner, &mut kernel, at(0)),
        ["add nexthop 77000000 via 172.18.0.3 dev 2", "add route 10.1.0.0/24 nhid 77000000 metric 77"]
    );
    let changed = ActualRoute { via: RouteVia::Hops(Box::default()), regular: false };
    planner.observe(ActualChange::Route(key, Some(changed)));
    assert_eq!(settle(&mut planner, &mut kernel, at(0)), ["replace route 10.1.0.0/24 nhid 77000000 metric 77"]);
}

#[test]
fn a_foreign_route_in_the_way_is_an_error_and_retried_with_growing_waits() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    want(&mut desired, "10.1.0.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    kernel.foreign.push(planner.key("10.1.0.0/24".parse().unwrap()));
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, at(0));
    assert_eq!(planner.counts(), (0, 1));
    let first = planner.plan(at(1)).1.unwrap();
    settle(&mut planner, &mut kernel, first);
    let second = planner.plan(first).1.unwrap();
    assert!(second.duration_since(first) > first.duration_since(at(0)), "{first} {second}");
    kernel.foreign.clear();
    let log = settle(&mut planner, &mut kernel, second);
    assert_eq!(log, ["add route 10.1.0.0/24 nhid 77000000 metric 77"]);
    assert_eq!(planner.counts(), (1, 0));
    assert_eq!(planner.plan(second).1, None);
}

#[test]
fn a_route_outlives_a_short_loss_of_its_next_hop_and_goes_after_the_hold() {
    let (mut kernel, mut planner, mut desired) = installed();
    desired.targets.upsert(target("a"), broken());
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(1000)), [""; 0]);
    assert_eq!(planner.counts(), (0, 1));
    let wake = planner.plan(at(1000)).1.unwrap();
    assert_eq!(wake, at(1000) + WITHDRAW_HOLD);
    assert_eq!(settle(&mut planner, &mut kernel, wake), ["delete route 10.1.0.0/24 metric 77"]);
    assert_eq!(planner.plan(wake).1, None, "nothing is left to wait for");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, wake);
    assert_eq!(planner.counts(), (1, 0));
}

#[test]
fn adopted_routes_stay_however_long_the_local_network_takes_to_be_read() {
    let (mut kernel, _before, mut desired) = installed();
    let mut planner = start(&kernel, true);
    desired.targets.upsert(target("a"), problem(RouteProblem::KernelUnknown));
    planner.set_desired(&desired, true);
    assert_eq!(planner.plan(at(0)), (Vec::new(), None));
    assert_eq!(planner.plan(at(0) + WITHDRAW_HOLD * 100), (Vec::new(), None));
    // What was broken and is unknown now starts its hold anew when it is known to be broken.
    desired.targets.upsert(target("a"), broken());
    planner.set_desired(&desired, true);
    let late = at(0) + WITHDRAW_HOLD * 100;
    assert_eq!(planner.plan(late), (Vec::new(), Some(late + WITHDRAW_HOLD)));
    desired.targets.upsert(target("a"), problem(RouteProblem::KernelUnknown));
    planner.set_desired(&desired, true);
    assert_eq!(planner.plan(late + WITHDRAW_HOLD), (Vec::new(), None));
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, late), [] as [&str; 0]);
    assert_eq!(planner.counts(), (1, 0));
}

#[test]
fn a_route_without_a_next_hop_is_deleted_once_and_a_refusal_is_retried_with_growing_waits() {
    let (mut kernel, mut planner, mut desired) = installed();
    desired.targets.upsert(target("a"), broken());
    planner.set_desired(&desired, true);
    let wake = planner.plan(at(0)).1.unwrap();
    assert_eq!(planner.preview(wake).len(), 1, "a preview comes to an end although the kernel says nothing");
    let (first, again) = planner.plan(wake);
    assert_eq!(first.len(), 1);
    assert_eq!(again, None, "the answer of the kernel is waited for");
    assert_eq!(planner.plan(wake).0, []);
    planner.refused(&first[0], "ENOMEM", wake);
    let (actions, retry) = planner.plan(wake);
    assert_eq!(actions, []);
    assert_eq!(retry, Some(wake + RETRY_MIN));
    let (second, _) = planner.plan(wake + RETRY_MIN);
    assert_eq!(second, first);
    planner.refused(&second[0], "ENOMEM", wake + RETRY_MIN);
    assert_eq!(planner.plan(wake + RETRY_MIN).1, Some(wake + RETRY_MIN * 3));
    // A dump that still holds the route forgets the deletion under way.
    planner.plan(wake + RETRY_MIN * 3);
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    settle(&mut planner, &mut kernel, wake + RETRY_MAX * 2);
    assert_eq!(planner.actual_routes(), 0);
}

#[test]
fn routes_of_ours_with_another_metric_are_surplus() {
    let (mut kernel, _planner, desired) = installed();
    let mut moved = RoutePlanner::new(PlannerOptions { metric: Metric(50), bgp_metric: Metric(50), ..options(true) });
    kernel.dump().into_iter().for_each(|change| moved.observe(change));
    moved.set_desired(&desired, true);
    assert_eq!(
        settle(&mut moved, &mut kernel, at(0)),
        ["add route 10.1.0.0/24 nhid 77000000 metric 50", "delete route 10.1.0.0/24 metric 77"]
    );
}

#[test]
fn a_big_plan_comes_in_rounds_and_deletions_last() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    for i in 0..20_000_u32 {
        want(&mut desired, &format!("10.{}.{}.0/24", i / 256, i % 256), "a");
    }
    planner.set_desired(&desired, true);
    assert_eq!(planner.plan(at(0)).0.len(), PLAN_ACTIONS_MAX);
    let mut planner = start(&kernel, true);
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, at(0));
    assert_eq!(kernel.routes.len(), 20_000);
    assert!(planner.is_settled());
}

#[test]
fn foreign_objects_in_our_range_are_passed_over() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let first = NexthopId(*NEXTHOP_IDS.start());
    planner.observe(ActualChange::Nexthop(first, Some(ActualNexthop::Foreign)));
    let mut desired = Desired::default();
    want(&mut desired, "10.1.0.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    planner.set_desired(&desired, true);
    let now = at(0);
    settle(&mut planner, &mut kernel, now);
    let ids = |kernel: &Kernel| kernel.nexthops.keys().copied().collect::<Vec<_>>();
    let second = NexthopId(first.0 + 1);
    assert_eq!(ids(&kernel), [second]);
    // Somebody puts an object of theirs in the place of ours: the route moves to a new one, theirs stays.
    planner.observe(ActualChange::Nexthop(second, Some(ActualNexthop::Foreign)));
    let actions = settle(&mut planner, &mut kernel, now);
    let third = NexthopId(first.0 + 2);
    assert_eq!(actions.len(), 2, "an object and a route: {actions:?}");
    assert!(ids(&kernel).contains(&third));
    assert!(kernel.routes.values().all(|via| *via == RouteVia::Object(third)), "{:?}", kernel.routes);
    assert_eq!(planner.counts(), (1, 0));
    // Neither goes with everything of ours.
    let deleted: Vec<_> =
        planner.withdraw_all().into_iter().filter(|a| matches!(a, Action::DeleteNexthop { .. })).collect();
    assert_eq!(deleted, [Action::DeleteNexthop { id: third, routes: 0 }]);
}

#[test]
fn prefixes_that_never_reach_the_kernel_are_not_remembered_without_end() {
    let (kernel, mut planner, mut desired) = installed();
    planner.prune_all = false;
    for n in 0..3 * RETIRED_SPARE {
        let prefix: IpNet = format!("10.{}.{}.0/24", 100 + n / 256, n % 256).parse().unwrap();
        desired.targets.upsert(target("a"), broken());
        desired.routes.upsert(prefix, Arc::new(RouteRow { target: target("a") }));
        planner.set_desired(&desired, false);
        desired.routes.remove(&prefix);
        planner.set_desired(&desired, false);
        assert!(planner.retired.len() <= RETIRED_SPARE + 2 * kernel.routes.len() + 1);
    }
    // What the kernel held is not forgotten over that.
    desired.routes.remove(&"10.1.0.0/24".parse().unwrap());
    planner.set_desired(&desired, false);
    assert!(planner.plan(at(0)).0.iter().any(|action| matches!(action, Action::DeleteRoute { .. })));
}

/// A peer is lost right behind a bulk load: nobody has heard of its routes yet, and not everybody was heard in this run.
#[test]
fn routes_that_were_written_unheard_and_are_wanted_no_more_go_at_once() {
    use crate::observed::BgpTargetId;
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    let count = 2 * RETIRED_SPARE + 7;
    for number in 0..count {
        desired.bgp.put(format!("10.{}.{}.0/24", number / 256, number % 256).parse().unwrap(), BgpTargetId(0));
    }
    desired.targets.upsert(TargetKey::Bgp(BgpTargetId(0)), hops(&["172.18.0.9"]));
    planner.set_desired(&desired, false);
    loop {
        let (actions, _) = planner.plan(at(0));
        if actions.is_empty() {
            break;
        }
        for action in &actions {
            kernel.apply(action).unwrap();
        }
    }
    assert_eq!(kernel.routes.len(), count);
    // The withdrawals come in portions.
    let prefixes: Vec<IpNet> = desired.bgp.iter().map(|(prefix, _)| *prefix).collect();
    for portion in prefixes.chunks(4_096) {
        for prefix in portion {
            desired.bgp.remove(prefix);
        }
        planner.set_desired(&desired, false);
        assert_eq!(planner.plan(at(1)).0, []);
    }
    planner.set_desired(&Desired::default(), false);
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    settle(&mut planner, &mut kernel, at(2));
    assert_eq!(kernel.routes.len(), 0);
}

#[test]
fn what_is_retired_before_the_first_dump_is_kept_whatever_its_number() {
    let mut planner = RoutePlanner::new(options(true));
    let prefix = |n: usize| format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap();
    planner.retire((0..2 * RETIRED_SPARE).map(prefix));
    let mut desired = Desired::default();
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    for name in ["172.30.0.0/24", "172.30.1.0/24"] {
        want(&mut desired, name, "a");
        planner.set_desired(&desired, false);
    }
    assert_eq!(planner.retired.len(), 2 * RETIRED_SPARE);
}

#[test]
fn an_id_that_a_foreign_object_has_is_left_to_it() {
    let mut kernel = Kernel::default();
    let (mut planner, _) = wanting_one(&kernel, true);
    let (actions, _) = planner.plan(at(0));
    let Some(Action::PutNexthop { id: taken, .. }) = actions.first() else { panic!("{actions:?}") };
    let now = at(0);
    planner.taken(&actions[0], "a foreign nexthop object has the id", now);
    let row = RouteRow { target: target("a") };
    let (state, _) = planner.state(&"10.1.0.0/24".parse().unwrap(), &row.target);
    assert!(matches!(&state, RowState::Error(message) if message.contains("foreign")), "{state:?}");
    let (again, _) = planner.plan(now + RETRY_MIN);
    let Some(Action::PutNexthop { id, replace: false, .. }) = again.first() else { panic!("{again:?}") };
    assert_ne!(id, taken);
    // The route follows to the new object, also one that the kernel hung on the foreign one meanwhile.
    let wrong = ActualRoute { via: RouteVia::Object(*taken), regular: true };
    let key = ActualKey {
        prefix: "10.1.0.0/24".parse().unwrap(),
        table: planner.options.table,
        metric: planner.options.metric,
    };
    planner.observe(ActualChange::Route(key, Some(wrong)));
    for action in &again {
        kernel.apply(action).unwrap().into_iter().for_each(|change| planner.observe(change));
    }
    settle(&mut planner, &mut kernel, now + RETRY_MIN);
    assert_eq!(kernel.routes.get(&key), Some(&RouteVia::Object(*id)));
    assert_eq!(planner.counts(), (1, 0));
}

/// A next hop that dies costs one message for its group, and no route is touched; shares go to the kernel.
#[test]
fn a_group_shrinks_without_its_routes() {
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    for number in 0..50 {
        want(&mut desired, &format!("10.1.{number}.0/24"), "a");
    }
    let group = |vias: &[&str], weights: &[u8]| {
        let hops = hops(vias).hops.clone();
        Arc::new(Target { weights: weights.into(), grouped: true, ..Target::native(hops, 1500) })
    };
    desired.targets.upsert(target("a"), group(&["172.18.0.3", "172.18.0.4"], &[1, 3]));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(0));
    assert_eq!(done[2], "add nexthop 77000002 group 77000000 77000001,3");
    assert_eq!(done.len(), 3 + 50);
    desired.targets.upsert(target("a"), group(&["172.18.0.3"], &[]));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(1));
    assert_eq!(done, ["replace nexthop 77000002 group 77000000", "delete nexthop 77000001"]);
}

/// The same when everything that follows from it was derived in the meantime: nobody wants the group any more, and its routes
/// are to be moved one after the other.
#[test]
fn a_group_that_is_left_loses_its_dead_member_first() {
    use crate::observed::BgpTargetId;
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    let behind = |number| TargetKey::Bgp(BgpTargetId(number));
    let put = |desired: &mut Desired, id: u32| {
        for number in 0..50 {
            desired.bgp.put(format!("10.1.{number}.0/24").parse().unwrap(), BgpTargetId(id));
        }
    };
    put(&mut desired, 0);
    desired.targets.upsert(behind(0), hops(&["172.18.0.3", "172.18.0.4"]));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(0))[2], "add nexthop 77000002 group 77000000 77000001");
    desired.targets.remove(&behind(0));
    desired.targets.upsert(behind(1), hops(&["172.18.0.4"]));
    put(&mut desired, 1);
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(1));
    assert_eq!(
        done[..3],
        [
            "replace nexthop 77000002 group 77000001",
            "add nexthop 77000003 via 172.18.0.4 dev 2",
            "replace route 10.1.0.0/24 nhid 77000003 metric 77",
        ]
    );
    assert_eq!(done.iter().filter(|action| action.contains("route")).count(), 50, "{done:?}");
    assert_eq!(done.iter().filter(|action| action.starts_with("delete nexthop")).count(), 3, "{done:?}");
    assert!(kernel.routes.values().all(|via| *via == RouteVia::Object(NexthopId(77_000_003))));
}

/// Of the routes that go with their object the kernel tells those of IPv6 one by one, after the object: by then they may be
/// wanted and written again.
#[test]
fn late_news_of_routes_that_went_with_their_object_are_no_news() {
    use crate::observed::BgpTargetId;
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    let behind = TargetKey::Bgp(BgpTargetId(0));
    let prefixes: Vec<IpNet> = (0..10).map(|number| format!("fd00:{number}::/32").parse().unwrap()).collect();
    for prefix in &prefixes {
        desired.bgp.put(*prefix, BgpTargetId(0));
    }
    desired.targets.upsert(behind, hops(&["fe80::3"]));
    planner.set_desired(&desired, true);
    settle(&mut planner, &mut kernel, at(0));
    planner.set_desired(&Desired::default(), true);
    assert_eq!(settle(&mut planner, &mut kernel, at(1)), ["delete nexthop 77000000 with its 10 routes"]);
    planner.set_desired(&desired, true);
    let (nexthops_and_routes, _) = planner.plan(at(2));
    assert_eq!(nexthops_and_routes.len(), 1 + 10);
    for prefix in &prefixes {
        planner.observe(ActualChange::Route(planner.key(*prefix), None));
    }
    assert_eq!(planner.plan(at(2)).0, []);
    for change in nexthops_and_routes.iter().flat_map(|action| kernel.apply(action).unwrap()) {
        planner.observe(change);
    }
    assert_eq!(planner.plan(at(2)).0, []);
    assert_eq!(planner.counts(), (10, 0));
}

/// The news that it was written was lost, and so was the news that somebody deleted it.
#[test]
fn what_no_dump_has_is_written_again_when_it_is_quiet() {
    let mut kernel = Kernel::default();
    let (mut planner, _) = wanting_one(&kernel, true);
    let (actions, _) = planner.plan(at(0));
    assert_eq!(actions.len(), 2);
    for action in &actions {
        kernel.apply(action).unwrap();
    }
    kernel.routes.clear();
    kernel.nexthops.clear();
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    assert_eq!(planner.plan(at(100)), (Vec::new(), Some(at(2_100))), "it may be on its way");
    assert_eq!(
        settle(&mut planner, &mut kernel, at(2_100)),
        ["add nexthop 77000000 via 172.18.0.3 dev 2", "add route 10.1.0.0/24 nhid 77000000 metric 77"]
    );
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    assert_eq!(planner.plan(at(3_000)), (Vec::new(), Some(at(5_000))));
    assert_eq!(planner.plan(at(5_000)), (Vec::new(), None), "nothing is missing");
}

/// The same where it is never quiet.
#[test]
fn what_no_dump_has_is_written_again_although_routes_come_and_go() {
    let (mut kernel, mut planner, mut desired) = installed();
    let key = *kernel.routes.keys().next().unwrap();
    kernel.routes.clear();
    // Nobody heard of the deletion, nor does the dump that should tell it: as if it had been written and deleted unheard.
    planner.routes.remove(&key);
    planner.observe(ActualChange::DumpBegin);
    planner
        .observe(ActualChange::Nexthop(NexthopId(77_000_000), Some(kernel.nexthops[&NexthopId(77_000_000)].clone())));
    planner.observe(ActualChange::DumpEnd);
    let mut written_at = None;
    for second in 0..100 {
        want(&mut desired, &format!("10.2.{second}.0/24"), "a");
        planner.set_desired(&desired, true);
        let done = settle(&mut planner, &mut kernel, at(second * 1_000));
        if done.contains(&"add route 10.1.0.0/24 nhid 77000000 metric 77".to_owned()) {
            written_at = Some(second);
            break;
        }
    }
    assert_eq!(written_at, Some(60));
}

/// Routes learned by BGP are installed, follow their target, wait when it has no next hop, and go when they are withdrawn; a
/// node's route to the same prefix comes first.
#[test]
fn routes_learned_by_bgp_follow_their_target() {
    use crate::observed::BgpTargetId;
    let mut kernel = Kernel::default();
    let mut planner = start(&kernel, true);
    let mut desired = Desired::default();
    let behind = |number| TargetKey::Bgp(BgpTargetId(number));
    let prefix = |number: u32| -> IpNet { format!("192.0.{number}.0/24").parse().unwrap() };
    for number in 0..3 {
        desired.bgp.put(prefix(number), BgpTargetId(0));
    }
    want(&mut desired, "192.0.1.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    desired.targets.upsert(behind(0), hops(&["172.18.0.9"]));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(0));
    assert_eq!(done.len(), 2 + 3, "{done:?}");
    assert!(done.contains(&"add route 192.0.1.0/24 nhid 77000000 metric 77".to_owned()), "{done:?}");
    assert!(done.contains(&"add route 192.0.2.0/24 nhid 77000001 metric 77".to_owned()), "{done:?}");
    assert_eq!(planner.counts(), (3, 0));

    desired.targets.upsert(behind(0), broken());
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(10)), Vec::<String>::new(), "held for a while");
    assert_eq!(planner.plan(at(10)).1, Some(at(5_010)));
    let done = settle(&mut planner, &mut kernel, at(5_011));
    assert_eq!(done, ["delete route 192.0.0.0/24 metric 77", "delete route 192.0.2.0/24 metric 77"]);
    assert_eq!(planner.plan(at(5_012)), (Vec::new(), None));

    desired.targets.upsert(behind(0), hops(&["172.18.0.9"]));
    desired.bgp.remove(&prefix(0));
    planner.set_desired(&desired, true);
    assert_eq!(settle(&mut planner, &mut kernel, at(6_000)), ["add route 192.0.2.0/24 nhid 77000001 metric 77"]);

    desired.routes.remove(&prefix(1));
    desired.bgp.remove(&prefix(2));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(7_000));
    assert_eq!(done[0], "replace route 192.0.1.0/24 nhid 77000001 metric 77");
    assert_eq!(done[1], "delete route 192.0.2.0/24 metric 77");
}

/// They have a metric of their own, and a prefix that is learned in another way now changes it without being gone in between.
#[test]
fn routes_learned_by_bgp_have_their_own_metric() {
    use crate::observed::BgpTargetId;
    let mut kernel = Kernel::default();
    let mut planner = RoutePlanner::new(PlannerOptions { bgp_metric: Metric(90), ..options(true) });
    kernel.dump().into_iter().for_each(|change| planner.observe(change));
    let mut desired = Desired::default();
    let prefix = |number: u32| -> IpNet { format!("192.0.{number}.0/24").parse().unwrap() };
    for number in 0..2 {
        desired.bgp.put(prefix(number), BgpTargetId(0));
    }
    desired.bgp.put(prefix(2), BgpTargetId(1));
    want(&mut desired, "192.0.1.0/24", "a");
    desired.targets.upsert(target("a"), hops(&["172.18.0.3"]));
    desired.targets.upsert(TargetKey::Bgp(BgpTargetId(0)), hops(&["172.18.0.9"]));
    desired.targets.upsert(TargetKey::Bgp(BgpTargetId(1)), Arc::new(Target::blackhole(RouteMode::Bgp)));
    planner.set_desired(&desired, true);
    let mut done = settle(&mut planner, &mut kernel, at(0));
    done.retain(|action| action.contains("route"));
    done.sort();
    assert_eq!(
        done,
        [
            "add route 192.0.0.0/24 nhid 77000001 metric 90",
            "add route 192.0.1.0/24 nhid 77000000 metric 77",
            "add route 192.0.2.0/24 blackhole metric 90",
        ]
    );
    assert_eq!(planner.counts(), (3, 0));

    want(&mut desired, "192.0.0.0/24", "a");
    desired.routes.remove(&prefix(1));
    desired.bgp.remove(&prefix(2));
    planner.set_desired(&desired, true);
    let done = settle(&mut planner, &mut kernel, at(1));
    let adds = done.iter().take_while(|action| action.starts_with("add")).count();
    assert_eq!((adds, done.len()), (2, 5), "{done:?}");
    assert_eq!(done[2..].iter().filter(|action| action.contains("192.0.0.0/24 metric 90")).count(), 1, "{done:?}");
    assert_eq!(done[2..].iter().filter(|action| action.contains("192.0.1.0/24 metric 77")).count(), 1, "{done:?}");
    assert_eq!(planner.counts(), (2, 0));

    // What a predecessor left under the other metric is found and goes.
    let mut next = RoutePlanner::new(options(true));
    kernel.dump().into_iter().for_each(|change| next.observe(change));
    next.set_desired(&desired, true);
    let done = settle(&mut next, &mut kernel, at(2));
    assert_eq!(done, ["add route 192.0.1.0/24 nhid 77000001 metric 77", "delete route 192.0.1.0/24 metric 90"]);
}
