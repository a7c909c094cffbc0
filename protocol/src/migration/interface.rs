//! What goes into the machines of both sides and comes out of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::messages::{MoveControl, MoveDirective, MoveMode, MoveNeeds, MoveReport};
use crate::coordinator::RequestId;
use crate::ids::{Move, Process, Rank};

// ---- the coordinator's side ---------------------------------------------------------------------

/// What [`super::Moves`] must know of the job before it starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Number of processes in this incarnation.
    pub processes: u32,
    /// The process of each rank at its start.
    pub placement: Vec<Process>,
    /// Processes that are drained from the beginning: no rank comes to them, and they are released.
    pub drained: Vec<Process>,
    /// How long a snapshot that is due waits for moves that are not recorded.
    pub snapshot_patience: Duration,
    /// When a move is not over this long after it was recorded or given up, the processes that it waits for are named, again
    /// and again.
    pub end_patience: Duration,
}

/// A move that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Which rank.
    pub rank: Rank,
    /// Where it is to go.
    pub to: Process,
    /// How.
    pub mode: MoveMode,
    /// How long it may take from its begin to its record; then it is given up.
    pub within: Duration,
}

/// What the caller of [`super::Moves`] is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MovesOutput {
    /// Tell one process.
    Tell {
        /// Which.
        process: Process,
        /// What.
        directive: MoveDirective,
    },
    /// The rank is the target's: tell every process.
    TellAll {
        /// What.
        directive: MoveDirective,
    },
    /// A move that is recorded or given up waits for these processes: tell the user. Nothing else changes.
    Waiting {
        /// The move.
        id: Move,
        /// Who has not learned of it, or who has not done its last part.
        processes: Vec<Process>,
    },
    /// Every process has ended its link to this one, which hosts no rank: it is out of the job. No snapshot and no move has a
    /// part for it any more, its end is no failure, and it is told nothing more about either.
    Released {
        /// Which.
        process: Process,
    },
    /// A release waits for these processes: tell the user. Nothing else changes.
    WaitingToRelease {
        /// The process that is released.
        process: Process,
        /// Who has not ended its link to it.
        processes: Vec<Process>,
    },
    /// Answer a request for a move.
    Answer {
        /// Which request.
        request: RequestId,
        /// What was moved, or why it was not.
        outcome: Result<Done, String>,
    },
}

/// A move that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Done {
    /// The rank.
    pub rank: Rank,
    /// Where it was; where it is, if it was there already.
    pub from: Process,
    /// Where it is.
    pub to: Process,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// The source looks what pins the rank.
    Examining,
    /// The target makes ready.
    Preparing,
    /// The rank is sent.
    Transferring,
    /// It is recorded as the target's; the processes learn of it, and pages may still come.
    Spreading,
    /// The source forgets it.
    Forgetting,
    /// It stays where it was; source and target undo what they have done.
    GivingUp,
}

/// A move under way, for `ckpt ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underway {
    /// The move.
    pub id: Move,
    /// Who asked for it.
    pub request: RequestId,
    /// The rank.
    pub rank: Rank,
    /// Where it was.
    pub from: Process,
    /// Where it goes.
    pub to: Process,
    /// How far it is.
    pub step: Step,
}

// ---- a process's side ---------------------------------------------------------------------------

/// Where a packet for a rank goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// To the rank, which is here.
    Here,
    /// It is kept here, in order, until [`MoverOutput::Resume`], [`MoverOutput::Run`] or [`MoverOutput::Left`] of its rank.
    Hold,
    /// On the link to this process.
    Link(Process),
}

/// What the caller of a [`super::Mover`] has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MoverOutput {
    /// Tell the coordinator.
    Report(MoveReport),
    /// Put this control packet on the link, before any further packet.
    SendLink {
        /// The other end.
        peer: Process,
        /// The control packet.
        control: MoveControl,
    },
    /// Source: look whether anything pins the rank, then call [`super::Mover::examined`].
    Examine {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Where it is to go.
        to: Process,
        /// How.
        mode: MoveMode,
    },
    /// Target: see whether there is room and whatever else the rank needs, and keep it; then call [`super::Mover::prepared`].
    Prepare {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Where it comes from.
        from: Process,
        /// How.
        mode: MoveMode,
        /// What it needs.
        needs: MoveNeeds,
    },
    /// Source: send the rank. When it stands still inside the library, capture its tables, take its packets out of the
    /// queues into what is sent, and call [`super::Mover::frozen`].
    Transfer {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Where it goes.
        to: Process,
        /// How.
        mode: MoveMode,
    },
    /// Source: the rank stays. Stop sending; if it is frozen, let it go on, its packets back in the queues, and give it those
    /// that were held.
    Resume {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
    },
    /// Target: the rank does not come. Drop what has come of it, and what was kept for it.
    Discard {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
    },
    /// Target: the rank is this process's. Forget where the announced messages in its tables lie, announce again what it has
    /// announced, queue its packets, give it those that were held, and let it run.
    Run {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
    },
    /// Source: the rank is another process's. Queue the packets that were held for it for the link to that one.
    Left {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Where it is.
        to: Process,
    },
    /// Any process: the rank is there now. Packets for it that are queued for other links go there (or to the rank, where this
    /// process has it); the places of its announced messages that came with earlier moves are forgotten; what ranks of this
    /// process have announced to it and is not acknowledged is announced again.
    Placed {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Where it is.
        to: Process,
    },
    /// Source: call [`super::Mover::drained`] when none of the packets that were forwarded for the rank waits in this process any
    /// more: all are on the link.
    Drain {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
    },
    /// Source: the rank's memory, which could be read until now, is not needed any more.
    Free {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
    },
}
