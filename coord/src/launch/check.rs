//! Whether a node can be used: it answers, and it reaches the coordinator over the network that the processes will use.
//!
//! A command is run there by the same remote shell that the launcher uses. It opens a connection to the coordinator's
//! socket and closes it, which the coordinator takes for a caller that went away.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::hosts::{Batch, Environment};
use super::interface;
use super::kind::Kind;
use crate::child::patience::{self, Ended};

/// How a node is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a command through this remote shell.
    Agent(Vec<String>),
    /// By what Slurm says of it, and of the allocation with this number; a node that was lost before also by a command.
    Slurm(String),
    /// Not at all.
    None,
}

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long, in seconds, connecting may take on the node.
const CONNECT_S: u32 = 4;

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 64;

impl Way {
    /// The way that suits a launcher: the remote shell that it uses itself.
    #[must_use]
    pub fn for_launcher(
        kind: &Kind,
        arguments: &[String],
        batch: Option<Batch>,
        environment: &dyn Environment,
    ) -> Self {
        let after = |name: &str| {
            let at = arguments.iter().position(|word| word == name)?;
            arguments.get(at + 1).cloned()
        };
        let agent = match (kind, batch) {
            (Kind::Srun { .. }, _)
            | (Kind::OpenMpi { .. } | Kind::Hydra { .. }, Some(Batch::Slurm)) => {
                return Self::Slurm(super::slurm::job(environment).unwrap_or_default());
            }
            (Kind::Custom { .. }, _) | (_, Some(Batch::Pbs | Batch::Lsf)) => return Self::None,
            (Kind::OpenMpi { .. }, None) => after("plm_rsh_agent")
                .or_else(|| environment.variable("OMPI_MCA_plm_rsh_agent"))
                .and_then(|agents| Some(agents.split(':').next()?.trim().to_owned())),
            (Kind::Hydra { .. }, None) => {
                after("-launcher-exec").or_else(|| environment.variable("HYDRA_LAUNCHER_EXEC"))
            }
        };
        let agent = agent.unwrap_or_else(|| "ssh".to_owned());
        Self::Agent(agent.split_whitespace().map(str::to_owned).collect())
    }

    /// Checks nodes, each by its name and whether it was lost before. `coordinator` is where the job's socket is.
    #[must_use]
    pub fn check_all(
        &self,
        nodes: &[(String, bool)],
        coordinator: SocketAddr,
    ) -> Vec<Result<(), String>> {
        let left = match self {
            Self::Slurm(job) => allocated(job, nodes),
            Self::Agent(_) | Self::None => None,
        };
        let is_left = |name: &String| left.as_ref().is_none_or(|left| left.contains(name));
        let mut outcomes = Vec::with_capacity(nodes.len());
        for some in nodes.chunks(AT_ONCE) {
            std::thread::scope(|scope| {
                let asked: Vec<_> = some
                    .iter()
                    .map(|(name, lost)| {
                        scope.spawn(move || match is_left(name) {
                            true => self.check(name, *lost, coordinator),
                            false => Err("it is not part of the allocation any more".to_owned()),
                        })
                    })
                    .collect();
                outcomes.extend(asked.into_iter().map(|thread| {
                    let failed = |_| Err("its check failed inside ckpt".to_owned());
                    thread.join().unwrap_or_else(failed)
                }));
            });
        }
        outcomes
    }

