//! Following what a rank writes while it is copied for a move, between two cuts.
//!
//! The kernel tracks a heap for both, and forgets what it has told. So what a look of a move finds in regions that are tracked for
//! checkpoints is kept for the next cut ([`protocol::dirty::Dirty::found_between`]). Regions that are not (all their pages count as
//! written at a cut) are tracked for the move alone, and not any more when it is over.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use protocol::dirty::PageSet;
use protocol::ids::{Epoch, Rank};

use super::catch_up::LivePages;
use super::cut::{Capturer, History, scan_tracked, track, untrack};
use super::geometry::{by_region, page_set, pages_by_region};
use super::guard::Guard;
use super::regions::Watch;
use crate::context::in_process;
use crate::slot::Slot;
use crate::uffd::Uffd;

/// Why a rank can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The kernel tracks nothing here, or was told not to.
    #[error(
        "the kernel does not track what is written (changes are found by digests or not at all, see --track)"
    )]
    Untracked,
    /// Pages of the last snapshot are still being saved.
    #[error("pages of a snapshot are still being saved")]
    Saving,
    /// There is no checkpoint of the rank that what it has written could be counted from.
    #[error("no checkpoint of {rank} has been taken since it came to its process")]
    NoCheckpoint {
        /// The rank.
        rank: Rank,
    },
    /// The kernel refuses.
    #[error("the kernel does not track what is written: {source}")]
    Refused {
        /// What it says.
        #[from]
        source: io::Error,
    },
}

/// What a look has found in a rank's heap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The pages that exist.
    pub existing: PageSet,
    /// Of these, such that were written since the look before, or live anew; all that exist, in the first. Some may be told
    /// although they were not.
    pub written: PageSet,
}

/// What a first look has found in a rank's heap, as against its last checkpoint.
#[derive(Debug)]
pub struct Since {
    /// The checkpoint, which the rank's next cut would build on.
    pub checkpoint: Epoch,
    /// The pages that exist.
    pub existing: PageSet,
    /// Of these, such that may differ from the checkpoint's, or are not in it.
    pub written: PageSet,
    /// Those of regions that were not tracked since the checkpoint's cut: only a comparison with it can tell. In neither case are
    /// they among the written ones.
    pub unknown: LivePages,
}

/// What the last look leaves for the next.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// Regions that are tracked for the move alone.
    own: BTreeSet<usize>,
    /// The heap's pages that were live.
    live: PageSet,
}

impl Capturer {
    /// Looks what a rank has written to its heap since the look before, and at the first one begins to follow it. All that it writes
    /// from now on is told by the next look. Its header and its stack are not followed: they are always written.
    ///
    /// To be called with the ranks stopped, on their thread. [`Capturer::unfollow`] or [`Capturer::forget`] ends it.
    ///
    /// # Errors
    /// It can't be found out; the rank is not followed any more, and all of its pages count as written.
    pub fn look(&mut self, slot: &Slot) -> Result<Look, FollowError> {
        in_process(|| {
            let looked = self.look_in_process(slot);
            if looked.is_err() {
                self.unfollow(slot);
            }
            looked
        })
    }

    /// Like a first look, which tells in addition what the rank has written since its last checkpoint.
    ///
    /// # Errors
    /// As those of [`Capturer::look`], or there is no checkpoint.
    pub fn look_since_checkpoint(&mut self, slot: &Slot) -> Result<Since, FollowError> {
        let rank = slot.rank();
        if !self.tracks() {
            return Err(FollowError::Untracked);
        }
        let Some(checkpoint) = self.parent(rank) else {
            return Err(FollowError::NoCheckpoint { rank });
        };
        let Look { existing, .. } = self.look(slot)?;
        in_process(|| {
            let history = self.ranks.entry(rank).or_default();
            let mut written = history.dirty.found();
            written.unite(&page_set(slot, &slot.live_ranges().heap).difference(&history.live));
            let mut unknown = Vec::new();
            for (index, pages) in pages_by_region(slot, &existing) {
                let watch = history.regions.get(&index).map(|region| region.watch);
                match (watch, history.catching_up.get(&index)) {
                    (Some(Watch::Tracked), _) => {}
                    (Some(Watch::CatchingUp), Some((_, Some(differing)))) => {
                        written.unite(differing);
                    }
                    _ => unknown.extend_from_slice(pages.ranges()),
                }
            }
            let compared = unknown.iter().cloned().collect();
            Ok(Since {
                checkpoint,
                written: written.intersection(&existing).difference(&compared),
                existing,
                unknown: LivePages {
                    rank,
                    slot: slot.base(),
                    pages: unknown,
                },
            })
        })
    }

