//! The store of a job as a directory: who may change it, and what is in it.
//!
//! - this file: making, opening and locking a store, and its epochs' numbers;
//! - `incarnations`: the exclusive record that every start of the job makes first;
//! - `publish`: how the files of an epoch become a checkpoint;
//! - `listing`: which checkpoints there are, and which may be used;
//! - `retention`: everything that removes files, and the mark of a bad checkpoint;
//! - `verify`: every file of the store read and checked;
//! - `take_over`: opening a store whose coordinator hangs;
//! - `control_file`: where a running job can be reached.
//!
//! Rank files are written and read past this (see [`crate::rank_file`]); of them the store knows the names.

mod control_file;
mod incarnations;
mod listing;
mod publish;
mod retention;
mod take_over;
mod verify;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::ids::{Epoch, Incarnation};

pub use control_file::ControlFile;
pub use listing::{Checkpoint, CheckpointState, Listing};
pub use publish::{PublishError, PublishStep, Published};
pub use verify::{FileReport, VerifyReport, verify_store};

use crate::record::{self, JobRecord, Record};
use crate::storage::{
    self, Access, DiskStorage, LockAttempt, SharedStorage, Storage, create_dir_if_missing,
};
use crate::{Error, Result, durable, names};

/// The store of one job, open.
#[derive(Debug)]
pub struct JobStore {
    storage: SharedStorage,
    job: JobRecord,
    lock: Option<Box<dyn fmt::Debug + Send + Sync>>,
    /// The start of the job that this is, once it has begun.
    incarnation: Option<Incarnation>,
    /// Epochs whose manifest was renamed while it is unknown whether that is durable: retention does not
    /// count on them.
    doubtful: Mutex<BTreeSet<Epoch>>,
}

impl JobStore {
    /// Makes the store of a new job in the directory `path` (made where it does not exist) and locks it.
    pub fn create(path: impl Into<PathBuf>, job: JobRecord) -> Result<Self> {
        Self::create_on(Arc::new(DiskStorage::create(path)?), job)
    }

    /// As [`JobStore::create`], on any storage.
    pub fn create_on(storage: SharedStorage, job: JobRecord) -> Result<Self> {
        refuse_foreign(&*storage)?;
        let lock = lock(&*storage)?;
        // Looked at again now that nobody else can be making a store here.
        refuse_foreign(&*storage)?;
        for dir in [names::INCARNATIONS, names::EPOCHS] {
            create_dir_if_missing(&*storage, dir)?;
        }
        // The record comes last, when the rest is durable: only with it the directory is a store.
        storage::sync_dir(&*storage, "")?;
        durable::replace(&*storage, names::JOB, &record::encode(&job), Access::Umask)?;
        Ok(Self::new(storage, job, Some(lock)))
    }

    /// Opens the store in the directory `path` for reading.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_on(Arc::new(DiskStorage::open(path)?))
    }

    /// As [`JobStore::open`], on any storage.
    pub fn open_on(storage: SharedStorage) -> Result<Self> {
        let job = read_job(&*storage)?;
        Ok(Self::new(storage, job, None))
    }

    /// Opens the store in the directory `path` and locks it, as a coordinator does.
    pub fn open_locked(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_locked_on(Arc::new(DiskStorage::open(path)?))
    }

    /// As [`JobStore::open_locked`], on any storage.
    pub fn open_locked_on(storage: SharedStorage) -> Result<Self> {
        // Before the lock file is made: nothing is left in a directory that is no store.
        read_job(&*storage)?;
        let lock = lock(&*storage)?;
        let job = read_job(&*storage)?;
        Ok(Self::new(storage, job, Some(lock)))
    }

    fn new(
        storage: SharedStorage,
        job: JobRecord,
        lock: Option<Box<dyn fmt::Debug + Send + Sync>>,
    ) -> Self {
        Self {
            storage,
            job,
            lock,
            incarnation: None,
            doubtful: Mutex::default(),
        }
    }

    /// The job, as it was first started.
    #[must_use]
    pub fn job(&self) -> &JobRecord {
        &self.job
    }

    /// The storage that the rank files are on.
    #[must_use]
    pub fn storage(&self) -> &SharedStorage {
        &self.storage
    }

    /// The store's path as users see it.
    #[must_use]
    pub fn shown(&self) -> String {
        self.storage.describe("")
    }

    /// The start of the job that this is; `None` before [`JobStore::begin_incarnation`].
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.incarnation
    }

    /// Writes the job record anew, for a restart that changes options of the job. The identity of the job and
    /// its number of ranks stay.
    pub fn replace_job(&mut self, job: JobRecord) -> Result<()> {
        self.require_lock("changing the job record")?;
        if job.job != self.job.job || job.ranks != self.job.ranks {
            return Err(Error::invalid(
                self.storage.describe(names::JOB),
                "a job keeps its identity and its number of ranks",
            ));
        }
        let bytes = record::encode(&job);
        durable::replace(&*self.storage, names::JOB, &bytes, Access::Umask)?;
        self.job = job;
        Ok(())
    }

    /// The highest epoch number that may ever have been announced; the next snapshot's is greater.
    pub fn highest_epoch(&self) -> Result<Epoch> {
        let (epochs, _) = self.epoch_dirs()?;
        let (records, _) = self.incarnations()?;
        let announced = records.iter().map(|record| record.last_epoch);
        Ok(epochs
            .into_iter()
            .chain(announced)
            .max()
            .unwrap_or(Epoch(0)))
    }

    /// Makes the directory of a new epoch, durably, so that its number is never used again. To be done before
    /// the snapshot is announced. Where this fails, the number counts as used.
    pub fn begin_epoch(&self, epoch: Epoch) -> Result<()> {
        self.require_mine("starting a snapshot")?;
        let dir = names::epoch_dir(epoch);
        if !create_dir_if_missing(&*self.storage, &dir)? {
            return Err(Error::AlreadyExists {
                path: self.storage.describe(&dir),
                what: "the directory of a new epoch",
                todo: "epoch numbers are used once: take the next one",
            });
        }
        storage::sync_dir(&*self.storage, names::EPOCHS)
    }

    /// The epochs that have a directory, ascending, and what else is there.
    fn epoch_dirs(&self) -> Result<(Vec<Epoch>, Vec<String>)> {
        let (numbers, other) = numbered(&*self.storage, names::EPOCHS, true)?;
        Ok((numbers.into_iter().map(Epoch).collect(), other))
    }

    fn require_lock(&self, operation: &'static str) -> Result<()> {
        if self.lock.is_some() {
            Ok(())
        } else {
            Err(Error::ReadOnly {
                path: self.shown(),
                operation,
            })
        }
    }

    /// The lock must be held and no newer start of the job be there: a coordinator that was paused or cut off,
    /// and has lost its lock with the file server, must not change anything.
    fn require_mine(&self, operation: &'static str) -> Result<()> {
        self.require_lock(operation)?;
        let Some(mine) = self.incarnation else {
            return Ok(());
        };
        match self.newest_incarnation()? {
            Some(newer) if newer > mine => Err(Error::Superseded {
                path: self.shown(),
                mine,
                newer,
            }),
            _ => Ok(()),
        }
    }
}

