//! The kernel in memory against the real one: the same actions, the same answers, the same tables.

use std::collections::BTreeSet;

use meshd::kernel::fake::FakeKernel;
use meshd_core::plan::GroupMember;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::*;

/// Sequences of actions; each failed one names its seed.
const SEEDS: std::ops::Range<u64> = 0..20;
const ACTIONS: usize = 150;

/// Any action over a few prefixes, objects and hops, sensible or not.
fn random_action(rng: &mut StdRng) -> Action {
    let hops4 = [hop("192.0.2.9", ONE), hop("192.0.2.8", ONE), hop("198.51.100.9", TWO), hop("203.0.113.1", ONE)];
    let hops6 = [hop("2001:db8:1::9", ONE), hop("2001:db8:2::9", TWO)];
    let prefixes = ["10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64", "fd00:2::/64"];
    let pick = |rng: &mut StdRng, list: &[Hop]| *list.choose(rng).expect("not empty");
    let replace = rng.random();
    let prefix = *prefixes.choose(rng).expect("not empty");
    match rng.random_range(0..10) {
        0 => Action::PutNexthop { id: id(rng.random_range(1..3)), hop: pick(rng, &hops4), replace },
        1 => Action::PutNexthop { id: id(rng.random_range(3..5)), hop: pick(rng, &hops6), replace },
        2 => {
            let members: BTreeSet<NexthopId> = (0..2).map(|_| id(rng.random_range(1..3))).collect();
            Action::PutGroup {
                id: id(5),
                members: members.into_iter().map(|id| GroupMember { id, weight: rng.random_range(1..4) }).collect(),
                replace,
            }
        }
        3 => Action::DeleteNexthop { id: id(rng.random_range(1..6)), routes: 0 },
        4 | 5 => delete(prefix),
        6 => plain(prefix, &[pick(rng, if prefix.contains(':') { &hops6 } else { &hops4 })], replace),
        _ => through(prefix, rng.random_range(1..7), replace),
    }
}

#[test]
fn the_fake_kernel_answers_as_the_real_one() {
    in_namespace(|| {
        for seed in SEEDS {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut kernel = Kernel::start(LinuxOptions::default());
            let fake = FakeKernel::new();
            let nets = |list: [&str; 2]| list.iter().map(|net| net.parse().expect("a prefix")).collect();
            fake.add_link(ONE, nets(["192.0.2.0/24", "2001:db8:1::/64"]));
            fake.add_link(TWO, nets(["198.51.100.0/24", "2001:db8:2::/64"]));
            for _ in 0..ACTIONS {
                let action = random_action(&mut rng);
                let errno = |failures: Vec<Failure>| failures.into_iter().map(|failure| failure.reason.errno()).next();
                let real = errno(kernel.try_apply(vec![action.clone()]));
                let faked = errno(fake.write(std::slice::from_ref(&action)));
                assert_eq!(faked, real, "seed {seed}: {action}");
            }
            kernel.routes.request_dump();
            kernel.until("a dump", |actual| actual.dumps >= 2 && actual.dump.is_none());
            assert_eq!(kernel.actual.routes, fake.routes(), "seed {seed}");
            assert_eq!(kernel.actual.nexthops, fake.nexthops(), "seed {seed}");
            shell("ip nexthop flush proto 77 2>/dev/null; ip route flush proto 77; ip -6 route flush proto 77");
        }
    });
}
