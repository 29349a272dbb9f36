//! A plan turns any kernel into the wanted one, without a gap for what is wanted, and then there is nothing left to plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    desired::{Desired, Hop, NodeTarget, RouteRow, Target, TargetKey},
    id::{IfIndex, MAIN_TABLE, Metric, NEXTHOP_IDS, NexthopId, ROUTE_METRIC, TableId},
    plan::{
        Action, ActualChange, ActualKey, ActualNexthop, ActualRoute, GroupMember, PlannerOptions, RoutePlanner,
        RouteVia,
    },
};
use proptest::prelude::*;

const PREFIXES: u8 = 12;
const TARGETS: u8 = 5;

#[derive(Debug, Clone, Default)]
struct Kernel {
    routes: BTreeMap<ActualKey, ActualRoute>,
    nexthops: BTreeMap<NexthopId, ActualNexthop>,
}

fn hop(number: u8) -> Hop {
    Hop { via: format!("172.18.0.{number}").parse().expect("an address"), dev: IfIndex(2), tunnel: None }
}

fn key(prefix: u8, metric: u32) -> ActualKey {
    let prefix: IpNet = format!("10.1.{prefix}.0/24").parse().expect("a prefix");
    ActualKey { prefix, table: TableId(MAIN_TABLE), metric: Metric(metric) }
}

fn id(number: u8) -> NexthopId {
    NexthopId(NEXTHOP_IDS.start() + u32::from(number))
}

/// Routes by prefix with their target; per target a number of hops.
fn desired() -> impl Strategy<Value = Desired> {
    let routes = prop::collection::btree_map(0..PREFIXES, 0..TARGETS, 0..usize::from(PREFIXES));
    let hops = prop::collection::vec(prop::collection::btree_set(1u8..9, 1..4), usize::from(TARGETS));
    (routes, hops).prop_map(|(routes, hops)| {
        let mut desired = Desired::default();
        let target = |number: u8| {
            TargetKey::from(NodeTarget {
                cluster: "east".parse().expect("a name"),
                node: format!("n{number}").parse().expect("a name"),
                ipv4: true,
            })
        };
        for (prefix, number) in routes {
            let hops = hops[usize::from(number)].iter().map(|number| hop(*number)).collect();
            let row = Target::native(hops, 1500);
            desired.targets.upsert(target(number), Arc::new(row));
            desired.routes.upsert(key(prefix, 0).prefix, Arc::new(RouteRow { target: target(number) }));
        }
        desired
    })
}

/// Anything that may carry our mark, well-formed as the kernel keeps it: routes refer to objects that exist.
fn kernel() -> impl Strategy<Value = Kernel> {
    let hops = prop::collection::btree_map(0u8..8, prop::option::weighted(0.9, 1u8..9), 0..8);
    let groups = prop::collection::btree_map(8u8..10, prop::collection::btree_set(0u8..8, 1..4), 0..3);
    let metric = prop_oneof![4 => Just(ROUTE_METRIC), 1 => Just(50u32)];
    let routes = prop::collection::btree_map((0..PREFIXES + 3, metric), (0u8..14, 1u8..9, any::<bool>()), 0..15);
    (hops, groups, routes).prop_map(|(hops, groups, routes)| {
        let mut kernel = Kernel::default();
        for (number, via) in hops {
            kernel
                .nexthops
                .insert(id(number), via.map_or(ActualNexthop::Irregular, |via| ActualNexthop::Hop(hop(via))));
        }
        for (number, members) in groups {
            let members: Box<[GroupMember]> = members.into_iter().map(id).map(GroupMember::from).collect();
            if members.iter().all(|member| matches!(kernel.nexthops.get(&member.id), Some(ActualNexthop::Hop(_)))) {
                kernel.nexthops.insert(id(number), ActualNexthop::Group(members));
            }
        }
        for ((prefix, metric), (object, via, regular)) in routes {
            let via = match kernel.nexthops.contains_key(&id(object)) {
                true => RouteVia::Object(id(object)),
                false => RouteVia::Hops([hop(via)].into()),
            };
            kernel.routes.insert(key(prefix, metric), ActualRoute { via, regular });
        }
        kernel
    })
}

impl Kernel {
    fn dump(&self) -> Vec<ActualChange> {
        let nexthops = self.nexthops.iter().map(|(id, n)| ActualChange::Nexthop(*id, Some(n.clone())));
        let routes = self.routes.iter().map(|(key, route)| ActualChange::Route(*key, Some(route.clone())));
        let rows = nexthops.chain(routes);
        [ActualChange::DumpBegin].into_iter().chain(rows).chain([ActualChange::DumpEnd]).collect()
    }

    fn apply(&mut self, action: &Action) -> Result<ActualChange, String> {
        match action {
            Action::PutNexthop { id, hop, replace } => self.put_nexthop(*id, ActualNexthop::Hop(*hop), *replace),
            Action::PutGroup { id, members, replace } => {
                if !members.iter().all(|member| matches!(self.nexthops.get(&member.id), Some(ActualNexthop::Hop(_)))) {
                    return Err("a member is missing".to_owned());
                }
                self.put_nexthop(*id, ActualNexthop::Group(members.clone()), *replace)
            }
            Action::PutRoute { key, via, replace } => {
                if self.routes.contains_key(key) != *replace {
                    return Err("add and replace are mixed up".to_owned());
                }
                if matches!(via, RouteVia::Object(id) if !self.nexthops.contains_key(id)) {
                    return Err("its nexthop is missing".to_owned());
                }
                let route = ActualRoute { via: via.clone(), regular: true };
                self.routes.insert(*key, route.clone());
                Ok(ActualChange::Route(*key, Some(route)))
            }
            Action::DeleteRoute { key } => {
                self.routes.remove(key).ok_or("it does not exist")?;
                Ok(ActualChange::Route(*key, None))
            }
            Action::DeleteNexthop { id, routes } => {
                let leads = |route: &ActualRoute| route.via == RouteVia::Object(*id);
                let member = |n: &ActualNexthop| matches!(n, ActualNexthop::Group(members) if members.iter().any(|member| member.id == *id));
                let over = self.routes.values().filter(|route| leads(route)).count();
                if over != *routes || self.nexthops.values().any(member) {
                    return Err("other routes or groups would go with it".to_owned());
                }
                self.nexthops.remove(id).ok_or("it does not exist")?;
                self.routes.retain(|_, route| !leads(route));
                Ok(ActualChange::Nexthop(*id, None))
            }
        }
    }

