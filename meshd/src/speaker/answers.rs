//! What the speaker answers about itself and its peers.
//!
//! Every answer is made on the speaker's thread and copied; what can be long is asked for in pieces, so that no question
//! holds up sessions for longer than a slice of work does.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bgp::{
    Family, PerFamily,
    family::{V4, V6},
    id::{Asn, Moment, PeerId, RouterId},
    rib::{Counts, Limits, Totals},
    session::{DownCause, LocalRestart, Negotiated, PeerKey, SessionConfig, State, our_open},
    speaker::PeerStatus,
    wire::capability::Capability,
};
use jiff::Timestamp;

use super::{
    Ended, SpeakerHandle, bfd,
    bmp::StationStatus,
    core::{Core, Known},
    mrt::LogStatus,
    transport::Key,
};
use crate::config::error::nearest;

pub use bgp::session::MessageCounts;

/// Peers described in one piece.
const PEERS_AT_ONCE: usize = 256;

/// The speaker itself.
#[derive(Clone, Debug)]
pub struct SpeakerReport {
    /// Our AS.
    pub asn: Asn,
    /// Our identifier.
    pub router_id: RouterId,
    /// What the tables hold.
    pub totals: Totals,
    /// Connections of nobody that is a peer.
    pub strangers: u64,
    /// Monitoring stations.
    pub stations: Vec<(SocketAddr, StationStatus)>,
    /// The log of messages.
    pub log: Option<LogStatus>,
}

/// A peer as the speaker knows it.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// What it is called.
    pub key: PeerKey,
    /// For people.
    pub description: String,
    /// It came from a listen range by itself.
    pub is_dynamic: bool,
    /// How its packets have to be signed.
    pub authentication: Option<&'static str>,
    /// It is kept down by the configuration.
    pub is_shut_down: bool,
    /// Both ends of the established connection.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// State, and UPDATEs that were malformed.
    pub status: PeerStatus,
    /// What its session is configured to be.
    pub config: SessionConfig,
    /// What was agreed, while established.
    pub negotiated: Option<Negotiated>,
    /// What we offer.
    pub offered: Vec<Capability>,
    /// Since when it is established.
    pub established_since: Option<Timestamp>,
    /// How often it was established.
    pub established_count: u64,
    /// When and why an established session ended last.
    pub last_down: Option<(Timestamp, DownCause)>,
    /// When and why an attempt to get a session failed last, since there was one.
    pub last_failure: Option<(Timestamp, DownCause)>,
    /// Messages it sent.
    pub received: MessageCounts,
    /// Messages it was sent.
    pub sent: MessageCounts,
    /// Paths, for each family.
    pub families: PerFamily<FamilyReport>,
    /// BFD, where it watches the path.
    pub bfd: Option<bfd::State>,
    /// BFD is configured.
    pub wants_bfd: bool,
    /// Its echo function, where that is wanted and BFD watches the path.
    pub bfd_echo: Option<bfd::Echo>,
    /// Its connections that were not taken.
    pub refused: u64,
    /// Why the last of them was not.
    pub refused_why: Option<String>,
    /// For how long it has taken nothing of what is to be sent.
    pub send_blocked: Option<Duration>,
}

/// What there is of one family of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyReport {
    /// Received, accepted, best, stale.
    pub counts: Counts,
    /// Paths the peer is told.
    pub advertised: u32,
    /// How many it may send.
    pub limits: Limits,
}

/// No peer has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownPeer {
    /// None at all.
    #[error("there is no BGP peer {name}")]
    None {
        /// What was asked for.
        name: String,
        /// The peer with the name that is most like it.
        nearest: Option<String>,
    },
    /// More than one.
    #[error("{name} stands for several BGP peers: {}", peers.join(", "))]
    Several {
        /// What was asked for.
        name: String,
        /// Those it may stand for.
        peers: Vec<String>,
    },
}

/// Tells the time of day of moments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    moment: Moment,
    time: Timestamp,
}

impl Clock {
    pub(super) fn new(core: &Core) -> Self {
        Self { moment: core.now(), time: Timestamp::now() }
    }

    pub(super) fn time(self, moment: Moment) -> Timestamp {
        let passed = self.moment.since(moment);
        self.time.checked_sub(passed).unwrap_or(self.time)
    }
}

impl SpeakerHandle {
    /// The speaker itself.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn report(&self) -> Result<SpeakerReport, Ended> {
        self.ask(|core| {
            let core = core.borrow();
            let rib = core.speaker.rib();
            let config = rib.config();
            SpeakerReport {
                asn: config.local_as,
                router_id: config.router_id,
                totals: rib.totals(),
                strangers: core.strangers.count(),
                stations: core.monitor.stations().collect(),
                log: core.monitor.log_status(),
            }
        })
        .await
    }

    /// All peers, by name.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn peers(&self) -> Result<Vec<PeerReport>, Ended> {
        let mut all: Vec<PeerReport> = Vec::new();
        let mut from = None;
        loop {
            let (piece, next) = self.ask(move |core| peers_from(&core.borrow(), from)).await?;
            all.extend(piece);
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// One peer.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping; [`UnknownPeer`] inside.
    pub async fn peer(&self, name: &str) -> Result<Result<PeerReport, UnknownPeer>, Ended> {
        let name = name.to_owned();
        self.ask(move |core| {
            let core = core.borrow();
            let id = find(&core, &name)?;
            let known = core.known.get(&id).ok_or(UnknownPeer::None { name, nearest: None })?;
            Ok(peer(&core, Clock::new(&core), id, known))
        })
        .await
    }
}

