//! The commands about a store, of a running job and of one that is not.

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::json;
use tests::bed::{Bed, PATIENCE};
use tests::damage::StoppedJob;
use tests::process;
use tests::solver::Solver;

fn slow(ranks: usize) -> Solver {
    Solver::new("misbehave", ranks, "nothing 0 400")
}

#[test]
fn status_tells_of_a_running_job() -> Result<()> {
    let bed = Bed::new()?;
    let mut job = bed.start(&slow(3).on(2), "--every 1h")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    let status = bed.json("status", &[])?;
    assert_eq!(status["running"], json!(true), "{status}");
    assert_eq!(status["committed"], json!(null));
    let running = &status["status"];
    assert_eq!(running["phase"], json!("running"));
    assert_eq!(running["ranks"], json!(3));
    assert_eq!(
        running["placement"].as_array().map(Vec::len),
        Some(3),
        "{status}"
    );
    let pids = job.pids()?;
    assert_eq!(running["pids"], json!(pids));
    assert!(pids.iter().all(|&pid| process::alive(pid)));
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;
    let status = bed.json("status", &[])?;
    assert_eq!(status["running"], json!(false));
    assert_eq!(status["complete"], json!(false));
    assert_eq!(status["committed"], json!(1), "{status}");
    Ok(())
}

#[test]
fn checkpoint_returns_when_one_is_committed() -> Result<()> {
    let bed = Bed::new()?;
    let mut job = bed.start(&slow(2), "--every off")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    for epoch in 1..=3 {
        let taken = bed.json("checkpoint", &[])?;
        assert_eq!(taken["epoch"], json!(epoch), "{taken}");
        assert!(
            tests::damage::epoch_folder(bed.store(), epoch)
                .join("manifest")
                .exists()
        );
    }
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;
    let late = bed.on_store("checkpoint", &[])?;
    assert_eq!(late.code(), Some(69), "{}", late.story());
    assert!(
        late.stderr_text().contains("not running"),
        "{}",
        late.story()
    );
    Ok(())
}

#[test]
fn ls_show_and_verify_tell_of_the_checkpoints() -> Result<()> {
    let job = StoppedJob::make(&slow(2), 2)?;
    let listed = job.bed.json("ls", &[])?;
    assert_eq!(listed["ranks"], json!(2), "{listed}");
    assert_eq!(listed["complete"], json!(false));
    let people = job.bed.on_store("ls", &[])?.expect_code(0)?.stdout_text();
    for &epoch in &job.epochs {
        assert!(people.contains(&epoch.to_string()), "{people}");
        let shown = job.bed.json("show", &[&epoch.to_string()])?;
        assert_eq!(shown["checkpoint"]["epoch"], json!(epoch), "{shown}");
        assert_eq!(shown["files"].as_array().map(Vec::len), Some(2));
        for file in shown["files"].as_array().into_iter().flatten() {
            let name = file["name"].as_str().unwrap_or_default();
            let bytes = std::fs::metadata(job.bed.store().join(name))?.len();
            assert_eq!(file["file_bytes"], json!(bytes), "{file}");
        }
        job.bed
            .on_store("show", &[&epoch.to_string()])?
            .expect_code(0)?;
    }
    let latest = job.bed.json("show", &["latest"])?;
    assert_eq!(latest["checkpoint"]["epoch"], json!(job.newest()));
    let absent = job.bed.on_store("show", &["9999"])?;
    assert_eq!(absent.code(), Some(64), "{}", absent.story());
    let verified = job.bed.json("verify", &[])?;
    assert_eq!(verified["sound"], json!(true), "{verified}");
    assert_eq!(verified["strays"], json!([]), "{verified}");
    assert!(verified["files"].as_u64() >= Some(6), "{verified}");
    Ok(())
}

