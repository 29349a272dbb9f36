//! What two OPENs agree on, and which OPENs are refused.

use super::{super::*, *};
use crate::{
    Asn, Family, PerFamily, RouterId,
    wire::{
        capability::{AddPathFamily, AddPathMode, Capability, GracefulRestart, LongLivedFamily, RestartFamily, Role},
        header::LengthLimit,
        notification::{ErrorCode, Notification, open_error},
        open::Open,
    },
};

fn refusal(config: &SessionConfig, open: &Open) -> (u8, Vec<u8>) {
    let notification = negotiate(config, open).expect_err("a refusal");
    assert_eq!(notification.code, ErrorCode::Open);
    (notification.subcode, notification.data)
}

fn agreed(config: &SessionConfig, theirs: &SessionConfig) -> Negotiated {
    negotiate(config, &our_open(theirs, &LocalRestart::default())).expect("the peers fit")
}

fn with_capabilities(capabilities: Vec<Capability>) -> Open {
    Open { asn: THEIRS, hold_time_s: 90, router_id: THEIR_ID, capabilities }
}

fn edit(config: SessionConfig, change: impl FnOnce(&mut SessionConfig)) -> SessionConfig {
    let mut config = config;
    change(&mut config);
    config
}

#[test]
fn our_open_says_what_is_configured() {
    let full = edit(config(), |it| {
        it.role = Some(RoleConfig { role: Role::Customer, strict: false });
        it.host_name = Some(HostName { host: "node-1".to_owned(), domain: "example.org".to_owned() });
        it.families.ipv4 =
            it.families.ipv4.map(|family| FamilyConfig { add_path_receive: true, stale_time_s: Some(3_600), ..family });
        it.families.ipv6 = it.families.ipv6.map(|family| FamilyConfig { add_path_send: true, ..family });
    });
    let restart = LocalRestart { restarted: true, forwarding_kept: PerFamily { ipv4: true, ipv6: false } };
    let open = our_open(&full, &restart);
    assert_eq!((open.asn, open.hold_time_s, open.router_id), (OURS, 90, OUR_ID));
    let families =
        vec![RestartFamily { afi: 1, safi: 1, forwarding: true }, RestartFamily { afi: 2, safi: 1, forwarding: false }];
    assert_eq!(
        open.capabilities,
        [
            Capability::Multiprotocol { afi: 1, safi: 1 },
            Capability::Multiprotocol { afi: 2, safi: 1 },
            Capability::RouteRefresh,
            Capability::ExtendedNextHop(vec![(1, 1, 2)]),
            Capability::ExtendedMessage,
            Capability::Role(Role::Customer),
            Capability::GracefulRestart(GracefulRestart {
                restarted: true,
                notification: true,
                restart_time_s: 120,
                families
            }),
            Capability::FourOctetAs(OURS),
            Capability::AddPath(vec![
                AddPathFamily { afi: 1, safi: 1, mode: AddPathMode::Receive },
                AddPathFamily { afi: 2, safi: 1, mode: AddPathMode::Send },
            ]),
            Capability::EnhancedRouteRefresh,
            Capability::LongLivedGracefulRestart(vec![LongLivedFamily {
                afi: 1,
                safi: 1,
                forwarding: true,
                stale_time_s: 3_600
            }]),
            Capability::Fqdn { host: "node-1".to_owned(), domain: "example.org".to_owned() },
        ]
    );
}

#[test]
fn what_is_switched_off_is_not_offered() {
    let plain = edit(config(), |it| {
        it.families = PerFamily { ipv4: None, ipv6: Some(FamilyConfig::default()) };
        it.extended_message = false;
        it.route_refresh = false;
        it.graceful_restart = None;
    });
    let offered = our_open(&plain, &LocalRestart::default()).capabilities;
    assert_eq!(offered, [Capability::Multiprotocol { afi: 2, safi: 1 }, Capability::FourOctetAs(OURS)]);
    let helper = edit(config(), |it| {
        it.graceful_restart = Some(RestartConfig { helper_only: true, ..RestartConfig::default() });
    });
    let offered = our_open(&helper, &LocalRestart::default()).capabilities;
    assert!(offered.iter().any(|it| matches!(it, Capability::GracefulRestart(it) if it.families.is_empty())));
}