    fn look_in_process(&mut self, slot: &Slot) -> Result<Look, FollowError> {
        if self.guard.as_ref().is_some_and(Guard::is_saving) {
            return Err(FollowError::Saving);
        }
        let tracker = self.tracker.as_ref().ok_or(FollowError::Untracked)?;
        // SAFETY: the rank, the heap's owner, is stopped, and this is its thread.
        unsafe { slot.header().heap.drain_remote() };
        let heap = slot.live_ranges().heap;
        let history = self.ranks.entry(slot.rank()).or_default();
        let live = page_set(slot, &heap);
        let followed = history.followed.get_or_insert_default();
        let anew = live.difference(&followed.live);
        followed.live = live;
        let mut looking = Looking {
            tracker,
            guard: self.guard.as_ref(),
            slot,
            existing: Vec::new(),
            written: Vec::new(),
        };
        for (index, live) in by_region(slot, &heap) {
            looking.look_at(history, index, &live)?;
        }
        let existing: PageSet = looking.existing.into_iter().collect();
        let mut written: PageSet = looking.written.into_iter().collect();
        written.unite(&anew);
        Ok(Look {
            written: written.intersection(&existing),
            existing,
        })
    }

    /// The rank stays here and is not followed any more.
    pub fn unfollow(&mut self, slot: &Slot) {
        in_process(|| {
            let history = self.ranks.get_mut(&slot.rank());
            let followed = history.and_then(|history| history.followed.take());
            if let (Some(followed), Some(tracker)) = (followed, &self.tracker) {
                for index in followed.own {
                    untrack(tracker, slot, index);
                }
            }
        });
    }

    /// Whether a rank is followed.
    #[must_use]
    pub fn follows(&self, rank: Rank) -> bool {
        let history = self.ranks.get(&rank);
        history.is_some_and(|history| history.followed.is_some())
    }
}

/// A look under way.
struct Looking<'a> {
    tracker: &'a Uffd,
    guard: Option<&'a Guard>,
    slot: &'a Slot,
    existing: Vec<Range<u64>>,
    written: Vec<Range<u64>>,
}

impl Looking<'_> {
    fn look_at(
        &mut self,
        history: &mut History,
        index: usize,
        live: &[Range<usize>],
    ) -> io::Result<()> {
        let own = &mut history.followed.get_or_insert_default().own;
        let region = history.regions.entry(index).or_default();
        let is_shared = region.watch != Watch::Dense;
        let (before, already) = (self.written.len(), is_shared || own.contains(&index));
        let scanned =
            already && scan_tracked(self.slot, live, &mut self.existing, &mut self.written).is_ok();
        if !scanned {
            // New, or moved or mapped anew, which ends the tracking.
            if !is_shared {
                own.insert(index);
                if let Some(guard) = self.guard {
                    untrack(guard.uffd(), self.slot, index);
                }
            }
            match track(self.tracker, self.slot, index, live) {
                Ok(existing) => self.existing.extend(existing),
                Err(error) => {
                    untrack(self.tracker, self.slot, index);
                    if is_shared {
                        region.give_up();
                    }
                    return Err(error);
                }
            }
            let all = page_set(self.slot, live);
            self.written.extend(all.ranges().iter().cloned());
        }
        if is_shared {
            let written = self.written[before..].iter().cloned().collect();
            history.dirty.found_between(&written);
        }
        Ok(())
    }
}
