//! A plan as it is kept in the job record, so that `ckpt restart STORE` needs nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::ids::JobId;
use store::JobRecord;

use crate::child::spawn::Program;
use crate::plan::Plan;

/// Names of options in the record. Times are in milliseconds.
mod option {
    pub(super) const PROGRAM: &str = "program";
    pub(super) const EVERY_MS: &str = "every_ms";
    pub(super) const MAX_RESTARTS: &str = "max_restarts";
    pub(super) const HEARTBEAT_TIMEOUT_MS: &str = "heartbeat_timeout_ms";
    pub(super) const STRICT: &str = "strict";
    pub(super) const LABEL: &str = "label";
}

/// The record of a new job with this plan.
///
/// # Errors
/// When the system has no random numbers for the job's identity.
pub fn new_job(plan: &Plan) -> Result<JobRecord, getrandom::Error> {
    let mut job = JobId::default();
    getrandom::fill(&mut job.0)?;
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut record = JobRecord {
        job,
        argv: plan.program.arguments.clone(),
        cwd: plan.program.directory.clone(),
        ranks: plan.ranks,
        processes: plan.processes,
        slot_bytes: plan.slot_bytes,
        stack_bytes: plan.stack_bytes,
        compression: plan.compression,
        keep: plan.keep,
        created_unix_ms: milliseconds(created),
        options: BTreeMap::new(),
    };
    remember(plan, &mut record);
    Ok(record)
}

/// Writes into the record what a restart takes over from this plan. What makes the job itself (ranks,
/// slots, program arguments) stays as it was.
pub fn remember(plan: &Plan, record: &mut JobRecord) {
    record.processes = plan.processes;
    record.compression = plan.compression;
    record.keep = plan.keep;
    let mut set = |name: &str, value: Option<String>| match value {
        Some(value) => drop(record.options.insert(name.to_owned(), value)),
        None => drop(record.options.remove(name)),
    };
    let program = plan.program.path.to_str().map(str::to_owned);
    set(option::PROGRAM, program);
    let every = plan.every.map(|every| milliseconds(every).to_string());
    set(option::EVERY_MS, every);
    set(option::MAX_RESTARTS, Some(plan.max_restarts.to_string()));
    let heartbeat = milliseconds(plan.heartbeat_timeout).to_string();
    set(option::HEARTBEAT_TIMEOUT_MS, Some(heartbeat));
    set(option::STRICT, plan.strict.then(|| true.to_string()));
    set(option::LABEL, plan.label.then(|| true.to_string()));
}

/// The plan that a record remembers. What it does not say takes the value in `defaults`.
#[must_use]
pub fn recall(store: &Path, record: &JobRecord, defaults: &Defaults) -> Plan {
    let number = |name: &str| -> Option<u64> { record.options.get(name)?.parse().ok() };
    let flag = |name: &str| {
        record
            .options
            .get(name)
            .is_some_and(|value| value == "true")
    };
    let path = match record.options.get(option::PROGRAM) {
        Some(path) => PathBuf::from(path),
        None => record.argv.first().map(PathBuf::from).unwrap_or_default(),
    };
    Plan {
        store: store.to_owned(),
        ranks: record.ranks,
        processes: record.processes,
        program: Program {
            path,
            arguments: record.argv.clone(),
            directory: record.cwd.clone(),
        },
        slot_bytes: record.slot_bytes,
        stack_bytes: record.stack_bytes,
        compression: record.compression,
        strict: flag(option::STRICT),
        every: number(option::EVERY_MS).map(Duration::from_millis),
        keep: record.keep,
        max_restarts: number(option::MAX_RESTARTS)
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(defaults.max_restarts),
        heartbeat_timeout: number(option::HEARTBEAT_TIMEOUT_MS)
            .map_or(defaults.heartbeat_timeout, Duration::from_millis),
        label: flag(option::LABEL),
        events: None,
    }
}

/// Values for what neither the command line nor the record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Restarts without a new checkpoint in between.
    pub max_restarts: u32,
    /// Silence after which a process is lost.
    pub heartbeat_timeout: Duration,
}

/// Whether the record says that every rank of the job has finished.
#[must_use]
pub fn is_complete(record: &JobRecord) -> bool {
    record.options.contains_key(crate::storeroom::COMPLETE)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use protocol::control::Compression;

    use super::*;

    #[test]
    fn a_restart_recalls_the_plan_that_the_job_was_run_with() {
        let defaults = Defaults {
            max_restarts: 3,
            heartbeat_timeout: Duration::from_secs(10),
        };
        let plan = Plan {
            store: PathBuf::from("/scratch/heat.ckpt"),
            ranks: 4,
            processes: 2,
            program: Program {
                path: PathBuf::from("/bin/heat"),
                arguments: vec!["heat".into(), "--steps".into(), "7".into()],
                directory: PathBuf::from("/scratch"),
            },
            slot_bytes: 64 << 30,
            stack_bytes: 64 << 20,
            compression: Compression::Level(3),
            strict: true,
            every: Some(Duration::from_millis(1500)),
            keep: 5,
            max_restarts: 9,
            heartbeat_timeout: Duration::from_millis(2500),
            label: true,
            events: None,
        };
        let record = new_job(&plan).unwrap();
        assert_eq!(recall(&plan.store, &record, &defaults), plan);

        let plan = Plan {
            every: None,
            strict: false,
            label: false,
            keep: 1,
            ..plan
        };
        let mut record = record;
        remember(&plan, &mut record);
        assert_eq!(recall(&plan.store, &record, &defaults), plan);
    }
}
