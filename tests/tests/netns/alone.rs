//! One daemon by itself in a namespace: what needs no second node.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use meshd_store::{Store, StoreOptions};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{net::TcpListener, runtime};

use super::{
    meshes::eventually,
    routes::{in_namespace, shell},
};

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
    /// Starts with an embedded store on loopback; `more` is added to the configuration, whose folder is `prepared` first.
    fn start(more: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = format!(
            "cluster: {{name: west, id: 1}}
node: {{name: a, addresses: [192.0.2.1], pod_cidrs: [10.0.0.0/24]}}
store: {{mode: embedded, listen: \"127.0.0.1:2379\"}}
state_dir: state
api: {{socket: socket, metrics: \"{METRICS}\"}}
{more}"
        );
        fs::write(folder.path().join("meshd.yaml"), config).expect("the configuration is written");
        prepare(folder.path());
        Self { process: run(folder.path()), folder }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().try_into().expect("a process id"));
        kill(pid, signal).expect("signalled");
    }

    /// Ends the daemon in an orderly way.
    fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        assert!(eventually(|| self.process.try_wait().expect("a child").is_some()), "it does not end: {}", self.log());
    }

    fn start_again(&mut self) {
        self.process = run(self.folder.path());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
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

/// Starts the binary; what it says is appended to the file `log`.
fn run(folder: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log");
    Command::new(lab::catalog::meshd().expect("meshd is built"))
        .args(["run", "--config"])
        .arg(folder.join("meshd.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("meshd starts")
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
        let daemon = Daemon::start("", |_| {});
        daemon.until("a healthy node in its metrics", || get("/metrics").contains("\nmeshd_healthy 1\n"));
        let answer = get("/metrics");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
        for store in [
            "keys_count ",
            "watches_count ",
            "answers_bytes ",
            "answers_waiting_count 0\n",
            "answers_refused_total 0\n",
        ] {
            assert!(answer.contains(&format!("\nmeshd_store_{store}")), "{store}: {answer}");
        }
        let store = &daemon.status()["store"];
        assert!(store["keys"].as_u64() > Some(0) && store["answers_refused"] == 0, "{store}");
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
        let daemon = Daemon::start("", |_| {});
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

/// Where the store of the remote cluster listens, and the file that says so in the peers directory.
const EAST: &str = "127.0.0.1:3379";
const EAST_FILE: &str = "endpoints: [\"http://127.0.0.1:3379\"]\n";
/// Where the store of a second remote cluster listens.
const NORTH: &str = "127.0.0.1:4379";

/// What a remote cluster of one node says of itself; `network` is the PodCIDR of the node, a /24.
fn records(cluster: &str, id: u8, node: &str, address: &str, network: &str) -> [(String, String); 3] {
    let record = format!(
        r#"{{"Name":"{node}","Cluster":"{cluster}","ClusterID":{id},"IPAddresses":[{{"Type":"InternalIP","IP":"{address}"}}],
            "IPv4AllocCIDR":{{"IP":"{network}","Mask":"////AA=="}}}}"#
    );
    [
        ("cilium/.heartbeat".to_owned(), "2026-01-01T00:00:00Z".to_owned()),
        (format!("cilium/cluster-config/{cluster}"), format!(r#"{{"id":{id},"capabilities":{{}}}}"#)),
        (format!("cilium/state/nodes/v1/{cluster}/{node}"), record),
    ]
}

fn east() -> runtime::Runtime {
    store(EAST, &records("east", 2, "b", "192.0.2.9", "10.1.0.0"))
}

/// A store of a remote cluster in the namespace of the calling thread; it ends with the runtime.
fn store(address: &'static str, records: &[(String, String)]) -> runtime::Runtime {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (store, _) = Store::open(StoreOptions::default()).expect("a store in memory");
        let listener = TcpListener::bind(address).await.expect("a port");
        tokio::spawn(async move { store.serve(listener, None, std::future::pending()).await });
    });
    for (key, value) in records {
        shell(&format!("ETCDCTL_API=3 etcdctl --endpoints http://{address} put -- {key} '{value}'"));
    }
    runtime
}

#[test]
fn clusters_of_an_unreadable_peers_directory_are_kept() {
    in_namespace(|| {
        let _east = east();
        let more = "peers_dir: peers
peers_defaults: {accept: {pod_cidrs: [10.1.0.0/16], node_cidrs: [192.0.2.0/24]}}
";
        let mut daemon = Daemon::start(more, |folder| {
            fs::create_dir(folder.join("peers")).expect("a peers directory");
            fs::write(folder.join("peers/east"), EAST_FILE).expect("a peer");
        });
        let route = || !shell("ip route show proto 77 10.1.0.0/24").is_empty();
        let east = |status: &Value| status["peers"].as_array().and_then(|peers| peers.first()).cloned();
        let is_ready = |status: &Value| east(status).is_some_and(|peer| peer["ready"] == true);
        daemon.until("a route to east", || route() && is_ready(&daemon.status()));
        daemon.stop();

        // A file where the directory should be, as a mount that is not there yet would look: nobody says that east is gone.
        let (peers, aside) = (daemon.path("peers"), daemon.path("aside"));
        fs::rename(&peers, &aside).expect("renamed");
        fs::write(&peers, "").expect("a file");
        daemon.start_again();
        let is_kept = |status: &Value| {
            let kept =
                |peer: Value| peer["problem"].as_str().is_some_and(|text| text.contains("what is remembered stays"));
            east(status).is_some_and(kept) && status["routes"]["installed"] == 1 && status["health"] == "degraded"
        };
        let has_problem = |status: &Value, words: &str| {
            status["problems"].as_array().is_some_and(|list| {
                list.iter().any(|row| row["message"].as_str().is_some_and(|message| message.contains(words)))
            })
        };
        daemon.until("east is kept", || {
            let status = daemon.status();
            is_kept(&status) && has_problem(&status, "failed to read the peers directory")
        });
        assert!(route());

        // A file that is wrong says no more.
        fs::write(aside.join("east"), "endpoints: [").expect("written");
        fs::remove_file(&peers).expect("removed");
        fs::rename(&aside, &peers).expect("renamed");
        daemon.until("east is still kept", || {
            let status = daemon.status();
            is_kept(&status) && has_problem(&status, "what is remembered of the cluster stays")
        });
        assert!(route());

        // A good file connects, and a directory without one is an order.
        fs::write(peers.join("east"), EAST_FILE).expect("written");
        daemon.until("east is read again", || {
            let status = daemon.status();
            is_ready(&status) && status["problems"] == serde_json::json!([])
        });
        assert!(route());
        fs::remove_file(peers.join("east")).expect("removed");
        daemon.until("the route goes with the peer", || !route() && east(&daemon.status()).is_none());
    });
}

#[test]
fn a_prefix_inside_our_own_network_is_refused_as_long_as_it_is_ours() {
    in_namespace(|| {
        let _east = east();
        let record = r#"{"Name":"c","Cluster":"east","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.10"}],
            "IPv4AllocCIDR":{"IP":"10.200.0.0","Mask":"////AA=="}}"#;
        shell(&format!(
            "ETCDCTL_API=3 etcdctl --endpoints http://{EAST} put -- cilium/state/nodes/v1/east/c '{record}'"
        ));
        let more = format!(
            "peers: [{{cluster: east, endpoints: [\"http://{EAST}\"], accept: {{pod_cidrs: [10.0.0.0/8], node_cidrs: [192.0.2.0/24]}}}}]
"
        );
        let mut daemon = Daemon::start(&more, |_| {});
        let routes = || shell("ip -o route show proto 77 | cut -d' ' -f1 | xargs");
        let is_fine = |status: &Value| status["health"] == "ok" && status["routes"]["installed"] == 2;
        daemon.until("both routes", || is_fine(&daemon.status()));
        assert_eq!(routes(), "10.1.0.0/24 10.200.0.0/24\n");

        shell("ip address add 10.200.0.1/16 dev two");
        let is_refused = |status: &Value| {
            let told = |row: &Value| {
                let message = row["message"].as_str().unwrap_or_default();
                row["component"] == "prefix/east/10.200.0.0/24" && message.contains("lies inside 10.200.0.0/16")
            };
            status["problems"].as_array().is_some_and(|list| list.len() == 1 && told(&list[0]))
        };
        daemon.until("a problem and one route", || is_refused(&daemon.status()) && routes() == "10.1.0.0/24\n");

        // A restart remembers the row and never gives it a route, not even before its source is heard.
        let monitor = fs::File::create(daemon.path("monitor")).expect("a file");
        let mut watching = Command::new("ip").args(["monitor", "route"]).stdout(monitor).spawn().expect("ip runs");
        daemon.stop();
        daemon.start_again();
        daemon.until("the same again", || is_refused(&daemon.status()));
        shell("ip route add 10.3.0.0/24 dev two");
        let seen = || fs::read_to_string(daemon.path("monitor")).expect("text");
        daemon.until("the monitor has heard everything", || seen().contains("10.3.0.0/24"));
        assert!(!seen().contains("10.200.0.0/24"), "{}", seen());
        watching.kill().expect("killed");
        watching.wait().expect("reaped");

        shell("ip address del 10.200.0.1/16 dev two");
        daemon.until("both routes again", || is_fine(&daemon.status()));
        assert_eq!(routes(), "10.1.0.0/24 10.200.0.0/24\n");
    });
}

#[test]
fn routes_of_a_removed_cluster_go_although_another_one_is_silent() {
    in_namespace(|| {
        let peer = |name: &str, address: &str| {
            format!(
                "- cluster: {name}
  endpoints: [\"http://{address}\"]
  accept: {{pod_cidrs: [10.0.0.0/8], node_cidrs: [192.0.2.0/24]}}
"
            )
        };
        let (east_peer, north_peer) = (peer("east", EAST), peer("north", NORTH));
        let _east = east();
        let north = store(NORTH, &records("north", 3, "n", "192.0.2.8", "10.9.0.0"));
        let mut daemon = Daemon::start(&format!("peers:\n{north_peer}{east_peer}"), |_| {});
        let routes = || shell("ip -o route show proto 77 | cut -d' ' -f1 | xargs");
        let both = "10.1.0.0/24 10.9.0.0/24\n";
        daemon.until("both routes", || routes() == both && daemon.status()["health"] == "ok");
        daemon.stop();

        // Nobody was there to hear that east is gone, and north cannot say that its route is still wanted.
        north.shutdown_background();
        let path = daemon.path("meshd.yaml");
        let text = fs::read_to_string(&path).expect("a configuration").replace(&east_peer, "");
        fs::write(&path, text).expect("written");
        assert_eq!(routes(), both);
        daemon.start_again();
        daemon.until("the route of east goes", || routes() == "10.9.0.0/24\n");
        let is_silent = |status: &Value| {
            let peer = status["peers"].as_array().and_then(|peers| peers.first()).cloned().unwrap_or_default();
            peer["cluster"] == "north" && peer["ready"] == false && status["routes"]["installed"] == 1
        };
        daemon.until("north is silent", || is_silent(&daemon.status()));
        assert_eq!(routes(), "10.9.0.0/24\n");
    });
}

#[test]
fn a_new_cluster_id_waits_for_a_restart_and_new_workloads_do_not() {
    in_namespace(|| {
        let mut daemon = Daemon::start("", |_| {});
        let get = |key: &str| shell(&format!("ETCDCTL_API=3 etcdctl --endpoints http://127.0.0.1:2379 get {key}"));
        let config = || get("cilium/cluster-config/west");
        daemon.until("the cluster's record", || config().contains("\"id\":1"));

        // Readers drop what they had of a cluster whose id changes, so a reload must not announce one.
        let path = daemon.path("meshd.yaml");
        let text = fs::read_to_string(&path).expect("a configuration").replace("id: 1", "id: 2");
        let workload =
            "workloads: {static: [{namespace: default, name: web, addresses: [10.0.0.9], labels: {app: web}}]}";
        fs::write(&path, format!("{text}{workload}\n")).expect("written");
        daemon.signal(Signal::SIGHUP);
        daemon.until("the new workload", || get("--prefix cilium/state/ip/v1/").contains("10.0.0.9"));
        daemon.until("a hint at the restart", || daemon.status().to_string().contains("at the next restart"));
        assert!(config().contains("\"id\":1"), "{}", config());

        daemon.stop();
        daemon.start_again();
        daemon.until("the new id", || config().contains("\"id\":2"));
    });
}

#[test]
fn a_node_says_that_another_zone_waits_for_a_restart() {
    in_namespace(|| {
        let mut daemon = Daemon::start("", |_| {});
        let record =
            || shell("ETCDCTL_API=3 etcdctl --endpoints http://127.0.0.1:2379 get cilium/state/nodes/v1/west/a");
        daemon.until("the node's record", || record().contains("192.0.2.1"));
        daemon.until("no problem", || daemon.status()["problems"] == serde_json::json!([]));

        let path = daemon.path("meshd.yaml");
        let zone = ", labels: {topology.kubernetes.io/zone: z1}}";
        let before = fs::read_to_string(&path).expect("a configuration");
        fs::write(&path, before.replace("24]}", &format!("24]{zone}"))).expect("written");
        daemon.signal(Signal::SIGHUP);
        let waits = || daemon.status()["problems"].to_string().contains("at the next restart");
        daemon.until("a hint at the restart", waits);
        assert!(!record().contains("z1"), "{}", record());
        // Taken back, there is nothing to wait for.
        fs::write(&path, &before).expect("written");
        daemon.signal(Signal::SIGHUP);
        daemon.until("no hint", || !waits());

        fs::write(&path, before.replace("24]}", &format!("24]{zone}"))).expect("written");
        daemon.stop();
        daemon.start_again();
        daemon.until("the zone", || record().contains(r#""topology.kubernetes.io/zone":"z1""#));
    });
}

#[test]
fn a_reload_that_comes_during_the_start_waits() {
    in_namespace(|| {
        let mut daemon = Daemon::start("", |_| {});
        // From its first line of its own on, signals are held or handled.
        let status = format!("/proc/{}/status", daemon.process.id());
        let is_safe = || {
            let status = std::fs::read_to_string(&status).expect("a process");
            let masks = status.lines().filter_map(|line| line.strip_prefix("SigBlk:").or(line.strip_prefix("SigCgt:")));
            masks.map(|mask| u64::from_str_radix(mask.trim(), 16).expect("a mask")).any(|mask| mask & 1 != 0)
        };
        while !is_safe() {
            assert!(daemon.process.try_wait().expect("a child").is_none(), "{}", daemon.log());
        }
        // As an agent does that has just written the configuration.
        for _ in 0..20 {
            daemon.signal(Signal::SIGHUP);
            thread::sleep(Duration::from_millis(10));
        }
        daemon.until("it runs", || daemon.status()["problems"] == serde_json::json!([]));
        assert!(daemon.process.try_wait().expect("a child").is_none(), "{}", daemon.log());
    });
}

#[test]
fn a_reload_without_its_include_folder_keeps_the_peers() {
    in_namespace(|| {
        let _east = east();
        let daemon = Daemon::start("include: conf.d", |folder| {
            fs::create_dir(folder.join("conf.d")).expect("an include folder");
            let peer = format!(
                "peers: [{{cluster: east, endpoints: [\"http://{EAST}\"],
                  accept: {{pod_cidrs: [10.1.0.0/16], node_cidrs: [192.0.2.0/24]}}}}]\n"
            );
            fs::write(folder.join("conf.d/east.yaml"), peer).expect("a peer");
        });
        let route = || !shell("ip route show proto 77 10.1.0.0/24").is_empty();
        daemon.until("a route to east", || route() && daemon.status()["problems"] == serde_json::json!([]));

        // As a mount that is gone would look.
        let (folder, aside) = (daemon.path("conf.d"), daemon.path("aside"));
        fs::rename(&folder, &aside).expect("renamed");
        daemon.signal(Signal::SIGHUP);
        daemon.until("a problem", || daemon.status().to_string().contains("the last good configuration stays in use"));
        let peers = daemon.status()["peers"].clone();
        assert!(route() && peers[0]["cluster"] == "east" && peers[0]["ready"] == true, "{peers:#}");

        fs::rename(&aside, &folder).expect("renamed");
        daemon.signal(Signal::SIGHUP);
        daemon.until("all is well", || daemon.status()["problems"] == serde_json::json!([]));
        assert!(route());
        // A folder without the file is an order.
        fs::remove_file(folder.join("east.yaml")).expect("removed");
        daemon.signal(Signal::SIGHUP);
        daemon.until("the route goes with the peer", || !route());
    });
}
