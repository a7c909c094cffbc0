//! Why a command could not do what it was asked, and the exit code for it.

use coord::client::ClientError;
use coord::code;
use serde::Serialize;
use store::ErrorKind;

/// Something in a store is not as it was written (`EX_DATAERR` of sysexits.h).
pub const DAMAGED: i32 = 65;

/// What kind of failure, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The command line can't be done as it is.
    Usage,
    /// What is needed is not there, in use, or does not work.
    Unavailable,
    /// A file of the store is not as it was written.
    Damaged,
    /// A failure of `ckpt` or the system under it.
    Internal,
}

/// A command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub kind: Kind,
    /// What failed, where, why, and what to do.
    pub message: String,
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Usage,
            message: message.into(),
        }
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Unavailable,
            message: message.into(),
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Internal,
            message: message.into(),
        }
    }

    /// The exit code.
    pub fn code(&self) -> i32 {
        match self.kind {
            Kind::Usage => code::USAGE,
            Kind::Unavailable => code::UNRECOVERABLE,
            Kind::Damaged => DAMAGED,
            Kind::Internal => code::INTERNAL,
        }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::NotAStore
            | ErrorKind::AlreadyExists
            | ErrorKind::Invalid => Kind::Usage,
            ErrorKind::Locked | ErrorKind::Superseded | ErrorKind::Io => Kind::Unavailable,
            ErrorKind::Corrupt | ErrorKind::Version | ErrorKind::Unsupported => Kind::Damaged,
            ErrorKind::ReadOnly => Kind::Internal,
        };
        Self {
            kind,
            message: error.to_string(),
        }
    }
}

impl From<coord::Error> for Failure {
    fn from(error: coord::Error) -> Self {
        match error {
            coord::Error::Store(error) => error.into(),
            coord::Error::Program(_)
            | coord::Error::Events { .. }
            | coord::Error::Listen { .. } => Self::usage(error.to_string()),
            coord::Error::System { .. } => Self::internal(error.to_string()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::unavailable(error.to_string())
    }
}
