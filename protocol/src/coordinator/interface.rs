//! What goes into the coordinator and what comes out of it.

use std::time::Duration;

use super::collection::Collected;
use crate::ids::{Epoch, Process};

/// What a coordinator must know of the job before it starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Number of processes in this incarnation.
    pub processes: u32,
    /// The process of each rank.
    pub placement: Vec<Process>,
    /// The newest epoch whose number was ever used; the next snapshot's is greater.
    pub newest: Epoch,
    /// The newest committed checkpoint.
    pub committed: Option<Epoch>,
    /// Time from one snapshot's start to the next one's; `None` for none but those asked for.
    pub every: Option<Duration>,
    /// After this long without a cut, the processes that have not reached the engine are named
    /// ([`Output::Waiting`]), again and again. The snapshot goes on: aborting it would only mean that a job of
    /// long computations never gets a checkpoint.
    pub cut_patience: Duration,
    /// A snapshot is aborted when all have cut and this much later not all have stored.
    pub store_timeout: Duration,
}

/// A request for a checkpoint, numbered by the caller, who gets the number back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What became of an attempt to publish a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Published {
    /// The manifest is in place and durable.
    Done,
    /// It failed before the rename was tried: the checkpoint does not exist and never will.
    NotTried(String),
    /// Files that the images refer to are not there any more: it failed before the rename was tried, and so will every
    /// snapshot that builds on the same.
    BaseGone(String),
    /// The rename was tried and nobody knows yet what became of it.
    Unknown(String),
}

/// What the store says about an epoch whose publishing ended without a clear outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The manifest is there.
    Present,
    /// The manifest is not there.
    Absent,
    /// The store can't be read now.
    Unreadable(String),
}

/// How the last checkpoint before a stop went.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Last {
    /// It is committed.
    Committed(Epoch),
    /// There is none, and why.
    Failed(String),
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Make the epoch's number durable (its directory), then call [`super::Coordinator::handle_prepared`].
    Prepare {
        /// The new epoch.
        epoch: Epoch,
    },
    /// Tell every process to take this snapshot.
    Announce {
        /// Its epoch.
        epoch: Epoch,
    },
    /// These processes keep the snapshot waiting: tell the user. Nothing else changes.
    Waiting {
        /// The snapshot.
        epoch: Epoch,
        /// Who has not cut.
        processes: Vec<Process>,
    },
    /// Publish the manifest, then call [`super::Coordinator::handle_published`].
    Publish(Box<Collected>),
    /// Read from the store whether the manifest is there, then call [`super::Coordinator::handle_resolved`].
    Resolve {
        /// Whose manifest.
        epoch: Epoch,
    },
    /// The checkpoint exists: tell every process; older ones may be removed now.
    Commit {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The snapshot will not be: tell every process, and the user why.
    Abort {
        /// Its epoch.
        epoch: Epoch,
        /// What failed, where, why.
        reason: String,
        /// Whether its files are to be removed. Not so after a rename that was tried: should the
        /// manifest turn up later in spite of all, its files must be there.
        remove: bool,
        /// Whether the processes are to forget what they build on, so that the next snapshot holds whole images.
        rebase: bool,
    },
    /// Answer a request for a checkpoint.
    Answer {
        /// Which request.
        request: RequestId,
        /// The committed epoch, or why there is none.
        outcome: Result<Epoch, String>,
    },
    /// All ranks have finished and no snapshot is open: tell every process that the job is complete.
    End,
    /// The last checkpoint was taken, or could not be: stop the job.
    Stop {
        /// How it went.
        last: Last,
    },
}

/// What the coordinator is doing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No snapshot.
    Idle,
    /// The epoch's number is being made durable.
    Preparing,
    /// The processes cut and store.
    Collecting,
    /// The manifest is being published.
    Publishing,
    /// The outcome of the publishing is being read from the store.
    Resolving,
}

/// How the coordinator is, for `ckpt status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// The snapshot under way.
    pub snapshot: Option<Epoch>,
    /// The newest committed checkpoint.
    pub committed: Option<Epoch>,
    /// Who has not cut for the snapshot under way.
    pub not_cut: Vec<Process>,
    /// When the next snapshot is due.
    pub next_at: Option<Duration>,
    /// Ranks that have finished.
    pub finished: u32,
}

/// What the snapshot side wants of the moves of ranks, which it excludes: see [`crate::migration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// Nothing: moves may begin.
    None,
    /// A snapshot is due, or was asked for. It waits until no move is under way.
    Due,
    /// The last snapshot before the job stops waits.
    Last,
    /// A snapshot is under way.
    UnderWay,
    /// The job is complete, stops, or has lost a process.
    Over,
}
