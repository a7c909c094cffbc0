//! How long to wait awake before sleeping.
//!
//! Spinning for about as long as falling asleep and being woken costs is never worse than twice the
//! best choice. It only makes sense while everybody has a core: a process that spins where another
//! waits for the core delays the very packet that it waits for.

use std::thread;
use std::time::{Duration, Instant};

/// Spinning while every process has a core of its own.
const SPIN_ALONE: Duration = Duration::from_micros(50);

/// Spinning while processes share cores: enough for a peer that is just writing its packet.
const SPIN_SHARED: Duration = Duration::from_micros(1);

/// How often the core is given away before sleeping, while processes share cores.
const YIELDS_SHARED: u32 = 4;

/// Looks between two readings of the clock, which cost as much as several looks.
const LOOKS_PER_READING: u32 = 16;

/// The waiting policy of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    spin: Duration,
    yields: u32,
}

impl Patience {
    /// For a job of this many processes on this machine, by the cores that this process may use.
    pub(crate) fn of_job(processes: u32) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        if processes as usize <= cores {
            Self {
                spin: SPIN_ALONE,
                yields: 1,
            }
        } else {
            Self {
                spin: SPIN_SHARED,
                yields: YIELDS_SHARED,
            }
        }
    }

    /// For a process that no peer will ever wake: straight to sleep.
    pub(crate) fn none() -> Self {
        Self {
            spin: Duration::ZERO,
            yields: 0,
        }
    }

    /// Looks again and again, spinning and yielding, until `look` finds something or patience ends.
    pub(crate) fn look<T>(self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        if self.spin > Duration::ZERO {
            let start = Instant::now();
            loop {
                for _ in 0..LOOKS_PER_READING {
                    if let Some(found) = look() {
                        return Some(found);
                    }
                    std::hint::spin_loop();
                }
                if start.elapsed() >= self.spin {
                    break;
                }
            }
        }
        for _ in 0..self.yields {
            thread::yield_now();
            if let Some(found) = look() {
                return Some(found);
            }
        }
        look()
    }
}
