use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    id::Asn,
    next_hop::NextHop,
    policy::{
        AsPathList, CommunityPattern, GuardSettings, LocalSource, PeerSource, PrefixList, PrependAs, Rule, Source,
        SourceKind, Validity, Vrp, Vrps,
    },
    session::PeerKind,
    wire::{
        as_path::write_segments,
        attributes::{Builder, Origin, code, flag, write_attribute},
    },
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn prefixes(lines: &[&str]) -> Match {
    Match::Prefix(Arc::new(PrefixList::new(lines.iter().map(|line| line.parse().expect("a line")))))
}

fn communities(list: &[&str]) -> Arc<[Community]> {
    list.iter().map(|text| text.parse().expect("a community")).collect()
}

fn patterns(list: &[&str]) -> Arc<[CommunityPattern]> {
    list.iter().map(|text| text.parse().expect("a pattern")).collect()
}

fn as_paths(list: &[&str]) -> Match {
    let entries = list.iter().map(|text| (text.parse().expect("a pattern"), true)).collect();
    Match::AsPath(Arc::new(AsPathList { entries }))
}

fn rule(name: &str, matches: Vec<Match>, actions: Vec<Action>, then: Then) -> Rule {
    Rule { name: name.into(), matches, actions, then }
}

fn set(name: &str, rules: Vec<Rule>) -> Arc<RuleSet> {
    Arc::new(RuleSet { name: name.into(), rules })
}

fn policy(rules: Vec<Rule>) -> Policy {
    Policy::new(&[set("p", rules)], End::Reject).expect("few rules")
}

/// A path `65001 65002` with MED 50, LOCAL_PREF 200, `65001:1`, `rt:65001:7` and `65001:1:2`.
fn attributes() -> Vec<u8> {
    let mut builder = Builder::new();
    builder.origin(Origin::Igp).number(code::MED, 50).number(code::LOCAL_PREF, 200);
    builder.set(code::AS_PATH, write_segments([(SegmentKind::Sequence, [Asn(65_001), Asn(65_002)].as_slice())]));
    builder.communities([0xfde9_0001]).extended_communities([[0, 2, 0xfd, 0xe9, 0, 0, 0, 7]]);
    builder.large_communities(["65001:1:2"].map(|text| match text.parse() {
        Ok(Community::Large(large)) => large,
        other => panic!("{other:?}"),
    }));
    builder.build()
}

fn peer() -> Source {
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    Source::Peer(PeerSource { kind: PeerKind::External, asn: Asn(65_001), address })
}

fn candidate<'a>(prefix: &str, attributes: &'a [u8]) -> Candidate<'a> {
    Candidate {
        prefix: net(prefix),
        attributes: Attributes(attributes),
        next_hop: Some(NextHop::V4(Ipv4Addr::new(192, 0, 2, 1))),
        source: peer(),
        local_as: Asn(64_512),
        vrps: None,
    }
}

