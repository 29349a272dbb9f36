//! A real etcd for the duration of a test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long etcd may take to elect itself.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running etcd; ended when dropped.
pub(super) struct Etcd {
    process: Child,
    pub(super) address: SocketAddr,
    _folder: TempDir,
}

impl Etcd {
    /// Starts etcd on two free loopback ports with its data in memory where that is possible.
    pub(super) async fn start() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let (client, peer) = (free_port(), free_port());
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let process = Command::new("etcd")
            .args(["--name", "reference", "--log-level", "error", "--data-dir"])
            .arg(folder.path())
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("reference={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd does not start: install the package etcd-server");
        let etcd = Self { process, address: client, _folder: folder };
        let started = Instant::now();
        while !healthy(client).await {
            assert!(started.elapsed() < START_DEADLINE, "etcd did not become healthy");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about it here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn healthy(address: SocketAddr) -> bool {
    let connect = etcd_client::Client::connect([format!("http://{address}")], None);
    let Ok(Ok(mut client)) = tokio::time::timeout(Duration::from_secs(1), connect).await else {
        return false;
    };
    // A linearizable read needs a leader.
    let read = tokio::time::timeout(Duration::from_secs(1), client.get("health", None)).await;
    matches!(read, Ok(Ok(_)))
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}
