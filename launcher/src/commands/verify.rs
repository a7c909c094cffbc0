//! `ckpt verify`: every file of a store, read and checked.

use std::path::Path;
use std::sync::Arc;

use store::job_store::verify_store;
use store::{DiskStorage, SharedStorage};

use super::shown;
use crate::failure::{DAMAGED, Failure};
use crate::output::Report;
use crate::report::{DamagedRow, VerifyReport};

pub fn verify(path: &Path) -> Result<(i32, Report), Failure> {
    let storage: SharedStorage = Arc::new(DiskStorage::open(path)?);
    let mut file_bytes = 0;
    let found = verify_store(&storage, |file| file_bytes += file.file_bytes)?;
    let report = VerifyReport {
        store: shown(path),
        sound: found.is_sound(),
        files: found.files.len() as u64,
        file_bytes,
        damaged: found
            .files
            .iter()
            .filter_map(|file| {
                let error = file.result.as_ref().err()?;
                Some(DamagedRow {
                    path: file.path.clone(),
                    reason: error.to_string(),
                    checkpoints: file.checkpoints.iter().map(|epoch| epoch.0).collect(),
                })
            })
            .collect(),
        strays: found.strays.clone(),
    };
    let code = if report.sound { 0 } else { DAMAGED };
    Ok((code, Report::Verify(report)))
}
