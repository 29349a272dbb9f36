//! All paths together: who is asked when, and what comes of it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{
    PathProbe, ProbeSettings, SizeProbe, SizeStep, Switch, Way,
    packet::{Question, Token},
};
use crate::observed::{PathKey, PathRow};

/// Most native probes a second; with more paths each is asked less often.
pub const PROBES_PER_S_MAX: u32 = 2_000;
/// While nothing is wrong, one native probe in so many has one through the tunnel beside it.
const TUNNEL_EVERY: u64 = 10;
/// Answers that may be waited for; beyond that the oldest are lost.
const WAITING_MAX: usize = 65_536;

/// A path to be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Whose.
    pub key: PathKey,
    /// Our probe address.
    pub source: IpAddr,
    /// The node's probe address.
    pub destination: IpAddr,
    /// The node's own address, the far end of a tunnel.
    pub outer: IpAddr,
    /// Is there a native way at all?
    pub has_native: bool,
    /// Largest packet the links take natively.
    pub native_size: u16,
    /// Largest packet that fits through the tunnel then.
    pub tunnel_size: u16,
}

/// A probe to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The way.
    pub way: Way,
    /// The question.
    pub question: Question,
    /// Octets of the packet; 0 for the smallest.
    pub size: u16,
    /// Where the tunnel ends.
    pub outer: IpAddr,
}

/// A path for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathReport {
    /// Whose.
    pub key: PathKey,
    /// How it is judged.
    pub probe: PathProbe,
    /// What routes are told.
    pub row: PathRow,
    /// The links take so much natively, and the tunnel then.
    pub full: (u16, u16),
}

#[derive(Debug, Clone)]
struct Path {
    subject: Subject,
    probe: PathProbe,
    native_size: SizeProbe,
    tunnel_size: SizeProbe,
    next_at: Duration,
    rounds: u64,
}

impl Path {
    fn row(&self) -> PathRow {
        PathRow {
            broken: self.probe.is_broken(),
            native_mtu: self.native_size.narrowed().map(u32::from),
            tunnel_mtu: self.tunnel_size.narrowed().map(u32::from),
        }
    }

    fn size(&mut self, way: Way) -> &mut SizeProbe {
        match way {
            Way::Native => &mut self.native_size,
            Way::Tunnel => &mut self.tunnel_size,
        }
    }
}

#[derive(Debug, Clone)]
struct Waiting {
    key: PathKey,
    way: Way,
    size: u16,
    sent_at: Duration,
}

/// What changed on a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathEvent {
    /// Another way.
    Switch(PathKey, Switch),
    /// Another size.
    Size(PathKey, Way, SizeStep),
}

/// Probes every path. Times are measured from any fixed moment.
#[derive(Debug, Clone)]
pub struct Prober {
    settings: ProbeSettings,
    paths: BTreeMap<PathKey, Path>,
    /// Paths that were broken when the previous run ended, until they are subjects.
    remembered: Vec<PathKey>,
    waiting: BTreeMap<Token, Waiting>,
    sent: VecDeque<(Duration, Token)>,
    told: BTreeMap<PathKey, PathRow>,
}

impl Prober {
    /// A prober without paths; `remembered` were broken when the previous run ended.
    #[must_use]
    pub fn new(settings: ProbeSettings, remembered: Vec<PathKey>) -> Self {
        let row = PathRow { broken: true, ..PathRow::default() };
        let told = remembered.iter().map(|key| (key.clone(), row)).collect();
        Self { settings, paths: BTreeMap::new(), remembered, waiting: BTreeMap::new(), sent: VecDeque::new(), told }
    }

