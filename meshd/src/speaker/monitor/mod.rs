//! Telling those who watch: BMP stations and MRT files.
//!
//! ```text
//!  messages as they go by ─────┬─► stations (Adj-RIB-In before and after policy, Adj-RIB-Out)
//!  sessions up and down ───────┤
//!                              └─► log of messages
//!  a watcher of the tables ──────► stations (Loc-RIB)
//!  walks over the tables, in slices ─► stations that have just connected, MRT tables
//! ```
//!
//! A station that connects is told which sessions there are, then everything in the tables it asked for, a slice at a time
//! when its buffer has room, and meanwhile what happens. What a walk says is what the table holds at that moment, so whatever
//! comes later is newer. Nothing here waits for a station or a disk ([`super::bmp`], [`super::mrt`]).
//!
//! What is ugly: after a change of an import policy or of our own prefixes the paths of the peer are told again to stations that
//! watch what was accepted, also those that are judged as before.

mod files;
mod station;
mod walk;

use std::{cell::Cell, collections::BTreeMap, net::SocketAddr, rc::Rc};

use bgp::{
    Family,
    bmp::{self, PeerDown, PeerUp, Table, Timestamp},
    id::PeerId,
    mrt::Ends,
    session::{Direction, DownCause, LocalRestart, Negotiated, Slot, our_open},
    speaker::Mirrored,
    wire::{encode::Target, header::MessageType, open::Open, update::Context},
};
use tokio::task::JoinHandle;

pub use self::files::DumpError;
pub(super) use self::files::dump;
use self::station::Fed;
use super::{
    bmp::StationStatus,
    core::{Core, Shared},
    mrt::{Log, LogStatus},
    settings::Settings,
};
use crate::{
    config::model::bgp::{BmpStation, MrtConfig},
    lifecycle::Problems,
};

/// Octets of the header of every message; the type is the last of them.
const TYPE_AT: usize = 18;

/// Who watches.
pub(super) struct Monitor {
    stations: BTreeMap<BmpStation, Fed>,
    log: Option<Log>,
    /// The log of an earlier configuration, which writes what it has.
    ending: Option<Log>,
    mrt: Option<(MrtConfig, JoinHandle<()>)>,
    /// Sessions that are established, as stations are told about them.
    up: BTreeMap<PeerId, Described>,
    /// OPEN messages of connections, ours and theirs.
    opens: BTreeMap<(PeerId, Slot), [Vec<u8>; 2]>,
    /// Both ends of the last session with each peer, for changes of state that come when its connection is gone.
    last_ends: BTreeMap<PeerId, Ends>,
    /// The last NOTIFICATION on the connection of each session that is up.
    last_words: BTreeMap<PeerId, (Direction, Vec<u8>)>,
    is_dumping: Rc<Cell<bool>>,
    name: String,
    problems: Problems,
}

/// An established session.
struct Described {
    /// With the table that messages as they came belong to.
    header: bmp::Peer,
    /// Its connection.
    slot: Slot,
    local: SocketAddr,
    remote_port: u16,
    opens: [Vec<u8>; 2],
    /// How its messages are read.
    context: Context,
    /// How what it sent is written.
    received: Target,
    /// How what it is sent is written.
    sent: Target,
}

impl Described {
    fn header(&self, table: Table, time: Timestamp) -> bmp::Peer {
        bmp::Peer { table, time, ..self.header }
    }

    /// What a station is told first about it.
    fn peer_up(&self) -> PeerUp<'_> {
        let [sent_open, received_open] = &self.opens;
        PeerUp {
            local: self.local.ip().to_canonical(),
            local_port: self.local.port(),
            remote_port: self.remote_port,
            sent_open,
            received_open,
            table_name: None,
        }
    }

    fn families(&self) -> impl Iterator<Item = Family> {
        let context = self.context;
        Family::ALL.into_iter().filter(move |family| context.families.get(*family).enabled)
    }
}

impl Monitor {
    pub(super) fn new(problems: Problems) -> Self {
        Self {
            stations: BTreeMap::new(),
            log: None,
            ending: None,
            mrt: None,
            up: BTreeMap::new(),
            opens: BTreeMap::new(),
            last_ends: BTreeMap::new(),
            last_words: BTreeMap::new(),
            is_dumping: Rc::default(),
            name: String::new(),
            problems,
        }
    }

