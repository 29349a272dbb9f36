//! Who is there: ours, BIRD and two speakers of the test, which must not notice the peers that do harm; and how one sees that.

use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::{
    bgp::{
        speaker::{Identity, Session},
        wire::{self, Attributes, Prefix},
    },
    routers::{Blueprint, DEADLINE, Network, Router, until},
    usage::Usage,
};

use super::super::configurations::{NODE, PODS, configuration};

pub(super) const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const BIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Tells something from time to time, and another one must hear it.
pub(super) const TELLER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const LISTENER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);
/// Has a large table.
pub(super) const FEEDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 102);
/// Is configured and means harm.
pub(super) const HOSTILE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
/// The same, not even a speaker.
pub(super) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);

/// The shortest there is: a daemon that is busy with somebody else for longer loses its good neighbors.
pub(super) const HOLD_TIME_S: u16 = 3;
const KEEPALIVE_EVERY: Duration = Duration::from_millis(700);
/// What any one good neighbor says must reach the others within this time, whatever else goes on. Exports may wait 50 ms for
/// more; the rest is for a machine that runs other tests as well.
pub(super) const PROMPT: Duration = Duration::from_millis(500);
/// Pause between two things that are said.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// What a hostile peer may cost in memory, in MiB.
const GROWTH_MAX_MIB: f64 = 32.0;

const BIRD_CONF: &str = r#"
router id 192.0.2.1;
protocol bfd { interface "eth0" { min rx interval 300 ms; min tx interval 300 ms; multiplier 3; }; }
protocol static { ipv4;
include "/etc/bird/routes.conf";
}
protocol bgp { local 192.0.2.1 as 65001; neighbor 192.0.2.10 as 65000; hold time 3; connect delay time 1; connect retry time 1; bfd on;
  ipv4 { import all; export where source = RTS_STATIC; }; }
"#;

/// The good ones.
const GOOD: [Ipv4Addr; 3] = [BIRD, TELLER, LISTENER];

pub(super) fn asn(address: Ipv4Addr) -> u32 {
    65_000 + u32::from(address.octets()[3])
}

pub(super) fn identity(address: Ipv4Addr) -> Identity {
    Identity { asn: asn(address), address, daemon: OURS, hold_time_s: HOLD_TIME_S, receive_buffer: None }
}

fn our_configuration() -> String {
    let peer = |address: Ipv4Addr, more: &str| {
        format!(
            "    - {{address: {address}, remote_as: {}, export: [all], timers: {{hold_time_s: {HOLD_TIME_S}}}{more}}}\n",
            asn(address)
        )
    };
    let passive = ", passive: true";
    let limited =
        ", passive: true, families: {ipv4: {max_prefixes: {limit: 1000, action: restart, restart_after_s: 600}}}";
    let bgp = [
        r#"  import: {accept: ["0.0.0.0/0 le 32"], install: false}
  policies: {all: [{}]}
  peers:
"#
        .to_owned(),
        peer(BIRD, ", bfd: {}"),
        peer(TELLER, passive),
        peer(LISTENER, passive),
        peer(FEEDER, passive),
        peer(HOSTILE, limited),
    ];
    let api = "api: {metrics: \"127.0.0.1:9962\"}\n";
    configuration(&format!("{NODE}{PODS}"), 65_000, &bgp.concat()) + api
}

/// Prefixes that BIRD has: none of those of [`prefixes`], which end where the class A networks do.
fn bird_routes() -> String {
    (0..1000).map(|n| format!("route 198.{}.{}.0/24 blackhole;\n", 18 + n / 256, n % 256)).collect()
}

/// What the listener hears.
#[derive(Default)]
struct Heard {
    held: HashSet<u64>,
    last: Option<u64>,
}

