//! What survives every kill: epochs, files, manifests, marks.
//!
//! Files are incremental, as design 7 and 8 want them: each holds the pages that changed since its
//! parent, and an index that tells for every page which epoch's file has it.

use std::collections::BTreeMap;

use protocol::control::StoredFile;
use protocol::ids::{Epoch, Incarnation, Rank};
use serde::{Deserialize, Serialize};

use super::rank::{Packet, Tables};
use super::script::Memory;
use super::{Checked, mix, violated};

/// The epoch and incarnation whose file holds each page of a rank.
pub type Index = Vec<(Epoch, Incarnation)>;

/// A rank as captured at a cut.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    pub rank: Rank,
    pub tables: Tables,
    /// The committed epoch that holds the pages missing here.
    pub parent: Option<Epoch>,
    pub pages: BTreeMap<u64, u64>,
    /// Whose file holds each page of the whole memory.
    pub index: Index,
    /// Packets of this rank that were not on a link at the cut.
    pub unsent: Vec<Packet>,
    /// Packets to this rank that were on a link at the cut.
    pub channel: Vec<Packet>,
}

/// One epoch's directory.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    pub files: BTreeMap<(Incarnation, Rank), Vec<u8>>,
    pub manifest: Option<Manifest>,
    pub bad: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Manifest {
    pub incarnation: Incarnation,
    pub files: Vec<StoredFile>,
}

/// The store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub epochs: BTreeMap<Epoch, Directory>,
    /// The highest epoch that ever had a directory.
    pub newest: Epoch,
    pub incarnations: u64,
    /// Whether a manifest was ever published.
    pub ever_committed: bool,
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    let words: Vec<u64> = bytes.iter().map(|&byte| u64::from(byte)).collect();
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&mix(&words).to_le_bytes());
    digest[8..].copy_from_slice(&mix(&[bytes.len() as u64]).to_le_bytes());
    digest
}

impl Store {
    /// Makes an epoch's directory.
    pub fn prepare(&mut self, epoch: Epoch) -> Checked {
        if epoch <= self.newest {
            return violated(format!("{epoch} was used before"));
        }
        self.newest = epoch;
        self.epochs.insert(epoch, Directory::default());
        Ok(())
    }

    /// Writes a rank's file. A process that nobody has told yet may write for an epoch that is gone.
    pub fn write(&mut self, epoch: Epoch, incarnation: Incarnation, image: &Image) -> StoredFile {
        let rank = image.rank;
        let bytes = postcard::to_allocvec(image).expect("an image has a stored form");
        let stored = StoredFile {
            rank,
            name: format!("{}/i{}-r{}.img", epoch.0, incarnation.0, rank.0),
            file_bytes: bytes.len() as u64,
            digest: digest(&bytes),
            raw_bytes: bytes.len() as u64,
            changed_bytes: bytes.len() as u64,
        };
        if let Some(directory) = self.epochs.get_mut(&epoch) {
            directory.files.insert((incarnation, rank), bytes);
        }
        stored
    }

    /// Leaves the front of a file where a write failed.
    pub fn tear(&mut self, epoch: Epoch, incarnation: Incarnation, rank: Rank) {
        if let Some(directory) = self.epochs.get_mut(&epoch) {
            directory.files.insert((incarnation, rank), vec![1, 2, 3]);
        }
    }

    /// The newest checkpoint that is not marked bad.
    pub fn newest_checkpoint(&self) -> Option<Epoch> {
        let good = |directory: &Directory| directory.manifest.is_some() && directory.bad.is_none();
        let mut newest_first = self.epochs.iter().rev();
        newest_first
            .find(|(_, directory)| good(directory))
            .map(|(&epoch, _)| epoch)
    }

    fn read(&self, epoch: Epoch, incarnation: Incarnation, rank: Rank) -> Result<Image, String> {
        let directory = self.epochs.get(&epoch).ok_or(format!("{epoch} is gone"))?;
        let manifest = directory
            .manifest
            .as_ref()
            .ok_or(format!("{epoch} was not published"))?;
        let missing = || format!("{rank} of {epoch} is missing");
        let expected = manifest
            .files
            .iter()
            .find(|file| file.rank == rank)
            .ok_or_else(missing)?;
        if manifest.incarnation != incarnation {
            return Err(format!("{epoch} is of {}", manifest.incarnation));
        }
        let bytes = directory
            .files
            .get(&(incarnation, rank))
            .ok_or_else(missing)?;
        if digest(bytes) != expected.digest {
            return Err(format!("{rank} of {epoch}: digest differs"));
        }
        postcard::from_bytes(bytes).map_err(|error| format!("{rank} of {epoch}: {error}"))
    }

    fn published(&self, epoch: Epoch, rank: Rank) -> Result<Image, String> {
        let directory = self.epochs.get(&epoch).ok_or(format!("{epoch} is gone"))?;
        let manifest = directory
            .manifest
            .as_ref()
            .ok_or(format!("{epoch} was not published"))?;
        self.read(epoch, manifest.incarnation, rank)
    }

    /// A rank of a checkpoint: its image, and its memory put together from all files that hold it.
    pub fn restore(&self, epoch: Epoch, rank: Rank) -> Result<(Image, Memory), String> {
        let image = self.published(epoch, rank)?;
        let mut memory = Memory {
            history: image.tables.history,
            ..Memory::default()
        };
        for (page, &(epoch, incarnation)) in image.index.iter().enumerate() {
            let holder = self.read(epoch, incarnation, rank)?;
            let missing = || format!("page {page} of {rank} is not in {epoch}");
            let value = holder.pages.get(&(page as u64)).ok_or_else(missing)?;
            memory.pages[page] = *value;
        }
        Ok((image, memory))
    }

    /// Whether every file that a snapshot's images build on is still there. A process that is behind with
    /// the news may have built on a checkpoint that has been removed since.
    pub fn holds_all(&self, epoch: Epoch, files: &[StoredFile], incarnation: Incarnation) -> bool {
        files.iter().all(|file| {
            let directory = &self.epochs[&epoch];
            let bytes = &directory.files[&(incarnation, file.rank)];
            let image: Image = postcard::from_bytes(bytes).expect("it was just stored");
            let mut holders = image.index.iter().filter(|holder| holder.0 != epoch);
            holders.all(|&(epoch, incarnation)| {
                let key = (incarnation, file.rank);
                self.epochs
                    .get(&epoch)
                    .is_some_and(|holder| holder.files.contains_key(&key))
            })
        })
    }

    /// Reads all of a checkpoint.
    pub fn verify(&self, epoch: Epoch, ranks: u32) -> Result<(), String> {
        (0..ranks).try_for_each(|rank| self.restore(epoch, Rank(rank)).map(|_| ()))
    }

    /// Removes checkpoints, aborted and failed epochs older than `keep` good checkpoints, except those
    /// that a kept one needs.
    pub fn retain(&mut self, keep: usize, ranks: u32) {
        let good = |directory: &Directory| directory.manifest.is_some() && directory.bad.is_none();
        let kept: Vec<Epoch> = self
            .epochs
            .iter()
            .rev()
            .filter(|(_, directory)| good(directory))
            .map(|(&epoch, _)| epoch)
            .take(keep)
            .collect();
        let Some(&oldest) = kept.last() else { return };
        let mut needed = kept.clone();
        for &epoch in &kept {
            for rank in 0..ranks {
                if let Ok(image) = self.published(epoch, Rank(rank)) {
                    needed.extend(image.index.iter().map(|holder| holder.0));
                }
            }
        }
        self.epochs
            .retain(|epoch, _| *epoch > oldest || needed.contains(epoch));
    }
}
