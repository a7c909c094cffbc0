//! The cut of all ranks of a process: what was written, and how it is saved.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use protocol::control::{CaptureMode, Felt, Tracking};
use protocol::dirty::{Dirty, PageSet};
use protocol::ids::{Epoch, Rank};

use super::aside::Aside;
use super::catch_up::{CatchUp, LivePages};
use super::follow::Followed;
use super::geometry::{
    UNWATCHED, by_region, page_set, pages, pages_by_region, region_range, units_of,
};
use super::guard::{Guard, Unit};
use super::pagemap;
use super::pool::Pool;
use super::probe::probe;
use super::regions::{Region, Watch};
use super::{CaptureError, Saved, Sink, check_threads};
use crate::context::in_process;
use crate::incoming::is_incoming;
use crate::slot::Slot;
use crate::uffd::Uffd;

/// Regions that begin to be tracked at once: the ranks stand still for about half a millisecond for each.
const CATCH_UPS: usize = 8;

/// Below this, in pages, copying aside takes less time than what comes with copy on write.
const COPY_ON_WRITE_PAGES_MIN: u64 = 1024;

/// A round of copy on write has lost that made the ranks wait so many times longer than copying takes: one long wait of
/// all ranks at once is worse than many short ones, and copying takes longer while all of them do it.
const LOST_FACTOR: u64 = 2;

/// Rounds of copy on write in a row that cost more than copying aside before that is done instead. In the first,
/// memory is often new.
const LOST_ROUNDS_MAX: u32 = 2;

/// Where copying aside was found to cost less, copy on write is tried again after so many cuts.
const TRY_AGAIN_CUTS: u32 = 16;

/// How a process captures its ranks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How it is found out what was written.
    pub tracking: Tracking,
    /// How pages are saved.
    pub mode: CaptureMode,
    /// Memory for pages that are saved and not yet stored, in bytes.
    pub memory_bytes: usize,
}

/// What a cut found of one rank. Its pages come through the sink.
#[derive(Clone, Debug)]
pub struct RankCut {
    /// The rank.
    pub rank: Rank,
    /// The checkpoint whose image differs in no other pages than `saved`; `None`: all pages are saved.
    pub parent: Option<Epoch>,
    /// The pages of the image. Some may be all zero.
    pub existing: PageSet,
    /// Those that are saved; the others are as in the parent.
    pub saved: PageSet,
}

/// How many pages of a region a checkpoint saved, and how many of them had changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Pages saved.
    pub saved: u64,
    /// Of these, such that differ from the checkpoint before.
    pub changed: u64,
}

/// Captures the ranks of this process, cut after cut. A process has one.
pub struct Capturer {
    tracking: Tracking,
    mode: CaptureMode,
    pub(super) tracker: Option<Uffd>,
    pub(super) guard: Option<Guard>,
    pool: Pool,
    /// Rounds of copy on write in a row that cost the ranks more than copying would have.
    lost_rounds: u32,
    /// Cuts that are to be copied aside because that costs the ranks less.
    copied_aside: u32,
    pub(super) ranks: BTreeMap<Rank, History>,
    /// Number of the last attempt to catch up.
    ticket: u64,
    description: String,
}

/// What earlier cuts of a rank leave for the next.
#[derive(Default)]
pub(super) struct History {
    pub(super) dirty: Dirty,
    /// The heap's pages that were live at the last cut. What is live anew counts as written, for it was not
    /// part of the image.
    pub(super) live: PageSet,
    pub(super) regions: BTreeMap<usize, Region>,
    /// While the rank is copied for a move.
    pub(super) followed: Option<Followed>,
    /// Regions that are catching up: the attempt, and the pages found to differ from the checkpoint once that is known.
    pub(super) catching_up: BTreeMap<usize, (u64, Option<PageSet>)>,
}

