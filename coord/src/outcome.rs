//! How a job ended, and the exit code that says so. `docs/cli.md` documents the codes.

use protocol::ids::Epoch;
use protocol::recovery::End;

/// Exit codes of `ckpt`. A solver's own code passes through besides these.
pub mod code {
    /// The command line can't be done as it is (`EX_USAGE` of sysexits.h).
    pub const USAGE: i32 = 64;
    /// The job can't go on by itself (`EX_UNAVAILABLE`).
    pub const UNRECOVERABLE: i32 = 69;
    /// A failure of the library's own (`EX_SOFTWARE`).
    pub const INTERNAL: i32 = 70;
    /// The job was stopped and can be gone on with by `ckpt restart` (`EX_TEMPFAIL`).
    pub const RESUMABLE: i32 = 75;
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the recovery machine says.
    pub end: End,
    /// The newest committed checkpoint.
    pub committed: Option<Epoch>,
    /// How often the job was restarted.
    pub restarts: u32,
}

impl Outcome {
    /// One word for programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.end {
            End::Complete => "complete",
            End::SolverFailed { .. } => "solver_failed",
            End::Stopped { .. } => "stopped",
            End::CannotStart { .. } => "usage",
            End::RestartsUsedUp { .. }
            | End::NoCheckpoint { .. }
            | End::StoreFailed { .. }
            | End::FilesUnusable { .. } => "unrecoverable",
            End::NodesUsedUp { .. } => "nodes_lost",
            End::Superseded { .. } => "superseded",
            End::Broken { .. } => "internal",
        }
    }

    /// The exit code.
    #[must_use]
    pub fn code(&self) -> i32 {
        match &self.end {
            End::Complete => 0,
            // A failure must not look like success, whatever number came with it.
            End::SolverFailed { code, .. } => match code & 0xff {
                0 => 1,
                code => code,
            },
            End::Stopped { .. } | End::NodesUsedUp { .. } => code::RESUMABLE,
            End::CannotStart { .. } => code::USAGE,
            End::RestartsUsedUp { .. }
            | End::NoCheckpoint { .. }
            | End::StoreFailed { .. }
            | End::FilesUnusable { .. }
            | End::Superseded { .. } => code::UNRECOVERABLE,
            End::Broken { .. } => code::INTERNAL,
        }
    }

    /// One or two sentences for people: what happened, and what to do.
    #[must_use]
    pub fn message(&self) -> String {
        let go_on = match self.committed {
            Some(epoch) => format!("`ckpt restart` goes on from {epoch}"),
            None => "there is no checkpoint; `ckpt restart` begins again".to_owned(),
        };
        match &self.end {
            End::Complete => match self.restarts {
                0 => "complete".to_owned(),
                1 => "complete, after 1 restart".to_owned(),
                restarts => format!("complete, after {restarts} restarts"),
            },
            End::SolverFailed {
                rank: Some(rank),
                code,
                message,
                ..
            } => format!("{rank} failed with code {code}: {message}"),
            End::SolverFailed { message, .. } => format!("the solver failed: {message}"),
            End::Stopped { without_last: None } => format!("stopped; {go_on}"),
            End::Stopped {
                without_last: Some(reason),
            } => format!("stopped without a last checkpoint ({reason}); {go_on}"),
            End::CannotStart { reason } | End::Broken { reason } | End::Superseded { reason } => {
                reason.clone()
            }
            End::NodesUsedUp { reason } => format!("{reason}. Once there are nodes, {go_on}"),
            End::RestartsUsedUp { restarts, last } => format!(
                "given up after {restarts} restarts without a new checkpoint; the last failure: {last}. {go_on}, --max-restarts allows more"
            ),
            End::NoCheckpoint { reason } => format!("nothing to go on from: {reason}"),
            End::FilesUnusable { reason } => {
                format!("{reason}. No file was changed; once it is mended, {go_on}")
            }
            End::StoreFailed { reason } => {
                format!("the store can't be used: {reason}. Once it can, {go_on}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(end: End) -> Outcome {
        Outcome {
            end,
            committed: Some(Epoch(4)),
            restarts: 0,
        }
    }

    #[test]
    fn a_solvers_code_passes_through_and_never_becomes_success() {
        for (code, expected) in [(3, 3), (101, 101), (0, 1), (256, 1), (-1, 255)] {
            let end = End::SolverFailed {
                process: protocol::ids::Process(0),
                rank: None,
                code,
                message: String::new(),
            };
            assert_eq!(outcome(end).code(), expected);
        }
    }

    #[test]
    fn files_that_are_missing_cost_nothing_but_the_start() {
        let missing = outcome(End::FilesUnusable {
            reason: "no lines.2".to_owned(),
        });
        assert_eq!(missing.code(), 69);
        assert_eq!(
            missing.message(),
            "no lines.2. No file was changed; once it is mended, `ckpt restart` goes on from epoch 4"
        );
    }

    #[test]
    fn a_stopped_job_says_where_it_goes_on() {
        let stopped = outcome(End::Stopped { without_last: None });
        assert_eq!(stopped.code(), 75);
        assert_eq!(
            stopped.message(),
            "stopped; `ckpt restart` goes on from epoch 4"
        );
    }
}
