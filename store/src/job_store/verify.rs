//! Reads and checks every file of a store.

use std::collections::{HashMap, HashSet};

use protocol::control::{NeededFile, StoredFile};
use protocol::ids::{Epoch, Incarnation};

use super::listing::CheckpointState;
use super::{Checkpoint, JobStore, Listing, numbered, read_job};
use crate::rank_file::RankFile;
use crate::record::Manifest;
use crate::storage::SharedStorage;
use crate::{Error, FileKey, RankImage, Result, names};

/// What verifying one file came to.
#[derive(Debug)]
pub struct FileReport {
    /// Its path below the store.
    pub path: String,
    /// Its length in bytes, as the manifest has it; 0 for other files.
    pub file_bytes: u64,
    /// The checkpoints that it is part of, ascending: where it is damaged, none of them can be restored. Empty
    /// for files that belong to none.
    pub checkpoints: Vec<Epoch>,
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
    let mut add = |report: FileReport| {
        on_file(&report);
        files.push(report);
    };
    let job = match read_job(&**storage) {
        Ok(job) => job,
        Err(error @ (Error::NotAStore { .. } | Error::Io { .. })) => return Err(error),
        Err(error) => {
            add(FileReport::of_record(
                names::JOB.to_owned(),
                &[],
                Err(error),
            ));
            return Ok(VerifyReport {
                files,
                listing: None,
                strays: Vec::new(),
            });
        }
    };
    add(FileReport::of_record(names::JOB.to_owned(), &[], Ok(())));
    let store = JobStore::new(storage.clone(), job, None);
    let (incarnations, mut strays) = numbered(&**storage, names::INCARNATIONS, false)?;
    for number in incarnations {
        let incarnation = Incarnation(number);
        let result = store.read_incarnation(incarnation).map(drop);
        let path = names::incarnation(incarnation);
        add(FileReport::of_record(path, &[], result));
    }
    let listing = store.list()?;
    let mut verifying = Verifying::new(
        &store,
        listing
            .checkpoints
            .iter()
            .filter_map(|it| it.manifest.as_ref()),
    );
    for checkpoint in &listing.checkpoints {
        let epoch = checkpoint.epoch;
        let path = names::manifest(epoch);
        match (&checkpoint.state, &checkpoint.manifest) {
            (CheckpointState::Unpublished, _) => {}
            (_, None) => {
                let result = store.read_manifest(epoch).map(drop);
                add(FileReport::of_record(path, &[epoch], result));
            }
            (_, Some(manifest)) => {
                add(FileReport::of_record(path, &[epoch], Ok(())));
                verifying.checkpoint(manifest, &mut add);
            }
        }
        strays.extend(store.strays(checkpoint, &verifying)?);
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

    /// Verifies all files of one checkpoint, those of other checkpoints that it refers to too.
    #[must_use]
    pub fn verify_checkpoint(&self, manifest: &Manifest) -> Vec<FileReport> {
        let mut reports = Vec::new();
        Verifying::new(self, [manifest]).checkpoint(manifest, &mut |report| reports.push(report));
        reports
    }

    /// Files in an epoch's directory that no manifest lists.
    fn strays(&self, checkpoint: &Checkpoint, verifying: &Verifying<'_>) -> Result<Vec<String>> {
        let dir = names::epoch_dir(checkpoint.epoch);
        let entries = self
            .storage
            .list(&dir)
            .map_err(Error::io("list", self.storage.describe(&dir)))?;
        Ok(entries
            .into_iter()
            .filter(|entry| entry.name != names::MANIFEST && entry.name != names::BAD)
            .map(|entry| format!("{dir}/{}", entry.name))
            .filter(|path| !verifying.is_listed(path))
            .collect())
    }
}

impl FileReport {
    fn of_record(path: String, checkpoints: &[Epoch], result: Result<()>) -> Self {
        Self {
            path,
            file_bytes: 0,
            checkpoints: checkpoints.to_vec(),
            result,
        }
    }
}

/// A file as a manifest has it.
type Listed = (FileKey, StoredFile);

/// Verifying the files of some checkpoints, each file once.
struct Verifying<'s> {
    store: &'s JobStore,
    /// The checkpoints that a file is part of. Manifests that contradict each other list different files.
    users: HashMap<Listed, Vec<Epoch>>,
    names: HashSet<String>,
    /// The files that were verified, and whether they are sound.
    sound: HashMap<Listed, bool>,
}

impl<'s> Verifying<'s> {
    fn new<'m>(store: &'s JobStore, manifests: impl IntoIterator<Item = &'m Manifest>) -> Self {
        let mut users: HashMap<Listed, Vec<Epoch>> = HashMap::new();
        for manifest in manifests {
            for listed in
                own_files(manifest).chain(manifest.needs.iter().map(|need| needed(manifest, need)))
            {
                users.entry(listed).or_default().push(manifest.epoch);
            }
        }
        Self {
            store,
            names: users.keys().map(|(_, file)| file.name.clone()).collect(),
            users,
            sound: HashMap::new(),
        }
    }

    fn is_listed(&self, path: &str) -> bool {
        self.names.contains(path)
    }

    /// Verifies the files of a checkpoint that were not verified before, needed ones first.
    fn checkpoint(&mut self, manifest: &Manifest, add: &mut impl FnMut(FileReport)) {
        for need in &manifest.needs {
            self.file(needed(manifest, need), add, || Ok(()));
        }
        let storage = &*self.store.storage;
        for (key, file) in own_files(manifest) {
            let needs: Vec<NeededFile> = manifest
                .needs
                .iter()
                .filter(|need| need.file.rank == key.rank)
                .cloned()
                .collect();
            // Where a needed file is damaged, that is said of it, and nothing can be said of this one's pages there.
            let needs_are_sound = needs
                .iter()
                .all(|need| self.sound.get(&needed(manifest, need)) == Some(&true));
            let fits = || match needs_are_sound {
                true => RankImage::open(storage, &file, key, &needs).map(drop),
                false => Ok(()),
            };
            self.file((key, file.clone()), add, fits);
        }
    }

    /// Verifies one file, and then `more` of it; unless that was done.
    fn file(
        &mut self,
        listed: Listed,
        add: &mut impl FnMut(FileReport),
        more: impl FnOnce() -> Result<()>,
    ) {
        if self.sound.contains_key(&listed) {
            return;
        }
        let (key, stored) = &listed;
        let result = RankFile::open(&*self.store.storage, stored, *key)
            .and_then(|file| file.verify())
            .and_then(|()| more());
        let sound = result.is_ok();
        add(FileReport {
            path: stored.name.clone(),
            file_bytes: stored.file_bytes,
            checkpoints: self.users.get(&listed).cloned().unwrap_or_default(),
            result,
        });
        self.sound.insert(listed, sound);
    }
}

fn own_files(manifest: &Manifest) -> impl Iterator<Item = Listed> {
    manifest
        .files
        .iter()
        .map(|file| (manifest.file_key(file.rank), file.clone()))
}

fn needed(manifest: &Manifest, need: &NeededFile) -> Listed {
    let key = FileKey {
        job: manifest.job,
        incarnation: need.incarnation,
        epoch: need.epoch,
        rank: need.file.rank,
    };
    (key, need.file.clone())
}
