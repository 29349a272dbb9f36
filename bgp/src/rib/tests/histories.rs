//! Random histories: whatever happened in whatever order, at quiescence the tables hold what the model says, and every
//! peer has heard exactly what it should hold.

use proptest::prelude::*;

use super::{
    harness::{Lab, OWN_AS, OWN_ID, Peer, path},
    model::{Kind, Model, ModelPath},
};
use crate::{
    Asn, PathId, PeerId,
    family::{V4, V6},
    policy::LocalSource,
    rib::{LocalRoute, Resolution, RibConfig, Scope, Standing},
    session::PeerKind,
    wire::attributes::{Builder, Origin, code},
};

const PREFIXES: u8 = 12;

/// One step of a history.
#[derive(Clone, Copy, Debug)]
enum Event {
    Announce { peer: u8, prefix: u8, kind: u8 },
    Withdraw { peer: u8, prefix: u8, kind: u8 },
    Up(u8),
    Down { peer: u8, retain: bool },
    EndOfRib(u8),
    LongLived(u8),
    Originate(u8),
    WithdrawLocal(u8),
    NextHop { peer: u8, state: u8 },
    Client { peer: u8, client: bool },
    Refresh(u8),
    Run(u8),
    Flush,
    Check,
    Poll { peer: u8, octets: u16 },
}

fn event() -> impl Strategy<Value = Event> {
    let peer = || 0..10_u8;
    let prefix = || 0..PREFIXES;
    prop_oneof![
        12 => (peer(), prefix(), 0..24_u8).prop_map(|(peer, prefix, kind)| Event::Announce { peer, prefix, kind }),
        5 => (peer(), prefix(), 0..24_u8).prop_map(|(peer, prefix, kind)| Event::Withdraw { peer, prefix, kind }),
        2 => peer().prop_map(Event::Up),
        1 => (peer(), any::<bool>()).prop_map(|(peer, retain)| Event::Down { peer, retain }),
        1 => peer().prop_map(Event::EndOfRib),
        1 => peer().prop_map(Event::LongLived),
        1 => prefix().prop_map(Event::Originate),
        1 => prefix().prop_map(Event::WithdrawLocal),
        1 => (peer(), 0..4_u8).prop_map(|(peer, state)| Event::NextHop { peer, state }),
        1 => (3..10_u8, any::<bool>()).prop_map(|(peer, client)| Event::Client { peer, client }),
        1 => peer().prop_map(Event::Refresh),
        6 => (1..30_u8).prop_map(Event::Run),
        4 => Just(Event::Flush),
        1 => Just(Event::Check),
        8 => (peer(), 1..600_u16).prop_map(|(peer, octets)| Event::Poll { peer, octets }),
    ]
}

/// Three external peers of one group, two of them of one AS; three internal ones, two of them clients; two that hear all
/// paths and one that hears the best two; one with two-octet AS numbers.
fn peers() -> Vec<Peer> {
    let mut narrow = Peer::new(8, PeerKind::External).knows_llgr();
    narrow.negotiated.asn4 = false;
    vec![
        Peer::of_as(0, PeerKind::External, Asn(64_600)),
        Peer::of_as(1, PeerKind::External, Asn(64_601)),
        Peer::of_as(2, PeerKind::External, Asn(64_600)).knows_llgr(),
        Peer::new(3, PeerKind::Internal).client().knows_llgr(),
        Peer::new(4, PeerKind::Internal).knows_llgr(),
        Peer::new(5, PeerKind::Internal).client().knows_llgr(),
        Peer::new(6, PeerKind::External).hears_several(0).knows_llgr(),
        Peer::new(7, PeerKind::External).hears_several(2),
        narrow,
        Peer::new(9, PeerKind::External).hears_several(0).knows_llgr(),
    ]
}

/// Attributes of one of a few kinds, and a path identifier for peers that send several.
fn attributes(peer: &Peer, kind: u8) -> (Builder, PathId) {
    let external = peer.negotiated.kind == PeerKind::External;
    let mut numbers = if external { vec![peer.negotiated.remote_as.0] } else { vec![] };
    numbers.extend([300, 400_000].iter().take(usize::from(kind % 3)));
    if kind == 23 {
        numbers.push(OWN_AS.0);
    }
    let mut builder = path(&numbers);
    match kind % 8 {
        1 => builder.number(code::MED, 5),
        2 => builder.number(code::MED, 7),
        3 => builder.origin(Origin::Egp),
        4 => builder.communities([0xffff_ff01, 70]),
        5 => builder.communities([0xffff_ff02]),
        _ => &mut builder,
    };
    if !external {
        builder.number(code::LOCAL_PREF, if kind.is_multiple_of(5) { 120 } else { 100 });
        if kind == 22 {
            builder.set(code::CLUSTER_LIST, OWN_ID.0.to_be_bytes().to_vec());
        } else if kind == 21 {
            builder.number(code::ORIGINATOR_ID, 103).set(code::CLUSTER_LIST, vec![0, 0, 0, 9]);
        }
    }
    (builder, PathId(u32::from(kind % 2)))
}

struct History<P> {
    lab: Lab,
    model: Model<P>,
}

