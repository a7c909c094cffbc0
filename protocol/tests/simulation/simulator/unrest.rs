//! Who wants ranks moved, what happens to their sources and targets, and what must hold of every move.

use std::time::Duration;

use protocol::ids::{Incarnation, Process, Rank};
use protocol::migration::{Ask, Done, MoveMode};
use rand::RngExt;

use super::command::Command;
use super::deeds::KILLED;
use super::process::Hosted;
use super::world::World;
use super::{Checked, violated};

impl World {
    /// No rank is run by two processes, nor by one that the record does not name.
    pub(super) fn run_by_one(&self, incarnation: Incarnation) -> Checked {
        let of_it = self.hosted.iter().filter(|(key, _)| key.0 == incarnation);
        let of_it: Vec<(Process, &Hosted)> = of_it.map(|(key, hosted)| (key.1, hosted)).collect();
        let moves = self
            .command
            .as_ref()
            .filter(|it| it.incarnation == Some(incarnation));
        let record = moves.and_then(|command| command.moves.as_ref());
        for rank in self.ranks() {
            let runs = |(_, hosted): &&(Process, &Hosted)| hosted.mover.is_here(rank);
            let running: Vec<Process> = of_it.iter().filter(runs).map(|it| it.0).collect();
            if running.len() > 1 {
                return violated(format!("{rank} is run by {running:?}"));
            }
            let recorded = record.map(|moves| moves.placement()[rank.index()]);
            if let (Some(runs), Some(recorded)) = (running.first(), recorded)
                && *runs != recorded
            {
                return violated(format!("{rank} is run by {runs}, and {recorded} owns it"));
            }
        }
        Ok(())
    }

    /// A move has ended: its rank is run where it is said to be.
    fn is_run(&self, rank: Rank, process: Process) -> bool {
        let incarnation = self
            .command
            .as_ref()
            .and_then(|command| command.incarnation);
        incarnation.is_some_and(|incarnation| {
            let hosted = self.hosted.get(&(incarnation, process));
            hosted
                .is_none_or(|hosted| hosted.mover.is_here(rank) && hosted.ranks.contains_key(&rank))
        })
    }

    /// The coordinator has no move under way: so no process has, but one that has not heard what its own threads have told.
    fn is_over_everywhere(&self) -> Checked {
        let incarnation = self.command.as_ref().and_then(|it| it.incarnation);
        let of_it = self.hosted.iter().filter(|it| Some(it.0.0) == incarnation);
        for ((_, process), hosted) in of_it {
            if hosted.mover.is_moving() && hosted.news.is_empty() {
                return violated(format!(
                    "the last move is over, and {process} has a part in one"
                ));
            }
        }
        Ok(())
    }

    /// Somebody may want a rank moved.
    pub(super) fn want_moves(&mut self) -> Checked {
        if self.options.moves == 0.0 || !self.rng.random_bool(self.options.moves) {
            return Ok(());
        }
        let modes = [
            MoveMode::Stop,
            MoveMode::Precopy,
            MoveMode::Postcopy,
            MoveMode::Checkpoint,
            MoveMode::Safepoint,
            MoveMode::Auto,
        ];
        let now = self.now;
        if self.moves_left == 0 {
            return Ok(());
        }
        // Whoever wants more than that waits for some of them.
        let waits = |command: &&mut Command| {
            let moves = command.moves.as_ref();
            moves.is_some_and(|moves| moves.waiting() < 8)
        };
        let Some(command) = self.command.as_mut().filter(waits) else {
            return Ok(());
        };
        let ask = Ask {
            rank: Rank(self.rng.random_range(0..self.script.ranks())),
            to: Process(self.rng.random_range(0..command.processes)),
            mode: modes[self.rng.random_range(0..modes.len())],
            within: Duration::from_micros(100 << self.rng.random_range(0..9)),
        };
        self.moves_left -= 1;
        command.ask(now, ask);
        self.perform()
    }

    /// Somebody may want a process drained, or taken back.
    pub(super) fn want_drains(&mut self) -> Checked {
        let Some(rng) = &mut self.drains else {
            return Ok(());
        };
        let Some(command) = self.command.as_mut().filter(|_| rng.random_bool(0.002)) else {
            return Ok(());
        };
        let process = Process(rng.random_range(0..command.processes));
        let back = rng.random_bool(0.3);
        command.drain(self.now, process, back);
        self.perform()
    }

    /// A process is out of the job: it hosts nothing, and nothing is on its links. Perhaps it is killed, before it ends by itself.
    pub(super) fn released(&mut self, process: Process) -> Checked {
        self.report.releases += 1;
        let incarnation = self.command.as_ref().and_then(|it| it.incarnation);
        let Some(hosted) = incarnation.and_then(|of| self.hosted.get(&(of, process))) else {
            return Ok(());
        };
        if !hosted.ranks.is_empty() || !hosted.held.is_empty() || hosted.mover.is_moving() {
            return violated(format!("{process} is released, and has ranks or packets"));
        }
        let kill = self.drains.as_mut().is_some_and(|rng| rng.random_bool(0.5));
        if let Some(incarnation) = incarnation.filter(|_| kill) {
            self.report.released_kills += 1;
            self.end(incarnation, process, KILLED);
        }
        Ok(())
    }

    /// What became of a move that somebody wanted.
    pub(super) fn moved(&mut self, outcome: &Result<Done, String>) -> Checked {
        match outcome {
            Ok(done) => {
                let moves = self.command.as_ref().and_then(|it| it.moves.as_ref());
                let underway: Vec<_> = moves.iter().flat_map(|moves| moves.underway()).collect();
                self.report.moves += u64::from(done.from != done.to);
                self.report.moves_beside_others += u64::from(!underway.is_empty());
                let moves_on = underway.iter().any(|other| other.rank == done.rank);
                if done.from != done.to && !moves_on && !self.is_run(done.rank, done.to) {
                    return violated(format!("{} was moved and is run by nobody", done.rank));
                }
                if underway.is_empty() {
                    self.is_over_everywhere()?;
                }
            }
            Err(reason) => {
                self.report.moves_given_up += 1;
                let waited = reason.contains("a checkpoint was due");
                self.report.moves_for_snapshots += u64::from(waited);
            }
        }
        Ok(())
    }

    /// Perhaps the source or the target of a move is killed now, or hangs.
    pub(super) fn trouble_a_move(&mut self) -> Checked {
        let kills = self.options.move_kills;
        let command = self.command.as_ref();
        let underway = command.and_then(|it| Some((it.incarnation?, it.moves.as_ref()?)));
        let Some((incarnation, moves)) = underway else {
            return Ok(());
        };
        let underway: Vec<_> = moves.underway().collect();
        if underway.is_empty() || !self.rng.random_bool(kills) {
            return Ok(());
        }
        self.troubles_left -= 1;
        let chosen = underway[self.rng.random_range(0..underway.len())];
        self.report.move_kills[chosen.step as usize] += 1;
        let process = match self.rng.random_bool(0.5) {
            true => chosen.from,
            false => chosen.to,
        };
        if self.rng.random_bool(0.2) {
            if let Some(hosted) = self.hosted.get_mut(&(incarnation, process)) {
                hosted.hung = true;
            }
            return Ok(());
        }
        self.report.process_kills += 1;
        self.end(incarnation, process, KILLED);
        self.perform()
    }
}
