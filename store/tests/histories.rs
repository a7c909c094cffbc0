//! Random histories of a job: its ranks write and free pages, checkpoints are taken and aborted, old ones are
//! dropped, carried over, marked and removed, coordinators end and machines stop. Beside the store, a full copy of
//! each image is kept. Every checkpoint that may be used must at all times restore exactly what its copy
//! says.

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use common::{Image, RANKS, job, key, manifest, read_image_with};
use proptest::prelude::*;
use protocol::ids::{Epoch, Rank};
use store::compaction::Limits;
use store::storage::Survival;
use store::{
    Effort, Finished, ImageMap, JobStore, Manifest, MemoryStorage, PAGE_BYTES, Packer,
    PublishError, RankFileWriter, RankImage, SectionKind,
};

/// Pages are numbered below this.
const PAGES: u64 = 90;
/// The most that is packed into a chunk, so that there are many.
const CHUNK_PAGES: usize = 7;

#[derive(Clone, Debug)]
enum Step {
    Write {
        rank: u32,
        pages: Range<u64>,
        content: u8,
    },
    Free {
        rank: u32,
        pages: Range<u64>,
    },
    Checkpoint {
        fate: Fate,
        limits: Limits,
        seed: u64,
    },
    Retain(u32),
    MarkBad(usize),
    Remove(usize),
    Restart(Option<u64>),
}

/// What becomes of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Commit,
    /// A process fails while it writes.
    AbortEarly,
    /// Another one fails, after all files are written.
    AbortLate,
    /// The coordinator is lost before it publishes, the processes with it.
    Lost,
}

fn pages() -> impl Strategy<Value = Range<u64>> {
    (0..PAGES, 1u64..25).prop_map(|(first, pages)| first..(first + pages).min(PAGES))
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        6 => Just(Fate::Commit),
        1 => Just(Fate::AbortEarly),
        1 => Just(Fate::AbortLate),
        1 => Just(Fate::Lost),
    ];
    let limits =
        (1usize..8, 0u64..4, 0u64..30).prop_map(|(files_max, garbage_divisor, pages)| Limits {
            files_max,
            garbage_divisor,
            bytes_max: pages * PAGE_BYTES as u64,
        });
    prop_oneof![
        6 => (0..RANKS, pages(), any::<u8>())
            .prop_map(|(rank, pages, content)| Step::Write { rank, pages, content }),
        2 => (0..RANKS, pages()).prop_map(|(rank, pages)| Step::Free { rank, pages }),
        8 => (fate, limits, any::<u64>())
            .prop_map(|(fate, limits, seed)| Step::Checkpoint { fate, limits, seed }),
        2 => (0u32..4).prop_map(Step::Retain),
        1 => (0usize..4).prop_map(Step::MarkBad),
        1 => (0usize..4).prop_map(Step::Remove),
        1 => prop::option::of(any::<u64>()).prop_map(Step::Restart),
    ]
}

