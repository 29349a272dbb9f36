//! Is the native way to a node broken?

use std::time::Duration;

/// Tunnel probes in a row that must have been answered before anybody is sent there.
const TUNNEL_PROVEN: u32 = 2;
/// The native way was found whole again so long ago: what breaks now is another story, and the hold is the shortest again.
const CALM: u32 = 20;
/// Longest hold.
const HOLD_MAX: Duration = Duration::from_secs(300);

/// How paths are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Time between two probes.
    pub interval: Duration,
    /// A probe without an answer for so long is lost.
    pub timeout: Duration,
    /// Probes lost in a row that make a path broken.
    pub failures: u32,
    /// Probes answered in a row that make it whole.
    pub successes: u32,
    /// Shortest time between two changes.
    pub hold: Duration,
    /// UDP port.
    pub port: u16,
}

/// A way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// As a workload's packet.
    Native,
    /// In a tunnel's header.
    Tunnel,
}

/// What became of the probes on one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stream {
    /// Lost since the last answer.
    pub lost_in_row: u32,
    /// Answered since the last loss.
    pub answered_in_row: u32,
    /// Answered in all.
    pub answered: u64,
    /// Lost in all.
    pub lost: u64,
    /// Time to the last answer.
    pub rtt: Option<Duration>,
}

impl Stream {
    fn take(&mut self, answered: Option<Duration>) {
        match answered {
            Some(rtt) => {
                self.rtt = Some(rtt);
                self.answered += 1;
                self.lost_in_row = 0;
                self.answered_in_row = self.answered_in_row.saturating_add(1);
            }
            None => {
                self.lost += 1;
                self.answered_in_row = 0;
                self.lost_in_row = self.lost_in_row.saturating_add(1);
            }
        }
    }
}

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// To the tunnel.
    Tunnel,
    /// Back to the native way.
    Native,
}

/// The judgement of one path. Times are measured from any fixed moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathProbe {
    native: Stream,
    tunnel: Stream,
    broken: bool,
    changed_at: Option<Duration>,
    hold: Duration,
    switches: u64,
}

impl PathProbe {
    /// A path that was broken when the previous run of this program judged it stays so until its probes say something else.
    #[must_use]
    pub fn broken(now: Duration, settings: &ProbeSettings) -> Self {
        Self { broken: true, changed_at: Some(now), hold: settings.hold, ..Self::default() }
    }

    /// True when the tunnel is to be used.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// What became of the probes on one way.
    #[must_use]
    pub fn stream(&self, way: Way) -> &Stream {
        match way {
            Way::Native => &self.native,
            Way::Tunnel => &self.tunnel,
        }
    }

