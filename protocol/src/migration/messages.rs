//! What coordinator and processes tell each other about moves, and processes each other on their links.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Move, Process, Rank};

/// How a rank's memory comes to the target. To the protocol the modes differ in when the source freezes the rank, in what the
/// target must have before it says [`MoveReport::Received`], and in whether the source is needed after the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MoveMode {
    /// Frozen, sent, resumed.
    #[default]
    Stop,
    /// Sent in rounds while the rank runs; then frozen for the rest.
    Precopy,
    /// Frozen; resumed with what it needs first. The rest comes while it runs, and the source is needed until then.
    Postcopy,
    /// The target reads the newest checkpoint; the rank is frozen for what has changed since.
    Checkpoint,
    /// Frozen at a point that the solver names.
    Safepoint,
    /// [`MoveMode::Stop`] or [`MoveMode::Precopy`], as the source finds better ([`super::rounds::choose`]).
    Auto,
}

impl fmt::Display for MoveMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::Checkpoint => "checkpoint",
            Self::Safepoint => "safepoint",
            Self::Auto => "auto",
        })
    }
}

/// What a rank needs at its target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MoveNeeds {
    /// Bytes of its image.
    pub image_bytes: u64,
    /// The files that it has open, by their paths.
    pub files: Vec<String>,
    /// How the thread that receives the rank reaches the source, in words of those who carry its bytes.
    pub line: String,
}

/// What the coordinator tells a process about a move.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MoveDirective {
    /// To the source: does anything pin the rank?
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
    /// To the target: make ready for the rank.
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
    /// To the source: the target is ready, send the rank.
    Transfer {
        /// The move.
        id: Move,
    },
    /// To source and target: the rank stays where it is.
    GiveUp {
        /// The move.
        id: Move,
    },
    /// To every process: the rank is the target's from now on.
    Moved {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Where it was.
        from: Process,
        /// Where it is.
        to: Process,
    },
    /// To the source: every process has learned where the rank is. Once all the confirmations have come, no packet for it
    /// comes any more.
    Forget {
        /// The move.
        id: Move,
        /// How many processes have put a [`MoveControl::Confirm`] on their link to the source.
        confirmations: u32,
    },
    /// To every process: this one is released. See [`crate::participant::Participant::handle_release`].
    Release {
        /// Which.
        process: Process,
    },
}

impl MoveDirective {
    /// The move that it is about, if it is about one.
    #[must_use]
    pub fn id(&self) -> Option<Move> {
        match self {
            Self::Examine { id, .. }
            | Self::Prepare { id, .. }
            | Self::Transfer { id }
            | Self::GiveUp { id }
            | Self::Moved { id, .. }
            | Self::Forget { id, .. } => Some(*id),
            Self::Release { .. } => None,
        }
    }
}

/// What a process tells the coordinator about a move.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MoveReport {
    /// From the source: nothing pins the rank.
    Movable {
        /// The move.
        id: Move,
        /// What the rank needs at the target.
        needs: MoveNeeds,
    },
    /// From the target: the rank may come.
    Prepared {
        /// The move.
        id: Move,
    },
    /// From the target: everything is there that the rank needs to run. From here on the target can't refuse.
    Received {
        /// The move.
        id: Move,
    },
    /// From source or target, before the record: it can't be done.
    Refused {
        /// The move.
        id: Move,
        /// What stands against it, where, and what to do.
        reason: String,
    },
    /// From source and target: the rank is as if it had not been asked for.
    GivenUp {
        /// The move.
        id: Move,
    },
    /// From every process: it sends to the new place from now on; the target runs the rank, the source forwards.
    Learned {
        /// The move.
        id: Move,
        /// It has put a [`MoveControl::Confirm`] on its link to the source, because packets for the rank may be on that link.
        confirmed: bool,
    },
    /// From the target: the last page has come, the source is needed no more. Only of [`MoveMode::Postcopy`].
    Complete {
        /// The move.
        id: Move,
    },
    /// From the source: it has forgotten the rank.
    Forgotten {
        /// The move.
        id: Move,
    },
    /// From every process but the one that is released: its link to that one has ended, in both directions.
    Parted {
        /// The process that is released.
        process: Process,
    },
}

impl MoveReport {
    /// The move that it is about, if it is about one.
    #[must_use]
    pub fn id(&self) -> Option<Move> {
        match self {
            Self::Parted { .. } => None,
            Self::Movable { id, .. }
            | Self::Prepared { id }
            | Self::Received { id }
            | Self::Refused { id, .. }
            | Self::GivenUp { id }
            | Self::Learned { id, .. }
            | Self::Complete { id }
            | Self::Forgotten { id } => Some(*id),
        }
    }
}

/// A control packet about a move on a link. Like [`crate::participant::LinkControl`] it is not counted, is never channel
/// state, and goes ahead of packets that are queued for the link; unlike that, it is no marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MoveControl {
    /// From the source to a peer whose packet it has forwarded: the rank is there.
    Moved {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Where it is.
        to: Process,
    },
    /// From a peer to the source: no packet for the rank comes on this link after this one.
    Confirm {
        /// The move.
        id: Move,
    },
}
