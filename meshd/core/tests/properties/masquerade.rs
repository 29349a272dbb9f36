//! What is excluded from masquerade depends on what is known, not on the order in which it came.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    derive::{LocalNode, MasqueradeDeriver, RouteDeriver},
    desired::{Desired, Exclusion, ExclusionSet},
    id::{ClusterId, ClusterName, MaxClusters, NodeName},
    observed::{
        Change, ClusterChange, KeptBy, MasqueradeRow, MasqueradeSetting, NodeAddress, NodeAddressKind, NodeRow,
        Observed,
    },
};
use proptest::prelude::*;

/// Numbers of addresses and of PodCIDRs.
type Numbers = (Vec<u8>, Vec<u8>);

/// Node of cluster 2 or 3, its addresses and PodCIDRs by number; or the prefixes that people keep, or masquerade off.
#[derive(Debug, Clone)]
enum Step {
    Node(u8, u8, Option<Numbers>),
    Kept(Option<Vec<usize>>),
}

const KEPT: [&str; 6] = ["10.0.0.0/8", "10.2.0.0/16", "10.2.17.0/24", "172.16.0.0/12", "fd00::/8", "fd00:2::/32"];
const LIMIT: usize = 6;

fn step() -> impl Strategy<Value = Step> {
    let numbers = || prop::collection::vec(0u8..3, 0..3);
    let kept = prop::option::weighted(0.8, prop::collection::vec(0..KEPT.len(), 0..4));
    prop_oneof![
        4 => (2u8..4, 0u8..3, prop::option::weighted(0.7, (numbers(), numbers())))
            .prop_map(|(cluster, node, row)| Step::Node(cluster, node, row)),
        1 => kept.prop_map(Step::Kept),
    ]
}

fn change(step: &Step) -> Change {
    match step {
        Step::Node(cluster, node, row) => {
            let address =
                |number: &u8| NodeAddress { kind: NodeAddressKind::InternalIP, ip: [172, 18, 0, *number].into() };
            let cidr = |number: &u8| -> IpNet {
                format!("10.{cluster}.{}.0/24", node * 16 + number).parse().expect("a prefix")
            };
            let row = row.as_ref().map(|(addresses, cidrs)| {
                let cidrs: BTreeSet<IpNet> = cidrs.iter().map(cidr).collect();
                Arc::new(NodeRow {
                    health: Box::default(),
                    ingress: Box::default(),
                    cluster_id: ClusterId::new(u32::from(*cluster), MaxClusters::C255).expect("an id"),
                    addresses: addresses.iter().map(address).collect(),
                    pod_cidrs: cidrs.into_iter().collect(),
                    labels: Default::default(),
                })
            });
            let node: NodeName = format!("n{node}").parse().expect("a name");
            let cluster: ClusterName = format!("c{cluster}").parse().expect("a name");
            Change::Cluster(cluster, vec![ClusterChange::Node(node, row)])
        }
        Step::Kept(None) => Change::Masquerade(MasqueradeSetting::Off),
        Step::Kept(Some(numbers)) => {
            let kept = numbers.iter().map(|n| (KEPT[*n].parse().expect("a prefix"), KeptBy::Configuration)).collect();
            Change::Masquerade(MasqueradeSetting::On(Arc::new(MasqueradeRow { kept, ..MasqueradeRow::default() })))
        }
    }
}

/// The exclusions and how many were left out; derived after each change, or (`once`) at the end.
fn derive(steps: &[Step], once: bool, limit: usize) -> (Vec<Exclusion>, usize) {
    let local = LocalNode {
        cluster: "c1".parse().expect("a name"),
        name: "n0".parse().expect("a name"),
        addresses: vec!["172.18.1.0".parse().expect("an address")],
        pod_cidrs: vec!["10.1.0.0/24".parse().expect("a prefix")],
        zone: None,
    };
    let (mut observed, mut desired) = (Observed::default(), Desired::default());
    let mut routes = RouteDeriver::new(local.clone(), BTreeMap::new());
    routes.settle();
    let mut masquerade = MasqueradeDeriver::with_limit(local, limit);
    for (i, step) in steps.iter().enumerate() {
        observed.apply(change(step), Timestamp::UNIX_EPOCH);
        if !once || i + 1 == steps.len() {
            let touched = observed.take_touched();
            routes.update(&observed, &touched, Timestamp::UNIX_EPOCH, &mut desired);
            masquerade.update(&observed, &touched, &mut desired);
        }
    }
    let exclusions = desired.masquerade.exclusions.iter().map(|(exclusion, ())| *exclusion).collect();
    (exclusions, desired.masquerade.left_out)
}

/// Every prefix that is asked for, and of each set the outermost ones, worked out the slow way.
fn model(steps: &[Step], limit: usize) -> (Vec<Exclusion>, usize) {
    let mut nodes: BTreeMap<(u8, u8), &Numbers> = BTreeMap::new();
    let mut kept = None;
    for step in steps {
        match step {
            Step::Node(cluster, node, Some(row)) => drop(nodes.insert((*cluster, *node), row)),
            Step::Node(cluster, node, None) => drop(nodes.remove(&(*cluster, *node))),
            Step::Kept(numbers) => kept.clone_from(numbers),
        }
    }
    let Some(kept) = kept else { return (Vec::new(), 0) };
    let net = |text: String| text.parse::<IpNet>().expect("a prefix");
    let mut asked: BTreeSet<Exclusion> = BTreeSet::new();
    asked.extend(kept.iter().map(|n| (ExclusionSet::Kept, net(KEPT[*n].to_owned()))));
    asked.insert((ExclusionSet::Pods, net("10.1.0.0/24".to_owned())));
    asked.insert((ExclusionSet::Nodes, net("172.18.1.0/32".to_owned())));
    for ((cluster, node), (addresses, cidrs)) in nodes {
        asked.extend(addresses.iter().map(|n| (ExclusionSet::Nodes, net(format!("172.18.0.{n}/32")))));
        asked.extend(cidrs.iter().map(|n| (ExclusionSet::Pods, net(format!("10.{cluster}.{}.0/24", node * 16 + n)))));
    }
    let outermost: Vec<Exclusion> = asked
        .iter()
        .filter(|(set, prefix)| !asked.iter().any(|(of, other)| of == set && other != prefix && other.contains(prefix)))
        .copied()
        .collect();
    let left_out = outermost.len().saturating_sub(limit);
    (outermost.into_iter().take(limit).collect(), left_out)
}

proptest! {
    #[test]
    fn exclusions_are_those_of_the_model_however_they_came(
        steps in prop::collection::vec(step(), 1..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        for limit in [LIMIT, 1000] {
            let expected = model(&steps, limit);
            prop_assert_eq!(&derive(&steps, false, limit), &expected);
            prop_assert_eq!(&derive(&steps, true, limit), &expected);
        }
        // The last word about each row, in any order.
        let mut last: BTreeMap<String, Step> = BTreeMap::new();
        for step in steps {
            let about = match &step {
                Step::Node(cluster, node, _) => format!("{cluster} {node}"),
                Step::Kept(_) => String::new(),
            };
            last.insert(about, step);
        }
        let mut shuffled: Vec<Step> = last.into_values().collect();
        let expected = model(&shuffled, LIMIT);
        for (at, index) in order.iter().enumerate().take(shuffled.len()) {
            let other = index.index(shuffled.len());
            shuffled.swap(at, other);
        }
        prop_assert_eq!(derive(&shuffled, false, LIMIT), expected);
    }
}
