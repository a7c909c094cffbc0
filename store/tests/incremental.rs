//! Files that hold only what has changed, and refer to other checkpoints for the rest.

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use common::{Image, key, read_image, read_image_with};
use protocol::control::NeededFile;
use store::compaction::Limits;
use store::storage::Storage as _;
use store::{
    Effort, Error, Finished, ImageMap, MemoryStorage, PAGE_BYTES, Packer, RankFileWriter,
    RankImage, Scratch, SectionKind, SharedStorage, names,
};

const FAST: Effort = Effort::Zstd(1);

/// A storage with the directories of epochs 1 to 9.
fn storage() -> (MemoryStorage, SharedStorage) {
    let storage = MemoryStorage::new();
    storage.create_dir("epochs").unwrap();
    for epoch in 1..10 {
        storage.create_dir(&format!("epochs/{epoch:06}")).unwrap();
    }
    (storage.clone(), Arc::new(storage))
}

/// A page that tells which it is and when it was written.
fn page(number: u64, epoch: u64) -> Vec<u8> {
    let words =
        (0..PAGE_BYTES as u64 / 8).flat_map(|at| (number << 32 | epoch << 16 | at).to_le_bytes());
    words.collect()
}

/// Writes a file with these pages as of this epoch, and the rest inherited.
fn write(
    storage: &SharedStorage,
    epoch: u64,
    base: Option<&ImageMap>,
    changed: &[u64],
    inherited: &[Range<u64>],
) -> Finished {
    let base = base.map(|base| Arc::new(base.clone()));
    let mut file = RankFileWriter::create(storage.clone(), key(1, epoch, 0), base).unwrap();
    let bytes: Vec<u8> = changed
        .iter()
        .flat_map(|number| page(*number, epoch))
        .collect();
    file.pages(FAST, changed, &bytes).unwrap();
    if !inherited.is_empty() {
        file.inherit(inherited).unwrap();
    }
    file.section(
        SectionKind::Metadata,
        FAST,
        format!("of {epoch}").as_bytes(),
    )
    .unwrap();
    file.finish().unwrap()
}

fn read(storage: &SharedStorage, epoch: u64, finished: &Finished) -> store::Result<Image> {
    read_image_with(
        &**storage,
        &finished.file,
        key(1, epoch, 0),
        finished.map.needs(),
    )
}

/// The image that holds each page as of the epoch that is told.
fn expected(epoch: u64, pages: &[(u64, u64)]) -> Image {
    Image {
        pages: pages
            .iter()
            .map(|(number, epoch)| (*number, page(*number, *epoch)))
            .collect(),
        sections: [format!("of {epoch}").into_bytes(), Vec::new(), Vec::new()],
    }
}

#[test]
fn pages_that_did_not_change_are_read_from_where_they_were_written() {
    let (_, storage) = storage();
    let first = write(&storage, 1, None, &[10, 11, 12, 13, 20], &[]);
    let second = write(
        &storage,
        2,
        Some(&first.map),
        &[11, 30],
        &[10..11, 12..14, 20..21],
    );
    // Page 20 is freed, page 12 changes, 11 is the second's.
    let third = write(
        &storage,
        3,
        Some(&second.map),
        &[12],
        &[10..12, 13..14, 30..31],
    );
    let epochs = |finished: &Finished| -> Vec<u64> {
        finished
            .map
            .needs()
            .iter()
            .map(|need| need.epoch.0)
            .collect()
    };
    assert!(epochs(&first).is_empty());
    assert_eq!(epochs(&second), [1]);
    assert_eq!(epochs(&third), [1, 2]);
    assert_eq!(
        read(&storage, 3, &third).unwrap(),
        expected(3, &[(10, 1), (11, 2), (12, 3), (13, 1), (30, 2)])
    );
    assert_eq!(
        read(&storage, 2, &second).unwrap(),
        expected(2, &[(10, 1), (11, 2), (12, 1), (13, 1), (20, 1), (30, 2)])
    );
    assert_eq!(third.file.raw_bytes, 5 * PAGE_BYTES as u64 + 4);
    assert_eq!(third.file.changed_bytes, PAGE_BYTES as u64 + 4);
    assert!(third.file.file_bytes < 4096, "{}", third.file.file_bytes);

    // What is opened is the map that was made when it was written.
    let image = RankImage::open(&*storage, &third.file, key(1, 3, 0), third.map.needs()).unwrap();
    assert_eq!(*image.map(), third.map);
    image.verify().unwrap();
    let mut scratch = Scratch::new();
    let found = image.read_page(11, &mut scratch).unwrap().unwrap();
    assert_eq!(found[..], page(11, 2));
    assert!(image.read_page(20, &mut scratch).unwrap().is_none());

    // A fourth that refers to nothing of the first does not need it.
    let fourth = write(
        &storage,
        4,
        Some(&image.map()),
        &[10, 13],
        &[11..13, 30..31],
    );
    assert_eq!(epochs(&fourth), [2, 3]);
}

