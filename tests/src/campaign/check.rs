//! What must hold after a run, however it was disturbed.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::bed::Bed;
use crate::campaign::drive::Record;
use crate::events::Event;
use crate::output::Line;
use crate::phase::Tracker;

/// What the checks saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Starts from a checkpoint.
    pub restored: usize,
    /// Starts from the beginning, as there was no checkpoint yet; the first one is not counted.
    pub from_the_beginning: usize,
    /// Steps that were computed more than once.
    pub repeated_steps: usize,
}

/// Judges a run.
///
/// # Errors
/// When a result differs, a restart did not come from the newest checkpoint, or a step from before that
/// checkpoint was repeated.
pub fn judge(record: &Record, expected: &str) -> Result<Judged> {
    results(&record.stdout, expected)?;
    let mut judged = starts(record)?;
    judged.repeated_steps = steps(&record.events, &record.stdout)?;
    Ok(judged)
}

/// The newest checkpoint of a store, as `ckpt ls` tells.
///
/// # Errors
/// When the command fails or its output is not understood.
pub fn newest_in_store(bed: &Bed) -> Result<Option<u64>> {
    let listed = bed.json("ls", &[])?;
    let Some(Value::Array(checkpoints)) = listed.get("checkpoints") else {
        bail!("`ckpt ls --json` has no list of checkpoints: {listed}");
    };
    Ok(checkpoints
        .iter()
        .filter(|checkpoint| checkpoint.get("state").and_then(Value::as_str) == Some("committed"))
        .filter_map(|checkpoint| checkpoint.get("epoch")?.as_u64())
        .max())
}

/// A job that is restored after it printed its result prints it again; it must be the same.
fn results(stdout: &[Line], expected: &str) -> Result<()> {
    let results: Vec<_> = stdout
        .iter()
        .filter_map(|line| line.text.strip_prefix("result: "))
        .collect();
    ensure!(!results.is_empty(), "the job printed no result");
    ensure!(
        results.iter().all(|result| *result == expected),
        "results {results:?}, but undisturbed {expected}"
    );
    Ok(())
}

/// Each start after the first comes from the newest committed epoch.
fn starts(record: &Record) -> Result<Judged> {
    let mut judged = Judged::default();
    let mut tracker = Tracker::default();
    let mut newest_at_restart = record.newest_at_restart.iter();
    // What the store held when a new coordinator took over, and what may have been renamed by the old one
    // without its being told.
    let mut taken_over: Option<(Option<u64>, Option<u64>)> = None;
    let mut is_first = true;
    for event in &record.events {
        if event.is("open") && !is_first {
            taken_over = newest_at_restart
                .next()
                .map(|newest| (*newest, tracker.unresolved()));
        }
        if event.is("start") && !is_first {
            match (event.epoch(), taken_over.take()) {
                (from, Some((in_store, unresolved))) => {
                    ensure!(
                        from == in_store,
                        "restarted from {from:?}, but the newest checkpoint in the store was {in_store:?}"
                    );
                    ensure!(
                        from == tracker.newest() || (from.is_some() && from == unresolved),
                        "restarted from {from:?}, but {:?} was committed",
                        tracker.newest()
                    );
                    tracker.adopt(from);
                }
                (from, None) => ensure!(
                    from == tracker.newest(),
                    "restarted from {from:?}, but {:?} was committed",
                    tracker.newest()
                ),
            }
            match event.epoch() {
                Some(_) => judged.restored += 1,
                None => judged.from_the_beginning += 1,
            }
        }
        is_first &= !event.is("start");
        tracker.see(event);
    }
    Ok(judged)
}

/// After a restart from an epoch, no step comes again that was printed before that epoch was announced.
/// (A line is read after it was printed, and the cut comes after the announcement: such a line is from
/// before the cut for sure.) And no step is left out. Returns how many were repeated.
fn steps(events: &[Event], stdout: &[Line]) -> Result<usize> {
    let lines: Vec<(u64, u64)> = stdout
        .iter()
        .filter_map(|line| Some((line.t_us, step_of(&line.text)?)))
        .collect();
    for go in events.iter().filter(|event| event.is("go")) {
        let announced = |event: &&Event| event.is("announced") && event.epoch() == go.epoch();
        let Some(announced) = go.epoch().and_then(|_| events.iter().find(announced)) else {
            continue;
        };
        // Lines of the start that took the checkpoint. They count up, so the last one tells how far it was
        // (one of the start before that was read late would stand at the front).
        let began_us = events
            .iter()
            .rfind(|event| event.is("go") && event.t_us < announced.t_us)
            .map_or(0, |event| event.t_us);
        let done = lines
            .iter()
            .rfind(|(t_us, _)| (began_us..announced.t_us).contains(t_us))
            .map(|(_, step)| *step);
        let again = lines
            .iter()
            .filter(|(t_us, _)| *t_us >= go.t_us)
            .map(|(_, step)| *step)
            .min();
        if let (Some(done), Some(again)) = (done, again) {
            ensure!(
                again > done,
                "step {again} was computed again after the restart from epoch {:?}, before whose cut step {done} was done",
                go.epoch()
            );
        }
    }
    ensure!(!lines.is_empty(), "the job printed no steps");
    let mut distinct: Vec<u64> = lines.iter().map(|(_, step)| *step).collect();
    distinct.sort_unstable();
    distinct.dedup();
    if let Some(gap) = distinct.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        bail!("no step between {} and {} was printed", gap[0], gap[1]);
    }
    Ok(lines.len() - distinct.len())
}

