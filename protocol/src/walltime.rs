//! When the last checkpoint of an allocation is begun, so that it is there before the time is over.
//!
//! A batch system ends a job when its time is used up. [`Walltime`] is told how much is left and how long checkpoints
//! take, and says when it is time to stop. Just before, it wants the time left to be asked for again: somebody may have
//! given the job more.
//!
//! What is kept in hand is twice the longest of the last checkpoints, because the last one may find the disk busy, and
//! a minute at most for ending; of a short allocation a tenth.

use std::collections::VecDeque;
use std::time::Duration;

/// Kept in hand besides the checkpoint, for stopping the ranks and for what the batch system does at the end.
const SLACK: Duration = Duration::from_secs(60);

/// What a checkpoint is taken to need as long as none was measured.
const UNMEASURED: Duration = Duration::from_secs(60);

/// How many measured checkpoints count.
const REMEMBERED: usize = 5;

/// The time left is asked for again at least so often: it may have been changed.
const ASK_EVERY: Duration = Duration::from_secs(300);

/// Answers about the time left are not asked for more often than this near the end.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What the caller is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Find out how much time is left and call [`Walltime::handle_left`].
    Ask,
    /// Take the last checkpoint and stop.
    Stop,
}

/// Watches the time of an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Walltime {
    began: Duration,
    /// When the allocation ends, as was told last.
    ends: Option<Duration>,
    /// When that was told.
    told: Duration,
    asked: bool,
    stopped: bool,
    took: VecDeque<Duration>,
    outputs: VecDeque<Output>,
}

impl Walltime {
    /// An allocation of which nothing is known yet; it is asked for at once.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            began: now,
            ends: None,
            told: now,
            asked: true,
            stopped: false,
            took: VecDeque::new(),
            outputs: VecDeque::from([Output::Ask]),
        }
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.asked || self.stopped {
            return None;
        }
        let again = self.told + ASK_EVERY;
        Some(self.stop_at().map_or(again, |stop| {
            again.min(stop).max(self.told + ASK_AGAIN.min(self.hand()))
        }))
    }

    /// When the last checkpoint is to be begun, as far as is known.
    #[must_use]
    pub fn stop_at(&self) -> Option<Duration> {
        Some(self.ends?.saturating_sub(self.hand()))
    }

    /// The answer to [`Output::Ask`]: the time left, or `None` if there is no limit or nobody knows.
    pub fn handle_left(&mut self, now: Duration, left: Option<Duration>) {
        self.asked = false;
        self.told = now;
        self.ends = left.map(|left| now + left);
        if !self.stopped && self.stop_at().is_some_and(|stop| now >= stop) {
            self.stopped = true;
            self.outputs.push_back(Output::Stop);
        }
    }

    /// A checkpoint took so long from its announcement until it was committed.
    pub fn handle_checkpoint(&mut self, took: Duration) {
        if self.took.len() == REMEMBERED {
            self.took.pop_front();
        }
        self.took.push_back(took);
    }

    /// The time of [`Self::poll_timeout`] has come. Harmless if it has not.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_some_and(|at| now >= at) {
            self.asked = true;
            self.outputs.push_back(Output::Ask);
        }
    }

    /// The time that is kept in hand for the end.
    fn hand(&self) -> Duration {
        // A short allocation is not all end.
        let tenth = match self.ends {
            Some(ends) => ends.saturating_sub(self.began) / 10,
            None => UNMEASURED,
        };
        let measured = self.took.iter().max().copied();
        let longest = measured.unwrap_or(UNMEASURED.min(tenth));
        (longest * 2 + SLACK).min((longest * 2).max(tenth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn told(left: Option<u64>) -> Walltime {
        let mut walltime = Walltime::new(s(0));
        assert_eq!(walltime.poll_output(), Some(Output::Ask));
        assert_eq!(walltime.poll_timeout(), None, "the answer is on its way");
        walltime.handle_left(s(0), left.map(s));
        walltime
    }

    /// Goes on as a caller would, to the time of the stop.
    fn stops_at(walltime: &mut Walltime, ends: u64) -> Duration {
        loop {
            let at = walltime.poll_timeout().expect("a time to wait for");
            assert!(at <= s(ends), "the allocation is over");
            walltime.handle_timeout(at);
            assert_eq!(walltime.poll_output(), Some(Output::Ask));
            walltime.handle_left(at, Some(s(ends) - at));
            if walltime.poll_output() == Some(Output::Stop) {
                return at;
            }
        }
    }

    #[test]
    fn the_last_checkpoint_is_begun_with_twice_its_time_and_a_minute_in_hand() {
        let mut walltime = told(Some(7200));
        walltime.handle_checkpoint(s(20));
        walltime.handle_checkpoint(s(45));
        walltime.handle_checkpoint(s(30));
        let at = stops_at(&mut walltime, 7200);
        assert_eq!(at, s(7200 - 90 - 60));
        assert_eq!(walltime.poll_timeout(), None, "stopped once and for all");
    }

    #[test]
    fn a_limit_that_was_moved_out_is_noticed_before_stopping() {
        let mut walltime = told(Some(3600));
        walltime.handle_checkpoint(s(10));
        let stop = walltime.stop_at().unwrap();
        assert_eq!(stop, s(3600 - 80));
        walltime.handle_timeout(stop);
        assert_eq!(walltime.poll_output(), Some(Output::Ask));
        walltime.handle_left(stop, Some(s(3600)));
        assert_eq!(walltime.poll_output(), None);
        assert_eq!(walltime.stop_at(), Some(stop + s(3600 - 80)));
    }

    #[test]
    fn a_short_allocation_is_not_stopped_at_its_beginning() {
        let mut walltime = told(Some(60));
        walltime.handle_checkpoint(s(1));
        assert_eq!(walltime.poll_output(), None);
        let at = stops_at(&mut walltime, 60);
        assert_eq!(at, s(54));
    }

    #[test]
    fn without_a_limit_nothing_is_stopped_and_it_is_asked_now_and_then() {
        let mut walltime = told(None);
        let mut at = s(0);
        for _ in 0..100 {
            at = walltime.poll_timeout().unwrap();
            walltime.handle_timeout(at);
            assert_eq!(walltime.poll_output(), Some(Output::Ask));
            walltime.handle_left(at, None);
            assert_eq!(walltime.poll_output(), None);
        }
        assert!(at >= s(100 * 300));
    }

    #[test]
    fn an_answer_that_comes_at_the_last_moment_stops_at_once() {
        let mut walltime = told(Some(1000));
        walltime.handle_timeout(s(300));
        walltime.handle_left(s(300), Some(s(30)));
        assert_eq!(walltime.poll_output(), Some(Output::Ask));
        assert_eq!(walltime.poll_output(), Some(Output::Stop));
    }
}
