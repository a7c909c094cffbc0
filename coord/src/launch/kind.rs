//! The launchers: which one it is, and what command starts a job's processes.

use std::path::{Path, PathBuf};
use std::process::Command;

use protocol::control::environment;
use protocol::nodes::{Layout, Nodes};

use super::LaunchError;
use crate::child::spawn::Program;

/// A launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Open MPI's mpirun, and its major version.
    OpenMpi {
        /// Its path.
        program: PathBuf,
        /// 4, 5 and so on; 0 if it does not say.
        major: u32,
    },
    /// Hydra, the mpiexec of MPICH and its kin.
    Hydra {
        /// Its path.
        program: PathBuf,
    },
    /// Slurm's srun.
    Srun {
        /// Its path.
        program: PathBuf,
    },
    /// A command of the user's, run by the shell.
    Custom {
        /// With placeholders.
        command: String,
    },
}

impl Kind {
    /// Whether a process may leave the job while the others go on: the launcher neither ends these, nor notices when what it has on
    /// the process's node goes as well. With one of which that is not known, processes stay until the job ends.
    #[must_use]
    pub fn lets_processes_leave(&self) -> bool {
        match self {
            Self::OpenMpi { major, .. } => *major == 4,
            Self::Hydra { .. } | Self::Srun { .. } => true,
            Self::Custom { .. } => false,
        }
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::OpenMpi { .. } | Self::Hydra { .. } => "mpirun",
            Self::Srun { .. } => "srun",
            Self::Custom { .. } => "the launcher",
        }
    }
}

/// What there is to start, for [`command`].
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The solver.
    pub program: &'a Program,
    /// Where its processes go.
    pub layout: &'a Layout,
    /// The nodes that the layout speaks of.
    pub nodes: &'a Nodes,
    /// The user's arguments for the launcher.
    pub arguments: &'a [String],
    /// Where the hostfile is written.
    pub hostfile: &'a Path,
}

impl Start<'_> {
    /// Each node's name and number of processes.
    fn shares(&self) -> impl Iterator<Item = (&str, u32)> {
        self.layout.shares.iter().filter_map(|share| {
            let node = self.nodes.node(share.node)?;
            Some((node.name.as_str(), share.processes))
        })
    }

    /// A host for each process.
    fn hosts(&self) -> Vec<&str> {
        let shares = self.shares();
        let hosts = shares.flat_map(|(name, count)| std::iter::repeat_n(name, count as usize));
        hosts.collect()
    }
}

/// A command to run: its words, what it needs in its environment, and the text of its hostfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub arguments: Vec<std::ffi::OsString>,
    /// Variables besides those of the job.
    pub environment: Vec<(&'static str, String)>,
    /// What is written into the hostfile.
    pub hostfile: String,
}

/// Variables that every process of the job needs.
pub const EXPORTED: [&str; 3] = [
    environment::CONTROL,
    environment::TOKEN,
    environment::TRANSPORT,
];

/// Variables of the user's that are passed on where they are set, because mpirun passes none by itself.
const PASSED_ON: [&str; 3] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE", "CKPT_LOG"];

/// Finds out what launcher a word of `--launch` means.
///
/// # Errors
/// When there is none, or it is not known.
pub fn recognise(word: &str) -> Result<Kind, LaunchError> {
    if word.contains(char::is_whitespace) {
        check_placeholders(word)?;
        return Ok(Kind::Custom {
            command: word.to_owned(),
        });
    }
    let program = find_on_path(word).ok_or_else(|| LaunchError::NoLauncher(word.to_owned()))?;
    if program.file_name().is_some_and(|name| name == "srun") {
        return Ok(Kind::Srun { program });
    }
    let shown = program.display().to_string();
    let output = Command::new(&program)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| LaunchError::Version {
            program: shown.clone(),
            source,
        })?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    by_version(program, &said).ok_or_else(|| LaunchError::UnknownLauncher {
        program: shown,
        said: said.lines().next().unwrap_or_default().to_owned(),
    })
}

fn by_version(program: PathBuf, said: &str) -> Option<Kind> {
    if ["Open MPI", "OpenRTE", "PRRTE", "prterun"]
        .iter()
        .any(|name| said.contains(name))
    {
        let version = said
            .split_whitespace()
            .find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()));
        let major = version.and_then(|version| version.split('.').next()?.parse().ok());
        return Some(Kind::OpenMpi {
            program,
            major: major.unwrap_or(0),
        });
    }
    let hydra = ["HYDRA", "MPICH", "Intel(R) MPI", "MVAPICH"];
    hydra
        .iter()
        .any(|name| said.contains(name))
        .then_some(Kind::Hydra { program })
}

