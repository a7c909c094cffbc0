//! What a store promises to coordinators and commands.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use common::{
    JOB, assert_restores, checkpoint, image, job, key, manifest, store_with, write_image,
};
use protocol::control::{Compression, MappedObject, NeededFile, ProgramIdentity, StoredFile};
use protocol::ids::{Epoch, Incarnation};
use store::job_store::{PublishStep, verify_store};
use store::storage::{Access, Storage as _, Survival};
use store::{
    CheckpointId, CheckpointState, ControlFile, DiskStorage, Error, ErrorKind, Figures, JobStore,
    Manifest, MemoryStorage, PublishError, SharedStorage, names,
};

fn memory() -> MemoryStorage {
    MemoryStorage::new()
}

fn shared(storage: &MemoryStorage) -> SharedStorage {
    Arc::new(storage.clone())
}

/// The files in the directory of an epoch.
fn names_in(storage: &MemoryStorage, epoch: u64) -> Vec<String> {
    let entries = storage.list(&names::epoch_dir(Epoch(epoch))).unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

/// The epochs of a store, each with a letter for its state.
fn states(store: &JobStore) -> Vec<(u64, char)> {
    let letter = |state: &CheckpointState| match state {
        CheckpointState::Committed => 'C',
        CheckpointState::Bad { .. } => 'B',
        CheckpointState::Ignored { .. } => 'I',
        CheckpointState::Unreadable { .. } => 'U',
        CheckpointState::Unpublished => '-',
    };
    store
        .list()
        .unwrap()
        .checkpoints
        .iter()
        .map(|found| (found.epoch.0, letter(&found.state)))
        .collect()
}

/// Publishes a checkpoint for `incarnation` behind the store's back, as a coordinator that was paused
/// does when it wakes up.
fn publish_late(storage: &MemoryStorage, incarnation: u64, epoch: u64) {
    let mut files = Vec::new();
    for rank in 0..common::RANKS {
        let key = key(incarnation, epoch, rank);
        let image = common::image_of(Epoch(epoch), rank);
        files.push(write_image(shared(storage), key, &image, Compression::Fast).unwrap());
    }
    let manifest = manifest(Incarnation(incarnation), Epoch(epoch), files);
    let mut file = storage
        .create_new(&names::manifest(Epoch(epoch)), Access::Umask)
        .unwrap();
    let bytes = store::record::encode(&manifest);
    assert_eq!(file.write(&bytes).unwrap(), bytes.len());
}

#[test]
fn a_store_is_made_in_a_directory_and_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/heat.ckpt");
    let made = JobStore::create(&path, job()).unwrap();
    assert_eq!(made.job(), &job());
    assert!(made.newest_usable().unwrap().is_none());
    drop(made);
    assert_eq!(JobStore::open(&path).unwrap().job(), &job());

    let error = JobStore::create(&path, job()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("--resume"), "{error}");
}

