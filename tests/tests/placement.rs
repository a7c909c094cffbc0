//! Many ranks on few processes, and on others after a restart.

use anyhow::Result;
use nix::sys::signal::Signal;
use tests::bed::{Bed, PATIENCE};
use tests::phase::Target;
use tests::solver::Solver;

#[test]
fn storm_of_64_ranks_runs_on_2_processes_and_on_16() -> Result<()> {
    let storm = Solver::storm(64, 12_000, 11);
    let on_2 = Bed::new()?
        .run(&storm.clone().on(2), "--every 200ms")?
        .expect_code(0)?;
    let on_16 = Bed::new()?
        .run(&storm.on(16), "--every 200ms")?
        .expect_code(0)?;
    assert_eq!(on_2.result()?, on_16.result()?);
    Ok(())
}

#[test]
fn storm_of_64_ranks_on_2_processes_outlives_a_kill() -> Result<()> {
    let storm = Solver::storm(64, 30_000, 12).on(2);
    let expected = Bed::new()?
        .run(&storm, "--every off")?
        .expect_code(0)?
        .result()?;
    let bed = Bed::new()?;
    let mut job = bed.start(&storm, "--every 100ms")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    job.must_kill(Target::Process(1))?;
    assert_eq!(job.wait(PATIENCE)?.expect_code(0)?.result()?, expected);
    Ok(())
}

#[test]
fn a_job_goes_on_with_fewer_and_with_more_processes() -> Result<()> {
    let solver = Solver::new("misbehave", 4, "nothing 0 200");
    let expected = Bed::new()?
        .run(&solver, "--every off")?
        .expect_code(0)?
        .result()?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every off")?;
    for processes in [1, 3, 2] {
        let before = job.stdout().len();
        job.wait_lines("ten more steps", before + 10, |line| {
            line.starts_with("step ")
        })?;
        job.signal(Signal::SIGTERM)?;
        job.wait(PATIENCE)?.expect_code(75)?;
        job = bed.restart(&format!("--procs {processes}"))?;
        let start = job.wait_events("the start", 1, |event| {
            event.is("start") && event.pids().len() == processes
        })?;
        assert!(start.epoch().is_some(), "{start:?}");
    }
    assert_eq!(job.wait(PATIENCE)?.expect_code(0)?.result()?, expected);
    Ok(())
}