/// Finds an executable as a shell would.
#[must_use]
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    let directory = std::env::current_dir().unwrap_or_default();
    crate::child::spawn::find(Path::new(name), &directory).ok()
}

/// The command that starts the processes of a layout.
#[must_use]
pub fn command(kind: &Kind, start: &Start<'_>) -> Order {
    match kind {
        Kind::OpenMpi { program, major } => open_mpi(program, *major, start),
        Kind::Hydra { program } => hydra(program, start),
        Kind::Srun { program } => srun(program, start),
        Kind::Custom { command } => custom(command, start),
    }
}

/// Options of ours, left out where the user gives the same ones.
struct Words<'a> {
    words: Vec<std::ffi::OsString>,
    given: &'a [String],
}

impl<'a> Words<'a> {
    fn new(given: &'a [String]) -> Self {
        Self {
            words: Vec::new(),
            given,
        }
    }

    /// An option under any of its names, with its values.
    fn option(&mut self, names: &[&str], values: &[&str]) {
        let is_given = |name: &&str| {
            let with_value = format!("{name}=");
            self.given
                .iter()
                .any(|given| given == *name || given.starts_with(&with_value))
        };
        if !names.iter().any(is_given) {
            self.words.push(names[0].into());
            self.words.extend(values.iter().map(Into::into));
        }
    }

    /// Whether a parameter of Open MPI's is in the user's arguments or environment.
    fn is_set(&self, name: &str) -> bool {
        let set = std::env::var_os(format!("OMPI_MCA_{name}")).is_some();
        set || self.given.iter().any(|given| given == name)
    }

    /// A parameter of Open MPI's; what the user sets comes before it.
    fn parameter(&mut self, name: &str, value: &str) {
        if !self.is_set(name) {
            self.words.extend(["--mca", name, value].map(Into::into));
        }
    }

    fn finish(mut self, program: &Program) -> Vec<std::ffi::OsString> {
        self.words.extend(self.given.iter().map(Into::into));
        self.words.push(program.path.clone().into());
        self.words.extend(program.arguments.iter().skip(1).cloned());
        self.words
    }
}

/// The remote shell for Open MPI's mpirun, which takes it for the failure to start a daemon, and ends the job, when this ends badly
/// before the daemon's own connection does. Both end when a node does, in any order; so the remote shell waits a little. Words are
/// separated by spaces for mpirun, by tabs for the shell. By its path: mpirun searches its own folder first.
fn patient(ssh: &Path) -> Option<String> {
    let ssh = ssh
        .to_str()
        .filter(|path| !path.contains(char::is_whitespace))?;
    Some(format!(
        "sh -c \"$0\"\t\"$@\"||{{\tcode=$?;sleep\t2;exit\t$code;}} {ssh} -x"
    ))
}

fn open_mpi(program: &Path, major: u32, start: &Start<'_>) -> Order {
    let mut environment = Vec::new();
    let mut words = Words::new(start.arguments);
    words.option(
        &["--hostfile", "-hostfile", "--machinefile"],
        &[&start.hostfile.to_string_lossy()],
    );
    words.option(
        &["-np", "-n", "--np", "-c"],
        &[&start.layout.processes().to_string()],
    );
    words.option(&["--map-by", "-map-by"], &["slot"]);
    // The library's own threads want other cores than the ranks'.
    words.option(&["--bind-to", "-bind-to"], &["none"]);
    words.option(
        &["--wdir", "-wdir"],
        &[&start.program.directory.to_string_lossy()],
    );
    if major < 5 {
        // A failure is to show at once: what is left is killed without waiting, and a lost node is noticed.
        words.parameter("odls_base_sigkill_timeout", "0");
        words.parameter("oob_tcp_keepalive_time", "5");
        words.parameter("oob_tcp_keepalive_intvl", "2");
        words.parameter("oob_tcp_keepalive_probes", "2");
        // What happens to processes that have left the job, and to their nodes, is to change nothing for the others; who is
        // lost is found out without mpirun. A process that leaves ends MPI in order, and waits for nobody.
        words.parameter("orte_enable_recovery", "1");
        words.parameter("async_mpi_finalize", "1");
        // In the environment: what is on its command line mpirun repeats on those of its daemons, where a shell takes it apart.
        if let Some(agent) = find_on_path("ssh").and_then(|ssh| patient(&ssh))
            && !words.is_set("plm_rsh_agent")
        {
            environment.push(("OMPI_MCA_plm_rsh_agent", agent));
        }
    }
    let passed = PASSED_ON
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some());
    for name in EXPORTED.into_iter().chain(passed) {
        words.words.extend(["-x", name].map(Into::into));
    }
    let lines = start
        .shares()
        .map(|(name, count)| format!("{name} slots={count}\n"));
    Order {
        program: program.to_owned(),
        hostfile: lines.collect(),
        arguments: words.finish(start.program),
        environment,
    }
}

