//! The numbers that name things: ranks, processes, epochs, incarnations, moves, jobs.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $word:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self.0)
            }
        }
    };
}

number!(
    /// A rank of the job, numbered from 0: what the solver sees. The slot with the same number holds it.
    Rank(u32),
    "rank"
);
number!(
    /// An operating-system process of the job, numbered from 0. It hosts zero or more ranks.
    Process(u32),
    "process"
);
number!(
    /// The number of a snapshot. Never used again once announced, aborted or not.
    /// Epoch 0 is the start of the job, before any snapshot.
    Epoch(u64),
    "epoch"
);
number!(
    /// The number of a start of the job, from 1. A restart is a new incarnation.
    Incarnation(u64),
    "incarnation"
);
number!(
    /// The number of a move of a rank to another process, from 1 in each incarnation. 0 stands for the placement at the start.
    Move(u64),
    "move"
);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Rank {
    /// The rank as an index into a table of all ranks.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Process {
    /// The process as an index into a table of all processes.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The identity of a job, drawn at random at its first start and kept for its life.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct JobId(pub [u8; 16]);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
