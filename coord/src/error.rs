//! Why a job could not be run at all. How a job that did run ended is an [`crate::Outcome`].

use std::io;
use std::path::PathBuf;

use wire::Address;

use crate::child::spawn::ProgramError;

/// An error before or beside the job.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store can't be made, opened or locked.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The program can't be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The control socket can't be opened.
    #[error("can't listen at {address}: {source}; --control-address names an address of this host")]
    Listen {
        /// Where.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// The file for events can't be written.
    #[error("{}: can't be written: {source}; choose another file for --events", path.display())]
    Events {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system refused something that every machine should allow.
    #[error("can't {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
