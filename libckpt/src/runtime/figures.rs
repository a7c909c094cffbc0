//! What is told of the ranks while they run, for `ckpt ps`.
//!
//! Image and messages are looked at by the ranks' thread, at pings: the numbers of channels count what a rank has sent, so that
//! nothing needs to be counted on a message's way. The load comes from samples: the control thread looks every now and then
//! which rank runs, and whether that one waits. So no clock is read between messages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libckpt_rank::Slot;
use protocol::control::RankFigures;
use protocol::ids::Rank;

use crate::engine::{LookedAt, in_engine};

/// Time from one sample to the next. An odd one, so that it does not go along with what ranks do in even times.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_millis(19);

/// The load is an average of about so many samples, or of all there are.
const SAMPLES: u32 = 100;

/// What the ranks' thread knows of the messages of its ranks.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// How many messages each had sent when it was looked at last.
    sent: BTreeMap<Rank, (u64, Instant)>,
}

impl Figures {
    /// Looks at the ranks, which are suspended.
    pub(super) fn look(&mut self, slots: &[Slot], image_bytes: impl Fn(&Slot) -> usize) {
        let now = Instant::now();
        let before = std::mem::take(&mut self.sent);
        in_engine(|engine| {
            let looked_at = slots.iter().zip(&engine.core.hosted).map(|(slot, hosted)| {
                let rank = hosted.rank;
                let sent = hosted.tables.sent();
                self.sent.insert(rank, (sent, now));
                LookedAt {
                    rank,
                    image_bytes: image_bytes(slot) as u64,
                    messages_per_s: before
                        .get(&rank)
                        .and_then(|&(before, at)| per_second(sent - before, now - at)),
                }
            });
            let looked_at: Vec<LookedAt> = looked_at.collect();
            let mut shared = engine
                .attention
                .looked_at
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            *shared = looked_at;
        });
    }
}

/// A count in a time as a count in a second; none in no time.
fn per_second(count: u64, time: Duration) -> Option<u64> {
    let per_second = u128::from(count)
        .checked_mul(1_000_000)?
        .checked_div(time.as_micros())?;
    u64::try_from(per_second).ok()
}

/// The loads of the ranks of this process, from samples.
#[derive(Debug, Default)]
pub(super) struct Loads {
    /// Of each rank: its load in thousandths of thousandths, and how many samples that is of.
    loads: BTreeMap<Rank, (u32, u32)>,
}

/// The whole of a load.
const WHOLE: u32 = 1_000_000;

impl Loads {
    /// Which rank computes now, if any does.
    pub(super) fn sample(&mut self, computing: Option<Rank>) {
        for (&rank, (load, samples)) in &mut self.loads {
            *samples = (*samples + 1).min(SAMPLES);
            let new = if computing == Some(rank) { WHOLE } else { 0 };
            *load = *load - *load / *samples + new / *samples;
        }
    }

    /// Whether there is a rank to take samples of.
    pub(super) fn is_empty(&self) -> bool {
        self.loads.is_empty()
    }

    /// These ranks are here now: what is told of them.
    pub(super) fn tell(&mut self, looked_at: &[LookedAt]) -> Vec<RankFigures> {
        let before = std::mem::take(&mut self.loads);
        let tell = |looked: &LookedAt| {
            let known = before.get(&looked.rank).copied().unwrap_or_default();
            self.loads.insert(looked.rank, known);
            RankFigures {
                rank: looked.rank,
                image_bytes: looked.image_bytes,
                load_permille: (known.0 / (WHOLE / 1000)).min(1000),
                messages_per_s: looked.messages_per_s,
            }
        };
        looked_at.iter().map(tell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_at(rank: u32) -> LookedAt {
        LookedAt {
            rank: Rank(rank),
            image_bytes: 5,
            messages_per_s: None,
        }
    }

    #[test]
    fn loads_are_shares_of_the_samples_and_follow_what_changes() {
        let mut loads = Loads::default();
        assert!(loads.is_empty());
        loads.sample(Some(Rank(1)));
        loads.tell(&[looked_at(1), looked_at(2)]);
        for turn in 0..4000 {
            loads.sample([Some(Rank(1)), Some(Rank(2)), Some(Rank(1)), None][turn % 4]);
        }
        let load = |loads: &mut Loads| -> Vec<u32> {
            let told = loads.tell(&[looked_at(1), looked_at(2)]);
            told.iter().map(|figures| figures.load_permille).collect()
        };
        let told = load(&mut loads);
        assert!((480..=520).contains(&told[0]), "{told:?}");
        assert!((230..=270).contains(&told[1]), "{told:?}");
        for _ in 0..1000 {
            loads.sample(Some(Rank(2)));
        }
        let told = load(&mut loads);
        assert!(told[0] <= 1 && told[1] >= 990, "{told:?}");
        // One that has left is not sampled any more, and begins anew when it comes back.
        loads.tell(&[looked_at(1)]);
        assert_eq!(load(&mut loads)[1], 0);
    }

    #[test]
    fn the_first_samples_count_in_full() {
        let mut loads = Loads::default();
        loads.tell(&[looked_at(1)]);
        loads.sample(Some(Rank(1)));
        loads.sample(None);
        let told = loads.tell(&[looked_at(1)]);
        assert_eq!(told[0].load_permille, 500);
    }

    #[test]
    fn rates_are_per_second_and_none_in_no_time() {
        assert_eq!(per_second(10, Duration::from_millis(250)), Some(40));
        assert_eq!(per_second(10, Duration::ZERO), None);
        assert_eq!(per_second(u64::MAX, Duration::from_secs(1)), Some(u64::MAX));
    }
}
