//! The machine stops after every operation in turn, and what was not made durable is lost, kept, or kept in
//! part: what was committed restores, what was announced is not announced again, and the job can go on.

mod common;

use std::sync::Arc;

use common::{
    assert_readable, assert_restores, checkpoint, checkpoint_on_newest, job, store_with,
    store_with_chain,
};
use protocol::ids::{Epoch, Incarnation};
use store::fault::{Fault, FaultStorage, Plan};
use store::storage::Survival;
use store::{Error, JobStore, MemoryStorage, SharedStorage};

/// How far a coordinator came before the crash.
#[derive(Debug, Default)]
struct Progress {
    incarnation: Option<Incarnation>,
    announced: Option<Epoch>,
    committed: Option<Epoch>,
}

/// Two checkpoints that build on those before, with retention to one, from a restart on.
fn run(storage: SharedStorage, progress: &mut Progress) -> Result<(), common::Failed> {
    let mut store = JobStore::open_locked_on(storage)?;
    let from = store.newest_usable()?.map(|manifest| manifest.id());
    progress.incarnation = Some(store.begin_incarnation(from)?.incarnation);
    store.sweep()?;
    for _ in 0..2 {
        let epoch = store.highest_epoch()?.next();
        let taken = checkpoint_on_newest(&store, epoch);
        // The directory comes first, so the number may have been announced.
        progress.announced = Some(epoch);
        if taken?.durable {
            progress.committed = Some(epoch);
        }
        store.retain(1)?;
    }
    Ok(())
}

fn survivals() -> impl Iterator<Item = Survival> {
    [Survival::Nothing, Survival::Everything]
        .into_iter()
        .chain((0..4).map(Survival::Random))
}

#[test]
fn a_crash_after_any_operation_loses_no_committed_checkpoint() {
    for at in 0.. {
        let plan = Plan {
            at,
            fault: Fault::Crash,
        };
        let memory = MemoryStorage::new();
        drop(store_with_chain(Arc::new(memory.clone()), 4));
        let storage = FaultStorage::failing(Arc::new(memory.clone()), plan);
        let mut progress = Progress::default();
        let outcome = run(Arc::new(storage.clone()), &mut progress);
        for survival in survivals() {
            let how = format!("{plan}, {survival:?}, {progress:?}");
            let after: SharedStorage = Arc::new(memory.after_crash(survival));
            let mut store = JobStore::open_locked_on(after).expect(&how);
            let listing = store.list().expect(&how);
            assert!(listing.warnings.is_empty(), "{how}: {:?}", listing.warnings);
            for manifest in listing.usable() {
                assert_readable(&store, manifest);
            }
            let newest = listing.newest_usable().expect(&how).epoch;
            assert!(
                newest >= progress.committed.unwrap_or(Epoch(4)),
                "{how}: {newest}"
            );

            let from = assert_restores(&store, newest);
            let begun = store.begin_incarnation(Some(from)).expect(&how);
            assert!(Some(begun.incarnation) > progress.incarnation, "{how}");
            store.sweep().expect(&how);
            let next = store.highest_epoch().expect(&how).next();
            assert!(checkpoint_on_newest(&store, next).expect(&how).durable);
            assert_restores(&store, next);
            store.retain(1).expect(&how);
            let report = store.verify(|_| {}).expect(&how);
            assert!(report.is_sound(), "{how}");
            assert!(report.strays.is_empty(), "{how}: {:?}", report.strays);
        }
        if !storage.struck() {
            outcome.unwrap();
            assert!(at > 100, "the operations were counted: {at}");
            break;
        }
    }
}

#[test]
fn an_epoch_that_was_announced_is_never_announced_again() {
    let memory = MemoryStorage::new();
    let mut store = store_with(Arc::new(memory.clone()), 1);
    store.begin_incarnation(None).unwrap();
    store.begin_epoch(Epoch(2)).unwrap();
    store.abort_epoch(Epoch(2)).unwrap();
    for survival in survivals() {
        let after = JobStore::open_on(Arc::new(memory.after_crash(survival))).unwrap();
        assert_eq!(after.highest_epoch().unwrap(), Epoch(2), "{survival:?}");
    }
}

#[test]
fn a_crash_while_a_store_is_made_leaves_one_or_none() {
    for at in 0.. {
        let plan = Plan {
            at,
            fault: Fault::Crash,
        };
        let memory = MemoryStorage::new();
        let storage = FaultStorage::failing(Arc::new(memory.clone()), plan);
        let made = JobStore::create_on(Arc::new(storage.clone()), job());
        for survival in survivals() {
            let after: SharedStorage = Arc::new(memory.after_crash(survival));
            match JobStore::create_on(after.clone(), job()) {
                Ok(_) => assert!(made.is_err(), "{plan}, {survival:?}: a store was lost"),
                Err(Error::AlreadyExists { .. }) => {
                    let mut store = JobStore::open_locked_on(after).unwrap();
                    store.begin_incarnation(None).unwrap();
                    assert!(checkpoint(&store, Epoch(1)).unwrap().durable);
                }
                Err(error) => panic!("{plan}, {survival:?}: {error}"),
            }
        }
        if !storage.struck() {
            made.unwrap();
            break;
        }
    }
}

/// The check above would be worth nothing if the medium kept everything.
#[test]
fn the_medium_does_lose_what_is_not_made_durable() {
    use store::storage::{Access, Storage as _};
    let memory = MemoryStorage::new();
    let mut file = memory.create_new("a", Access::Umask).unwrap();
    file.write(b"content").unwrap();
    assert!(
        memory.after_crash(Survival::Nothing).open("a").is_err(),
        "no name"
    );
    memory.sync_dir("").unwrap();
    let after = memory.after_crash(Survival::Nothing);
    assert_eq!(
        after.open("a").unwrap().file_bytes().unwrap(),
        0,
        "no content"
    );
    file.sync().unwrap();
    let after = memory.after_crash(Survival::Nothing);
    assert_eq!(after.open("a").unwrap().file_bytes().unwrap(), 7);
    memory.rename("a", "b").unwrap();
    assert!(
        memory.after_crash(Survival::Nothing).open("a").is_ok(),
        "not renamed"
    );
    assert!(memory.after_crash(Survival::Everything).open("b").is_ok());
}
