//! Peers that do harm, and the others beside them: BIRD and two speakers of the test must not notice, memory stays bounded, and whoever looks
//! is told what happened.

use std::{
    collections::{HashSet, VecDeque},
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{JoinHandle, scope, sleep, spawn},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tests::{
    bgp::{
        speaker::{Identity, Session},
        stream::{Table, prefixes},
        wire::{self, Attributes, Prefix},
    },
    routers::{Blueprint, DEADLINE, Network, Router, until},
    usage::Usage,
};

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const BIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Tells something from time to time, and another one must hear it.
const TELLER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const LISTENER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);
/// Has a large table.
const FEEDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 102);
/// Is configured and means harm.
const HOSTILE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
/// The same, not even a speaker.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);

/// The shortest there is: a daemon that is busy with somebody else for longer loses its good neighbors.
const HOLD_TIME_S: u16 = 3;
const KEEPALIVE_EVERY: Duration = Duration::from_millis(700);
/// What any one good neighbor says must reach the others within this time, whatever else goes on. Exports may wait 50 ms for
/// more; the rest is for a machine that runs other tests as well.
const PROMPT: Duration = Duration::from_millis(500);
/// Pause between two things that are said.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// What a hostile peer may cost in memory, in MiB.
const GROWTH_MAX_MIB: f64 = 32.0;
/// Lines of the log that a flood may cause.
const FLOOD_LINES_MAX: usize = 40;

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

fn asn(address: Ipv4Addr) -> u32 {
    65_000 + u32::from(address.octets()[3])
}

fn identity(address: Ipv4Addr) -> Identity {
    Identity { asn: asn(address), address, daemon: OURS, hold_time_s: HOLD_TIME_S, receive_buffer: None }
}

