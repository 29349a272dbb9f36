//! Records a hostile or broken cluster may write. Every one must be refused, whatever else is going on.

use super::{
    clock::Rng,
    node::{Node, cluster_id, cluster_name},
};

pub(crate) struct Record {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
}

/// The refusals that the records below must have met in a run of many seeds. A key under another cluster's name is not one
/// of them: readers ask for keys under the name of the cluster they read, so a store cannot show them any other.
pub(crate) const REFUSALS: &[&str] = &[
    "address",
    "address-not-accepted",
    "bad-field",
    "default-route",
    "duplicate-pod-cidr",
    "empty",
    "family",
    "foreign-cluster-label",
    "cluster-label-source",
    "host-bits",
    "identity-out-of-range",
    "json",
    "key",
    "key-mismatch",
    "label",
    "mask",
    "missing-field",
    "nested-pod-cidr",
    "no-cluster-label",
    "node-address-not-accepted",
    "not-canonical",
    "not-text",
    "own-address",
    "own-prefix",
    "oversized",
    "pod-cidr-not-accepted",
    "prefix-too-short",
    "special",
    "too-many-entries",
    "wrong-cluster",
    "wrong-cluster-id",
];

const MASK_24: &str = "////AA==";
const MASK_16: &str = "//8AAA==";

/// A bad record of `cluster`; some are aimed at one node of another cluster.
pub(crate) fn record(rng: &mut Rng, cluster: usize, victim: &Node) -> Record {
    let name = cluster_name(cluster);
    match rng.below(10) {
        0 => endpoint(rng, cluster),
        1 => identity(rng, cluster),
        2 => service(rng, cluster),
        3 => bad_key(rng, cluster),
        _ => {
            let evil = format!("evil-{}", rng.below(8));
            let value = node(rng, cluster, &evil, victim);
            Record { key: format!("cilium/state/nodes/v1/{name}/{evil}"), value }
        }
    }
}

fn node(rng: &mut Rng, cluster: usize, evil: &str, victim: &Node) -> Vec<u8> {
    let name = cluster_name(cluster).to_string();
    let id = cluster_id(cluster).get();
    let record = |name: &str, cluster: &str, id: i64, addresses: &str, ipv4: &str, rest: &str| {
        format!(
            "{{\"Name\":\"{name}\",\"Cluster\":\"{cluster}\",\"IPAddresses\":[{addresses}],\"IPv4AllocCIDR\":{ipv4},\
             \"ClusterID\":{id},\"Labels\":null{rest}}}"
        )
        .into_bytes()
    };
    let prefix = |ip: &str, mask: &str| format!("{{\"IP\":\"{ip}\",\"Mask\":\"{mask}\"}}");
    let address = |ip: &str| format!("{{\"Type\":\"InternalIP\",\"IP\":\"{ip}\"}}");
    let (hop, good) = (address("172.18.200.1"), prefix(&format!("10.{}.250.0", 10 + cluster), MASK_24));
    let own = victim.pod_cidrs[0];
    let with_cidr = |cidr: String| record(evil, &name, i64::from(id), &hop, &cidr, "");
    let with_address = |text: &str| record(evil, &name, i64::from(id), &address(text), &good, "");
    let with_rest = |rest: String| record(evil, &name, i64::from(id), &hop, &good, &rest);
    let second = |cidr: &str| format!(",\"IPv4SecondaryAllocCIDRs\":[{cidr}]");
    match rng.below(30) {
        0 => record(evil, "elsewhere", i64::from(id), &hop, &good, ""),
        1 => record(evil, &name, i64::from(id) + 1, &hop, &good, ""),
        2 => record("somebody-else", &name, i64::from(id), &hop, &good, ""),
        3 => record(evil, &name, -1, &hop, &good, ""),
        4 => with_cidr(prefix("192.168.0.0", MASK_24)),
        5 => with_cidr(prefix(&own.network().to_string(), MASK_24)),
        6 => with_cidr(prefix(&own.network().to_string(), "/////w==")),
        7 => with_cidr(prefix("10.0.0.0", "/wAAAA==")),
        8 => with_cidr(prefix("0.0.0.0", "AAAAAA==")),
        9 => with_cidr(prefix("224.0.0.0", MASK_24)),
        10 => with_cidr(prefix("10.10.0.1", MASK_24)),
        11 => with_cidr(prefix("8.0.0.0", "/gAAAA==")),
        12 => with_cidr(prefix("10.10.0.0", "not base64!")),
        13 => with_cidr(prefix("10.10.0.0", "//8=")),
        14 => with_cidr(prefix("10.10.0.0", "/wD/AA==")),
        15 => with_cidr(prefix("fd00::", MASK_24)),
        16 => with_cidr(prefix("here", MASK_24)),
        17 => with_rest(second(&good)),
        18 => with_rest(second(&prefix(&format!("10.{}.0.0", 10 + cluster), MASK_16))),
        19 => with_rest(",\"Labels\":{\"\":\"x\"}".to_owned()),
        20 => with_address("127.0.0.1"),
        21 => with_address("8.8.8.8"),
        22 => with_address("FDAA::1"),
        23 => with_address("172.18.0.1.2"),
        24 => record(evil, &name, i64::from(id), &vec![hop.clone(); 65].join(","), &good, ""),
        25 => Vec::new(),
        26 => b"{\"Name\":\"evil".to_vec(),
        27 => vec![0xff, 0xfe, 0x00],
        28 => with_cidr(prefix(&victim.addresses[0].to_string(), "/////w==")),
        // Rarely, because everybody has to read it.
        _ if rng.one_in(8) => vec![b' '; 1536 * 1024 + 1],
        _ => b"[]".to_vec(),
    }
}

