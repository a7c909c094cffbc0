//! Processes are lost in every way, and the job ends with the same bits.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{Bed, PATIENCE, undisturbed};
use tests::campaign::drive::ORPHAN_LIMIT;
use tests::job::Outcome;
use tests::phase::Target;
use tests::process;
use tests::skip::skip;
use tests::solver::Solver;

fn heat(ranks: usize) -> Solver {
    Solver::heat(ranks, 256, 256, 3000)
}

#[test]
fn heat_with_one_rank_killed_ends_with_the_same_bits() -> Result<()> {
    let expected = undisturbed(&heat(4))?;
    let bed = Bed::new()?;
    let mut job = bed.start(&heat(4), "--every 100ms")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    job.must_kill(Target::Process(2))?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    assert_eq!(outcome.count("restart"), 1, "{}", outcome.story());
    assert_eq!(outcome.count("start"), 2);
    let second = outcome
        .events
        .iter()
        .filter(|event| event.is("start"))
        .nth(1);
    assert!(
        second.is_some_and(|start| start.epoch().is_some()),
        "restarted from the beginning"
    );
    Ok(())
}

#[test]
fn a_job_killed_before_its_first_checkpoint_begins_again() -> Result<()> {
    let expected = undisturbed(&heat(2))?;
    let bed = Bed::new()?;
    let mut job = bed.start(&heat(2), "--every off")?;
    job.wait_lines("the tenth step", 10, |line| line.starts_with("step "))?;
    job.must_kill(Target::Process(0))?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    Ok(())
}

#[test]
fn a_job_of_one_rank_takes_checkpoints_and_recovers() -> Result<()> {
    // Alone, a rank sends nothing: its collective calls are all that the library sees of it.
    let solver = Solver::new("misbehave", 1, "nothing 0 60");
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every 100ms")?;
    job.wait_events("two checkpoints", 2, |event| event.is("committed"))?;
    job.must_kill(Target::Process(0))?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    Ok(())
}

#[test]
fn two_processes_killed_at_once_are_one_failure() -> Result<()> {
    let expected = undisturbed(&heat(3))?;
    let bed = Bed::new()?;
    let mut job = bed.start(&heat(3), "--every 100ms")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    job.kill_at_once(&[0, 2])?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    assert_eq!(outcome.count("restart"), 1, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_process_that_hangs_is_replaced() -> Result<()> {
    let expected = undisturbed(&heat(2))?;
    let bed = Bed::new()?;
    let mut job = bed.start(&heat(2), "--every 100ms --heartbeat-timeout 1s")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    let hung = job.pids()?[1];
    process::send(hung, Signal::SIGSTOP)?;
    let lost = job.wait_event("the loss", |event| event.is("lost"))?;
    assert_eq!(lost.process(), Some(1), "{lost:?}");
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    assert!(!process::alive(hung), "the hung process lives on");
    Ok(())
}

#[test]
fn a_lost_coordinator_takes_its_processes_along_and_a_restart_goes_on() -> Result<()> {
    let expected = undisturbed(&heat(4))?;
    let bed = Bed::new()?;
    let mut job = bed.start(&heat(4), "--every 100ms")?;
    job.wait_events("two checkpoints", 2, |event| event.is("committed"))?;
    job.must_kill(Target::Coordinator)?;
    process::wait_until_gone(bed.mark(), ORPHAN_LIMIT)?;
    let killed = job.wait(PATIENCE)?;
    assert_eq!(killed.signal(), Some(9));
    let newest = tests::campaign::check::newest_in_store(&bed)?;
    let outcome = bed.restart("")?.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    let last = outcome.events.iter().rfind(|event| event.is("start"));
    assert!(newest.is_some());
    assert_eq!(last.and_then(tests::events::Event::epoch), newest);
    Ok(())
}

#[test]
fn a_hung_process_does_not_outlive_a_lost_coordinator() -> Result<()> {
    let bed = Bed::new()?;
    let mut job = bed.start(&heat(2), "--every off")?;
    job.wait_event("the start", |event| event.is("go"))?;
    process::send(job.pids()?[0], Signal::SIGSTOP)?;
    job.must_kill(Target::Coordinator)?;
    process::wait_until_gone(bed.mark(), ORPHAN_LIMIT)?;
    job.wait(PATIENCE)?;
    Ok(())
}

#[test]
fn cg_on_finite_element_matrices_iterates_the_same_through_kills() -> Result<()> {
    for name in ["elasticity_bar.mtx", "ldg_diffusion.mtx"] {
        let Some(matrix) = tests::matrix::shared(name) else {
            skip(
                "cg on finite-element matrices",
                &format!("no ../shared/data/{name} beside the checkout"),
            );
            continue;
        };
        for ranks in 1..=4 {
            cg_iterates_the_same(&matrix, ranks)?;
        }
    }
    Ok(())
}

#[test]
fn cg_on_a_matrix_of_our_own_iterates_the_same_through_kills() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let matrix = folder.path().join("own.mtx");
    tests::matrix::write_own(&matrix, 30)?;
    cg_iterates_the_same(&matrix, 3)
}

/// All that `cg` prints is compared: iterations and residual of each solution, and the result.
fn cg_iterates_the_same(matrix: &Path, ranks: usize) -> Result<()> {
    let solver = Solver::cg(ranks, matrix, 8);
    let undisturbed = Bed::new()?.run(&solver, "--every off")?.expect_code(0)?;
    let bed = Bed::new()?;
    let mut random = ChaCha8Rng::seed_from_u64(ranks as u64);
    let mut job = bed.start(&solver, "--every 50ms")?;
    for starts in 1..=2 {
        job.wait_events("the start", starts, |event| event.is("go"))?;
        std::thread::sleep(Duration::from_millis(random.random_range(20..300)));
        let victim = Target::Process(random.random_range(0..ranks));
        job.must_kill(victim)?;
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(
        distinct(&outcome),
        distinct(&undisturbed),
        "{}",
        outcome.story()
    );
    Ok(())
}

/// The lines of an output, each once: a line printed after the last checkpoint comes again after a restart.
fn distinct(outcome: &Outcome) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in &outcome.stdout {
        if !lines.contains(&line.text) {
            lines.push(line.text.clone());
        }
    }
    lines
}
