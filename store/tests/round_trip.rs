//! What is written to a rank file is what is read from it.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Image, image, key, read_image, write_image};
use proptest::prelude::*;
use protocol::control::Compression;
use store::storage::Storage as _;
use store::{
    DiskStorage, Effort, MemoryStorage, PAGE_BYTES, RankFileWriter, RankImage, Scratch,
    SectionKind, SharedStorage,
};

const FAST: Effort = Effort::Zstd(1);

/// A storage with the directory of epoch 1.
fn storage() -> SharedStorage {
    let storage = MemoryStorage::new();
    storage.create_dir("epochs").unwrap();
    storage.create_dir("epochs/000001").unwrap();
    Arc::new(storage)
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Zero,
    Fill(u8),
    Noise(u64),
    /// Numbers that change slowly, as those of a solver.
    Words(u64),
}

impl Content {
    fn page(self) -> Vec<u8> {
        match self {
            Self::Zero => vec![0; PAGE_BYTES],
            Self::Fill(byte) => vec![byte; PAGE_BYTES],
            Self::Noise(seed) => (0..PAGE_BYTES as u64)
                .map(|at| ((seed ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8)
                .collect(),
            Self::Words(seed) => (0..PAGE_BYTES as u64 / 8)
                .flat_map(|at| ((seed % 1000 + at) as f64 / 3.0).sqrt().to_le_bytes())
                .collect(),
        }
    }
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Zero),
        (1u8..).prop_map(Content::Fill),
        any::<u64>().prop_map(Content::Noise),
        any::<u64>().prop_map(Content::Words)
    ]
}

fn effort() -> impl Strategy<Value = Effort> {
    prop_oneof![Just(Effort::Stored), (-3..4).prop_map(Effort::Zstd)]
}

