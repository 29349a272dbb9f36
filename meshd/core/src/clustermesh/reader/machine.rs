//! The state machine.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use super::{
    Command, Header, Input, Now, Output, Record, Settings, Target,
    backoff::Backoff,
    decode::Decoder,
    follow::{List, PageStep, Watch},
    problem,
    session::{ConfigStage, Session},
};
use crate::{
    clustermesh::{
        Key, Keyspace, PeerContext,
        cluster_config::{self, AcceptedConfig, ConfigExpectations, ExportMode},
    },
    id::{ClusterId, ClusterName},
    observed::{ClusterChange, Failure, Kind, PeerRow},
};

/// A connection that lasted this many times the longest pause has earned short pauses again.
const STEADY_FACTOR: u32 = 4;
/// Longest pause before a list that was too long is asked for again. A store that does not count makes us read it all.
const TOO_MANY_RETRY_MAX: Duration = Duration::from_secs(3_600);

/// Reads one cluster; see the [module](super).
#[derive(Debug)]
pub struct Reader {
    settings: Settings,
    state: State,
    /// What the checks of records need, once the cluster-config is accepted.
    context: Option<(PeerContext, Keyspace)>,
    known_id: Option<ClusterId>,
    /// Which data of the store the rows of a kind are from.
    listed_from: BTreeMap<Kind, u64>,
    /// The data that took the place of other data, and since when.
    replaced: Option<(u64, Duration)>,
    decoder: Decoder,
    row: PeerRow,
    told: Option<Arc<PeerRow>>,
    backoff: Backoff,
    config_backoff: Backoff,
    /// Ranges whose last list was too long.
    too_many: BTreeMap<Target, Backoff>,
    connected_before: bool,
}

#[derive(Debug)]
enum State {
    /// [`Reader::start`] was not called.
    Idle,
    /// The driver is pausing or building a connection.
    Connecting,
    /// There is a connection.
    Up(Box<Session>),
}

/// The connection must end, for this reason.
struct Ended(Arc<str>);

