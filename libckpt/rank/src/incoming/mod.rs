//! A slot whose pages come while its rank runs already: whoever touches a page that is not here waits until it is.
//!
//! The slot's memory is under a userfaultfd in its missing mode from before anything is in it. One thread does all the rest
//! ([`Incoming`]): it hears of waiting threads, fills pages, and hears of memory that is given back. So there is no order
//! between these to be wrong about:
//!
//! - A page of the image is filled once, unless its memory was given back before, and then never: whoever gives memory back waits until this thread
//!   has heard of it, and the kernel fills nothing meanwhile (`EAGAIN`).
//! - Any other page is zeros.
//! - Pages that are moved elsewhere in the slot (`mremap`) are waited for first (`before_move`); memory that is mapped anew is none of the
//!   userfaultfd's, and is not filled (`ENOENT`).
//!
//! Where the slot asks for huge pages, 2 MiB are filled at once: read into a huge page aside, which then goes there as a whole
//! (`UFFDIO_MOVE`). Filled page by page the slot would be of small pages, and each of them takes longer to be had than to be copied.
//!
//! A mapping is under one userfaultfd at a time. So no rank is captured, and no write to it tracked, before all of it is here
//! ([`crate::capture::CaptureError::Incoming`]).

mod pages;
mod staging;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::ids::Rank;

pub use self::pages::Pages;
use self::staging::Staging;
use crate::heap;
use crate::hosted;
use crate::layout::{PAGE_BYTES, Regions};
use crate::restore::RestoringSlot;
use crate::uffd::{Message, Uffd};

/// Memory that is filled at once where there are huge pages, in bytes.
const UNIT_BYTES: usize = 2 << 20;
const UNIT_PAGES: u64 = (UNIT_BYTES / PAGE_BYTES) as u64;

/// With fewer pages of the image than this, a unit is filled page by page: a huge page costs about as much as so many small ones.
const UNIT_PAGES_LEAST: u64 = 128;

/// Pages that are filled at once elsewhere.
const PIECE_PAGES: u64 = 16;

/// Of a used stack, so many pages are filled before the rank runs: the innermost frames.
const STACK_PAGES: u64 = 64;

/// Messages that are taken from the kernel at once.
const MESSAGES: usize = 16;

/// Why a rank can't go on that runs already.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// This process may not have, or this kernel lacks, what it takes.
    #[error(
        "page faults of system calls can't be handled in this process (userfaultfd: {source}); \
         set the sysctl vm.unprivileged_userfaultfd to 1 or give it access to /dev/userfaultfd"
    )]
    Unavailable {
        /// What the kernel says.
        source: io::Error,
    },
    /// The image has a page that no rank has.
    #[error(
        "the image of {rank} holds pages {first} to {last}, which are no part of a rank's memory"
    )]
    OutOfRange {
        /// The rank.
        rank: Rank,
        /// First page.
        first: u64,
        /// Last page.
        last: u64,
    },
    /// The image has no header.
    #[error("the image of {rank} has no header")]
    NoHeader {
        /// The rank.
        rank: Rank,
    },
    /// A page was there that had not come.
    #[error("page {page} of {rank} was there before it had come")]
    There {
        /// The rank.
        rank: Rank,
        /// The page.
        page: u64,
    },
    /// A page can't be had from where it is.
    #[error("{0}")]
    Source(String),
    /// The kernel refuses.
    #[error("page faults can't be handled ({source})")]
    System {
        /// What it says.
        #[from]
        source: io::Error,
    },
}

/// Fills memory with pages from where they are, the first of which has this number.
pub type Read<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), String> + 'a;

/// The pages of a slot that have not come. To be dropped before the slot is; then what has not come is zeros.
#[derive(Debug)]
pub struct Incoming {
    rank: Rank,
    /// First address of the slot.
    base: usize,
    regions: Regions,
    uffd: Uffd,
    /// Under the userfaultfd, by address.
    registered: [Range<usize>; 2],
    /// Units of huge pages, by number of their first page.
    huge: Range<u64>,
    /// Where the stack's pages are.
    stack: Range<u64>,
    /// End of what is before the blocks of the heap.
    tables_end: u64,
    missing: Pages,
    end: u64,
    /// Units that something was put into.
    touched: Pages,
    staging: Option<Staging>,
    /// Pages that somebody waits for and nobody was told of.
    waited_for: VecDeque<u64>,
    /// Such that were told of by [`Incoming::next_fault`], and have not come.
    told: BTreeSet<u64>,
}