#[test]
fn two_defaults_agree_on_everything() {
    let negotiated = agreed(&config(), &their_config());
    let family = NegotiatedFamily { restart: true, ..NegotiatedFamily::default() };
    assert_eq!(
        negotiated,
        Negotiated {
            kind: PeerKind::External,
            local_as: OURS,
            remote_as: THEIRS,
            router_id: THEIR_ID,
            hold_time_s: 90,
            asn4: true,
            length_limit: LengthLimit::Extended,
            route_refresh: true,
            enhanced_refresh: true,
            role: None,
            families: PerFamily {
                ipv4: Some(NegotiatedFamily { extended_next_hop: true, ..family }),
                ipv6: Some(family)
            },
            restart: Some(PeerRestart { restarted: false, notification: true, restart_time_s: 120 }),
            remote_open: our_open(&their_config(), &LocalRestart::default()),
        }
    );
}

#[test]
fn a_speaker_without_capabilities_speaks_ipv4() {
    let negotiated = negotiate(&config(), &with_capabilities(Vec::new())).expect("it fits");
    assert_eq!(negotiated.families, PerFamily { ipv4: Some(NegotiatedFamily::default()), ipv6: None });
    assert_eq!((negotiated.asn4, negotiated.length_limit), (false, LengthLimit::Standard));
    assert_eq!((negotiated.route_refresh, negotiated.enhanced_refresh, negotiated.restart), (false, false, None));
}

#[test]
fn what_only_one_side_has_is_not_used() {
    type Change = fn(&mut SessionConfig);
    type Check = fn(&Negotiated) -> bool;
    let cases: [(Change, Check); 6] = [
        (|it| it.extended_message = false, |it| it.length_limit == LengthLimit::Standard),
        (|it| it.route_refresh = false, |it| !it.route_refresh && !it.enhanced_refresh),
        (|it| it.enhanced_refresh = false, |it| it.route_refresh && !it.enhanced_refresh),
        (|it| it.graceful_restart = None, |it| it.restart.is_none() && it.families.ipv4.is_some_and(|it| !it.restart)),
        (|it| it.families.ipv6 = None, |it| it.families.ipv6.is_none() && it.families.ipv4.is_some()),
        (
            |it| it.families.ipv4 = it.families.ipv4.map(|it| FamilyConfig { extended_next_hop: false, ..it }),
            |it| it.families.ipv4.is_some_and(|it| !it.extended_next_hop),
        ),
    ];
    for (number, (change, check)) in cases.into_iter().enumerate() {
        assert!(!check(&agreed(&config(), &their_config())), "case {number} tests nothing");
        assert!(check(&agreed(&edit(config(), change), &their_config())), "case {number}, without ours");
        assert!(check(&agreed(&config(), &edit(their_config(), change))), "case {number}, without theirs");
    }
}

/// IPv6 prefixes have IPv6 next hops anyway: the capability means nothing for them.
#[test]
fn extended_next_hops_are_for_ipv4() {
    let both = |config| {
        edit(config, |it| {
            it.families.ipv6 = Some(FamilyConfig { extended_next_hop: true, ..FamilyConfig::default() });
        })
    };
    let families = agreed(&both(config()), &both(their_config())).families;
    let extended = |family: Option<NegotiatedFamily>| family.expect("agreed").extended_next_hop;
    assert_eq!((extended(families.ipv4), extended(families.ipv6)), (true, false));
}

