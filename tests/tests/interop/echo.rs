//! BFD's echo function: our packets come back through the forwarding plane of FRR's node, or they do not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use meshd::speaker::bfd::{Diagnostic, EchoState, Hops, Interval, SessionStatus, Settings, State};
use serde_json::Value;
use tests::routers::{Blueprint, DEADLINE, FABRIC, Network, Router, until};

use super::{
    bfd::{DETECTION_MAX, Ours, cut, mend, settings},
    configurations::{configuration, counter},
};

/// Says how often it bears echo packets, which its kernel forwards.
const BFDD: &str = "
bfd
 profile loops
  receive-interval 50
  transmit-interval 50
  detect-multiplier 3
  echo receive-interval 40
 !
 peer 192.0.2.1 interface eth0
  profile loops
 peer fd00::1 local-address fd00::2 interface eth0
  profile loops
";

/// Three echoes of 40 ms leave the machine 40 ms of what is allowed: the median of so many cuts counts.
const CUTS: usize = 3;

fn forward(blueprint: Blueprint) -> Blueprint {
    blueprint
        .run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")
        .run("sysctl -qw net.ipv6.conf.all.forwarding=1")
}

/// The session, once its echo function does this.
fn wait_echo(ours: &Ours, id: u64, state: EchoState) -> SessionStatus {
    until(&format!("echo of session {id} to be {state:?}"), DEADLINE, || {
        let session = ours.session(id)?;
        ensure!(session.state == State::Up && session.echo.state == state, "{session:?}");
        Ok(session)
    })
    .unwrap()
}

#[test]
fn echo_packets_come_back_and_their_absence_is_noticed() {
    tests::need_root();
    let frr = forward(Blueprint::frr("ours-not", "").bfdd(BFDD)).address("192.0.2.2/24").address("fd00::2/64");
    let node = Blueprint::plain("ours")
        .address("192.0.2.1/24")
        .address("fd00::1/64")
        .run("ip address add 10.255.1.1/32 dev lo")
        .run("ip address add fd00:255::1/128 dev lo");
    // `cut` takes the second port.
    let network = Network::up(&[node, frr]).unwrap();
    let ours = Ours::start(network.router("ours").unwrap().node());
    let echoing = Settings { min_echo_transmit: Interval::from_millis(30), ..settings() };
    let ends = [(2, "192.0.2.1", "192.0.2.2", "10.255.1.1"), (3, "fd00::1", "fd00::2", "fd00:255::1")];
    for (id, local, remote, source) in ends {
        ours.add_with(id, local, remote, Hops::Single, echoing.clone());
        let session = wait_echo(&ours, id, EchoState::Active);
        assert_eq!(session.echo.interval, Some(Duration::from_millis(40)), "theirs is slower: {session:?}");
        assert_eq!(session.echo.source, Some(source.parse().unwrap()), "{session:?}");
    }
    let mut noticed = [2, 3].map(|id| (id, Vec::new()));
    let lost = |session: &SessionStatus| session.echoes_sent - session.echoes_received;
    let mut lost_to_cuts = [0; 2];
    for _ in 0..CUTS {
        for (id, _) in &noticed {
            wait_echo(&ours, *id, EchoState::Active);
            // The other side sends control packets once a second now, so that it is not them that notice.
            until("slow control packets", DEADLINE, || {
                let session = ours.session(*id)?;
                ensure!(session.detection_time == Some(Duration::from_secs(3)), "{session:?}");
                ensure!(session.echoes_received > 10, "{session:?}");
                Ok(())
            })
            .unwrap();
        }
        let before = [2, 3].map(|id| ours.session(id).unwrap());
        let cut_at = cut(&network);
        for (id, noticed) in &mut noticed {
            let (after, event) = ours.wait_failure(*id, cut_at);
            println!("session {id}: the cut was noticed by echo packets after {after:?}");
            noticed.push(after);
            assert_eq!((event.state, event.diagnostic), (State::Down, Diagnostic::EchoFailed));
        }
        for (session, lost_to_cuts) in before.iter().zip(lost_to_cuts) {
            assert!(lost(session) - lost_to_cuts <= 2, "{session:?}");
        }
        lost_to_cuts = [2, 3].map(|id| lost(&ours.session(id).unwrap()));
        mend(&network);
    }
    for (id, mut noticed) in noticed {
        noticed.sort_unstable();
        assert!(noticed[CUTS / 2] < DETECTION_MAX, "session {id}: {noticed:?}");
        wait_echo(&ours, id, EchoState::Active);
    }
    for name in ["IcmpInRedirects", "Icmp6InRedirects"] {
        assert_eq!(counter(&network.router("ours").unwrap(), name).unwrap(), 0, "{name}");
    }

    // It no longer forwards: that is a failure once, and from then on a permission that nothing stands behind.
    let frr = network.router("ours-not").unwrap();
    let since = Instant::now();
    frr.run(&["sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"]).unwrap();
    for id in [2, 3] {
        let (_, event) = ours.wait_failure(id, since);
        assert_eq!(event.diagnostic, Diagnostic::EchoFailed, "{event:?}");
        let session = wait_echo(&ours, id, EchoState::Unanswered);
        until("control packets that count", DEADLINE, || {
            let session = ours.session(id)?;
            ensure!(session.detection_time == Some(Duration::from_millis(150)), "{session:?}");
            ensure!(session.echoes_sent > 2, "{session:?}");
            Ok(())
        })
        .unwrap();
        assert_eq!(ours.session(id).unwrap().failures, session.failures);
    }
    drop(ours);
    network.down().unwrap();
}

