//! Carries out the plan of a run.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::bed::{Bed, PATIENCE};
use crate::campaign::check::{self, Judged};
use crate::campaign::plan::{Plan, Strike};
use crate::events::Event;
use crate::job::{Job, Kill, Outcome};
use crate::output::Line;
use crate::phase::{Phase, Target};
use crate::process;
use crate::solver::Solver;

/// No rank process may outlive its coordinator by more than this.
pub const ORPHAN_LIMIT: Duration = Duration::from_secs(5);

/// How long a phase is waited for before a strike is given up: the job may have become too short for it.
const AIM: Duration = Duration::from_secs(20);

/// A run that went as it should.
#[derive(Clone, Debug)]
pub struct Run {
    /// The kills that were made, with the phase that each hit.
    pub kills: Vec<(Kill, Phase)>,
    /// What the checks saw.
    pub judged: Judged,
    /// How long the last orphan lived after its coordinator was killed, of all times.
    pub orphans_lived: Option<Duration>,
}

/// What a run left behind for the checks.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// All events, of all coordinators.
    pub events: Vec<Event>,
    /// All output, of all coordinators.
    pub stdout: Vec<Line>,
    /// The newest checkpoint in the store when a lost coordinator was replaced, in order.
    pub newest_at_restart: Vec<Option<u64>>,
}

/// Results of undisturbed runs, each made once.
#[derive(Debug, Default)]
pub struct References(Mutex<HashMap<Solver, String>>);

impl References {
    /// The result of a solver that nobody disturbs and that takes no checkpoint.
    ///
    /// # Errors
    /// When the run fails.
    pub fn result(&self, solver: &Solver) -> Result<String> {
        let mut known = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(result) = known.get(solver) {
            return Ok(result.clone());
        }
        let outcome = Bed::new()?.run(solver, "--every 1h")?.expect_code(0)?;
        let result = outcome.result().context("the undisturbed run")?;
        known.insert(solver.clone(), result.clone());
        Ok(result)
    }
}

/// Carries out a plan and checks the run.
///
/// # Errors
/// When anything about the run is not as it must be. The folder with the store and the events is kept, and
/// the error tells where.
pub fn drive(plan: &Plan, references: &References) -> Result<Run> {
    let expected = references.result(&plan.solver)?;
    let mut bed = Bed::new()?;
    let run = strike_all(plan, &bed).and_then(|(record, kills, orphans_lived)| {
        bed.check_clean()?;
        let judged = check::judge(&record, &expected)?;
        let kills = kills
            .into_iter()
            .map(|kill| {
                let phase = crate::phase::phase_hit(
                    &record.events,
                    kill.target,
                    kill.before_us,
                    kill.after_us,
                );
                (kill, phase)
            })
            .collect();
        Ok(Run {
            kills,
            judged,
            orphans_lived,
        })
    });
    run.map_err(|error| {
        process::kill_marked(bed.mark());
        error.context(format!("kept for a look: {}", bed.keep().display()))
    })
}

type Struck = (Record, Vec<Kill>, Option<Duration>);

fn strike_all(plan: &Plan, bed: &Bed) -> Result<Struck> {
    let mut record = Record::default();
    let mut kills = Vec::new();
    let mut orphans_lived = None;
    // Kills in a row without a checkpoint between them are what this is about, not a broken solver.
    let options = format!(
        "--every {}ms --max-restarts 50 {}",
        plan.every.as_millis(),
        plan.ways
    );
    let mut job = bed.start_free(&plan.solver, &options)?;
    for strike in &plan.strikes {
        if !aim(&mut job, strike)? {
            break;
        }
        for &target in &strike.targets {
            // The coordinator's end takes its processes along; they can't be killed twice.
            kills.extend(job.kill(target)?);
        }
        if strike.targets.contains(&Target::Coordinator) {
            let lived = process::wait_until_gone(bed.mark(), ORPHAN_LIMIT)?;
            orphans_lived = orphans_lived.max(Some(lived));
            let outcome = job.wait(PATIENCE)?;
            record.stdout.extend(outcome.stdout.clone());
            if !was_killed(&outcome) {
                // It had come to its end just before.
                outcome.expect_code(0)?;
                record.events = crate::events::read_all(&bed.events())?;
                return Ok((record, kills, orphans_lived));
            }
            record.newest_at_restart.push(check::newest_in_store(bed)?);
            job = bed.restart("")?;
        }
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    record.stdout.extend(outcome.stdout);
    record.events = outcome.events;
    Ok((record, kills, orphans_lived))
}

fn was_killed(outcome: &Outcome) -> bool {
    outcome.signal() == Some(nix::sys::signal::Signal::SIGKILL as i32)
}

/// Waits for the moment of a strike. False when the job ends before it comes.
fn aim(job: &mut Job<'_>, strike: &Strike) -> Result<bool> {
    let target = *strike.targets.first().context("a strike has a target")?;
    if strike.phase != Phase::Restore && !job.wait_phase(target, Phase::Computing, AIM)? {
        return Ok(false);
    }
    if strike.after_commits > 0 {
        let wanted = format!("{} commits", strike.after_commits);
        let reached = job.wait_events(&wanted, strike.after_commits, |event| event.is("committed"));
        if let Err(error) = reached {
            if !job.has_ended()? {
                bail!("{error:#}");
            }
            return Ok(false);
        }
    }
    // A phase that is missed comes again with the next snapshot; a restore only with the next failure.
    if !job.wait_phase(target, strike.phase, AIM)? {
        return Ok(false);
    }
    spin(strike.delay);
    Ok(!job.has_ended()?)
}

/// Waits without sleeping when the time is short, for sleeping takes longer.
fn spin(delay: Duration) {
    if delay > Duration::from_millis(2) {
        std::thread::sleep(delay);
        return;
    }
    let start = std::time::Instant::now();
    while start.elapsed() < delay {
        std::hint::spin_loop();
    }
}
