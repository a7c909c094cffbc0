//! Images, stores and the steps of a checkpoint, shared by the store's tests.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;

use protocol::control::{Compression, NeededFile, StoredFile};
use protocol::ids::{Epoch, Incarnation, JobId, Rank};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::compaction::Limits;
use store::{
    CheckpointId, Effort, Error, FileKey, Finished, JobRecord, JobStore, Manifest, PAGE_BYTES,
    PublishError, Published, RankFileWriter, RankImage, Scratch, SectionKind, SharedStorage,
    Storage,
};

pub const JOB: JobId = JobId(*b"a job of a test!");
pub const RANKS: u32 = 2;

/// What a rank file holds: its pages, and its sections in the order of [`SectionKind::ALL`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub pages: BTreeMap<u64, Vec<u8>>,
    pub sections: [Vec<u8>; 3],
}

/// A small image: pages that compress, pages that do not, zero pages, holes, and two sections.
pub fn image(seed: u64, pages: u64) -> Image {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut image = Image::default();
    let mut number = random.random_range(0..1000);
    for _ in 0..pages {
        number += if random.random_range(0..4) == 0 {
            random.random_range(2..50)
        } else {
            1
        };
        let mut page = vec![0; PAGE_BYTES];
        match random.random_range(0..3) {
            0 => {}
            1 => random.fill_bytes(&mut page),
            _ => page.fill(random.random_range(1..=255)),
        }
        image.pages.insert(number, page);
    }
    image.sections = [
        format!("metadata {seed}").into_bytes(),
        vec![seed as u8; random.random_range(0..300)],
        Vec::new(),
    ];
    image
}

pub fn key(incarnation: u64, epoch: u64, rank: u32) -> FileKey {
    FileKey {
        job: JOB,
        incarnation: Incarnation(incarnation),
        epoch: Epoch(epoch),
        rank: Rank(rank),
    }
}

/// The image that rank `rank` has in checkpoint `epoch`, in all of these tests: some of its pages change
/// from one checkpoint to the next, some come and go.
pub fn image_of(epoch: Epoch, rank: u32) -> Image {
    let mut image = Image::default();
    for place in 0..14 {
        let changes =
            |epoch: &u64| ChaCha8Rng::seed_from_u64(epoch * 1000 + place).random_range(0..3) == 0;
        let changed = (1..=epoch.0).rev().find(changes).unwrap_or(0);
        let seed = changed * 10_000 + place * 10 + u64::from(rank);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut page = vec![0; PAGE_BYTES];
        match random.random_range(0..5) {
            0 => continue,
            1 => {}
            2 => random.fill_bytes(&mut page),
            _ => page.fill(random.random_range(1..=255)),
        }
        image.pages.insert(place + place / 5 * 20, page);
    }
    image.sections = [
        format!("metadata {epoch}").into_bytes(),
        vec![epoch.0 as u8; 100],
        Vec::new(),
    ];
    image
}

pub fn write_image(
    storage: SharedStorage,
    key: FileKey,
    image: &Image,
    compression: Compression,
) -> store::Result<StoredFile> {
    let effort = compression.into();
    let mut file = RankFileWriter::create(storage, key, None)?;
    let numbers: Vec<u64> = image.pages.keys().copied().collect();
    let bytes: Vec<u8> = image.pages.values().flatten().copied().collect();
    file.pages(effort, &numbers, &bytes)?;
    for (kind, section) in SectionKind::ALL.into_iter().zip(&image.sections) {
        file.section(kind, effort, section)?;
    }
    Ok(file.finish()?.file)
}

/// Reads a full image as a restore does, without the digest over the whole file.
pub fn read_image(
    storage: &dyn Storage,
    stored: &StoredFile,
    key: FileKey,
) -> store::Result<Image> {
    read_image_with(storage, stored, key, &[])
}

/// Reads an image that may have pages in files of other checkpoints, as a restore does.
pub fn read_image_with(
    storage: &dyn Storage,
    stored: &StoredFile,
    key: FileKey,
    needs: &[NeededFile],
) -> store::Result<Image> {
    let file = RankImage::open(storage, stored, key, needs)?;
    let mut image = Image::default();
    for run in file.map().runs() {
        if run.source == store::rank_file::PageSource::Zero {
            for page in run.first_page..run.first_page + run.pages {
                image.pages.insert(page, vec![0; PAGE_BYTES]);
            }
        }
    }
    let mut scratch = Scratch::new();
    let mut next = 0;
    while next < file.part_count() {
        // As a restore does.
        let together = file.read_together(next..file.part_count(), &mut scratch);
        assert!(together > 0);
        for part in next..next + together {
            file.read_part(part, &mut scratch, |page, bytes| {
                let before = image.pages.insert(page, bytes.to_vec());
                assert!(before.is_none(), "page {page} is there twice");
            })?;
        }
        next += together;
    }
    for (at, kind) in SectionKind::ALL.into_iter().enumerate() {
        image.sections[at] = file.section(kind)?;
    }
    Ok(image)
}

pub fn job() -> JobRecord {
    JobRecord {
        job: JOB,
        argv: vec!["heat".into(), "--steps".into(), "10".into()],
        cwd: "/somewhere".into(),
        ranks: RANKS,
        processes: 1,
        slot_bytes: 1 << 36,
        stack_bytes: 1 << 26,
        compression: Compression::Fast,
        keep: 2,
        created_unix_ms: 1_700_000_000_000,
        options: BTreeMap::from([("every".into(), "2s".into())]),
    }
}

