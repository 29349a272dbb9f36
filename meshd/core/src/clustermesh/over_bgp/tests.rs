use super::*;
use crate::{
    clustermesh::Accept,
    id::{ClusterId, MaxClusters},
    observed::Observed,
};

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn east() -> PeerContext {
    PeerContext {
        cluster: "east".parse().unwrap(),
        id: ClusterId::new(2, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        own: false,
        accept: Accept {
            pod_cidrs: vec!["10.2.0.0/16".parse().unwrap(), "fd02::/16".parse().unwrap()],
            node_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
        },
        own_pod_cidrs: vec!["10.2.255.0/24".parse().unwrap()],
        own_addresses: vec!["192.0.2.10".parse().unwrap()],
    }
}

/// The rows that follow from what was said.
struct Case {
    over: OverBgp,
    observed: Observed,
}

impl Case {
    fn new() -> Self {
        let mut case = Self { over: OverBgp::default(), observed: Observed::default() };
        case.over.configure(77, vec![east()], &BTreeSet::new());
        case
    }

    fn path(&mut self, prefix: &str, mark: u32, next_hops: &[&str]) -> bool {
        let next_hops: Vec<IpAddr> = next_hops.iter().map(|address| address.parse().unwrap()).collect();
        self.over.path(prefix.parse().unwrap(), Some((mark, &next_hops)), now())
    }

    fn gone(&mut self, prefix: &str) -> bool {
        self.over.path(prefix.parse().unwrap(), None, now())
    }

    fn apply(&mut self) {
        for change in self.over.take_changes(now()) {
            self.observed.apply(change, now());
        }
    }

    /// Nodes with their prefixes.
    fn nodes(&mut self) -> Vec<String> {
        self.apply();
        let Some(tables) = self.observed.clusters.get(&east().cluster) else {
            return vec!["no such cluster".to_owned()];
        };
        let text = |row: &NodeRow| row.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tables.nodes.iter().map(|(name, row)| format!("{name}: {}", text(row))).collect()
    }

    fn refused(&mut self) -> Vec<String> {
        self.apply();
        let tables = &self.observed.clusters[&east().cluster];
        tables.rejected.iter().map(|(key, row)| format!("{key}: {}", row.reason)).collect()
    }

    fn problem(&mut self) -> Option<String> {
        self.apply();
        let row = self.observed.clusters[&east().cluster].peer.clone().unwrap();
        row.problem.as_ref().map(|problem| problem.message.to_string())
    }
}

#[test]
fn prefixes_with_the_same_next_hops_are_a_node() {
    let mut case = Case::new();
    assert!(case.path("10.2.1.0/24", 2, &["192.0.2.1"]));
    assert!(case.path("10.2.2.0/24", 2, &["192.0.2.1"]));
    assert!(case.path("fd02:1::/32", 2, &["192.0.2.1", "192.0.2.2"]));
    assert_eq!(
        case.nodes(),
        ["bgp-192-0-2-1: 10.2.1.0/24 10.2.2.0/24", "bgp-192-0-2-1-192-0-2-2: fd02:1::/32"],
        "told before everything was"
    );
    let node = case.observed.clusters["east"].nodes.get(&"bgp-192-0-2-1-192-0-2-2".parse().unwrap()).unwrap();
    assert_eq!(node.next_hop_addresses(true).map(|ip| ip.to_string()).collect::<Vec<_>>(), ["192.0.2.1", "192.0.2.2"]);
    assert!(!case.observed.clusters["east"].is_initialized(Kind::Nodes));
    case.over.all_told();
    case.apply();
    assert!(Kind::ALL.iter().all(|kind| case.observed.clusters["east"].is_initialized(*kind)));
    assert!(case.observed.clusters["east"].peer.as_ref().unwrap().is_ready());

    // One moves, one goes.
    assert!(case.path("10.2.2.0/24", 2, &["192.0.2.3"]));
    assert!(!case.gone("fd02:1::/32"));
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24", "bgp-192-0-2-3: 10.2.2.0/24"]);
    // Inside of a prefix that goes the same way it would be the same route twice.
    assert!(case.path("10.2.2.128/25", 2, &["192.0.2.3"]));
    assert_eq!(case.nodes()[1], "bgp-192-0-2-3: 10.2.2.0/24");
    assert!(!case.gone("10.2.2.0/24"));
    assert_eq!(case.nodes()[1], "bgp-192-0-2-3: 10.2.2.128/25");
    assert_eq!(case.problem(), None);
    case.gone("10.2.2.128/25");
    case.gone("10.2.1.0/24");
    assert_eq!(case.nodes(), Vec::<String>::new());
    let problem = case.problem().unwrap();
    assert!(problem.contains("no accepted BGP path has a large community *:77:2"), "{problem}");
}

#[test]
fn marks_of_nobody_are_ordinary_routes() {
    let mut case = Case::new();
    assert!(!case.path("10.2.1.0/24", 1, &["192.0.2.1"]), "our own, or a cluster that is not configured");
    assert!(!case.path("10.2.1.0/24", 2, &[]), "packets are to be dropped");
    assert!(case.path("10.3.1.0/24", 2, &[]), "and not those of others");
    assert_eq!(case.refused().len(), 1);
    case.gone("10.3.1.0/24");
    assert!(case.path("10.2.1.0/24", 2, &["192.0.2.1"]));
    assert!(!case.path("10.2.1.0/24", 3, &["192.0.2.1"]), "the mark changes");
    assert_eq!(case.nodes(), Vec::<String>::new());
}

#[test]
fn the_checks_of_a_node_record_hold() {
    let mut case = Case::new();
    for (prefix, next_hop, why) in [
        ("10.3.0.0/24", "192.0.2.1", "outside"),
        ("10.2.255.0/24", "192.0.2.1", "own"),
        ("192.0.2.0/24", "192.0.2.1", "address"),
        ("10.2.1.0/24", "198.51.100.1", "outside"),
        ("10.2.2.0/24", "fe80::1", "fe80::1"),
    ] {
        assert!(case.path(prefix, 2, &[next_hop]), "{prefix}: it must not become an ordinary route");
        let refused = case.refused();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].starts_with(&format!("bgp/{prefix}: ")) && refused[0].contains(why), "{why}: {refused:?}");
        assert!(!case.gone(prefix));
        assert_eq!((case.refused(), case.nodes()), (Vec::new(), Vec::new()), "{prefix}");
    }
    // Refused, and then said in another way.
    case.path("10.2.1.0/24", 2, &["198.51.100.1"]);
    assert_eq!(case.refused().len(), 1);
    case.path("10.2.1.0/24", 2, &["192.0.2.1"]);
    assert_eq!((case.refused(), case.nodes().len()), (Vec::new(), 1));
}