    /// Stations and what is known of them.
    pub(super) fn stations(&self) -> impl Iterator<Item = (SocketAddr, StationStatus)> {
        self.stations.iter().map(|(settings, fed)| (settings.address, fed.feed.status()))
    }

    /// The log of messages.
    pub(super) fn log_status(&self) -> Option<LogStatus> {
        self.log.as_ref().map(Log::status)
    }

    /// A message went by.
    pub(super) fn message(&mut self, core: &mut Seen<'_>, message: &Mirrored) {
        let Mirrored { peer, slot, direction, octets } = message;
        let kind = octets.get(TYPE_AT).copied().unwrap_or_default();
        if let Some(log) = &self.log {
            files::log_message(log, core, self.up.get(peer), message);
        }
        if kind == MessageType::Open as u8 {
            let opens = self.opens.entry((*peer, *slot)).or_default();
            let [ours, theirs] = opens;
            *(if *direction == Direction::Sent { ours } else { theirs }) = octets.clone();
        } else if kind == MessageType::Notification as u8 {
            // A second connection that is refused has words of its own, and the session stays up.
            if self.up.get(peer).is_some_and(|described| described.slot == *slot) {
                self.last_words.insert(*peer, (*direction, octets.clone()));
            }
        } else if kind == MessageType::Update as u8
            && let Some(described) = self.up.get(peer)
        {
            for (settings, fed) in &mut self.stations {
                fed.update(settings, core.speaker.rib(), *peer, described, *direction, octets);
            }
        }
    }

    /// A session came up.
    pub(super) fn up(&mut self, core: &Seen<'_>, peer: PeerId, slot: Slot) {
        let Some(session) = core.speaker.session(peer) else { return };
        let (Some(negotiated), Some((local, remote))) = (session.negotiated(), core.ends) else { return };
        let said = self.opens.remove(&(peer, slot)).unwrap_or_default();
        self.opens.remove(&(peer, slot.other()));
        self.last_words.remove(&peer);
        let config = session.config();
        // A station that was configured after the session came up sees the OPEN messages as they are to be read.
        let again = [our_open(config, &LocalRestart::default()), negotiated.remote_open.clone()];
        let mut said = said.into_iter();
        let opens = again.map(|open| said.next().filter(|said| !said.is_empty()).unwrap_or_else(|| encoded(&open)));
        let described = describe(negotiated, slot, local, remote, opens);
        for fed in self.stations.values_mut() {
            fed.peer_up(peer, &described);
        }
        self.last_ends.extend(files::ends(core, peer).map(|ends| (peer, ends)));
        self.up.insert(peer, described);
    }

    /// A session went down.
    pub(super) fn down(&mut self, cause: Option<&DownCause>, peer: PeerId) {
        let Some(described) = self.up.remove(&peer) else { return };
        let last_words = self.last_words.remove(&peer);
        let down = match (&last_words, cause) {
            (Some((Direction::Sent, octets)), _) => PeerDown::LocalNotification(octets),
            (Some((Direction::Received, octets)), _) => PeerDown::RemoteNotification(octets),
            (None, Some(DownCause::Lost(_))) => PeerDown::RemoteClosed,
            (None, _) => PeerDown::LocalEvent(0),
        };
        for fed in self.stations.values_mut() {
            fed.peer_down(peer, &described, down);
        }
    }

    /// A peer is removed; its number may be another one's from now on.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.opens.retain(|(of, _), _| *of != peer);
        self.last_ends.remove(&peer);
        self.last_words.remove(&peer);
    }

    /// Import policy judges the paths of a peer anew.
    pub(super) fn judged_anew(&mut self, peer: PeerId) {
        let Some(described) = self.up.get(&peer) else { return };
        for (settings, fed) in &mut self.stations {
            if settings.adj_rib_in_post_policy {
                fed.accepted_again(peer, described);
            }
        }
    }

    /// A watcher has something to be told, or (`lost`) is none any more.
    pub(super) fn watched(&mut self, watcher: PeerId, lost: bool) {
        for fed in self.stations.values_mut().filter(|fed| fed.watcher == Some(watcher)) {
            if lost {
                fed.watcher = None;
                fed.close();
            } else {
                fed.news.notify_one();
            }
        }
    }

    /// Messages are wanted.
    fn wants_messages(&self) -> bool {
        !self.stations.is_empty() || self.log.is_some()
    }
}

/// What there is to see when something happened to a peer.
pub(super) struct Seen<'a> {
    pub(super) speaker: &'a bgp::speaker::Speaker,
    /// Both ends of the connection.
    pub(super) ends: Option<(SocketAddr, SocketAddr)>,
}

