use super::*;

#[test]
fn every_form_of_key_is_read_and_written_alike() {
    for text in [
        "cilium/.heartbeat",
        "cilium/cluster-config/edge",
        "cilium/synced/edge/cilium/state/identities/v1",
        "cilium/synced/edge/cilium/cache/endpointslices/v1",
        "cilium/state/nodes/v1/edge/vm-a1",
        "cilium/cache/nodes/v1/edge/vm-a1",
        "cilium/state/ip/v1/default/10.7.21.15",
        "cilium/state/ip/v1/default/10.151.0.0/16",
        "cilium/state/ip/v1/default/fd00:1::10",
        "cilium/cache/ip/v1/edge/fd00:1::/64",
        "cilium/state/identities/v1/id/458790",
        "cilium/cache/identities/v1/edge/id/458790",
        "cilium/state/services/v1/edge/billing/api",
        "cilium/cache/serviceexports/v1/edge/billing/api",
        "cilium/state/endpointslices/v1/edge/billing/api-x7",
    ] {
        assert_eq!(Key::parse(text.as_bytes()).unwrap().to_string(), text);
    }
}

#[test]
fn other_keys_are_not_keys() {
    let form = |key: &str| matches!(Key::parse(key.as_bytes()), Err(KeyError::Form(_)));
    let unknown = |key: &str| Key::parse(key.as_bytes()) == Err(KeyError::Unknown);
    let not_canonical = |key: &str| matches!(Key::parse(key.as_bytes()), Err(KeyError::NotCanonical(_)));
    assert!(unknown("cilium/state/nodes/v1"));
    assert!(unknown("cilium/state/noderegister/v1/a"));
    assert!(unknown("/cilium/.heartbeat"));
    assert!(unknown("cilium/.heartbeatx"));
    assert!(form("cilium/cluster-config/"));
    assert!(form("cilium/cluster-config/a/b"));
    assert!(form("cilium/state/nodes/v1/edge/"));
    assert!(form("cilium/state/nodes/v1/edge/a/b"));
    assert!(form("cilium/state/ip/v1/other/10.0.0.1"));
    assert!(form("cilium/state/ip/v1/default/10.0.0.01"));
    assert!(form("cilium/state/ip/v1/default/10.0.0.0/33"));
    assert!(form("cilium/state/ip/v1/default/fe80::1%eth0"));
    assert!(form("cilium/state/identities/v1/id/"));
    assert!(form("cilium/state/identities/v1/id/+5"));
    assert!(form("cilium/state/identities/v1/id/4294967296"));
    assert!(form("cilium/state/services/v1/edge/a"));
    assert!(form("cilium/synced/edge/cilium/state/nodes/v1/x"));
    assert!(not_canonical("cilium/state/ip/v1/default/10.0.0.0/08"));
    assert!(not_canonical("cilium/state/ip/v1/default/10.0.0.1/32"));
    assert!(not_canonical("cilium/state/ip/v1/default/0:0::1"));
    assert_eq!(Key::parse(&[b'a'; KEY_MAX + 1]), Err(KeyError::TooLong));
    assert_eq!(Key::parse(b"cilium/\xff"), Err(KeyError::NotText));
}

#[test]
fn prefixes_hold_the_keys_of_their_kind_and_no_others() {
    let cluster: ClusterName = "edge".parse().unwrap();
    for (keyspace, kind, expected) in [
        (Keyspace::State, Kind::Nodes, "cilium/state/nodes/v1/edge/"),
        (Keyspace::State, Kind::Endpoints, "cilium/state/ip/v1/default/"),
        (Keyspace::State, Kind::Identities, "cilium/state/identities/v1/id/"),
        (Keyspace::State, Kind::Services, "cilium/state/services/v1/edge/"),
        (Keyspace::Cache, Kind::Nodes, "cilium/cache/nodes/v1/edge/"),
        (Keyspace::Cache, Kind::Endpoints, "cilium/cache/ip/v1/edge/"),
        (Keyspace::Cache, Kind::Identities, "cilium/cache/identities/v1/edge/id/"),
        (Keyspace::Cache, Kind::Services, "cilium/cache/services/v1/edge/"),
    ] {
        assert_eq!(prefix(keyspace, &cluster, kind), expected);
    }
    assert_eq!(canary_prefix(&cluster), "cilium/synced/edge/");
    let canary = Key::canary(Keyspace::State, &cluster, Kind::Endpoints).to_string();
    assert_eq!(canary, "cilium/synced/edge/cilium/state/ip/v1");
}

#[test]
fn a_range_ends_where_the_prefix_ends() {
    for (prefix, end) in [
        (&b"a/"[..], &b"a0"[..]),
        (b"a\xff", b"b"),
        (b"\xff\xff", b"\0"),
        (b"", b"\0"),
        (b"cilium/.heartbeat", b"cilium/.heartbeau"),
    ] {
        assert_eq!(range_end(prefix), end);
    }
}
