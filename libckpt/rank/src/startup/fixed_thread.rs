//! A thread whose thread-local memory lies at the same address in every process.
//!
//! A compiler may keep the address of a thread-local in a register while a rank is suspended, so it
//! must be the same after a restore. Where the kernel refuses to switch randomisation off, a program at
//! a fixed address still has its main thread's thread-locals somewhere else each time. A thread on
//! memory of our choice has them at its upper end (that is where glibc puts them, pthread_attr_setstack(3)).

use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;

use protocol::slots::ORIGIN;

use super::StartupError;

/// The thread's stack, in bytes: what a main thread usually has.
const STACK_BYTES: usize = 8 << 20;

/// What is left free below the first slot, in bytes.
const GAP_BYTES: usize = 16 << 20;

/// Where the stack begins.
const STACK_ADDRESS: usize = ORIGIN as usize - GAP_BYTES - STACK_BYTES;

/// Below it, not accessible.
const GUARD_BYTES: usize = 1 << 20;

/// A closure on its way to the thread, and its result on the way back.
struct Errand<F, R> {
    closure: Option<F>,
    result: Option<std::thread::Result<R>>,
}

/// Runs `f` on a new thread at the fixed address, and waits for it. A panic goes on in the caller.
pub(super) fn run<F, R>(f: F) -> Result<R, StartupError>
where
    F: FnOnce() -> R + Send,
    R: Send,
{
    extern "C" fn entry<F: FnOnce() -> R, R>(errand: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: `run` waits for this thread, and does not touch the errand before its end.
        let errand = unsafe { &mut *errand.cast::<Errand<F, R>>() };
        if let Some(f) = errand.closure.take() {
            errand.result = Some(catch_unwind(AssertUnwindSafe(f)));
        }
        ptr::null_mut()
    }
    let error = |source| StartupError::FixedThread { source };
    let stack = map_stack().map_err(error)?;
    let mut errand = Errand {
        closure: Some(f),
        result: None,
    };
    // SAFETY: the attributes are initialised before they are used; the stack is mapped and used by
    // nobody else, and unmapped after the thread's end; the errand outlives the thread, which is joined.
    unsafe {
        let mut attributes = MaybeUninit::uninit();
        check(libc::pthread_attr_init(attributes.as_mut_ptr())).map_err(error)?;
        let set = check(libc::pthread_attr_setstack(
            attributes.as_mut_ptr(),
            stack,
            STACK_BYTES,
        ));
        let mut thread = MaybeUninit::uninit();
        let created = set.and_then(|()| {
            check(libc::pthread_create(
                thread.as_mut_ptr(),
                attributes.as_ptr(),
                entry::<F, R>,
                (&raw mut errand).cast(),
            ))
        });
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        created.map_err(error)?;
        check(libc::pthread_join(thread.assume_init(), ptr::null_mut())).map_err(error)?;
        libc::munmap(stack.byte_sub(GUARD_BYTES), GUARD_BYTES + STACK_BYTES);
    }
    match errand.result {
        Some(Ok(result)) => Ok(result),
        Some(Err(payload)) => resume_unwind(payload),
        None => Err(error(io::Error::other("the thread ended early"))),
    }
}

fn map_stack() -> io::Result<*mut libc::c_void> {
    let start = STACK_ADDRESS - GUARD_BYTES;
    // SAFETY: MAP_FIXED_NOREPLACE puts nothing over an existing mapping; the guard is the lowest part of
    // the new one.
    unsafe {
        let at = libc::mmap(
            ptr::without_provenance_mut(start),
            GUARD_BYTES + STACK_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_STACK
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        );
        if at == libc::MAP_FAILED || libc::mprotect(at, GUARD_BYTES, libc::PROT_NONE) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(at.byte_add(GUARD_BYTES))
    }
}

/// The pthread functions return their error.
fn check(answer: i32) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(answer))
    }
}
