//! Many peers with the same prefixes, and one that is told what is best: sixteen streams of octets that the owner of the
//! speaker reads by turns, as the daemon does.

use std::collections::BTreeMap;

use super::*;
use crate::{
    PathId,
    rib::{Resolution, Scope},
    wire::{
        as_path::{SegmentKind, write_segments},
        capability::Capability,
        encode::{Target, announce},
        open::Open,
        update,
    },
};

const SOURCES: u16 = 16;
const PREFIXES: u32 = 10_000;
const OWN_AS: Asn = Asn(65_000);
/// Destinations that the daemon works on between two looks at its connections.
const SLICE: usize = 4_096;

/// Pseudo-random numbers, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A peer, as far as octets go.
struct Remote {
    id: PeerId,
    slot: Slot,
    /// What it sends, and how much of it was read.
    stream: Vec<u8>,
    read: usize,
}

fn prefix_of(number: u32) -> V4 {
    V4::from_wire(24, &(0x0b_0000 + number).to_be_bytes()[1..]).expect("a prefix")
}

fn asn(number: u16) -> Asn {
    Asn(64_600 + u32::from(number))
}

fn next_hop(number: u16) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(0xc000_0200 + u32::from(number))
}

/// The table of a source: the same prefixes in the same order as everybody, in sets of its own.
fn table(source: u16, paths: &mut BTreeMap<V4, Vec<Vec<Asn>>>) -> Vec<u8> {
    let mut numbers = Numbers(0x9e37_79b9 + u64::from(source));
    let mut stream = Vec::new();
    let mut first = 0;
    while first < PREFIXES {
        let end = PREFIXES.min(first + 1 + numbers.below(30) as u32);
        let mut path = vec![asn(source)];
        path.extend((0..2 + numbers.below(5)).map(|_| Asn(100_000 + numbers.below(300_000) as u32)));
        let value = write_segments([(SegmentKind::Sequence, path.as_slice())]);
        let attributes = Builder::new().origin(Origin::Igp).set(code::AS_PATH, value).build();
        let target = Target { asn4: true, ..Target::default() };
        let mut prefixes = (first..end).map(|number| (PathId(0), prefix_of(number))).peekable();
        let attributes = crate::wire::attributes::Attributes(&attributes);
        while prefixes.peek().is_some() {
            announce(&mut stream, &target, attributes, NextHop::V4(next_hop(source)), &mut prefixes)
                .expect("there is room");
        }
        (first..end).for_each(|number| paths.entry(prefix_of(number)).or_default().push(path.clone()));
        first = end;
    }
    stream
}

/// The daemon: reads every connection in turn, works a slice, writes what there is.
struct Driver {
    speaker: Speaker,
    now: Moment,
    sources: Vec<Remote>,
    sink: Remote,
    held: BTreeMap<V4, Vec<Asn>>,
    announced: usize,
}

impl Driver {
    /// Everybody's session is up. `echo` says that the sources are told what is best as well.
    fn new(echo: bool, paths: &mut BTreeMap<V4, Vec<Vec<Asn>>>) -> Self {
        let mut speaker = Speaker::new(RibConfig::new(OWN_AS, RouterId(1), 7), LocalRestart::default(), 7);
        let mut sources: Vec<Remote> = Vec::new();
        for number in 0..=SOURCES {
            let mut remote = connect(&mut speaker, number, echo || number == SOURCES);
            if number < SOURCES {
                remote.stream = table(number, paths);
            }
            sources.push(remote);
        }
        let sink = sources.pop().expect("the last one");
        Self { speaker, now: Moment(0), sources, sink, held: BTreeMap::new(), announced: 0 }
    }

    /// Reads at most so many octets of a source; true when there were any.
    fn read(&mut self, source: usize, octets: usize) -> bool {
        let Remote { id, slot, stream, read } = &mut self.sources[source];
        let chunk = &stream[*read..stream.len().min(*read + octets)];
        let used = self.speaker.receive(self.now, *id, *slot, chunk);
        *read += used;
        // About what it costs.
        self.now = self.now.after(Duration::from_nanos(50 * used as u64));
        used > 0
    }

    fn work(&mut self, idle: bool) -> bool {
        self.speaker.timers(self.now);
        let more = self.speaker.work(self.now, SLICE, idle);
        self.now = self.now.after(Duration::from_millis(3));
        for command in self.speaker.take_commands().collect::<Vec<_>>() {
            match command {
                Command::Write(id, slot) => self.write(id, slot),
                Command::Up(..) | Command::Fact(..) => {}
                other => panic!("nothing else was asked for: {other:?}"),
            }
        }
        more
    }

    fn write(&mut self, id: PeerId, slot: Slot) {
        // The daemon asks again once the kernel has taken what there was, or when it is told to.
        let mut out = Vec::new();
        loop {
            self.speaker.send(self.now, id, slot, &mut out, 64 << 10);
            if out.is_empty() {
                return;
            }
            if id == self.sink.id {
                self.hear(&out);
            }
            out.clear();
        }
    }

    fn hear(&mut self, octets: &[u8]) {
        let context = self.speaker.peers[self.sink.id.index()].as_ref().and_then(|peer| peer.context).expect("up");
        let (mut rest, mut scratch) = (octets, Vec::new());
        while let Some(frame) = crate::wire::header::next_frame(rest, Default::default()).expect("whole messages") {
            rest = frame.rest;
            if frame.header.message_type() != crate::wire::header::MessageType::Update {
                continue;
            }
            let update = update::decode(frame.body, &context, &mut scratch).expect("a good message");
            assert!(update.problems.is_empty());
            let path = crate::wire::attributes::Attributes(update.attributes).as_path();
            for (_, prefix) in update.announcements().flat_map(|announced| announced.nlri.iter::<V4>()) {
                self.announced += 1;
                self.held.insert(prefix, path.numbers().collect());
            }
            assert_eq!(update.withdrawals().count(), 0, "nothing is taken back");
        }
    }