#[test]
fn rm_removes_a_checkpoint_and_then_the_store() -> Result<()> {
    let job = StoppedJob::make(&slow(2), 2)?;
    let removed = job.bed.json("rm", &[&job.newest().to_string()])?;
    assert_eq!(removed["epochs"], json!([job.newest()]), "{removed}");
    let left = tests::campaign::check::newest_in_store(&job.bed)?;
    assert_eq!(left, Some(job.epochs[0]), "the one before is left");
    let neither = job.bed.on_store("rm", &[])?;
    assert_eq!(
        neither.code(),
        Some(64),
        "rm without an epoch or --all: {}",
        neither.story()
    );
    job.bed.on_store("rm", &["--all"])?.expect_code(0)?;
    assert!(!job.bed.store().exists());
    Ok(())
}

#[test]
fn rm_leaves_a_running_job_alone() -> Result<()> {
    let bed = Bed::new()?;
    let mut job = bed.start(&slow(2), "--every 100ms")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    let refused = bed.on_store("rm", &["--all"])?;
    assert_eq!(refused.code(), Some(69), "{}", refused.story());
    assert!(bed.store().exists());
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;
    Ok(())
}

#[test]
fn two_jobs_on_one_store_are_refused() -> Result<()> {
    let bed = Bed::new()?;
    let mut job = bed.start(&slow(2), "--every off")?;
    job.wait_event("the start", |event| event.is("go"))?;
    let second = bed.run(&slow(2), "--every off")?;
    assert_eq!(second.code(), Some(69), "{}", second.story());
    let restart = bed.on_store("restart", &[])?;
    assert_eq!(restart.code(), Some(69), "{}", restart.story());
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;
    Ok(())
}

#[test]
fn run_refuses_a_store_with_checkpoints_unless_told_to_resume() -> Result<()> {
    let job = StoppedJob::make(&slow(2), 2)?;
    let refused = job.bed.run(&slow(2), "--every off")?;
    assert_eq!(refused.code(), Some(64), "{}", refused.story());
    assert!(
        refused.stderr_text().contains("--resume"),
        "{}",
        refused.story()
    );
    let listed = tests::campaign::check::newest_in_store(&job.bed)?;
    assert_eq!(listed, Some(job.newest()), "nothing was touched");
    Ok(())
}

#[test]
fn resume_on_an_empty_store_begins_and_on_a_complete_one_says_so() -> Result<()> {
    let solver = Solver::new("misbehave", 2, "nothing 0 20");
    let bed = Bed::new()?;
    let first = bed.run(&solver, "--every 100ms --resume")?.expect_code(0)?;
    first.result()?;
    let again = bed.run(&solver, "--every 100ms --resume")?;
    // A batch script that is started once more has nothing to do, and that is success.
    assert_eq!(again.code(), Some(0), "{}", again.story());
    assert!(
        again.result().is_err(),
        "nothing was to be computed again: {}",
        again.story()
    );
    Ok(())
}

#[test]
fn a_job_under_json_ends_with_one_record() -> Result<()> {
    let bed = Bed::new()?;
    // The solver's own output passes through before it.
    let outcome = bed
        .run(
            &Solver::new("misbehave", 2, "nothing 0 10"),
            "--every off --json",
        )?
        .expect_code(0)?;
    let last = outcome
        .stdout
        .last()
        .map(|line| line.text.clone())
        .unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(&last)?;
    assert_eq!(record["result"]["outcome"], json!("complete"), "{record}");
    assert_eq!(record["result"]["restarts"], json!(0));
    Ok(())
}

#[test]
fn labels_mark_each_line_with_its_rank() -> Result<()> {
    let bed = Bed::new()?;
    let outcome = bed
        .run(
            &Solver::new("misbehave", 2, "nothing 0 5"),
            "--every off --label",
        )?
        .expect_code(0)?;
    assert!(
        outcome
            .stdout
            .iter()
            .all(|line| line.text.contains('0') && !line.text.starts_with("step")),
        "{}",
        outcome.story()
    );
    Ok(())
}
