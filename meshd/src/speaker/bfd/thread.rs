//! The thread: reads, looks at its timers, tells, sleeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
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
    bfd::{Action, Arrival, Change, Discard, Discriminator, Event, Hops, Packet, Path, Sessions, State},
};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{eventfd::EventFd, time::TimeSpec},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    BfdEvent, Command, Device, NewSession, Priority, SessionId, SessionStatus, Status, priority,
    sockets::{Receiver, Transmitter},
    timers::Timers,
};

/// The thread sleeps at least this long, so that timers close to each other share one waking.
const SLEEP_MIN: Duration = Duration::from_micros(500);
/// While events wait for room, or a socket for being opened, it looks again this often.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// A session whose socket failed gets a new one this much later.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// Packets that each session says goodbye with when the process ends.
const FAREWELL_COPIES: usize = 3;
/// Time between them.
const FAREWELL_INTERVAL: Duration = Duration::from_millis(5);

/// What the thread knows of a session beside its state machine.
#[derive(Debug)]
struct Runtime {
    id: SessionId,
    device: Option<Device>,
    transmitter: Option<Transmitter>,
    reopen_at: Moment,
    /// It was removed, and says so until then.
    leaves_at: Option<Moment>,
    since: Moment,
    /// Failed since the last event.
    failed: bool,
    failures: u64,
    sent: u64,
    received: u64,
    dropped: u64,
    problem: Option<String>,
}

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Thread {
    queue: Queue<Command>,
    wake: Arc<EventFd>,
    events: mpsc::Sender<BfdEvent>,
    origin: Instant,
    priority: Priority,
    receivers: BTreeMap<(Hops, bool), Receiver>,
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
            // Packets before timers: see the essay.
            self.read();
            if !self.obey() {
                break;
            }
            self.run_timers();
            self.tell();
        }
        self.say_goodbye();
    }

    fn now(&self) -> Moment {
        Moment(0).after(self.origin.elapsed())
    }

    fn wait(&mut self) {
        let retry = !self.untold.is_empty() || self.problem.is_some();
        let deadline = self.timers.next().map(|next| next.since(self.now()).max(SLEEP_MIN));
        let timeout =
            if retry { Some(deadline.map_or(RETRY_INTERVAL, |wait| wait.min(RETRY_INTERVAL))) } else { deadline };
        let sockets = self.receivers.values().map(|receiver| receiver.as_fd());
        let mut waiting: Vec<PollFd<'_>> =
            [self.wake.as_fd()].into_iter().chain(sockets).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
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
                Ok(Command::Configure(id, settings)) => self.give_by_id(id, Event::Configure(&settings)),
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
        let number = match self.sessions.insert(path, ttl_min, settings) {
            Ok(number) => number,
            Err(error) => {
                tracing::warn!(%error, "BFD session is not run");
                return;
            }
        };
        let now = self.now();
        let runtime = Runtime {
            id,
            device,
            transmitter: None,
            reopen_at: now,
            leaves_at: None,
            since: now,
            failed: false,
            failures: 0,
            sent: 0,
            received: 0,
            dropped: 0,
            problem: None,
        };
        self.runtimes.insert(number, runtime);
        self.by_id.insert(id, number);
        self.open_receiver(hops, remote.is_ipv4());
        self.give(number, Event::Tick);
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
        let now = self.now();
        let Some(member) = self.sessions.get_mut(number) else { return };
        let Some(runtime) = self.runtimes.get_mut(&number) else { return };
        let mut actions = Vec::new();
        match (member.session.handle(now, event, &mut actions), event) {
            (Ok(()), Event::Packet(_)) => runtime.received += 1,
            (Err(discard), _) => runtime.drop_packet(discard),
            (Ok(()), _) => {}
        }
        for action in actions {
            match action {
                Action::Send(packet) => runtime.send(now, &member.path, packet.as_ref()),
                Action::Changed(change) => {
                    runtime.change(now, &change, &member.path);
                    if runtime.leaves_at.is_none() {
                        self.untold.insert(number);
                    }
                }
                // Sessions that want echoes are refused at the door.
                Action::SendEcho { .. } => {}
            }
        }
        self.timers.set(number, [member.session.next_deadline(), runtime.leaves_at].into_iter().flatten().min());
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

    fn run_timers(&mut self) {
        let now = self.now();
        while let Some((due, number)) = self.timers.pop_due(now) {
            let Some(member) = self.sessions.get(number) else { continue };
            let leaves_at = self.runtimes.get(&number).and_then(|runtime| runtime.leaves_at);
            if leaves_at.is_some_and(|at| at <= now) {
                self.remove(number);
                continue;
            }
            if member.session.next_deadline().is_some_and(|deadline| deadline <= now) {
                self.latest = self.latest.max(now.since(due));
            }
            self.give(number, Event::Tick);
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
                    remote_admin_down: member.session.remote().state == State::AdminDown,
                    remote_control_plane_independent: member.session.remote().control_plane_independent,
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

impl Runtime {
    fn drop_packet(&mut self, discard: Discard) {
        self.dropped += 1;
        // Dropping what comes while we are held down is as it should be.
        if discard != Discard::AdminDown {
            self.problem = Some(discard.to_string());
        }
    }

    fn change(&mut self, now: Moment, change: &Change, path: &Path) {
        self.since = now;
        let failed = change.is_failure();
        self.failed |= failed;
        self.failures += u64::from(failed);
        let (remote, state) = (path.remote, change.to);
        tracing::info!(%remote, %state, diagnostic = %change.diagnostic, failed, "BFD session changed");
    }

    fn send(&mut self, now: Moment, path: &Path, octets: &[u8]) {
        match self.try_send(now, path, octets) {
            Ok(true) => {
                self.sent += 1;
                self.problem = None;
            }
            Ok(false) => {}
            Err(error) => {
                let problem = format!("failed to send to {}: {error}", path.remote);
                if self.problem.as_deref() != Some(&problem) {
                    tracing::debug!(problem, "BFD packet was not sent");
                }
                self.problem = Some(problem);
                // A path without a route, or a link without a carrier, does not need another socket, and the source port
                // should stay.
                let gone = [libc::ENODEV, libc::ENXIO, libc::EADDRNOTAVAIL, libc::EINVAL];
                if self.transmitter.is_none() || error.raw_os_error().is_some_and(|code| gone.contains(&code)) {
                    self.transmitter = None;
                    self.reopen_at = now.after(REOPEN_INTERVAL);
                }
            }
        }
    }

    /// False while a new socket is not to be opened yet. Addresses and links come and go, so one that fails is replaced.
    fn try_send(&mut self, now: Moment, path: &Path, octets: &[u8]) -> io::Result<bool> {
        let transmitter = match &mut self.transmitter {
            Some(transmitter) => transmitter,
            None if now < self.reopen_at => return Ok(false),
            none => {
                // Spreads sessions over the ports; what is taken is passed by.
                let hint = u32::try_from(now.0 % u64::from(u32::MAX)).unwrap_or_default();
                none.insert(Transmitter::open(path.hops, path.local, path.remote, self.device.as_ref(), hint)?)
            }
        };
        transmitter.send(octets).map(|()| true)
    }
}
