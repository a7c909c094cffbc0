//! What can't be done on a cluster is told at once and clearly: what failed, where, and what to do.

use anyhow::{Context as _, Result, ensure};
use tests::bed::PATIENCE;
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::process;
use tests::solver::Solver;

fn solver() -> Solver {
    Solver::heat(4, 64, 64, 2000)
}

/// Runs the solver on both nodes, which has to fail with all of these words in the message.
fn refused(cluster: &Cluster, options: &str, words: &[&str]) -> Result<()> {
    let outcome = cluster
        .start_on(&[1, 2], 2, &solver(), options)?
        .wait(PATIENCE)?;
    ensure!(outcome.code() != Some(0), "{}", outcome.story());
    let told = outcome.stderr_text();
    for word in words {
        ensure!(told.contains(word), "no `{word}` in\n{}", outcome.story());
    }
    ensure!(outcome.count("restart") == 0, "{}", outcome.story());
    Ok(())
}

#[test]
fn no_mpirun_on_the_path() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip("no mpirun", 2, Mpi::OpenMpi)? else {
        return Ok(());
    };
    let cluster = cluster.with_variable("PATH=/nowhere");
    refused(&cluster, "", &["mpirun", "path"])?;
    refused(&cluster, "--launch no-such-mpirun", &["no-such-mpirun"])
}

#[test]
fn a_host_that_can_not_be_reached() -> Result<()> {
    for mpi in Mpi::ALL {
        let Some(cluster) = Cluster::up_or_skip("a host out of reach", 2, mpi)? else {
            continue;
        };
        cluster.nodes().kill(2)?;
        refused(&cluster, "", &["node2"])?;
    }
    Ok(())
}

#[test]
fn a_store_that_the_other_nodes_do_not_see() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip("a node-local store", 2, Mpi::OpenMpi)? else {
        return Ok(());
    };
    let store = cluster.local("store");
    let shown = store.display().to_string();
    let cluster = cluster.with_store(store);
    refused(&cluster, "", &["node", &shown])
}

#[test]
fn a_process_of_another_program() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip("another program", 2, Mpi::OpenMpi)? else {
        return Ok(());
    };
    let launch = format!(
        "mpirun --oversubscribe -np 3 {{program}} : -np 1 {} --messages 10 --seed 1",
        cluster.binaries().example("storm").display()
    );
    let outcome = cluster
        .start_with(&solver(), &["--launch", &launch])?
        .wait(PATIENCE)?;
    ensure!(outcome.code() != Some(0), "{}", outcome.story());
    let told = outcome.stderr_text();
    ensure!(told.contains("another build"), "{}", outcome.story());
    ensure!(outcome.count("restart") == 0, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_caller_with_a_wrong_token_is_turned_away_and_does_no_harm() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip("a wrong token", 2, Mpi::OpenMpi)? else {
        return Ok(());
    };
    let mut job = cluster.start_on(&[1, 2], 2, &solver(), "--every 200ms")?;
    job.wait_event("the start", |event| event.is("go"))?;
    let pid = *cluster.solvers(&solver()).first().context("a solver")?;
    let environ = std::fs::read(format!("/proc/{pid}/environ"))?;
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let control = environ
        .split('\0')
        .find(|variable| variable.starts_with("CKPT_CONTROL="))
        .context("its control address")?;
    let program = solver().program(cluster.binaries());
    let node = cluster.nodes().node(1);
    let output = node.exec(&format!(
        "{control} CKPT_TRANSPORT=mpi CKPT_TOKEN={} mpirun -np 1 {} --size 8x8 --steps 1",
        "0".repeat(64),
        program.display()
    ))?;
    ensure!(!output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(told.contains("token"), "{output:?}");
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    ensure!(outcome.count("restart") == 0, "{}", outcome.story());
    process::wait_until_gone(cluster.mark(), std::time::Duration::from_secs(5))?;
    Ok(())
}
