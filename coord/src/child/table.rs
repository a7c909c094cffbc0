//! The children that live.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use protocol::ids::Process;
use protocol::recovery::Exit;

/// One child and the descriptor that becomes readable when it ends.
#[derive(Debug)]
struct Running {
    child: Child,
    pidfd: OwnedFd,
}

/// The children of one start of the job, by process number.
///
/// Dropping the table kills and reaps those that still live.
#[derive(Debug, Default)]
pub struct Children {
    running: Vec<Option<Running>>,
    pids: Vec<u32>,
}

impl Children {
    /// Nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next process's child.
    ///
    /// # Errors
    /// When the kernel gives no pidfd; the child is killed then.
    pub fn push(&mut self, mut child: Child) -> io::Result<()> {
        let pid = child.id();
        let pidfd = match open_pidfd(pid) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                kill_group(pid);
                child.wait()?;
                return Err(error);
            }
        };
        self.pids.push(pid);
        self.running.push(Some(Running { child, pidfd }));
        Ok(())
    }

    /// How many were started.
    #[must_use]
    pub fn started(&self) -> u32 {
        u32::try_from(self.pids.len()).unwrap_or(u32::MAX)
    }

    /// The process id of each, also of those that have ended.
    #[must_use]
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// The descriptor that becomes readable when the process ends, while it has not been reaped.
    #[must_use]
    pub fn pidfd(&self, process: Process) -> Option<BorrowedFd<'_>> {
        let running = self.running.get(process.index())?.as_ref()?;
        Some(running.pidfd.as_fd())
    }

    /// Reaps a process that has ended; `None` while it lives, or when it was reaped before.
    ///
    /// # Errors
    /// When the system does not let us wait for our own child.
    pub fn reap(&mut self, process: Process) -> io::Result<Option<Exit>> {
        let Some(slot) = self.running.get_mut(process.index()) else {
            return Ok(None);
        };
        let Some(running) = slot else { return Ok(None) };
        let pid = Pid::from_raw(i32::try_from(running.child.id()).unwrap_or(i32::MAX));
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if waitid(Id::Pid(pid), look)? == WaitStatus::StillAlive {
            return Ok(None);
        }
        // What it started itself must not outlive it. Killed before the process is reaped: until then
        // nobody else can have its number.
        kill_group(running.child.id());
        let status = running.child.wait()?;
        *slot = None;
        Ok(Some(exit(status)))
    }

    /// Kills all that live, each with its whole process group. They are still to be reaped.
    pub fn kill_all(&self) {
        for running in self.running.iter().flatten() {
            kill_group(running.child.id());
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.kill_all();
        for running in self.running.iter_mut().flatten() {
            // A child that can't be waited for is none of ours any more.
            let _ = running.child.wait();
        }
    }
}

fn exit(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Signal(0),
    }
}

/// Kills a process group whose leader is an unreaped child of ours. An error means that there is nobody
/// left in it.
fn kill_group(leader: u32) {
    if let Ok(leader) = i32::try_from(leader) {
        let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
    }
}

/// Kills a process by its descriptor, whatever number it had. An error means that it has ended, or changed its user.
pub(super) fn kill_by_pidfd(pidfd: &OwnedFd) {
    use std::os::fd::AsRawFd as _;
    // SAFETY: pidfd_send_signal takes a descriptor, which is open, a number, a null pointer for "no more to say" and no
    // flags; neither the standard library nor nix offers it.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        );
    }
}

pub(super) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours; neither the standard library
    // nor nix offers it.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
