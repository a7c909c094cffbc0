//! Ranks that move over MPI, on one node and between nodes: the same bits as undisturbed, whatever is killed meanwhile.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{Bed, PATIENCE, undisturbed};
use tests::job::Outcome;
use tests::nodes::cluster::{Cluster, with_each_mpi};
use tests::nodes::mpi::Mpi;
use tests::process;
use tests::relay;
use tests::skip::skip;
use tests::solver::Solver;
use tests::wander::journey::{Journey, Kind, Place};
use tests::wander::{Wandering, migrate, move_about};

/// Makes a journey with each MPI, on this node or on so many. One in fifty messages of a storm is longer than 32 KiB, up to 3 MiB.
fn travel(kind: Kind, nodes: usize, seed: u64, more: impl Fn(&mut Journey<'_>)) -> Result<()> {
    for mpi in Mpi::ALL {
        let mut journey = Journey {
            kind,
            place: Place::Nodes(mpi, nodes),
            size: None,
            work: Duration::from_secs(3),
            wandering: Wandering::without_pause(Duration::from_secs(4), 10),
            checkpoints: None,
            options: "",
            kills: None,
            seed,
        };
        more(&mut journey);
        if let Some(why) = journey.missing() {
            skip(&journey.to_string(), &why);
            continue;
        }
        let arrival = journey.make().with_context(|| journey.to_string())?;
        println!("{journey}: {arrival}");
    }
    Ok(())
}

fn with_checkpoints(journey: &mut Journey<'_>) {
    journey.checkpoints = Some(Duration::from_millis(100));
}

fn with_kills(journey: &mut Journey<'_>) {
    journey.checkpoints = Some(Duration::from_millis(60));
    journey.kills = Some(Duration::from_millis(700));
}

#[test]
fn storm_gives_the_same_bits_while_ranks_move_without_pause() -> Result<()> {
    travel(Kind::Storm, 0, 1, |_| ())
}

#[test]
fn heat_gives_the_same_bits_while_ranks_move_without_pause() -> Result<()> {
    travel(Kind::Heat, 0, 3, |_| ())
}

#[test]
fn cg_gives_the_same_bits_while_ranks_move_without_pause() -> Result<()> {
    travel(Kind::Cg, 0, 4, |journey| journey.size = Some((3, 3)))
}

#[test]
fn storm_gives_the_same_bits_while_ranks_move_between_three_nodes_and_checkpoints_are_taken()
-> Result<()> {
    travel(Kind::Storm, 3, 5, with_checkpoints)
}

#[test]
fn heat_gives_the_same_bits_while_ranks_move_between_three_nodes_and_checkpoints_are_taken()
-> Result<()> {
    travel(Kind::Heat, 3, 6, with_checkpoints)
}

#[test]
fn cg_gives_the_same_bits_while_ranks_move_between_three_nodes_and_checkpoints_are_taken()
-> Result<()> {
    travel(Kind::Cg, 3, 7, |journey| {
        with_checkpoints(journey);
        journey.work = Duration::from_secs(1);
    })
}

#[test]
fn storm_outlives_kills_while_ranks_move_and_checkpoints_are_taken() -> Result<()> {
    travel(Kind::Storm, 0, 11, with_kills)
}

#[test]
fn storm_outlives_kills_while_ranks_move_between_three_nodes_and_checkpoints_are_taken()
-> Result<()> {
    travel(Kind::Storm, 3, 12, with_kills)
}

#[test]
fn heat_outlives_kills_while_ranks_move_between_three_nodes_and_checkpoints_are_taken() -> Result<()>
{
    travel(Kind::Heat, 3, 13, with_kills)
}

/// The process of each rank.
fn placement(cluster: &Cluster) -> Result<Vec<usize>> {
    let status = cluster.json("status", &[])?;
    let placement = status["status"]["placement"].as_array().cloned();
    let placement = placement.context("the status tells the placement")?;
    let number = |it: &serde_json::Value| it.as_u64().and_then(|it| usize::try_from(it).ok());
    placement
        .iter()
        .map(|it| number(it).context("a number"))
        .collect()
}

#[test]
fn a_source_and_a_target_that_are_killed_during_a_move_cost_a_restart_and_no_bits() -> Result<()> {
    // The last rank has 64 MiB, so that a kill hits the move of it.
    let solver = Solver::new("pinned", 3, "memory 400 5");
    let expected = undisturbed(&solver)?;
    with_each_mpi("kills during a move", 3, |cluster, mpi| {
        let mut random = ChaCha8Rng::seed_from_u64(21);
        let options = "--launch mpirun --every 100ms --max-restarts 20";
        let mut job = cluster.start_on(&[1, 2, 3], 1, &solver, options)?;
        job.wait_event("the start", |event| event.is("go"))?;
        let mut broken = 0;
        for (starts, is_source) in (2..).zip([true, false, true, false]) {
            let commits = job.count("committed")?;
            job.wait_events("a checkpoint", commits + 1, |event| event.is("committed"))?;
            let from = placement(cluster)?[2];
            let to = (from + random.random_range(1..3)) % 3;
            let begun = job.count("moving")?;
            let delay = Duration::from_millis(random.random_range(0..60));
            let outcome = std::thread::scope(|scope| -> Result<Outcome> {
                let mover = scope.spawn(|| migrate(cluster, 2, &format!("node{}", to + 1), "stop"));
                job.wait_events("the move", begun + 1, |event| event.is("moving"))?;
                std::thread::sleep(delay);
                let victim = cluster.nodes().node(1 + if is_source { from } else { to });
                let victims = victim.running("pinned");
                ensure!(victims.len() == 1, "{victims:?}");
                process::send(victims[0], Signal::SIGKILL)?;
                mover.join().expect("it does not panic")
            })?;
            broken += usize::from(outcome.code() != Some(0));
            job.wait_events("the next start", starts, |event| event.is("go"))?;
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!("with {mpi}: 4 kills during moves, {broken} moves broken");
        ensure!(broken > 0, "no move was hit\n{}", outcome.story());
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        Ok(())
    })
}

#[test]
fn a_rank_that_is_tied_to_its_process_is_refused_by_name_and_goes_on() -> Result<()> {
    for (way, told) in [
        ("static", "CACHE_OF_THE_SOLVER"),
        ("thread", "helper-of-solve"),
        ("file", "/proc/version"),
    ] {
        let pinned = Solver::new("pinned", 3, &format!("{way} 60 10"));
        let expected = undisturbed(&pinned)?;
        with_each_mpi(&pinned.shown(), 3, |cluster, _| {
            let options = "--launch mpirun --every off";
            let mut job = cluster.start_on(&[1, 2, 3], 1, &pinned, options)?;
            job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
            let refused = migrate(cluster, 2, "0", "stop")?.expect_code(69)?;
            let reason = refused.json()?["error"]["message"].to_string();
            ensure!(
                reason.contains(told) && reason.contains("rank 2"),
                "{way}: {reason}"
            );
            migrate(cluster, 1, "0", "stop")?.expect_code(0)?;
            let outcome = job.wait(PATIENCE)?.expect_code(0)?;
            ensure!(outcome.result()? == expected, "{}", outcome.story());
            Ok(())
        })?;
    }
    Ok(())
}

/// A relay of which each rank writes lines into a file of its own.
fn relay(bed: &Bed, lines: &std::path::Path) -> Result<Solver> {
    relay::relay(
        bed,
        lines,
        "--pause-us 1500 --steps 1500 --write each --progress",
    )
}

#[test]
fn files_go_with_their_ranks_between_nodes_and_each_line_is_written_once() -> Result<()> {
    let expected = relay::undisturbed("--steps 1500")?;
    with_each_mpi("files between nodes", 3, |cluster, mpi| {
        let lines = cluster.join("lines");
        let solver = relay(cluster, &lines)?;
        let mut random = ChaCha8Rng::seed_from_u64(31);
        let options = "--launch mpirun --every 100ms";
        let mut job = cluster.start_on(&[1, 2, 3], 1, &solver, options)?;
        job.wait_event("the start", |event| event.is("go"))?;
        let never = AtomicBool::new(false);
        let wandering = Wandering::without_pause(Duration::from_millis(1200), 4);
        let mut moved = move_about(cluster, &solver, &mut random, wandering, &never)?;
        let alive = cluster.solvers(&solver);
        process::send(alive[random.random_range(0..alive.len())], Signal::SIGKILL)?;
        job.wait_events("the next start", 2, |event| event.is("go"))?;
        moved += move_about(cluster, &solver, &mut random, wandering, &never)?;
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!("relay with {mpi}: {moved} moves");
        relay::check(&lines, &outcome, &expected)
    })
}

#[test]
fn a_file_that_the_other_node_does_not_see_refuses_the_move_before_it_starts() -> Result<()> {
    with_each_mpi("a file of one node", 2, |cluster, _| {
        let lines = cluster.local("lines");
        let solver = relay(cluster, &lines)?.on(2);
        let mut job = cluster.start_on(&[1, 2], 1, &solver, "--launch mpirun --every off")?;
        // By then each rank has opened its file: what is opened after the begin of a move refuses it as well, but later.
        job.wait_lines("a step", 1, |line| line == "step 1")?;
        let refused = migrate(cluster, 2, "0", "stop")?.expect_code(69)?;
        let reason = refused.stdout_text();
        ensure!(
            reason.contains("lines.2") && reason.contains("not found under this path"),
            "{reason}"
        );
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        ensure!(outcome.count("moved") == 0, "{}", outcome.story());
        Ok(())
    })
}
