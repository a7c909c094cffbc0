//! `ckpt show`: one checkpoint in full.

use std::path::Path;

use protocol::ids::Epoch;
use store::{CheckpointState, JobStore};

use super::{hex, row, shown};
use crate::args::Which;
use crate::failure::Failure;
use crate::output::Report;
use crate::report::{FileRow, NeededRow, ObjectRow, ShowReport};

pub fn show(path: &Path, which: Which) -> Result<Report, Failure> {
    let store = JobStore::open(path)?;
    let listing = store.list()?;
    let found = match which {
        Which::Epoch(number) => listing
            .checkpoints
            .iter()
            .find(|checkpoint| checkpoint.epoch == Epoch(number)),
        Which::Latest => listing
            .checkpoints
            .iter()
            .rev()
            .find(|checkpoint| matches!(checkpoint.state, CheckpointState::Committed)),
    };
    let checkpoint = found.ok_or_else(|| {
        Failure::usage(format!(
            "{}: no such checkpoint; `ckpt ls` lists those there are",
            shown(path)
        ))
    })?;
    let manifest = checkpoint.manifest.as_ref();
    let objects = manifest
        .into_iter()
        .flat_map(|manifest| &manifest.programs)
        .flat_map(|program| &program.objects)
        .map(|object| ObjectRow {
            path: object.path.clone(),
            build_id: hex(&object.build_id),
            address: object.address,
        });
    let files = manifest
        .into_iter()
        .flat_map(|manifest| &manifest.files)
        .map(|file| FileRow {
            rank: file.rank.0,
            name: file.name.clone(),
            file_bytes: file.file_bytes,
            raw_bytes: file.raw_bytes,
            changed_bytes: file.changed_bytes,
            digest: hex(&file.digest),
        });
    let needs = manifest
        .into_iter()
        .flat_map(|manifest| &manifest.needs)
        .map(|need| NeededRow {
            rank: need.file.rank.0,
            epoch: need.epoch.0,
            name: need.file.name.clone(),
            file_bytes: need.file.file_bytes,
            digest: hex(&need.file.digest),
        });
    Ok(Report::Show(ShowReport {
        store: shown(path),
        job: store.job().job.to_string(),
        checkpoint: row(checkpoint),
        from: manifest
            .and_then(|manifest| manifest.from)
            .map(|from| from.epoch.0),
        programs: objects.collect(),
        files: files.collect(),
        needs: needs.collect(),
    }))
}
