//! `ckpt ls`: the checkpoints of a store.

use std::collections::BTreeMap;
use std::path::Path;

use coord::record;
use store::{JobStore, Listing};

use super::{row, shown};
use crate::failure::Failure;
use crate::output::{Output, Report};
use crate::report::{ListReport, TotalsRow};

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
        totals: totals(&listing),
    }))
}

/// Files are shared between checkpoints: each counts once, and separately where it is there for others only.
fn totals(listing: &Listing) -> TotalsRow {
    let manifests = || {
        let checkpoints = listing.checkpoints.iter();
        checkpoints.filter_map(|checkpoint| checkpoint.manifest.as_ref())
    };
    let own: BTreeMap<&str, u64> = manifests()
        .flat_map(|manifest| &manifest.files)
        .map(|file| (&*file.name, file.file_bytes))
        .collect();
    let needed: BTreeMap<&str, u64> = manifests()
        .flat_map(|manifest| &manifest.needs)
        .map(|need| (&*need.file.name, need.file.file_bytes))
        .filter(|(name, _)| !own.contains_key(name))
        .collect();
    let needed_bytes: u64 = needed.values().sum();
    TotalsRow {
        usable: listing.usable().count() as u64,
        raw_bytes: listing.usable().map(|it| it.figures.raw_bytes).sum(),
        file_bytes: own.values().sum::<u64>() + needed_bytes,
        needed_bytes,
    }
}
