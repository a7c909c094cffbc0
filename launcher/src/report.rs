//! What each command has to tell: the results, before any mode of output gives them a form.
//!
//! The fields are those of the JSON records in `docs/cli.md`. A field may be added; none changes its
//! meaning or goes away within one [`SCHEMA`].

use protocol::control::JobStatus;
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
    pub stall_us: u64,
    pub took_us: u64,
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
}

/// A checkpoint taken on request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TakenReport {
    pub store: String,
    pub epoch: u64,
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
    /// The process of each rank.
    pub placement: Vec<u32>,
    pub restarts: u32,
    pub snapshot: Option<u64>,
    /// Ranks that have not called the library for long.
    pub computing: Vec<ComputingRow>,
    pub next_ms: Option<u64>,
    pub elapsed_ms: u64,
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
