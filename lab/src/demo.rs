//! Two clusters becoming one network, told in half a minute: what `make demo` shows.
//!
//! Every step prints what a person would look at and checks it. The lab goes down in any case; the last line is
//! `demo: ok` or the reason why not.

mod routes;
mod service;
mod witness;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::{Error, Lab, Node, Options, Output, Result, chain};
use nix::sys::signal::Signal;

use crate::interrupt::Guard;
use routes::{EXPECTED, owned_routes};
use service::Webpods;
use witness::Witness;

/// How long the nodes may take to learn each other and install routes.
const JOINED_WITHIN: Duration = Duration::from_secs(60);
/// How long a route that was removed by hand may be missing.
const REPAIRED_WITHIN: Duration = Duration::from_secs(1);
/// How long a node may take to notice that a store is gone, or back.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
/// Answers to count after the loss of a store was noticed.
const ANSWERS_WITHOUT_STORE: usize = 100;
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// TTL of an answer that was forwarded by two nodes.
const TTL_TWO_NODES: &str = "ttl=62";
/// Lines of a daemon's log worth showing after a failure.
const LOG_TAIL_LINES: usize = 15;
const POLL: Duration = Duration::from_millis(5);

const CLIENT: &str = "west-worker-client";
const CLIENT_ADDRESS: &str = "10.0.1.20";
const SERVER: &str = "east-worker-webpod";
const SERVER_ADDRESS: &str = "10.1.1.10";
/// The route that the demonstration removes, and where.
const REMOVED: (&str, &str) = ("west-worker", "10.1.1.0/24");
/// The node that hosts the store of cluster east.
const STORE: &str = "east-control-plane";

