//! The test bed's own Slurm does what a cluster's does.

use anyhow::Result;
use tests::nodes::cluster::Cluster;
use tests::skip::skip;
use tests::slurm::{self, Slurm};

#[test]
fn a_batch_job_runs_on_two_nodes_and_another_is_requeued() -> Result<()> {
    if let Some(why) = slurm::missing() {
        skip("batch jobs", &why);
        return Ok(());
    }
    let cluster = Cluster::up(2)?;
    let slurm = Slurm::up(&cluster)?;

    let job = slurm.submit(
        "--nodes=2 --ntasks-per-node=2",
        "#!/bin/sh\nsrun hostname\n",
    )?;
    job.wait_state("COMPLETED")?;
    let output = job.output();
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["node1", "node1", "node2", "node2"]);

    let script = "#!/bin/sh
echo \"run ${SLURM_RESTART_COUNT:-0}\"
[ \"${SLURM_RESTART_COUNT:-0}\" = 1 ] || srun sleep 100
";
    let job = slurm.submit("--requeue --nodes=2 --ntasks-per-node=1", script)?;
    job.wait_output("run 0")?;
    job.requeue()?;
    job.wait_state("COMPLETED")?;
    assert!(job.output().ends_with("run 1\n"), "{}", job.output());
    assert_eq!(job.field("Restarts")?, "1");
    Ok(())
}
