//! Everything that removes files, which only the coordinator does, and the mark of a bad checkpoint.
//!
//! A checkpoint is removed manifest first, durably: it is never seen with files missing.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use protocol::ids::Epoch;

use super::listing::CheckpointState;
use super::{JobStore, numbered};
use crate::record::Manifest;
use crate::storage::{self, Access};
use crate::{Error, Result, durable, names};

impl JobStore {
    /// Marks a checkpoint as one that must not be used. The reason is for the user.
    pub fn mark_bad(&self, epoch: Epoch, reason: &str) -> Result<()> {
        let path = names::bad(epoch);
        durable::replace(
            &*self.storage,
            &path,
            format!("{}\n", reason.trim()).as_bytes(),
            Access::Umask,
        )
    }

    /// Removes the files of an epoch that was aborted. Its directory stays, and with it its number, until a
    /// later epoch is a checkpoint.
    pub fn abort_epoch(&self, epoch: Epoch) -> Result<()> {
        self.require_mine("aborting a snapshot")?;
        let manifest = names::manifest(epoch);
        if self.is_there(&manifest)? {
            return Err(Error::invalid(
                self.storage.describe(&manifest),
                "the epoch is published and can't be aborted",
            ));
        }
        self.empty(epoch)
    }

    /// Keeps the newest `keep` checkpoints and what they refer to; removes older ones, and what aborted
    /// epochs left before the newest checkpoint. Tells which epochs were removed.
    pub fn retain(&self, keep: u32) -> Result<Vec<Epoch>> {
        self.require_mine("removing old checkpoints")?;
        let listing = self.list()?;
        let doubtful = self.doubtful().clone();
        let counted: Vec<&Manifest> = listing
            .usable()
            .filter(|manifest| !doubtful.contains(&manifest.epoch))
            .collect();
        let Some(newest) = counted.first() else {
            return Ok(Vec::new());
        };
        let oldest_kept = counted
            .get(keep.max(1) as usize - 1)
            .map_or(Epoch(0), |manifest| manifest.epoch);
        let referred: BTreeSet<String> = listing
            .usable()
            .filter(|manifest| manifest.epoch >= oldest_kept)
            .flat_map(|manifest| &manifest.needs)
            .map(|need| names::epoch_dir(need.epoch))
            .collect();
        let mut removed = Vec::new();
        for checkpoint in &listing.checkpoints {
            let epoch = checkpoint.epoch;
            let left_over =
                matches!(checkpoint.state, CheckpointState::Unpublished) && epoch < newest.epoch;
            let old = epoch < oldest_kept;
            if (old || left_over) && !referred.contains(&names::epoch_dir(epoch)) {
                self.remove_files(epoch)?;
                removed.push(epoch);
            }
        }
        if !removed.is_empty() {
            storage::sync_dir(&*self.storage, names::EPOCHS)?;
        }
        Ok(removed)
    }

    /// Removes what was never finished: files of snapshots that did not become checkpoints, whose
    /// directories stay, and records that did not get their name. To be done when a coordinator starts, before its
    /// first snapshot.
    pub fn sweep(&self) -> Result<()> {
        self.require_mine("removing what was never finished")?;
        let (_, other) = numbered(&*self.storage, names::INCARNATIONS, false)?;
        for path in other {
            if self.is_left_over(&path) {
                storage::remove_if_there(&*self.storage, &path)?;
            }
        }
        for checkpoint in self.list()?.checkpoints {
            if matches!(checkpoint.state, CheckpointState::Unpublished) {
                self.empty(checkpoint.epoch)?;
            }
        }
        Ok(())
    }

    /// Whether this is an unfinished record for a number that is taken, so that it can't become one any more.
    fn is_left_over(&self, path: &str) -> bool {
        path.ends_with(names::UNFINISHED)
            && path
                .rsplit('/')
                .next()
                .and_then(|name| name.split('.').next())
                .and_then(names::number)
                .is_some_and(|number| self.incarnation.is_some_and(|mine| number <= mine.0))
    }

    /// Removes one checkpoint, unless another one refers to it.
    pub fn remove(&self, epoch: Epoch) -> Result<()> {
        self.require_mine("removing a checkpoint")?;
        let dir = names::epoch_dir(epoch);
        let listing = self.list()?;
        if !listing.checkpoints.iter().any(|found| found.epoch == epoch) {
            return Err(Error::NotFound {
                path: self.storage.describe(&dir),
                what: "the checkpoint to remove",
            });
        }
        let referring = listing.checkpoints.iter().find(|other| {
            other.epoch != epoch
                && other
                    .manifest
                    .iter()
                    .flat_map(|manifest| &manifest.needs)
                    .any(|need| need.epoch == epoch)
        });
        if let Some(other) = referring {
            return Err(Error::invalid(
                self.storage.describe(&dir),
                format!("{} refers to it: remove that first", other.epoch),
            ));
        }
        if listing
            .checkpoints
            .last()
            .is_some_and(|last| last.epoch == epoch)
        {
            // The highest directory keeps its number from being used again.
            self.remove_manifest(epoch)?;
            return self.empty(epoch);
        }
        self.remove_files(epoch)?;
        storage::sync_dir(&*self.storage, names::EPOCHS)
    }

    /// Removes the store: the job record first, after which it is none, then all that is ours, then the
    /// directory, unless something else is in it.
    pub fn destroy(self) -> Result<()> {
        self.require_mine("removing the store")?;
        let storage = &*self.storage;
        storage::remove_if_there(storage, names::JOB)?;
        storage::sync_dir(storage, "")?;
        let (epochs, _) = self.epoch_dirs()?;
        for epoch in epochs {
            self.remove_files(epoch)?;
        }
        for dir in [names::EPOCHS, names::INCARNATIONS] {
            self.remove_all_in(dir)?;
            storage
                .remove_dir(dir)
                .map_err(Error::io("remove the directory", storage.describe(dir)))?;
        }
        for name in [names::CONTROL, names::LOCK] {
            storage::remove_if_there(storage, name)?;
        }
        match storage.remove_dir("") {
            // Something else lies in it, which is the user's.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.map_err(Error::io("remove the directory", self.shown())),
        }
    }

    pub(super) fn doubtful(&self) -> MutexGuard<'_, BTreeSet<Epoch>> {
        // A set of numbers is whole at any moment.
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_files(&self, epoch: Epoch) -> Result<()> {
        self.remove_manifest(epoch)?;
        self.empty(epoch)?;
        let dir = names::epoch_dir(epoch);
        self.storage.remove_dir(&dir).map_err(Error::io(
            "remove the directory",
            self.storage.describe(&dir),
        ))
    }

    fn remove_manifest(&self, epoch: Epoch) -> Result<()> {
        if storage::remove_if_there(&*self.storage, &names::manifest(epoch))? {
            storage::sync_dir(&*self.storage, &names::epoch_dir(epoch))?;
        }
        Ok(())
    }

    /// Removes the files in an epoch's directory, which has no manifest.
    fn empty(&self, epoch: Epoch) -> Result<()> {
        self.remove_all_in(&names::epoch_dir(epoch))
    }

    /// Removes all files of a directory; goes on past an error and reports the first.
    fn remove_all_in(&self, dir: &str) -> Result<()> {
        let entries = self
            .storage
            .list(dir)
            .map_err(Error::io("list", self.storage.describe(dir)))?;
        let mut result = Ok(());
        for entry in entries.iter().filter(|entry| !entry.is_dir) {
            let path = format!("{dir}/{}", entry.name);
            let removed = storage::remove_if_there(&*self.storage, &path).map(drop);
            result = result.and(removed);
        }
        result
    }
}
