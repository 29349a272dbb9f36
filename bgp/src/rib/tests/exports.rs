//! What peers of each kind are told, message by message.

use std::sync::Arc;

use super::harness::{Lab, OWN_AS, OWN_V4, Peer, next_hop, path, v4, v6};
use crate::{
    Asn, Family, NextHop, PathId, PeerId, PerFamily, Prefix as _,
    family::V4,
    policy::{Action, End, LocalSource, Match, NumberEdit, Policy, PrefixEntry, PrefixList, Rule, RuleSet, Then},
    rib::{Aggregate, Cursor, LocalRoute, NextHopMode, NotAdvertised, RibConfig, member::Progress, sizes::Sizes},
    session::PeerKind::{Confederation, External, Internal},
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Attributes, Builder, code},
        capability::Role,
        route_refresh::RefreshKind,
    },
};

const PREFIX: &str = "192.0.2.0/24";

fn path_text(attributes: Attributes<'_>) -> String {
    attributes.as_path().to_string()
}

/// The next hop a peer heard for the prefix.
fn heard_next_hop(peer: &Peer, prefix: &str) -> Option<NextHop> {
    let key = (prefix.parse().expect("a prefix"), PathId(0));
    peer.heard.get(&key).map(|(_, next_hop)| *next_hop)
}

#[test]
fn one_message_for_prefixes_of_equal_attributes_and_withdrawals_share_one() {
    let mut lab = Lab::new(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.rib.core.sizes = Sizes::default();
    (0..2).for_each(|number| lab.session_up(number));
    lab.settle();
    for number in 0..100_u8 {
        let prefix = V4::from_wire(24, &[10, 0, number]).expect("a prefix");
        lab.announce(
            0,
            prefix,
            path(&[64_600]).number(code::MED, u32::from(number % 2)).origin(if number % 4 < 2 {
                crate::wire::attributes::Origin::Igp
            } else {
                crate::wire::attributes::Origin::Egp
            }),
        );
    }
    lab.settle();
    // MED is not passed on, so four sets become two.
    assert_eq!(lab.peers[1].heard.len(), 100);
    assert_eq!(lab.peers[1].messages, 2);
    let before = lab.peers[1].messages;
    for number in 0..100_u8 {
        lab.withdraw(0, V4::from_wire(24, &[10, 0, number]).expect("a prefix"));
    }
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.peers[1].messages), (0, before + 1));
}

#[test]
fn a_prefix_that_changes_many_times_is_sent_once() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.settle();
    let before = lab.peers[1].messages;
    for length in (1..17).rev() {
        lab.announce(0, v4(PREFIX), &path(&vec![64_600; length]));
        lab.decide();
        assert!(lab.rib.wants_flush());
    }
    assert_eq!(lab.peers[1].messages, before);
    lab.settle();
    assert!(!lab.rib.wants_flush());
    assert_eq!(lab.peers[1].messages, before + 1);
    assert_eq!(lab.peers[1].attributes_of(PREFIX).map(path_text).as_deref(), Some("65000 64600"));
}

#[test]
fn members_of_a_group_differ_in_next_hop_and_source_only() {
    let mut peers: Vec<Peer> = (0..4).map(|number| Peer::new(number, External)).collect();
    let others = [10, 20, 30, 40].map(|octet| NextHop::V4([10, 9, 9, octet].into()));
    for (peer, own) in peers.iter_mut().zip(others) {
        peer.own.ipv4 = Some(own);
    }
    let mut lab = Lab::up(peers);
    lab.announce(0, v4(PREFIX), &path(&[64_600, 7]));
    lab.settle();
    assert_eq!(lab.rib.tables.ipv4.groups.iter().flatten().count(), 1);
    assert!(lab.peers[0].heard.is_empty());
    for (peer, own) in lab.peers.iter().zip(others).skip(1) {
        assert_eq!(heard_next_hop(peer, PREFIX), Some(own));
    }
    // The best path moves to peer 1: it has to forget what it heard, and peer 0 hears it.
    lab.announce(1, v4(PREFIX), &path(&[64_601]));
    lab.settle();
    let heard: Vec<usize> = lab.peers.iter().map(|peer| peer.heard.len()).collect();
    assert_eq!(heard, [1, 0, 1, 1]);
    lab.assert_leaves_nothing();
}

#[test]
fn ipv6_prefixes_go_with_a_pair_of_next_hops() {
    let pair = NextHop::V6Pair {
        global: "2001:db8::1".parse().expect("an address"),
        link_local: "fe80::1".parse().expect("an address"),
    };
    let mut peers = vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)];
    peers[1].own.ipv6 = Some(pair);
    let mut lab = Lab::up(peers);
    lab.announce(0, v6("2001:db8:7::/48"), &path(&[64_600]));
    lab.settle();
    assert_eq!(heard_next_hop(&lab.peers[1], "2001:db8:7::/48"), Some(pair));
    assert_eq!(heard_next_hop(&lab.peers[2], "2001:db8:7::/48"), lab.peers[2].own.ipv6);
    assert!(
        lab.peers
            .iter()
            .all(|peer| peer.ends_of_rib == Family::ALL
                || peer.ends_of_rib == [Family::Ipv6Unicast, Family::Ipv4Unicast])
    );
    lab.assert_leaves_nothing();
}

