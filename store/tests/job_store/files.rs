//! A store's own files: whose they are, removing and verifying them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use crate::common::{JOB, checkpoint, job, store_with};
use crate::{memory, publish_late, shared, states};
use protocol::ids::Epoch;
use store::job_store::verify_store;
use store::storage::{Access, Storage as _};
use store::{ControlFile, DiskStorage, ErrorKind, JobStore, SharedStorage, names};

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
