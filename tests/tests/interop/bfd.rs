//! Our BFD with FRR's bfdd, with BIRD, and with itself.

use std::{
    net::IpAddr,
    num::NonZeroU8,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use lab::Node;
use meshd::speaker::bfd::{
    Bfd, BfdEvent, Device, Diagnostic, Hops, Interval, NewSession, SessionId, SessionStatus, Settings, State, Status,
};
use tests::{
    links::set_link,
    routers::{Blueprint, DEADLINE, FABRIC, Network, Router, until},
};
use tokio::sync::mpsc;

/// What a path may take to be declared dead at 50 ms times 3.
pub(super) const DETECTION_MAX: Duration = Duration::from_millis(200);

/// FRR sends over several hops with a TTL of 255, BIRD with the kernel's 64; the RFC leaves it open.
const MULTIHOP_TTL_MIN: u8 = 64;

/// Our BFD in a node, with every event and when it came.
pub(super) struct Ours {
    bfd: Bfd,
    events: Arc<Mutex<Vec<(Instant, BfdEvent)>>>,
    device: Device,
}

impl Ours {
    pub(super) fn start(node: &Node) -> Self {
        let (sender, mut receiver) = mpsc::channel(16);
        let (bfd, index) = node
            .within(|| (Bfd::start(sender, 7), nix::net::if_::if_nametoindex(FABRIC)))
            .expect("a thread in the node");
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        thread::spawn(move || {
            while let Some(event) = receiver.blocking_recv() {
                seen.lock().expect("no panic").push((Instant::now(), event));
            }
        });
        let device = Device { index: index.expect("the link"), name: FABRIC.to_owned() };
        Self { bfd: bfd.expect("the thread"), events, device }
    }

    /// Runs a session; the odd ones are bound to no link where they need not be.
    pub(super) fn add(&self, id: u64, local: &str, remote: &str, hops: Hops) {
        self.add_with(id, local, remote, hops, settings());
    }

    pub(super) fn add_with(&self, id: u64, local: &str, remote: &str, hops: Hops, settings: Settings) {
        let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
        let link_local = matches!(remote, IpAddr::V6(address) if address.is_unicast_link_local());
        let device = (hops == Hops::Single && (link_local || id.is_multiple_of(2))).then(|| self.device.clone());
        let new = NewSession { id: SessionId(id), hops, remote, local, device, ttl_min: MULTIHOP_TTL_MIN, settings };
        self.bfd.add(new).unwrap();
    }

    pub(super) fn status(&self) -> Status {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.bfd.status()).unwrap()
    }

    pub(super) fn session(&self, id: u64) -> anyhow::Result<SessionStatus> {
        self.status().sessions.into_iter().find(|session| session.id == SessionId(id)).context("no such session")
    }

    pub(super) fn wait_state(&self, id: u64, state: State) {
        until(&format!("session {id} {state}"), DEADLINE, || {
            let session = self.session(id)?;
            if session.state == state { Ok(()) } else { bail!("{session:?}") }
        })
        .unwrap();
    }

    /// Events of a session since `from`, with how much later they came.
    pub(super) fn events(&self, id: u64, from: Instant) -> Vec<(Duration, BfdEvent)> {
        let events = self.events.lock().expect("no panic");
        let of_session = events.iter().filter(|(at, event)| event.id == SessionId(id) && *at >= from);
        of_session.map(|(at, event)| (*at - from, event.clone())).collect()
    }

    pub(super) fn wait_failure(&self, id: u64, from: Instant) -> (Duration, BfdEvent) {
        until(&format!("the failure of session {id}"), DEADLINE, || {
            let events = self.events(id, from);
            events.iter().find(|(_, event)| event.failed).cloned().with_context(|| format!("{events:?}"))
        })
        .unwrap()
    }
}

pub(super) fn settings() -> Settings {
    Settings {
        min_transmit: Interval::from_millis(50),
        min_receive: Interval::from_millis(50),
        multiplier: NonZeroU8::new(3).unwrap(),
        ..Settings::default()
    }
}

