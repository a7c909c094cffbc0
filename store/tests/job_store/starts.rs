//! What coordinators that were superseded, and marks, do to what is there.

use crate::common::{assert_restores, checkpoint, key, manifest, store_with, write_image};
use crate::{memory, publish_late, shared, states};
use protocol::control::{Compression, StoredFile};
use protocol::ids::{Epoch, Incarnation};
use store::storage::{Access, Storage as _, Survival};
use store::{CheckpointState, ErrorKind, JobStore, MemoryStorage, names};

#[test]
fn a_superseded_coordinator_changes_nothing_any_more() {
    let storage = memory();
    let old = store_with(shared(&storage), 2);
    // Its lock is worth nothing: the file server forgot it, say.
    let after = MemoryStorage::clone(&storage);
    let newer = after.after_crash(Survival::Everything);
    let mut new = JobStore::open_locked_on(shared(&newer)).unwrap();
    new.begin_incarnation(None).unwrap();
    // The record of the new start, in the old one's sight.
    let mut record = Vec::new();
    newer
        .tamper(&names::incarnation(Incarnation(2)), |bytes| {
            record.clone_from(bytes)
        })
        .unwrap();
    let mut file = storage
        .create_new(&names::incarnation(Incarnation(2)), Access::Umask)
        .unwrap();
    assert_eq!(file.write(&record).unwrap(), record.len());

    for error in [
        old.begin_epoch(Epoch(3)).unwrap_err(),
        old.abort_epoch(Epoch(2)).unwrap_err(),
        old.retain(1).unwrap_err(),
        old.sweep().unwrap_err(),
        old.remove(Epoch(1)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Superseded, "{error}");
    }
    let late = manifest(Incarnation(1), Epoch(3), vec![StoredFile::default(); 2]);
    old.publish(&late, |_| {}).unwrap_err();
    // Nothing was removed, but both are of a history that was left.
    assert_eq!(states(&old), [(1, 'I'), (2, 'I')]);
}

#[test]
fn what_an_older_start_publishes_later_is_ignored() {
    let storage = memory();
    let mut store = store_with(shared(&storage), 2);
    store.begin_epoch(Epoch(3)).unwrap();
    // The coordinator is lost in epoch 3; a new start goes on from 2, and takes 4.
    let from = assert_restores(&store, Epoch(2));
    store.begin_incarnation(Some(from)).unwrap();
    assert!(checkpoint(&store, Epoch(4)).unwrap().durable);
    // The old one wakes up.
    publish_late(&storage, 1, 3);
    assert_eq!(states(&store), [(1, 'C'), (2, 'C'), (3, 'I'), (4, 'C')]);
    assert_restores(&store, Epoch(4));
    // And so it stays, whatever the next start begins from.
    let from = assert_restores(&store, Epoch(4));
    store.begin_incarnation(Some(from)).unwrap();
    assert_eq!(states(&store), [(1, 'C'), (2, 'C'), (3, 'I'), (4, 'C')]);
    // A start that goes back leaves all that came after.
    let back = store.read_manifest(Epoch(2)).unwrap().id();
    store.begin_incarnation(Some(back)).unwrap();
    assert_eq!(states(&store), [(1, 'C'), (2, 'C'), (3, 'I'), (4, 'I')]);
    store.begin_incarnation(None).unwrap();
    assert_eq!(states(&store), [(1, 'I'), (2, 'I'), (3, 'I'), (4, 'I')]);
    assert!(store.newest_usable().unwrap().is_none());
}

#[test]
fn the_rule_holds_without_the_record_if_a_manifest_tells_the_same() {
    let storage = memory();
    let mut store = store_with(shared(&storage), 1);
    store.begin_epoch(Epoch(2)).unwrap();
    let from = assert_restores(&store, Epoch(1));
    let begun = store.begin_incarnation(Some(from)).unwrap();
    store.begin_epoch(Epoch(3)).unwrap();
    let files = (0..crate::common::RANKS)
        .map(|rank| {
            let image = crate::common::image_of(Epoch(3), rank);
            write_image(shared(&storage), key(2, 3, rank), &image, Compression::Fast).unwrap()
        })
        .collect();
    let mut third = manifest(begun.incarnation, Epoch(3), files);
    third.from = begun.from;
    let _ = store.publish(&third, |_| {}).unwrap();
    publish_late(&storage, 1, 2);
    storage
        .tamper(&names::incarnation(Incarnation(2)), |bytes| bytes[50] ^= 1)
        .unwrap();
    assert_eq!(states(&store), [(1, 'C'), (2, 'I'), (3, 'C')]);
    let warnings = store.list().unwrap().warnings;
    assert!(warnings[0].contains("incarnations/000002"), "{warnings:?}");
}

#[test]
fn a_marked_checkpoint_is_skipped_and_tells_why() {
    let storage = memory();
    let store = store_with(shared(&storage), 3);
    store.mark_bad(Epoch(3), "rank 0: torn\n").unwrap();
    assert_eq!(states(&store), [(1, 'C'), (2, 'C'), (3, 'B')]);
    assert_restores(&store, Epoch(2));
    let listing = store.list().unwrap();
    let CheckpointState::Bad { reason } = &listing.checkpoints[2].state else {
        panic!("{listing:?}");
    };
    assert_eq!(reason, "rank 0: torn");
    // Marked again, with what was found later.
    store.mark_bad(Epoch(3), "rank 1 too").unwrap();
    // Its number stays used.
    assert_eq!(store.highest_epoch().unwrap(), Epoch(3));
}