impl Reader {
    /// A reader that has not started.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let timers = &settings.timers;
        let backoff = Backoff::new(timers.reconnect_min, timers.reconnect_max, settings.seed);
        let config_backoff = Backoff::new(timers.config_retry_min, timers.config_retry_max, !settings.seed);
        let row = PeerRow { endpoints: settings.endpoints.clone(), ..PeerRow::default() };
        Self {
            known_id: settings.known_id,
            listed_from: settings.listed_from.clone(),
            settings,
            state: State::Idle,
            context: None,
            replaced: None,
            decoder: Decoder::default(),
            row,
            told: None,
            backoff,
            config_backoff,
            too_many: BTreeMap::new(),
            connected_before: false,
        }
    }

    /// Asks for the first connection, `after` a pause that spreads many readers out.
    pub fn start(&mut self, after: Duration, out: &mut Output) {
        if matches!(self.state, State::Idle) {
            self.state = State::Connecting;
            out.commands.push(Command::Connect { after });
            self.tell_row(out);
        }
    }

    /// Takes in what happened. Inputs that do not fit the state are late answers and are passed over.
    pub fn handle(&mut self, input: Input, now: Now, out: &mut Output) {
        match mem::replace(&mut self.state, State::Idle) {
            State::Idle => {}
            State::Connecting => self.handle_connecting(input, now, out),
            State::Up(mut session) => match self.handle_up(&mut session, input, now, out) {
                Ok(()) => {
                    self.set_problem_of(&session, now);
                    self.state = State::Up(session);
                }
                Err(Ended(reason)) => self.end(&session, reason, now, out),
            },
        }
        self.tell_row(out);
    }

    /// When [`Input::Tick`] is due, as `Now::elapsed`; `None` while the driver is connecting.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let State::Up(session) = &self.state else { return None };
        let due = session.deadline(&self.settings);
        match session.canaries_listed {
            Some(listed) if self.row.canaries.len() < Kind::ALL.len() && self.row.problem.is_none() => {
                Some(due.min(listed + self.settings.timers.canary_grace))
            }
            Some(_) | None => Some(due),
        }
    }

    /// The peer row as last told.
    #[must_use]
    pub fn row(&self) -> &PeerRow {
        &self.row
    }

    /// Which data of the store the rows of each kind are from, for the next reader of the cluster.
    #[must_use]
    pub fn listed_from(&self) -> &BTreeMap<Kind, u64> {
        &self.listed_from
    }

    fn handle_connecting(&mut self, input: Input, now: Now, out: &mut Output) {
        self.state = State::Connecting;
        match input {
            Input::Connected => {
                let mut session = Session::new(&self.settings, now.elapsed);
                if mem::replace(&mut self.connected_before, true) {
                    self.row.reconnections += 1;
                }
                self.config_backoff.reset();
                begin(&mut session, Target::Heartbeat, out);
                begin(&mut session, Target::Config, out);
                self.state = State::Up(Box::new(session));
            }
            Input::Lost(reason) => {
                self.fail(reason, now);
                out.commands.push(Command::Connect { after: self.backoff.next() });
            }
            Input::Page { .. }
            | Input::ListCompacted(_)
            | Input::PageTooLarge(_)
            | Input::Watching(..)
            | Input::Events { .. }
            | Input::WatchCompacted(_)
            | Input::Refused(..)
            | Input::Claimed(_)
            | Input::Tick => {}
        }
    }

    fn handle_up(&mut self, session: &mut Session, input: Input, now: Now, out: &mut Output) -> Result<(), Ended> {
        match input {
            Input::Connected => Ok(()),
            Input::Lost(reason) => Err(Ended(reason)),
            Input::Page { target, header, records, count, more } => {
                self.latch(session, header)?;
                self.page(session, target, header, &records, count, more, now, out)
            }
            Input::ListCompacted(target) | Input::WatchCompacted(target) => {
                self.compacted(session, target, now, out);
                Ok(())
            }
            Input::PageTooLarge(target) => {
                self.page_too_large(session, target, now, out);
                Ok(())
            }
            Input::Watching(target, header) => {
                self.latch(session, header)?;
                if let Some(follow) = session.follows.get_mut(&target)
                    && matches!(follow.watch, Watch::Opening(_))
                {
                    follow.watch = Watch::Open;
                }
                Ok(())
            }
            Input::Events { target, header, records } => {
                self.latch(session, header)?;
                self.events(session, target, &records, now, out)
            }
            Input::Refused(target, reason) => {
                self.refused(session, target, reason, now, out);
                Ok(())
            }
            Input::Claimed(answer) => {
                self.claimed(session, answer, now, out);
                Ok(())
            }
            Input::Tick => self.tick(session, now, out),
        }
    }

    /// Every answer must come from the same data.
    fn latch(&mut self, session: &mut Session, header: Header) -> Result<(), Ended> {
        match session.store_id {
            _ if header.store_id == 0 => Err(Ended(problem::no_store_id(&self.settings))),
            Some(old) if old != header.store_id => {
                Err(Ended(problem::store_changed(&self.settings, old, header.store_id)))
            }
            Some(_) => Ok(()),
            None => {
                session.store_id = Some(header.store_id);
                self.row.store_id = Some(header.store_id);
                self.row.connected = true;
                Ok(())
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one input, taken apart by the caller")]
    fn page(
        &mut self,
        session: &mut Session,
        target: Target,
        header: Header,
        records: &[Record],
        count: usize,
        more: bool,
        now: Now,
        out: &mut Output,
    ) -> Result<(), Ended> {
        let Some(follow) = session.follows.get_mut(&target) else { return Ok(()) };
        let first = match follow.check_page(header.revision, records.iter().map(|r| r.key.as_slice()), count, more) {
            PageStep::Unasked => return Ok(()),
            PageStep::Disordered => return Err(Ended(problem::disordered(&self.settings, target))),
            PageStep::TooMany => {
                let (min, seed) = (self.settings.timers.refused_retry, self.settings.seed);
                let backoff = || Backoff::new(min, TOO_MANY_RETRY_MAX, seed);
                let pause = self.too_many.entry(target).or_insert_with(backoff).next();
                let reason = problem::too_many(&self.settings, target);
                self.refused_for(session, target, reason, pause, now, out);
                return Ok(());
            }
            PageStep::Fits { first } => first,
        };
        if more {
            // Asked for before the decoding, so that the store works while we do.
            out.commands.extend(follow.next_page());
        }
        match target {
            Target::Heartbeat => {
                if !records.is_empty() {
                    session.watchdog.beat(now.elapsed);
                }
            }
            Target::Config => self.config(session, records.first().and_then(|r| r.value.as_deref()), now, out)?,
            Target::Canaries => self.canaries(session, records, out),
            Target::Records(kind) => {
                if first {
                    self.decoder.begin(kind);
                    out.changes.push(ClusterChange::ListBegin(kind));
                }
                self.records(kind, records, now, out);
            }
        }
        if !more {
            self.listed(session, target, now, out);
        }
        Ok(())
    }

    /// A list is complete.
    fn listed(&mut self, session: &mut Session, target: Target, now: Now, out: &mut Output) {
        self.too_many.remove(&target);
        if let Some(follow) = session.follows.get_mut(&target) {
            out.commands.extend(follow.finish(now.elapsed));
        }
        match target {
            Target::Heartbeat | Target::Config => {}
            Target::Canaries => {
                session.canaries_listed.get_or_insert(now.elapsed);
            }
            Target::Records(kind) => {
                self.end_list(session, kind, now, out);
                if !self.row.synced.contains(&kind) {
                    self.row.synced.push(kind);
                    self.row.synced.sort_unstable();
                }
                if self.row.synced.len() == Kind::ALL.len() {
                    out.changes.push(ClusterChange::Fresh);
                    self.backoff.reset();
                }
            }
        }
    }

    /// Tells the end of a list, which removes what it did not have; a grace later if these rows are from other data.
    fn end_list(&mut self, session: &mut Session, kind: Kind, now: Now, out: &mut Output) {
        let Some(store_id) = session.store_id else { return };
        if self.listed_from.get(&kind).is_some_and(|from| *from != store_id) {
            let sweep_at = self.sweep_at(store_id, now.elapsed);
            if now.elapsed < sweep_at {
                session.unswept.insert(kind);
                session.sweep_at = Some(sweep_at);
                self.row.kept_until = now.wall_at(sweep_at);
                self.tell_services(kind, now, out);
                return;
            }
        }
        session.unswept.remove(&kind);
        if session.unswept.is_empty() {
            self.row.kept_until = None;
        }
        self.listed_from.insert(kind, store_id);
        if self.listed_from.values().all(|from| *from == store_id) {
            self.replaced = None;
        }
        if kind == Kind::Services {
            self.decoder.end_services();
            self.tell_services(kind, now, out);
        }
        out.changes.push(ClusterChange::ListEnd(kind));
    }

    /// Tells the services of which slices have come, now that it is known that nothing is missing.
    fn tell_services(&mut self, kind: Kind, now: Now, out: &mut Output) {
        if let (Kind::Services, Some((context, _))) = (kind, &self.context) {
            self.decoder.tell_services(context.id, now.wall, &mut out.changes);
        }
    }

    /// When rows may be removed that the data of this store does not have: a grace after its first complete list, since
    /// before its canaries nobody knows how far it is. A connection that breaks does not make it later.
    fn sweep_at(&mut self, store_id: u64, now: Duration) -> Duration {
        let (_, since) = self.replaced.filter(|(id, _)| *id == store_id).unwrap_or((store_id, now));
        self.replaced = Some((store_id, since));
        since + self.settings.timers.replaced_grace
    }

    fn events(
        &mut self,
        session: &mut Session,
        target: Target,
        records: &[Record],
        now: Now,
        out: &mut Output,
    ) -> Result<(), Ended> {
        let Some(follow) = session.follows.get_mut(&target) else { return Ok(()) };
        if follow.watch == Watch::Closed {
            return Ok(());
        }
        follow.watch = Watch::Open;
        follow.alive();
        match target {
            Target::Heartbeat => {
                if records.iter().any(|record| record.value.is_some()) {
                    session.watchdog.beat(now.elapsed);
                }
            }
            Target::Config => {
                // Only the last state counts.
                if let Some(record) = records.last() {
                    self.config(session, record.value.as_deref(), now, out)?;
                }
            }
            Target::Canaries => self.canaries(session, records, out),
            Target::Records(kind) => {
                self.records(kind, records, now, out);
                self.tell_services(kind, now, out);
            }
        }
        Ok(())
    }

    fn records(&mut self, kind: Kind, records: &[Record], now: Now, out: &mut Output) {
        let Some((context, keyspace)) = &self.context else { return };
        out.changes.reserve(records.len());
        let skip = self.settings.is_own().then_some(&self.settings.own_node);
        for record in records {
            let source = (context, *keyspace, kind);
            self.decoder.read(source, skip, record, now.wall, &mut out.changes);
        }
    }

    fn canaries(&mut self, session: &mut Session, records: &[Record], out: &mut Output) {
        let Some((_, keyspace)) = &self.context else { return };
        let keyspace = *keyspace;
        for record in records.iter().filter(|record| record.value.is_some()) {
            // Canaries of records we do not read, and keys that are no canaries, mean nothing to us.
            let Ok(Key::Canary { cluster, keyspace: of, kind }) = Key::parse(&record.key) else { continue };
            let Some(config) = session.accepted() else { continue };
            if cluster == self.settings.cluster.as_str()
                && of == keyspace
                && let Some(kind) = Kind::ALL.into_iter().find(|read| config.key_kind(*read) == kind)
            {
                self.open(session, kind, out);
            }
        }
    }

    /// Starts reading a kind, once per connection.
    fn open(&mut self, session: &mut Session, kind: Kind, out: &mut Output) {
        if !self.row.canaries.contains(&kind) {
            self.row.canaries.push(kind);
            self.row.canaries.sort_unstable();
            begin(session, Target::Records(kind), out);
        }
    }

    fn compacted(&mut self, session: &mut Session, target: Target, now: Now, out: &mut Output) {
        let pause = self.settings.timers.refused_retry;
        let Some(follow) = session.follows.get_mut(&target) else { return };
        if follow.list == List::Idle {
            return;
        }
        if let Target::Records(kind) = target
            && (session.unswept.remove(&kind) || follow.is_mid_list())
        {
            out.changes.push(ClusterChange::ListAbort(kind));
        }
        if session.unswept.is_empty() {
            self.row.kept_until = None;
        }
        follow.watch = Watch::Closed;
        out.commands.extend(follow.restart(now.elapsed, pause));
    }

    fn page_too_large(&mut self, session: &mut Session, target: Target, now: Now, out: &mut Output) {
        let Some(follow) = session.follows.get_mut(&target) else { return };
        if !matches!(follow.list, List::Running { .. }) {
            return;
        }
        match follow.shrink() {
            Some(command) => out.commands.push(command),
            None => self.refused(session, target, problem::too_large(&self.settings, target), now, out),
        }
    }

    fn refused(&mut self, session: &mut Session, target: Target, reason: Arc<str>, now: Now, out: &mut Output) {
        self.refused_for(session, target, reason, self.settings.timers.refused_retry, now, out);
    }

    fn refused_for(
        &mut self,
        session: &mut Session,
        target: Target,
        reason: Arc<str>,
        pause: Duration,
        now: Now,
        out: &mut Output,
    ) {
        let retry_at = now.elapsed + pause;
        let Some(follow) = session.follows.get_mut(&target) else { return };
        if follow.list == List::Idle {
            return;
        }
        if let Target::Records(kind) = target
            && (session.unswept.remove(&kind) || follow.is_mid_list())
        {
            out.changes.push(ClusterChange::ListAbort(kind));
        }
        if session.unswept.is_empty() {
            self.row.kept_until = None;
        }
        follow.refuse(reason, retry_at);
        // The store answers: that much is certain, and the problem says what it refuses.
        self.row.connected = true;
        if let Target::Records(kind) = target {
            self.row.synced.retain(|of| *of != kind);
        }
    }

    fn tick(&mut self, session: &mut Session, now: Now, out: &mut Output) -> Result<(), Ended> {
        let at = now.elapsed;
        if session.watchdog.check(&self.settings, at) {
            return Err(Ended(problem::silent(&self.settings)));
        }
        if session.accepted().is_none() && at >= session.since + self.settings.timers.config_timeout {
            return Err(Ended(problem::config_timeout(&self.settings, session)));
        }
        if session.config_retry_at.is_some_and(|due| at >= due) {
            session.config_retry_at = None;
            begin(session, Target::Config, out);
        }
        if session.sweep_at.is_some_and(|due| at >= due) {
            for kind in mem::take(&mut session.unswept) {
                self.end_list(session, kind, now, out);
            }
        }
        for (target, follow) in &mut session.follows {
            if follow.retry_at.is_some_and(|due| at >= due) {
                out.commands.push(follow.begin());
            }
            if let Watch::Opening(since) = follow.watch
                && at >= since + self.settings.timers.watch_timeout
            {
                return Err(Ended(problem::watch_timeout(&self.settings, *target)));
            }
        }
        Ok(())
    }

    /// The value of the cluster-config is known, or that there is none.
    fn config(&mut self, session: &mut Session, value: Option<&[u8]>, now: Now, out: &mut Output) -> Result<(), Ended> {
        let found = match value {
            None => Err(None),
            Some(value) => self.check_config(value).map_err(Some),
        };
        if let ConfigStage::Accepted { config, problem } = &mut session.config {
            match found {
                Ok(new) if new == *config => *problem = None,
                Ok(_) => return Err(Ended(problem::config_changed(&self.settings))),
                // What was believed stays believed until there is something better.
                Err(reason) => *problem = Some(reason.unwrap_or_else(|| problem::config_gone(&self.settings))),
            }
            return Ok(());
        }
        session.config_retry_at = None;
        session.config = match found {
            Ok(config) => {
                let id = config.id;
                session.config = ConfigStage::Claiming(config);
                if self.settings.is_own() {
                    self.claimed(session, Ok(()), now, out);
                } else {
                    out.commands.push(Command::Claim(id));
                }
                return Ok(());
            }
            Err(None) => ConfigStage::Missing,
            Err(Some(reason)) => ConfigStage::Refused(reason),
        };
        session.config_retry_at = Some(now.elapsed + self.config_backoff.next());
        Ok(())
    }

    fn check_config(&self, value: &[u8]) -> Result<AcceptedConfig, Arc<str>> {
        let settings = &self.settings;
        let expected = ConfigExpectations {
            cluster: settings.cluster.clone(),
            own_cluster: settings.own_cluster.clone(),
            own_id: settings.own_id,
            max_clusters: settings.max_clusters,
            // Other remote clusters are asked for with `Command::Claim`.
            taken: Vec::new(),
        };
        cluster_config::accept(&expected, value).map_err(|refusal| refusal.to_string().into())
    }

    fn context_for(&self, config: &AcceptedConfig) -> PeerContext {
        let settings = &self.settings;
        PeerContext {
            cluster: settings.cluster.clone(),
            id: config.id,
            max_clusters: settings.max_clusters,
            own: settings.is_own(),
            accept: settings.accept.clone(),
            own_pod_cidrs: settings.own_pod_cidrs.clone(),
            own_addresses: settings.own_addresses.clone(),
        }
    }

    fn claimed(&mut self, session: &mut Session, answer: Result<(), ClusterName>, now: Now, out: &mut Output) {
        let ConfigStage::Claiming(config) = &session.config else { return };
        let config = config.clone();
        if let Err(owner) = answer {
            session.config = ConfigStage::Refused(problem::id_taken(&self.settings, config.id, &owner));
            session.config_retry_at = Some(now.elapsed + self.config_backoff.next());
            return;
        }
        if self.known_id.replace(config.id).is_some_and(|old| old != config.id) {
            // Another cluster under the same name: nothing of the old one holds (wire contract section 2.2, step 4).
            out.changes.push(ClusterChange::Drop);
            self.decoder.clear();
            self.listed_from.clear();
            if !self.settings.is_own() {
                // What it may claim went with its rows, and holds for the new cluster too.
                out.changes.push(ClusterChange::Accept(self.settings.accept.clone()));
            }
            self.told = None;
        }
        self.accept(session, config, out);
    }

    /// The cluster-config is in force: read what it announces.
    fn accept(&mut self, session: &mut Session, config: AcceptedConfig, out: &mut Output) {
        let keyspace = config.keyspace;
        self.context = Some((self.context_for(&config), keyspace));
        self.decoder.read_slices(config.export_mode == ExportMode::EndpointSlices);
        session.add_records(&self.settings, &config);
        self.row.id = Some(config.id);
        self.row.cached = keyspace == Keyspace::Cache;
        if config.canaries {
            begin(session, Target::Canaries, out);
        } else {
            for kind in Kind::ALL {
                self.open(session, kind, out);
            }
        }
        session.config = ConfigStage::Accepted { config, problem: None };
    }

    /// Ends a connection. Rows stay and are stale (I4).
    fn end(&mut self, session: &Session, reason: Arc<str>, now: Now, out: &mut Output) {
        for (target, follow) in &session.follows {
            if let Target::Records(kind) = target
                && (session.unswept.contains(kind) || follow.is_mid_list())
            {
                out.changes.push(ClusterChange::ListAbort(*kind));
            }
        }
        if self.row.connected {
            out.changes.push(ClusterChange::Stale(now.wall));
        }
        if now.elapsed.saturating_sub(session.since) > self.settings.timers.reconnect_max * STEADY_FACTOR {
            self.backoff.reset();
        }
        self.row.connected = false;
        self.row.store_id = None;
        self.row.kept_until = None;
        self.row.canaries.clear();
        self.row.synced.clear();
        self.context = None;
        self.fail(reason, now);
        out.commands.push(Command::Connect { after: self.backoff.next() });
        self.state = State::Connecting;
    }

    fn fail(&mut self, reason: Arc<str>, now: Now) {
        self.row.last_failure = Some(Failure { at: now.wall, message: reason.clone() });
        self.set_problem(Some(reason), now);
    }

    fn set_problem_of(&mut self, session: &Session, now: Now) {
        // Until the store has answered, what was wrong before is still the best we know.
        if self.row.connected {
            let found = problem::of_session(&self.settings, session, &self.row.canaries, now.elapsed);
            self.set_problem(found, now);
        }
    }

    fn set_problem(&mut self, message: Option<Arc<str>>, now: Now) {
        let same = self.row.problem.as_ref().map(|problem| &problem.message) == message.as_ref();
        if !same {
            self.row.problem = message.map(|message| Failure { at: now.wall, message });
        }
    }

    fn tell_row(&mut self, out: &mut Output) {
        if self.told.as_deref() != Some(&self.row) {
            let row = Arc::new(self.row.clone());
            self.told = Some(row.clone());
            out.changes.push(ClusterChange::Peer(row));
        }
    }
}

/// Starts the list of a range, unless one is under way.
fn begin(session: &mut Session, target: Target, out: &mut Output) {
    if let Some(follow) = session.follows.get_mut(&target)
        && !matches!(follow.list, List::Running { .. })
    {
        out.commands.push(follow.begin());
    }
}
