use super::*;
use crate::{
    id::{ClusterId, MaxClusters},
    observed::{BgpHop, BgpNextHop, BgpTarget},
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn cluster() -> ClusterName {
    "east".parse().unwrap()
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn row(cidr: &str) -> Option<Arc<NodeRow>> {
    Some(Arc::new(NodeRow {
        health: Box::default(),
        ingress: Box::default(),
        cluster_id: ClusterId::new(2, MaxClusters::C255).unwrap(),
        addresses: Box::default(),
        pod_cidrs: Box::new([cidr.parse().unwrap()]),
        labels: Default::default(),
    }))
}

fn apply(observed: &mut Observed, changes: Vec<ClusterChange>) -> Touched {
    observed.apply(Change::Cluster(cluster(), changes), NOW);
    observed.take_touched()
}

#[test]
fn a_relist_removes_what_is_gone_and_says_which_nodes() {
    let mut observed = Observed::default();
    apply(
        &mut observed,
        vec![
            ClusterChange::ListBegin(Kind::Nodes),
            ClusterChange::Node(node("a"), row("10.1.0.0/24")),
            ClusterChange::Node(node("b"), row("10.1.1.0/24")),
            ClusterChange::ListEnd(Kind::Nodes),
        ],
    );
    let touched = apply(
        &mut observed,
        vec![
            ClusterChange::ListBegin(Kind::Nodes),
            ClusterChange::Node(node("b"), row("10.1.1.0/24")),
            ClusterChange::ListEnd(Kind::Nodes),
        ],
    );
    assert!(touched.nodes.contains(&(cluster(), node("a"))));
    let tables = &observed.clusters[&cluster()];
    assert_eq!(tables.nodes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(tables.is_initialized(Kind::Nodes));
    assert!(!tables.is_initialized(Kind::Endpoints));
}

#[test]
fn a_row_whose_record_is_refused_outlives_a_relist_and_does_not_appear_from_nothing() {
    let mut observed = Observed::default();
    apply(&mut observed, vec![ClusterChange::Node(node("a"), row("10.1.0.0/24"))]);
    apply(
        &mut observed,
        vec![
            ClusterChange::ListBegin(Kind::Nodes),
            ClusterChange::Kept(RecordKey::Node(node("a"))),
            ClusterChange::Kept(RecordKey::Node(node("b"))),
            ClusterChange::ListEnd(Kind::Nodes),
        ],
    );
    let names: Vec<_> = observed.clusters[&cluster()].nodes.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn a_broken_list_keeps_every_row() {
    let mut observed = Observed::default();
    apply(&mut observed, vec![ClusterChange::Node(node("a"), row("10.1.0.0/24")), ClusterChange::Stale(NOW)]);
    apply(&mut observed, vec![ClusterChange::ListBegin(Kind::Nodes), ClusterChange::ListAbort(Kind::Nodes)]);
    let tables = &observed.clusters[&cluster()];
    assert_eq!(tables.nodes.len(), 1);
    assert!(tables.stale_since.is_some());
    assert!(!tables.is_initialized(Kind::Nodes));
}

#[test]
fn dropping_a_cluster_touches_all_its_nodes() {
    let mut observed = Observed::default();
    apply(&mut observed, vec![ClusterChange::Node(node("a"), row("10.1.0.0/24"))]);
    let touched = apply(&mut observed, vec![ClusterChange::Drop]);
    assert_eq!(touched.nodes.len(), 1);
    assert!(observed.clusters.is_empty());
}

#[test]
fn refusals_are_bounded_and_counted() {
    let mut observed = Observed::default();
    let refusal = |n: usize| {
        let reason = Rejection::TooMany { limit: 1 };
        ClusterChange::Rejected(
            format!("k{n}").into(),
            Some(RejectedRow { kind: Some(Kind::Nodes), reason, since: NOW }),
        )
    };
    apply(&mut observed, (0..Limits::REJECTED + 5).map(refusal).collect());
    let tables = &observed.clusters[&cluster()];
    assert_eq!(tables.rejected.len(), Limits::REJECTED);
    assert_eq!(tables.rejected_dropped, 5);
    apply(&mut observed, vec![ClusterChange::ListBegin(Kind::Nodes)]);
    assert!(observed.clusters[&cluster()].rejected.is_empty(), "a list tells its refusals again");
}

#[test]
fn a_narrower_accept_list_drops_what_no_longer_fits() {
    let mut observed = Observed::default();
    apply(
        &mut observed,
        vec![ClusterChange::Node(node("a"), row("10.1.0.0/24")), ClusterChange::Node(node("b"), row("10.2.0.0/24"))],
    );
    let service = |name: &str, backend: &str| {
        let row = ServiceRow {
            cluster_id: ClusterId::new(2, MaxClusters::C255).unwrap(),
            frontends: BTreeMap::new(),
            backends: [(backend.parse().unwrap(), BTreeMap::new())].into(),
            include_external: true,
            zones: BTreeMap::new(),
        };
        let name = ServiceName { namespace: "default".into(), name: name.into() };
        ClusterChange::Service(name, Some(Arc::new(row)))
    };
    apply(&mut observed, vec![service("inside", "10.1.0.10"), service("outside", "10.2.0.10")]);
    let accept = Accept { pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()], node_cidrs: vec![] };
    let touched = apply(&mut observed, vec![ClusterChange::Accept(accept)]);
    assert_eq!(touched.nodes, [(cluster(), node("a")), (cluster(), node("b"))].into());
    assert_eq!(observed.clusters[&cluster()].nodes.len(), 1);
    let services = observed.clusters[&cluster()].services.iter().map(|(name, _)| name.to_string());
    assert_eq!(services.collect::<Vec<_>>(), ["default/inside"]);
}

/// A store can tell keys without end in a list that never ends.
#[test]
fn marks_of_a_list_never_outgrow_the_table() {
    let identity = |n: u32| {
        ClusterChange::Identity(NumericIdentity(n), Some(IdentityRow { labels: super::super::Labels("a=b;".into()) }))
    };
    let limit = u32::try_from(Limits::IDENTITIES).unwrap();
    let mut observed = Observed::default();
    apply(&mut observed, vec![identity(0)]);
    apply(&mut observed, vec![ClusterChange::ListBegin(Kind::Identities)]);
    apply(&mut observed, (1..limit + 5_000).map(identity).collect());
    apply(
        &mut observed,
        (limit..limit + 5_000).map(|n| ClusterChange::Kept(RecordKey::Identity(NumericIdentity(n)))).collect(),
    );
    let tables = &observed.clusters[&cluster()];
    assert_eq!(tables.identities.len(), Limits::IDENTITIES);
    assert_eq!(tables.identities_sync.marked(), Limits::IDENTITIES - 1, "row 0 was not told again");
    // A record that is withdrawn in the same list leaves no mark behind.
    let nodes = (0..50).flat_map(|n| {
        let name = node(&format!("n{n}"));
        [ClusterChange::Node(name.clone(), row("10.1.0.0/24")), ClusterChange::Node(name, None)]
    });
    let first = [ClusterChange::Node(node("a"), row("10.1.0.0/24")), ClusterChange::ListBegin(Kind::Nodes)];
    apply(&mut observed, first.into_iter().chain(nodes).collect());
    assert_eq!(observed.clusters[&cluster()].nodes_sync.marked(), 0);
    apply(&mut observed, vec![ClusterChange::ListEnd(Kind::Identities)]);
    let tables = &observed.clusters[&cluster()];
    assert_eq!(tables.identities.len(), Limits::IDENTITIES - 1);
    assert!(!tables.identities.contains(&NumericIdentity(0)));
}

/// Routes beyond the limit are refused and counted; those that are there may change, and one that goes makes room.
#[test]
fn routes_learned_by_bgp_are_limited() {
    let hops = |last: u8| {
        let next_hop = BgpNextHop { address: std::net::Ipv4Addr::new(192, 0, 2, last).into(), link: None };
        BgpTarget::Via { hops: [BgpHop { next_hop, weight: 1 }].into(), ipv4: true }
    };
    let prefix = |number: u8| -> IpNet { format!("10.0.{number}.0/24").parse().unwrap() };
    let mut observed = Observed::default();
    let mut tell = |changes: Vec<BgpChange>| {
        observed.apply(Change::Bgp(changes), Timestamp::UNIX_EPOCH);
        (observed.bgp.len(), observed.bgp_targets.len(), observed.bgp_refused)
    };
    assert_eq!(tell(vec![BgpChange::Limit(2), BgpChange::Route(prefix(1), Some(hops(1)))]), (1, 1, 0));
    assert_eq!(tell(vec![BgpChange::Route(prefix(2), Some(hops(2)))]), (2, 2, 0));
    assert_eq!(tell(vec![BgpChange::Route(prefix(3), Some(hops(3)))]), (2, 2, 1));
    assert_eq!(
        tell(vec![BgpChange::Route(prefix(2), Some(hops(1)))]),
        (2, 1, 1),
        "nothing leads to the second any more"
    );
    assert_eq!(tell(vec![BgpChange::Route(prefix(1), None), BgpChange::Route(prefix(3), Some(hops(3)))]), (2, 2, 1));
    // With more room everything is told again, and what is refused is counted anew.
    assert_eq!(tell(vec![BgpChange::Limit(1), BgpChange::Route(prefix(4), Some(hops(4)))]), (2, 2, 2));
    assert_eq!(tell(vec![BgpChange::Limit(3), BgpChange::Route(prefix(4), Some(hops(4)))]), (3, 3, 0));
    assert_eq!(tell(vec![BgpChange::Route(prefix(5), Some(hops(5)))]), (3, 3, 1));
    assert_eq!(tell(vec![BgpChange::Uninstall, BgpChange::Route(prefix(6), Some(hops(6)))]), (1, 1, 0));
}
