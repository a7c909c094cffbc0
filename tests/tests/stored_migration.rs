//! Ranks whose targets read their last checkpoint out of the store (`ckpt migrate --mode checkpoint`): the same bits as undisturbed,
//! and where that checkpoint can't be used, a rank that goes on where it was.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{Bed, PATIENCE, undisturbed};
use tests::damage::{Damage, epoch_folder};
use tests::job::{Job, Outcome};
use tests::phase::Target;
use tests::solver::Solver;
use tests::wander::journey::{Journey, Kind, Place};
use tests::wander::{self, Wandering};

/// The heat equation on three ranks of so many MiB, of which a page here and there changes.
fn sparse(mib: usize, steps: usize) -> Solver {
    let arguments =
        format!("--mib-per-rank {mib} --changing 0.02 --steps {steps} --pause-us 4000 --progress");
    Solver::new("heat", 3, &arguments)
}

fn start<'b>(bed: &'b Bed, solver: &Solver, options: &str) -> Result<Job<'b>> {
    let mut job = bed.start(solver, options)?;
    job.wait_lines("a step", 5, |line| line.starts_with("step "))?;
    Ok(job)
}

fn migrate(bed: &Bed, rank: usize, to: usize) -> Result<Outcome> {
    wander::migrate(bed, rank, &to.to_string(), "checkpoint")
}

/// A move that is refused; gives the reason.
fn refused(bed: &Bed, rank: usize, to: usize) -> Result<String> {
    let outcome = migrate(bed, rank, to)?.expect_code(69)?;
    Ok(outcome.json()?["error"]["message"].to_string())
}

/// Checkpoints all the time, and ranks that move out of them, or are stopped.
fn moves_out_of_checkpoints(
    kind: Kind,
    size: (usize, usize),
    options: &'static str,
    seed: u64,
) -> Result<()> {
    let journey = Journey {
        kind,
        place: Place::Shared,
        size: Some(size),
        work: Duration::from_secs(3),
        wandering: Wandering {
            time: Duration::from_secs(4),
            every: None,
            least: 10,
            modes: &["checkpoint", "checkpoint", "checkpoint", "stop"],
            broken: &[],
        },
        checkpoints: Some(Duration::from_millis(100)),
        options,
        kills: None,
        seed,
    };
    let arrival = journey.make().with_context(|| journey.to_string())?;
    println!("{journey}: {arrival}");
    ensure!(
        arrival.tally.moved.get("checkpoint") > Some(&2),
        "{arrival}"
    );
    Ok(())
}

#[test]
fn storm_gives_the_same_bits_while_ranks_move_out_of_checkpoints() -> Result<()> {
    moves_out_of_checkpoints(Kind::Storm, (4, 3), "", 1)
}

#[test]
fn heat_gives_the_same_bits_while_ranks_move_out_of_checkpoints() -> Result<()> {
    moves_out_of_checkpoints(Kind::Heat, (4, 3), "", 2)?;
    moves_out_of_checkpoints(Kind::Heat, (4, 3), "--capture copy", 3)
}

#[test]
fn cg_gives_the_same_bits_while_ranks_move_out_of_checkpoints() -> Result<()> {
    moves_out_of_checkpoints(Kind::Cg, (3, 3), "--track kernel", 4)
}

#[test]
fn checkpoints_after_moves_out_of_checkpoints_hold_what_was_written() -> Result<()> {
    let solver = sparse(48, 1500);
    let expected = undisturbed(&solver)?;
    let mut random = ChaCha8Rng::seed_from_u64(51);
    for options in [
        "--track kernel --capture copy",
        "--track auto --capture cow",
        "--track auto",
    ] {
        let bed = Bed::new()?;
        let mut job = start(
            &bed,
            &solver,
            &format!("--every off --max-restarts 20 {options}"),
        )?;
        let (mut moved, mut given_up, mut starts) = (0, 0, 1);
        for round in 0..12 {
            // A second one is of a rank that the kernel tracks, or not.
            for _ in 0..random.random_range(1..=3) {
                bed.json("checkpoint", &[])?;
            }
            // The first after a restart is out of the checkpoint that the rank was restored from.
            if round % 4 == 3 {
                let victim = Target::Process(random.random_range(0..3));
                ensure!(job.kill(victim)?.is_some(), "all gone");
                starts += 1;
                job.wait_events("the next start", starts, |event| event.is("go"))?;
            }
            let rank = random.random_range(0..3).to_string();
            let to = random.random_range(0..3).to_string();
            let within = match random.random_range(0..2) {
                0 => format!("{}ms", random.random_range(2..60)),
                _ => "1m".to_owned(),
            };
            let how = [
                &rank,
                "--to",
                &to,
                "--mode",
                "checkpoint",
                "--within",
                &within,
                "--json",
            ];
            let outcome = bed.on_store("migrate", &how)?;
            match outcome.code() {
                Some(0) => moved += u32::from(outcome.json()?["result"]["rounds"] != 0),
                Some(69) if outcome.stdout_text().contains("in time") => given_up += 1,
                _ => anyhow::bail!("{}", outcome.story()),
            }
        }
        bed.json("checkpoint", &[])?;
        ensure!(job.kill(Target::Process(0))?.is_some(), "all gone");
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!("{options}: {moved} moves out of checkpoints, {given_up} were given up");
        ensure!(moved > 0 && given_up > 0, "{}", outcome.story());
        ensure!(
            outcome.result()? == expected,
            "{options}: {}",
            outcome.story()
        );
        let verified = bed.json("verify", &[])?;
        ensure!(verified["sound"] == true, "{verified}");
    }
    Ok(())
}