#[test]
fn ipv4_prefixes_have_ipv6_next_hops_only_for_peers_that_know_them() {
    let over_ipv6 = NextHop::V6("2001:db8::1".parse().expect("an address"));
    let mut peers = vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)];
    for peer in &mut peers[1..] {
        peer.own.ipv4 = Some(over_ipv6);
    }
    peers[1].negotiated.families.ipv4.as_mut().expect("a family").extended_next_hop = true;
    let mut lab = Lab::up(peers);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    assert_eq!(heard_next_hop(&lab.peers[1], PREFIX), Some(over_ipv6));
    assert!(lab.peers[2].heard.is_empty());
    assert_eq!(lab.rib.explain_export(PeerId(2), v4(PREFIX)), Err(NotAdvertised::NoNextHop));
    assert_eq!(lab.rib.explain_export(PeerId(1), v4(PREFIX)).map(|view| view.next_hop), Ok(over_ipv6));
}

#[test]
fn well_known_communities_keep_paths_where_they_belong() {
    for (community, external, internal, reason) in [
        (0xffff_ff01, 0, 1, NotAdvertised::NoExport),
        (0xffff_ff02, 0, 0, NotAdvertised::NoAdvertise),
        (0xffff_ff03, 0, 1, NotAdvertised::NoExportSubconfed),
    ] {
        let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, Internal)]);
        lab.announce(0, v4(PREFIX), path(&[64_600]).communities([community]));
        lab.settle();
        assert_eq!((lab.peers[1].heard.len(), lab.peers[2].heard.len()), (external, internal), "{reason}");
        assert_eq!(lab.rib.explain_export(PeerId(1), v4(PREFIX)), Err(reason));
    }
}

#[test]
fn roles_keep_routes_from_leaking() {
    // Our role towards the source, its OTC, our role towards the sink: what the sink hears.
    let rows = [
        (Role::Customer, None, Role::Provider, Ok(Some(64_600))),
        (Role::Customer, None, Role::Customer, Err(NotAdvertised::OnlyToCustomer)),
        (Role::Customer, None, Role::Peer, Err(NotAdvertised::OnlyToCustomer)),
        (Role::Customer, Some(77), Role::Provider, Ok(Some(77))),
        (Role::Provider, None, Role::Customer, Ok(None)),
        (Role::Provider, None, Role::Peer, Ok(Some(OWN_AS.0))),
        (Role::Provider, Some(77), Role::Provider, Err(NotAdvertised::NoBestPath)),
        (Role::Peer, Some(64_600), Role::Provider, Ok(Some(64_600))),
        (Role::Peer, Some(77), Role::Provider, Err(NotAdvertised::NoBestPath)),
        (Role::Peer, None, Role::RouteServerClient, Err(NotAdvertised::OnlyToCustomer)),
        (Role::RouteServer, Some(77), Role::Provider, Err(NotAdvertised::NoBestPath)),
        (Role::RouteServerClient, None, Role::Provider, Ok(Some(64_600))),
    ];
    for (from, otc, to, wanted) in rows {
        let mut peers = vec![Peer::new(0, External), Peer::new(1, External)];
        peers[0].negotiated.role = Some(from);
        peers[1].negotiated.role = Some(to);
        let mut lab = Lab::up(peers);
        let mut attributes = path(&[64_600]);
        if let Some(asn) = otc {
            attributes.number(code::OTC, asn);
        }
        lab.announce(0, v4(PREFIX), &attributes);
        lab.settle();
        let told = lab.rib.explain_export(PeerId(1), v4(PREFIX));
        let heard = lab.peers[1].attributes_of(PREFIX).map(|attributes| attributes.otc().map(|asn| asn.0));
        assert_eq!(
            told.as_ref().map(|view| Attributes(&view.attributes).otc().map(|asn| asn.0)),
            wanted.as_ref().copied(),
            "{from:?} {otc:?} {to:?}"
        );
        assert_eq!(heard, wanted.ok(), "{from:?} {otc:?} {to:?}");
    }
}

