//! Running a job's processes through a launcher: mpirun of Open MPI or MPICH, srun, or any command.
//!
//! - [`hosts`] and [`expand`]: which nodes there are;
//! - [`kind`]: which launcher, and the command that starts processes on nodes;
//! - [`check`]: whether a node can be used;
//! - [`interface`]: the address of this host that the nodes connect to;
//! - [`slurm`]: the time that is left of an allocation, and its next start.
//!
//! A [`Request`] is what the user wants, and is remembered for restarts. [`resolve`] makes a [`Launch`] of it, with what
//! the environment and the machine say now.

pub mod check;
pub mod expand;
pub mod hosts;
pub mod interface;
pub mod kind;
pub mod slurm;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use protocol::nodes::Node;

use self::expand::NotAList;
use self::hosts::{Batch, Environment};
use self::kind::{Kind, find_on_path};

/// How a job is to be launched, as the user says. Part of what a restart recalls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `local`, `mpirun` (or a path of one), `srun`, or a command with placeholders. Without it the default holds.
    pub launch: Option<String>,
    /// File that names the nodes.
    pub hostfile: Option<PathBuf>,
    /// So many of the nodes are used.
    pub nodes: Option<u32>,
    /// So many of these are kept free.
    pub spare_nodes: u32,
    /// With fewer nodes the job does not go on.
    pub min_nodes: Option<u32>,
    /// Arguments for the launcher, separated by blanks.
    pub arguments: Option<String>,
    /// The address that the coordinator listens at.
    pub control_address: Option<String>,
}

/// A launcher and the nodes it is to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which launcher.
    pub kind: Kind,
    /// The nodes; the spare ones last.
    pub nodes: Vec<Node>,
    /// How many of them are spare.
    pub spare_nodes: u32,
    /// With fewer nodes the job is not started.
    pub min_nodes: u32,
    /// Whether the user has said what may be missing: then a node that can't be used is excluded at the first start, too.
    pub may_lack_nodes: bool,
    /// Arguments for the launcher.
    pub arguments: Vec<String>,
    /// The address that the coordinator listens at; port 0 for any.
    pub listen: SocketAddr,
    /// How nodes are checked.
    pub check: check::Way,
}

/// Why a job can't be launched as it is wanted.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher is not there.
    #[error(
        "{0}: no such launcher on the path; install Open MPI, MPICH or Slurm (or load its module), give its path to --launch, or use --launch local"
    )]
    NoLauncher(String),
    /// It is there, and not one that is known.
    #[error(
        "{program}: neither Open MPI's nor MPICH's mpirun (`--version` says {said:?}); use --launch 'COMMAND …' with the placeholders of docs/cli.md"
    )]
    UnknownLauncher {
        /// Its path.
        program: String,
        /// What it says about itself.
        said: String,
    },
    /// It can't even be run.
    #[error("{program}: can't be run: {source}")]
    Version {
        /// Its path.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// The hostfile can't be read.
    #[error("{}: the hostfile can't be read: {source}", path.display())]
    Hostfile {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line of it makes no sense.
    #[error("{}, line {number}: {what:?} is not understood; a line is `HOST`, `HOST slots=N` or `HOST:N`", path.display())]
    HostfileLine {
        /// Its path.
        path: PathBuf,
        /// The line's number, from 1.
        number: usize,
        /// The word.
        what: String,
    },
    /// It names nobody.
    #[error("{}: the hostfile names no host", .0.display())]
    HostfileEmpty(PathBuf),
    /// A batch system's variable makes no sense.
    #[error(transparent)]
    List(#[from] NotAList),
    /// More nodes are wanted than there are.
    #[error("{what} of {wanted} nodes, and there are {there}")]
    TooManyNodes {
        /// Which option.
        what: &'static str,
        /// What it says.
        wanted: u32,
        /// How many there are.
        there: usize,
    },
    /// srun without an allocation.
    #[error(
        "--launch srun needs a Slurm allocation (salloc or sbatch), and SLURM_JOB_ID is not set"
    )]
    NoAllocation,
    /// No address to listen at.
    #[error(
        "no address of this host that the nodes could connect to: {0}; give one with --control-address"
    )]
    NoAddress(String),
    /// A command with a placeholder that is not known.
    #[error(
        "--launch: {{{0}}} is no placeholder; there are {{processes}}, {{hostfile}}, {{hosts}} and {{program}}"
    )]
    Placeholder(String),
}

