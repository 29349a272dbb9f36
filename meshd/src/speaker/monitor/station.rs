//! One BMP station: what it has yet to be told, and the task that tells it.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use bgp::{
    Family,
    bmp::{self, PeerDown, PeerUp, Statistic, Table, Timestamp},
    family::{V4, V6},
    id::PeerId,
    rib::Rib,
    session::Direction,
    speaker::Speaker,
    wire::{
        capability::Capability,
        encode,
        header::{LengthLimit, next_frame},
        open::Open,
    },
};
use tokio::{
    sync::{Notify, mpsc},
    task::{JoinHandle, spawn_local},
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::warn;

use super::{
    super::{
        bmp::{Connection, Feed, Station, StationEvent, StationSettings},
        core::{Core, Shared},
    },
    Described,
    walk::{View, Walk},
    wall_clock,
};
use crate::config::model::bgp::BmpStation;

/// Events of a station that wait; it has one connection.
const EVENTS_MAX: usize = 4;
/// Room in the buffer below which walks wait: what happens meanwhile has to fit, too.
const ROOM_MIN: usize = 2 * 1024 * 1024;
/// Octets of Loc-RIB taken at a time.
const WATCHED_OCTETS: usize = 256 * 1024;
/// Pages of a walk before others get their turn.
const PAGES: usize = 4;
/// Pause between two slices of walks.
const SLICE_PAUSE: Duration = Duration::from_millis(2);
/// How often it is looked whether a station has a problem.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The name of the Loc-RIB (RFC 9069 section 5.3).
const TABLE_NAME: &str = "global";

/// A station and what it knows.
pub(super) struct Fed {
    pub(super) feed: Feed,
    connection: Option<Connection>,
    /// Watches the tables for it, for Loc-RIB.
    pub(super) watcher: Option<PeerId>,
    walks: VecDeque<Walk>,
    /// There is something to tell.
    pub(super) news: Rc<Notify>,
    /// It is no longer wanted.
    pub(super) stop: Rc<Notify>,
    /// Ends after the farewell.
    pub(super) task: JoinHandle<()>,
}

/// What the problem of a station is listed under.
pub(super) fn component(settings: &BmpStation) -> String {
    format!("bgp/bmp/{}", settings.address)
}

/// Starts to feed a station.
pub(super) fn start(core: &Shared, settings: BmpStation, name: &str) -> Fed {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let description = concat!("meshd ", env!("CARGO_PKG_VERSION"));
    let station = Station::spawn(StationSettings::new(settings.address, name, description), sender);
    let (news, stop) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
    let feed = station.feed();
    let task = spawn_local(serve(core.clone(), settings, station, events, news.clone(), stop.clone()));
    Fed { feed, connection: None, watcher: None, walks: VecDeque::new(), news, stop, task }
}

async fn serve(
    core: Shared,
    settings: BmpStation,
    station: Station,
    mut events: mpsc::Receiver<StationEvent>,
    news: Rc<Notify>,
    stop: Rc<Notify>,
) {
    let mut look = interval(LOOK_INTERVAL);
    let mut statistics = settings.statistics.map(|every| {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    });
    let mut is_pending = false;
    loop {
        let report = async {
            match &mut statistics {
                Some(ticks) => drop(ticks.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.notified() => return station.stop().await,
            event = events.recv() => match event {
                Some(StationEvent::Up(connection)) => {
                    Core::station_up(&core, &settings, connection);
                    is_pending = true;
                }
                Some(StationEvent::Down(connection)) => Core::station_down(&core, &settings, connection),
                None => return,
            },
            () = news.notified() => is_pending = true,
            () = sleep(SLICE_PAUSE), if is_pending => is_pending = core.borrow_mut().tell(&settings),
            _ = look.tick() => {
                let problem = station.feed().status().problem;
                core.borrow().monitor.problems.report(&component(&settings), problem);
            }
            () = report => core.borrow_mut().report_statistics(&settings),
        }
    }
}

impl Core {
    /// A station listens: it is told of all sessions, and then what it wants to know of them.
    fn station_up(core: &Shared, settings: &BmpStation, connection: Connection) {
        let mut core = core.borrow_mut();
        let core = &mut *core;
        let Some(fed) = core.monitor.stations.get_mut(settings) else { return };
        fed.begin(&mut core.speaker, settings, connection, &core.monitor.up);
        core.worker.notify_one();
    }

    fn station_down(core: &Shared, settings: &BmpStation, connection: Connection) {
        let mut core = core.borrow_mut();
        let core = &mut *core;
        let Some(fed) = core.monitor.stations.get_mut(settings) else { return };
        if fed.connection == Some(connection) {
            fed.connection = None;
            fed.walks.clear();
            if let Some(watcher) = fed.watcher.take() {
                core.speaker.unwatch(watcher);
            }
        }
    }

    /// Tells a station the next slice; true when there is more.
    fn tell(&mut self, settings: &BmpStation) -> bool {
        let Some(fed) = self.monitor.stations.get_mut(settings) else { return false };
        fed.tell(&mut self.speaker, &self.monitor.up)
    }

    fn report_statistics(&mut self, settings: &BmpStation) {
        let Some(fed) = self.monitor.stations.get_mut(settings) else { return };
        fed.statistics(settings, &self.speaker, &self.monitor.up);
    }
}

impl Fed {
    fn push(&self, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(connection) = self.connection {
            // What does not fit ends the connection, and the next one begins from the beginning.
            let _fits = self.feed.push(connection, write);
        }
    }

    /// Ends the connection; the next one is told everything.
    pub(super) fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.feed.close(connection);
        }
    }

    fn begin(
        &mut self,
        speaker: &mut Speaker,
        settings: &BmpStation,
        connection: Connection,
        up: &BTreeMap<PeerId, Described>,
    ) {
        self.connection = Some(connection);
        self.walks.clear();
        if let Some(watcher) = self.watcher.take() {
            speaker.unwatch(watcher);
        }
        let views = [
            (settings.adj_rib_in_pre_policy, View::Received),
            (settings.adj_rib_in_post_policy, View::Accepted),
            (settings.adj_rib_out, View::Advertised),
        ];
        for (peer, described) in up {
            self.peer_up(*peer, described);
            for (_, view) in views.iter().filter(|(wanted, _)| *wanted) {
                self.walks.extend(described.families().map(|family| Walk::new(*peer, family, *view)));
            }
        }
        if settings.loc_rib {
            let config = speaker.rib().config();
            let open = local_open(config.local_as, config.router_id);
            let header = loc_rib_header(speaker, wall_clock());
            let nowhere = header.address;
            let opened = PeerUp {
                local: nowhere,
                local_port: 0,
                remote_port: 0,
                sent_open: &open,
                received_open: &open,
                table_name: Some(TABLE_NAME),
            };
            self.push(|out| bmp::peer_up(out, &header, &opened));
            match speaker.watch() {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => warn!(%error, "cannot tell a BMP station what is selected"),
            }
        }
    }

    pub(super) fn peer_up(&mut self, _peer: PeerId, described: &Described) {
        let header = described.header(Table::AdjRibIn { post_policy: false }, wall_clock());
        self.push(|out| bmp::peer_up(out, &header, &described.peer_up()));
    }

    pub(super) fn peer_down(&mut self, peer: PeerId, described: &Described, down: PeerDown<'_>) {
        self.walks.retain(|walk| walk.peer != peer);
        let header = described.header(Table::AdjRibIn { post_policy: false }, wall_clock());
        self.push(|out| bmp::peer_down(out, &header, down));
    }

    /// An UPDATE went by.
    pub(super) fn update(
        &mut self,
        settings: &BmpStation,
        rib: &Rib,
        peer: PeerId,
        described: &Described,
        direction: Direction,
        octets: &[u8],
    ) {
        let time = wall_clock();
        match direction {
            Direction::Received => {
                if settings.adj_rib_in_pre_policy {
                    let header = described.header(Table::AdjRibIn { post_policy: false }, time);
                    self.push(|out| bmp::route_monitoring(out, &header, octets));
                }
                if settings.adj_rib_in_post_policy {
                    let header = described.header(Table::AdjRibIn { post_policy: true }, time);
                    let judged = super::walk::judged(rib, peer, described, octets);
                    self.push_messages(&header, &judged);
                }
            }
            Direction::Sent if settings.adj_rib_out => {
                let header = described.header(Table::AdjRibOut { post_policy: true }, time);
                self.push(|out| bmp::route_monitoring(out, &header, octets));
            }
            Direction::Sent => {}
        }
    }

    /// What of a peer was accepted is told again.
    pub(super) fn accepted_again(&mut self, peer: PeerId, described: &Described) {
        self.walks.retain(|walk| walk.peer != peer || walk.view == View::Received || walk.view == View::Advertised);
        self.walks.extend(described.families().map(|family| Walk::new(peer, family, View::AcceptedAgain)));
        self.news.notify_one();
    }

    /// Every message of a stream in an envelope of its own.
    fn push_messages(&self, header: &bmp::Peer, stream: &[u8]) {
        self.push(|out| {
            let mut rest = stream;
            while let Ok(Some(frame)) = next_frame(rest, LengthLimit::Extended) {
                let length = rest.len() - frame.rest.len();
                bmp::route_monitoring(out, header, &rest[..length]);
                rest = frame.rest;
            }
        });
    }

    fn tell(&mut self, speaker: &mut Speaker, up: &BTreeMap<PeerId, Described>) -> bool {
        let Some(connection) = self.connection else { return false };
        let mut messages = Vec::new();
        for _ in 0..PAGES {
            if self.feed.room(connection) < ROOM_MIN {
                return self.feed.status().connection == Some(connection);
            }
            let Some(mut walk) = self.walks.pop_front() else { break };
            let Some(described) = up.get(&walk.peer) else { continue };
            // Judged anew in slices: what is told before that is over would be told twice.
            if walk.view == View::AcceptedAgain && !speaker.rib().is_idle() {
                self.walks.push_front(walk);
                break;
            }
            messages.clear();
            let is_over = walk.step(speaker.rib(), described, &mut messages);
            if is_over {
                encode::end_of_rib(&mut messages, walk.family);
            }
            let header = described.header(walk.view.table(), wall_clock());
            self.push_messages(&header, &messages);
            if !is_over {
                self.walks.push_front(walk);
            }
        }
        let mut more = false;
        if let Some(watcher) = self.watcher {
            messages.clear();
            more = speaker.watched(watcher, &mut messages, WATCHED_OCTETS);
            let header = loc_rib_header(speaker, wall_clock());
            self.push_messages(&header, &messages);
        }
        more || !self.walks.is_empty()
    }

    fn statistics(&mut self, settings: &BmpStation, speaker: &Speaker, up: &BTreeMap<PeerId, Described>) {
        let (rib, time) = (speaker.rib(), wall_clock());
        for (peer, described) in up {
            let mut numbers = Vec::new();
            let (mut received, mut advertised) = (0, 0);
            for family in described.families() {
                let counts = rib.counts(*peer, family);
                let told = match family {
                    Family::Ipv4Unicast => rib.advertised_count::<V4>(*peer),
                    Family::Ipv6Unicast => rib.advertised_count::<V6>(*peer),
                };
                received += u64::from(counts.received);
                advertised += u64::from(told);
                numbers.push(Statistic::AdjRibInOf(family, counts.received.into()));
                numbers.push(Statistic::AdjRibOutPostPolicyOf(family, told.into()));
            }
            numbers.push(Statistic::AdjRibIn(received));
            numbers.push(Statistic::AdjRibOutPostPolicy(advertised));
            let withdrawn = speaker.status(*peer).map_or(0, |status| status.updates_treated_as_withdraw);
            numbers.push(Statistic::UpdatesTreatedAsWithdraw(u32::try_from(withdrawn).unwrap_or(u32::MAX)));
            let header = described.header(Table::AdjRibIn { post_policy: false }, time);
            self.push(|out| bmp::statistics(out, &header, &numbers));
        }
        if settings.loc_rib {
            let totals = rib.totals().families;
            let of = |family: Family| u64::from(totals.get(family).destinations);
            let numbers = [
                Statistic::LocRib(of(Family::Ipv4Unicast) + of(Family::Ipv6Unicast)),
                Statistic::LocRibOf(Family::Ipv4Unicast, of(Family::Ipv4Unicast)),
                Statistic::LocRibOf(Family::Ipv6Unicast, of(Family::Ipv6Unicast)),
            ];
            let header = loc_rib_header(speaker, time);
            self.push(|out| bmp::statistics(out, &header, &numbers));
        }
    }
}

fn loc_rib_header(speaker: &Speaker, time: Timestamp) -> bmp::Peer {
    let config = speaker.rib().config();
    bmp::Peer {
        table: Table::LocRib { filtered: false },
        distinguisher: 0,
        address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        asn: config.local_as,
        router_id: config.router_id,
        two_octet_as: false,
        time,
    }
}

/// The OPEN that says how the UPDATEs of Loc-RIB are to be read.
fn local_open(asn: bgp::Asn, router_id: bgp::RouterId) -> Vec<u8> {
    let families = Family::ALL.map(Capability::family);
    let over_ipv6 = Capability::ExtendedNextHop(vec![(1, 1, 2)]);
    let others = [over_ipv6, Capability::ExtendedMessage, Capability::FourOctetAs(asn)];
    let capabilities = families.into_iter().chain(others).collect();
    let open = Open { asn, hold_time_s: 0, router_id, capabilities };
    super::encoded(&open)
}
