//! A storage that fails on purpose.
//!
//! [`FaultStorage`] passes every operation on to another storage, counts it, and lets one of them fail as
//! asked. A test first counts the operations of what it does, and then repeats it with each of them failing in
//! turn. For crashes, put it around a [`crate::MemoryStorage`] with [`Fault::Crash`] and look at
//! [`crate::MemoryStorage::after_crash`].

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::storage::{Access, Entry, LockAttempt, ReadFile, SharedStorage, Storage, WriteFile};

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With this error number; nothing is done.
    Errno(i32),
    /// A write takes half of its bytes and says so, which is no error. Other operations are not touched.
    ShortWrite,
    /// A write takes half of its bytes, and every write from then on finds the disk full. Other operations fail
    /// with `ENOSPC`.
    DiskFull,
    /// The next fsync, of a file or directory, from this operation on fails with `EIO`.
    FailedSync,
    /// As `FailedSync`, and the file reads back as zeros from then on: the system dropped what it could not
    /// write.
    LostSync,
    /// The operation is done, but an error (`EIO`) is reported, as a network file system may.
    DoneButError,
    /// This and every later operation fails: the machine stopped.
    Crash,
}

/// Which operation fails, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The number of the operation, from 0.
    pub at: u64,
    /// What happens to it.
    pub fault: Fault,
}

/// What kind of operation was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is the method of the storage with its name"
)]
pub enum Operation {
    CreateNew,
    Open,
    Rename,
    Link,
    RemoveFile,
    CreateDir,
    RemoveDir,
    List,
    SyncDir,
    TryLock,
    Write,
    Sync,
    FileBytes,
    ReadAt,
}

/// A [`Storage`] that lets one operation of another fail.
#[derive(Clone, Debug)]
pub struct FaultStorage {
    inner: SharedStorage,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    plan: Option<Plan>,
    count: AtomicU64,
    struck: AtomicBool,
    full: AtomicBool,
    lost: Mutex<Vec<String>>,
    log: Mutex<Vec<(Operation, String)>>,
}

/// What an operation is to do.
enum Outcome {
    /// What it always does.
    Go,
    Fail(io::Error),
    /// Write half.
    Half,
    /// Do it, then report an error.
    DoThenFail,
}

impl FaultStorage {
    /// Counts the operations on `inner` and lets none fail.
    #[must_use]
    pub fn counting(inner: SharedStorage) -> Self {
        Self::with(inner, None)
    }

    /// Lets one operation on `inner` fail.
    #[must_use]
    pub fn failing(inner: SharedStorage, plan: Plan) -> Self {
        Self::with(inner, Some(plan))
    }

    fn with(inner: SharedStorage, plan: Option<Plan>) -> Self {
        Self {
            inner,
            state: Arc::new(State {
                plan,
                count: AtomicU64::new(0),
                struck: AtomicBool::new(false),
                full: AtomicBool::new(false),
                lost: Mutex::default(),
                log: Mutex::default(),
            }),
        }
    }

