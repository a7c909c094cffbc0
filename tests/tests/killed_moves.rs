//! A process ends at each step of a move, as its source and as its target: the job goes on with the same bits, and whoever asked for
//! the move is told how it ended.
//!
//! Where a move is cannot be seen from outside in time, so the process ends itself (`libckpt::runtime::moving::doom`, in builds with
//! debug assertions): it removes the file that names the step, which is how the test knows that it was hit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tests::bed::{Bed, PATIENCE, undisturbed};
use tests::job::{Job, Outcome};
use tests::nodes::cluster::with_each_mpi;
use tests::nodes::mpi::Mpi;
use tests::relay;
use tests::skip::skip;
use tests::solver::Solver;
use tests::wander::{may_handle_faults, migrate};

/// The variable with the file's name.
const DOOM: &str = "CKPT_TEST_DOOM";

const OPTIONS: &str = "--every 200ms --max-restarts 50";

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// How the move may end for whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// It can't be done.
    Refused,
    /// It depends on who notices first.
    Either,
}

use Ends::{Either, Refused};
use Side::{Source, Target};

/// The steps of any move, from its begin to its end.
const STEPS: &[(&str, Side, Ends)] = &[
    ("Examining", Source, Refused),
    ("Examined", Source, Refused),
    ("Preparing", Target, Refused),
    ("Room", Target, Refused),
    ("Line", Target, Refused),
    ("Transferring", Source, Refused),
    ("Frozen", Source, Refused),
    ("Received", Target, Refused),
    ("Told", Target, Either),
    ("Recorded(Source)", Source, Either),
    ("Recorded(Target)", Target, Either),
    ("Spreading(Source)", Source, Either),
    ("Spreading(Target)", Target, Either),
    ("Forgetting", Source, Either),
];

/// Those of a rank that is copied while it runs.
const ROUNDS: &[(&str, Side, Ends)] = &[("Round", Source, Refused), ("Copying", Target, Refused)];

/// Those of a rank whose memory follows.
const FOLLOWING: &[(&str, Side, Ends)] = &[("Following", Target, Either)];

/// Those of a move that is given up; there is time for nothing else.
const GIVEN_UP: &[(&str, Side, Ends)] = &[
    ("GivingUp(Source)", Source, Refused),
    ("GivingUp(Target)", Target, Refused),
];

/// Why a move may end with a process of it.
const BROKEN: &[&str] = &[
    "ending or about to restart",
    "connection broke",
    "is gone",
    "the source can't be reached",
    "nobody is there",
    "the connection to the target broke",
    "the connection to the source broke",
    "sent in time",
];

/// Ranks that are large enough to be copied in rounds, and write lines.
const RELAY: &str = "--mib 16 --steps 900 --pause-us 4000 --write each";

/// A relay that writes its lines into the bed.
fn solver(bed: &Bed) -> Result<Solver> {
    relay::relay(bed, &bed.join("lines"), RELAY)
}

/// Moves rank 1 from the process that it is started in to another, and has one of the two end at a step. Gives whether it had moved.
fn killed_at(
    bed: &Bed,
    job: &mut Job<'_>,
    doom: &Path,
    (step, side, ends): (&str, Side, Ends),
    mode: &str,
    to: usize,
) -> Result<bool> {
    let goes = job.count("go")?;
    let lost = job.count("lost")?;
    // From the checkpoint that the next start begins with on, something is to be done again.
    bed.json("checkpoint", &[])?;
    fs::write(doom, step)?;
    let outcome = match step.starts_with("GivingUp") {
        // The solver names no safe point.
        true => {
            let how = ["1", "--to", &to.to_string(), "--mode", "safepoint"];
            let within = ["--within", "100ms", "--json"];
            bed.on_store("migrate", &[&how[..], &within].concat())?
        }
        false => migrate(bed, 1, &to.to_string(), mode)?,
    };
    let loss = job.wait_events("the loss", lost + 1, |event| event.is("lost"))?;
    ensure!(!doom.exists(), "nobody came to this step");
    let victim = if side == Source { 1 } else { to };
    ensure!(loss.process() == Some(victim), "{loss:?}");
    let record = outcome.json()?;
    match outcome.code() {
        Some(0) => ensure!(ends == Either, "it is told to have moved: {record}"),
        Some(69) => {
            let reason = record["error"]["message"].as_str().unwrap_or_default();
            let known = BROKEN.iter().any(|known| reason.contains(known));
            ensure!(known, "told: {reason}");
            println!("{mode} {step}: {reason}");
        }
        _ => anyhow::bail!("{}", outcome.story()),
    }
    job.wait_events("the next start", goes + 1, |event| event.is("go"))?;
    Ok(outcome.code() == Some(0))
}

