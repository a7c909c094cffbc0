//! `ckpt restart`: goes on with the job of a store.

use std::path::Path;

use coord::record;
use store::JobStore;

use super::{Show, run, shown};
use crate::args::{CommonArgs, RestartArgs};
use crate::failure::Failure;
use crate::output::{Output, Report};
use crate::report::RunReport;

pub fn restart(
    args: &RestartArgs,
    show: Show,
    output: &mut dyn Output,
) -> Result<(i32, Report), Failure> {
    go_on(&args.store, &args.common, show, output)
}

/// Goes on with a job, changed as the options say.
pub fn go_on(
    path: &Path,
    common: &CommonArgs,
    show: Show,
    output: &mut dyn Output,
) -> Result<(i32, Report), Failure> {
    let path = run::absolute(path)?;
    let mut store = JobStore::open_locked(&path)?;
    let mut job = store.job().clone();
    if record::is_complete(&job) {
        let report = RunReport {
            job: job.job.to_string(),
            store: shown(&path),
            outcome: "complete".to_owned(),
            message: "complete already; there is nothing to go on with".to_owned(),
            ranks: job.ranks,
            processes: job.processes,
            restarts: 0,
            committed: store.newest_usable()?.map(|manifest| manifest.epoch.0),
            elapsed_ms: 0,
        };
        return Ok((0, Report::Run(report)));
    }
    let plan = run::apply(common, record::recall(&path, &job, &run::DEFAULTS))?;
    coord::child::spawn::find(&plan.program.path, &plan.program.directory).map_err(|error| {
        Failure::usage(format!(
            "{error} (the program that the job was started with)"
        ))
    })?;
    record::remember(&plan, &mut job);
    if job != *store.job() {
        store.replace_job(job)?;
    }
    run::go(&plan, store, show, output)
}
