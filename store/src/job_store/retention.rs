//! Everything that removes files, which only the coordinator does, and the mark of a bad checkpoint.
//!
//! A checkpoint is removed manifest first, durably: it is never seen with files missing. Its files follow one
//! by one, as soon as no manifest refers to them: those that a kept checkpoint needs stay, in a directory
//! without a manifest.

use std::collections::{BTreeSet, HashSet};
use std::sync::{MutexGuard, PoisonError};

use protocol::ids::Epoch;

use super::listing::{Checkpoint, CheckpointState, Listing};
use super::{JobStore, numbered};
use crate::record::Manifest;
use crate::storage::{self, Access};
use crate::{Error, Result, durable, names};

/// The files that some checkpoints need from others.
struct Needed<'l> {
    files: HashSet<&'l str>,
    /// Of the epochs before this one nothing is known to be needless: its manifest can't be read now, but
    /// perhaps later.
    unknown_before: Epoch,
}

impl<'l> Needed<'l> {
    fn by(checkpoints: impl IntoIterator<Item = &'l Checkpoint>) -> Self {
        let mut needed = Self {
            files: HashSet::new(),
            unknown_before: Epoch(0),
        };
        for checkpoint in checkpoints {
            if let Some(manifest) = &checkpoint.manifest {
                let files = manifest.needs.iter().map(|need| &*need.file.name);
                needed.files.extend(files);
            }
            if let CheckpointState::Unreadable { error } = &checkpoint.state
                && !matches!(error, Error::Corrupt { .. } | Error::NotFound { .. })
            {
                needed.unknown_before = needed.unknown_before.max(checkpoint.epoch);
            }
        }
        needed
    }

