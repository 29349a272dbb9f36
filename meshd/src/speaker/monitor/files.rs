//! MRT files: the log of messages, and tables.

use std::{cell::Cell, collections::BTreeMap, net::IpAddr, path::PathBuf, rc::Rc, time::Duration};

use bgp::{
    Family,
    bmp::Timestamp,
    family::{V4, V6},
    id::{Asn, PeerId, RouterId},
    mrt::{self, Ends, IndexedPeer, MessageForm, RibEntry, SessionState},
    rib::{Cursor, PathView, Stored},
    session::{Direction, RemoteAs, State},
    speaker::Mirrored,
    wire::{
        attributes::{Attributes, code, flag},
        encode::Target,
        header::{HEADER_LEN, MessageType},
    },
};
use tokio::{
    task::{spawn_local, yield_now},
    time::{MissedTickBehavior, interval_at, sleep},
};
use tracing::info;

use super::{
    super::{
        answers::Clock,
        core::{Core, Shared},
        mrt::{Log, LogSettings, MrtError, TableDump},
    },
    Described, Monitor, Seen, TYPE_AT, wall_clock,
};
use crate::config::{error::chain, model::bgp::MrtConfig};

/// A file of messages does not grow beyond this.
const FILE_OCTETS_MAX: u64 = 256 * 1024 * 1024;
/// How often it is looked whether the log has a problem.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Paths of one slice of a table.
const PAGE: usize = 1_024;
/// Pause while the disk is behind.
const DISK_PAUSE: Duration = Duration::from_millis(5);
/// What problems are listed under.
const COMPONENT: &str = "bgp/mrt";

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// Where to?
    #[error("no folder for MRT files is configured")]
    NoFolder,
    /// One at a time.
    #[error("an MRT table is being written already")]
    Busy,
    /// The disk.
    #[error(transparent)]
    Mrt(#[from] MrtError),
    /// The thread that writes has ended.
    #[error("the thread that writes the MRT table has ended")]
    Ended,
}

/// Takes over what is to be written.
pub(super) fn restart(core: &Shared, monitor: &mut Monitor, config: Option<&MrtConfig>) {
    if let Some((_, task)) = monitor.mrt.take() {
        task.abort();
    }
    // Its thread writes what waits and ends; nobody here waits for the disk.
    if let Some(log) = monitor.log.take() {
        log.stop();
        monitor.ending = Some(log);
    }
    monitor.problems.clear(COMPONENT);
    if let Some(config) = config {
        start_log(monitor, config);
        let task = spawn_local(serve(core.clone(), config.clone()));
        monitor.mrt = Some((config.clone(), task));
    }
}

fn start_log(monitor: &mut Monitor, config: &MrtConfig) {
    let Some(rotate_after) = config.updates_rotate else { return };
    let settings = LogSettings {
        folder: config.folder.clone(),
        rotate_octets: FILE_OCTETS_MAX,
        rotate_after,
        files_max: usize::try_from(config.keep).unwrap_or(usize::MAX),
    };
    // It waits for the one before it, so that both never write into one folder.
    match Log::start(settings, monitor.ending.take()) {
        Ok(log) => monitor.log = Some(log),
        Err(error) => monitor.problems.set(COMPONENT, chain(&error)),
    }
}

