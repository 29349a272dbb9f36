//! Heartbeat and canaries: RFC 3339 times in whole seconds (wire contract sections 1.1 and 2.4).
//!
//! That the key was written is what counts. Readers do not depend on the text; we read it to tell an operator about clocks
//! that disagree.

use std::time::Duration;

use jiff::Timestamp;

/// Longest text of a time we look at.
const TIME_TEXT_MAX: usize = 64;

/// Seconds of the years 0 to 9999, which are all that RFC 3339 can write.
const YEARS: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_207_200;

/// How often the heartbeat is written.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(60);
/// Silence after which a reader calls the store dead.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(120);

/// Writes a heartbeat or canary.
#[must_use]
pub fn encode(now: Timestamp) -> Vec<u8> {
    time_text(now).into_bytes()
}

/// Reads the time of a heartbeat or canary; `None` when it is not a time.
#[must_use]
pub fn parse(value: &[u8]) -> Option<Timestamp> {
    if value.len() > TIME_TEXT_MAX {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|time: &Timestamp| YEARS.contains(&time.as_second()))
}

/// A time as Go writes it, in whole seconds.
pub(super) fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_seconds_in_utc() {
        let time: Timestamp = "2026-11-20T21:56:16.9Z".parse().unwrap();
        assert_eq!(encode(time), b"2026-11-20T21:56:16Z");
        assert_eq!(parse(b"2026-11-20T22:56:16+01:00"), parse(b"2026-11-20T21:56:16Z"));
        assert_eq!(parse(b"yesterday"), None);
        assert_eq!(parse(b"-003025-11-20T20:02:21Z"), None, "before year 0");
        assert_eq!(parse(&[b'2'; 100]), None);
    }
}
