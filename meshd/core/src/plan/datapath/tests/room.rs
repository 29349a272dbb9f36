//! What becomes of services when there is no room, or the kernel refuses.

use super::*;

#[test]
fn without_room_the_old_state_stays_and_a_problem_says_so() {
    let mut planner = ServicePlanner::new(ServiceSettings { backends: 3, ..SETTINGS }, Existing::default());
    let three = [backend("10.0.0.10"), backend("10.0.1.10"), backend("10.0.2.10")];
    let plan = planner.plan(&name(), Some(&service(&three)), no_hop);
    assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
    assert!(plan.problems[0].contains("services.maps.backends is 3"), "{:?}", plan.problems);
    let members = plan.writes.iter().find_map(|write| match write {
        Write::Members(_, members) => Some(members.len()),
        _ => None,
    });
    assert_eq!(members, Some(2), "those there is room for are used");
}

#[test]
fn without_room_for_the_other_group_a_frontend_stays_with_its_group() {
    let mut planner = ServicePlanner::new(ServiceSettings { members: 3, ..SETTINGS }, Existing::default());
    let mut maps = Maps::default();
    let two = [backend("10.0.0.10"), backend("10.0.0.11")];
    let mut wanted = service(&two);
    maps.put(&mut planner, &name(), Some(&wanted));
    // First some of its frontends, then all of them.
    for internal in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        (wanted.external_policy, wanted.internal_policy) = (TrafficPolicy::Local, internal);
        planner.begin_round();
        let plan = planner.plan(&name(), Some(&wanted), no_hop);
        assert_eq!(plan.problems, ["service default/webpod: no room for its 2 members"]);
        maps.run_unchecked(plan);
        planner.done(&name(), Carried::All);
        maps.check();
        assert_eq!(maps.behind("192.0.2.80", Scope::External).len(), 2);
        assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 2);
    }
    // It follows its backends meanwhile.
    wanted.ports[0].backends = [backend("10.0.0.11"), backend("10.0.0.12")].into();
    planner.begin_round();
    maps.run_unchecked(planner.plan(&name(), Some(&wanted), no_hop));
    planner.done(&name(), Carried::All);
    let behind: Vec<IpAddr> = maps.behind("10.2.0.80", Scope::Internal).into_keys().collect();
    assert_eq!(behind, ["10.0.0.11", "10.0.0.12"].map(|address| address.parse::<IpAddr>().unwrap()));
    // With room it has its own, and nothing of the other one is left.
    wanted.ports[0].backends = two[..1].into();
    maps.put(&mut planner, &name(), Some(&wanted));
    assert_eq!(maps.behind("192.0.2.80", Scope::External).len(), 1);
    maps.put(&mut planner, &name(), None);
    planner.begin_round();
    assert_eq!((maps.services.len(), planner.room()), (0, [3, 8]));
}

#[test]
fn a_range_that_is_too_large_stays_where_there_is_no_other() {
    let mut planner =
        ServicePlanner::new(ServiceSettings { members: 450, backends: 1_000, ..SETTINGS }, Existing::default());
    let mut maps = Maps::default();
    let backends: Vec<_> =
        (0..400_u16).map(|number| backend(&format!("10.0.{}.{}", number / 200, number % 200))).collect();
    maps.put(&mut planner, &name(), Some(&service(&backends)));
    maps.put(&mut planner, &name(), Some(&service(&backends[..90])));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 90);
    assert_eq!(planner.room()[0], 0, "nobody else needed it");
}

#[test]
fn what_is_refused_again_and_again_takes_no_more_room_than_once() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let wanted = service(&[backend("10.0.0.10"), backend("10.0.1.10")]);
    for _ in 0..1_000 {
        planner.begin_round();
        let mut plan = planner.plan(&name(), Some(&wanted), no_hop);
        assert_eq!(plan.problems, [""; 0]);
        let count = plan.writes.len();
        plan.writes.retain(|write| !matches!(write, Write::Chunk(..) | Write::Service4(_, Some(_))));
        assert_ne!(plan.writes.len(), count);
        maps.run_unchecked(plan);
        planner.done(&name(), Carried::NoTables);
    }
    assert_eq!(planner.room(), [254, 7]);
    maps.put(&mut planner, &name(), Some(&wanted));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 2);

    // Another table each time, and a frontend there is no room for.
    for last in 0..1_000_u16 {
        planner.begin_round();
        let backends = [backend("10.0.0.10"), backend(&format!("10.0.1.{}", last % 200))];
        let plan = planner.plan(&name(), Some(&service(&backends)), no_hop);
        assert_eq!(plan.problems, [""; 0]);
        maps.run_unchecked(plan);
        planner.done(&name(), Carried::NoEntries);
        maps.run_unchecked(planner.release(|_, _| false));
    }
    assert!(planner.room()[1] >= 6, "{:?}", planner.room());
    maps.put(&mut planner, &name(), Some(&wanted));
    planner.begin_round();
    assert_eq!(planner.room(), [254, 7]);
}
