//! Every byte of every kind of file changed in turn, files cut at every length, and made longer: always
//! noticed, never a panic, never a wrong read.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{
    Image, RANKS, image, image_of, key, read_image, read_image_with, store_with, store_with_chain,
    write_image,
};
use protocol::control::{Compression, StoredFile};
use protocol::ids::{Epoch, Incarnation};
use store::format::layout::{
    ChunkHeader, ENCODING_PLANES_ZSTD, ENCODING_RAW, ENCODING_ZSTD, FileHeader, Trailer,
};
use store::job_store::verify_store;
use store::storage::{Storage as _, Survival};
use store::{
    Effort, Error, Finished, JobStore, Manifest, MemoryStorage, PAGE_BYTES, RankFileWriter,
    RankImage, SectionKind, SharedStorage, names,
};
use zerocopy::FromBytes;

/// The ways in which a byte is changed: each bit alone would be eight times slower and shows no more.
const FLIPS: [u8; 3] = [0x01, 0x80, 0xff];

fn file_of(image: &Image, compression: Compression) -> (MemoryStorage, StoredFile) {
    let storage = MemoryStorage::new();
    storage.create_dir("epochs").unwrap();
    storage.create_dir("epochs/000001").unwrap();
    let stored = write_image(Arc::new(storage.clone()), key(1, 1, 0), image, compression).unwrap();
    (storage, stored)
}

/// Several chunks, since sections have their own, as few bytes as possible.
fn small_file(compression: Compression) -> (MemoryStorage, StoredFile, Image) {
    let image = image(5, 7);
    let (storage, stored) = file_of(&image, compression);
    (storage, stored, image)
}

/// A chunk large enough to be stored in planes.
fn words_file() -> (MemoryStorage, StoredFile, Image) {
    let mut image = Image::default();
    for page in 0..16 {
        let words = (0..512u64).flat_map(|at| ((page * 512 + at) * 7).to_le_bytes());
        image.pages.insert(page, words.collect());
    }
    let (storage, stored) = file_of(&image, Compression::Fast);
    (storage, stored, image)
}

/// Reads the file in both ways; each must refuse it.
fn assert_refused(storage: &MemoryStorage, stored: &StoredFile, how: &str) {
    let verified =
        RankImage::open(storage, stored, key(1, 1, 0), &[]).and_then(|file| file.verify());
    let error = verified.expect_err(how);
    assert!(error.is_damage(), "{how}: {error}");
    // Restoring does not compute the digest of the file: the chunks' own checks must be enough.
    let error = read_image(storage, stored, key(1, 1, 0)).expect_err(how);
    assert!(error.is_damage(), "{how}: {error}");
}

#[test]
fn the_files_below_have_chunks_of_every_encoding() {
    let mut found = BTreeSet::new();
    for (storage, stored, _) in [
        small_file(Compression::Fast),
        small_file(Compression::None),
        words_file(),
    ] {
        let first = size_of::<FileHeader>();
        storage
            .tamper(&stored.name, |bytes| {
                let (chunk, _) = ChunkHeader::read_from_prefix(&bytes[first..]).unwrap();
                found.insert(chunk.encoding.get());
            })
            .unwrap();
    }
    assert_eq!(
        found,
        BTreeSet::from([ENCODING_RAW, ENCODING_ZSTD, ENCODING_PLANES_ZSTD])
    );
}

#[test]
fn every_byte_of_a_rank_file_is_covered() {
    for (storage, stored, image) in [
        small_file(Compression::Fast),
        small_file(Compression::None),
        words_file(),
    ] {
        assert_eq!(read_image(&storage, &stored, key(1, 1, 0)).unwrap(), image);
        for at in 0..stored.file_bytes as usize {
            for flip in FLIPS {
                storage
                    .tamper(&stored.name, |bytes| bytes[at] ^= flip)
                    .unwrap();
                assert_refused(&storage, &stored, &format!("byte {at} ^ {flip:#x}"));
                storage
                    .tamper(&stored.name, |bytes| bytes[at] ^= flip)
                    .unwrap();
            }
        }
        assert_eq!(read_image(&storage, &stored, key(1, 1, 0)).unwrap(), image);
    }
}

