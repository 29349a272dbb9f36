//! The global service of the west/east lab: servers in its webpods, and a client that counts who answers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lab::{Error, Lab, Node, Output, Result, chain};

use super::{CLIENT, check, heading, wait_until};

/// `webpod` in west.
const SERVICE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 80), 80));
/// The webpods of west.
const WEST: [(&str, [u8; 4]); 2] =
    [("west-control-plane-webpod", [10, 0, 0, 10]), ("west-worker-webpod", [10, 0, 1, 10])];
/// The webpods of east.
const EAST: [(&str, [u8; 4]); 2] =
    [("east-control-plane-webpod", [10, 1, 0, 10]), ("east-worker-webpod", [10, 1, 1, 10])];
/// The nodes of west, whose configuration names the service and their workloads.
const WEST_NODES: [&str; 2] = ["west-control-plane", "west-worker"];
const CONFIGURATION: &str = "/etc/meshd/meshd.yaml";
/// What a node's tables may take to follow a configuration.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(30);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests of a round; the chance that one of four backends has none is one in 10^24.
const REQUESTS: usize = 200;
/// Time between two requests of the client that never stops.
const PACE: Duration = Duration::from_millis(2);
/// A server looks so often whether it is to end.
const POLL: Duration = Duration::from_millis(1);

/// A server in each webpod, which answers with its name.
pub(crate) struct Webpods {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Webpods {
    /// Starts them.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let mut webpods = Self { stop: Arc::default(), threads: Vec::new() };
        for (name, address) in WEST.into_iter().chain(EAST) {
            let at = SocketAddr::new(address.into(), SERVICE.port());
            let listener = lab.node(name)?.within(|| TcpListener::bind(at))?;
            let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            let listener = listener.map_err(|source| failed("listen at", at, source))?;
            let stop = webpods.stop.clone();
            webpods.threads.push(thread::spawn(move || serve(&listener, name, &stop)));
        }
        Ok(webpods)
    }
}

impl Drop for Webpods {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ended = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut client, _)) = listener.accept() else {
            thread::sleep(POLL);
            continue;
        };
        // A client that does not get its answer says so itself.
        let _answered = client.set_nonblocking(false).and_then(|()| client.write_all(name.as_bytes()));
    }
}

/// Who answers how many requests.
type Answers = BTreeMap<String, usize>;

/// One request from inside of the client's network: the name of who answered.
fn request() -> Result<String> {
    let failed = |source| failed("ask", SERVICE, source);
    let mut stream = TcpStream::connect_timeout(&SERVICE, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut name = String::new();
    stream.read_to_string(&mut name).map_err(failed)?;
    Ok(name)
}

fn failed(operation: &'static str, at: SocketAddr, source: std::io::Error) -> Error {
    Error::File { operation, path: at.to_string().into(), source }
}

fn ask(client: &Node) -> Result<Answers> {
    client.within(|| {
        let mut answers = Answers::new();
        for _ in 0..REQUESTS {
            *answers.entry(request()?).or_default() += 1;
        }
        Ok(answers)
    })?
}

/// Waits until these answer and nobody else, and shows it.
fn wait_answers(client: &Node, expected: &[(&str, [u8; 4])]) -> Result<()> {
    let mut last = Answers::new();
    wait_until("the webpods that should answer", FOLLOWED_WITHIN, || {
        match ask(client) {
            Ok(answers) => last = answers,
            // Before the service is there for the first time.
            Err(error) => return Ok(Err(chain(&error))),
        }
        let is = last.len() == expected.len() && expected.iter().all(|(name, _)| last.contains_key(*name));
        Ok(if is { Ok(()) } else { Err(format!("{last:?} answered")) })
    })?;
    println!("{REQUESTS} requests from {CLIENT} to {SERVICE}:");
    for (name, count) in last {
        println!("  {count:3} answered by {name}");
    }
    Ok(())
}

/// Every webpod of both clusters answers.
pub(crate) fn show(lab: &Lab) -> Result<()> {
    heading("webpod is one service of both clusters");
    let client = lab.node(CLIENT)?;
    wait_answers(&client, &[WEST, EAST].concat())?;
    print!("\nwest-worker$ meshd get services\n{}", services(lab)?);
    Ok(())
}

fn services(lab: &Lab) -> Result<String> {
    lab.node("west-worker")?.exec(&["meshd", "get", "services"]).and_then(Output::ok)
}

/// West prefers its own webpods; they go, and those of east answer; they come back. No request fails meanwhile.
pub(crate) fn show_failover(lab: &Lab) -> Result<()> {
    heading("west prefers its own webpods, loses them, and those of east answer");
    let client = lab.node(CLIENT)?;
    for node in WEST_NODES {
        // The file of the topology is not ours to change.
        let copy = format!("cp {CONFIGURATION} /run/meshd.yaml && mount --bind /run/meshd.yaml {CONFIGURATION}");
        lab.node(node)?.exec(&["sh", "-c", &copy])?.ok()?;
    }
    edit(lab, "      global: true\n", "      global: true\n      affinity: local\n")?;
    println!("west's nodes$ affinity: local");
    wait_answers(&client, &WEST)?;

    let requests = Requests::start(client.clone());
    edit(lab, "labels: {app: webpod}", "labels: {app: other}")?;
    println!("\nwest's nodes$ labels: {{app: other}}     # no workload of west is a webpod any more");
    let gone = Instant::now();
    wait_answers(&client, &EAST)?;
    println!("after {} ms, and {REQUESTS} requests", gone.elapsed().as_millis());
    edit(lab, "labels: {app: other}", "labels: {app: webpod}")?;
    println!("\nwest's nodes$ labels: {{app: webpod}}");
    wait_answers(&client, &WEST)?;
    let count = requests.finish()?;
    println!("none of {count} other requests failed meanwhile");
    edit(lab, "      affinity: local\n", "")?;
    wait_answers(&client, &[WEST, EAST].concat())
}

/// Changes the configuration of west's nodes and lets them read it again.
fn edit(lab: &Lab, from: &str, to: &str) -> Result<()> {
    for name in WEST_NODES {
        let node = lab.node(name)?;
        let text = node.within(|| fs::read_to_string(CONFIGURATION))?;
        let text = text.map_err(|source| Error::File { operation: "read", path: CONFIGURATION.into(), source })?;
        check(text.contains(from), &format!("{from:?} in the configuration of {name}"), &text)?;
        let written = node.within(|| fs::write(CONFIGURATION, text.replace(from, to)))?;
        written.map_err(|source| Error::File { operation: "write", path: CONFIGURATION.into(), source })?;
        node.daemon("meshd")?.reload()?;
    }
    Ok(())
}

/// Requests without an end, one after the other.
struct Requests {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Requests {
    fn start(client: Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = thread::spawn(move || {
            client.within(|| {
                let mut count = 0;
                while !ended.load(Ordering::Relaxed) {
                    request()?;
                    count += 1;
                    thread::sleep(PACE);
                }
                Ok(count)
            })?
        });
        Self { stop, thread }
    }

    /// How many were answered; the error of the first that was not.
    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
