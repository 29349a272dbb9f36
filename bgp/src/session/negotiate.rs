//! Building our OPEN, checking the peer's, and what follows from both.
//!
//! RFCs: 4271 section 6.2, 5492, 4760, 6286, 6793, 7607 (AS 0), 7911, 8654, 8950, 9234, 9494, 4724, 8538, 2918, 7313.

use super::{
    config::{FamilyConfig, RemoteAs, SessionConfig},
    negotiated::{Negotiated, NegotiatedFamily, PeerKind, PeerRestart},
};
use crate::{
    family::{Family, PerFamily},
    id::{Asn, RouterId},
    wire::{
        capability::{AddPathFamily, AddPathMode, Capability, GracefulRestart, LongLivedFamily, RestartFamily, Role},
        header::LengthLimit,
        notification::{ErrorCode, Notification, open_error},
        open::Open,
    },
};

/// RFC 8950 for IPv4 unicast with IPv6 next hops: the only combination this speaker has.
const IPV4_OVER_IPV6: (u16, u16, u16) = (1, 1, 2);

/// What this speaker says about its own restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalRestart {
    /// It has restarted and not yet recovered: the R bit.
    pub restarted: bool,
    /// Its forwarding state of these families survived: the F bits. After the first session of a process this is always so.
    pub forwarding_kept: PerFamily<bool>,
}

/// Our OPEN.
#[must_use]
pub fn our_open(config: &SessionConfig, restart: &LocalRestart) -> Open {
    let asn = config.presented_as();
    let mut capabilities: Vec<Capability> = enabled(config).map(|(family, _)| Capability::family(family)).collect();
    if config.route_refresh {
        capabilities.push(Capability::RouteRefresh);
    }
    if extended_next_hop(config) {
        capabilities.push(Capability::ExtendedNextHop(vec![IPV4_OVER_IPV6]));
    }
    if config.extended_message {
        capabilities.push(Capability::ExtendedMessage);
    }
    if let (Some(role), PeerKind::External) = (config.role, config.expected_kind()) {
        capabilities.push(Capability::Role(role.role));
    }
    capabilities.extend(graceful_restart(config, restart));
    capabilities.push(Capability::FourOctetAs(asn));
    capabilities.extend(add_path(config));
    if config.enhanced_refresh && config.route_refresh {
        capabilities.push(Capability::EnhancedRouteRefresh);
    }
    capabilities.extend(long_lived(config, restart));
    if config.bfd_strict {
        capabilities.push(Capability::BfdStrict);
    }
    if let Some(name) = &config.host_name {
        capabilities.push(Capability::Fqdn { host: name.host.clone(), domain: name.domain.clone() });
    }
    Open { asn, hold_time_s: config.hold_time_s, router_id: config.router_id, capabilities }
}

/// What our configuration and the peer's OPEN agree on, or the NOTIFICATION that refuses it.
pub fn negotiate(config: &SessionConfig, open: &Open) -> Result<Negotiated, Notification> {
    let kind = check_as(config, open.asn)?;
    if open.router_id == RouterId(0) || (kind == PeerKind::Internal && open.router_id == config.router_id) {
        return Err(refuse(open_error::BAD_IDENTIFIER));
    }
    let refused = open.hold_time_s < config.hold_time_min_s;
    if matches!(open.hold_time_s, 1 | 2) || refused {
        return Err(refuse(open_error::UNACCEPTABLE_HOLD_TIME));
    }
    let theirs = Theirs::of(open);
    let role = check_role(config, kind, &theirs)?;
    let families = negotiate_families(config, &theirs);
    if let (Some((wanted, _)), true) = (enabled(config).next(), families.iter().all(|(_, family)| family.is_none())) {
        let [afi_high, afi_low] = wanted.afi().to_be_bytes();
        // Code and length of the capability in front of its value (RFC 5492 section 5).
        let data = vec![1, 4, afi_high, afi_low, 0, wanted.safi()];
        return Err(Notification { code: ErrorCode::Open, subcode: open_error::UNSUPPORTED_CAPABILITY, data });
    }
    let length_limit =
        if config.extended_message && theirs.extended_message { LengthLimit::Extended } else { LengthLimit::Standard };
    let restart = config.graceful_restart.zip(theirs.restart).map(|(ours, theirs)| PeerRestart {
        restarted: theirs.restarted,
        notification: ours.notification && theirs.notification,
        restart_time_s: theirs.restart_time_s,
    });
    let route_refresh = config.route_refresh && theirs.route_refresh;
    Ok(Negotiated {
        kind,
        local_as: config.presented_as(),
        remote_as: open.asn,
        router_id: open.router_id,
        hold_time_s: config.hold_time_s.min(open.hold_time_s),
        asn4: theirs.asn4,
        length_limit,
        route_refresh,
        enhanced_refresh: route_refresh && config.enhanced_refresh && theirs.enhanced_refresh,
        role,
        families,
        restart,
        remote_open: open.clone(),
    })
}

