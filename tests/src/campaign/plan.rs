//! What happens in a run, drawn from its seed.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::phase::{Phase, Target};
use crate::solver::Solver;
use crate::ways::Ways;

/// The plan of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// What is run.
    pub solver: Solver,
    /// Time between checkpoints.
    pub every: Duration,
    /// How checkpoints are made.
    pub ways: Ways,
    /// The kills, in order.
    pub strikes: Vec<Strike>,
}

/// One or more processes killed at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// How many checkpoints are awaited first.
    pub after_commits: usize,
    /// The phase in which it is made.
    pub phase: Phase,
    /// How long after the phase was entered.
    pub delay: Duration,
    /// Who is killed.
    pub targets: Vec<Target>,
}

/// How large the solvers are.
#[derive(Clone, Debug)]
pub struct Load {
    /// A factor on the number of steps: 1 for an optimised build, less for a slower one.
    pub scale: f64,
    /// Matrices for `cg`.
    pub matrices: Vec<PathBuf>,
}

impl Plan {
    /// Draws the plan of a seed.
    ///
    /// Solver and aimed phase come from the seed in turn: any 20 seeds in a row aim at each of the five phases
    /// in each of the four solvers once.
    #[must_use]
    pub fn draw(seed: u64, load: &Load) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let ranks = random.random_range(1..=4);
        let solver = solver(seed % 4, ranks, load, &mut random);
        let aimed = Phase::AIMED[usize::try_from(seed / 4 % 5).unwrap_or_default()];
        let processes = solver.process_count();
        let mut strikes = Vec::new();
        if aimed == Phase::Restore {
            // There has to be something to restore from, and a reason to.
            strikes.push(strike(Phase::Computing, 1, processes, &mut random));
            strikes.push(strike(aimed, 0, processes, &mut random));
        } else {
            // Half of the first kills come before the first checkpoint is complete, where that is possible.
            let after = random.random_range(0..=2);
            strikes.push(strike(aimed, after, processes, &mut random));
        }
        for _ in 0..random.random_range(0..=2) {
            let phase = *Phase::AIMED
                .choose(&mut random)
                .unwrap_or(&Phase::Computing);
            strikes.push(strike(phase, 0, processes, &mut random));
        }
        Self {
            seed,
            solver,
            every: Duration::from_millis(random.random_range(60..=350)),
            ways: Ways::draw(&mut random),
            strikes,
        }
    }
}

fn solver(which: u64, ranks: usize, load: &Load, random: &mut ChaCha8Rng) -> Solver {
    let mut solver = match which {
        0 => {
            let mut heat = Solver::heat(ranks, 512, 512, load.count(2500));
            // Half of the jobs change little of their memory, so that their checkpoints refer to others.
            if random.random_ratio(1, 2) {
                heat.arguments.push("--changing=0.05".to_owned());
            }
            heat
        }
        1 => match load.matrices.choose(random) {
            Some(matrix) => Solver::cg(ranks, matrix, load.count(20)),
            None => Solver::new("cg", ranks, "--poisson 200 --tolerance 1e-10"),
        },
        2 => Solver::storm(ranks.max(2), load.count(400_000), 7),
        _ => {
            let rounds = load.count(1500);
            Solver::new(
                "tangle",
                ranks,
                &format!("--rounds {rounds} --pause-us 500"),
            )
        }
    };
    if solver.name != "heat" {
        solver.arguments.push("--progress".to_owned());
    }
    // Every third job has fewer processes than ranks.
    if solver.ranks > 1 && random.random_ratio(1, 3) {
        let processes = random.random_range(1..solver.ranks);
        solver.on(processes)
    } else {
        solver
    }
}

fn strike(phase: Phase, after_commits: usize, processes: usize, random: &mut ChaCha8Rng) -> Strike {
    let delay_us = match phase {
        Phase::Computing => random.random_range(0..80_000),
        Phase::Write => random.random_range(0..500),
        Phase::Restore => random.random_range(0..5_000),
        // These last so shortly that the time to notice them is delay enough.
        _ => 0,
    };
    let first = random.random_range(0..processes);
    let other = (first + random.random_range(1..processes.max(2))) % processes;
    let targets = match random.random_range(0..10) {
        0..=4 => vec![Target::Process(first)],
        5..=6 if other != first => vec![Target::Process(first), Target::Process(other)],
        5..=7 => vec![Target::Coordinator],
        8 => vec![Target::Coordinator, Target::Process(first)],
        _ => vec![Target::Process(first), Target::Coordinator],
    };
    Strike {
        after_commits,
        phase,
        delay: Duration::from_micros(delay_us),
        targets,
    }
}

impl Load {
    fn count(&self, full: usize) -> usize {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        // counts are far below 2^52 and not negative
        let scaled = (full as f64 * self.scale) as usize;
        scaled.max(1)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--every {}ms {} {}",
            self.every.as_millis(),
            self.ways,
            self.solver.shown(),
        )?;
        for strike in &self.strikes {
            let targets: Vec<_> = strike.targets.iter().map(Target::to_string).collect();
            write!(f, "; kill {} in {}", targets.join(" and "), strike.phase)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_twenty_seeds_in_a_row_aim_at_each_phase_in_each_solver() {
        let load = Load {
            scale: 1.0,
            matrices: Vec::new(),
        };
        let mut pairs: Vec<_> = (1033..1053)
            .map(|seed| {
                let plan = Plan::draw(seed, &load);
                // A strike at a restore is the second one.
                let restores = plan
                    .strikes
                    .get(1)
                    .is_some_and(|strike| strike.phase == Phase::Restore);
                let aimed = match plan.strikes[0].phase {
                    Phase::Computing if restores && seed / 4 % 5 == 4 => Phase::Restore,
                    phase => phase,
                };
                (plan.solver.name, aimed)
            })
            .collect();
        pairs.sort();
        pairs.dedup();
        assert_eq!(pairs.len(), 20, "{pairs:?}");
    }

    #[test]
    fn a_seed_draws_the_same_plan_each_time() {
        let load = Load {
            scale: 1.0,
            matrices: Vec::new(),
        };
        assert_eq!(
            Plan::draw(42, &load).to_string(),
            Plan::draw(42, &load).to_string()
        );
    }
}
