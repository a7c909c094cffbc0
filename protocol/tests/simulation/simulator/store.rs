//! What survives every kill: epochs, files, manifests, marks.
//!
//! Files are incremental, as design 7 and 8 want them: each holds the pages that changed since its
//! parent, and an index that tells for every page which epoch's file has it. A manifest lists those files, and a
//! checkpoint is read by its manifest alone.

use std::collections::{BTreeMap, BTreeSet};

use protocol::control::{NeededFile, StoredFile};
use protocol::ids::{Epoch, Incarnation, Rank};
use serde::{Deserialize, Serialize};

use super::rank::{Packet, Tables};
use super::script::Memory;
use super::{Checked, mix, violated};

/// The epoch and incarnation whose file holds each page of a rank.
pub type Index = Vec<(Epoch, Incarnation)>;

/// A file of a rank in the store.
pub type FileId = (Epoch, Incarnation, Rank);

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

/// Where the pages of a rank of one checkpoint are, with the files: what a process keeps to build on.
#[derive(Clone, Debug, Default)]
pub struct ImageMap {
    pub index: Index,
    pub files: BTreeMap<(Epoch, Incarnation), StoredFile>,
}

impl ImageMap {
    /// The files of other checkpoints that an image with this index needs.
    pub fn needs(&self, own: (Epoch, Incarnation)) -> Vec<NeededFile> {
        let holders: BTreeSet<(Epoch, Incarnation)> = self.index.iter().copied().collect();
        holders
            .into_iter()
            .filter(|&holder| holder != own)
            .map(|holder| NeededFile {
                epoch: holder.0,
                incarnation: holder.1,
                // A file that nobody knows is told as it is: the coordinator or the store must refuse it.
                file: self.files.get(&holder).cloned().unwrap_or_default(),
            })
            .collect()
    }
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
    pub needs: Vec<NeededFile>,
}

impl Manifest {
    /// All files that the checkpoint is made of, its own first.
    pub fn all_files(&self, epoch: Epoch) -> impl Iterator<Item = (FileId, &StoredFile)> {
        let own = (epoch, self.incarnation);
        let own = self
            .files
            .iter()
            .map(move |file| ((own.0, own.1, file.rank), file));
        own.chain(self.needs.iter().map(|need| {
            let id = (need.epoch, need.incarnation, need.file.rank);
            (id, &need.file)
        }))
    }
}

/// Why a snapshot must not be published.
#[derive(Clone, Debug)]
pub enum Refused {
    /// It builds on something that was a checkpoint and is not there any more.
    BaseGone(String),
    /// It builds on something that never was a checkpoint.
    NeverThere(String),
}

/// The store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub epochs: BTreeMap<Epoch, Directory>,
    /// The highest epoch that ever had a directory.
    pub newest: Epoch,
    pub incarnations: u64,
    /// The checkpoints that were ever published.
    pub published: BTreeSet<(Epoch, Incarnation)>,
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    let words: Vec<u64> = bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        })
        .collect();
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&mix(&words).to_le_bytes());
    digest[8..].copy_from_slice(&mix(&[bytes.len() as u64]).to_le_bytes());
    digest
}