#[test]
fn a_rank_file_of_any_other_length_is_refused() {
    let (storage, stored, _) = small_file(Compression::Fast);
    let mut whole = Vec::new();
    storage
        .tamper(&stored.name, |bytes| whole.clone_from(bytes))
        .unwrap();
    for length in 0..whole.len() {
        storage
            .tamper(&stored.name, |bytes| *bytes = whole[..length].to_vec())
            .unwrap();
        assert_refused(&storage, &stored, &format!("cut at {length}"));
        // Even if the manifest had been fooled about the length.
        let fooled = StoredFile {
            file_bytes: length as u64,
            ..stored.clone()
        };
        assert_refused(
            &storage,
            &fooled,
            &format!("cut at {length}, and expected so"),
        );
    }
    for more in [1, 8, 72, 4096] {
        for filler in [0, 0x5a] {
            let longer = [&whole[..], &vec![filler; more]].concat();
            storage
                .tamper(&stored.name, |bytes| *bytes = longer)
                .unwrap();
            assert_refused(&storage, &stored, &format!("{more} bytes longer"));
            let fooled = StoredFile {
                file_bytes: (whole.len() + more) as u64,
                ..stored.clone()
            };
            assert_refused(
                &storage,
                &fooled,
                &format!("{more} bytes longer, and expected so"),
            );
        }
    }
}

/// An image of epoch 3 with pages in the files of epochs 1 and 2, each of which also holds pages that are no
/// part of it any more, and a section of its own.
fn chain() -> (MemoryStorage, Finished, Image) {
    let storage = MemoryStorage::new();
    storage.create_dir("epochs").unwrap();
    let mut base: Option<Finished> = None;
    for (epoch, pages, inherited) in [
        (1, &[1, 2, 3, 4, 9][..], &[][..]),
        (2, &[3, 4, 5], &[1..3, 9..10]),
        (3, &[2, 4], &[1..2, 3..4, 5..6]),
    ] {
        storage.create_dir(&names::epoch_dir(Epoch(epoch))).unwrap();
        let map = base.map(|base| Arc::new(base.map));
        let shared: SharedStorage = Arc::new(storage.clone());
        let mut file = RankFileWriter::create(shared, key(1, epoch, 0), map).unwrap();
        // A chunk for each page, so that some chunks are not used any more.
        for number in pages {
            let page = [*number as u8 * 16 + epoch as u8; PAGE_BYTES];
            file.pages(Effort::Zstd(1), &[*number], &page).unwrap();
        }
        file.pages(Effort::Zstd(1), &[20 + epoch], &[0; PAGE_BYTES])
            .unwrap();
        if epoch > 1 {
            file.inherit(inherited).unwrap();
        }
        file.section(SectionKind::Metadata, Effort::Stored, &[epoch as u8; 50])
            .unwrap();
        base = Some(file.finish().unwrap());
    }
    let mut image = Image::default();
    for (number, epoch) in [(1, 1), (2, 3), (3, 2), (4, 3), (5, 2)] {
        image
            .pages
            .insert(number, vec![number as u8 * 16 + epoch; PAGE_BYTES]);
    }
    image.pages.insert(23, vec![0; PAGE_BYTES]);
    image.sections[0] = vec![3; 50];
    (storage, base.unwrap(), image)
}

/// Reads the image in both ways. Verifying must find the damage; restoring must find it, or read what is right
/// because the damage is in what it does not need.
fn assert_never_wrong(storage: &MemoryStorage, finished: &Finished, image: &Image, how: &str) {
    let (file, needs) = (&finished.file, finished.map.needs());
    let verified =
        RankImage::open(storage, file, key(1, 3, 0), needs).and_then(|image| image.verify());
    let error = verified.expect_err(how);
    assert!(error.is_damage(), "{how}: {error}");
    match read_image_with(storage, file, key(1, 3, 0), needs) {
        Ok(found) => assert_eq!(found, *image, "{how}"),
        Err(error) => assert!(error.is_damage(), "{how}: {error}"),
    }
}

