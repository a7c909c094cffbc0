//! What can go wrong with files.

use std::io;
use std::path::{Path, PathBuf};

use protocol::ids::Rank;

/// Why a checkpoint can't count on a rank's files, or a restart can't go on with them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It is no longer found under its path.
    #[error(
        "{rank} has {} open, which was removed, renamed or replaced since it was opened, so that a restart could not open \
         it again; close files before they are moved", path.display()
    )]
    Moved {
        /// Whose it is.
        rank: Rank,
        /// Where it was.
        path: PathBuf,
    },
    /// The system does not tell how it is.
    #[error("{rank} has {} open, whose length and offset can't be read: {source}", path.display())]
    Unknown {
        /// Whose it is.
        rank: Rank,
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What was written did not reach the disk.
    #[error(
        "what was written to {} could not be made durable: {reason}; it may be lost, so no checkpoint counts on it any more: \
         stop the job, mend the file system, and go on from the newest checkpoint by `ckpt restart`", path.display()
    )]
    NotDurable {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It can't be opened.
    #[error(
        "{rank} had {} open for {purpose} at the checkpoint, and it can't be opened here: {source}; put it back under this \
         path, on a file system that all nodes of the job see", path.display()
    )]
    Missing {
        /// Whose it was.
        rank: Rank,
        /// Where it was.
        path: PathBuf,
        /// What for.
        purpose: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// It is shorter than it was.
    #[error(
        "{} has {found} bytes, and had {expected} when {rank} had it open for {purpose} at the checkpoint: a part of it is \
         missing; put the whole file back", path.display()
    )]
    Short {
        /// Whose it was.
        rank: Rank,
        /// Where it is.
        path: PathBuf,
        /// What for.
        purpose: &'static str,
        /// Its length in bytes.
        found: u64,
        /// The least that it must have, in bytes.
        expected: u64,
    },
    /// Somebody else writes to it.
    #[error(
        "{}, which {rank} had open for {purpose} at the checkpoint, is locked by another process: is one of an earlier start \
         still running? End it (fuser(1) names it), and start again", path.display()
    )]
    Held {
        /// Whose it was.
        rank: Rank,
        /// Where it is.
        path: PathBuf,
        /// What for.
        purpose: &'static str,
    },
    /// It can't be made what it was.
    #[error("{} of {rank} can't be cut back to its {bytes} bytes of the checkpoint: {source}", path.display())]
    NotCutBack {
        /// Whose it was.
        rank: Rank,
        /// Where it is.
        path: PathBuf,
        /// The length that it had.
        bytes: u64,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a file is not opened. To be put into words in the memory of whoever asked.
#[derive(Debug)]
pub(super) enum Refusal {
    System(io::Error),
    OutsideRank,
    NotRegular,
    /// A rank of this process writes to it.
    OfRank(Rank),
    /// Another process does.
    OfOther,
}

impl Refusal {
    /// The error for the solver.
    pub(super) fn told(self, path: &Path) -> io::Error {
        let path = path.display();
        match self {
            Self::System(error) => error,
            Self::OutsideRank => io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "{path}: no rank runs on this thread; open files of libckpt::fs on the rank's own thread"
                ),
            ),
            Self::NotRegular => io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{path} is no regular file, so that a restart could not go back to where it was; use std::fs for it"
                ),
            ),
            Self::OfRank(rank) => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "{path} is written to by {rank} already; one file has one writer, so give each rank a file of its own"
                ),
            ),
            Self::OfOther => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "{path} is written to by another process (it is locked); one file has one writer, so give each rank a \
                     file of its own"
                ),
            ),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}
