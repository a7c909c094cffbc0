//! Which parts of a heap are worth tracking: what the last checkpoints showed decides.
//!
//! Tracking costs about a microsecond for the first write to each page after a cut, and breaks huge pages up.
//! Saving a part without tracking costs copying it and comparing digests, mostly on another processor. So a
//! region of 64 MiB is *tracked* while few of its pages change, and *dense* otherwise. Digests show when a dense
//! region has calmed down.

use crate::layout::PAGE_BYTES;

/// Size of a region, in bytes; also its alignment within the slot.
pub(super) const REGION_BYTES: usize = 64 << 20;

/// Pages of a region.
pub const REGION_PAGES: u64 = (REGION_BYTES / PAGE_BYTES) as u64;

/// A tracked region of which more than one page in so many was written is dense.
const DENSE_SHARE: u64 = 4;

/// A dense region of which at most one page in so many has changed is calm.
const CALM_SHARE: u64 = 8;

/// Smaller regions, in pages, are not worth a change.
const PAGES_MIN: u64 = 256;

/// Most calm checkpoints in a row that a region has to show before it is tracked, however often it has changed
/// its mind.
const PATIENCE_MAX: u32 = 32;

/// How it is found out what of a region was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Watch {
    /// Not at all: every page counts as written.
    #[default]
    Dense,
    /// By the kernel since a moment after the last checkpoint's cut. What was written in between is being found
    /// out by comparing with that checkpoint.
    CatchingUp,
    /// By the kernel.
    Tracked,
}

/// What is known about a region.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Region {
    pub(super) watch: Watch,
    /// Calm checkpoints in a row.
    calm: u32,
    /// How often it was tracked in vain.
    relapses: u32,
}

impl Region {
    /// A region that is tracked from the start.
    pub(super) fn tracked() -> Self {
        Self {
            watch: Watch::Tracked,
            ..Self::default()
        }
    }

    /// A checkpoint of the region while it was dense has saved so many pages, of which so many differed from the
    /// checkpoint before.
    pub(super) fn observe(&mut self, saved: u64, changed: u64) {
        if self.watch == Watch::Dense {
            if saved >= PAGES_MIN && changed * CALM_SHARE <= saved {
                self.calm += 1;
            } else {
                self.calm = 0;
            }
        }
    }

    /// Whether a dense region is to be tracked from the next cut on.
    pub(super) fn wants_tracking(&self) -> bool {
        let patience = 1_u32
            .checked_shl(self.relapses)
            .unwrap_or(PATIENCE_MAX)
            .min(PATIENCE_MAX);
        self.watch == Watch::Dense && self.calm >= patience
    }

    /// Whether a tracked region with so many pages, of which so many were written, is dense from now on.
    pub(super) fn is_too_busy(&self, existing: u64, written: u64) -> bool {
        self.watch == Watch::Tracked && existing >= PAGES_MIN && written * DENSE_SHARE > existing
    }

    /// The region will be tracked if what is being found out is there in time.
    pub(super) fn catch_up(&mut self) {
        self.watch = Watch::CatchingUp;
    }

    /// It was not there in time, this once.
    pub(super) fn miss(&mut self) {
        self.watch = Watch::Dense;
    }

    /// The region is tracked now.
    pub(super) fn track(&mut self) {
        self.watch = Watch::Tracked;
        self.calm = 0;
    }

    /// The region is no longer tracked.
    pub(super) fn give_up(&mut self) {
        self.watch = Watch::Dense;
        self.calm = 0;
        self.relapses += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dense_region_that_calms_down_is_tracked_and_one_that_does_not_stay_calm_has_to_wait_longer()
     {
        let mut region = Region::default();
        region.observe(16384, 16000);
        assert!(!region.wants_tracking());
        for waits in [1, 2, 4, 8, 16, 32, 32, 32] {
            for _ in 0..waits {
                assert!(!region.wants_tracking());
                region.observe(16384, 100);
            }
            assert!(region.wants_tracking());
            region.track();
            assert!(!region.is_too_busy(16384, 4096));
            assert!(region.is_too_busy(16384, 4097));
            region.give_up();
        }
    }

    #[test]
    fn a_busy_checkpoint_in_between_starts_the_count_anew() {
        let mut region = Region::tracked();
        region.give_up();
        region.observe(1000, 0);
        region.observe(1000, 1000);
        region.observe(1000, 0);
        assert!(!region.wants_tracking());
        region.observe(1000, 125);
        assert!(region.wants_tracking());
    }

    #[test]
    fn small_regions_are_left_as_they_are() {
        let mut region = Region::default();
        region.observe(PAGES_MIN - 1, 0);
        assert!(!region.wants_tracking());
        assert!(!Region::tracked().is_too_busy(PAGES_MIN - 1, PAGES_MIN - 1));
    }
}