const FRR: &str = "
bfd
 profile quick
  receive-interval 50
  transmit-interval 50
  detect-multiplier 3
 !
 peer 192.0.2.1 interface eth0
  profile quick
 peer fd00::1 local-address fd00::2
  profile quick
 peer 198.51.100.1 multihop local-address 198.51.100.2
  profile quick
  minimum-ttl 254
";

const BIRD: &str = r#"
protocol bfd {
  interface "eth0" { min rx interval 50 ms; min tx interval 50 ms; multiplier 3; };
  multihop { min rx interval 50 ms; min tx interval 50 ms; multiplier 3; };
  neighbor 192.0.2.1 dev "eth0";
  neighbor fd00::1 dev "eth0";
  neighbor fe80::1 dev "eth0";
  neighbor 198.51.100.1 local 198.51.100.2 multihop;
}
"#;

fn ours() -> Blueprint {
    Blueprint::plain("ours")
        .address("192.0.2.1/24")
        .address("198.51.100.1/24")
        .address("fd00::1/64")
        .address("fe80::1/64")
}

fn theirs(router: Blueprint) -> Network {
    tests::need_root();
    let router = router.address("192.0.2.2/24").address("198.51.100.2/24").address("fd00::2/64").address("fe80::2/64");
    Network::up(&[ours(), router]).unwrap()
}

/// What `show bfd peers json` says about each peer.
fn frr_peers(frr: &Router) -> anyhow::Result<Vec<serde_json::Value>> {
    let text = frr.run(&["vtysh", "-c", "show bfd peers json"])?;
    serde_json::from_str::<serde_json::Value>(&text)?.as_array().cloned().with_context(|| text.clone())
}

fn frr_peer(frr: &Router, address: &str) -> anyhow::Result<serde_json::Value> {
    let peers = frr_peers(frr)?;
    peers.iter().find(|peer| peer["peer"] == address).cloned().with_context(|| format!("no {address} in {peers:?}"))
}

/// State by address as `show bfd sessions` prints it.
fn bird_state(bird: &Router, address: &str) -> anyhow::Result<String> {
    let text = bird.run(&["birdc", "show", "bfd", "sessions"])?;
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.first() == Some(&address)).with_context(|| text.clone())?;
    Ok((*line.get(2).with_context(|| text.clone())?).to_owned())
}

/// The other end of a cable is pulled: our link stays up, nothing comes any more.
pub(super) fn cut(network: &Network) -> Instant {
    let before = Instant::now();
    network.switch().unwrap().within(|| set_link("port1", false)).unwrap().unwrap();
    before
}

pub(super) fn mend(network: &Network) {
    network.switch().unwrap().within(|| set_link("port1", true)).unwrap().unwrap();
}

fn assert_noticed_in_time(ours: &Ours, sessions: impl IntoIterator<Item = u64>, cut_at: Instant) {
    for id in sessions {
        let (after, event) = ours.wait_failure(id, cut_at);
        println!("session {id}: the cut was noticed after {after:?}");
        assert!(after < DETECTION_MAX, "session {id}: {after:?} {event:?}");
        assert_eq!((event.state, event.diagnostic), (State::Down, Diagnostic::DetectionTimeExpired));
    }
}