fn hydra(program: &Path, start: &Start<'_>) -> Order {
    let mut words = Words::new(start.arguments);
    words.option(
        &["-f", "-hostfile", "--hostfile", "-machinefile"],
        &[&start.hostfile.to_string_lossy()],
    );
    words.option(&["-n", "-np"], &[&start.layout.processes().to_string()]);
    words.option(
        &["-wdir", "--wdir"],
        &[&start.program.directory.to_string_lossy()],
    );
    // A process that leaves the job can't end MPI in order, for that waits for the others. It is to change nothing for them.
    words.option(&["-disable-auto-cleanup", "--disable-auto-cleanup"], &[]);
    let lines = start
        .shares()
        .map(|(name, count)| format!("{name}:{count}\n"));
    Order {
        program: program.to_owned(),
        hostfile: lines.collect(),
        arguments: words.finish(start.program),
        environment: Vec::new(),
    }
}

fn srun(program: &Path, start: &Start<'_>) -> Order {
    let mut words = Words::new(start.arguments);
    words.option(
        &["--ntasks", "-n"],
        &[&start.layout.processes().to_string()],
    );
    words.option(
        &["--nodes", "-N"],
        &[&start.layout.shares.len().to_string()],
    );
    words.option(&["--distribution", "-m"], &["arbitrary"]);
    words.option(
        &["--chdir", "-D"],
        &[&start.program.directory.to_string_lossy()],
    );
    words.option(&["--export"], &["ALL"]);
    words.option(&["--kill-on-bad-exit", "-K"], &[]);
    // A node whose processes have left the job may go; who is lost otherwise is found out without srun.
    words.option(&["--no-kill", "-k"], &[]);
    // Several jobs may share an allocation, and a step that was lost may hold its processors for a while.
    words.option(&["--overlap"], &[]);
    let lines = start.hosts().into_iter().map(|name| format!("{name}\n"));
    let mut environment = vec![(
        "SLURM_HOSTFILE",
        start.hostfile.to_string_lossy().into_owned(),
    )];
    if !words.is_set("async_mpi_finalize") {
        environment.push(("OMPI_MCA_async_mpi_finalize", "1".to_owned()));
    }
    Order {
        program: program.to_owned(),
        hostfile: lines.collect(),
        arguments: words.finish(start.program),
        environment,
    }
}

const PLACEHOLDERS: [&str; 4] = ["processes", "hostfile", "hosts", "program"];

fn check_placeholders(command: &str) -> Result<(), LaunchError> {
    let mut rest = command;
    while let Some((_, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            return Ok(());
        };
        let is_word = name.chars().all(|letter| letter.is_ascii_lowercase());
        if is_word && !name.is_empty() && !PLACEHOLDERS.contains(&name) {
            return Err(LaunchError::Placeholder(name.to_owned()));
        }
        rest = after;
    }
    Ok(())
}

fn custom(command: &str, start: &Start<'_>) -> Order {
    let program: Vec<String> = std::iter::once(start.program.path.to_string_lossy().into_owned())
        .chain(
            start
                .program
                .arguments
                .iter()
                .skip(1)
                .map(|word| word.to_string_lossy().into_owned()),
        )
        .map(|word| quoted(&word))
        .collect();
    let program = program.join(" ");
    let mut line = command
        .replace("{processes}", &start.layout.processes().to_string())
        .replace("{hostfile}", &quoted(&start.hostfile.to_string_lossy()))
        .replace("{hosts}", &quoted(&start.hosts().join(",")));
    line = match line.contains("{program}") {
        true => line.replace("{program}", &program),
        false => format!("{line} {program}"),
    };
    let lines = start.hosts().into_iter().map(|name| format!("{name}\n"));
    Order {
        program: PathBuf::from("/bin/sh"),
        hostfile: lines.collect(),
        arguments: ["-c", &line].map(Into::into).to_vec(),
        environment: Vec::new(),
    }
}

