//! Which checkpoints a store holds, and which of them may be used.

use std::collections::{BTreeMap, BTreeSet};

use protocol::ids::{Epoch, Incarnation};

use super::JobStore;
use crate::record::Manifest;
use crate::{Error, Result, names, storage};

/// The checkpoints of a store.
#[derive(Debug)]
pub struct Listing {
    /// Every epoch that has a directory, ascending.
    pub checkpoints: Vec<Checkpoint>,
    /// What is wrong with the store's other files, for the user.
    pub warnings: Vec<String>,
}

/// An epoch, and what became of it.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its number.
    pub epoch: Epoch,
    /// Whether it is a checkpoint and may be used.
    pub state: CheckpointState,
    /// Its manifest, where there is one that can be read.
    pub manifest: Option<Manifest>,
    /// The checkpoints that need files of this epoch, ascending, as far as their manifests can be read.
    pub needed_by: Vec<Epoch>,
}

/// Whether an epoch may be restored from.
#[derive(Debug)]
pub enum CheckpointState {
    /// It is a checkpoint.
    Committed,
    /// It is marked: it failed verification, or restoring it failed.
    Bad {
        /// Why.
        reason: String,
    },
    /// A newer start of the job began from an earlier checkpoint, so that this one is of a history that was
    /// left.
    Ignored {
        /// That start.
        newer: Incarnation,
    },
    /// Its manifest can't be read.
    Unreadable {
        /// Why.
        error: Error,
    },
    /// It has no manifest: under way, or aborted, or a checkpoint that is not kept any more, of which other
    /// checkpoints need files.
    Unpublished,
}

impl Listing {
    /// The manifests of the checkpoints that may be used, newest first.
    pub fn usable(&self) -> impl Iterator<Item = &Manifest> {
        self.checkpoints
            .iter()
            .rev()
            .filter(|checkpoint| matches!(checkpoint.state, CheckpointState::Committed))
            .filter_map(|checkpoint| checkpoint.manifest.as_ref())
    }

    /// The newest checkpoint that may be used.
    #[must_use]
    pub fn newest_usable(&self) -> Option<&Manifest> {
        self.usable().next()
    }
}

impl JobStore {
    /// Lists all epochs. A file that can't be read costs its checkpoint, not the listing.
    pub fn list(&self) -> Result<Listing> {
        let (epochs, _) = self.epoch_dirs()?;
        let (records, errors) = self.incarnations()?;
        let mut warnings: Vec<_> = errors.iter().map(Error::to_string).collect();
        let mut checkpoints: Vec<_> = epochs.into_iter().map(|epoch| self.look(epoch)).collect();

        let mut starts: BTreeMap<Incarnation, Epoch> = records
            .iter()
            .map(|record| (record.incarnation, record.from_epoch()))
            .collect();
        for manifest in checkpoints
            .iter()
            .filter_map(|found| found.manifest.as_ref())
        {
            // What a start began from is in its manifests too, should its record be damaged.
            starts.entry(manifest.incarnation).or_insert_with(|| {
                if errors.is_empty() {
                    warnings.push(format!(
                        "{}: missing, although {} was published by it",
                        self.storage
                            .describe(&names::incarnation(manifest.incarnation)),
                        manifest.epoch
                    ));
                }
                manifest.from.map_or(Epoch(0), |from| from.epoch)
            });
        }
        for checkpoint in &mut checkpoints {
            if let (CheckpointState::Committed, Some(manifest)) =
                (&checkpoint.state, &checkpoint.manifest)
                && let Some(newer) = left_by(manifest, &starts)
            {
                checkpoint.state = CheckpointState::Ignored { newer };
            }
        }
        let mut users: BTreeMap<Epoch, BTreeSet<Epoch>> = BTreeMap::new();
        for manifest in checkpoints.iter().filter_map(|it| it.manifest.as_ref()) {
            for need in &manifest.needs {
                users.entry(need.epoch).or_default().insert(manifest.epoch);
            }
        }
        for checkpoint in &mut checkpoints {
            if let Some(users) = users.remove(&checkpoint.epoch) {
                checkpoint.needed_by = users.into_iter().collect();
            }
        }
        Ok(Listing {
            checkpoints,
            warnings,
        })
    }

    /// The epochs after this one, as their files are.
    pub(super) fn list_after(&self, epoch: Epoch) -> Result<Vec<Checkpoint>> {
        let (epochs, _) = self.epoch_dirs()?;
        let later = epochs.into_iter().filter(|later| *later > epoch);
        Ok(later.map(|later| self.look(later)).collect())
    }

    /// The newest checkpoint that may be used, as far as manifests tell.
    pub fn newest_usable(&self) -> Result<Option<Manifest>> {
        Ok(self.list()?.newest_usable().cloned())
    }

    fn look(&self, epoch: Epoch) -> Checkpoint {
        let (manifest, unreadable) = match self.read_manifest(epoch) {
            Ok(manifest) => (Some(manifest), None),
            Err(Error::NotFound { .. }) => {
                return Checkpoint {
                    epoch,
                    state: CheckpointState::Unpublished,
                    manifest: None,
                    needed_by: Vec::new(),
                };
            }
            Err(error) => (None, Some(error)),
        };
        let state = match (self.bad_reason(epoch), unreadable) {
            (Some(reason), _) => CheckpointState::Bad { reason },
            (None, Some(error)) => CheckpointState::Unreadable { error },
            (None, None) => CheckpointState::Committed,
        };
        Checkpoint {
            epoch,
            state,
            manifest,
            needed_by: Vec::new(),
        }
    }

    /// Why a checkpoint is marked bad. A mark that can't be read is a mark.
    pub(super) fn bad_reason(&self, epoch: Epoch) -> Option<String> {
        match storage::read_whole(&*self.storage, &names::bad(epoch), "a mark", 1 << 20) {
            Ok(reason) => Some(String::from_utf8_lossy(&reason).trim().to_owned()),
            Err(Error::NotFound { .. }) => None,
            Err(error) => Some(error.to_string()),
        }
    }
}

/// The first newer start that began before this checkpoint: the job's history goes on without it then.
fn left_by(manifest: &Manifest, starts: &BTreeMap<Incarnation, Epoch>) -> Option<Incarnation> {
    starts
        .range(Incarnation(manifest.incarnation.0 + 1)..)
        .find(|(_, from)| **from < manifest.epoch)
        .map(|(newer, _)| *newer)
}
