//! Jobs that are started in an allocation: by `salloc` with no option, by srun, two at once, and ended by `scancel`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{PATIENCE, undisturbed};
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::process;
use tests::skip::skip;
use tests::slurm::{self, Slurm};
use tests::solver::Solver;

/// Four ranks for so many steps, to be on two nodes with two each.
fn heat(steps: usize) -> Solver {
    Solver::heat(4, 64, 64, steps)
}

/// Two nodes with Slurm and Open MPI; none, with the reason printed, where that can't be.
fn up(test: &str) -> Result<Option<Cluster>> {
    if let Some(why) = slurm::missing().or_else(|| Mpi::OpenMpi.missing()) {
        skip(test, &why);
        return Ok(None);
    }
    Ok(Some(Cluster::up(2)?.with_mpi(Mpi::OpenMpi)?))
}

/// A batch script that goes on with the job of the store.
fn script(cluster: &Cluster, solver: &Solver, options: &str) -> String {
    format!(
        "#!/bin/sh\nexec {} run -n {} --store {} --events {} --resume {options} -- {} {}\n",
        cluster.binaries().ckpt.display(),
        solver.ranks,
        cluster.store().display(),
        cluster.events().display(),
        solver.program(cluster.binaries()).display(),
        solver.arguments.join(" ")
    )
}

#[test]
fn inside_salloc_no_option_is_needed() -> Result<()> {
    let Some(cluster) = up("inside salloc")? else {
        return Ok(());
    };
    let slurm = Slurm::up(&cluster)?;
    let solver = heat(200);
    let job = slurm.allocate("--nodes=2 --ntasks-per-node=2", &solver, "")?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, undisturbed(&solver)?);
    let start = outcome.events.iter().find(|event| event.is("start"));
    let nodes = start.map(|start| start.fields["nodes"].clone());
    let expected = serde_json::json!([
        {"node": "node1", "processes": 2},
        {"node": "node2", "processes": 2},
    ]);
    assert_eq!(nodes, Some(expected), "{}", outcome.story());
    // The allocation is given back, and nothing is left of it.
    slurm.wait_empty()?;
    process::wait_until_gone(cluster.mark(), Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn srun_starts_the_processes_and_again_after_kills_and_after_scancel() -> Result<()> {
    let Some(cluster) = up("srun as the launcher")? else {
        return Ok(());
    };
    let slurm = Slurm::up(&cluster)?;
    // It ends when it has been through all of this.
    let may_end = cluster.join("may-end");
    let mut solver = heat(2000);
    let until = ["--until".to_owned(), may_end.display().to_string()];
    solver.arguments.extend(until);
    let mut random = ChaCha8Rng::seed_from_u64(51);
    let text = script(&cluster, &solver, "--launch srun --every 100ms");
    let options = "--nodes=2 --ntasks-per-node=2";
    let committed = |start: usize| -> Result<()> {
        slurm.wait_events("a checkpoint", |events| {
            let go = events.iter().filter(|event| event.is("go")).nth(start - 1);
            go.is_some_and(|go| {
                let mut after = events.iter().filter(|event| event.t_us > go.t_us);
                after.any(|event| event.is("committed"))
            })
        })
    };
    let job = slurm.submit(options, &text)?;
    committed(1)?;
    let alive = cluster.solvers(&solver);
    ensure!(alive.len() == 4, "processes that run: {alive:?}");
    process::send(alive[random.random_range(0..4)], Signal::SIGKILL)?;
    committed(2)?;
    slurm.tell(&format!("scancel {}", job.id()))?;
    job.wait_state("CANCELLED")?;
    process::wait_until_gone(cluster.mark(), Duration::from_secs(20)).context("after scancel")?;
    let output = job.output();
    ensure!(
        output.contains("stopped; `ckpt restart` goes on") && !output.contains("result: "),
        "no last checkpoint when it was cancelled:\n{output}"
    );

    std::fs::write(&may_end, "")?;
    let job = slurm.submit(options, &text)?;
    job.wait_state("COMPLETED")?;
    let expected = format!("result: {}", undisturbed(&solver)?);
    ensure!(
        job.output().lines().any(|line| line == expected),
        "no `{expected}`:\n{}",
        job.output()
    );
    Ok(())
}

#[test]
fn a_drained_node_of_srun_is_killed_and_nothing_restarts() -> Result<()> {
    let test = "a drained node of srun";
    if let Some(why) = slurm::missing().or_else(|| Mpi::OpenMpi.missing()) {
        skip(test, &why);
        return Ok(());
    }
    let cluster = Cluster::up(3)?.with_mpi(Mpi::OpenMpi)?;
    let slurm = Slurm::up(&cluster)?;
    let solver = Solver::storm(6, 14_000, 62).pausing(Duration::from_millis(60));
    let text = script(&cluster, &solver, "--launch srun --every 200ms");
    let job = slurm.submit("--nodes=3 --ntasks-per-node=2 --no-kill", &text)?;
    slurm.wait_events("the start", |events| {
        events.iter().any(|event| event.is("go"))
    })?;
    let drained = cluster.json("drain", &["node3", "--wait"])?;
    ensure!(drained["done"] == true, "{drained}");
    let left = cluster.nodes().node(3).running("storm");
    ensure!(left.is_empty(), "on the node that is drained: {left:?}");
    let killed_us = process::now_us();
    cluster.nodes().kill(3)?;
    job.wait_state("COMPLETED")?;
    slurm.wait_events("the end", |events| {
        let after = events.iter().filter(|event| event.t_us > killed_us);
        let committed = after.filter(|event| event.is("committed")).count();
        let starts = events.iter().filter(|event| event.is("start")).count();
        let ended = events.iter().any(|event| event.is("end"));
        ended && committed >= 3 && starts == 1
    })?;
    let expected = format!("result: {}", undisturbed(&solver)?);
    ensure!(
        job.output().lines().any(|line| line == expected),
        "no `{expected}`:\n{}",
        job.output()
    );
    Ok(())
}

#[test]
fn two_jobs_share_an_allocation() -> Result<()> {
    let Some(cluster) = up("two jobs in an allocation")? else {
        return Ok(());
    };
    let slurm = Slurm::up(&cluster)?;
    let solvers = [heat(200), Solver::storm(4, 4000, 61)];
    // One by mpirun, the other by srun.
    let mut text = "#!/bin/sh\n".to_owned();
    for (solver, launch) in solvers.iter().zip(["", "--launch srun"]) {
        text.push_str(&format!(
            "{} run -n 4 --store {} --every 100ms {launch} -- {} {} &\n",
            cluster.binaries().ckpt.display(),
            cluster.join(&solver.name).display(),
            solver.program(cluster.binaries()).display(),
            solver.arguments.join(" ")
        ));
    }
    text.push_str("wait\n");
    let job = slurm.submit("--nodes=2 --ntasks-per-node=2", &text)?;
    job.wait_state("COMPLETED")?;
    for solver in &solvers {
        let expected = format!("result: {}", undisturbed(solver)?);
        ensure!(
            job.output().lines().any(|line| line == expected),
            "no `{expected}` of {}:\n{}",
            solver.shown(),
            job.output()
        );
    }
    Ok(())
}
