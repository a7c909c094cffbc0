//! Ranks that move between nodes: links that are cut meanwhile, several moves at the same time, safepoints.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{PATIENCE, undisturbed};
use tests::job::{Job, Outcome};
use tests::nodes::cluster::{Cluster, with_each_mpi};
use tests::solver::Solver;
use tests::wander::{BROKEN, migrate};

/// The modes in which a move that breaks is given up, and no more.
const MODES: [&str; 3] = ["stop", "precopy", "auto"];

/// The last rank has 64 MiB, so that what happens shortly after the begin of its move hits the move.
fn solver(steps: usize) -> Solver {
    Solver::new("pinned", 3, &format!("memory {steps} 5"))
}

/// The node of each rank, by number.
fn nodes_of_ranks(cluster: &Cluster) -> Result<Vec<usize>> {
    let shown = cluster.json("ps", &[])?;
    let rows = |name: &str| shown[name].as_array().cloned().context("rows");
    let (processes, ranks) = (rows("processes")?, rows("ranks")?);
    let number = |rank: &serde_json::Value| {
        let mut processes = processes.iter();
        let process = processes.find(|it| it["process"] == rank["process"])?;
        let name = process["node"].as_str()?;
        name.strip_prefix("node")?.parse().ok()
    };
    ranks
        .iter()
        .map(|it| number(it).with_context(|| format!("the node of {it}")))
        .collect()
}