/// Runs of pages in any order: the key shuffles them.
fn runs() -> impl Strategy<Value = BTreeMap<u64, (u64, Vec<Content>)>> {
    prop::collection::btree_map(
        any::<u64>(),
        (0u64..40, prop::collection::vec(content(), 1..90)),
        0..6,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_reads_back_as_it_was_written(
        runs in runs(),
        sections in prop::array::uniform3(prop::collection::vec(any::<u8>(), 0..5000)),
        effort in effort(),
        calls in 1usize..40,
    ) {
        let mut expected = Image { pages: BTreeMap::new(), sections };
        let mut order = Vec::new();
        let mut next = 0;
        // Places are ascending in the order of gaps, and written in the order of keys.
        let mut placed: Vec<_> = runs.into_iter().collect();
        placed.sort_by_key(|(_, (gap, _))| *gap);
        for (shuffle, (gap, contents)) in placed {
            next += gap;
            for content in contents {
                let page = content.page();
                order.push((shuffle, next, page.clone()));
                expected.pages.insert(next, page);
                next += 1;
            }
        }
        order.sort_by_key(|(shuffle, number, _)| (*shuffle, *number));

        let storage = storage();
        let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
        for (at, call) in order.chunks(calls).enumerate() {
            let numbers: Vec<u64> = call.iter().map(|(_, number, _)| *number).collect();
            let bytes: Vec<u8> = call.iter().flat_map(|(_, _, page)| page).copied().collect();
            file.pages(effort, &numbers, &bytes).unwrap();
            if at == 1 {
                // Sections may come between pages, and in pieces.
                file.section(SectionKind::Metadata, effort, &expected.sections[0]).unwrap();
                expected.sections[0].extend_from_slice(b"and more");
                file.section(SectionKind::Metadata, effort, b"and more").unwrap();
            }
        }
        if order.chunks(calls).len() < 2 {
            file.section(SectionKind::Metadata, effort, &expected.sections[0]).unwrap();
        }
        file.section(SectionKind::Tables, effort, &expected.sections[1]).unwrap();
        file.section(SectionKind::Channel, effort, &expected.sections[2]).unwrap();
        let stored = file.finish().unwrap().file;

        prop_assert_eq!(read_image(&*storage, &stored, key(1, 1, 0)).unwrap(), expected.clone());
        let file = RankImage::open(&*storage, &stored, key(1, 1, 0), &[]).unwrap();
        file.verify().unwrap();
        prop_assert_eq!(file.map().page_count(), expected.pages.len() as u64);
        let mut scratch = Scratch::new();
        for page in 0..next + 2 {
            let found = file.read_page(page, &mut scratch).unwrap();
            prop_assert_eq!(found.as_ref().map(|page| &page[..]), expected.pages.get(&page).map(|page| &page[..]));
        }
        // And straight into memory that starts as zeros.
        let mut memory = vec![0; next as usize * PAGE_BYTES];
        let mut pages: BTreeMap<u64, &mut [u8]> = BTreeMap::new();
        let mut rest = &mut memory[..];
        let mut from = 0;
        let mut runs: Vec<_> = file.map().runs().to_vec();
        runs.retain(|run| run.source != store::rank_file::PageSource::Zero);
        for run in runs {
            let (_, after) = rest.split_at_mut((run.first_page - from) as usize * PAGE_BYTES);
            let (here, after) = after.split_at_mut(run.pages as usize * PAGE_BYTES);
            pages.insert(run.first_page, here);
            from = run.first_page + run.pages;
            rest = after;
        }
        for chunk in 0..file.part_count() {
            if chunk % 3 == 0 {
                let _ = file.read_together(chunk..file.part_count(), &mut scratch);
            }
            file.read_part_into(chunk, &mut scratch, |first, count| {
                // Runs of the index that touch in the chunk are one run there.
                let mut here = pages.remove(&first).unwrap();
                if here.len() > count * PAGE_BYTES {
                    let (now, later) = here.split_at_mut(count * PAGE_BYTES);
                    pages.insert(first + count as u64, later);
                    here = now;
                }
                Some(here)
            }).unwrap();
        }
        prop_assert!(pages.is_empty());
        for (number, page) in &expected.pages {
            let at = *number as usize * PAGE_BYTES;
            prop_assert_eq!(&memory[at..at + PAGE_BYTES], &page[..]);
        }
    }
}

#[test]
fn an_image_of_several_chunks_is_restored_by_several_threads() {
    let dir = tempfile::tempdir().unwrap();
    let storage: SharedStorage = Arc::new(DiskStorage::open(dir.path()).unwrap());
    storage.create_dir("epochs").unwrap();
    storage.create_dir("epochs/000001").unwrap();
    let image = image(3, 1000);
    let stored = write_image(storage.clone(), key(1, 1, 0), &image, Compression::Fast).unwrap();
    let file = RankImage::open(&*storage, &stored, key(1, 1, 0), &[]).unwrap();
    assert!(file.part_count() > 4);
    // Most of it is read at once.
    let together = file.read_together(0..file.part_count(), &mut Scratch::new());
    assert!(together > 1, "{together} of {}", file.part_count());
    let empty = file.read_together(3..3, &mut Scratch::new());
    let beyond = file.read_together(0..file.part_count() + 1, &mut Scratch::new());
    assert_eq!((empty, beyond), (0, 0));
    let found: BTreeMap<u64, Vec<u8>> = std::thread::scope(|scope| {
        let file = &file;
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    let mut scratch = Scratch::new();
                    let mut pages = Vec::new();
                    for chunk in (thread..file.part_count()).step_by(4) {
                        file.read_part(chunk, &mut scratch, |page, bytes| {
                            pages.push((page, bytes.to_vec()));
                        })
                        .unwrap();
                    }
                    pages
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut expected = image.pages;
    expected.retain(|_, page| page.iter().any(|byte| *byte != 0));
    assert_eq!(found, expected);
}

#[test]
fn zero_pages_cost_nothing() {
    let storage = storage();
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
    let numbers: Vec<u64> = (0..1000).collect();
    file.pages(FAST, &numbers, &vec![0; 1000 * PAGE_BYTES])
        .unwrap();
    file.zero_pages(1000, 1 << 30).unwrap();
    let stored = file.finish().unwrap().file;
    assert!(stored.file_bytes < 300, "{} bytes", stored.file_bytes);
    assert_eq!(stored.raw_bytes, ((1 << 30) + 1000) * PAGE_BYTES as u64);
    let file = RankImage::open(&*storage, &stored, key(1, 1, 0), &[]).unwrap();
    assert_eq!(file.map().page_count(), (1 << 30) + 1000);
    assert_eq!(file.part_count(), 0);
}

#[test]
fn bytes_that_do_not_compress_are_stored_as_they_are() {
    let storage = storage();
    let noise: Vec<u8> = {
        use rand::{Rng, SeedableRng};
        let mut bytes = vec![0; 64 * PAGE_BYTES];
        rand_chacha::ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut bytes);
        bytes
    };
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 1), None).unwrap();
    let numbers: Vec<u64> = (0..64).collect();
    file.pages(FAST, &numbers, &noise).unwrap();
    let stored = file.finish().unwrap().file;
    let above = stored.file_bytes - noise.len() as u64;
    assert!(above < 400, "{above} bytes more than the pages");
}

