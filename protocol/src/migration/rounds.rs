//! When a rank that is copied while it runs is frozen for the rest, and which way of moving pays.
//!
//! Each round copies what was written during the one before. Rounds that shrink lead to a short stop; a rank that writes as
//! fast as it is copied would be copied for ever.

use std::time::Duration;

use super::messages::MoveMode;

/// The most rounds: by then each has shrunk by a quarter at least, or the rank was frozen before.
pub const ROUNDS_MAX: u32 = 12;

/// So many pages of 4 KiB or fewer (1 MiB) are copied in less time than what else belongs to a freeze takes.
pub const REST_PAGES_MAX: u64 = 256;

/// A round has to be smaller than the one before by one part in so many, or the rank is frozen.
const SHRINKS_BY: u64 = 4;

/// An image of so many bytes (16 MiB) is copied so fast that rounds would cost more than they spare.
pub const SMALL_IMAGE_BYTES: u64 = 16 << 20;

/// How fast memory is copied from process to process, in bytes per second, as long as nothing is known: what a core does
/// where the target's memory is touched for the first time.
pub const COPY_BYTES_PER_S: u64 = 1 << 30;

/// What comes after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// What was written meanwhile is copied while the rank runs.
    Round,
    /// The rank is frozen, and what was written meanwhile copied while it stands still.
    Freeze,
}

/// The rounds of one move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rounds {
    rounds: u32,
    last_pages: u64,
}

impl Rounds {
    /// The first round copies so many pages.
    #[must_use]
    pub fn begin(pages: u64) -> Self {
        Self {
            rounds: 1,
            last_pages: pages,
        }
    }

    /// Rounds that were begun.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.rounds
    }

    /// A round has been copied, and so many pages were written since it began.
    pub fn copied(&mut self, written_pages: u64) -> Next {
        let grows = written_pages > self.last_pages - self.last_pages / SHRINKS_BY;
        if written_pages <= REST_PAGES_MAX || grows || self.rounds >= ROUNDS_MAX {
            return Next::Freeze;
        }
        self.rounds += 1;
        self.last_pages = written_pages;
        Next::Round
    }
}

/// The way that pays for [`MoveMode::Auto`]: rounds, where most of the image would not have to be copied a second time. The rank
/// was seen to write so many bytes within a time; memory is copied at so many bytes per second.
#[must_use]
pub fn choose(
    image_bytes: u64,
    written_bytes: u64,
    within: Duration,
    copy_bytes_per_s: u64,
) -> MoveMode {
    if image_bytes <= SMALL_IMAGE_BYTES {
        return MoveMode::Stop;
    }
    let copying_ns = u128::from(image_bytes) * 1_000_000_000 / u128::from(copy_bytes_per_s.max(1));
    let written = u128::from(written_bytes).saturating_mul(copying_ns) / within.as_nanos().max(1);
    if written > u128::from(image_bytes / 2) {
        MoveMode::Stop
    } else {
        MoveMode::Precopy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_shrink_until_the_rest_is_small() {
        let mut rounds = Rounds::begin(65536);
        assert_eq!(rounds.copied(6000), Next::Round);
        assert_eq!(rounds.copied(600), Next::Round);
        assert_eq!(rounds.copied(REST_PAGES_MAX), Next::Freeze);
        assert_eq!(rounds.count(), 3);
    }

    #[test]
    fn a_round_that_does_not_shrink_is_the_last() {
        let mut rounds = Rounds::begin(65536);
        assert_eq!(rounds.copied(49153), Next::Freeze);
        assert_eq!(rounds.copied(49152), Next::Round);
        assert_eq!(rounds.copied(60000), Next::Freeze);
    }

    #[test]
    fn rounds_that_shrink_slowly_end_nevertheless() {
        let mut rounds = Rounds::begin(u64::MAX);
        let mut pages = u64::MAX / 2;
        let count = (0..).take_while(|_| {
            pages = pages / 4 * 3;
            rounds.copied(pages) == Next::Round
        });
        assert_eq!(count.count(), ROUNDS_MAX as usize - 1);
    }

    #[test]
    fn nothing_to_copy_and_nothing_written_is_frozen_at_once() {
        assert_eq!(Rounds::begin(0).copied(0), Next::Freeze);
    }

    #[test]
    fn small_images_and_busy_ranks_are_stopped_and_others_copied_in_rounds() {
        let (mib, ms) = (1 << 20, Duration::from_millis(1));
        let speed = 1 << 30;
        assert_eq!(choose(16 * mib, 0, ms, speed), MoveMode::Stop);
        assert_eq!(choose(64 * mib, 0, ms, speed), MoveMode::Precopy);
        // 256 MiB take 250 ms.
        assert_eq!(
            choose(256 * mib, 5 * mib, ms * 10, speed),
            MoveMode::Precopy
        );
        assert_eq!(choose(256 * mib, 6 * mib, ms * 10, speed), MoveMode::Stop);
        assert_eq!(
            choose(256 * mib, 6 * mib, ms * 10, 4 * speed),
            MoveMode::Precopy
        );
        assert_eq!(
            choose(u64::MAX, u64::MAX, Duration::ZERO, 0),
            MoveMode::Stop
        );
    }
}
