//! No two clusters ever hold overlapping prefixes, and nobody waits without a reason.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use meshd_core::{
    derive::{Claim, PrefixOwners, Verdict},
    id::{ClusterId, ClusterName, MaxClusters},
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Claim(Claim, ClusterId),
    Withdraw(Claim),
    Settle,
}

fn cluster(number: u32) -> ClusterName {
    format!("c{number}").parse().expect("a name")
}

/// Few prefixes that overlap a lot: a /16 and its parts.
fn prefix() -> impl Strategy<Value = IpNet> {
    (0u8..4, 16u8..19).prop_map(|(part, length)| {
        let net: IpNet = format!("10.1.{}.0/{length}", part * 64).parse().expect("a prefix");
        net.trunc()
    })
}

fn claim() -> impl Strategy<Value = (Claim, ClusterId)> {
    (prefix(), 1u32..5, 0u8..2).prop_map(|(prefix, id, node)| {
        let claim = Claim { prefix, cluster: cluster(id), node: format!("n{node}").parse().expect("a name") };
        (claim, ClusterId::new(id, MaxClusters::C255).expect("an id"))
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => claim().prop_map(|(claim, id)| Step::Claim(claim, id)),
        3 => claim().prop_map(|(claim, _)| Step::Withdraw(claim)),
        1 => Just(Step::Settle),
    ]
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn reserved() -> IpNet {
    "10.1.192.0/18".parse().expect("a prefix")
}

proptest! {
    #[test]
    fn grants_never_overlap_and_nobody_waits_without_a_reason(
        remembered in prop::collection::btree_map(prefix(), (1u32..5).prop_map(cluster), 0..4),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut owners = PrefixOwners::new(cluster(1), &[reserved()], remembered);
        let mut live: BTreeMap<Claim, ClusterId> = BTreeMap::new();
        let mut verdicts: BTreeMap<Claim, Verdict> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Claim(claim, id) => {
                    if live.insert(claim.clone(), id).is_none() {
                        verdicts.extend(owners.update(&[], vec![(claim, id)]));
                    }
                }
                Step::Withdraw(claim) => {
                    if live.remove(&claim).is_some() {
                        verdicts.extend(owners.update(&[claim], vec![]));
                    }
                }
                Step::Settle => owners.settle(),
            }
            let granted: Vec<(IpNet, ClusterName)> = owners.granted().map(|(p, c)| (p, c.clone())).collect();
            for (prefix, owner) in &granted {
                prop_assert!(!overlap(prefix, &reserved()), "{prefix} is reserved");
                for (other, another) in &granted {
                    prop_assert!(owner == another || !overlap(prefix, other), "{prefix} of {owner} and {other} of {another}");
                }
                let (holder, node) = owners.holder(prefix).expect("a grant has a holder");
                let holding = Claim { prefix: *prefix, cluster: holder.clone(), node: node.clone() };
                prop_assert!(live.contains_key(&holding), "{holding:?} holds what it does not claim");
            }
            for claim in live.keys() {
                let reserved = overlap(&claim.prefix, &reserved());
                let foreign = granted.iter().any(|(p, owner)| *owner != claim.cluster && overlap(p, &claim.prefix));
                let held = owners.holder(&claim.prefix).is_some_and(|(owner, _)| *owner == claim.cluster);
                prop_assert!(held || reserved || foreign, "{claim:?} waits for nothing");
                let told = matches!(verdicts.get(claim), Some(Verdict::Granted));
                let holds = owners.holder(&claim.prefix).is_some_and(|(c, n)| *c == claim.cluster && *n == claim.node);
                prop_assert_eq!(told, holds, "the last verdict of {:?} is not the truth", claim);
            }
        }
    }

    #[test]
    fn a_cold_start_ends_the_same_in_every_order(
        claims in prop::collection::vec(claim(), 1..12),
        order in prop::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let claims: BTreeSet<(Claim, ClusterId)> = claims.into_iter().collect();
        let claims: Vec<_> = claims.into_iter().collect();
        let mut shuffled = claims.clone();
        for (at, index) in order.iter().enumerate().take(shuffled.len()) {
            let other = index.index(shuffled.len());
            shuffled.swap(at, other);
        }
        let grants = |batches: Vec<Vec<(Claim, ClusterId)>>| {
            let mut owners = PrefixOwners::new(cluster(1), &[reserved()], BTreeMap::new());
            for batch in batches {
                owners.update(&[], batch);
            }
            let holder = |(prefix, _): (IpNet, &ClusterName)| (prefix, owners.holder(&prefix).map(|(c, n)| (c.clone(), n.clone())));
            owners.granted().map(holder).collect::<BTreeMap<_, _>>()
        };
        let one_by_one = |list: &[(Claim, ClusterId)]| list.iter().map(|one| vec![one.clone()]).collect();
        let together = grants(vec![claims.clone()]);
        prop_assert_eq!(&grants(one_by_one(&claims)), &together);
        prop_assert_eq!(&grants(one_by_one(&shuffled)), &together);
    }
}