impl Capturer {
    /// Finds out what the kernel allows, and starts the threads that this takes.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        in_process(|| Self::new_in_process(options))
    }

    fn new_in_process(options: &Options) -> Self {
        let pool = Pool::new(options.memory_bytes);
        let (tracking, tracker, tracked_by) = choose_tracking(options.tracking);
        let (guard, saved_by) = match options.mode {
            CaptureMode::CopyAside => (None, "copying aside".to_owned()),
            CaptureMode::Auto | CaptureMode::CopyOnWrite => match start_guard(&pool) {
                Ok(guard) => (Some(guard), "copy on write".to_owned()),
                Err(error) => (
                    None,
                    format!(
                        "copying aside (no copy on write: userfaultfd for faults of the kernel is refused: {error})"
                    ),
                ),
            },
        };
        Self {
            tracking,
            mode: options.mode,
            tracker,
            guard,
            pool,
            lost_rounds: 0,
            copied_aside: 0,
            ranks: BTreeMap::new(),
            ticket: 0,
            description: format!(
                "changes are found by {tracked_by}; pages are saved by {saved_by}"
            ),
        }
    }

    /// How changes are found and pages saved, for the log.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether pages that are saved are to be compared with the checkpoint before.
    #[must_use]
    pub fn compares(&self) -> bool {
        self.tracking != Tracking::Off
    }

    /// Whether the kernel tells what was written, from a restore on.
    #[must_use]
    pub fn tracks(&self) -> bool {
        self.tracker.is_some()
    }

    /// What the next cut of a rank builds on.
    #[must_use]
    pub fn parent(&self, rank: Rank) -> Option<Epoch> {
        let history = self.ranks.get(&rank)?;
        history.dirty.parent().filter(|_| self.compares())
    }

    /// The memory that pages are saved into.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Bytes of the ranks' heaps that are live, touched or not.
    #[must_use]
    pub fn live_bytes(&self, slots: &[Slot]) -> usize {
        in_process(|| {
            let heaps = slots.iter().map(|slot| slot.live_ranges().heap);
            heaps.flatten().map(|range| range.len()).sum()
        })
    }

    /// Bytes that the next cut has to save, at most, as far as can be told before.
    #[must_use]
    pub fn saved_bytes_max(&self, slots: &[Slot]) -> usize {
        in_process(|| {
            let bytes = slots.iter().map(|slot| {
                let history = self.ranks.get(&slot.rank());
                let is_tracked = |index: &usize| {
                    history
                        .and_then(|history| history.regions.get(index))
                        .is_some_and(|region| region.watch == Watch::Tracked)
                };
                let live = slot.live_ranges();
                by_region(slot, &live.heap)
                    .iter()
                    .map(|(index, live)| {
                        let bytes: usize = live.iter().map(Range::len).sum();
                        // Where more of it is written, it will not be tracked any longer.
                        if is_tracked(index) { bytes / 4 } else { bytes }
                    })
                    .sum::<usize>()
            });
            bytes.sum()
        })
    }

    /// A rank came out of this checkpoint, to the last bit: nothing in its memory has been written since
    /// ([`crate::restore::RestoringSlot::finish`] says when).
    pub fn restored(&mut self, epoch: Epoch, slot: &Slot) {
        if self.tracking == Tracking::Off {
            return;
        }
        in_process(|| {
            let heap = slot.live_ranges().heap;
            let mut history = History {
                dirty: Dirty::new(Some(epoch)),
                live: page_set(slot, &heap),
                ..History::default()
            };
            if let Some(tracker) = &self.tracker {
                for (index, live) in by_region(slot, &heap) {
                    if track(tracker, slot, index, &live).is_ok() {
                        history.regions.insert(index, Region::tracked());
                    }
                }
            }
            self.ranks.insert(slot.rank(), history);
        });
    }

    /// Captures all ranks, which are stopped: their pages come through the sink, at once or while the ranks go on
    /// already, and [`Saved::All`] last. A round of an earlier cut that has not ended is given up.
    ///
    /// # Errors
    /// A rank is in a state that an image can't hold, or there is no memory. Pages may have gone through the sink
    /// nevertheless; the snapshot is to be given up.
    pub fn cut(
        &mut self,
        epoch: Epoch,
        slots: &[Slot],
        sink: &Sink,
    ) -> Result<Vec<RankCut>, CaptureError> {
        in_process(|| {
            self.give_up();
            for slot in slots {
                slot.check_state()?;
            }
            if let Some(slot) = slots.first() {
                check_threads(slot.rank())?;
            }
            let plans: Vec<_> = slots.iter().map(|slot| self.scan(epoch, slot)).collect();
            self.save(slots, &plans, sink)?;
            Ok(plans.into_iter().map(|plan| plan.cut).collect())
        })
    }

    /// The epoch is a checkpoint: the next cuts build on it.
    pub fn committed(&mut self, epoch: Epoch) {
        for history in self.ranks.values_mut() {
            history.dirty.committed(epoch);
        }
    }

    /// The epoch will not be a checkpoint. Nothing more is saved for it.
    pub fn aborted(&mut self, epoch: Epoch) {
        self.give_up();
        for history in self.ranks.values_mut() {
            history.dirty.aborted(epoch);
        }
    }

    /// There is nothing to build on any more: the next cut saves all pages.
    pub fn rebase(&mut self) {
        for history in self.ranks.values_mut() {
            history.dirty.rebase();
        }
    }

    /// A rank is not in this process any more. Should it come back, its next cut saves all pages.
    pub fn forget(&mut self, rank: Rank) {
        self.ranks.remove(&rank);
    }

    /// What a checkpoint showed about the regions of a rank (by page number divided by
    /// [`super::REGION_PAGES`]).
    pub fn observe(&mut self, rank: Rank, observations: &BTreeMap<u64, Observation>) {
        if let Some(history) = self.ranks.get_mut(&rank) {
            for (region, found) in observations {
                if let Some(region) = history.regions.get_mut(&(*region as usize)) {
                    region.observe(found.saved, found.changed);
                }
            }
        }
    }

    /// Begins to track regions that have calmed down. To be called with the ranks stopped, when the checkpoint that
    /// the next cut builds on is known and before that cut. Each region that is returned is to be compared with that checkpoint;
    /// what differs goes to [`Capturer::caught_up`].
    pub fn catch_up(&mut self, slots: &[Slot]) -> Vec<CatchUp> {
        // Without copy on write a region is copied at a cut anyway, and can be tracked from there.
        let saving = self.guard.as_ref().is_none_or(Guard::is_saving);
        if saving || self.tracking != Tracking::Auto {
            return Vec::new();
        }
        in_process(|| {
            let mut begun = Vec::new();
            for slot in slots {
                self.catch_up_in(slot, &mut begun);
            }
            begun
        })
    }

    fn catch_up_in(&mut self, slot: &Slot, begun: &mut Vec<CatchUp>) {
        let (Some(tracker), Some(guard)) = (&self.tracker, &self.guard) else {
            return;
        };
        let Some(history) = self.ranks.get_mut(&slot.rank()) else {
            return;
        };
        if history.dirty.parent().is_none() || !history.regions.values().any(Region::wants_tracking)
        {
            return;
        }
        for (index, live) in by_region(slot, &slot.live_ranges().heap) {
            let Some(region) = history.regions.get_mut(&index) else {
                continue;
            };
            if begun.len() >= CATCH_UPS || !region.wants_tracking() {
                continue;
            }
            untrack(guard.uffd(), slot, index);
            let Ok(existing) = track(tracker, slot, index, &live) else {
                untrack(tracker, slot, index);
                region.give_up();
                continue;
            };
            region.catch_up();
            self.ticket += 1;
            history.catching_up.insert(index, (self.ticket, None));
            begun.push(CatchUp {
                region: index,
                ticket: self.ticket,
                pages: LivePages {
                    rank: slot.rank(),
                    slot: slot.base(),
                    pages: existing,
                },
            });
        }
    }

    /// The pages of a region that differ from the checkpoint which the next cut builds on. Ignored where it comes too late.
    pub fn caught_up(&mut self, region: &CatchUp, differing: PageSet) {
        if let Some(history) = self.ranks.get_mut(&region.pages.rank)
            && let Some((ticket, found)) = history.catching_up.get_mut(&region.region)
            && *ticket == region.ticket
        {
            *found = Some(differing);
        }
    }

    /// Whether copy on write costs the ranks less than copying aside, by what it last did. Without a free processor
    /// it does not: then all that others copy is taken from the ranks, too.
    fn pays_on_write(&mut self) -> bool {
        if let Some(cost) = self.guard.as_ref().and_then(Guard::take_cost) {
            let lost = cost.waited_ns > LOST_FACTOR * cost.copying_ns;
            self.lost_rounds = if lost { self.lost_rounds + 1 } else { 0 };
            if self.lost_rounds >= LOST_ROUNDS_MAX {
                self.copied_aside = TRY_AGAIN_CUTS;
            }
        }
        let pays = self.copied_aside == 0;
        self.copied_aside = self.copied_aside.saturating_sub(1);
        pays
    }

    fn give_up(&self) {
        if let Some(guard) = &self.guard {
            guard.cancel();
        }
    }

    /// Finds out which pages a rank has and which of them were written.
    fn scan(&mut self, epoch: Epoch, slot: &Slot) -> Plan {
        // SAFETY: the rank, the heap's owner, is stopped, and this is its thread.
        unsafe { slot.header().heap.drain_remote() };
        let live = slot.live_ranges();
        let compares = self.compares();
        let history = self.ranks.entry(slot.rank()).or_default();
        let mut existing = Vec::new();
        let mut written = Vec::new();

        let unwatched: Vec<_> = pagemap::present(&live.unwatched);
        existing.extend(unwatched.iter().map(|range| pages(slot, range)));
        written.extend(unwatched.iter().map(|range| pages(slot, range)));

        let live_pages = page_set(slot, &live.heap);
        let live_by_region = by_region(slot, &live.heap);
        for (&index, live) in &live_by_region {
            let region = history.regions.entry(index).or_default();
            if region.watch == Watch::CatchingUp
                && let Some(tracker) = &self.tracker
            {
                match history.catching_up.remove(&index) {
                    Some((_, Some(differing))) => {
                        written.extend(differing.ranges().iter().cloned());
                        region.track();
                    }
                    _ => {
                        untrack(tracker, slot, index);
                        region.miss();
                    }
                }
            }
            let tracked = match (region.watch, &self.tracker) {
                (Watch::Tracked, Some(tracker)) => {
                    match scan_tracked(slot, live, &mut existing, &mut written) {
                        Ok(()) => true,
                        // Pages of the heap were moved or mapped anew, which ends their tracking.
                        Err(_) => {
                            if track(tracker, slot, index, live).is_err() {
                                untrack(tracker, slot, index);
                                region.give_up();
                            }
                            false
                        }
                    }
                }
                _ => false,
            };
            if !tracked {
                let present = pagemap::present(live);
                existing.extend(present.iter().map(|range| pages(slot, range)));
                written.extend(live.iter().map(|range| pages(slot, range)));
            }
        }
        // Regions of which nothing is live any more.
        for index in std::mem::take(&mut history.catching_up).into_keys() {
            if let (Some(tracker), Some(region)) = (&self.tracker, history.regions.get_mut(&index))
            {
                untrack(tracker, slot, index);
                region.miss();
            }
        }
        written.extend(
            live_pages
                .difference(&history.live)
                .ranges()
                .iter()
                .cloned(),
        );
        history.live = live_pages;

        let existing: PageSet = existing.into_iter().collect();
        let since = history.dirty.cut(epoch, written.into_iter().collect());
        let parent = since.parent.filter(|_| compares);
        let saved = match parent {
            Some(_) => since.pages.intersection(&existing),
            None => existing.clone(),
        };
        Plan {
            live: live_by_region,
            existing: pages_by_region(slot, &existing),
            saved: pages_by_region(slot, &saved),
            cut: RankCut {
                rank: slot.rank(),
                parent,
                existing,
                saved,
            },
        }
    }

    /// Saves what the plans say: copies aside, or protects and leaves the rest to the guard.
    fn save(&mut self, slots: &[Slot], plans: &[Plan], sink: &Sink) -> Result<(), CaptureError> {
        let dense: u64 = plans
            .iter()
            .map(|plan| plan.dense_pages(&self.ranks[&plan.cut.rank]))
            .sum();
        let on_write = match self.mode {
            CaptureMode::CopyOnWrite => true,
            CaptureMode::CopyAside => false,
            CaptureMode::Auto => dense >= COPY_ON_WRITE_PAGES_MIN && self.pays_on_write(),
        };
        let guard = self.guard.as_ref().filter(|_| on_write);
        let mut units = Vec::new();
        for (rank, (slot, plan)) in slots.iter().zip(plans).enumerate() {
            let mut aside = Aside::new(&self.pool, sink, rank, slot);
            let history = self.ranks.get_mut(&plan.cut.rank);
            let regions = &mut history.expect("made by the scan").regions;
            if let Some(saved) = plan.saved.get(&UNWATCHED) {
                aside.copy_all(saved)?;
            }
            for (&index, live) in &plan.live {
                let region = regions.get_mut(&index).expect("made by the scan");
                let empty = PageSet::new();
                let saved = plan.saved.get(&index).unwrap_or(&empty);
                let existing = plan.existing.get(&index).unwrap_or(&empty).pages();
                if region.is_too_busy(existing, saved.pages())
                    && self.tracking == Tracking::Auto
                    && let Some(tracker) = &self.tracker
                {
                    untrack(tracker, slot, index);
                    region.give_up();
                } else if region.watch == Watch::Dense
                    && let Some(tracker) = &self.tracker
                    && (self.tracking == Tracking::Kernel
                        || (self.guard.is_none() && region.wants_tracking()))
                {
                    // All of it is copied now, whether it is to be tracked or not.
                    if let Some(guard) = &self.guard {
                        untrack(guard.uffd(), slot, index);
                    }
                    if track(tracker, slot, index, live).is_ok() {
                        region.track();
                    } else {
                        region.give_up();
                    }
                }
                match guard {
                    Some(guard) if region.watch == Watch::Dense && !saved.is_empty() => {
                        let new = units_of(rank, slot, saved);
                        match protect(guard.uffd(), slot, index, &new) {
                            Ok(()) => units.extend(new),
                            Err(error) => {
                                tracing::debug!(%error, "a region is copied aside");
                                let _ = guard.uffd().unregister(&region_range(slot, index));
                                aside.copy_all(saved)?;
                            }
                        }
                    }
                    _ => aside.copy_all(saved)?,
                }
            }
            aside.finish();
        }
        match &self.guard {
            Some(guard) => guard.begin(units, sink.clone()),
            None => sink(Saved::All(Felt::default())),
        }
        Ok(())
    }
}