fn is_good(directory: &Directory) -> bool {
    directory.manifest.is_some() && directory.bad.is_none()
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
        let mut newest_first = self.epochs.iter().rev();
        newest_first
            .find(|(_, directory)| is_good(directory))
            .map(|(&epoch, _)| epoch)
    }

    /// The checkpoints that are not marked bad.
    pub fn checkpoints(&self) -> impl Iterator<Item = (Epoch, &Manifest)> {
        self.epochs
            .iter()
            .filter(|(_, directory)| is_good(directory))
            .filter_map(|(&epoch, directory)| Some((epoch, directory.manifest.as_ref()?)))
    }

    fn bytes(&self, (epoch, incarnation, rank): FileId) -> Option<&Vec<u8>> {
        self.epochs.get(&epoch)?.files.get(&(incarnation, rank))
    }

    /// A file as it was stored, or why it is not.
    pub fn read(&self, id: FileId, expected: &StoredFile) -> Result<Image, String> {
        let (epoch, _, rank) = id;
        let bytes = self
            .bytes(id)
            .ok_or_else(|| format!("the file of {rank} of {epoch} is missing"))?;
        if digest(bytes) != expected.digest {
            return Err(format!("{rank} of {epoch}: digest differs"));
        }
        postcard::from_bytes(bytes).map_err(|error| format!("{rank} of {epoch}: {error}"))
    }

    /// A rank of a checkpoint: its image, its memory put together from all files that hold it, and where they are. Read by
    /// the checkpoint's manifest alone.
    pub fn restore(&self, epoch: Epoch, rank: Rank) -> Result<(Image, Memory, ImageMap), String> {
        let manifest = self
            .epochs
            .get(&epoch)
            .and_then(|directory| directory.manifest.as_ref())
            .ok_or_else(|| format!("{epoch} is no checkpoint"))?;
        let files: BTreeMap<(Epoch, Incarnation), &StoredFile> = manifest
            .all_files(epoch)
            .filter(|(id, _)| id.2 == rank)
            .map(|(id, file)| ((id.0, id.1), file))
            .collect();
        let mut read: BTreeMap<(Epoch, Incarnation), Image> = BTreeMap::new();
        let mut holder = |(of, incarnation): (Epoch, Incarnation)| {
            if let Some(image) = read.get(&(of, incarnation)) {
                return Ok(image.clone());
            }
            let file = files.get(&(of, incarnation)).ok_or_else(|| {
                format!("the manifest of {epoch} lists no file of {rank} of {of}")
            })?;
            let image = self.read((of, incarnation, rank), file)?;
            read.insert((of, incarnation), image.clone());
            Ok::<Image, String>(image)
        };
        let image = holder((epoch, manifest.incarnation))?;
        let mut memory = Memory {
            history: image.tables.history,
            ..Memory::default()
        };
        for (page, &at) in image.index.iter().enumerate() {
            let missing = || format!("page {page} of {rank} is not in {}", at.0);
            let value = holder(at)?.pages.get(&(page as u64)).copied();
            memory.pages[page] = value.ok_or_else(missing)?;
        }
        let map = ImageMap {
            index: image.index.clone(),
            files: files
                .into_iter()
                .map(|(at, file)| (at, file.clone()))
                .collect(),
        };
        Ok((image, memory, map))
    }

    /// Whether every file that a snapshot's images build on is of a checkpoint that is still there, by word of its
    /// manifest, and as long as was told. A process that is behind with the news may have built on a checkpoint that has
    /// been removed since.
    pub fn check_needs(&self, needs: &[NeededFile]) -> Result<(), Refused> {
        for need in needs {
            let id = (need.epoch, need.incarnation, need.file.rank);
            let what = format!("the file of {} of {}", need.file.rank, need.epoch);
            if !self.published.contains(&(need.epoch, need.incarnation)) {
                return Err(Refused::NeverThere(what));
            }
            let listed = self.checkpoints().any(|(epoch, manifest)| {
                manifest.all_files(epoch).any(|it| it == (id, &need.file))
            });
            let long = self.bytes(id).map(|bytes| bytes.len() as u64);
            if !listed || long != Some(need.file.file_bytes) {
                return Err(Refused::BaseGone(format!("{what} is gone")));
            }
        }
        Ok(())
    }

    /// Reads all of a checkpoint.
    pub fn verify(&self, epoch: Epoch, ranks: u32) -> Result<(), String> {
        (0..ranks).try_for_each(|rank| self.restore(epoch, Rank(rank)).map(|_| ()))
    }

    /// Keeps the newest `keep` good checkpoints and what is newer, and of older epochs the files that a kept one needs.
    pub fn retain(&mut self, keep: usize, forget_needs: bool) {
        let kept: Vec<Epoch> = self
            .epochs
            .iter()
            .rev()
            .filter(|(_, directory)| is_good(directory))
            .map(|(&epoch, _)| epoch)
            .take(keep)
            .collect();
        let Some(&oldest) = kept.last() else { return };
        let needed: BTreeSet<FileId> = self
            .checkpoints()
            .filter(|(epoch, _)| *epoch >= oldest && !forget_needs)
            .flat_map(|(epoch, manifest)| manifest.all_files(epoch).map(|(id, _)| id))
            .collect();
        self.epochs.retain(|&epoch, directory| {
            if epoch < oldest {
                directory.manifest = None;
                let is_needed = |key: &(Incarnation, Rank)| needed.contains(&(epoch, key.0, key.1));
                directory.files.retain(|key, _| is_needed(key));
            }
            epoch >= oldest || !directory.files.is_empty()
        });
    }
}