#[test]
fn every_byte_and_length_of_every_file_of_an_incremental_image_is_covered() {
    let (storage, finished, image) = chain();
    assert_eq!(finished.map.needs().len(), 2);
    let found = read_image_with(&storage, &finished.file, key(1, 3, 0), finished.map.needs());
    assert_eq!(found.unwrap(), image);
    let needed = finished.map.needs().iter().map(|need| &need.file);
    for file in needed.chain([&finished.file]) {
        let name = &file.name;
        let mut whole = Vec::new();
        storage
            .tamper(name, |bytes| whole.clone_from(bytes))
            .unwrap();
        for at in 0..whole.len() {
            for flip in FLIPS {
                storage.tamper(name, |bytes| bytes[at] ^= flip).unwrap();
                let how = format!("{name}: byte {at} ^ {flip:#x}");
                assert_never_wrong(&storage, &finished, &image, &how);
                storage.tamper(name, |bytes| bytes[at] ^= flip).unwrap();
            }
            storage.tamper(name, |bytes| bytes.truncate(at)).unwrap();
            assert_never_wrong(&storage, &finished, &image, &format!("{name}: cut at {at}"));
            storage
                .tamper(name, |bytes| bytes.clone_from(&whole))
                .unwrap();
        }
        storage.tamper(name, |bytes| bytes.push(0)).unwrap();
        assert_never_wrong(&storage, &finished, &image, &format!("{name}: longer"));
        storage
            .tamper(name, |bytes| bytes.clone_from(&whole))
            .unwrap();
        storage.remove_file(name).unwrap();
        assert_never_wrong(&storage, &finished, &image, &format!("{name}: removed"));
        let mut again = storage
            .create_new(name, store::storage::Access::Owner)
            .unwrap();
        again.write(&whole).unwrap();
    }
    let found = read_image_with(&storage, &finished.file, key(1, 3, 0), finished.map.needs());
    assert_eq!(found.unwrap(), image, "all is as it was");
}

#[test]
fn damage_to_a_needed_file_is_told_once_and_for_every_checkpoint_that_it_costs() {
    let storage = MemoryStorage::new();
    let store = store_with_chain(Arc::new(storage.clone()), 4);
    let newest = store.read_manifest(Epoch(4)).unwrap();
    let listing = store.list().unwrap();
    for need in &newest.needs {
        let users: Vec<Epoch> = listing
            .usable()
            .filter(|manifest| manifest.files.contains(&need.file) || manifest.needs.contains(need))
            .map(|manifest| manifest.epoch)
            .collect();
        assert!(users.len() > 1);
        storage
            .tamper(&need.file.name, |bytes| bytes[100] ^= 1)
            .unwrap();
        let report = store.verify(|_| {}).unwrap();
        let damaged: Vec<_> = report
            .files
            .iter()
            .filter(|file| file.result.is_err())
            .collect();
        assert_eq!(damaged.len(), 1, "{damaged:?}");
        assert_eq!(damaged[0].path, need.file.name);
        let mut told = damaged[0].checkpoints.clone();
        told.reverse();
        assert_eq!(told, users);
        for manifest in listing.usable() {
            let reports = store.verify_checkpoint(manifest);
            let sound = reports.iter().all(|file| file.result.is_ok());
            assert_eq!(
                sound,
                !users.contains(&manifest.epoch),
                "{}",
                manifest.epoch
            );
        }
        storage
            .tamper(&need.file.name, |bytes| bytes[100] ^= 1)
            .unwrap();
    }
    assert!(!newest.needs.is_empty());
    // Two files that are sound, and do not fit together: a file of the same pages in other chunks.
    let need = newest.needs[0].clone();
    storage.remove_file(&need.file.name).unwrap();
    let rank = need.file.rank.0;
    let other_key = key(1, need.epoch.0, rank);
    let other = write_image(
        Arc::new(storage.clone()),
        other_key,
        &image(3, 40),
        Compression::Fast,
    )
    .unwrap();
    let mut fooled = newest.clone();
    fooled.needs[0].file = other;
    let reports = store.verify_checkpoint(&fooled);
    let damaged: Vec<_> = reports.iter().filter(|file| file.result.is_err()).collect();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(damaged[0].path, newest.files[rank as usize].name);
}