/// Writes a table now and then, and says what keeps the log from being written.
async fn serve(core: Shared, config: MrtConfig) {
    let every = |period: Duration| {
        let mut ticks = interval_at(tokio::time::Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let mut tables = config.table_interval.map(every);
    let mut look = every(LOOK_INTERVAL);
    let mut table_problem = None;
    loop {
        let table = async {
            match &mut tables {
                Some(ticks) => drop(ticks.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = table => {
                table_problem = match dump(&core).await {
                    Ok(_) | Err(DumpError::Busy) => None,
                    Err(error) => Some(chain(&error)),
                };
            }
            _ = look.tick() => {}
        }
        let mut core = core.borrow_mut();
        if core.monitor.log.is_none() && config.updates_rotate.is_some() {
            start_log(&mut core.monitor, &config);
            let wants = core.monitor.wants_messages();
            core.speaker.mirror(wants);
        }
        let monitor = &core.monitor;
        let log_problem = match (&monitor.log, config.updates_rotate) {
            (Some(log), _) => log.status().problem,
            // It was said when it could not be started.
            (None, Some(_)) => continue,
            (None, None) => None,
        };
        monitor.problems.report(COMPONENT, table_problem.clone().or(log_problem));
    }
}

/// Enters a message into the log.
pub(super) fn log_message(log: &Log, core: &Seen<'_>, described: Option<&Described>, message: &Mirrored) {
    let Some(ends) = ends(core, message.peer) else { return };
    let sent = message.direction == Direction::Sent;
    let add_path =
        described.is_some_and(|it| has_path_ids(&message.octets, if sent { &it.sent } else { &it.received }));
    // What is said before both know each other has no AS numbers in it that could be read wrongly.
    let asn4 = described.is_none_or(|it| it.context.asn4);
    let form = MessageForm { sent, asn4, add_path };
    // Lost for want of room: counted and shown.
    let _kept = log.record(|out| mrt::message(out, wall_clock(), &ends, form, &message.octets));
}

/// Prefixes in the message have path identifiers, which is agreed on by family (RFC 8050 section 3).
fn has_path_ids(message: &[u8], written: &Target) -> bool {
    let is_update = message.get(TYPE_AT) == Some(&(MessageType::Update as u8));
    is_update && family_of(message).is_some_and(|family| *written.add_path.get(family))
}

/// The family of the prefixes of an UPDATE: what its multiprotocol attribute says, IPv4 where it has none.
fn family_of(update: &[u8]) -> Option<Family> {
    let number = |octets: &[u8], at: usize| Some(u16::from_be_bytes([*octets.get(at)?, *octets.get(at + 1)?]));
    let body = update.get(HEADER_LEN..)?;
    let begin = 2 + usize::from(number(body, 0)?);
    let length = usize::from(number(body, begin)?);
    let mut attributes = body.get(begin + 2..begin + 2 + length)?;
    while let [flags, kind, ..] = attributes {
        let (head, length) = if flags & flag::EXTENDED_LENGTH == 0 {
            (3, usize::from(*attributes.get(2)?))
        } else {
            (4, usize::from(number(attributes, 2)?))
        };
        if matches!(*kind, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI) {
            let (afi, safi) = (number(attributes, head)?, *attributes.get(head + 2)?);
            return Family::ALL.into_iter().find(|family| (family.afi(), family.safi()) == (afi, safi));
        }
        attributes = attributes.get(head + length..)?;
    }
    Some(Family::Ipv4Unicast)
}

/// Enters a change of state into the log.
fn log_state(log: &Log, ends: Option<Ends>, from: State, to: State) {
    let Some(ends) = ends else { return };
    let _kept = log.record(|out| mrt::state_change(out, wall_clock(), true, &ends, number(from), number(to)));
}

const fn number(state: State) -> SessionState {
    match state {
        State::Idle => SessionState::Idle,
        State::Connect => SessionState::Connect,
        State::Active => SessionState::Active,
        State::OpenSent => SessionState::OpenSent,
        State::OpenConfirm => SessionState::OpenConfirm,
        State::Established => SessionState::Established,
    }
}

/// Both ends of a connection.
pub(super) fn ends(core: &Seen<'_>, peer: PeerId) -> Option<Ends> {
    let (local, remote) = core.ends?;
    let session = core.speaker.session(peer)?;
    let configured = match session.config().remote_as {
        RemoteAs::Number(asn) => asn,
        RemoteAs::External | RemoteAs::Internal => Asn(0),
    };
    let remote_as = session.negotiated().map_or(configured, |negotiated| negotiated.remote_as);
    let local_as = session.config().presented_as();
    let link = match remote {
        std::net::SocketAddr::V6(remote) => u16::try_from(remote.scope_id()).unwrap_or_default(),
        std::net::SocketAddr::V4(_) => 0,
    };
    let (local, remote) = (local.ip().to_canonical(), remote.ip().to_canonical());
    Some(Ends { remote_as, local_as, link, remote, local })
}

impl Core {
    /// The state of a session changed.
    pub(in super::super) fn log_state(&self, peer: PeerId, from: State, to: State) {
        if let Some(log) = &self.monitor.log {
            let seen = Seen { speaker: &self.speaker, ends: self.any_ends(peer) };
            let ends = ends(&seen, peer).or_else(|| self.monitor.last_ends.get(&peer).copied());
            log_state(log, ends, from, to);
        }
    }
}

/// A table is being written, also by a task that is aborted meanwhile.
struct Dumping(Rc<Cell<bool>>);

impl Dumping {
    /// One at a time.
    fn begin(is_dumping: &Rc<Cell<bool>>) -> Option<Self> {
        (!is_dumping.replace(true)).then(|| Self(is_dumping.clone()))
    }
}

impl Drop for Dumping {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Writes the accepted paths of all prefixes into a file; returns its name.
pub(in super::super) async fn dump(core: &Shared) -> Result<PathBuf, DumpError> {
    let (config, _dumping) = {
        let core = core.borrow();
        let (config, _) = core.monitor.mrt.as_ref().ok_or(DumpError::NoFolder)?;
        (config.clone(), Dumping::begin(&core.monitor.is_dumping).ok_or(DumpError::Busy)?)
    };
    let path = write(core, &config).await?;
    info!(path = %path.display(), "wrote an MRT table");
    Ok(path)
}

async fn write(core: &Shared, config: &MrtConfig) -> Result<PathBuf, DumpError> {
    let keep = usize::try_from(config.keep).unwrap_or(usize::MAX);
    let time = wall_clock();
    let mut table = Table { dump: TableDump::begin(&config.folder, keep)?, time, sequence: 0, places: BTreeMap::new() };
    let (collector, peers) = table.index(&core.borrow());
    table.push(|out, _| mrt::peer_index_table(out, time, collector, "", &peers)).await;
    table.family::<V4>(core).await;
    table.family::<V6>(core).await;
    let mut dump = table.dump;
    let outcome = loop {
        match dump.finish() {
            Ok(outcome) => break outcome,
            Err(again) => {
                dump = again;
                sleep(DISK_PAUSE).await;
            }
        }
    };
    Ok(outcome.await.map_err(|_| DumpError::Ended)??)
}

/// A table that is being written.
struct Table {
    dump: TableDump,
    time: Timestamp,
    sequence: u32,
    /// Places of peers in the index.
    places: BTreeMap<PeerId, u16>,
}

impl Table {
    /// Ourselves first, then every peer that may have paths.
    fn index(&mut self, core: &Core) -> (RouterId, Vec<IndexedPeer>) {
        let config = core.speaker.rib().config();
        let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let mut peers = vec![IndexedPeer { router_id: config.router_id, address: nowhere, asn: config.local_as }];
        self.places.insert(PeerId::LOCAL, 0);
        for (id, known) in &core.known {
            let Ok(place) = u16::try_from(peers.len()) else { break };
            let negotiated = core.speaker.session(*id).and_then(|session| session.negotiated());
            let address = core.ends(*id).map(|(_, remote)| remote.ip().to_canonical());
            peers.push(IndexedPeer {
                router_id: negotiated.map_or(RouterId(0), |it| it.router_id),
                address: address.or(known.key.address()).unwrap_or(nowhere),
                asn: negotiated.map_or(Asn(0), |it| it.remote_as),
            });
            self.places.insert(*id, place);
        }
        (config.router_id, peers)
    }

    async fn push(&mut self, write: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) {
        while !self.dump.has_room() {
            sleep(DISK_PAUSE).await;
        }
        let mut scratch = Vec::new();
        // There is room: it was just seen.
        let _pushed = self.dump.push(|out| write(out, &mut scratch));
    }

    async fn family<P: Stored>(&mut self, core: &Shared) {
        let mut next = Some(Cursor::default());
        while let Some(at) = next {
            let (entries, clock) = {
                let core = core.borrow();
                let page = core.speaker.rib().paths::<P>(at, PAGE);
                next = page.next;
                (page.entries, Clock::new(&core))
            };
            for paths in entries.chunk_by(|a, b| a.prefix == b.prefix) {
                self.record::<P>(paths, clock).await;
            }
            // Sessions have their turn.
            yield_now().await;
        }
    }

    async fn record<P: Stored>(&mut self, paths: &[PathView], clock: Clock) {
        let Some(prefix) = paths.first().and_then(|path| P::from_net(&path.prefix)) else { return };
        let entry = |path: &PathView| {
            let attributes = path.accepted.clone()?;
            let unspecified = match P::FAMILY {
                Family::Ipv4Unicast => bgp::NextHop::V4(std::net::Ipv4Addr::UNSPECIFIED),
                Family::Ipv6Unicast => bgp::NextHop::V6(std::net::Ipv6Addr::UNSPECIFIED),
            };
            let next_hop = path.next_hop.or(path.received_next_hop).unwrap_or(unspecified);
            let learned_at = u32::try_from(clock.time(path.since).as_second()).unwrap_or_default();
            Some((*self.places.get(&path.peer)?, learned_at, path.path_id, attributes, next_hop))
        };
        let entries: Vec<_> = paths.iter().filter_map(entry).collect();
        if entries.is_empty() {
            return;
        }
        // Identifiers are only worth a form of their own where a peer has several paths.
        let has_several = entries.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[0].0 != 0);
        let (time, sequence) = (self.time, self.sequence);
        self.sequence = self.sequence.wrapping_add(1);
        self.push(|out, scratch| {
            let entries: Vec<RibEntry<'_>> = entries
                .iter()
                .map(|(peer, learned_at, path_id, attributes, next_hop)| RibEntry {
                    peer: *peer,
                    learned_at: *learned_at,
                    path_id: *path_id,
                    attributes: Attributes(attributes),
                    next_hop: *next_hop,
                })
                .collect();
            mrt::rib(out, scratch, time, sequence, prefix, has_several, &entries);
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use bgp::PerFamily;

    use super::*;

    #[test]
    fn a_table_that_is_given_up_makes_room_for_the_next() {
        let is_dumping = Rc::default();
        let first = Dumping::begin(&is_dumping).expect("nobody else");
        assert!(Dumping::begin(&is_dumping).is_none());
        drop(first);
        assert!(Dumping::begin(&is_dumping).is_some());
    }

    #[test]
    fn path_identifiers_are_a_matter_of_the_family() {
        let message = |kind: MessageType, body: &[u8]| {
            let mut message = vec![0; HEADER_LEN];
            message[TYPE_AT] = kind as u8;
            message.extend_from_slice(body);
            message
        };
        let update = |attributes: &[u8]| {
            let length = u8::try_from(attributes.len()).expect("short");
            message(MessageType::Update, &[&[0, 0, 0, length][..], attributes].concat())
        };
        let written = |ipv4, ipv6| Target { asn4: true, add_path: PerFamily { ipv4, ipv6 }, ..Target::default() };
        let origin = [0x40, 1, 1, 0];
        let ipv6 = update(&[&origin[..], &[0x80, 15, 3, 0, 2, 1]].concat());
        let long = update(&[&origin[..], &[0x90, 15, 0, 3, 0, 2, 1]].concat());
        for (message, with_ipv4, with_ipv6) in [
            (update(&origin), true, false),
            (update(&[]), true, false),
            (ipv6, false, true),
            (long, false, true),
            (update(&[0x80, 15, 3, 0, 25, 1]), false, false),
            (update(&[0x80, 15, 9]), false, false),
            (message(MessageType::Keepalive, &[]), false, false),
        ] {
            assert_eq!(has_path_ids(&message, &written(true, false)), with_ipv4, "{message:?}");
            assert_eq!(has_path_ids(&message, &written(false, true)), with_ipv6, "{message:?}");
        }
    }
}
