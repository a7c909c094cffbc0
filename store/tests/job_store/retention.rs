//! What is kept and what may go.

use crate::common::{assert_restores, checkpoint, key, manifest, store_with, write_image};
use crate::{memory, names_in, shared, states};
use protocol::control::{Compression, NeededFile};
use protocol::ids::{Epoch, Incarnation};
use store::storage::Storage as _;
use store::{JobStore, PublishError, names};

#[test]
fn the_last_k_are_kept_and_bad_ones_do_not_count() {
    let storage = memory();
    let store = store_with(shared(&storage), 6);
    store.mark_bad(Epoch(5), "for the test").unwrap();
    store.begin_epoch(Epoch(7)).unwrap();
    assert_eq!(store.retain(2).unwrap(), [Epoch(1), Epoch(2), Epoch(3)]);
    assert_eq!(states(&store), [(4, 'C'), (5, 'B'), (6, 'C'), (7, '-')]);
    assert!(store.retain(2).unwrap().is_empty());
    // Keeping none is keeping one.
    assert_eq!(store.retain(0).unwrap(), [Epoch(4), Epoch(5)]);
    assert_restores(&store, Epoch(6));
    assert!(store.verify(|_| {}).unwrap().is_sound());
}

/// Publishes a checkpoint that needs these files, and is whole otherwise.
fn publish_needing(
    store: &JobStore,
    epoch: u64,
    needs: Vec<NeededFile>,
) -> Result<(), PublishError> {
    store.begin_epoch(Epoch(epoch)).unwrap();
    let files = (0..crate::common::RANKS)
        .map(|rank| {
            let image = crate::common::image_of(Epoch(epoch), rank);
            let storage = store.storage().clone();
            write_image(storage, key(1, epoch, rank), &image, Compression::Fast).unwrap()
        })
        .collect();
    let mut manifest = manifest(Incarnation(1), Epoch(epoch), files);
    manifest.needs = needs;
    store.publish(&manifest, |_| {}).map(drop)
}

/// The file of a rank in a checkpoint, as another needs it.
fn need(store: &JobStore, epoch: u64, rank: usize) -> NeededFile {
    let of = store.read_manifest(Epoch(epoch)).unwrap();
    NeededFile {
        epoch: of.epoch,
        incarnation: of.incarnation,
        file: of.files[rank].clone(),
    }
}

#[test]
fn what_a_kept_checkpoint_refers_to_is_kept() {
    let storage = memory();
    let store = store_with(shared(&storage), 3);
    publish_needing(&store, 4, vec![need(&store, 1, 0)]).unwrap();
    // Their manifests go, and with them the checkpoints; of their files only those stay that are needed.
    assert_eq!(store.retain(1).unwrap(), [Epoch(1), Epoch(2), Epoch(3)]);
    assert_eq!(states(&store), [(1, '-'), (4, 'C')]);
    assert_eq!(names_in(&storage, 1), ["i0001-r00000.img"]);
    assert_eq!(store.list().unwrap().checkpoints[0].needed_by, [Epoch(4)]);
    assert!(store.retain(1).unwrap().is_empty());
    store.sweep().unwrap();
    assert_eq!(names_in(&storage, 1), ["i0001-r00000.img"]);
    let report = store.verify(|_| {}).unwrap();
    assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");

    assert!(checkpoint(&store, Epoch(5)).unwrap().durable);
    assert_eq!(store.retain(1).unwrap(), [Epoch(1), Epoch(4)]);
    assert_eq!(states(&store), [(5, 'C')]);
}