#[test]
fn a_directory_that_is_no_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let error = JobStore::create(dir.path(), job()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAStore);
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    for error in [
        JobStore::open(dir.path()).unwrap_err(),
        JobStore::open_locked(dir.path()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotAStore, "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let error = JobStore::open(dir.path().join("nothing")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = JobStore::open(dir.path().join("thesis.tex")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAStore, "{error}");
}

#[test]
fn one_coordinator_holds_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let first = JobStore::create(dir.path().join("s"), job()).unwrap();
    let error = JobStore::open_locked(dir.path().join("s")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    let pid = std::process::id().to_string();
    assert!(error.to_string().contains(&pid), "it tells who: {error}");
    let mut reader = JobStore::open(dir.path().join("s")).unwrap();
    assert_eq!(
        reader.begin_incarnation(None).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    drop(first);
    JobStore::open_locked(dir.path().join("s")).unwrap();
}

#[test]
fn an_argument_that_is_no_text_is_kept_to_the_byte() {
    use std::os::unix::ffi::OsStringExt;
    let storage = memory();
    let mut record = job();
    record
        .argv
        .push(std::ffi::OsString::from_vec(vec![b'x', 0xff, 0xfe]));
    record.cwd = std::ffi::OsString::from_vec(vec![b'/', 0x80]).into();
    drop(JobStore::create_on(shared(&storage), record.clone()).unwrap());
    assert_eq!(JobStore::open_on(shared(&storage)).unwrap().job(), &record);
}

#[test]
fn a_job_record_can_be_replaced_but_keeps_who_it_is() {
    let storage = memory();
    let mut store = JobStore::create_on(shared(&storage), job()).unwrap();
    let mut changed = job();
    changed.keep = 5;
    store.replace_job(changed.clone()).unwrap();
    assert_eq!(JobStore::open_on(shared(&storage)).unwrap().job(), &changed);
    changed.ranks += 1;
    assert_eq!(
        store.replace_job(changed).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn every_start_has_a_record_of_its_own() {
    let storage = memory();
    let mut store = store_with(shared(&storage), 1);
    let from = assert_restores(&store, Epoch(1));
    let second = store.begin_incarnation(Some(from)).unwrap();
    assert_eq!(second.incarnation, Incarnation(2));
    assert_eq!(second.from, Some(from));
    assert_eq!(second.last_epoch, Epoch(1));
    let (records, errors) = store.incarnations().unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!(records[1], second);
    assert!(errors.is_empty());
}

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
    let files = (0..common::RANKS)
        .map(|rank| {
            let image = common::image_of(Epoch(3), rank);
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
    let files = (0..common::RANKS)
        .map(|rank| {
            let image = common::image_of(Epoch(epoch), rank);
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
    let files: Vec<_> = (0..common::RANKS)
        .map(|rank| {
            let image = common::image_of(Epoch(2), rank);
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

#[test]
fn a_manifest_keeps_all_that_it_is_told() {
    let storage = memory();
    let store = store_with(shared(&storage), 1);
    store.begin_epoch(Epoch(9)).unwrap();
    let first = store.read_manifest(Epoch(1)).unwrap();
    let needed = first.files[1].clone();
    let files = first.files.into_iter().map(|mut file| {
        file.name = format!("epochs/000009/{}", file.rank.0);
        file
    });
    let told = Manifest {
        job: JOB,
        incarnation: Incarnation(1),
        epoch: Epoch(9),
        from: None,
        parent: Some(CheckpointId {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
        }),
        programs: vec![ProgramIdentity {
            objects: vec![MappedObject {
                path: "/opt/solver \"x\"".into(),
                build_id: vec![1, 2, 0xff],
                address: u64::MAX,
            }],
            processor_features: vec!["avx2".into()],
            thread_local_address: 1 << 46,
            page_bytes: 4096,
        }],
        files: files.collect(),
        needs: vec![NeededFile {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            file: StoredFile {
                digest: [9; 16],
                raw_bytes: 3,
                changed_bytes: 2,
                ..needed.clone()
            },
        }],
        committed_unix_ms: 5,
        figures: Figures {
            stall_us: 1,
            elapsed_us: 2,
            raw_bytes: 3,
            changed_bytes: 4,
            stored_bytes: 5,
            faults: 6,
            waited_us: 7,
            longest_us: 8,
        },
    };
    let _ = store.publish(&told, |_| {}).unwrap();
    assert_eq!(store.read_manifest(Epoch(9)).unwrap(), told);
}

#[test]
fn records_of_other_versions_and_with_other_fields_are_refused() {
    let bytes = store::record::encode(&job());
    let decode = |bytes: &[u8]| store::record::decode::<store::JobRecord>(bytes, "job");
    assert_eq!(decode(&bytes).unwrap(), job());
    let mut other = bytes.clone();
    other[8] = 2;
    let error = decode(&other).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Version {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );

    // A field more, with everything else right.
    let text = String::from_utf8(bytes[32..].to_vec()).unwrap();
    let more = text.replacen('{', "{\n  \"later\": 1,", 1);
    let error = decode(&with_header(&bytes, more.as_bytes())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("later"), "{error}");
    // And one less.
    let less = text.replacen("\"keep\": 2,", "", 1);
    assert_ne!(less, text);
    decode(&with_header(&bytes, less.as_bytes())).unwrap_err();
}

/// A record with another payload and a header that fits it.
fn with_header(record: &[u8], payload: &[u8]) -> Vec<u8> {
    use xxhash_rust::xxh3::Xxh3;
    let mut bytes = record[..12].to_vec();
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut hash = Xxh3::new();
    hash.update(&bytes);
    hash.update(payload);
    bytes.extend_from_slice(&hash.digest128().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn the_control_file_is_its_owners_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = JobStore::create(dir.path().join("s"), job()).unwrap();
    assert!(store.read_control().unwrap().is_none());
    let control = ControlFile {
        job: JOB,
        address: "unix:@ckpt-abc".into(),
        token: [7; 32],
        pid: 4711,
    };
    store.write_control(&control).unwrap();
    assert_eq!(store.read_control().unwrap(), Some(control.clone()));
    let mode = fs::metadata(dir.path().join("s/control"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        !format!("{control:?}").contains("7, 7"),
        "the token is not shown"
    );
    store.write_control(&control).unwrap();
    store.remove_control().unwrap();
    store.remove_control().unwrap();
    assert!(store.read_control().unwrap().is_none());
}

#[test]
fn images_are_their_owners_only() {
    let dir = tempfile::tempdir().unwrap();
    let storage: SharedStorage = Arc::new(DiskStorage::open(dir.path()).unwrap());
    let store = store_with(storage, 1);
    let manifest = store.newest_usable().unwrap().unwrap();
    for file in &manifest.files {
        let mode = fs::metadata(dir.path().join(&file.name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.name);
    }
}

#[test]
fn a_store_is_removed_with_all_that_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut store = JobStore::create(&path, job()).unwrap();
    store.begin_incarnation(None).unwrap();
    assert!(checkpoint(&store, Epoch(1)).unwrap().durable);
    store.begin_epoch(Epoch(2)).unwrap();
    fs::write(path.join("hosts-000001"), "node1").unwrap();
    store.destroy().unwrap();
    assert!(!path.exists());

    let store = JobStore::create(&path, job()).unwrap();
    fs::write(path.join("notes"), "the user's").unwrap();
    store.destroy().unwrap();
    assert_eq!(
        fs::read_dir(&path).unwrap().count(),
        1,
        "the user's file stays"
    );
}

#[test]
fn lists_of_hosts_that_were_left_are_swept_and_nothing_of_a_like_name() {
    let dir = tempfile::tempdir().unwrap();
    let storage: SharedStorage = Arc::new(DiskStorage::open(dir.path()).unwrap());
    let store = store_with(storage, 0);
    for name in ["hosts-000001", "hosts-000027", "hosts-1", "hosts-", "hosts"] {
        fs::write(dir.path().join(name), "node1").unwrap();
    }
    store.sweep().unwrap();
    let left = |name: &str| dir.path().join(name).exists();
    assert!(!left("hosts-000001") && !left("hosts-000027"));
    assert!(left("hosts-1") && left("hosts-") && left("hosts"));
}

#[test]
fn verifying_lists_strays_and_needs_no_lock() {
    let storage = memory();
    let store = store_with(shared(&storage), 1);
    drop(
        storage
            .create_new("epochs/000001/core", Access::Umask)
            .unwrap(),
    );
    drop(storage.create_new("epochs/readme", Access::Umask).unwrap());
    let report = verify_store(&shared(&storage), |_| {}).unwrap();
    assert!(report.is_sound());
    assert_eq!(report.strays, ["epochs/000001/core", "epochs/readme"]);
    drop(store);
}

#[test]
fn a_missing_rank_file_is_found_by_verifying() {
    let storage = memory();
    let store = store_with(shared(&storage), 1);
    let manifest = store.newest_usable().unwrap().unwrap();
    storage.remove_file(&manifest.files[0].name).unwrap();
    let report = store.verify(|_| {}).unwrap();
    let (path, error) = report.damaged().next().unwrap();
    assert_eq!(path, manifest.files[0].name);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.is_damage());
}

#[test]
fn the_manifest_of_another_epoch_or_job_is_not_taken() {
    let storage = memory();
    let store = store_with(shared(&storage), 2);
    let mut second = Vec::new();
    storage
        .tamper(&names::manifest(Epoch(2)), |bytes| second.clone_from(bytes))
        .unwrap();
    storage
        .tamper(&names::manifest(Epoch(1)), |bytes| *bytes = second)
        .unwrap();
    assert_eq!(states(&store), [(1, 'U'), (2, 'C')]);

    let other = memory();
    let mut record = job();
    record.job.0[5] ^= 1;
    drop(JobStore::create_on(shared(&other), record).unwrap());
    other.create_dir("epochs/000001").unwrap();
    publish_late(&other, 1, 1);
    let store = JobStore::open_on(shared(&other)).unwrap();
    assert_eq!(states(&store), [(1, 'U')]);
}