/// What is to be done for a request: `None` for processes as children, with shared memory. `processes` is how many are
/// wanted.
///
/// # Errors
/// When it can't be done as it is.
pub fn resolve(
    request: &Request,
    processes: u32,
    environment: &dyn Environment,
) -> Result<Option<Launch>, LaunchError> {
    let allocation = hosts::allocation(environment)?;
    let batch = allocation.as_ref().map(|(batch, _)| *batch);
    let word = match (&request.launch, &request.hostfile, batch) {
        (Some(word), _, _) => word.clone(),
        (None, Some(_), _) => "mpirun".to_owned(),
        // mpirun finds the allocation by itself, and needs no plugin of Slurm's for the MPI at hand.
        (None, None, Some(Batch::Slurm)) if find_on_path("mpirun").is_none() => "srun".to_owned(),
        (None, None, Some(_)) => "mpirun".to_owned(),
        (None, None, None) => "local".to_owned(),
    };
    let kind = match word.as_str() {
        "local" => return Ok(None),
        "srun" if batch != Some(Batch::Slurm) => return Err(LaunchError::NoAllocation),
        word => kind::recognise(word)?,
    };
    let mut nodes = match (&request.hostfile, allocation) {
        (Some(path), _) => hosts::read(path)?,
        (None, Some((_, nodes))) => nodes,
        (None, None) => vec![Node {
            name: "localhost".to_owned(),
            slots: processes,
        }],
    };
    let too_many = |what, wanted| LaunchError::TooManyNodes {
        what,
        wanted,
        there: nodes.len(),
    };
    let used = request
        .nodes
        .unwrap_or(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
    if used as usize > nodes.len() {
        return Err(too_many("--nodes", used));
    }
    if request.spare_nodes >= used {
        return Err(too_many("all --spare-nodes", request.spare_nodes));
    }
    if request.min_nodes.is_some_and(|min| min > used) {
        return Err(too_many("--min-nodes", request.min_nodes.unwrap_or(0)));
    }
    nodes.truncate(used as usize);
    let arguments = request.arguments.as_deref().unwrap_or_default();
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let listen = interface::choose(request.control_address.as_deref(), &nodes)?;
    let check = check::Way::for_launcher(&kind, &arguments, batch, environment);
    Ok(Some(Launch {
        kind,
        nodes,
        spare_nodes: request.spare_nodes,
        min_nodes: request.min_nodes.unwrap_or(1),
        may_lack_nodes: request.spare_nodes > 0 || request.min_nodes.is_some(),
        arguments,
        listen,
        check,
    }))
}

#[cfg(test)]
mod tests {
    use super::hosts::Nothing;
    use super::*;

    fn request(launch: &str) -> Request {
        Request {
            launch: Some(launch.to_owned()),
            ..Request::default()
        }
    }

    #[test]
    fn without_hosts_and_without_an_allocation_processes_are_children() {
        assert!(matches!(
            resolve(&Request::default(), 4, &Nothing),
            Ok(None)
        ));
    }

    #[test]
    fn a_command_runs_on_this_host_where_no_other_is_named() {
        let launch = resolve(&request("start {processes} {program}"), 4, &Nothing)
            .unwrap()
            .unwrap();
        assert_eq!(launch.nodes.len(), 1);
        assert_eq!(launch.nodes[0].slots, 4);
        assert!(!launch.may_lack_nodes);
    }

    #[test]
    fn what_can_not_be_is_refused_with_a_word_on_why() {
        let said = |request: &Request| resolve(request, 4, &Nothing).unwrap_err().to_string();
        assert!(said(&request("/nowhere/mpirun")).contains("/nowhere/mpirun"));
        assert!(said(&request("srun")).contains("SLURM_JOB_ID"));
        assert!(said(&request("start {number} x")).contains("{number}"));
        let mut wide = request("start {processes} {program}");
        wide.nodes = Some(2);
        assert!(said(&wide).contains("--nodes of 2 nodes, and there are 1"));
        wide.nodes = None;
        wide.spare_nodes = 1;
        assert!(said(&wide).contains("--spare-nodes"));
    }
}
