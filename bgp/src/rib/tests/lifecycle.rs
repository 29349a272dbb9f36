//! Peers restart, send too much, stop reading and go.

use std::sync::Arc;

use super::harness::{Lab, Peer, next_hop, path, v4};
use crate::{
    Asn, Family, Moment, PathId, PeerId, PerFamily, Prefix as _,
    family::V4,
    policy::{Action, Community, End, GuardSettings, ImportGuard, Policy, Rule, RuleId, RuleSet, Then},
    rib::{
        AnnounceError, Counts, LimitKind, LimitReached, Limits, NotAdvertised, Rejection, RibConfig, Standing, Step,
        tests::harness::{OWN_AS, OWN_ID, OWN_V4},
    },
    session::PeerKind::{Confederation, External, Internal},
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::code,
    },
};

const PREFIX: &str = "192.0.2.0/24";
const OTHER: &str = "198.51.100.0/24";

fn prefix(number: u8) -> V4 {
    V4::from_wire(24, &[10, 0, number]).expect("a prefix")
}

/// The first peer announces the first so many prefixes.
fn announce_first(lab: &mut Lab, count: u8) {
    for number in 0..count {
        lab.announce(0, prefix(number), &path(&[64_600]));
    }
    lab.settle();
}

fn counts(lab: &Lab, peer: u16) -> Counts {
    lab.rib.counts(PeerId(peer), Family::Ipv4Unicast)
}

fn standing(lab: &Lab, prefix: V4, peer: u16) -> Standing {
    let views = lab.rib.explain(prefix);
    views.iter().find(|view| view.peer == PeerId(peer)).expect("the path is there").standing
}

#[test]
fn a_restart_keeps_paths_until_the_end_of_rib() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.announce(0, v4(OTHER), &path(&[64_600]));
    lab.settle();
    let before = (lab.peers[1].messages, lab.fib.clone());
    lab.session_down(0, true);
    lab.settle();
    assert_eq!(counts(&lab, 0), Counts { received: 2, accepted: 2, best: 2, stale: 2 });
    assert!(lab.rib.explain(v4(PREFIX))[0].stale);
    assert_eq!((lab.peers[1].messages, &lab.fib), (before.0, &before.1), "nobody noticed");
    lab.session_up(0);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    assert_eq!(counts(&lab, 0).stale, 1);
    assert_eq!((lab.peers[1].messages, &lab.fib), (before.0, &before.1), "nobody noticed");
    lab.rib.end_of_rib(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert_eq!(counts(&lab, 0), Counts { received: 1, accepted: 1, best: 1, stale: 0 });
    assert_eq!(lab.peers[1].heard.len(), 1);
    lab.assert_leaves_nothing();
}

#[test]
fn what_is_stale_twice_is_gone() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.session_down(0, true);
    lab.session_up(0);
    lab.announce(0, v4(OTHER), &path(&[64_600]));
    lab.session_down(0, true);
    lab.settle();
    assert_eq!(lab.peers[1].heard.keys().map(|(net, _)| net.to_string()).collect::<Vec<_>>(), [OTHER]);
}

#[test]
fn long_lived_stale_paths_outlive_the_next_loss() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External).knows_llgr()]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.session_down(0, true);
    lab.rib.mark_long_lived_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    // The peer was back for a moment, too short to say everything again.
    lab.session_up(0);
    lab.announce(0, v4(OTHER), &path(&[64_600]));
    lab.session_down(0, true);
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), counts(&lab, 0).stale), (2, 2));
    let stale = |lab: &Lab, prefix| lab.peers[1].attributes_of(prefix).expect("heard").communities().count() == 1;
    assert!(stale(&lab, PREFIX) && !stale(&lab, OTHER));
    lab.rib.mark_long_lived_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert!(stale(&lab, PREFIX) && stale(&lab, OTHER));
    lab.rib.sweep_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert!(lab.peers[1].heard.is_empty());
    lab.assert_leaves_nothing();
}

#[test]
fn a_policy_may_forbid_that_a_path_is_kept_for_long() {
    let add = Action::AddCommunities(Arc::from([Community::Standard(0xffff_0007)]));
    let rule = Rule { name: Arc::from("short"), matches: Vec::new(), actions: vec![add], then: Then::Accept };
    let set = RuleSet { name: Arc::from("import"), rules: vec![rule] };
    let policy = Policy::new(&[Arc::new(set)], End::Reject).expect("one rule");
    let mut lab = Lab::new(vec![Peer::new(0, External)]);
    lab.change_settings(0, |settings| settings.import = policy);
    lab.session_up(0);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.session_down(0, true);
    lab.rib.mark_long_lived_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert!(lab.rib.explain(v4(PREFIX)).is_empty());
}

