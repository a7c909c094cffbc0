//! The program at the same addresses in every process (design 3.3).
//!
//! Without randomisation, the kernel derives the address of the first library from the stack limit, and
//! all others from it. So the limit is fixed first; both take effect at an exec.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::StartupError;

/// The soft stack limit of a process of the job, in bytes. It is the usual default, so that nothing
/// changes for most.
pub(super) const STACK_LIMIT_BYTES: u64 = 8 << 20;

/// Set in the environment of the second start, so that there is no third.
const GUARD: &str = "CKPT_ADDRESSES_FIXED";

/// What lies at the same address in every process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fixed {
    /// Everything.
    All,
    /// The program, which is linked for a fixed address; not its libraries, nor thread-locals.
    Program,
}

/// Returns where the program runs at fixed addresses; starts it again where it does not.
pub(super) fn fix() -> Result<Fixed, StartupError> {
    let second_start = std::env::var_os(GUARD).is_some();
    if second_start {
        // SAFETY: no other thread exists yet (contract of `prepare`).
        unsafe { std::env::remove_var(GUARD) };
        set_process_name();
    }
    let limit_changed = fix_stack_limit()?;
    let persona = match personality(PERSONA_ASK) {
        Ok(persona) => persona,
        Err(source) => return excuse_fixed_program(source),
    };
    if persona & libc::ADDR_NO_RANDOMIZE != 0 && !limit_changed {
        return Ok(Fixed::All);
    }
    if second_start {
        return Err(StartupError::StillRandomised);
    }
    match personality((persona | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) {
        Ok(_) => start_again(),
        Err(source) => excuse_fixed_program(source),
    }
}

/// The argument of personality(2) that changes nothing.
const PERSONA_ASK: libc::c_ulong = 0xffff_ffff;

/// Where randomisation can't be switched off, a program at a fixed address may still do. Whether its
/// libraries lie where they did is checked when the process joins; a static one has none.
fn excuse_fixed_program(source: io::Error) -> Result<Fixed, StartupError> {
    if is_position_independent() {
        Err(StartupError::Randomised { source })
    } else {
        Ok(Fixed::Program)
    }
}

fn personality(persona: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: personality has no preconditions.
    let before = unsafe { libc::personality(persona) };
    if before == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(before)
    }
}

/// Sets the soft stack limit; tells whether it was another one.
fn fix_stack_limit() -> Result<bool, StartupError> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let error = |wanted| StartupError::StackLimit {
        wanted,
        source: io::Error::last_os_error(),
    };
    // SAFETY: writes into a local.
    if unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) } != 0 {
        return Err(error(STACK_LIMIT_BYTES));
    }
    // A hard limit below is as good: the kernel's arithmetic has a floor far above.
    let wanted = STACK_LIMIT_BYTES.min(limit.rlim_max);
    if limit.rlim_cur == wanted {
        return Ok(false);
    }
    limit.rlim_cur = wanted;
    // SAFETY: reads a local.
    if unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limit) } != 0 {
        return Err(error(wanted));
    }
    Ok(true)
}

/// Replaces the process by the same program with the same arguments.
fn start_again() -> Result<Fixed, StartupError> {
    // SAFETY: no other thread exists yet (contract of `prepare`).
    unsafe { std::env::set_var(GUARD, "1") };
    let arguments: Vec<CString> = std::env::args_os()
        .map(|argument| CString::new(argument.into_vec()).expect("arguments came from C strings"))
        .collect();
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: a C string, and an array of C strings that ends with a null.
    unsafe { libc::execv(c"/proc/self/exe".as_ptr(), pointers.as_ptr()) };
    Err(StartupError::Exec {
        source: io::Error::last_os_error(),
    })
}

/// The kernel names a process after the file it was started from, which was "exe".
fn set_process_name() {
    let Some(name) = std::env::args_os().next() else {
        return;
    };
    let name = std::path::Path::new(&name)
        .file_name()
        .and_then(|name| CString::new(name.as_bytes()).ok());
    if let Some(name) = name {
        // SAFETY: PR_SET_NAME reads a C string, of which it keeps 15 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Was the program loaded anywhere but where its file says?
fn is_position_independent() -> bool {
    crate::identity::program_load_bias() != 0
}
