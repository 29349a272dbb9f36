//! What a session is configured to be.

use std::{collections::BTreeSet, time::Duration};

use thiserror::Error;

use super::{damping::DampingConfig, negotiated::PeerKind};
use crate::{
    family::PerFamily,
    id::{Asn, RouterId},
    wire::capability::Role,
};

/// Hold time offered by default, in seconds (RFC 4271 section 10).
pub const HOLD_TIME_S: u16 = 90;
/// Connect retry time by default. Far below the 120 s of RFC 4271: a peer that comes back must not be waited for.
pub const CONNECT_RETRY: Duration = Duration::from_secs(5);
/// Restart time offered by default, in seconds.
pub const RESTART_TIME_S: u16 = 120;
/// Largest restart time: 12 bits.
pub const RESTART_TIME_S_MAX: u16 = 4_095;
/// Largest long-lived stale time: 24 bits.
pub const STALE_TIME_S_MAX: u32 = 16_777_215;
/// How long stale paths of a peer that is back wait for its End-of-RIB, by default.
pub const STALE_PATH_TIME: Duration = Duration::from_secs(360);

/// The configuration of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// The AS of this speaker; inside a confederation that of the member.
    pub local_as: Asn,
    /// The AS we claim to be towards an external peer, instead of the own one.
    pub local_as_override: Option<Asn>,
    /// The confederation this speaker belongs to (RFC 5065).
    pub confederation: Option<Confederation>,
    /// Which AS the peer may be.
    pub remote_as: RemoteAs,
    /// Our identifier.
    pub router_id: RouterId,
    /// Hold time offered; 0 for none, never 1 or 2.
    pub hold_time_s: u16,
    /// Refuse a peer that wants a smaller hold time, also 0 when this is not 0.
    pub hold_time_min_s: u16,
    /// Longest time between two KEEPALIVE messages; a third of the hold time when absent or larger.
    pub keepalive_s: Option<u16>,
    /// How long the peer may keep us from sending anything.
    pub send_hold: SendHold,
    /// How long to wait for a connection and between two attempts.
    pub connect_retry: Duration,
    /// Wait so long for the peer's OPEN before sending ours (`DelayOpen`).
    pub delay_open: Option<Duration>,
    /// Never connect (`PassiveTcpEstablishment`).
    pub passive: bool,
    /// Waiting after failures (`DampPeerOscillations`).
    pub damping: DampingConfig,
    /// How long to stay away after too many prefixes of a family; until somebody starts the session again when absent.
    pub prefix_limit_restart: PerFamily<Option<Duration>>,
    /// Establish the session only when BFD says that the path works, or was switched off by the peer
    /// (draft-ietf-idr-bgp-bfd-strict-mode).
    pub bfd_strict: bool,
    /// Families to offer.
    pub families: PerFamily<Option<FamilyConfig>>,
    /// Offer messages of 65,535 octets.
    pub extended_message: bool,
    /// Offer route refresh.
    pub route_refresh: bool,
    /// Offer enhanced route refresh.
    pub enhanced_refresh: bool,
    /// Offer graceful restart.
    pub graceful_restart: Option<RestartConfig>,
    /// Our role.
    pub role: Option<RoleConfig>,
    /// Name to tell the peer.
    pub host_name: Option<HostName>,
}

/// A confederation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confederation {
    /// The AS the world outside sees.
    pub identifier: Asn,
    /// The member ASes; the own one may be among them.
    pub members: BTreeSet<Asn>,
}

/// Which AS a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAs {
    /// This one.
    Number(Asn),
    /// Any but ours.
    External,
    /// Ours.
    Internal,
}

/// When a peer that takes nothing from us is given up (RFC 9687).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendHold {
    /// After eight minutes, or twice the hold time when that is longer.
    #[default]
    Default,
    /// Never.
    Off,
    /// After this time.
    After(Duration),
}

/// What to offer for one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyConfig {
    /// Take several paths for a prefix.
    pub add_path_receive: bool,
    /// Send several paths for a prefix.
    pub add_path_send: bool,
    /// IPv6 next hops; means something for IPv4 only.
    pub extended_next_hop: bool,
    /// Keep our forwarding state over a restart, and keep the peer's paths over its restarts.
    pub restart: bool,
    /// Long-lived graceful restart: for how long paths may stay stale, in seconds, 24 bits.
    pub stale_time_s: Option<u32>,
}

/// Graceful restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartConfig {
    /// How long we may be away, 12 bits.
    pub restart_time_s: u16,
    /// Also after NOTIFICATION and hold time (RFC 8538).
    pub notification: bool,
    /// Only keep the paths of others: say no family.
    pub helper_only: bool,
    /// How long stale paths of a peer that is back wait for its End-of-RIB.
    pub stale_path_time: Duration,
}

