//! A short command whose output is wanted, and that may hang.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; `None` if it was killed because it took too long, or by a signal.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

impl Ended {
    /// The last line it wrote, of errors if there are any.
    #[must_use]
    pub fn last_words(&self) -> &str {
        let last =
            |text: &'_ str| -> Option<usize> { text.trim_end().rfind('\n').map(|at| at + 1) };
        let text = if self.err.trim().is_empty() {
            self.out.trim_end()
        } else {
            self.err.trim_end()
        };
        &text[last(text).unwrap_or(0)..]
    }
}

/// How often it is looked whether the command has ended.
const TICK: Duration = Duration::from_millis(5);

/// How much of each stream is kept, in bytes.
const OUTPUT_BYTES_MAX: u64 = 256 << 10;

/// Runs a command for so long at most; then it is killed, with all that it started.
///
/// # Errors
/// When it can't be run.
pub fn run(command: &mut Command, patience: Duration) -> io::Result<Ended> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let began = Instant::now();
    std::thread::scope(|scope| {
        let out = scope.spawn(|| read(out));
        let err = scope.spawn(|| read(err));
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if began.elapsed() >= patience {
                break None;
            }
            std::thread::sleep(TICK);
        };
        // What it left behind would hold the pipes open. Nobody else has the number: its group is not empty, or the number
        // was not given away in this moment.
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let _ = killpg(group, Signal::SIGKILL);
        let code = match status {
            Some(status) => status.code(),
            None => {
                child.wait()?;
                None
            }
        };
        Ok(Ended {
            code,
            out: out.join().unwrap_or_default(),
            err: err.join().unwrap_or_default(),
        })
    })
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What can't be read is not there.
        let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(&mut command, patience).unwrap()
    }

    #[test]
    fn what_a_command_says_is_kept() {
        let ended = shell(
            "echo one; echo two >&2; echo three >&2; exit 3",
            Duration::from_secs(60),
        );
        assert_eq!(ended.code, Some(3));
        assert_eq!(ended.out, "one\n");
        assert_eq!(ended.last_words(), "three");
        assert_eq!(
            shell("echo just this", Duration::from_secs(60)).last_words(),
            "just this"
        );
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let ended = shell("sleep 600 & echo $!; wait", Duration::from_millis(300));
        assert_eq!(ended.code, None);
        let child = ended.out.trim();
        // A signal is sent in a moment; that a process which nobody waits for has ended shows some time later.
        let killed = Instant::now();
        while crate::child::lives(child) {
            assert!(
                killed.elapsed() < Duration::from_secs(60),
                "{child} goes on"
            );
            std::thread::sleep(TICK);
        }
    }
}
