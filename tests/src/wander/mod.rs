//! Ranks that move about between the processes of a running job.

pub mod journey;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
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

/// The modes in which ranks are moved, of a solver that names safepoints, as all of the examples do.
pub const MODES: &[&str] = &[
    "stop",
    "precopy",
    "postcopy",
    "checkpoint",
    "safepoint",
    "auto",
];

/// What is told where a mode takes a right that this user does not have.
pub const NO_RIGHT: &str = "vm.unprivileged_userfaultfd";

/// Whether processes of this user may handle page faults of system calls, which `postcopy` takes.
#[must_use]
pub fn may_handle_faults() -> bool {
    nix::unistd::geteuid().is_root()
        || std::fs::File::open("/dev/userfaultfd").is_ok()
        || std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
            .is_ok_and(|it| it.trim() == "1")
}

/// Why a move out of a checkpoint may be refused, where checkpoints are taken now and then.
const WITHOUT_CHECKPOINT: &[&str] = &[
    // Of a rank that has just come, or has just started.
    "no checkpoint of rank",
    // With `--track hash`.
    "can't be told: the kernel does not track what is written",
];

/// Why a move may be refused in addition where one of its processes is killed, or the connection between them breaks.
pub const BROKEN: &[&str] = &[
    "is gone, or has given it up",
    "nobody is there",
    "the connection to the target broke",
    "the connection to the source broke",
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
pub struct Wandering<'a> {
    /// So long.
    pub time: Duration,
    /// One begins every so often, whether or not those before it are over; one after the other without pause if not told.
    pub every: Option<Duration>,
    /// So many moves, and longer for it if need be.
    pub least: usize,
    /// In one of these modes each time.
    pub modes: &'a [&'static str],
    /// Why a move may be refused in addition.
    pub broken: &'a [&'static str],
}

impl Wandering<'static> {
    /// Without pause for so long, and so often at least, in any mode.
    #[must_use]
    pub fn without_pause(time: Duration, least: usize) -> Self {
        Self {
            time,
            every: None,
            least,
            modes: MODES,
            broken: BROKEN,
        }
    }
}

/// What became of the moves that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ranks that have moved, by the mode that was asked for.
    pub moved: BTreeMap<&'static str, usize>,
    /// Moves that were refused, or broken by a kill or a restart.
    pub refused: usize,
}

impl Tally {
    /// How many have moved.
    #[must_use]
    pub fn total(&self) -> usize {
        self.moved.values().sum()
    }
}

/// Moves at once, at the most, where one does not wait for the other.
const AT_ONCE: usize = 4;

/// Moves random ranks to random processes, until something says so at the latest. Gives how many have moved.
///
/// # Errors
/// When a move is refused for another reason than that the job restarts or ends.
pub fn move_about(
    bed: &Bed,
    solver: &Solver,
    random: &mut ChaCha8Rng,
    wandering: Wandering<'_>,
    stop: &AtomicBool,
) -> Result<usize> {
    tally_moves(bed, solver, random, wandering, stop).map(|tally| tally.total())
}

/// The same, told by modes.
///
/// # Errors
/// As [`move_about`].
pub fn tally_moves(
    bed: &Bed,
    solver: &Solver,
    random: &mut ChaCha8Rng,
    wandering: Wandering<'_>,
    stop: &AtomicBool,
) -> Result<Tally> {
    let begin = Instant::now();
    let state: Mutex<(usize, Tally, Result<()>)> = Mutex::new((0, Tally::default(), Ok(())));
    let locked = || state.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let mut next = begin;
        loop {
            {
                let state = locked();
                let (under_way, tally, outcome) = &*state;
                let enough = begin.elapsed() >= wandering.time && tally.total() >= wandering.least;
                if enough || stop.load(Ordering::SeqCst) || outcome.is_err() {
                    break;
                }
                let full = *under_way >= wandering.every.map_or(1, |_| AT_ONCE);
                if full || Instant::now() < next {
                    drop(state);
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            }
            if begin.elapsed() > PATIENCE.max(wandering.time * 2) {
                let mut state = locked();
                let moves = state.1.total();
                state.2 = Err(anyhow::anyhow!("only {moves} moves"));
                break;
            }
            // A move that could not begin in time is not made up for.
            next = wandering
                .every
                .map_or(begin, |every| (next + every).max(Instant::now() - every));
            let rank = random.random_range(0..solver.ranks);
            let to = random.random_range(0..solver.process_count());
            let mode = wandering.modes[random.random_range(0..wandering.modes.len())];
            locked().0 += 1;
            let locked = &locked;
            scope.spawn(move || {
                let moved = move_one(bed, rank, to, mode, wandering.broken);
                let mut state = locked();
                state.0 -= 1;
                match moved {
                    Ok(Some(true)) => *state.1.moved.entry(mode).or_default() += 1,
                    Ok(Some(false)) => {}
                    Ok(None) => state.1.refused += 1,
                    Err(error) => {
                        state.2 = Err(error.context(format!("rank {rank} to {to} by {mode}")))
                    }
                }
            });
        }
    });
    let (_, tally, outcome) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.map(|()| tally)
}

/// Moves a rank. Gives whether it was elsewhere before; none where it was refused for a reason that is known.
fn move_one(
    bed: &Bed,
    rank: usize,
    to: usize,
    mode: &str,
    broken: &[&str],
) -> Result<Option<bool>> {
    let outcome = migrate(bed, rank, &to.to_string(), mode)?;
    let record = outcome.json()?;
    match outcome.code() {
        Some(0) => Ok(Some(record["result"]["from"] != record["result"]["to"])),
        Some(69) => {
            let reason = record["error"]["message"].as_str().unwrap_or_default();
            let more: &[&str] = match mode {
                "checkpoint" => WITHOUT_CHECKPOINT,
                "postcopy" if !may_handle_faults() => &[NO_RIGHT],
                _ => &[],
            };
            let mut known = AT_AN_END.iter().chain(broken).chain(more);
            ensure!(known.any(|known| reason.contains(known)), "{reason}");
            Ok(None)
        }
        _ => anyhow::bail!("{}", outcome.story()),
    }
}