#[test]
fn a_reflector_reflects_once_and_never_in_circles() {
    let mut lab = Lab::up(vec![
        Peer::new(0, Internal).client(),
        Peer::new(1, Internal),
        Peer::new(2, Internal),
        Peer::new(3, Internal).client(),
    ]);
    lab.announce(1, v4(PREFIX), path(&[5]).number(code::LOCAL_PREF, 100));
    lab.settle();
    let heard: Vec<usize> = lab.peers.iter().map(|peer| peer.heard.len()).collect();
    assert_eq!(heard, [1, 0, 0, 1], "from a non-client to clients only");
    assert_eq!(lab.rib.explain_export(PeerId(2), v4(PREFIX)), Err(NotAdvertised::InternalToInternal));
    let attributes = lab.peers[0].attributes_of(PREFIX).expect("heard");
    assert_eq!(attributes.originator_id().map(|id| id.0), Some(101));
    assert_eq!(attributes.cluster_list().map(|id| id.0).collect::<Vec<_>>(), [1]);
    assert_eq!(heard_next_hop(&lab.peers[0], PREFIX), Some(next_hop(1)));
    // Who is further away stays the originator.
    lab.announce(0, v4("10.0.9.0/24"), path(&[5]).number(code::ORIGINATOR_ID, 77).set(code::CLUSTER_LIST, vec![9; 4]));
    lab.settle();
    let attributes = lab.peers[1].attributes_of("10.0.9.0/24").expect("heard");
    assert_eq!(attributes.originator_id().map(|id| id.0), Some(77));
    assert_eq!(attributes.cluster_list().map(|id| id.0).collect::<Vec<_>>(), [1, 0x0909_0909]);
    // Our own cluster, and our own identifier, come back.
    lab.announce(1, v4("198.51.100.0/24"), path(&[5]).set(code::CLUSTER_LIST, vec![0, 0, 0, 1]));
    lab.announce(1, v4("203.0.113.0/24"), path(&[5]).number(code::ORIGINATOR_ID, 1));
    lab.settle();
    for prefix in ["198.51.100.0/24", "203.0.113.0/24"] {
        assert_eq!(lab.rib.explain_export(PeerId(0), v4(prefix)), Err(NotAdvertised::NoBestPath), "{prefix}");
    }
}

#[test]
fn a_confederation_shows_its_members_inside_only() {
    let mut config = RibConfig::new(Asn(65_001), super::harness::OWN_ID, 3);
    (config.confederation, config.next_hop_tracking) = (Some(OWN_AS), false);
    let mut inside = Peer::of_as(1, Confederation, Asn(65_002));
    inside.negotiated.local_as = Asn(65_001);
    let mut lab = Lab::with(config, vec![Peer::new(0, External), inside, Peer::new(2, External)]);
    (0..3).for_each(|number| lab.session_up(number));
    lab.announce(0, v4(PREFIX), path(&[64_600]).number(code::MED, 4));
    lab.settle();
    let heard = lab.peers[1].attributes_of(PREFIX).expect("heard");
    assert_eq!((path_text(heard).as_str(), heard.local_pref(), heard.med()), ("(65001) 64600", Some(100), Some(4)));
    assert_eq!(heard_next_hop(&lab.peers[1], PREFIX), Some(next_hop(0)));
    // And from inside out.
    let numbers = [(SegmentKind::ConfedSequence, [Asn(65_002)].as_slice()), (SegmentKind::Sequence, &[Asn(9)])];
    lab.announce(
        1,
        v4("198.51.100.0/24"),
        path(&[]).set(code::AS_PATH, write_segments(numbers)).number(code::LOCAL_PREF, 5),
    );
    lab.settle();
    let heard = lab.peers[2].attributes_of("198.51.100.0/24").expect("heard");
    assert_eq!((path_text(heard).as_str(), heard.local_pref()), ("65000 9", None));
}

#[test]
fn a_route_server_changes_nothing_and_private_numbers_are_removed() {
    let mut lab = Lab::up(vec![Peer::of_as(0, External, Asn(64_600)), Peer::new(1, External), Peer::new(2, External)]);
    lab.change_settings(1, |settings| settings.route_server_client = true);
    lab.change_settings(2, |settings| settings.remove_private_as = true);
    lab.announce(0, v4(PREFIX), path(&[64_600, 3_356, 64_700]).number(code::MED, 6));
    lab.settle();
    let heard = lab.peers[1].attributes_of(PREFIX).expect("heard");
    assert_eq!((path_text(heard).as_str(), heard.med()), ("64600 3356 64700", Some(6)));
    assert_eq!(heard_next_hop(&lab.peers[1], PREFIX), Some(next_hop(0)));
    let heard = lab.peers[2].attributes_of(PREFIX).expect("heard");
    assert_eq!((path_text(heard).as_str(), heard.med()), ("65000 3356", None));
}

#[test]
fn next_hops_are_said_as_configured() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, Internal)]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    for (mode, external, internal) in [
        (NextHopMode::Default, OWN_V4, next_hop(0)),
        (NextHopMode::Own, OWN_V4, OWN_V4),
        (NextHopMode::Unchanged, next_hop(0), next_hop(0)),
    ] {
        lab.change_settings(1, |settings| settings.next_hop.ipv4 = mode);
        lab.change_settings(2, |settings| settings.next_hop.ipv4 = mode);
        lab.settle();
        assert_eq!(heard_next_hop(&lab.peers[1], PREFIX), Some(external), "{mode:?}");
        assert_eq!(heard_next_hop(&lab.peers[2], PREFIX), Some(internal), "{mode:?}");
    }
}

