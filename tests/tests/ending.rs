//! Jobs end in every way but well, and say so.

use anyhow::Result;
use nix::sys::signal::Signal;
use tests::bed::{Bed, PATIENCE};
use tests::job::Outcome;
use tests::solver::Solver;

/// All ranks add up numbers, in steps of 20 ms; at a step the last rank goes wrong.
fn misbehave(ranks: usize, how: &str) -> Solver {
    Solver::new("misbehave", ranks, how)
}

fn run(how: &str, options: &str) -> Result<Outcome> {
    Bed::new()?.run(&misbehave(3, how), options)
}

#[test]
fn a_panic_ends_the_job_with_the_message_and_the_rank() -> Result<()> {
    let outcome = run("panic 5", "--every off")?.expect_code(101)?;
    let told = outcome.stderr_text();
    assert!(told.contains("the matrix is singular"), "{told}");
    assert!(told.contains("rank 2"), "{told}");
    assert_eq!(
        outcome.count("restart"),
        0,
        "a panic comes again: no restart"
    );
    Ok(())
}

#[test]
fn an_error_of_the_solver_ends_the_job_with_its_text() -> Result<()> {
    let outcome = run("error 5", "--every off")?.expect_code(1)?;
    let told = outcome.stderr_text();
    assert!(told.contains("the matrix has no rows"), "{told}");
    assert!(told.contains("rank 2"), "{told}");
    assert_eq!(outcome.count("restart"), 0);
    Ok(())
}

#[test]
fn an_exit_code_of_the_solver_passes_through() -> Result<()> {
    let outcome = run("exit 5", "--every off")?.expect_code(3)?;
    assert_eq!(outcome.count("restart"), 0);
    Ok(())
}

#[test]
fn an_overflow_of_the_stack_is_named() -> Result<()> {
    let outcome = run("overflow 5", "--every off --max-restarts 0")?;
    assert_ne!(outcome.code(), Some(0));
    let told = outcome.stderr_text();
    assert!(told.contains("stack"), "{told}");
    assert!(told.contains("rank 2"), "{told}");
    Ok(())
}

#[test]
fn a_job_that_fails_again_and_again_stops_after_so_many_restarts() -> Result<()> {
    let outcome = run("abort 3", "--every off --max-restarts 2")?.expect_code(69)?;
    assert_eq!(outcome.count("restart"), 2, "{}", outcome.story());
    assert_eq!(outcome.count("start"), 3);
    assert!(outcome.stderr_text().contains('2'), "{}", outcome.story());
    Ok(())
}

#[test]
fn a_job_that_fails_after_each_restore_stops_too() -> Result<()> {
    let bed = Bed::new()?;
    let outcome = bed
        .run(&misbehave(2, "abort 40"), "--every 300ms --max-restarts 2")?
        .expect_code(69)?;
    assert!(outcome.count("committed") >= 1, "{}", outcome.story());
    // A checkpoint after a restart allows more restarts, but one step fails every time.
    assert!(outcome.count("restart") >= 2, "{}", outcome.story());
    Ok(())
}

#[test]
fn sigterm_and_sigint_leave_a_last_checkpoint_from_which_the_job_goes_on() -> Result<()> {
    let solver = misbehave(3, "nothing 0 60");
    let expected = Bed::new()?
        .run(&solver, "--every off")?
        .expect_code(0)?
        .result()?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let bed = Bed::new()?;
        let mut job = bed.start(&solver, "--every off")?;
        job.wait_lines("the tenth step", 10, |line| line.starts_with("step "))?;
        job.signal(signal)?;
        let stopped = job.wait(PATIENCE)?.expect_code(75)?;
        assert_eq!(stopped.count("committed"), 1, "{}", stopped.story());
        assert!(stopped.result().is_err(), "it was not to end");
        bed.check_clean()?;
        let outcome = bed.run(&solver, "--every off --resume")?.expect_code(0)?;
        assert_eq!(outcome.result()?, expected);
        assert!(
            !outcome.stdout.iter().any(|line| line.text == "step 5"),
            "a step from before the last checkpoint was repeated: {}",
            outcome.story()
        );
    }
    Ok(())
}

#[test]
fn a_second_sigterm_ends_the_job_at_once() -> Result<()> {
    let bed = Bed::new()?;
    // The last rank sleeps for a minute: no last checkpoint can be taken before.
    let mut job = bed.start(&misbehave(2, "sleep 5"), "--every off")?;
    job.wait_lines("the fourth step", 4, |line| line.starts_with("step "))?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    job.signal(Signal::SIGTERM)?;
    job.wait_event("the request to stop", |event| event.is("stopping"))?;
    job.signal(Signal::SIGTERM)?;
    let outcome = job.wait(std::time::Duration::from_secs(10))?;
    assert_eq!(outcome.code(), Some(75), "{}", outcome.story());
    assert_eq!(outcome.count("committed"), 0);
    Ok(())
}

#[test]
fn a_program_that_is_not_there_is_a_usage_error() -> Result<()> {
    let bed = Bed::new()?;
    let store = bed.store().display().to_string();
    let outcome = bed.ckpt(&[
        "run",
        "-n",
        "2",
        "--store",
        &store,
        "--",
        "./no-such-solver",
    ])?;
    assert_eq!(outcome.code(), Some(64), "{}", outcome.story());
    assert!(outcome.stderr_text().contains("no-such-solver"));
    Ok(())
}

#[test]
fn a_program_that_is_no_solver_is_refused_with_what_to_do() -> Result<()> {
    let bed = Bed::new()?;
    let store = bed.store().display().to_string();
    let outcome = bed.ckpt(&["run", "-n", "1", "--store", &store, "--", "/bin/false"])?;
    assert_eq!(outcome.code(), Some(64), "{}", outcome.story());
    assert!(
        outcome.stderr_text().contains("libckpt::main"),
        "{}",
        outcome.story()
    );
    Ok(())
}
