//! `ckpt rm`: removes a checkpoint or a store. The job must not be running.

use protocol::ids::Epoch;
use store::JobStore;

use super::shown;
use crate::args::RmArgs;
use crate::failure::Failure;
use crate::output::Report;
use crate::report::RemovedReport;

pub fn rm(args: &RmArgs) -> Result<Report, Failure> {
    let store = JobStore::open_locked(&args.store)?;
    let mut epochs = Vec::new();
    match args.epoch {
        Some(epoch) => {
            store.remove(Epoch(epoch))?;
            epochs.push(epoch);
        }
        None => store.destroy()?,
    }
    Ok(Report::Removed(RemovedReport {
        store: shown(&args.store),
        epochs,
        all: args.all,
    }))
}
