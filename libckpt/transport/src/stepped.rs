//! For tests: a process that is stopped after each of its instructions in turn, so that something else
//! can happen at exactly that moment.

use std::fs;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Ends the test program by SIGALRM if a test hangs.
pub(crate) fn watchdog() {
    // SAFETY: no handler is involved; the default action ends the process.
    unsafe { libc::alarm(120) };
}

/// One moment and what came of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// `meanwhile` ran while `act` was under way, and `act` returned this afterwards.
    During(bool),
    /// `act` had gone to sleep in the kernel by then; `meanwhile` ran, and `act` returned this.
    Asleep(bool),
    /// `act` was over by then, and `meanwhile` did not run.
    Over,
    /// `act` never returned after `meanwhile`.
    Hung,
}

/// Runs `act` in a fork of this process, stops it after so many instructions, runs `meanwhile` here,
/// and lets `act` go on. `act` must neither allocate nor take locks.
pub(crate) fn interrupt(
    instructions: u32,
    act: impl FnOnce() -> bool,
    meanwhile: impl FnOnce(),
) -> Outcome {
    // SAFETY: the child makes system calls and runs `act`, which takes no lock that another thread
    // of ours may hold at this moment, and ends without any clean-up.
    let child = match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let traced = ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP));
            let code = if traced.is_ok() { i32::from(act()) } else { 2 };
            // SAFETY: nothing is left to do.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => child,
    };
    assert_eq!(waited(child), WaitStatus::Stopped(child, Signal::SIGSTOP));
    let mut asleep = false;
    for _ in 0..instructions {
        ptrace::step(child, None).expect("step");
        match stopped_or_asleep(child) {
            Some(WaitStatus::Stopped(_, Signal::SIGTRAP)) => {}
            Some(WaitStatus::Exited(..)) => return Outcome::Over,
            Some(other) => panic!("the stepped process ended with {other:?}"),
            None => {
                asleep = true;
                break;
            }
        }
    }
    meanwhile();
    if asleep {
        // The step is still under way, inside the system call.
        match within_seconds(child) {
            Some(status) => assert_eq!(status, WaitStatus::Stopped(child, Signal::SIGTRAP)),
            None => return hung(child),
        }
    }
    ptrace::cont(child, None).expect("go on");
    match within_seconds(child) {
        Some(WaitStatus::Exited(_, code @ (0 | 1))) if asleep => Outcome::Asleep(code == 1),
        Some(WaitStatus::Exited(_, code @ (0 | 1))) => Outcome::During(code == 1),
        Some(other) => panic!("the stepped process ended with {other:?}"),
        None => hung(child),
    }
}

fn waited(child: Pid) -> WaitStatus {
    waitpid(child, None).expect("wait")
}

fn waited_already(child: Pid) -> Option<WaitStatus> {
    let status = waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("wait");
    (status != WaitStatus::StillAlive).then_some(status)
}

/// How a step ended, or that it is a system call that sleeps.
fn stopped_or_asleep(child: Pid) -> Option<WaitStatus> {
    loop {
        if let Some(status) = waited_already(child) {
            return Some(status);
        }
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).expect("/proc");
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().next());
        if state == Some("S") {
            return None;
        }
        std::thread::yield_now();
    }
}

/// What becomes of the process within a time in which it would be done a thousand times over.
fn within_seconds(child: Pid) -> Option<WaitStatus> {
    (0..10_000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_micros(500));
        waited_already(child)
    })
}

fn hung(child: Pid) -> Outcome {
    nix::sys::signal::kill(child, Signal::SIGKILL).expect("kill");
    while !matches!(waited(child), WaitStatus::Signaled(..)) {}
    Outcome::Hung
}
