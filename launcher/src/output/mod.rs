//! How results reach the user: one trait, a mode each for people, for programs, and for nobody.
//!
//! Every mode takes the results apart field by field where it shows them, so that a new field does not
//! compile until each mode has decided about it.

mod json;
mod people;
mod quiet;

pub use json::Json;
pub use people::People;
pub use quiet::Quiet;

use crate::failure::Failure;
use crate::report::{
    DrainReport, ListReport, MovedReport, PsReport, RemovedReport, RunReport, ShowReport,
    StatusReport, TakenReport, UndrainReport, VerifyReport,
};

/// A result of one of the commands.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    Run(RunReport),
    List(ListReport),
    Show(ShowReport),
    Verify(VerifyReport),
    Taken(TakenReport),
    Status(StatusReport),
    Moved(MovedReport),
    Processes(PsReport),
    Drained(DrainReport),
    Undrained(UndrainReport),
    Removed(RemovedReport),
}

/// A mode of output.
pub trait Output {
    /// Something the user should know, said while a command goes on.
    fn warning(&mut self, text: &str);
    /// The result of a command, and the exit code that follows.
    fn report(&mut self, command: &str, code: i32, report: &Report);
    /// A command that failed.
    fn failure(&mut self, command: &str, failure: &Failure);
}
