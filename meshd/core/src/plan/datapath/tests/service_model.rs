//! The maps of a service after any history against those of a planner that has just begun.

use super::*;

/// A backend by number: used or draining, its weight, and on which node it is.
type Wanted = BTreeMap<u8, (bool, u16, bool)>;

fn wanted() -> impl Strategy<Value = Option<(Wanted, bool, bool)>> {
    let backends = prop::collection::btree_map(0..6u8, (prop::bool::weighted(0.8), 1..3u16, any::<bool>()), 0..6);
    prop::option::weighted(0.9, (backends, any::<bool>(), any::<bool>()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever came and went in between, and whoever wrote it, packets meet what a node would do that has just begun.
    #[test]
    fn the_way_to_a_service_does_not_matter(steps in prop::collection::vec((wanted(), 0..4u8, any::<bool>()), 1..16)) {
        let settings = ServiceSettings { backends: 4_096, members: 4_096, chunks: 512, ..SETTINGS };
        let new = |existing| ServicePlanner::new(settings, existing).of_cluster("west".parse().unwrap());
        let (mut planner, mut maps) = (new(Existing::default()), Maps::default());
        for (wanted, restart, has_table) in steps {
            let wanted = wanted.map(|(backends, is_direct, local_only)| {
                let backends: Vec<_> = backends
                    .into_iter()
                    .map(|(number, (used, weight, local))| desired::Backend {
                        used,
                        weight,
                        local,
                        node: Some(IpAddr::from([192, 0, 2, 1 + u8::from(!local)])),
                        ..backend(&format!("10.0.0.{number}"))
                    })
                    .collect();
                let policy = if local_only { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
                let mode = if is_direct { ForwardingMode::Dsr } else { ForwardingMode::Snat };
                desired::Service { external_policy: policy, mode: Some(mode), ..service(&backends) }
            });
            planner.begin_round();
            let mut plan = planner.plan(&name(), wanted.as_ref(), no_hop);
            prop_assert!(plan.problems.is_empty(), "{:?}", plan.problems);
            if restart == 1 {
                // It ends in the middle, and the next one hears of another service first.
                plan.writes.truncate(plan.writes.len() / 2);
                maps.run_unchecked(std::mem::take(&mut plan));
                planner = new(maps.existing());
                let tables: Vec<u32> = maps.services.values().map(|entry| entry.table).collect();
                let before: Vec<_> = tables.iter().map(|table| maps.chunks.get(table).cloned()).collect();
                let other = ServiceName { namespace: "default".into(), name: "other".into() };
                let mut service = service(&[backend("10.0.9.1"), backend("10.0.9.2")]);
                service.ports[0].frontends =
                    [Frontend { address: [10, 2, 0, 90].into(), port: 80, kind: FrontendKind::ClusterIp }].into();
                maps.run_unchecked(planner.plan(&other, Some(&service), no_hop));
                planner.done(&other, Carried::All);
                let after: Vec<_> = tables.iter().map(|table| maps.chunks.get(table).cloned()).collect();
                prop_assert_eq!(before, after);
                maps.run_unchecked(planner.plan(&name(), wanted.as_ref(), no_hop));
                planner.done(&name(), Carried::All);
                let (finished, again) = planner.finish();
                maps.run_unchecked(finished);
                if !again.is_empty() {
                    maps.put(&mut planner, &name(), wanted.as_ref());
                }
                maps.run_unchecked(planner.plan(&other, None, no_hop));
                planner.done(&other, Carried::All);
            }
            // The kernel refuses the table: all of it has to be planned again.
            let refused = !has_table && plan.writes.iter().any(|write| matches!(write, Write::Chunk(..)));
            for write in plan.writes {
                if !refused || !matches!(write, Write::Chunk(..) | Write::Service4(_, Some(_))) {
                    maps.write(write);
                }
            }
            planner.done(&name(), if refused { Carried::NoTables } else { Carried::All });
            if refused {
                let plan = planner.plan(&name(), wanted.as_ref(), no_hop);
                maps.run_unchecked(plan);
                planner.done(&name(), Carried::All);
            }
            maps.check();
            maps.run_unchecked(planner.release(|_, _| false));
            let (mut fresh, mut other) = (new(Existing::default()), Maps::default());
            other.put(&mut fresh, &name(), wanted.as_ref());
            prop_assert_eq!(maps.meaning(), other.meaning());
            if restart == 0 {
                let before = maps.live();
                planner = new(maps.existing());
                maps.put(&mut planner, &name(), wanted.as_ref());
                let (plan, again) = planner.finish();
                maps.run_unchecked(plan);
                if !again.is_empty() {
                    maps.put(&mut planner, &name(), wanted.as_ref());
                }
                prop_assert_eq!(maps.meaning(), other.meaning());
                prop_assert_eq!(maps.live(), before, "connections name them");
            }
        }
    }
}
