//! Making, opening and holding a store.

use std::fs;

use crate::common::{assert_restores, job, store_with};
use crate::{memory, shared};
use protocol::ids::{Epoch, Incarnation};
use store::{ErrorKind, JobStore};

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
