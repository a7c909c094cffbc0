//! The disk of the store is full: the checkpoint is given up, the job goes on, the user is told.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use tests::bed::{Bed, PATIENCE};
use tests::damage::last_start;
use tests::disk::SmallDisk;
use tests::phase::Target;
use tests::skip::skip;
use tests::solver::Solver;

fn small_disk(test: &str, kib: u64) -> Option<SmallDisk> {
    SmallDisk::mount(kib)
        .map_err(|error| skip(test, &format!("{error:#}")))
        .ok()
}

fn heat() -> Solver {
    Solver::heat(2, 256, 256, 2000)
}

#[test]
fn a_job_whose_disk_is_full_goes_on_and_says_so() -> Result<()> {
    let Some(disk) = small_disk("full disk", 64) else {
        return Ok(());
    };
    let bed = Bed::new()?.with_store(disk.join("store"));
    let outcome = bed.run(&heat(), "--every 150ms")?.expect_code(0)?;
    let expected = Bed::new()?
        .run(&heat(), "--every off")?
        .expect_code(0)?
        .result()?;
    assert_eq!(outcome.result()?, expected);
    assert_eq!(outcome.count("committed"), 0, "{}", outcome.story());
    let reasons: Vec<_> = outcome
        .events
        .iter()
        .filter(|event| event.is("aborted") && event.text("cause") == "failed")
        .map(|event| event.text("reason").to_owned())
        .collect();
    let is_full = |reason: &String| reason.contains("No space left");
    assert!(reasons.iter().any(is_full), "{}", outcome.story());
    // When one process has failed, the other may not be done with giving up when the next snapshot comes.
    let is_late = |reason: &String| reason.contains("was given up, and its files are still");
    assert!(
        reasons
            .iter()
            .all(|reason| is_full(reason) || is_late(reason)),
        "{reasons:?}"
    );
    assert!(
        outcome.stderr_text().contains("No space left"),
        "{}",
        outcome.story()
    );
    Ok(())
}

/// A file of somebody else that takes all that is left of a disk, but for so many bytes.
fn fill(disk: &SmallDisk, but_bytes: u64) -> Result<PathBuf> {
    let path = disk.join("hog");
    let mut hog = File::create(&path)?;
    let block = vec![1; 64 << 10];
    while hog.write_all(&block).is_ok() {}
    while hog.write_all(&block[..512]).is_ok() {}
    let bytes = hog.metadata()?.len();
    hog.set_len(bytes.saturating_sub(but_bytes))?;
    Ok(path)
}

#[test]
fn a_job_whose_disk_fills_up_keeps_its_last_checkpoint() -> Result<()> {
    let Some(disk) = small_disk("disk that fills up", 16 << 10) else {
        return Ok(());
    };
    keeps_its_last_checkpoint(&disk, &heat())
}

#[test]
fn a_job_whose_disk_of_blocks_fills_up_keeps_its_last_checkpoint() -> Result<()> {
    let disk = match SmallDisk::mount_ext4(96 << 10) {
        Ok(disk) => disk,
        Err(error) => {
            skip("disk of blocks that fills up", &format!("{error:#}"));
            return Ok(());
        }
    };
    // Files of several MiB: as long as no processor is free, they are written past the page cache.
    keeps_its_last_checkpoint(&disk, &Solver::heat(2, 512, 1024, 1000))
}

/// A checkpoint is taken, the disk fills up, a snapshot fails for that, a process is killed, and the job goes on from the
/// checkpoint.
fn keeps_its_last_checkpoint(disk: &SmallDisk, solver: &Solver) -> Result<()> {
    let expected = Bed::new()?
        .run(solver, "--every off")?
        .expect_code(0)?
        .result()?;
    let bed = Bed::new()?.with_store(disk.join("store"));
    let mut job = bed.start(solver, "--every 100ms")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    let hog = fill(disk, 100 << 10)?;
    let aborted = job.wait_event("an abort", |event| {
        event.is("aborted") && event.text("cause") == "failed"
    })?;
    assert!(
        aborted.text("reason").contains("No space left"),
        "{aborted:?}"
    );
    job.kill(Target::Process(1))?;
    let go = job.wait_events("the second go", 2, |event| event.is("go"))?;
    assert!(go.epoch().is_some(), "the last checkpoint is used: {go:?}");
    std::fs::remove_file(hog)?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    Ok(())
}

#[test]
fn a_job_that_fails_on_a_disk_without_one_byte_left_ends_in_good_order() -> Result<()> {
    let Some(disk) = small_disk("disk without one byte left", 16 << 10) else {
        return Ok(());
    };
    let expected = Bed::new()?
        .run(&heat(), "--every off")?
        .expect_code(0)?
        .result()?;
    let bed = Bed::new()?.with_store(disk.join("store"));
    let mut job = bed.start(&heat(), "--every 100ms")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    let hog = fill(&disk, 0)?;
    job.wait_event("an abort", |event| {
        event.is("aborted") && event.text("cause") == "failed"
    })?;
    job.kill(Target::Process(1))?;
    let outcome = job.wait(PATIENCE)?;
    if outcome.code() != Some(0) {
        assert_eq!(outcome.code(), Some(69), "{}", outcome.story());
        let told = outcome.stderr_text();
        assert!(
            told.contains("No space left") && told.contains("ckpt restart"),
            "{told}"
        );
        std::fs::remove_file(hog)?;
        let outcome = bed.restart("")?.wait(PATIENCE)?.expect_code(0)?;
        assert!(last_start(&outcome.events).is_some(), "{}", outcome.story());
        assert_eq!(outcome.result()?, expected);
    } else {
        assert_eq!(outcome.result()?, expected);
    }
    Ok(())
}

#[test]
fn disks_of_many_sizes_all_end_with_the_same_bits() -> Result<()> {
    let solver = Solver::heat(2, 256, 256, 800);
    let expected = Bed::new()?
        .run(&solver, "--every off")?
        .expect_code(0)?
        .result()?;
    for kib in [12, 20, 40, 100, 300, 700, 1200, 2000] {
        let Some(disk) = small_disk("disks of many sizes", kib) else {
            return Ok(());
        };
        let bed = Bed::new()?.with_store(disk.join("store"));
        let mut job = bed.start(&solver, "--every 60ms")?;
        if job
            .wait_lines("some steps", 300, |line| line.starts_with("step "))
            .is_ok()
        {
            job.kill(Target::Process(0))?;
        }
        let outcome = job.wait(PATIENCE)?;
        // A disk too small for the job's own record is a clear refusal at the start.
        if outcome.count("go") == 0 {
            assert_eq!(outcome.code(), Some(69), "{kib} KiB: {}", outcome.story());
            assert!(
                outcome.stderr_text().contains("No space left"),
                "{}",
                outcome.story()
            );
            continue;
        }
        let outcome = outcome.expect_code(0)?;
        assert_eq!(outcome.result()?, expected, "{kib} KiB");
    }
    Ok(())
}
