//! What each command has to tell: the results, before any mode of output gives them a form.
//!
//! The fields are those of the JSON records in `docs/cli.md`. A field may be added; none changes its
//! meaning or goes away within one [`SCHEMA`].

use coord::event;
use protocol::control::{IntervalStatus, JobStatus, ProcessStatus, RankStatus};
use protocol::migration::Standing;
use serde::Serialize;

/// Version of the JSON records.
pub const SCHEMA: u32 = 1;

/// A job that was run to some end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunReport {
    pub job: String,
    pub store: String,
    /// `complete`, `stopped`, `solver_failed`, `unrecoverable`, `usage` or `internal`.
    pub outcome: String,
    pub message: String,
    pub ranks: u32,
    pub processes: u32,
    pub restarts: u32,
    /// The newest committed checkpoint.
    pub committed: Option<u64>,
    pub elapsed_ms: u64,
}

/// The checkpoints of a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ListReport {
    pub store: String,
    pub job: String,
    pub program: Vec<String>,
    pub ranks: u32,
    /// Whether every rank of the job has finished.
    pub complete: bool,
    pub checkpoints: Vec<CheckpointRow>,
    pub totals: TotalsRow,
}

/// The checkpoints of a store together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TotalsRow {
    /// Checkpoints that may be used.
    pub usable: u64,
    /// Bytes of the images of those.
    pub raw_bytes: u64,
    /// Bytes of the files that all checkpoints are made of, each counted once.
    pub file_bytes: u64,
    /// Of these, bytes of files that no checkpoint has for its own any more and that others need.
    pub needed_bytes: u64,
}

/// One checkpoint of a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckpointRow {
    pub epoch: u64,
    /// `committed`, `bad`, `ignored`, `unreadable` or `unpublished`.
    pub state: String,
    /// Why it can't be used, if it can't.
    pub reason: Option<String>,
    pub incarnation: Option<u64>,
    pub committed_unix_ms: Option<u64>,
    pub file_bytes: u64,
    pub raw_bytes: u64,
    /// Of the images, what its own files hold.
    pub changed_bytes: u64,
    pub stall_us: u64,
    /// Writes that waited for a page to be saved, the sum and the longest of their waiting.
    pub faults: u64,
    pub waited_us: u64,
    pub longest_us: u64,
    pub took_us: u64,
    /// The checkpoint that it builds on.
    pub parent: Option<u64>,
    /// Other checkpoints of which it needs files, ascending.
    pub needs_epochs: Vec<u64>,
    /// Other checkpoints that need files of this one, ascending.
    pub needed_by: Vec<u64>,
}

/// One checkpoint in full.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ShowReport {
    pub store: String,
    pub job: String,
    pub checkpoint: CheckpointRow,
    /// The checkpoint that its incarnation started from.
    pub from: Option<u64>,
    pub programs: Vec<ObjectRow>,
    pub files: Vec<FileRow>,
    /// Files of other checkpoints that those refer to.
    pub needs: Vec<NeededRow>,
}

/// A mapped object of the program that wrote a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ObjectRow {
    pub path: String,
    pub build_id: String,
    pub address: u64,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileRow {
    pub rank: u32,
    pub name: String,
    pub file_bytes: u64,
    pub raw_bytes: u64,
    /// Of the image, what the file itself holds.
    pub changed_bytes: u64,
    pub digest: String,
}

/// A file of another checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NeededRow {
    pub rank: u32,
    pub epoch: u64,
    pub name: String,
    pub file_bytes: u64,
    pub digest: String,
}

/// What verifying a store found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    pub store: String,
    pub sound: bool,
    pub files: u64,
    pub file_bytes: u64,
    pub damaged: Vec<DamagedRow>,
    /// Files that are none of the store's.
    pub strays: Vec<String>,
}

