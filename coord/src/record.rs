//! A plan as it is kept in the job record, so that `ckpt restart STORE` needs nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::control::{CaptureMode, Tracking};
use protocol::ids::JobId;
use protocol::interval::Bounds;
use store::JobRecord;

use crate::child::spawn::Program;
use crate::launch::Request;
use crate::plan::{Every, Plan};

/// Names of options in the record. Times are in milliseconds.
mod option {
    pub(super) const PROGRAM: &str = "program";
    pub(super) const IDLE_PROCESSES: &str = "idle_processes";
    /// The names of nodes that are drained, a line each.
    pub(super) const DRAINED_NODES: &str = "drained_nodes";
    pub(super) const EVERY_MS: &str = "every_ms";
    /// `true` where the interval is estimated, between these two.
    pub(super) const EVERY_AUTO: &str = "every_auto";
    pub(super) const EVERY_MIN_MS: &str = "every_min_ms";
    pub(super) const EVERY_MAX_MS: &str = "every_max_ms";
    pub(super) const MEMORY_BYTES: &str = "memory_bytes";
    pub(super) const TRACKING: &str = "tracking";
    pub(super) const CAPTURE: &str = "capture";
    pub(super) const MAX_RESTARTS: &str = "max_restarts";
    pub(super) const HEARTBEAT_TIMEOUT_MS: &str = "heartbeat_timeout_ms";
    pub(super) const STRICT: &str = "strict";
    pub(super) const LABEL: &str = "label";
    pub(super) const LAUNCH: &str = "launch";
    pub(super) const HOSTFILE: &str = "hostfile";
    pub(super) const NODES: &str = "nodes";
    pub(super) const SPARE_NODES: &str = "spare_nodes";
    pub(super) const MIN_NODES: &str = "min_nodes";
    pub(super) const LAUNCH_ARGS: &str = "launch_args";
    pub(super) const CONTROL_ADDRESS: &str = "control_address";
    /// The lease of processes that the last coordinator could not see to end; absent if there were none such.
    pub(super) const LEASE_MS: &str = "lease_ms";
}

/// The words of `--track`.
pub const TRACKINGS: [(&str, Tracking); 4] = [
    ("auto", Tracking::Auto),
    ("kernel", Tracking::Kernel),
    ("hash", Tracking::Hash),
    ("off", Tracking::Off),
];

/// The words of `--capture`.
pub const CAPTURES: [(&str, CaptureMode); 3] = [
    ("auto", CaptureMode::Auto),
    ("cow", CaptureMode::CopyOnWrite),
    ("copy", CaptureMode::CopyAside),
];

fn word_of<T: Copy + PartialEq>(value: T, words: &[(&str, T)]) -> Option<String> {
    let found = words.iter().find(|(_, meaning)| *meaning == value);
    found.map(|(word, _)| (*word).to_owned())
}

fn of_word<T: Copy + Default>(word: Option<&String>, words: &[(&str, T)]) -> T {
    let found = words
        .iter()
        .find(|(known, _)| word.is_some_and(|word| word == known));
    found.map_or_else(T::default, |(_, meaning)| *meaning)
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
    let idle = (plan.idle > 0).then(|| plan.idle.to_string());
    set(option::IDLE_PROCESSES, idle);
    let (fixed, bounds) = match plan.every {
        Every::Off => (None, None),
        Every::Fixed(every) => (Some(every), None),
        Every::Auto(bounds) => (None, Some(bounds)),
    };
    let text = |time: Duration| milliseconds(time).to_string();
    set(option::EVERY_MS, fixed.map(text));
    set(option::EVERY_AUTO, bounds.map(|_| true.to_string()));
    set(option::EVERY_MIN_MS, bounds.map(|bounds| text(bounds.min)));
    set(option::EVERY_MAX_MS, bounds.map(|bounds| text(bounds.max)));
    let memory = plan.memory_bytes.map(|bytes| bytes.to_string());
    set(option::MEMORY_BYTES, memory);
    set(option::TRACKING, word_of(plan.tracking, &TRACKINGS));
    set(option::CAPTURE, word_of(plan.capture, &CAPTURES));
    set(option::MAX_RESTARTS, Some(plan.max_restarts.to_string()));
    let heartbeat = milliseconds(plan.heartbeat_timeout).to_string();
    set(option::HEARTBEAT_TIMEOUT_MS, Some(heartbeat));
    set(option::STRICT, plan.strict.then(|| true.to_string()));
    set(option::LABEL, plan.label.then(|| true.to_string()));
    let request = &plan.request;
    let text = |number: u32| number.to_string();
    set(option::LAUNCH, request.launch.clone());
    let hostfile = request.hostfile.as_deref().and_then(Path::to_str);
    set(option::HOSTFILE, hostfile.map(str::to_owned));
    set(option::NODES, request.nodes.map(text));
    let spare = (request.spare_nodes > 0).then(|| text(request.spare_nodes));
    set(option::SPARE_NODES, spare);
    set(option::MIN_NODES, request.min_nodes.map(text));
    set(option::LAUNCH_ARGS, request.arguments.clone());
    set(option::CONTROL_ADDRESS, request.control_address.clone());
}