impl Drop for Capturer {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// What is to be saved of one rank.
struct Plan {
    cut: RankCut,
    /// The addresses of the heap that are live, by region.
    live: BTreeMap<usize, Vec<Range<usize>>>,
    existing: BTreeMap<usize, PageSet>,
    saved: BTreeMap<usize, PageSet>,
}

impl Plan {
    fn dense_pages(&self, history: &History) -> u64 {
        self.saved
            .iter()
            .filter(|(index, _)| {
                history
                    .regions
                    .get(index)
                    .is_some_and(|region| region.watch == Watch::Dense)
            })
            .map(|(_, pages)| pages.pages())
            .sum()
    }
}

/// What the tracking asked for comes to on this kernel, and how that is called.
fn choose_tracking(asked: Tracking) -> (Tracking, Option<Uffd>, String) {
    let digests = "digests of pages".to_owned();
    match asked {
        Tracking::Off => (
            asked,
            None,
            "nothing: every checkpoint holds all pages".to_owned(),
        ),
        Tracking::Hash => (asked, None, digests),
        Tracking::Auto | Tracking::Kernel => {
            match Uffd::asynchronous().and_then(|uffd| probe(&uffd).map(|()| uffd)) {
                Ok(uffd) => {
                    let how = "the kernel (userfaultfd, asynchronous write protection)".to_owned();
                    (asked, Some(uffd), how)
                }
                Err(error) => {
                    let why = format!("{digests} (the kernel does not track writes: {error})");
                    (Tracking::Hash, None, why)
                }
            }
        }
    }
}

fn start_guard(pool: &Pool) -> io::Result<Guard> {
    let uffd = Uffd::synchronous()?;
    debug_assert!(uffd.handles_kernel());
    Guard::start(uffd, pool.clone())
}

/// Has the kernel track writes to a region from now on; all that is live counts as not written. Gives the pages that
/// exist.
pub(super) fn track(
    tracker: &Uffd,
    slot: &Slot,
    index: usize,
    live: &[Range<usize>],
) -> io::Result<Vec<Range<u64>>> {
    if is_incoming(slot.rank()) {
        // Its memory is under another userfaultfd.
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    tracker.register(&region_range(slot, index))?;
    let mut existing = Vec::new();
    scan_tracked(slot, live, &mut existing, &mut Vec::new())?;
    Ok(existing)
}

pub(super) fn untrack(uffd: &Uffd, slot: &Slot, index: usize) {
    // Fails where nothing of it was registered.
    let _ = uffd.unregister(&region_range(slot, index));
}

pub(super) fn scan_tracked(
    slot: &Slot,
    live: &[Range<usize>],
    existing: &mut Vec<Range<u64>>,
    written: &mut Vec<Range<u64>>,
) -> io::Result<()> {
    let before = (existing.len(), written.len());
    for range in live {
        match pagemap::scan_tracked(range.clone()) {
            Ok(found) => {
                existing.extend(found.existing.iter().map(|range| pages(slot, range)));
                written.extend(found.written.iter().map(|range| pages(slot, range)));
            }
            Err(error) => {
                existing.truncate(before.0);
                written.truncate(before.1);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Protects units of one region, which lie in ascending order.
fn protect(uffd: &Uffd, slot: &Slot, index: usize, units: &[Unit]) -> io::Result<()> {
    let mut registered = false;
    let mut next = 0;
    while next < units.len() {
        let start = units[next].protected.start;
        let mut end = units[next].protected.end;
        next += 1;
        while next < units.len() && units[next].protected.start == end {
            end = units[next].protected.end;
            next += 1;
        }
        let protected = uffd.protect(&(start..end), true);
        if protected.is_err() && !registered {
            // New, or mapped anew since.
            uffd.register(&region_range(slot, index))?;
            registered = true;
            uffd.protect(&(start..end), true)?;
        } else {
            protected?;
        }
    }
    Ok(())
}
