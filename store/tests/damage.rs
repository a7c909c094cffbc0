//! Every byte of every kind of file changed in turn, files cut at every length, and made longer: always
//! noticed, never a panic, never a wrong read.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{Image, RANKS, image, image_of, key, read_image, store_with, write_image};
use protocol::control::{Compression, StoredFile};
use protocol::ids::{Epoch, Incarnation};
use store::format::layout::{
    ChunkHeader, ENCODING_PLANES_ZSTD, ENCODING_RAW, ENCODING_ZSTD, FileHeader, Trailer,
};
use store::job_store::verify_store;
use store::storage::Storage as _;
use store::{Error, JobStore, MemoryStorage, RankImage, SharedStorage, names};
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
    drop(store_with(Arc::new(storage.clone()), 2));
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
    drop(store_with(Arc::new(storage.clone()), 2));
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
