//! Jobs over MPI on one node, started by mpirun: the same bits as over shared memory, whatever is killed.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{PATIENCE, undisturbed};
use tests::matrix;
use tests::nodes::cluster::{Cluster, with_each_mpi};
use tests::nodes::mpi::Mpi;
use tests::process;
use tests::skip::skip;
use tests::solver::Solver;

/// Kills random processes of a job of two starts, and compares its result with that of the job over shared memory.
fn same_bits_through_kills(solver: &Solver, seed: u64) -> Result<()> {
    let expected = undisturbed(solver)?;
    with_each_mpi(&solver.shown(), 0, |cluster, _| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut job = cluster.start(solver, "--launch mpirun --every 100ms")?;
        for starts in 1..=2 {
            job.wait_events("the start", starts, |event| event.is("go"))?;
            std::thread::sleep(Duration::from_millis(random.random_range(20..600)));
            let alive = cluster.solvers(solver);
            ensure!(!alive.is_empty(), "nothing to kill");
            let victim = alive[random.random_range(0..alive.len())];
            process::send(victim, Signal::SIGKILL)?;
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        ensure!(
            outcome.count("restart") > 0,
            "nothing was restarted\n{}",
            outcome.story()
        );
        ensure!(
            outcome.result()? == expected,
            "other bits than over shared memory\n{}",
            outcome.story()
        );
        Ok(())
    })
}

fn cg(ranks: usize, seed: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let own = folder.path().join("own.mtx");
    matrix::write_own(&own, 30)?;
    same_bits_through_kills(&Solver::cg(ranks, &own, 12), seed)
}

#[test]
fn heat_on_1_to_8_ranks_ends_with_the_same_bits_through_kills() -> Result<()> {
    for (ranks, seed) in [(1, 1), (2, 2), (5, 5), (8, 8)] {
        same_bits_through_kills(&Solver::heat(ranks, 128, 128, 2500), seed)?;
    }
    Ok(())
}

#[test]
fn cg_ends_with_the_same_bits_through_kills() -> Result<()> {
    cg(4, 4)?;
    cg(7, 7)
}

/// That lasts two seconds on any machine: 208 rounds with three ranks, fewer and longer ones with more.
fn storm(ranks: usize, seed: u64) -> Solver {
    let round = Duration::from_millis(3) * u32::try_from(ranks).unwrap_or(u32::MAX);
    Solver::storm(ranks, 30_000, seed).pausing(round)
}

#[test]
fn storm_ends_with_the_same_bits_through_kills() -> Result<()> {
    same_bits_through_kills(&storm(3, 13), 3)?;
    same_bits_through_kills(&storm(6, 16), 6)
}

#[test]
fn several_ranks_to_a_process_end_with_the_same_bits_through_kills() -> Result<()> {
    same_bits_through_kills(&Solver::heat(8, 128, 128, 2500).on(3), 21)?;
    same_bits_through_kills(&storm(12, 22).on(2), 22)
}

#[test]
fn one_build_runs_over_mpi_over_shared_memory_without_a_coordinator_and_alone() -> Result<()> {
    let solver = Solver::heat(2, 64, 64, 200);
    let alone = undisturbed(&Solver::heat(1, 64, 64, 200))?;
    let expected = undisturbed(&solver)?;
    with_each_mpi("one build for all", 0, |cluster, _| {
        let outcome = cluster.run(&solver, "--every off")?.expect_code(0)?;
        assert_eq!(outcome.result()?, expected, "over shared memory");
        std::fs::remove_dir_all(cluster.store())?;
        let outcome = cluster.run(&solver, "--every off --launch mpirun")?;
        assert_eq!(outcome.expect_code(0)?.result()?, expected, "over MPI");

        let program = solver.program(cluster.binaries());
        let line = format!("{} {}", program.display(), solver.arguments.join(" "));
        let head = cluster.nodes().head();
        let output = head.exec(&format!("mpirun -np 2 {line}"))?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(told.contains(&expected), "by plain mpirun: {output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines = errors
            .lines()
            .filter(|line| line.contains("no checkpoints"))
            .count();
        ensure!(lines == 1, "one line says so, not {lines}: {output:?}");
        let told = head.tell(&line)?;
        ensure!(told.contains(&alone), "alone: {told}");
        Ok(())
    })
}

#[test]
fn a_checkpoint_of_one_mpis_build_is_refused_by_the_others() -> Result<()> {
    if let Some(why) = tests::nodes::missing()
        .or_else(|| Mpi::OpenMpi.missing())
        .or_else(|| Mpi::Mpich.missing())
    {
        skip("a checkpoint of another MPI's build", &why);
        return Ok(());
    }
    let solver = Solver::heat(2, 64, 64, 4000);
    let cluster = Cluster::up(0)?.with_mpi(Mpi::OpenMpi)?;
    let mut job = cluster.start(&solver, "--launch mpirun --every off")?;
    job.wait_lines("the tenth step", 10, |line| line.starts_with("step "))?;
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;
    let cluster = cluster.with_mpi(Mpi::Mpich)?;
    let outcome = cluster
        .run(&solver, "--launch mpirun --every off --resume")?
        .expect_code(64)?;
    ensure!(
        outcome.stderr_text().contains("build"),
        "{}",
        outcome.story()
    );
    let cluster = cluster.with_mpi(Mpi::OpenMpi)?;
    let outcome = cluster
        .run(&solver, "--launch mpirun --every off --resume")?
        .expect_code(0)?;
    assert_eq!(outcome.result()?, undisturbed(&solver)?);
    Ok(())
}
