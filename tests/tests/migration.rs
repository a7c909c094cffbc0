//! Ranks that move between the processes of a running job: the same bits as undisturbed, whatever is killed meanwhile.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{Bed, PATIENCE, undisturbed};
use tests::job::{Job, Outcome};
use tests::phase::Target;
use tests::relay;
use tests::skip::skip;
use tests::solver::Solver;
use tests::wander::journey::{Journey, Kind, Place};
use tests::wander::{self, NO_RIGHT, Wandering, may_handle_faults, move_about};

/// Ranks that have to move in a test, at least.
const MOVES_LEAST: usize = 10;

/// Waits until the ranks run.
fn wait_for_go(job: &mut Job<'_>) -> Result<()> {
    job.wait_event("the start", |event| event.is("go"))?;
    Ok(())
}

fn migrate(bed: &Bed, rank: usize, to: usize) -> Result<Outcome> {
    wander::migrate(bed, rank, &to.to_string(), "stop")
}

/// A job whose ranks move without pause for four seconds.
fn journey(kind: Kind, seed: u64) -> Journey<'static> {
    Journey {
        kind,
        place: Place::Shared,
        size: None,
        work: Duration::from_secs(3),
        wandering: Wandering::without_pause(Duration::from_secs(4), MOVES_LEAST),
        checkpoints: None,
        options: "",
        kills: None,
        seed,
    }
}

fn make(journey: &Journey<'_>) -> Result<()> {
    let arrival = journey.make().with_context(|| journey.to_string())?;
    println!("{journey}: {arrival}");
    Ok(())
}

#[test]
fn storm_gives_the_same_bits_while_ranks_move_without_pause() -> Result<()> {
    for seed in [1, 2] {
        make(&journey(Kind::Storm, seed))?;
    }
    Ok(())
}

#[test]
fn heat_gives_the_same_bits_while_ranks_move_without_pause() -> Result<()> {
    make(&journey(Kind::Heat, 3))
}

#[test]
fn cg_gives_the_same_bits_while_ranks_move_without_pause() -> Result<()> {
    make(&Journey {
        size: Some((3, 3)),
        ..journey(Kind::Cg, 4)
    })
}

#[test]
fn many_ranks_move_between_few_processes() -> Result<()> {
    make(&Journey {
        size: Some((24, 3)),
        work: Duration::from_secs(1),
        checkpoints: Some(Duration::from_millis(100)),
        ..journey(Kind::Storm, 5)
    })
}

/// Checkpoints and moves without pause, and a process killed again and again.
fn outlives_kills(kind: Kind, every_ms: u64, options: &'static str, seed: u64) -> Result<()> {
    make(&Journey {
        checkpoints: Some(Duration::from_millis(every_ms)),
        options,
        kills: Some(Duration::from_millis(500)),
        ..journey(kind, seed)
    })
}

#[test]
fn storm_outlives_kills_while_ranks_move_and_checkpoints_are_taken() -> Result<()> {
    outlives_kills(Kind::Storm, 40, "", 11)?;
    outlives_kills(Kind::Storm, 40, "", 12)
}

#[test]
fn heat_outlives_kills_while_ranks_move_and_checkpoints_are_taken() -> Result<()> {
    outlives_kills(Kind::Heat, 30, "", 13)?;
    outlives_kills(Kind::Heat, 30, "--track hash --capture cow", 14)
}

/// Something large enough that a kill hits the move of it.
fn large(steps: usize) -> Solver {
    Solver::new("pinned", 3, &format!("memory {steps} 5"))
}

#[test]
fn a_source_and_a_target_that_are_killed_during_a_move_cost_a_restart_and_no_bits() -> Result<()> {
    killed_during_moves("stop")
}

#[test]
fn a_source_and_a_target_that_are_killed_while_memory_follows_cost_no_more() -> Result<()> {
    if !may_handle_faults() {
        skip("kills while memory follows", NO_RIGHT);
        return Ok(());
    }
    killed_during_moves("postcopy")
}