fn refuse(subcode: u8) -> Notification {
    Notification::new(ErrorCode::Open, subcode)
}

/// The families of the configuration, in the order of their numbers.
fn enabled(config: &SessionConfig) -> impl Iterator<Item = (Family, FamilyConfig)> {
    Family::ALL.into_iter().filter_map(|family| Some((family, (*config.families.get(family))?)))
}

fn extended_next_hop(config: &SessionConfig) -> bool {
    config.families.ipv4.is_some_and(|family| family.extended_next_hop)
}

fn graceful_restart(config: &SessionConfig, restart: &LocalRestart) -> Option<Capability> {
    let restart_config = config.graceful_restart?;
    let families = enabled(config)
        .filter(|(_, family)| family.restart && !restart_config.helper_only)
        .map(|(family, _)| RestartFamily {
            afi: family.afi(),
            safi: family.safi(),
            forwarding: *restart.forwarding_kept.get(family),
        })
        .collect();
    Some(Capability::GracefulRestart(GracefulRestart {
        restarted: restart.restarted,
        notification: restart_config.notification,
        restart_time_s: restart_config.restart_time_s,
        families,
    }))
}

fn add_path(config: &SessionConfig) -> Option<Capability> {
    let families: Vec<AddPathFamily> = enabled(config)
        .filter_map(|(family, family_config)| {
            let mode = match (family_config.add_path_receive, family_config.add_path_send) {
                (false, false) => return None,
                (true, false) => AddPathMode::Receive,
                (false, true) => AddPathMode::Send,
                (true, true) => AddPathMode::Both,
            };
            Some(AddPathFamily { afi: family.afi(), safi: family.safi(), mode })
        })
        .collect();
    (!families.is_empty()).then_some(Capability::AddPath(families))
}

/// RFC 9494 section 4.1: only together with graceful restart.
fn long_lived(config: &SessionConfig, restart: &LocalRestart) -> Option<Capability> {
    let restart_config = config.graceful_restart?;
    let families: Vec<LongLivedFamily> = enabled(config)
        .filter(|_| !restart_config.helper_only)
        .filter_map(|(family, family_config)| {
            Some(LongLivedFamily {
                afi: family.afi(),
                safi: family.safi(),
                forwarding: *restart.forwarding_kept.get(family),
                stale_time_s: family_config.stale_time_s?,
            })
        })
        .collect();
    let speaks = enabled(config).any(|(_, family)| family.stale_time_s.is_some());
    speaks.then_some(Capability::LongLivedGracefulRestart(families))
}

fn check_as(config: &SessionConfig, remote: Asn) -> Result<PeerKind, Notification> {
    let bad = Err(refuse(open_error::BAD_PEER_AS));
    if remote == Asn(0) {
        return bad;
    }
    let kind = config.kind_of(remote);
    let fits = match config.remote_as {
        RemoteAs::Number(expected) => remote == expected,
        // A member of our confederation would have to see our member AS, but we have said the identifier.
        RemoteAs::External => kind == PeerKind::External && remote != config.presented_as(),
        RemoteAs::Internal => kind == PeerKind::Internal,
    };
    if fits { Ok(kind) } else { bad }
}

/// RFC 9234 section 4.2. The result is the role that governs the OTC attribute.
fn check_role(config: &SessionConfig, kind: PeerKind, theirs: &Theirs<'_>) -> Result<Option<Role>, Notification> {
    let (Some(ours), PeerKind::External) = (config.role, kind) else {
        return Ok(None);
    };
    let mismatch = Err(refuse(open_error::ROLE_MISMATCH));
    let Some(first) = theirs.roles.first() else {
        return if ours.strict { mismatch } else { Ok(Some(ours.role)) };
    };
    let fits = matches!(
        (ours.role, first),
        (Role::Provider, Role::Customer)
            | (Role::Customer, Role::Provider)
            | (Role::RouteServer, Role::RouteServerClient)
            | (Role::RouteServerClient, Role::RouteServer)
            | (Role::Peer, Role::Peer)
    );
    if fits && theirs.roles.iter().all(|role| role == first) { Ok(Some(ours.role)) } else { mismatch }
}

