//! Whose output a line is, where that was asked (`--label`).
//!
//! The coordinator then hands a pipe for each rank. A process with several ranks points its standard
//! output and error at the running rank's pipes before each turn.

use std::io::Write;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use libckpt_rank::process::inherited_descriptor;
use protocol::control::environment;
use protocol::ids::Rank;

use crate::error::StartError;

/// The outputs of the ranks of this process.
pub(crate) struct Output {
    /// Empty where lines are not labelled.
    pipes: Vec<(Rank, OwnedFd, OwnedFd)>,
    current: Option<Rank>,
}

impl Output {
    /// Reads what the coordinator handed over.
    ///
    /// # Errors
    /// When the variable is malformed or names no open descriptor.
    pub(crate) fn from_environment() -> Result<Self, StartError> {
        let mut pipes = Vec::new();
        if let Ok(text) = std::env::var(environment::OUTPUT_FDS) {
            for part in text.split(',').filter(|part| !part.is_empty()) {
                let malformed = |reason: String| StartError::Environment {
                    name: environment::OUTPUT_FDS,
                    reason,
                };
                let mut numbers = part.split(':').map(str::parse::<i32>);
                let (Some(Ok(rank)), Some(Ok(out)), Some(Ok(err)), None) = (
                    numbers.next(),
                    numbers.next(),
                    numbers.next(),
                    numbers.next(),
                ) else {
                    return Err(malformed(format!("{part:?} is not RANK:OUT:ERR")));
                };
                let rank = u32::try_from(rank)
                    .map_err(|_| malformed(format!("{part:?} has a negative rank")))?;
                let open =
                    |fd| inherited_descriptor(fd).map_err(|error| malformed(error.to_string()));
                pipes.push((Rank(rank), open(out)?, open(err)?));
            }
        }
        Ok(Self {
            pipes,
            current: None,
        })
    }

    /// The output of a rank, if it has one of its own.
    pub(crate) fn of(&self, rank: Rank) -> Option<(&OwnedFd, &OwnedFd)> {
        let found = self.pipes.iter().find(|pipes| pipes.0 == rank);
        found.map(|(_, out, err)| (out, err))
    }

    /// A rank leaves with its output.
    pub(crate) fn take(&mut self, rank: Rank) -> Option<(OwnedFd, OwnedFd)> {
        if self.current == Some(rank) {
            self.current = None;
        }
        let at = self.pipes.iter().position(|pipes| pipes.0 == rank)?;
        let (_, out, err) = self.pipes.swap_remove(at);
        Some((out, err))
    }

    /// A rank has come with its output.
    pub(crate) fn add(&mut self, rank: Rank, (out, err): (OwnedFd, OwnedFd)) {
        self.pipes.push((rank, out, err));
    }

    /// The descriptors of all outputs.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let pipes = self.pipes.iter();
        pipes.flat_map(|(_, out, err)| [out.as_raw_fd(), err.as_raw_fd()])
    }

    /// Makes standard output and error those of a rank.
    #[inline]
    pub(crate) fn switch_to(&mut self, rank: Rank) {
        if self.pipes.is_empty() || self.current == Some(rank) {
            return;
        }
        self.switch(rank);
    }

    #[cold]
    fn switch(&mut self, rank: Rank) {
        use std::os::fd::AsFd;
        let _ = std::io::stdout().flush();
        if let Some((_, out, err)) = self.pipes.iter().find(|(of, _, _)| *of == rank) {
            let point = |at: fn(BorrowedFd<'_>) -> nix::Result<()>, to: &OwnedFd| {
                if let Err(error) = at(to.as_fd()) {
                    eprintln!("libckpt: the output of {rank} can't be told apart: {error}");
                }
            };
            point(|to| nix::unistd::dup2_stdout(to), out);
            point(|to| nix::unistd::dup2_stderr(to), err);
            self.current = Some(rank);
        }
    }
}
