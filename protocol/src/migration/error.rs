//! What a peer, the coordinator or a caller can do wrong about moves. Each is a defect: the process that finds one ends.

use crate::ids::{Move, Process, Rank};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrationError {
    /// A packet for a rank that is not here and has left no forwarding entry.
    #[error("a packet for {rank} from {peer} came to {me}, which neither hosts nor forwards it")]
    Misrouted {
        /// This process.
        me: Process,
        /// Who sent it.
        peer: Process,
        /// Whom it is for.
        rank: Rank,
    },
    /// A rank that the job does not have.
    #[error("{rank} is named, and the job has {ranks} ranks")]
    NoSuchRank {
        /// The rank.
        rank: Rank,
        /// How many there are.
        ranks: usize,
    },
    /// A directive that does not fit what this process knows of the move.
    #[error("{what} of {id} came to {me}, where it is {state}")]
    Unexpected {
        /// What came.
        what: &'static str,
        /// The move.
        id: Move,
        /// This process.
        me: Process,
        /// What the move is here.
        state: &'static str,
    },
    /// The coordinator counts fewer confirmations than have come.
    #[error("{confirmed} processes have confirmed {id}, and the coordinator counts {expected}")]
    Confirmed {
        /// The move.
        id: Move,
        /// How many have come.
        confirmed: u32,
        /// How many were counted.
        expected: u32,
    },
}