    fn has(&self, epoch: Epoch, path: &str) -> bool {
        epoch < self.unknown_before || self.files.contains(path)
    }
}

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
        // Nothing can need files of an epoch that was not published, unless a process is in error.
        let listing = self.list_after(epoch)?;
        self.remove_needless(epoch, &Needed::by(&listing)).map(drop)
    }

    /// Keeps the newest `keep` checkpoints and the files that they need of others; removes older ones, and what
    /// aborted epochs left before the newest checkpoint. Tells which epochs are no checkpoints any more, or
    /// are gone.
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
        let (old, kept): (Vec<&Checkpoint>, Vec<&Checkpoint>) = listing
            .checkpoints
            .iter()
            .partition(|checkpoint| checkpoint.epoch < oldest_kept);
        // Bad and ignored ones too, whose mark may yet be taken away by hand.
        let needed = Needed::by(kept.iter().copied());
        let left_over = kept
            .iter()
            .filter(|checkpoint| is_unpublished(checkpoint) && checkpoint.epoch < newest.epoch);
        let emptied = old.iter().chain(left_over);
        let emptied: Vec<Epoch> = emptied.map(|checkpoint| checkpoint.epoch).collect();

        // All manifests before any file: what one of the old checkpoints needs may be in another's directory.
        let mut removed = BTreeSet::new();
        for checkpoint in old.iter().filter(|checkpoint| !is_unpublished(checkpoint)) {
            self.remove_manifest(checkpoint.epoch)?;
            removed.insert(checkpoint.epoch);
        }
        let mut gone = false;
        for epoch in emptied {
            if self.remove_needless(epoch, &needed)? {
                self.remove_dir(epoch)?;
                removed.insert(epoch);
                gone = true;
            }
        }
        if gone {
            storage::sync_dir(&*self.storage, names::EPOCHS)?;
        }
        Ok(removed.into_iter().collect())
    }

    /// Removes what was never finished: files of snapshots that did not become checkpoints, whose
    /// directories stay, records that did not get their name, and lists of hosts of starts that are over. To be done
    /// when a coordinator starts, before it launches anything.
    pub fn sweep(&self) -> Result<()> {
        self.require_mine("removing what was never finished")?;
        self.remove_hosts()?;
        let (_, other) = numbered(&*self.storage, names::INCARNATIONS, false)?;
        for path in other {
            if self.is_left_over(&path) {
                storage::remove_if_there(&*self.storage, &path)?;
            }
        }
        let listing = self.list()?;
        let needed = Needed::by(&listing.checkpoints);
        for checkpoint in listing.checkpoints.iter().filter(|it| is_unpublished(it)) {
            self.remove_needless(checkpoint.epoch, &needed)?;
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

    /// Removes one checkpoint. Files that others need stay; files that only it needed go.
    pub fn remove(&self, epoch: Epoch) -> Result<()> {
        self.require_mine("removing a checkpoint")?;
        let Listing { checkpoints, .. } = self.list()?;
        let Some(at) = checkpoints.iter().position(|found| found.epoch == epoch) else {
            return Err(Error::NotFound {
                path: self.storage.describe(&names::epoch_dir(epoch)),
                what: "the checkpoint to remove",
            });
        };
        let others = checkpoints.iter().filter(|other| other.epoch != epoch);
        let needed = Needed::by(others);
        self.remove_manifest(epoch)?;
        let mut emptied = BTreeSet::from([epoch]);
        if let Some(manifest) = &checkpoints[at].manifest {
            emptied.extend(manifest.needs.iter().map(|need| need.epoch));
        }
        // The highest directory keeps its number from being used again.
        let highest = checkpoints.last().map(|last| last.epoch);
        let mut gone = false;
        for checkpoint in &checkpoints {
            let of = checkpoint.epoch;
            let without_manifest = of == epoch || is_unpublished(checkpoint);
            if emptied.contains(&of)
                && without_manifest
                && self.remove_needless(of, &needed)?
                && Some(of) != highest
            {
                self.remove_dir(of)?;
                gone = true;
            }
        }
        match gone {
            true => storage::sync_dir(&*self.storage, names::EPOCHS),
            false => Ok(()),
        }
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
            self.remove_all_in(&names::epoch_dir(epoch))?;
            self.remove_dir(epoch)?;
        }
        for dir in [names::EPOCHS, names::INCARNATIONS] {
            self.remove_all_in(dir)?;
            storage
                .remove_dir(dir)
                .map_err(Error::io("remove the directory", storage.describe(dir)))?;
        }
        self.remove_hosts()?;
        for name in [names::CONTROL, names::LOCK] {
            storage::remove_if_there(storage, name)?;
        }
        match storage.remove_dir("") {
            // Something else lies in it, which is the user's.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.map_err(Error::io("remove the directory", self.shown())),
        }
    }

    /// Removes the lists of hosts that killed coordinators have left.
    fn remove_hosts(&self) -> Result<()> {
        let entries = self
            .storage
            .list("")
            .map_err(Error::io("list", self.shown()))?;
        for entry in entries.iter().filter(|it| names::is_hosts(&it.name)) {
            storage::remove_if_there(&*self.storage, &entry.name)?;
        }
        Ok(())
    }

    pub(super) fn doubtful(&self) -> MutexGuard<'_, BTreeSet<Epoch>> {
        // A set of numbers is whole at any moment.
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_dir(&self, epoch: Epoch) -> Result<()> {
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

    /// Removes the files in an epoch's directory, which has no manifest, but for those that are needed; tells
    /// whether the directory is empty then. Goes on past an error and reports the first.
    fn remove_needless(&self, epoch: Epoch, needed: &Needed<'_>) -> Result<bool> {
        let dir = names::epoch_dir(epoch);
        let entries = self
            .storage
            .list(&dir)
            .map_err(Error::io("list", self.storage.describe(&dir)))?;
        let path_of = |name: &str| format!("{dir}/{name}");
        let stays = |name: &str| needed.has(epoch, &path_of(name));
        let keeps_some = entries
            .iter()
            .any(|entry| entry.is_dir || (entry.name != names::BAD && stays(&entry.name)));
        // A mark stays with the files, so that nothing new builds on them.
        let go: Vec<_> = entries
            .iter()
            .filter(|entry| !entry.is_dir && !stays(&entry.name))
            .filter(|entry| !(keeps_some && entry.name == names::BAD))
            .collect();
        if !go.is_empty() {
            // A manifest that was removed here must not come back after a crash, without its files.
            storage::sync_dir(&*self.storage, &dir)?;
        }
        let mut result = Ok(());
        for entry in go {
            let removed = storage::remove_if_there(&*self.storage, &path_of(&entry.name));
            result = result.and(removed.map(drop));
        }
        result.map(|()| !keeps_some)
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

fn is_unpublished(checkpoint: &Checkpoint) -> bool {
    matches!(checkpoint.state, CheckpointState::Unpublished)
}
