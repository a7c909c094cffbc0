//! Process-wide values that std makes when they are first used.
//!
//! If a rank were the first, they would be made in its slot: lost to the process when the rank
//! moves, and pointing nowhere in another process. So each is used once here, in process context.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::panic;
use std::thread;

use crate::context::in_process;

/// Uses those of the process. The caller is in process context.
pub(super) fn warm_process() {
    // The buffers of the standard streams. Their sizes never change later.
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    drop(io::stdin());
    wrap_panic_hook();
}

/// Uses those of the thread that runs ranks. The caller is in process context.
pub(super) fn warm_thread() {
    // The thread's handle.
    drop(thread::current());
    // The thread's hash keys.
    let _ = RandomState::new().hash_one(0_u8);
}

/// What is made while a panic is reported (the symbol tables of a backtrace) belongs to the process:
/// a rank may catch its panic and go on.
fn wrap_panic_hook() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| in_process(|| hook(info))));
}