#[test]
fn a_manifest_with_another_digest_or_size_does_not_verify() {
    let (storage, stored, _) = small_file(Compression::Fast);
    let mut other = stored.clone();
    other.digest[0] ^= 1;
    RankImage::open(&storage, &other, key(1, 1, 0), &[])
        .unwrap()
        .verify()
        .unwrap_err();
    let mut other = stored;
    other.raw_bytes += 1;
    RankImage::open(&storage, &other, key(1, 1, 0), &[]).unwrap_err();
}

/// A chunk that is right by itself, in the place of another of the same file or of another file.
#[test]
fn chunks_that_change_places_are_noticed() {
    let (storage, stored, _) = small_file(Compression::None);
    let other = MemoryStorage::new();
    other.create_dir("epochs").unwrap();
    other.create_dir("epochs/000002").unwrap();
    let other_key = key(1, 2, 0);
    let other_stored = write_image(
        Arc::new(other.clone()),
        other_key,
        &image(5, 7),
        Compression::None,
    )
    .unwrap();
    assert_eq!(stored.file_bytes, other_stored.file_bytes);
    let mut foreign = Vec::new();
    other
        .tamper(&other_stored.name, |bytes| foreign.clone_from(bytes))
        .unwrap();
    // All between the headers and the indexes: the same pages, of another epoch.
    storage
        .tamper(&stored.name, |bytes| {
            let (_, trailer) = Trailer::read_from_suffix(bytes).unwrap();
            let chunks = size_of::<FileHeader>()..trailer.index_offset.get() as usize;
            bytes[chunks.clone()].copy_from_slice(&foreign[chunks]);
        })
        .unwrap();
    assert_refused(&storage, &stored, "chunks of another epoch");
}

/// The damage must be found by verifying the store, and cost at most the checkpoint that it is in.
fn assert_store_survives(storage: &MemoryStorage, path: &str, how: &str) {
    let shared: SharedStorage = Arc::new(storage.clone());
    let report = verify_store(&shared, |_| {}).expect(how);
    let damaged: Vec<_> = report.damaged().map(|(path, _)| path.to_owned()).collect();
    assert!(
        damaged.iter().any(|found| found == path),
        "{how}: {damaged:?}"
    );
    match JobStore::open_on(shared) {
        Err(error) => {
            assert_eq!(path, names::JOB, "{how}");
            assert!(
                matches!(error, Error::Corrupt { .. } | Error::Version { .. }),
                "{how}"
            );
        }
        Ok(store) => {
            assert_ne!(path, names::JOB, "{how}");
            let newest = store.newest_usable().unwrap().expect(how);
            let expected = if path == names::manifest(Epoch(2)) {
                1
            } else {
                2
            };
            assert_eq!(newest.epoch, Epoch(expected), "{how}");
        }
    }
}

fn records() -> [String; 3] {
    [
        names::JOB.to_owned(),
        names::incarnation(Incarnation(1)),
        names::manifest(Epoch(2)),
    ]
}

#[test]
fn every_byte_of_a_record_is_covered() {
    let storage = MemoryStorage::new();
    drop(store_with_chain(Arc::new(storage.clone()), 2));
    for path in records() {
        let mut length = 0;
        storage.tamper(&path, |bytes| length = bytes.len()).unwrap();
        for at in 0..length {
            for flip in FLIPS {
                storage.tamper(&path, |bytes| bytes[at] ^= flip).unwrap();
                assert_store_survives(&storage, &path, &format!("{path}: byte {at} ^ {flip:#x}"));
                storage.tamper(&path, |bytes| bytes[at] ^= flip).unwrap();
            }
        }
    }
}