#[test]
fn add_path_needs_one_who_sends_and_one_who_receives() {
    let with = |config, add_path_receive, add_path_send| {
        edit(config, |it| {
            it.families.ipv4 = Some(FamilyConfig { add_path_receive, add_path_send, ..FamilyConfig::default() });
        })
    };
    for ours in [(false, false), (true, false), (false, true), (true, true)] {
        for theirs in [(false, false), (true, false), (false, true), (true, true)] {
            let agreed = agreed(&with(config(), ours.0, ours.1), &with(their_config(), theirs.0, theirs.1));
            let ipv4 = agreed.families.ipv4.expect("IPv4 is agreed");
            let found = (ipv4.add_path_receive, ipv4.add_path_send);
            assert_eq!(found, (ours.0 && theirs.1, ours.1 && theirs.0), "{ours:?} {theirs:?}");
        }
    }
}

#[test]
fn hold_time_is_the_smaller_one_and_not_too_small() {
    let theirs = |hold_time_s| Open { hold_time_s, ..their_open() };
    let ours = |hold_time_s, hold_time_min_s| SessionConfig { hold_time_s, hold_time_min_s, ..config() };
    let hold = |config: &SessionConfig, open: &Open| negotiate(config, open).map(|it| it.hold_time_s);
    assert_eq!(hold(&ours(90, 0), &theirs(30)), Ok(30));
    assert_eq!(hold(&ours(9, 0), &theirs(30)), Ok(9));
    assert_eq!(hold(&ours(90, 0), &theirs(0)), Ok(0));
    assert_eq!(hold(&ours(90, 9), &theirs(9)), Ok(9));
    for (config, open) in
        [(ours(90, 0), theirs(1)), (ours(90, 0), theirs(2)), (ours(90, 9), theirs(8)), (ours(90, 9), theirs(0))]
    {
        assert_eq!(refusal(&config, &open), (open_error::UNACCEPTABLE_HOLD_TIME, vec![]), "{}", open.hold_time_s);
    }
}

#[test]
fn the_peers_as_is_what_is_expected() {
    let from = |asn| Open { asn: Asn(asn), ..their_open() };
    let bad = (open_error::BAD_PEER_AS, vec![]);
    assert_eq!(refusal(&config(), &from(65_003)), bad);
    assert_eq!(refusal(&config(), &from(0)), bad);
    let external = SessionConfig { remote_as: RemoteAs::External, ..config() };
    assert_eq!(negotiate(&external, &from(4_200_000_001)).map(|it| it.kind), Ok(PeerKind::External));
    assert_eq!(refusal(&external, &from(OURS.0)), bad);
    assert_eq!(refusal(&external, &from(0)), bad);
    let internal = SessionConfig { remote_as: RemoteAs::Internal, ..config() };
    assert_eq!(negotiate(&internal, &from(OURS.0)).map(|it| it.kind), Ok(PeerKind::Internal));
    assert_eq!(refusal(&internal, &from(65_002)), bad);
}

#[test]
fn identifiers_differ_inside_an_as_only() {
    let with = |asn, id| Open { asn, router_id: RouterId(id), ..their_open() };
    let bad = (open_error::BAD_IDENTIFIER, vec![]);
    assert_eq!(refusal(&config(), &with(THEIRS, 0)), bad);
    assert!(negotiate(&config(), &with(THEIRS, OUR_ID.0)).is_ok(), "RFC 6286 section 2.1");
    let internal = SessionConfig { remote_as: RemoteAs::Internal, ..config() };
    assert_eq!(refusal(&internal, &with(OURS, OUR_ID.0)), bad);
}

#[test]
fn without_a_common_family_the_missing_one_is_named() {
    let ipv6 = edit(config(), |it| it.families.ipv4 = None);
    let missing = (open_error::UNSUPPORTED_CAPABILITY, vec![1, 4, 0, 2, 0, 1]);
    assert_eq!(refusal(&ipv6, &with_capabilities(Vec::new())), missing);
    let evpn = with_capabilities(vec![Capability::Multiprotocol { afi: 25, safi: 70 }]);
    assert_eq!(refusal(&ipv6, &evpn), missing);
    assert_eq!(refusal(&config(), &evpn), (open_error::UNSUPPORTED_CAPABILITY, vec![1, 4, 0, 1, 0, 1]));
}

