//! What can go wrong in a call of the library.

use std::path::PathBuf;

/// The result of a fallible call of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a communication call. The call had no effect unless its documentation says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The rank is not in the communicator (`MPI_ERR_RANK`).
    #[error("rank {rank} is not in the communicator, which has ranks 0 to {}", size - 1)]
    InvalidRank {
        /// The rank named by the caller.
        rank: usize,
        /// The size of the communicator.
        size: usize,
    },
    /// A tag must not be negative (`MPI_ERR_TAG`).
    #[error("tag {tag} is negative; tags are 0 or greater")]
    InvalidTag {
        /// The tag named by the caller.
        tag: i32,
    },
    /// The message is longer than the buffer (`MPI_ERR_TRUNCATE`). The message is consumed, the buffer's
    /// content is unspecified.
    #[error(
        "a message of {message_bytes} bytes from world rank {source_rank} with tag {tag} does not fit the receive \
         buffer of {buffer_bytes} bytes; receive into a larger buffer, or probe for the size first"
    )]
    Truncated {
        /// The sender, as a rank of the world.
        source_rank: u32,
        /// The message's tag.
        tag: i32,
        /// The message's length in bytes.
        message_bytes: usize,
        /// The buffer's length in bytes.
        buffer_bytes: usize,
    },
    /// Lengths of buffers or counts do not fit together (`MPI_ERR_COUNT`).
    #[error("{what}: expected {expected}, found {found}")]
    InvalidCount {
        /// Which length or count.
        what: &'static str,
        /// What the call needs.
        expected: usize,
        /// What it was given.
        found: usize,
    },
    /// A message's bytes are no whole number of elements of the type that is received (`MPI_ERR_TYPE`).
    #[error(
        "a message of {message_bytes} bytes is no whole number of {type_name}, which takes {element_bytes} bytes; \
         receive it as the type it was sent as"
    )]
    InvalidType {
        /// The message's length in bytes.
        message_bytes: usize,
        /// The type's size in bytes.
        element_bytes: usize,
        /// The type's name.
        type_name: &'static str,
    },
    /// The root of a collective made the call that is for the other ranks, or the other way round
    /// (`MPI_ERR_ROOT`).
    #[error(
        "rank {rank} called {call} with rank {root} as the root; the root alone calls the function whose name ends in _root, all other ranks the one without"
    )]
    InvalidRoot {
        /// The call.
        call: &'static str,
        /// The calling rank.
        rank: usize,
        /// The root.
        root: usize,
    },
    /// Ranks called different collectives of a communicator, or the same in another order.
    #[error(
        "this rank is in {ours} of the communicator, but rank {rank} of it sent a message of {theirs}; all its ranks \
         must make the same collective calls in the same order"
    )]
    CollectiveMismatch {
        /// The other rank, in the communicator.
        rank: usize,
        /// The other rank's call.
        theirs: String,
        /// This rank's call.
        ours: String,
    },
    /// The buffer's memory is not the rank's: it would not be captured with it.
    #[error(transparent)]
    Buffer(#[from] libckpt_rank::buffer::BufferError),
    /// A communication call was made by a thread that is not running a rank.
    #[error(
        "communication is possible only on the thread that runs the rank; this thread was started by the solver \
         or is the library's own"
    )]
    OutsideRank,
}

/// Why a process could not start, or had to end, for a reason of the library's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An environment variable of the coordinator is missing or malformed.
    #[error(
        "environment variable {name}: {reason}; start the program with `ckpt run`, or unset CKPT_CONTROL to run it alone"
    )]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The coordinator can't be reached or broke off.
    #[error("control connection to {address}: {reason}")]
    Control {
        /// The address.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The coordinator refused this process.
    #[error("the coordinator refused this process: {reason}")]
    Refused {
        /// The coordinator's words.
        reason: String,
    },
    /// The process could not be prepared for ranks.
    #[error(transparent)]
    Startup(#[from] libckpt_rank::startup::StartupError),
    /// The program's identity can't be read.
    #[error("cannot tell the program's identity: {0}")]
    Identity(String),
    /// A slot can't be made.
    #[error(transparent)]
    Slot(#[from] libckpt_rank::slot::SlotError),
    /// The slots' sizes are impossible.
    #[error(transparent)]
    Layout(#[from] protocol::slots::SlotLayoutError),
    /// The links to the other processes can't be made or broke.
    #[error(transparent)]
    Transport(#[from] libckpt_transport::TransportError),
    /// The shared memory of the links can't be used.
    #[error(transparent)]
    Shm(#[from] libckpt_transport::shm::ShmError),
    /// MPI can't be used.
    #[cfg(feature = "mpi")]
    #[error("MPI: {0}")]
    Mpi(#[from] libckpt_transport::mpi::MpiError),
    /// The store can't be opened.
    #[error("store {path}: {reason}")]
    Store {
        /// The store.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A file of a rank can't be made what it was at the checkpoint.
    #[error(transparent)]
    File(#[from] crate::fs::FileError),
    /// The engine met something that must not be; going on could corrupt the job.
    #[error("internal error, please report it: {0}")]
    Internal(String),
}
