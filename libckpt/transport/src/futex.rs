//! Sleeping on a word, and waking who sleeps on it: `futex(2)`.
//!
//! The words may lie in memory that processes share, so the private variants are not used.

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `*word` is `expected`, at most `longest`. May return early for no reason at all.
pub(crate) fn wait(word: &AtomicU32, expected: u32, longest: Duration) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(longest.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: longest.subsec_nanos().into(),
    };
    // SAFETY: FUTEX_WAIT reads the word and the timeout, both alive and aligned for the whole call, and
    // writes nothing. Every outcome (woken, value changed, timed out, interrupted) means "look again".
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            ptr::from_ref(&timeout),
        );
    }
}

/// Wakes the thread that sleeps on `word`, if one does.
pub(crate) fn wake_one(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE uses the address only as a name of the queue of sleepers.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1);
    }
}