#[test]
fn every_match_holds_and_does_not() {
    let octets = attributes();
    let vrps = Vrps::new(vec![Vrp { prefix: net("10.1.0.0/16"), length_max: 16, asn: Asn(65_002) }]);
    let candidate = Candidate { vrps: Some(&vrps), ..candidate("10.1.0.0/16", &octets) };
    let list = |text: &str| Arc::new(PrefixList::new([text.parse().expect("a line")]));
    for (yes, no) in [
        (prefixes(&["10.0.0.0/8 ge 16"]), prefixes(&["10.0.0.0/8 ge 17"])),
        (Match::Family(Family::Ipv4Unicast), Match::Family(Family::Ipv6Unicast)),
        (Match::AnyCommunity(patterns(&["1:1", "65001:*"])), Match::AnyCommunity(patterns(&["1:1", "2:*"]))),
        (
            Match::AllCommunities(patterns(&["65001:1", "rt:65001:*", "65001:*:2"])),
            Match::AllCommunities(patterns(&["65001:1", "rt:65002:*"])),
        ),
        (as_paths(&["^65001_"]), as_paths(&["_65001$", "^$"])),
        (Match::AsPathLength(2..=2), Match::AsPathLength(3..=255)),
        (Match::NeighborAs([65_000..=65_001].into()), Match::NeighborAs([65_002..=65_002].into())),
        (Match::OriginAs([65_002..=65_002].into()), Match::OriginAs([65_001..=65_001].into())),
        (Match::NextHop(list("192.0.2.0/24 le 32")), Match::NextHop(list("192.0.2.0/24"))),
        (Match::Origin(vec![Origin::Igp]), Match::Origin(vec![Origin::Incomplete, Origin::Egp])),
        (Match::Med(50..=50), Match::Med(0..=49)),
        (Match::LocalPref(101..=u32::MAX), Match::LocalPref(0..=100)),
        (
            Match::Source(vec![SourceKind::Peer(PeerKind::External)]),
            Match::Source(vec![SourceKind::Local(LocalSource::Static), SourceKind::Peer(PeerKind::Internal)]),
        ),
        (Match::Peer(["192.0.2.1".parse().expect("an address")].into()), Match::Peer([].into())),
        (Match::PeerAs([65_001..=65_001].into()), Match::PeerAs([65_002..=65_002].into())),
        (Match::Rpki(vec![Validity::Valid]), Match::Rpki(vec![Validity::Invalid, Validity::NotFound])),
        (Match::Any(vec![Match::Med(0..=0), Match::Med(50..=50)]), Match::Any(vec![Match::Med(0..=0)])),
    ] {
        for (one, expected) in [
            (yes.clone(), true),
            (no.clone(), false),
            (Match::Not(Box::new(yes)), false),
            (Match::Not(Box::new(no)), true),
        ] {
            let text = format!("{one:?}");
            let decision = policy(vec![rule("r", vec![one], vec![], Then::Accept)]).evaluate(&candidate);
            assert_eq!(decision.outcome.is_accepted(), expected, "{text}");
            let by = if expected { RuleId(0) } else { RuleId::END_OF_POLICY };
            assert_eq!(decision.rule, by, "{text}");
        }
    }
}

#[test]
fn a_path_without_what_is_matched_has_the_defaults() {
    let candidate =
        Candidate { next_hop: None, source: Source::Local(LocalSource::Service), ..candidate("10.1.0.0/16", &[]) };
    let any = Arc::new(PrefixList::new(["0.0.0.0/0 le 32".parse().expect("a line")]));
    for (one, expected) in [
        (Match::Med(0..=0), true),
        (Match::LocalPref(100..=100), true),
        (Match::AsPathLength(0..=0), true),
        (as_paths(&["^$"]), true),
        (Match::OriginAs([64_512..=64_512].into()), true),
        (Match::NeighborAs([0..=u32::MAX].into()), false),
        (Match::NextHop(any), false),
        (Match::Source(vec![SourceKind::Local(LocalSource::Service)]), true),
        (Match::PeerAs([0..=u32::MAX].into()), false),
        (Match::Rpki(vec![Validity::NotFound]), true),
    ] {
        let text = format!("{one:?}");
        let decision = policy(vec![rule("r", vec![one], vec![], Then::Accept)]).evaluate(&candidate);
        assert_eq!(decision.outcome.is_accepted(), expected, "{text}");
    }
}

/// What the path looks like after one action.
fn after(action: Action) -> Option<String> {
    let octets = attributes();
    let decision =
        policy(vec![rule("r", vec![], vec![action], Then::Accept)]).evaluate(&candidate("10.1.0.0/16", &octets));
    let Outcome::Edit(edited) = decision.outcome else { return None };
    let octets = edited.attributes.unwrap_or(octets);
    let view = Attributes(&octets);
    let codes: Vec<u8> = view.iter().map(|attribute| attribute.code).collect();
    assert!(codes.is_sorted(), "{codes:?}");
    let mut words: Vec<String> = view.communities().map(|value| Community::Standard(value).to_string()).collect();
    words.extend(view.extended_communities().map(|value| Community::Extended(value).to_string()));
    words.extend(view.large_communities().map(|value| Community::Large(value).to_string()));
    let [med, local_pref] = [view.med(), view.local_pref()].map(|n| n.map_or("-".to_owned(), |n| n.to_string()));
    let origin = view.origin() as u8;
    Some(format!("{} | {origin} {med} {local_pref} | {} | {:?}", view.as_path(), words.join(" "), edited.next_hop))
}

