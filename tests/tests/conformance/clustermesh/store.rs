//! Stores for the duration of a test: certificates, a real etcd and an embedded store.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use etcd_client::{Client, Permission, PermissionType, RoleGrantPermissionResponse};
use meshd::{
    config::model::TlsFiles,
    store::{RemoteStore, StoreAddress},
};
use meshd_store::{AuthConfig, ServerTls, Store, StoreOptions};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;

/// How long a store may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// An authority and a folder for its certificates.
pub(super) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    folder: TempDir,
}

impl Pki {
    pub(super) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "test authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca_pem = parameters.self_signed(&key).unwrap().pem();
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        std::fs::write(folder.path().join("ca.crt"), &ca_pem).unwrap();
        Self { issuer: Issuer::new(parameters, key), ca_pem, folder }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self, cn: &str) -> (String, String) {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, cn);
        parameters.subject_alt_names =
            vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), SanType::DnsName("localhost".try_into().unwrap())];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Files named `file` for a client called `cn`; written anew at every call.
    pub(super) fn files(&self, file: &str, cn: &str) -> TlsFiles {
        let (cert_pem, key_pem) = self.issue(cn);
        let files = TlsFiles {
            ca: self.path("ca.crt"),
            cert: self.path(&format!("{file}.crt")),
            key: self.path(&format!("{file}.key")),
        };
        std::fs::write(&files.cert, cert_pem).unwrap();
        std::fs::write(&files.key, key_pem).unwrap();
        files
    }

    fn server(&self) -> ServerTls {
        let (cert_pem, key_pem) = self.issue("clustermesh-apiserver.cilium.io");
        ServerTls {
            cert_pem: cert_pem.into_bytes(),
            key_pem: key_pem.into_bytes(),
            client_ca_pem: self.ca_pem.clone().into_bytes(),
        }
    }

    /// A store at `address`, as the user `cn`.
    pub(super) fn address(&self, address: SocketAddr, cn: &str) -> StoreAddress {
        self.address_with(address, self.files(cn, cn))
    }

    pub(super) fn address_with(&self, address: SocketAddr, tls: TlsFiles) -> StoreAddress {
        let endpoint = format!("https://{address}").parse().unwrap();
        let remote = RemoteStore { endpoints: vec![endpoint], tls: Some(tls), host_aliases: Default::default() };
        StoreAddress::Remote(remote.into())
    }
}

/// A real etcd with TLS; ended when dropped.
pub(super) struct Etcd {
    process: Option<Child>,
    pub(super) address: SocketAddr,
    peer: SocketAddr,
    data: PathBuf,
    cluster: String,
}

impl Etcd {
    /// Starts etcd with the users and roles of a store of `cluster`.
    pub(super) async fn start(pki: &Pki, cluster: &str, remotes: &[&str]) -> Self {
        let server = pki.server();
        std::fs::write(pki.path("server.crt"), server.cert_pem).unwrap();
        std::fs::write(pki.path("server.key"), server.key_pem).unwrap();
        let data = pki.path("etcd");
        let mut etcd =
            Self { process: None, address: free_port(), peer: free_port(), data, cluster: cluster.to_owned() };
        etcd.run(pki).await;
        etcd.set_up_users(pki, remotes).await;
        etcd
    }

    /// Starts the process again, with the data it has.
    pub(super) async fn run(&mut self, pki: &Pki) {
        let (url, peer_url) = (format!("https://{}", self.address), format!("http://{}", self.peer));
        let process = Command::new("etcd")
            .args(["--name", "test", "--log-level", "error", "--client-cert-auth", "--data-dir"])
            .arg(&self.data)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("test={peer_url}")])
            .arg("--trusted-ca-file")
            .arg(pki.path("ca.crt"))
            .arg("--cert-file")
            .arg(pki.path("server.crt"))
            .arg("--key-file")
            .arg(pki.path("server.key"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd does not start: install the package etcd-server");
        self.process = Some(process);
        let started = Instant::now();
        loop {
            if let Ok(mut client) = pki.address(self.address, "root").connect().await
                && client.get("health", None).await.is_ok()
            {
                return;
            }
            assert!(started.elapsed() < START_DEADLINE, "etcd does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `kill -9`
    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Another etcd with another cluster id at the same address, and empty.
    pub(super) async fn replace(&mut self, pki: &Pki, remotes: &[&str]) {
        self.kill();
        std::fs::remove_dir_all(&self.data).unwrap();
        // The cluster id is made of the peer URLs.
        self.peer = free_port();
        self.run(pki).await;
        self.set_up_users(pki, remotes).await;
    }

    async fn set_up_users(&self, pki: &Pki, remotes: &[&str]) {
        let mut root = self.root(pki).await;
        let cluster = &self.cluster;
        let prefix = |kind, key: &str| Permission::new(kind, key).with_prefix();
        let read = PermissionType::Read;
        let write = PermissionType::Readwrite;
        let remote = vec![
            prefix(read, "cilium/.heartbeat"),
            prefix(read, "cilium/state/"),
            Permission::new(read, format!("cilium/cluster-config/{cluster}")),
            prefix(read, &format!("cilium/synced/{cluster}/")),
        ];
        let local = ["cilium/.heartbeat", "cilium/cache/", "cilium/cluster-config/", "cilium/synced/"];
        let node = vec![
            prefix(write, "cilium/.heartbeat"),
            prefix(write, "cilium/state/"),
            Permission::new(write, format!("cilium/cluster-config/{cluster}")),
            prefix(write, &format!("cilium/synced/{cluster}/")),
            prefix(write, "meshd/"),
        ];
        let local = local.map(|key| prefix(read, key)).to_vec();
        for (role, permissions) in [("remote", remote), ("local", local), ("node", node)] {
            root.role_add(role).await.unwrap();
            for permission in permissions {
                let _: RoleGrantPermissionResponse = root.role_grant_permission(role, permission).await.unwrap();
            }
        }
        let node_user = format!("node-{cluster}");
        let remotes: Vec<String> = remotes.iter().map(|remote| format!("remote-{remote}")).collect();
        let users = remotes.iter().map(|name| (name.as_str(), "remote"));
        let local_user = format!("local-{cluster}");
        let fixed = [("root", "root"), (&node_user, "node"), (&local_user, "local")];
        for (user, role) in users.chain(fixed) {
            let options = etcd_client::UserAddOptions::new().with_no_pwd();
            root.user_add(user, "", Some(options)).await.unwrap();
            root.user_grant_role(user, role).await.unwrap();
        }
        root.auth_enable().await.unwrap();
    }

    pub(super) async fn root(&self, pki: &Pki) -> Client {
        pki.address(self.address, "root").connect().await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself; there is nothing else to do about it here.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// An embedded store of `cluster` that serves TLS on a loopback port.
pub(super) async fn embedded(pki: &Pki, cluster: &str, remotes: &[&str], file: Option<PathBuf>) -> (Store, SocketAddr) {
    let auth = AuthConfig::standard(cluster, remotes.iter().copied());
    let options = StoreOptions { data_file: file, auth, ..StoreOptions::default() };
    let (store, _) = Store::open(options).unwrap();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (serving, tls) = (store.clone(), pki.server());
    tokio::spawn(async move { serving.serve(listener, Some(tls), std::future::pending()).await });
    (store, address)
}

/// A client of an embedded store, as root.
pub(super) async fn local(store: &Store) -> Client {
    StoreAddress::Local(store.local_channel()).connect().await.unwrap()
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}