impl Incoming {
    /// Takes a slot over in which nothing is yet.
    ///
    /// # Errors
    /// [`IncomingError::Unavailable`], and those of the system.
    pub fn new(slot: &RestoringSlot) -> Result<Self, IncomingError> {
        let opened = Uffd::missing().map_err(|source| IncomingError::Unavailable { source });
        let (uffd, takes_over) = opened?;
        let (base, regions) = (slot.base(), slot.regions());
        let at = |offset: u64| base + offset as usize;
        let registered = regions.of_images().map(|part| at(part.start)..at(part.end));
        for range in &registered {
            uffd.register_missing(range)?;
        }
        let page = |address: usize| ((address - base) / PAGE_BYTES) as u64;
        let heap_bytes = (regions.heap.end - regions.heap.start) as usize;
        let parts = heap::places(at(regions.heap.start), heap_bytes);
        let pages = regions.end_guard.end / PAGE_BYTES as u64;
        lock().insert(slot.rank());
        COUNT.fetch_add(1, Ordering::SeqCst);
        Ok(Self {
            rank: slot.rank(),
            base,
            regions: regions.clone(),
            uffd,
            registered,
            huge: page(parts.huge.start)..page(parts.huge.end) / UNIT_PAGES * UNIT_PAGES,
            stack: page(at(regions.stack.start))..page(at(regions.stack.end)),
            tables_end: page(parts.tables_end),
            missing: Pages::none_of(pages),
            end: 0,
            touched: Pages::none_of(pages / UNIT_PAGES),
            staging: takes_over.then(Staging::new).and_then(Result::ok),
            waited_for: VecDeque::new(),
            told: BTreeSet::new(),
        })
    }

    /// Tells which pages come. Others are zeros.
    ///
    /// # Errors
    /// [`IncomingError::OutOfRange`], [`IncomingError::NoHeader`].
    pub fn expect(&mut self, image: &[Range<u64>]) -> Result<(), IncomingError> {
        for range in image {
            if self.regions.image_bytes(range).is_none() {
                return Err(IncomingError::OutOfRange {
                    rank: self.rank,
                    first: range.start,
                    last: range.end.saturating_sub(1),
                });
            }
            self.missing.insert(range);
            self.end = self.end.max(range.end);
        }
        // Whoever brings the pages will look at it, and nobody would bring it.
        match self.missing.contains(0) {
            true => Ok(()),
            false => Err(IncomingError::NoHeader { rank: self.rank }),
        }
    }

    /// Pages to fill before the rank runs, because that takes less time than to wait for each: header, innermost frames, and the
    /// heap's tables. They are few, however large the image is.
    #[must_use]
    pub fn first(&self) -> Vec<Range<u64>> {
        let before = self.missing.runs_in(0..self.stack.start);
        let mut left = STACK_PAGES;
        let stack = self.missing.runs_in(self.stack.clone()).map_while(|run| {
            let pages = left.min(run.end - run.start);
            left -= pages;
            (pages > 0).then(|| run.start..run.start + pages)
        });
        let tables = self.missing.runs_in(self.stack.end..self.tables_end);
        before.chain(stack).chain(tables).collect()
    }