#[test]
fn every_action_changes_what_it_says() {
    let address = NextHop::V4(Ipv4Addr::new(192, 0, 2, 9));
    let base = "65001 65002 | 0 50 200 | 65001:1 rt:65001:7 65001:1:2 | Default";
    for (action, expected) in [
        (Action::LocalPref(NumberEdit::Set(7)), base.replace("200", "7")),
        (Action::LocalPref(NumberEdit::Add(u32::MAX)), base.replace("200", "4294967295")),
        (Action::LocalPref(NumberEdit::Subtract(50)), base.replace("200", "150")),
        (Action::Med(NumberEdit::Set(0)), base.replace("50 200", "0 200")),
        (Action::Med(NumberEdit::Add(5)), base.replace("50 200", "55 200")),
        (Action::Med(NumberEdit::Subtract(60)), base.replace("50 200", "0 200")),
        (Action::RemoveMed, base.replace("50 200", "- 200")),
        (Action::Origin(Origin::Incomplete), base.replace("| 0", "| 2")),
        (Action::SetCommunities(communities(&["1:1", "no-export"])), base.replace("65001:1 rt", "1:1 no-export rt")),
        (
            Action::AddCommunities(communities(&["1:1", "65001:1", "soo:9:9", "7:7:7"])),
            base.replace("65001:1 rt:65001:7 65001:1:2", "65001:1 1:1 rt:65001:7 soo:9:9 65001:1:2 7:7:7"),
        ),
        (Action::RemoveCommunities(patterns(&["65001:*", "rt:*:*"])), base.replace("65001:1 rt:65001:7 ", "")),
        (Action::Prepend(PrependAs::Own, 2), base.replace("65001 65002 ", "64512 64512 65001 65002 ")),
        (Action::Prepend(PrependAs::First, 1), base.replace("65001 65002 ", "65001 65001 65002 ")),
        (Action::Prepend(PrependAs::Number(Asn(9)), 1), base.replace("65001 65002 ", "9 65001 65002 ")),
        (Action::NextHop(NextHopEdit::Own), base.replace("Default", "Own")),
        (Action::NextHop(NextHopEdit::Unchanged), base.replace("Default", "Unchanged")),
        (
            Action::NextHop(NextHopEdit::Address(address)),
            base.replace("Default", &format!("{:?}", NextHopEdit::Address(address))),
        ),
    ] {
        let text = format!("{action:?}");
        assert_eq!(after(action).as_deref(), Some(expected.as_str()), "{text}");
    }
    // What is so already changes nothing.
    for action in [
        Action::LocalPref(NumberEdit::Set(200)),
        Action::Med(NumberEdit::Add(0)),
        Action::AddCommunities(communities(&["65001:1"])),
        Action::RemoveCommunities(patterns(&["1:1"])),
        Action::SetCommunities(communities(&["65001:1"])),
        Action::Prepend(PrependAs::Own, 0),
        Action::NextHop(NextHopEdit::Default),
    ] {
        let text = format!("{action:?}");
        assert_eq!(after(action), None, "{text}");
    }
}

#[test]
fn sets_are_walked_in_their_order_and_see_what_earlier_rules_changed() {
    let lower = rule("lower", vec![], vec![Action::LocalPref(NumberEdit::Set(50))], Then::Next);
    let is_low = |name, then| rule(name, vec![Match::LocalPref(0..=50)], vec![], then);
    let octets = attributes();
    let candidate = candidate("10.1.0.0/16", &octets);
    for (sets, end, rule_name, accepted) in [
        (vec![vec![lower.clone(), is_low("low", Then::Reject)]], End::Accept, "a/low", false),
        (vec![vec![lower.clone()], vec![is_low("low", Then::Accept)]], End::Reject, "b/low", true),
        (vec![vec![lower.clone()]], End::Accept, "end of policy", true),
        (vec![vec![lower.clone()]], End::Reject, "end of policy", false),
        (
            vec![
                vec![
                    is_low("no", Then::Accept),
                    rule("skip", vec![], vec![], Then::NextPolicy),
                    rule("x", vec![], vec![], Then::Reject),
                ],
                vec![rule("y", vec![], vec![], Then::Accept)],
            ],
            End::Reject,
            "b/y",
            true,
        ),
        (vec![vec![rule("skip", vec![], vec![], Then::NextPolicy)]], End::Accept, "end of policy", true),
        (
            vec![
                vec![
                    rule("skip", vec![Match::LocalPref(200..=200)], vec![], Then::NextPolicy),
                    rule("x", vec![], vec![], Then::Reject),
                ],
                vec![rule("y", vec![], vec![], Then::Accept)],
            ],
            End::Reject,
            "b/y",
            true,
        ),
    ] {
        let sets: Vec<Arc<RuleSet>> = ["a", "b"].into_iter().zip(sets).map(|(name, rules)| set(name, rules)).collect();
        let policy = Policy::new(&sets, end).expect("few rules");
        for policy in [policy.clone(), policy.for_family(Family::Ipv4Unicast)] {
            let decision = policy.evaluate(&candidate);
            assert_eq!((policy.rule_name(decision.rule), decision.outcome.is_accepted()), (rule_name, accepted));
        }
    }
    assert_eq!(Policy::accept_all().evaluate(&candidate).outcome, Outcome::Accept);
    let rejected = Policy::reject_all().evaluate(&candidate);
    assert_eq!(
        (Policy::reject_all().rule_name(rejected.rule), rejected.outcome),
        ("no policy (RFC 8212)", Outcome::Reject)
    );
}