#[test]
fn a_restart_without_retention_or_family_takes_everything() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    lab.session_down(0, false);
    lab.settle();
    assert!(lab.peers[1].heard.is_empty() && lab.fib.is_empty());
    lab.session_up(0);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.session_down(0, true);
    lab.peers[0].negotiated.families.ipv4 = None;
    lab.session_up(0);
    lab.settle();
    assert!(lab.peers[1].heard.is_empty(), "the family is no longer agreed");
}

#[test]
fn long_lived_stale_paths_come_last_and_go_to_those_who_know() {
    let peers = vec![
        Peer::new(0, External),
        Peer::new(1, External),
        Peer::new(2, External).knows_llgr(),
        Peer::new(3, External),
    ];
    let mut lab = Lab::up(peers);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.announce(0, v4(OTHER), path(&[64_600]).communities([0xffff_0007]));
    lab.settle();
    lab.session_down(0, true);
    lab.rib.mark_long_lived_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert!(lab.rib.explain(v4(OTHER)).is_empty(), "NO_LLGR");
    assert_eq!((lab.peers[1].heard.len(), lab.peers[2].heard.len()), (0, 1));
    let heard = lab.peers[2].attributes_of(PREFIX).expect("heard");
    assert_eq!(heard.communities().collect::<Vec<_>>(), [0xffff_0006]);
    assert_eq!(lab.rib.explain_export(PeerId(1), v4(PREFIX)), Err(NotAdvertised::LongLivedStale));
    // Anything is better, even a path that is much longer.
    lab.announce(3, v4(PREFIX), &path(&[64_603, 7, 8, 9]));
    lab.settle();
    assert_eq!(standing(&lab, v4(PREFIX), 0), Standing::Lost(Step::LongLivedStale));
    // The peer is back: the path is as good as before.
    lab.session_up(0);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    assert_eq!(standing(&lab, v4(PREFIX), 0), Standing::Best);
    assert_eq!(lab.peers[2].attributes_of(PREFIX).expect("heard").communities().count(), 0);
    lab.session_down(0, true);
    lab.rib.sweep_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert_eq!(lab.rib.explain(v4(PREFIX)).len(), 1);
    lab.assert_leaves_nothing();
}

#[test]
fn an_enhanced_refresh_takes_what_was_not_sent_again() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    announce_first(&mut lab, 4);
    lab.rib.refresh_began(PeerId(0), Family::Ipv4Unicast);
    lab.announce(0, prefix(1), &path(&[64_600]));
    lab.announce(0, prefix(9), &path(&[64_600]));
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), counts(&lab, 0).stale), (5, 3));
    lab.rib.refresh_ended(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert_eq!(
        (lab.peers[1].heard.len(), counts(&lab, 0)),
        (2, Counts { received: 2, accepted: 2, best: 2, stale: 0 })
    );
    assert!([1, 9].map(prefix).iter().all(|kept| lab.rib.best(*kept).is_some()), "those that were sent again");
}

/// Walks mean what they say at the place in the queue where they stand: a sweep that waits is not the one that is needed
/// behind a later loss, and one that has begun has passed what came since.
#[test]
fn a_walk_is_asked_for_again_when_the_one_that_waits_comes_too_early() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    announce_first(&mut lab, 20);
    let decision = lab.rib.config().decision;
    lab.rib.set_decision(decision);
    lab.rib.end_of_rib(PeerId(0), Family::Ipv4Unicast);
    lab.session_down(0, true);
    lab.rib.sweep_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    assert_eq!(counts(&lab, 0).received, 0);

    lab.session_up(0);
    announce_first(&mut lab, 20);
    lab.change_settings(0, |settings| settings.import = Policy::reject_all());
    lab.rib.run(10);
    lab.change_settings(0, |settings| settings.import = Policy::accept_all());
    lab.settle();
    assert_eq!(counts(&lab, 0).accepted, 20);
}