    /// Answers about next hops, as somebody who has looked.
    fn resolve(&mut self) {
        let unknown = |tracked: &crate::rib::TrackedNextHop| tracked.resolution == Resolution::Unknown;
        for tracked in self.speaker.rib().next_hops_to_track().filter(unknown).collect::<Vec<_>>() {
            let resolution = Resolution::Reachable { metric: 5 };
            self.speaker.rib_mut().set_next_hop(tracked.next_hop, Scope::default(), resolution);
        }
    }

    fn settle(&mut self) {
        for _ in 0..1_000 {
            self.resolve();
            if !self.work(true) && !self.speaker.has_waiting_exports() && !self.speaker.has_input() {
                return;
            }
            while !self.speaker.take_fib_changes(1_024).is_empty() {}
        }
        panic!("the speaker never comes to rest");
    }
}

fn connect(speaker: &mut Speaker, number: u16, told: bool) -> Remote {
    let router_id = RouterId(100 + u32::from(number));
    let mut session = SessionConfig::new(OWN_AS, RemoteAs::Number(asn(number)), RouterId(1));
    session.passive = true;
    let export = if told { Policy::accept_all() } else { Policy::reject_all() };
    let tables = PeerSettings::new(next_hop(number).into(), Policy::accept_all(), export);
    let config = PeerConfig { session, tables, refuse_as_sets: false };
    let id = speaker.add_peer(Moment(0), config).expect("there is room");
    let own = NextHop::V4([192, 0, 2, 254].into());
    let endpoints = Endpoints { own_next_hops: PerFamily { ipv4: Some(own), ipv6: None }, extended_next_hop: None };
    let slot = speaker.accept(Moment(0), id, endpoints).expect("it is awaited");
    let capabilities = vec![Capability::Multiprotocol { afi: 1, safi: 1 }, Capability::FourOctetAs(asn(number))];
    let open = Open { asn: asn(number), hold_time_s: 90, router_id, capabilities };
    let mut octets = open.encode().expect("it is short");
    encode::keepalive(&mut octets);
    assert_eq!(speaker.receive(Moment(0), id, slot, &octets), octets.len());
    assert_eq!(speaker.session(id).map(Session::state), Some(State::Established));
    Remote { id, slot, stream: Vec::new(), read: 0 }
}

/// The shortest path, and among those the one from the lowest identifier; as the sink hears it.
fn best(paths: &[Vec<Asn>]) -> Vec<Asn> {
    let best = paths.iter().min_by_key(|path| path.len()).expect("sixteen paths");
    [OWN_AS].into_iter().chain(best.iter().copied()).collect()
}

/// Feeds everything by turns, so many octets at a time; returns how often a prefix was announced to the sink.
fn run(octets: usize, echo: bool) -> f64 {
    let mut paths = BTreeMap::new();
    let mut driver = Driver::new(echo, &mut paths);
    driver.settle();
    let (mut reads, mut round) = (true, 0);
    while reads {
        reads = (0..usize::from(SOURCES)).fold(false, |any, source| driver.read(source, octets) | any);
        driver.work(false);
        round += 1;
        // Next hops are looked up elsewhere: the answer takes its time.
        if round % 3 == 0 {
            driver.resolve();
        }
    }
    driver.settle();
    assert_eq!(driver.held.len(), PREFIXES as usize, "the sink holds all");
    for (prefix, path) in &driver.held {
        assert_eq!(*path, best(&paths[prefix]), "{prefix:?}");
    }
    driver.announced as f64 / f64::from(PREFIXES)
}

#[test]
fn prefixes_of_sixteen_peers_are_announced_one_and_a_half_times_at_most() {
    for octets in [4 << 10, 64 << 10, 256 << 10] {
        for echo in [false, true] {
            let announced = run(octets, echo);
            println!("{octets} octets at a time, echo {echo}: {announced:.2}");
            assert!(announced <= 1.5, "{octets} octets at a time: {announced:.2}");
        }
    }
}

#[test]
fn a_peer_to_which_much_means_nothing_hears_that_this_was_all() {
    let mut speaker = Speaker::new(RibConfig::new(OWN_AS, RouterId(1), 7), LocalRestart::default(), 7);
    speaker.rib_mut().in_small_steps();
    let attributes = Builder::new().origin(Origin::Igp).set(code::AS_PATH, Vec::new()).build();
    let route = LocalRoute { source: LocalSource::Static, attributes, next_hop: None };
    for number in 0..200 {
        speaker.rib_mut().originate(prefix_of(number), &route, Moment(0));
    }
    let remote = connect(&mut speaker, 0, false);
    let mut said = Vec::new();
    for _ in 0..200 {
        speaker.work(Moment(0), SLICE, true);
        for command in speaker.take_commands().collect::<Vec<_>>() {
            if let Command::Write(id, slot) = command {
                speaker.send(Moment(0), id, slot, &mut said, 64 << 10);
            }
        }
    }
    assert!(!speaker.rib().has_exports(remote.id), "all was looked at");
    let mut end = Vec::new();
    encode::end_of_rib(&mut end, Family::Ipv4Unicast);
    assert!(said.ends_with(&end));
}
