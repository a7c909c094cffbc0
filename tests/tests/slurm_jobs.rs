//! Batch jobs by the script of `examples/slurm`, through all that Slurm does to them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::bed::Bed;
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::skip::skip;
use tests::slurm::job::BatchJob;
use tests::slurm::{self, Slurm};
use tests::solver::Solver;

fn script() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/slurm/ckpt.sbatch")
}

/// Submits the script of the example with a solver, disturbs the job, and compares what it ends with.
fn same_bits(
    test: &str,
    solver: &Solver,
    options: &str,
    disturb: impl Fn(&Slurm<'_>, &BatchJob<'_>) -> Result<()>,
) -> Result<()> {
    if let Some(why) = slurm::missing().or_else(|| Mpi::OpenMpi.missing()) {
        skip(test, &why);
        return Ok(());
    }
    let expected = Bed::new()?
        .run(solver, "--every off")?
        .expect_code(0)?
        .result()?;
    let cluster = Cluster::up(3)?.with_mpi(Mpi::OpenMpi)?;
    std::os::unix::fs::symlink(&cluster.binaries().ckpt, cluster.nodes().bin().join("ckpt"))
        .context("link ckpt")?;
    let slurm = Slurm::up(&cluster)?;
    let mut arguments = vec![solver.program(cluster.binaries()).display().to_string()];
    arguments.extend(solver.arguments.iter().cloned());
    let store = cluster.store().display().to_string();
    let job = slurm.submit_file(
        &format!("--nodes=3 --ntasks-per-node=2 {options}"),
        &script(),
        &arguments,
        &[("STORE", &store), ("EVERY", "500ms")],
    )?;
    job.wait_output("step 20\n")?;
    disturb(&slurm, &job)?;
    job.wait_state("COMPLETED")?;
    let output = job.output();
    ensure!(
        output
            .lines()
            .any(|line| line == format!("result: {expected}")),
        "other bits than without Slurm, {expected}:\n{output}"
    );
    Ok(())
}

/// Six ranks for so many steps of 10 ms and a little more.
fn heat(steps: usize) -> Solver {
    Solver::new(
        "heat",
        6,
        &format!("--size 64x64 --steps {steps} --pause-us 10000 --progress"),
    )
}

#[test]
fn a_batch_job_that_is_requeued_goes_on() -> Result<()> {
    same_bits("a batch job requeued", &heat(1500), "", |_, job| {
        job.requeue()?;
        job.wait_state("RUNNING")?;
        Ok(())
    })
}

#[test]
fn a_batch_job_outlives_a_node_that_is_set_down() -> Result<()> {
    same_bits("a node set down", &heat(1500), "", |slurm, _| {
        slurm.tell("scontrol update nodename=node2 state=down reason=test")?;
        Ok(())
    })
}

#[test]
fn a_batch_job_that_needs_more_than_its_time_limit_is_requeued_by_itself() -> Result<()> {
    same_bits("a time limit", &heat(6000), "--time=1", |_, job| {
        job.wait_state("PENDING")?;
        Ok(())
    })
}
