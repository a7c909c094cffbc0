//! A job whose ranks move all the time, beside checkpoints and kills, and what has to come of it.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Tally, Wandering, tally_moves};
use crate::bed::{Bed, PATIENCE, undisturbed};
use crate::job::Job;
use crate::nodes::cluster::Cluster;
use crate::nodes::mpi::Mpi;
use crate::process;
use crate::solver::Solver;

/// What a job's processes have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory.
    Shared,
    /// An MPI, on so many nodes.
    Nodes(Mpi, usize),
}

/// Which solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A storm of messages, of which none may be lost or doubled.
    Storm,
    /// The heat equation.
    Heat,
    /// Conjugate gradients on a matrix of our own.
    Cg,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Journey<'w> {
    /// What the ranks compute.
    pub kind: Kind,
    /// Where.
    pub place: Place,
    /// How many ranks and processes; as many as fit the place if not told.
    pub size: Option<(usize, usize)>,
    /// What the ranks compute takes about so long, at least. When it is done before the moves are, they wait for them.
    pub work: Duration,
    /// How long and how often ranks move.
    pub wandering: Wandering<'w>,
    /// Time between checkpoints, if any are taken.
    pub checkpoints: Option<Duration>,
    /// More options of the launcher, as words.
    pub options: &'w str,
    /// A process is killed about this often, if at all.
    pub kills: Option<Duration>,
    /// What all that is random is drawn from.
    pub seed: u64,
}

/// What was seen of a job that gave the right bits.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The moves.
    pub tally: Tally,
    /// Processes that were killed.
    pub kills: usize,
    /// Checkpoints that were taken.
    pub checkpoints: usize,
    /// For how long ranks moved.
    pub moved_for: Duration,
    /// How long the job took.
    pub took: Duration,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Storm, Self::Heat, Self::Cg];

    /// A solver that takes at least so long. `folder` is where a matrix may lie.
    fn solver(self, ranks: usize, time: Duration, seed: u64, folder: &Path) -> Result<Solver> {
        let lasting = |each_ms: f64| (time.as_secs_f64() * 1e3 / each_ms).ceil();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a number of steps
        let count = |number: f64| number as usize;
        Ok(match self {
            // Each rank sends 48 messages in a round. Ranks of one process rest one after the other.
            Self::Storm => {
                let rounds = lasting(36.0);
                #[allow(clippy::cast_precision_loss)] // a few ranks
                let messages = count(rounds * 48.0 * ranks as f64);
                Solver::storm(ranks, messages, seed).pausing(Duration::from_millis(20))
            }
            Self::Heat => Solver::heat(ranks, 96, 128, count(lasting(1.4))),
            Self::Cg => {
                let matrix = folder.join("own.mtx");
                crate::matrix::write_own(&matrix, 30)?;
                // A right-hand side takes a little over a hundred iterations.
                Solver::cg(ranks, &matrix, count(lasting(70.0)))
            }
        })
    }
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved = self.tally.moved.iter();
        let moved: Vec<String> = moved
            .map(|(mode, count)| format!("{count} {mode}"))
            .collect();
        write!(
            f,
            "{} moves in {:.1} s ({}), {} refused or broken, {} checkpoints, {} kills; the job took {:.1} s",
            self.tally.total(),
            self.moved_for.as_secs_f64(),
            moved.join(", "),
            self.tally.refused,
            self.checkpoints,
            self.kills,
            self.took.as_secs_f64(),
        )
    }
}

impl fmt::Display for Journey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {}, seed {}", self.kind, self.place, self.seed)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Storm => "storm",
            Self::Heat => "heat",
            Self::Cg => "cg",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared => f.write_str("shared memory"),
            Self::Nodes(mpi, 0) => write!(f, "{mpi} on this node"),
            Self::Nodes(mpi, nodes) => write!(f, "{mpi} on {nodes} nodes"),
        }
    }
}

