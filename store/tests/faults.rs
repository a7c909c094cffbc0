//! A fault at every operation in turn, while a checkpoint is written and published, on a real file system: the
//! last good checkpoint restores, errors are clear, and the job can go on.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{
    Failed, assert_readable, assert_restores, checkpoint_on_newest, image_of, job, key, store_with,
    store_with_chain, write_image,
};
use protocol::control::Compression;
use protocol::ids::Epoch;
use store::fault::{Fault, FaultStorage, Operation, Plan};
use store::storage::Storage as _;
use store::{
    CheckpointState, DiskStorage, Error, JobStore, MemoryStorage, PAGE_BYTES, SharedStorage,
};
use tempfile::TempDir;

/// The newest checkpoint, of a chain in which pages have been carried over, and the next.
const BEFORE: Epoch = Epoch(4);
const NEXT: Epoch = Epoch(5);

/// What a restarted coordinator does: takes the next checkpoint, which builds on the ones before, and drops
/// what is old.
fn restart_and_checkpoint(storage: SharedStorage) -> Result<bool, Failed> {
    let mut store = JobStore::open_locked_on(storage)?;
    let from = store.newest_usable()?.map(|manifest| manifest.id());
    store.begin_incarnation(from)?;
    store.sweep()?;
    let taken = checkpoint_on_newest(&store, NEXT);
    match taken {
        Ok(published) => {
            // That old files stay is no failure of the checkpoint.
            let _ = store.retain(1);
            Ok(published.durable)
        }
        Err(Failed::Before(error)) => {
            // Nor that its files stay: they are swept up later.
            let _ = store.abort_epoch(NEXT);
            Err(Failed::Before(error))
        }
        unresolved => unresolved.map(|_| false),
    }
}

/// A directory of the real file system, in memory where there is such a one: what fsync costs on a disk
/// shows nothing here, and there are thousands of them.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn disk(dir: &Path) -> SharedStorage {
    Arc::new(DiskStorage::open(dir).unwrap())
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Errors name a path, and what the system said.
fn assert_clear(error: &Error, plan: Plan) {
    let text = error.to_string();
    assert!(
        text.contains('/') || text.starts_with("(memory)"),
        "{plan}: {text}"
    );
    if let Error::Io { source, .. } = error {
        assert!(text.contains(&source.to_string()), "{plan}: {text}");
    }
    if let Fault::Errno(libc::ENOSPC) | Fault::DiskFull = plan.fault {
        assert!(text.contains("free space"), "{plan}: {text}");
    }
}

/// The checks below would be worth less if nothing were inherited, or nothing carried over.
#[test]
fn the_chain_of_these_tests_refers_to_other_files_and_the_next_takes_pages_over() {
    let store = store_with_chain(Arc::new(MemoryStorage::new()), NEXT.0);
    let before = store.read_manifest(BEFORE).unwrap();
    let next = store.read_manifest(NEXT).unwrap();
    for rank in 0..common::RANKS {
        let needs = before.needs.iter().filter(|need| need.file.rank.0 == rank);
        assert_eq!(needs.count(), 2, "rank {rank}");
        let old = image_of(BEFORE, rank).pages;
        let changed = image_of(NEXT, rank)
            .pages
            .into_iter()
            .filter(|(number, page)| {
                old.get(number) != Some(page) && page.iter().any(|byte| *byte != 0)
            });
        let pages_written = next.files[rank as usize].changed_bytes / PAGE_BYTES as u64;
        assert!(pages_written > changed.count() as u64, "rank {rank}");
    }
}