/// The attributes that come of one action on these.
fn edited(action: Action, octets: &[u8]) -> Vec<u8> {
    let decision =
        policy(vec![rule("r", vec![], vec![action], Then::Accept)]).evaluate(&candidate("10.1.0.0/16", octets));
    match decision.outcome {
        Outcome::Edit(Edited { attributes: Some(attributes), .. }) => attributes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn edited_attributes_stay_well_formed() {
    // Without a community there is no attribute: one of length 0 would be malformed (RFC 7606 section 7.8).
    let without = edited(Action::RemoveCommunities(patterns(&["65001:*"])), &attributes());
    assert_eq!(Attributes(&without).get(code::COMMUNITIES), None);
    // Who did not know an attribute on the way said so, and that stays.
    let mut partial = Vec::new();
    write_attribute(&mut partial, flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL, code::COMMUNITIES, &[0, 1, 0, 1]);
    let more = edited(Action::AddCommunities(communities(&["1:2"])), &partial);
    let flags = Attributes(&more).iter().next().map(|attribute| attribute.flags);
    assert_eq!(flags, Some(flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL));
    // Inside of a confederation what is prepended stays inside of it.
    let inside = [(SegmentKind::ConfedSequence, [Asn(7)].as_slice()), (SegmentKind::Sequence, &[Asn(9)])];
    let inside = Builder::new().set(code::AS_PATH, write_segments(inside)).build();
    let more = edited(Action::Prepend(PrependAs::Own, 1), &inside);
    assert_eq!(Attributes(&more).as_path().to_string(), "(64512 7) 9");
}

#[test]
fn later_rules_see_the_next_hop_that_was_set() {
    let address = NextHop::V4(Ipv4Addr::new(198, 51, 100, 9));
    let list = Arc::new(PrefixList::new(["198.51.100.0/24 le 32".parse().expect("a line")]));
    let rules = vec![
        rule("set", vec![], vec![Action::NextHop(NextHopEdit::Address(address))], Then::Next),
        rule("see", vec![Match::NextHop(list)], vec![], Then::Accept),
    ];
    assert!(policy(rules).evaluate(&candidate("10.1.0.0/16", &attributes())).outcome.is_accepted());
}

#[test]
fn well_known_communities_do_what_their_rfcs_say() {
    let with = |values: &[u32]| {
        let octets = attributes();
        let mut builder = Builder::of(Attributes(&octets));
        builder.communities(values.iter().copied()).build()
    };
    let guarded = |settings| Policy::accept_all().with_guard(Arc::new(ImportGuard::new([], settings)));
    let shut = with(&[Community::GRACEFUL_SHUTDOWN]);
    let Outcome::Edit(edited) = guarded(GuardSettings::default()).evaluate(&candidate("8.8.8.0/24", &shut)).outcome
    else {
        panic!("not changed");
    };
    assert_eq!(Attributes(&edited.attributes.expect("attributes")).local_pref(), Some(0));
    let off = GuardSettings { graceful_shutdown: false, ..GuardSettings::default() };
    assert_eq!(guarded(off).evaluate(&candidate("8.8.8.0/24", &shut)).outcome, Outcome::Accept);

    let hole = with(&[Community::BLACKHOLE]);
    assert_eq!(guarded(GuardSettings::default()).evaluate(&candidate("8.8.8.0/24", &hole)).outcome, Outcome::Accept);
    let on = GuardSettings { blackhole: true, ..GuardSettings::default() };
    let Outcome::Edit(edited) = guarded(on).evaluate(&candidate("8.8.8.8/32", &hole)).outcome else {
        panic!("not changed");
    };
    assert_eq!(edited.next_hop, NextHopEdit::Discard);
    let list: Vec<u32> = Attributes(&edited.attributes.expect("attributes")).communities().collect();
    assert_eq!(list, [Community::BLACKHOLE, Community::NO_ADVERTISE]);
    for limited in [Community::NO_EXPORT, Community::NO_ADVERTISE] {
        let hole = with(&[Community::BLACKHOLE, limited]);
        let outcome = guarded(on).evaluate(&candidate("8.8.8.8/32", &hole)).outcome;
        assert_eq!(outcome, Outcome::Edit(Edited { attributes: None, next_hop: NextHopEdit::Discard }));
    }

    let plain = attributes();
    let draining = Policy::accept_all().with_graceful_shutdown();
    let Outcome::Edit(edited) = draining.evaluate(&candidate("8.8.8.0/24", &plain)).outcome else {
        panic!("not changed");
    };
    let list: Vec<u32> = Attributes(&edited.attributes.expect("attributes")).communities().collect();
    assert_eq!(list, [0xfde9_0001, Community::GRACEFUL_SHUTDOWN]);
    assert_eq!(draining.evaluate(&candidate("8.8.8.0/24", &shut)).outcome, Outcome::Accept);
}

#[test]
fn sets_in_as_paths_are_refused_where_the_guard_says_so() {
    for kind in [SegmentKind::Set, SegmentKind::ConfedSet] {
        let octets = Builder::new().set(code::AS_PATH, write_segments([(kind, [Asn(1)].as_slice())])).build();
        for (refuse_as_sets, expected) in [(true, RuleId::AS_SET), (false, RuleId::ACCEPT_ALL)] {
            let guard = ImportGuard::new([], GuardSettings { refuse_as_sets, ..GuardSettings::default() });
            let policy = Policy::accept_all().with_guard(Arc::new(guard));
            assert_eq!(policy.evaluate(&candidate("8.8.8.0/24", &octets)).rule, expected);
        }
    }
}

#[test]
fn the_guard_comes_before_every_rule() {
    let guard = Arc::new(ImportGuard::new([net("10.0.1.0/24")], GuardSettings::default()));
    let policy = Policy::accept_all().with_guard(guard);
    let octets = attributes();
    for (prefix, name) in [
        ("10.0.1.0/25", "own prefix"),
        ("10.0.0.0/8", "covers own prefix"),
        ("0.0.0.0/0", "default route"),
        ("127.0.0.0/8", "martian"),
        ("10.0.2.0/24", "accept all"),
    ] {
        assert_eq!(policy.rule_name(policy.evaluate(&candidate(prefix, &octets)).rule), name, "{prefix}");
    }
    assert!(policy.depends_on_prefix() && !policy.rules_depend_on_prefix() && !policy.accepts_all());
}

#[test]
fn what_a_policy_depends_on_is_what_its_reachable_rules_look_at() {
    let v6 = || prefixes(&["2001:db8::/32 le 48"]);
    let accept = |name, matches| rule(name, matches, vec![], Then::Accept);
    for (rules, whole, ipv4, ipv6) in [
        (vec![accept("all", vec![])], false, false, false),
        (vec![accept("v6", vec![v6()])], true, false, true),
        (vec![accept("family", vec![Match::Family(Family::Ipv6Unicast)])], true, false, false),
        (vec![accept("all", vec![]), accept("never", vec![v6()])], false, false, false),
        (vec![rule("nothing", vec![v6()], vec![], Then::Next), accept("all", vec![])], false, false, false),
        (vec![accept("rpki", vec![Match::Rpki(vec![Validity::Valid])])], true, true, true),
        (vec![accept("not", vec![Match::Not(Box::new(v6()))])], true, false, true),
        (vec![accept("any", vec![Match::Any(vec![v6(), Match::Med(0..=0)])])], true, true, true),
        (vec![accept("med", vec![Match::Med(0..=0)])], false, false, false),
    ] {
        let name = rules[0].name.clone();
        let policy = policy(rules);
        assert_eq!(policy.rules_depend_on_prefix(), whole, "{name}");
        assert_eq!(policy.for_family(Family::Ipv4Unicast).rules_depend_on_prefix(), ipv4, "{name}");
        assert_eq!(policy.for_family(Family::Ipv6Unicast).rules_depend_on_prefix(), ipv6, "{name}");
    }
    let by_peer = policy(vec![accept("peer", vec![Match::Not(Box::new(Match::PeerAs([1..=1].into())))])]);
    assert!(by_peer.depends_on_peer() && !by_peer.depends_on_prefix() && !by_peer.depends_on_rpki());
}

#[test]
fn too_many_rules_are_an_error() {
    let rules = vec![rule("r", vec![Match::Med(1..=1)], vec![], Then::Accept); RULES_MAX + 1];
    assert_eq!(Policy::new(&[set("p", rules)], End::Reject), Err(TooManyRules { count: RULES_MAX + 1 }));
}

fn any_match() -> impl Strategy<Value = Match> {
    let one = prop_oneof![
        Just(prefixes(&["10.0.0.0/8 le 32"])),
        Just(prefixes(&["deny 10.1.0.0/16", "0.0.0.0/0 le 16", "::/0 le 128"])),
        Just(prefixes(&["2001:db8::/32 ge 40"])),
        Just(Match::Family(Family::Ipv4Unicast)),
        Just(Match::Family(Family::Ipv6Unicast)),
        Just(Match::AnyCommunity(patterns(&["65001:*"]))),
        Just(Match::AnyCommunity(patterns(&[]))),
        Just(Match::AllCommunities(patterns(&[]))),
        Just(Match::Med(0..=50)),
        Just(Match::LocalPref(0..=150)),
        Just(Match::PeerAs([65_001..=65_001].into())),
        Just(Match::Rpki(vec![Validity::Valid])),
    ];
    one.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Match::Not(Box::new(one))),
            prop::collection::vec(inner, 0..3).prop_map(Match::Any),
        ]
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![
        Just(Action::LocalPref(NumberEdit::Set(100))),
        Just(Action::Med(NumberEdit::Add(10))),
        Just(Action::AddCommunities(communities(&["65001:9"]))),
        Just(Action::RemoveCommunities(patterns(&["65001:*"]))),
        Just(Action::Prepend(PrependAs::Own, 1)),
    ];
    let then = prop_oneof![Just(Then::Accept), Just(Then::Reject), Just(Then::Next), Just(Then::NextPolicy)];
    (prop::collection::vec(any_match(), 0..3), prop::collection::vec(action, 0..2), then)
        .prop_map(|(matches, actions, then)| rule("r", matches, actions, then))
}

