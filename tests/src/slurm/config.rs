//! The configuration: everything below one folder, times short, nothing of the system's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::nodes::network::Address;
use crate::nodes::{Nodes, node_name};

/// Processors that each node claims to have.
pub const NODE_CPUS: usize = 2;

/// Slurm's configuration file.
#[must_use]
pub fn path(folder: &Path) -> PathBuf {
    folder.join("slurm.conf")
}

/// Where munged listens.
#[must_use]
pub fn munge_socket(folder: &Path) -> PathBuf {
    folder.join("munge.socket")
}

/// Writes it.
///
/// # Errors
/// When it can't be written.
pub fn write(folder: &Path, nodes: &Nodes) -> Result<()> {
    fs::write(path(folder), slurm_conf(folder, nodes)).context("write slurm.conf")?;
    // There may be no cgroup file system here, and nothing needs one.
    fs::write(
        folder.join("cgroup.conf"),
        "CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n",
    )
    .context("write cgroup.conf")
}

fn slurm_conf(folder: &Path, nodes: &Nodes) -> String {
    let here = folder.display();
    let local = nodes.local();
    let local = local.display();
    let socket = munge_socket(folder);
    let socket = socket.display();
    let head = Address::head();
    let mut text = format!(
        "ClusterName=test
SlurmctldHost=head({head})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=5
CredType=cred/munge
StateSaveLocation={here}/state
SlurmctldPidFile={here}/slurmctld.pid
SlurmdSpoolDir={local}/slurmd
SlurmdPidFile={local}/slurmd.pid
TmpFS={local}/tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
MpiDefault=pmix
ReturnToService=2
SlurmdTimeout=10
KillWait=5
"
    );
    for number in 1..=nodes.count() {
        let name = node_name(number);
        let address = Address::node(number);
        text.push_str(&format!(
            "NodeName={name} NodeAddr={address} NodeHostname={name} CPUs={NODE_CPUS} RealMemory=500\n"
        ));
    }
    text.push_str("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n");
    text
}