#[test]
fn what_was_changed_while_a_path_is_kept_for_long_leaves_it_marked() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External).knows_llgr()]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.session_down(0, true);
    lab.rib.mark_long_lived_stale(PeerId(0), Family::Ipv4Unicast);
    lab.settle();
    let add = Action::AddCommunities(Arc::from([Community::Standard(77)]));
    let rule = Rule { name: Arc::from("r"), matches: Vec::new(), actions: vec![add], then: Then::Accept };
    let set = RuleSet { name: Arc::from("import"), rules: vec![rule] };
    let policy = Policy::new(&[Arc::new(set)], End::Reject).expect("one rule");
    lab.change_settings(0, |settings| settings.import = policy);
    lab.settle();
    let heard = lab.peers[1].attributes_of(PREFIX).expect("heard");
    assert_eq!(heard.communities().collect::<Vec<_>>(), [77, 0xffff_0006]);
}

#[test]
fn nothing_is_selected_or_said_while_selection_is_deferred() {
    let mut lab = Lab::new(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.rib.defer_selection(Family::Ipv4Unicast, true);
    (0..2).for_each(|number| lab.session_up(number));
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    assert!(lab.peers[1].heard.is_empty() && lab.fib.is_empty());
    assert_eq!(lab.peers[1].ends_of_rib, [Family::Ipv6Unicast]);
    assert!(!lab.rib.has_exports(PeerId(1)));
    lab.rib.defer_selection(Family::Ipv4Unicast, false);
    while lab.poll(1, 10_000) {}
    assert_eq!(lab.peers[1].ends_of_rib, [Family::Ipv6Unicast], "not before what waited is said");
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.fib.len()), (1, 1));
    assert_eq!(lab.peers[1].ends_of_rib, [Family::Ipv6Unicast, Family::Ipv4Unicast]);
}

/// A peer that reads slowly hears the end behind what others have read long ago.
#[test]
fn the_end_of_rib_waits_in_the_log() {
    let mut lab = Lab::new(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)]);
    lab.session_up(0);
    lab.session_up(2);
    for number in 0..4 {
        lab.announce(0, prefix(number), &path(&[64_600, 1 + u32::from(number)]));
    }
    lab.session_up(1);
    lab.poll(1, 1);
    lab.decide();
    lab.rib.flush_exports();
    while lab.poll(2, 10_000) {}
    assert_eq!(lab.peers[2].heard.len(), 4);
    while lab.peers[1].heard.len() < 4 {
        assert!(!lab.peers[1].ends_of_rib.contains(&Family::Ipv4Unicast));
        lab.poll(1, 1);
    }
    lab.settle();
    assert!(lab.peers[1].ends_of_rib.contains(&Family::Ipv4Unicast));
}

/// End-of-RIB makes a peer drop what it kept of us and was not told again: it comes behind all there was, however long that
/// takes and whatever else goes on, and does not wait for what came later.
#[test]
fn the_end_of_rib_comes_behind_all_there_was_and_waits_for_nothing_else() {
    const LENGTH: u8 = 200;
    // Decided and told to others, decided and told to nobody, and not even decided when the session comes up.
    for (others, decided) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut lab = Lab::new(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)]);
        lab.session_up(0);
        if others {
            lab.session_up(2);
        }
        for number in 0..LENGTH {
            lab.announce(0, prefix(number), &path(&[64_600, 1 + u32::from(number)]));
        }
        if decided {
            lab.settle();
        }
        lab.session_up(1);
        let mut rounds = 0;
        while !lab.peers[1].ends_of_rib.contains(&Family::Ipv4Unicast) {
            // What is there changes faster than the peer reads.
            rounds += 1;
            for number in 0..10 {
                lab.announce(0, prefix(LENGTH + number), &path(&[64_600, rounds, 1 + u32::from(number)]));
            }
            lab.rib.run(12);
            lab.rib.flush_exports();
            lab.poll(2, 100);
            lab.poll(1, 100);
            assert!(rounds < 2_000, "a table that never rests has an end for those who come: {others} {decided}");
        }
        let heard = |number: &u8| lab.peers[1].attributes_of(&prefix(*number).to_net().to_string()).is_some();
        assert_eq!((0..LENGTH).filter(heard).count(), usize::from(LENGTH), "{others} {decided}");
        lab.settle();
        assert_eq!(lab.peers[1].ends_of_rib.len(), 2);
        lab.assert_leaves_nothing();
    }
}

#[test]
fn a_session_that_is_up_again_without_having_been_down_hears_everything() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    lab.session_up(1);
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.peers[1].ends_of_rib.len()), (1, 2));
}

