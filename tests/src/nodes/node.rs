//! One node.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::process;

/// What the first process of a node does: set up its view of the machine, start the remote shell, and inherit and
/// reap orphans. It tells its process id as seen from outside, which `/proc` does until it is mounted anew.
const INIT: &str = r#"
set -e
read -r pid rest </proc/self/stat
hostname "$NODE_NAME"
mount -t proc proc /proc
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs "$NODE_FOLDER/local"
mkdir -m 1777 "$NODE_FOLDER/local/tmp"
mount --bind "$NODE_FOLDER/hosts" /etc/hosts
ip link set lo up
echo "init $pid"
"$NODE_SHELL" serve &
wait
"#;

/// How long the start of a node and the end of its processes may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A set of namespaces with a name. Dropping it ends every process in it.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: PathBuf,
    shell: PathBuf,
    state: Mutex<Running>,
}

/// What there is of a node that is up, or was.
#[derive(Debug)]
struct Running {
    unshare: Child,
    init: u32,
    /// Holds the network namespace, so that connections of killed processes are closed before it goes, as a
    /// kernel that survives its processes does.
    _network: File,
}

impl Node {
    /// Starts an empty node, whose network has no interface but `lo`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(name: &str, folder: &Path, shell: &Path) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            shell: shell.to_owned(),
            state: Mutex::new(Running::start(name, folder, shell)?),
        })
    }

    /// Starts it anew after it was killed; its network has no interface then.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        let new = Running::start(&self.name, &self.folder, &self.shell)?;
        let mut old = std::mem::replace(&mut *self.state(), new);
        old.end_processes();
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, Running> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its first process, by its id outside.
    #[must_use]
    pub fn init(&self) -> u32 {
        self.state().init
    }

    /// The words in front of a command that run it on the node, in a folder.
    #[must_use]
    pub fn enter(&self, folder: &Path) -> Vec<String> {
        let mut words: Vec<String> = [
            "nsenter",
            "--target",
            &self.init().to_string(),
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "env",
        ]
        .map(str::to_owned)
        .to_vec();
        words.push(format!("--chdir={}", folder.display()));
        words.push(format!("PATH={}", path(&self.folder)));
        words.push(format!(
            "TMPDIR={}",
            self.folder.join("local/tmp").display()
        ));
        for (variable, value) in VARIABLES {
            words.push(format!("{variable}={value}"));
        }
        words
    }

    /// A command on the node.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let words = self.enter(Path::new("/"));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a line of shell on the node to its end, or for a minute.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn exec(&self, line: &str) -> Result<Output> {
        self.command("timeout")
            .args(["--kill-after=5", "60", "sh", "-c", line])
            .output()
            .with_context(|| format!("start `{line}` on {}", self.name))
    }

    /// What a line of shell prints on the node.
    ///
    /// # Errors
    /// When it fails.
    pub fn tell(&self, line: &str) -> Result<String> {
        let output = self.exec(line)?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "`{line}` on {} failed ({}): {told}{}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(told)
    }

    /// The living processes on the node, by their ids outside, without its first one and its remote shell.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let init = self.init();
        self.all_processes()
            .into_iter()
            .filter(|&pid| pid != init)
            .filter(|&pid| {
                !process::command(pid).is_some_and(|words| {
                    words.last().is_some_and(|word| word == "serve")
                        && words[0].ends_with("node-shell")
                })
            })
            .collect()
    }

    /// Those of them that run a program of this name.
    #[must_use]
    pub fn running(&self, program: &str) -> Vec<u32> {
        self.processes()
            .into_iter()
            .filter(|&pid| {
                process::command(pid).is_some_and(|words| {
                    Path::new(&words[0])
                        .file_name()
                        .is_some_and(|name| name == program)
                })
            })
            .collect()
    }

    /// Ends every process on the node with SIGKILL. The kernel does it all at once, with the first of them.
    ///
    /// # Errors
    /// When some live on.
    pub fn kill(&self) -> Result<()> {
        let init = self.init();
        if process::alive(init) {
            process::send(init, Signal::SIGKILL)?;
        }
        let start = Instant::now();
        while process::alive(init) || !self.all_processes().is_empty() {
            if start.elapsed() > PATIENCE {
                bail!("processes on {} outlive SIGKILL", self.name);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn all_processes(&self) -> Vec<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(mine) = namespace(self.init()) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| namespace(pid).as_ref() == Some(&mine))
            .filter(|&pid| process::alive(pid))
            .collect()
    }
}

impl Running {
    fn start(name: &str, folder: &Path, shell: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .args(["unshare", "--fork", "--kill-child"])
            .args(["--pid", "--mount", "--uts", "--ipc", "--net"])
            .args(["sh", "-c", INIT])
            .env("NODE_NAME", name)
            .env("NODE_FOLDER", folder)
            .env("NODE_SHELL", shell)
            .env("TMPDIR", folder.join("local/tmp"))
            .env("PATH", path(folder))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (variable, value) in VARIABLES {
            command.env(variable, value);
        }
        let mut unshare = command.spawn().context("start unshare")?;
        match wait_ready(&mut unshare) {
            Ok((init, network)) => Ok(Self {
                unshare,
                init,
                _network: network,
            }),
            Err(error) => {
                let _ = unshare.kill();
                let output = unshare.wait_with_output().context("wait for unshare")?;
                Err(error.context(format!(
                    "{name} does not start: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                )))
            }
        }
    }

    fn end_processes(&mut self) {
        // The kernel kills the rest with the first process, which dies with the one that it was forked from.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.kill();
        self.state().end_processes();
    }
}

/// What every process on a node finds in its environment. MPI launchers refuse root without it.
const VARIABLES: &[(&str, &str)] = &[
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
];

fn path(folder: &Path) -> String {
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        folder.join("bin").display()
    )
}

/// The first process's id, once the remote shell listens; and the network namespace.
fn wait_ready(unshare: &mut Child) -> Result<(u32, File)> {
    let stdout = unshare.stdout.take().context("its output")?;
    let mut lines = BufReader::new(stdout).lines();
    let init = lines
        .next()
        .context("its first process ended")??
        .strip_prefix("init ")
        .context("its first process says something else")?
        .parse()?;
    let network = File::open(format!("/proc/{init}/ns/net")).context("open its network")?;
    match lines.next() {
        Some(Ok(line)) if line == "listening" => Ok((init, network)),
        other => bail!("its remote shell does not listen: {other:?}"),
    }
}
