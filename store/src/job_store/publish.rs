//! How the files of an epoch become a checkpoint (design 6.6).
//!
//! The manifest is written under a name that means nothing, made durable, and renamed. Before the rename
//! the epoch can be aborted; once the rename was tried it can't, and what became of it is found out by looking.

use std::collections::BTreeSet;
use std::io;

use protocol::ids::Epoch;

use super::{JobStore, read_of_job};
use crate::rank_file::RankFile;
use crate::record::{self, Manifest};
use crate::storage::{self, Access};
use crate::{Error, FileKey, Result, durable, names};

/// How far publishing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishStep {
    /// The manifest is durable under its unfinished name; the rename is next.
    Written,
    /// It has its name: the checkpoint exists.
    Renamed,
}

/// A checkpoint was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Published {
    /// False where the directory's fsync failed: the checkpoint is there for everyone, but might be gone
    /// after a crash of the machine. Older checkpoints are then kept.
    pub durable: bool,
}

/// A checkpoint was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no manifest, and there won't be: the epoch is to be aborted.
    #[error("the checkpoint is not published: {0}")]
    NotPublished(#[source] Error),
    /// The rename was tried, and whether it happened can't be found out now. The epoch must not be aborted;
    /// the coordinator ends, and the next start reads what is there.
    #[error("the checkpoint may or may not be published: {0}")]
    Unresolved(#[source] Error),
}

impl JobStore {
    /// Makes a checkpoint of the files that `manifest` lists, which are durable. `on_step` is called as it
    /// goes on.
    pub fn publish(
        &self,
        manifest: &Manifest,
        mut on_step: impl FnMut(PublishStep),
    ) -> Result<Published, PublishError> {
        let unfinished = self
            .write_unfinished(manifest)
            .map_err(PublishError::NotPublished)?;
        on_step(PublishStep::Written);
        let path = names::manifest(manifest.epoch);
        if let Err(error) = self.storage.rename(&unfinished, &path) {
            let error = Error::io("rename to its place", self.storage.describe(&path))(error);
            self.resolve(manifest, &unfinished, error)?;
        }
        on_step(PublishStep::Renamed);
        let durable = match storage::sync_dir(&*self.storage, &names::epoch_dir(manifest.epoch)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("{error}; the checkpoints before it are kept");
                self.doubtful().insert(manifest.epoch);
                false
            }
        };
        Ok(Published { durable })
    }

    fn write_unfinished(&self, manifest: &Manifest) -> Result<String> {
        self.require_mine("publishing a checkpoint")?;
        let path = names::manifest(manifest.epoch);
        let invalid = |what: String| Error::invalid(self.storage.describe(&path), what);
        manifest.check().map_err(invalid)?;
        if manifest.job != self.job.job
            || manifest.ranks() != self.job.ranks
            || Some(manifest.incarnation) != self.incarnation
        {
            return Err(invalid(
                "a manifest of another job, start of it, or number of ranks".into(),
            ));
        }
        self.check_needs(manifest)?;
        if self.is_there(&path)? {
            return Err(Error::AlreadyExists {
                path: self.storage.describe(&path),
                what: "a new manifest",
                todo: "epoch numbers are used once: this is an error of the coordinator",
            });
        }
        let own = format!("{path}.i{:04}", manifest.incarnation.0);
        let [first, second] = durable::unfinished(&own);
        durable::write_new(
            &*self.storage,
            [&first, &second],
            &record::encode(manifest),
            Access::Umask,
        )
    }

    /// Checks that every file of another checkpoint that `manifest` needs is there: with its length, with the
    /// header of that file of this job, and not of a checkpoint that is marked bad. The bytes of its chunks are
    /// not read. What fails here can't be built on any more: processes have to store whole images next.
    pub fn check_needs(&self, manifest: &Manifest) -> Result<()> {
        let mut checked = BTreeSet::new();
        for need in &manifest.needs {
            if checked.insert(need.epoch)
                && let Some(reason) = self.bad_reason(need.epoch)
            {
                return Err(Error::invalid(
                    self.storage.describe(&names::epoch_dir(need.epoch)),
                    format!("a new checkpoint refers to it, and it is marked bad ({reason})"),
                ));
            }
            let key = FileKey {
                job: manifest.job,
                incarnation: need.incarnation,
                epoch: need.epoch,
                rank: need.file.rank,
            };
            RankFile::look(&*self.storage, &need.file, key)?;
        }
        Ok(())
    }

    /// The rename reported `error`. Taking its source away settles it: where that can be removed, the
    /// rename has not happened and never will; where it is gone already, the rename has happened.
    fn resolve(
        &self,
        manifest: &Manifest,
        unfinished: &str,
        error: Error,
    ) -> Result<(), PublishError> {
        let removed = self.storage.remove_file(unfinished);
        match (removed, self.read_manifest(manifest.epoch)) {
            (_, Ok(found)) if found == *manifest => Ok(()),
            (Ok(()), Err(Error::NotFound { .. })) => Err(PublishError::NotPublished(error)),
            (_, found) => {
                if let Err(found) = found {
                    tracing::warn!("{found}");
                }
                Err(PublishError::Unresolved(error))
            }
        }
    }

    /// Reads the manifest of an epoch and checks that it is this job's and this epoch's.
    pub fn read_manifest(&self, epoch: Epoch) -> Result<Manifest> {
        let path = names::manifest(epoch);
        let manifest: Manifest =
            read_of_job(&*self.storage, &path, &self.job, |manifest: &Manifest| {
                manifest.job
            })?;
        if manifest.epoch != epoch || manifest.ranks() != self.job.ranks {
            return Err(Error::corrupt(
                self.storage.describe(&path),
                format!(
                    "is of {} with {} ranks, in the place of {epoch} with {}",
                    manifest.epoch,
                    manifest.ranks(),
                    self.job.ranks
                ),
            ));
        }
        Ok(manifest)
    }

    /// Whether a file is there, sound or not.
    pub(super) fn is_there(&self, path: &str) -> Result<bool> {
        match self.storage.open(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("open", self.storage.describe(path))(error)),
        }
    }
}