/// The files of a rank in the newest checkpoint's folder.
fn newest_files(bed: &Bed, rank: usize) -> Result<Vec<PathBuf>> {
    let listed = bed.json("ls", &[])?;
    let rows = listed["checkpoints"].as_array().context("a list")?;
    let newest = rows.iter().filter_map(|row| row["epoch"].as_u64()).max();
    let folder = epoch_folder(bed.store(), newest.context("a checkpoint")?);
    let files = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path()));
    let is_its = |path: &PathBuf| {
        let name = path.file_stem().and_then(|name| name.to_str());
        path.extension().is_some_and(|extension| extension == "img")
            && name.is_some_and(|name| name.ends_with(&rank.to_string()))
    };
    let files: Vec<PathBuf> = files.collect::<Result<_>>()?;
    Ok(files.into_iter().filter(is_its).collect())
}

#[test]
fn a_checkpoint_that_is_missing_or_damaged_refuses_the_move_and_the_rank_runs_on() -> Result<()> {
    let solver = sparse(16, 800);
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let job = start(&bed, &solver, "--every off")?;
    bed.json("checkpoint", &[])?;
    let files = newest_files(&bed, 1)?;
    let [file] = &files[..] else {
        anyhow::bail!("one file of rank 1 in a first checkpoint: {files:?}");
    };
    let bytes = fs::read(file)?;
    for damage in [
        Damage::Flip {
            at: bytes.len() / 2,
            bits: 4,
        },
        Damage::Flip { at: 0, bits: 1 },
        Damage::Truncate {
            to: bytes.len() / 2,
        },
    ] {
        fs::write(file, damage.of(&bytes))?;
        let reason = refused(&bed, 1, 0)?;
        ensure!(
            reason.contains("ckpt verify") && reason.contains("epoch 1"),
            "{damage:?}: {reason}"
        );
    }
    fs::remove_file(file)?;
    let reason = refused(&bed, 1, 0)?;
    ensure!(reason.contains("another mode"), "{reason}");
    fs::write(file, &bytes)?;
    let moved = migrate(&bed, 1, 0)?.expect_code(0)?.json()?;
    ensure!(moved["result"]["mode"] == "checkpoint", "{moved}");
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.count("not_moved"), 4, "{}", outcome.story());
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_rank_without_a_checkpoint_where_it_is_is_refused_until_there_is_one() -> Result<()> {
    let solver = sparse(16, 600);
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let job = start(&bed, &solver, "--every off")?;
    for process in [1, 2, 0] {
        let to = (process + 1) % 3;
        let reason = refused(&bed, 1, to)?;
        let told =
            format!("no checkpoint of rank 1 has been taken since it came to process {process}");
        ensure!(
            reason.contains(&told) && reason.contains("ckpt checkpoint"),
            "{reason}"
        );
        bed.json("checkpoint", &[])?;
        let moved = migrate(&bed, 1, to)?.expect_code(0)?.json()?;
        ensure!(moved["result"]["rounds"].as_u64() > Some(0), "{moved}");
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn where_it_can_t_be_told_what_was_written_since_the_move_is_refused() -> Result<()> {
    for way in ["hash", "off"] {
        let solver = sparse(4, 200);
        let bed = Bed::new()?;
        let job = start(&bed, &solver, &format!("--every off --track {way}"))?;
        bed.json("checkpoint", &[])?;
        let reason = refused(&bed, 1, 2)?;
        ensure!(
            reason.contains("--track") && reason.contains("another mode"),
            "{reason}"
        );
        job.wait(PATIENCE)?.expect_code(0)?;
    }
    Ok(())
}
