//! Checkpoints that refer to others, taken while the ranks go on: whichever way they are made, a job that is killed
//! ends with the same bits.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{Bed, PATIENCE, undisturbed};
use tests::job::Outcome;
use tests::phase::Target;
use tests::solver::Solver;
use tests::ways::Ways;

/// A grid of which so much changes.
fn heat(ranks: usize, changing: f64, steps: usize) -> Solver {
    let mut heat = Solver::heat(ranks, 512, 1024, steps);
    heat.arguments.push(format!("--changing={changing}"));
    heat
}

/// Runs a job with checkpoints without pause, and kills a process again and again, each time after some more
/// checkpoints. The store must be sound in the end.
fn outlives_kills(solver: &Solver, ways: &Ways, expected: &str, seed: u64) -> Result<Outcome> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let bed = Bed::new()?;
    let mut job = bed.start(solver, &format!("--every 30ms {ways}"))?;
    let mut commits = 0;
    for kills in 1..=3 {
        commits += random.random_range(2..=6);
        job.wait_events("checkpoints", commits, |event| event.is("committed"))?;
        std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
        let victim = random.random_range(0..solver.process_count());
        job.must_kill(Target::Process(victim))?;
        // Those of the log that were made after it.
        job.wait_events("the next start", kills + 1, |event| event.is("go"))?;
        commits = job
            .events()?
            .iter()
            .filter(|event| event.is("committed"))
            .count();
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    ensure!(
        outcome.result()? == expected,
        "another result than undisturbed: {}",
        outcome.story()
    );
    ensure!(outcome.count("start") >= 4, "{}", outcome.story());
    bed.on_store("verify", &[])?.expect_code(0)?;
    Ok(outcome)
}

/// Whether a checkpoint refers to files of others.
fn refers_to_others(outcome: &Outcome) -> bool {
    outcome
        .events
        .iter()
        .any(|event| event.is("committed") && event.number("needs").is_some_and(|needs| needs > 0))
}

/// Each single way of making checkpoints, and one drawn at random.
fn outlives_kills_in_each_way(solver: &Solver, drawn_by: u64) -> Result<()> {
    let expected = undisturbed(solver)?;
    let mut random = ChaCha8Rng::seed_from_u64(drawn_by);
    for (seed, ways) in (0..).zip(Ways::each_and(1, &mut random)) {
        outlives_kills(solver, &ways, &expected, seed)
            .with_context(|| format!("seed {seed}: {ways}"))?;
    }
    Ok(())
}

#[test]
fn a_job_that_changes_little_ends_with_the_same_bits_whichever_way_it_is_captured() -> Result<()> {
    let solver = heat(2, 0.05, 2500);
    let expected = undisturbed(&solver)?;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for (seed, ways) in (0..).zip(Ways::each_and(1, &mut random)) {
        let outcome = outlives_kills(&solver, &ways, &expected, seed)
            .with_context(|| format!("seed {seed}: {ways}"))?;
        ensure!(
            refers_to_others(&outcome) || !ways.is_incremental(),
            "{ways}: no checkpoint referred to another: {}",
            outcome.story()
        );
    }
    Ok(())
}

#[test]
fn a_job_that_changes_all_ends_with_the_same_bits_whichever_way_it_is_captured() -> Result<()> {
    let solver = heat(3, 1.0, 1200).on(2);
    outlives_kills_in_each_way(&solver, 12)
}

#[test]
fn memory_that_comes_and_goes_is_what_it_was_at_the_cut() -> Result<()> {
    // Each rank compares its blocks with their digests when it finds itself in another process.
    let solver = Solver::new(
        "tangle",
        3,
        "--rounds 600 --blocks 16 --depth 5 --progress --pause-us 300",
    );
    outlives_kills_in_each_way(&solver, 13)
}

#[test]
fn messages_and_solutions_are_the_same_whichever_way_they_are_captured() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let matrix = folder.path().join("own.mtx");
    tests::matrix::write_own(&matrix, 30)?;
    let mut random = ChaCha8Rng::seed_from_u64(14);
    let storm = Solver::storm(6, 60_000, 3).on(3);
    for solver in [
        storm.pausing(Duration::from_millis(5)),
        Solver::cg(2, &matrix, 8),
    ] {
        let expected = undisturbed(&solver)?;
        for seed in 0..3 {
            let ways = Ways::draw(&mut random);
            outlives_kills(&solver, &ways, &expected, seed)
                .with_context(|| format!("{}, seed {seed}: {ways}", solver.shown()))?;
        }
    }
    Ok(())
}

#[test]
fn many_checkpoints_of_a_job_that_changes_little_stay_few_files_of_few_bytes() -> Result<()> {
    let solver = heat(2, 0.1, 4000);
    let bed = Bed::new()?;
    let outcome = bed.run(&solver, "--every 20ms --keep 2")?.expect_code(0)?;
    let committed: Vec<_> = outcome
        .events
        .iter()
        .filter(|event| event.is("committed"))
        .collect();
    ensure!(committed.len() > 20, "{}", outcome.story());
    let most = |field: &str| {
        committed
            .iter()
            .filter_map(|event| event.number(field))
            .max()
            .with_context(|| format!("no {field}"))
    };
    let (files, raw_bytes) = (most("needs")?, most("raw_bytes")?);
    assert!(files <= 2 * 32, "{files} files were needed");
    // Twice the image and what two checkpoints add: the rest is garbage that nobody took away.
    let stored = bytes_below(bed.store())?;
    assert!(
        stored < 4 * raw_bytes,
        "{stored} bytes are stored for images of {raw_bytes}"
    );
    bed.on_store("verify", &[])?.expect_code(0)?;
    Ok(())
}

fn bytes_below(folder: &std::path::Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in folder.read_dir()? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += if kind.is_dir() {
            bytes_below(&entry.path())?
        } else {
            kind.len()
        };
    }
    Ok(bytes)
}
