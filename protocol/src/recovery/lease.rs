//! A process's side of its lease: how long it may go on without hearing that it is heard.
//!
//! Where a process can't be seen to end (it is on another node, and the network may be cut), the coordinator has to know
//! when it ends by itself. So the process numbers its signs of life and remembers when it sent each. The coordinator
//! acknowledges the newest that it got. The lease ends so long after the newest acknowledged one *was sent*; the Hello
//! counts as number 0. What was sent before it was heard, so the coordinator, which counts from when it last heard
//! anything, always waits longer than the process lives, however long messages were on their way:
//!
//! ```text
//! process:      sends n ──────────── heard n ──── … ──── lease ends: sent(n) + length
//!                    ╲             ╱
//! coordinator:        ╲─ hears n ─╱ ─ hears nothing more ───────── certain: heard + length + margin
//! ```
//!
//! The margin covers clocks that do not run at the same speed, and the time that ending takes.

use std::collections::VecDeque;
use std::time::Duration;

/// Signs of life that may be on their way at once; older ones are forgotten, which only shortens the lease.
const UNDERWAY_MAX: usize = 1024;

/// The lease of one process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    length: Duration,
    /// Number of the newest sign of life.
    newest: u64,
    /// Signs of life that are not acknowledged: number, and when each was sent.
    underway: VecDeque<(u64, Duration)>,
    ends: Duration,
}

impl Lease {
    /// The lease of a process that sent its Hello at this time.
    #[must_use]
    pub fn new(length: Duration, hello_sent: Duration) -> Self {
        Self {
            length,
            newest: 0,
            underway: VecDeque::new(),
            ends: hello_sent + length,
        }
    }

    /// A sign of life is about to be sent: the number that it carries.
    pub fn handle_alive(&mut self, now: Duration) -> u64 {
        self.newest += 1;
        if self.underway.len() == UNDERWAY_MAX {
            self.underway.pop_front();
        }
        self.underway.push_back((self.newest, now));
        self.newest
    }

    /// The coordinator has heard this sign of life and all before it. True if the lease ends later now.
    pub fn handle_heard(&mut self, number: u64) -> bool {
        let before = self.ends;
        while let Some(&(first, sent)) = self.underway.front()
            && first <= number
        {
            self.underway.pop_front();
            self.ends = self.ends.max(sent + self.length);
        }
        self.ends > before
    }

    /// When the process has to have ended, if nothing is acknowledged until then.
    #[must_use]
    pub fn ends(&self) -> Duration {
        self.ends
    }

    /// Whether the process must not go on.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_lease_counts_from_when_the_acknowledged_sign_was_sent_and_not_from_the_acknowledgment() {
        let mut lease = Lease::new(ms(100), ms(0));
        assert_eq!(lease.ends(), ms(100));
        assert_eq!(lease.handle_alive(ms(20)), 1);
        assert_eq!(lease.ends(), ms(100), "nobody has heard it");
        assert!(lease.handle_heard(1));
        assert_eq!(lease.ends(), ms(120));
        assert!(!lease.is_over(ms(119)));
        assert!(lease.is_over(ms(120)));
    }

    #[test]
    fn an_acknowledgment_counts_for_what_was_sent_before_it_only() {
        let mut lease = Lease::new(ms(100), ms(0));
        for at in [10, 20, 30] {
            lease.handle_alive(ms(at));
        }
        assert!(lease.handle_heard(2));
        assert_eq!(lease.ends(), ms(120));
        assert!(!lease.handle_heard(2), "told again");
        assert!(!lease.handle_heard(1), "told late");
        assert!(lease.handle_heard(u64::MAX), "nobody else is believed more");
        assert_eq!(lease.ends(), ms(130));
    }

    #[test]
    fn a_coordinator_that_acknowledges_nothing_fills_no_memory() {
        let mut lease = Lease::new(ms(100), ms(0));
        for at in 0..5000 {
            lease.handle_alive(ms(at));
        }
        assert_eq!(lease.underway.len(), UNDERWAY_MAX);
        assert!(!lease.handle_heard(5000 - UNDERWAY_MAX as u64));
        assert_eq!(lease.ends(), ms(100));
    }
}
