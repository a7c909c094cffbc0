//! Launchers and their options, on nodes: what the user says is what happens.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tests::bed::{PATIENCE, undisturbed};
use tests::job::{Job, Outcome};
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::process;
use tests::solver::Solver;

/// Four ranks, to be on two nodes with two each.
fn heat() -> Solver {
    Solver::heat(4, 64, 64, 1000)
}

fn wait_committed(job: &mut Job<'_>) -> Result<()> {
    job.wait_event("a checkpoint", |event| event.is("committed"))?;
    Ok(())
}

/// The nodes of each start, without the numbers of their processes.
fn nodes_of_starts(outcome: &Outcome) -> Vec<Vec<String>> {
    let starts = outcome.events.iter().filter(|event| event.is("start"));
    let names = starts.map(|start| {
        let nodes = start.fields["nodes"].as_array().cloned();
        let names = nodes.unwrap_or_default().into_iter();
        names
            .filter_map(|share| share["node"].as_str().map(str::to_owned))
            .collect()
    });
    names.collect()
}

/// The nodes that were excluded, in this order.
fn excluded(outcome: &Outcome) -> Vec<String> {
    let nodes = outcome.events.iter().filter(|event| event.is("node"));
    nodes
        .filter(|event| event.text("state") == "excluded")
        .map(|event| event.text("node").to_owned())
        .collect()
}

#[test]
fn with_fewer_nodes_than_are_wanted_the_job_stops_and_goes_on_when_fewer_will_do() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip("too few nodes", 2, Mpi::OpenMpi)? else {
        return Ok(());
    };
    let outcome = cluster
        .start_on(&[1, 2], 2, &heat(), "--min-nodes 3")?
        .wait(PATIENCE)?
        .expect_code(64)?;
    let told = outcome.stderr_text();
    ensure!(
        told.contains("--min-nodes of 3 nodes, and there are 2"),
        "{told}"
    );

    let mut job = cluster.start_on(&[1, 2], 2, &heat(), "--every 100ms --min-nodes 2")?;
    wait_committed(&mut job)?;
    cluster.nodes().kill(2)?;
    // And so is a restart with the same number.
    let stopped = job.wait(PATIENCE)?.expect_code(75)?;
    let refused = cluster.restart("")?.wait(PATIENCE)?.expect_code(75)?;
    for outcome in [stopped, refused] {
        let told = outcome.stderr_text();
        for words in ["1 of 2 nodes can be used, and 2 are needed", "lost: node2"] {
            ensure!(told.contains(words), "no `{words}`\n{}", outcome.story());
        }
    }
    let outcome = cluster
        .restart("--min-nodes 1")?
        .wait(PATIENCE)?
        .expect_code(0)?;
    assert_eq!(outcome.result()?, undisturbed(&heat())?);
    Ok(())
}

#[test]
fn a_cut_costs_the_node_that_was_cut_whatever_order_the_launcher_places_processes_in() -> Result<()>
{
    let Some(cluster) = Cluster::up_or_skip("processes placed in another order", 2, Mpi::OpenMpi)?
    else {
        return Ok(());
    };
    let hosts = cluster.nodes().hostfile(&[1, 2], 2)?;
    let hosts = hosts.display().to_string();
    // Both are mpirun's: a tag in front of every line, and processes on both nodes in turn.
    let arguments = "--tag-output --map-by node";
    let options = [
        "--hostfile",
        &hosts,
        "--launch-args",
        arguments,
        "--every",
        "100ms",
        "--heartbeat-timeout",
        "2s",
    ];
    let mut job = cluster.start_with(&heat(), &options)?;
    wait_committed(&mut job)?;
    cluster.nodes().cut(2)?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(excluded(&outcome), ["node2"], "{}", outcome.story());
    // What mpirun left there notices the cut later than is waited for here.
    cluster.nodes().kill(2)?;
    let told = outcome.stderr_text();
    ensure!(told.contains("in an order of its own"), "{told}");
    let result = format!("result: {}", undisturbed(&heat())?);
    let tagged = outcome
        .stdout
        .iter()
        .find(|line| line.text.ends_with(&result) && line.text.starts_with("[1,0]<stdout>:"));
    ensure!(tagged.is_some(), "{}", outcome.story());
    Ok(())
}

