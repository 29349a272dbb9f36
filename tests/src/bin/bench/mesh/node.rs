//! A node: the built binary in the network namespace of the benchmark.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use tests::usage::Usage;

use super::generate::{CLUSTERS, cluster_name};

/// How long a start may take before the benchmark gives up.
const DEADLINE: Duration = Duration::from_secs(300);
/// Pause between two questions.
const POLL: Duration = Duration::from_millis(50);

/// A running `meshd run`; ended when dropped.
pub(super) struct Node {
    process: Child,
    socket: PathBuf,
    began: Instant,
}

/// The part of `status` that matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    peers: Vec<Peer>,
    routes: Routes,
}

#[derive(Debug, Deserialize)]
struct Peer {
    ready: bool,
    nodes: u64,
    endpoints: u64,
    identities: u64,
}

#[derive(Debug, Deserialize)]
struct Routes {
    desired: u64,
    installed: u64,
}

impl Status {
    /// Everything is read, and the kernel holds it.
    pub(super) fn is_complete(&self, nodes: u64, endpoints: u64, identities: u64) -> bool {
        let sum = |of: fn(&Peer) -> u64| self.peers.iter().map(of).sum::<u64>();
        self.peers.len() == CLUSTERS as usize
            && self.peers.iter().all(|peer| peer.ready)
            && (sum(|peer| peer.nodes), sum(|peer| peer.endpoints), sum(|peer| peer.identities))
                == (nodes, endpoints, identities)
            && (self.routes.desired, self.routes.installed) == (nodes, nodes)
    }
}

/// Writes the configuration of a node that reads every cluster from the store at `address`.
pub(super) fn configure(folder: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let peers = folder.join("peers");
    fs::create_dir_all(&peers)?;
    let path = |name: &str| folder.join(name).display().to_string();
    for number in 1..=CLUSTERS {
        let text = format!(
            "endpoints:\n- https://{address}\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            path("ca.crt"),
            path("client.crt"),
            path("client.key"),
        );
        fs::write(peers.join(cluster_name(number)?.as_str()), text)?;
    }
    let config = format!(
        "cluster: {{name: west, id: 255}}\n\
         node: {{name: west-1, addresses: [172.16.0.1], pod_cidrs: [10.255.255.0/24]}}\n\
         store: {{mode: embedded, listen: \"127.0.0.1:23790\"}}\n\
         peers_dir: {}\n\
         peers_defaults: {{accept: {{pod_cidrs: [10.0.0.0/8], node_cidrs: [172.16.0.0/12]}}}}\n\
         routing: {{mode: native}}\n\
         state_dir: {}\n\
         api: {{socket: {}}}\n",
        path("peers"),
        path("state"),
        path("meshd.sock"),
    );
    fs::write(folder.join("meshd.yaml"), config)?;
    Ok(())
}

impl Node {
    /// Starts the binary that the lab would start.
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let binary = lab::catalog::meshd()?;
        let log = fs::File::create(folder.join("meshd.log"))?;
        let process = Command::new(&binary)
            .args(["run", "--config"])
            .arg(folder.join("meshd.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {}", binary.display()))?;
        Ok(Self { process, socket: folder.join("meshd.sock"), began: Instant::now() })
    }

    /// Waits until `is` holds; returns how long the node ran then.
    pub(super) fn wait(&mut self, is: impl Fn(&Status) -> bool) -> anyhow::Result<Duration> {
        let mut last = None;
        while self.began.elapsed() < DEADLINE {
            if let Some(code) = self.process.try_wait()? {
                bail!("meshd ended: {code}");
            }
            if let Ok(status) = self.status() {
                if is(&status) {
                    return Ok(self.began.elapsed());
                }
                last = Some(status);
            }
            sleep(POLL);
        }
        bail!("the node did not become ready: {:?}", last.map(|status| status.routes))
    }

    /// What it used so far.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.process.id())
    }

    fn status(&self) -> anyhow::Result<Status> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: meshd\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8(answer)?;
        let (head, body) = text.split_once("\r\n\r\n").context("not an HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(serde_json::from_str(body)?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about it here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
