use std::{fs, os::unix::fs::PermissionsExt as _};

use meshd_core::{
    desired::{NodeTarget, RouteRow},
    id::MaxClusters,
    observed::{
        BackendZone, EndpointRow, IdentityRow, L4Addr, NodeAddress, NodeAddressKind, NodeRow, PeerRow, Protocol,
        ServiceName, ServiceRow,
    },
};
use redb::{Database, TableDefinition, WriteTransaction};

use super::*;
use crate::{pipeline::Snapshot, reconcilers::export::ExportMemory as _};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn both() -> BTreeSet<ClusterName> {
    [name("east"), name("west")].into()
}

fn node(cidr: &str) -> Arc<NodeRow> {
    Arc::new(NodeRow {
        health: Box::default(),
        ingress: Box::default(),
        cluster_id: ClusterId::new(2, MaxClusters::C255).unwrap(),
        addresses: [NodeAddress { kind: NodeAddressKind::InternalIP, ip: "172.18.0.3".parse().unwrap() }].into(),
        pod_cidrs: [cidr.parse().unwrap()].into(),
        labels: Labels("a=b;".into()),
    })
}

fn service() -> ServiceName {
    ServiceName { namespace: "default".into(), name: "web".into() }
}

fn shared(backend: &str) -> Arc<ServiceRow> {
    let ports = [("http".into(), L4Addr { protocol: Protocol::Tcp, port: 80 })];
    Arc::new(ServiceRow {
        cluster_id: ClusterId::new(2, MaxClusters::C255).unwrap(),
        frontends: BTreeMap::new(),
        backends: [(backend.parse().unwrap(), ports.into())].into(),
        include_external: true,
        zones: [(backend.parse().unwrap(), BackendZone { zone: Some("z1".into()), for_zones: ["z2".into()].into() })]
            .into(),
    })
}

/// Two clusters with nodes, a service, an endpoint of each family and an identity.
fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let endpoint = EndpointRow {
        identity: NumericIdentity(131_100),
        host: Some("172.18.0.3".parse().unwrap()),
        encryption_key: 255,
        namespace: "default".into(),
        name: "web-1".into(),
    };
    let peer = PeerRow { id: Some(ClusterId::new(2, MaxClusters::C255).unwrap()), ..PeerRow::default() };
    let east = vec![
        ClusterChange::Peer(Arc::new(peer)),
        ClusterChange::Node("a".parse().unwrap(), Some(node("10.1.0.0/24"))),
        ClusterChange::Node("b".parse().unwrap(), Some(node("10.1.1.0/24"))),
        ClusterChange::Endpoint("10.1.0.10/32".parse().unwrap(), Some(endpoint.clone())),
        ClusterChange::Endpoint("fd00:1::/64".parse().unwrap(), Some(endpoint)),
        ClusterChange::Identity(NumericIdentity(131_100), Some(IdentityRow { labels: Labels("k8s:a=b;".into()) })),
        ClusterChange::Service(service(), Some(shared("10.1.0.10"))),
    ];
    let west = vec![ClusterChange::Node("sibling".parse().unwrap(), Some(node("10.0.0.0/24")))];
    snapshot.observed.apply(Change::Cluster(name("east"), east), NOW);
    snapshot.observed.apply(Change::Cluster(name("west"), west), NOW);
    let target = NodeTarget { cluster: name("east"), node: "a".parse().unwrap(), ipv4: true }.into();
    snapshot.desired.routes.upsert("10.1.0.0/24".parse().unwrap(), Arc::new(RouteRow { target }));
    snapshot
}

fn open(dir: &Path) -> (State, Loaded) {
    State::open(dir, |_| both(), NOW).unwrap()
}

