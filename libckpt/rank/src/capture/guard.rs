//! Copy on write: pages that a cut has to save while the ranks go on.
//!
//! At the cut the pages are write-protected, which takes microseconds where they are huge pages. Afterwards
//! they are saved in units of 2 MiB, each once, by whoever comes first:
//!
//! - the *saver*, a thread that goes through all units in the background, ahead of a rank that writes one after the other;
//! - the *handler*, a thread that is told by the kernel that a rank waits in a write to a unit;
//! - the rank itself, where its heap is about to give pages back or to move them, which no protection
//!   would tell ([`before_change`]).
//!
//! Whoever has saved a unit takes its protection off and hands the block on. Saving 2 MiB at once and not a page
//! makes the faults of a rank that writes everything cost what copying costs.
//!
//! The handler allocates nothing from a slot and touches no slot but for reading. Where all blocks of the budget
//! are in use it waits, and the rank with it, until the packers give one back; these need nothing of the
//! ranks.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::control::Felt;

use super::pool::{BLOCK_BYTES, Need, Pool};
use super::{Saved, Sink};
use crate::context::in_process;
use crate::layout::PAGE_BYTES;
use crate::threads::{Urgency, library_thread, set_urgency};
use crate::uffd::{Message, Uffd};

/// Size of a unit in bytes, and its alignment: a huge page stays one if it is unprotected as a whole.
pub(super) const UNIT_BYTES: usize = BLOCK_BYTES;

/// What a fault costs a rank before the handler knows of it and after it has done its part, in nanoseconds: the fault
/// and two switches to another thread.
const SWITCH_NS: u64 = 20_000;

/// Faults that are taken from the kernel at once.
const MESSAGES: usize = 16;

const PENDING: u8 = 0;
const BUSY: u8 = 1;
const DONE: u8 = 2;

/// In [`Round::ahead`].
const NOWHERE: usize = usize::MAX;

/// Whether a round is under way, for the heap to ask before it takes a lock.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// The guard of the process.
static GUARD: Mutex<Option<Arc<Shared>>> = Mutex::new(None);

/// Pages of one rank within 2 MiB, protected until they are saved.
#[derive(Debug)]
pub(super) struct Unit {
    /// By index among the slots of the cut.
    pub(super) rank: usize,
    /// First address of the rank's slot.
    pub(super) slot: usize,
    /// The addresses that were protected.
    pub(super) protected: Range<usize>,
    /// Those of them that are to be saved: whole pages, ascending.
    pub(super) pages: Vec<Range<usize>>,
    state: AtomicU8,
}

