//! Files of ranks: whatever kills a job, and however often, each line that a rank writes is in its file once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{Bed, PATIENCE};
use tests::job::{Job, Outcome};
use tests::phase::Target;
use tests::relay::{self, RANKS, Written};
use tests::solver::Solver;
use tests::ways::Ways;

/// Where ranks write to.
const LINES: &str = "lines";

/// A relay that reads and writes in the bed.
fn relay(bed: &Bed, write: &str, steps: usize) -> Result<Solver> {
    let arguments = format!("--progress --pause-us 500 --steps {steps} --write {write}");
    relay::relay(bed, &bed.join(LINES), &arguments)
}

/// What the ranks write when nobody disturbs them, and the result. How they write makes no difference.
fn undisturbed(steps: usize) -> Result<Written> {
    relay::undisturbed(&format!("--steps {steps}"))
}

/// The files and the result are as if nothing had happened.
fn check(bed: &Bed, outcome: &Outcome, expected: &Written) -> Result<()> {
    relay::check(&bed.join(LINES), outcome, expected)
}

/// All these words are in what the job told its user.
fn check_told(outcome: &Outcome, words: &[&str]) -> Result<()> {
    let told = outcome.stderr_text();
    for word in words {
        ensure!(told.contains(word), "{word:?} is not in: {told}");
    }
    Ok(())
}

/// Waits for so many checkpoints since the last start, and some more time.
fn wait_for_checkpoints(job: &mut Job<'_>, count: usize, random: &mut ChaCha8Rng) -> Result<()> {
    let before = job
        .events()?
        .iter()
        .filter(|event| event.is("committed"))
        .count();
    job.wait_events("checkpoints", before + count, |event| event.is("committed"))?;
    std::thread::sleep(Duration::from_micros(random.random_range(0..40_000)));
    Ok(())
}

/// Kills processes of a job that takes checkpoints without pause, at random moments.
fn outlives_kills(
    write: &str,
    ways: &Ways,
    steps: usize,
    expected: &Written,
    seed: u64,
) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let bed = Bed::new()?;
    let mut job = bed.start(&relay(&bed, write, steps)?, &format!("--every 25ms {ways}"))?;
    for kills in 1..=3 {
        let checkpoints = random.random_range(1..=4);
        wait_for_checkpoints(&mut job, checkpoints, &mut random)?;
        let victim = Target::Process(random.random_range(0..RANKS));
        job.must_kill(victim)?;
        job.wait_events("the next start", kills + 1, |event| event.is("go"))?;
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    ensure!(outcome.count("start") >= 4, "{}", outcome.story());
    check(&bed, &outcome, expected)
}

#[test]
fn each_line_is_written_once_whichever_way_ranks_are_captured_and_lines_are_written() -> Result<()>
{
    let steps = 1200;
    let expected = undisturbed(steps)?;
    let mut random = ChaCha8Rng::seed_from_u64(21);
    let writes = ["buffered", "each", "reopened"];
    for (seed, ways) in (0..).zip(Ways::each_and(2, &mut random)) {
        let write = writes[seed as usize % writes.len()];
        outlives_kills(write, &ways, steps, &expected, seed)
            .with_context(|| format!("seed {seed}, {write}: {ways}"))?;
    }
    Ok(())
}

#[test]
fn a_job_that_has_no_checkpoint_yet_begins_its_files_anew() -> Result<()> {
    let steps = 800;
    let expected = undisturbed(steps)?;
    for write in ["buffered", "each", "reopened"] {
        let bed = Bed::new()?;
        let mut job = bed.start(&relay(&bed, write, steps)?, "--every off")?;
        job.wait_lines("a step", 200, |line| line.starts_with("step "))?;
        job.must_kill(Target::Process(1))?;
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        assert_eq!(outcome.count("start"), 2, "{}", outcome.story());
        check(&bed, &outcome, &expected)?;
    }
    Ok(())
}

#[test]
fn each_line_is_written_once_when_the_coordinator_is_killed() -> Result<()> {
    let steps = 1200;
    let expected = undisturbed(steps)?;
    for (seed, write) in (31..).zip(["buffered", "each", "reopened"]) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let bed = Bed::new()?;
        let mut job = bed.start(&relay(&bed, write, steps)?, "--every 25ms")?;
        for _ in 0..2 {
            wait_for_checkpoints(&mut job, 2, &mut random)?;
            job.kill(Target::Coordinator)?;
            job.wait(PATIENCE)?;
            // At once: its processes may be ending still.
            job = bed.restart("--every 25ms")?;
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        check(&bed, &outcome, &expected).with_context(|| format!("{write}, seed {seed}"))?;
    }
    Ok(())
}

