//! A Slurm of the test's own: its daemons run on the nodes of a cluster ([`crate::nodes`]), with a key, a
//! configuration and spool folders of their own, and end with it.
//!
//! - [`config`] is `slurm.conf`.
//! - [`job`] is a batch job: what Slurm tells of it, and waiting for that.

pub mod config;
pub mod job;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use rand::Rng as _;

use crate::events::{self, Event};
use crate::job::Job;
use crate::nodes::cluster::Cluster;
use crate::nodes::node::Node;
use crate::nodes::{self, installed, node_name};
use crate::process::{self, MARK};
use crate::solver::Solver;
use job::BatchJob;

/// What runs, and the Debian packages that have it.
const DAEMONS: &[(&str, &str)] = &[
    ("munged", "munge"),
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("sbatch", "slurm-client"),
];

/// How long the daemons may take until all nodes are idle.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there can be no Slurm here; none if there can.
#[must_use]
pub fn missing() -> Option<String> {
    nodes::missing().or_else(|| {
        DAEMONS
            .iter()
            .find(|(daemon, _)| !installed(daemon))
            .map(|(daemon, package)| format!("no `{daemon}` here (Debian: {package})"))
    })
}

/// The daemons. The controller is on the head.
#[derive(Debug)]
pub struct Slurm<'a> {
    cluster: &'a Cluster,
    folder: PathBuf,
    daemons: Vec<Child>,
}

impl<'a> Slurm<'a> {
    /// Starts the daemons and waits until all nodes are idle.
    ///
    /// # Errors
    /// When a daemon does not start.
    pub fn up(cluster: &'a Cluster) -> Result<Self> {
        let folder = cluster.join("slurm");
        let private = folder.join("munge");
        for path in [&folder, &private, &folder.join("state")] {
            fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
        }
        fs::set_permissions(&private, PermissionsExt::from_mode(0o700))?;
        let mut key = [0; 1024];
        rand::rng().fill_bytes(&mut key);
        fs::write(private.join("key"), key).context("write munge's key")?;
        fs::set_permissions(private.join("key"), PermissionsExt::from_mode(0o600))?;
        config::write(&folder, cluster.nodes())?;
        let mut slurm = Self {
            cluster,
            folder,
            daemons: Vec::new(),
        };
        slurm.start_munged(&private)?;
        slurm.start_daemon(cluster.nodes().head(), "slurmctld", &[])?;
        for number in 1..=cluster.nodes().count() {
            slurm.start_slurmd(number)?;
        }
        slurm.wait_idle()?;
        Ok(slurm)
    }

