//! How much the hot ways of this crate allocate.
//!
//! A test binary of its own, because the allocator of a process is one, and because counting needs `unsafe`, which the
//! crate itself forbids.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::Ipv4Addr,
    sync::Arc,
};

use bgp::{
    Asn, Moment, NextHop, PathId, PeerId, PerFamily, Prefix, RouterId,
    family::V4,
    policy::{
        Action, AsPathList, Candidate, Community, Decision, End, GuardSettings, ImportGuard, LocalSource, Match,
        NumberEdit, Outcome, Policy, PrefixList, Rule, RuleSet, Source, Then, Validity, Vrp, Vrps,
    },
    rib::{PeerSettings, Rib, RibConfig},
    session::{Negotiated, NegotiatedFamily, PeerKind},
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Attributes, Builder, LargeCommunity, Origin, code},
        encode::{self, Target},
        header::HEADER_LEN,
        update::{self, Context, FamilyContext},
    },
};

/// Counts what the current thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static OCTETS: Cell<i64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        OCTETS.with(|count| count.set(count.get() + layout.size() as i64));
        // SAFETY: as this function's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        OCTETS.with(|count| count.set(count.get() - layout.size() as i64));
        // SAFETY: as this function's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn allocations_of<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let before = ALLOCATIONS.with(Cell::get);
    let result = run();
    (result, ALLOCATIONS.with(Cell::get) - before)
}

fn candidate<'a>(attributes: &'a [u8], vrps: &'a Vrps) -> Candidate<'a> {
    Candidate {
        prefix: "10.9.0.0/16".parse().expect("a prefix"),
        attributes: Attributes(attributes),
        next_hop: Some(NextHop::V4(Ipv4Addr::new(192, 0, 2, 1))),
        source: Source::Local(LocalSource::Static),
        local_as: Asn(64_512),
        vrps: Some(vrps),
    }
}

/// A rule of every kind of match, none of which holds, and one that accepts what is left.
fn policy(last: Vec<Action>) -> Policy {
    let never = |index: usize, one: Match| {
        let (name, then) = (format!("never-{index}").into(), Then::Reject);
        Rule { name, matches: vec![one], actions: Vec::new(), then }
    };
    let list = |line: &str| Arc::new(PrefixList::new([line.parse().expect("a line")]));
    let paths = ["_65009_", "^65009_", "^6500[3-9]_.*(65002|65001)+$"];
    let entries = paths.map(|text| (text.parse().expect("a pattern"), true)).to_vec();
    let matches = [
        Match::Prefix(list("10.9.0.0/16 ge 17")),
        Match::AnyCommunity(["65009:*", "rt:65009:*", "1:2:*"].map(|text| text.parse().expect("a pattern")).into()),
        Match::AsPath(Arc::new(AsPathList { entries })),
        Match::AsPathLength(9..=20),
        Match::NeighborAs([1..=9].into()),
        Match::OriginAs([1..=9].into()),
        Match::NextHop(list("198.51.100.0/24 le 32")),
        Match::Med(1..=9),
        Match::Rpki(vec![Validity::Invalid]),
        Match::Not(Box::new(Match::Any(vec![Match::LocalPref(100..=100)]))),
    ];
    let mut rules: Vec<Rule> = matches.into_iter().enumerate().map(|(index, one)| never(index, one)).collect();
    rules.push(Rule { name: "rest".into(), matches: Vec::new(), actions: last, then: Then::Accept });
    let set = Arc::new(RuleSet { name: "all".into(), rules });
    let guard = ImportGuard::new(["10.0.1.0/24".parse().expect("a prefix")], GuardSettings::default());
    Policy::new(&[set], End::Reject).expect("few rules").with_guard(Arc::new(guard))
}

#[test]
fn a_policy_allocates_only_for_what_it_changes() {
    let mut builder = Builder::new();
    builder.communities([0xfde9_0001]).large_communities([]);
    let numbers = [Asn(65_001), Asn(65_002)];
    builder.set(code::AS_PATH, write_segments([(SegmentKind::Sequence, numbers.as_slice())]));
    let octets = builder.build();
    let vrps =
        Vrps::new(vec![Vrp { prefix: "10.9.0.0/16".parse().expect("a prefix"), length_max: 16, asn: Asn(65_002) }]);
    let candidate = candidate(&octets, &vrps);

    let accepting = policy(Vec::new());
    let (decision, allocations) = allocations_of(|| accepting.evaluate(&candidate));
    assert_eq!((accepting.rule_name(decision.rule), decision.outcome), ("all/rest", Outcome::Accept));
    assert_eq!(allocations, 0);

    let rejecting = Policy::reject_all();
    let (Decision { outcome, .. }, allocations) = allocations_of(|| rejecting.evaluate(&candidate));
    assert_eq!((outcome, allocations), (Outcome::Reject, 0));

    let community: Community = "65001:7".parse().expect("a community");
    let editing = policy(vec![Action::LocalPref(NumberEdit::Set(200)), Action::AddCommunities([community].into())]);
    let (decision, allocations) = allocations_of(|| editing.evaluate(&candidate));
    assert!(matches!(decision.outcome, Outcome::Edit(_)));
    assert!((1..=8).contains(&allocations), "{allocations}");
}