/// Kills at each step of moves in a mode, and checks how the job ends.
fn killed_at_each(
    bed: &Bed,
    mut job: Job<'_>,
    doom: &Path,
    mode: &str,
    steps: &[(&str, Side, Ends)],
    to: usize,
    check: &dyn Fn(&Outcome) -> Result<()>,
) -> Result<()> {
    job.wait_event("the start", |event| event.is("go"))?;
    let begin = Instant::now();
    for &step in steps {
        killed_at(bed, &mut job, doom, step, mode, to)
            .with_context(|| format!("{mode}, at {step:?}"))?;
    }
    // It is as able to move as ever.
    let moved = migrate(bed, 1, &to.to_string(), mode)?.expect_code(0)?;
    ensure!(moved.json()?["result"]["to"] == to, "{}", moved.story());
    println!("{mode}: {} kills in {:?}", steps.len(), begin.elapsed());
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    ensure!(
        outcome.count("start") == steps.len() + 1,
        "{}",
        outcome.story()
    );
    check(&outcome)?;
    let verified = bed.json("verify", &[])?;
    ensure!(verified["sound"] == true, "{verified}");
    Ok(())
}

/// A bed whose processes look for their step in the file that is given.
fn doomed(bed: Bed) -> (Bed, PathBuf) {
    let doom = bed.join("doom");
    let words = vec!["env".to_owned(), format!("{DOOM}={}", doom.display())];
    (bed.entering(words), doom)
}

#[test]
fn a_source_and_a_target_are_killed_at_each_step_of_a_move() -> Result<()> {
    let expected = relay::undisturbed(RELAY)?;
    for mode in ["stop", "precopy", "postcopy", "checkpoint"] {
        let mut steps = STEPS.to_vec();
        match mode {
            "precopy" => steps.extend(ROUNDS),
            "postcopy" if !may_handle_faults() => {
                skip(
                    "kills during a postcopy",
                    "vm.unprivileged_userfaultfd is 0",
                );
                continue;
            }
            "postcopy" => steps.extend(FOLLOWING),
            _ => {}
        }
        let bed = Bed::new()?;
        let (bed, doom) = doomed(bed);
        let job = bed.start(&solver(&bed)?, OPTIONS)?;
        let check = |outcome: &Outcome| relay::check(&bed.join("lines"), outcome, &expected);
        killed_at_each(&bed, job, &doom, mode, &steps, 2, &check)?;
    }
    Ok(())
}

#[test]
fn a_source_and_a_target_are_killed_when_a_move_is_given_up() -> Result<()> {
    // One that names no safepoint.
    let solver = Solver::new("pinned", 3, "nothing 300 10");
    let expected = undisturbed(&solver)?;
    let (bed, doom) = doomed(Bed::new()?);
    let job = bed.start(&solver, OPTIONS)?;
    let check = |outcome: &Outcome| {
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        Ok(())
    };
    killed_at_each(&bed, job, &doom, "stop", GIVEN_UP, 2, &check)
}

#[test]
fn a_source_and_a_target_on_other_nodes_are_killed_at_steps_of_a_move() -> Result<()> {
    let expected = relay::undisturbed(RELAY)?;
    let most_important = |step: &&(&str, Side, Ends)| {
        let names = [
            "Line",
            "Frozen",
            "Received",
            "Told",
            "Recorded(Source)",
            "Recorded(Target)",
            "Forgetting",
        ];
        names.contains(&step.0)
    };
    let steps: Vec<_> = STEPS.iter().filter(most_important).copied().collect();
    let first: Vec<_> = steps[..3].iter().chain(ROUNDS).copied().collect();
    let last = steps[2..].to_vec();
    let behind: Vec<_> = last.iter().chain(FOLLOWING).copied().collect();
    let all = [
        ("stop", steps),
        ("precopy", first),
        ("checkpoint", last),
        ("postcopy", behind),
    ];
    for (mode, steps) in all {
        if mode == "postcopy" && !may_handle_faults() {
            skip(
                "kills during a postcopy between nodes",
                "vm.unprivileged_userfaultfd is 0",
            );
            continue;
        }
        with_each_mpi("moves that are killed", 3, |cluster, mpi| {
            let hosts = cluster.nodes().hostfile(&[1, 2, 3], 1)?;
            let hosts = hosts.display().to_string();
            let mut options = vec!["--hostfile", &hosts];
            options.extend(OPTIONS.split(' '));
            if mpi == Mpi::OpenMpi {
                options.extend(["--launch-args", "-x CKPT_TEST_DOOM"]);
            }
            let doom = cluster.join("doom");
            let words = ["env".to_owned(), format!("{DOOM}={}", doom.display())];
            let job = cluster.start_under(&words, &solver(cluster)?, &options)?;
            let check =
                |outcome: &Outcome| relay::check(&cluster.join("lines"), outcome, &expected);
            killed_at_each(cluster, job, &doom, mode, &steps, 2, &check)
        })?;
    }
    Ok(())
}