/// What a page holds, given its number and what was written to it.
fn bytes_of(number: u64, content: u8) -> Vec<u8> {
    match content % 4 {
        0 => vec![0; PAGE_BYTES],
        1 => (0..PAGE_BYTES as u64)
            .map(|at| {
                ((at ^ number ^ u64::from(content) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50)
                    as u8
            })
            .collect(),
        _ => [content, number as u8].repeat(PAGE_BYTES / 2),
    }
}

/// What a rank's pages hold.
type Memory = BTreeMap<u64, u8>;

fn image_of(memory: &Memory, epoch: Epoch) -> Image {
    Image {
        pages: memory
            .iter()
            .map(|(number, content)| (*number, bytes_of(*number, *content)))
            .collect(),
        sections: [epoch.0.to_le_bytes().to_vec(), Vec::new(), Vec::new()],
    }
}

/// What a process builds its next file of a rank on.
#[derive(Clone, Debug)]
struct Base {
    map: Arc<ImageMap>,
    copy: Memory,
}

struct World {
    medium: MemoryStorage,
    store: JobStore,
    ranks: Vec<(Memory, Option<Base>)>,
    /// Of every checkpoint that was committed: the copies, and how many files an image may be in.
    copies: BTreeMap<Epoch, (Vec<Memory>, usize)>,
    packer: Packer,
}

impl World {
    fn new() -> Self {
        let medium = MemoryStorage::new();
        let mut store = JobStore::create_on(Arc::new(medium.clone()), job()).unwrap();
        store.begin_incarnation(None).unwrap();
        Self {
            medium,
            store,
            ranks: vec![Default::default(); RANKS as usize],
            copies: BTreeMap::new(),
            packer: Packer::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write {
                rank,
                pages,
                content,
            } => {
                let written = pages.map(|number| (number, content));
                self.ranks[rank as usize].0.extend(written);
            }
            Step::Free { rank, pages } => {
                self.ranks[rank as usize]
                    .0
                    .retain(|number, _| !pages.contains(number));
            }
            Step::Checkpoint { fate, limits, seed } => self.checkpoint(fate, &limits, seed),
            Step::Retain(keep) => {
                let before = self.usable();
                self.store.retain(keep).unwrap();
                let kept = (keep.max(1) as usize).min(before.len());
                assert_eq!(self.usable(), before[before.len() - kept..]);
                self.check_nothing_is_left_over();
            }
            Step::MarkBad(which) => {
                if let Some(epoch) = self.usable().get(which) {
                    self.store.mark_bad(*epoch, "by the test").unwrap();
                }
            }
            Step::Remove(which) => {
                if let Some(epoch) = self.usable().get(which).copied() {
                    self.store.remove(epoch).unwrap();
                    assert!(!self.usable().contains(&epoch));
                }
            }
            Step::Restart(crash) => self.restart(crash),
        }
    }

    fn usable(&self) -> Vec<Epoch> {
        let listing = self.store.list().unwrap();
        let mut epochs: Vec<_> = listing.usable().map(|manifest| manifest.epoch).collect();
        epochs.reverse();
        epochs
    }

    fn checkpoint(&mut self, fate: Fate, limits: &Limits, seed: u64) {
        let incarnation = self.store.incarnation().unwrap();
        let epoch = self.store.highest_epoch().unwrap().next();
        self.store.begin_epoch(epoch).unwrap();
        let mut finished = Vec::new();
        for rank in 0..RANKS {
            let fails = fate == Fate::AbortEarly && rank == RANKS - 1;
            finished.extend(self.write(incarnation.0, epoch, rank, limits, seed, fails));
        }
        match fate {
            Fate::AbortEarly | Fate::AbortLate => return self.store.abort_epoch(epoch).unwrap(),
            Fate::Lost => return self.restart(None),
            Fate::Commit => {}
        }
        let files = finished
            .iter()
            .map(|finished| finished.file.clone())
            .collect();
        let needs = finished
            .iter()
            .flat_map(|finished| finished.map.needs())
            .cloned();
        let manifest = Manifest {
            needs: needs.collect(),
            ..manifest(incarnation, epoch, files)
        };
        match self.store.publish(&manifest, |_| {}) {
            Ok(published) => assert!(published.durable),
            Err(PublishError::NotPublished(error)) => {
                // What it builds on was marked or removed under its hands; never so for whole images.
                assert!(!manifest.needs.is_empty(), "{error}");
                self.store.abort_epoch(epoch).unwrap();
                for (_, base) in &mut self.ranks {
                    *base = None;
                }
                return;
            }
            Err(error) => panic!("{error}"),
        }
        let copies: Vec<Memory> = self
            .ranks
            .iter()
            .map(|(memory, _)| memory.clone())
            .collect();
        for ((memory, base), finished) in self.ranks.iter_mut().zip(finished) {
            *base = Some(Base {
                map: Arc::new(finished.map),
                copy: memory.clone(),
            });
        }
        self.copies.insert(epoch, (copies, limits.files_max));
    }

    /// Writes the file of a rank; nothing where it gives up.
    fn write(
        &mut self,
        incarnation: u64,
        epoch: Epoch,
        rank: u32,
        limits: &Limits,
        seed: u64,
        fails: bool,
    ) -> Option<Finished> {
        let (memory, base) = &self.ranks[rank as usize];
        let key = key(incarnation, epoch.0, rank);
        let map = base.as_ref().map(|base| base.map.clone());
        let mut file = RankFileWriter::create(self.store.storage().clone(), key, map).unwrap();
        // A tracker may take more for changed than is.
        let is_unchanged = |number: &u64, content: &u8| {
            let taken_for_changed = (number ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 == 0;
            base.as_ref()
                .is_some_and(|base| base.copy.get(number) == Some(content))
                && !taken_for_changed
        };
        let (unchanged, changed): (Memory, Memory) = memory
            .iter()
            .partition(|(number, content)| is_unchanged(number, content));
        let packing = file.packing();
        let numbers: Vec<u64> = changed.keys().copied().collect();
        let mut chunks: Vec<_> = numbers
            .chunks(CHUNK_PAGES)
            .map(|numbers| {
                let bytes: Vec<u8> = numbers
                    .iter()
                    .flat_map(|number| bytes_of(*number, changed[number]))
                    .collect();
                let effort = if seed.is_multiple_of(3) {
                    Effort::Stored
                } else {
                    Effort::Zstd(1)
                };
                packing
                    .pack(&mut self.packer, effort, numbers, &bytes)
                    .unwrap()
            })
            .collect();
        if seed.is_multiple_of(2) {
            chunks.reverse();
        }
        for chunk in chunks {
            file.append(chunk).unwrap();
        }
        if fails && seed.is_multiple_of(2) {
            return None;
        }
        file.section(
            SectionKind::Metadata,
            Effort::Stored,
            &epoch.0.to_le_bytes(),
        )
        .unwrap();
        if base.is_some() {
            let ranges: Vec<Range<u64>> =
                unchanged.keys().map(|number| *number..number + 1).collect();
            file.inherit(&ranges).unwrap();
            // What it builds on may have been removed or marked: then reading it may fail, as publishing would.
            let mut carrying = file.carry_over(limits).unwrap();
            let (mut pages, mut bytes) = (Vec::new(), Vec::new());
            loop {
                match carrying.next_piece(&mut pages, &mut bytes) {
                    Ok(true) => file.pages(Effort::Zstd(1), &pages, &bytes).unwrap(),
                    Ok(false) => break,
                    Err(error) => {
                        assert!(error.is_damage(), "{error}");
                        file.discard();
                        self.ranks[rank as usize].1 = None;
                        return self.write(incarnation, epoch, rank, limits, seed, fails);
                    }
                }
                if fails {
                    return None;
                }
            }
        }
        (!fails).then(|| file.finish().unwrap())
    }

    /// Starts again from the newest checkpoint that may be used, after the machine has stopped too or not.
    fn restart(&mut self, crash: Option<u64>) {
        let committed = self.usable();
        if let Some(seed) = crash {
            self.medium = self.medium.after_crash(Survival::Random(seed));
        }
        // The lock goes with the store that held it.
        let placeholder = JobStore::open_on(Arc::new(self.medium.clone())).unwrap();
        drop(std::mem::replace(&mut self.store, placeholder));
        self.store = JobStore::open_locked_on(Arc::new(self.medium.clone())).unwrap();
        if crash.is_some() {
            let found = self.usable();
            // One that was removed may be back, if its removal had not become durable.
            assert!(
                committed.iter().all(|epoch| found.contains(epoch)),
                "{committed:?} {found:?}"
            );
        }
        let newest = self.store.newest_usable().unwrap();
        let from = newest.as_ref().map(Manifest::id);
        self.store.begin_incarnation(from).unwrap();
        self.store.sweep().unwrap();
        self.ranks = vec![Default::default(); RANKS as usize];
        if let Some(manifest) = newest {
            let (copies, _) = &self.copies[&manifest.epoch];
            for (rank, copy) in (0..RANKS).zip(copies) {
                let stored = &manifest.files[rank as usize];
                let key = manifest.file_key(Rank(rank));
                let image = RankImage::open(&self.medium, stored, key, &manifest.needs).unwrap();
                let base = Base {
                    map: image.map(),
                    copy: copy.clone(),
                };
                self.ranks[rank as usize] = (copy.clone(), Some(base));
            }
        }
        self.check_nothing_is_left_over();
    }

    /// Every checkpoint that may be used restores what it must, and is in no more files than it may be.
    fn check(&self) {
        for manifest in self.store.list().unwrap().usable() {
            let (copies, files_max) = &self.copies[&manifest.epoch];
            for (rank, copy) in (0..RANKS).zip(copies) {
                let key = manifest.file_key(Rank(rank));
                let stored = &manifest.files[rank as usize];
                let found = read_image_with(&self.medium, stored, key, &manifest.needs).unwrap();
                assert_eq!(
                    found,
                    image_of(copy, manifest.epoch),
                    "{} of {rank}",
                    manifest.epoch
                );
                let needs = manifest
                    .needs
                    .iter()
                    .filter(|need| need.file.rank == Rank(rank))
                    .count();
                assert!(
                    needs < *files_max,
                    "{} of {rank}: {needs} needed files",
                    manifest.epoch
                );
            }
        }
        let report = self.store.verify(|_| {}).unwrap();
        assert!(
            report.is_sound(),
            "{:?}",
            report.damaged().collect::<Vec<_>>()
        );
    }

    fn check_nothing_is_left_over(&self) {
        let report = self.store.verify(|_| {}).unwrap();
        assert!(report.strays.is_empty(), "{:?}", report.strays);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_kept_checkpoint_restores_what_a_full_copy_says(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}