impl Unit {
    pub(super) fn new(
        rank: usize,
        slot: usize,
        protected: Range<usize>,
        pages: Vec<Range<usize>>,
    ) -> Self {
        Self {
            rank,
            slot,
            protected,
            pages,
            state: AtomicU8::new(PENDING),
        }
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    /// Waits for whoever saves it at this moment: as long as copying takes.
    fn wait_until_saved(&self) {
        while self.is(BUSY) {
            std::thread::yield_now();
        }
    }

    fn claim(&self) -> bool {
        self.state
            .compare_exchange(PENDING, BUSY, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// The units of one cut.
struct Round {
    /// By address.
    units: Vec<Unit>,
    left: AtomicUsize,
    /// The unit after the one that a rank last waited for: a rank that goes through its memory comes there next. [`NOWHERE`]
    /// when the saver has taken it up.
    ahead: AtomicUsize,
    sink: Sink,
    cancelled: AtomicBool,
    faults: AtomicU64,
    waited_ns: AtomicU64,
    longest_ns: AtomicU64,
    /// Processor time that copying took, whoever did it.
    copied_ns: AtomicU64,
}

/// What a round cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    /// What the ranks waited, as far as it can be told, in nanoseconds.
    pub(super) waited_ns: u64,
    /// What they would have waited if all had been copied while they stand still.
    pub(super) copying_ns: u64,
}

impl Round {
    fn new(units: Vec<Unit>, sink: Sink) -> Self {
        Self {
            left: AtomicUsize::new(units.len()),
            units,
            ahead: AtomicUsize::new(NOWHERE),
            sink,
            cancelled: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
            copied_ns: AtomicU64::new(0),
        }
    }

    fn overlapping(&self, range: &Range<usize>) -> &[Unit] {
        let first = self
            .units
            .partition_point(|unit| unit.protected.end <= range.start);
        let end = self
            .units
            .partition_point(|unit| unit.protected.start < range.end);
        &self.units[first..end.max(first)]
    }

    /// The unit that a page is in.
    fn find(&self, page: usize) -> Option<usize> {
        let index = self
            .units
            .partition_point(|unit| unit.protected.end <= page);
        let found = self.units.get(index)?;
        found.protected.contains(&page).then_some(index)
    }

    /// What the saver is to save next, after it has come to `at`.
    fn next_pending(&self, at: usize) -> Option<usize> {
        let ahead = self.ahead.swap(NOWHERE, Ordering::Relaxed);
        let from = if ahead == NOWHERE { at } else { ahead }.min(self.units.len());
        (from..self.units.len())
            .chain(0..from)
            .find(|&index| self.units[index].is(PENDING))
    }

    fn felt(&self) -> Felt {
        let us = |ns: &AtomicU64| ns.load(Ordering::Relaxed) / 1000;
        Felt {
            faults: self.faults.load(Ordering::Relaxed),
            waited_us: us(&self.waited_ns),
            longest_us: us(&self.longest_ns),
        }
    }

    fn cost(&self) -> Cost {
        let faults = self.faults.load(Ordering::Relaxed);
        Cost {
            waited_ns: self.waited_ns.load(Ordering::Relaxed) + faults * SWITCH_NS,
            copying_ns: self.copied_ns.load(Ordering::Relaxed),
        }
    }

    fn note_wait(&self, waited: Duration) {
        let ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.waited_ns.fetch_add(ns, Ordering::Relaxed);
        self.longest_ns.fetch_max(ns, Ordering::Relaxed);
    }
}

/// Copy on write for the slots of this process.
pub(super) struct Guard(Arc<Shared>);

struct Shared {
    uffd: Uffd,
    pool: Pool,
    round: Mutex<Option<Arc<Round>>>,
    begun: Condvar,
    /// Of the last round that ended.
    cost: Mutex<Option<Cost>>,
}

impl Guard {
    /// Starts the two threads.
    ///
    /// # Errors
    /// When they can't be started.
    pub(super) fn start(uffd: Uffd, pool: Pool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            uffd,
            pool,
            round: Mutex::new(None),
            begun: Condvar::new(),
            cost: Mutex::new(None),
        });
        let (handler, saver) = (shared.clone(), shared.clone());
        library_thread("ckpt-fault", move || handler.handle_faults())?;
        library_thread("ckpt-saver", move || saver.save_in_the_background())?;
        *lock(&GUARD) = Some(shared.clone());
        Ok(Self(shared))
    }

    /// Whether pages are still to be saved.
    pub(super) fn is_saving(&self) -> bool {
        lock(&self.0.round).is_some()
    }

    /// What the last round cost, if one has ended since this was asked.
    pub(super) fn take_cost(&self) -> Option<Cost> {
        lock(&self.0.cost).take()
    }

    /// The descriptor that ranges are to be registered with.
    pub(super) fn uffd(&self) -> &Uffd {
        &self.0.uffd
    }

    /// Protects nothing by itself: the units are protected already, the ranks are stopped. From here on
    /// they may run. `units` are in the order of their addresses.
    pub(super) fn begin(&self, units: Vec<Unit>, sink: Sink) {
        debug_assert!(units.is_sorted_by_key(|unit| unit.protected.start));
        let round = Arc::new(Round::new(units, sink));
        if round.units.is_empty() {
            (round.sink)(Saved::All(round.felt()));
            return;
        }
        *lock(&self.0.round) = Some(round);
        ACTIVE.store(true, Ordering::SeqCst);
        self.0.begun.notify_all();
    }

    /// Saves nothing more of the round under way, and takes all protection off.
    pub(super) fn cancel(&self) {
        ACTIVE.store(false, Ordering::SeqCst);
        let round = lock(&self.0.round).take();
        if let Some(round) = round {
            round.cancelled.store(true, Ordering::SeqCst);
            for unit in &round.units {
                // One that is being saved is unprotected by whoever does it.
                if unit.claim() {
                    self.0.finish(unit);
                }
                unit.wait_until_saved();
            }
        }
    }
}

impl Shared {
    fn current(&self) -> Option<Arc<Round>> {
        lock(&self.round).clone()
    }

