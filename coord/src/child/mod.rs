//! The processes of a job as children of this one.
//!
//! Promises kept here: a child is killed by the kernel when the thread that started it ends
//! (`PDEATHSIG`, so start children from a thread that lasts as long as the job); it runs with address
//! randomisation off and a fixed stack limit, so that libckpt need not start it a second time; it has a
//! process group of its own, so that Ctrl-C in the terminal reaches `ckpt` only; its end is seen at once
//! (`pidfd`); and no end is ever reported for a child that has not been reaped.
//!
//! [`spawn`] starts a child, [`table`] keeps those that live, [`label`] marks their output lines. [`launcher`] is the one
//! child that starts processes elsewhere; [`patience`] runs short commands that may hang.

mod brood;
pub mod label;
pub mod launcher;
pub mod patience;
pub mod spawn;
pub mod table;

use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends another coordinator of this host that hangs; its children end with it. Only a `ckpt` is ended.
///
/// # Errors
/// When there is no such process, or it is none of ours to end.
pub fn kill_coordinator(pid: i32) -> io::Result<()> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
    let own = std::fs::read_to_string("/proc/self/comm")?;
    if name != own {
        let text = format!("process {pid} is {}, and no coordinator", name.trim());
        return Err(io::Error::other(text));
    }
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    while lives(pid) {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether a process is there, and not just waiting to be reaped by somebody (proc_pid_stat(5)).
fn lives(pid: impl std::fmt::Display) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}