#[test]
fn frr_and_we_watch_a_path() {
    let network = theirs(Blueprint::frr("frr", "").bfdd(FRR));
    let frr = network.router("frr").unwrap();
    let ours = Ours::start(network.router("ours").unwrap().node());
    ours.add(2, "192.0.2.1", "192.0.2.2", Hops::Single);
    ours.add(3, "fd00::1", "fd00::2", Hops::Single);
    ours.add(4, "198.51.100.1", "198.51.100.2", Hops::Multi);
    let peers = ["192.0.2.1", "fd00::1", "198.51.100.1"];
    for id in [2, 3, 4] {
        ours.wait_state(id, State::Up);
        let detection = |session: SessionStatus| session.detection_time == Some(Duration::from_millis(150));
        until("the quick intervals", DEADLINE, || {
            let session = ours.session(id)?;
            if detection(session.clone()) { Ok(()) } else { bail!("{session:?}") }
        })
        .unwrap();
    }
    for peer in peers {
        frr.wait("BFD", || match frr_peer(&frr, peer)? {
            peer if peer["status"] == "up" => Ok(()),
            peer => bail!("{peer}"),
        })
        .unwrap();
    }

    let cut_at = cut(&network);
    assert_noticed_in_time(&ours, [2, 3, 4], cut_at);
    mend(&network);
    for id in [2, 3, 4] {
        ours.wait_state(id, State::Up);
    }

    // Ours held down, as FRR sees it.
    ours.bfd.admin_down(SessionId(2)).unwrap();
    frr.wait("our administrative down", || match frr_peer(&frr, "192.0.2.1")? {
        peer if peer["status"] == "down" && peer["remote-diagnostic"] == "administratively down" => Ok(()),
        peer => bail!("{peer}"),
    })
    .unwrap();
    ours.bfd.admin_up(SessionId(2)).unwrap();
    ours.wait_state(2, State::Up);

    // FRR's held down, as we see it: no failure.
    let held_at = Instant::now();
    frr.run(&["vtysh", "-c", "conf t", "-c", "bfd", "-c", "peer 192.0.2.1 interface eth0", "-c", "shutdown"]).unwrap();
    ours.wait_state(2, State::Down);
    let events = ours.events(2, held_at);
    assert!(events.iter().any(|(_, event)| event.remote_admin_down), "{events:?}");
    assert!(events.iter().all(|(_, event)| !event.failed), "{events:?}");
    drop(ours);
    network.down().unwrap();
}

#[test]
fn bird_and_we_watch_a_path() {
    let network = theirs(Blueprint::bird("bird", BIRD));
    let bird = network.router("bird").unwrap();
    let ours = Ours::start(network.router("ours").unwrap().node());
    let sessions = [
        (2, "192.0.2.1", "192.0.2.2", Hops::Single),
        (3, "fd00::1", "fd00::2", Hops::Single),
        (4, "fe80::1", "fe80::2", Hops::Single),
        (5, "198.51.100.1", "198.51.100.2", Hops::Multi),
    ];
    for (id, local, remote, hops) in sessions {
        ours.add(id, local, remote, hops);
    }
    let wait_bird = |address: &str, wanted: &str| {
        bird.wait(&format!("{address} {wanted}"), || match bird_state(&bird, address)? {
            state if state == wanted => Ok(()),
            state => bail!("{state}"),
        })
        .unwrap();
    };
    for (id, local, _, _) in sessions {
        ours.wait_state(id, State::Up);
        wait_bird(local, "Up");
    }
    until("the quick intervals", DEADLINE, || {
        let slow: Vec<_> = ours.status().sessions;
        let slow: Vec<_> =
            slow.iter().filter(|session| session.detection_time != Some(Duration::from_millis(150))).collect();
        if slow.is_empty() { Ok(()) } else { bail!("{slow:?}") }
    })
    .unwrap();

    let cut_at = cut(&network);
    assert_noticed_in_time(&ours, [2, 3, 4, 5], cut_at);
    for (_, local, _, _) in sessions {
        wait_bird(local, "Down");
    }
    mend(&network);
    for (id, ..) in sessions {
        ours.wait_state(id, State::Up);
    }

    ours.bfd.admin_down(SessionId(3)).unwrap();
    wait_bird("fd00::1", "Down");
    ours.bfd.admin_up(SessionId(3)).unwrap();
    ours.wait_state(3, State::Up);

    // What is removed says goodbye, so BIRD does not have to wait for its detection time to know.
    ours.bfd.remove(SessionId(2)).unwrap();
    wait_bird("192.0.2.1", "Down");
    assert!(ours.session(2).is_err());
    // The end of the thread says it for all.
    drop(ours);
    wait_bird("198.51.100.1", "Down");
    assert_eq!(bird.complaints().unwrap(), Vec::<String>::new());
    network.down().unwrap();
}