/// Our role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleConfig {
    /// The role.
    pub role: Role,
    /// Refuse a peer that says none.
    pub strict: bool,
}

/// A name for the FQDN capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// Host.
    pub host: String,
    /// Domain; may be empty.
    pub domain: String,
}

/// Why a configuration makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// 0 is no AS.
    #[error("AS 0 cannot be used (RFC 7607)")]
    ZeroAs,
    /// 0 is no identifier.
    #[error("router identifier 0.0.0.0 cannot be used")]
    ZeroRouterId,
    /// Hold times of one or two seconds are forbidden.
    #[error("hold time {0} s cannot be used: it is 0 or at least 3")]
    HoldTime(u16),
    /// We would refuse ourselves.
    #[error("minimum hold time {minimum} s is larger than the hold time {offered} s")]
    MinimumHoldTime {
        /// The least accepted.
        minimum: u16,
        /// The one offered.
        offered: u16,
    },
    /// Nothing to talk about.
    #[error("no address family is enabled")]
    NoFamily,
    /// An external session inside one AS.
    #[error("local-as {0} is also the AS of the peer")]
    LocalAsIsRemote(Asn),
    /// Does not fit into the capability.
    #[error("restart time {0} s does not fit into 12 bits")]
    RestartTime(u16),
    /// Does not fit into the capability.
    #[error("long-lived stale time {0} s does not fit into 24 bits")]
    StaleTime(u32),
    /// RFC 9494 section 4.1.
    #[error("long-lived graceful restart needs graceful restart")]
    LongLivedAlone,
    /// Roles are for external sessions (RFC 9234 section 4).
    #[error("a role can be set for an external peer only")]
    InternalRole,
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            restart_time_s: RESTART_TIME_S,
            notification: true,
            helper_only: false,
            stale_path_time: STALE_PATH_TIME,
        }
    }
}

impl SessionConfig {
    /// A session with both families and the defaults of this speaker: graceful restart, route refresh, extended messages.
    #[must_use]
    pub fn new(local_as: Asn, remote_as: RemoteAs, router_id: RouterId) -> Self {
        let family = FamilyConfig { restart: true, ..FamilyConfig::default() };
        Self {
            local_as,
            local_as_override: None,
            confederation: None,
            remote_as,
            router_id,
            hold_time_s: HOLD_TIME_S,
            hold_time_min_s: 0,
            keepalive_s: None,
            send_hold: SendHold::Default,
            connect_retry: CONNECT_RETRY,
            delay_open: None,
            passive: false,
            damping: DampingConfig::default(),
            prefix_limit_restart: PerFamily::default(),
            bfd_strict: false,
            families: PerFamily { ipv4: Some(FamilyConfig { extended_next_hop: true, ..family }), ipv6: Some(family) },
            extended_message: true,
            route_refresh: true,
            enhanced_refresh: true,
            graceful_restart: Some(RestartConfig::default()),
            role: None,
            host_name: None,
        }
    }