    /// Saves a unit, if nobody else has or does.
    fn save(&self, round: &Round, unit: &Unit, need: Need) {
        if !unit.is(PENDING) {
            return;
        }
        // Before the unit is claimed: nobody is to wait for somebody who waits for memory.
        let block = self.pool.take(need);
        if !unit.claim() {
            return;
        }
        let begin = processor_time();
        let outcome = block.map(|mut block| {
            for range in &unit.pages {
                let first = ((range.start - unit.slot) / PAGE_BYTES) as u64;
                // SAFETY: pages of a mapped slot, which are write-protected: nobody writes to them before this
                // has ended. The round ends before its slots do.
                unsafe {
                    block.push_pages(
                        first,
                        std::ptr::with_exposed_provenance(range.start),
                        range.len() / PAGE_BYTES,
                    );
                }
            }
            block
        });
        let copied_ns = processor_time().saturating_sub(begin);
        round.copied_ns.fetch_add(copied_ns, Ordering::Relaxed);
        self.finish(unit);
        if round.cancelled.load(Ordering::SeqCst) {
            return;
        }
        match outcome {
            Ok(block) => (round.sink)(Saved::Block {
                rank: unit.rank,
                block,
            }),
            Err(error) => (round.sink)(Saved::Failed(format!(
                "no memory for the copy of pages that are about to change ({error})"
            ))),
        }
        if round.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            *lock(&self.cost) = Some(round.cost());
            (round.sink)(Saved::All(round.felt()));
            self.end(round);
        }
    }

    /// Lets ranks write to a unit again. Only when it is unprotected it is done: a later round may protect it.
    fn finish(&self, unit: &Unit) {
        self.unprotect(&unit.protected);
        unit.state.store(DONE, Ordering::Release);
    }

    fn unprotect(&self, range: &Range<usize>) {
        if let Err(error) = self.uffd.protect(range, false) {
            // Part of it may not be registered any more, because the heap has put a new mapping there.
            for start in range.clone().step_by(PAGE_BYTES) {
                let _ = self.uffd.protect(&(start..start + PAGE_BYTES), false);
            }
            tracing::debug!(%error, ?range, "a unit was not unprotected as a whole");
        }
    }

    fn end(&self, ended: &Round) {
        let mut round = lock(&self.round);
        if round
            .as_ref()
            .is_some_and(|round| std::ptr::eq(&raw const **round, ended))
        {
            *round = None;
            ACTIVE.store(false, Ordering::SeqCst);
        }
    }

    fn save_in_the_background(&self) {
        set_urgency(Urgency::Background);
        loop {
            let round = {
                let mut round = lock(&self.round);
                loop {
                    match &*round {
                        Some(found) if found.units.iter().any(|unit| unit.is(PENDING)) => {
                            break found.clone();
                        }
                        _ => {
                            round = self
                                .begun
                                .wait(round)
                                .unwrap_or_else(PoisonError::into_inner);
                        }
                    }
                }
            };
            let mut at = 0;
            while let Some(index) = round.next_pending(at) {
                if round.cancelled.load(Ordering::Relaxed) {
                    break;
                }
                self.save(&round, &round.units[index], Need::Background);
                at = index + 1;
            }
        }
    }