/// Announces `count` prefixes and says how it ended.
fn flood(lab: &mut Lab, from: u8, count: u8) -> Result<bool, AnnounceError> {
    let attributes = path(&[64_600]).build();
    let prefixes = (from..from + count).map(|number| (PathId(0), prefix(number)));
    lab.rib.announce(PeerId(0), &attributes, next_hop(0), prefixes, Moment(0)).map(|outcome| outcome.near_limit)
}

#[test]
fn a_peer_may_send_so_many_prefixes_and_no_more() {
    let family = Family::Ipv4Unicast;
    let limits = Limits { received_max: Some(10), warning_percent: 80, ..Limits::default() };
    let mut lab = Lab::new(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.change_settings(0, |settings| settings.limits = PerFamily { ipv4: limits, ipv6: limits });
    (0..2).for_each(|number| lab.session_up(number));
    assert_eq!(flood(&mut lab, 0, 7), Ok(false));
    assert_eq!(flood(&mut lab, 7, 1), Ok(true), "near the limit");
    assert_eq!(flood(&mut lab, 8, 1), Ok(false), "said once");
    let reached = LimitReached { family, kind: LimitKind::Received, max: 10 };
    assert_eq!(flood(&mut lab, 9, 100), Err(reached.into()));
    assert_eq!(reached.to_string(), "more than 10 ipv4-unicast prefixes received");
    assert_eq!(counts(&lab, 0).received, 10);
    assert_eq!(flood(&mut lab, 0, 10), Ok(false), "what is known already is no more");
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.rib.totals().families.ipv4.destinations), (10, 10));
    lab.withdraw(0, prefix(0));
    assert_eq!(flood(&mut lab, 200, 1), Ok(false));
    lab.assert_leaves_nothing();
}

#[test]
fn with_add_path_a_limit_counts_paths() {
    let limits = Limits { received_max: Some(3), ..Limits::default() };
    let mut lab = Lab::new(vec![Peer::new(0, External)]);
    lab.change_settings(0, |settings| settings.limits.ipv4 = limits);
    lab.session_up(0);
    let attributes = path(&[64_600]).build();
    let mut send = |id: u32| {
        let paths = [(PathId(id), prefix(1))];
        lab.rib.announce(PeerId(0), &attributes, next_hop(0), paths, Moment(0)).map(|_| ())
    };
    assert_eq!([1, 2, 3, 2].map(&mut send), [Ok(()); 4], "three paths, one of them said twice");
    let reached = LimitReached { family: Family::Ipv4Unicast, kind: LimitKind::Received, max: 3 };
    assert_eq!(send(4), Err(reached.into()), "the same prefix");
}

#[test]
fn a_limit_that_only_warns_takes_all() {
    let limits = Limits { received_max: Some(10), warning_percent: 80, warns_only: true, ..Limits::default() };
    let mut lab = Lab::new(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.change_settings(0, |settings| settings.limits.ipv4 = limits);
    (0..2).for_each(|number| lab.session_up(number));
    assert_eq!(flood(&mut lab, 0, 7), Ok(false));
    assert_eq!(flood(&mut lab, 7, 100), Ok(true), "said once");
    assert_eq!(flood(&mut lab, 107, 100), Ok(false));
    lab.change_settings(0, |settings| settings.limits.ipv4.warning_percent = 0);
    lab.session_up(0);
    assert_eq!(flood(&mut lab, 0, 1), Ok(false), "0 per cent is no warning");
    assert_eq!(counts(&lab, 0).received, 207);
    lab.assert_leaves_nothing();
}

#[test]
fn a_limit_may_count_what_is_accepted() {
    let limits = Limits { accepted_max: Some(2), ..Limits::default() };
    let mut lab = Lab::new(vec![Peer::new(0, External)]);
    lab.change_settings(0, |settings| settings.limits.ipv4 = limits);
    lab.session_up(0);
    for number in 100..110 {
        lab.announce(0, prefix(number), &path(&[64_600, OWN_AS.0]));
    }
    assert_eq!(flood(&mut lab, 0, 2), Ok(false));
    let reached = LimitReached { family: Family::Ipv4Unicast, kind: LimitKind::Accepted, max: 2 };
    assert_eq!(flood(&mut lab, 2, 1), Err(reached.into()));
    assert_eq!(flood(&mut lab, 100, 1), Err(reached.into()), "a refused path that is accepted now counts");
    let counted = counts(&lab, 0);
    assert_eq!((counted.received, counted.accepted), (12, 2));
    lab.assert_leaves_nothing();
}

#[test]
fn paths_that_no_policy_can_allow_are_refused_by_name() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, Internal)]);
    lab.announce(0, prefix(0), &path(&[64_600, OWN_AS.0]));
    lab.announce(0, prefix(1), &path(&[7]));
    lab.announce_via(0, prefix(2), PathId(0), &path(&[64_600]), OWN_V4);
    lab.announce(1, prefix(3), path(&[7]).number(code::ORIGINATOR_ID, 1));
    lab.announce(1, prefix(4), path(&[7]).set(code::CLUSTER_LIST, vec![0, 0, 0, 1]));
    lab.settle();
    let refused = [
        (0, 0, Rejection::AsLoop),
        (1, 0, Rejection::FirstAs),
        (2, 0, Rejection::OwnNextHop),
        (3, 1, Rejection::OriginatorLoop),
        (4, 1, Rejection::ClusterLoop),
    ];
    for (number, peer, why) in refused {
        assert_eq!(standing(&lab, prefix(number), peer), Standing::Rejected(why), "{why}");
    }
    // Settings that allow the first two, and judge what is there again.
    lab.change_settings(0, |settings| (settings.own_as_max, settings.enforce_first_as) = (1, false));
    lab.settle();
    for number in 0..2 {
        assert_eq!(standing(&lab, prefix(number), 0), Standing::Best);
    }
    lab.assert_leaves_nothing();
}

