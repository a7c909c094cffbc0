//! Nodes are killed and cut off, and the job ends with the same bits on what is left.

use std::fs;
use std::io::Write as _;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use tests::bed::{PATIENCE, undisturbed};
use tests::job::{Job, Outcome};
use tests::nodes::cluster::{Cluster, with_each_mpi};
use tests::nodes::mpi::Mpi;
use tests::process::now_us;
use tests::solver::Solver;

/// Six ranks, to be on three nodes with two each.
fn heat() -> Solver {
    Solver::heat(6, 128, 128, 4000)
}

/// Waits until the start with this number (from 1) computes and a checkpoint of it is committed.
fn wait_committed(job: &mut Job<'_>, start: usize) -> Result<()> {
    let go = job.wait_events("the start", start, |event| event.is("go"))?;
    job.wait_event("a checkpoint", |event| {
        event.is("committed") && event.t_us > go.t_us
    })?;
    Ok(())
}

/// Prints the time from a failure to the first step after it, and how much of it went by until it was noticed.
fn print_time(what: &str, mpi: Mpi, outcome: &Outcome, failed_us: u64) -> Result<()> {
    let after = |name: &str| {
        outcome
            .events
            .iter()
            .find(|event| event.is(name) && event.t_us > failed_us)
            .map(|event| event.t_us)
            .with_context(|| format!("no `{name}` after the failure\n{}", outcome.story()))
    };
    let (lost, go) = (after("lost")?, after("go")?);
    let step = outcome
        .stdout
        .iter()
        .find(|line| line.t_us > go && line.text.starts_with("step "))
        .context("no step after the failure")?
        .t_us;
    let seconds = |t_us: u64| t_us.saturating_sub(failed_us) as f64 / 1e6;
    // Past the capture of the test harness: a figure is to be seen.
    writeln!(
        std::io::stderr(),
        "TIME {what}, {mpi}: noticed after {:.2} s, ranks run after {:.2} s, first new step after {:.2} s",
        seconds(lost),
        seconds(go),
        seconds(step)
    )?;
    Ok(())
}

/// The nodes that the last start used.
fn last_nodes(outcome: &Outcome) -> Result<Vec<String>> {
    let start = outcome
        .events
        .iter()
        .rfind(|event| event.is("start"))
        .context("no start")?;
    let nodes = start.fields["nodes"].as_array().context("its nodes")?;
    Ok(nodes
        .iter()
        .filter_map(|share| share["node"].as_str().map(str::to_owned))
        .collect())
}

/// Checks that nothing is in the store that a coordinator did not put there.
fn check_store(cluster: &Cluster) -> Result<()> {
    let verified = cluster.json("verify", &[])?;
    ensure!(verified["sound"] == true, "{verified}");
    ensure!(
        verified["strays"].as_array().is_some_and(Vec::is_empty),
        "left in the store: {verified}"
    );
    Ok(())
}

#[test]
fn a_killed_node_and_then_a_second_one_are_done_without() -> Result<()> {
    let expected = undisturbed(&heat())?;
    with_each_mpi("killed nodes", 3, |cluster, mpi| {
        let mut job = cluster.start_on(&[1, 2, 3], 2, &heat(), "--every 200ms")?;
        wait_committed(&mut job, 1)?;
        let first_us = now_us();
        cluster.nodes().kill(2)?;
        wait_committed(&mut job, 2)?;
        let second_us = now_us();
        cluster.nodes().kill(3)?;
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        print_time("first node killed", mpi, &outcome, first_us)?;
        print_time("second node killed", mpi, &outcome, second_us)?;
        assert_eq!(outcome.result()?, expected);
        assert_eq!(last_nodes(&outcome)?, ["node1"]);
        assert_eq!(outcome.count("start"), 3, "{}", outcome.story());
        check_store(cluster)
    })
}

#[test]
fn a_spare_node_takes_the_place_of_a_killed_one() -> Result<()> {
    let expected = undisturbed(&heat())?;
    with_each_mpi("a spare node", 4, |cluster, mpi| {
        let mut job =
            cluster.start_on(&[1, 2, 3, 4], 2, &heat(), "--every 200ms --spare-nodes 1")?;
        wait_committed(&mut job, 1)?;
        let failed_us = now_us();
        cluster.nodes().kill(1)?;
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        print_time("node killed, one spare", mpi, &outcome, failed_us)?;
        assert_eq!(outcome.result()?, expected);
        let mut nodes = last_nodes(&outcome)?;
        nodes.sort();
        assert_eq!(nodes, ["node2", "node3", "node4"]);
        Ok(())
    })
}

/// Checks that no file of the first start's ranks 2 and 3, which were on node2, is of after the cut.
fn check_files_of_cut_node(cluster: &Cluster, cut: SystemTime) -> Result<()> {
    let mut before = 0;
    for epoch in fs::read_dir(cluster.store().join("epochs"))? {
        for entry in fs::read_dir(epoch?.path())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("i0001-r00002") || name.starts_with("i0001-r00003") {
                let written = entry.metadata()?.modified()?;
                ensure!(written <= cut, "written after the cut: {:?}", entry.path());
                before += 1;
            }
        }
    }
    ensure!(before > 0, "no file of before the cut is in the store");
    Ok(())
}

