//! A clock for waits.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Wall-clock time as of the start, going on with the monotonic clock: somebody who sets the machine's time neither cuts a
/// wait short nor makes it endless. What it shows differs from the machine's clock by what that was set since.
#[derive(Debug, Clone, Copy)]
pub struct SteadyClock {
    wall: Timestamp,
    start: Instant,
}

impl SteadyClock {
    /// Starts at the machine's time.
    #[must_use]
    pub fn start() -> Self {
        Self { wall: Timestamp::now(), start: Instant::now() }
    }

    /// The time now; never earlier than an answer before.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        // Beyond the last year that a timestamp can name, time stands still.
        self.wall.saturating_add(self.start.elapsed()).unwrap_or(Timestamp::MAX)
    }

    /// How long until then; zero when it is over.
    #[must_use]
    pub fn until(&self, then: Timestamp) -> Duration {
        then.duration_since(self.now()).try_into().unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_from_the_start_and_waits_end() {
        let clock = SteadyClock { wall: "2026-01-01T00:00:00Z".parse().unwrap(), start: Instant::now() };
        let first = clock.now();
        assert!(first >= clock.wall);
        assert!(clock.now() >= first);
        assert_eq!(clock.until(clock.wall), Duration::ZERO);
        let hour = Duration::from_secs(3_600);
        let left = clock.until(clock.wall + hour);
        assert!(left <= hour && left > hour / 2, "{left:?}");
    }

    #[test]
    fn time_stands_still_at_the_end_of_the_calendar() {
        let clock = SteadyClock { wall: Timestamp::MAX, start: Instant::now() };
        assert_eq!(clock.now(), Timestamp::MAX);
    }
}
