//! Peers that do harm, and the others beside them: BIRD and two speakers of the test must not notice, memory stays bounded, and whoever looks
//! is told what happened.

use std::{
    collections::VecDeque,
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use anyhow::ensure;
use socket2::{Domain, Socket, Type};
use tests::{
    bgp::{
        speaker::{Identity, Session},
        stream::{Table, prefixes},
        wire::{self, Attributes, Prefix},
    },
    routers::{DEADLINE, until},
};

use self::world::{Alive, FEEDER, HOLD_TIME_S, HOSTILE, OURS, PROMPT, STRANGER, World, asn, identity};

mod world;

/// Lines of the log that a flood may cause.
const FLOOD_LINES_MAX: usize = 40;

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
