//! What is to be run and how: everything a coordinator is told by its caller.

use std::path::PathBuf;
use std::time::Duration;

use protocol::control::{CaptureMode, Compression, Tracking};
use protocol::interval::Bounds;

use crate::child::spawn::Program;
use crate::launch::{Launch, Request};

/// A job to run, all questions decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The store's directory.
    pub store: PathBuf,
    /// Number of ranks.
    pub ranks: u32,
    /// Number of processes that host ranks at a start, at most [`Self::ranks`].
    pub processes: u32,
    /// Number of processes besides that host none at a start, for ranks that come later.
    pub idle: u32,
    /// What each process runs.
    pub program: Program,
    /// Address space of a slot, in bytes.
    pub slot_bytes: u64,
    /// Address space of a rank's stack, in bytes.
    pub stack_bytes: u64,
    /// How chunks are compressed.
    pub compression: Compression,
    /// Refuse a snapshot where something would not be captured.
    pub strict: bool,
    /// How it is found out what a rank has written.
    pub tracking: Tracking,
    /// How pages are saved at a cut.
    pub capture: CaptureMode,
    /// Memory that each process may use for storing checkpoints, in bytes; `None` for a share of what is there when the
    /// processes are started ([`crate::memory`]).
    pub memory_bytes: Option<u64>,
    /// Time from one snapshot to the next.
    pub every: Every,
    /// How many checkpoints are kept, at least 1.
    pub keep: u32,
    /// Restarts allowed without a new checkpoint in between.
    pub max_restarts: u32,
    /// A process that gives no sign of life for this long is lost.
    pub heartbeat_timeout: Duration,
    /// Mark output lines with their rank.
    pub label: bool,
    /// File to which events are appended.
    pub events: Option<PathBuf>,
    /// How processes are to be launched, as the user says; remembered for restarts.
    pub request: Request,
    /// What that comes to now: the launcher that starts the processes, or `None` where they are children.
    pub launch: Option<Launch>,
    /// The store was taken over from a coordinator that hangs.
    pub took_over: bool,
    /// The job is stopped in time when the allocation that it runs in ends.
    pub walltime: bool,
}

/// When snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Only when asked for.
    Off,
    /// Each time that so much has passed.
    Fixed(Duration),
    /// As costs and failures suggest ([`protocol::interval`]).
    Auto(Bounds),
}

impl Every {
    /// The bounds of an interval that is estimated where the user does not say.
    pub const BOUNDS: Bounds = Bounds {
        min: Duration::from_secs(10),
        max: Duration::from_secs(3600),
    };

    /// The bounds of the estimate.
    #[must_use]
    pub fn bounds(self) -> Bounds {
        match self {
            Self::Auto(bounds) => bounds,
            Self::Off | Self::Fixed(_) => Self::BOUNDS,
        }
    }
}

impl Plan {
    /// Processes of both kinds.
    #[must_use]
    pub fn all_processes(&self) -> u32 {
        self.processes.saturating_add(self.idle)
    }

    /// Time that a process has to connect after its start: loading a program takes longer where many load
    /// at once.
    #[must_use]
    pub fn start_timeout(&self) -> Duration {
        let launching = match self.launch {
            Some(_) => Duration::from_secs(60),
            None => Duration::ZERO,
        };
        launching + Duration::from_secs(10) + Duration::from_millis(50) * self.all_processes()
    }

    /// How long a process that can't be seen to end may go on after it was last heard.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.heartbeat_timeout
    }

    /// Time from one ping to the next.
    #[must_use]
    pub fn ping_every(&self) -> Duration {
        self.heartbeat_timeout / PINGS_PER_TIMEOUT
    }
}

/// How much longer than a lease is waited: the process's own end takes some time, and clocks may differ by a hundredth.
#[must_use]
pub fn lease_margin(lease: Duration) -> Duration {
    Duration::from_millis(800) + lease / 50
}

/// Time that processes have to end by themselves when told to.
pub const STOP_GRACE: Duration = Duration::from_secs(3);

/// Time without a cut after which the processes that keep a snapshot waiting are named.
pub const CUT_PATIENCE: Duration = Duration::from_secs(10);

/// Time that storing may take once all have cut. A hung file system shows by this alone.
pub const STORE_TIMEOUT: Duration = Duration::from_secs(600);

/// Time that the move of a rank may take from its begin to its record.
pub const MOVE_WITHIN: Duration = Duration::from_secs(60);

/// How long a snapshot that is due waits for moves that are not recorded.
pub const MOVE_SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

/// When a move is not over so long after it was recorded or given up, the processes that it waits for are named.
pub const MOVE_END_PATIENCE: Duration = Duration::from_secs(10);

/// Signs of life asked for in each [`Plan::heartbeat_timeout`].
pub const PINGS_PER_TIMEOUT: u32 = 5;