#[test]
fn without_an_address_to_come_from_nothing_is_sent_until_there_is_one() {
    tests::need_root();
    let frr = forward(Blueprint::frr("theirs", "").bfdd(BFDD)).address("192.0.2.2/24");
    let network = Network::up(&[Blueprint::plain("ours").address("192.0.2.1/24"), frr]).unwrap();
    let node = network.router("ours").unwrap();
    let ours = Ours::start(node.node());
    let echoing = Settings { min_echo_transmit: Interval::from_millis(50), ..settings() };
    ours.add_with(2, "192.0.2.1", "192.0.2.2", Hops::Single, echoing);
    ours.wait_state(2, State::Up);
    let session = ours.session(2).unwrap();
    let problem = session.echo.problem.as_deref().unwrap_or_default();
    assert!(problem.contains(&format!("outside the subnets of {FABRIC}")), "{session:?}");
    assert_eq!((session.echo.state, session.echoes_sent), (EchoState::Off, 0), "{session:?}");
    node.run(&["ip", "address", "add", "10.255.1.1/32", "dev", "lo"]).unwrap();
    let session = wait_echo(&ours, 2, EchoState::Active);
    assert_eq!((session.echo.problem.as_deref(), session.failures), (None, 0), "{session:?}");
    drop(ours);
    network.down().unwrap();
}

/// Lines of the section `bgp` of ours.
const PEERS: &str = "  peers:
    - address: 192.0.2.2
      remote_as: 65002
      import: [all]
      export: [all]
      bfd: {transmit_ms: 50, receive_ms: 50, multiplier: 3, echo_transmit_ms: 50}
  policies: {all: [{}]}";

const BGPD: &str = "
router bgp 65002
 bgp router-id 192.0.2.2
 no bgp ebgp-requires-policy
 neighbor 192.0.2.10 remote-as 65000
 neighbor 192.0.2.10 timers connect 1
 neighbor 192.0.2.10 bfd
 neighbor 192.0.2.10 bfd profile loops
";

fn wait_told(ours: &Router, words: &str) -> Value {
    ours.wait(words, || {
        let said = ours.run(&["meshd", "bgp", "neighbors", "-o", "json"])?;
        let neighbors: Value = serde_json::from_str(&said)?;
        let neighbor = neighbors.get(0).cloned().context("no neighbor")?;
        ensure!(neighbor["bfd_echo"].as_str().is_some_and(|told| told.contains(words)), "{neighbor}");
        Ok(neighbor)
    })
    .unwrap()
}

#[test]
fn operators_see_what_echo_packets_do() {
    tests::need_root();
    let (profile, _) = BFDD.split_once(" peer").unwrap();
    let frr = forward(Blueprint::frr("theirs", BGPD).bfdd(profile)).address("192.0.2.2/24");
    let text = configuration("name: ours, addresses: [10.255.1.1]", 65_000, PEERS);
    let node = Blueprint::meshd("ours", &text).address("192.0.2.10/24").run("ip address add 10.255.1.1/32 dev lo");
    let network = Network::up(&[frr, node]).unwrap();
    let (ours, frr) = (network.router("ours").unwrap(), network.router("theirs").unwrap());
    wait_told(&ours, "active, every 50ms from 10.255.1.1");
    let page = ours.run(&["meshd", "bgp", "neighbors"]).unwrap();
    assert!(page.contains("BFD echo:") && page.contains("active, every 50ms"), "{page}");
    let profile = ["vtysh", "-c", "conf t", "-c", "bfd", "-c", "profile loops", "-c", "echo receive-interval disabled"];
    frr.run(&profile).unwrap();
    let neighbor = wait_told(&ours, "the peer does not permit them");
    assert_eq!((&neighbor["bfd"], &neighbor["established_count"]), (&"up".into(), &1.into()), "{neighbor}");
    network.down().unwrap();
}