    /// Checks what the types do not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let numbers =
            [Some(self.local_as), self.local_as_override, self.confederation.as_ref().map(|it| it.identifier)];
        let remote = match self.remote_as {
            RemoteAs::Number(asn) => Some(asn),
            RemoteAs::External | RemoteAs::Internal => None,
        };
        if numbers.into_iter().flatten().chain(remote).any(|asn| asn == Asn(0)) {
            return Err(ConfigError::ZeroAs);
        }
        if self.router_id == RouterId(0) {
            return Err(ConfigError::ZeroRouterId);
        }
        if matches!(self.hold_time_s, 1 | 2) {
            return Err(ConfigError::HoldTime(self.hold_time_s));
        }
        if self.hold_time_s < self.hold_time_min_s {
            return Err(ConfigError::MinimumHoldTime { minimum: self.hold_time_min_s, offered: self.hold_time_s });
        }
        if self.families.iter().all(|(_, family)| family.is_none()) {
            return Err(ConfigError::NoFamily);
        }
        if let (RemoteAs::Number(remote), Some(local)) = (self.remote_as, self.local_as_override)
            && remote == local
        {
            return Err(ConfigError::LocalAsIsRemote(local));
        }
        self.validate_restart()?;
        if self.role.is_some() && self.expected_kind() != PeerKind::External {
            return Err(ConfigError::InternalRole);
        }
        Ok(())
    }

    fn validate_restart(&self) -> Result<(), ConfigError> {
        if let Some(restart) = &self.graceful_restart
            && restart.restart_time_s > RESTART_TIME_S_MAX
        {
            return Err(ConfigError::RestartTime(restart.restart_time_s));
        }
        for stale_time_s in self.families.iter().filter_map(|(_, family)| family.as_ref()?.stale_time_s) {
            if stale_time_s > STALE_TIME_S_MAX {
                return Err(ConfigError::StaleTime(stale_time_s));
            }
            if self.graceful_restart.is_none() {
                return Err(ConfigError::LongLivedAlone);
            }
        }
        Ok(())
    }

    /// How a peer of this AS is related to us.
    #[must_use]
    pub fn kind_of(&self, remote: Asn) -> PeerKind {
        if remote == self.local_as {
            PeerKind::Internal
        } else if self.confederation.as_ref().is_some_and(|confederation| confederation.members.contains(&remote)) {
            PeerKind::Confederation
        } else {
            PeerKind::External
        }
    }

    /// How the peer will be related to us, as far as the configuration says it. A peer whose AS is not configured but must
    /// not be ours is taken for one outside of the confederation.
    #[must_use]
    pub fn expected_kind(&self) -> PeerKind {
        match self.remote_as {
            RemoteAs::Number(asn) => self.kind_of(asn),
            RemoteAs::External => PeerKind::External,
            RemoteAs::Internal => PeerKind::Internal,
        }
    }

    /// The AS we are for this peer.
    #[must_use]
    pub fn presented_as(&self) -> Asn {
        match self.expected_kind() {
            PeerKind::Internal | PeerKind::Confederation => self.local_as,
            PeerKind::External => self
                .local_as_override
                .or(self.confederation.as_ref().map(|confederation| confederation.identifier))
                .unwrap_or(self.local_as),
        }
    }

    /// Names a difference that the peer can only learn in a new OPEN; `None` when a session may go on.
    ///
    /// What only we look at (timers that are not offered, damping, limits, being passive) is changed under a session.
    #[must_use]
    pub fn wire_differs(&self, other: &Self) -> Option<&'static str> {
        // Taken apart without `..`: who adds a field decides here.
        let Self {
            local_as,
            local_as_override,
            confederation,
            remote_as,
            router_id,
            hold_time_s,
            hold_time_min_s,
            keepalive_s: _,
            send_hold: _,
            connect_retry: _,
            delay_open: _,
            passive: _,
            damping: _,
            prefix_limit_restart: _,
            bfd_strict,
            families,
            extended_message,
            route_refresh,
            enhanced_refresh,
            graceful_restart,
            role,
            host_name,
        } = self;
        if *local_as != other.local_as {
            return Some("AS");
        }
        if *local_as_override != other.local_as_override {
            return Some("local AS");
        }
        if *confederation != other.confederation {
            return Some("confederation");
        }
        if *remote_as != other.remote_as {
            return Some("remote AS");
        }
        if *router_id != other.router_id {
            return Some("router identifier");
        }
        if *hold_time_s != other.hold_time_s {
            return Some("hold time");
        }
        if *hold_time_min_s != other.hold_time_min_s {
            return Some("minimum hold time");
        }
        if *extended_message != other.extended_message {
            return Some("extended messages");
        }
        if *route_refresh != other.route_refresh {
            return Some("route refresh");
        }
        if *enhanced_refresh != other.enhanced_refresh {
            return Some("enhanced route refresh");
        }
        if restart_on_the_wire(graceful_restart.as_ref()) != restart_on_the_wire(other.graceful_restart.as_ref()) {
            return Some("graceful restart");
        }
        if *role != other.role {
            return Some("role");
        }
        if *bfd_strict != other.bfd_strict {
            return Some("strict BFD");
        }
        if *host_name != other.host_name {
            return Some("host name");
        }
        families.iter().zip(other.families.iter()).find_map(|((_, ours), (_, theirs))| family_differs(ours, theirs))
    }
}

/// The part of the restart configuration that is offered: restart time, N bit, whether families are named.
fn restart_on_the_wire(config: Option<&RestartConfig>) -> Option<(u16, bool, bool)> {
    config.map(|config| {
        let RestartConfig { restart_time_s, notification, helper_only, stale_path_time: _ } = config;
        (*restart_time_s, *notification, *helper_only)
    })
}

fn family_differs(ours: &Option<FamilyConfig>, theirs: &Option<FamilyConfig>) -> Option<&'static str> {
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        return (ours.is_some() != theirs.is_some()).then_some("address families");
    };
    let FamilyConfig { add_path_receive, add_path_send, extended_next_hop, restart, stale_time_s } = ours;
    if (*add_path_receive, *add_path_send) != (theirs.add_path_receive, theirs.add_path_send) {
        return Some("add-path");
    }
    if *extended_next_hop != theirs.extended_next_hop {
        return Some("extended next hop");
    }
    if *restart != theirs.restart {
        return Some("graceful restart");
    }
    (*stale_time_s != theirs.stale_time_s).then_some("long-lived graceful restart")
}
