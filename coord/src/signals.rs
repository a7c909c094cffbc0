//! SIGINT, SIGTERM, SIGHUP and SIGUSR1 as something to read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that ask a job to stop. While this lives they are blocked in the thread that made it, and in
/// the threads which that one starts.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Takes the signals over. SIGHUP stays ignored where it was (`nohup`).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take_over() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        // What batch systems are told to send some time before the end (`--signal=B:USR1@120`).
        set.add(Signal::SIGUSR1);
        if !is_ignored(Signal::SIGHUP)? {
            set.add(Signal::SIGHUP);
        }
        let before = SigSet::thread_get_mask()?;
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd, before })
    }

    /// The next signal that has come.
    pub fn next(&mut self) -> Option<Signal> {
        let info = self.fd.read_signal().ok()??;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

fn is_ignored(signal: Signal) -> io::Result<bool> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: for a moment the default action is set and then the former one again; neither is a handler of
    // ours. There is no safe way to ask for a signal's action.
    unsafe {
        let before = sigaction(signal, &default)?;
        sigaction(signal, &before)?;
        Ok(matches!(before.handler(), SigHandler::SigIgn))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // The mask was valid before, so it is again.
        let _ = self.before.thread_set_mask();
    }
}