#[test]
fn what_was_saved_comes_back_stale() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, loaded) = open(dir.path());
    assert!(loaded.observed.clusters.is_empty() && loaded.set_aside.is_none());
    let before = snapshot();
    state.facts().remember_identities(&[(Labels("k8s:x=y;".into()), NumericIdentity(65_600))].into());
    state.facts().remember_store(7);
    assert!(state.save(&before).unwrap() > 6);
    assert_eq!(state.save(&before).unwrap(), 0, "nothing changed");
    drop(state);
    let (_, loaded) = open(dir.path());
    for cluster in both() {
        let (old, new) = (&before.observed.clusters[&cluster], &loaded.observed.clusters[&cluster]);
        assert!(new.nodes.diff(&old.nodes).next().is_none());
        assert!(new.endpoints.diff(&old.endpoints).next().is_none());
        assert!(new.identities.diff(&old.identities).next().is_none());
        assert!(new.services.diff(&old.services).next().is_none());
        assert_eq!(new.stale_since, Some(NOW));
        assert!(!new.is_initialized(meshd_core::observed::Kind::Nodes), "a loaded row is not a list (I4)");
    }
    assert_eq!(loaded.owners, [("10.1.0.0/24".parse().unwrap(), name("east"))].into());
    assert_eq!(loaded.known_ids.keys().collect::<Vec<_>>(), [&name("east")]);
    assert_eq!(loaded.identities.len(), 1);
    assert_eq!(loaded.store_id, Some(7));
    let remembered = loaded.remembered(&name("west"), &"me".parse().unwrap());
    assert_eq!(remembered.nodes, ["sibling".parse().unwrap()].into());
}

/// Rows have no names of fields: one field more and a file of the release before would be set aside, with all routes in it.
#[test]
fn services_that_an_earlier_release_kept_are_read() {
    const SERVICES: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("services");
    const ZONES: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("zones");
    let row = shared("10.1.0.10");
    // As it was written before zones were known: these fields in this order.
    let old = postcard::to_stdvec(&(row.cluster_id, &row.frontends, &row.backends, row.include_external)).unwrap();
    let dir = saved();
    let database = Database::create(dir.path().join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(SERVICES).unwrap().insert(("east", "default", "web"), &*old).unwrap();
    assert!(transaction.delete_table(ZONES).unwrap());
    transaction.commit().unwrap();
    drop(database);
    let (_, loaded) = open(dir.path());
    assert!(loaded.set_aside.is_none(), "{:?}", loaded.set_aside);
    let services = &loaded.observed.clusters[&name("east")].services;
    assert_eq!(**services.get(&service()).unwrap(), ServiceRow { zones: BTreeMap::new(), ..(*row).clone() });
}

#[test]
fn zones_that_are_no_longer_told_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    let mut now = snapshot();
    state.save(&now).unwrap();
    let row = ServiceRow { zones: BTreeMap::new(), ..(*shared("10.1.0.10")).clone() };
    let change = ClusterChange::Service(service(), Some(Arc::new(row.clone())));
    now.observed.apply(Change::Cluster(name("east"), vec![change]), NOW);
    state.save(&now).unwrap();
    drop(state);
    let (_, loaded) = open(dir.path());
    assert_eq!(**loaded.observed.clusters[&name("east")].services.get(&service()).unwrap(), row);
}

#[test]
fn changes_and_removals_are_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    let mut now = snapshot();
    state.save(&now).unwrap();
    let changes = vec![
        ClusterChange::Node("a".parse().unwrap(), Some(node("10.1.7.0/24"))),
        ClusterChange::Node("b".parse().unwrap(), None),
        ClusterChange::Endpoint("10.1.0.10/32".parse().unwrap(), None),
        ClusterChange::Identity(NumericIdentity(131_100), None),
        ClusterChange::Service(service(), None),
    ];
    now.observed.apply(Change::Cluster(name("east"), changes), NOW);
    now.observed.apply(Change::Cluster(name("west"), vec![ClusterChange::Drop]), NOW);
    now.desired.routes.remove(&"10.1.0.0/24".parse().unwrap());
    state.save(&now).unwrap();
    drop(state);
    let (_, loaded) = open(dir.path());
    let east = &loaded.observed.clusters[&name("east")];
    assert_eq!((east.nodes.len(), east.endpoints.len(), east.identities.len()), (1, 1, 0));
    assert!(east.services.is_empty());
    assert!(!loaded.observed.clusters.contains_key(&name("west")));
    assert!(loaded.owners.is_empty());
}

