//! What an image can't hold, found and told instead of lost in silence (design 3, the table).
//!
//! An image is a slot. What a solver keeps elsewhere, in statics, thread-locals, open files or memory of a
//! C library, is as at the start after a restart. [`Baseline::record`] notes how these are before the ranks
//! run; [`Baseline::changes`] compares at the first checkpoint.
//!
//! - [`statics`]: writable data and thread-locals of the program that changed.
//! - [`descriptors`]: files, sockets and pipes that were opened.
//! - [`pins`]: what ties a rank to the process that it is in.
//! - [`pointers`]: words in a rank's memory that look like addresses of memory outside of it.

pub mod descriptors;
pub mod pins;
pub mod pointers;
pub mod statics;

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::ids::Rank;

use self::pointers::{Scanner, Suspect};
use crate::context::in_process;
use crate::layout::PAGE_BYTES;
use crate::slot::Slot;

/// How the process was before its ranks ran.
#[derive(Debug)]
pub struct Baseline {
    statics: statics::Statics,
    descriptors: descriptors::Descriptors,
}

/// Something that a restart would lose, as a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding(pub String);

impl Baseline {
    /// Notes how the process is now. To be called on the thread that resumes ranks, with all of the
    /// library's own threads and files in place.
    #[must_use]
    pub fn record() -> Self {
        in_process(|| Self {
            statics: statics::Statics::record(),
            descriptors: descriptors::Descriptors::record(),
        })
    }

    /// The same, but sockets that are opened later are the library's: the links open them when they are first used.
    #[must_use]
    pub fn without_sockets(mut self) -> Self {
        self.descriptors.leave_sockets_out();
        self
    }

    /// What has changed since, but for descriptors that the library has opened for the ranks (`own`). Quick; the words
    /// for it ([`Changes::findings`]) take longer and may be found by any thread, while the ranks go on.
    #[must_use]
    pub fn changes(&self, own: &[RawFd]) -> Changes {
        in_process(|| Changes {
            statics: self.statics.changed(),
            opened: self.descriptors.opened(own),
        })
    }
}

/// What has changed since a [`Baseline`].
#[derive(Debug)]
pub struct Changes {
    statics: statics::Changed,
    opened: Vec<String>,
}

impl Changes {
    /// What of it a restart would lose.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let changed = self.statics.names();
        if !changed.is_empty() {
            findings.push(Finding(format!(
                "statics or thread-locals of the program have changed and are no part of a checkpoint: {}; \
                 keep such values in the rank's own memory, or in a RankLocal",
                changed.join(", ")
            )));
        }
        if !self.opened.is_empty() {
            findings.push(Finding(format!(
                "the program has opened files or sockets, which are not reopened by a restart: {}; open files by libckpt::fs",
                self.opened.join(", ")
            )));
        }
        findings
    }
}

/// Looks through the pages of one image for words that look like addresses outside of the slot. Pages may be
/// given by several threads, in any order.
#[derive(Debug)]
pub struct PointerScan {
    rank: Rank,
    scanner: Scanner,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    first: Option<Suspect>,
    count: usize,
}

impl PointerScan {
    /// For the image of a stopped rank.
    #[must_use]
    pub fn new(slot: &Slot) -> Self {
        in_process(|| Self {
            rank: slot.rank(),
            scanner: Scanner::new(slot),
            found: Mutex::default(),
        })
    }

    /// Looks through pages, given by number and bytes.
    pub fn scan(&self, pages: &[u64], bytes: &[u8]) {
        let mut found = Found::default();
        for (page, bytes) in pages.iter().zip(bytes.chunks_exact(PAGE_BYTES)) {
            self.scanner.scan(*page, bytes, |suspect| {
                found.count += 1;
                found.note(suspect);
            });
        }
        if let Some(first) = found.first {
            let mut all = self.lock();
            all.count += found.count;
            all.note(first);
        }
    }

    /// What was found in the pages given so far.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        let found = self.lock();
        let first = found.first.as_ref()?;
        Some(Finding(format!(
            "{} holds {} words that look like addresses outside of its memory, the first at {:#x}: {:#x} in {}; if \
             one is a pointer, it is invalid after a restart",
            self.rank, found.count, first.at, first.value, first.target
        )))
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        // Whole at any moment.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn note(&mut self, suspect: Suspect) {
        if self
            .first
            .as_ref()
            .is_none_or(|first| suspect.at < first.at)
        {
            self.first = Some(suspect);
        }
    }
}
