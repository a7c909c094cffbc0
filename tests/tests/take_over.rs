//! A coordinator that hangs while another one takes its job over publishes nothing afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::bed::{Bed, PATIENCE};
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::process::now_us;
use tests::solver::Solver;

/// The checkpoints that may be used: epoch and incarnation.
fn published(cluster: &Cluster) -> Result<Vec<(u64, u64)>> {
    let listed = cluster.json("ls", &[])?;
    let checkpoints = listed["checkpoints"].as_array().context("checkpoints")?;
    let committed = checkpoints
        .iter()
        .filter(|checkpoint| checkpoint["state"] == "committed");
    let numbers = committed.map(|checkpoint| {
        let number = |name: &str| checkpoint[name].as_u64().with_context(|| name.to_owned());
        Ok((number("epoch")?, number("incarnation")?))
    });
    numbers.collect()
}

#[test]
fn a_coordinator_that_was_stopped_and_replaced_publishes_nothing_when_it_goes_on() -> Result<()> {
    let solver = Solver::heat(4, 64, 64, 1500);
    let expected = Bed::new()?
        .run(&solver, "--every off")?
        .expect_code(0)?
        .result()?;
    for mpi in Mpi::ALL {
        let Some(cluster) = Cluster::up_or_skip("a coordinator replaced", 2, mpi)? else {
            continue;
        };
        is_replaced(&cluster, mpi, &solver, &expected)
            .map_err(|error| error.context(mpi.to_string()))?;
    }
    Ok(())
}

fn is_replaced(cluster: &Cluster, mpi: Mpi, solver: &Solver, expected: &str) -> Result<()> {
    let options = "--every 100ms --heartbeat-timeout 1s --keep 1000";
    let mut first = cluster.start_on(&[1, 2], 2, solver, options)?;
    first.wait_events("two checkpoints", 2, |event| event.is("committed"))?;
    first.signal(Signal::SIGSTOP)?;

    let stopped_us = now_us();

    // Its processes end themselves when they have not heard of it for as long as their lease.
    let stopped = Instant::now();
    while !cluster.solvers(solver).is_empty() {
        ensure!(
            stopped.elapsed() < PATIENCE,
            "processes of a coordinator that hangs go on: {:?}",
            cluster.solvers(solver)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = cluster.restart("")?.wait(PATIENCE)?.expect_code(69)?;
    let told = refused.stderr_text();
    ensure!(
        told.contains("in use") && told.contains("--take-over"),
        "{}",
        refused.story()
    );
    let before = published(cluster)?;
    let last = before.iter().map(|(_, incarnation)| *incarnation).max();
    let mut second = cluster.restart("--take-over")?;
    second.wait_event("its start", |event| {
        event.is("go") && event.t_us > stopped_us
    })?;
    let launchers = || cluster.running(mpi.mpirun());
    // The launcher of the one that hangs has ended by itself, with what it started. Open MPI's, which is told that processes may
    // leave, waits for its word.
    if mpi == Mpi::Mpich {
        ensure!(launchers().len() == 1, "launchers: {:?}", launchers());
    }
    first.signal(Signal::SIGCONT)?;
    let superseded = first.wait(PATIENCE)?.expect_code(69)?;
    ensure!(launchers().len() == 1, "launchers: {:?}", launchers());
    // By its own look, or by the store, whichever comes first.
    let told = superseded.stderr_text();
    ensure!(
        told.contains("taken the job over") || told.contains("is superseded"),
        "{}",
        superseded.story()
    );
    let outcome = second.wait(PATIENCE)?.expect_code(0)?;
    ensure!(outcome.result()? == expected, "{}", outcome.story());

    let mut after = published(cluster)?;
    ensure!(after.len() > before.len(), "no checkpoint by the new one");
    after.retain(|(_, incarnation)| Some(*incarnation) <= last);
    ensure!(
        after == before,
        "published by the one that was replaced: {after:?}, and before {before:?}"
    );
    let verified = cluster.json("verify", &[])?;
    ensure!(verified["sound"] == true, "{verified}");
    Ok(())
}