/// A file that is not as it was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DamagedRow {
    pub path: String,
    pub reason: String,
    /// The checkpoints that can't be restored without it.
    pub checkpoints: Vec<u64>,
}

/// A checkpoint taken on request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TakenReport {
    pub store: String,
    pub epoch: u64,
}

/// A rank that has moved.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MovedReport {
    pub store: String,
    pub rank: u32,
    pub from: u32,
    /// The same where it was there already.
    pub to: u32,
    pub image_bytes: u64,
    /// How long the rank stood still.
    pub stood_us: u64,
    /// From the begin of the move until nothing of it was left.
    pub took_us: u64,
    /// How it was moved.
    pub mode: String,
    /// How many rounds were copied while it ran.
    pub rounds: u32,
}

/// The processes and ranks of a running job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PsReport {
    pub store: String,
    pub job: String,
    pub processes: Vec<ProcessRow>,
    pub ranks: Vec<RankRow>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProcessRow {
    pub process: u32,
    /// 0 where it has not connected.
    pub pid: u32,
    /// The name of its host; empty where it has not connected.
    pub node: String,
    /// `member`, `drained` or `released`.
    pub standing: &'static str,
}

/// A rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RankRow {
    pub rank: u32,
    pub process: u32,
    pub finished: bool,
    /// The process that it moves to.
    pub moving_to: Option<u32>,
    /// About what its image would be.
    pub image_bytes: Option<u64>,
    /// The share of the time in which it computed lately, in thousandths.
    pub load_permille: Option<u32>,
    /// Messages that it sent in each second lately.
    pub messages_per_s: Option<u64>,
}

impl From<ProcessStatus> for ProcessRow {
    fn from(status: ProcessStatus) -> Self {
        Self {
            process: status.process.0,
            pid: status.pid,
            node: status.host,
            standing: match status.standing {
                Standing::Member => "member",
                Standing::Drained => "drained",
                Standing::Released => "released",
            },
        }
    }
}

impl From<RankStatus> for RankRow {
    fn from(status: RankStatus) -> Self {
        Self {
            rank: status.rank.0,
            process: status.process.0,
            finished: status.finished,
            moving_to: status.moving_to.map(|process| process.0),
            image_bytes: status.figures.map(|figures| figures.image_bytes),
            load_permille: status.figures.map(|figures| figures.load_permille),
            messages_per_s: status.figures.and_then(|figures| figures.messages_per_s),
        }
    }
}

/// A node or process that is drained.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DrainReport {
    pub store: String,
    /// As it was named.
    pub what: String,
    /// The processes that this is.
    pub processes: Vec<u32>,
    /// Their ranks, and where they have gone, or will go.
    pub ranks: Vec<DrainedRow>,
    /// Whether they have gone, and the processes are released.
    pub done: bool,
}

/// A rank of a process that is drained.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DrainedRow {
    pub rank: u32,
    pub from: u32,
    pub to: u32,
}

/// A node or process that is taken back.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct UndrainReport {
    pub store: String,
    /// As it was named.
    pub what: String,
    /// The processes that this is.
    pub processes: Vec<u32>,
    /// Of these, those that are out until the next start.
    pub out: Vec<u32>,
}

/// How a job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StatusReport {
    pub store: String,
    pub job: String,
    pub running: bool,
    /// Whether every rank of the job has finished.
    pub complete: bool,
    /// The newest checkpoint that may be used.
    pub committed: Option<u64>,
    /// What the coordinator says, if one runs.
    pub status: Option<RunningReport>,
}

/// How a running job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunningReport {
    /// `starting`, `restoring`, `running`, `snapshot` or `stopping`.
    pub phase: String,
    pub incarnation: u64,
    pub ranks: u32,
    pub finished: u32,
    /// Process ids, by process number.
    pub pids: Vec<u32>,
    /// Names of their hosts, by process number.
    pub hosts: Vec<String>,
    /// The process of each rank.
    pub placement: Vec<u32>,
    pub restarts: u32,
    pub snapshot: Option<u64>,
    /// Ranks that have not called the library for long.
    pub computing: Vec<ComputingRow>,
    /// Memory that each process may use for storing checkpoints.
    pub memory_bytes: u64,
    pub interval: IntervalRow,
    pub next_ms: Option<u64>,
    pub elapsed_ms: u64,
}