/// Inside of a confederation its identifier is a loop, and every path says where the confederation begins.
#[test]
fn what_comes_from_inside_of_a_confederation_is_checked_for_it() {
    let mut config = RibConfig::new(Asn(65_001), OWN_ID, 3);
    (config.confederation, config.next_hop_tracking) = (Some(OWN_AS), false);
    let mut inside = Peer::of_as(0, Confederation, Asn(65_002));
    inside.negotiated.local_as = Asn(65_001);
    let mut lab = Lab::with(config, vec![inside]);
    lab.session_up(0);
    let with = |number: u32| {
        let parts = [(SegmentKind::ConfedSequence, [Asn(65_002)].as_slice()), (SegmentKind::Sequence, &[Asn(number)])];
        write_segments(parts)
    };
    lab.announce(0, prefix(0), path(&[]).set(code::AS_PATH, with(9)));
    lab.announce(0, prefix(1), path(&[]).set(code::AS_PATH, with(OWN_AS.0)));
    lab.announce(0, prefix(2), &path(&[65_002, 9]));
    lab.settle();
    assert_eq!(standing(&lab, prefix(0), 0), Standing::Best);
    assert_eq!(standing(&lab, prefix(1), 0), Standing::Rejected(Rejection::AsLoop));
    assert_eq!(standing(&lab, prefix(2), 0), Standing::Rejected(Rejection::Confederation));
}