fn killed_during_moves(mode: &str) -> Result<()> {
    let solver = large(500);
    let expected = undisturbed(&solver)?;
    let mut random = ChaCha8Rng::seed_from_u64(21);
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every 40ms --max-restarts 20")?;
    wait_for_go(&mut job)?;
    let mut broken = 0;
    for (starts, victim) in (2..).zip([2, 1, 2, 0, 2, 1]) {
        // The last rank, which has all the memory, from process 2 to the victim, or to another if that is the source.
        let to = if victim == 2 {
            random.random_range(0..2)
        } else {
            victim
        };
        let delay = Duration::from_millis(random.random_range(0..10));
        let commits = job.count("committed")?;
        job.wait_events("a checkpoint", commits + 1, |event| event.is("committed"))?;
        let begun = job.count("moving")?;
        let outcome = std::thread::scope(|scope| -> Result<Outcome> {
            let mover = scope.spawn(|| wander::migrate(&bed, 2, &to.to_string(), mode));
            // It takes tens of milliseconds, so that the kill comes in the middle of it.
            job.wait_events("the move", begun + 1, |event| event.is("moving"))?;
            std::thread::sleep(delay);
            job.must_kill(Target::Process(victim))?;
            mover.join().expect("it does not panic")
        })?;
        broken += usize::from(outcome.code() != Some(0));
        println!(
            "{mode}, seed 21: process {victim} killed after {delay:?}: {:?}",
            outcome.code()
        );
        job.wait_events("the next start", starts, |event| event.is("go"))?;
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    let begun = outcome.count("moving");
    println!(
        "{mode}, seed 21: {begun} moves begun, {} ended well, {broken} refused or broken",
        outcome.count("moved")
    );
    ensure!(
        begun > outcome.count("moved"),
        "no move was hit\n{}",
        outcome.story()
    );
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_source_that_is_lost_before_the_last_page_has_come_costs_a_restart_and_no_bits() -> Result<()> {
    if !may_handle_faults() {
        skip("the loss of a source whose rank has gone", NO_RIGHT);
        return Ok(());
    }
    let solver = sparse(192, 700);
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every off --max-restarts 20")?;
    job.wait_lines("a step", 5, |line| line.starts_with("step "))?;
    bed.json("checkpoint", &[])?;
    let placed = || -> Result<u64> {
        let status = bed.json("status", &[])?;
        let process = status["status"]["placement"][2].as_u64();
        process.context("a placement")
    };
    let mut hits = 0;
    for starts in 2..=4 {
        let outcome = std::thread::scope(|scope| -> Result<Outcome> {
            let mover = scope.spawn(|| wander::migrate(&bed, 2, "1", "postcopy"));
            // It runs there already, and its memory takes a fraction of a second to follow.
            while placed()? == 2 && !mover.is_finished() {}
            job.must_kill(Target::Process(2))?;
            mover.join().expect("it does not panic")
        })?;
        hits += usize::from(outcome.code() != Some(0));
        println!("{}", outcome.stdout_text());
        job.wait_events("the next start", starts, |event| event.is("go"))?;
    }
    ensure!(hits > 0, "every move was over before its source was lost");
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_rank_goes_nowhere_ahead_of_its_memory_where_faults_can_not_be_handled() -> Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    let bed = match is_root {
        true => Bed::as_nobody(),
        false => Bed::new(),
    };
    let told = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")?;
    let (Ok(bed), "0") = (bed, told.trim()) else {
        skip("postcopy without the right", "there is no user without it");
        return Ok(());
    };
    let solver = Solver::heat(3, 96, 128, 3000);
    let expected = undisturbed(&solver)?;
    let mut job = bed.start(&solver, "--every off")?;
    wait_for_go(&mut job)?;
    let refused = wander::migrate(&bed, 1, "2", "postcopy")?.expect_code(69)?;
    let reason = refused.stdout_text();
    ensure!(
        reason.contains(NO_RIGHT) && reason.contains("/dev/userfaultfd") && reason.contains("auto"),
        "{reason}"
    );
    // The slot is free again, and the others go on.
    wander::migrate(&bed, 1, "2", "auto")?.expect_code(0)?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

/// The heat equation on ranks of so many MiB, of which a page here and there changes.
fn sparse(mib: usize, steps: usize) -> Solver {
    let arguments =
        format!("--mib-per-rank {mib} --changing 0.02 --steps {steps} --pause-us 4000 --progress");
    Solver::new("heat", 3, &arguments)
}

#[test]
fn a_large_rank_that_writes_is_copied_while_it_runs() -> Result<()> {
    let solver = sparse(32, 800);
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every off")?;
    job.wait_lines("a step", 5, |line| line.starts_with("step "))?;
    for (rank, to) in [(2, 0), (2, 1), (1, 2), (2, 2), (1, 1)] {
        let moved = bed.json(
            "migrate",
            &[
                rank.to_string().as_str(),
                "--to",
                &to.to_string(),
                "--mode",
                "precopy",
            ],
        )?;
        println!("{moved}");
        ensure!(
            moved["mode"] == "precopy" && moved["rounds"].as_u64() > Some(0),
            "{moved}"
        );
        ensure!(moved["image_bytes"].as_u64() > Some(32 << 20), "{moved}");
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_checkpoint_after_a_move_that_was_given_up_holds_what_was_written_before() -> Result<()> {
    let solver = sparse(48, 1500);
    let expected = undisturbed(&solver)?;
    let mut random = ChaCha8Rng::seed_from_u64(41);
    for options in [
        "--track kernel --capture copy",
        "--track kernel",
        "--track auto --capture cow",
    ] {
        let bed = Bed::new()?;
        let mut job = bed.start(&solver, &format!("--every off --max-restarts 20 {options}"))?;
        job.wait_lines("a step", 5, |line| line.starts_with("step "))?;
        bed.json("checkpoint", &[])?;
        bed.json("checkpoint", &[])?;
        let mut given_up = 0;
        let mut starts = 1;
        for round in 0..12 {
            let within = format!("{}ms", random.random_range(2..30));
            let rank = random.random_range(0..3).to_string();
            let to = random.random_range(0..3).to_string();
            let how = [
                &rank, "--to", &to, "--mode", "precopy", "--within", &within, "--json",
            ];
            let outcome = bed.on_store("migrate", &how)?;
            match outcome.code() {
                Some(0) => {}
                Some(69) => given_up += u32::from(outcome.stdout_text().contains("sent in time")),
                _ => anyhow::bail!("{}", outcome.story()),
            }
            bed.json("checkpoint", &[])?;
            if round % 4 == 3 {
                ensure!(
                    job.kill(Target::Process(random.random_range(0..3)))?
                        .is_some(),
                    "all gone"
                );
                starts += 1;
                job.wait_events("the next start", starts, |event| event.is("go"))?;
            }
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!("{options}: {given_up} moves were given up while the rank was sent");
        ensure!(given_up > 0, "{options}: {}", outcome.story());
        assert_eq!(
            outcome.result()?,
            expected,
            "{options}: {}",
            outcome.story()
        );
        ensure!(
            bed.json("verify", &[])?["sound"] == true,
            "{}",
            outcome.story()
        );
    }
    Ok(())
}

#[test]
fn where_the_kernel_tracks_nothing_a_rank_is_stopped_and_this_is_told() -> Result<()> {
    let solver = Solver::new("pinned", 3, "nothing 300 10");
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every off --track hash")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    let moved = bed.json("migrate", &["1", "--to", "2", "--mode", "precopy"])?;
    ensure!(moved["mode"] == "stop" && moved["rounds"] == 0, "{moved}");
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    let told = "rank 1 is stopped for the whole of its move";
    ensure!(outcome.story().contains(told), "{}", outcome.story());
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn small_ranks_are_stopped_and_large_calm_ones_copied_in_rounds_if_the_choice_is_free() -> Result<()>
{
    let bed = Bed::new()?;
    let mut job = bed.start(&large(600), "--every off")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    for (rank, to, mode) in [
        ("0", "1", "stop"),
        ("2", "1", "precopy"),
        ("2", "0", "precopy"),
    ] {
        let moved = bed.json("migrate", &[rank, "--to", to, "--mode", "auto"])?;
        ensure!(moved["mode"] == mode, "{moved}");
    }
    job.wait(PATIENCE)?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_rank_is_moved_at_a_safepoint_and_nowhere_else() -> Result<()> {
    // It ends with an error if it finds itself in another process outside of its safepoints.
    let solver = Solver::new("pinned", 3, "safepoint 400 10");
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every 50ms --max-restarts 20")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    for to in ["0", "1", "2"] {
        let moved = bed.json("migrate", &["2", "--to", to, "--mode", "safepoint"])?;
        ensure!(moved["mode"] == "safepoint", "{moved}");
    }
    job.must_kill(Target::Process(2))?;
    job.wait_events("the next start", 2, |event| event.is("go"))?;
    bed.json("migrate", &["2", "--to", "0", "--mode", "safepoint"])?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_move_that_waits_for_a_safepoint_in_vain_is_given_up_with_a_word_of_why() -> Result<()> {
    let solver = Solver::new("pinned", 3, "nothing 200 10");
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every off")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    let how = [
        "2",
        "--to",
        "0",
        "--mode",
        "safepoint",
        "--within",
        "300ms",
        "--json",
    ];
    let refused = bed.on_store("migrate", &how)?.expect_code(69)?;
    ensure!(
        refused.stdout_text().contains("libckpt::safepoint()"),
        "{}",
        refused.story()
    );
    // Nothing waits any more.
    migrate(&bed, 2, 0)?.expect_code(0)?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn a_rank_that_is_tied_to_its_process_is_refused_by_name_and_goes_on() -> Result<()> {
    for (way, told) in [
        ("static", "CACHE_OF_THE_SOLVER"),
        ("thread_local", "SCRATCH_OF_THE_SOLVER"),
        ("thread", "helper-of-solve"),
        ("file", "/proc/version"),
    ] {
        let pinned = Solver::new("pinned", 3, &format!("{way} 60 10"));
        let expected = undisturbed(&pinned)?;
        let bed = Bed::new()?;
        let mut job = bed.start(&pinned, "--every off")?;
        job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
        let refused = migrate(&bed, 2, 0)?.expect_code(69)?;
        let reason = refused.json()?["error"]["message"].to_string();
        ensure!(
            reason.contains(told) && reason.contains("rank 2") && reason.contains("process 2"),
            "{way}: {reason}"
        );
        // The others are as free as before.
        migrate(&bed, 1, 0)?.expect_code(0)?;
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        assert_eq!(outcome.result()?, expected, "{}", outcome.story());
        assert_eq!(outcome.count("not_moved"), 1, "{}", outcome.story());
    }
    Ok(())
}

#[test]
fn what_can_t_be_moved_is_refused_with_the_reason() -> Result<()> {
    let bed = Bed::new()?;
    let early = bed.on_store("migrate", &["0", "--to", "1"])?;
    assert_eq!(early.code(), Some(64), "no such job: {}", early.story());
    let mut job = bed.start(&Solver::new("pinned", 3, "returns 600 10"), "--every off")?;
    job.wait_event("the end of a rank", |event| event.is("finished"))?;
    let refused = |rank: usize, to: usize, told: &str| -> Result<()> {
        let outcome = migrate(&bed, rank, to)?.expect_code(69)?;
        let reason = outcome.json()?["error"]["message"].to_string();
        ensure!(reason.contains(told), "{reason}");
        Ok(())
    };
    refused(3, 0, "there is no rank 3: the job has 3 ranks")?;
    refused(0, 3, "there is no process 3: the job has 3 processes")?;
    refused(2, 0, "rank 2 has returned from its main function")?;
    let there = bed.json("migrate", &["0", "--to", "0"])?;
    assert_eq!((&there["from"], &there["to"]), (&0.into(), &0.into()));
    let moved = bed.json("migrate", &["0", "--to", "1"])?;
    assert_eq!((&moved["from"], &moved["to"]), (&0.into(), &1.into()));
    assert!(moved["image_bytes"].as_u64() > Some(0), "{moved}");
    assert!(
        moved["took_us"].as_u64() >= moved["stood_us"].as_u64(),
        "{moved}"
    );
    let status = bed.json("status", &[])?;
    assert_eq!(status["status"]["placement"], serde_json::json!([1, 1, 2]));
    job.wait(PATIENCE)?.expect_code(0)?;
    let late = migrate(&bed, 0, 1)?.expect_code(69)?;
    assert!(
        late.stdout_text().contains("not running"),
        "{}",
        late.story()
    );
    Ok(())
}

#[test]
fn a_checkpoint_after_a_move_is_gone_on_from() -> Result<()> {
    gone_on_from("stop")
}

#[test]
fn a_checkpoint_after_a_move_ahead_of_the_memory_is_gone_on_from() -> Result<()> {
    if !may_handle_faults() {
        skip("checkpoints after postcopy", NO_RIGHT);
        return Ok(());
    }
    gone_on_from("postcopy")
}

fn gone_on_from(mode: &str) -> Result<()> {
    let solver = large(300);
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every off")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    bed.json("checkpoint", &[])?;
    // There and back, and there again: each image that follows is a whole one where the rank came to.
    for to in [0, 2, 0] {
        let moved = bed.json("migrate", &["2", "--to", &to.to_string(), "--mode", mode])?;
        ensure!(moved["mode"] == mode, "{moved}");
        assert!(moved["image_bytes"].as_u64() > Some(64 << 20), "{moved}");
        println!(
            "{mode}, 64 MiB: stood still for {} us, took {} us",
            moved["stood_us"], moved["took_us"]
        );
        bed.json("checkpoint", &[])?;
        bed.json("checkpoint", &[])?;
    }
    job.must_kill(Target::Process(0))?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.count("start"), 2, "{}", outcome.story());
    let last = outcome.events.iter().rfind(|event| event.is("start"));
    assert_eq!(last.and_then(tests::events::Event::epoch), Some(7));
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

/// A relay of which each rank writes lines, in a way of its own.
fn relay(bed: &Bed, write: &str) -> Result<Solver> {
    let arguments = format!("--pause-us 1500 --steps 1500 --write {write} --progress");
    relay::relay(bed, &bed.join("lines"), &arguments)
}

#[test]
fn files_go_with_their_ranks_and_each_line_is_written_once() -> Result<()> {
    let expected = relay::undisturbed("--steps 1500")?;
    for (seed, write, kills) in [
        (31, "buffered", false),
        (32, "each", true),
        (33, "reopened", true),
    ] {
        let bed = Bed::new()?;
        let solver = relay(&bed, write)?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut job = bed.start(&solver, "--every 50ms")?;
        wait_for_go(&mut job)?;
        let never = AtomicBool::new(false);
        let wandering = Wandering::without_pause(Duration::from_millis(1200), 4);
        let mut moved = move_about(&bed, &solver, &mut random, wandering, &never)?;
        if kills {
            job.kill(Target::Process(random.random_range(0..3)))?;
            job.wait_events("the next start", 2, |event| event.is("go"))?;
            moved += move_about(&bed, &solver, &mut random, wandering, &never)?;
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!("relay, {write}: seed {seed}, {moved} moves");
        relay::check(&bed.join("lines"), &outcome, &expected).context(write)?;
    }
    Ok(())
}

#[test]
fn a_file_that_is_gone_refuses_the_move() -> Result<()> {
    let bed = Bed::new()?;
    let solver = relay(&bed, "each")?;
    let mut job = bed.start(&solver, "--every off")?;
    // By then each rank has opened its file.
    job.wait_lines("a step", 1, |line| line == "step 1")?;
    migrate(&bed, 1, 0)?.expect_code(0)?;
    let (path, aside) = (bed.join("lines.1"), bed.join("aside"));
    fs::rename(&path, &aside)?;
    let refused = migrate(&bed, 1, 2)?.expect_code(69)?;
    let reason = refused.stdout_text();
    ensure!(
        reason.contains("lines.1") && reason.contains("renamed"),
        "{reason}"
    );
    fs::rename(&aside, &path)?;
    migrate(&bed, 1, 2)?.expect_code(0)?;
    job.wait(PATIENCE)?.expect_code(0)?;
    Ok(())
}

#[test]
fn lines_are_labelled_with_their_rank_wherever_it_is() -> Result<()> {
    let solver = Solver::new("pinned", 3, "nothing 100 10");
    let expected = undisturbed(&solver)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&solver, "--every off --label")?;
    job.wait_lines("a step", 1, |line| line.contains("step "))?;
    for (rank, to) in [(0, 2), (1, 2), (0, 1), (2, 0)] {
        migrate(&bed, rank, to)?.expect_code(0)?;
    }
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    let lines: Vec<&str> = outcome
        .stdout
        .iter()
        .map(|line| line.text.as_str())
        .collect();
    assert_eq!(lines.len(), 101, "{}", outcome.story());
    let (labels, texts): (Vec<&str>, Vec<&str>) = (lines.iter())
        .filter_map(|line| line.split_once("step ").or(line.split_once("result: ")))
        .unzip();
    assert!(
        labels
            .iter()
            .all(|label| label == &labels[0] && !label.is_empty()),
        "{}",
        outcome.story()
    );
    assert_eq!(
        texts.last(),
        Some(&expected.as_str()),
        "{}",
        outcome.story()
    );
    Ok(())
}
