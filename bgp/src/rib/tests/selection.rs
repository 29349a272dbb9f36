//! Best path selection through the front door: one row per step, MED in every order, several paths at once.

use std::sync::Arc;

use super::harness::{Lab, OWN_AS, OWN_ID, Peer, next_hop, path, v4};
use crate::{
    Asn, NextHop, PathId, PeerId, Prefix as _,
    policy::{Community, GuardSettings, ImportGuard, LocalSource},
    rib::{
        DecisionOptions, FibTarget, LocalRoute, Resolution, RibConfig, Scope, Standing, Step, decision::link_bandwidth,
    },
    session::PeerKind,
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Builder, LargeCommunity, Origin, code},
    },
};

const PREFIX: &str = "192.0.2.0/24";

fn peers() -> Vec<Peer> {
    use PeerKind::{External, Internal};
    let mut twin = Peer::of_as(4, External, Asn(64_600));
    // The same identifier and AS as peer 0, at another address: a second session with one router.
    twin.negotiated.router_id = crate::RouterId(100);
    vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, Internal), Peer::new(3, Internal), twin]
}

fn standing(lab: &Lab, peer: u16, path_id: u32) -> Standing {
    let views = lab.rib.explain(v4(PREFIX));
    let view = views.iter().find(|view| view.peer == PeerId(peer) && view.path_id == PathId(path_id));
    view.expect("the path is there").standing
}

/// A path from a peer.
fn of(peer: usize, numbers: &[u32], edit: impl Fn(&mut Builder) -> &mut Builder) -> (usize, u32, Builder) {
    let mut builder = path(numbers);
    edit(&mut builder);
    (peer, 0, builder)
}

fn plain(builder: &mut Builder) -> &mut Builder {
    builder
}

fn cluster(builder: &mut Builder) -> &mut Builder {
    builder.number(code::ORIGINATOR_ID, 7).set(code::CLUSTER_LIST, vec![0, 0, 0, 9])
}

fn clusters(builder: &mut Builder) -> &mut Builder {
    builder.number(code::ORIGINATOR_ID, 7).set(code::CLUSTER_LIST, vec![0, 0, 0, 9, 0, 0, 0, 8])
}

#[test]
fn each_step_decides_when_all_before_it_are_equal() {
    let worse_id = |(peer, _, builder): (usize, u32, Builder)| (peer, 1, builder);
    // Step, better path, worse path. Each worse one would win by the steps that follow.
    let rows = [
        (Step::LongLivedStale, of(1, &[64_601, 5], plain), of(0, &[64_600], |b| b.communities([0xffff_0006]))),
        (Step::LocalPref, of(3, &[5, 6], |b| b.number(code::LOCAL_PREF, 200)), of(0, &[64_600], plain)),
        (Step::AsPathLength, of(3, &[5], |b| b.origin(Origin::Egp)), of(0, &[64_600, 5], plain)),
        (Step::Origin, of(3, &[5], |b| b.number(code::MED, 9)), of(0, &[64_600], |b| b.origin(Origin::Egp))),
        (Step::Med, of(3, &[64_600], |b| b.number(code::MED, 1)), of(0, &[64_600], |b| b.number(code::MED, 2))),
        (Step::ExternalFirst, of(1, &[64_601], plain), of(2, &[5], plain)),
        (Step::NextHopMetric, of(3, &[5], plain), of(2, &[5], plain)),
        (Step::RouterId, of(0, &[64_600], plain), of(1, &[64_601], plain)),
        (Step::ClusterListLength, of(2, &[5], cluster), of(2, &[5], clusters)),
        (Step::PeerAddress, of(0, &[64_600], plain), of(4, &[64_600], plain)),
        (Step::PathId, of(0, &[64_600], plain), worse_id(of(0, &[64_600], plain))),
    ];
    for (step, better, worse) in rows {
        for swapped in [false, true] {
            let mut lab = Lab::with(RibConfig::new(OWN_AS, OWN_ID, 1), peers());
            (0..5).for_each(|number| lab.session_up(number));
            let worse = if step == Step::ClusterListLength { (2, 1, worse.2.clone()) } else { worse.clone() };
            let order = if swapped { [&worse, &better] } else { [&better, &worse] };
            for (peer, path_id, builder) in order {
                // Where the metric is not what is looked at, everybody is as near.
                let via = if step == Step::NextHopMetric { *peer as u16 } else { 50 };
                lab.announce_via(*peer, v4(PREFIX), PathId(*path_id), builder, next_hop(via));
            }
            for (via, metric) in [(50, 1), (3, 1), (2, 2)] {
                lab.rib.set_next_hop(next_hop(via), Scope::default(), Resolution::Reachable { metric });
            }
            lab.settle();
            assert_eq!(standing(&lab, better.0 as u16, better.1), Standing::Best, "{step}, swapped: {swapped}");
            assert_eq!(standing(&lab, worse.0 as u16, worse.1), Standing::Lost(step), "swapped: {swapped}");
        }
    }
}