/// Why a checkpoint was not taken.
#[derive(Debug)]
pub enum Failed {
    /// Before the rename: the coordinator aborts.
    Before(Error),
    /// Nobody knows: the coordinator ends.
    Unresolved(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

/// Takes a checkpoint of all ranks, as processes and coordinator together do: whole images.
pub fn checkpoint(store: &JobStore, epoch: Epoch) -> Result<Published, Failed> {
    take(store, epoch, None)
}

/// Takes a checkpoint that builds on the newest one, and whose images are in three files at most.
pub fn checkpoint_on_newest(store: &JobStore, epoch: Epoch) -> Result<Published, Failed> {
    let base = store.newest_usable()?;
    take(store, epoch, base.as_ref())
}

fn take(store: &JobStore, epoch: Epoch, base: Option<&Manifest>) -> Result<Published, Failed> {
    let incarnation = store.incarnation().expect("the job was started");
    store.begin_epoch(epoch)?;
    let mut files = Vec::new();
    let mut needs = Vec::new();
    for rank in 0..store.job().ranks {
        let key = key(incarnation.0, epoch.0, rank);
        let finished = write_on(store.storage(), key, base)?;
        files.push(finished.file);
        needs.extend_from_slice(finished.map.needs());
    }
    let manifest = Manifest {
        needs,
        parent: base.map(Manifest::id),
        ..manifest(incarnation, epoch, files)
    };
    store
        .publish(&manifest, |_| {})
        .map_err(|error| match error {
            PublishError::NotPublished(error) => Failed::Before(error),
            PublishError::Unresolved(error) => Failed::Unresolved(error),
        })
}

/// Writes the image of a rank, as far as it is not as it was in `base`.
fn write_on(
    storage: &SharedStorage,
    key: FileKey,
    base: Option<&Manifest>,
) -> store::Result<Finished> {
    let effort = Effort::Zstd(1);
    let image = image_of(key.epoch, key.rank.0);
    let (map, before) = match base {
        None => (None, Image::default()),
        Some(base) => {
            let file = &base.files[key.rank.index()];
            let opened = RankImage::open(&**storage, file, base.file_key(key.rank), &base.needs)?;
            (Some(opened.map()), image_of(base.epoch, key.rank.0))
        }
    };
    let mut file = RankFileWriter::create(storage.clone(), key, map.clone())?;
    let mut unchanged = Vec::new();
    for (number, page) in &image.pages {
        if before.pages.get(number) == Some(page) {
            unchanged.push(*number..*number + 1);
        } else {
            file.pages(effort, &[*number], page)?;
        }
    }
    if map.is_some() {
        file.inherit(&unchanged)?;
        let limits = Limits {
            files_max: 3,
            ..Limits::default()
        };
        let mut carrying = file.carry_over(&limits)?;
        let (mut pages, mut bytes) = (Vec::new(), Vec::new());
        while carrying.next_piece(&mut pages, &mut bytes)? {
            file.pages(effort, &pages, &bytes)?;
        }
    }
    for (kind, section) in SectionKind::ALL.into_iter().zip(&image.sections) {
        file.section(kind, effort, section)?;
    }
    file.finish()
}

pub fn manifest(incarnation: Incarnation, epoch: Epoch, files: Vec<StoredFile>) -> Manifest {
    Manifest {
        job: JOB,
        incarnation,
        epoch,
        files,
        committed_unix_ms: 1_700_000_000_001,
        ..Manifest::default()
    }
}

/// Makes a store with checkpoints 1 to `epochs` of incarnation 1.
pub fn store_with(storage: SharedStorage, epochs: u64) -> JobStore {
    let mut store = JobStore::create_on(storage, job()).unwrap();
    store.begin_incarnation(None).unwrap();
    for epoch in 1..=epochs {
        assert!(checkpoint(&store, Epoch(epoch)).unwrap().durable);
    }
    store
}

/// Makes a store with checkpoints 1 to `epochs` of incarnation 1, each built on the one before.
pub fn store_with_chain(storage: SharedStorage, epochs: u64) -> JobStore {
    let mut store = JobStore::create_on(storage, job()).unwrap();
    store.begin_incarnation(None).unwrap();
    for epoch in 1..=epochs {
        assert!(checkpoint_on_newest(&store, Epoch(epoch)).unwrap().durable);
    }
    store
}

/// Asserts that the newest usable checkpoint is of `epoch` and that every rank of it reads back as it
/// was, and gives its identity.
pub fn assert_restores(store: &JobStore, epoch: Epoch) -> CheckpointId {
    let manifest = store
        .newest_usable()
        .unwrap()
        .expect("there is a usable checkpoint");
    assert_eq!(manifest.epoch, epoch);
    assert_readable(store, &manifest);
    manifest.id()
}

/// Asserts that every rank of a checkpoint reads back as it was.
pub fn assert_readable(store: &JobStore, manifest: &Manifest) {
    for rank in 0..manifest.ranks() {
        let stored = &manifest.files[rank as usize];
        let key = manifest.file_key(Rank(rank));
        let found = read_image_with(&**store.storage(), stored, key, &manifest.needs).unwrap();
        assert_eq!(found, image_of(manifest.epoch, rank));
        RankImage::open(&**store.storage(), stored, key, &manifest.needs)
            .and_then(|file| file.verify())
            .unwrap();
    }
}