#[test]
fn roles_fit_or_the_session_does_not_come_up() {
    let all = [Role::Provider, Role::RouteServer, Role::RouteServerClient, Role::Customer, Role::Peer];
    let ours = |role, strict| SessionConfig { role: Some(RoleConfig { role, strict }), ..config() };
    let theirs = |roles: &[Role]| {
        let mut open = their_open();
        open.capabilities.extend(roles.iter().copied().map(Capability::Role));
        open
    };
    let mismatch = (open_error::ROLE_MISMATCH, vec![]);
    for one in all {
        for other in all {
            let fits = match one {
                Role::Provider => other == Role::Customer,
                Role::Customer => other == Role::Provider,
                Role::RouteServer => other == Role::RouteServerClient,
                Role::RouteServerClient => other == Role::RouteServer,
                Role::Peer => other == Role::Peer,
            };
            match negotiate(&ours(one, true), &theirs(&[other])) {
                Ok(negotiated) => assert!(fits && negotiated.role == Some(one), "{one:?} {other:?}"),
                Err(refused) => assert!(!fits && (refused.subcode, refused.data) == mismatch, "{one:?} {other:?}"),
            }
        }
    }
    assert_eq!(negotiate(&ours(Role::Peer, false), &theirs(&[])).map(|it| it.role), Ok(Some(Role::Peer)));
    assert_eq!(refusal(&ours(Role::Peer, true), &theirs(&[])), mismatch);
    assert!(negotiate(&ours(Role::Peer, true), &theirs(&[Role::Peer, Role::Peer])).is_ok());
    assert_eq!(refusal(&ours(Role::Peer, true), &theirs(&[Role::Peer, Role::Customer])), mismatch);
    assert_eq!(negotiate(&config(), &theirs(&[Role::Peer])).map(|it| it.role), Ok(None), "we have no role");
}

#[test]
fn a_role_is_for_external_peers() {
    let internal = SessionConfig {
        remote_as: RemoteAs::Internal,
        role: Some(RoleConfig { role: Role::Peer, strict: true }),
        ..config()
    };
    assert!(!our_open(&internal, &LocalRestart::default()).capabilities.contains(&Capability::Role(Role::Peer)));
    let open = Open { asn: OURS, ..their_open() };
    assert_eq!(negotiate(&internal, &open).map(|it| it.role), Ok(None));
}

#[test]
fn graceful_restart_is_what_the_peer_offers_for_what_we_have() {
    let restart = |restarted, notification, families| {
        let restart = GracefulRestart { restarted, notification, restart_time_s: 7, families };
        with_capabilities(vec![
            Capability::family(Family::Ipv4Unicast),
            Capability::family(Family::Ipv6Unicast),
            Capability::GracefulRestart(GracefulRestart { restart_time_s: 99, ..GracefulRestart::default() }),
            Capability::GracefulRestart(restart),
        ])
    };
    let ipv4 = RestartFamily { afi: 1, safi: 1, forwarding: true };
    let evpn = RestartFamily { afi: 25, safi: 70, forwarding: true };
    let agreed = negotiate(&config(), &restart(true, false, vec![evpn, ipv4])).expect("it fits");
    assert_eq!(
        agreed.restart,
        Some(PeerRestart { restarted: true, notification: false, restart_time_s: 7 }),
        "the last of two capabilities counts"
    );
    let found = agreed.families.ipv4.expect("IPv4 is agreed");
    assert!(found.restart && found.forwarding_kept);
    assert!(agreed.families.ipv6.is_some_and(|it| !it.restart && !it.forwarding_kept));
    let without_n = edit(config(), |it| {
        it.graceful_restart = Some(RestartConfig { notification: false, ..RestartConfig::default() });
    });
    let agreed = negotiate(&without_n, &restart(false, true, vec![ipv4])).expect("it fits");
    assert_eq!(agreed.restart.map(|it| it.notification), Some(false));
}