#[test]
fn our_own_path_is_better_than_a_shorter_one_but_not_than_local_pref() {
    let mut lab = Lab::up(peers());
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    let attributes = path(&[1, 2, 3]).build();
    let route = LocalRoute { source: LocalSource::Static, attributes, next_hop: None };
    lab.rib.originate(v4(PREFIX), &route, lab.now);
    lab.settle();
    assert_eq!(standing(&lab, 0, 0), Standing::Lost(Step::LocalOrigin));
    assert!(lab.fib.is_empty(), "what is ours is not forwarded");
    lab.announce(2, v4(PREFIX), path(&[5]).number(code::LOCAL_PREF, 101));
    lab.settle();
    assert_eq!(standing(&lab, 2, 0), Standing::Best);
    lab.rib.withdraw_local(v4(PREFIX), LocalSource::Static);
    lab.assert_leaves_nothing();
}

#[test]
fn the_oldest_external_path_stays_if_asked_for() {
    for prefer_oldest in [false, true] {
        let mut lab = Lab::up(peers());
        lab.rib.set_decision(DecisionOptions { prefer_oldest, ..DecisionOptions::default() });
        lab.announce(1, v4(PREFIX), &path(&[64_601]));
        lab.settle();
        lab.announce(0, v4(PREFIX), &path(&[64_600]));
        lab.settle();
        let (first, second) = (standing(&lab, 1, 0), standing(&lab, 0, 0));
        if prefer_oldest {
            assert_eq!((first, second), (Standing::Best, Standing::Lost(Step::Oldest)));
        } else {
            assert_eq!((first, second), (Standing::Lost(Step::RouterId), Standing::Best));
        }
    }
}

#[test]
fn med_does_not_depend_on_the_order_of_arrival() {
    // The classic: a beats b by identifier, b beats c by metric, c beats a by MED.
    let paths = [(0, vec![64_600], 20_u32, 0), (1, vec![64_601], 0, 1), (4, vec![64_600], 10, 2)];
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mut results = Vec::new();
    for (always, order) in [false, true].into_iter().flat_map(|always| orders.map(|order| (always, order))) {
        let mut lab = Lab::with(RibConfig::new(OWN_AS, OWN_ID, 1), peers());
        lab.rib.set_decision(DecisionOptions { always_compare_med: always, ..DecisionOptions::default() });
        (0..5).for_each(|number| lab.session_up(number));
        for index in order {
            let (peer, numbers, med, metric) = &paths[index];
            let via = next_hop(*peer as u16);
            lab.announce_via(*peer, v4(PREFIX), PathId(0), path(numbers).number(code::MED, *med), via);
            lab.rib.set_next_hop(via, Scope::default(), Resolution::Reachable { metric: *metric });
            lab.settle();
        }
        let all = [0, 1, 4].map(|peer| standing(&lab, peer, 0));
        results.push((always, all));
    }
    let by_group = [Standing::Lost(Step::Med), Standing::Best, Standing::Lost(Step::NextHopMetric)];
    let by_all = [Standing::Lost(Step::Med), Standing::Best, Standing::Lost(Step::Med)];
    for (always, standings) in results {
        assert_eq!(standings, if always { by_all } else { by_group }, "always: {always}");
    }
}

#[test]
fn a_missing_med_is_best_or_worst() {
    for missing_med_is_worst in [false, true] {
        let mut lab = Lab::up(peers());
        lab.rib.set_decision(DecisionOptions { missing_med_is_worst, ..DecisionOptions::default() });
        lab.announce(4, v4(PREFIX), &path(&[64_600]));
        lab.announce(0, v4(PREFIX), path(&[64_600]).number(code::MED, 4));
        lab.settle();
        let best = if missing_med_is_worst { 0 } else { 4 };
        assert_eq!(standing(&lab, best, 0), Standing::Best);
        assert_eq!(standing(&lab, 4 - best, 0), Standing::Lost(Step::Med));
    }
}

