//! A place for one job and all that belongs to it.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::binaries::Binaries;
use crate::job::{Job, Outcome};
use crate::output::Reader;
use crate::process::{self, MARK};
use crate::solver::Solver;

/// How long anything may take before the test bed kills it all and reports.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The most processes of a job that a test has on one node.
const PROCESSES_PER_NODE_MAX: u64 = 8;

const NOBODY: u32 = 65534;

/// What a solver ends with over shared memory when nobody disturbs it.
///
/// # Errors
/// When it can't be run, or fails.
pub fn undisturbed(solver: &Solver) -> Result<String> {
    Bed::new()?
        .run(solver, "--every off")?
        .expect_code(0)?
        .result()
}

/// A folder, a user and a mark. Dropping it kills what still runs, and panics if something did.
#[derive(Debug)]
pub struct Bed {
    folder: tempfile::TempDir,
    /// Where the job's checkpoints go; below the folder unless [`Bed::with_store`] put it elsewhere.
    store: PathBuf,
    binaries: Binaries,
    mark: String,
    user: Option<u32>,
    /// Words in front of every command, which run it on a node.
    entering: Vec<String>,
}

impl Bed {
    /// A bed for the present user.
    ///
    /// # Errors
    /// When there is no place for it or the programs do not build.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new()
            .prefix("ckpt-tests")
            .tempdir()
            .context("make a folder")?;
        Ok(Self {
            store: folder.path().join("store"),
            binaries: Binaries::find()?.clone(),
            mark: format!(
                "{}-{}",
                std::process::id(),
                NUMBER.fetch_add(1, Ordering::Relaxed)
            ),
            user: None,
            entering: Vec::new(),
            folder,
        })
    }

    /// A bed whose jobs run as the user `nobody`, with copies of the programs that this user can reach.
    ///
    /// # Errors
    /// As [`Bed::new`]; when the caller is not root; when the user can't run the programs.
    pub fn as_nobody() -> Result<Self> {
        let mut bed = Self::new()?;
        if !nix::unistd::geteuid().is_root() {
            bail!("only root can run a job as another user");
        }
        bed.binaries = bed.binaries.copy_to(bed.folder.path())?;
        std::os::unix::fs::chown(bed.folder.path(), Some(NOBODY), Some(NOBODY))
            .context("give the folder to nobody")?;
        std::fs::set_permissions(bed.folder.path(), PermissionsExt::from_mode(0o755))?;
        bed.user = Some(NOBODY);
        bed.ckpt(&["--version"])?.expect_code(0)?;
        Ok(bed)
    }

    /// The same with the store somewhere else.
    #[must_use]
    pub fn with_store(mut self, store: PathBuf) -> Self {
        self.store = store;
        self
    }

    /// The same with words in front of every command, such as those of [`crate::nodes::node::Node::enter`].
    #[must_use]
    pub fn entering(mut self, words: Vec<String>) -> Self {
        self.entering = words;
        self
    }

    /// The job's store.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The job's event log, which all its coordinators append to.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.folder.path().join("events.jsonl")
    }

    /// A place for a file of the test's own.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The programs that it runs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The same with other programs.
    #[must_use]
    pub fn with_binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = binaries;
        self
    }

    /// Whether its commands run on a node.
    #[must_use]
    pub fn is_entering(&self) -> bool {
        !self.entering.is_empty()
    }

    /// The mark that every process of its jobs carries.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The living processes of its jobs that run a solver, wherever they are.
    #[must_use]
    pub fn solvers(&self, solver: &Solver) -> Vec<u32> {
        self.running(&solver.name)
    }

    /// The living processes of its jobs that run a program of this name, wherever they are.
    #[must_use]
    pub fn running(&self, program: &str) -> Vec<u32> {
        process::marked(&self.mark)
            .into_iter()
            .filter(|&pid| {
                process::command(pid).is_some_and(|words| Path::new(&words[0]).ends_with(program))
            })
            .collect()
    }

    /// Starts `ckpt run` with a solver and options of the launcher (words). The solver does not end before [`Job::wait`] is
    /// called, however fast the machine is: what a test does to the job before that, it does to a running one.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, solver: &Solver, options: &str) -> Result<Job<'_>> {
        let options: Vec<_> = options.split_whitespace().collect();
        self.start_with(solver, &options)
    }

    /// The same, but the solver ends when it is done.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_free(&self, solver: &Solver, options: &str) -> Result<Job<'_>> {
        let mut command = self.command();
        let options: Vec<_> = options.split_whitespace().collect();
        self.add_run(&mut command, solver, &options);
        Job::start(self, command, None)
    }

    /// As [`Bed::start`] with options that may hold blanks.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_with(&self, solver: &Solver, options: &[&str]) -> Result<Job<'_>> {
        self.start_under(&[], solver, options)
    }

    /// The same with words in front of `ckpt`, on the node that its commands run on.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_under(
        &self,
        words: &[String],
        solver: &Solver,
        options: &[&str],
    ) -> Result<Job<'_>> {
        let mut command = self.command_under(words);
        self.add_run(&mut command, solver, options);
        let may_end = self.hold()?;
        command.arg("--until").arg(&may_end);
        Job::start(self, command, Some(may_end))
    }

    fn add_run(&self, command: &mut Command, solver: &Solver, options: &[&str]) {
        command.arg("run").args(["-n", &solver.ranks.to_string()]);
        if let Some(processes) = solver.processes {
            command.args(["--procs", &processes.to_string()]);
        }
        command
            .arg("--store")
            .arg(&self.store)
            .arg("--events")
            .arg(self.events());
        command.args(options);
        command
            .arg("--")
            .arg(solver.program(&self.binaries))
            .args(&solver.arguments);
    }

    /// The file without which a solver that was told of it does not end. It is not there now.
    fn hold(&self) -> Result<PathBuf> {
        let may_end = self.join("may-end");
        match std::fs::remove_file(&may_end) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", may_end.display()))
            }
            _ => Ok(may_end),
        }
    }

    /// Starts `ckpt restart` on the store. As with [`Bed::start`], a solver that was told to wait does not end before
    /// [`Job::wait`].
    ///
    /// # Errors
    /// When it can't be started.
    pub fn restart(&self, options: &str) -> Result<Job<'_>> {
        let mut command = self.command();
        command.arg("restart").arg("--events").arg(self.events());
        command.args(options.split_whitespace()).arg(&self.store);
        Job::start(self, command, Some(self.hold()?))
    }

    /// Runs a solver to its end.
    ///
    /// # Errors
    /// When it can't be started or does not end in time.
    pub fn run(&self, solver: &Solver, options: &str) -> Result<Outcome> {
        self.start_free(solver, options)?.wait(PATIENCE)
    }

    /// Runs a command of `ckpt` to its end.
    ///
    /// # Errors
    /// When it can't be started or does not end in time.
    pub fn ckpt(&self, arguments: &[&str]) -> Result<Outcome> {
        let mut command = self.command();
        command.args(arguments);
        Job::start(self, command, None)?.wait(PATIENCE)
    }

    /// Runs a command of `ckpt` on the store, with further arguments and `--json`; the result in its record.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn json(&self, command: &str, arguments: &[&str]) -> Result<Value> {
        let store = self.store.display().to_string();
        let mut all = vec![command, store.as_str()];
        all.extend_from_slice(arguments);
        all.push("--json");
        let outcome = self.ckpt(&all)?.expect_code(0)?;
        outcome.json().map(|mut record| record["result"].take())
    }

    /// Runs a command of `ckpt` on the store, whatever it returns.
    ///
    /// # Errors
    /// When it can't be started or does not end in time.
    pub fn on_store(&self, command: &str, arguments: &[&str]) -> Result<Outcome> {
        let store = self.store.display().to_string();
        let mut all = vec![command, store.as_str()];
        all.extend_from_slice(arguments);
        self.ckpt(&all)
    }

    /// Checks that no process of its jobs lives on, and nothing of them is left in shared memory.
    ///
    /// # Errors
    /// When something is left after a moment; names it.
    pub fn check_clean(&self) -> Result<()> {
        // The last process of a job may take a moment to be unmapped and reaped. Where a command of the user's starts Open MPI,
        // its daemon on a node ends after mpirun, a second for each of the node's processes (odls_base_sigkill_timeout).
        let daemons = if self.is_entering() {
            PROCESSES_PER_NODE_MAX
        } else {
            0
        };
        process::wait_until_gone(&self.mark, Duration::from_secs(2 + daemons))?;
        let left = process::left_in_shared_memory();
        if !left.is_empty() {
            bail!("left in /dev/shm: {}", left.join(", "));
        }
        Ok(())
    }

    /// Keeps the folder for someone to look at, and tells where it is.
    #[must_use]
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    fn command(&self) -> Command {
        self.command_under(&[])
    }

    fn command_under(&self, words: &[String]) -> Command {
        let mut all = self.entering.iter().chain(words).map(OsStr::new);
        let ckpt = self.binaries.ckpt.as_os_str();
        let mut command = Command::new(all.next().unwrap_or(ckpt));
        command.args(all);
        if self.is_entering() || !words.is_empty() {
            command.arg(ckpt);
        }
        command
            .env(MARK, &self.mark)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let left = self.check_clean();
        process::kill_marked(&self.mark);
        if let (Err(error), false) = (left, std::thread::panicking()) {
            panic!("{error:#}");
        }
    }
}

/// Starts the readers of a child's output.
pub(crate) fn readers(child: &mut std::process::Child) -> Result<(Reader, Reader)> {
    Ok((
        Reader::start(child.stdout.take().context("its output")?),
        Reader::start(child.stderr.take().context("its errors")?),
    ))
}