#[test]
fn what_is_remembered_goes_when_everything_was_told() {
    let mut case = Case::new();
    case.path("10.2.1.0/24", 2, &["192.0.2.1"]);
    case.path("10.2.2.0/24", 2, &["192.0.2.2"]);
    case.over.all_told();
    assert_eq!(case.nodes().len(), 2);
    case.path("10.2.3.0/24", 2, &["192.0.2.2"]);
    let before = case.nodes();
    // The next run remembers all of it and hears of one.
    let rows = case.observed.clusters["east"].nodes.iter().map(|(name, row)| (name.clone(), row.clone())).collect();
    case.over = OverBgp::new(BTreeMap::from([(east().cluster, rows)]));
    case.over.configure(77, vec![east()], &BTreeSet::new());
    case.path("10.2.2.0/24", 2, &["192.0.2.2"]);
    assert_eq!(case.nodes(), before, "what was not told yet stays");
    assert!(!case.gone("10.2.3.0/24"), "somebody says that there is none");
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24", "bgp-192-0-2-2: 10.2.2.0/24"]);
    assert!(case.over.is_listing());
    case.over.all_told();
    assert!(!case.over.is_listing());
    assert_eq!(case.nodes(), ["bgp-192-0-2-2: 10.2.2.0/24"]);
}

