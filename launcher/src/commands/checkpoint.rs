//! `ckpt checkpoint`: takes a checkpoint of a running job.

use std::path::Path;

use protocol::control::{Request, Response};
use store::JobStore;

use super::{ask, shown};
use crate::failure::Failure;
use crate::output::Report;
use crate::report::TakenReport;

pub fn checkpoint(path: &Path) -> Result<Report, Failure> {
    let store = JobStore::open(path)?;
    match ask(&store, &Request::Checkpoint)? {
        Some(Response::Committed { epoch }) => Ok(Report::Taken(TakenReport {
            store: shown(path),
            epoch: epoch.0,
        })),
        Some(Response::Failed { reason }) => Err(Failure::unavailable(format!(
            "{}: no checkpoint was taken: {reason}",
            shown(path)
        ))),
        Some(_) => Err(Failure::internal(
            "the coordinator answered a question that was not asked",
        )),
        None => Err(Failure::unavailable(format!(
            "{}: the job is not running; `ckpt restart` starts it",
            shown(path)
        ))),
    }
}