/// The peer that is meant: `192.0.2.1`, `fe80::1%eth0` or `eth0`, an address without its link when that is clear, and the
/// address at which an unnumbered peer is now.
pub(super) fn find(core: &Core, name: &str) -> Result<PeerId, UnknownPeer> {
    let key: Option<PeerKey> = name.parse().ok();
    if let Some(id) = key.as_ref().and_then(|key| core.ids.get(key)) {
        return Ok(*id);
    }
    let address = key.as_ref().and_then(PeerKey::address);
    let link = key.as_ref().and_then(PeerKey::link);
    let is_meant = |key: &PeerKey, id: PeerId| match (address, link) {
        (Some(address), None) => {
            key.address() == Some(address) || core.ends(id).is_some_and(|(_, remote)| remote.ip() == address)
        }
        (None, Some(link)) => key.link() == Some(link),
        (Some(address), Some(link)) => {
            key.link() == Some(link) && core.ends(id).is_some_and(|(_, remote)| remote.ip() == address)
        }
        (None, None) => false,
    };
    let meant: Vec<(&PeerKey, PeerId)> =
        core.ids.iter().map(|(key, id)| (key, *id)).filter(|(key, id)| is_meant(key, *id)).collect();
    match meant.as_slice() {
        [(_, id)] => Ok(*id),
        [] => {
            let names: Vec<String> = core.ids.keys().map(ToString::to_string).collect();
            let nearest = nearest(name, names.iter().map(String::as_str)).map(str::to_owned);
            Err(UnknownPeer::None { name: name.to_owned(), nearest })
        }
        several => {
            let peers = several.iter().map(|(key, _)| key.to_string()).collect();
            Err(UnknownPeer::Several { name: name.to_owned(), peers })
        }
    }
}

fn peers_from(core: &Core, from: Option<PeerId>) -> (Vec<PeerReport>, Option<PeerId>) {
    let clock = Clock::new(core);
    let mut rest = core.known.range(from.unwrap_or(PeerId(0))..);
    let piece = rest.by_ref().take(PEERS_AT_ONCE).map(|(id, known)| peer(core, clock, *id, known)).collect();
    (piece, rest.next().map(|(id, _)| *id))
}

fn peer(core: &Core, clock: Clock, id: PeerId, known: &Known) -> PeerReport {
    let speaker = &core.speaker;
    let session = speaker.session(id);
    let config = session.map_or(&known.settings.config.session, |session| session.config()).clone();
    let families = Family::ALL.map(|family| FamilyReport {
        counts: speaker.rib().counts(id, family),
        advertised: match family {
            Family::Ipv4Unicast => speaker.rib().advertised_count::<V4>(id),
            Family::Ipv6Unicast => speaker.rib().advertised_count::<V6>(id),
        },
        limits: *known.settings.config.tables.limits.get(family),
    });
    let [ipv4, ipv6] = families;
    let told = |(at, cause): &(Moment, DownCause)| (clock.time(*at), cause.clone());
    let unknown =
        PeerStatus { state: State::Idle, malformed_updates: 0, updates_treated_as_withdraw: 0, last_malformed: None };
    PeerReport {
        key: known.key.clone(),
        description: known.settings.description.clone(),
        is_dynamic: known.range.is_some(),
        authentication: known.settings.transport.key.as_ref().map(|key| match key {
            Key::Md5(_) => "tcp-md5",
            Key::Ao(_) => "tcp-ao",
        }),
        is_shut_down: known.settings.shutdown.is_some(),
        ends: core.ends(id),
        status: speaker.status(id).unwrap_or(unknown),
        offered: our_open(&config, &LocalRestart::default()).capabilities,
        config,
        negotiated: session.and_then(|session| session.negotiated()).cloned(),
        established_since: session.and_then(|session| session.established_since()).map(|at| clock.time(at)),
        established_count: session.map_or(0, |session| session.established_count()),
        last_down: session.and_then(|session| session.last_down()).map(told),
        last_failure: session.and_then(|session| session.last_failure()).map(told),
        received: session.map(|session| *session.history().received()).unwrap_or_default(),
        sent: session.map(|session| *session.history().sent()).unwrap_or_default(),
        families: PerFamily { ipv4, ipv6 },
        bfd: core.paths.state(id),
        wants_bfd: known.settings.bfd.is_some(),
        bfd_echo: core.paths.echo(id).cloned(),
        refused: known.refused.count(),
        refused_why: known.refused.why().map(str::to_owned),
        send_blocked: core.send_blocked_since(id).map(|since| since.elapsed()),
    }
}

impl PeerReport {
    /// The address, when it has one now.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.key.address().or(self.ends.map(|(_, remote)| remote.ip()))
    }
}
