//! The threads of this process: which are the library's own, and which would be lost by a capture.
//!
//! An image holds one stack, the rank's. Any other thread that a program started has a stack that is
//! not captured, so a capture is refused while one lives (design 3).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::context::{self, in_process};

/// Thread ids of the library's threads, the main thread included.
static LIBRARY_THREADS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Between two looks for threads that may be about to end.
const LOOK_WAIT: Duration = Duration::from_micros(500);
/// How often is looked.
const LOOKS: u32 = 200;

/// `PF_EXITING` of the kernel: the thread runs no code of the program any more.
const EXITING: u64 = 0x4;

/// Threads of the library that have been started and have not said yet that they are.
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// Starts a thread of the library: it allocates in process memory all its life, and captures know it.
///
/// Returns when the thread has said what it is. Until then nobody can tell it from a thread of a rank, and the standard
/// library allocates in it (its name, for one). So no other thread allocates in the memory of a process's only rank
/// meanwhile: this is not for moments at which a rank's own threads may be running.
///
/// # Errors
/// When the system can't start a thread.
pub fn library_thread<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    in_process(|| {
        let (registered, wait) = mpsc::channel::<()>();
        let _starting = Starting::begin();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _registered = register_library_thread();
                drop(registered);
                f()
            })?;
        // Nothing is sent: the other end is gone, as soon as it is registered.
        let _: Result<(), _> = wait.recv();
        Ok(thread)
    })
}

/// While there is one, no thread counts as one of a rank's for want of a mark.
struct Starting;

impl Starting {
    fn begin() -> Self {
        STARTING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        STARTING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a thread without a mark may be one of the library's that has just been started.
#[inline]
pub(crate) fn are_starting() -> bool {
    STARTING.load(Ordering::SeqCst) > 0
}

/// How much a thread of the library may stand in the ranks' way where there are not processors enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Ranks may have to wait for it soon.
    Background,
    /// Ranks wait for it only when memory runs out.
    Spare,
}

/// Sets the calling thread's share of the processors (its nice value, setpriority(2), which Linux has for each
/// thread).
pub fn set_urgency(urgency: Urgency) {
    let nice = match urgency {
        Urgency::Background => 5,
        Urgency::Spare => 10,
    };
    // SAFETY: no pointers. Lowering the priority is always allowed.
    unsafe {
        let thread = libc::gettid();
        libc::setpriority(libc::PRIO_PROCESS, thread.unsigned_abs(), nice);
    }
}

/// Makes the calling thread one of the library's, until the guard is dropped. For threads that
/// something else started, such as an MPI library's or a logger's.
#[must_use]
pub fn register_library_thread() -> LibraryThread {
    context::mark_process();
    // SAFETY: gettid has no preconditions.
    let tid = unsafe { libc::gettid() };
    registered().insert(tid);
    LibraryThread { tid }
}

/// Makes all threads that this process has now the library's own: those that a communication library has started for
/// itself. To be called before any rank runs.
///
/// # Errors
/// When the threads can't be listed.
pub fn adopt_threads() -> io::Result<()> {
    let threads = fs::read_dir("/proc/self/task")?;
    for thread in threads {
        let name = thread?.file_name();
        registered().extend(name.to_str().and_then(|tid| tid.parse::<i32>().ok()));
    }
    Ok(())
}

/// See [`register_library_thread`].
#[derive(Debug)]
pub struct LibraryThread {
    tid: i32,
}

impl Drop for LibraryThread {
    fn drop(&mut self) {
        registered().remove(&self.tid);
    }
}

fn registered() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    LIBRARY_THREADS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The names of all live threads that are not the library's.
///
/// A scope may return a moment before its threads have ended, and a thread of the library starts a
/// moment before it is registered; so a thread that is found is looked for again, for a tenth of a second.
pub(crate) fn foreign_threads() -> io::Result<Vec<String>> {
    let mut found = list_foreign_threads()?;
    for _ in 1..LOOKS {
        if found.is_empty() {
            break;
        }
        thread::sleep(LOOK_WAIT);
        found = list_foreign_threads()?;
    }
    Ok(found)
}

fn list_foreign_threads() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let Some(tid) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else {
            continue;
        };
        if registered().contains(&tid) {
            continue;
        }
        // It may end between being listed and being read; then it is no obstacle.
        if let Ok(stat) = fs::read(entry.path().join("stat")) {
            let (name, exiting) = name_and_exiting(&String::from_utf8_lossy(&stat));
            if !exiting {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// A thread's name, and whether it is on its way out (joined already, maybe), from its `stat` file
/// (proc_pid_stat(5)): the second field, in parentheses, and the ninth.
fn name_and_exiting(stat: &str) -> (String, bool) {
    let name = stat
        .split_once('(')
        .and_then(|(_, rest)| rest.rsplit_once(')'));
    let Some((name, rest)) = name else {
        return (stat.trim().to_owned(), false);
    };
    let flags = rest.split_whitespace().nth(6);
    let flags: u64 = flags.and_then(|flags| flags.parse().ok()).unwrap_or(0);
    (name.to_owned(), flags & EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_there_when_adopted_are_the_librarys() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let name = "not-a-rank's";
        let waits = move || wait.recv().is_err();
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name(name.to_owned())
                .spawn_scoped(scope, waits)
                .unwrap();
            let is_foreign = || {
                let foreign = list_foreign_threads().unwrap();
                foreign.iter().any(|found| found == name)
            };
            while !is_foreign() {
                thread::yield_now();
            }
            adopt_threads().unwrap();
            assert!(!is_foreign());
            drop(go);
            assert!(thread.join().unwrap());
        });
    }

    #[test]
    fn a_name_may_hold_anything_and_flags_tell_who_is_leaving() {
        let live = "77 (a) (b) R 1 5875 5534 0 -1 4194368 89 0";
        assert_eq!(name_and_exiting(live), ("a) (b".to_owned(), false));
        let leaving = "77 (worker) R 1 5875 5534 0 -1 4194372 89 0";
        assert_eq!(name_and_exiting(leaving), ("worker".to_owned(), true));
        assert_eq!(name_and_exiting(""), (String::new(), false));
    }
}
