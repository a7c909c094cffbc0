//! What goes into the recovery side and what comes out of it.

use std::time::Duration;

use super::watch::{Loss, Proof};
use crate::ids::{Epoch, Process, Rank};

/// The rules of a job's life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How it becomes certain that a process has ended.
    pub proof: Proof,
    /// Nothing is started before this time: processes of an earlier coordinator may still hold their leases.
    pub not_before: Duration,
    /// Restarts allowed without a new checkpoint in between.
    pub max_restarts: u32,
    /// Time from one ping to the next.
    pub ping_every: Duration,
    /// A connected process that is silent this long is lost. Several times [`Self::ping_every`].
    pub heartbeat_timeout: Duration,
    /// A process that has not connected this long after its start is lost.
    pub start_timeout: Duration,
    /// Time that processes get to end by themselves once told to.
    pub stop_grace: Duration,
}

/// What the store offers to start from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// This checkpoint, the newest that is not known to be bad.
    Checkpoint(Epoch),
    /// No checkpoint was ever committed: from the start of the program.
    Beginning,
    /// Checkpoints were committed, but none can be used: why.
    Nothing(String),
    /// The store can't be read: why.
    Unreadable(String),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Every rank finished.
    Complete,
    /// A rank failed by its own doing; its code is passed on.
    SolverFailed {
        /// The process it ran in.
        process: Process,
        /// The rank, where it is known.
        rank: Option<Rank>,
        /// The code it ended with.
        code: i32,
        /// What it said.
        message: String,
    },
    /// Stopped as asked; `ckpt restart` goes on.
    Stopped {
        /// Why there is no last checkpoint, if there is none.
        without_last: Option<String>,
    },
    /// The program can't be run as a process of the job.
    CannotStart {
        /// Why, and what to do.
        reason: String,
    },
    /// Failed more often than allowed without a new checkpoint.
    RestartsUsedUp {
        /// Restarts since the last new checkpoint.
        restarts: u32,
        /// The last failure.
        last: String,
    },
    /// There is nothing to go on from.
    NoCheckpoint {
        /// Why.
        reason: String,
    },
    /// The store can't be used; once it is mended, `ckpt restart` goes on.
    StoreFailed {
        /// What failed, where, why.
        reason: String,
    },
    /// The files that the ranks had open can't be gone on with; once they can, `ckpt restart` goes on.
    FilesUnusable {
        /// What is wrong with which, and what to do.
        reason: String,
    },
    /// Too few nodes are left; with others, `ckpt restart` goes on.
    NodesUsedUp {
        /// What was lost, and what would be needed.
        reason: String,
    },
    /// Another coordinator has taken the job over, or the store was taken away.
    Superseded {
        /// By what it was noticed.
        reason: String,
    },
    /// The library failed in a way that a restart does not mend.
    Broken {
        /// What failed, where, why.
        reason: String,
    },
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Find what to start from, then call [`super::Recovery::handle_chosen`].
    Choose,
    /// Begin an incarnation: record it, start the processes, then call
    /// [`super::Recovery::handle_started`] or [`super::Recovery::handle_start_failed`].
    Start {
        /// The checkpoint, or `None` for the start of the program.
        from: Option<Epoch>,
    },
    /// Let the ranks run: tell every process `Go`, begin with snapshots.
    Go,
    /// Ask every connected process for a sign of life, and acknowledge what was heard of it
    /// ([`super::Recovery::heard_of`]).
    Ping,
    /// A file of this checkpoint could not be restored: verify it and call [`super::Recovery::handle_verified`].
    Verify {
        /// The checkpoint.
        epoch: Epoch,
    },
    /// Mark this checkpoint as bad in the store.
    MarkBad {
        /// The checkpoint.
        epoch: Epoch,
        /// What is wrong with it.
        reason: String,
    },
    /// A process counts as lost: tell the user.
    Lost {
        /// Which.
        process: Process,
        /// Why.
        loss: Loss,
    },
    /// This start of the job is over: close the snapshot side, and call [`super::Recovery::handle_settled`] once
    /// no epoch is undecided.
    Close {
        /// Why.
        reason: String,
    },
    /// Kill every process that lives. Each end is reported by [`super::Recovery::handle_exited`], or
    /// [`super::Recovery::handle_disconnected`] where processes are no children; then also that of their launcher.
    Kill,
    /// Begin the last snapshot; [`super::Recovery::handle_last_snapshot`] when it is done.
    LastSnapshot,
    /// Tell every process `Stop`.
    Stop,
    /// Tell every process `End`.
    End,
    /// The job is over; nothing follows.
    Ended(End),
}

/// What the job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Looking for a checkpoint to start from.
    Choosing,
    /// Processes start and, with a checkpoint, restore.
    Starting,
    /// The ranks run.
    Running,
    /// What is left of a start is being removed.
    Clearing,
    /// The last snapshot is under way, or the processes were told to stop.
    Stopping,
    /// The ranks have finished, the processes end.
    Ending,
    /// Over.
    Ended,
}