#[test]
fn news_of_many_next_hops_is_one_walk() {
    let mut lab = Lab::with(RibConfig::new(OWN_AS, OWN_ID, 1), peers());
    (0..5).for_each(|number| lab.session_up(number));
    for via in 0..100 {
        let prefix = crate::family::V4::from_wire(24, &[10, 0, via]).expect("a prefix");
        lab.announce_via(0, prefix, PathId(0), &path(&[64_600]), next_hop(u16::from(via)));
    }
    lab.settle();
    for via in 0..100 {
        lab.rib.set_next_hop(next_hop(via), Scope::default(), Resolution::Reachable { metric: 1 });
        assert_eq!(lab.rib.tables.ipv4.jobs.len(), 1);
    }
    lab.rib.run(50);
    // Half of the table was walked when this comes.
    lab.rib.set_next_hop(next_hop(1), Scope::default(), Resolution::Unreachable);
    assert_eq!(lab.rib.tables.ipv4.jobs.len(), 2, "for what was walked already");
    lab.settle();
    assert_eq!(lab.fib.len(), 99);
}

#[test]
fn a_path_without_a_way_to_its_next_hop_waits() {
    let mut lab = Lab::with(RibConfig::new(OWN_AS, OWN_ID, 1), peers());
    (0..5).for_each(|number| lab.session_up(number));
    let version = lab.rib.next_hops_version();
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    assert_eq!(standing(&lab, 0, 0), Standing::UnresolvedNextHop);
    assert_ne!(lab.rib.next_hops_version(), version);
    let tracked: Vec<NextHop> = lab.rib.next_hops_to_track().map(|entry| entry.next_hop).collect();
    assert_eq!(tracked, [next_hop(0)]);
    for (resolution, heard) in [(Resolution::Reachable { metric: 0 }, 1), (Resolution::Unreachable, 0)] {
        lab.rib.set_next_hop(next_hop(0), Scope::default(), resolution);
        lab.settle();
        assert_eq!((lab.peers[1].heard.len(), lab.fib.len()), (heard, heard), "{resolution:?}");
    }
    lab.assert_leaves_nothing();
}

/// Next hops of the route and their weights.
fn forwarded(lab: &Lab) -> Vec<(NextHop, u8)> {
    let route = lab.fib.get(&v4(PREFIX).to_net());
    route.into_iter().flat_map(|route| route.next_hops()).map(|hop| (hop.next_hop, hop.weight)).collect()
}

#[test]
fn several_paths_are_used_at_once_up_to_the_maximum() {
    let options = DecisionOptions { multipath_external: 2, multipath_relax: true, ..DecisionOptions::default() };
    let mut lab = Lab::up(peers());
    lab.rib.set_decision(options);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.announce(1, v4(PREFIX), &path(&[64_601]));
    lab.announce(2, v4(PREFIX), &path(&[5]));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1), (next_hop(1), 1)]);
    assert_eq!(standing(&lab, 1, 0), Standing::Multipath);
    assert_eq!(standing(&lab, 2, 0), Standing::Lost(Step::ExternalFirst));
    // Another AS is not the same without relaxing; the second session with the first one is.
    lab.rib.set_decision(DecisionOptions { multipath_relax: false, ..options });
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1)]);
    lab.announce(4, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1), (next_hop(4), 1)]);
    // Three would be equal, but two is the maximum.
    lab.rib.set_decision(options);
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1), (next_hop(4), 1)]);
    assert_eq!(standing(&lab, 1, 0), Standing::Lost(Step::RouterId));
    lab.withdraw(4, v4(PREFIX));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1), (next_hop(1), 1)]);
    lab.assert_leaves_nothing();
}