/// The number in a line like `step 17 ...`.
fn step_of(line: &str) -> Option<u64> {
    line.strip_prefix("step ")?
        .split(|character: char| !character.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lines: &[&str]) -> Vec<Event> {
        lines
            .iter()
            .map(|line| serde_json::from_str(line).expect("an event"))
            .collect()
    }

    fn printed(lines: &[(u64, &str)]) -> Vec<Line> {
        lines
            .iter()
            .map(|(t_us, text)| Line {
                t_us: *t_us,
                text: (*text).to_owned(),
            })
            .collect()
    }

    const COMMITTED: &[&str] = &[
        r#"{"t_us":0,"event":"open"}"#,
        r#"{"t_us":1,"event":"start","epoch":null,"pids":[1]}"#,
        r#"{"t_us":2,"event":"go","epoch":null}"#,
        r#"{"t_us":10,"event":"announced","epoch":1}"#,
        r#"{"t_us":11,"event":"committed","epoch":1}"#,
        r#"{"t_us":20,"event":"lost","process":0}"#,
    ];

    fn record(more: &[&str]) -> Record {
        Record {
            events: events(&[COMMITTED, more].concat()),
            ..Record::default()
        }
    }

    #[test]
    fn a_restart_from_zero_is_a_failure_when_something_was_committed() {
        let restarted = record(&[r#"{"t_us":21,"event":"start","epoch":1,"pids":[2]}"#]);
        assert_eq!(starts(&restarted).expect("a good run").restored, 1);
        let restarted = record(&[r#"{"t_us":21,"event":"start","epoch":null,"pids":[2]}"#]);
        assert!(starts(&restarted).is_err());
    }

    #[test]
    fn a_restart_from_an_older_checkpoint_is_a_failure() {
        let restarted = record(&[
            r#"{"t_us":21,"event":"committed","epoch":2}"#,
            r#"{"t_us":22,"event":"start","epoch":1,"pids":[2]}"#,
        ]);
        assert!(starts(&restarted).is_err());
    }

    #[test]
    fn a_rename_that_nobody_told_of_counts_if_the_store_says_so() {
        let more = [
            r#"{"t_us":30,"event":"announced","epoch":2}"#,
            r#"{"t_us":31,"event":"publishing","epoch":2}"#,
            r#"{"t_us":32,"event":"open"}"#,
            r#"{"t_us":33,"event":"start","epoch":2,"pids":[2]}"#,
        ];
        let mut restarted = record(&more);
        restarted.newest_at_restart = vec![Some(2)];
        assert!(starts(&restarted).is_ok());
        restarted.newest_at_restart = vec![Some(1)];
        assert!(starts(&restarted).is_err());
    }

    #[test]
    fn a_step_from_before_the_cut_must_not_come_again() {
        let events = events(&[COMMITTED, &[r#"{"t_us":22,"event":"go","epoch":1}"#]].concat());
        let good = printed(&[
            (5, "step 1"),
            (9, "step 2"),
            (12, "step 3"),
            (30, "step 3"),
            (31, "step 4"),
        ]);
        assert_eq!(steps(&events, &good).expect("a good run"), 1);
        let repeated = printed(&[
            (5, "step 1"),
            (9, "step 2"),
            (12, "step 3"),
            (30, "step 2"),
            (31, "step 3"),
        ]);
        assert!(steps(&events, &repeated).is_err());
        let again_from_the_beginning = printed(&[
            (1, "step 1"),
            (1, "step 2"),
            (1, "step 3"),
            (5, "step 1"),
            (30, "step 2"),
            (31, "step 3"),
        ]);
        assert!(steps(&events, &again_from_the_beginning).is_ok());
        let left_out = printed(&[(5, "step 1"), (9, "step 2"), (30, "step 4")]);
        assert!(steps(&events, &left_out).is_err());
    }

    #[test]
    fn a_result_may_be_printed_twice_but_not_differ() {
        assert!(results(&printed(&[(1, "result: 1"), (2, "result: 1")]), "1").is_ok());
        assert!(results(&printed(&[(1, "result: 1"), (2, "result: 2")]), "1").is_err());
        assert!(results(&[], "1").is_err());
    }
}
