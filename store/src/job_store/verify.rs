//! Reads and checks every file of a store.

use protocol::ids::Rank;

use super::listing::CheckpointState;
use super::{Checkpoint, JobStore, Listing, numbered, read_job};
use crate::record::Manifest;
use crate::storage::SharedStorage;
use crate::{Error, RankFile, Result, names};

/// What verifying one file came to.
#[derive(Debug)]
pub struct FileReport {
    /// Its path below the store.
    pub path: String,
    /// Its length in bytes, as the manifest has it; 0 for other files.
    pub file_bytes: u64,
    /// What is wrong with it, if anything.
    pub result: Result<()>,
}

/// What verifying a store came to.
#[derive(Debug)]
pub struct VerifyReport {
    /// Every file that was read.
    pub files: Vec<FileReport>,
    /// The epochs; `None` where the job record can't be read, without which they mean nothing.
    pub listing: Option<Listing>,
    /// Files that are none of the store's, or were left by something that was interrupted. They do no
    /// harm.
    pub strays: Vec<String>,
}

impl VerifyReport {
    /// The files that something is wrong with.
    pub fn damaged(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.files.iter().filter_map(|file| {
            let error = file.result.as_ref().err()?;
            Some((&*file.path, error))
        })
    }

    /// Whether every file is as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damaged().next().is_none()
    }
}

/// Verifies the store in `storage`; `on_file` sees each file's report as it is done. An error is returned only
/// where the store can't be looked at.
pub fn verify_store(
    storage: &SharedStorage,
    mut on_file: impl FnMut(&FileReport),
) -> Result<VerifyReport> {
    let mut files = Vec::new();
    let mut add = |path: String, file_bytes, result| {
        let report = FileReport {
            path,
            file_bytes,
            result,
        };
        on_file(&report);
        files.push(report);
    };
    let job = match read_job(&**storage) {
        Ok(job) => job,
        Err(error @ (Error::NotAStore { .. } | Error::Io { .. })) => return Err(error),
        Err(error) => {
            add(names::JOB.to_owned(), 0, Err(error));
            return Ok(VerifyReport {
                files,
                listing: None,
                strays: Vec::new(),
            });
        }
    };
    add(names::JOB.to_owned(), 0, Ok(()));
    let store = JobStore::new(storage.clone(), job, None);
    let (incarnations, mut strays) = numbered(&**storage, names::INCARNATIONS, false)?;
    for number in incarnations {
        let incarnation = protocol::ids::Incarnation(number);
        let result = store.read_incarnation(incarnation).map(drop);
        add(names::incarnation(incarnation), 0, result);
    }
    let listing = store.list()?;
    for checkpoint in &listing.checkpoints {
        let path = names::manifest(checkpoint.epoch);
        match (&checkpoint.state, &checkpoint.manifest) {
            (CheckpointState::Unpublished, _) => {}
            (_, None) => {
                let result = store.read_manifest(checkpoint.epoch).map(drop);
                add(path, 0, result);
            }
            (_, Some(manifest)) => {
                add(path, 0, Ok(()));
                for rank in 0..manifest.ranks() {
                    let report = store.verify_file(manifest, Rank(rank));
                    add(report.path, report.file_bytes, report.result);
                }
            }
        }
        strays.extend(store.strays(checkpoint)?);
    }
    strays.extend(store.epoch_dirs()?.1);
    Ok(VerifyReport {
        files,
        listing: Some(listing),
        strays,
    })
}

impl JobStore {
    /// Verifies the whole store.
    pub fn verify(&self, on_file: impl FnMut(&FileReport)) -> Result<VerifyReport> {
        verify_store(&self.storage, on_file)
    }

    /// Verifies all files of one checkpoint.
    #[must_use]
    pub fn verify_checkpoint(&self, manifest: &Manifest) -> Vec<FileReport> {
        (0..manifest.ranks())
            .map(|rank| self.verify_file(manifest, Rank(rank)))
            .collect()
    }

    fn verify_file(&self, manifest: &Manifest, rank: Rank) -> FileReport {
        let file = &manifest.files[rank.index()];
        FileReport {
            path: file.name.clone(),
            file_bytes: file.file_bytes,
            result: RankFile::open(&*self.storage, file, manifest.file_key(rank))
                .and_then(|file| file.verify()),
        }
    }

    /// Files in an epoch's directory that its manifest does not list.
    fn strays(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let dir = names::epoch_dir(checkpoint.epoch);
        let entries = self
            .storage
            .list(&dir)
            .map_err(Error::io("list", self.storage.describe(&dir)))?;
        let listed = |path: &str| {
            checkpoint
                .manifest
                .iter()
                .any(|manifest| manifest.files.iter().any(|file| file.name == path))
        };
        Ok(entries
            .into_iter()
            .filter(|entry| entry.name != names::MANIFEST && entry.name != names::BAD)
            .map(|entry| format!("{dir}/{}", entry.name))
            .filter(|path| !listed(path))
            .collect())
    }
}