fn negotiate_families(config: &SessionConfig, theirs: &Theirs<'_>) -> PerFamily<Option<NegotiatedFamily>> {
    let mut families = PerFamily::default();
    for (family, ours) in enabled(config) {
        if !*theirs.families.get(family) {
            continue;
        }
        let mode = theirs.add_path(family);
        let restart = theirs.restart.filter(|_| config.graceful_restart.is_some() && ours.restart);
        let restart_family = restart.and_then(|restart| restart.families.iter().find(|it| is(family, it.afi, it.safi)));
        let long_lived = theirs.long_lived(family).filter(|_| restart.is_some());
        *families.get_mut(family) = Some(NegotiatedFamily {
            add_path_receive: ours.add_path_receive && matches!(mode, Some(AddPathMode::Send | AddPathMode::Both)),
            add_path_send: ours.add_path_send && matches!(mode, Some(AddPathMode::Receive | AddPathMode::Both)),
            extended_next_hop: family == Family::Ipv4Unicast && ours.extended_next_hop && theirs.extended_next_hop,
            restart: restart_family.is_some(),
            forwarding_kept: restart_family.is_some_and(|it| it.forwarding),
            // The peer says how long its paths are worth keeping; our own time is an upper limit.
            stale_time_s: ours.stale_time_s.zip(long_lived).map_or(0, |(ours, theirs)| ours.min(theirs.stale_time_s)),
            long_lived_forwarding_kept: long_lived.is_some_and(|it| it.forwarding),
        });
    }
    families
}

fn is(family: Family, afi: u16, safi: u8) -> bool {
    Family::from_numbers(afi, safi) == Some(family)
}

/// The peer's capabilities, put in order. Where one may be there once only, the last counts (RFC 5492 section 4 leaves it
/// open; RFC 4724 section 3 says it for graceful restart).
#[derive(Default)]
struct Theirs<'a> {
    families: PerFamily<bool>,
    route_refresh: bool,
    enhanced_refresh: bool,
    extended_message: bool,
    extended_next_hop: bool,
    asn4: bool,
    roles: Vec<Role>,
    restart: Option<&'a GracefulRestart>,
    add_path: Vec<AddPathFamily>,
    long_lived: Vec<LongLivedFamily>,
}

impl<'a> Theirs<'a> {
    fn of(open: &'a Open) -> Self {
        let mut theirs = Self::default();
        let mut multiprotocol = false;
        for capability in &open.capabilities {
            match capability {
                Capability::Multiprotocol { afi, safi } => {
                    multiprotocol = true;
                    if let Some(family) = Family::from_numbers(*afi, *safi) {
                        *theirs.families.get_mut(family) = true;
                    }
                }
                Capability::RouteRefresh => theirs.route_refresh = true,
                Capability::ExtendedNextHop(tuples) => {
                    theirs.extended_next_hop |= tuples.contains(&IPV4_OVER_IPV6);
                }
                Capability::ExtendedMessage => theirs.extended_message = true,
                Capability::Role(role) => theirs.roles.push(*role),
                Capability::GracefulRestart(restart) => theirs.restart = Some(restart),
                Capability::FourOctetAs(_) => theirs.asn4 = true,
                Capability::AddPath(families) => theirs.add_path.extend_from_slice(families),
                Capability::EnhancedRouteRefresh => theirs.enhanced_refresh = true,
                Capability::LongLivedGracefulRestart(families) => theirs.long_lived.extend_from_slice(families),
                Capability::Fqdn { .. } | Capability::BfdStrict | Capability::Unknown { .. } => {}
            }
        }
        if !multiprotocol {
            // A speaker without the capability of RFC 4760 speaks IPv4 unicast.
            theirs.families.ipv4 = true;
        }
        theirs
    }

    fn add_path(&self, family: Family) -> Option<AddPathMode> {
        self.add_path.iter().rev().find(|it| is(family, it.afi, it.safi)).map(|it| it.mode)
    }

    fn long_lived(&self, family: Family) -> Option<&LongLivedFamily> {
        self.long_lived.iter().rev().find(|it| is(family, it.afi, it.safi))
    }
}