    /// How many pages have not come.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.missing.count()
    }

    /// Whether one of these pages has not come.
    #[must_use]
    pub fn is_missing(&self, pages: &Range<u64>) -> bool {
        self.missing.first_in(pages).is_some()
    }

    /// The next page from this one on, and again from the first, that has not come.
    #[must_use]
    pub fn next_missing(&self, from: u64) -> Option<u64> {
        let after = self.missing.first_in(&(from..self.end));
        after.or_else(|| self.missing.first_in(&(0..from)))
    }

    /// Waits until somebody waits for a page, or for a millisecond.
    pub fn wait(&self) {
        let mut poll = libc::pollfd {
            fd: self.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, 1) };
    }

    /// Whether somebody waits for a page that was told and has not come.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        !self.told.is_empty()
    }

    /// A page that somebody waits for and that has not come, told once. Whoever waits for another page gets zeros. `None` when nobody
    /// waits.
    ///
    /// # Errors
    /// Those of the system.
    pub fn next_fault(&mut self) -> Result<Option<u64>, IncomingError> {
        loop {
            while let Some(page) = self.waited_for.pop_front() {
                if !self.missing.contains(page) {
                    self.give_zeros(page)?;
                } else if self.told.insert(page) {
                    return Ok(Some(page));
                }
            }
            if self.take_messages()? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads and fills what has not come of the memory around a page, and tells up to which page.
    ///
    /// # Errors
    /// What `read` says, and those of the system.
    pub fn fill_around(&mut self, page: u64, read: &mut Read<'_>) -> Result<u64, IncomingError> {
        let unit = page / UNIT_PAGES;
        let unit_pages = unit * UNIT_PAGES..(unit + 1) * UNIT_PAGES;
        if self.is_fresh(unit) && self.fill_unit(unit, read)? {
            return Ok(unit_pages.end);
        }
        let start = page / PIECE_PAGES * PIECE_PAGES;
        let piece = start..start + PIECE_PAGES;
        self.fill_pages(&piece, read)?;
        Ok(piece.end)
    }

    /// Reads and fills what has not come of these pages, one by one.
    ///
    /// # Errors
    /// As [`Incoming::fill_around`].
    pub fn fill_pages(
        &mut self,
        pages: &Range<u64>,
        read: &mut Read<'_>,
    ) -> Result<(), IncomingError> {
        let mut bytes = Vec::new();
        let mut at = pages.start;
        while let Some(run) = self.missing.run_in(&(at..pages.end)) {
            let run = run.start..run.end.min(run.start + UNIT_PAGES);
            bytes.resize((run.end - run.start) as usize * PAGE_BYTES, 0);
            read(run.start, &mut bytes).map_err(IncomingError::Source)?;
            self.fill(run.start, &bytes)?;
            at = run.end;
        }
        Ok(())
    }

    /// Fills pages that have come, of which the first has this number. Those that nobody waits for any more, because their memory was
    /// given back, are passed over.
    ///
    /// # Errors
    /// Those of the system.
    pub fn fill(&mut self, first: u64, bytes: &[u8]) -> Result<(), IncomingError> {
        let all = first..first + (bytes.len() / PAGE_BYTES) as u64;
        self.touch(&all);
        let mut most = u64::MAX;
        while let Some(mut run) = self.missing.run_in(&all) {
            run.end = run.end.min(run.start.saturating_add(most));
            let from = (run.start - first) as usize * PAGE_BYTES;
            let until = (run.end - first) as usize * PAGE_BYTES;
            match self.uffd.copy(self.address(run.start), &bytes[from..until]) {
                Ok(done) => {
                    run.end = run.start + (done / PAGE_BYTES) as u64;
                    self.have(&run);
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => self.let_change()?,
                    // It was mapped anew, or is more than one mapping.
                    Some(libc::ENOENT) if run.end - run.start == 1 => self.leave_out(&run),
                    Some(libc::ENOENT) => most = (run.end - run.start) / 2,
                    Some(libc::EEXIST) => {
                        return Err(IncomingError::There {
                            rank: self.rank,
                            page: run.start,
                        });
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    /// Pages do not come: they are zeros, or nobody's any more. Whoever waits for one gets zeros by the next [`Incoming::next_fault`].
    pub fn leave_out(&mut self, pages: &Range<u64>) {
        self.missing.remove(pages);
        self.waited_for.extend(self.told.range(pages.clone()));
        self.told.retain(|page| !pages.contains(page));
    }

    /// Pages are here.
    fn have(&mut self, pages: &Range<u64>) {
        self.missing.remove(pages);
        self.told.retain(|page| !pages.contains(page));
    }

    /// Whether nothing was put into a unit of huge pages yet, so that one can go there.
    fn is_fresh(&self, unit: u64) -> bool {
        self.staging.is_some()
            && self.huge.contains(&(unit * UNIT_PAGES))
            && !self.touched.contains(unit)
    }

    fn touch(&mut self, pages: &Range<u64>) {
        let units = pages.start / UNIT_PAGES..pages.end.div_ceil(UNIT_PAGES);
        self.touched.insert(&units);
    }

    /// Fills a fresh unit as a whole. False if it is to be filled page by page.
    fn fill_unit(&mut self, unit: u64, read: &mut Read<'_>) -> Result<bool, IncomingError> {
        let all = unit * UNIT_PAGES..(unit + 1) * UNIT_PAGES;
        let runs: Vec<Range<u64>> = self.missing.runs_in(all.clone()).collect();
        let pages: u64 = runs.iter().map(|run| run.end - run.start).sum();
        let Some(staging) = self.staging.as_mut().filter(|_| pages >= UNIT_PAGES_LEAST) else {
            return Ok(false);
        };
        staging.touch();
        for run in &runs {
            let bytes = &mut staging.bytes()[bytes_of(run, &all)];
            read(run.start, bytes).map_err(IncomingError::Source)?;
        }
        self.take_over(unit, &runs)
    }

    /// Has the page that was made ready go to a fresh unit. These pages of it have come. False if it did not work: then it is as if
    /// nothing of it was read.
    fn take_over(&mut self, unit: u64, come: &[Range<u64>]) -> Result<bool, IncomingError> {
        let all = unit * UNIT_PAGES..(unit + 1) * UNIT_PAGES;
        let to = self.address(all.start);
        loop {
            let Some(staging) = &mut self.staging else {
                return Ok(false);
            };
            let from = staging.place();
            // SAFETY: the page is `staging`'s, which knows that it is zeros when its page has gone.
            match unsafe { self.uffd.take_over(to, from, UNIT_BYTES) } {
                Ok(done) => {
                    self.touch(&all);
                    let gone = all.start..all.start + (done / PAGE_BYTES) as u64;
                    self.have(&gone);
                    if done < UNIT_BYTES {
                        self.clear_staging();
                    }
                    return Ok(done == UNIT_BYTES);
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    self.let_change()?;
                    // What was given back meanwhile must not come any more.
                    if let Some(staging) = &mut self.staging {
                        for page in come.iter().flat_map(Clone::clone) {
                            if !self.missing.contains(page) {
                                staging.bytes()[bytes_of(&(page..page + 1), &all)].fill(0);
                            }
                        }
                    }
                }
                Err(error) => {
                    self.touch(&all);
                    self.clear_staging();
                    // It may be several mappings. Whatever else it is would be so the next time.
                    if error.raw_os_error() != Some(libc::ENOENT) {
                        self.staging = None;
                    }
                    return Ok(false);
                }
            }
        }
    }

    fn clear_staging(&mut self) {
        if let Some(staging) = &mut self.staging {
            staging.clear();
        }
    }

    /// Somebody waits for a page that is none of the image, or was filled meanwhile.
    fn give_zeros(&mut self, page: u64) -> Result<(), IncomingError> {
        let unit = page / UNIT_PAGES;
        let all = unit * UNIT_PAGES..(unit + 1) * UNIT_PAGES;
        if self.is_fresh(unit) && self.missing.first_in(&all).is_none() {
            if let Some(staging) = &mut self.staging {
                staging.touch();
            }
            if self.take_over(unit, &[])? {
                return Ok(());
            }
        }
        self.touch(&(page..page + 1));
        let bytes = self.address(page)..self.address(page + 1);
        match self.uffd.zero(&bytes) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => {
                    self.waited_for.push_back(page);
                    self.let_change()
                }
                // It is there, or mapped anew.
                Some(libc::EEXIST | libc::ENOENT) => Ok(self.uffd.wake(&bytes)?),
                _ => Err(error.into()),
            },
        }
    }

    /// Lets another thread change the memory map, which may wait for this one to hear of it.
    fn let_change(&mut self) -> Result<(), IncomingError> {
        self.take_messages()?;
        std::thread::yield_now();
        Ok(())
    }

    /// Takes what the kernel tells. Gives how much it was.
    fn take_messages(&mut self) -> Result<usize, IncomingError> {
        let mut messages = [Message::default(); MESSAGES];
        let count = self.uffd.read_now(&mut messages)?;
        for message in &messages[..count] {
            if let Some(address) = message.fault() {
                let page = self.page(address);
                self.waited_for.push_back(page);
            } else if let Some(range) = message.removed() {
                let pages = self.page(range.start)..self.page(range.end);
                self.leave_out(&pages);
            }
        }
        Ok(count)
    }

    fn address(&self, page: u64) -> usize {
        self.base + page as usize * PAGE_BYTES
    }

    fn page(&self, address: usize) -> u64 {
        (address.saturating_sub(self.base) / PAGE_BYTES) as u64
    }
}

impl AsFd for Incoming {
    /// Becomes readable when somebody waits ([`Incoming::next_fault`]).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        for range in &self.registered {
            // It ends with the descriptor, too.
            let _ = self.uffd.unregister(range);
        }
        lock().remove(&self.rank);
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where pages lie in the bytes of others.
fn bytes_of(pages: &Range<u64>, all: &Range<u64>) -> Range<usize> {
    (pages.start - all.start) as usize * PAGE_BYTES..(pages.end - all.start) as usize * PAGE_BYTES
}

/// Ranks of this process that have not come as a whole.
static RANKS: Mutex<BTreeSet<Rank>> = Mutex::new(BTreeSet::new());

/// How many there are, to be asked without the lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether pages of a rank of this process are still to come.
#[must_use]
pub fn is_incoming(rank: Rank) -> bool {
    COUNT.load(Ordering::SeqCst) > 0 && lock().contains(&rank)
}

/// To be called before pages of a slot are moved elsewhere: waits until they are all here, because nobody would know afterwards
/// which they were.
pub(crate) fn before_move(range: &Range<usize>) {
    if COUNT.load(Ordering::SeqCst) == 0 || !hosted::rank_of(range.start).is_some_and(is_incoming) {
        return;
    }
    for page in range.clone().step_by(PAGE_BYTES) {
        let page: *const u8 = std::ptr::with_exposed_provenance(page);
        // SAFETY: the range is mapped and the caller's. Volatile, as nobody wants what is read.
        unsafe { page.read_volatile() };
    }
}

fn lock() -> MutexGuard<'static, BTreeSet<Rank>> {
    RANKS.lock().unwrap_or_else(PoisonError::into_inner)
}