/// Four-octet numbers and two-octet ones that have to be widened and merged.
#[test]
fn reading_an_update_allocates_nothing_once_the_buffer_has_grown() {
    let family = FamilyContext { enabled: true, ..FamilyContext::default() };
    let path: Vec<Asn> = (0..70).map(|index| Asn(65_000 + index * 1_000)).collect();
    let attributes = Builder::new()
        .origin(Origin::Igp)
        .set(code::AS_PATH, write_segments([(SegmentKind::Sequence, path.as_slice())]))
        .number(code::MED, 7)
        .communities(0..100)
        .large_communities((0..20).map(|local_1| LargeCommunity { global: 1, local_1, local_2: 2 }))
        .set(40, vec![7; 9])
        .build();
    let next_hop = NextHop::V4(Ipv4Addr::new(192, 0, 2, 1));
    for asn4 in [true, false] {
        let context = Context {
            kind: PeerKind::External,
            asn4,
            refuse_as_sets: false,
            families: PerFamily { ipv4: family, ipv6: family },
        };
        let mut message = Vec::new();
        let prefixes = (0..200).map(|index| (PathId(0), V4::from_wire(24, &[10, 0, index]).expect("a prefix")));
        let target = Target { asn4, ..Target::default() };
        encode::announce(&mut message, &target, Attributes(&attributes), next_hop, &mut prefixes.peekable())
            .expect("it fits");
        let body = &message[HEADER_LEN..];
        let mut scratch = Vec::with_capacity(4_096);
        let (count, allocations) = allocations_of(|| {
            let update = update::decode(body, &context, &mut scratch).expect("our own message");
            assert_eq!(update.attributes, attributes);
            update.announcements().flat_map(|announced| announced.nlri.iter::<V4>()).count()
        });
        assert_eq!((count, allocations), (200, 0), "four octets: {asn4}");
    }
}

/// Tables with this many sessions.
fn tables(peers: u16) -> Rib {
    let mut config = RibConfig::new(Asn(65_000), RouterId(1), 7);
    config.next_hop_tracking = false;
    let mut rib = Rib::new(config);
    for peer in 0..peers {
        let (remote_as, router_id) = (Asn(64_600 + u32::from(peer)), RouterId(100 + u32::from(peer)));
        let address = Ipv4Addr::from_bits(0x0a00_0002 + u32::from(peer));
        rib.add_peer(PeerId(peer), PeerSettings::new(address.into(), Policy::accept_all(), Policy::accept_all()));
        let families = PerFamily { ipv4: Some(NegotiatedFamily::default()), ipv6: None };
        let negotiated = Negotiated {
            route_refresh: true,
            ..Negotiated::plain(PeerKind::External, Asn(65_000), remote_as, router_id, families)
        };
        let own = PerFamily { ipv4: Some(NextHop::V4(Ipv4Addr::new(10, 0, 0, 1))), ipv6: None };
        rib.peer_up(PeerId(peer), &negotiated, own);
    }
    rib
}

/// Enters prefixes, ten with each set of attributes.
fn feed(rib: &mut Rib, peer: u16, numbers: std::ops::Range<u32>) {
    let path = write_segments([(SegmentKind::Sequence, [Asn(64_600 + u32::from(peer)), Asn(7)].as_slice())]);
    let via = NextHop::V4(Ipv4Addr::from_bits(0x0a00_0002 + u32::from(peer)));
    for first in numbers.clone().step_by(10) {
        let mut builder = Builder::new();
        builder.origin(Origin::Igp).set(code::AS_PATH, path.clone()).communities([first]);
        let prefix = |number: u32| V4::from_wire(24, &(0x0b_0000 + number).to_be_bytes()[1..]).expect("a prefix");
        let prefixes = (first..numbers.end.min(first + 10)).map(|number| (PathId(0), prefix(number)));
        rib.announce(PeerId(peer), &builder.build(), via, prefixes, Moment(0)).expect("no limit");
    }
}

/// Decides, tells everybody, and lets go of what nobody needs.
fn settle(rib: &mut Rib, peers: u16) {
    let mut out = Vec::new();
    for _ in 0..2 {
        while rib.run(4_096) {}
        while !rib.take_fib_changes(4_096).is_empty() {}
        rib.flush_exports();
        for peer in 0..peers {
            while rib.poll_export(PeerId(peer), &mut out, 65_536) {
                out.clear();
            }
            out.clear();
        }
    }
    while rib.run(4_096) {}
}

#[test]
fn tables_give_back_what_a_peer_that_left_needed() {
    let mut rib = tables(3);
    // Somebody was there before, and stays.
    feed(&mut rib, 0, 0..1_000);
    settle(&mut rib, 3);
    let before = OCTETS.with(Cell::get);
    feed(&mut rib, 1, 1_000..301_000);
    settle(&mut rib, 3);
    let needed = OCTETS.with(Cell::get) - before;
    assert!(needed > 20_000_000, "{needed} octets for three hundred thousand prefixes");
    rib.peer_down(PeerId(1), PerFamily::default());
    settle(&mut rib, 3);
    let totals = rib.totals().families.ipv4;
    assert_eq!((totals.destinations, totals.tombstones), (1_000, 0));
    let kept = OCTETS.with(Cell::get) - before;
    println!("{needed} octets were needed, {kept} are left");
    // Of each array the chunk in which those who stay are.
    assert!(kept < needed / 20, "{kept} of {needed} octets are kept");
}
