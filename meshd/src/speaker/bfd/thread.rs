//! The thread: reads, looks at its timers, tells, sleeps.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    os::fd::AsFd as _,
    sync::{
        Arc,
        mpsc::{Receiver as Queue, TryRecvError},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use bgp::{
    Moment,
    bfd::{
        Action, Arrival, Diagnostic, Discriminator, EchoPacket, Event, Hops, Interval, Packet, Path, Sessions,
        Settings, State,
    },
};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{eventfd::EventFd, time::TimeSpec},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    BfdEvent, Command, Device, NewSession, Priority, SessionId, SessionStatus, Status,
    addresses::{self, Addresses},
    echo::{EarKey, EchoEar, EchoError, EchoSender},
    priority,
    runtime::Runtime,
    sockets::Receiver,
    timers::Timers,
};

/// The thread sleeps at least this long, so that timers close to each other share one waking.
const SLEEP_MIN: Duration = Duration::from_micros(500);
/// While events wait for room it looks again this often: what waits is perhaps that a path is dead.
const ROOM_INTERVAL: Duration = Duration::from_millis(2);
/// While a socket waits for being opened, this often.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Packets that each session says goodbye with when the process ends.
const FAREWELL_COPIES: usize = 3;
/// Time between them.
const FAREWELL_INTERVAL: Duration = Duration::from_millis(5);

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Thread {
    queue: Queue<Command>,
    wake: Arc<EventFd>,
    events: mpsc::Sender<BfdEvent>,
    origin: Instant,
    priority: Priority,
    receivers: BTreeMap<(Hops, bool), Receiver>,
    ears: BTreeMap<EarKey, EchoEar>,
    addresses: Addresses,
    sessions: Sessions,
    runtimes: BTreeMap<Discriminator, Runtime>,
    by_id: BTreeMap<SessionId, Discriminator>,
    timers: Timers,
    /// Sessions whose change is not told yet.
    untold: BTreeSet<Discriminator>,
    strange: u64,
    last_strange: Option<String>,
    latest: Duration,
    problem: Option<String>,
    /// The last problem that was logged.
    warned: Option<String>,
}

impl Thread {
    pub(super) fn new(queue: Queue<Command>, wake: Arc<EventFd>, events: mpsc::Sender<BfdEvent>, seed: u64) -> Self {
        Self {
            queue,
            wake,
            events,
            origin: Instant::now(),
            priority: Priority::Ordinary,
            receivers: BTreeMap::new(),
            ears: BTreeMap::new(),
            addresses: Addresses::new(addresses::list),
            sessions: Sessions::new(seed),
            runtimes: BTreeMap::new(),
            by_id: BTreeMap::new(),
            timers: Timers::default(),
            untold: BTreeSet::new(),
            strange: 0,
            last_strange: None,
            latest: Duration::ZERO,
            problem: None,
            warned: None,
        }
    }

    pub(super) fn run(mut self) {
        self.priority = priority::raise();
        loop {
            self.wait();
            // Packets before timers: see the essay. What comes while they are read is not taken for missing either.
            let read_from = self.now();
            self.read();
            if !self.obey() {
                break;
            }
            self.run_timers(read_from);
            self.tell();
        }
        self.say_goodbye();
    }

    fn now(&self) -> Moment {
        Moment(0).after(self.origin.elapsed())
    }

    fn wait(&mut self) {
        let room = (!self.untold.is_empty()).then_some(ROOM_INTERVAL);
        let retry = self.problem.is_some().then_some(RETRY_INTERVAL);
        let deadline = self.timers.next().map(|next| next.since(self.now()).max(SLEEP_MIN));
        let timeout = [room, retry, deadline].into_iter().flatten().min();
        let sockets = self.receivers.values().map(|receiver| receiver.as_fd());
        let ears = self.ears.values().map(|ear| ear.as_fd());
        let mut waiting: Vec<PollFd<'_>> = [self.wake.as_fd()]
            .into_iter()
            .chain(sockets)
            .chain(ears)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // Whatever it returns, and be it EINTR, the loop looks at everything.
        if let Err(errno) = ppoll(&mut waiting, timeout.map(TimeSpec::from), None)
            && errno != nix::errno::Errno::EINTR
        {
            self.problem = Some(format!("failed to wait for packets: {errno}"));
            sleep(SLEEP_MIN);
        }
    }