impl Journey<'_> {
    /// Why it can't be made here; none if it can.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        match self.place {
            Place::Shared => None,
            Place::Nodes(mpi, _) => crate::nodes::missing().or_else(|| mpi.missing()),
        }
    }

    /// Makes it, and checks what has to hold: the bits of an undisturbed run, a sound store, and a start more than there were
    /// kills, at the most.
    ///
    /// # Errors
    /// When anything of that does not hold.
    pub fn make(&self) -> Result<Arrival> {
        let folder = tempfile::tempdir()?;
        let (ranks, processes) = self.size.unwrap_or(match self.place {
            Place::Shared | Place::Nodes(_, 0) => (4, 3),
            Place::Nodes(_, nodes) => (2 * nodes + 2, 2 * nodes),
        });
        let solver = self
            .kind
            .solver(ranks, self.work, self.seed, folder.path())?;
        let solver = solver.on(processes);
        let expected = undisturbed(&solver.clone().hurrying())?;
        let mut options = match self.checkpoints {
            Some(every) => format!("--every {}ms", every.as_millis()),
            None => "--every off".to_owned(),
        };
        options = format!("{options} --max-restarts 1000 {}", self.options);
        match self.place {
            Place::Shared => {
                let bed = Bed::new()?;
                let job = bed.start(&solver, &options)?;
                self.travel(&bed, job, &solver, &expected)
            }
            Place::Nodes(mpi, count) => {
                let cluster = Cluster::up(count)?.with_mpi(mpi)?;
                let options = format!("--launch mpirun {options}");
                let nodes: Vec<usize> = (1..=count).collect();
                let job = match count {
                    0 => cluster.start(&solver, &options)?,
                    _ => cluster.start_on(&nodes, 2, &solver, &options)?,
                };
                self.travel(&cluster, job, &solver, &expected)
            }
        }
    }

    fn travel(
        &self,
        bed: &Bed,
        mut job: Job<'_>,
        solver: &Solver,
        expected: &str,
    ) -> Result<Arrival> {
        let begin = Instant::now();
        job.wait_event("the start", |event| event.is("go"))?;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let stop = AtomicBool::new(false);
        // What is read out of a checkpoint needs one.
        let modes = self.wandering.modes.iter().copied();
        let modes = modes.filter(|mode| *mode != "checkpoint" || self.checkpoints.is_some());
        let modes: Vec<&'static str> = modes.collect();
        let wandering = Wandering {
            modes: &modes,
            ..self.wandering
        };
        let moving = Instant::now();
        let (tally, kills) = std::thread::scope(|scope| -> Result<(Tally, usize)> {
            let mover = scope.spawn(|| tally_moves(bed, solver, &mut random, wandering, &stop));
            let killed = self.kill(bed, &mut job, solver, &|| mover.is_finished());
            stop.store(true, Ordering::SeqCst);
            let tally = mover.join().expect("the mover does not panic");
            Ok((tally?, killed?))
        })?;
        let moved_for = moving.elapsed();
        let outcome = job
            .wait(PATIENCE.max(self.wandering.time * 10))?
            .expect_code(0)?;
        let story = || outcome.story();
        ensure!(
            outcome.result().with_context(story)? == expected,
            "{}",
            story()
        );
        ensure!(
            outcome.count("start") <= 1 + kills,
            "more starts than kills\n{}",
            story()
        );
        let checkpoints = outcome.count("committed");
        ensure!(
            (checkpoints > 0) == self.checkpoints.is_some(),
            "{}",
            story()
        );
        if checkpoints > 0 {
            ensure!(bed.json("verify", &[])?["sound"] == true, "{}", story());
        }
        Ok(Arrival {
            tally,
            kills,
            checkpoints,
            moved_for,
            took: begin.elapsed(),
        })
    }

    /// Kills a process now and then, until the moves are over. Gives how many.
    fn kill(
        &self,
        bed: &Bed,
        job: &mut Job<'_>,
        solver: &Solver,
        is_over: &dyn Fn() -> bool,
    ) -> Result<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(1000));
        let mut kills = 0;
        while !is_over() {
            let Some(about) = self.kills else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let until = Instant::now() + about.mul_f64(random.random_range(0.5..1.5));
            while !is_over() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            if is_over() {
                break;
            }
            let alive = bed.solvers(solver);
            ensure!(!alive.is_empty(), "nothing to kill");
            let victim = alive[random.random_range(0..alive.len())];
            process::send(victim, Signal::SIGKILL)?;
            kills += 1;
            job.wait_events("the next start", kills + 1, |event| event.is("go"))?;
        }
        Ok(kills)
    }
}
