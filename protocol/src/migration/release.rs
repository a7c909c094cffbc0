//! Draining: which processes get no rank any more, and their release from the job once they host none.
//!
//! A process is *drained* from the moment at which somebody asks for that: no move has it for its target any more. The caller asks
//! for moves of the ranks that are there ([`Moves::handle_drain`] plans where to). When the last is gone and its move is
//! over, the process is *released*: all are told, it says farewell on every link, and when every other process has taken
//! that, nothing connects it with the job. So a release is done with no move and no snapshot under way, like those with each
//! other, and what comes after it need not know that the process was ever there. One is released after the other.
//!
//! A release can't be given up: its last word is the farewell, after which a process could not come back to its links. So
//! what is drained may be taken back ([`Moves::handle_undrain`]) until then. The loss of the process before all have parted is a
//! loss like any; after it, it is none.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::interface::MovesOutput as Output;
use super::messages::MoveDirective;
use super::moves::Moves;
use crate::faults::Faults;
use crate::ids::{Process, Rank};

/// How a process stands to the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// It takes part.
    #[default]
    Member,
    /// No rank comes to it.
    Drained,
    /// It is out of the job.
    Released,
}

/// A release under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct UnderWay {
    process: Process,
    /// Who has not ended its link to it.
    awaited: Vec<Process>,
    /// When those are named.
    deadline: Duration,
}

/// Which processes are drained and released.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Releases {
    /// By process.
    standings: Vec<Standing>,
    under_way: Option<UnderWay>,
    /// Released ones that the snapshot side has not been told of.
    untold: Vec<Process>,
}

impl Releases {
    pub(super) fn new(processes: u32, drained: &[Process]) -> Self {
        let standing = |process| match drained.contains(&process) {
            true => Standing::Drained,
            false => Standing::Member,
        };
        Self {
            standings: (0..processes).map(Process).map(standing).collect(),
            under_way: None,
            untold: Vec::new(),
        }
    }

    pub(super) fn take_untold(&mut self) -> Vec<Process> {
        std::mem::take(&mut self.untold)
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.under_way.as_ref().map(|it| it.deadline)
    }

    fn standing(&self, process: Process) -> Standing {
        let standing = self.standings.get(process.index());
        standing.copied().unwrap_or(Standing::Released)
    }

    /// Why no rank can come to a process, if none can.
    pub(super) fn closed(&self, process: Process) -> Option<&'static str> {
        match self.standing(process) {
            Standing::Member => None,
            Standing::Drained => Some("is drained"),
            Standing::Released => Some("was drained and is released"),
        }
    }

    /// By process, whether it is released: it has nothing to learn.
    pub(super) fn released(&self) -> Vec<bool> {
        let standings = self.standings.iter();
        standings.map(|it| *it == Standing::Released).collect()
    }

    pub(super) fn give_up(&mut self) {
        self.under_way = None;
    }

    fn with(&self, wanted: Standing) -> impl Iterator<Item = Process> {
        let standings = (0..).map(Process).zip(&self.standings);
        let found = standings.filter(move |(_, standing)| **standing == wanted);
        found.map(|(process, _)| process)
    }
}

/// Why processes can't be drained, or taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    /// There is no such process.
    #[error("there is no {process}: the job has {processes} processes")]
    NoSuchProcess {
        /// Which.
        process: Process,
        /// How many there are.
        processes: u32,
    },
    /// They are drained, and nothing is left to be done.
    #[error("drained already")]
    AlreadyDrained,
    /// Nobody would be left for the ranks to go to.
    #[error(
        "the ranks there could go nowhere: every other process is drained; have idle processes or nodes for them \
         (`ckpt run --idle-procs`), or take others back (`ckpt undrain`)"
    )]
    NobodyLeft,
    /// They are not drained.
    #[error("not drained")]
    NotDrained,
}