/// A policy that rejects a prefix and sets MED on the rest.
fn policy(prefix: &str) -> Policy {
    let list = PrefixList::new([prefix.parse::<PrefixEntry>().expect("an entry")]);
    let reject = Rule {
        name: "not this".into(),
        matches: vec![Match::Prefix(Arc::new(list))],
        actions: Vec::new(),
        then: Then::Reject,
    };
    let mark = Rule {
        name: "mark".into(),
        matches: Vec::new(),
        actions: vec![Action::Med(NumberEdit::Set(33))],
        then: Then::Accept,
    };
    let set = RuleSet { name: "test".into(), rules: vec![reject, mark] };
    Policy::new(&[Arc::new(set)], End::Reject).expect("few rules")
}

#[test]
fn policies_decide_in_both_directions_and_their_change_is_made_good() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)]);
    for prefix in [PREFIX, "198.51.100.0/24"] {
        lab.announce(0, v4(prefix), path(&[64_600]).number(code::MED, 1));
    }
    lab.settle();
    assert_eq!(lab.peers[1].heard.len(), 2);
    lab.change_settings(1, |settings| settings.export = policy(PREFIX));
    lab.settle();
    assert_eq!(lab.peers[1].heard.len(), 1, "what is no longer told is withdrawn");
    assert_eq!(lab.peers[1].attributes_of("198.51.100.0/24").and_then(Attributes::med), Some(33));
    assert_eq!(lab.peers[2].attributes_of("198.51.100.0/24").and_then(Attributes::med), None);
    assert!(matches!(lab.rib.explain_export(PeerId(1), v4(PREFIX)), Err(NotAdvertised::Policy(_))));
    lab.change_settings(0, |settings| settings.import = policy(PREFIX));
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.peers[2].heard.len()), (1, 1));
    let view = &lab.rib.explain(v4(PREFIX))[0];
    assert_eq!(view.rule.as_deref(), Some("test/not this"));
    let counts = lab.rib.counts(PeerId(0), Family::Ipv4Unicast);
    assert_eq!((counts.received, counts.accepted), (2, 1));
    assert_eq!(lab.rib.received::<V4>(PeerId(0), Cursor::default(), 10).entries.len(), 2);
    assert_eq!(lab.rib.accepted::<V4>(PeerId(0), Cursor::default(), 10).entries.len(), 1);
    lab.change_settings(0, |settings| settings.import = Policy::accept_all());
    lab.settle();
    assert_eq!(lab.peers[2].heard.len(), 2);
    lab.change_settings(2, |settings| settings.export = Policy::reject_all());
    lab.settle();
    assert!(lab.peers[2].heard.is_empty());
    lab.assert_leaves_nothing();
}

/// What a policy says of one prefix of a message does not hold for the next one.
#[test]
fn a_message_is_judged_prefix_by_prefix_where_the_policy_looks_at_them() {
    let (good, bad) = (v4("198.51.100.0/24"), v4(PREFIX));
    for prefixes in [[good, bad], [bad, good]] {
        let mut lab = Lab::new(vec![Peer::new(0, External)]);
        lab.change_settings(0, |settings| settings.import = policy(PREFIX));
        lab.session_up(0);
        let message = prefixes.map(|prefix| (PathId(0), prefix));
        let came = lab.rib.announce(PeerId(0), &path(&[64_600]).build(), next_hop(0), message, lab.now);
        came.expect("no limit");
        lab.settle();
        assert_eq!((lab.rib.best(good).is_some(), lab.rib.best(bad).is_some()), (true, false));
    }
}

/// A path is as old as what was sent, also where the policy makes the same of it as before.
#[test]
fn a_path_is_as_old_as_what_was_sent() {
    let mut lab = Lab::new(vec![Peer::new(0, External)]);
    lab.change_settings(0, |settings| settings.import = policy("10.0.0.0/8"));
    lab.session_up(0);
    for (second, med, since) in [(5, 1, 5), (6, 2, 6), (7, 2, 6)] {
        lab.now = crate::Moment(second * 1_000_000);
        lab.announce(0, v4(PREFIX), path(&[64_600]).number(code::MED, med));
        assert_eq!(lab.rib.explain(v4(PREFIX))[0].since, crate::Moment(since * 1_000_000));
    }
}

/// A link-local address means nothing elsewhere: it is known with its link, and not passed on.
#[test]
fn link_local_next_hops_belong_to_a_link() {
    let (global, link_local) = ("2001:db8::9".parse().expect("an address"), "fe80::9".parse().expect("an address"));
    for (next_hop, told) in [
        (NextHop::V6(link_local), crate::rib::tests::harness::OWN_V6),
        (NextHop::V6Pair { global, link_local }, NextHop::V6(global)),
    ] {
        let mut lab = Lab::new(vec![Peer::new(0, Internal).client(), Peer::new(1, Internal)]);
        lab.change_settings(0, |settings| settings.scope = crate::rib::Scope(7));
        (0..2).for_each(|number| lab.session_up(number));
        lab.announce_via(0, v6("2001:db8:7::/48"), PathId(0), &path(&[5]), next_hop);
        let tracked: Vec<_> = lab.rib.next_hops_to_track().map(|it| (it.next_hop, it.scope.0)).collect();
        assert_eq!(tracked, [(next_hop, 7)]);
        lab.settle();
        assert_eq!(heard_next_hop(&lab.peers[1], "2001:db8:7::/48"), Some(told));
    }
}

