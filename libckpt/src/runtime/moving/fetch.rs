//! The thread that brings a rank into this process from the source's memory, which it can read, while the ranks of both go on.
//!
//! It waits for the source's words: pages to copy while the rank runs, in rounds, and at last the frozen rank. When all of that is
//! here and was looked at, it says so to the coordinator by itself: no rank of this process has to call the library before.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{PAGE_BYTES, library_thread};
use libckpt_transport::OtherProcess;
use protocol::control::Report;
use protocol::dirty::PageSet;
use protocol::ids::{Move, Process, Rank};
use protocol::migration::MoveReport;

use super::doom::{self, Step};
use super::line::{Answer, Line, Place, Word};
use super::parcel::{self, Files, Pages, Parcel};
use super::{News, Tell};
use crate::fs;
use crate::runtime::control::Control;

/// Pages that a thread copies at once.
const PIECE_PAGES: u64 = 1024;

/// A rank has come, or can't come.
pub(super) struct Came {
    pub(super) id: Move,
    pub(super) outcome: Result<Box<Fetched>, String>,
}

impl Came {
    /// Tells the ranks' thread, and the coordinator if the rank has come.
    pub(super) fn tell(id: Move, outcome: Result<Fetched, String>, tell: &Tell, control: &Control) {
        let outcome = outcome.map(Box::new);
        let received = outcome.is_ok();
        if received {
            doom::reach(Step::Received, control);
        }
        // In this order: whatever comes of the second finds the first.
        tell.tell(News::Came(Self { id, outcome }));
        if received {
            control.report(Report::Move(MoveReport::Received { id }));
            doom::reach(Step::Told, control);
        }
    }
}

/// All that there is of a frozen rank, in this process.
pub(super) struct Fetched {
    pub(super) slot: RestoringSlot,
    pub(super) parcel: Parcel,
    pub(super) files: CameFiles,
    pub(super) output: Option<(OwnedFd, OwnedFd)>,
    pub(super) image_bytes: u64,
}

/// The files of a rank that has come, open here.
pub(super) enum CameFiles {
    /// By descriptors.
    Taken(fs::Taken),
    /// Opened again.
    Reopened(fs::Reopened),
}

impl CameFiles {
    /// The rank goes on in this process: the files are its own.
    pub(super) fn adopt(self) {
        match self {
            Self::Taken(files) => files.adopt(),
            Self::Reopened(files) => files.adopt(),
        }
    }
}

/// Copying a rank.
pub(super) struct Fetch {
    pub(super) id: Move,
    pub(super) rank: Rank,
    pub(super) from: Process,
    pub(super) source: OtherProcess,
    pub(super) line: Line,
    pub(super) slot: RestoringSlot,
    /// First address of the slot, in every process.
    pub(super) address: u64,
    pub(super) threads: usize,
    /// Set where the rank does not come after all.
    pub(super) stop: Arc<AtomicBool>,
}

impl Fetch {
    /// Does it, in a thread of the library, and tells when it is done.
    pub(super) fn run(self, tell: &Tell, control: &Control) {
        let id = self.id;
        doom::reach(Step::Line, control);
        Came::tell(id, self.fetch(control), tell, control);
    }

    fn fetch(mut self, control: &Control) -> Result<Fetched, String> {
        let from = self.from;
        let gone = |error: String| format!("{from} is gone, or has given it up: {error}");
        let mut copied = PageSet::new();
        loop {
            match self.line.hear().map_err(gone)? {
                Word::Room(place) => {
                    self.slot.make_room(&self.pages(place)?);
                    self.line.say(&Answer::Done).map_err(gone)?;
                }
                Word::Round(place) => {
                    let pages = self.pages(place)?;
                    self.slot.again(&pages);
                    self = self.copy(&pages)?;
                    copied.unite(&pages.into_iter().collect());
                    doom::reach(Step::Copying, control);
                    self.line.say(&Answer::Done).map_err(gone)?;
                }
                Word::Rest(place) => return self.fetch_rest(place, &copied),
            }
        }
    }

    fn pages(&self, place: Place) -> Result<Pages, String> {
        parcel::decode_pages(&parcel::fetch(&self.source, place)?)
    }