/// The lease that processes of the last coordinator had, if they could not be seen to end.
#[must_use]
pub fn last_lease(record: &JobRecord) -> Option<Duration> {
    let lease = record.options.get(option::LEASE_MS)?;
    lease.parse().ok().map(Duration::from_millis)
}

/// Notes the lease that processes have from now on.
pub fn set_lease(record: &mut JobRecord, lease: Option<Duration>) {
    let name = option::LEASE_MS.to_owned();
    match lease {
        Some(lease) => drop(record.options.insert(name, milliseconds(lease).to_string())),
        None => drop(record.options.remove(&name)),
    }
}

/// The names of the nodes that are drained.
#[must_use]
pub fn drained_nodes(record: &JobRecord) -> Vec<String> {
    let names = record.options.get(option::DRAINED_NODES);
    let names = names.map(|names| names.lines().map(str::to_owned).collect());
    names.unwrap_or_default()
}

/// Notes the names of the nodes that are drained from now on.
pub fn set_drained_nodes(record: &mut JobRecord, names: &[String]) {
    let name = option::DRAINED_NODES.to_owned();
    match names.is_empty() {
        false => drop(record.options.insert(name, names.join("\n"))),
        true => drop(record.options.remove(&name)),
    }
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
        idle: number(option::IDLE_PROCESSES)
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(0),
        program: Program {
            path,
            arguments: record.argv.clone(),
            directory: record.cwd.clone(),
        },
        slot_bytes: record.slot_bytes,
        stack_bytes: record.stack_bytes,
        compression: record.compression,
        strict: flag(option::STRICT),
        tracking: of_word(record.options.get(option::TRACKING), &TRACKINGS),
        capture: of_word(record.options.get(option::CAPTURE), &CAPTURES),
        memory_bytes: number(option::MEMORY_BYTES),
        every: match number(option::EVERY_MS) {
            Some(every) => Every::Fixed(Duration::from_millis(every)),
            None if flag(option::EVERY_AUTO) => {
                let time = |name| number(name).map(Duration::from_millis);
                Every::Auto(Bounds {
                    min: time(option::EVERY_MIN_MS).unwrap_or(Every::BOUNDS.min),
                    max: time(option::EVERY_MAX_MS).unwrap_or(Every::BOUNDS.max),
                })
            }
            None => Every::Off,
        },
        keep: record.keep,
        max_restarts: number(option::MAX_RESTARTS)
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(defaults.max_restarts),
        heartbeat_timeout: number(option::HEARTBEAT_TIMEOUT_MS)
            .map_or(defaults.heartbeat_timeout, Duration::from_millis),
        label: flag(option::LABEL),
        events: None,
        request: recall_request(record),
        launch: None,
        took_over: false,
        walltime: false,
    }
}

fn recall_request(record: &JobRecord) -> Request {
    let text = |name: &str| record.options.get(name).cloned();
    let number = |name: &str| text(name)?.parse().ok();
    Request {
        launch: text(option::LAUNCH),
        hostfile: text(option::HOSTFILE).map(PathBuf::from),
        nodes: number(option::NODES),
        spare_nodes: number(option::SPARE_NODES).unwrap_or(0),
        min_nodes: number(option::MIN_NODES),
        arguments: text(option::LAUNCH_ARGS),
        control_address: text(option::CONTROL_ADDRESS),
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
            idle: 3,
            program: Program {
                path: PathBuf::from("/bin/heat"),
                arguments: vec!["heat".into(), "--steps".into(), "7".into()],
                directory: PathBuf::from("/scratch"),
            },
            slot_bytes: 64 << 30,
            stack_bytes: 64 << 20,
            compression: Compression::Level(3),
            strict: true,
            tracking: Tracking::Hash,
            capture: CaptureMode::CopyAside,
            memory_bytes: Some(96 << 20),
            every: Every::Fixed(Duration::from_millis(1500)),
            keep: 5,
            max_restarts: 9,
            heartbeat_timeout: Duration::from_millis(2500),
            label: true,
            events: None,
            request: Request {
                launch: Some("mpirun".to_owned()),
                hostfile: Some(PathBuf::from("/scratch/hosts")),
                nodes: Some(3),
                spare_nodes: 1,
                min_nodes: Some(2),
                arguments: Some("--bind-to none".to_owned()),
                control_address: Some("10.0.0.1".to_owned()),
            },
            launch: None,
            took_over: false,
            walltime: false,
        };
        let record = new_job(&plan).unwrap();
        assert_eq!(recall(&plan.store, &record, &defaults), plan);

        let auto = Bounds {
            min: Duration::from_millis(2500),
            max: Duration::from_secs(90),
        };
        let plan = Plan {
            every: Every::Auto(auto),
            memory_bytes: None,
            tracking: Tracking::Auto,
            ..plan
        };
        let mut record = record;
        remember(&plan, &mut record);
        assert_eq!(recall(&plan.store, &record, &defaults), plan);

        let plan = Plan {
            every: Every::Off,
            strict: false,
            label: false,
            keep: 1,
            idle: 0,
            request: Request::default(),
            ..plan
        };
        remember(&plan, &mut record);
        assert_eq!(recall(&plan.store, &record, &defaults), plan);
    }
}
