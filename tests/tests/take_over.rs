//! A coordinator that hangs while another one takes its job over publishes nothing afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::bed::{Bed, PATIENCE};
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::skip::skip;
use tests::solver::Solver;

/// What the store holds of the first start of the job.
fn of_first_start(cluster: &Cluster) -> Result<Vec<Value>> {
    let listed = cluster.json("ls", &[])?;
    let checkpoints = listed["checkpoints"].as_array().context("checkpoints")?;
    Ok(checkpoints
        .iter()
        .filter(|checkpoint| checkpoint["incarnation"] == 1)
        .cloned()
        .collect())
}

#[test]
fn a_coordinator_that_was_stopped_and_replaced_publishes_nothing_when_it_goes_on() -> Result<()> {
    for mpi in Mpi::ALL {
        if let Some(why) = tests::nodes::missing().or_else(|| mpi.missing()) {
            skip(&format!("a coordinator replaced with {mpi}"), &why);
            continue;
        }
        is_replaced(mpi).map_err(|error| error.context(mpi.to_string()))?;
    }
    Ok(())
}

fn is_replaced(mpi: Mpi) -> Result<()> {
    let solver = Solver::heat(4, 128, 128, 2500);
    let expected = Bed::new()?
        .run(&solver, "--every off")?
        .expect_code(0)?
        .result()?;
    let cluster = Cluster::up(2)?.with_mpi(mpi)?;
    let options = "--every 100ms --heartbeat-timeout 1s --keep 1000";
    let mut first = cluster.start_on(&[1, 2], 2, &solver, options)?;
    first.wait_events("two checkpoints", 2, |event| event.is("committed"))?;
    first.signal(Signal::SIGSTOP)?;

    // Its processes end themselves when they have not heard of it for as long as their lease.
    let stopped = Instant::now();
    while !cluster.solvers(&solver).is_empty() {
        ensure!(
            stopped.elapsed() < PATIENCE,
            "processes of a coordinator that hangs go on: {:?}",
            cluster.solvers(&solver)
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
    let published = of_first_start(&cluster)?;
    let mut second = cluster.restart("--take-over")?;
    second.wait_events("its start", 2, |event| event.is("go"))?;
    // The launcher of the one that hangs has ended by itself, with what it started.
    let launchers = cluster.running(mpi.mpirun());
    ensure!(launchers.len() == 1, "launchers: {launchers:?}");
    first.signal(Signal::SIGCONT)?;
    let superseded = first.wait(PATIENCE)?.expect_code(69)?;
    ensure!(
        superseded.stderr_text().contains("taken the job over"),
        "{}",
        superseded.story()
    );
    let outcome = second.wait(PATIENCE)?.expect_code(0)?;
    ensure!(outcome.result()? == expected, "{}", outcome.story());

    let after = of_first_start(&cluster)?;
    ensure!(
        after.len() == published.len(),
        "published by the one that was replaced: {after:?}, and before {published:?}"
    );
    let verified = cluster.json("verify", &[])?;
    ensure!(verified["sound"] == true, "{verified}");
    Ok(())
}
