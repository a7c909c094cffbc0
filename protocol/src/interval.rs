//! How much time there should be from one snapshot to the next: `--every auto`.
//!
//! A checkpoint costs the ranks time whether a failure comes or not; a failure costs what was computed since the
//! last checkpoint. With a cost C and a mean time between failures M the least is lost in total when about
//! sqrt(2 C M) lies between two checkpoints \[Young 1974\]; [`optimum`] is that with the corrections of higher order of
//! \[Daly 2006\].
//!
//! - *The cost* is what the ranks felt of a checkpoint: how long they stood still for the cut, and waited for pages to
//!   be saved after it. Images are compressed and stored while the ranks compute; that time makes each checkpoint
//!   valid later, but is no part of the cost, and does not move the optimum \[Vaidya 1997\]. The median of the last
//!   few checkpoints counts, so that one which met a full disk does not.
//! - *The time between failures* is taken from the failures seen while ranks ran, in all starts of the job by this
//!   command. Before the first failure there would be no estimate, and after it a bad one. So one failure in [`PRIOR`]
//!   is taken for seen from the beginning: M = (PRIOR + time run) / (1 + failures seen). That is the mean of the
//!   posterior rate for a gamma prior with the weight of one failure. The prior is a pessimist, which costs little: the
//!   optimum goes by its square root, and a job that runs on without failures soon outweighs it.
//!
//! The interval is never shorter than the time that a checkpoint takes to become durable, or snapshots would follow
//! each other without a pause; and the user's bounds hold before everything else. As long as fewer than two checkpoints were
//! measured it is the shortest allowed. The first one tells little: it holds whole images, later ones what has changed.
//!
//! - J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974
//! - J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
//!   Computer Systems 22(3), 2006
//! - N. H. Vaidya, "Impact of checkpoint latency on overhead ratio of a checkpointing scheme", IEEE Transactions on
//!   Computers 46(8), 1997

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The time in which one failure is expected before any was seen.
pub const PRIOR: Duration = Duration::from_secs(4 * 3600);

/// Checkpoints whose cost counts.
const RECENT: usize = 5;

/// Checkpoints that must have been measured before an interval is chosen by their cost.
const ENOUGH: usize = 2;

/// The shortest and the longest interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// The shortest.
    pub min: Duration,
    /// The longest. Where it is below the shortest, it is the one that holds.
    pub max: Duration,
}

/// Why an interval is what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ground {
    /// Told by the user.
    #[default]
    Fixed,
    /// Too few checkpoints were measured yet: the shortest allowed, or the time that one takes to become durable.
    Unmeasured,
    /// The optimum of cost and failures.
    Optimum,
    /// The time that a checkpoint takes to become durable, which is longer than the optimum.
    Durable,
    /// The shortest allowed, which is longer than the optimum.
    Shortest,
    /// The longest allowed, which is shorter than the optimum.
    Longest,
}

/// An interval, and how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Estimate {
    /// From the start of a snapshot to the start of the next.
    pub every: Duration,
    /// Why.
    pub ground: Ground,
    /// What a checkpoint costs the ranks, once one was measured.
    pub cost: Option<Duration>,
    /// How long one takes from its announcement until it is a checkpoint, once one was measured.
    pub durable: Option<Duration>,
    /// The estimated mean time between failures.
    pub mtbf: Duration,
    /// Failures seen.
    pub failures: u32,
    /// The time in which they were seen: that in which ranks ran.
    pub ran: Duration,
}

/// What was seen of costs and failures so far. Times are durations since any fixed start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Estimator {
    bounds: Bounds,
    /// Cost and time until durable of the last checkpoints.
    recent: VecDeque<(Duration, Duration)>,
    failures: u32,
    /// Time that ranks ran, up to the present run.
    ran: Duration,
    /// Since when they run, if they do.
    running_since: Option<Duration>,
}

impl Estimator {
    /// Nothing is seen yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            recent: VecDeque::new(),
            failures: 0,
            ran: Duration::ZERO,
            running_since: None,
        }
    }

    /// The ranks run from now on.
    pub fn handle_go(&mut self, now: Duration) {
        self.handle_end(now);
        self.running_since = Some(now);
    }

    /// A process is lost, and with it this run of the ranks. One that is lost while no ranks run, as when it restores, is
    /// not counted: the time for it is not either.
    pub fn handle_failure(&mut self, now: Duration) {
        if self.running_since.is_some() {
            self.failures = self.failures.saturating_add(1);
            self.handle_end(now);
        }
    }

    /// The ranks do not run any more.
    pub fn handle_end(&mut self, now: Duration) {
        if let Some(since) = self.running_since.take() {
            self.ran = self.ran.saturating_add(now.saturating_sub(since));
        }
    }

    /// A checkpoint is committed that held the ranks up for `cost` and was durable after `durable`.
    pub fn handle_checkpoint(&mut self, cost: Duration, durable: Duration) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((cost, durable));
    }

    /// The interval as things are now.
    #[must_use]
    pub fn estimate(&self, now: Duration) -> Estimate {
        let present = self.running_since.map(|since| now.saturating_sub(since));
        let ran = self.ran.saturating_add(present.unwrap_or_default());
        let mtbf = PRIOR.saturating_add(ran) / self.failures.saturating_add(1);
        let cost = median(self.recent.iter().map(|one| one.0));
        let durable = median(self.recent.iter().map(|one| one.1));
        let (every, ground) = match (cost, durable) {
            (Some(cost), Some(durable)) if self.recent.len() >= ENOUGH => {
                bounded(optimum(cost, mtbf), durable, self.bounds)
            }
            (_, durable) => {
                let shortest = self.bounds.min.max(durable.unwrap_or_default());
                (shortest.min(self.bounds.max), Ground::Unmeasured)
            }
        };
        Estimate {
            every,
            ground,
            cost,
            durable,
            mtbf,
            failures: self.failures,
            ran,
        }
    }
}