#[test]
fn a_checkpoint_that_is_removed_leaves_what_others_need_until_they_go() {
    let storage = memory();
    let store = store_with(shared(&storage), 2);
    publish_needing(&store, 3, vec![need(&store, 1, 0)]).unwrap();
    publish_needing(&store, 4, vec![need(&store, 1, 0), need(&store, 2, 1)]).unwrap();
    store.remove(Epoch(1)).unwrap();
    assert_eq!(states(&store), [(1, '-'), (2, 'C'), (3, 'C'), (4, 'C')]);
    assert_eq!(names_in(&storage, 1), ["i0001-r00000.img"]);
    store.remove(Epoch(3)).unwrap();
    assert_eq!(states(&store), [(1, '-'), (2, 'C'), (4, 'C')]);
    assert_eq!(names_in(&storage, 1), ["i0001-r00000.img"]);
    // The last that needs it; the directory with the highest number stays.
    store.remove(Epoch(4)).unwrap();
    assert_eq!(states(&store), [(2, 'C'), (4, '-')]);
    assert!(names_in(&storage, 4).is_empty());
    assert_eq!(names_in(&storage, 2).len(), 3);
}

#[test]
fn nothing_that_an_unreadable_or_bad_checkpoint_may_need_is_removed_while_it_is_kept() {
    let storage = memory();
    let store = store_with(shared(&storage), 2);
    publish_needing(&store, 3, vec![need(&store, 1, 0)]).unwrap();
    publish_needing(&store, 4, vec![]).unwrap();
    assert!(checkpoint(&store, Epoch(5)).unwrap().durable);
    store.mark_bad(Epoch(3), "for the test").unwrap();
    assert_eq!(store.retain(3).unwrap(), [Epoch(1)]);
    assert_eq!(
        states(&store),
        [(1, '-'), (2, 'C'), (3, 'B'), (4, 'C'), (5, 'C')]
    );
    assert_eq!(names_in(&storage, 1), ["i0001-r00000.img"]);

    // Of a version that another program may know.
    let of_3 = names::manifest(Epoch(3));
    storage.tamper(&of_3, |bytes| bytes[8] ^= 0x40).unwrap();
    storage.remove_file(&names::bad(Epoch(3))).unwrap();
    assert_eq!(
        states(&store),
        [(1, '-'), (2, 'C'), (3, 'U'), (4, 'C'), (5, 'C')]
    );
    assert!(store.retain(3).unwrap().is_empty());
    store.sweep().unwrap();
    assert_eq!(names_in(&storage, 1), ["i0001-r00000.img"]);
    assert!(checkpoint(&store, Epoch(6)).unwrap().durable);
    assert_eq!(store.retain(3).unwrap(), [Epoch(1), Epoch(2), Epoch(3)]);
}

#[test]
fn a_checkpoint_is_not_published_where_a_file_that_it_needs_is_not_what_it_was() {
    let storage = memory();
    let store = store_with(shared(&storage), 2);
    let needed = need(&store, 1, 0);
    let mut epoch = 2;
    let mut refused = |needed: &NeededFile| {
        epoch += 1;
        let error = publish_needing(&store, epoch, vec![needed.clone()]).unwrap_err();
        let PublishError::NotPublished(error) = error else {
            panic!("{error}");
        };
        assert!(store.read_manifest(Epoch(epoch)).is_err());
        store.abort_epoch(Epoch(epoch)).unwrap();
        error.to_string()
    };
    let mut longer = needed.clone();
    longer.file.file_bytes += 1;
    assert!(refused(&longer).contains("bytes long"));
    let mut of_another = needed.clone();
    of_another.file.name = "epochs/000001/i0001-r00001.img".into();
    of_another.file.file_bytes = need(&store, 1, 1).file.file_bytes;
    assert!(refused(&of_another).contains("another job, incarnation, epoch or rank"));
    let mut elsewhere = needed.clone();
    elsewhere.file.name = "epochs/000002/i0001-r00000.img".into();
    assert!(refused(&elsewhere).contains("another epoch's directory"));
    store.mark_bad(Epoch(1), "for the test").unwrap();
    assert!(refused(&needed).contains("marked bad (for the test)"));
    storage.remove_file(&names::bad(Epoch(1))).unwrap();
    storage
        .tamper(&needed.file.name, |bytes| bytes[10] ^= 1)
        .unwrap();
    assert!(refused(&needed).contains("version"));
    storage.remove_file(&needed.file.name).unwrap();
    assert!(refused(&needed).contains("not found"));
    assert_restores(&store, Epoch(2));
}