    /// These paths are to be probed from now on. `complete` says that none is missing: what was remembered of others is forgotten.
    pub fn set_subjects(&mut self, subjects: Vec<Subject>, complete: bool, now: Duration) {
        let count = u32::try_from(subjects.len()).unwrap_or(u32::MAX).max(1);
        let interval = self.interval(count);
        let mut known = std::mem::take(&mut self.paths);
        for (position, subject) in (0u32..).zip(subjects) {
            let key = subject.key.clone();
            let path = match known.remove(&key) {
                Some(mut path) => {
                    path.native_size.set_full(subject.native_size);
                    path.tunnel_size.set_full(subject.tunnel_size);
                    Path { subject, ..path }
                }
                None => {
                    let was_broken = self.remembered.contains(&key);
                    let probe = if was_broken { PathProbe::broken(now, &self.settings) } else { PathProbe::default() };
                    let (native, tunnel) = (subject.native_size, subject.tunnel_size);
                    // Spread over the interval: everybody at once would be a burst on every link.
                    let next_at = now + interval * position / count;
                    let (native_size, tunnel_size) = (SizeProbe::new(native), SizeProbe::new(tunnel));
                    Path { subject, probe, native_size, tunnel_size, next_at, rounds: 0 }
                }
            };
            self.remembered.retain(|remembered| *remembered != key);
            self.paths.insert(key, path);
        }
        if complete {
            self.remembered.clear();
        }
    }

    fn interval(&self, paths: u32) -> Duration {
        self.settings.interval.max(Duration::from_secs(1) * paths / PROBES_PER_S_MAX)
    }

    /// What is to be sent now. `token` makes a random number each time it is called.
    pub fn tick(&mut self, now: Duration, mut token: impl FnMut() -> Token) -> Vec<Outgoing> {
        let interval = self.interval(u32::try_from(self.paths.len()).unwrap_or(u32::MAX));
        let mut out = Vec::new();
        for path in self.paths.values_mut().filter(|path| path.next_at <= now) {
            // A pause of this process is not made up for.
            path.next_at = (path.next_at + interval).max(now);
            let subject = path.subject.clone();
            let mut send = |way, size| {
                let token = token();
                let question = Question {
                    source: subject.source,
                    destination: subject.destination,
                    port: self.settings.port,
                    tunnelled: way == Way::Tunnel,
                    token,
                };
                let waiting = Waiting { key: subject.key.clone(), way, size, sent_at: now };
                self.waiting.insert(token, waiting);
                self.sent.push_back((now, token));
                out.push(Outgoing { way, question, size, outer: subject.outer });
            };
            if subject.has_native {
                send(Way::Native, 0);
                if let Some(size) = path.native_size.next(now) {
                    send(Way::Native, size);
                }
            }
            if path.probe.is_in_doubt() || !subject.has_native || path.rounds % TUNNEL_EVERY < 2 {
                send(Way::Tunnel, 0);
                if let Some(size) = path.tunnel_size.next(now) {
                    send(Way::Tunnel, size);
                }
            }
            path.rounds += 1;
        }
        out
    }

