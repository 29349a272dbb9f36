//! Two speakers with a wire of octets between them.

mod overlap;

use std::collections::BTreeMap;

use super::*;
use crate::{
    family::{Prefix as _, V4},
    id::{Asn, RouterId},
    policy::{LocalSource, Policy},
    rib::{LocalRoute, PeerSettings},
    session::{RemoteAs, SessionConfig},
    wire::attributes::{Builder, Origin, code},
};

/// One side.
struct Node {
    speaker: Speaker,
    peer: PeerId,
    address: std::net::IpAddr,
    /// Octets on their way to this side, by place of the other side's connection.
    inbox: BTreeMap<Slot, Vec<u8>>,
    messages: Vec<Mirrored>,
    /// What a watcher was told.
    seen: Vec<u8>,
}

fn node(asn: u32, other: u32, number: u8) -> Node {
    let router_id = RouterId(u32::from(number));
    let mut config = RibConfig::new(Asn(asn), router_id, u64::from(number));
    config.next_hop_tracking = false;
    let mut speaker = Speaker::new(config, LocalRestart::default(), u64::from(number));
    let mut session = SessionConfig::new(Asn(asn), RemoteAs::Number(Asn(other)), router_id);
    session.passive = number == 2;
    let address: std::net::IpAddr = format!("192.0.2.{number}").parse().expect("an address");
    let other: std::net::IpAddr = format!("192.0.2.{}", 3 - number).parse().expect("an address");
    let all = Policy::accept_all();
    let tables = PeerSettings::new(other, all.clone(), all);
    let config = PeerConfig { session, tables, refuse_as_sets: false };
    let peer = speaker.add_peer(Moment(0), config).expect("there is room");
    Node { speaker, peer, address, inbox: BTreeMap::new(), messages: Vec::new(), seen: Vec::new() }
}

impl Node {
    fn endpoints(&self) -> Endpoints {
        let own_next_hops = PerFamily { ipv4: Some(NextHop::from(self.address)), ipv6: None };
        Endpoints { own_next_hops, extended_next_hop: None }
    }
}

/// Lets both do what is to be done until nothing is.
fn run(now: Moment, left: &mut Node, right: &mut Node) {
    for _ in 0..1_000 {
        let mut quiet = true;
        for side in 0..2 {
            let (me, other) = if side == 0 { (&mut *left, &mut *right) } else { (&mut *right, &mut *left) };
            me.speaker.work(now, 100, true);
            for command in me.speaker.take_commands().collect::<Vec<_>>() {
                quiet = false;
                match command {
                    Command::Connect(id, slot) => {
                        let endpoints = other.endpoints();
                        match other.speaker.accept(now, other.peer, endpoints) {
                            Some(_) => {
                                let endpoints = me.endpoints();
                                me.speaker.connected(now, id, slot, endpoints);
                            }
                            None => me.speaker.closed(now, id, slot, "refused"),
                        }
                    }
                    Command::Write(id, slot) => {
                        let mut out = Vec::new();
                        while me.speaker.send(now, id, slot, &mut out, 4_096) {}
                        other.inbox.entry(slot).or_default().extend(out);
                    }
                    Command::Close(_, slot, last) => other.inbox.entry(slot).or_default().extend(last),
                    Command::Message(message) => me.messages.push(*message),
                    Command::Watched(id) => while me.speaker.watched(id, &mut me.seen, 4_096) {},
                    Command::Fact(..)
                    | Command::Up(..)
                    | Command::Down(_)
                    | Command::NearLimit(..)
                    | Command::WatchPath(..)
                    | Command::WatcherLost(_) => {}
                }
            }
            for (slot, octets) in std::mem::take(&mut me.inbox) {
                quiet &= octets.is_empty();
                let used = me.speaker.receive(now, me.peer, slot, &octets);
                assert_eq!(used, octets.len(), "whole messages were sent");
            }
        }
        if quiet {
            return;
        }
    }
    panic!("the speakers never come to rest");
}

