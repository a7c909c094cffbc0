//! The threads of this process: which are the library's own, and which would be lost by a capture.
//!
//! An image holds one stack, the rank's. Any other thread that a program started has a stack that is
//! not captured, so a capture is refused while one lives (design 3).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::context::{self, in_process};

/// The library's threads by id, the main thread included. Of one that nobody takes back, when it was started: one that
/// has done its work (until it has ended, which takes a while where processors are short, it is the library's still) and
/// one that was adopted. When it has ended its id may be another's.
static LIBRARY_THREADS: Mutex<BTreeMap<i32, Option<u64>>> = Mutex::new(BTreeMap::new());

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
                let mut own = register_library_thread();
                own.until_it_ends = true;
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
    let thread = own_id().unsigned_abs();
    // SAFETY: no pointers. Lowering the priority is always allowed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) };
}

/// Makes the calling thread one of the library's, until the guard is dropped. For threads that
/// something else started, such as an MPI library's or a logger's.
#[must_use]
pub fn register_library_thread() -> LibraryThread {
    context::mark_process();
    let tid = own_id();
    registered().insert(tid, None);
    LibraryThread {
        tid,
        until_it_ends: false,
    }
}

/// Makes all threads that this process has now the library's own: those that a communication library has started for
/// itself. To be called before any rank runs.
///
/// # Errors
/// When the threads can't be listed.
pub fn adopt_threads() -> io::Result<()> {
    // Held all the while: none that is listed is forgotten before it is put in.
    let mut registered = registered();
    for tid in thread_ids()? {
        if let Some(stat) = Stat::of(tid) {
            // One that is known already is known better.
            registered.entry(tid).or_insert(Some(stat.started));
        }
    }
    Ok(())
}

/// See [`register_library_thread`].
#[derive(Debug)]
pub struct LibraryThread {
    tid: i32,
    /// It ends with the guard, and is the library's to the last.
    until_it_ends: bool,
}

impl Drop for LibraryThread {
    fn drop(&mut self) {
        let ending = match self.until_it_ends {
            true => Stat::of(self.tid),
            false => None,
        };
        match ending {
            Some(stat) => registered().insert(self.tid, Some(stat.started)),
            None => registered().remove(&self.tid),
        };
    }
}

fn registered() -> std::sync::MutexGuard<'static, BTreeMap<i32, Option<u64>>> {
    LIBRARY_THREADS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The names of all live threads that are not the library's.
///
/// A scope may return a moment before its threads have ended, and a thread of the library starts a
/// moment before it is registered; so a thread that is found is looked for again, for a tenth of a second, and as long as
/// one of the library's is starting.
pub(crate) fn foreign_threads() -> io::Result<Vec<String>> {
    let mut looks = 1;
    loop {
        let starting = are_starting();
        let found = list_foreign_threads()?;
        if found.is_empty() || looks >= LOOKS && !starting {
            return Ok(found);
        }
        looks += 1;
        thread::sleep(LOOK_WAIT);
    }
}

fn list_foreign_threads() -> io::Result<Vec<String>> {
    // Those that have ended are forgotten, before another thread has their ids.
    registered().retain(|&tid, ending| {
        ending.is_none_or(|started| Stat::of(tid).is_some_and(|stat| stat.started == started))
    });
    let mut names = Vec::new();
    for tid in thread_ids()? {
        if registered().contains_key(&tid) {
            continue;
        }
        // It may end between being listed and being read; then it is no obstacle.
        if let Some(stat) = Stat::of(tid)
            && !stat.exiting
        {
            names.push(stat.name);
        }
    }
    Ok(names)
}

/// The ids of all threads that this process has.
fn thread_ids() -> io::Result<Vec<i32>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        ids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|id| id.parse::<i32>().ok()),
        );
    }
    Ok(ids)
}

/// The id of the calling thread.
fn own_id() -> i32 {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::gettid() }
}

/// What the system tells of a thread.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    /// It is on its way out, joined already, maybe.
    exiting: bool,
    /// When it was started, in ticks of the system's clock.
    started: u64,
}

