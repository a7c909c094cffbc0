//! Nodes and processes that are drained: their ranks move away, they leave the job, and what becomes of them then changes nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, PATIENCE, undisturbed};
use tests::events::Event;
use tests::job::{Job, Outcome};
use tests::nodes::cluster::{Cluster, with_each_mpi};
use tests::nodes::mpi::Mpi;
use tests::phase::Target;
use tests::process::{self, now_us};
use tests::solver::Solver;

/// 8 ranks on 3 processes, for some seconds.
fn storm(seed: u64) -> Solver {
    Solver::storm(8, 14_000, seed)
        .on(3)
        .pausing(Duration::from_millis(40))
}

fn wait_for_go(job: &mut Job<'_>, starts: usize) -> Result<()> {
    job.wait_events("the start", starts, |event| event.is("go"))?;
    Ok(())
}

/// Waits until a process has ended, and is gone from the system.
fn wait_for_end(pid: u32) -> Result<()> {
    let begin = Instant::now();
    while process::alive(pid) {
        ensure!(begin.elapsed() < PATIENCE, "{pid} lives");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn refused(bed: &Bed, command: &str, arguments: &[&str], told: &str) -> Result<Outcome> {
    let mut arguments = arguments.to_vec();
    arguments.push("--json");
    let outcome = bed.on_store(command, &arguments)?.expect_code(69)?;
    let reason = outcome.json()?["error"]["message"].to_string();
    ensure!(reason.contains(told), "{command} {arguments:?}: {reason}");
    Ok(outcome)
}

/// The process of each rank.
fn placement(bed: &Bed) -> Result<Vec<u64>> {
    let ps = bed.json("ps", &[])?;
    let ranks = ps["ranks"].as_array().cloned().unwrap_or_default();
    Ok(ranks
        .iter()
        .filter_map(|rank| rank["process"].as_u64())
        .collect())
}

fn standings(bed: &Bed) -> Result<Vec<String>> {
    let ps = bed.json("ps", &[])?;
    let processes = ps["processes"].as_array().cloned().unwrap_or_default();
    Ok(processes
        .iter()
        .map(|process| process["standing"].as_str().unwrap_or_default().to_owned())
        .collect())
}

#[test]
fn a_drained_process_leaves_the_job_and_nothing_restarts() -> Result<()> {
    for (seed, options) in [(31, "--every off"), (32, "--every 40ms")] {
        let storm = storm(seed);
        let expected = undisturbed(&storm)?;
        let bed = Bed::new()?;
        let mut job = bed.start(&storm, options)?;
        wait_for_go(&mut job, 1)?;
        let pids = job.pids()?;
        for victim in [1_usize, 2] {
            let drained = bed.json("drain", &[&victim.to_string(), "--wait"])?;
            ensure!(drained["done"] == true, "{drained}");
            let ranks = drained["ranks"].as_array().cloned().unwrap_or_default();
            ensure!(!ranks.is_empty(), "{drained}");
            ensure!(
                ranks.iter().all(|rank| rank["from"] == json!(victim)),
                "{drained}"
            );
            ensure!(!placement(&bed)?.contains(&(victim as u64)));
            ensure!(standings(&bed)?[victim] == "released");
            // It goes by itself; should it not have yet, it is killed.
            job.kill(Target::Process(victim))?;
            wait_for_end(pids[victim])?;
            // Snapshots go on without it.
            let taken = bed.json("checkpoint", &[])?;
            ensure!(taken["epoch"].as_u64() > Some(0), "{taken}");
        }
        ensure!(placement(&bed)? == vec![0; 8]);
        refused(&bed, "drain", &["1"], "drained already")?;
        refused(&bed, "drain", &["0"], "could go nowhere")?;
        refused(
            &bed,
            "migrate",
            &["3", "--to", "1"],
            "was drained and is released",
        )?;
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        assert_eq!(outcome.count("start"), 1, "{}", outcome.story());
        assert_eq!(outcome.count("lost"), 0, "{}", outcome.story());
        assert_eq!(outcome.count("released"), 2, "{}", outcome.story());
        assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    }
    Ok(())
}

/// What MPI's launcher has running on a node, whose end tells it something: Open MPI's stays until the job ends.
fn wait_until_left(cluster: &Cluster, node: usize, mpi: Mpi) -> Result<()> {
    let begin = Instant::now();
    loop {
        let left = cluster.nodes().node(node).processes();
        let stays = mpi == Mpi::OpenMpi && !cluster.nodes().node(node).running("orted").is_empty();
        if left.is_empty() || stays {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "on node{node}: {left:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_drained_node_is_killed_and_nothing_restarts() -> Result<()> {
    let storm = Solver::storm(8, 14_000, 37).pausing(Duration::from_millis(60));
    let expected = undisturbed(&storm)?;
    with_each_mpi("a drained node that is killed", 3, |cluster, mpi| {
        let mut job = cluster.start_on(&[1, 2, 3], 3, &storm, "--every 200ms")?;
        wait_for_go(&mut job, 1)?;
        let there = cluster.nodes().node(2);
        ensure!(
            there.running("storm").len() == 3,
            "not three ranks on node2"
        );
        let drained = cluster.json("drain", &["node2", "--wait"])?;
        ensure!(drained["done"] == true, "{drained}");
        ensure!(drained["processes"] == json!([3, 4, 5]), "{drained}");
        let left = there.running("storm");
        ensure!(left.is_empty(), "on the node that is drained: {left:?}");
        wait_until_left(cluster, 2, mpi)?;
        let killed_us = now_us();
        cluster.nodes().kill(2)?;
        // The job goes on without it.
        for _ in 0..3 {
            let taken = cluster.json("checkpoint", &[])?;
            ensure!(taken["epoch"].as_u64() > Some(0), "{taken}");
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        let after = |event: &&Event| event.t_us > killed_us;
        let went_on = outcome.events.iter().filter(after);
        let committed = went_on.filter(|event| event.is("committed")).count();
        ensure!(committed >= 3, "{}", outcome.story());
        assert_eq!(outcome.count("start"), 1, "{}", outcome.story());
        assert_eq!(outcome.count("lost"), 0, "{}", outcome.story());
        assert_eq!(outcome.count("released"), 3, "{}", outcome.story());
        assert_eq!(outcome.result()?, expected, "{}", outcome.story());
        Ok(())
    })
}

#[test]
fn ranks_of_a_drained_process_go_to_idle_ones_and_a_restart_uses_these() -> Result<()> {
    let storm = storm(33);
    let expected = undisturbed(&storm)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&storm, "--every off --idle-procs 2 --max-restarts 20")?;
    wait_for_go(&mut job, 1)?;
    ensure!(
        placement(&bed)? == [0, 0, 0, 1, 1, 1, 2, 2],
        "{:?}",
        placement(&bed)?
    );
    let drained = bed.json("drain", &["0", "--wait"])?;
    let gone_to: Vec<u64> = drained["ranks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|rank| rank["to"].as_u64())
        .collect();
    ensure!(gone_to == [3, 4, 3], "the emptiest ones: {drained}");
    bed.json("checkpoint", &[])?;
    // Whoever takes part is a loss as ever. The next start has nobody in process 0 and three that host ranks.
    job.must_kill(Target::Process(3))?;
    wait_for_go(&mut job, 2)?;
    ensure!(
        placement(&bed)? == [1, 1, 1, 2, 2, 2, 3, 3],
        "{:?}",
        placement(&bed)?
    );
    // It was started, has nothing to do, and leaves.
    job.wait_events("the release", 2, |event| event.is("released"))?;
    wait_for_end(job.pids()?[0])?;
    bed.json("checkpoint", &[])?;
    let back = bed.json("undrain", &["0"])?;
    ensure!(back["out"] == json!([0]), "{back}");
    refused(&bed, "undrain", &["1"], "not drained")?;
    // An idle process that is killed is a loss, too: it takes part.
    job.must_kill(Target::Process(4))?;
    wait_for_go(&mut job, 3)?;
    ensure!(
        placement(&bed)? == [0, 0, 0, 1, 1, 1, 2, 2],
        "{:?}",
        placement(&bed)?
    );
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.count("start"), 3, "{}", outcome.story());
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn kills_while_processes_are_drained_and_taken_back_cost_restarts_and_no_bits() -> Result<()> {
    use rand::{RngExt as _, SeedableRng as _};
    for seed in [34_u64, 35] {
        let storm = storm(seed);
        let expected = undisturbed(&storm)?;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let bed = Bed::new()?;
        let mut job = bed.start(&storm, "--every 60ms --idle-procs 1 --max-restarts 50")?;
        wait_for_go(&mut job, 1)?;
        let (mut drained, mut taken_back) = (0, 0);
        let begin = Instant::now();
        let mut starts = 1;
        while begin.elapsed() < Duration::from_secs(5) {
            let what = random.random_range(0..4).to_string();
            let wait = random.random_bool(0.5);
            let arguments = [what.as_str(), "--wait"];
            let outcome = bed.on_store("drain", &arguments[..1 + usize::from(wait)])?;
            drained += u32::from(outcome.code() == Some(0));
            ensure!(
                matches!(outcome.code(), Some(0 | 69)),
                "{}",
                outcome.story()
            );
            std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
            if random.random_bool(0.3) {
                let victim = random.random_range(0..4);
                let hosts = placement(&bed).unwrap_or_default();
                if job.kill(Target::Process(victim))?.is_some() && hosts.contains(&(victim as u64))
                {
                    starts += 1;
                    wait_for_go(&mut job, starts)?;
                    starts = job.count("go")?;
                }
            }
            if random.random_bool(0.7) {
                let what = random.random_range(0..4).to_string();
                let outcome = bed.on_store("undrain", &[&what])?;
                taken_back += u32::from(outcome.code() == Some(0));
            }
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        let (released, lost) = (outcome.count("released"), outcome.count("lost"));
        println!(
            "seed {seed}: {drained} drained, {released} released, {taken_back} taken back, {lost} lost, {} checkpoints",
            outcome.count("committed")
        );
        ensure!(drained > 0 && released > 0, "{}", outcome.story());
        ensure!(outcome.result()? == expected, "{}", outcome.story());
    }
    Ok(())
}

#[test]
fn a_process_with_a_rank_that_can_t_be_moved_stays_and_is_told() -> Result<()> {
    let pinned = Solver::new("pinned", 3, "static 200 10");
    let expected = undisturbed(&pinned)?;
    let bed = Bed::new()?;
    let mut job = bed.start(&pinned, "--every off")?;
    job.wait_lines("a step", 1, |line| line.starts_with("step "))?;
    let told = "CACHE_OF_THE_SOLVER";
    let outcome = refused(&bed, "drain", &["2", "--wait"], told)?;
    ensure!(
        outcome.stdout_text().contains("ckpt undrain"),
        "{}",
        outcome.story()
    );
    ensure!(standings(&bed)? == ["member", "member", "drained"]);
    refused(&bed, "migrate", &["0", "--to", "2"], "process 2 is drained")?;
    bed.json("undrain", &["2"])?;
    bed.json("migrate", &["0", "--to", "2"])?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.count("released"), 0, "{}", outcome.story());
    assert_eq!(outcome.result()?, expected, "{}", outcome.story());
    Ok(())
}

#[test]
fn what_can_t_be_drained_is_refused_with_the_reason() -> Result<()> {
    let bed = Bed::new()?;
    for command in ["ps", "drain", "undrain"] {
        let arguments: &[&str] = if command == "ps" { &[] } else { &["1"] };
        let early = bed.on_store(command, arguments)?;
        assert_eq!(early.code(), Some(64), "no such job: {}", early.story());
    }
    let mut job = bed.start(&Solver::new("pinned", 2, "nothing 300 10"), "--every off")?;
    wait_for_go(&mut job, 1)?;
    let host = bed.json("ps", &[])?["processes"][0]["node"].clone();
    let host = host.as_str().unwrap_or_default();
    refused(
        &bed,
        "drain",
        &["nowhere"],
        &format!("there is no node nowhere: there are {host}"),
    )?;
    refused(
        &bed,
        "drain",
        &["2"],
        "there is no process 2: the job has 2 processes",
    )?;
    refused(&bed, "drain", &[host], "could go nowhere")?;
    refused(&bed, "undrain", &[host], "not drained")?;
    refused(&bed, "undrain", &["7"], "there is no process 7")?;
    bed.json("drain", &["1", "--wait"])?;
    refused(&bed, "drain", &["1"], "drained already")?;
    job.wait(PATIENCE)?.expect_code(0)?;
    refused(&bed, "drain", &["0"], "not running")?;
    refused(&bed, "ps", &[], "not running")?;
    refused(&bed, "undrain", &["node7"], "no node is drained")?;
    Ok(())
}

/// The load of each rank, once all of them were told with their messages.
fn figures(bed: &Bed) -> Result<Vec<Value>> {
    let begin = Instant::now();
    loop {
        let ranks = bed.json("ps", &[])?["ranks"].as_array().cloned();
        let ranks = ranks.unwrap_or_default();
        if ranks.iter().all(|rank| rank["messages_per_s"].is_u64()) && !ranks.is_empty() {
            return Ok(ranks);
        }
        ensure!(begin.elapsed() < PATIENCE, "no figures: {ranks:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn ps_tells_images_loads_and_messages() -> Result<()> {
    let bed = Bed::new()?;
    let options = "--every off --idle-procs 1 --heartbeat-timeout 2s";
    let mut job = bed.start(&Solver::new("pinned", 3, "memory 400 10"), options)?;
    wait_for_go(&mut job, 1)?;
    // Long enough that the samples are of ranks that go through their steps.
    std::thread::sleep(Duration::from_secs(2));
    let ranks = figures(&bed)?;
    let number = |rank: usize, field: &str| ranks[rank][field].as_u64().unwrap_or_default();
    ensure!(number(2, "image_bytes") > 64 << 20, "{ranks:?}");
    ensure!(number(0, "image_bytes") < 16 << 20, "{ranks:?}");
    ensure!(
        (0..3).any(|rank| number(rank, "messages_per_s") > 0),
        "{ranks:?}"
    );
    ensure!(
        (0..3).all(|rank| number(rank, "load_permille") <= 1000),
        "{ranks:?}"
    );
    let text = bed.on_store("ps", &[])?.expect_code(0)?.stdout_text();
    ensure!(text.contains("MSG/S") && text.contains("idle"), "{text}");
    job.wait(PATIENCE)?.expect_code(0)?;
    Ok(())
}
