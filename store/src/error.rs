//! What can go wrong with a store, said so that a user can act on it: which file, what is wrong, what to do.

use std::io;

use protocol::ids::Incarnation;

/// Result with the store's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory that should be there is not.
    #[error("{path}: not found ({what}); check the path, or whether the file was removed by hand")]
    NotFound {
        /// The path.
        path: String,
        /// What was looked for.
        what: &'static str,
    },
    /// The directory is not a store.
    #[error(
        "{path}: not a checkpoint store ({why}); give the directory that was passed as --store"
    )]
    NotAStore {
        /// The directory.
        path: String,
        /// What is missing or in the way.
        why: String,
    },
    /// Something that must be new is there already.
    #[error("{path}: exists already ({what}); {todo}")]
    AlreadyExists {
        /// The path.
        path: String,
        /// What was to be made.
        what: &'static str,
        /// What to do.
        todo: &'static str,
    },
    /// The bytes of a file are not what was written.
    #[error(
        "{path}: corrupt: {what}; the file can't be trusted: use another checkpoint, and check the medium it was on"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// What is wrong, and where.
        what: String,
    },
    /// The file was written in a version of the format that this program does not know.
    #[error(
        "{path}: format version {found}, but this program knows version {known} only; use the version of ckpt that wrote it"
    )]
    Version {
        /// The file.
        path: String,
        /// The version in the file.
        found: u32,
        /// The version that is known.
        known: u32,
    },
    /// The file is sound, but needs something that this program can't do.
    #[error("{path}: {what}; use the version of ckpt that wrote it")]
    Unsupported {
        /// The file.
        path: String,
        /// What it needs.
        what: String,
    },
    /// Another coordinator holds the store.
    #[error(
        "{path}: the store is in use by {holder}; wait for it, or end it (`ckpt status` tells how the job is); from one that hangs, `ckpt restart --take-over` takes the job over"
    )]
    Locked {
        /// The lock file.
        path: String,
        /// Who holds it.
        holder: String,
    },
    /// The store is open for reading, and this needs the lock.
    #[error("{path}: {operation} needs the store's lock, and it is open for reading only")]
    ReadOnly {
        /// The store.
        path: String,
        /// What was to be done.
        operation: &'static str,
    },
    /// A newer start of the job has taken over; this one must not change anything any more.
    #[error(
        "{path}: {newer} of the job was started after {mine}: this one is superseded and must end"
    )]
    Superseded {
        /// The store.
        path: String,
        /// This start.
        mine: Incarnation,
        /// The newer one.
        newer: Incarnation,
    },
    /// The caller asked for something that can't be.
    #[error("{path}: {what}")]
    Invalid {
        /// The file or store concerned.
        path: String,
        /// What is wrong with the call.
        what: String,
    },
    /// The operating system refused an operation.
    #[error("{path}: can't {operation}: {source}{}", advice(.source))]
    Io {
        /// What was tried: `write`, `fsync`, `rename`, …
        operation: &'static str,
        /// The file or directory.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// The kinds of [`Error`], for a caller that decides by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is documented at the variant of Error with its name"
)]
pub enum ErrorKind {
    NotFound,
    NotAStore,
    AlreadyExists,
    Corrupt,
    Version,
    Unsupported,
    Locked,
    ReadOnly,
    Superseded,
    Invalid,
    Io,
}

impl Error {
    /// Which kind this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::NotAStore { .. } => ErrorKind::NotAStore,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Version { .. } => ErrorKind::Version,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Locked { .. } => ErrorKind::Locked,
            Self::ReadOnly { .. } => ErrorKind::ReadOnly,
            Self::Superseded { .. } => ErrorKind::Superseded,
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Io { .. } => ErrorKind::Io,
        }
    }

    /// Whether the bytes themselves are at fault, so that trying again is no use and the checkpoint
    /// should be marked bad: corrupt, of an unknown version, or missing.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Corrupt | ErrorKind::Version | ErrorKind::Unsupported | ErrorKind::NotFound
        )
    }

    pub(crate) fn corrupt(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.into(),
            what: what.into(),
        }
    }

    pub(crate) fn invalid(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.into(),
            what: what.into(),
        }
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}

/// What to do about the errors of the system that users meet most.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => "; free space on this file system, or use another --store",
        io::ErrorKind::QuotaExceeded => {
            "; your quota is used up: free space, or use another --store"
        }
        io::ErrorKind::PermissionDenied => "; check who owns the store and its permissions",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is mounted read-only",
        _ if source.raw_os_error() == Some(libc::EIO) => {
            "; the disk or its connection fails: see the system's log"
        }
        _ => "",
    }
}