    /// Changes so far.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.switches
    }

    /// True while it matters to know soon whether the tunnel works.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.broken || self.native.lost_in_row > 0
    }

    /// Takes what became of one probe: answered after some time, or lost.
    pub fn take(
        &mut self,
        way: Way,
        answered: Option<Duration>,
        now: Duration,
        settings: &ProbeSettings,
    ) -> Option<Switch> {
        match way {
            Way::Native => self.native.take(answered),
            Way::Tunnel => self.tunnel.take(answered),
        }
        let since = self.changed_at.map(|at| now.saturating_sub(at));
        if self.broken {
            let rested = since.is_none_or(|since| since >= self.hold);
            let healed = self.native.answered_in_row >= settings.successes && rested;
            // Whatever works is better than a tunnel that does not.
            let fled = self.tunnel.lost_in_row >= settings.failures && self.native.answered_in_row >= TUNNEL_PROVEN;
            if !healed && !fled {
                return None;
            }
            self.broken = false;
        } else {
            let lost = self.native.lost_in_row >= settings.failures;
            if !lost || self.tunnel.answered_in_row < TUNNEL_PROVEN {
                return None;
            }
            self.broken = true;
            let soon = since.is_some_and(|since| since < settings.hold * CALM);
            self.hold =
                if soon { (self.hold * 2).clamp(settings.hold, HOLD_MAX.max(settings.hold)) } else { settings.hold };
        }
        self.changed_at = Some(now);
        self.switches += 1;
        Some(if self.broken { Switch::Tunnel } else { Switch::Native })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: ProbeSettings = ProbeSettings {
        interval: Duration::from_millis(200),
        timeout: Duration::from_millis(500),
        failures: 4,
        successes: 10,
        hold: Duration::from_secs(3),
        port: 7747,
    };
    const ANSWERED: Option<Duration> = Some(Duration::from_millis(1));

    /// Takes one probe on each way, 200 ms after the last ones.
    fn step(path: &mut PathProbe, now: &mut Duration, native: bool, tunnel: bool) -> Vec<Switch> {
        *now += SETTINGS.interval;
        let outcome = |answered: bool| answered.then_some(Duration::from_millis(1));
        let first = path.take(Way::Tunnel, outcome(tunnel), *now, &SETTINGS);
        let second = path.take(Way::Native, outcome(native), *now, &SETTINGS);
        first.into_iter().chain(second).collect()
    }

    fn run(path: &mut PathProbe, now: &mut Duration, count: u32, native: bool, tunnel: bool) -> Vec<Switch> {
        (0..count).flat_map(|_| step(path, now, native, tunnel)).collect()
    }

    #[test]
    fn silence_alone_moves_nobody() {
        let (mut path, mut now) = (PathProbe::default(), Duration::ZERO);
        assert_eq!(run(&mut path, &mut now, 1000, false, false), [], "no meshd there, or a node that is gone");
        assert_eq!(run(&mut path, &mut now, 10, true, true), []);
        assert_eq!(run(&mut path, &mut now, 100, false, false), [], "it was restarted");
        // The tunnel is all that is left.
        assert_eq!(run(&mut path, &mut now, 3, false, true), [Switch::Tunnel]);
    }

    #[test]
    fn a_broken_path_is_left_after_four_losses_and_taken_back_after_ten_answers() {
        let (mut path, mut now) = (PathProbe::default(), Duration::ZERO);
        run(&mut path, &mut now, 20, true, true);
        assert_eq!(run(&mut path, &mut now, 3, false, true), []);
        assert_eq!(step(&mut path, &mut now, false, true), [Switch::Tunnel]);
        assert_eq!(run(&mut path, &mut now, 100, false, true), []);
        assert_eq!(run(&mut path, &mut now, 9, true, true), []);
        assert_eq!(step(&mut path, &mut now, false, true), [], "one loss and it counts anew");
        assert_eq!(run(&mut path, &mut now, 9, true, true), []);
        assert_eq!(step(&mut path, &mut now, true, true), [Switch::Native]);
    }

    #[test]
    fn a_path_that_flaps_is_held_longer_and_longer() {
        let (mut path, mut now) = (PathProbe::default(), Duration::ZERO);
        run(&mut path, &mut now, 20, true, true);
        let mut times = Vec::new();
        for _ in 0..9 {
            assert_eq!(run(&mut path, &mut now, 4, false, true), [Switch::Tunnel]);
            let left = now;
            while step(&mut path, &mut now, true, true).is_empty() {}
            times.push((now - left).as_secs());
        }
        assert_eq!(times, [3, 6, 12, 24, 48, 96, 192, 300, 300]);
        // After a calm time it begins with the shortest one.
        run(&mut path, &mut now, 3_200, true, true);
        assert_eq!(run(&mut path, &mut now, 4, false, true), [Switch::Tunnel]);
        assert_eq!(run(&mut path, &mut now, 15, true, true), [Switch::Native]);
    }

    #[test]
    fn a_tunnel_that_fails_is_left_at_once() {
        let (mut path, mut now) = (PathProbe::default(), Duration::ZERO);
        run(&mut path, &mut now, 20, true, true);
        run(&mut path, &mut now, 4, false, true);
        assert!(path.is_broken());
        assert_eq!(run(&mut path, &mut now, 8, false, false), [], "neither works: nothing is gained");
        assert_eq!(run(&mut path, &mut now, 2, true, false), [Switch::Native]);
    }

    #[test]
    fn what_the_previous_run_found_stays_until_probes_say_something_else() {
        let mut now = Duration::from_secs(1);
        let mut path = PathProbe::broken(now, &SETTINGS);
        assert_eq!(run(&mut path, &mut now, 50, false, false), []);
        assert!(path.is_broken());
        assert_eq!(run(&mut path, &mut now, 10, true, true), [Switch::Native]);
        assert_eq!(path.stream(Way::Native).rtt, ANSWERED);
    }

    proptest! {
        /// Whatever happens: a switch to the tunnel follows losses on the native way while the tunnel works, one back follows
        /// answers on the native way, and they take turns.
        #[test]
        fn switches_take_turns_and_have_reasons(outcomes: Vec<(bool, bool)>) {
            let (mut path, mut now) = (PathProbe::default(), Duration::ZERO);
            for (is_native, is_answered) in outcomes {
                now += SETTINGS.interval;
                let was_broken = path.is_broken();
                let way = if is_native { Way::Native } else { Way::Tunnel };
                let answered = is_answered.then_some(Duration::from_millis(1));
                let switch = path.take(way, answered, now, &SETTINGS);
                prop_assert_eq!(switch.is_some(), path.is_broken() != was_broken);
                let (native, tunnel) = (path.stream(Way::Native), path.stream(Way::Tunnel));
                match switch {
                    Some(Switch::Tunnel) => {
                        prop_assert!(path.is_broken());
                        prop_assert!(native.lost_in_row >= SETTINGS.failures && tunnel.answered_in_row >= TUNNEL_PROVEN);
                    }
                    Some(Switch::Native) => {
                        prop_assert!(!path.is_broken() && native.answered_in_row >= TUNNEL_PROVEN);
                    }
                    None => {}
                }
            }
        }
    }
}
