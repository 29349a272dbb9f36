//! A real etcd with TLS, client certificates and users as a ClusterMesh store has them.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::meshd::Files;

const ETCD: &str = "/usr/bin/etcd";
const ETCDCTL: &str = "/usr/bin/etcdctl";
/// How long etcd may take to start.
const START: Duration = Duration::from_secs(30);
/// How often a port another process took in between is replaced.
const ATTEMPTS: usize = 5;

/// A running etcd; it ends with this value.
pub(super) struct Etcd {
    child: Child,
    pub(super) port: u16,
    /// Certificate files: authority, and certificate and key of `root`.
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Etcd {
    /// Starts one with `FOLDER/{ca.crt,server.crt,server.key}`; `FOLDER/root.*` administers it.
    pub(super) fn start(files: &Files, folder: &str) -> Self {
        assert!(std::path::Path::new(ETCD).exists(), "{ETCD} is missing: apt-get install etcd-server etcd-client");
        for attempt in 0..ATTEMPTS {
            let (port, peer_port) = (free_port(), free_port());
            let url = format!("https://127.0.0.1:{port}");
            let peer_url = format!("http://127.0.0.1:{peer_port}");
            let pki = |name: &str| files.path(folder).join(name);
            let log = std::fs::File::create(files.path(&format!("etcd-{attempt}.log"))).expect("a log");
            let mut child = Command::new(ETCD)
                .args(["--name", "test", "--client-cert-auth", "--log-level", "error"])
                .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
                .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &format!("test={peer_url}")])
                .arg("--data-dir")
                .arg(files.path(&format!("etcd-{attempt}")))
                .arg("--trusted-ca-file")
                .arg(pki("ca.crt"))
                .arg("--cert-file")
                .arg(pki("server.crt"))
                .arg("--key-file")
                .arg(pki("server.key"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("etcd starts");
            let deadline = Instant::now() + START;
            loop {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { child, port, ca: pki("ca.crt"), cert: pki("root.crt"), key: pki("root.key") };
                }
                if child.try_wait().expect("etcd's state").is_some() {
                    break;
                }
                assert!(Instant::now() < deadline, "etcd does not listen on port {port}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("etcd does not start; see its log in {}", files.path("").display());
    }

    /// Runs etcdctl as root; what it prints.
    pub(super) fn ctl(&self, arguments: &[&str]) -> String {
        let deadline = Instant::now() + START;
        loop {
            let output = Command::new(ETCDCTL)
                .env("ETCDCTL_API", "3")
                .arg(format!("--endpoints=https://127.0.0.1:{}", self.port))
                .arg("--cacert")
                .arg(&self.ca)
                .arg("--cert")
                .arg(&self.cert)
                .arg("--key")
                .arg(&self.key)
                .args(arguments)
                .output()
                .expect("etcdctl runs");
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            // Listening comes before serving.
            let early = stderr.contains("deadline exceeded")
                || stderr.contains("connection refused")
                || stderr.contains("no leader");
            assert!(early && Instant::now() < deadline, "etcdctl {arguments:?}: {stderr}");
        }
    }

    /// Users and roles of a ClusterMesh store of `cluster` that `reader` may read, and authentication on.
    pub(super) fn set_up_users(&self, cluster: &str, reader: &str) {
        self.ctl(&["role", "add", "remote"]);
        for (key, prefix) in [
            ("cilium/.heartbeat".to_owned(), true),
            ("cilium/state/".to_owned(), true),
            (format!("cilium/cluster-config/{cluster}"), false),
            (format!("cilium/synced/{cluster}/"), true),
        ] {
            let mut arguments = vec!["role", "grant-permission", "remote", "read", &key];
            if prefix {
                arguments.push("--prefix=true");
            }
            self.ctl(&arguments);
        }
        self.ctl(&["user", "add", reader, "--no-password"]);
        self.ctl(&["user", "grant-role", reader, "remote"]);
        self.ctl(&["user", "add", "root", "--no-password"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["auth", "enable"]);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Its data is thrown away; only that it is gone matters.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