#[test]
fn draining_marks_everything_with_graceful_shutdown() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    lab.change_settings(1, |settings| settings.graceful_shutdown = true);
    lab.settle();
    let heard = lab.peers[1].attributes_of(PREFIX).expect("heard");
    assert_eq!(heard.communities().collect::<Vec<_>>(), [0xffff_0000]);
}

#[test]
fn an_aggregate_stands_for_what_is_inside_it() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    let attributes = Builder::new().communities([7]).build();
    lab.rib.add_aggregate(v4("192.0.0.0/16"), Aggregate { attributes, summary_only: true });
    lab.settle();
    assert!(lab.peers[1].heard.is_empty(), "nothing is inside");
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.announce(0, v4("192.0.3.0/24"), &path(&[64_600]));
    lab.settle();
    assert_eq!(lab.peers[1].heard.len(), 1);
    let heard = lab.peers[1].attributes_of("192.0.0.0/16").expect("heard");
    assert_eq!((path_text(heard).as_str(), heard.is_atomic_aggregate()), ("65000", true));
    assert_eq!(heard.aggregator().map(|aggregator| aggregator.asn), Some(OWN_AS));
    assert_eq!(lab.rib.explain_export(PeerId(1), v4(PREFIX)), Err(NotAdvertised::Summarized));
    lab.withdraw(0, v4(PREFIX));
    lab.settle();
    assert_eq!(lab.peers[1].heard.len(), 1, "one is left inside");
    lab.withdraw(0, v4("192.0.3.0/24"));
    lab.settle();
    assert!(lab.peers[1].heard.is_empty());
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    lab.rib.remove_aggregate(v4("192.0.0.0/16"));
    lab.settle();
    assert_eq!(lab.peers[1].heard.keys().map(|(net, _)| net.to_string()).collect::<Vec<_>>(), [PREFIX]);
    lab.assert_leaves_nothing();
}

#[test]
fn a_refresh_is_bracketed_for_peers_that_know_it() {
    let mut peers = vec![Peer::new(0, External), Peer::new(1, External)];
    peers[1].negotiated.enhanced_refresh = true;
    let mut lab = Lab::up(peers);
    for number in 0..10 {
        lab.announce(0, V4::from_wire(24, &[10, 0, number]).expect("a prefix"), &path(&[64_600]));
    }
    lab.settle();
    let heard = std::mem::take(&mut lab.peers[1].heard);
    lab.rib.refresh_requested(PeerId(1), Family::Ipv4Unicast);
    lab.settle();
    assert_eq!(lab.peers[1].heard, heard);
    assert_eq!(lab.peers[1].refreshes, [RefreshKind::Begin, RefreshKind::End]);
    assert_eq!(lab.peers[1].ends_of_rib.len(), 2, "End-of-RIB is said once for each family");
    // Another reason to tell everything again comes in the middle: the end is said all the same.
    lab.rib.refresh_requested(PeerId(1), Family::Ipv4Unicast);
    lab.poll(1, 1);
    lab.poll(1, 1);
    assert_eq!(lab.peers[1].refreshes.len(), 3, "begun");
    let own = NextHop::V4("10.0.0.77".parse().expect("an address"));
    lab.rib.set_own_next_hops(PeerId(1), PerFamily { ipv4: Some(own), ipv6: None });
    lab.settle();
    assert_eq!(lab.peers[1].refreshes.last(), Some(&RefreshKind::End));
}

#[test]
fn a_stuck_peer_delays_nobody_and_catches_up_by_walking() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)]);
    lab.settle();
    let prefix = |number: u8| V4::from_wire(24, &[10, 0, number]).expect("a prefix");
    for round in 0..20_u32 {
        for number in 0..50 {
            lab.announce(0, prefix(number), path(&[64_600, 1_000 + round, 1 + u32::from(number)]).communities([round]));
        }
        lab.withdraw(0, prefix((round % 50) as u8));
        lab.decide();
        lab.rib.flush_exports();
        while lab.poll(1, 10_000) {}
        assert_eq!(lab.rib.export_lag(PeerId(1)), 0);
    }
    let group = lab.rib.tables.ipv4.groups.iter().flatten().next().expect("a group");
    assert!(group.log.first() > 100, "the log went on without the stuck peer");
    while lab.poll(2, 10_000) {}
    assert_eq!(lab.peers[1].heard, lab.peers[2].heard);
    assert!(lab.peers[2].messages < lab.peers[1].messages / 5, "it heard the last state, not the history");
    lab.assert_leaves_nothing();
}