#[test]
fn a_launch_line_of_the_users_is_filled_in_anew_for_every_start() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip("a launch line of the user's", 2, Mpi::OpenMpi)? else {
        return Ok(());
    };
    let hosts = cluster.nodes().hostfile(&[1, 2], 2)?;
    let hosts = hosts.display().to_string();
    // Without {program}, it comes last.
    let line = "exec mpirun --host {hosts} -x CKPT_CONTROL -x CKPT_TOKEN -x CKPT_TRANSPORT";
    let options = ["--hostfile", &hosts, "--launch", line, "--every", "off"];
    let short = Solver::heat(4, 64, 64, 100);
    let outcome = cluster
        .start_with(&short, &options)?
        .wait(PATIENCE)?
        .expect_code(0)?;
    assert_eq!(outcome.result()?, undisturbed(&short)?);
    assert_eq!(nodes_of_starts(&outcome), [["node1", "node2"]]);
    std::fs::remove_dir_all(cluster.store())?;

    let line = "mpirun -np {processes} --hostfile {hostfile} -x CKPT_CONTROL -x CKPT_TOKEN -x CKPT_TRANSPORT {program}";
    let options = ["--hostfile", &hosts, "--launch", line, "--every", "100ms"];
    let mut job = cluster.start_with(&heat(), &options)?;
    wait_committed(&mut job)?;
    cluster.nodes().kill(2)?;
    let outcome = job.wait(PATIENCE)?.expect_code(0)?;
    assert_eq!(outcome.result()?, undisturbed(&heat())?);
    let starts = nodes_of_starts(&outcome);
    assert_eq!(starts[1..], [vec!["node1", "node2"], vec!["node1"]]);
    Ok(())
}

#[test]
fn the_nodes_that_pbs_and_lsf_name_are_used() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip("nodes named by PBS and LSF", 2, Mpi::OpenMpi)? else {
        return Ok(());
    };
    let short = Solver::heat(4, 64, 64, 100);
    let expected = undisturbed(&short)?;
    let list = cluster.join("nodefile");
    std::fs::write(&list, "node1\nnode1\nnode2\nnode2\n")?;
    let pbs = format!("PBS_NODEFILE={}", list.display());
    let lsf = "LSB_MCPU_HOSTS=node1 2 node2 2".to_owned();
    for variable in [pbs, lsf] {
        let outcome = cluster
            .start_under(std::slice::from_ref(&variable), &short, &["--every", "off"])?
            .wait(PATIENCE)?
            .expect_code(0)?;
        assert_eq!(outcome.result()?, expected, "{variable}");
        let starts = nodes_of_starts(&outcome);
        assert_eq!(starts.last(), Some(&vec!["node1".into(), "node2".into()]));
        std::fs::remove_dir_all(cluster.store())?;
    }
    Ok(())
}

#[test]
fn a_launch_line_that_uses_an_excluded_node_ends_the_job() -> Result<()> {
    let Some(cluster) =
        Cluster::up_or_skip("a launch line that uses a lost node", 2, Mpi::OpenMpi)?
    else {
        return Ok(());
    };
    let hosts = cluster.nodes().hostfile(&[1, 2], 2)?;
    let hosts = hosts.display().to_string();
    let line = "mpirun -np {processes} --host node2:2,node1:2 -x CKPT_CONTROL -x CKPT_TOKEN -x CKPT_TRANSPORT {program}";
    let options = ["--hostfile", &hosts, "--launch", line, "--every", "100ms"];
    let mut job = cluster.start_with(&heat(), &options)?;
    wait_committed(&mut job)?;
    // As if the node had failed, but it is there again for who does not look.
    for pid in cluster.nodes().node(2).running("heat") {
        process::send(pid, Signal::SIGKILL)?;
    }
    let outcome = job.wait(PATIENCE)?.expect_code(64)?;
    assert_eq!(excluded(&outcome), ["node2"], "{}", outcome.story());
    let told = outcome.stderr_text();
    ensure!(told.contains("on node2, which is excluded"), "{told}");
    ensure!(told.contains("{hosts} or {hostfile}"), "{told}");
    Ok(())
}

#[test]
fn several_ranks_to_a_process_and_processes_to_a_node_outlive_random_kills() -> Result<()> {
    let solver = Solver::heat(8, 64, 64, 800).on(4);
    let expected = undisturbed(&solver)?;
    for (mpi, seed) in Mpi::ALL.into_iter().zip(41..) {
        let Some(cluster) = Cluster::up_or_skip("kills on nodes", 2, mpi)? else {
            continue;
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut job = cluster.start_on(&[1, 2], 2, &solver, "--every 50ms")?;
        for starts in 1..=2 {
            let go = job.wait_events("the start", starts, |event| event.is("go"))?;
            job.wait_event("a checkpoint", |event| {
                event.is("committed") && event.t_us > go.t_us
            })?;
            let alive = cluster.solvers(&solver);
            ensure!(alive.len() == 4, "processes that run: {alive:?}");
            process::send(alive[random.random_range(0..4)], Signal::SIGKILL)?;
        }
        let outcome = job.wait(PATIENCE)?.expect_code(0)?;
        ensure!(outcome.result()? == expected, "{}", outcome.story());
        ensure!(outcome.count("restart") == 2, "{}", outcome.story());
        // A process that fails costs no node, though MPICH ends the other one of its node first.
        ensure!(excluded(&outcome).is_empty(), "{}", outcome.story());
    }
    Ok(())
}