fn every_operation_fails_with(fault: Fault) {
    let start = directory();
    drop(store_with_chain(disk(start.path()), BEFORE.0));
    let mut outcomes = (0, 0, 0);
    for at in 0.. {
        let plan = Plan { at, fault };
        let dir = directory();
        copy_dir(start.path(), dir.path());
        let storage = FaultStorage::failing(disk(dir.path()), plan);
        let outcome = restart_and_checkpoint(Arc::new(storage.clone()));
        let ended = storage.operations() <= at;

        // What anyone finds who looks at it afterwards.
        let mut store = JobStore::open_locked_on(disk(dir.path())).unwrap();
        let listing = store.list().unwrap();
        for manifest in listing.usable() {
            assert_readable(&store, manifest);
        }
        let newest = listing
            .newest_usable()
            .expect("no checkpoint is left")
            .epoch;
        match &outcome {
            Ok(_) => {
                outcomes.0 += 1;
                assert_eq!(newest, NEXT, "{plan}: published");
            }
            Err(Failed::Before(error)) => {
                outcomes.1 += 1;
                assert_clear(error, plan);
                assert_eq!(newest, BEFORE, "{plan}: {error}");
            }
            Err(Failed::Unresolved(error)) => {
                outcomes.2 += 1;
                assert_clear(error, plan);
            }
        }
        // The job goes on from what is there.
        let from = assert_restores(&store, newest);
        store.begin_incarnation(Some(from)).unwrap();
        store.sweep().unwrap();
        let next = store.highest_epoch().unwrap().next();
        assert!(
            checkpoint_on_newest(&store, next).unwrap().durable,
            "{plan}"
        );
        assert_restores(&store, next);
        store.retain(1).unwrap();
        let report = store.verify(|_| {}).unwrap();
        assert!(report.is_sound(), "{plan}");
        assert!(report.strays.is_empty(), "{plan}: {:?}", report.strays);
        if ended {
            assert!(at > 50, "the operations were counted: {at}");
            assert!(matches!(outcome, Ok(true)), "{plan}: nothing failed");
            break;
        }
    }
    let (published, aborted, unresolved) = outcomes;
    assert!(published > 0, "{outcomes:?}");
    assert_eq!(
        unresolved, 0,
        "what became of a rename is found out by looking"
    );
    if !matches!(fault, Fault::ShortWrite | Fault::FailedSync) {
        assert!(aborted > 0, "{outcomes:?}");
    }
}

#[test]
fn the_disk_is_full_for_one_operation() {
    every_operation_fails_with(Fault::Errno(libc::ENOSPC));
}

#[test]
fn the_disk_is_full_from_then_on() {
    every_operation_fails_with(Fault::DiskFull);
}

#[test]
fn the_disk_fails() {
    every_operation_fails_with(Fault::Errno(libc::EIO));
}

#[test]
fn writes_are_short() {
    every_operation_fails_with(Fault::ShortWrite);
}

#[test]
fn fsync_fails() {
    every_operation_fails_with(Fault::FailedSync);
}

#[test]
fn fsync_fails_and_the_data_are_gone() {
    every_operation_fails_with(Fault::LostSync);
}

#[test]
fn operations_are_done_and_reported_as_failed() {
    every_operation_fails_with(Fault::DoneButError);
}

/// A storage in memory with the directory of epoch 1, whose first fsync of a file goes wrong.
fn first_sync(fault: Fault) -> FaultStorage {
    let storage = MemoryStorage::new();
    storage.create_dir("epochs").unwrap();
    storage.create_dir("epochs/000001").unwrap();
    FaultStorage::failing(Arc::new(storage), Plan { at: 0, fault })
}

#[test]
fn a_rank_file_whose_fsync_fails_is_written_again_under_another_name() {
    let storage = first_sync(Fault::FailedSync);
    let image = common::image(1, 20);
    let shared: SharedStorage = Arc::new(storage.clone());
    let stored = write_image(shared, key(1, 1, 0), &image, Compression::Fast).unwrap();
    assert_eq!(stored.name, "epochs/000001/i0001-r00000.2.img");
    let found = common::read_image(&storage, &stored, key(1, 1, 0)).unwrap();
    assert_eq!(found, image);
    let synced: Vec<_> = storage
        .log()
        .into_iter()
        .filter(|(operation, _)| *operation == Operation::Sync)
        .map(|(_, path)| path)
        .collect();
    assert_eq!(
        synced,
        [
            "epochs/000001/i0001-r00000.img",
            "epochs/000001/i0001-r00000.2.img"
        ],
        "no file is tried twice"
    );
    assert_eq!(storage.list("epochs/000001").unwrap().len(), 1);
}

#[test]
fn a_rank_file_that_lost_its_data_in_a_failed_fsync_does_not_count() {
    let storage = first_sync(Fault::LostSync);
    let shared: SharedStorage = Arc::new(storage.clone());
    let error = write_image(
        shared,
        key(1, 1, 0),
        &common::image(1, 20),
        Compression::Fast,
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Io {
                operation: "fsync",
                ..
            }
        ),
        "{error}"
    );
    assert!(storage.list("epochs/000001").unwrap().is_empty());
}

/// The number of the operation that gives the next manifest its name.
fn rename_of_the_manifest() -> u64 {
    let memory = MemoryStorage::new();
    drop(store_with_chain(Arc::new(memory.clone()), BEFORE.0));
    let counting = FaultStorage::counting(Arc::new(memory));
    let taken = restart_and_checkpoint(Arc::new(counting.clone()));
    assert!(matches!(taken, Ok(true)), "{taken:?}");
    let is_it = |(operation, path): &(Operation, String)| {
        *operation == Operation::Rename && path.ends_with("manifest")
    };
    counting.log().iter().position(is_it).unwrap() as u64
}

