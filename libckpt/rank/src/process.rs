//! Small things that a process of the job does at its beginning and end.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Ends the process at once: no destructor and no exit handler runs, nothing is flushed. For a thread
/// that must end the process while others are in the middle of something (`_exit(2)`).
pub fn end_now(code: i32) -> ! {
    // SAFETY: `_exit` may be called by any thread at any time; it takes nothing and does not return.
    unsafe { libc::_exit(code) }
}

/// Takes over a descriptor that was inherited under a number told by the environment, and keeps it from
/// being inherited further.
///
/// # Errors
/// When no descriptor has this number.
pub fn inherited_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD with FD_CLOEXEC changes a flag of the descriptor and fails where there is none.
    let outcome = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if outcome == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and whoever handed its number over left it to this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