#[test]
fn a_path_too_long_for_a_message_is_not_told() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    lab.announce(0, v4(PREFIX), path(&[64_600]).communities(0..1_010));
    lab.settle();
    assert_eq!(lab.rib.explain_export(PeerId(1), v4(PREFIX)), Err(NotAdvertised::TooLong));
    assert!(lab.peers[1].heard.is_empty());
    lab.announce(0, v4(PREFIX), path(&[64_600]).communities(0..900));
    lab.settle();
    assert_eq!(lab.peers[1].heard.len(), 1);
    // A peer with two-octet AS numbers would get the path a second time.
    let mut narrow = Peer::new(2, External);
    narrow.negotiated.asn4 = false;
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External), narrow]);
    let numbers: Vec<u32> = [64_600].into_iter().chain(100_000..100_700).collect();
    lab.announce(0, v4(PREFIX), &path(&numbers));
    lab.settle();
    assert_eq!(lab.rib.explain_export(PeerId(2), v4(PREFIX)), Err(NotAdvertised::TooLong));
    assert_eq!((lab.peers[1].heard.len(), lab.peers[2].heard.len()), (1, 0));
}

#[test]
fn pages_say_everything_once() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External)]);
    for number in 0..25 {
        lab.announce(0, V4::from_wire(24, &[10, 0, number]).expect("a prefix"), &path(&[64_600]));
    }
    lab.settle();
    let (mut cursor, mut seen, mut pages) = (Some(Cursor::default()), Vec::new(), 0);
    while let Some(from) = cursor {
        let page = lab.rib.advertised::<V4>(PeerId(1), from, 10);
        assert!(page.entries.len() <= 10);
        seen.extend(page.entries.into_iter().map(|entry| entry.prefix));
        (cursor, pages) = (page.next, pages + 1);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((seen.len(), pages), (25, 3));
    assert_eq!(lab.rib.longest_match(v4("10.0.7.9/32")), Some(v4("10.0.7.0/24")));
    assert_eq!(lab.rib.longest_match(v4("10.1.7.9/32")), None);
}

#[test]
fn what_is_ours_is_told_until_it_is_taken_back() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, Internal)]);
    let route = LocalRoute { source: LocalSource::PodCidr, attributes: path(&[]).build(), next_hop: None };
    lab.rib.originate(v4(PREFIX), &route, lab.now);
    lab.settle();
    assert_eq!(lab.peers[0].attributes_of(PREFIX).map(path_text).as_deref(), Some("65000"));
    assert_eq!(heard_next_hop(&lab.peers[1], PREFIX), Some(OWN_V4));
    let route = LocalRoute { next_hop: Some(next_hop(9)), ..route };
    lab.rib.originate(v4(PREFIX), &route, lab.now);
    lab.settle();
    assert_eq!(heard_next_hop(&lab.peers[1], PREFIX), Some(next_hop(9)));
    lab.rib.withdraw_local(v4(PREFIX), LocalSource::PodCidr);
    lab.settle();
    assert!(lab.peers.iter().all(|peer| peer.heard.is_empty()));
    lab.assert_leaves_nothing();
}

#[test]
fn a_family_without_session_is_not_told() {
    let mut peers = vec![Peer::new(0, External), Peer::new(1, External)];
    peers[1].negotiated.families = PerFamily { ipv4: None, ..peers[1].negotiated.families };
    let mut lab = Lab::up(peers);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.settle();
    assert!(lab.peers[1].heard.is_empty());
    assert_eq!(lab.peers[1].ends_of_rib, [Family::Ipv6Unicast]);
    assert_eq!(lab.rib.explain_export(PeerId(1), v4(PREFIX)), Err(NotAdvertised::NoSession));
}

/// What a peer is told in another way is replaced, and not withdrawn for a moment: traffic would be lost in between.
#[test]
fn another_export_replaces_paths_without_withdrawing_them() {
    let mut lab =
        Lab::up(vec![Peer::new(0, External), Peer::new(1, External).hears_several(9), Peer::new(2, External)]);
    for number in 0..100_u8 {
        lab.announce(0, V4::from_wire(24, &[10, 0, number]).expect("a prefix"), &path(&[64_600]));
    }
    lab.settle();
    for number in [1, 2] {
        assert_eq!(lab.peers[number].heard.len(), 100);
        lab.change_settings(number, |settings| settings.graceful_shutdown = true);
    }
    // One prefix changes at the same moment.
    lab.announce(0, v4("10.0.7.0/24"), &path(&[64_600, 64_999]));
    lab.settle();
    for peer in &lab.peers[1..] {
        assert_eq!((peer.heard.len(), peer.losses), (100, 0), "{:?}", peer.id);
        let told = |(octets, _): &(Vec<u8>, NextHop)| Attributes(octets).communities().any(|it| it == 0xffff_0000);
        assert!(peer.heard.values().all(told), "{:?}", peer.id);
    }
    // And one goes.
    lab.change_settings(2, |settings| settings.graceful_shutdown = false);
    lab.withdraw(0, v4("10.0.8.0/24"));
    lab.settle();
    assert_eq!((lab.peers[2].heard.len(), lab.peers[2].losses), (99, 1));
}