#[test]
fn long_lived_times_come_from_the_peer_and_end_at_our_limit() {
    let with = |config, stale_time_s| {
        edit(config, |it: &mut SessionConfig| {
            it.families.ipv4 = it.families.ipv4.map(|family| FamilyConfig { stale_time_s, ..family });
        })
    };
    let time = |ours, theirs| {
        agreed(&with(config(), ours), &with(their_config(), theirs)).families.ipv4.map(|it| it.stale_time_s)
    };
    assert_eq!(time(Some(1_000), Some(600)), Some(600));
    assert_eq!(time(Some(1_000), Some(6_000)), Some(1_000));
    assert_eq!(time(None, Some(600)), Some(0));
    assert_eq!(time(Some(600), None), Some(0));
    let mut open = our_open(&with(their_config(), Some(600)), &LocalRestart::default());
    open.capabilities.retain(|it| !matches!(it, Capability::GracefulRestart(_)));
    let agreed = negotiate(&with(config(), Some(600)), &open).expect("it fits");
    assert_eq!(agreed.families.ipv4.map(|it| it.stale_time_s), Some(0), "RFC 9494 needs RFC 4724");
}

#[test]
fn a_local_as_is_shown_to_external_peers_only() {
    let migrating = SessionConfig { local_as_override: Some(Asn(64_999)), ..config() };
    assert_eq!(our_open(&migrating, &LocalRestart::default()).asn, Asn(64_999));
    assert!(
        our_open(&migrating, &LocalRestart::default()).capabilities.contains(&Capability::FourOctetAs(Asn(64_999)))
    );
    assert_eq!(negotiate(&migrating, &their_open()).map(|it| it.local_as), Ok(Asn(64_999)));
    let internal = SessionConfig { remote_as: RemoteAs::Internal, ..migrating.clone() };
    assert_eq!(our_open(&internal, &LocalRestart::default()).asn, OURS);
    let anyone = SessionConfig { remote_as: RemoteAs::External, ..migrating };
    let same = Open { asn: Asn(64_999), ..their_open() };
    assert_eq!(refusal(&anyone, &same).0, open_error::BAD_PEER_AS, "for them the session would be an internal one");
}

#[test]
fn members_of_a_confederation_see_our_member_as_and_others_its_identifier() {
    let confederation = Confederation { identifier: Asn(100), members: [OURS, Asn(65_010)].into() };
    let member = |remote_as| SessionConfig { confederation: Some(confederation.clone()), remote_as, ..config() };
    let check = |remote_as, remote, kind, presented| {
        let config = member(remote_as);
        assert_eq!(our_open(&config, &LocalRestart::default()).asn, presented);
        let negotiated = negotiate(&config, &Open { asn: remote, ..their_open() }).expect("it fits");
        assert_eq!((negotiated.kind, negotiated.local_as), (kind, presented));
    };
    check(RemoteAs::Number(Asn(65_010)), Asn(65_010), PeerKind::Confederation, OURS);
    check(RemoteAs::Number(OURS), OURS, PeerKind::Internal, OURS);
    check(RemoteAs::Number(THEIRS), THEIRS, PeerKind::External, Asn(100));
    check(RemoteAs::External, THEIRS, PeerKind::External, Asn(100));
    let refused = Open { asn: Asn(65_010), ..their_open() };
    assert_eq!(refusal(&member(RemoteAs::External), &refused).0, open_error::BAD_PEER_AS);
    let outside = Open { asn: Asn(100), ..their_open() };
    assert_eq!(refusal(&member(RemoteAs::External), &outside).0, open_error::BAD_PEER_AS);
}

#[test]
fn a_refusal_is_sent_and_the_reason_kept() {
    let mut session = after(config(), [Event::Start, Event::Connected(Slot::First)]);
    let open = Open { hold_time_s: 1, ..their_open() };
    let actions = give(&mut session, at(1_000), Event::Open(Slot::First, open));
    let sent = Notification::new(ErrorCode::Open, open_error::UNACCEPTABLE_HOLD_TIME);
    assert_eq!(actions[0], Action::Send(Slot::First, Outgoing::Notification(sent.clone())));
    assert_eq!(session.last_failure(), Some(&(at(1_000), DownCause::Sent(sent))));
}