/// The entries of a directory that are called by a number, ascending, and the others' paths.
fn numbered(storage: &dyn Storage, dir: &str, dirs: bool) -> Result<(Vec<u64>, Vec<String>)> {
    let entries = storage
        .list(dir)
        .map_err(Error::io("list", storage.describe(dir)))?;
    let mut numbers = Vec::with_capacity(entries.len());
    let mut other = Vec::new();
    for entry in entries {
        match names::number(&entry.name) {
            Some(number) if entry.is_dir == dirs => numbers.push(number),
            _ => other.push(format!("{dir}/{}", entry.name)),
        }
    }
    numbers.sort_unstable();
    Ok((numbers, other))
}

fn read_job(storage: &dyn Storage) -> Result<JobRecord> {
    record::read(storage, names::JOB).map_err(|error| match error {
        Error::NotFound { .. } => Error::NotAStore {
            path: storage.describe(""),
            why: format!("it has no file `{}`", names::JOB),
        },
        error => error,
    })
}

fn lock(storage: &dyn Storage) -> Result<Box<dyn fmt::Debug + Send + Sync>> {
    let shown = storage.describe(names::LOCK);
    let note = format!("process {} on {}", std::process::id(), host());
    match storage.try_lock(names::LOCK, &note) {
        Ok(LockAttempt::Held(lock)) => Ok(lock),
        Ok(LockAttempt::Busy(holder)) => Err(Error::Locked {
            path: shown,
            holder: if holder.is_empty() {
                "another process".into()
            } else {
                holder
            },
        }),
        Err(error) => Err(Error::io("lock", shown)(error)),
    }
}

/// A store can be made in an empty directory, or where making one was interrupted.
fn refuse_foreign(storage: &dyn Storage) -> Result<()> {
    let list = |dir: &str| {
        storage
            .list(dir)
            .map_err(Error::io("list", storage.describe(dir)))
    };
    let unfinished = durable::unfinished(names::JOB);
    for entry in list("")? {
        let name = &*entry.name;
        if name == names::JOB {
            return Err(Error::AlreadyExists {
                path: storage.describe(""),
                what: "a new store; the directory holds one",
                todo: "go on with that job (`ckpt restart`, or `ckpt run --resume`), remove it with `ckpt rm`, or use another directory",
            });
        }
        let ours = match name {
            names::LOCK => true,
            names::INCARNATIONS | names::EPOCHS if entry.is_dir => list(name)?.is_empty(),
            _ => unfinished.iter().any(|unfinished| unfinished == name),
        };
        if !ours {
            return Err(Error::NotAStore {
                path: storage.describe(""),
                why: format!(
                    "it is not empty: it holds `{name}`, and no file `{}`",
                    names::JOB
                ),
            });
        }
    }
    Ok(())
}

fn since_1970() -> Duration {
    // A clock before 1970 is shown as 1970: the time is for people only.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "an unknown host".into(), |name| name.trim().to_owned())
}

/// Reads a record and checks that it is of this job.
fn read_of_job<R: Record>(
    storage: &dyn Storage,
    path: &str,
    job: &JobRecord,
    job_of: impl FnOnce(&R) -> protocol::ids::JobId,
) -> Result<R> {
    let record: R = record::read(storage, path)?;
    let found = job_of(&record);
    if found == job.job {
        Ok(record)
    } else {
        Err(Error::corrupt(
            storage.describe(path),
            format!("belongs to job {found}, and the store to job {}", job.job),
        ))
    }
}