    /// The rank is frozen.
    fn fetch_rest(mut self, place: Place, copied: &PageSet) -> Result<Fetched, String> {
        let mut parcel = Parcel::decode(&parcel::fetch(&self.source, place)?, self.rank)?;
        let source = self.source;
        let descriptor = |number| source.descriptor(number);
        let open = |number| descriptor(number).map(File::from);
        let none = Files::Offered(fs::Offer::default());
        let Files::Offered(files) = std::mem::replace(&mut parcel.files, none) else {
            return Err("its files are told in another way than they were asked for".to_owned());
        };
        let files = CameFiles::Taken(files.take(self.rank, open)?);
        let output = match parcel.output {
            None => None,
            Some((out, err)) => {
                let told = |error| format!("its output can't be had: {error}");
                let (out, err) = (descriptor(out), descriptor(err));
                Some((out.map_err(told)?, err.map_err(told)?))
            }
        };
        let pages: PageSet = parcel.pages.iter().cloned().collect();
        let rest: PageSet = parcel.rest.iter().cloned().collect();
        let missing = pages.difference(copied).difference(&rest);
        if !missing.is_empty() {
            return Err(format!("{} of its pages were never sent", missing.pages()));
        }
        // What lived when it was copied and does not any more is zeros, as in every image.
        let gone = copied.difference(&pages);
        self.slot
            .clear(gone.ranges())
            .map_err(|error| error.to_string())?;
        self.slot.again(rest.ranges());
        self = self.copy(rest.ranges())?;
        self.slot.check().map_err(|error| error.to_string())?;
        Ok(Fetched {
            slot: self.slot,
            parcel,
            files,
            output,
            image_bytes: pages.pages() * PAGE_BYTES as u64,
        })
    }

    /// Copies pages straight to where they belong, by several threads.
    fn copy(mut self, pages: &[Range<u64>]) -> Result<Self, String> {
        let count: u64 = pages
            .iter()
            .map(|range| range.end.saturating_sub(range.start))
            .sum();
        let threads = usize::try_from(count / PIECE_PAGES).unwrap_or(usize::MAX);
        let copying = Arc::new(Copying {
            pieces: pieces(pages),
            next: AtomicUsize::new(0),
            failed: Mutex::new(None),
            slot: self.slot,
            source: self.source,
            address: self.address,
            stop: self.stop.clone(),
        });
        let mut helpers = Vec::new();
        for _ in 1..self.threads.min(threads) {
            let copying = copying.clone();
            // Fewer threads will do as well.
            if let Ok(helper) = library_thread("ckpt-move", move || copying.copy()) {
                helpers.push(helper);
            }
        }
        copying.copy();
        for helper in helpers {
            helper
                .join()
                .map_err(|_| "a thread that copied it panicked".to_owned())?;
        }
        let copying = Arc::into_inner(copying).ok_or("a thread still copies it")?;
        self.slot = copying.slot;
        let failed = copying.failed.into_inner();
        match failed.unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(reason),
            None => Ok(self),
        }
    }
}

/// Page ranges, cut into pieces.
fn pieces(pages: &[Range<u64>]) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    for range in pages {
        let mut next = range.start;
        while next < range.end {
            let count = (range.end - next).min(PIECE_PAGES);
            pieces.push((next, count));
            next += count;
        }
    }
    pieces
}

struct Copying {
    pieces: Vec<(u64, u64)>,
    /// The piece that nobody has taken.
    next: AtomicUsize,
    failed: Mutex<Option<String>>,
    slot: RestoringSlot,
    source: OtherProcess,
    address: u64,
    stop: Arc<AtomicBool>,
}

impl Copying {
    /// Takes pieces and copies them until there are none.
    fn copy(&self) {
        if let Err(reason) = self.try_copy() {
            self.stop.store(true, Ordering::SeqCst);
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(reason);
        }
    }

    fn try_copy(&self) -> Result<(), String> {
        loop {
            let taken = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&(first, count)) = self.pieces.get(taken) else {
                return Ok(());
            };
            if self.stop.load(Ordering::SeqCst) {
                return Err("it was given up".to_owned());
            }
            let count = usize::try_from(count).map_err(|error| error.to_string())?;
            let into = self
                .slot
                .window(first, count)
                .map_err(|error| error.to_string())?;
            let address = self.address + first * PAGE_BYTES as u64;
            self.source
                .read(address, into)
                .map_err(|error| error.to_string())?;
        }
    }
}
