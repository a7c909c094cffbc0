//! The thread that brings a rank into this process, while the ranks of both go on.
//!
//! It waits for the source's words ([`Word`]): pages to have memory for, pages to get while the rank runs, in rounds, and at last the
//! frozen rank. When all of that is here and was looked at, it says so to the coordinator by itself: no rank of this process has to
//! call the library before.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::incoming::Incoming;
use libckpt_rank::restore::RestoringSlot;
use protocol::control::Report;
use protocol::dirty::PageSet;
use protocol::ids::{Move, Process, Rank};
use protocol::migration::MoveReport;

use super::behind::Behind;
use super::doom::{self, Step};
use super::line::{Answer, Source, Word};
use super::parcel::{Files, Parcel, decode_pages};
use super::stored::Store;
use super::{News, Tell};
use crate::fs;
use crate::runtime::control::Control;

/// A rank has come, or can't come.
pub(super) struct Came {
    pub(super) id: Move,
    pub(super) outcome: Result<Box<Fetched>, String>,
}

impl Came {
    /// Tells the ranks' thread, and the coordinator if the rank has come.
    fn tell(id: Move, outcome: Result<Fetched, String>, tell: &Tell, control: &Control) {
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
    /// Where the thread that has brought it brings the rest of its pages while it runs: what is to be set when it does.
    pub(super) runs: Option<Arc<AtomicBool>>,
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

/// Bringing a rank here.
pub(super) struct Fetch<S> {
    id: Move,
    rank: Rank,
    from: Process,
    pub(super) source: S,
    /// Where pages come while the rank runs. It ends before the slot does.
    incoming: Option<Incoming>,
    pub(super) slot: RestoringSlot,
    /// The job's checkpoints.
    store: Store,
    /// Pages that have come.
    come: PageSet,
}

impl<S: Source> Fetch<S> {
    /// Fetches a rank from this process into a slot; with somewhere for its pages to come later, it brings only what the rank needs to run.
    pub(super) fn new(
        (id, rank, from): (Move, Rank, Process),
        source: S,
        (incoming, slot): (Option<Incoming>, RestoringSlot),
        store: Store,
    ) -> Self {
        Self {
            id,
            rank,
            from,
            source,
            incoming,
            slot,
            store,
            come: PageSet::new(),
        }
    }

    /// Does it, in a thread of the library, and tells when it is done.
    pub(super) fn run(self, tell: &Tell, control: &Control) {
        let id = self.id;
        doom::reach(Step::Line, control);
        match self.fetch(|step| doom::reach(step, control)) {
            Ok((fetched, behind)) => {
                Came::tell(id, Ok(fetched), tell, control);
                if let Some(behind) = behind {
                    behind.bring(tell, control);
                }
            }
            Err(reason) => Came::tell(id, Err(reason), tell, control),
        }
    }

    /// Does what the source says until the rank is here, maybe but for pages that follow. `at` is told of steps.
    ///
    /// # Errors
    /// It does not come, or not as it is there.
    pub(super) fn fetch(
        mut self,
        at: impl Fn(Step),
    ) -> Result<(Fetched, Option<Behind<S>>), String> {
        let from = self.from;
        let gone = |error: String| format!("{from} is gone, or has given it up: {error}");
        loop {
            let (word, about) = self.source.hear().map_err(gone)?;
            // Of a slot whose pages come while its rank runs, none may be touched before.
            if self.incoming.is_some() != (word == Word::Ahead) {
                return Err("it is sent in another way than it was asked for".to_owned());
            }
            match word {
                Word::Room => self.slot.make_room(&decode_pages(&about)?),
                Word::Round => {
                    self = self.fill(&decode_pages(&about)?)?;
                    at(Step::Copying);
                }
                Word::Stored => {
                    let (slot, pages) = self.store.read(self.rank, &about, self.slot)?;
                    self.slot = slot;
                    self.come.unite(&pages);
                }
                Word::Rest | Word::Ahead => {
                    let parcel = Parcel::decode(&about, self.rank)?;
                    return self.fetch_rest(parcel);
                }
            }
            self.source.answer(Answer::Done).map_err(gone)?;
        }
    }

    /// Gets the pages that go with a word, again or for the first time.
    ///
    /// # Errors
    /// They do not come as they are there.
    pub(super) fn fill(mut self, pages: &[Range<u64>]) -> Result<Self, String> {
        self.slot.again(pages);
        let (slot, zeros) = self.source.fill(self.slot, pages)?;
        self.slot = slot;
        // They may have held something else in an earlier round.
        let cleared = self.slot.clear(zeros.intersection(&self.come).ranges());
        cleared.map_err(|error| error.to_string())?;
        self.come.unite(&pages.iter().cloned().collect());
        Ok(self)
    }

    /// The rank is frozen.
    fn fetch_rest(mut self, mut parcel: Parcel) -> Result<(Fetched, Option<Behind<S>>), String> {
        parcel.frozen_us = self.source.frozen_us(parcel.frozen_us);
        let pages: PageSet = parcel.pages.iter().cloned().collect();
        let rest: PageSet = parcel.rest.iter().cloned().collect();
        let mut behind = None;
        let runs = Arc::<AtomicBool>::default();
        if let Some(mut incoming) = self.incoming.take() {
            let begun = incoming.expect(&parcel.pages);
            let begun = begun.and_then(|()| self.source.fill_first(&mut incoming));
            begun.map_err(|error| error.to_string())?;
            behind = Some(incoming);
        } else {
            let missing = pages.difference(&self.come).difference(&rest);
            if !missing.is_empty() {
                return Err(format!("{} of its pages were never sent", missing.pages()));
            }
            // What lived when it was copied and does not any more is zeros, as in every image.
            let cleared = self.slot.clear(self.come.difference(&pages).ranges());
            cleared.map_err(|error| error.to_string())?;
            self = self.fill(&parcel.rest)?;
        }
        self.slot.check().map_err(|error| error.to_string())?;
        let none = Files::Offered(fs::Offer::default());
        let files = std::mem::replace(&mut parcel.files, none);
        let files = self.source.files(self.rank, files)?;
        let output = parcel.output.map(|output| self.source.output(output));
        let output = output.transpose()?;
        let fetched = Fetched {
            runs: behind.is_some().then(|| runs.clone()),
            slot: self.slot,
            parcel,
            files,
            output,
            image_bytes: pages.pages() * PAGE_BYTES as u64,
        };
        let behind = behind.map(|incoming| Behind {
            runs,
            id: self.id,
            rank: self.rank,
            from: self.from,
            incoming,
            source: self.source,
            stop: self.store.stop,
        });
        Ok((fetched, behind))
    }
}