fn prefix(text: &str) -> V4 {
    V4::from_net(&text.parse().expect("a prefix")).expect("IPv4")
}

#[test]
fn a_path_goes_from_one_speaker_to_the_other_and_back_out_again() {
    let (mut left, mut right) = (node(65_001, 65_002, 1), node(65_002, 65_001, 2));
    run(Moment(1), &mut left, &mut right);
    assert_eq!((left.speaker.established(), right.speaker.established()), (1, 1));
    assert!(left.speaker.is_complete(Moment(2)) && right.speaker.is_complete(Moment(2)), "End-of-RIB came");

    let attributes = Builder::new().origin(Origin::Igp).number(code::MED, 7).set(code::AS_PATH, Vec::new()).build();
    let route = LocalRoute { source: LocalSource::Static, attributes, next_hop: None };
    left.speaker.rib_mut().originate(prefix("10.0.0.0/24"), &route, Moment(3));
    run(Moment(4), &mut left, &mut right);
    let changes = right.speaker.take_fib_changes(10);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].prefix.to_string(), "10.0.0.0/24");
    let hops = changes[0].route.as_ref().expect("a route").next_hops();
    assert_eq!(hops[0].next_hop.to_string(), "192.0.2.1");

    left.speaker.rib_mut().withdraw_local(prefix("10.0.0.0/24"), LocalSource::Static);
    run(Moment(5), &mut left, &mut right);
    let changes = right.speaker.take_fib_changes(10);
    assert_eq!((changes.len(), changes[0].route.is_none()), (1, true));
}

#[test]
fn a_restarted_speaker_selects_nothing_before_its_peers_have_told_all() {
    let (mut left, mut right) = (node(65_001, 65_002, 1), node(65_002, 65_001, 2));
    let attributes = Builder::new().origin(Origin::Igp).set(code::AS_PATH, Vec::new()).build();
    let route = LocalRoute { source: LocalSource::Static, attributes, next_hop: None };
    left.speaker.rib_mut().originate(prefix("10.0.0.0/24"), &route, Moment(0));
    right.speaker.begin_restart(Moment(0), Duration::from_secs(100), |_| true);
    right.speaker.work(Moment(0), 100, true);
    assert!(!right.speaker.is_complete(Moment(1)));
    assert_eq!(right.speaker.next_deadline().map(|at| at <= Moment(100_000_000)), Some(true));
    run(Moment(1), &mut left, &mut right);
    run(Moment(2), &mut left, &mut right);
    assert!(right.speaker.is_complete(Moment(3)), "End-of-RIB of the only peer came");
    assert_eq!(right.speaker.take_fib_changes(10).len(), 1);
}

/// Its peers drop what they kept of it when they hear that this was all, also when it has nothing to tell.
#[test]
fn a_restarted_speaker_that_has_nothing_to_tell_says_so() {
    let (mut left, mut right) = (node(65_001, 65_002, 1), node(65_002, 65_001, 2));
    right.speaker.begin_restart(Moment(0), Duration::from_secs(100), |_| true);
    run(Moment(1), &mut left, &mut right);
    assert!(!right.speaker.is_restarting());
    assert!(left.speaker.is_complete(Moment(2)), "End-of-RIB came");
}