    /// Starts the daemon of a node, which has just come up.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_slurmd(&mut self, number: usize) -> Result<()> {
        let name = node_name(number);
        let node = self.cluster.nodes().node(number);
        self.start_daemon(node, "slurmd", &["-N", &name])
    }

    /// Runs a command of Slurm (words) on the head to its end.
    ///
    /// # Errors
    /// When it fails.
    pub fn tell(&self, words: &str) -> Result<String> {
        let words: Vec<_> = words.split_whitespace().collect();
        self.checked(&words, &[])
    }

    /// Submits a batch script with options of `sbatch` (words). Its output is appended to one file, also
    /// when it runs again.
    ///
    /// # Errors
    /// When Slurm does not take it.
    pub fn submit(&self, options: &str, script: &str) -> Result<BatchJob<'_>> {
        let path = self.folder.join("batch.sh");
        fs::write(&path, script).context("write the batch script")?;
        self.submit_file(&format!("--open-mode=append {options}"), &path, &[], &[])
    }

    /// Submits a file with arguments, in an environment with further variables.
    ///
    /// # Errors
    /// When Slurm does not take it.
    pub fn submit_file(
        &self,
        options: &str,
        script: &Path,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Result<BatchJob<'_>> {
        let output = self.folder.join("slurm-%j.out");
        let output = format!("--output={}", output.display());
        let script = script.display().to_string();
        let folder = format!("--chdir={}", self.cluster.join("").display());
        let mut words = vec!["sbatch", "--parsable", &output, &folder];
        words.extend(options.split_whitespace());
        words.push(&script);
        words.extend(arguments.iter().map(String::as_str));
        let told = self.checked(&words, environment)?;
        let id = told.trim().parse().context("a job's number")?;
        Ok(BatchJob::new(self, id))
    }

    /// Starts `ckpt run` with a solver and options of the launcher, inside an allocation with options of `salloc` (words).
    ///
    /// # Errors
    /// When it can't be started.
    pub fn allocate(&self, options: &str, solver: &Solver, ckpt: &str) -> Result<Job<'a>> {
        let config = config::path(&self.folder);
        let mut words = vec![format!("SLURM_CONF={}", config.display())];
        words.extend(["salloc", "--quiet"].map(str::to_owned));
        words.extend(options.split_whitespace().map(str::to_owned));
        let ckpt: Vec<_> = ckpt.split_whitespace().collect();
        self.cluster.start_under(&words, solver, &ckpt)
    }

    /// Waits until there is no job any more, not even one that is being cleaned up.
    ///
    /// # Errors
    /// When some stay.
    pub fn wait_empty(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let jobs = self.tell("squeue --noheader")?;
            if jobs.is_empty() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("jobs that do not end:\n{jobs}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the event log of the cluster's jobs has what is looked for.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait_events(&self, what: &str, there: impl Fn(&[Event]) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let events = events::read_all(&self.cluster.events())?;
            if there(&events) {
                return Ok(());
            }
            if start.elapsed() > job::PATIENCE {
                bail!("waited in vain for {what}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The state of a node, as `sinfo` tells it.
    ///
    /// # Errors
    /// When it does not.
    pub fn node_state(&self, number: usize) -> Result<String> {
        let name = node_name(number);
        Ok(self
            .tell(&format!("sinfo --noheader --nodes={name} --format=%T"))?
            .trim()
            .to_owned())
    }

    /// The ends of the daemons' logs, for a message.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut told = String::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|kind| kind == "log") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let last = &lines[lines.len().saturating_sub(20)..];
                told.push_str(&format!("--- {}\n{}\n", path.display(), last.join("\n")));
            }
        }
        told
    }

    pub(crate) fn output_of(&self, job: u32) -> PathBuf {
        self.folder.join(format!("slurm-{job}.out"))
    }

    fn checked(&self, words: &[&str], environment: &[(&str, &str)]) -> Result<String> {
        let output = self
            .on(self.cluster.nodes().head(), "timeout")
            .args(["--kill-after=5", "60"])
            .args(words)
            .env(MARK, self.cluster.mark())
            .envs(environment.iter().copied())
            .output()
            .with_context(|| format!("start {}", words.join(" ")))?;
        if !output.status.success() {
            bail!(
                "`{}` failed: {}\n{}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr).trim(),
                self.logs()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn on(&self, node: &Node, program: &str) -> Command {
        let mut command = node.command(program);
        command.env("SLURM_CONF", config::path(&self.folder));
        command
    }

    fn start_munged(&mut self, private: &Path) -> Result<()> {
        let option = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let socket = config::munge_socket(&self.folder);
        let options = [
            "--foreground".to_owned(),
            "--force".to_owned(),
            option("key-file", private.join("key")),
            option("pid-file", private.join("pid")),
            option("log-file", private.join("log")),
            option("seed-file", private.join("seed")),
            option("socket", socket.clone()),
        ];
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        self.start(self.cluster.nodes().head(), "munged", &options)?;
        let start = Instant::now();
        while !socket.exists() {
            if start.elapsed() > PATIENCE {
                bail!("munged does not start\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Starts a daemon in the foreground.
    fn start_daemon(&mut self, node: &Node, daemon: &str, options: &[&str]) -> Result<()> {
        let config = config::path(&self.folder).display().to_string();
        let mut all = vec!["-D", "-f", config.as_str()];
        all.extend_from_slice(options);
        self.start(node, daemon, &all)
    }

    fn start(&mut self, node: &Node, daemon: &str, options: &[&str]) -> Result<()> {
        let log = self.folder.join(format!("{daemon}-{}.log", node.name()));
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = self
            .on(node, daemon)
            .args(options)
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .with_context(|| format!("start {daemon}"))?;
        self.daemons.push(child);
        Ok(())
    }

    fn wait_idle(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let told = self
                .tell("sinfo --noheader --Node --format=%T")
                .unwrap_or_default();
            let idle = told.lines().filter(|line| line.trim() == "idle").count();
            if idle == self.cluster.nodes().count() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("not all nodes become idle: {told}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the daemons and all that they started on a node.
    fn end_on(node: &Node) {
        for pid in node.processes() {
            let is_slurm = process::command(pid).is_some_and(|words| {
                let program = words[0].rsplit('/').next().unwrap_or_default();
                program.starts_with("slurm") || program == "munged"
            });
            if is_slurm {
                let _ = process::send(pid, Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Slurm<'_> {
    fn drop(&mut self) {
        let nodes = self.cluster.nodes();
        Self::end_on(nodes.head());
        for number in 1..=nodes.count() {
            Self::end_on(nodes.node(number));
        }
        for daemon in &mut self.daemons {
            let _ = daemon.wait();
        }
    }
}
