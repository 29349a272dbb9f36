//! The programs' clock.

use nix::time::{ClockId, clock_gettime};

/// Time in ticks of 2^30 nanoseconds (1.07 s) of the coarse monotonic clock, as in `meshd_abi::Connection::used`. It runs in a circle.
#[must_use]
pub fn ticks() -> u32 {
    // The clock exists on every Linux; zero would only make entries look young.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_or(0, |now| now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs());
    (now >> 30) as u32
}