#[test]
fn a_page_given_twice_is_refused() {
    let storage = storage();
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
    file.pages(FAST, &[4, 5], &[1; 2 * PAGE_BYTES]).unwrap();
    file.pages(FAST, &[5], &[2; PAGE_BYTES]).unwrap();
    let error = file.finish().unwrap_err().to_string();
    assert!(error.contains("page 5 was added twice"), "{error}");
    assert!(storage.list("epochs/000001").unwrap().is_empty());
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let storage = storage();
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
    file.pages(FAST, &[4], &[1; PAGE_BYTES]).unwrap();
    file.discard();
    assert!(storage.list("epochs/000001").unwrap().is_empty());
}

#[test]
fn a_file_is_not_taken_for_another_ranks_epochs_or_jobs() {
    let storage = storage();
    let stored = write_image(
        storage.clone(),
        key(1, 1, 0),
        &image(1, 5),
        Compression::Fast,
    )
    .unwrap();
    let mut others = vec![key(2, 1, 0), key(1, 2, 0), key(1, 1, 1)];
    let mut other_job = key(1, 1, 0);
    other_job.job.0[3] ^= 1;
    others.push(other_job);
    for other in others {
        let error = RankImage::open(&*storage, &stored, other, &[]).unwrap_err();
        assert!(error.is_damage(), "{other:?}: {error}");
    }
}

#[test]
fn memory_of_the_wrong_size_is_refused() {
    let storage = storage();
    let stored = write_image(
        storage.clone(),
        key(1, 1, 0),
        &image(1, 5),
        Compression::Fast,
    )
    .unwrap();
    let file = RankImage::open(&*storage, &stored, key(1, 1, 0), &[]).unwrap();
    let mut short = [0; 100];
    let mut short = Some(&mut short[..]);
    file.read_part_into(0, &mut Scratch::new(), |_, _| short.take())
        .unwrap_err();
}

#[test]
fn numbers_of_a_solver_compress() {
    let storage = storage();
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
    let field: Vec<u8> = (0..128 * PAGE_BYTES / 8)
        .flat_map(|at| (at as f64 * 0.001).sin().to_le_bytes())
        .collect();
    let numbers: Vec<u64> = (100..228).collect();
    file.pages(FAST, &numbers, &field).unwrap();
    let stored = file.finish().unwrap().file;
    let file = RankImage::open(&*storage, &stored, key(1, 1, 0), &[]).unwrap();
    file.verify().unwrap();
    assert_eq!(file.part_count(), 2);
    let mut memory = vec![1; field.len()];
    let mut rest = &mut memory[..];
    for chunk in 0..2 {
        let (here, after) = rest.split_at_mut(64 * PAGE_BYTES);
        let mut here = Some(here);
        file.read_part_into(chunk, &mut Scratch::new(), |first, count| {
            assert_eq!((first, count), (100 + 64 * chunk as u64, 64));
            here.take()
        })
        .unwrap();
        rest = after;
    }
    assert!(memory == field);
    // As words they do not at all.
    assert!(zstd::bulk::compress(&field, 1).unwrap().len() > field.len() * 15 / 16);
    assert!(
        stored.file_bytes < field.len() as u64 * 7 / 8,
        "{} bytes",
        stored.file_bytes
    );
}
