//! A real etcd for the duration of a test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

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

    /// Waits until no watch has history to catch up with. etcd looks at such watches every 100 ms, and one it has not
    /// looked at yet is cancelled by a compaction although it had nothing to be told.
    pub(super) async fn watches_are_synced(&self) {
        let started = Instant::now();
        while unsynced_watches(self.address).await != 0 {
            assert!(started.elapsed() < START_DEADLINE, "etcd's watches do not catch up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// etcd's own count of watches that have history to catch up with.
async fn unsynced_watches(address: SocketAddr) -> u64 {
    const GAUGE: &str = "etcd_debugging_mvcc_slow_watcher_total ";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let gauge = text.lines().find_map(|line| line.strip_prefix(GAUGE));
    gauge.expect("etcd counts its slow watches").trim().parse().unwrap()
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
