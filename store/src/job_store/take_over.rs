//! Taking a store over from a coordinator that hangs and so keeps the lock.
//!
//! The lock is taken on a new file; the old one is locked still, and nobody looks at it any more. What the other coordinator
//! does when it goes on is not prevented by the lock but by the record of a newer start, which has to follow at once
//! ([`JobStore::begin_incarnation`]): it may publish nothing after it, and what it would publish is ignored.

use std::path::PathBuf;
use std::sync::Arc;

use super::{JobStore, lock, read_job};
use crate::storage::{DiskStorage, SharedStorage, remove_if_there};
use crate::{Error, Result, names};

impl JobStore {
    /// As [`JobStore::open_locked`], also where another coordinator holds the lock. Tells who held it.
    pub fn open_taking_over(path: impl Into<PathBuf>) -> Result<(Self, Option<String>)> {
        Self::open_taking_over_on(Arc::new(DiskStorage::open(path)?))
    }

    /// As [`JobStore::open_taking_over`], on any storage.
    pub fn open_taking_over_on(storage: SharedStorage) -> Result<(Self, Option<String>)> {
        read_job(&*storage)?;
        let (lock, holder) = match lock(&*storage) {
            Ok(lock) => (lock, None),
            Err(Error::Locked { holder, .. }) => {
                remove_if_there(&*storage, names::LOCK)?;
                (lock(&*storage)?, Some(holder))
            }
            Err(error) => return Err(error),
        };
        let job = read_job(&*storage)?;
        Ok((Self::new(storage, job, Some(lock)), holder))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::JobRecord;

    fn job() -> JobRecord {
        JobRecord {
            job: protocol::ids::JobId([7; 16]),
            argv: vec!["heat".into()],
            cwd: "/".into(),
            ranks: 2,
            processes: 2,
            slot_bytes: 1 << 30,
            stack_bytes: 1 << 20,
            compression: Default::default(),
            keep: 2,
            created_unix_ms: 0,
            options: BTreeMap::new(),
        }
    }

    #[test]
    fn a_coordinator_that_was_replaced_begins_nothing_and_the_new_one_is_safe_from_a_third() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let mut hung = JobStore::create(&path, job()).unwrap();
        hung.begin_incarnation(None).unwrap();
        assert!(JobStore::open_locked(&path).is_err());

        let (mut taker, holder) = JobStore::open_taking_over(&path).unwrap();
        assert!(holder.is_some_and(|holder| holder.contains("process")));
        taker.begin_incarnation(None).unwrap();
        assert!(
            JobStore::open_locked(&path).is_err(),
            "the new one holds the lock"
        );

        // It goes on: neither a snapshot nor a newer start of its own.
        let late = hung.begin_epoch(protocol::ids::Epoch(1));
        assert!(matches!(late, Err(Error::Superseded { .. })), "{late:?}");
        let late = hung.begin_incarnation(None);
        assert!(matches!(late, Err(Error::Superseded { .. })), "{late:?}");
        taker.begin_epoch(protocol::ids::Epoch(1)).unwrap();
        taker.begin_incarnation(None).unwrap();
    }

    #[test]
    fn a_store_that_nobody_holds_is_opened_as_usual() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        drop(JobStore::create(&path, job()).unwrap());
        let (_, holder) = JobStore::open_taking_over(&path).unwrap();
        assert_eq!(holder, None);
    }
}
