//! How long to wait awake before sleeping.
//!
//! Waiting awake for about as long as falling asleep and being woken costs is never worse than twice
//! the best choice. It only makes sense while everybody has a core: a process that spins where another
//! waits for the core delays the very packet that it waits for. And whether a core is really ours only
//! the scheduler knows, so the core is offered to others at every look but the first few.
//!
//! Measured with `examples/crowd` on 2 cores that other programs used as well, policies in alternation,
//! microseconds, best and median of 12 runs:
//!
//! | processes | policy | a packet handed around, per hop | compute and exchange, per step |
//! |---|---|---|---|
//! | 2 | spin 50 µs, then sleep | 0.54, 74 | 242, 373 |
//! | 2 | spin 1 µs, offer the core until 50 µs, then sleep | 0.31, 3.7 | 207, 317 |
//! | 2 | sleep at once | 3.0, 5.3 | 214, 311 |
//! | 4 | spin 1 µs, offer the core until 50 µs, then sleep | 3.5, 7.1 | 417, 600 |
//! | 4 | sleep at once | 5.5, 10.6 | 266, 455 |
//! | 8 | spin 1 µs, offer the core until 50 µs, then sleep | 4.5, 6.5 | 953, 1196 |
//! | 8 | sleep at once | 5.7, 8.6 | 463, 650 |
//!
//! Waking a sleeper took 18 to 33 µs there when its core had gone idle.

use std::thread;
use std::time::{Duration, Instant};

/// Spinning without offering the core: what an answer takes from a peer that is just sending it.
const SPIN: Duration = Duration::from_micros(2);

/// Waiting awake in all.
const AWAKE: Duration = Duration::from_micros(50);

/// Looks between two readings of the clock, which cost as much as several looks.
const LOOKS_PER_READING: u32 = 16;

/// The waiting policy of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Every process has a core: wait awake for a while.
    Some,
    /// Processes share cores, or nobody is there to wait for: sleep at once.
    None,
}

impl Patience {
    /// For a job of this many processes on this machine, by the cores that this process may use.
    pub(crate) fn of_job(processes: u32) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with_cores(processes > 1 && processes as usize <= cores)
    }

    /// By whether every process has a core.
    pub(crate) fn with_cores(has_cores: bool) -> Self {
        if has_cores { Self::Some } else { Self::None }
    }

    /// Looks, again and again while there is patience, until `look` finds something.
    pub(crate) fn look<T>(self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        if self == Self::None {
            return look();
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS_PER_READING {
                if let Some(found) = look() {
                    return Some(found);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= SPIN {
                break;
            }
        }
        while start.elapsed() < AWAKE {
            thread::yield_now();
            if let Some(found) = look() {
                return Some(found);
            }
        }
        None
    }
}
