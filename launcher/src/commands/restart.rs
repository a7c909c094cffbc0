//! `ckpt restart`: goes on with the job of a store.

use std::path::Path;

use coord::{Plan, record};
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
    go_on(&args.store, args.take_over, &args.common, show, output)
}

/// Goes on with a job, changed as the options say.
pub fn go_on(
    path: &Path,
    take_over: bool,
    common: &CommonArgs,
    show: Show,
    output: &mut dyn Output,
) -> Result<(i32, Report), Failure> {
    let path = run::absolute(path)?;
    let (mut store, took_over) = match take_over {
        true => take_store_over(&path)?,
        false => (JobStore::open_locked(&path)?, false),
    };
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
    let plan = Plan { took_over, ..plan };
    coord::child::spawn::find(&plan.program.path, &plan.program.directory).map_err(|error| {
        Failure::usage(format!(
            "{error} (the program that the job was started with)"
        ))
    })?;
    record::remember(&plan, &mut job);
    if job != *store.job() {
        store.replace_job(job)?;
    }
    let requeue = common.launch.requeue_on_resumable;
    run::go(&plan, requeue, store, show, output)
}

/// Opens a store whose coordinator hangs. Where its processes are its children, they end with it only: so it is killed, which
/// can be done on its own host. Processes that were launched elsewhere end when their leases are over.
fn take_store_over(path: &Path) -> Result<(JobStore, bool), Failure> {
    let recorded = JobStore::open(path)?;
    if record::last_lease(recorded.job()).is_some() {
        let (store, holder) = JobStore::open_taking_over(path)?;
        return Ok((store, holder.is_some()));
    }
    let holder = match JobStore::open_locked(path) {
        Ok(store) => return Ok((store, false)),
        Err(store::Error::Locked { holder, .. }) => holder,
        Err(error) => return Err(error.into()),
    };
    let own_host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let pid = holder
        .strip_prefix("process ")
        .and_then(|rest| rest.split_once(" on "))
        .filter(|(_, host)| *host == own_host.trim())
        .and_then(|(pid, _)| pid.parse::<i32>().ok());
    let Some(pid) = pid else {
        return Err(Failure::unavailable(format!(
            "{}: the job's processes are children of {holder}; end that one there",
            shown(path)
        )));
    };
    coord::child::kill_coordinator(pid).map_err(|error| {
        Failure::unavailable(format!("{}: {holder} can't be ended: {error}", shown(path)))
    })?;
    Ok((JobStore::open_locked(path)?, true))
}
