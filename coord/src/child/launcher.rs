//! The launcher of a start: one child, whose own children and whose end prove nothing about the job's processes.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use protocol::ids::Process;
use protocol::recovery::Exit;

use super::brood::Brood;
use super::spawn::{self, OpenFiles, Program, ProgramError};
use super::table::Children;

/// Lines of the launcher's error output that are kept to explain its end.
const LINES_KEPT: usize = 12;

/// A line longer than this is kept in part.
const LINE_BYTES_MAX: usize = 500;

/// Time that the launcher has to end what it started, and itself, once it was asked to; then it is killed.
pub const TERM_GRACE: Duration = Duration::from_secs(2);

/// How long the last lines are waited for, where something else holds the pipe open.
const LAST_LINES_WITHIN: Duration = Duration::from_millis(200);

/// The launcher of one start. Dropping it kills it.
#[derive(Debug)]
pub struct Launcher {
    children: Children,
    last: Arc<Mutex<VecDeque<String>>>,
    copying: Option<JoinHandle<()>>,
    name: &'static str,
    /// Somebody wants it to end: what it says about that explains nothing.
    ending: bool,
    /// What it has started on this machine, as far as was seen.
    brood: Brood,
    /// The file that it reads the hosts from, removed at the end.
    hostfile: PathBuf,
}

impl Launcher {
    /// Starts it. Its standard error is copied to ours, and its last lines are kept.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(
        name: &'static str,
        program: &Program,
        environment: &[(&str, String)],
        hostfile: PathBuf,
        open_files: OpenFiles,
    ) -> Result<Self, ProgramError> {
        let mut launcher = Self {
            children: Children::new(),
            last: Arc::default(),
            copying: None,
            name,
            ending: false,
            brood: Brood::default(),
            hostfile,
        };
        let mut child = spawn::spawn(program, environment, &[], open_files, Stdio::piped())?;
        if let Some(pipe) = child.stderr.take() {
            let last = Arc::clone(&launcher.last);
            launcher.copying = std::thread::Builder::new()
                .name("launcher".to_owned())
                .spawn(move || copy(pipe, &last))
                .ok();
        }
        let failed = |source| ProgramError::Spawn {
            program: program.path.display().to_string(),
            source,
        };
        launcher.children.push(child).map_err(failed)?;
        Ok(launcher)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.children.pids().first().copied().unwrap_or(0)
    }

    /// The descriptor that becomes readable when it ends.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.children.pidfd(Process(0))
    }

    /// Takes note of what it has started on this machine, which is to end with this start of the job.
    pub fn look(&mut self) {
        if self.pidfd().is_some() {
            self.brood.look(self.pid());
        }
    }

    /// Asks it, and what it started on this machine, to end.
    pub fn terminate(&mut self) {
        self.ending = true;
        self.look();
        if self.pidfd().is_some()
            && let Ok(group) = i32::try_from(self.pid())
        {
            // An error means that there is nobody left in the group.
            let _ = killpg(Pid::from_raw(group), Signal::SIGTERM);
        }
    }

    /// Kills it, with what it started on this machine.
    pub fn kill(&mut self) {
        self.ending = true;
        self.look();
        self.children.kill_all();
        self.brood.kill();
    }

    /// Waits for it to end, so long at most. Returns whether it has; it is still to be reaped.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while let Some(pidfd) = self.pidfd() {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: the last millisecond is not to be spent with asking.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return true,
                // What can't be watched is not waited for.
                Err(_) => return false,
            }
        }
        true
    }

    /// If it has ended: how, and what it said last, as a sentence.
    ///
    /// # Errors
    /// When the system does not let us wait for our own child.
    pub fn reap(&mut self) -> io::Result<Option<String>> {
        let Some(exit) = self.children.reap(Process(0))? else {
            return Ok(None);
        };
        if !self.ending {
            self.wait_for_last_lines();
        }
        let how = match exit {
            Exit::Code(code) => format!("{} exited with code {code}", self.name),
            Exit::Signal(signal) => format!("{} was ended by signal {signal}", self.name),
        };
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let said: Vec<&str> = last.iter().map(String::as_str).collect();
        Ok(Some(match said.is_empty() {
            true => how,
            false => format!("{how}; it said: {}", said.join(" | ")),
        }))
    }

    fn wait_for_last_lines(&mut self) {
        let Some(copying) = self.copying.take() else {
            return;
        };
        let mut left = LAST_LINES_WITHIN;
        let tick = Duration::from_millis(2);
        while !copying.is_finished() && !left.is_zero() {
            std::thread::sleep(tick);
            left = left.saturating_sub(tick);
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.kill();
        // It is of no use to anybody else.
        let _ = std::fs::remove_file(&self.hostfile);
    }
}

