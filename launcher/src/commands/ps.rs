//! `ckpt ps`: the processes and ranks of a running job.

use std::path::Path;

use protocol::control::{Request, Response};
use store::JobStore;

use super::{ask, shown};
use crate::failure::Failure;
use crate::output::Report;
use crate::report::PsReport;

pub fn ps(path: &Path) -> Result<Report, Failure> {
    let store = JobStore::open(path)?;
    match ask(&store, &Request::Processes)? {
        Some(Response::Processes { processes, ranks }) => Ok(Report::Processes(PsReport {
            store: shown(path),
            job: store.job().job.to_string(),
            processes: processes.into_iter().map(Into::into).collect(),
            ranks: ranks.into_iter().map(Into::into).collect(),
        })),
        Some(_) => Err(Failure::internal(
            "the coordinator answered a question that was not asked",
        )),
        None => Err(Failure::unavailable(format!(
            "{}: the job is not running, so it has no processes; `ckpt restart` starts it",
            shown(path)
        ))),
    }
}
