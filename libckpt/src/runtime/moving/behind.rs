//! The target's side of a postcopy: the rank runs here while its pages still come, asked for by whoever touches one, and all others
//! one after the other ([`libckpt_rank::incoming`]).
//!
//! The thread that has brought the rank does it, and nothing but it fills the slot. It takes no lock that a rank might hold while it
//! waits for a page: it allocates as the library does, and writes to no stream of the standard library. When the last page is
//! here it says [`MoveReport::Complete`] by itself, as it has said `Received`: the ranks may compute for long before they
//! call the library.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::incoming::{Incoming, IncomingError};
use protocol::control::Report;
use protocol::ids::{Move, Process, Rank};
use protocol::migration::MoveReport;

use super::doom::{self, Step};
use super::line::Source;
use super::{News, Tell};
use crate::runtime::control::Control;

/// How often a thread that has nothing to bring looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The thread that brings the pages. Dropped, it ends, whatever has come.
pub(super) struct Bringing {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    runs: Arc<AtomicBool>,
}

impl Bringing {
    /// This thread does, until it sees the sign to stop; before the sign that the rank runs only those that somebody waits for.
    pub(super) fn new(
        thread: JoinHandle<()>,
        stop: Arc<AtomicBool>,
        runs: Arc<AtomicBool>,
    ) -> Self {
        Self {
            thread: Some(thread),
            stop,
            runs,
        }
    }

    /// The rank runs.
    pub(super) fn go(&self) {
        self.runs.store(true, Ordering::SeqCst);
    }
}

impl Drop for Bringing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is still to come of a rank that is given to the ranks' thread.
pub(super) struct Behind<S> {
    pub(super) id: Move,
    pub(super) rank: Rank,
    pub(super) from: Process,
    pub(super) incoming: Incoming,
    pub(super) source: S,
    pub(super) stop: Arc<AtomicBool>,
    /// Set when the rank runs. Until then the processor is better used by those who let it.
    pub(super) runs: Arc<AtomicBool>,
}

impl<S: Source> Behind<S> {
    /// Brings it, and tells. The rank may run meanwhile; if a page can't be had then, the process can't go on.
    pub(super) fn bring(mut self, tell: &Tell, control: &Control) {
        let id = self.id;
        doom::reach(Step::Following, control);
        match self.source.follow(&mut self.incoming, &self.runs) {
            Ok(true) => {
                drop(self.incoming);
                // In this order: whatever comes of the second finds the first.
                tell.tell(News::Complete(id));
                control.report(Report::Move(MoveReport::Complete { id }));
            }
            // It does not come here after all.
            Ok(false) => {}
            Err(error) => self.wait_in_vain(&error, control),
        }
    }

    /// A rank waits for a page that never comes, mostly because its source has ended. The coordinator finds out, and ends this process
    /// or has it give up the rank.
    fn wait_in_vain(&self, error: &IncomingError, control: &Control) {
        let mib = (self.incoming.missing() * PAGE_BYTES as u64) >> 20;
        control.report(Report::Stranded {
            peer: Some(self.from),
            reason: format!(
                "{mib} MiB of the memory of {} had not come from there when that could not be had any more: {error}",
                self.rank
            ),
        });
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