/// Services come and go while the table is full: only what lies at or around their addresses is judged again.
#[test]
fn an_address_that_becomes_ours_has_only_paths_around_it_judged_again() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    let guarded = |own: &[&str], settings| {
        let own = own.iter().map(|prefix| prefix.parse().expect("a prefix"));
        Policy::accept_all().with_guard(Arc::new(ImportGuard::new(own, settings)))
    };
    let strict = GuardSettings::default();
    let change = |lab: &mut Lab, own: &[&str], settings| {
        let before = lab.rib.judged_again();
        for number in 0..2 {
            lab.change_settings(number, |peer| peer.import = guarded(own, settings));
        }
        lab.settle();
        lab.rib.judged_again() - before
    };
    assert_eq!(change(&mut lab, &["10.0.0.0/24"], strict), 0, "nothing is there yet");
    for number in 1..=200 {
        lab.announce(0, prefix(number), &path(&[64_600]));
    }
    let (address, around) = (v4("10.0.7.1/32"), [v4("10.0.0.0/16"), v4("10.0.7.1/32")]);
    for number in 0..2 {
        for one in around {
            lab.announce(number, one, &path(&[if number == 0 { 64_600 } else { 64_601 }]));
        }
    }
    lab.settle();
    // It covers 10.0.0.0/24.
    assert_eq!(standing(&lab, around[0], 0), Standing::Rejected(Rejection::Policy(RuleId::COVERS_OWN_PREFIX)));
    assert_eq!(standing(&lab, address, 1), Standing::Lost(Step::RouterId));

    // 10.0.7.1 and 10.0.0.0/16 of both, and 10.0.7.0/24 of the first.
    assert_eq!(change(&mut lab, &["10.0.0.0/24", "10.0.7.1/32"], strict), 5);
    assert_eq!(standing(&lab, address, 0), Standing::Rejected(Rejection::Policy(RuleId::OWN_PREFIX)));
    assert_eq!(standing(&lab, address, 1), Standing::Rejected(Rejection::Policy(RuleId::OWN_PREFIX)));
    assert_eq!(standing(&lab, prefix(7), 0), Standing::Rejected(Rejection::Policy(RuleId::COVERS_OWN_PREFIX)));
    assert_eq!(standing(&lab, prefix(8), 0), Standing::Best);
    assert_eq!(counts(&lab, 0).accepted, 199);
    // One for another, and an address nobody tells.
    assert_eq!(change(&mut lab, &["10.0.0.0/24", "10.0.8.8/32", "172.18.0.1/32"], strict), 5 + 3);
    assert_eq!((standing(&lab, address, 0), standing(&lab, prefix(7), 0)), (Standing::Best, Standing::Best));
    assert!(matches!(standing(&lab, prefix(8), 0), Standing::Rejected(_)));
    // Whatever is no address, or no prefix of ours, concerns everything.
    assert_eq!(change(&mut lab, &["10.0.7.0/24"], strict), 204);
    assert_eq!(standing(&lab, around[0], 1), Standing::Rejected(Rejection::Policy(RuleId::COVERS_OWN_PREFIX)));
    let loose = GuardSettings { covering_own: true, ..strict };
    assert_eq!(change(&mut lab, &["10.0.7.0/24"], loose), 204);
    assert_eq!(standing(&lab, around[0], 0), Standing::Best);
    assert_eq!(change(&mut lab, &["10.0.7.0/24"], loose), 0);
    lab.assert_leaves_nothing();
}

#[test]
fn a_peer_that_was_taken_out_is_gone_when_its_paths_are() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    announce_first(&mut lab, 50);
    lab.rib.remove_peer(PeerId(0));
    assert!(lab.rib.run(10), "in slices");
    assert!(lab.rib.knows(PeerId(0)));
    lab.peers[0].is_up = false;
    lab.settle();
    assert!(!lab.rib.knows(PeerId(0)));
    assert!(lab.peers[1].heard.is_empty());
    let refused = lab.rib.announce(PeerId(0), &path(&[64_600]).build(), next_hop(0), [(PathId(0), prefix(0))], lab.now);
    assert_eq!(refused, Err(AnnounceError::NoSession(PeerId(0))));
}

#[test]
fn prefixes_that_a_stuck_peer_has_yet_to_forget_are_bounded() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)]);
    lab.rib.core.sizes.tombstones_max = 40;
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    let mut named = Vec::new();
    // Ever new prefixes come and go; peer 2 reads nothing.
    for number in 0..200 {
        lab.announce(0, prefix(number), path(&[64_600]).communities([1, 2, 3, u32::from(number)]));
        lab.settle_but(2);
        lab.withdraw(0, prefix(number));
        lab.settle_but(2);
        named = lab.rib.laggards();
        if !named.is_empty() {
            break;
        }
    }
    assert_eq!(named, [PeerId(2)], "the one that holds everybody up");
    let kept = lab.rib.totals().families.ipv4.tombstones;
    assert!((40..=42).contains(&kept), "{kept} kept");
    lab.session_down(2, false);
    lab.settle();
    assert_eq!(lab.rib.totals().families.ipv4.tombstones, 0);
    assert_eq!(lab.peers[1].heard.len(), 1);
    lab.assert_leaves_nothing();
}

#[test]
fn a_peer_that_never_reads_alone_costs_a_bit_for_each_change() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, Internal)]);
    lab.settle();
    for round in 0..500 {
        lab.announce(0, v4(PREFIX), path(&[64_600]).communities([round]));
        lab.decide();
        lab.rib.flush_exports();
    }
    let groups = lab.rib.tables.ipv4.groups.iter().flatten();
    let group = groups.filter(|group| group.member(PeerId(1)).is_some()).collect::<Vec<_>>();
    assert_eq!((group[0].pending.len() + group[0].batch.len(), group[0].log.head() - group[0].log.first()), (1, 0));
    // Peer 0 does not hear of its own, so 499 sets are gone.
    assert_eq!(lab.rib.totals().attribute_sets, 1);
    lab.settle();
    assert_eq!(lab.peers[1].messages, 1);
}
