//! The threads of this process: which are the library's own, and which would be lost by a capture.
//!
//! An image holds one stack, the rank's. Any other thread that a program started has a stack that is
//! not captured, so a capture is refused while one lives (design 3).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::context::{self, in_process};

/// Thread ids of the library's threads, the main thread included.
static LIBRARY_THREADS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// How long a thread that has just been joined may still be listed by the kernel.
const EXIT_WAIT: Duration = Duration::from_micros(200);
/// How often it is looked for.
const EXIT_TRIES: u32 = 50;

/// Starts a thread of the library: it allocates in process memory all its life, and captures know it.
///
/// # Errors
/// When the system can't start a thread.
pub fn library_thread<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    in_process(|| {
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _registered = register_library_thread();
            f()
        })
    })
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
/// A thread that was joined a moment ago may still be listed by the kernel, so one that is found is
/// looked for again for a few milliseconds.
pub(crate) fn foreign_threads() -> io::Result<Vec<String>> {
    let mut found = list_foreign_threads()?;
    for _ in 0..EXIT_TRIES {
        if found.is_empty() {
            break;
        }
        thread::sleep(EXIT_WAIT);
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
        if let Ok(name) = fs::read_to_string(entry.path().join("comm")) {
            names.push(name.trim_end().to_owned());
        }
    }
    Ok(names)
}