proptest! {
    #[test]
    fn a_policy_decides_the_same_for_its_family_and_for_all_prefixes_it_does_not_look_at(
        sets in prop::collection::vec(prop::collection::vec(any_rule(), 0..4), 0..3),
        accept in any::<bool>(),
    ) {
        let sets: Vec<Arc<RuleSet>> = sets.into_iter().map(|rules| set("p", rules)).collect();
        let whole = Policy::new(&sets, if accept { End::Accept } else { End::Reject }).expect("few rules");
        let vrps = Vrps::new(vec![Vrp { prefix: net("10.1.0.0/16"), length_max: 24, asn: Asn(65_002) }]);
        let octets = attributes();
        for family in Family::ALL {
            let list: &[&str] = match family {
                Family::Ipv4Unicast => &["10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "192.0.2.0/24"],
                Family::Ipv6Unicast => &["2001:db8::/32", "2001:db8:1::/48", "::/0"],
            };
            let policy = whole.for_family(family);
            let mut first = None;
            for prefix in list {
                let candidate = Candidate { vrps: Some(&vrps), ..candidate(prefix, &octets) };
                let decision = whole.evaluate(&candidate);
                prop_assert_eq!(&decision, &policy.evaluate(&candidate));
                if !policy.depends_on_prefix() {
                    prop_assert_eq!(first.get_or_insert(decision.clone()), &decision);
                }
                if let Outcome::Edit(edited) = decision.outcome {
                    let new = edited.attributes.expect("no rule changes the next hop");
                    prop_assert_ne!(&new, &octets);
                    // The canonical form is kept.
                    prop_assert_eq!(Builder::of(Attributes(&new)).build(), new);
                }
            }
        }
    }
}