impl Stat {
    /// Of a thread of this process; none if there is no such thread.
    fn of(tid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/self/task/{tid}/stat")).ok()?;
        Some(Self::read(&String::from_utf8_lossy(&stat)))
    }

    /// Of its file (proc_pid_stat(5)): the second field, in parentheses, the ninth and the twenty-second.
    fn read(stat: &str) -> Self {
        let name = stat
            .split_once('(')
            .and_then(|(_, rest)| rest.rsplit_once(')'));
        let (name, rest) = name.unwrap_or((stat.trim(), ""));
        let mut fields = rest.split_whitespace().skip(6);
        let mut number = |skipped| fields.nth(skipped)?.parse::<u64>().ok();
        Self {
            name: name.to_owned(),
            exiting: number(0).unwrap_or(0) & EXITING != 0,
            started: number(12).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever adopts threads adopts those of another test, too.
    static ADOPTS: Mutex<()> = Mutex::new(());

    fn adopts() -> std::sync::MutexGuard<'static, ()> {
        ADOPTS
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The thread has been told to end.
    fn ends_and_is_forgotten(tid: i32) {
        while Stat::of(tid).is_some() {
            thread::yield_now();
        }
        list_foreign_threads().unwrap();
        assert!(!registered().contains_key(&tid));
    }

    #[test]
    fn threads_that_are_there_when_adopted_are_the_librarys() {
        let _adopts = adopts();
        let (go, wait) = mpsc::channel::<()>();
        let name = "not-a-rank's";
        let (says, tid) = mpsc::channel();
        let waits = move || {
            says.send(own_id()).unwrap();
            wait.recv().is_err()
        };
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
        // Until it has ended: then its id may be that of a thread of a rank.
        ends_and_is_forgotten(tid.recv().unwrap());
    }

    #[test]
    fn a_thread_is_the_librarys_until_it_has_ended() {
        /// What the thread does last of all, after its work.
        struct Lingers(std::cell::RefCell<Option<mpsc::Receiver<()>>>);

        impl Drop for Lingers {
            fn drop(&mut self) {
                if let Some(wait) = self.0.take() {
                    let _: Result<(), _> = wait.recv();
                }
            }
        }

        thread_local! {
            static LINGERS: Lingers = const { Lingers(std::cell::RefCell::new(None)) };
        }

        let _adopts = adopts();
        let (go, wait) = mpsc::channel::<()>();
        let (says, tid) = mpsc::channel();
        let thread = library_thread("lingers", move || {
            LINGERS.with(|lingers| *lingers.0.borrow_mut() = Some(wait));
            says.send(own_id()).unwrap();
        });
        let thread = thread.unwrap();
        let tid = tid.recv().unwrap();
        let started = || registered().get(&tid).copied();
        assert!(started().is_some());
        while started() == Some(None) {
            thread::yield_now();
        }
        // It has done its work. That it is adopted, too, changes nothing.
        adopt_threads().unwrap();
        for _ in 0..10 {
            let foreign = list_foreign_threads().unwrap();
            assert!(!foreign.iter().any(|name| name == "lingers"), "{foreign:?}");
        }
        drop(go);
        thread.join().unwrap();
        ends_and_is_forgotten(tid);
    }

    #[test]
    fn a_name_may_hold_anything_and_flags_tell_who_is_leaving() {
        let rest = "1 5875 5534 0 -1 FLAGS 89 0 0 0 3 4 0 0 20 -5 1 0 90210 1234 5";
        let stat = |name: &str, flags| {
            let rest = rest.replace("FLAGS", flags);
            Stat::read(&format!("77 ({name}) R {rest}"))
        };
        let expected = |name: &str, exiting| Stat {
            name: name.to_owned(),
            exiting,
            started: 90210,
        };
        assert_eq!(stat("a) (b", "4194368"), expected("a) (b", false));
        assert_eq!(stat("worker", "4194372"), expected("worker", true));
        let none = Stat::read("");
        assert_eq!((none.exiting, none.started), (false, 0));
    }
}