impl<F: Faults> Moves<F> {
    /// From now on no rank comes to these processes, and once they host none they are released. Gives the moves that
    /// this takes: each rank that they host, its process, and the process with the fewest ranks that it can go to. Ranks
    /// that are on their way already are left out. The caller asks for the moves.
    ///
    /// # Errors
    /// When it can't be; then nothing has changed.
    pub fn handle_drain(
        &mut self,
        processes: &[Process],
    ) -> Result<Vec<(Rank, Process, Process)>, DrainError> {
        let count = self.config.processes;
        if let Some(&process) = processes.iter().find(|process| process.0 >= count) {
            return Err(DrainError::NoSuchProcess {
                process,
                processes: count,
            });
        }
        let mut targets: Vec<(usize, Process)> = self
            .releases
            .with(Standing::Member)
            .filter(|process| !processes.contains(process))
            .map(|process| (0, process))
            .collect();
        let going = |rank: Rank| {
            let queued = self.queue.iter().filter(|(_, ask)| ask.rank == rank);
            let queued = queued.map(|(_, ask)| ask.to).next_back();
            let active = self.underway().filter(|it| it.rank == rank);
            queued.or(active.map(|it| it.to).next())
        };
        let mut to_move = Vec::new();
        for (rank, &from) in (0..).map(Rank).zip(&self.placement) {
            let goes_to = going(rank);
            let at = goes_to.unwrap_or(from);
            if let Some(target) = targets.iter_mut().find(|target| target.1 == at) {
                target.0 += 1;
            } else if processes.contains(&from) || goes_to.is_some_and(|to| processes.contains(&to))
            {
                to_move.push((rank, from));
            }
        }
        if targets.is_empty() {
            return Err(DrainError::NobodyLeft);
        }
        let drained = |process: &Process| self.releases.standing(*process) != Standing::Member;
        if to_move.is_empty() && processes.iter().all(drained) {
            return Err(DrainError::AlreadyDrained);
        }
        for process in processes {
            let standing = &mut self.releases.standings[process.index()];
            if *standing == Standing::Member {
                *standing = Standing::Drained;
            }
        }
        let plan = to_move.into_iter().filter_map(|(rank, from)| {
            let target = targets.iter_mut().min()?;
            target.0 += 1;
            Some((rank, from, target.1))
        });
        Ok(plan.collect())
    }

    /// Ranks may come to these processes again. Gives those that are released, or about to be: they are out until the next
    /// start of the job.
    ///
    /// # Errors
    /// When there is no such process, or none of them is drained.
    pub fn handle_undrain(&mut self, processes: &[Process]) -> Result<Vec<Process>, DrainError> {
        let count = self.config.processes;
        if let Some(&process) = processes.iter().find(|process| process.0 >= count) {
            return Err(DrainError::NoSuchProcess {
                process,
                processes: count,
            });
        }
        let member = |process: &Process| self.releases.standing(*process) == Standing::Member;
        if processes.iter().all(member) {
            return Err(DrainError::NotDrained);
        }
        let mut out = Vec::new();
        for &process in processes {
            let leaving = self.releases.under_way.as_ref();
            let leaving = leaving.is_some_and(|it| it.process == process);
            let standing = &mut self.releases.standings[process.index()];
            if *standing == Standing::Released || leaving {
                out.push(process);
            } else {
                *standing = Standing::Member;
            }
        }
        Ok(out)
    }

    /// How a process stands to the job.
    #[must_use]
    pub fn standing(&self, process: Process) -> Standing {
        self.releases.standing(process)
    }

    /// A drained process that hosts no rank, and none is on its way.
    pub(super) fn next_to_release(&self) -> Option<Process> {
        let mut drained = self.releases.with(Standing::Drained);
        drained.find(|process| !self.placement.contains(process) && !self.is_moving(*process))
    }

    pub(super) fn begin_release(&mut self, now: Duration, process: Process) {
        let out = self.releases.released();
        let others = (0..self.config.processes).map(Process);
        let awaited = others.filter(|other| *other != process && !out[other.index()]);
        let awaited: Vec<Process> = awaited.collect();
        self.releases.under_way = Some(UnderWay {
            process,
            awaited,
            deadline: now.saturating_add(self.config.end_patience),
        });
        let directive = MoveDirective::Release { process };
        self.outputs.push_back(Output::TellAll { directive });
    }

    /// A process has ended its link to the one that is released.
    pub(super) fn handle_parted(&mut self, process: Process, released: Process) {
        let Some(under_way) = &mut self.releases.under_way else {
            return;
        };
        if under_way.process != released {
            return;
        }
        under_way.awaited.retain(|other| *other != process);
        if under_way.awaited.is_empty() {
            self.releases.under_way = None;
            self.releases.standings[released.index()] = Standing::Released;
            self.releases.untold.push(released);
            self.outputs
                .push_back(Output::Released { process: released });
        }
    }

    /// Names those that a release waits for, if it is time.
    pub(super) fn name_late_links(&mut self, now: Duration) {
        let patience = self.config.end_patience;
        if let Some(under_way) = &mut self.releases.under_way
            && now >= under_way.deadline
        {
            under_way.deadline = now.saturating_add(patience);
            self.outputs.push_back(Output::WaitingToRelease {
                process: under_way.process,
                processes: under_way.awaited.clone(),
            });
        }
    }
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