    /// Carries out what is asked; false at the end.
    fn obey(&mut self) -> bool {
        // EAGAIN: nothing was asked.
        let _count = self.wake.read();
        loop {
            match self.queue.try_recv() {
                Ok(Command::Add(session)) => self.add(*session),
                Ok(Command::Configure(id, settings)) => self.configure(id, *settings),
                Ok(Command::AdminDown(id)) => self.give_by_id(id, Event::AdminDown),
                Ok(Command::AdminUp(id)) => self.give_by_id(id, Event::AdminUp),
                Ok(Command::Remove(id)) => self.leave(id),
                Ok(Command::Status(answer)) => {
                    // Whoever asked may have gone.
                    let _gone = answer.send(self.status());
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn add(&mut self, new: NewSession) {
        let NewSession { id, hops, remote, local, device, ttl_min, settings } = new;
        let path = Path { hops, remote, local, device: device.as_ref().map(|device| device.index) };
        if let Some(old) = self.by_id.get(&id).copied() {
            self.remove(old);
        }
        let leaving = |(number, member): (Discriminator, &bgp::bfd::Member)| (member.path == path).then_some(number);
        let leaving = self.sessions.iter().find_map(leaving);
        if let Some(old) = leaving.filter(|old| self.runtimes.get(old).is_some_and(|r| r.leaves_at.is_some())) {
            self.remove(old);
        }
        let number = match self.sessions.insert(path, ttl_min, without_echo(&settings)) {
            Ok(number) => number,
            Err(error) => {
                tracing::warn!(%error, "BFD session is not run");
                return;
            }
        };
        let runtime = Runtime::new(id, device, settings, self.now());
        self.runtimes.insert(number, runtime);
        self.by_id.insert(id, number);
        self.open_receiver(hops, remote.is_ipv4());
        self.prepare_echo(number);
        self.give(number, Event::Tick);
    }

    fn configure(&mut self, id: SessionId, settings: Settings) {
        let Some(number) = self.by_id.get(&id).copied() else { return };
        if let Some(runtime) = self.runtimes.get_mut(&number) {
            runtime.settings = settings;
        }
        self.prepare_echo(number);
    }

    /// Opens what a session needs to send echo packets and to hear them, or closes it, and tells the session what it may do.
    fn prepare_echo(&mut self, number: Discriminator) {
        let now = self.now();
        let Some(member) = self.sessions.get(number) else { return };
        let Some(runtime) = self.runtimes.get_mut(&number) else { return };
        runtime.echo_retry_at = None;
        let is_wanted = runtime.settings.min_echo_transmit != Interval::NONE;
        if !is_wanted {
            (runtime.echo, runtime.echo_problem) = (None, None);
        } else if runtime.echo.is_none() {
            let addresses = &mut self.addresses;
            match open_echo(&mut self.ears, &member.path, runtime.device.as_ref(), addresses, now) {
                Ok(sender) => (runtime.echo, runtime.echo_problem) = (Some(sender), None),
                Err(error) => {
                    let (remote, problem) = (member.path.remote, error.to_string());
                    if runtime.echo_problem.as_ref() != Some(&problem) {
                        tracing::warn!(%remote, problem, "BFD sends no echo packets");
                    }
                    runtime.echo_problem = Some(problem);
                    // Together with everybody who waits for other addresses.
                    runtime.echo_retry_at = Some(self.addresses.next(now));
                }
            }
        }
        let settings = if runtime.echo.is_some() { runtime.settings.clone() } else { without_echo(&runtime.settings) };
        self.close_ears();
        self.give(number, Event::Configure(&settings));
    }

    /// The echo packets of a session fail. Addresses and links may be others by now: it gets what it needs anew when they are
    /// read again, and does without until then.
    fn replace_echo(&mut self, number: Discriminator) {
        let now = self.now();
        let Some(runtime) = self.runtimes.get_mut(&number) else { return };
        runtime.echo = None;
        if self.addresses.is_due(now) {
            return self.prepare_echo(number);
        }
        runtime.echo_problem = Some("echo packets failed; what they need is opened anew in a moment".to_owned());
        runtime.echo_retry_at = Some(self.addresses.next(now));
        let settings = without_echo(&runtime.settings);
        self.close_ears();
        self.give(number, Event::Configure(&settings));
    }

    /// Closes the ears that nobody needs.
    fn close_ears(&mut self) {
        let senders = self.runtimes.values().filter_map(|runtime| runtime.echo.as_ref());
        let needed: BTreeSet<EarKey> = senders.map(EchoSender::ear).collect();
        self.ears.retain(|key, _| needed.contains(key));
    }

    fn open_receiver(&mut self, hops: Hops, is_v4: bool) {
        if self.receivers.contains_key(&(hops, is_v4)) {
            return;
        }
        match Receiver::open(hops, is_v4) {
            Ok(receiver) => {
                self.receivers.insert((hops, is_v4), receiver);
            }
            Err(error) => {
                let family = if is_v4 { "IPv4" } else { "IPv6" };
                let problem = format!("failed to listen for BFD over {family}: {error}");
                if self.warned.as_deref() != Some(&problem) {
                    tracing::warn!(problem, "BFD hears nothing");
                    self.warned = Some(problem.clone());
                }
                self.problem = Some(problem);
            }
        }
    }

    fn remove(&mut self, number: Discriminator) {
        self.sessions.remove(number);
        self.timers.remove(number);
        self.untold.remove(&number);
        if let Some(runtime) = self.runtimes.remove(&number)
            && self.by_id.get(&runtime.id) == Some(&number)
        {
            self.by_id.remove(&runtime.id);
        }
        self.close_ears();
    }

    /// Begins the farewell of a session.
    fn leave(&mut self, id: SessionId) {
        let Some(number) = self.by_id.remove(&id) else { return };
        self.give(number, Event::AdminDown);
        self.untold.remove(&number);
        let farewell = self.sessions.get(number).map(|member| member.session.farewell()).unwrap_or_default();
        let leaves_at = self.now().after(farewell);
        if let Some(runtime) = self.runtimes.get_mut(&number) {
            runtime.leaves_at = Some(leaves_at);
        }
        self.timers.set(number, Some(leaves_at));
    }

    fn give_by_id(&mut self, id: SessionId, event: Event<'_>) {
        if let Some(number) = self.by_id.get(&id).copied() {
            self.give(number, event);
        }
    }

    /// Hands an event to a session and does what it says.
    fn give(&mut self, number: Discriminator, event: Event<'_>) {
        self.give_at(self.now(), number, event);
    }

    fn give_at(&mut self, now: Moment, number: Discriminator, event: Event<'_>) {
        let Some(member) = self.sessions.get_mut(number) else { return };
        let Some(runtime) = self.runtimes.get_mut(&number) else { return };
        let (mut actions, mut echo_failed) = (Vec::new(), false);
        match (member.session.handle(now, event, &mut actions), event) {
            (Ok(()), Event::Packet(_)) => runtime.received += 1,
            (Err(discard), _) => runtime.drop_packet(discard),
            (Ok(()), _) => {}
        }
        for action in actions {
            match action {
                Action::Send(packet) => runtime.send(now, &member.path, packet.as_ref()),
                Action::Changed(change) => {
                    runtime.change(now, &change, &member.path, self.latest);
                    echo_failed |= change.diagnostic == Diagnostic::EchoFailed;
                    if runtime.leaves_at.is_none() {
                        self.untold.insert(number);
                    }
                }
                Action::SendEcho { sequence } => runtime.send_echo(now, EchoPacket { discriminator: number, sequence }),
            }
        }
        // A peer that is taken out before the session is up changes nothing of our state, and matters all the same.
        let remote_admin_down = member.session.remote().state == State::AdminDown;
        let echo = runtime.echo_report(&member.session);
        let is_news = echo != runtime.echo_told || remote_admin_down != runtime.remote_admin_down_told;
        if is_news && runtime.leaves_at.is_none() {
            runtime.echo_told = echo;
            runtime.remote_admin_down_told = remote_admin_down;
            self.untold.insert(number);
        }
        let deadlines = [member.session.next_deadline(), runtime.leaves_at, runtime.echo_retry_at];
        self.timers.set(number, deadlines.into_iter().flatten().min());
        if echo_failed {
            self.replace_echo(number);
        }
    }

    fn read(&mut self) {
        if self.problem.take().is_some() {
            let wanted: BTreeSet<(Hops, bool)> =
                self.sessions.iter().map(|(_, member)| (member.path.hops, member.path.remote.is_ipv4())).collect();
            for (hops, is_v4) in wanted {
                self.open_receiver(hops, is_v4);
            }
        }
        // Taken out for the time of reading, because what is read goes to the rest of us.
        let mut receivers = std::mem::take(&mut self.receivers);
        receivers.retain(|_, receiver| match receiver.read(|arrival, octets| self.hear(arrival, octets)) {
            Ok(()) => true,
            Err(error) => {
                self.problem = Some(format!("failed to read packets: {error}"));
                false
            }
        });
        self.receivers = receivers;
        let mut ears = std::mem::take(&mut self.ears);
        let mut deaf = BTreeSet::new();
        ears.retain(|key, ear| match ear.read(|arrival, octets| self.hear_echo(arrival, octets)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "failed to read BFD echo packets");
                deaf.insert(*key);
                false
            }
        });
        self.ears = ears;
        if !deaf.is_empty() {
            self.open_anew(&deaf);
        }
    }

    /// Gives the sessions that hear with these ears others.
    fn open_anew(&mut self, deaf: &BTreeSet<EarKey>) {
        let is_deaf = |runtime: &Runtime| runtime.echo.as_ref().is_some_and(|sender| deaf.contains(&sender.ear()));
        let affected = self.runtimes.iter().filter(|(_, runtime)| is_deaf(runtime));
        for number in affected.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.replace_echo(number);
        }
    }

    /// An echo packet came, perhaps one of ours: those of the other side are the kernel's to forward.
    fn hear_echo(&mut self, arrival: &Arrival, octets: &[u8]) {
        let Some(echo) = EchoPacket::decode(octets) else { return };
        let Ok(number) = self.sessions.select_echo(arrival, echo) else { return };
        let Some(runtime) = self.runtimes.get_mut(&number) else { return };
        if runtime.echo.as_ref().is_some_and(|sender| sender.source() == arrival.source) {
            runtime.echoes_received += 1;
            self.give(number, Event::Echo { sequence: echo.sequence });
        }
    }

    fn hear(&mut self, arrival: &Arrival, octets: &[u8]) {
        let stranger: String = match Packet::decode(octets) {
            Ok(received) => match self.sessions.select(arrival, &received.packet) {
                Ok(number) => return self.give(number, Event::Packet(&received)),
                Err(unselected) => unselected.to_string(),
            },
            Err(error) => error.to_string(),
        };
        self.strange += 1;
        self.last_strange = Some(format!("from {}: {stranger}", arrival.source));
    }

    /// Runs what was due at `now`, and nothing that became due since.
    fn run_timers(&mut self, now: Moment) {
        while let Some((due, number)) = self.timers.pop_due(now) {
            let Some(member) = self.sessions.get(number) else { continue };
            let runtime = self.runtimes.get(&number);
            if runtime.and_then(|runtime| runtime.leaves_at).is_some_and(|at| at <= now) {
                self.remove(number);
                continue;
            }
            if runtime.and_then(|runtime| runtime.echo_retry_at).is_some_and(|at| at <= now) {
                self.prepare_echo(number);
                continue;
            }
            if member.session.next_deadline().is_some_and(|deadline| deadline <= now) {
                self.latest = self.latest.max(now.since(due));
            }
            self.give_at(now, number, Event::Tick);
        }
    }

    /// Tells what changed, as far as there is room.
    fn tell(&mut self) {
        while let Some(number) = self.untold.first().copied() {
            if let (Some(member), Some(runtime)) = (self.sessions.get(number), self.runtimes.get_mut(&number)) {
                let event = BfdEvent {
                    id: runtime.id,
                    state: member.session.state(),
                    diagnostic: member.session.diagnostic(),
                    failed: runtime.failed,
                    remote_admin_down: runtime.remote_admin_down_told,
                    remote_control_plane_independent: member.session.remote().control_plane_independent,
                    echo: runtime.echo_told.clone(),
                };
                match self.events.try_send(event) {
                    // Nobody wants to know any more: the owner is about to drop us.
                    Ok(()) | Err(TrySendError::Closed(_)) => runtime.failed = false,
                    Err(TrySendError::Full(_)) => return,
                }
            }
            self.untold.remove(&number);
        }
    }

    fn say_goodbye(&mut self) {
        let numbers: Vec<Discriminator> = self.runtimes.keys().copied().collect();
        for copy in 0..FAREWELL_COPIES {
            for number in &numbers {
                if copy == 0 {
                    self.give(*number, Event::AdminDown);
                } else {
                    self.repeat(*number);
                }
            }
            if !numbers.is_empty() {
                sleep(FAREWELL_INTERVAL);
            }
        }
    }

    /// Has a session that is held down send its next periodic packet now: the clock is turned on to when it is due.
    fn repeat(&mut self, number: Discriminator) {
        let Some(member) = self.sessions.get_mut(number) else { return };
        let Some(runtime) = self.runtimes.get_mut(&number) else { return };
        let Some(due) = member.session.next_deadline() else { return };
        let mut actions = Vec::new();
        // A tick is never refused.
        let _accepted = member.session.handle(due, Event::Tick, &mut actions);
        for action in actions {
            if let Action::Send(packet) = action {
                runtime.send(due, &member.path, packet.as_ref());
            }
        }
    }

    fn status(&self) -> Status {
        let now = self.now();
        let sessions = self.by_id.values().filter_map(|number| {
            let (member, runtime) = (self.sessions.get(*number)?, self.runtimes.get(number)?);
            let (session, remote) = (&member.session, member.session.remote());
            Some(SessionStatus {
                id: runtime.id,
                remote: member.path.remote,
                local: member.path.local,
                device: runtime.device.clone(),
                multihop: member.path.hops == Hops::Multi,
                state: session.state(),
                diagnostic: session.diagnostic(),
                in_state: now.since(runtime.since),
                remote_state: remote.state,
                remote_diagnostic: remote.diagnostic,
                local_discriminator: number.get(),
                remote_discriminator: remote.discriminator.map_or(0, Discriminator::get),
                transmit_interval: session.transmit_interval().map(bgp::bfd::Interval::duration),
                detection_time: session.detection_time(),
                failures: runtime.failures,
                sent: runtime.sent,
                received: runtime.received,
                dropped: runtime.dropped,
                problem: runtime.problem.clone(),
                echo: runtime.echo_report(session),
                echoes_sent: runtime.echoes_sent,
                echoes_received: runtime.echoes_received,
            })
        });
        Status {
            priority: self.priority,
            strange: self.strange,
            last_strange: self.last_strange.clone(),
            latest: self.latest,
            problem: self.problem.clone(),
            sessions: sessions.collect(),
        }
    }
}

/// Settings for as long as echo packets cannot be sent.
fn without_echo(settings: &Settings) -> Settings {
    Settings { min_echo_transmit: Interval::NONE, ..settings.clone() }
}

fn open_echo(
    ears: &mut BTreeMap<EarKey, EchoEar>,
    path: &Path,
    device: Option<&Device>,
    addresses: &mut Addresses,
    now: Moment,
) -> Result<EchoSender, EchoError> {
    let sender = EchoSender::open(path, device, addresses, now)?;
    if let Entry::Vacant(ear) = ears.entry(sender.ear()) {
        ear.insert(EchoEar::open(sender.ear())?);
    }
    Ok(sender)
}

#[cfg(test)]
mod tests;
