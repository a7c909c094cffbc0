//! Ranks that move about between the processes of a running job.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use crate::bed::{Bed, PATIENCE};
use crate::job::Outcome;
use crate::solver::Solver;

/// Why a move may be refused where the job restarts or ends meanwhile, whatever the way of the rank.
const AT_AN_END: &[&str] = &[
    "not running",
    "do not run at the moment",
    "ending or about to restart",
    "returned from its main function",
    "connection broke",
    // Killed, and the other side of the move noticed before the coordinator.
    "is gone: its memory can't be read",
    "the source can't be reached",
];

/// Why a move out of a checkpoint may be refused, where checkpoints are taken now and then.
const WITHOUT_CHECKPOINT: &[&str] = &[
    // A rank that has just come, or has just started.
    "no checkpoint of rank",
    // With `--track hash`.
    "can't be told: the kernel does not track what is written",
];

/// Asks for a move in this mode, and waits until it is over.
///
/// # Errors
/// When the command can't be started or does not end in time.
pub fn migrate(bed: &Bed, rank: usize, to: &str, mode: &str) -> Result<Outcome> {
    let rank = rank.to_string();
    bed.on_store("migrate", &[&rank, "--to", to, "--mode", mode, "--json"])
}

/// How ranks are moved, how long, and how often at least.
#[derive(Clone, Copy, Debug)]
pub struct Wandering {
    /// So long.
    pub time: Duration,
    /// So many moves, and longer for it if need be.
    pub least: usize,
    /// In one of these modes each time.
    pub modes: &'static [&'static str],
    /// Why a move may be refused in addition, where one of the processes is killed.
    pub broken: &'static [&'static str],
}

impl Wandering {
    fn is_known(&self, mode: &str, reason: &str) -> bool {
        let more = match mode {
            "checkpoint" => WITHOUT_CHECKPOINT,
            _ => &[],
        };
        let mut known = AT_AN_END.iter().chain(self.broken).chain(more);
        known.any(|known| reason.contains(known))
    }
}

/// Moves random ranks to random processes without pause, until something says so at the latest. Gives how many have moved.
///
/// # Errors
/// When a move is refused for another reason than that the job restarts or ends.
pub fn move_about(
    bed: &Bed,
    solver: &Solver,
    random: &mut ChaCha8Rng,
    wandering: Wandering,
    stop: &AtomicBool,
) -> Result<usize> {
    let begin = Instant::now();
    let mut moved = 0;
    while (begin.elapsed() < wandering.time || moved < wandering.least)
        && !stop.load(Ordering::SeqCst)
    {
        ensure!(begin.elapsed() < PATIENCE, "only {moved} moves");
        let rank = random.random_range(0..solver.ranks);
        let to = random.random_range(0..solver.process_count());
        let mode = wandering.modes[random.random_range(0..wandering.modes.len())];
        let outcome = migrate(bed, rank, &to.to_string(), mode)?;
        let record = outcome.json()?;
        match outcome.code() {
            Some(0) => moved += usize::from(record["result"]["from"] != record["result"]["to"]),
            Some(69) => {
                let reason = record["error"]["message"].as_str().unwrap_or_default();
                ensure!(wandering.is_known(mode, reason), "{reason}");
            }
            _ => anyhow::bail!("{}", outcome.story()),
        }
    }
    Ok(moved)
}
