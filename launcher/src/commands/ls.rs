//! `ckpt ls`: the checkpoints of a store.

use std::path::Path;

use coord::record;
use store::JobStore;

use super::{row, shown};
use crate::failure::Failure;
use crate::output::{Output, Report};
use crate::report::ListReport;

pub fn ls(path: &Path, output: &mut dyn Output) -> Result<Report, Failure> {
    let store = JobStore::open(path)?;
    let listing = store.list()?;
    for warning in &listing.warnings {
        output.warning(warning);
    }
    let job = store.job();
    Ok(Report::List(ListReport {
        store: shown(path),
        job: job.job.to_string(),
        program: job
            .argv
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        ranks: job.ranks,
        complete: record::is_complete(job),
        checkpoints: listing.checkpoints.iter().map(row).collect(),
    }))
}