/// The time from one snapshot to the next, and how it came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IntervalRow {
    /// The time, or null for none but those asked for.
    pub every_ms: Option<u64>,
    /// `fixed`, `unmeasured`, `optimum`, `durable`, `shortest` or `longest`.
    pub ground: &'static str,
    pub cost_us: Option<u64>,
    pub durable_us: Option<u64>,
    pub mtbf_ms: u64,
    pub failures: u32,
    pub ran_ms: u64,
}

impl From<IntervalStatus> for IntervalRow {
    fn from(status: IntervalStatus) -> Self {
        Self {
            every_ms: status.every_us.map(|us| us / 1000),
            ground: event::ground(status.ground),
            cost_us: status.cost_us,
            durable_us: status.durable_us,
            mtbf_ms: status.mtbf_us / 1000,
            failures: status.failures,
            ran_ms: status.ran_us / 1000,
        }
    }
}

/// A rank that has not called the library for long.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ComputingRow {
    pub rank: u32,
    pub since_ms: u64,
}

impl From<JobStatus> for RunningReport {
    fn from(status: JobStatus) -> Self {
        Self {
            phase: status.phase,
            incarnation: status.incarnation.0,
            ranks: status.ranks,
            finished: status.finished,
            pids: status.pids,
            hosts: status.hosts,
            placement: status.placement.iter().map(|process| process.0).collect(),
            restarts: status.restarts,
            snapshot: status.snapshot.map(|epoch| epoch.0),
            computing: status
                .computing
                .iter()
                .map(|&(rank, since_ms)| ComputingRow {
                    rank: rank.0,
                    since_ms,
                })
                .collect(),
            memory_bytes: status.memory_bytes,
            interval: status.interval.into(),
            next_ms: status.next_ms,
            elapsed_ms: status.elapsed_ms,
        }
    }
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RemovedReport {
    pub store: String,
    /// Epochs removed one by one.
    pub epochs: Vec<u64>,
    /// Whether the whole store was removed.
    pub all: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    found.push(name.clone());
                    names(value, found);
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|it| names(it, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_names_the_fields_of_what_is_told_of_processes_and_drains() {
        let ps = PsReport {
            processes: vec![ProcessRow::default()],
            ranks: vec![RankRow::default()],
            ..PsReport::default()
        };
        let drain = DrainReport {
            ranks: vec![DrainedRow::default()],
            ..DrainReport::default()
        };
        let mut found = Vec::new();
        names(&serde_json::to_value(ps).unwrap(), &mut found);
        names(&serde_json::to_value(drain).unwrap(), &mut found);
        names(
            &serde_json::to_value(UndrainReport::default()).unwrap(),
            &mut found,
        );
        assert!(found.iter().any(|name| name == "load_permille"));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let document = std::fs::read_to_string(path).unwrap();
        found.retain(|name| !document.contains(&format!("`{name}`")));
        assert!(found.is_empty(), "docs/cli.md does not mention {found:?}");
    }

    #[test]
    fn the_document_names_the_fields_of_a_running_job() {
        let report = RunningReport {
            computing: vec![ComputingRow::default()],
            ..JobStatus::default().into()
        };
        let mut found = Vec::new();
        names(&serde_json::to_value(report).unwrap(), &mut found);
        assert!(found.iter().any(|name| name == "mtbf_ms"));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let document = std::fs::read_to_string(path).unwrap();
        found.retain(|name| !document.contains(&format!("`{name}`")));
        assert!(found.is_empty(), "docs/cli.md does not mention {found:?}");
    }
}