fn bounded(optimum: Duration, durable: Duration, bounds: Bounds) -> (Duration, Ground) {
    let wanted = if durable > optimum {
        (durable, Ground::Durable)
    } else {
        (optimum, Ground::Optimum)
    };
    if wanted.0 > bounds.max {
        (bounds.max, Ground::Longest)
    } else if wanted.0 < bounds.min {
        // Of bounds that contradict each other the longest holds.
        (bounds.min.min(bounds.max), Ground::Shortest)
    } else {
        wanted
    }
}

/// The lower one of the two in the middle, where there are two.
fn median(values: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut values: Vec<Duration> = values.collect();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// The best time from the start of a checkpoint that costs `cost` to the start of the next, where a failure comes every
/// `mtbf` in the mean: equation 37 of \[Daly 2006\], with the checkpoint itself, which it leaves out, in it.
///
/// There, the time between is M once C is more than 2 M, where the series says 8/9 M: a jump that would make longer
/// intervals of more failures. Here it goes from one to the other without a jump, as the lesser of M and 4/9 C.
#[must_use]
pub fn optimum(cost: Duration, mtbf: Duration) -> Duration {
    let (c, m) = (cost.as_secs_f64(), mtbf.as_secs_f64());
    let between = if c < 2.0 * m {
        let x = (c / (2.0 * m)).sqrt();
        (2.0 * c * m).sqrt() * (1.0 + x / 3.0 + x * x / 9.0) - c
    } else {
        m.min(c * 4.0 / 9.0)
    };
    // Not negative and no more than a few times what came in; what can't be told is for ever.
    Duration::try_from_secs_f64(between.max(0.0) + c).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const BOUNDS: Bounds = Bounds {
        min: Duration::from_secs(10),
        max: HOUR,
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_optimum_is_youngs_for_small_costs_and_dalys_for_large_ones() {
        // sqrt(2 * 0.02 * 86400) = 58.79; the corrections are below a hundredth of a second.
        let small = optimum(ms(20), 24 * HOUR);
        assert!(small.abs_diff(ms(58_790)) < ms(20), "{small:?}");
        // C = 300 s, M = 1 h: sqrt(2 C M) = 1469.69, times 1 + 0.06804 + 0.00463.
        let large = optimum(s(300), HOUR);
        assert!(large.abs_diff(ms(1_576_500)) < ms(100), "{large:?}");
        assert_eq!(optimum(s(3600), s(10)), s(3610), "M, and the checkpoint");
        assert_eq!(optimum(Duration::ZERO, HOUR), Duration::ZERO);
    }

    #[test]
    fn before_the_second_checkpoint_the_interval_is_the_shortest() {
        let mut it = Estimator::new(BOUNDS);
        let estimate = it.estimate(s(5));
        assert_eq!(estimate.every, s(10));
        assert_eq!(estimate.ground, Ground::Unmeasured);
        assert_eq!(estimate.mtbf, PRIOR);
        it.handle_checkpoint(ms(500), s(11));
        let estimate = it.estimate(s(5));
        assert_eq!(
            (estimate.every, estimate.ground),
            (s(11), Ground::Unmeasured)
        );
        it.handle_checkpoint(ms(5), s(1));
        let estimate = it.estimate(s(5));
        assert_eq!(
            (estimate.cost, estimate.ground),
            (Some(ms(5)), Ground::Optimum)
        );
    }

    #[test]
    fn time_without_failures_makes_it_longer_and_failures_make_it_shorter() {
        let mut it = Estimator::new(BOUNDS);
        it.handle_go(s(0));
        it.handle_checkpoint(ms(20), s(2));
        it.handle_checkpoint(ms(20), s(2));
        let first = it.estimate(s(10));
        assert_eq!(first.ground, Ground::Optimum);
        assert!(first.every.abs_diff(s(24)) < s(1), "{first:?}");
        let later = it.estimate(24 * HOUR);
        assert!(later.every > 2 * first.every, "{later:?}");
        it.handle_failure(24 * HOUR);
        it.handle_go(25 * HOUR);
        let failed = it.estimate(25 * HOUR);
        assert_eq!(failed.failures, 1);
        assert_eq!(failed.ran, 24 * HOUR, "the hour between the starts is none");
        assert_eq!(failed.mtbf, 14 * HOUR);
        assert!(failed.every < later.every);
    }

    #[test]
    fn a_process_lost_while_no_ranks_run_tells_nothing() {
        let mut it = Estimator::new(BOUNDS);
        it.handle_failure(s(1));
        it.handle_go(s(2));
        it.handle_end(s(5));
        it.handle_failure(s(6));
        let estimate = it.estimate(s(9));
        assert_eq!((estimate.failures, estimate.ran), (0, s(3)));
    }

    #[test]
    fn one_slow_checkpoint_changes_nothing_and_three_do() {
        let mut it = Estimator::new(BOUNDS);
        for _ in 0..5 {
            it.handle_checkpoint(ms(20), s(2));
        }
        let usual = it.estimate(s(0)).every;
        it.handle_checkpoint(s(2), s(60));
        assert_eq!(it.estimate(s(0)).every, usual);
        it.handle_checkpoint(s(2), s(60));
        it.handle_checkpoint(s(2), s(60));
        assert_eq!(it.estimate(s(0)).cost, Some(s(2)));
        assert!(it.estimate(s(0)).every > 9 * usual);
    }

    #[test]
    fn it_is_never_shorter_than_a_checkpoint_takes_to_become_durable() {
        let mut it = Estimator::new(BOUNDS);
        it.handle_checkpoint(ms(5), s(90));
        it.handle_checkpoint(ms(5), s(90));
        let estimate = it.estimate(s(0));
        assert_eq!((estimate.every, estimate.ground), (s(90), Ground::Durable));
        for _ in 0..5 {
            it.handle_checkpoint(ms(5), 2 * HOUR);
        }
        let estimate = it.estimate(s(0));
        assert_eq!((estimate.every, estimate.ground), (HOUR, Ground::Longest));
    }

    #[test]
    fn a_checkpoint_that_costs_nothing_is_taken_as_often_as_allowed() {
        let mut it = Estimator::new(BOUNDS);
        it.handle_checkpoint(Duration::ZERO, ms(1));
        it.handle_checkpoint(Duration::ZERO, ms(1));
        let estimate = it.estimate(s(0));
        assert_eq!((estimate.every, estimate.ground), (s(10), Ground::Shortest));
    }

    /// Anything from nanoseconds to centuries.
    fn times() -> impl Strategy<Value = Duration> {
        (0_u32..62).prop_flat_map(|bits| (0..=1_u64 << bits).prop_map(Duration::from_nanos))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_optimum_grows_with_the_cost_and_with_the_time_between_failures(
            cost in times(), more in times(), mtbf in times(), longer in times(),
        ) {
            let least = optimum(cost, mtbf);
            // The last bits of a sum of seconds.
            let slack = Duration::from_nanos(2) + least / 1_000_000_000;
            prop_assert!(optimum(cost + more, mtbf) + slack >= least);
            prop_assert!(optimum(cost, mtbf + longer) + slack >= least);
            prop_assert!(least + slack >= cost);
        }

        #[test]
        fn whatever_is_seen_the_bounds_hold(
            min in times(), max in times(),
            seen in prop::collection::vec((0_u8..4, times(), times()), 0..30),
        ) {
            let bounds = Bounds { min, max };
            let mut it = Estimator::new(bounds);
            let mut now = Duration::ZERO;
            for (what, one, other) in seen {
                now = now.saturating_add(one);
                match what {
                    0 => it.handle_go(now),
                    1 => it.handle_failure(now),
                    2 => it.handle_end(now),
                    _ => it.handle_checkpoint(one, other),
                }
                let estimate = it.estimate(now);
                prop_assert!(estimate.every <= max);
                prop_assert!(estimate.every >= min.min(max));
                let durable = estimate.durable.unwrap_or_default();
                prop_assert!(estimate.every >= durable.min(max));
                prop_assert_eq!(estimate, it.estimate(now));
            }
        }

        #[test]
        fn more_failures_never_make_it_longer_nor_more_cost_shorter(
            costs in prop::collection::vec(times(), 1..5), more in times(), failures in 0_u64..20,
        ) {
            let seen = |extra: Duration, failures: u64| {
                let mut it = Estimator::new(Bounds { min: Duration::ZERO, max: Duration::MAX });
                for &cost in &costs {
                    it.handle_checkpoint(cost.saturating_add(extra), Duration::ZERO);
                }
                for failure in 0..failures {
                    it.handle_go(s(10 * failure));
                    it.handle_failure(s(10 * failure + 1));
                }
                // The same time run, whatever came in it.
                it.handle_go(s(1000));
                it.estimate(s(2000 - failures)).every
            };
            let every = seen(Duration::ZERO, failures);
            let slack = Duration::from_nanos(2) + every / 1_000_000_000;
            prop_assert!(seen(Duration::ZERO, failures + 1) <= every + slack);
            prop_assert!(seen(more, failures) + slack >= every);
        }
    }
}