#[test]
fn zero_pages_are_inherited_as_zeros_and_need_no_file() {
    let (_, storage) = storage();
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
    file.pages(FAST, &[4, 5, 6], &vec![0; 3 * PAGE_BYTES])
        .unwrap();
    file.pages(FAST, &[7], &page(7, 1)).unwrap();
    file.zero_pages(8, 1 << 40).unwrap();
    let first = file.finish().unwrap();
    let second = write(&storage, 2, Some(&first.map), &[7], &[5..7, 8..1000]);
    assert_eq!(second.map.needs(), []);
    assert_eq!(second.map.page_count(), 3 + 992);
    assert_eq!(second.map.runs().len(), 3);
}

#[test]
fn what_the_base_does_not_have_can_not_be_inherited() {
    let (_, storage) = storage();
    let first = write(&storage, 1, None, &[1, 2, 4], &[]);
    let base = Arc::new(first.map);
    let create =
        || RankFileWriter::create(storage.clone(), key(1, 2, 0), Some(base.clone())).unwrap();
    let error = create().inherit(&[1..3, 3..5]).unwrap_err().to_string();
    assert!(error.contains("page 3 can't be inherited"), "{error}");

    let mut file = create();
    file.pages(FAST, &[2], &page(2, 2)).unwrap();
    file.inherit(&[1..3, 4..5]).unwrap();
    let error = file.finish().unwrap_err().to_string();
    assert!(error.contains("page 2 was added twice"), "{error}");

    for (wrong, rank) in [(key(1, 1, 0), 0), (key(1, 2, 1), 1)] {
        let error = RankFileWriter::create(storage.clone(), wrong, Some(base.clone())).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{rank}: {error}");
    }
    let mut full = RankFileWriter::create(storage.clone(), key(1, 2, 0), None).unwrap();
    full.inherit(&[1..2, 2..3]).unwrap_err();
}

