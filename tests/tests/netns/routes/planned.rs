//! The planner over the real kernel: what it believes is there is there.

use meshd_core::{
    desired::{Desired, Target, TargetKey},
    id::{MAIN_TABLE, ROUTE_METRIC},
    observed::BgpTargetId,
    plan::{FLUSH_ROUTES_MIN, PlannerOptions, RoutePlanner},
};

use super::*;

/// Routes of each family over the one object: more than are deleted one by one.
const MANY: u32 = 3_000;
/// Routes over the other one.
const FEW: u32 = 10;
/// More rounds than any of it takes.
const ROUNDS_MAX: usize = 1_000;

/// Plans and writes until nothing is left and the kernel has told everything; returns the deletions of objects.
fn settle(kernel: &mut Kernel, planner: &mut RoutePlanner, routes: usize) -> Vec<String> {
    let mut flushes = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let (actions, _) = planner.plan(jiff::Timestamp::UNIX_EPOCH);
        if actions.is_empty() && planner.actual_routes() == routes {
            return flushes;
        }
        let is_flush = |action: &&Action| matches!(action, Action::DeleteNexthop { routes: 1.., .. });
        flushes.extend(actions.iter().filter(is_flush).map(ToString::to_string));
        if !actions.is_empty() {
            kernel.apply(actions);
        }
        let batch = kernel.runtime.block_on(async { timeout(DEADLINE, kernel.events.recv()).await });
        let Ok(Some(batch)) = batch else {
            panic!("the planner knows {} routes instead of {routes}, and no more is heard", planner.actual_routes())
        };
        batch.into_iter().for_each(|change| planner.observe(change));
    }
    panic!("no end after {ROUNDS_MAX} rounds")
}

/// A lost peer's routes go with their nexthop object in one walk of the kernel, the routes of others stay, and the planner
/// knows what the kernel does not say.
#[test]
fn many_routes_go_with_their_object_and_come_back() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        let options = PlannerOptions {
            table: TableId(MAIN_TABLE),
            metric: Metric(ROUTE_METRIC),
            bgp_metric: Metric(ROUTE_METRIC),
            nexthop_objects: true,
            flush_routes_min: FLUSH_ROUTES_MIN,
        };
        let mut planner = RoutePlanner::new(options);
        [ActualChange::DumpBegin, ActualChange::DumpEnd].into_iter().for_each(|change| planner.observe(change));
        shell("ip route add 203.0.113.0/24 via 192.0.2.9 proto static");

        let mut desired = Desired::default();
        let target = |number| TargetKey::Bgp(BgpTargetId(number));
        let leads = |via| Arc::new(Target::native([via].into(), 1500));
        desired.targets.upsert(target(0), leads(hop("192.0.2.9", ONE)));
        desired.targets.upsert(target(1), leads(hop("2001:db8:1::9", ONE)));
        desired.targets.upsert(target(2), leads(hop("198.51.100.9", TWO)));
        for number in 0..MANY {
            let (high, low) = (number >> 8, number & 255);
            desired.bgp.put(format!("10.{high}.{low}.0/24").parse().expect("a prefix"), BgpTargetId(0));
            desired.bgp.put(format!("fd00:{number:x}::/64").parse().expect("a prefix"), BgpTargetId(1));
        }
        for number in 0..FEW {
            desired.bgp.put(format!("172.16.{number}.0/24").parse().expect("a prefix"), BgpTargetId(2));
        }
        let everything = (2 * MANY + FEW) as usize;
        planner.set_desired(&desired, true);
        assert_eq!(settle(&mut kernel, &mut planner, everything), Vec::<String>::new());
        assert_eq!(ip_routes().len(), everything);

        let mut fewer = desired.clone();
        let lost: Vec<_> = desired.bgp.iter().filter(|(_, id)| id.0 < 2).map(|(prefix, _)| *prefix).collect();
        for prefix in &lost {
            fewer.bgp.remove(prefix);
        }
        [0, 1].into_iter().for_each(|number| drop(fewer.targets.remove(&target(number))));
        planner.set_desired(&fewer, true);
        let flushes = settle(&mut kernel, &mut planner, FEW as usize);
        assert_eq!(flushes.len(), 2, "{flushes:?}");
        assert!(flushes.iter().all(|flush| flush.ends_with(&format!("with its {MANY} routes"))), "{flushes:?}");
        assert_eq!(ip_routes().len(), FEW as usize);
        assert_eq!(shell("ip route show 203.0.113.0/24").trim(), "203.0.113.0/24 via 192.0.2.9 dev one proto static");

        planner.set_desired(&desired, true);
        settle(&mut kernel, &mut planner, everything);
        assert_eq!(ip_routes().len(), everything);
    });
}
