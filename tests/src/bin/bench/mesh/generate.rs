//! A store that holds a whole mesh in cache form.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use etcd_client::{Client, Txn, TxnOp};
use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use meshd::store::StoreAddress;
use meshd_core::{
    clustermesh::{
        Key, Keyspace,
        cluster_config::{self, ExportMode, OwnConfig},
        heartbeat, ip, node,
    },
    id::{ClusterId, ClusterName, MaxClusters, NodeName, NumericIdentity},
    observed::{EndpointRow, Kind, Labels, NodeAddress, NodeAddressKind, NodeRow},
};
use meshd_store::{AuthConfig, Limits, ServerTls, Store, StoreOptions};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

/// Clusters, and what each of them has.
pub(super) const CLUSTERS: u32 = 250;
pub(super) const NODES: u32 = 100;
pub(super) const ENDPOINTS: u32 = 1_000;
pub(super) const IDENTITIES: u32 = 100;
/// Memory the store may use for the mesh.
const STORE_BYTES: usize = 2 * 1024 * 1024 * 1024;
/// Records in one transaction.
const BATCH: usize = 100;
/// Name of the cluster whose store holds the copies.
const OWNER: &str = "west";

/// Certificate files below `folder`: `ca.crt`, and `.crt` and `.key` of each name.
pub(super) fn certificates(folder: &Path) -> anyhow::Result<ServerTls> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "bench authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let ca_pem = parameters.self_signed(&key)?.pem();
    fs::write(folder.join("ca.crt"), &ca_pem)?;
    let issuer = Issuer::new(parameters, key);
    let issue = |cn: &str| -> anyhow::Result<(String, String)> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, cn);
        parameters.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((parameters.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    };
    let (cert, key) = issue("local-west")?;
    fs::write(folder.join("client.crt"), cert)?;
    fs::write(folder.join("client.key"), key)?;
    let (cert, key) = issue("clustermesh-apiserver.cilium.io")?;
    Ok(ServerTls { cert_pem: cert.into(), key_pem: key.into(), client_ca_pem: ca_pem.into() })
}

/// A filled store and where it listens.
pub(super) async fn start(tls: ServerTls) -> anyhow::Result<(Store, SocketAddr)> {
    let limits = Limits { live_bytes_max: STORE_BYTES, history_bytes_max: STORE_BYTES, ..Limits::default() };
    let auth = AuthConfig::standard(OWNER, []);
    let (store, _) = Store::open(StoreOptions { limits, auth, ..StoreOptions::default() })?;
    let mut client = client(&store).await?;
    let beat = heartbeat::encode(Timestamp::now());
    client.put(Key::Heartbeat.to_string(), beat, None).await?;
    for number in 1..=CLUSTERS {
        let mut operations = cluster(number)?.into_iter().peekable();
        while operations.peek().is_some() {
            let batch: Vec<TxnOp> =
                operations.by_ref().take(BATCH).map(|(key, value)| TxnOp::put(key, value, None)).collect();
            client.txn(Txn::new().and_then(batch)).await.context("failed to fill the store")?;
        }
    }
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let serving = store.clone();
    tokio::spawn(async move { serving.serve(listener, Some(tls), std::future::pending()).await });
    Ok((store, address))
}

/// A client of the store, as root.
pub(super) async fn client(store: &Store) -> anyhow::Result<Client> {
    Ok(StoreAddress::Local(store.local_channel()).connect().await?)
}

pub(super) fn cluster_name(number: u32) -> anyhow::Result<ClusterName> {
    Ok(format!("c{number}").parse()?)
}

/// The record of a node with a PodCIDR: one of 65,536 prefixes of 10.0.0.0/8.
pub(super) fn node_record(number: u32, nth: u32, prefix: u32) -> anyhow::Result<(String, Vec<u8>)> {
    let cluster = cluster_name(number)?;
    let name: NodeName = format!("node-{nth}").parse()?;
    let pod_cidr = Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (prefix << 8)), 24)?;
    let row = NodeRow {
        health: Box::default(),
        ingress: Box::default(),
        cluster_id: ClusterId::new(number, MaxClusters::C255)?,
        addresses: [NodeAddress { kind: NodeAddressKind::InternalIP, ip: host(number, nth) }].into(),
        pod_cidrs: [IpNet::V4(pod_cidr)].into(),
        labels: Labels("kubernetes.io/os=linux;topology.kubernetes.io/zone=a;".into()),
    };
    let value = node::encode(&cluster, &name, &row, &node::NodeExtras::default());
    Ok((Key::node(Keyspace::Cache, &cluster, &name).to_string(), value))
}

/// Number of the prefix a node has at first.
pub(super) fn first_prefix(number: u32, nth: u32) -> u32 {
    (number - 1) * NODES + nth
}

/// Address of a node, in 172.16.0.0/12.
fn host(number: u32, nth: u32) -> IpAddr {
    Ipv4Addr::from(0xac10_0100 + first_prefix(number, nth)).into()
}

fn cluster(number: u32) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let cluster = cluster_name(number)?;
    let id = ClusterId::new(number, MaxClusters::C255)?;
    let low = *id.identity_range(MaxClusters::C255).start() + 256;
    let config = OwnConfig {
        id,
        max_clusters: MaxClusters::C255,
        cached: true,
        canaries: true,
        service_exports: None,
        export_mode: ExportMode::Services,
    };
    let mut records = vec![(Key::cluster_config(&cluster).to_string(), cluster_config::encode(&config))];
    for nth in 0..NODES {
        records.push(node_record(number, nth, first_prefix(number, nth))?);
    }
    for nth in 0..IDENTITIES {
        let labels = format!(
            "k8s:app=app-{nth};k8s:io.cilium.k8s.policy.cluster={cluster};\
             k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=bench;"
        );
        let key = Key::identity(Keyspace::Cache, &cluster, NumericIdentity(low + nth));
        records.push((key.to_string(), labels.into_bytes()));
    }
    let namespace: Arc<str> = "bench".into();
    for nth in 0..ENDPOINTS {
        let (node, last) = (nth % NODES, nth / NODES + 10);
        let address = Ipv4Addr::from(0x0a00_0000 + (first_prefix(number, node) << 8) + last);
        let row = EndpointRow {
            identity: NumericIdentity(low + nth % IDENTITIES),
            host: Some(host(number, node)),
            encryption_key: 0,
            namespace: namespace.clone(),
            name: format!("app-{nth}-5d4f7c9b8-x2x4z").into(),
        };
        let prefix = IpNet::from(IpAddr::V4(address));
        records.push((Key::endpoint(Keyspace::Cache, &cluster, prefix).to_string(), ip::encode(prefix, &row)));
    }
    for kind in Kind::ALL {
        let key = Key::canary(Keyspace::Cache, &cluster, kind).to_string();
        records.push((key, heartbeat::encode(Timestamp::now())));
    }
    Ok(records)
}
