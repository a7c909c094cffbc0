//! Publishing and aborting an epoch.

use crate::common::{assert_restores, checkpoint, image, key, manifest, store_with, write_image};
use crate::{memory, shared, states};
use protocol::control::Compression;
use protocol::ids::{Epoch, Incarnation};
use store::job_store::PublishStep;
use store::storage::Storage as _;
use store::{CheckpointId, ErrorKind, Manifest, names};

#[test]
fn an_aborted_epoch_leaves_its_number_and_nothing_else() {
    let storage = memory();
    let store = store_with(shared(&storage), 1);
    store.begin_epoch(Epoch(2)).unwrap();
    write_image(
        shared(&storage),
        key(1, 2, 0),
        &image(1, 3),
        Compression::Fast,
    )
    .unwrap();
    store.abort_epoch(Epoch(2)).unwrap();
    assert!(
        storage
            .list(&names::epoch_dir(Epoch(2)))
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.highest_epoch().unwrap(), Epoch(2));
    let again = store.begin_epoch(Epoch(2)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    // The next checkpoint takes the directory away.
    assert!(checkpoint(&store, Epoch(3)).unwrap().durable);
    assert_eq!(store.retain(5).unwrap(), [Epoch(2)]);
    assert_eq!(states(&store), [(1, 'C'), (3, 'C')]);
}

#[test]
fn a_published_epoch_can_not_be_aborted() {
    let storage = memory();
    let store = store_with(shared(&storage), 1);
    assert_eq!(
        store.abort_epoch(Epoch(1)).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_restores(&store, Epoch(1));
}

#[test]
fn the_highest_epoch_keeps_its_number_when_it_is_removed() {
    let storage = memory();
    let store = store_with(shared(&storage), 3);
    store.remove(Epoch(2)).unwrap();
    store.remove(Epoch(3)).unwrap();
    assert_eq!(states(&store), [(1, 'C'), (3, '-')]);
    assert_eq!(store.highest_epoch().unwrap(), Epoch(3));
    assert_eq!(
        store.remove(Epoch(2)).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn publishing_tells_its_steps_and_refuses_what_is_not_the_jobs() {
    let storage = memory();
    let store = store_with(shared(&storage), 1);
    store.begin_epoch(Epoch(2)).unwrap();
    let files: Vec<_> = (0..crate::common::RANKS)
        .map(|rank| {
            let image = crate::common::image_of(Epoch(2), rank);
            write_image(shared(&storage), key(1, 2, rank), &image, Compression::Fast).unwrap()
        })
        .collect();
    let good = manifest(Incarnation(1), Epoch(2), files.clone());
    type Change = fn(&mut Manifest);
    let wrong: [(&str, Change); 7] = [
        ("job", |m| m.job.0[0] ^= 1),
        ("incarnation", |m| m.incarnation.0 += 1),
        ("ranks", |m| m.files.truncate(1)),
        ("order of ranks", |m| m.files.reverse()),
        ("no files", |m| m.files.clear()),
        ("a name that leads out", |m| {
            m.files[0].name = "../../etc/passwd".into()
        }),
        ("parent", |m| {
            m.parent = Some(CheckpointId {
                epoch: Epoch(2),
                incarnation: Incarnation(1),
            });
        }),
    ];
    for (what, change) in wrong {
        let mut bad = good.clone();
        change(&mut bad);
        store.publish(&bad, |_| panic!("{what}")).expect_err(what);
    }
    let mut steps = Vec::new();
    let published = store.publish(&good, |step| steps.push(step)).unwrap();
    assert!(published.durable);
    assert_eq!(steps, [PublishStep::Written, PublishStep::Renamed]);
    assert_restores(&store, Epoch(2));
    store.publish(&good, |_| {}).expect_err("once is enough");
}