    /// When the next probe is due or the next answer is late.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let next = self.paths.values().map(|path| path.next_at).min();
        let late = self.sent.front().map(|(at, _)| *at + self.settings.timeout);
        next.into_iter().chain(late).min()
    }

    /// Takes an answer; those that nobody waits for say nothing.
    pub fn answer(&mut self, token: &Token, now: Duration) -> Vec<PathEvent> {
        let Some(waiting) = self.waiting.remove(token) else { return Vec::new() };
        let rtt = now.saturating_sub(waiting.sent_at);
        self.outcome(&waiting, Some(rtt), now)
    }

    /// Counts as lost what has not been answered in time.
    pub fn expire(&mut self, now: Duration) -> Vec<PathEvent> {
        let mut events = Vec::new();
        while let Some((at, token)) = self.sent.front().copied() {
            if at + self.settings.timeout > now && self.sent.len() <= WAITING_MAX {
                break;
            }
            self.sent.pop_front();
            if let Some(waiting) = self.waiting.remove(&token) {
                events.extend(self.outcome(&waiting, None, now));
            }
        }
        events
    }

    fn outcome(&mut self, waiting: &Waiting, answered: Option<Duration>, now: Duration) -> Vec<PathEvent> {
        let Waiting { key, way, size, .. } = waiting;
        let Some(path) = self.paths.get_mut(key) else { return Vec::new() };
        if *size > 0 {
            let small_arrives = path.probe.stream(*way).answered_in_row > 0;
            let step = path.size(*way).take(*size, answered.is_some(), small_arrives, now);
            return step.map(|step| PathEvent::Size(key.clone(), *way, step)).into_iter().collect();
        }
        let switch = path.probe.take(*way, answered, now, &self.settings);
        switch.map(|switch| PathEvent::Switch(key.clone(), switch)).into_iter().collect()
    }

    /// What routes have to know and was not told yet.
    pub fn take_changes(&mut self) -> Vec<(PathKey, Option<PathRow>)> {
        let mut now: BTreeMap<PathKey, PathRow> =
            self.paths.iter().map(|(key, path)| (key.clone(), path.row())).collect();
        let broken = PathRow { broken: true, ..PathRow::default() };
        for key in &self.remembered {
            now.entry(key.clone()).or_insert(broken);
        }
        now.retain(|_, row| *row != PathRow::default());
        let gone = self.told.keys().filter(|key| !now.contains_key(*key)).map(|key| (key.clone(), None));
        let new = now.iter().filter(|(key, row)| self.told.get(*key) != Some(*row));
        let changes = gone.chain(new.map(|(key, row)| (key.clone(), Some(*row)))).collect();
        self.told = now;
        changes
    }

    /// Every path, for people.
    #[must_use]
    pub fn reports(&self) -> Vec<PathReport> {
        let report = |(key, path): (&PathKey, &Path)| PathReport {
            key: key.clone(),
            probe: path.probe,
            row: path.row(),
            full: (path.subject.native_size, path.subject.tunnel_size),
        };
        self.paths.iter().map(report).collect()
    }

    /// Paths that are broken, to be remembered across a restart.
    pub fn broken(&self) -> impl Iterator<Item = &PathKey> {
        let now = self.paths.iter().filter(|(_, path)| path.probe.is_broken()).map(|(key, _)| key);
        now.chain(&self.remembered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: ProbeSettings = ProbeSettings {
        interval: Duration::from_millis(200),
        timeout: Duration::from_millis(500),
        failures: 4,
        successes: 10,
        hold: Duration::from_secs(3),
        port: 7747,
    };

    fn key(node: usize) -> PathKey {
        PathKey { cluster: "east".parse().unwrap(), node: format!("node-{node}").parse().unwrap(), ipv4: true }
    }

    fn subject(node: usize) -> Subject {
        Subject {
            key: key(node),
            source: [10, 0, 1, 0].into(),
            destination: [10, 1, 1, 0].into(),
            outer: [172, 18, 0, 2].into(),
            has_native: true,
            native_size: 1500,
            tunnel_size: 1450,
        }
    }

    /// Paths and a clock; `arrives` says which probes are answered, at once.
    struct World {
        prober: Prober,
        now: Duration,
        sent: u64,
    }

    impl World {
        fn new(paths: usize, remembered: Vec<PathKey>) -> Self {
            let mut prober = Prober::new(SETTINGS, remembered);
            prober.set_subjects((0..paths).map(subject).collect(), true, Duration::ZERO);
            Self { prober, now: Duration::ZERO, sent: 0 }
        }

        fn run(&mut self, time: Duration, arrives: impl Fn(Way, u16) -> bool) -> Vec<(Duration, PathEvent)> {
            let (mut events, end) = (Vec::new(), self.now + time);
            while self.now < end {
                let mut number = self.sent;
                let out = self.prober.tick(self.now, || {
                    number += 1;
                    u128::from(number).to_be_bytes()
                });
                self.sent = number;
                for outgoing in out.iter().filter(|outgoing| arrives(outgoing.way, outgoing.size)) {
                    let answered = self.prober.answer(&outgoing.question.token, self.now);
                    events.extend(answered.into_iter().map(|event| (self.now, event)));
                }
                events.extend(self.prober.expire(self.now).into_iter().map(|event| (self.now, event)));
                self.now = self.prober.wake_at().unwrap().max(self.now + Duration::from_millis(1));
            }
            events
        }
    }

    #[test]
    fn a_cut_is_found_within_two_seconds_and_its_end_within_a_few_more() {
        let mut world = World::new(3, Vec::new());
        assert_eq!(world.run(Duration::from_secs(30), |_, _| true), []);
        let cut = world.now;
        let events = world.run(Duration::from_secs(10), |way, _| way == Way::Tunnel);
        assert_eq!(events.len(), 3);
        for (at, event) in &events {
            assert!(matches!(event, PathEvent::Switch(_, Switch::Tunnel)));
            assert!(*at - cut < Duration::from_millis(1_500), "{:?}", *at - cut);
        }
        let rows = world.prober.take_changes();
        assert!(rows.iter().all(|(_, row)| row.is_some_and(|row| row.broken)), "{rows:?}");
        assert_eq!(world.prober.take_changes(), []);
        let healed = world.now;
        let events = world.run(Duration::from_secs(10), |_, _| true);
        assert_eq!(events.len(), 3);
        assert!(events.iter().all(|(at, _)| *at - healed < Duration::from_secs(4)), "{events:?}");
        assert!(world.prober.take_changes().iter().all(|(_, row)| row.is_none()));
    }

    #[test]
    fn large_packets_that_get_lost_narrow_the_path_and_do_not_break_it() {
        let mut world = World::new(1, Vec::new());
        world.run(Duration::from_secs(10), |_, _| true);
        let events = world.run(Duration::from_secs(20), |_, size| size <= 1400);
        assert!(events.iter().all(|(_, event)| matches!(event, PathEvent::Size(..))), "{events:?}");
        let rows = world.prober.take_changes();
        let row = rows[0].1.unwrap();
        assert!(!row.broken && row.native_mtu.is_some_and(|mtu| (1392..=1400).contains(&mtu)), "{row:?}");
    }

    #[test]
    fn what_was_broken_before_a_restart_stays_broken_until_it_is_heard_of() {
        let mut world = World::new(2, vec![key(1)]);
        assert_eq!(world.prober.take_changes(), [], "routes know it from memory");
        assert_eq!(world.prober.broken().collect::<Vec<_>>(), [&key(1)]);
        assert_eq!(world.run(Duration::from_secs(5), |way, _| way == Way::Tunnel).len(), 1, "the other one is, too");
        let events = world.run(Duration::from_secs(10), |_, _| true);
        assert_eq!(events.len(), 2);
        // One that is gone is forgotten.
        let mut prober = Prober::new(SETTINGS, vec![key(7)]);
        prober.set_subjects(vec![subject(0)], false, Duration::ZERO);
        assert_eq!(prober.take_changes(), []);
        prober.set_subjects(vec![subject(0)], true, Duration::ZERO);
        assert_eq!(prober.take_changes(), [(key(7), None)]);
    }

    #[test]
    fn many_paths_share_the_budget() {
        let mut world = World::new(2_000, Vec::new());
        world.run(Duration::from_secs(10), |_, _| true);
        // Native ones, a fifth as many through the tunnel, and those of full size every five seconds.
        assert!(world.sent < 10 * u64::from(PROBES_PER_S_MAX) * 2, "{}", world.sent);
    }

    #[test]
    fn an_answer_nobody_waits_for_says_nothing() {
        let mut world = World::new(1, Vec::new());
        assert_eq!(world.prober.answer(&[9; 16], Duration::ZERO), []);
        let out = world.prober.tick(Duration::ZERO, || [1; 16]);
        assert!(!out.is_empty());
        assert_eq!(world.prober.answer(&[1; 16], Duration::from_secs(1)), []);
        let stream = *world.prober.reports()[0].probe.stream(Way::Native);
        assert_eq!(world.prober.answer(&[1; 16], Duration::from_secs(1)), [], "twice");
        assert_eq!(*world.prober.reports()[0].probe.stream(Way::Native), stream);
    }
}