/// RFC 7999 with several paths of equal cost: the best one decides alone.
#[test]
fn a_path_that_drops_packets_is_never_used_beside_others() {
    let options = DecisionOptions { multipath_external: 4, multipath_relax: true, ..DecisionOptions::default() };
    let mut lab = Lab::up(peers());
    lab.rib.set_decision(options);
    for number in [0, 1, 4] {
        lab.change_settings(number, |settings| {
            let blackholes = GuardSettings { blackhole: true, ..GuardSettings::default() };
            settings.import = settings.import.with_guard(Arc::new(ImportGuard::new([], blackholes)));
        });
    }
    let plain = |number| path(&[if number == 1 { 64_601 } else { 64_600 }]);
    for number in [0, 1, 4] {
        lab.announce(number, v4(PREFIX), &plain(number));
    }
    lab.settle();
    assert_eq!(forwarded(&lab).len(), 3);
    lab.announce(1, v4(PREFIX), plain(1).communities([Community::BLACKHOLE]));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1), (next_hop(4), 1)]);
    lab.announce(0, v4(PREFIX), plain(0).communities([Community::BLACKHOLE]));
    lab.settle();
    let to = |lab: &Lab| lab.fib.get(&v4(PREFIX).to_net()).map(|route| route.to.clone());
    assert_eq!(standing(&lab, 0, 0), Standing::Best);
    assert_eq!(to(&lab), Some(FibTarget::Drop));
    lab.announce(0, v4(PREFIX), &plain(0));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1), (next_hop(4), 1)]);
    lab.withdraw(0, v4(PREFIX));
    lab.withdraw(4, v4(PREFIX));
    lab.settle();
    assert_eq!(to(&lab), Some(FibTarget::Drop), "the only path");
    lab.assert_leaves_nothing();
}

#[test]
fn packets_are_shared_by_link_bandwidth_when_everybody_says_one() {
    let options = DecisionOptions { multipath_external: 4, multipath_relax: true, ..DecisionOptions::default() };
    let mut lab = Lab::up(peers());
    lab.rib.set_decision(options);
    let bandwidth = |rate: f32| {
        let [a, b, c, d] = rate.to_be_bytes();
        [0x40, 0x04, 0xfd, 0xe8, a, b, c, d]
    };
    lab.announce(0, v4(PREFIX), path(&[64_600]).extended_communities([bandwidth(1e9)]));
    lab.announce(1, v4(PREFIX), path(&[64_601]).extended_communities([bandwidth(0.5e9)]));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 255), (next_hop(1), 128)]);
    lab.announce(1, v4(PREFIX), path(&[64_601]).extended_communities([bandwidth(0.25e9)]));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 255), (next_hop(1), 64)]);
    lab.announce(1, v4(PREFIX), &path(&[64_601]));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(0), 1), (next_hop(1), 1)]);
}

#[test]
fn a_bandwidth_is_a_number_in_the_right_community() {
    let of = |kind: u8, subtype: u8, rate: f32| {
        let [a, b, c, d] = rate.to_be_bytes();
        link_bandwidth([[kind, subtype, 0, 0, a, b, c, d]].into_iter())
    };
    assert_eq!((of(0x40, 4, 1e9), of(0x00, 4, 1e9)), (Some(1e9), Some(1e9)), "transitive or not");
    let none = [of(0x80, 4, 1e9), of(0x40, 5, 1e9), of(0x40, 4, 0.0), of(0x40, 4, -1.0), of(0x40, 4, f32::INFINITY)];
    assert_eq!(none, [None; 5]);
}

/// Two ways over one next hop are one, and a path of the AS is not as good as one of the confederation's next member.
#[test]
fn packets_go_to_a_next_hop_once() {
    let options = DecisionOptions { multipath_internal: 4, multipath_relax: true, ..DecisionOptions::default() };
    let mut peers = peers();
    peers.push(Peer::new(5, PeerKind::Internal));
    peers.push(Peer::of_as(6, PeerKind::Confederation, Asn(65_002)));
    let mut lab = Lab::up(peers);
    lab.rib.set_decision(options);
    for (peer, via) in [(2, 2), (3, 3), (5, 3)] {
        lab.announce_via(peer, v4(PREFIX), PathId(0), &path(&[5]), next_hop(via));
    }
    let inside = [(SegmentKind::ConfedSequence, [Asn(65_002)].as_slice()), (SegmentKind::Sequence, &[Asn(5)])];
    lab.announce(6, v4(PREFIX), path(&[]).set(code::AS_PATH, write_segments(inside)));
    lab.settle();
    assert_eq!(forwarded(&lab), [(next_hop(2), 1), (next_hop(3), 1)]);
    // What nobody leads to any more is not looked at.
    lab.withdraw(2, v4(PREFIX));
    lab.settle();
    assert!(lab.rib.next_hops_to_track().all(|it| it.references > 0 && it.next_hop != next_hop(2)));
}

#[test]
fn attributes_that_do_not_change_forwarding_do_not_touch_it() {
    let mut lab = Lab::up(peers());
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    lab.announce(0, v4(PREFIX), path(&[64_600]).number(code::MED, 8));
    while lab.rib.run(100) {}
    assert_eq!(lab.rib.fib_changes(), 0);
    lab.announce_via(0, v4(PREFIX), PathId(0), &path(&[64_600]), next_hop(77));
    while lab.rib.run(100) {}
    assert_eq!(lab.rib.fib_changes(), 1);
}

