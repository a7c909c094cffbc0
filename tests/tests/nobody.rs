//! The whole way as a user without privileges. (`tests/run` runs every test once more as such a user.)

use anyhow::Result;
use tests::bed::{Bed, PATIENCE};
use tests::phase::Target;
use tests::skip::skip;
use tests::solver::Solver;

#[test]
fn a_user_without_privileges_runs_kills_and_restarts_a_job() -> Result<()> {
    let heat = Solver::heat(4, 256, 256, 3000);
    let bed = match Bed::as_nobody() {
        Ok(bed) => bed,
        Err(error) => {
            skip("a user without privileges", &format!("{error:#}"));
            return Ok(());
        }
    };
    let expected = Bed::new()?
        .run(&heat, "--every off")?
        .expect_code(0)?
        .result()?;
    let mut job = bed.start(&heat, "--every 100ms")?;
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    assert!(job.kill(Target::Process(1))?.is_some());
    job.wait_events("the second go", 2, |event| event.is("go"))?;
    assert!(job.kill(Target::Coordinator)?.is_some());
    job.wait(PATIENCE)?;
    let outcome = bed.restart("")?.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected);
    Ok(())
}