    fn handle_faults(&self) {
        let mut messages = [Message::default(); MESSAGES];
        let mut stray = None;
        loop {
            let count = match self.uffd.read(&mut messages) {
                Ok(count) => count,
                Err(error) => {
                    // A rank that writes would wait for ever.
                    eprintln!("libckpt: page faults can't be read ({error}); this process ends");
                    crate::process::end_now(protocol::control::exit::LIBRARY);
                }
            };
            let told = Instant::now();
            for address in messages[..count].iter().filter_map(Message::fault) {
                let page = address & !(PAGE_BYTES - 1);
                if self.save_for(page, told) {
                    continue;
                }
                // Mostly a rank that is not waiting any more: the page was saved and unprotected between its
                // fault and now, and may be protected for a later cut already. One that comes back waits.
                if stray.replace(page) == Some(page) {
                    self.unprotect(&(page..page + PAGE_BYTES));
                }
                self.wake(page);
            }
        }
    }

    /// Saves the unit that a rank waits for, and wakes it. False if there is no such unit.
    fn save_for(&self, page: usize, told: Instant) -> bool {
        let Some(round) = self.current() else {
            return false;
        };
        let Some(index) = round.find(page) else {
            return false;
        };
        // While this one is saved here.
        round.ahead.store(index + 1, Ordering::Relaxed);
        let unit = &round.units[index];
        self.save(&round, unit, Need::Rank);
        unit.wait_until_saved();
        self.wake(page);
        round.note_wait(told.elapsed());
        true
    }

    fn wake(&self, page: usize) {
        if let Err(error) = self.uffd.wake(&(page..page + PAGE_BYTES)) {
            tracing::debug!(%error, page, "a waiting rank was not woken");
        }
    }
}

/// To be called before pages of a slot are given back, moved or mapped over, in any context: if a cut still has to
/// save them, that is done now.
pub(crate) fn before_change(range: &Range<usize>) {
    if !ACTIVE.load(Ordering::SeqCst) {
        return;
    }
    in_process(|| {
        let Some(shared) = lock(&GUARD).clone() else {
            return;
        };
        let Some(round) = shared.current() else {
            return;
        };
        for unit in round.overlapping(range) {
            shared.save(&round, unit, Need::Rank);
            unit.wait_until_saved();
        }
    });
}

/// Processor time of this thread in nanoseconds.
fn processor_time() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes into a local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they hold is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two runs of two units, with a gap between.
    fn round() -> Round {
        let units = [1, 2, 4, 5].map(|at| {
            let protected = at * UNIT_BYTES..(at + 1) * UNIT_BYTES;
            Unit::new(0, 0, protected.clone(), vec![protected])
        });
        Round::new(units.into(), Arc::new(|_| {}))
    }

    #[test]
    fn a_page_is_found_in_its_unit() {
        let round = round();
        let found = [0, 1, 2, 3, 4, 5, 6].map(|at| round.find(at * UNIT_BYTES));
        assert_eq!(
            found,
            [None, Some(0), Some(1), None, Some(2), Some(3), None]
        );
        assert_eq!(round.find(3 * UNIT_BYTES - PAGE_BYTES), Some(1));
    }

    #[test]
    fn the_saver_goes_ahead_of_a_rank_that_waited_and_leaves_nothing_out() {
        let round = round();
        let mut order = Vec::new();
        let mut at = 0;
        while let Some(index) = round.next_pending(at) {
            assert!(round.units[index].claim());
            order.push(index);
            at = index + 1;
            if order == [0] {
                // The rank waits for the third unit, which the handler saves.
                assert!(round.units[2].claim());
                round.ahead.store(3, Ordering::Relaxed);
            }
        }
        assert_eq!(order, [0, 3, 1]);
        round.ahead.store(round.units.len(), Ordering::Relaxed);
        assert_eq!(round.next_pending(at), None, "waited for the last one");
    }
}