impl<P: Kind> History<P> {
    fn new() -> Self {
        let config = RibConfig::new(OWN_AS, OWN_ID, 5);
        let mut history = Self { lab: Lab::with(config, peers()), model: Model::new() };
        for number in 0..5 {
            history.lab.session_up(number);
        }
        history.resolve();
        history
    }

    /// Answers for next hops nobody has spoken about.
    fn resolve(&mut self) {
        let unknown: Vec<_> =
            self.lab.rib.next_hops_to_track().filter(|entry| entry.resolution == Resolution::Unknown).collect();
        for entry in unknown {
            let metric = self.model.metrics.get(&entry.next_hop).copied().unwrap_or(10);
            let resolution = match self.model.unreachable.contains(&entry.next_hop) {
                true => Resolution::Unreachable,
                false => Resolution::Reachable { metric },
            };
            self.lab.rib.set_next_hop(entry.next_hop, entry.scope, resolution);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Announce { peer, prefix, kind } => self.announce(usize::from(peer), prefix, kind),
            Event::Withdraw { peer, prefix: number, kind } => {
                let sender = &self.lab.peers[usize::from(peer)];
                let (id, path_id) = (sender.id, attributes(sender, kind).1);
                if sender.is_up {
                    self.lab.rib.withdraw(id, [(path_id, P::numbered(number))]);
                    self.model.retain_but(P::numbered(number), id, path_id);
                }
            }
            Event::Up(peer) if !self.lab.peers[usize::from(peer)].is_up => self.lab.session_up(usize::from(peer)),
            Event::Up(_) => {}
            Event::Down { peer, retain } => self.down(usize::from(peer), retain),
            Event::EndOfRib(peer) => {
                let id = self.lab.peers[usize::from(peer)].id;
                self.lab.rib.end_of_rib(id, P::FAMILY);
                self.model.retain(|sender, path| sender != id || !path.stale);
            }
            Event::LongLived(peer) => {
                let id = self.lab.peers[usize::from(peer)].id;
                self.lab.rib.mark_long_lived_stale(id, P::FAMILY);
                // Walks are carried out before anything else of the peer.
                while self.lab.rib.run(10) {}
                self.model.mark(id, |path| path.long_lived |= path.stale);
            }
            Event::Originate(number) => self.originate(P::numbered(number)),
            Event::WithdrawLocal(number) => {
                self.lab.rib.withdraw_local(P::numbered(number), LocalSource::Static);
                self.model.retain_but(P::numbered(number), PeerId::LOCAL, PathId(LocalSource::Static as u32));
            }
            Event::NextHop { peer, state } => self.next_hop(u16::from(peer), state),
            Event::Client { peer, client } => {
                self.lab.change_settings(usize::from(peer), |settings| settings.reflector_client = client);
            }
            Event::Refresh(peer) => {
                let id = self.lab.peers[usize::from(peer)].id;
                self.lab.rib.refresh_requested(id, P::FAMILY);
            }
            Event::Run(budget) => {
                self.resolve();
                self.lab.rib.run(usize::from(budget));
            }
            Event::Check => self.check(),
            Event::Flush => self.lab.rib.flush_exports(),
            Event::Poll { peer, octets } => {
                self.lab.poll(usize::from(peer), usize::from(octets));
            }
        }
    }

    fn announce(&mut self, peer: usize, number: u8, kind: u8) {
        let sender = &self.lab.peers[peer];
        if !sender.is_up {
            return;
        }
        let (attributes, path_id) = attributes(sender, kind);
        let via = P::next_hop(sender.id.0);
        let id = sender.id;
        self.lab.announce_via(peer, P::numbered(number), path_id, &attributes, via);
        let path = ModelPath { attributes: attributes.build(), next_hop: via, stale: false, long_lived: false };
        self.model.paths.entry(P::numbered(number)).or_default().insert((id, path_id), path);
    }

    fn down(&mut self, peer: usize, retain: bool) {
        if !self.lab.peers[peer].is_up {
            return;
        }
        let id = self.lab.peers[peer].id;
        self.lab.session_down(peer, retain);
        self.model.retain(|sender, path| sender != id || retain && (!path.stale || path.long_lived));
        self.model.mark(id, |path| path.stale = true);
    }

    fn originate(&mut self, prefix: P) {
        let attributes = path(&[]).number(code::MED, 3).build();
        let route = LocalRoute { source: LocalSource::Static, attributes: attributes.clone(), next_hop: None };
        self.lab.rib.originate(prefix, &route, self.lab.now);
        let path = ModelPath { attributes, next_hop: P::next_hop(9_999), stale: false, long_lived: false };
        let key = (PeerId::LOCAL, PathId(LocalSource::Static as u32));
        self.model.paths.entry(prefix).or_default().insert(key, path);
    }

    fn next_hop(&mut self, peer: u16, state: u8) {
        let via = P::next_hop(peer);
        self.model.unreachable.retain(|other| *other != via);
        self.model.metrics.remove(&via);
        let resolution = match state {
            0 => Resolution::Unreachable,
            metric => Resolution::Reachable { metric: 10 + u32::from(metric) },
        };
        match resolution {
            Resolution::Reachable { metric } => drop(self.model.metrics.insert(via, metric)),
            Resolution::Unknown | Resolution::Unreachable => self.model.unreachable.push(via),
        }
        self.lab.rib.set_next_hop(via, Scope::default(), resolution);
    }