#[test]
fn chunks_are_packed_by_several_threads_and_appended_in_any_order() {
    let (_, storage) = storage();
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
    let packing = file.packing();
    let pieces: Vec<Vec<u64>> = (0..40u64)
        .map(|piece| (piece * 50..piece * 50 + 40).collect())
        .collect();
    let mut chunks = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4usize)
            .map(|thread| {
                let (packing, pieces) = (packing.clone(), &pieces);
                scope.spawn(move || {
                    let mut packer = Packer::new();
                    let mut chunks = Vec::new();
                    for (at, piece) in pieces.iter().enumerate().skip(thread).step_by(4) {
                        let effort =
                            [Effort::Stored, FAST, Effort::Zstd(3), Effort::Zstd(-1)][at % 4];
                        let mut bytes: Vec<u8> =
                            piece.iter().flat_map(|number| page(*number, 1)).collect();
                        // One page of each is zeros, and one whole piece.
                        let zeros = if at == 7 {
                            0..bytes.len()
                        } else {
                            9 * PAGE_BYTES..10 * PAGE_BYTES
                        };
                        bytes[zeros].fill(0);
                        let chunk = packing.pack(&mut packer, effort, piece, &bytes).unwrap();
                        assert_eq!(chunk.zero_pages(), if at == 7 { 40 } else { 1 });
                        assert_eq!(
                            chunk.raw_bytes(),
                            (40 - chunk.zero_pages()) * PAGE_BYTES as u64
                        );
                        chunks.push(chunk);
                    }
                    chunks
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    file.section(SectionKind::Tables, FAST, b"tables").unwrap();
    while !chunks.is_empty() {
        let chunk = chunks.swap_remove(chunks.len() / 2);
        file.append(chunk).unwrap();
    }
    let finished = file.finish().unwrap();
    let mut expected: BTreeMap<u64, Vec<u8>> = pieces
        .concat()
        .into_iter()
        .map(|number| (number, page(number, 1)))
        .collect();
    for (at, piece) in pieces.iter().enumerate() {
        for (place, number) in piece.iter().enumerate() {
            if at == 7 || place == 9 {
                expected.get_mut(number).unwrap().fill(0);
            }
        }
    }
    let found = read_image(&*storage, &finished.file, key(1, 1, 0)).unwrap();
    assert_eq!(found.pages, expected);
    assert_eq!(found.sections[1], b"tables");
}

#[test]
fn a_chunk_that_was_packed_must_be_appended_to_its_own_file() {
    let (memory, storage) = storage();
    let mut file = RankFileWriter::create(storage.clone(), key(1, 1, 0), None).unwrap();
    let mut other = RankFileWriter::create(storage.clone(), key(1, 1, 1), None).unwrap();
    let mut packer = Packer::new();
    let chunk = file
        .packing()
        .pack(&mut packer, FAST, &[3], &page(3, 1))
        .unwrap();
    other.append(chunk).unwrap_err();
    file.pages(FAST, &[4], &page(4, 1)).unwrap();
    let error = file.finish().unwrap_err().to_string();
    assert!(error.contains("not appended"), "{error}");
    drop(other);
    assert!(memory.list("epochs/000001").unwrap().is_empty());
}

#[test]
fn an_image_does_not_open_without_a_file_that_it_needs_or_with_another_in_its_place() {
    let (memory, storage) = storage();
    let first = write(&storage, 1, None, &[1, 2, 3], &[]);
    let second = write(&storage, 2, Some(&first.map), &[3], &[1..3, 3..3]);
    let open = |needs: &[NeededFile]| {
        RankImage::open(&*storage, &second.file, key(1, 2, 0), needs).map(drop)
    };
    open(second.map.needs()).unwrap();
    let error = open(&[]).unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(error.to_string().contains("epoch 1"), "{error}");

    // A file of the right name and key, whose pages lie elsewhere.
    for others in [&[2, 3, 4][..], &[1], &[2, 1]] {
        storage.remove_file(&first.file.name).unwrap();
        let other = write(&storage, 1, None, others, &[]);
        let needs = [NeededFile {
            file: other.file.clone(),
            ..second.map.needs()[0].clone()
        }];
        let error = open(&needs).unwrap_err();
        assert!(error.is_damage(), "{others:?}: {error}");
        assert!(
            error.to_string().contains("is not there"),
            "{others:?}: {error}"
        );
        let error = open(second.map.needs()).unwrap_err();
        assert!(
            error.to_string().contains(&first.file.name),
            "{others:?}: {error}"
        );
    }
    memory.remove_file(&first.file.name).unwrap();
    let error = open(second.map.needs()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

/// The pages of files 1 to 4, of which 4 refers to all others: page n is of epoch n, and 10 to 99 of epoch 1.
fn chain(storage: &SharedStorage) -> ImageMap {
    let first: Vec<u64> = (10..100).chain(1..5).collect();
    let mut map = write(storage, 1, None, &first, &[]).map;
    for epoch in 2..5 {
        let others = [1..epoch, epoch + 1..5, 10..100];
        map = write(storage, epoch, Some(&map), &[epoch], &others).map;
    }
    assert_eq!(map.needs().len(), 3);
    map
}

/// A writer of epoch 5 with one changed page, and the rest inherited.
fn fifth(storage: &SharedStorage, base: &ImageMap) -> RankFileWriter {
    let base = Some(Arc::new(base.clone()));
    let mut file = RankFileWriter::create(storage.clone(), key(1, 5, 0), base).unwrap();
    file.pages(FAST, &[50], &page(50, 5)).unwrap();
    file.inherit(&[1..5, 10..50, 51..100]).unwrap();
    file
}

fn carry(file: &mut RankFileWriter, limits: &Limits) -> store::Result<u64> {
    let (packing, mut packer) = (file.packing(), Packer::new());
    let mut carrying = file.carry_over(limits)?;
    let carried_bytes = carrying.bytes_left();
    let (mut pages, mut bytes) = (Vec::new(), Vec::new());
    while carrying.next_piece(&mut pages, &mut bytes)? {
        let chunk = packing.pack(&mut packer, FAST, &pages, &bytes).unwrap();
        file.append(chunk).unwrap();
    }
    assert_eq!(carrying.bytes_left(), 0);
    Ok(carried_bytes)
}

fn files_max(files_max: usize) -> Limits {
    Limits {
        files_max,
        ..Limits::default()
    }
}

#[test]
fn pages_are_carried_over_from_the_files_that_are_given_up() {
    for (files, needs, carried) in [
        (8, &[1, 2, 3, 4][..], 0),
        (4, &[1], 3),
        (2, &[1], 3),
        (1, &[], 93),
    ] {
        let (memory, storage) = storage();
        let base = chain(&storage);
        let mut file = fifth(&storage, &base);
        let carried_bytes = carry(&mut file, &files_max(files)).unwrap();
        assert_eq!(carried_bytes, carried * PAGE_BYTES as u64, "{files}");
        let finished = file.finish().unwrap();
        let needed: Vec<u64> = finished
            .map
            .needs()
            .iter()
            .map(|need| need.epoch.0)
            .collect();
        assert_eq!(needed, needs, "{files}");
        assert_eq!(finished.file.raw_bytes, 94 * PAGE_BYTES as u64);
        assert_eq!(
            finished.file.changed_bytes,
            (1 + carried) * PAGE_BYTES as u64
        );
        // What is given up can go.
        for epoch in (1..5).filter(|epoch| !needs.contains(epoch)) {
            memory
                .remove_file(&names::rank_file(&key(1, epoch, 0), 1))
                .unwrap();
        }
        let mut pages: Vec<(u64, u64)> = (1..5).map(|number| (number, number)).collect();
        pages.extend((10..100).map(|number| (number, if number == 50 { 5 } else { 1 })));
        let found = read(&storage, 5, &finished).unwrap();
        assert_eq!(found.pages, expected(5, &pages).pages, "{files}");
    }
}

#[test]
fn a_page_that_was_to_be_carried_over_is_not_lost() {
    let (_, storage) = storage();
    let base = chain(&storage);
    let mut file = fifth(&storage, &base);
    let mut carrying = file.carry_over(&files_max(1)).unwrap();
    let (mut pages, mut bytes) = (Vec::new(), Vec::new());
    assert!(carrying.next_piece(&mut pages, &mut bytes).unwrap());
    file.pages(FAST, &pages[1..], &bytes[PAGE_BYTES..]).unwrap();
    while carrying.next_piece(&mut pages, &mut bytes).unwrap() {
        file.pages(FAST, &pages, &bytes).unwrap();
    }
    let error = file.finish().unwrap_err().to_string();
    assert!(error.contains("was not carried over"), "{error}");
    // Nor where carrying stops half-way.
    let mut file = fifth(&storage, &base);
    drop(file.carry_over(&files_max(4)).unwrap());
    file.finish().unwrap_err();
}

#[test]
fn damage_that_is_met_while_carrying_over_names_the_old_file() {
    let (memory, storage) = storage();
    let base = chain(&storage);
    let damaged = base.needs()[1].file.name.clone();
    let mut length = 0;
    memory
        .tamper(&damaged, |bytes| length = bytes.len())
        .unwrap();
    for at in 0..length {
        memory.tamper(&damaged, |bytes| bytes[at] ^= 1).unwrap();
        let mut file = fifth(&storage, &base);
        match carry(&mut file, &files_max(4)) {
            Err(error) => {
                assert!(error.is_damage(), "{at}: {error}");
                assert!(error.to_string().contains(&damaged), "{at}: {error}");
            }
            // A byte of what is not carried over: the section.
            Ok(_) => {
                let found = read(&storage, 5, &file.finish().unwrap()).unwrap();
                assert_eq!(found.pages[&2], page(2, 2), "{at}");
                memory
                    .remove_file(&names::rank_file(&key(1, 5, 0), 1))
                    .unwrap();
            }
        }
        memory.tamper(&damaged, |bytes| bytes[at] ^= 1).unwrap();
    }
}