    /// How many operations there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state.count.load(Ordering::SeqCst)
    }

    /// Whether the fault has happened.
    #[must_use]
    pub fn struck(&self) -> bool {
        self.state.struck.load(Ordering::SeqCst)
    }

    /// The operations so far, each with its path.
    #[must_use]
    pub fn log(&self) -> Vec<(Operation, String)> {
        self.state
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl State {
    fn next(&self, operation: Operation, path: &str) -> Outcome {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((operation, path.to_owned()));
        if self.full.load(Ordering::SeqCst) && operation == Operation::Write {
            return Outcome::Fail(errno(libc::ENOSPC));
        }
        let Some(plan) = self.plan.filter(|plan| number >= plan.at) else {
            return Outcome::Go;
        };
        if plan.fault == Fault::Crash {
            self.struck.store(true, Ordering::SeqCst);
            return Outcome::Fail(errno(libc::EIO));
        }
        let is_sync = matches!(operation, Operation::Sync | Operation::SyncDir);
        let due = match plan.fault {
            Fault::FailedSync | Fault::LostSync => is_sync,
            Fault::ShortWrite => number == plan.at && operation == Operation::Write,
            _ => number == plan.at,
        };
        if !due || self.struck.swap(true, Ordering::SeqCst) {
            return Outcome::Go;
        }
        match plan.fault {
            Fault::Errno(number) => Outcome::Fail(errno(number)),
            Fault::ShortWrite => Outcome::Half,
            Fault::DiskFull => {
                self.full.store(true, Ordering::SeqCst);
                if operation == Operation::Write {
                    Outcome::Half
                } else {
                    Outcome::Fail(errno(libc::ENOSPC))
                }
            }
            Fault::FailedSync | Fault::Crash => Outcome::Fail(errno(libc::EIO)),
            Fault::LostSync => {
                self.lost
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(path.to_owned());
                Outcome::Fail(errno(libc::EIO))
            }
            Fault::DoneButError => Outcome::DoThenFail,
        }
    }

    /// Runs an operation that has no half of itself.
    fn run<T>(
        &self,
        operation: Operation,
        path: &str,
        inner: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self.next(operation, path) {
            Outcome::Go | Outcome::Half => inner(),
            Outcome::Fail(error) => Err(error),
            Outcome::DoThenFail => inner().and(Err(errno(libc::EIO))),
        }
    }

    fn is_lost(&self, path: &str) -> bool {
        self.lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|lost| lost == path)
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Storage for FaultStorage {
    fn describe(&self, path: &str) -> String {
        self.inner.describe(path)
    }

    fn create_new(&self, path: &str, access: Access) -> io::Result<Box<dyn WriteFile>> {
        let inner = self.state.run(Operation::CreateNew, path, || {
            self.inner.create_new(path, access)
        })?;
        Ok(Box::new(FaultWriteFile {
            inner,
            path: path.to_owned(),
            state: self.state.clone(),
        }))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>> {
        let inner = self
            .state
            .run(Operation::Open, path, || self.inner.open(path))?;
        Ok(Box::new(FaultReadFile {
            inner,
            path: path.to_owned(),
            state: self.state.clone(),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state
            .run(Operation::Rename, to, || self.inner.rename(from, to))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.state
            .run(Operation::Link, to, || self.inner.link(from, to))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.state
            .run(Operation::RemoveFile, path, || self.inner.remove_file(path))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.state
            .run(Operation::CreateDir, path, || self.inner.create_dir(path))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.state
            .run(Operation::RemoveDir, path, || self.inner.remove_dir(path))
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.state
            .run(Operation::List, path, || self.inner.list(path))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.state
            .run(Operation::SyncDir, path, || self.inner.sync_dir(path))
    }

    fn try_lock(&self, path: &str, note: &str) -> io::Result<LockAttempt> {
        self.state
            .run(Operation::TryLock, path, || self.inner.try_lock(path, note))
    }
}

#[derive(Debug)]
struct FaultWriteFile {
    inner: Box<dyn WriteFile>,
    path: String,
    state: Arc<State>,
}

impl WriteFile for FaultWriteFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.state.next(Operation::Write, &self.path) {
            Outcome::Go => self.inner.write(bytes),
            Outcome::Fail(error) => Err(error),
            Outcome::Half => self.inner.write(&bytes[..bytes.len().div_ceil(2)]),
            Outcome::DoThenFail => self.inner.write(bytes).and(Err(errno(libc::EIO))),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let inner = &mut self.inner;
        self.state.run(Operation::Sync, &self.path, || inner.sync())
    }
}

#[derive(Debug)]
struct FaultReadFile {
    inner: Box<dyn ReadFile>,
    path: String,
    state: Arc<State>,
}

impl ReadFile for FaultReadFile {
    fn file_bytes(&self) -> io::Result<u64> {
        self.state
            .run(Operation::FileBytes, &self.path, || self.inner.file_bytes())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.state.run(Operation::ReadAt, &self.path, || {
            self.inner.read_at(into, offset)
        })?;
        if self.state.is_lost(&self.path) {
            into[..read].fill(0);
        }
        Ok(read)
    }
}

/// A plan as text, `FAULT@NUMBER`: `enospc`, `eio`, `short-write`, `disk-full`, `failed-sync`, `lost-sync`,
/// `done-but-error` or `crash`.
impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (fault, at) = text
            .split_once('@')
            .ok_or_else(|| format!("`{text}` is not FAULT@NUMBER"))?;
        let fault = match fault {
            "enospc" => Fault::Errno(libc::ENOSPC),
            "eio" => Fault::Errno(libc::EIO),
            "short-write" => Fault::ShortWrite,
            "disk-full" => Fault::DiskFull,
            "failed-sync" => Fault::FailedSync,
            "lost-sync" => Fault::LostSync,
            "done-but-error" => Fault::DoneButError,
            "crash" => Fault::Crash,
            _ => return Err(format!("`{fault}` is no fault")),
        };
        let at = at
            .parse()
            .map_err(|_| format!("`{at}` is no number of an operation"))?;
        Ok(Self { at, fault })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, fault } = self;
        match fault {
            Fault::Errno(libc::ENOSPC) => write!(f, "enospc@{at}"),
            Fault::Errno(libc::EIO) => write!(f, "eio@{at}"),
            Fault::Errno(number) => write!(f, "errno {number}@{at}"),
            Fault::ShortWrite => write!(f, "short-write@{at}"),
            Fault::DiskFull => write!(f, "disk-full@{at}"),
            Fault::FailedSync => write!(f, "failed-sync@{at}"),
            Fault::LostSync => write!(f, "lost-sync@{at}"),
            Fault::DoneButError => write!(f, "done-but-error@{at}"),
            Fault::Crash => write!(f, "crash@{at}"),
        }
    }
}