#[test]
fn a_cluster_that_is_dropped_and_read_again_between_two_saves_is_saved_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    let mut now = Snapshot::default();
    let tell = |now: &mut Snapshot, node_name: &str| {
        let change = ClusterChange::Node(node_name.parse().unwrap(), Some(node("10.1.0.0/24")));
        now.observed.apply(Change::Cluster(name("east"), vec![change]), NOW);
    };
    tell(&mut now, "old");
    state.save(&now).unwrap();
    now.observed.apply(Change::Cluster(name("east"), vec![ClusterChange::Drop]), NOW);
    tell(&mut now, "new");
    state.save(&now).unwrap();
    drop(state);
    let (_, loaded) = open(dir.path());
    let nodes: Vec<_> = loaded.observed.clusters[&name("east")].nodes.iter().map(|(n, _)| n.to_string()).collect();
    assert_eq!(nodes, ["new"]);
}

#[test]
fn what_is_remembered_is_held_to_the_list_of_today() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    state.save(&snapshot()).unwrap();
    drop(state);
    let (_, loaded) = open(dir.path());
    let limited = |prefix: &str| {
        let mut loaded = loaded.clone();
        let list = |text: &str| vec![text.parse().unwrap()];
        let accept = Accept { pod_cidrs: list(prefix), node_cidrs: list("0.0.0.0/0") };
        loaded.limit(&name("east"), accept.clone(), NOW);
        loaded.limit(&name("unheard-of"), accept.clone(), NOW);
        assert_eq!(loaded.observed.clusters.keys().cloned().collect::<BTreeSet<_>>(), both());
        let tables = &loaded.observed.clusters[&name("east")];
        assert_eq!(tables.accept, Some(accept));
        tables.nodes.len()
    };
    assert_eq!(
        (limited("10.1.0.0/16"), limited("10.9.0.0/16")),
        (loaded.observed.clusters[&name("east")].nodes.len(), 0)
    );
}

#[test]
fn clusters_that_are_no_longer_configured_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    state.save(&snapshot()).unwrap();
    drop(state);
    let configured = |known: &BTreeSet<ClusterName>| {
        assert_eq!(*known, both());
        [name("west")].into()
    };
    let (state, loaded) = State::open(dir.path(), configured, NOW).unwrap();
    assert_eq!(loaded.observed.clusters.keys().collect::<Vec<_>>(), [&name("west")]);
    assert!(loaded.owners.is_empty() && loaded.known_ids.is_empty());
    assert_eq!(loaded.left_over, ["10.1.0.0/24".parse().unwrap()].into());
    // A start that fails after this finds the same again.
    drop(state);
    let (mut state, loaded) = State::open(dir.path(), configured, NOW).unwrap();
    assert_eq!(loaded.left_over, ["10.1.0.0/24".parse().unwrap()].into());
    state.save(&Snapshot { observed: loaded.observed, ..Snapshot::default() }).unwrap();
    drop(state);
    let (_, loaded) = open(dir.path());
    assert!(loaded.left_over.is_empty());
    assert_eq!(loaded.observed.clusters.len(), 1, "also on disk");
}