/// A peer that moves to another group while a path goes hears that from the group that never knew the path, however long it
/// takes until it reads.
#[test]
fn a_path_that_goes_while_a_peer_moves_is_withdrawn() {
    let mut lab = Lab::up(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)]);
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.announce(0, v4("10.0.7.0/24"), &path(&[64_600]));
    lab.settle();
    lab.withdraw(0, v4(PREFIX));
    lab.decide();
    lab.change_settings(2, |settings| settings.graceful_shutdown = true);
    lab.settle_but(2);
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.peers[2].heard.len()), (1, 1));
    assert!(lab.peers[2].attributes_of(PREFIX).is_none());
}

/// With add-path, only the group that told a path knows its identifier: it is handed on to the group where the peer goes.
#[test]
fn with_add_path_too_what_goes_while_a_peer_moves_is_withdrawn() {
    for (before_move, after_move) in [(true, false), (false, true)] {
        let mut lab = Lab::up(vec![
            Peer::new(0, External),
            Peer::new(1, External).hears_several(0),
            Peer::new(2, External).hears_several(0),
            Peer::new(3, External),
        ]);
        // The group where peer 2 goes is there already and knows nothing of the path.
        lab.change_settings(1, |settings| settings.export = policy(PREFIX));
        lab.announce(3, v4(PREFIX), &path(&[64_603]));
        lab.announce(0, v4(PREFIX), &path(&[64_600]));
        lab.announce(0, v4("10.0.7.0/24"), &path(&[64_600]));
        lab.settle();
        assert_eq!((lab.peers[1].heard.len(), lab.peers[2].heard.len()), (1, 3));
        let goes = |lab: &mut Lab| {
            lab.withdraw(0, v4(PREFIX));
            lab.settle_but(2);
        };
        if before_move {
            goes(&mut lab);
        }
        let export = lab.peers[1].settings.export.clone();
        lab.change_settings(2, |settings| settings.export = export);
        if after_move {
            goes(&mut lab);
        }
        lab.settle_but(2);
        lab.settle();
        assert_eq!(lab.peers[1].heard, lab.peers[2].heard, "{before_move}");
        assert!(lab.rib.laggards().is_empty(), "nobody's session has to end for that");
        let paths = lab.rib.tables.ipv4.groups.iter().flatten().filter(|group| group.sends_several());
        assert_eq!(paths.map(|group| group.known_paths()).sum::<usize>(), 1, "and nothing is kept of it");
        lab.assert_leaves_nothing();
    }
}

/// What a stuck peer has yet to hear of several paths stays known, also when the log has gone on without it and somebody
/// who came later has been told.
#[test]
fn with_add_path_too_a_stuck_peer_hears_what_went() {
    for moves in [false, true] {
        let mut peers = vec![Peer::new(0, External)];
        peers.extend((1..4).map(|number| Peer::new(number, External).hears_several(0)));
        let mut lab = Lab::up(peers);
        if moves {
            lab.change_settings(3, |settings| settings.graceful_shutdown = true);
        }
        let prefix = |number: u8| V4::from_wire(24, &[10, 0, number]).expect("a prefix");
        lab.announce(0, v4(PREFIX), &path(&[64_600]));
        lab.settle();
        lab.withdraw(0, v4(PREFIX));
        lab.settle_but(1);
        if moves {
            lab.change_settings(3, |settings| settings.graceful_shutdown = false);
            lab.settle_but(1);
        }
        for round in 0..20_u32 {
            for number in 0..10 {
                lab.announce(0, prefix(number), &path(&[64_600, 1_000 + round, 1 + u32::from(number)]));
            }
            lab.settle_but(1);
        }
        lab.settle();
        assert_eq!(lab.peers[1].heard, lab.peers[2].heard, "{moves}");
        lab.assert_leaves_nothing();
    }
}