fn endpoint(rng: &mut Rng, cluster: usize) -> Record {
    let id = (u32::from(cluster_id(cluster).get()) << 16) + 1;
    let inside = format!("10.{}.240.1", 10 + cluster);
    let value = |ip: &str, host: &str, id: u32, rest: &str| {
        format!("{{\"IP\":\"{ip}\",\"Mask\":null,\"HostIP\":\"{host}\",\"ID\":{id},\"Key\":0,\"Metadata\":\"\"{rest}}}")
            .into_bytes()
    };
    let (ip, value) = match rng.below(7) {
        0 => (inside.as_str(), value("10.1.1.1", "", id, "")),
        1 => ("192.168.1.1", value("192.168.1.1", "", id, "")),
        2 => (inside.as_str(), value(&inside, "", 0, "")),
        3 => (inside.as_str(), value(&inside, "", id + 0x0010_0000, "")),
        4 => (inside.as_str(), value(&inside, "8.8.8.8", id, "")),
        5 => (inside.as_str(), value(&inside, "", id, ",\"K8sNamespace\":\"a\\u0001b\"")),
        _ => (inside.as_str(), value("", "", id, "")),
    };
    Record { key: format!("cilium/state/ip/v1/default/{ip}"), value }
}

fn identity(rng: &mut Rng, cluster: usize) -> Record {
    let first = u32::from(cluster_id(cluster).get()) << 16;
    let name = cluster_name(cluster);
    let label = "io.cilium.k8s.policy.cluster";
    let (id, value) = match rng.below(7) {
        0 => (first + 5_000, b"k8s:app=x;".to_vec()),
        1 => (first + 5_001, format!("k8s:{label}=elsewhere;").into_bytes()),
        2 => (first + 5_002, format!("cidr:{label}={name};").into_bytes()),
        3 => (7, format!("k8s:{label}={name};").into_bytes()),
        4 => (first + 5_003, vec![b'k', 0xff]),
        5 => (first + 5_004, b"nothing of a label".to_vec()),
        _ => (first + 5_005, (0..300).flat_map(|n| format!("k8s:l{n}=x;").into_bytes()).collect()),
    };
    Record { key: format!("cilium/state/identities/v1/id/{id}"), value }
}

fn service(rng: &mut Rng, cluster: usize) -> Record {
    let name = cluster_name(cluster);
    let id = cluster_id(cluster).get();
    let value = |cluster: &str, service: &str, backend: &str, protocol: &str| {
        format!(
            "{{\"cluster\":\"{cluster}\",\"namespace\":\"default\",\"name\":\"{service}\",\"frontends\":{{}},\
             \"backends\":{{\"{backend}\":{{\"http\":{{\"Protocol\":\"{protocol}\",\"Port\":80}}}}}},\"shared\":true,\
             \"includeExternal\":true,\"clusterID\":{id}}}"
        )
        .into_bytes()
    };
    let value = match rng.below(4) {
        0 => value("elsewhere", "evil", "10.10.0.9", "TCP"),
        1 => value(name.as_str(), "other", "10.10.0.9", "TCP"),
        2 => value(name.as_str(), "evil", "8.8.8.8", "TCP"),
        _ => value(name.as_str(), "evil", &format!("10.{}.0.9", 10 + cluster), "SMTP"),
    };
    Record { key: format!("cilium/state/services/v1/{name}/default/evil"), value }
}

fn bad_key(rng: &mut Rng, cluster: usize) -> Record {
    let name = cluster_name(cluster);
    let key = match rng.below(4) {
        0 => format!("cilium/state/nodes/v1/{name}/evil/deeper"),
        1 => "cilium/state/ip/v1/default/FD00::1".to_owned(),
        2 => "cilium/state/identities/v1/id/007".to_owned(),
        _ => format!("cilium/state/services/v1/{name}/evil"),
    };
    Record { key, value: b"{}".to_vec() }
}
