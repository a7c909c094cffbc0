//! How a rank ends, and what the solver's main may return.

use std::convert::Infallible;
use std::fmt::Display;

use protocol::control::exit;

/// How a rank ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It returned well.
    Finished,
    /// The job is to end with this exit code.
    Failed {
        /// The job's exit code, 1 to 255.
        code: i32,
        /// What the rank says; empty where it has said it itself.
        message: String,
    },
}

/// What the solver's main may return.
pub trait Termination {
    /// How the rank ended.
    fn ending(self) -> Ending;
}

impl Termination for () {
    fn ending(self) -> Ending {
        Ending::Finished
    }
}

impl Termination for Infallible {
    fn ending(self) -> Ending {
        match self {}
    }
}

/// An exit code of the solver's own: 0 is a rank that ended well, anything else ends the job with that code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

impl Termination for ExitStatus {
    fn ending(self) -> Ending {
        match self.0 {
            0 => Ending::Finished,
            code => Ending::Failed {
                code: i32::from(code),
                message: String::new(),
            },
        }
    }
}

impl<T: Termination, E: Display> Termination for Result<T, E> {
    fn ending(self) -> Ending {
        match self {
            Ok(value) => value.ending(),
            Err(error) => Ending::Failed {
                code: 1,
                message: error.to_string(),
            },
        }
    }
}

/// The ending of a rank that panicked. The panic hook has printed the message.
pub(crate) fn panicked() -> Ending {
    Ending::Failed {
        code: exit::PANIC,
        message: "panicked".to_owned(),
    }
}