fn configuration() -> String {
    let peer = |address: Ipv4Addr, more: &str| {
        format!(
            "    - {{address: {address}, remote_as: {}, export: [all], timers: {{hold_time_s: {HOLD_TIME_S}}}{more}}}\n",
            asn(address)
        )
    };
    let passive = ", passive: true";
    let limited =
        ", passive: true, families: {ipv4: {max_prefixes: {limit: 1000, action: restart, restart_after_s: 600}}}";
    [
        r#"
cluster: {name: west, id: 1}
node: {name: ours, addresses: [192.0.2.10], pod_cidrs: [10.0.1.0/24]}
store: {mode: embedded, listen: "127.0.0.1:2379"}
api: {metrics: "127.0.0.1:9962"}
bgp:
  asn: 65000
  import: {accept: ["0.0.0.0/0 le 32"], install: false}
  policies: {all: [{}]}
  peers:
"#
        .to_owned(),
        peer(BIRD, ", bfd: {}"),
        peer(TELLER, passive),
        peer(LISTENER, passive),
        peer(FEEDER, passive),
        peer(HOSTILE, limited),
    ]
    .concat()
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
struct Alive {
    session: Arc<Session>,
    heard: Arc<Mutex<Heard>>,
    is_reading: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Alive {
    fn new(session: Session, is_reading: bool) -> Self {
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

    fn held(&self) -> usize {
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
struct World {
    listener: Alive,
    teller: Alive,
    network: Network,
    pid: u32,
    told: AtomicU32,
}

impl World {
    fn up() -> Self {
        tests::need_root();
        let addresses = [TELLER, LISTENER, FEEDER, HOSTILE, STRANGER];
        let crowd =
            addresses.iter().fold(Blueprint::plain("crowd"), |it, address| it.address(&format!("{address}/24")));
        let network = Network::up(&[
            Blueprint::bird("bird", BIRD_CONF).file("/etc/bird/routes.conf", &bird_routes()).address("192.0.2.1/24"),
            Blueprint::meshd("ours", &configuration()).address("192.0.2.10/24"),
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

    fn ours(&self) -> Router {
        self.network.router("ours").unwrap()
    }

    /// Runs something where the speakers of the test are.
    fn within<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        self.network.router("crowd").unwrap().node().within(inside).unwrap()
    }

    fn join(&self, identity: &Identity) -> Session {
        self.within(|| Session::establish(identity)).unwrap()
    }

    fn json(&self, command: &[&str]) -> Value {
        // The exit code says whether all is well, which it is not meant to be here.
        let output = self.ours().node().exec(&[command, &["-o", "json"]].concat()).unwrap();
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn neighbor(&self, address: Ipv4Addr) -> Value {
        let found = self.json(&["meshd", "bgp", "neighbors", &address.to_string()]);
        found[0].clone()
    }

    /// What the status says about a peer.
    fn problem(&self, address: Ipv4Addr) -> anyhow::Result<String> {
        let status = self.json(&["meshd", "status"]);
        let component = format!("bgp/{address}");
        let mut problems = status["problems"].as_array().context("no problems")?.iter();
        let problem = problems.find(|problem| problem["component"] == component.as_str());
        Ok(problem.with_context(|| format!("{status}"))?["message"].as_str().unwrap_or_default().to_owned())
    }

    /// The value of a metric, by its whole name with labels.
    fn metric(&self, name: &str) -> f64 {
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
    fn tell_while(&self, what: &str, mut busy: impl FnMut() -> bool) -> Duration {
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
    fn assert_prompt_while(&self, what: &str, busy: impl FnMut() -> bool) {
        let worst = self.tell_while(what, busy);
        assert!(worst < PROMPT, "{what}: {worst:?}");
    }

    /// From here on memory is watched.
    fn usage(&self) -> Usage {
        Usage::forget_peak(self.pid).unwrap();
        Usage::of(self.pid).unwrap()
    }

    fn assert_growth(&self, what: &str, before: Usage) {
        let after = Usage::of(self.pid).unwrap();
        let (was, peak) = (before.rss_mib, after.peak_rss_mib);
        println!("{what}: {was:.1} MiB before, {peak:.1} MiB at most since");
        assert!(peak - was < GROWTH_MAX_MIB, "{what}: from {was} to {peak} MiB");
    }

    /// None of the good neighbors ever lost its session, and BIRD has heard the last word of the teller.
    fn assert_unharmed(&self) {
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

    fn down(self) {
        let Self { listener, teller, network, .. } = self;
        drop((listener, teller));
        network.down().unwrap();
    }
}

/// Two million prefixes from a peer that may send a thousand.
#[test]
fn a_peer_with_too_many_prefixes_is_sent_away() {
    const COUNT: u32 = 2_000_000;
    let world = World::up();
    let prefixes: Vec<Prefix> = (0..COUNT).map(|n| Prefix { address: 0x0100_0000 + (n << 8), length: 24 }).collect();
    let mut table = Vec::new();
    wire::announce(&mut table, &Attributes::default(), asn(HOSTILE), HOSTILE, &prefixes);
    let hostile = world.join(&identity(HOSTILE));
    let before = world.usage();
    scope(|scope| {
        // Where it fails depends on what was under way when the session was closed.
        let flood = scope.spawn(|| hostile.send(&table));
        world.assert_prompt_while("two million prefixes", || !flood.is_finished());
    });
    until("the end of the session", DEADLINE, || {
        let neighbor = world.neighbor(HOSTILE);
        ensure!(neighbor["state"] == "idle" && neighbor["received"] == 0, "{neighbor}");
        Ok(())
    })
    .unwrap();
    let why = world.neighbor(HOSTILE)["last_reset"]["reason"].to_string();
    assert!(why.contains("more than 1000 ipv4"), "{why}");
    assert!(world.problem(HOSTILE).unwrap().contains("more than 1000 ipv4"));
    assert_eq!(world.metric(&format!("meshd_bgp_peer_established{{peer=\"{HOSTILE}\"}}")), 0.0);
    assert_eq!(world.metric(&format!("meshd_bgp_peer_downs_total{{peer=\"{HOSTILE}\"}}")), 1.0);
    // It comes back at once, and again, and is not heard.
    for _ in 0..20 {
        assert!(world.within(|| Session::try_establish(&identity(HOSTILE))).is_err());
    }
    let refused = world.neighbor(HOSTILE);
    assert_eq!(
        (&refused["connections_refused"], &refused["last_refusal"]),
        (&20.into(), &"waiting after a failure".into())
    );
    until("nothing of it with the others", DEADLINE, || {
        let others = 1000 + world.told.load(Ordering::Relaxed) as usize;
        ensure!(world.listener.held() == others, "{} prefixes", world.listener.held());
        Ok(())
    })
    .unwrap();
    world.assert_growth("two million prefixes", before);
    world.assert_unharmed();
    world.down();
}

/// A peer that is to be told 200,000 prefixes, again and again, and never reads.
#[test]
fn a_peer_that_never_reads_holds_up_nobody() {
    const COUNT: usize = 200_000;
    let world = World::up();
    let feeder = Alive::new(world.join(&identity(FEEDER)), true);
    let all = prefixes(COUNT);
    let feed = |seed: u64| feeder.session.send(&Table::of(&all, seed).encode(asn(FEEDER), FEEDER)).unwrap();
    let others = || 1000 + world.told.load(Ordering::Relaxed) as usize;
    let wait_held = |who: &Alive, what: &str, count: usize| {
        until(what, DEADLINE, || {
            ensure!(who.held() == others() + count, "{} of {}", who.held(), others() + count);
            Ok(())
        })
        .unwrap();
    };
    feed(1);
    wait_held(&world.listener, "the table", COUNT);
    let mut withdrawal = Vec::new();
    wire::withdraw(&mut withdrawal, &all);
    let change_all = |what: &str, seed: u64| {
        let worst = scope(|scope| {
            let churn = scope.spawn(|| {
                feeder.session.send(&withdrawal).unwrap();
                feed(seed);
            });
            world.tell_while(what, || !churn.is_finished())
        });
        wait_held(&world.listener, what, COUNT);
        worst
    };
    // Everything changes with nobody who is slow: how long that takes, and how large the tables get by it.
    let usual = change_all("while everything changes", 2);

    let before = world.usage();
    let deaf = Identity { receive_buffer: Some(1 << 14), ..identity(HOSTILE) };
    let hostile = Alive::new(world.join(&deaf), false);
    let blocked = || world.neighbor(HOSTILE)["send_blocked_s"].as_u64();
    world.assert_prompt_while("a peer that does not read", || blocked().is_none());
    let slowed = change_all("the same with the one that does not read", 3);
    assert!(slowed < 2 * usual + PROMPT, "{slowed:?} instead of {usual:?}");
    until("the state of the peer", DEADLINE, || {
        let problem = world.problem(HOSTILE)?;
        ensure!(problem.contains("has not read for"), "{problem}");
        Ok(())
    })
    .unwrap();
    assert!(world.metric(&format!("meshd_bgp_peer_send_blocked_seconds{{peer=\"{HOSTILE}\"}}")) >= 10.0);
    assert!(world.ours().run(&["meshd", "bgp", "neighbors", &HOSTILE.to_string()]).unwrap().contains("Not reading:"));
    world.assert_growth("a peer that does not read", before);

    // It changes its mind: what it missed comes, and nothing that is not so any more.
    hostile.is_reading.store(true, Ordering::Relaxed);
    wait_held(&hostile, "what was missed", COUNT);
    until("nothing that waits", DEADLINE, || {
        ensure!(blocked().is_none(), "{blocked:?}", blocked = blocked());
        Ok(())
    })
    .unwrap();
    drop((hostile, feeder));
    world.assert_unharmed();
    world.down();
}

/// A thousand connections a second from a peer, and as many from somebody who is none.
#[test]
fn a_flood_of_connections_disturbs_nobody() {
    const PER_S: u32 = 1_000;
    const SECONDS: u32 = 4;
    /// How many of them are left open at a time.
    const OPEN: usize = 64;
    let world = World::up();
    let before = world.usage();
    let lines = world.ours().log().unwrap().lines().count();
    let flood = |from: Ipv4Addr| {
        let (began, mut open) = (Instant::now(), VecDeque::new());
        for number in 0..PER_S * SECONDS {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            socket.bind(&SocketAddrV4::new(from, 0).into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            // It is under way when this returns; what becomes of it is the other side's matter.
            let _under_way = socket.connect(&SocketAddrV4::new(OURS, 179).into());
            open.push_back(socket);
            if open.len() > OPEN {
                open.pop_front();
            }
            let due = began + Duration::from_secs(1) * number / PER_S;
            sleep(due.saturating_duration_since(Instant::now()));
        }
        f64::from(PER_S * SECONDS) / began.elapsed().as_secs_f64()
    };
    scope(|scope| {
        let floods = [HOSTILE, STRANGER].map(|from| {
            scope.spawn({
                let (world, flood) = (&world, &flood);
                move || world.within(|| flood(from))
            })
        });
        world.assert_prompt_while("two thousand connections a second", || {
            floods.iter().any(|flood| !flood.is_finished())
        });
        for flood in floods {
            let rate = flood.join().unwrap();
            println!("{rate:.0} connections a second");
            assert!(rate > 0.9 * f64::from(PER_S), "only {rate} connections a second");
        }
    });
    let descriptors = fs::read_dir(format!("/proc/{}/fd", world.pid)).unwrap().count();
    assert!(descriptors < 2 * OPEN, "{descriptors} descriptors");
    let strangers = world.json(&["meshd", "bgp", "summary"])["strangers"].as_u64().unwrap();
    assert!(strangers > u64::from(PER_S), "{strangers}");
    assert_eq!(world.metric("meshd_bgp_strangers_refused_total"), strangers as f64);
    let neighbor = world.neighbor(HOSTILE);
    assert!(neighbor["last_failure"]["reason"].to_string().contains("connection lost"), "{neighbor}");
    assert!(world.problem(HOSTILE).unwrap().contains("not established"));
    let log = world.ours().log().unwrap();
    let written: Vec<&str> = log.lines().skip(lines).collect();
    assert!(written.len() < FLOOD_LINES_MAX, "{}", written.join("\n"));
    assert!(written.iter().any(|line| line.contains("stranger")), "{}", written.join("\n"));
    world.assert_growth("two thousand connections a second", before);
    // The door is not shut for who behaves.
    let changed = Alive::new(world.join(&identity(HOSTILE)), true);
    until("the table", DEADLINE, || {
        ensure!(changed.held() >= 1000, "{}", changed.held());
        Ok(())
    })
    .unwrap();
    drop(changed);
    world.assert_unharmed();
    world.down();
}

/// An octet a second: of an OPEN, and of an UPDATE.
#[test]
fn peers_that_dribble_run_into_their_timers() {
    const DRIBBLE: Duration = Duration::from_secs(1);
    /// More than may wait to say OPEN.
    const OPENERS: usize = 50;
    let world = World::up();
    let before = world.usage();
    let done = AtomicBool::new(false);
    let dribble = |mut stream: &TcpStream, octets: &[u8]| {
        for octet in octets {
            if done.load(Ordering::Relaxed) || stream.write_all(&[*octet]).is_err() {
                return;
            }
            sleep(DRIBBLE);
        }
    };
    // The session is established, and its next message never ends.
    let established = world.join(&identity(HOSTILE));
    let mut update = Vec::new();
    wire::announce(&mut update, &Attributes::default(), asn(HOSTILE), HOSTILE, &prefixes(100));
    scope(|scope| {
        let dribbling = scope.spawn(|| {
            for octet in &update {
                if done.load(Ordering::Relaxed) || established.send(&[*octet]).is_err() {
                    return;
                }
                sleep(DRIBBLE);
            }
        });
        let expired = |timer: &str| {
            let reason = world.neighbor(HOSTILE)["last_reset"]["reason"].to_string();
            reason.contains(timer)
        };
        world.assert_prompt_while("an octet a second of an UPDATE", || !expired("hold timer expired"));
        assert!(world.problem(HOSTILE).unwrap().contains("hold timer expired"));
        done.store(true, Ordering::Relaxed);
        dribbling.join().unwrap();
    });
    done.store(false, Ordering::Relaxed);
    // Many that never finish their OPEN.
    let mut open = Vec::new();
    wire::open(&mut open, asn(HOSTILE), HOSTILE, HOLD_TIME_S);
    let connect = || -> anyhow::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddrV4::new(HOSTILE, 0).into())?;
        socket.connect(&SocketAddrV4::new(OURS, 179).into())?;
        Ok(socket.into())
    };
    let openers: Vec<TcpStream> = world.within(|| (0..OPENERS).map(|_| connect().unwrap()).collect());
    scope(|scope| {
        for stream in &openers {
            let (dribble, open) = (&dribble, &open);
            scope.spawn(move || dribble(stream, open));
        }
        let refused = || world.neighbor(HOSTILE)["connections_refused"].as_u64().unwrap() as usize;
        world.assert_prompt_while("an octet a second of fifty OPENs", || refused() + 1 < OPENERS);
        assert_eq!(world.neighbor(HOSTILE)["last_refusal"], "another connection of the peer is being opened");
        let descriptors = fs::read_dir(format!("/proc/{}/fd", world.pid)).unwrap().count();
        assert!(descriptors < OPENERS, "{descriptors} descriptors");
        // The one that was taken is closed when its time is over, and then the peer can have a session.
        let session = world.join(&identity(HOSTILE));
        done.store(true, Ordering::Relaxed);
        drop(session);
    });
    world.assert_growth("an octet a second", before);
    world.assert_unharmed();
    world.down();
}
