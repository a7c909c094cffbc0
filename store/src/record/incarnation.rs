//! The record of one start of a job.

use protocol::ids::{Epoch, Incarnation, JobId};
use serde::{Deserialize, Serialize};

use super::Record;
use super::text::Hex;
use crate::CheckpointId;

/// One start of the job. It is made, exclusively, before anything of that start runs; from then on whatever
/// an earlier start publishes past `from` is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncarnationRecord {
    /// The job.
    pub job: JobId,
    /// Which start, from 1.
    pub incarnation: Incarnation,
    /// The checkpoint it starts from; `None` for the job's beginning.
    pub from: Option<CheckpointId>,
    /// The newest epoch that was announced before this start.
    pub last_epoch: Epoch,
    /// Host name of the coordinator.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// When, in microseconds since 1970.
    pub started_unix_us: u64,
}

impl IncarnationRecord {
    /// The epoch of the checkpoint it starts from; 0 for the job's beginning.
    #[must_use]
    pub fn from_epoch(&self) -> Epoch {
        self.from.map_or(Epoch(0), |from| from.epoch)
    }
}

/// An incarnation record as it lies in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    job: Hex,
    incarnation: Incarnation,
    from: Option<CheckpointId>,
    last_epoch: Epoch,
    host: String,
    pid: u32,
    started_unix_us: u64,
}

impl Record for IncarnationRecord {
    const MAGIC: [u8; 8] = *b"CKPT-INC";
    const VERSION: u32 = 1;
    const WHAT: &'static str = "an incarnation record";
    type Disk = Disk;

    fn to_disk(&self) -> Disk {
        Disk {
            job: Hex(self.job.0.to_vec()),
            incarnation: self.incarnation,
            from: self.from,
            last_epoch: self.last_epoch,
            host: self.host.clone(),
            pid: self.pid,
            started_unix_us: self.started_unix_us,
        }
    }

    fn from_disk(disk: Disk) -> Result<Self, String> {
        if let Some(from) = disk.from
            && (from.epoch > disk.last_epoch || from.incarnation >= disk.incarnation)
        {
            return Err(format!("starts from {from}, which is not before it"));
        }
        Ok(Self {
            job: JobId(disk.job.array("the job's identity")?),
            incarnation: disk.incarnation,
            from: disk.from,
            last_epoch: disk.last_epoch,
            host: disk.host,
            pid: disk.pid,
            started_unix_us: disk.started_unix_us,
        })
    }
}
