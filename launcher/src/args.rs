//! The command line. `docs/cli.md` describes the same for people who read rather than ask `--help`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use protocol::control::{CaptureMode, Compression, Tracking};
use protocol::migration::MoveMode;

use crate::units;

/// The most processes without ranks that may be asked for; a typing error should not start a million.
const IDLE_MAX: i64 = 4096;

/// Checkpoints of parallel programs that need not know of them: run, stop, restart.
#[derive(Debug, Parser)]
#[command(name = "ckpt", version, about, max_term_width = 100)]
pub struct Cli {
    /// Print one JSON record (docs/cli.md) instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Print errors only
    #[arg(long, short, global = true, conflicts_with = "json")]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program as a job with checkpoints
    Run(Box<RunArgs>),
    /// Go on with a job from its newest checkpoint
    Restart(Box<RestartArgs>),
    /// List the checkpoints of a store
    Ls(StoreArgs),
    /// Show one checkpoint
    Show(ShowArgs),
    /// Read and check every file of a store
    Verify(StoreArgs),
    /// Take a checkpoint of a running job now; returns when it is committed
    Checkpoint(StoreArgs),
    /// Tell how a job is
    Status(StoreArgs),
    /// Move a rank of a running job to another of its processes; returns when it has moved
    Migrate(MigrateArgs),
    /// List the processes and ranks of a running job
    Ps(StoreArgs),
    /// Move all ranks away from a node or process of a running job, and use it no more
    Drain(DrainArgs),
    /// Use a node or process again that was drained
    Undrain(UndrainArgs),
    /// Remove one checkpoint, or a whole store
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Number of ranks
    #[arg(short = 'n', long = "ranks", value_name = "RANKS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: u32,
    /// Directory for the checkpoints; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Go on from the store's newest checkpoint, if there is one
    #[arg(long)]
    pub resume: bool,
    /// Address space for each rank's stack and heap, a power of two (e.g. 16GiB)
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub slot_size: Option<u64>,
    /// Address space for each rank's stack (e.g. 256MiB)
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub stack_size: Option<u64>,
    #[command(flatten)]
    pub common: CommonArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    pub program: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    /// The job's store
    pub store: PathBuf,
    /// Go on although another coordinator holds the store: it hangs, or can't be reached
    #[arg(long)]
    pub take_over: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Options of a job that a restart may change; where it does not, they stay as they were.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// Number of processes that the ranks share [default: one for each rank]
    #[arg(long, value_name = "PROCESSES", value_parser = clap::value_parser!(u32).range(1..))]
    pub procs: Option<u32>,
    /// Number of processes besides that have no rank at a start, for ranks that are moved there [default: 0]
    #[arg(long, value_name = "PROCESSES", value_parser = clap::value_parser!(u32).range(..=IDLE_MAX))]
    pub idle_procs: Option<u32>,
    /// Time from one checkpoint to the next (e.g. 30s, 10m), auto to choose it by cost and failures, or off [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_every)]
    pub every: Option<EveryArg>,
    /// With --every auto: the shortest time [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_interval)]
    pub every_min: Option<Duration>,
    /// With --every auto: the longest time [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_interval)]
    pub every_max: Option<Duration>,
    /// How many checkpoints to keep [default: 2]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// Restarts allowed without a new checkpoint in between [default: 3]
    #[arg(long, value_name = "N")]
    pub max_restarts: Option<u32>,
    /// How checkpoints are compressed: auto, none, fast, or a level of zstd from 1 to 22 [default: auto]
    #[arg(long, value_name = "HOW", value_parser = units::parse_compression)]
    pub compress: Option<Compression>,
    /// Memory that each process may use for storing checkpoints (e.g. 512MiB) [default: a share of what is free]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_memory)]
    pub memory: Option<u64>,
    /// How changed memory is found: auto, kernel, hash, or off to store all of it each time [default: auto]
    #[arg(long, value_name = "HOW", value_parser = units::parse_tracking)]
    pub track: Option<Tracking>,
    /// How memory is saved for a checkpoint: auto, cow (copy on write), or copy (copied aside) [default: auto]
    #[arg(long, value_name = "HOW", value_parser = units::parse_capture)]
    pub capture: Option<CaptureMode>,
    /// A process that gives no sign of life for this long is lost [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_heartbeat)]
    pub heartbeat_timeout: Option<Duration>,
    /// Refuse a checkpoint where something would not be captured, instead of warning
    #[arg(long)]
    pub strict: bool,
    /// Mark the program's output lines with their rank
    #[arg(long)]
    pub label: bool,
    /// Append what happens to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    #[command(flatten)]
    pub launch: LaunchArgs,
}

