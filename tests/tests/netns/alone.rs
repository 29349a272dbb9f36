//! One daemon by itself in a namespace: what needs no second node.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use super::{meshes::eventually, routes::in_namespace};

/// Where metrics are served.
const METRICS: &str = "127.0.0.1:9962";
/// How long a single answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A daemon in the namespace of the calling thread, and its files. Killed when dropped.
struct Daemon {
    process: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts with an embedded store on loopback; `more` is added to the configuration.
    fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = format!(
            "cluster: {{name: west, id: 1}}
node: {{name: a, addresses: [192.0.2.1], pod_cidrs: [10.0.0.0/24]}}
store: {{mode: embedded, listen: \"127.0.0.1:2379\"}}
state_dir: state
api: {{socket: socket, metrics: \"{METRICS}\"}}
{more}"
        );
        std::fs::write(folder.path().join("meshd.yaml"), config).expect("the configuration is written");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let process = Command::new(lab::catalog::meshd().expect("meshd is built"))
            .args(["run", "--config"])
            .arg(folder.path().join("meshd.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("meshd starts");
        Self { process, folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// What `meshd status` answers; null before the daemon answers.
    fn status(&self) -> Value {
        let output = Command::new(lab::catalog::meshd().expect("meshd is built"))
            .args(["status", "-o", "json", "--socket"])
            .arg(self.folder.path().join("socket"))
            .output()
            .expect("meshd runs");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        assert!(eventually(holds), "{what}: not in time; status {:#}; log:\n{}", self.status(), self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already gone is fine; anything else shows as a namespace that stays.
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Head and body of the answer to a GET; empty when nobody listens.
fn get(path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(METRICS) else { return String::new() };
    stream.set_read_timeout(Some(ANSWER)).expect("a timeout is set");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {METRICS}\r\n\r\n").expect("the request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers and closes");
    answer
}

#[test]
fn metrics_are_served_over_tcp_and_nothing_else_is() {
    in_namespace(|| {
        let daemon = Daemon::start("");
        daemon.until("a healthy node in its metrics", || get("/metrics").contains("\nmeshd_healthy 1\n"));
        let answer = get("/metrics");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
        for path in ["/", "/v1/status", "/v1/drain", "/metrics/"] {
            let answer = get(path);
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
    });
}

#[test]
fn an_address_of_metrics_that_is_taken_is_a_problem_and_no_more() {
    in_namespace(|| {
        let taken = std::net::TcpListener::bind(METRICS).expect("a port");
        let daemon = Daemon::start("");
        let problem = || {
            let status = daemon.status();
            let list = status["problems"].as_array().cloned().unwrap_or_default();
            list.iter().find(|row| row["component"] == "api/metrics").map(|row| row["message"].to_string())
        };
        daemon.until("a problem", || problem().is_some_and(|text| text.contains("failed to listen on 127.0.0.1:9962")));
        daemon.until("everything else works", || daemon.status()["problems"].as_array().is_some_and(|l| l.len() == 1));
        drop(taken);
        daemon.until("the address is tried again", || get("/metrics").contains("meshd_healthy") && problem().is_none());
    });
}