/// A path comes anew and goes while a peer walks: the walk finds it gone, the log says both again, and what is known of the path
/// is all there is to take it back by when the log goes on after the first of them.
#[test]
fn with_add_path_too_what_came_and_went_during_a_walk_is_withdrawn() {
    let mut peers = vec![Peer::new(0, External)];
    peers.extend((1..3).map(|number| Peer::new(number, External).hears_several(0)));
    let mut lab = Lab::up(peers);
    lab.change_settings(2, |settings| settings.graceful_shutdown = true);
    let prefix = |number: u8| V4::from_wire(24, &[10, 0, number]).expect("a prefix");
    let last = u8::try_from(3 * lab.rib.core.sizes.scan_window).expect("small steps") - 1;
    for number in 0..=last {
        lab.announce(0, prefix(number), &path(&[64_600, 1 + u32::from(number)]));
    }
    lab.settle();
    // Peer 1 comes to the group of peer 2, is told everything again, and has heard the first third of that.
    lab.change_settings(1, |settings| settings.graceful_shutdown = true);
    lab.poll(1, 1);
    let scan = |lab: &Lab| {
        let mut members = lab.rib.tables.ipv4.groups.iter().flatten().filter_map(|group| group.member(PeerId(1)));
        members.next().and_then(|member| match member.progress {
            Progress::Scanning(scan) => Some(scan),
            Progress::Reading(_) => None,
        })
    };
    let walk = scan(&lab).expect("it walks");
    assert!(0 < walk.at && walk.at < u32::from(last), "{walk:?}");
    lab.announce(0, prefix(last), &path(&[64_600, 77]));
    lab.settle_but(1);
    lab.withdraw(0, prefix(last));
    lab.settle_but(1);
    while scan(&lab).is_some() {
        lab.poll(1, 1);
    }
    let has_heard = |lab: &Lab| lab.peers[1].attributes_of("10.0.8.0/24").is_some();
    assert!(!has_heard(&lab), "the walk knows that it is gone");
    lab.poll(1, 1);
    assert!(has_heard(&lab), "the log does not");
    for round in 0..20_u32 {
        for number in 0..last {
            lab.announce(0, prefix(number), &path(&[64_600, 1_000 + round, 1 + u32::from(number)]));
        }
        lab.settle_but(1);
    }
    let first = lab.rib.tables.ipv4.groups.iter().flatten().map(|group| group.log.first()).max();
    assert!(first > Some(walk.resume + 2), "the log went on without it");
    lab.settle();
    assert_eq!(lab.peers[1].heard, lab.peers[2].heard);
    lab.assert_leaves_nothing();
}

/// An address that becomes usable after the session did: paths that waited for it are told, and others again.
#[test]
fn own_next_hops_may_change_while_a_session_is_up() {
    let mut lab = Lab::new(vec![Peer::new(0, External), Peer::new(1, External), Peer::new(2, External)]);
    let later = std::mem::take(&mut lab.peers[1].own.ipv6);
    (0..3).for_each(|number| lab.session_up(number));
    lab.announce(0, v4(PREFIX), &path(&[64_600]));
    lab.announce(0, v6("2001:db8:1::/48"), &path(&[64_600]));
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.peers[2].heard.len()), (1, 2));
    let new_v4 = NextHop::V4("10.0.0.77".parse().expect("an address"));
    lab.rib.set_own_next_hops(PeerId(1), PerFamily { ipv4: Some(new_v4), ipv6: later });
    lab.settle();
    assert_eq!(heard_next_hop(&lab.peers[1], PREFIX), Some(new_v4));
    assert_eq!(heard_next_hop(&lab.peers[1], "2001:db8:1::/48"), later);
    assert_eq!((lab.peers[1].losses, lab.peers[2].messages), (0, 2), "nobody else hears of it");
    // None any more: what was said stays.
    lab.rib.set_own_next_hops(PeerId(1), PerFamily::default());
    lab.settle();
    assert_eq!((lab.peers[1].heard.len(), lab.peers[1].losses), (2, 0));
}

#[test]
fn each_peer_is_told_a_path_or_has_a_reason() {
    let mut peers: Vec<Peer> = (0..5).map(|number| Peer::new(number, External)).collect();
    peers[3].negotiated.families.ipv4.as_mut().expect("a family").add_path_send = true;
    peers[4].negotiated.families.ipv4 = None;
    let mut lab = Lab::up(peers);
    lab.change_settings(2, |settings| settings.export = policy(PREFIX));
    lab.change_settings(3, |settings| settings.add_path_max.ipv4 = 2);
    for (number, numbers) in [&[64_600][..], &[64_601, 1], &[64_602, 1, 2]].into_iter().enumerate() {
        lab.announce(number, v4(PREFIX), &path(numbers));
    }
    lab.settle();
    let (views, exports) = (lab.rib.explain(v4(PREFIX)), lab.rib.explain_exports(v4(PREFIX)));
    let of = |peer: u16| {
        let at = views.iter().position(|view| view.peer == PeerId(peer)).expect("a path");
        let told: Vec<u16> = exports[at].told.iter().map(|peer| peer.0).collect();
        let why: Vec<_> = exports[at].withheld.iter().map(|it| (it.peer.0, it.why, it.rule.clone())).collect();
        (told, why)
    };
    let (told, why) = of(0);
    assert_eq!(told, [1, 3]);
    assert_eq!(why[0], (0, NotAdvertised::SplitHorizon, None));
    let rule = why[1].2.as_deref().unwrap_or_default();
    assert!(why[1].0 == 2 && matches!(why[1].1, NotAdvertised::Policy(_)) && rule.starts_with("test/"), "{why:?}");
    assert_eq!(why[2..], [(4, NotAdvertised::NoSession, None)]);
    assert_eq!(of(1), (vec![3], Vec::new()));
    assert_eq!(of(2), (Vec::new(), vec![(3, NotAdvertised::BeyondMaximum, None)]));
    lab.assert_leaves_nothing();
}