/// A word as the shell takes it for one.
pub(super) fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-:,=+@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use protocol::nodes::{Node, Rules};

    use super::*;

    fn with_order(kind: &Kind, arguments: &[&str], check: impl FnOnce(&Order, &[String])) {
        let node = |name: &str| Node {
            name: name.to_owned(),
            slots: 2,
        };
        let rules = Rules {
            processes: 3,
            spare: 0,
            min: 1,
            checked: false,
        };
        let mut nodes = Nodes::new(vec![node("node1"), node("node2")], rules);
        let layout = nodes.lay_out().unwrap();
        let program = Program {
            path: PathBuf::from("/opt/heat 2"),
            arguments: vec!["heat".into(), "it's".into()],
            directory: PathBuf::from("/scratch"),
        };
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let order = command(
            kind,
            &Start {
                program: &program,
                layout: &layout,
                nodes: &nodes,
                arguments: &arguments,
                hostfile: Path::new("/tmp/hosts"),
            },
        );
        let words: Vec<String> = order
            .arguments
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        check(&order, &words);
    }

    fn open_mpi() -> Kind {
        Kind::OpenMpi {
            program: PathBuf::from("/usr/bin/mpirun"),
            major: 4,
        }
    }

    #[test]
    fn open_mpi_is_told_hosts_variables_and_to_show_failures_at_once() {
        with_order(&open_mpi(), &[], |order, words| {
            assert_eq!(order.hostfile, "node1 slots=2\nnode2 slots=1\n");
            let line = words.join(" ");
            for part in [
                "--hostfile /tmp/hosts -np 3",
                "--mca odls_base_sigkill_timeout 0",
                "--mca oob_tcp_keepalive_time 5",
                "--mca orte_enable_recovery 1",
                "--mca async_mpi_finalize 1",
                "-x CKPT_CONTROL -x CKPT_TOKEN -x CKPT_TRANSPORT",
            ] {
                assert!(line.contains(part), "{line}");
            }
            assert!(line.ends_with("/opt/heat 2 it's"), "{line}");
            assert!(!line.contains("allow-run-as-root"));
        });
    }

    #[test]
    fn every_option_of_ours_gives_way_to_the_users() {
        let given = [
            "--mca",
            "odls_base_sigkill_timeout",
            "7",
            "--bind-to",
            "core",
            "--map-by=node",
        ];
        with_order(&open_mpi(), &given, |_, words| {
            let line = words.join(" ");
            assert!(!line.contains("odls_base_sigkill_timeout 0"), "{line}");
            assert!(line.contains("odls_base_sigkill_timeout 7"), "{line}");
            assert_eq!(line.matches("--bind-to").count(), 1, "{line}");
            assert_eq!(line.matches("--map-by").count(), 1, "{line}");
        });
    }

    #[test]
    fn hydra_and_srun_have_hostfiles_of_their_own_kind() {
        let hydra = Kind::Hydra {
            program: PathBuf::from("mpiexec"),
        };
        with_order(&hydra, &[], |order, words| {
            assert_eq!(order.hostfile, "node1:2\nnode2:1\n");
            assert_eq!(words[..4], ["-f", "/tmp/hosts", "-n", "3"]);
        });
        let srun = Kind::Srun {
            program: PathBuf::from("srun"),
        };
        with_order(&srun, &["--mpi=pmix"], |order, words| {
            assert_eq!(order.hostfile, "node1\nnode1\nnode2\n");
            assert_eq!(order.environment[0].0, "SLURM_HOSTFILE");
            let line = words.join(" ");
            assert!(line.contains("--ntasks 3 --nodes 2 --distribution arbitrary"));
            assert!(line.contains("--mpi=pmix"), "{line}");
        });
    }

    #[test]
    fn a_command_of_the_users_has_its_placeholders_filled_and_words_quoted() {
        let custom = |command: &str| Kind::Custom {
            command: command.to_owned(),
        };
        with_order(
            &custom("go -n {processes} -H {hosts} -f {hostfile} {program} | tee x"),
            &[],
            |_, words| {
                assert_eq!(
                    words[1],
                    r"go -n 3 -H node1,node1,node2 -f /tmp/hosts '/opt/heat 2' 'it'\''s' | tee x"
                );
            },
        );
        with_order(&custom("go {processes}"), &[], |_, words| {
            assert!(words[1].ends_with(r"go 3 '/opt/heat 2' 'it'\''s'"));
        });
    }

    #[test]
    fn launchers_are_known_by_what_they_say() {
        let path = || PathBuf::from("mpirun");
        assert!(matches!(
            by_version(path(), "mpirun (Open MPI) 4.1.4\n\nReport bugs to"),
            Some(Kind::OpenMpi { major: 4, .. })
        ));
        assert!(matches!(
            by_version(path(), "HYDRA build details:\n    Version: 4.0.2\n"),
            Some(Kind::Hydra { .. })
        ));
        assert_eq!(by_version(path(), "mpirun of my own 1.0"), None);
    }
}
