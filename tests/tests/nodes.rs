//! The test bed's own nodes behave as separate machines do.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::nodes::{self, Nodes};
use tests::process;
use tests::skip::skip;

/// So many nodes; none, with the reason printed, where they can't be made.
fn up(test: &str, count: usize) -> Result<Option<(tempfile::TempDir, Nodes)>> {
    if let Some(why) = nodes::missing() {
        skip(test, &why);
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let nodes = Nodes::up(folder.path(), count)?;
    Ok(Some((folder, nodes)))
}

#[test]
fn each_node_has_a_name_processes_shared_memory_and_a_local_folder_of_its_own() -> Result<()> {
    let Some((_folder, nodes)) = up("nodes are apart", 2)? else {
        return Ok(());
    };
    assert_eq!(nodes.node(1).tell("hostname")?, "node1\n");
    assert_eq!(nodes.node(2).tell("hostname")?, "node2\n");
    let local = nodes.local().display().to_string();
    nodes
        .node(1)
        .tell(&format!("touch /dev/shm/here {local}/here"))?;
    let seen = nodes.node(2).tell(&format!("ls /dev/shm {local}"))?;
    ensure!(!seen.contains("here"), "seen on another node: {seen}");
    let mut sleeping = nodes.node(1).command("sleep").arg("100").spawn()?;
    while nodes.node(1).running("sleep").is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(nodes.node(2).running("sleep").is_empty());
    let found = nodes.node(2).tell("cat /proc/[0-9]*/cmdline")?;
    ensure!(!found.contains("sleep"), "seen on another node: {found}");
    nodes.kill(1)?;
    sleeping.wait()?;
    Ok(())
}

#[test]
fn a_node_that_is_cut_off_is_out_of_reach_until_it_is_healed_and_its_processes_live() -> Result<()>
{
    let Some((_folder, nodes)) = up("nodes cut and healed", 3)? else {
        return Ok(());
    };
    assert_eq!(nodes.node(1).tell("ssh node2 hostname")?, "node2\n");
    let mut sleeping = nodes.node(2).command("sleep").arg("100").spawn()?;
    nodes.cut(2)?;
    let out = nodes.node(1).exec("ssh node2 hostname")?;
    assert_eq!(out.status.code(), Some(255), "{out:?}");
    let out = nodes.node(2).exec("ssh head hostname")?;
    assert_eq!(out.status.code(), Some(255), "{out:?}");
    assert_eq!(nodes.node(1).tell("ssh node3 hostname")?, "node3\n");
    assert_eq!(nodes.node(2).running("sleep").len(), 1);
    nodes.heal(2)?;
    assert_eq!(nodes.node(1).tell("ssh -x node2 hostname")?, "node2\n");
    nodes.kill(2)?;
    sleeping.wait()?;
    let out = nodes.node(1).exec("ssh node2 hostname")?;
    assert_eq!(out.status.code(), Some(255), "{out:?}");
    nodes.revive(2)?;
    assert_eq!(nodes.node(1).tell("ssh node2 hostname")?, "node2\n");
    Ok(())
}

#[test]
fn the_remote_shell_passes_input_output_errors_and_exit_codes() -> Result<()> {
    let Some((_folder, nodes)) = up("the remote shell", 2)? else {
        return Ok(());
    };
    let out = nodes
        .node(1)
        .exec("echo sent | ssh node2 'cat; echo told >&2; exit 7'")?;
    assert_eq!(String::from_utf8_lossy(&out.stdout), "sent\n");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "told\n");
    assert_eq!(out.status.code(), Some(7));
    let out = nodes.node(1).exec("ssh node2 'kill -9 $$'")?;
    assert_eq!(out.status.code(), Some(255));
    let lines = nodes.node(1).tell("ssh node2 'seq 100000' | tail -n 1")?;
    assert_eq!(lines, "100000\n");
    let out = nodes.node(1).exec("ssh nowhere hostname")?;
    assert_eq!(out.status.code(), Some(255));
    Ok(())
}

#[test]
fn nothing_is_left_of_nodes_when_they_are_dropped() -> Result<()> {
    let Some((_folder, nodes)) = up("nothing is left of nodes", 2)? else {
        return Ok(());
    };
    let inits = [
        nodes.head().init(),
        nodes.node(1).init(),
        nodes.node(2).init(),
    ];
    let mut sleeping = nodes.node(2).command("sleep").arg("100").spawn()?;
    while nodes.node(2).running("sleep").is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let slept = nodes.node(2).running("sleep");
    drop(nodes);
    sleeping.wait()?;
    for pid in inits.into_iter().chain(slept) {
        ensure!(!process::alive(pid), "{}", process::describe(pid));
    }
    Ok(())
}

#[test]
fn mpirun_starts_processes_across_nodes() -> Result<()> {
    for mpi in Mpi::ALL {
        let test = format!("{mpi} across nodes");
        if let Some(why) = nodes::missing().or_else(|| mpi.missing()) {
            skip(&test, &why);
            continue;
        }
        let cluster = Cluster::up(3)?.with_mpirun(mpi)?;
        let hosts = cluster.nodes().hostfile(&[1, 2, 3], 2)?;
        let hosts = mpi.hostfile(&hosts)?;
        let told = cluster.nodes().head().tell(&format!(
            "mpirun --hostfile {} -np 6 hostname",
            hosts.display()
        ))?;
        let mut lines: Vec<_> = told.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["node1", "node1", "node2", "node2", "node3", "node3"],
            "{mpi}"
        );
    }
    Ok(())
}
