use super::*;
use crate::{
    clustermesh::Accept,
    id::{ClusterId, MaxClusters},
};

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn ctx() -> PeerContext {
    PeerContext {
        cluster: "edge".parse().unwrap(),
        id: ClusterId::new(7, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        own: false,
        accept: Accept {
            pod_cidrs: nets(&["10.0.0.0/8", "fd00::/16"]),
            node_cidrs: nets(&["198.51.100.0/24", "fc00::/64"]),
        },
        own_pod_cidrs: nets(&["10.9.0.0/16", "fd00:9::/48"]),
        own_addresses: vec!["10.77.0.1".parse().unwrap()],
    }
}

const NODE_KEY: &str = "cilium/state/nodes/v1/edge/vm-a1";
const NODE: &str = r#"{"Name":"vm-a1","Cluster":"edge","IPAddresses":[{"Type":"InternalIP","IP":"198.51.100.21"},{"Type":"CiliumInternalIP","IP":"10.7.21.1"}],"IPv4AllocCIDR":{"IP":"10.7.21.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":7,"Source":"local","EncryptionKey":0,"Labels":{"os":"linux"},"Annotations":null,"WireguardPubKey":"","BootID":""}"#;
const IP_KEY: &str = "cilium/state/ip/v1/default/10.7.21.15";
const IP: &str = r#"{"IP":"10.7.21.15","Mask":null,"HostIP":"198.51.100.21","ID":458790,"Key":0,"Metadata":"","K8sNamespace":"billing","K8sPodName":"worker-0"}"#;
const ID_KEY: &str = "cilium/state/identities/v1/id/458790";
const ID: &str = "k8s:app=worker;k8s:io.cilium.k8s.policy.cluster=edge;";
const SERVICE_KEY: &str = "cilium/state/services/v1/edge/billing/api";
const SERVICE: &str = r#"{"cluster":"edge","namespace":"billing","name":"api","frontends":{"10.107.3.9":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.7.21.15":{"http":{"Protocol":"TCP","Port":8080}}},"hostnames":{},"labels":{"app":"api"},"selector":{"app":"api"},"includeExternal":true,"shared":true,"clusterID":7}"#;

fn accept(ctx: &PeerContext, key: &str, value: &str) -> Result<Record, Refused> {
    accept_upsert(ctx, &mut Interner::default(), Keyspace::State, key.as_bytes(), value.as_bytes())
}

/// `(key, value, from, to, message)`: in `value`, `from` is replaced by `to`.
fn check_refusals(cases: &[(&str, &str, &str, &str, &str)]) {
    for (key, value, from, to, message) in cases {
        assert!(value.contains(from), "{from} is not in the record");
        let refused = accept(&ctx(), key, &value.replacen(from, to, 1)).expect_err(message);
        assert_eq!(refused.reason.to_string(), *message);
        assert!(refused.kind.is_some(), "{message}");
    }
}

#[test]
fn the_records_of_the_tables_below_are_fine_as_they_are() {
    for (key, value) in [(NODE_KEY, NODE), (IP_KEY, IP), (ID_KEY, ID), (SERVICE_KEY, SERVICE)] {
        let record = accept(&ctx(), key, value).unwrap();
        assert!(!matches!(record, Record::Ignored | Record::Withdrawn(_)), "{key}: {record:?}");
    }
}

#[test]
fn node_records_are_refused() {
    let cidr = r#"{"IP":"10.7.21.0","Mask":"////AA=="}"#;
    let second = r#""IPv4SecondaryAllocCIDRs":null"#;
    let prefix = |ip: &str, mask: &str| format!(r#"{{"IP":"{ip}","Mask":"{mask}"}}"#);
    let cases: Vec<(&str, String, &str)> = vec![
        (
            r#""Cluster":"edge""#,
            r#""Cluster":"west""#.into(),
            r#"the record names cluster "west", but was published by cluster "edge""#,
        ),
        (r#""Cluster":"edge","#, String::new(), r#"the record names cluster "", but was published by cluster "edge""#),
        (
            r#""ClusterID":7"#,
            r#""ClusterID":8"#.into(),
            r#"the record has cluster id 8, but the cluster-config of "edge" says 7"#,
        ),
        (r#""Name":"vm-a1""#, r#""Name":"vm-a2""#.into(), r#"the key says "vm-a1", but Name in the value is "vm-a2""#),
        (r#"{"Name""#, r#"{Name"#.into(), "malformed JSON at line 1 column 2: key must be a string"),
        (
            r#""BootID":""}"#,
            r#""BootID":"""#.into(),
            "malformed JSON at line 1 column 471: EOF while parsing an object",
        ),
        (
            r#""ClusterID":7"#,
            r#""ClusterID":-1"#.into(),
            "malformed JSON at line 1 column 361: invalid value: integer `-1`, expected u32",
        ),
        ("198.51.100.21", "198.51.100".into(), r#"IPAddresses is "198.51.100", which is not an IP address"#),
        (
            "198.51.100.21",
            "203.0.113.1".into(),
            r#"node address 203.0.113.1 is outside accept.node_cidrs of cluster "edge""#,
        ),
        ("198.51.100.21", "127.0.0.1".into(), "IPAddresses 127.0.0.1/32 is in the loopback range"),
        ("198.51.100.21", "169.254.1.1".into(), "IPAddresses 169.254.1.1/32 is in the link-local range"),
        ("198.51.100.21", "fe80::1".into(), "IPAddresses fe80::1/128 is in the link-local range"),
        ("198.51.100.21", "224.0.0.5".into(), "IPAddresses 224.0.0.5/32 is in the multicast range"),
        ("198.51.100.21", "0.0.0.0".into(), "IPAddresses 0.0.0.0/32 is in the unspecified range"),
        ("198.51.100.21", "255.255.255.255".into(), "IPAddresses 255.255.255.255/32 is in the broadcast range"),
        (
            "198.51.100.21",
            "::ffff:198.51.100.21".into(),
            "IPAddresses ::ffff:198.51.100.21/128 is in the IPv4-mapped IPv6 range",
        ),
        ("198.51.100.21", "FC00::1".into(), r#"IPAddresses is "FC00::1", which in canonical form is fc00::1"#),
        (
            "198.51.100.21",
            "10.9.0.1".into(),
            "IPAddresses 10.9.0.1/32 lies inside our own PodCIDR 10.9.0.0/16; own prefixes always win",
        ),
        (
            "10.7.21.1\"",
            "10.9.0.1\"".into(),
            "IPAddresses 10.9.0.1/32 lies inside our own PodCIDR 10.9.0.0/16; own prefixes always win",
        ),
        (
            "10.7.21.1\"",
            "203.0.113.1\"".into(),
            r#"IPAddresses 203.0.113.1/32 is outside accept.pod_cidrs and accept.node_cidrs of cluster "edge""#,
        ),
        (
            cidr,
            prefix("192.168.0.0", "////AA=="),
            r#"PodCIDR 192.168.0.0/24 is outside accept.pod_cidrs of cluster "edge""#,
        ),
        (
            cidr,
            prefix("10.9.0.0", "//8AAA=="),
            "IPv4AllocCIDR 10.9.0.0/16 is our own PodCIDR 10.9.0.0/16; own prefixes always win",
        ),
        (
            cidr,
            prefix("10.9.5.0", "////AA=="),
            "IPv4AllocCIDR 10.9.5.0/24 lies inside our own PodCIDR 10.9.0.0/16; own prefixes always win",
        ),
        (
            cidr,
            prefix("10.0.0.0", "/wAAAA=="),
            "IPv4AllocCIDR 10.0.0.0/8 covers our own PodCIDR 10.9.0.0/16; own prefixes always win",
        ),
        (
            cidr,
            prefix("10.77.0.0", "////AA=="),
            "IPv4AllocCIDR 10.77.0.0/24 contains 10.77.0.1, an address of this node",
        ),
        (cidr, prefix("0.0.0.0", "AAAAAA=="), "0.0.0.0/0 covers every address; a cluster cannot own the default route"),
        (cidr, prefix("224.0.0.0", "8AAAAA=="), "IPv4AllocCIDR 224.0.0.0/4 is in the multicast range"),
        (cidr, prefix("239.1.0.0", "//8AAA=="), "IPv4AllocCIDR 239.1.0.0/16 is in the multicast range"),
        (cidr, prefix("127.0.0.0", "/wAAAA=="), "IPv4AllocCIDR 127.0.0.0/8 is in the loopback range"),
        (cidr, prefix("169.0.0.0", "/wAAAA=="), "IPv4AllocCIDR 169.0.0.0/8 is in the link-local range"),
        (cidr, prefix("10.0.0.0", "/gAAAA=="), "prefix 10.0.0.0/7 is too large: its length must be at least 8"),
        (
            cidr,
            prefix("10.7.21.5", "////AA=="),
            "prefix 10.7.21.5/24 has host bits set; the prefix would be 10.7.21.0/24",
        ),
        (cidr, prefix("10.7.21.0", "///_AA=="), r#"the mask "///_AA==" in IPv4AllocCIDR is not standard base64"#),
        (cidr, prefix("10.7.21.0", "////AA"), r#"the mask "////AA" in IPv4AllocCIDR is not standard base64"#),
        (
            cidr,
            prefix("10.7.21.0", "////"),
            r#"the mask "////" in IPv4AllocCIDR is not 4 bytes for an IPv4 or 16 bytes for an IPv6 address"#,
        ),
        (cidr, prefix("10.7.21.0", "//8A/w=="), r#"the mask "//8A/w==" in IPv4AllocCIDR has ones after zeros"#),
        (
            cidr,
            prefix("10.7.21.0", ""),
            r#"the mask "" in IPv4AllocCIDR is not 4 bytes for an IPv4 or 16 bytes for an IPv6 address"#,
        ),
        (
            cidr,
            prefix("fd00:1::", "//////////8AAAAAAAAAAA=="),
            "IPv4AllocCIDR holds fd00:1::, an address of the wrong family",
        ),
        (
            r#""IPv6AllocCIDR":null"#,
            format!(r#""IPv6AllocCIDR":{}"#, prefix("::", "AAAAAAAAAAAAAAAAAAAAAA==")),
            "::/0 covers every address; a cluster cannot own the default route",
        ),
        (
            r#""IPv6AllocCIDR":null"#,
            format!(r#""IPv6AllocCIDR":{}"#, prefix("ff00::", "/wAAAAAAAAAAAAAAAAAAAA==")),
            "IPv6AllocCIDR ff00::/8 is in the multicast range",
        ),
        (
            r#""IPv6AllocCIDR":null"#,
            format!(r#""IPv6AllocCIDR":{}"#, prefix("fd00:9::", "////////AAAAAAAAAAAAAA==")),
            "IPv6AllocCIDR fd00:9::/48 is our own PodCIDR fd00:9::/48; own prefixes always win",
        ),
        (second, format!(r#""IPv4SecondaryAllocCIDRs":[{cidr}]"#), "PodCIDR 10.7.21.0/24 is listed twice"),
        (
            second,
            format!(r#""IPv4SecondaryAllocCIDRs":[{}]"#, prefix("10.7.16.0", "///wAA==")),
            "PodCIDR 10.7.21.0/24 lies inside PodCIDR 10.7.16.0/20 of the same node",
        ),
        (
            second,
            format!(r#""IPv4SecondaryAllocCIDRs":[{}{cidr}]"#, format!("{cidr},").repeat(256)),
            "IPv4SecondaryAllocCIDRs has 257 entries, more than the 256 that are read",
        ),
        (
            r#""IPAddresses":["#,
            format!(r#""IPAddresses":[{}"#, r#"{"Type":"InternalIP","IP":"198.51.100.1"},"#.repeat(64)),
            "IPAddresses has 66 entries, more than the 64 that are read",
        ),
        (
            r#""os":"linux""#,
            r#""os":"a;b""#.into(),
            r#"malformed label "os=a;b": it has a semicolon or a control character"#,
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(from, to, message)| (NODE_KEY, NODE, *from, &**to, *message)).collect();
    check_refusals(&cases);
}

#[test]
fn address_records_are_refused() {
    let net_key = "cilium/state/ip/v1/default/10.7.0.0/16";
    let pair = r#""IP":"10.7.21.15","Mask":null"#;
    check_refusals(&[
        (
            IP_KEY,
            IP,
            r#""IP":"10.7.21.15""#,
            r#""IP":"10.7.21.16""#,
            r#"the key says "10.7.21.15", but IP in the value is "10.7.21.16""#,
        ),
        (IP_KEY, IP, r#""IP":"10.7.21.15""#, r#""IP":"""#, "field IP is missing or empty"),
        (
            IP_KEY,
            IP,
            pair,
            r#""IP":"10.7.21.0","Mask":"////AA==""#,
            r#"the key says "10.7.21.15", but IP in the value is "10.7.21.0/24""#,
        ),
        (
            net_key,
            IP,
            pair,
            r#""IP":"10.7.0.0","Mask":"//8A""#,
            r#"the mask "//8A" in IP is not 4 bytes for an IPv4 or 16 bytes for an IPv6 address"#,
        ),
        (
            "cilium/state/ip/v1/default/10.7.0.1/16",
            IP,
            pair,
            r#""IP":"10.7.0.1","Mask":"//8AAA==""#,
            "prefix 10.7.0.1/16 has host bits set; the prefix would be 10.7.0.0/16",
        ),
        (
            "cilium/state/ip/v1/default/0.0.0.0/0",
            IP,
            pair,
            r#""IP":"0.0.0.0","Mask":"AAAAAA==""#,
            "0.0.0.0/0 covers every address; a cluster cannot own the default route",
        ),
        (
            "cilium/state/ip/v1/default/192.168.1.1",
            IP,
            "10.7.21.15",
            "192.168.1.1",
            r#"IP 192.168.1.1/32 is outside accept.pod_cidrs and accept.node_cidrs of cluster "edge""#,
        ),
        (
            "cilium/state/ip/v1/default/10.9.1.1",
            IP,
            "10.7.21.15",
            "10.9.1.1",
            "IP 10.9.1.1/32 lies inside our own PodCIDR 10.9.0.0/16; own prefixes always win",
        ),
        (
            "cilium/state/ip/v1/default/10.77.0.1",
            IP,
            "10.7.21.15",
            "10.77.0.1",
            "IP 10.77.0.1/32 contains 10.77.0.1, an address of this node",
        ),
        (
            "cilium/state/ip/v1/default/224.0.0.1",
            IP,
            "10.7.21.15",
            "224.0.0.1",
            "IP 224.0.0.1/32 is in the multicast range",
        ),
        (
            IP_KEY,
            IP,
            r#""ID":458790"#,
            r#""ID":65601"#,
            "identity 65601 is outside 458752 to 524287, the range of cluster id 7 (is max_clusters the same in both clusters?)",
        ),
        (
            IP_KEY,
            IP,
            r#""ID":458790"#,
            r#""ID":256"#,
            "identity 256 is outside 458752 to 524287, the range of cluster id 7 (is max_clusters the same in both clusters?)",
        ),
        (IP_KEY, IP, r#""ID":458790,"#, "", "field ID is missing or empty"),
        (
            IP_KEY,
            IP,
            "198.51.100.21",
            "203.0.113.9",
            r#"node address 203.0.113.9 is outside accept.node_cidrs of cluster "edge""#,
        ),
        (
            IP_KEY,
            IP,
            "billing",
            "a\\u001b[2J",
            r#"field K8sNamespace is "a\u{1b}[2J", and must be at most 253 characters, none of them a control character"#,
        ),
        (
            "cilium/state/ip/v1/default/FD00::1",
            IP,
            "",
            "",
            "the key is not in canonical form: an IPv6 address is written in lower case with its longest run of zeros as ::",
        ),
        (
            "cilium/state/ip/v1/default/fd00:0::1",
            IP,
            "",
            "",
            "the key is not in canonical form: an IPv6 address is written in lower case with its longest run of zeros as ::",
        ),
        (
            "cilium/state/ip/v1/default/fd00::1",
            IP,
            "10.7.21.15",
            "FD00::1",
            r#"IP is "FD00::1", which in canonical form is fd00::1"#,
        ),
    ]);
}

#[test]
fn identity_records_are_refused() {
    check_refusals(&[
        (
            ID_KEY,
            ID,
            "k8s:io.cilium.k8s.policy.cluster=edge;",
            "",
            "the labels have no k8s:io.cilium.k8s.policy.cluster",
        ),
        (
            ID_KEY,
            ID,
            "=edge",
            "=west",
            r#"label k8s:io.cilium.k8s.policy.cluster is "west", but the identity was published by cluster "edge""#,
        ),
        (ID_KEY, ID, "k8s:io", "any:io", r#"label io.cilium.k8s.policy.cluster has source "any", and must have k8s"#),
        (
            ID_KEY,
            ID,
            "k8s:app=worker",
            "app=worker",
            r#"malformed label "app=worker": it has no source before a colon"#,
        ),
        (
            ID_KEY,
            ID,
            "k8s:app=worker",
            ":app=worker",
            r#"malformed label ":app=worker": its source or its key is empty"#,
        ),
        (ID_KEY, ID, "k8s:app=worker", "k8s:app=a;k8s:app=b", r#"malformed label "k8s:app=b": its key is there twice"#),
        (ID_KEY, ID, ID, "", "the value is empty"),
        (
            "cilium/state/identities/v1/id/65601",
            ID,
            "",
            "",
            "identity 65601 is outside 458752 to 524287, the range of cluster id 7 (is max_clusters the same in both clusters?)",
        ),
        (
            "cilium/state/identities/v1/id/6",
            ID,
            "",
            "",
            "identity 6 is outside 458752 to 524287, the range of cluster id 7 (is max_clusters the same in both clusters?)",
        ),
        (
            "cilium/state/identities/v1/id/0458790",
            ID,
            "",
            "",
            "the key is not in canonical form: the number has leading zeros",
        ),
        (
            "cilium/state/identities/v1/id/x",
            ID,
            "",
            "",
            "the key must have the form cilium/state/identities/v1/id/NUMBER or cilium/cache/identities/v1/CLUSTER/id/NUMBER",
        ),
    ]);
    let refused = accept_upsert(&ctx(), &mut Interner::default(), Keyspace::State, ID_KEY.as_bytes(), b"k8s:a=\xff");
    assert_eq!(refused.unwrap_err().reason, Rejection::NotText { at: 6 });
}

#[test]
fn service_records_are_refused() {
    let backend = "\"10.7.21.15\"";
    check_refusals(&[
        (
            SERVICE_KEY,
            SERVICE,
            r#""cluster":"edge""#,
            r#""cluster":"west""#,
            r#"the record names cluster "west", but was published by cluster "edge""#,
        ),
        (
            SERVICE_KEY,
            SERVICE,
            r#""clusterID":7"#,
            r#""clusterID":1"#,
            r#"the record has cluster id 1, but the cluster-config of "edge" says 7"#,
        ),
        (
            SERVICE_KEY,
            SERVICE,
            r#""namespace":"billing""#,
            r#""namespace":"shop""#,
            r#"the key says "billing", but namespace in the value is "shop""#,
        ),
        (
            SERVICE_KEY,
            SERVICE,
            r#""name":"api""#,
            r#""name":"web""#,
            r#"the key says "api", but name in the value is "web""#,
        ),
        (
            SERVICE_KEY,
            SERVICE,
            backend,
            "\"10.9.0.1\"",
            "backends 10.9.0.1/32 lies inside our own PodCIDR 10.9.0.0/16; own prefixes always win",
        ),
        (
            SERVICE_KEY,
            SERVICE,
            backend,
            "\"8.8.8.8\"",
            r#"backends 8.8.8.8/32 is outside accept.pod_cidrs and accept.node_cidrs of cluster "edge""#,
        ),
        (SERVICE_KEY, SERVICE, backend, "\"pod\"", r#"backends is "pod", which is not an IP address"#),
        (SERVICE_KEY, SERVICE, "10.107.3.9", "127.0.0.1", "frontends 127.0.0.1/32 is in the loopback range"),
        (SERVICE_KEY, SERVICE, "TCP", "ICMP", r#"field protocol is "ICMP", and must be TCP, UDP, SCTP, ANY or NONE"#),
        (
            "cilium/state/services/v1/west/billing/api",
            SERVICE,
            "",
            "",
            r#"the key belongs to cluster "west", but this is the store of cluster "edge""#,
        ),
    ]);
}

#[test]
fn an_empty_accept_list_accepts_nothing_and_says_so() {
    let ctx = PeerContext { accept: Accept::default(), ..ctx() };
    let hint = "which has no entry: nothing is accepted until peers[].accept or peers_defaults.accept names it";
    for (key, value) in [(NODE_KEY, NODE), (IP_KEY, IP), (SERVICE_KEY, SERVICE)] {
        let message = accept(&ctx, key, value).unwrap_err().reason.to_string();
        assert!(message.ends_with(hint), "{message}");
    }
    let node = NODE.replace("InternalIP\",\"IP\":\"198.51.100.21", "InternalIP\",\"IP\":\"198.51.100.21\"}]}");
    assert!(accept(&ctx, NODE_KEY, &node).is_err());
}

#[test]
fn records_of_our_own_cluster_need_no_accept_list_but_pass_every_other_check() {
    let ctx = PeerContext { own: true, accept: Accept::default(), ..ctx() };
    for (key, value) in [(NODE_KEY, NODE), (IP_KEY, IP), (ID_KEY, ID), (SERVICE_KEY, SERVICE)] {
        assert!(accept(&ctx, key, value).is_ok(), "{key}");
    }
    // A workload of this node comes back from our own store.
    assert!(accept(&ctx, "cilium/state/ip/v1/default/10.9.0.7", &IP.replace("10.7.21.15", "10.9.0.7")).is_ok());
    let stolen = NODE.replace("10.7.21.0", "10.9.0.0");
    assert!(matches!(accept(&ctx, NODE_KEY, &stolen).unwrap_err().reason, Rejection::OwnPrefix { .. }));
    let default = NODE.replace(r#""10.7.21.0","Mask":"////AA==""#, r#""0.0.0.0","Mask":"AAAAAA==""#);
    assert!(matches!(accept(&ctx, NODE_KEY, &default).unwrap_err().reason, Rejection::DefaultRoute { .. }));
}

#[test]
fn oversized_values_are_refused_unread() {
    let value = "x".repeat(VALUE_MAX + 1);
    for key in [NODE_KEY, IP_KEY, ID_KEY, SERVICE_KEY] {
        let refused = accept(&ctx(), key, &value).unwrap_err();
        assert_eq!(refused.reason, Rejection::Oversized { size: VALUE_MAX + 1, limit: VALUE_MAX });
    }
}

#[test]
fn numbers_with_one_meaning_pass_and_the_host_becomes_a_remote_node() {
    for (wire, row) in [(1, 6), (2, 2), (6, 6), (102, 102), (255, 255), (458_752, 458_752), (524_287, 524_287)] {
        let value = IP.replace("458790", &wire.to_string());
        let Record::Endpoint(_, endpoint) = accept(&ctx(), IP_KEY, &value).unwrap() else { panic!("{wire}") };
        assert_eq!(endpoint.identity.0, row, "{wire}");
    }
}

#[test]
fn a_service_that_is_no_longer_shared_is_withdrawn() {
    let key = parse_delete(&ctx(), Keyspace::State, SERVICE_KEY.as_bytes()).unwrap();
    for value in [SERVICE.replace(r#""shared":true"#, r#""shared":false"#), SERVICE.replace(r#""shared":true,"#, "")] {
        assert_eq!(accept(&ctx(), SERVICE_KEY, &value), Ok(Record::Withdrawn(key.clone())));
    }
}

#[test]
fn a_node_needs_no_pod_cidr_and_may_write_an_unset_one_in_any_way() {
    for unset in ["null", "{}", r#"{"IP":"","Mask":null}"#] {
        let value = NODE.replace(r#"{"IP":"10.7.21.0","Mask":"////AA=="}"#, unset);
        let Record::Node(_, row) = accept(&ctx(), NODE_KEY, &value).unwrap() else { panic!("{unset}") };
        assert!(row.pod_cidrs.is_empty());
    }
}

#[test]
fn keys_without_a_row_are_ignored() {
    for key in [
        "cilium/.heartbeat",
        "cilium/cluster-config/edge",
        "cilium/synced/edge/cilium/state/nodes/v1",
        "cilium/state/identities/v1/value/k8s:a=b;/192.0.2.1",
        "cilium/state/identities/v1/locks/x",
        "cilium/state/serviceexports/v1/edge/a/b",
        "cilium/state/endpointslices/v1/edge/a/b",
    ] {
        assert_eq!(accept(&ctx(), key, ""), Ok(Record::Ignored), "{key}");
        assert_eq!(parse_delete(&ctx(), Keyspace::State, key.as_bytes()), None, "{key}");
    }
}

#[test]
fn a_delete_needs_a_key_that_could_have_been_accepted() {
    let delete = |key: &str| parse_delete(&ctx(), Keyspace::State, key.as_bytes());
    assert_eq!(delete(NODE_KEY), Some(RecordKey::Node("vm-a1".parse().unwrap())));
    assert_eq!(delete(IP_KEY), Some(RecordKey::Endpoint("10.7.21.15/32".parse().unwrap())));
    assert_eq!(delete(ID_KEY), Some(RecordKey::Identity(NumericIdentity(458_790))));
    assert_eq!(delete("cilium/state/identities/v1/id/65601"), None, "of another cluster");
    assert_eq!(delete("cilium/state/nodes/v1/west/vm-a1"), None, "of another cluster");
    assert_eq!(delete("cilium/cache/nodes/v1/edge/vm-a1"), None, "of the other form");
    assert_eq!(delete("cilium/state/nodes/v2/edge/vm-a1"), None, "of another version");
}

#[test]
fn keys_are_shown_cut_and_escaped() {
    assert_eq!(&*key_text(b"a\x1b[2Jb\xff"), "a\\u{1b}[2Jb\u{fffd}");
    assert_eq!(key_text(&[b'a'; 5000]).chars().count(), KEY_MAX + 1);
}