/// Cuts a node off, and looks at its processes and at the store.
fn cut_off(cluster: &Cluster, mpi: Mpi, spare: bool, expected: &str) -> Result<()> {
    let solver = heat();
    let (nodes, option) = match spare {
        true => (vec![1, 2, 3, 4], "--spare-nodes 1"),
        false => (vec![1, 2, 3], ""),
    };
    let mut job = cluster.start_on(
        &nodes,
        2,
        &solver,
        &format!("--every 100ms --keep 1000 {option}"),
    )?;
    wait_committed(&mut job, 1)?;
    let there = cluster.nodes().node(2);
    ensure!(there.running("heat").len() == 2, "not two ranks on node2");
    let cut_us = now_us();
    cluster.nodes().cut(2)?;
    let cut = SystemTime::now();
    let go = job.wait_event("the next start", |event| {
        event.is("go") && event.t_us > cut_us
    })?;
    // Two halves never both go on: before new ranks run, those that were cut off are gone.
    let left = there.running("heat");
    ensure!(left.is_empty(), "on the node that was cut off: {left:?}");
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    let what = match spare {
        true => "link cut, one spare",
        false => "link cut, no spare",
    };
    print_time(what, mpi, &outcome, cut_us)?;
    ensure!(outcome.result()? == expected, "{}", outcome.story());
    let while_cut = outcome.events.iter().any(|event| {
        event.is("committed") && event.t_us > cut_us + 1_000_000 && event.t_us < go.t_us
    });
    ensure!(
        !while_cut,
        "a checkpoint without the node\n{}",
        outcome.story()
    );
    ensure!(!last_nodes(&outcome)?.contains(&"node2".to_owned()));
    check_files_of_cut_node(cluster, cut)?;
    check_store(cluster)
}

#[test]
fn a_node_that_is_cut_off_ends_its_ranks_before_others_take_their_place() -> Result<()> {
    let expected = undisturbed(&heat())?;
    with_each_mpi("a node cut off", 3, |cluster, mpi| {
        cut_off(cluster, mpi, false, &expected)
    })
}

#[test]
fn a_spare_node_takes_the_place_of_one_that_is_cut_off() -> Result<()> {
    let expected = undisturbed(&heat())?;
    with_each_mpi("a node cut off, one spare", 4, |cluster, mpi| {
        cut_off(cluster, mpi, true, &expected)
    })
}

#[test]
fn connections_that_break_between_nodes_that_live_cost_a_restart_there() -> Result<()> {
    let expected = undisturbed(&heat())?;
    // Open MPI connects again and goes on.
    let Some(cluster) = Cluster::up_or_skip("broken connections", 3, Mpi::Mpich)? else {
        return Ok(());
    };
    let mut job = cluster.start_on(&[1, 2, 3], 2, &heat(), "--every 200ms")?;
    wait_committed(&mut job, 1)?;
    let broken_us = now_us();
    cluster.nodes().break_connections(2, 3)?;
    wait_committed(&mut job, 2)?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    print_time("connections broken", Mpi::Mpich, &outcome, broken_us)?;
    ensure!(outcome.result()? == expected, "{}", outcome.story());
    // Who noticed is named with what it could not reach, no node is left out, and nobody reads of an internal error.
    let lost = outcome.events.iter().find(|event| event.is("lost"));
    let reason = lost.and_then(|event| event.fields["reason"].as_str());
    let named = reason.is_some_and(|reason| reason.starts_with("can't go on without process "));
    ensure!(named, "{reason:?}\n{}", outcome.story());
    ensure!(last_nodes(&outcome)?.len() == 3, "{}", outcome.story());
    ensure!(!outcome.stderr_text().contains("internal error"));
    check_store(&cluster)
}

#[test]
fn a_node_that_came_back_is_used_again_after_a_later_failure() -> Result<()> {
    let expected = undisturbed(&heat())?;
    with_each_mpi("a node that came back", 3, |cluster, _| {
        let mut job = cluster.start_on(&[1, 2, 3], 2, &heat(), "--every 200ms")?;
        wait_committed(&mut job, 1)?;
        cluster.nodes().kill(2)?;
        wait_committed(&mut job, 2)?;
        cluster.nodes().revive(2)?;
        cluster.nodes().kill(3)?;
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        let used = last_nodes(&outcome)?;
        ensure!(used == ["node1", "node2"], "{used:?}: {}", outcome.story());
        Ok(())
    })
}

#[test]
fn ranks_on_1_2_and_3_nodes_and_on_shared_memory_end_with_the_same_bits() -> Result<()> {
    let cases = [Solver::heat(6, 64, 64, 300), Solver::storm(6, 12_000, 31)];
    for solver in cases {
        let expected = undisturbed(&solver)?;
        with_each_mpi(&solver.shown(), 3, |cluster, _| {
            for (nodes, slots) in [(&[1][..], 6), (&[1, 2], 3), (&[1, 2, 3], 2)] {
                let outcome = cluster
                    .start_on(nodes, slots, &solver, "--every off")?
                    .wait(PATIENCE)?
                    .expect_code(0)?;
                assert_eq!(outcome.result()?, expected, "on {} nodes", nodes.len());
                std::fs::remove_dir_all(cluster.store())?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_checkpoint_of_3_nodes_goes_on_on_1_and_on_2() -> Result<()> {
    let expected = undisturbed(&heat())?;
    with_each_mpi("a restart on fewer nodes", 3, |cluster, _| {
        let mut job = cluster.start_on(&[1, 2, 3], 2, &heat(), "--every off")?;
        for nodes in [&[3][..], &[1, 2]] {
            let printed = job.stdout().len();
            job.wait_lines("a hundred more steps", printed + 100, |line| {
                line.starts_with("step ")
            })?;
            job.signal(nix::sys::signal::Signal::SIGTERM)?;
            job.wait(PATIENCE)?.expect_code(75)?;
            let hosts = cluster.nodes().hostfile(nodes, 2)?;
            job = cluster.restart(&format!("--hostfile {}", hosts.display()))?;
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        assert_eq!(outcome.result()?, expected);
        assert_eq!(last_nodes(&outcome)?, ["node1", "node2"]);
        Ok(())
    })
}