/// What no input and no decision leads to has to wake the writers by itself.
#[test]
fn another_configuration_another_address_and_a_soft_reset_are_told_at_once() {
    let (mut left, mut right) = (node(65_001, 65_002, 1), node(65_002, 65_001, 2));
    let attributes = Builder::new().origin(Origin::Igp).set(code::AS_PATH, Vec::new()).build();
    let route = LocalRoute { source: LocalSource::Static, attributes, next_hop: None };
    left.speaker.rib_mut().originate(prefix("10.0.0.0/24"), &route, Moment(0));
    run(Moment(1), &mut left, &mut right);
    run(Moment(2), &mut left, &mut right);
    let updates = |node: &Node| node.speaker.session(node.peer).map(|session| session.history().sent().update);

    let before = updates(&left);
    let all = Policy::accept_all();
    let mut tables = PeerSettings::new(right.address, all.clone(), all);
    tables.graceful_shutdown = true;
    let session = left.speaker.session(left.peer).expect("a session").config().clone();
    left.speaker.configure_peer(Moment(3), left.peer, PeerConfig { session, tables, refuse_as_sets: false });
    run(Moment(3), &mut left, &mut right);
    assert!(updates(&left) > before, "the community of graceful shutdown");

    right.speaker.take_fib_changes(10);
    let slot = left.speaker.session(left.peer).and_then(Session::established_slot).expect("a connection");
    left.address = "192.0.2.77".parse().expect("an address");
    left.speaker.set_endpoints(left.peer, slot, left.endpoints());
    run(Moment(4), &mut left, &mut right);
    let changes = right.speaker.take_fib_changes(10);
    let hops = changes[0].route.as_ref().expect("a route").next_hops();
    assert_eq!(hops[0].next_hop.to_string(), "192.0.2.77");

    let before = updates(&left);
    left.speaker.resend(left.peer, Family::Ipv4Unicast);
    run(Moment(5), &mut left, &mut right);
    assert!(updates(&left) > before, "everything again");
}

#[test]
fn what_goes_by_and_what_is_selected_can_be_watched() {
    let (mut left, mut right) = (node(65_001, 65_002, 1), node(65_002, 65_001, 2));
    right.speaker.mirror(true);
    let watcher = right.speaker.watch().expect("there is room");
    run(Moment(1), &mut left, &mut right);
    let mut attributes = Builder::new();
    attributes.origin(Origin::Igp).set(code::AS_PATH, Vec::new());
    let route = LocalRoute { source: LocalSource::Static, attributes: attributes.build(), next_hop: None };
    left.speaker.rib_mut().originate(prefix("10.0.0.0/24"), &route, Moment(3));
    attributes.number(code::MED, 7).communities([0xffff_ff02]);
    let route = LocalRoute { attributes: attributes.build(), ..route };
    right.speaker.rib_mut().originate(prefix("10.9.0.0/24"), &route, Moment(3));
    run(Moment(4), &mut left, &mut right);
    let kinds: Vec<(Direction, u8)> = right.messages.iter().map(|it| (it.direction, it.octets[18])).collect();
    assert_eq!(kinds.iter().filter(|it| **it == (Direction::Received, 1)).count(), 1, "OPEN: {kinds:?}");
    assert_eq!(kinds.iter().filter(|it| **it == (Direction::Sent, 1)).count(), 1, "OPEN: {kinds:?}");
    let has = |seen: &[u8], octets: &[u8]| seen.windows(octets.len()).any(|window| window == octets);
    let with_prefix = |message: &&Mirrored| has(&message.octets, &[24, 10, 0, 0]);
    let received: Vec<&Mirrored> = right.messages.iter().filter(with_prefix).collect();
    assert!(matches!(received.as_slice(), [one] if one.direction == Direction::Received && one.peer == right.peer));
    // Also what no peer is told, as it is: its community, its MED, no AS of ours in front.
    assert!(has(&right.seen, &[24, 10, 0, 0]) && has(&right.seen, &[24, 10, 9, 0]), "{:?}", right.seen);
    assert!(has(&right.seen, &[0xff, 0xff, 0xff, 0x02]) && has(&right.seen, &[0x80, code::MED, 4, 0, 0, 0, 7]));
    assert!(!with_prefix(&&Mirrored { octets: left.seen.clone(), ..received[0].clone() }));

    right.seen.clear();
    right.speaker.rib_mut().withdraw_local(prefix("10.9.0.0/24"), LocalSource::Static);
    run(Moment(5), &mut left, &mut right);
    assert!(has(&right.seen, &[24, 10, 9, 0]), "the withdrawal");
    right.speaker.unwatch(watcher);
    right.speaker.mirror(false);
    (right.seen, right.messages) = (Vec::new(), Vec::new());
    left.speaker.rib_mut().withdraw_local(prefix("10.0.0.0/24"), LocalSource::Static);
    run(Moment(6), &mut left, &mut right);
    assert!(right.seen.is_empty() && right.messages.is_empty());
}

