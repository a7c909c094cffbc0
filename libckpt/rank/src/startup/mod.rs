//! What a process does once, at the start of its main thread, before anything else: [`run`].
//!
//! - `addresses`: the program runs at fixed addresses, by one re-exec where needed.
//! - `fixed_thread`: a thread with thread-locals at a fixed address, where the kernel refuses.
//! - `warm`: process-wide lazies of std are made in process memory, before any rank can.
//! - `overflow`: the fault handler that knows a rank's guard.

mod addresses;
mod fixed_thread;
mod overflow;
mod warm;

use std::io;

use self::addresses::Fixed;
use crate::context::{self, CONTEXT, Mark, in_process};
use crate::layout::PAGE_BYTES;
use crate::threads;

/// Why a process can't host ranks.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The kernel refuses to switch address randomisation off.
    #[error(
        "address randomisation can't be switched off (personality: {source}), and this program is \
         position-independent, so ranks could not be restored in another process; allow the \
         personality system call (containers: a seccomp profile that permits ADDR_NO_RANDOMIZE), or \
         link the program statically for a fixed address \
         (-C relocation-model=static -C target-feature=+crt-static)"
    )]
    Randomised {
        /// What the kernel says.
        source: io::Error,
    },
    /// The re-exec came back with randomisation still on.
    #[error(
        "address randomisation is still on after the program started itself again without; \
         something between (a wrapper that this program is run by?) switches it on"
    )]
    StillRandomised,
    /// The stack limit, on which the addresses of libraries depend, can't be fixed.
    #[error("the stack limit can't be set to {wanted} bytes (setrlimit: {source})")]
    StackLimit {
        /// The limit wanted.
        wanted: u64,
        /// What the kernel says.
        source: io::Error,
    },
    /// The program could not start itself again.
    #[error(
        "the program can't start itself again at fixed addresses (exec of /proc/self/exe: {source})"
    )]
    Exec {
        /// What the kernel says.
        source: io::Error,
    },
    /// The machine has pages of another size.
    #[error("pages of {found} bytes are not supported, only of {PAGE_BYTES}")]
    PageSize {
        /// The machine's page size.
        found: i64,
    },
    /// The thread for ranks can't be started at its fixed address.
    #[error("a thread with memory at a fixed address can't be started ({source})")]
    FixedThread {
        /// What the system says.
        source: io::Error,
    },
    /// The global allocator is not [`Allocator`](crate::Allocator).
    #[error(
        "the program's global allocator is not libckpt's, so what a rank allocates would not be part \
         of its image; remove the program's own #[global_allocator]"
    )]
    ForeignAllocator,
    /// The fault handler can't be installed.
    #[error("the handler for stack overflows can't be installed ({source})")]
    FaultHandler {
        /// What the kernel says.
        source: io::Error,
    },
}

/// Prepares the process for hosting ranks and runs `f` on the thread that is to make, resume and capture
/// them, in process context.
///
/// To be called first thing on the main thread, before other threads are started; it may start the
/// program again (once), so nothing should have been done before. `f` runs on the main thread, except
/// where the kernel does not let addresses be fixed and the program is linked statically for a fixed
/// address: then on a thread whose thread-locals are fixed, too.
///
/// # Errors
/// See [`StartupError`].
pub fn run<R: Send>(f: impl FnOnce() -> R + Send) -> Result<R, StartupError> {
    match prepare_process()? {
        Fixed::All => {
            prepare_thread()?;
            Ok(f())
        }
        Fixed::Program => {
            // The main thread only waits, and is nobody's whose stack would be missed.
            std::mem::forget(threads::register_library_thread());
            run_on_fixed_thread(f)
        }
    }
}

/// [`run`] for a caller that goes on on the main thread, whatever the kernel allows. Where it does not
/// let addresses be fixed, another process will have other ones, and ranks can't be restored there.
///
/// # Errors
/// See [`StartupError`].
pub fn prepare() -> Result<(), StartupError> {
    prepare_process()?;
    prepare_thread()
}

/// Runs `f` on a thread whose thread-locals lie at the same address in every process of this program,
/// prepared for hosting ranks. [`run`] does that where it is needed. The calling thread waits.
///
/// # Errors
/// The thread can't be started at its address.
pub fn run_on_fixed_thread<R: Send>(f: impl FnOnce() -> R + Send) -> Result<R, StartupError> {
    fixed_thread::run(|| {
        prepare_thread()?;
        Ok(f())
    })?
}

/// What is done once for the process.
fn prepare_process() -> Result<Fixed, StartupError> {
    check_page_size()?;
    let fixed = addresses::fix()?;
    check_allocator()?;
    in_process(warm::warm_process);
    allow_peers_to_read();
    Ok(fixed)
}

/// What is done for the thread that runs ranks.
fn prepare_thread() -> Result<(), StartupError> {
    context::mark_process();
    // The thread that runs ranks is no obstacle to their capture, and never ends.
    std::mem::forget(threads::register_library_thread());
    warm::warm_thread();
    overflow::install()
}

/// Has the kernel end this process with SIGKILL when the thread that started it ends. `parent` is the
/// process id that the parent had: `Ok(false)` says that it was gone before this call.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub fn die_with_parent(parent: u32) -> io::Result<bool> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: getppid has no preconditions.
    Ok(unsafe { libc::getppid() } as u32 == parent)
}

/// Lets any process of this user read this one's memory (large messages) where the Yama module would
/// only let a parent. Without Yama the call fails and changes nothing.
fn allow_peers_to_read() {
    // SAFETY: PR_SET_PTRACER takes a process id or PR_SET_PTRACER_ANY.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
}

fn check_page_size() -> Result<(), StartupError> {
    // SAFETY: sysconf has no preconditions.
    let found = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if found as usize == PAGE_BYTES {
        Ok(())
    } else {
        Err(StartupError::PageSize { found })
    }
}

/// Asks the global allocator for a block and sees whether the question reached ours.
fn check_allocator() -> Result<(), StartupError> {
    let before = CONTEXT.with(|context| context.mark.replace(Mark::Probe));
    drop(std::hint::black_box(Box::new(0_u64)));
    let after = CONTEXT.with(|context| context.mark.replace(before));
    if after == Mark::Probe {
        Err(StartupError::ForeignAllocator)
    } else {
        Ok(())
    }
}