/// Where and by what the processes are started.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options for several nodes")]
pub struct LaunchArgs {
    /// What starts the processes: local, mpirun (or its path), srun, or a command with {processes}, {hostfile}, {hosts} and {program}
    /// [default: mpirun with a hostfile or in an allocation, else local]
    #[arg(long = "launch", value_name = "HOW")]
    pub how: Option<String>,
    /// The nodes: a host a line, with slots=N or :N
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// Use so many of the nodes [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub nodes: Option<u32>,
    /// Keep so many of these free, to take the place of lost ones [default: 0]
    #[arg(long, value_name = "N")]
    pub spare_nodes: Option<u32>,
    /// With fewer nodes the job does not go on [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_nodes: Option<u32>,
    /// Arguments for the launcher, separated by blanks; what they say goes before what ckpt would say
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub launch_args: Option<String>,
    /// Address of this host that the nodes connect to, HOST or HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub control_address: Option<String>,
    /// If the job ends resumable (exit code 75) inside a Slurm batch job, put that back into the queue
    #[arg(long)]
    pub requeue_on_resumable: bool,
}

/// The value of `--every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EveryArg {
    /// No checkpoints but those asked for.
    Off,
    /// As costs and failures suggest.
    Auto,
    /// One each time.
    Interval(Duration),
}

#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The job's store
    pub store: PathBuf,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The job's store
    pub store: PathBuf,
    /// Its number, or latest
    #[arg(value_parser = units::parse_epoch)]
    pub epoch: Which,
}

#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The job's store
    pub store: PathBuf,
    /// The rank, by its number
    pub rank: u32,
    /// The process that it goes to, by its number; or a node, by its name: the process there that has the fewest ranks
    #[arg(long, value_name = "PROCESS|NODE")]
    pub to: String,
    /// How its memory gets there: stop (it stands still while it is copied), precopy (it is copied while it runs, and stands
    /// still for the rest), postcopy (it runs there at once, and its memory follows), checkpoint (the target reads its last checkpoint, and it
    /// stands still for what has changed since), safepoint (as stop, where the solver says so), auto (stop or precopy)
    #[arg(long, value_name = "MODE", default_value = "stop", value_parser = units::parse_move_mode)]
    pub mode: MoveMode,
    /// Give up when it does not run there after this time, e.g. 10s [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub within: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The job's store
    pub store: PathBuf,
    /// The node, by its name, or a process, by its number
    #[arg(value_name = "NODE|PROCESS")]
    pub what: String,
    /// Return when all ranks have moved and nothing of them is left, not when their moves are planned
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// The job's store
    pub store: PathBuf,
    /// The node, by its name, or a process, by its number
    #[arg(value_name = "NODE|PROCESS")]
    pub what: String,
}

/// Which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest that may be used.
    Latest,
    /// The one of this epoch.
    Epoch(u64),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["epoch", "all"]))]
pub struct RmArgs {
    /// The job's store
    pub store: PathBuf,
    /// The checkpoint to remove
    pub epoch: Option<u64>,
    /// Remove the store with all its checkpoints
    #[arg(long)]
    pub all: bool,
}

impl Command {
    /// Its name, as in the JSON records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Restart(_) => "restart",
            Self::Ls(_) => "ls",
            Self::Show(_) => "show",
            Self::Verify(_) => "verify",
            Self::Checkpoint(_) => "checkpoint",
            Self::Status(_) => "status",
            Self::Migrate(_) => "migrate",
            Self::Ps(_) => "ps",
            Self::Drain(_) => "drain",
            Self::Undrain(_) => "undrain",
            Self::Rm(_) => "rm",
        }
    }
}
