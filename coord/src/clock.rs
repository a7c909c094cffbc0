//! The one clock: `CLOCK_MONOTONIC`, the same for every process of the machine.
//!
//! The state machines are told times as durations since the machine's start, and the event log
//! writes them in microseconds, so a program that watches a job can compare them with its own clock.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time now.
#[must_use]
pub fn now() -> Duration {
    // The clock is part of every kernel that this runs on; a failure would mean a wrong constant.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default()
}