fn describe(
    negotiated: &Negotiated,
    slot: Slot,
    local: SocketAddr,
    remote: SocketAddr,
    opens: [Vec<u8>; 2],
) -> Described {
    let sent = Target::from(negotiated);
    let mut received = sent;
    for family in Family::ALL {
        *received.add_path.get_mut(family) =
            negotiated.families.get(family).is_some_and(|family| family.add_path_receive);
    }
    Described {
        header: bmp::Peer {
            table: Table::AdjRibIn { post_policy: false },
            distinguisher: 0,
            address: remote.ip().to_canonical(),
            asn: negotiated.remote_as,
            router_id: negotiated.router_id,
            two_octet_as: !negotiated.asn4,
            time: Timestamp::default(),
        },
        slot,
        local,
        remote_port: remote.port(),
        opens,
        context: Context::from(negotiated),
        received,
        sent,
    }
}

/// An OPEN with its header. One that was sent or received once can be written again.
fn encoded(open: &Open) -> Vec<u8> {
    open.encode().unwrap_or_default()
}

/// The time by the clock on the wall.
pub(super) fn wall_clock() -> Timestamp {
    let now = jiff::Timestamp::now();
    Timestamp {
        seconds: u32::try_from(now.as_second()).unwrap_or_default(),
        micros: u32::try_from(now.subsec_microsecond()).unwrap_or_default(),
    }
}

impl Core {
    /// Takes over who is to be told.
    pub(super) fn watch_for(core: &Shared, new: &Settings) {
        let mut inner = core.borrow_mut();
        let inner = &mut *inner;
        inner.monitor.name.clone_from(&new.name);
        let gone: Vec<BmpStation> =
            inner.monitor.stations.keys().filter(|station| !new.stations.contains(station)).copied().collect();
        for station in gone {
            if let Some(fed) = inner.monitor.stations.remove(&station) {
                if let Some(watcher) = fed.watcher {
                    inner.speaker.unwatch(watcher);
                }
                inner.monitor.problems.clear(&station::component(&station));
                fed.stop.notify_one();
            }
        }
        for settings in &new.stations {
            if !inner.monitor.stations.contains_key(settings) {
                let fed = station::start(core, *settings, &inner.monitor.name);
                inner.monitor.stations.insert(*settings, fed);
            }
        }
        if inner.monitor.mrt.as_ref().map(|(known, _)| known) != new.mrt.as_ref() {
            files::restart(core, &mut inner.monitor, new.mrt.as_ref());
        }
        let wants = inner.monitor.wants_messages();
        inner.speaker.mirror(wants);
    }

    /// Says goodbye to everybody who watches. The tasks that come back end when that is said, or took too long; the logs write
    /// what they have while they are dropped, which may take as long as the disk does.
    #[must_use]
    pub(super) fn stop_watching(core: &Shared) -> (Vec<JoinHandle<()>>, [Option<Log>; 2]) {
        let mut inner = core.borrow_mut();
        let mut farewells = Vec::new();
        for fed in std::mem::take(&mut inner.monitor.stations).into_values() {
            fed.stop.notify_one();
            farewells.push(fed.task);
        }
        if let Some((_, task)) = inner.monitor.mrt.take() {
            task.abort();
        }
        let logs = [inner.monitor.ending.take(), inner.monitor.log.take()];
        logs.iter().flatten().for_each(Log::stop);
        (farewells, logs)
    }

    /// A message went by: see [`Monitor::message`].
    pub(super) fn mirrored(&mut self, message: &Mirrored) {
        let ends = self.ends_of(message.peer, message.slot);
        let mut seen = Seen { speaker: &self.speaker, ends };
        self.monitor.message(&mut seen, message);
    }

    /// A session came up: see [`Monitor::up`].
    pub(super) fn watched_up(&mut self, peer: PeerId, slot: Slot) {
        let ends = self.ends_of(peer, slot);
        let seen = Seen { speaker: &self.speaker, ends };
        self.monitor.up(&seen, peer, slot);
    }

    /// A session went down: see [`Monitor::down`].
    pub(super) fn watched_down(&mut self, peer: PeerId) {
        let cause = self.speaker.session(peer).and_then(|session| session.last_down()).map(|(_, cause)| cause.clone());
        self.monitor.down(cause.as_ref(), peer);
    }
}

#[cfg(test)]
mod tests;