/// Writes a hostfile that only this user can read.
///
/// # Errors
/// When it can't be written, or is there.
pub fn write_hostfile(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn copy(mut pipe: ChildStderr, last: &Mutex<VecDeque<String>>) {
    let mut bytes = [0; 8 << 10];
    let mut line = Vec::new();
    loop {
        let count = match pipe.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        // Output that nobody takes is dropped: the job matters more.
        let _ = io::stderr().write_all(&bytes[..count]);
        for &byte in &bytes[..count] {
            if byte == b'\n' {
                keep(&mut line, last);
            } else if line.len() < LINE_BYTES_MAX {
                line.push(byte);
            }
        }
    }
    keep(&mut line, last);
}

fn keep(line: &mut Vec<u8>, last: &Mutex<VecDeque<String>>) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    // Lines of dashes, with which mpirun frames what it has to say, say nothing.
    if text.chars().any(char::is_alphanumeric) {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LINES_KEPT {
            last.pop_front();
        }
        last.push_back(text.to_owned());
    }
    line.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, hostfile: PathBuf) -> Launcher {
        let program = Program {
            path: PathBuf::from("/bin/sh"),
            arguments: vec!["sh".into(), "-c".into(), script.into()],
            directory: PathBuf::from("/"),
        };
        let open_files = OpenFiles::raise().unwrap();
        Launcher::start("mpirun", &program, &[], hostfile, open_files).unwrap()
    }

    fn end(launcher: &mut Launcher) -> String {
        loop {
            if let Some(words) = launcher.reap().unwrap() {
                return words;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn what_the_launcher_said_last_explains_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let hostfile = dir.path().join("hosts");
        write_hostfile(&hostfile, "node1\n").unwrap();
        let mut launcher = shell(
            "echo -------- >&2; for i in $(seq 30); do echo line $i >&2; done; echo ssh: no route to node3 >&2; exit 255",
            hostfile.clone(),
        );
        let words = end(&mut launcher);
        assert!(words.starts_with("mpirun exited with code 255"), "{words}");
        assert!(
            words.ends_with("line 30 | ssh: no route to node3"),
            "{words}"
        );
        assert!(!words.contains("line 5 "), "{words}");
        assert!(hostfile.exists());
        drop(launcher);
        assert!(!hostfile.exists());
    }

    #[test]
    fn a_launcher_that_is_asked_to_end_can_and_one_that_does_not_is_killed() {
        let mut launcher = shell(
            "trap 'exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done",
            PathBuf::new(),
        );
        while launcher.last.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        }
        launcher.terminate();
        assert!(launcher.wait(Duration::from_secs(60)));
        assert!(end(&mut launcher).contains("exited with code 7"));
        assert!(launcher.wait(Duration::ZERO));

        let mut launcher = shell("exec sleep 600", PathBuf::new());
        assert!(!launcher.wait(Duration::from_millis(5)));
        launcher.kill();
        assert!(launcher.wait(Duration::from_secs(60)));
        assert!(end(&mut launcher).contains("ended by signal 9"));
    }
}
