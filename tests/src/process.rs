//! Processes of a job, found and killed by way of `/proc`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The environment variable that marks every process of a bed's jobs, as they inherit it.
pub const MARK: &str = "CKPT_TESTS_MARK";

/// A stopped process's threads stop as soon as they leave the kernel, which may take a disk's time.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Microseconds of `CLOCK_MONOTONIC`: the clock of the event log.
#[must_use]
pub fn now_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_or(0, |time| {
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
        })
}

/// Sends a signal.
///
/// # Errors
/// When there is no such process, or it may not be signalled.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).context("a process id")?;
    kill(Pid::from_raw(raw), signal).with_context(|| format!("send {signal} to process {pid}"))
}

/// Stops a process with `SIGSTOP`, and waits until none of its threads runs.
///
/// # Errors
/// When it is gone, may not be signalled, or goes on.
pub fn stop(pid: u32) -> Result<()> {
    send(pid, Signal::SIGSTOP)?;
    let tasks = format!("/proc/{pid}/task");
    let start = Instant::now();
    loop {
        let mut running = 0;
        for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
            let stat = stat_in(&task?.path());
            running += usize::from(stat.is_some_and(|stat| stat.state != 'T'));
        }
        if running == 0 {
            return Ok(());
        }
        ensure!(
            start.elapsed() < STOP_LIMIT,
            "{running} threads of {} go on after SIGSTOP",
            describe(pid)
        );
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// What `/proc/PID/stat` tells of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `T`, `Z`...
    pub state: char,
    /// Its parent.
    pub parent: u32,
}

/// Looks at a process; none if it is gone.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    stat_in(&Path::new("/proc").join(pid.to_string()))
}

/// Looks at a process or a thread by its folder.
fn stat_in(folder: &Path) -> Option<Stat> {
    let text = fs::read_to_string(folder.join("stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

/// Whether a process still runs (a zombie does not).
#[must_use]
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

/// The living processes that carry a mark, without the caller.
#[must_use]
pub fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != std::process::id())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                environ
                    .split(|&byte| byte == 0)
                    .any(|variable| variable == wanted.as_bytes())
            })
        })
        .filter(|&pid| alive(pid))
        .collect()
}

/// Waits until no process with the mark lives, and tells how long that took.
///
/// # Errors
/// When some still live at the end of `patience`; names them.
pub fn wait_until_gone(mark: &str, patience: Duration) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let left = marked(mark);
        if left.is_empty() {
            return Ok(start.elapsed());
        }
        if start.elapsed() > patience {
            let names: Vec<_> = left.iter().map(|&pid| describe(pid)).collect();
            anyhow::bail!(
                "processes of the job still live after {patience:?}: {}",
                names.join(", ")
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The words of a process's command line; none if it is gone or a thread of the kernel.
#[must_use]
pub fn command(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let words: Vec<_> = text
        .trim_end_matches('\0')
        .split('\0')
        .map(str::to_owned)
        .collect();
    (!bytes.is_empty()).then_some(words)
}

/// The living children of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&child| stat(child).is_some_and(|stat| stat.parent == pid && stat.state != 'Z'))
        .collect()
}

/// A process in words: its id, state and command.
#[must_use]
pub fn describe(pid: u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let state = stat(pid).map_or('-', |stat| stat.state);
    format!("{pid} ({state}) {}", command.trim())
}

/// Kills every process with the mark; for the end of a test that went wrong.
pub fn kill_marked(mark: &str) {
    // A process that starts another between two looks is seen by the next one.
    for _ in 0..100 {
        let left = marked(mark);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = send(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Files of a job that are still in shared memory.
#[must_use]
pub fn left_in_shared_memory() -> Vec<String> {
    fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains("ckpt"))
        .collect()
}