/// Runs the demonstration.
pub(crate) fn run() -> ExitCode {
    match demonstrate() {
        Ok(()) => {
            println!("demo: ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("demo: failed: {}", chain(&error));
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn demonstrate() -> Result<()> {
    heading("two clusters of two nodes, each with a store of its own");
    let started = Instant::now();
    let name = format!("demo-{}", std::process::id());
    let _guard = Guard::set(&name)?;
    let lab = Lab::up("west-east", &Options { name: Some(name), ..Options::default() })?;
    println!("up after {}", seconds(started.elapsed()));
    let told = tell(&lab);
    if told.is_err() {
        show_logs(&lab);
    }
    let down = lab.down();
    told.and(down)
}

fn tell(lab: &Lab) -> Result<()> {
    show_routes(lab)?;
    show_ping(lab)?;
    show_repair(lab)?;
    let _webpods = Webpods::start(lab)?;
    service::show(lab)?;
    service::show_failover(lab)?;
    show_lost_store(lab)
}

/// Every node has a route to every PodCIDR but its own, and no other.
fn show_routes(lab: &Lab) -> Result<()> {
    heading("every node routes to every other PodCIDR");
    let started = Instant::now();
    wait_until("the routes of all nodes", JOINED_WITHIN, || {
        for (node, expected) in EXPECTED {
            let node = lab.node(node)?;
            if !node.daemon("meshd")?.is_running() {
                return Err(Error::NotRunning { node: node.name().to_owned(), daemon: "meshd".to_owned() });
            }
            let actual = owned_routes(&node)?;
            if actual != routes::table(expected) {
                return Ok(Err(format!("{} has {actual:?}", node.name())));
            }
        }
        Ok(Ok(()))
    })?;
    println!("complete after {}", seconds(started.elapsed()));
    for (node, _) in EXPECTED {
        println!("\n{node}$ ip -4 route show proto 77");
        print!("{}", lab.node(node)?.exec(&["ip", "-4", "route", "show", "proto", "77"]).and_then(Output::ok)?);
    }
    Ok(())
}

/// A pod pings a pod of the other cluster, which sees the pod's own address.
fn show_ping(lab: &Lab) -> Result<()> {
    heading("a pod in west pings a pod in east");
    let witness = Witness::listen(&lab.node(SERVER)?)?;
    let ping = lab.node(CLIENT)?.exec(&["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", SERVER_ADDRESS])?.ok()?;
    print!("{CLIENT}$ ping {SERVER_ADDRESS}\n{ping}");
    check(ping.matches(TTL_TWO_NODES).count() == 3, "three answers that two nodes forwarded", &ping)?;
    let seen = witness.echo_requests()?;
    println!("{SERVER} saw requests from: {}", seen.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    check(seen.iter().eq([CLIENT_ADDRESS]), "requests from the pod's own address only", &format!("{seen:?}"))
}

/// A route that somebody removes comes back.
fn show_repair(lab: &Lab) -> Result<()> {
    heading("a route removed by hand comes back");
    let (node, prefix) = REMOVED;
    let node = lab.node(node)?;
    println!("{}$ ip route del {prefix} proto 77", node.name());
    let removed = Instant::now();
    node.exec(&["ip", "route", "del", prefix, "proto", "77"])?.ok()?;
    wait_until("the removed route", REPAIRED_WITHIN, || {
        let actual = owned_routes(&node)?;
        Ok(if actual.contains_key(prefix) { Ok(()) } else { Err(format!("there are {actual:?}")) })
    })?;
    println!("back after {} ms", removed.elapsed().as_millis());
    Ok(())
}

/// The store of the other cluster dies; its routes stay and pings go on.
fn show_lost_store(lab: &Lab) -> Result<()> {
    heading("the store of east is killed, pings go on");
    let reader = lab.node("west-worker")?;
    let mut ping = lab.node(CLIENT)?.spawn(&["ping", "-n", "-i", "0.02", SERVER_ADDRESS])?;
    answers(&mut ping, 1)?;
    let store = lab.node(STORE)?.daemon("meshd")?;
    println!("{STORE}$ kill -9 {}", store.pid().unwrap_or_default());
    store.kill9()?;
    let killed = Instant::now();
    wait_connected(&reader, "east", false)?;
    println!("west-worker noticed after {}", seconds(killed.elapsed()));
    let before = ping.so_far()?.matches("bytes from").count();
    answers(&mut ping, before + ANSWERS_WITHOUT_STORE)?;
    for (node, expected) in EXPECTED.iter().filter(|(node, _)| *node != STORE) {
        let actual = owned_routes(&lab.node(node)?)?;
        check(actual == routes::table(expected), "all routes without the store", &format!("{node} has {actual:?}"))?;
    }
    store.start()?;
    wait_connected(&reader, "east", true)?;
    println!("store back, west-worker connected again");
    let summary = ping.stop(Signal::SIGINT, ANSWERS_WITHIN)?.ok()?;
    let statistics = summary.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
    println!("{statistics}");
    check(statistics.contains(" 0% packet loss"), "no packet lost", statistics)
}

/// Waits until this many answers were counted.
fn answers(ping: &mut lab::Running, count: usize) -> Result<()> {
    wait_until(&format!("{count} answers to ping"), ANSWERS_WITHIN, || {
        let seen = ping.so_far()?.matches("bytes from").count();
        Ok(if seen >= count { Ok(()) } else { Err(format!("{seen} answers")) })
    })
}

/// Waits until a node says that it is, or is not, connected to a peer.
fn wait_connected(node: &Node, cluster: &str, connected: bool) -> Result<()> {
    let state = if connected { "connected" } else { "disconnected" };
    wait_until(&format!("{} to say that {cluster} is {state}", node.name()), NOTICED_WITHIN, || {
        // The status is told by its exit code too: 1 while a peer is away.
        let status = node.exec(&["meshd", "status", "-o", "json"])?;
        let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        let peers = document["peers"].as_array().cloned().unwrap_or_default();
        let peer = peers.iter().find(|peer| peer["cluster"] == cluster);
        Ok(match peer.map(|peer| &peer["connected"]) {
            Some(said) if *said == connected => Ok(()),
            _ => Err(format!("status says {} {}", status.stdout.trim(), status.stderr.trim())),
        })
    })
}

/// Repeats a look until it is content; the inner error is what was seen last.
fn wait_until(
    condition: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<std::result::Result<(), String>>,
) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let Err(last) = look()? else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(Error::Deadline { condition: condition.to_owned(), within, last });
        }
        std::thread::sleep(POLL);
    }
}

fn check(holds: bool, expected: &str, seen: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::Unexpected { expected: expected.to_owned(), seen: seen.to_owned() })
}

fn show_logs(lab: &Lab) {
    for daemon in lab.daemons("meshd") {
        let log = daemon.log().unwrap_or_else(|error| chain(&error));
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("\n{}:", daemon.log_path().display());
        for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
            eprintln!("  {line}");
        }
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f32())
}