/// Who does not forward is not told, keeps no list, and hears of everything once it does.
#[test]
fn forwarding_is_told_only_while_somebody_wants_it() {
    let mut lab = Lab::up(peers());
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    while lab.rib.run(100) {}
    assert_eq!(lab.rib.fib_changes(), 1);
    lab.rib.set_forwarding(false);
    assert_eq!(lab.rib.fib_changes(), 0);
    lab.announce_via(0, v4(PREFIX), PathId(0), &path(&[64_600]), next_hop(77));
    lab.rib.tell_forwarding_again();
    while lab.rib.run(100) {}
    assert_eq!(lab.rib.fib_changes(), 0);
    lab.rib.set_forwarding(true);
    lab.rib.set_forwarding(true);
    while lab.rib.run(100) {}
    let changes = lab.rib.take_fib_changes(8);
    let hops: Vec<_> =
        changes.iter().filter_map(|change| Some(change.route.as_ref()?.next_hops()[0].next_hop)).collect();
    assert_eq!(hops, [next_hop(77)]);
}

/// Every prefix of a long message is taken in, whatever was read ahead of it, and the last step may be a full one.
#[test]
fn messages_of_any_length_are_taken_in_and_back_whole() {
    for count in [1, 2, 7, 8, 9, 16, 100] {
        let mut lab = Lab::up(peers());
        let prefixes: Vec<_> = (0..count).map(|number| (PathId(0), v4(&format!("10.7.{number}.0/24")))).collect();
        let peer = lab.peers[0].id;
        let octets = path(&[64_600]).build();
        for _ in 0..2 {
            lab.rib.announce(peer, &octets, next_hop(0), prefixes.iter().copied(), lab.now).expect("a session");
        }
        lab.settle();
        assert_eq!(lab.fib.len(), count);
        lab.rib.withdraw(peer, prefixes.into_iter().skip(1));
        lab.settle();
        assert_eq!(lab.fib.len(), 1);
    }
}

#[test]
fn marks_are_told_with_forwarding_and_only_equal_ones_share_it() {
    let mut lab = Lab::up(peers());
    lab.rib.set_decision(DecisionOptions {
        multipath_external: 8,
        multipath_relax: true,
        ..DecisionOptions::default()
    });
    let mark = |numbers: &[u32], function, mark| {
        let mut builder = path(numbers);
        builder.large_communities([
            LargeCommunity { global: 1, local_1: 5, local_2: 6 },
            LargeCommunity { global: 65_010, local_1: function, local_2: mark },
            LargeCommunity { global: 65_010, local_1: function, local_2: 1_000 },
        ]);
        builder
    };
    let told = |lab: &Lab| lab.fib.get(&v4(PREFIX).to_net()).map(|route| (route.mark, route.next_hops().len()));
    lab.announce(0, v4(PREFIX), &mark(&[64_600], 77, 2));
    lab.announce(1, v4(PREFIX), &mark(&[64_601], 77, 2));
    lab.settle();
    assert_eq!(told(&lab), Some((None, 2)), "nobody asked for marks");
    lab.rib.set_mark(Some(77));
    lab.settle();
    assert_eq!(told(&lab), Some((Some(2), 2)));
    // The same next hop, another mark.
    lab.announce(1, v4(PREFIX), &mark(&[64_601], 77, 3));
    lab.settle();
    assert_eq!(told(&lab), Some((Some(2), 1)), "they lead to different places");
    // The better one goes: the forwarded set loses it, and the mark is that of the other.
    lab.withdraw(0, v4(PREFIX));
    lab.settle();
    assert_eq!(told(&lab), Some((Some(3), 1)));
    lab.announce(1, v4(PREFIX), &mark(&[64_601], 78, 3));
    lab.settle();
    assert_eq!(told(&lab), Some((None, 1)), "another function");
    // Which of both is best changes, and nothing else.
    lab.announce(0, v4(PREFIX), &mark(&[64_600], 77, 2));
    lab.announce(1, v4(PREFIX), mark(&[64_601], 77, 3).number(code::LOCAL_PREF, 100));
    lab.settle();
    assert_eq!(told(&lab), Some((Some(2), 1)));
    lab.rib.set_mark(None);
    lab.settle();
    assert_eq!(told(&lab), Some((None, 2)));
}
