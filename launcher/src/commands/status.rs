//! `ckpt status`: how a job is, running or not.

use std::path::Path;

use coord::record;
use protocol::control::{Request, Response};
use store::JobStore;

use super::{ask, shown};
use crate::failure::Failure;
use crate::output::Report;
use crate::report::StatusReport;

pub fn status(path: &Path) -> Result<Report, Failure> {
    let store = JobStore::open(path)?;
    let job = store.job();
    let status = match ask(&store, &Request::Status)? {
        Some(Response::Status(status)) => Some(*status),
        Some(_) => {
            return Err(Failure::internal(
                "the coordinator answered a question that was not asked",
            ));
        }
        None => None,
    };
    let committed = match &status {
        Some(status) => status.committed.map(|epoch| epoch.0),
        None => store.newest_usable()?.map(|manifest| manifest.epoch.0),
    };
    Ok(Report::Status(StatusReport {
        store: shown(path),
        job: job.job.to_string(),
        running: status.is_some(),
        complete: record::is_complete(job),
        committed,
        status: status.map(Into::into),
    }))
}