/// A peer that was away before the restart holds no paths of ours, and a dead one must not hold up everybody else's.
#[test]
fn a_restarted_speaker_waits_only_for_peers_that_had_a_session() {
    let second = |seconds: u64| Moment(seconds * 1_000_000);
    let (mut left, mut right) = (node(65_001, 65_002, 1), node(65_002, 65_001, 2));
    let mut dead = right.speaker.session(right.peer).expect("a session").config().clone();
    dead.remote_as = RemoteAs::Number(Asn(65_003));
    let all = Policy::accept_all();
    let tables = PeerSettings::new("192.0.2.3".parse().expect("an address"), all.clone(), all);
    let config = PeerConfig { session: dead, tables, refuse_as_sets: false };
    let dead = right.speaker.add_peer(Moment(0), config).expect("there is room");
    right.speaker.begin_restart(Moment(0), Duration::from_secs(100), |id| id != dead);
    right.speaker.work(Moment(0), 100, true);
    assert!(right.speaker.is_restarting());
    let attributes = Builder::new().origin(Origin::Igp).set(code::AS_PATH, Vec::new()).build();
    let route = LocalRoute { source: LocalSource::Static, attributes, next_hop: None };
    left.speaker.rib_mut().originate(prefix("10.0.0.0/24"), &route, Moment(0));
    run(second(1), &mut left, &mut right);
    run(second(2), &mut left, &mut right);
    assert!(!right.speaker.is_restarting());
    assert_eq!(right.speaker.take_fib_changes(10).len(), 1, "the path of the peer that is there is chosen");
    assert!(!right.speaker.is_complete(second(9)), "the other one may still come");
    assert!(right.speaker.is_complete(second(10)), "but not for ever: what is not wanted any more has to go");
}

/// RFC 7606: what was only discarded from an UPDATE did not withdraw anything (statistic 11 of RFC 7854 counts what did).
#[test]
fn updates_treated_as_withdraw_are_counted_apart() {
    let (mut left, mut right) = (node(65_001, 65_002, 1), node(65_002, 65_001, 2));
    run(Moment(1), &mut left, &mut right);
    let slot = right.speaker.session(right.peer).and_then(Session::established_slot).expect("a connection");
    let path = [0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9, 0x40, 3, 4, 192, 0, 2, 1];
    let mut receive = |extra: &[u8]| {
        let attributes = [extra, &path].concat();
        let mut message = vec![0xff; 16];
        let octets = |length: usize| u16::try_from(length).expect("a short one").to_be_bytes();
        message.extend(octets(23 + attributes.len() + 4));
        message.extend([2, 0, 0]);
        message.extend(octets(attributes.len()));
        message.extend(attributes);
        message.extend([24, 10, 0, 7]);
        assert_eq!(right.speaker.receive(Moment(2), right.peer, slot, &message), message.len());
        let status = right.speaker.status(right.peer).expect("a peer");
        let received = right.speaker.rib().counts(right.peer, Family::Ipv4Unicast).received;
        (status.malformed_updates, status.updates_treated_as_withdraw, received)
    };
    assert_eq!(receive(&[0x40, 1, 1, 0]), (0, 0, 1));
    // ATOMIC_AGGREGATE has no value: it is discarded, and the path stays.
    assert_eq!(receive(&[0x40, 1, 1, 0, 0x40, 6, 1, 0]), (1, 0, 1));
    // There is no such ORIGIN: the path goes.
    assert_eq!(receive(&[0x40, 1, 1, 7]), (2, 1, 0));
}
