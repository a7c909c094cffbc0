//! What a store promises to coordinators and commands.

#[path = "../common/mod.rs"]
mod common;
mod files;
mod opening;
mod publishing;
mod records;
mod retention;
mod starts;

use std::sync::Arc;

use common::{key, manifest, write_image};
use protocol::control::Compression;
use protocol::ids::{Epoch, Incarnation};
use store::storage::{Access, Storage as _};
use store::{CheckpointState, JobStore, MemoryStorage, SharedStorage, names};

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