/// A session that reads, and says that it is there, until it is dropped.
pub(super) struct Alive {
    pub(super) session: Arc<Session>,
    heard: Arc<Mutex<Heard>>,
    pub(super) is_reading: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Alive {
    pub(super) fn new(session: Session, is_reading: bool) -> Self {
        let (session, done) = (Arc::new(session), Arc::new(AtomicBool::new(false)));
        let (heard, is_reading) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(is_reading)));
        let keeper = {
            let (session, done) = (Arc::clone(&session), Arc::clone(&done));
            spawn(move || {
                while !done.load(Ordering::Relaxed) && session.keep_alive().is_ok() {
                    sleep(KEEPALIVE_EVERY);
                }
            })
        };
        let reader = {
            let (session, done) = (Arc::clone(&session), Arc::clone(&done));
            let (heard, is_reading) = (Arc::clone(&heard), Arc::clone(&is_reading));
            spawn(move || read(&session, &heard, &is_reading, &done).unwrap_or_default())
        };
        Self { session, heard, is_reading, done, threads: vec![keeper, reader] }
    }

    fn holds(&self, prefix: Prefix) -> bool {
        self.heard.lock().unwrap().held.contains(&prefix.key())
    }

    pub(super) fn held(&self) -> usize {
        self.heard.lock().unwrap().held.len()
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        // Its end is what was wanted; a session that is gone is closed already.
        let _closed = self.session.close();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Reads until the end of the session, while that is wanted.
fn read(session: &Session, heard: &Mutex<Heard>, wanted: &AtomicBool, done: &AtomicBool) -> anyhow::Result<()> {
    let (mut buffer, mut filled) = (vec![0; 1 << 20], 0);
    while !done.load(Ordering::Relaxed) {
        if !wanted.load(Ordering::Relaxed) {
            sleep(TELL_EVERY);
            continue;
        }
        filled += session.receive(&mut buffer[filled..])?;
        let mut rest = &buffer[..filled];
        let mut heard = heard.lock().unwrap();
        while let Some((kind, body, behind)) = wire::split(rest)? {
            rest = behind;
            if kind == wire::UPDATE {
                wire::update(body, |prefix, announced| {
                    if announced {
                        heard.held.insert(prefix.key())
                    } else {
                        heard.held.remove(&prefix.key())
                    };
                    heard.last = Some(prefix.key());
                    Ok(())
                })?;
            }
        }
        drop(heard);
        let left = rest.len();
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
    }
    Ok(())
}

/// Ours with its good neighbors, all established.
pub(super) struct World {
    pub(super) listener: Alive,
    teller: Alive,
    network: Network,
    pub(super) pid: u32,
    pub(super) told: AtomicU32,
}

impl World {
    pub(super) fn up() -> Self {
        tests::need_root();
        let addresses = [TELLER, LISTENER, FEEDER, HOSTILE, STRANGER];
        let crowd =
            addresses.iter().fold(Blueprint::plain("crowd"), |it, address| it.address(&format!("{address}/24")));
        let network = Network::up(&[
            Blueprint::bird("bird", BIRD_CONF).file("/etc/bird/routes.conf", &bird_routes()).address("192.0.2.1/24"),
            Blueprint::meshd("ours", &our_configuration()).address("192.0.2.10/24"),
            crowd,
        ])
        .unwrap();
        let pid = u32::try_from(network.router("ours").unwrap().pids()[0]).unwrap();
        let join = |address| {
            let session = network.router("crowd").unwrap().node().within(|| Session::establish(&identity(address)));
            Alive::new(session.unwrap().unwrap(), true)
        };
        let (teller, listener) = (join(TELLER), join(LISTENER));
        let world = Self { listener, teller, network, pid, told: AtomicU32::new(0) };
        world.ours().wait_established("192.0.2.1").unwrap();
        until("all of BIRD's prefixes", DEADLINE, || {
            ensure!(world.listener.held() >= 1000, "{}", world.listener.held());
            Ok(())
        })
        .unwrap();
        world
    }

    pub(super) fn ours(&self) -> Router {
        self.network.router("ours").unwrap()
    }

    /// Runs something where the speakers of the test are.
    pub(super) fn within<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        self.network.router("crowd").unwrap().node().within(inside).unwrap()
    }

    pub(super) fn join(&self, identity: &Identity) -> Session {
        self.within(|| Session::establish(identity)).unwrap()
    }

    pub(super) fn json(&self, command: &[&str]) -> Value {
        // The exit code says whether all is well, which it is not meant to be here.
        let output = self.ours().node().exec(&[command, &["-o", "json"]].concat()).unwrap();
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    pub(super) fn neighbor(&self, address: Ipv4Addr) -> Value {
        let found = self.json(&["meshd", "bgp", "neighbors", &address.to_string()]);
        found[0].clone()
    }

    /// What the status says about a peer.
    pub(super) fn problem(&self, address: Ipv4Addr) -> anyhow::Result<String> {
        let status = self.json(&["meshd", "status"]);
        let component = format!("bgp/{address}");
        let mut problems = status["problems"].as_array().context("no problems")?.iter();
        let problem = problems.find(|problem| problem["component"] == component.as_str());
        Ok(problem.with_context(|| format!("{status}"))?["message"].as_str().unwrap_or_default().to_owned())
    }

    /// The value of a metric, by its whole name with labels.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let get = || -> anyhow::Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:9962")?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = self.ours().node().within(get).unwrap().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Has the teller say something new and returns how long it was until the listener heard it.
    fn tell(&self) -> Duration {
        let number = self.told.fetch_add(1, Ordering::Relaxed);
        let prefix = Prefix { address: 0xc633_6400 + number, length: 32 };
        let mut update = Vec::new();
        wire::announce(&mut update, &Attributes::default(), asn(TELLER), TELLER, &[prefix]);
        let began = Instant::now();
        self.teller.session.send(&update).unwrap();
        while !self.listener.holds(prefix) {
            assert!(began.elapsed() < DEADLINE, "{prefix:?} was told and not heard");
            sleep(Duration::from_millis(1));
        }
        began.elapsed()
    }

    /// Tells for as long as `busy`, at least a few times; returns the longest time until it was heard.
    pub(super) fn tell_while(&self, what: &str, mut busy: impl FnMut() -> bool) -> Duration {
        let mut delays = Vec::new();
        while delays.len() < 20 || busy() {
            delays.push(self.tell());
            sleep(TELL_EVERY);
            assert!(delays.len() < 4096, "{what} does not end");
        }
        delays.sort();
        let (median, worst) = (delays[delays.len() / 2], delays[delays.len() - 1]);
        println!("{what}: {} times heard after {median:?}, at the latest after {worst:?}", delays.len());
        worst
    }

    /// The same, and it must be heard soon each time.
    pub(super) fn assert_prompt_while(&self, what: &str, busy: impl FnMut() -> bool) {
        let worst = self.tell_while(what, busy);
        assert!(worst < PROMPT, "{what}: {worst:?}");
    }

    /// From here on memory is watched.
    pub(super) fn usage(&self) -> Usage {
        Usage::forget_peak(self.pid).unwrap();
        Usage::of(self.pid).unwrap()
    }

    pub(super) fn assert_growth(&self, what: &str, before: Usage) {
        let after = Usage::of(self.pid).unwrap();
        let (was, peak) = (before.rss_mib, after.peak_rss_mib);
        println!("{what}: {was:.1} MiB before, {peak:.1} MiB at most since");
        assert!(peak - was < GROWTH_MAX_MIB, "{what}: from {was} to {peak} MiB");
    }

    /// None of the good neighbors ever lost its session, and BIRD has heard the last word of the teller.
    pub(super) fn assert_unharmed(&self) {
        for address in GOOD {
            let neighbor = self.neighbor(address);
            assert_eq!((&neighbor["state"], &neighbor["downs"]), (&"established".into(), &0.into()), "{neighbor}");
        }
        let bird = self.network.router("bird").unwrap();
        let last = Ipv4Addr::from(0xc633_6400 + self.told.load(Ordering::Relaxed) - 1);
        bird.wait("the last word of the teller", || {
            let text = bird.run(&["birdc", "show", "route", &format!("{last}/32")])?;
            ensure!(text.contains("192.0.2.10"), "{text}");
            Ok(())
        })
        .unwrap();
        assert_eq!(bird.complaints().unwrap(), Vec::<String>::new());
        let last_reset = &self.neighbor(BIRD)["last_reset"];
        assert!(!last_reset.to_string().contains("BFD"), "{last_reset}");
    }

    pub(super) fn down(self) {
        let Self { listener, teller, network, .. } = self;
        drop((listener, teller));
        network.down().unwrap();
    }
}