#[test]
fn a_record_of_any_other_length_is_refused() {
    let storage = MemoryStorage::new();
    drop(store_with_chain(Arc::new(storage.clone()), 2));
    for path in records() {
        let mut whole = Vec::new();
        storage
            .tamper(&path, |bytes| whole.clone_from(bytes))
            .unwrap();
        for length in 0..whole.len() {
            storage
                .tamper(&path, |bytes| bytes.truncate(length))
                .unwrap();
            assert_store_survives(&storage, &path, &format!("{path}: cut at {length}"));
            storage
                .tamper(&path, |bytes| bytes.clone_from(&whole))
                .unwrap();
        }
        for more in [&b"\0"[..], b"\n", b" ", b"{}", &[7; 100]] {
            storage
                .tamper(&path, |bytes| bytes.extend_from_slice(more))
                .unwrap();
            assert_store_survives(&storage, &path, &format!("{path}: longer by {more:?}"));
            storage
                .tamper(&path, |bytes| bytes.clone_from(&whole))
                .unwrap();
        }
    }
}

#[test]
fn a_damaged_rank_file_is_reported_by_its_path_and_the_others_are_sound() {
    let storage = MemoryStorage::new();
    let store = store_with(Arc::new(storage.clone()), 2);
    let manifest = store.read_manifest(Epoch(2)).unwrap();
    let damaged = &manifest.files[1].name;
    storage.tamper(damaged, |bytes| bytes[200] ^= 4).unwrap();
    let mut seen = Vec::new();
    let report = store.verify(|file| seen.push(file.path.clone())).unwrap();
    assert!(!report.is_sound());
    assert_eq!(
        report.damaged().map(|(path, _)| path).collect::<Vec<_>>(),
        [damaged]
    );
    // Job record, incarnation record, and for each epoch the manifest and a file for each rank.
    assert_eq!(seen.len(), 2 + 2 * (1 + RANKS as usize));
    assert!(report.strays.is_empty(), "{:?}", report.strays);

    store.mark_bad(Epoch(2), "rank 1 does not verify").unwrap();
    let manifest = store.newest_usable().unwrap().unwrap();
    assert_eq!(manifest.epoch, Epoch(1), "the one before is used");
    let found = read_image(&storage, &manifest.files[1], key(1, 1, 1)).unwrap();
    assert_eq!(found, image_of(Epoch(1), 1));
}

/// What a coordinator does with each rank file damaged in turn: it passes over the checkpoints that the file is
/// part of, and over no others.
#[test]
fn the_newest_checkpoint_that_does_without_a_damaged_file_is_used() {
    let whole = MemoryStorage::new();
    let manifests: Vec<Manifest> = {
        let store = store_with_chain(Arc::new(whole.clone()), 8);
        store.list().unwrap().usable().cloned().collect()
    };
    let mut passed_over = BTreeSet::new();
    let needed = manifests[0].needs.iter().map(|need| &need.file);
    let files: Vec<_> = needed.chain(&manifests[0].files).collect();
    assert!(files.len() > 2);
    for file in files {
        // What is kept in memory is durable here, so that a copy is what a crash leaves.
        let storage = whole.after_crash(Survival::Everything);
        storage.tamper(&file.name, |bytes| bytes[100] ^= 1).unwrap();
        let store = JobStore::open_locked_on(Arc::new(storage.clone())).unwrap();
        let mut bad = 0;
        let used = loop {
            let newest = store.newest_usable().unwrap().expect("one is sound");
            let reports = store.verify_checkpoint(&newest);
            if reports.iter().all(|report| report.result.is_ok()) {
                break newest;
            }
            store.mark_bad(newest.epoch, "does not verify").unwrap();
            bad += 1;
        };
        let uses = |manifest: &Manifest| {
            let needs = manifest.needs.iter().map(|need| &need.file);
            needs.chain(&manifest.files).any(|of| of.name == file.name)
        };
        let expected = manifests.iter().find(|manifest| !uses(manifest)).unwrap();
        assert_eq!(used.epoch, expected.epoch, "{}", file.name);
        common::assert_readable(&store, &used);
        passed_over.insert(bad);
    }
    assert!(passed_over.len() > 1, "{passed_over:?}");
}