/// Two of ours, `count` addresses on each side, and a session between each two of them.
fn ours_and_ours(count: u8) -> (Network, Ours, Ours, Vec<u64>) {
    tests::need_root();
    let (mut one, mut other) = (Blueprint::plain("one"), Blueprint::plain("other"));
    for number in 1..=count {
        one = one.address(&format!("10.0.1.{number}/16"));
        other = other.address(&format!("10.0.2.{number}/16"));
    }
    let network = Network::up(&[one, other]).unwrap();
    let one = Ours::start(network.router("one").unwrap().node());
    let other = Ours::start(network.router("other").unwrap().node());
    let mut ids = Vec::new();
    for (a, b) in (1..=count).flat_map(|a| (1..=count).map(move |b| (a, b))) {
        let id = u64::from(a) * 1_000 + u64::from(b);
        one.add(id, &format!("10.0.1.{a}"), &format!("10.0.2.{b}"), Hops::Single);
        other.add(id, &format!("10.0.2.{b}"), &format!("10.0.1.{a}"), Hops::Single);
        ids.push(id);
    }
    for ours in [&one, &other] {
        until("all sessions up", DEADLINE, || {
            let up = ours.status().sessions.iter().filter(|session| session.state == State::Up).count();
            if up == ids.len() { Ok(()) } else { bail!("{up} of {}", ids.len()) }
        })
        .unwrap();
    }
    (network, one, other, ids)
}

/// Processor time of all threads of this process with this name.
fn processor_time(name: &str) -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        if comm.trim() == name {
            let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            ticks += after_name.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
        }
    }
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_busy_machine_does_not_flap_hundreds_of_sessions() {
    let (network, one, other, ids) = ours_and_ours(16);
    println!("priority {:?}", one.status().priority);
    let quiet_from = Instant::now();
    // The side that was started first has sent to sessions that the other side had not been given yet.
    let strangers = [one.status().strange, other.status().strange];
    let before = processor_time("bfd");
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        for _ in 0..2 * thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // A duration is what this is about: nothing must happen while the machine is busy.
        thread::sleep(Duration::from_secs(3));
        busy.store(false, Ordering::Relaxed);
    });
    println!("{} sessions twice: {:?} of processor time", ids.len(), processor_time("bfd") - before);
    for (ours, strangers) in [&one, &other].into_iter().zip(strangers) {
        let flapped: Vec<_> = ids.iter().flat_map(|id| ours.events(*id, quiet_from)).collect();
        assert_eq!(flapped, [], "{:?}", ours.status().latest);
        println!("the latest timer was {:?} late", ours.status().latest);
        assert_eq!(ours.status().strange, strangers, "{:?}", ours.status().last_strange);
    }
    let cut_at = cut(&network);
    for id in &ids {
        let (after, _) = one.wait_failure(*id, cut_at);
        assert!(after < DETECTION_MAX, "session {id}: {after:?}");
    }
    drop((one, other));
    network.down().unwrap();
}

/// A packet that was forwarded, or came by another way, is no packet of the session.
#[test]
fn packets_from_too_far_away_and_of_strangers_are_dropped() {
    let (network, one, other, ids) = ours_and_ours(1);
    let forge = |ttl: u32, port: u16| {
        let socket = std::net::UdpSocket::bind("10.0.2.1:0").unwrap();
        socket.set_ttl(ttl).unwrap();
        // Down, not knowing our discriminator: would take the session down.
        let packet = [0x20, 0x40, 3, 24, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50, 0, 0, 0, 0];
        socket.send_to(&packet, ("10.0.1.1", port)).unwrap();
        socket.send_to(&packet[..20], ("10.0.1.1", port)).unwrap();
    };
    let from = Instant::now();
    network.router("other").unwrap().node().within(|| forge(254, 3784)).unwrap();
    until("the strange packets", DEADLINE, || match one.status() {
        status if status.strange == 2 => Ok(()),
        status => bail!("{status:?}"),
    })
    .unwrap();
    assert_eq!(one.events(ids[0], from), []);
    // From one link away it counts, and takes the session down and up again.
    network.router("other").unwrap().node().within(|| forge(255, 3784)).unwrap();
    until("the fall", DEADLINE, || match one.events(ids[0], from) {
        events if events.iter().any(|(_, event)| event.diagnostic == Diagnostic::NeighborSignaledDown) => Ok(()),
        events => bail!("{events:?}"),
    })
    .unwrap();
    one.wait_state(ids[0], State::Up);
    drop((one, other));
    network.down().unwrap();
}
