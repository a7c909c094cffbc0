//! The thread that copies a frozen rank out of the source's memory, while the ranks of this process go on.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{PAGE_BYTES, library_thread};
use libckpt_transport::OtherProcess;
use protocol::ids::{Move, Rank};

use super::parcel::{Files, PARCEL_BYTES_MAX, Parcel};
use super::{News, Tell};
use crate::engine::packet::Shipment;
use crate::fs;

/// Pages that a thread copies at once.
const PIECE_PAGES: u64 = 1024;

/// A rank has come, or can't come.
pub(super) struct Came {
    pub(super) id: Move,
    pub(super) outcome: Result<Box<Fetched>, String>,
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
    pub(super) source: OtherProcess,
    pub(super) slot: RestoringSlot,
    /// First address of the slot, in every process.
    pub(super) address: u64,
    pub(super) threads: usize,
    /// Set where the rank does not come after all.
    pub(super) stop: Arc<AtomicBool>,
}

impl Fetch {
    /// Does it, in a thread of the library, and tells when it is done.
    pub(super) fn run(self, shipment: Shipment, tell: &Tell) {
        let id = self.id;
        let outcome = self.fetch(shipment).map(Box::new);
        tell.tell(News::Came(Came { id, outcome }));
    }

    fn fetch(self, shipment: Shipment) -> Result<Fetched, String> {
        let bytes = (shipment.bytes <= PARCEL_BYTES_MAX).then_some(shipment.bytes);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or("what the source tells of it is too long")?;
        let mut described = Vec::new();
        described
            .try_reserve_exact(bytes)
            .map_err(|error| format!("no memory for its message tables: {error}"))?;
        described.resize(bytes, 0);
        self.source
            .read(shipment.address, &mut described)
            .map_err(|error| error.to_string())?;
        let mut parcel = Parcel::decode(&described, self.rank)?;
        drop(described);

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
        let pages = parcel
            .pages
            .iter()
            .map(|range| range.end.saturating_sub(range.start));
        let image_bytes = pages.sum::<u64>() * PAGE_BYTES as u64;
        let slot = self.copy_pages(&parcel)?;
        Ok(Fetched {
            slot,
            parcel,
            files,
            output,
            image_bytes,
        })
    }

    /// Copies the pages straight to where they belong, by several threads.
    fn copy_pages(self, parcel: &Parcel) -> Result<RestoringSlot, String> {
        let copying = Arc::new(Copying {
            pieces: pieces(parcel),
            next: AtomicUsize::new(0),
            failed: Mutex::new(None),
            slot: self.slot,
            source: self.source,
            address: self.address,
            stop: self.stop,
        });
        let mut helpers = Vec::new();
        for _ in 1..self.threads.min(copying.pieces.len()) {
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
        let failed = copying.failed.into_inner();
        match failed.unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(reason),
            None => Ok(copying.slot),
        }
    }
}

/// Page ranges, cut into pieces.
fn pieces(parcel: &Parcel) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    for range in &parcel.pages {
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