    fn check(&mut self) {
        self.lab.decide();
        self.resolve();
        self.lab.settle();
        let Self { lab, model } = self;
        for number in 0..PREFIXES {
            let views = lab.rib.explain(P::numbered(number));
            let best = model.best(&lab.peers, P::numbered(number));
            let selected = views.iter().find(|view| view.standing == Standing::Best);
            assert_eq!(
                selected.map(|view| (view.peer, view.path_id)),
                best.as_ref().map(|best| (best.peer, best.path_id)),
                "best path to {}: {views:#?}",
                P::numbered(number)
            );
            let forwarded = best.filter(|best| best.peer != PeerId::LOCAL).map(|best| best.next_hop);
            let in_fib = lab.fib.get(&P::numbered(number).to_net()).and_then(|route| route.next_hops().first());
            let in_fib = in_fib.map(|hop| hop.next_hop);
            assert_eq!(in_fib, forwarded, "forwarding to {}", P::numbered(number));
        }
        for peer in lab.peers.iter().filter(|peer| peer.is_up) {
            check_heard(model, &lab.peers, peer);
            assert_eq!(
                lab.rib.advertised_count::<P>(peer.id) as usize,
                peer.heard.len(),
                "count of what {:?} hears",
                peer.id
            );
            assert_eq!(lab.rib.export_lag(peer.id), 0);
            assert!(peer.ends_of_rib.contains(&P::FAMILY), "{:?} waits for End-of-RIB", peer.id);
        }
        check_counts(lab, model);
    }
}

fn check_heard<P: Kind>(model: &Model<P>, peers: &[Peer], peer: &Peer) {
    let several = peer.negotiated.families.get(P::FAMILY).is_some_and(|family| family.add_path_send);
    for number in 0..PREFIXES {
        let mut wanted: Vec<_> = match (several, *peer.settings.add_path_max.get(P::FAMILY)) {
            (false, _) => model.best(peers, P::numbered(number)).into_iter().collect(),
            (true, 0) => model.candidates(peers, P::numbered(number)),
            (true, max) => model.ranked(peers, P::numbered(number)).into_iter().take(usize::from(max)).collect(),
        }
        .iter()
        .filter_map(|path| model.told(peers, peer, path))
        .collect();
        let net = P::numbered(number).to_net();
        let mut heard: Vec<_> =
            peer.heard.iter().filter(|((prefix, _), _)| *prefix == net).map(|(_, said)| said.clone()).collect();
        wanted.sort();
        heard.sort();
        assert_eq!(heard, wanted, "{net} as {:?} hears it", peer.id);
    }
}

fn check_counts<P: Kind>(lab: &Lab, model: &Model<P>) {
    for peer in &lab.peers {
        let counts = lab.rib.counts(peer.id, P::FAMILY);
        let of = |id: PeerId| id == peer.id;
        let received = model.paths.values().flat_map(|paths| paths.keys()).filter(|(id, _)| of(*id)).count();
        let stale = model.paths.values().flatten().filter(|((id, _), path)| of(*id) && path.stale).count();
        let best = |prefix: &P| model.best(&lab.peers, *prefix).is_some_and(|best| of(best.peer));
        let best = model.paths.keys().filter(|prefix| best(prefix)).count();
        assert_eq!(
            (counts.received as usize, counts.stale as usize, counts.best as usize),
            (received, stale, best),
            "counts of {:?}",
            peer.id
        );
    }
}

impl<P: Kind> Model<P> {
    fn retain_but(&mut self, prefix: P, peer: PeerId, path_id: PathId) {
        if let Some(paths) = self.paths.get_mut(&prefix) {
            paths.remove(&(peer, path_id));
        }
        self.paths.retain(|_, paths| !paths.is_empty());
    }

    /// All candidates, each the best of those after it.
    fn ranked(&self, peers: &[Peer], prefix: P) -> Vec<super::model::Candidate> {
        let mut rest = self.clone();
        let mut ranked = Vec::new();
        while let Some(best) = rest.best(peers, prefix) {
            rest.retain_but(prefix, best.peer, best.path_id);
            ranked.push(best);
        }
        ranked
    }
}

/// Lets all of it happen and looks at the end.
fn carry_out<P: Kind>(events: Vec<Event>) {
    let mut history = History::<P>::new();
    for event in events {
        history.step(event);
    }
    history.check();
    for number in 0..PREFIXES {
        history.lab.rib.withdraw_local(P::numbered(number), LocalSource::Static);
    }
    history.lab.assert_leaves_nothing();
}

proptest! {
    #[test]
    fn every_peer_holds_what_it_should(events in prop::collection::vec(event(), 1..250)) {
        carry_out::<V4>(events);
    }

    #[test]
    fn every_peer_holds_what_it_should_of_ipv6(events in prop::collection::vec(event(), 1..250)) {
        carry_out::<V6>(events);
    }
}