    fn put_nexthop(&mut self, id: NexthopId, new: ActualNexthop, replace: bool) -> Result<ActualChange, String> {
        if self.nexthops.contains_key(&id) != replace {
            return Err("add and replace are mixed up".to_owned());
        }
        // The kernel refuses to turn a group into a single object and the other way round.
        let is_group = |n: &ActualNexthop| matches!(n, ActualNexthop::Group(_));
        if self.nexthops.get(&id).is_some_and(|old| is_group(old) != is_group(&new) && *old != ActualNexthop::Irregular)
        {
            return Err("a group cannot become a single nexthop".to_owned());
        }
        self.nexthops.insert(id, new.clone());
        Ok(ActualChange::Nexthop(id, Some(new)))
    }

    fn hops(&self, key: &ActualKey) -> Vec<Hop> {
        let one = |id: &NexthopId| match self.nexthops.get(id) {
            Some(ActualNexthop::Hop(hop)) => Some(*hop),
            _ => None,
        };
        let mut hops: Vec<Hop> = match self.routes.get(key).map(|route| &route.via) {
            Some(RouteVia::Hops(hops)) => hops.to_vec(),
            Some(RouteVia::Object(id)) => match self.nexthops.get(id) {
                Some(ActualNexthop::Group(members)) => members.iter().filter_map(|member| one(&member.id)).collect(),
                _ => one(id).into_iter().collect(),
            },
            Some(RouteVia::Narrow(..) | RouteVia::Blackhole) | None => Vec::new(),
        };
        hops.sort_unstable();
        hops
    }
}

/// Plans and applies until nothing is left; the kernel tells at once, or only after the plan.
fn settle(planner: &mut RoutePlanner, kernel: &mut Kernel, desired: &Desired) -> Result<(), TestCaseError> {
    for _ in 0..20 {
        let (actions, _) = planner.plan(Timestamp::UNIX_EPOCH);
        if actions.is_empty() {
            return Ok(());
        }
        let mut told = Vec::new();
        for action in &actions {
            let wanted = |key: &ActualKey| key.metric.0 == ROUTE_METRIC && desired.routes.contains(&key.prefix);
            if let Action::DeleteRoute { key } = action {
                prop_assert!(!wanted(key), "a wanted route is deleted: {}", action);
            }
            match kernel.apply(action) {
                Ok(change) => told.push(change),
                Err(reason) => prop_assert!(false, "{}: {}", action, reason),
            }
        }
        told.into_iter().for_each(|change| planner.observe(change));
    }
    prop_assert!(false, "the planner does not come to an end");
    Ok(())
}

proptest! {
    #[test]
    fn a_plan_turns_any_kernel_into_the_wanted_one(
        first in desired(),
        second in desired(),
        mut kernel in kernel(),
        nexthop_objects in any::<bool>(),
    ) {
        let (table, metric) = (TableId(MAIN_TABLE), Metric(ROUTE_METRIC));
        let options = PlannerOptions { table, metric, bgp_metric: metric, nexthop_objects, flush_routes_min: 2 };
        let mut planner = RoutePlanner::new(options);
        kernel.dump().into_iter().for_each(|change| planner.observe(change));
        for desired in [&first, &second] {
            planner.set_desired(desired, true);
            settle(&mut planner, &mut kernel, desired)?;
            prop_assert_eq!(planner.plan(Timestamp::UNIX_EPOCH).0, vec![]);
            prop_assert_eq!(planner.counts(), (desired.routes.len(), 0));
            prop_assert_eq!(kernel.routes.len(), desired.routes.len());
            for (prefix, row) in desired.routes.iter() {
                let key = ActualKey { prefix: *prefix, table: TableId(MAIN_TABLE), metric: Metric(ROUTE_METRIC) };
                let target = desired.targets.get(&row.target).expect("a target");
                prop_assert_eq!(&kernel.hops(&key), &target.hops.to_vec());
            }
            let needed = |target: &Target| target.hops.len() + usize::from(target.hops.len() > 1);
            let objects: usize = desired.targets.iter().map(|(_, target)| needed(target)).sum();
            prop_assert_eq!(kernel.nexthops.len(), if nexthop_objects { objects } else { 0 });
        }
        // A restart adopts all of it.
        let mut restarted = RoutePlanner::new(options);
        kernel.dump().into_iter().for_each(|change| restarted.observe(change));
        restarted.set_desired(&second, true);
        let all: Vec<Hop> = second.targets.iter().flat_map(|(_, target)| target.hops.to_vec()).collect();
        let distinct: BTreeSet<&Hop> = all.iter().collect();
        if distinct.len() == all.len() {
            prop_assert_eq!(restarted.plan(Timestamp::UNIX_EPOCH).0, vec![]);
        } else {
            // Two objects with one content may change places, which no packet sees.
            settle(&mut restarted, &mut kernel, &second)?;
            prop_assert_eq!(restarted.counts(), (second.routes.len(), 0));
        }
    }
}
