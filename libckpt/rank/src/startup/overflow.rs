//! A rank's stack overflow, told in words.
//!
//! A stack that overflows runs into the guard of its slot. The handler runs on a stack of its own, says
//! which rank it was and what to do, and ends the process. It only uses what is allowed in a signal
//! handler: atomics, thread-locals without destructors, `write`, `_exit`.

use std::cell::UnsafeCell;
use std::fmt::{self, Write};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::control::exit;

use super::StartupError;
use crate::context::current_rank;
use crate::hosted;

/// Bytes of the handler's stack: the largest processor state is about 11 KiB.
const HANDLER_STACK_BYTES: usize = 64 << 10;

/// What handled these signals before.
struct Former(UnsafeCell<[MaybeUninit<libc::sigaction>; 2]>);

// SAFETY: written once by `install`, before the handler that reads it exists.
unsafe impl Sync for Former {}

static FORMER: Former = Former(UnsafeCell::new([MaybeUninit::zeroed(); 2]));

static INSTALLED: AtomicBool = AtomicBool::new(false);

const SIGNALS: [i32; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Installs the handler, for the thread that calls (the one that runs ranks).
pub(super) fn install() -> Result<(), StartupError> {
    let error = || StartupError::FaultHandler {
        source: io::Error::last_os_error(),
    };
    // SAFETY: a new anonymous mapping, which becomes this thread's signal stack for good.
    unsafe {
        let memory = libc::mmap(
            ptr::null_mut(),
            HANDLER_STACK_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
            -1,
            0,
        );
        if memory == libc::MAP_FAILED {
            return Err(error());
        }
        let stack = libc::stack_t {
            ss_sp: memory,
            ss_flags: 0,
            ss_size: HANDLER_STACK_BYTES,
        };
        if libc::sigaltstack(&raw const stack, ptr::null_mut()) != 0 {
            return Err(error());
        }
    }
    // Once: at a second time, what handled the signals before would be ourselves.
    if INSTALLED.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    for (signal, index) in SIGNALS.into_iter().zip(0..) {
        // SAFETY: an all-zero sigaction is valid; handler and flags agree. FORMER is not read before
        // the handler is in place, which happens in the same call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let former = (*FORMER.0.get())[index].as_mut_ptr();
            if libc::sigaction(signal, ptr::null(), former) != 0
                || libc::sigaction(signal, &raw const action, ptr::null_mut()) != 0
            {
                return Err(error());
            }
        }
    }
    Ok(())
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    if let Some(rank) = hosted::stack_overflow_at(address)
        && current_rank() == Some(rank)
    {
        let mut line = Line::new();
        let _ = writeln!(
            line,
            "libckpt: {rank}: stack overflow: its stack of {} bytes is used up; use --stack-size to \
             give ranks a larger one",
            hosted::stack_bytes()
        );
        line.print();
        // SAFETY: _exit is allowed in a signal handler.
        unsafe { libc::_exit(exit::STACK_OVERFLOW) };
    }
    pass_on(signal, info, context);
}

/// Does what would have been done without us: std's handler knows the stacks of threads, the default
/// action ends the process.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = usize::from(signal != SIGNALS[0]);
    // SAFETY: written by `install` before this handler was in place, and not since.
    let former = unsafe { (*FORMER.0.get())[index].assume_init_ref() };
    match former.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the signal comes again when the handler returns to the faulting instruction.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if former.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the flag says that the handler takes these three arguments.
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without the flag it takes the signal's number.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// A line of text without an allocation.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            bytes: [0; 256],
            used: 0,
        }
    }

    fn print(&self) {
        // SAFETY: the bytes are ours. A failure has nobody to be told to.
        unsafe { libc::write(2, self.bytes.as_ptr().cast(), self.used) };
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.used..];
        let taken = text.len().min(room.len());
        room[..taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.used += taken;
        Ok(())
    }
}