    fn check(&self, name: &str, lost: bool, coordinator: SocketAddr) -> Result<(), String> {
        if interface::is_this_host(name) {
            return Ok(());
        }
        let connect = format!(
            "timeout {CONNECT_S} bash -c 'exec 3<>/dev/tcp/{}/{}'",
            coordinator.ip(),
            coordinator.port()
        );
        match self {
            Self::None => Ok(()),
            Self::Agent(agent) => {
                let Some((program, words)) = agent.split_first() else {
                    return Ok(());
                };
                let mut command = Command::new(program);
                command.args(words);
                if program == "ssh" || program.ends_with("/ssh") {
                    command.args(["-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]);
                }
                command.args([name, &connect]);
                told(patience::run(&mut command, PATIENCE), program, coordinator)
            }
            Self::Slurm(_) => {
                slurm_state(name)?;
                if !lost {
                    return Ok(());
                }
                let mut command = Command::new("srun");
                command
                    .args(["--overlap", "--immediate=5", "-N1", "-n1", "-w", name])
                    .args(["bash", "-c", &connect]);
                told(patience::run(&mut command, PATIENCE), "srun", coordinator)
            }
        }
    }
}

/// What the end of a check's command means.
fn told(
    ended: std::io::Result<Ended>,
    program: &str,
    coordinator: SocketAddr,
) -> Result<(), String> {
    let ended = ended.map_err(|error| format!("{program} can't be run: {error}"))?;
    match ended.code {
        Some(0) => Ok(()),
        Some(124) => Err(format!(
            "it does not reach the coordinator at {coordinator}; is that the right network (--control-address), and no firewall in between?"
        )),
        Some(127) => Err(format!(
            "{program} did not find a command there: {}",
            ended.last_words()
        )),
        None => Err(format!(
            "it gave no answer through {program} within {} s",
            PATIENCE.as_secs()
        )),
        Some(code) => Err(format!(
            "it can't be reached through {program} (exit code {code}): {}",
            ended.last_words()
        )),
    }
}

/// The nodes that an allocation has now; of one made with `--no-kill`, Slurm takes a lost node out. `None` where it does not
/// tell, or calls the nodes otherwise than they are called here.
fn allocated(job: &str, nodes: &[(String, bool)]) -> Option<Vec<String>> {
    let mut command = Command::new("scontrol");
    command.args(["show", "job", "--oneliner", job]);
    let ended = patience::run(&mut command, PATIENCE).ok()?;
    let left = node_list(&ended.out).filter(|_| ended.code == Some(0))?;
    let known = nodes.iter().any(|(name, _)| left.contains(name));
    known.then_some(left)
}

fn node_list(line: &str) -> Option<Vec<String>> {
    let list = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("NodeList="))?;
    super::expand::hosts(list).ok()
}

fn slurm_state(name: &str) -> Result<(), String> {
    let mut command = Command::new("scontrol");
    command
        .args(["show", "node", name, "--oneliner"])
        .stdin(Stdio::null());
    let ended = patience::run(&mut command, PATIENCE)
        .map_err(|error| format!("scontrol can't be run: {error}"))?;
    if ended.code != Some(0) {
        return Err(format!("scontrol says: {}", ended.last_words()));
    }
    match unusable(&ended.out) {
        Some(state) => Err(format!("Slurm says that its state is {state}")),
        None => Ok(()),
    }
}

/// The state in a line of `scontrol show node`, if no process can run in it.
fn unusable(line: &str) -> Option<String> {
    let state = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("State="))?;
    let bad = [
        "DOWN",
        "FAIL",
        "NOT_RESPONDING",
        "POWERED",
        "POWER_",
        "UNKNOWN",
    ];
    let unusable = state.ends_with('*') || bad.iter().any(|word| state.contains(word));
    unusable.then(|| state.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::hosts::Nothing;
    use super::*;

    fn agent(script: &str) -> Way {
        Way::Agent(vec!["sh".into(), "-c".into(), script.into()])
    }

    #[test]
    fn the_remote_shell_of_the_launcher_is_used() {
        let open_mpi = Kind::OpenMpi {
            program: "mpirun".into(),
            major: 4,
        };
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let way =
            |kind: &Kind, text: &str, batch| Way::for_launcher(kind, &words(text), batch, &Nothing);
        assert_eq!(
            way(
                &open_mpi,
                "--mca plm_rsh_agent /opt/shell --oversubscribe",
                None
            ),
            Way::Agent(vec!["/opt/shell".into()])
        );
        assert_eq!(way(&open_mpi, "", None), Way::Agent(vec!["ssh".into()]));
        assert_eq!(
            way(&open_mpi, "", Some(Batch::Slurm)),
            Way::Slurm(String::new())
        );
        assert_eq!(way(&open_mpi, "", Some(Batch::Pbs)), Way::None);
        let hydra = Kind::Hydra {
            program: "mpiexec".into(),
        };
        assert_eq!(
            way(&hydra, "-launcher-exec /opt/shell", None),
            Way::Agent(vec!["/opt/shell".into()])
        );
    }

    #[test]
    fn a_node_that_reaches_the_coordinator_is_sound() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // The agent is called with the node's name and the command.
        let way = agent("eval \"$1\"");
        let nodes = [("node-of-no-name".to_owned(), false)];
        let outcome = way.check_all(&nodes, listener.local_addr().unwrap());
        assert_eq!(outcome, [Ok(())]);
        let (_, from) = listener.accept().unwrap();
        assert!(from.ip().is_loopback());
    }

    #[test]
    fn what_is_wrong_with_a_node_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let free = listener.local_addr().unwrap();
        drop(listener);
        let nodes = [("node-of-no-name".to_owned(), false)];
        let said = |way: &Way| way.check_all(&nodes, free).remove(0).unwrap_err();
        assert!(said(&agent("eval \"$1\"")).contains("refused"));
        let away = said(&agent(
            "echo 'connect to host: No route to host' >&2; exit 255",
        ));
        assert!(away.contains("No route to host"), "{away}");
        assert!(said(&agent("exit 124")).contains(&free.to_string()));
        let nobody = said(&Way::Agent(vec!["/nowhere/ssh".into()]));
        assert!(nobody.contains("/nowhere/ssh can't be run"), "{nobody}");
    }

    #[test]
    fn the_nodes_that_an_allocation_has_left_are_read() {
        let line = "JobId=7 JobState=RUNNING ReqNodeList=(null) ExcNodeList=(null) NodeList=node[1,3] NumNodes=2";
        assert_eq!(node_list(line).unwrap(), ["node1", "node3"]);
        assert_eq!(node_list("JobId=7 JobState=RUNNING"), None);
    }

    #[test]
    fn slurms_states_are_understood() {
        for (line, bad) in [
            ("NodeName=node1 State=IDLE CPUAlloc=0", None),
            ("State=MIXED+DRAIN", None),
            ("State=DOWN*", Some("DOWN*")),
            ("State=ALLOCATED*", Some("ALLOCATED*")),
            ("State=IDLE+NOT_RESPONDING", Some("IDLE+NOT_RESPONDING")),
        ] {
            assert_eq!(unusable(line).as_deref(), bad, "{line}");
        }
    }
}