/// Moves rank 2 to a node, and cuts that node's or the rank's own link a little after the move has begun. Then does something.
fn cut_during_a_move(
    cluster: &Cluster,
    job: &mut Job<'_>,
    (to, cut, mode): (usize, usize, &str),
    delay: Duration,
    then: impl FnOnce(&mut Job<'_>) -> Result<()>,
) -> Result<Outcome> {
    let begun = job.count("moving")?;
    thread::scope(|scope| {
        let mover = scope.spawn(|| migrate(cluster, 2, &format!("node{to}"), mode));
        job.wait_events("the move", begun + 1, |event| event.is("moving"))?;
        thread::sleep(delay);
        cluster.nodes().cut(cut)?;
        then(job)?;
        mover.join().expect("it does not panic")
    })
}

#[test]
fn a_link_that_is_cut_for_a_second_during_a_move_costs_nothing_but_time() -> Result<()> {
    let solver = solver(700);
    let expected = undisturbed(&solver)?;
    with_each_mpi("a link cut for a second", 3, |cluster, mpi| {
        let mut random = ChaCha8Rng::seed_from_u64(51);
        let mut job = cluster.start_on(&[1, 2, 3], 1, &solver, "--launch mpirun --every off")?;
        job.wait_event("the start", |event| event.is("go"))?;
        let (mut moved, mut given_up) = (0, 0);
        for mode in MODES {
            let from = nodes_of_ranks(cluster)?[2];
            let to = 1 + (from + random.random_range(0..2)) % 3;
            let cut = if random.random() { from } else { to };
            let delay = Duration::from_millis(random.random_range(0..40));
            let outcome = cut_during_a_move(cluster, &mut job, (to, cut, mode), delay, |_| {
                thread::sleep(Duration::from_secs(1));
                cluster.nodes().heal(cut)
            })?;
            match outcome.code() {
                Some(0) => moved += 1,
                _ => {
                    let reason = outcome.json()?["error"]["message"].to_string();
                    ensure!(BROKEN.iter().any(|it| reason.contains(it)), "{reason}");
                    given_up += 1;
                }
            }
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!("with {mpi}: links cut for a second, {moved} moves made, {given_up} given up");
        ensure!(outcome.count("start") == 1, "{}", outcome.story());
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        Ok(())
    })
}

#[test]
fn a_node_that_is_cut_off_during_a_move_costs_a_restart_and_no_bits() -> Result<()> {
    let solver = solver(400);
    let expected = undisturbed(&solver)?;
    with_each_mpi("a node cut off during a move", 3, |cluster, mpi| {
        let mut random = ChaCha8Rng::seed_from_u64(52);
        let options = "--launch mpirun --every 100ms --max-restarts 5";
        let mut job = cluster.start_on(&[1, 2, 3], 2, &solver, options)?;
        job.wait_event("a checkpoint", |event| event.is("committed"))?;
        let from = nodes_of_ranks(cluster)?[2];
        let to = 1 + from % 3;
        let cut = if random.random() { from } else { to };
        let delay = Duration::from_millis(random.random_range(0..40));
        let outcome = cut_during_a_move(cluster, &mut job, (to, cut, "precopy"), delay, |job| {
            job.wait_events("the next start", 2, |event| event.is("go"))?;
            // Two halves never both go on.
            let left = cluster.nodes().node(cut).running(&solver.name);
            ensure!(left.is_empty(), "on the node that was cut off: {left:?}");
            Ok(())
        })?;
        let broken = outcome.code() != Some(0);
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!("with {mpi}: node{cut} cut off during a move from node{from}, broken: {broken}");
        ensure!(outcome.count("start") == 2, "{}", outcome.story());
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        ensure!(
            cluster.json("verify", &[])?["sound"] == true,
            "{}",
            outcome.story()
        );
        cluster.nodes().heal(cut)
    })
}

#[test]
fn ranks_of_different_processes_move_at_the_same_time() -> Result<()> {
    let solver = Solver::new(
        "heat",
        4,
        "--mib-per-rank 48 --steps 400 --pause-us 2000 --progress",
    );
    let expected = undisturbed(&solver)?;
    with_each_mpi("two moves at once", 2, |cluster, mpi| {
        let mut job = cluster.start_on(&[1, 2], 2, &solver, "--launch mpirun --every off")?;
        job.wait_event("the start", |event| event.is("go"))?;
        // Each pair of processes has its own two ranks, which change places.
        let mut both = 0;
        for (turn, mode) in MODES.iter().enumerate() {
            let ways = match turn % 2 {
                0 => [(0, "2"), (1, "3")],
                _ => [(0, "0"), (1, "1")],
            };
            thread::scope(|scope| {
                let movers =
                    ways.map(|(rank, to)| scope.spawn(move || migrate(cluster, rank, to, mode)));
                movers.into_iter().try_for_each(|mover| {
                    let outcome = mover.join().expect("it does not panic")?;
                    outcome.expect_code(0).map(drop)
                })
            })?;
            // Whether the second had begun before the first was over.
            let events = job.events()?;
            let of_moves = events.iter().filter(|it| it.is("moving") || it.is("moved"));
            let last: Vec<bool> = of_moves.map(|it| it.is("moving")).collect();
            both += usize::from(last[last.len() - 4..] == [true, true, false, false]);
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        println!(
            "with {mpi}: {both} pairs of {} moved at the same time",
            MODES.len()
        );
        ensure!(both > 0, "{}", outcome.story());
        ensure!(
            outcome.count("moved") == 2 * MODES.len(),
            "{}",
            outcome.story()
        );
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        Ok(())
    })
}

#[test]
fn a_rank_is_moved_between_nodes_at_a_safepoint_and_nowhere_else() -> Result<()> {
    // It ends with an error if it finds itself in another process outside of its safepoints.
    let solver = Solver::new("pinned", 3, "safepoint 400 10");
    let expected = undisturbed(&solver)?;
    with_each_mpi("safepoints between nodes", 3, |cluster, _| {
        let mut job = cluster.start_on(&[1, 2, 3], 1, &solver, "--launch mpirun --every 200ms")?;
        job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
        for to in ["node1", "node2", "node3"] {
            let outcome = migrate(cluster, 2, to, "safepoint")?.expect_code(0)?;
            let moved = outcome.json()?;
            ensure!(moved["result"]["mode"] == "safepoint", "{moved}");
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        ensure!(outcome.count("moved") == 3, "{}", outcome.story());
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        Ok(())
    })
}