#[test]
fn files_that_cannot_be_used_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    for (nth, content) in [b"no database at all".to_vec(), vec![0xff; 100_000]].into_iter().enumerate() {
        fs::write(&path, &content).unwrap();
        let (_, loaded) = open(dir.path());
        let aside = loaded.set_aside.expect("the file was used");
        assert!(aside.path.ends_with(format!("{FILE}.unreadable-{}", nth + 1)));
        assert_eq!(fs::read(&aside.path).unwrap(), content);
        assert!(loaded.observed.clusters.is_empty());
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_of_a_newer_release_is_set_aside() {
    const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
    let dir = tempfile::tempdir().unwrap();
    let database = Database::create(dir.path().join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(NUMBERS).unwrap().insert("format", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let (_, loaded) = open(dir.path());
    let aside = loaded.set_aside.expect("the file was used");
    assert!(aside.to_string().contains("a newer one wrote it"), "{aside}");
}

/// One bad row, of whatever table and cluster, must not keep the node from starting: not now and not ever.
#[test]
fn a_file_with_a_row_that_cannot_be_read_is_set_aside() {
    const NODES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("nodes");
    const ENDPOINTS: TableDefinition<'_, (&str, &[u8]), &[u8]> = TableDefinition::new("endpoints");
    const OWNERS: TableDefinition<'_, &[u8], &str> = TableDefinition::new("owners");
    const CLUSTERS: TableDefinition<'_, &str, u16> = TableDefinition::new("clusters");
    let damages: [fn(&WriteTransaction); 6] = [
        |file| drop(file.open_table(NODES).unwrap().insert(("east", "a"), &[0xff; 9][..]).unwrap()),
        |file| drop(file.open_table(NODES).unwrap().insert(("gone", "a"), &[][..]).unwrap()),
        |file| drop(file.open_table(NODES).unwrap().insert(("No Name!", "a"), &[0xff; 9][..]).unwrap()),
        |file| drop(file.open_table(ENDPOINTS).unwrap().insert(("east", &[10, 1, 0, 10, 32][..]), &[7][..]).unwrap()),
        |file| drop(file.open_table(OWNERS).unwrap().insert(&[10, 1, 0, 10, 99][..], "east").unwrap()),
        |file| drop(file.open_table(CLUSTERS).unwrap().insert("east", 60_000).unwrap()),
    ];
    for (nth, damage) in damages.into_iter().enumerate() {
        let dir = saved();
        let database = Database::create(dir.path().join(FILE)).unwrap();
        let transaction = database.begin_write().unwrap();
        damage(&transaction);
        transaction.commit().unwrap();
        drop(database);
        assert_set_aside_once(dir.path(), nth);
    }
}

/// The database library panics at a text that is no UTF-8; bytes that rot on the disk make one.
#[test]
fn a_file_with_rotten_bytes_is_set_aside() {
    let dir = saved();
    let path = dir.path().join(FILE);
    let mut content = fs::read(&path).unwrap();
    let text = b"k8s:a=b;";
    let places: Vec<usize> = (0..content.len() - text.len()).filter(|at| content[*at..].starts_with(text)).collect();
    assert!(!places.is_empty(), "no row holds the labels");
    for at in places {
        content[at..at + text.len()].fill(0xff);
    }
    fs::write(&path, content).unwrap();
    assert_set_aside_once(dir.path(), 0);
}

/// A directory with a file that holds something.
fn saved() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    state.save(&snapshot()).unwrap();
    dir
}

fn assert_set_aside_once(dir: &Path, case: usize) {
    let (mut state, loaded) = open(dir);
    let aside = loaded.set_aside.unwrap_or_else(|| panic!("the file of case {case} was used"));
    assert!(aside.path.exists() && loaded.observed.clusters.is_empty(), "case {case}");
    assert!(aside.to_string().contains("could not be used and is now"), "{aside}");
    assert!(state.save(&snapshot()).unwrap() > 0);
    drop(state);
    let (_, loaded) = open(dir);
    assert_eq!((loaded.set_aside, loaded.observed.clusters.len()), (None, 2), "the new file of case {case} is used");
}

#[test]
fn the_file_is_private_and_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let (_state, _) = open(dir.path());
    let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(State::open(dir.path(), |_| both(), NOW), Err(StateError::InUse { .. })));
}

/// Saving 300,000 rows must cost little: one transaction, and as good as nothing for the next small change.
#[test]
fn many_rows_are_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    let mut now = Snapshot::default();
    let endpoint = |n: u32| {
        let ip = std::net::Ipv4Addr::from(0x0a01_0000 + n);
        let row = EndpointRow {
            identity: NumericIdentity(131_100 + n % 100),
            host: Some("172.18.0.3".parse().unwrap()),
            encryption_key: 0,
            namespace: "default".into(),
            name: format!("pod-{n}").into(),
        };
        ClusterChange::Endpoint(IpNet::from(std::net::IpAddr::V4(ip)), Some(row))
    };
    now.observed.apply(Change::Cluster(name("east"), (0..20_000).map(endpoint).collect()), NOW);
    assert_eq!(state.save(&now).unwrap(), 20_000);
    now.observed.apply(Change::Cluster(name("east"), vec![endpoint(30_000)]), NOW);
    assert_eq!(state.save(&now).unwrap(), 1);
}