#[test]
fn a_job_that_was_stopped_goes_on_with_its_files_in_fewer_processes() -> Result<()> {
    let steps = 1200;
    let expected = undisturbed(steps)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&relay(&bed, "buffered", steps)?, "--every 10m")?;
    job.wait_lines("a step", 300, |line| line.starts_with("step "))?;
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;
    let outcome = bed.restart("--procs 2")?.wait(PATIENCE)?.expect_code(0)?;
    check(&bed, &outcome, &expected)
}

/// Lengths and contents of all files of a folder, the log of events apart.
fn snapshot(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file()
            && path
                .extension()
                .is_none_or(|extension| extension != "jsonl")
        {
            found.push((path.clone(), fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_file_that_is_missing_or_shorter_refuses_the_restart_and_nothing_is_lost() -> Result<()> {
    let steps = 1200;
    let expected = undisturbed(steps)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&relay(&bed, "each", steps)?, "--every 25ms")?;
    job.wait_events("checkpoints", 4, |event| event.is("committed"))?;
    job.kill(Target::Coordinator)?;
    job.wait(PATIENCE)?;
    // Nobody writes any more.
    bed.check_clean()?;
    let committed = || -> Result<Vec<serde_json::Value>> {
        let listed = bed.json("ls", &[])?;
        let all = listed["checkpoints"].as_array().context("a list")?;
        let is_committed = |checkpoint: &&serde_json::Value| checkpoint["state"] == "committed";
        Ok(all.iter().filter(is_committed).cloned().collect())
    };
    let checkpoints = committed()?;
    ensure!(!checkpoints.is_empty(), "no checkpoint");
    let aside = bed.join("aside");
    let away = |path: &Path| -> Result<()> { Ok(fs::rename(path, &aside)?) };
    let back = |path: &Path| -> Result<()> { Ok(fs::rename(&aside, path)?) };

    let refused = |words: &[&str]| -> Result<()> {
        let before = snapshot(&bed.join("."))?;
        let outcome = bed.restart("")?.wait(PATIENCE)?.expect_code(69)?;
        check_told(&outcome, words)?;
        ensure!(
            snapshot(&bed.join("."))? == before,
            "a file was changed by a restart that was refused"
        );
        ensure!(committed()? == checkpoints, "the checkpoints have changed");
        Ok(())
    };
    // The last rank's, so that others have found theirs.
    let lines = relay::file(&bed.join(LINES), RANKS - 1);
    away(&lines)?;
    refused(&[
        "rank 2",
        "lines.2",
        "No such file",
        "put it back",
        "ckpt restart",
    ])?;
    let whole = fs::read(&aside)?;
    fs::write(&lines, &whole[..10])?;
    refused(&["lines.2", "10 bytes", "missing"])?;
    back(&lines)?;
    let numbers = bed.join("numbers");
    away(&numbers)?;
    refused(&["numbers", "No such file", "reading"])?;
    back(&numbers)?;
    let outcome = bed
        .restart("--every 25ms")?
        .wait(PATIENCE)?
        .expect_code(0)?;
    check(&bed, &outcome, &expected)
}

#[test]
fn a_rank_that_is_lost_with_its_files_ends_the_job_with_the_reason() -> Result<()> {
    let bed = Bed::new()?;
    let mut job = bed.start(&relay(&bed, "each", 100_000)?, "--every 25ms")?;
    job.wait_events("checkpoints", 2, |event| event.is("committed"))?;
    fs::rename(relay::file(&bed.join(LINES), 0), bed.join("aside"))?;
    // Checkpoints are refused from now on, as they could not be gone on from.
    job.wait_event("a refusal", |event| {
        event.is("aborted")
            && event.text("reason").contains("lines.0")
            && event.text("reason").contains("renamed")
    })?;
    job.must_kill(Target::Process(1))?;
    let outcome = job.wait(PATIENCE)?.expect_code(69)?;
    check_told(&outcome, &["lines.0", "rank 0"])
}

#[test]
fn a_second_writer_of_a_file_is_refused() -> Result<()> {
    let bed = Bed::new()?;
    let path = bed.join("lines.1");
    fs::write(&path, "of somebody else\n")?;
    let held = fs::OpenOptions::new().write(true).open(&path)?;
    held.lock()?;
    let outcome = bed
        .run(&relay(&bed, "each", 10)?, "--every off")?
        .expect_code(1)?;
    check_told(&outcome, &["lines.1", "locked"])?;
    assert_eq!(fs::read_to_string(&path)?, "of somebody else\n");
    Ok(())
}
