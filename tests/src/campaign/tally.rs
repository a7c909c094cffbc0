//! Adds up the runs of a campaign.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::campaign::drive::Run;
use crate::campaign::plan::Plan;
use crate::phase::{Phase, Target};

/// What a campaign showed.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Runs by solver: good and bad.
    solvers: BTreeMap<String, (usize, usize)>,
    /// Kills of processes and of coordinators by phase.
    phases: BTreeMap<Phase, (usize, usize)>,
    restored: usize,
    from_the_beginning: usize,
    repeated_steps: usize,
    orphans_lived: Duration,
    failed_seeds: Vec<u64>,
}

impl Tally {
    /// Adds a good run.
    pub fn add(&mut self, plan: &Plan, run: &Run) {
        self.solvers.entry(plan.solver.name.clone()).or_default().0 += 1;
        for (kill, phase) in &run.kills {
            let counts = self.phases.entry(*phase).or_default();
            match kill.target {
                Target::Process(_) => counts.0 += 1,
                Target::Coordinator => counts.1 += 1,
            }
        }
        self.restored += run.judged.restored;
        self.from_the_beginning += run.judged.from_the_beginning;
        self.repeated_steps += run.judged.repeated_steps;
        self.orphans_lived = self
            .orphans_lived
            .max(run.orphans_lived.unwrap_or_default());
    }

    /// Adds a failed one.
    pub fn add_failed(&mut self, plan: &Plan) {
        self.solvers.entry(plan.solver.name.clone()).or_default().1 += 1;
        self.failed_seeds.push(plan.seed);
    }

    /// The seeds that failed.
    #[must_use]
    pub fn failed_seeds(&self) -> &[u64] {
        &self.failed_seeds
    }

    /// How many kills hit a phase.
    #[must_use]
    pub fn hits(&self, phase: Phase) -> usize {
        self.phases
            .get(&phase)
            .map_or(0, |(processes, coordinators)| processes + coordinators)
    }

    /// The aimed phases that were hit less often than wanted.
    #[must_use]
    pub fn missed(&self, wanted: usize) -> Vec<Phase> {
        Phase::AIMED
            .into_iter()
            .filter(|&phase| self.hits(phase) < wanted)
            .collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "solver       identical   failed")?;
        let (mut good, mut bad) = (0, 0);
        for (solver, (identical, failed)) in &self.solvers {
            writeln!(f, "{solver:<12} {identical:>9} {failed:>8}")?;
            good += identical;
            bad += failed;
        }
        writeln!(f, "{:<12} {good:>9} {bad:>8}", "all")?;
        writeln!(f)?;
        writeln!(f, "killed in    processes   coordinators")?;
        for phase in Phase::AIMED.into_iter().chain([Phase::Other]) {
            let (processes, coordinators) = self.phases.get(&phase).copied().unwrap_or_default();
            writeln!(f, "{phase:<12} {processes:>9} {coordinators:>14}")?;
        }
        writeln!(f)?;
        writeln!(f, "restarts from the newest checkpoint: {}", self.restored)?;
        writeln!(
            f,
            "restarts from the beginning, before any checkpoint: {}",
            self.from_the_beginning
        )?;
        writeln!(f, "steps computed again: {}", self.repeated_steps)?;
        writeln!(
            f,
            "longest life of a process after its coordinator: {} ms",
            self.orphans_lived.as_millis()
        )
    }
}