#[test]
fn where_looking_fails_too_a_rename_stays_unresolved_and_nothing_is_aborted() {
    let memory = MemoryStorage::new();
    drop(store_with_chain(Arc::new(memory.clone()), BEFORE.0));
    let plan = Plan {
        at: rename_of_the_manifest(),
        fault: Fault::Crash,
    };
    let storage = FaultStorage::failing(Arc::new(memory.clone()), plan);
    let taken = restart_and_checkpoint(Arc::new(storage));
    assert!(matches!(taken, Err(Failed::Unresolved(_))), "{taken:?}");
    assert!(memory.open("epochs/000005/manifest.i0002.tmp").is_ok());
}

/// The directory's fsync after the rename fails: the checkpoint is there, but an older one is not given
/// up for it.
#[test]
fn retention_does_not_count_on_a_checkpoint_that_may_not_be_durable() {
    let memory = MemoryStorage::new();
    drop(store_with_chain(Arc::new(memory.clone()), BEFORE.0));
    let plan = Plan {
        at: rename_of_the_manifest() + 1,
        fault: Fault::FailedSync,
    };
    let storage = FaultStorage::failing(Arc::new(memory.clone()), plan);
    let taken = restart_and_checkpoint(Arc::new(storage));
    assert!(matches!(taken, Ok(false)), "{taken:?}");
    let store = JobStore::open_on(Arc::new(memory)).unwrap();
    let listed = store.list().unwrap().checkpoints;
    let (kept, files_only): (Vec<_>, Vec<_>) = listed
        .iter()
        .partition(|found| matches!(found.state, CheckpointState::Committed));
    let epochs: Vec<Epoch> = kept.iter().map(|found| found.epoch).collect();
    assert_eq!(epochs, [BEFORE, NEXT]);
    assert!(files_only.iter().all(|found| !found.needed_by.is_empty()));
}

#[test]
fn a_file_system_without_hard_links_still_makes_incarnations_exclusively() {
    let memory = MemoryStorage::new();
    drop(store_with(Arc::new(memory.clone()), 1));
    let counting = FaultStorage::counting(Arc::new(memory.clone()));
    let mut store = JobStore::open_locked_on(Arc::new(counting.clone())).unwrap();
    store.begin_incarnation(None).unwrap();
    drop(store);
    let link = counting
        .log()
        .iter()
        .position(|(operation, _)| *operation == Operation::Link)
        .unwrap();
    let plan = Plan {
        at: link as u64,
        fault: Fault::Errno(libc::EOPNOTSUPP),
    };
    let memory = MemoryStorage::new();
    drop(store_with(Arc::new(memory.clone()), 1));
    let storage = FaultStorage::failing(Arc::new(memory), plan);
    let mut store = JobStore::open_locked_on(Arc::new(storage.clone())).unwrap();
    let begun = store.begin_incarnation(None).unwrap();
    assert!(storage.struck());
    assert_eq!(begun.incarnation.0, 2);
    assert_eq!(store.incarnations().unwrap().0.last(), Some(&begun));
}

#[test]
fn making_a_store_fails_cleanly_at_every_operation_and_can_be_tried_again() {
    for at in 0.. {
        let plan = Plan {
            at,
            fault: Fault::Errno(libc::ENOSPC),
        };
        let memory = MemoryStorage::new();
        let storage = FaultStorage::failing(Arc::new(memory.clone()), plan);
        let made = JobStore::create_on(Arc::new(storage.clone()), job());
        if !storage.struck() {
            made.unwrap();
            assert!(at > 5);
            break;
        }
        let Err(error) = made else { continue };
        assert_clear(&error, plan);
        match JobStore::create_on(Arc::new(memory.clone()), job()) {
            Ok(_) => {}
            // Where only the last fsync failed, it is made.
            Err(Error::AlreadyExists { .. }) => {
                drop(JobStore::open_locked_on(Arc::new(memory)).unwrap())
            }
            Err(error) => panic!("{plan}: {error}"),
        }
    }
}

#[test]
fn plans_read_back_as_they_are_written() {
    for text in [
        "enospc@0",
        "eio@7",
        "short-write@1",
        "disk-full@2",
        "failed-sync@3",
        "lost-sync@4",
        "done-but-error@5",
        "crash@6",
    ] {
        assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
    }
    for wrong in ["", "enospc", "enospc@", "flood@3", "eio@-1"] {
        assert!(wrong.parse::<Plan>().is_err(), "{wrong}");
    }
}