#[test]
fn a_reload_changes_what_is_accepted_and_who_there_is() {
    let mut case = Case::new();
    case.path("10.2.1.0/24", 2, &["192.0.2.1"]);
    case.path("10.2.128.0/24", 2, &["192.0.2.1"]);
    case.over.all_told();
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24 10.2.128.0/24"]);
    case.over.configure(77, vec![east()], &BTreeSet::new());
    assert!(!case.over.is_listing(), "nothing changed");

    let narrow = Accept { pod_cidrs: vec!["10.2.0.0/17".parse().unwrap()], ..east().accept };
    case.over.configure(77, vec![PeerContext { accept: narrow, ..east() }], &BTreeSet::new());
    assert!(case.over.is_listing());
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24"], "what is accepted still stays without being told again");
    case.path("10.2.128.0/24", 2, &["192.0.2.1"]);
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24"]);
    case.path("10.2.1.0/24", 2, &["192.0.2.1"]);
    case.over.all_told();
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24"]);
    assert_eq!(case.refused().len(), 1);

    // A store tells the cluster now: its reader sweeps what is not there. Then nobody does.
    let by_store = BTreeSet::from([east().cluster]);
    case.over.configure(77, Vec::new(), &by_store);
    assert!(!case.path("10.2.1.0/24", 2, &["192.0.2.1"]));
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24"]);
    case.over.configure(77, vec![east()], &BTreeSet::new());
    case.over.configure(77, Vec::new(), &BTreeSet::new());
    assert!(!case.path("10.2.1.0/24", 2, &["192.0.2.1"]), "an ordinary route from now on");
    assert_eq!(case.nodes(), ["bgp-192-0-2-1: 10.2.1.0/24"], "which takes over before the cluster goes");
    assert!(case.over.is_listing());
    case.over.all_told();
    assert_eq!(case.nodes(), ["no such cluster"]);
    assert!(case.over.is_off());
}

#[test]
fn prefixes_of_a_cluster_are_bounded_and_asked_for_again() {
    let mut case = Case::new();
    let wide = Accept { pod_cidrs: vec!["10.0.0.0/8".parse().unwrap()], ..east().accept };
    let context = PeerContext { accept: wide, own_pod_cidrs: Vec::new(), ..east() };
    case.over.configure(77, vec![context], &BTreeSet::new());
    case.over.all_told();
    let next_hop: [IpAddr; 1] = ["192.0.2.1".parse().unwrap()];
    let prefix = |number: usize| -> IpNet {
        let number = u32::try_from(number).unwrap();
        IpNet::new(IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + (number << 4))), 28).unwrap()
    };
    for number in 0..PREFIXES_MAX + 5 {
        assert!(case.over.path(prefix(number), Some((2, &next_hop)), now()));
    }
    assert!(case.problem().unwrap().contains("more than 65536 prefixes"), "visible");
    let row = case.observed.clusters["east"].nodes.iter().next().unwrap().1.clone();
    assert_eq!(row.pod_cidrs.len(), PREFIXES_MAX);
    assert!(case.refused()[0].contains("more than 65536"), "{:?}", case.refused());
    case.over.path(prefix(PREFIXES_MAX), None, now());
    assert_eq!(case.refused().len(), 4, "one of those without room is gone");
    for number in 0..ROOM_WANTED {
        assert!(!case.over.wants_all());
        case.over.path(prefix(number), None, now());
    }
    assert!(case.over.wants_all() && !case.over.wants_all(), "once");
    for number in ROOM_WANTED..PREFIXES_MAX + 5 {
        case.over.path(prefix(number), (number != PREFIXES_MAX).then_some((2, &next_hop[..])), now());
    }
    assert_eq!((case.problem(), case.refused()), (None, Vec::new()));
}

#[test]
fn names_of_many_next_hops_stay_short_and_differ() {
    let many = |last: u16| -> Vec<IpAddr> {
        let addresses = (0..16).map(|number| if number == 15 { last } else { number });
        addresses.map(|number| IpAddr::from(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number))).collect()
    };
    assert_eq!(node_name(&many(0)[..1]).as_str(), "bgp-2001-db8-0-0-0-0-0-0");
    let (a, b) = (node_name(&many(100)), node_name(&many(101)));
    assert!(a != b && a.as_str().len() == NAME_MAX + 17, "{a} {b}");
}
