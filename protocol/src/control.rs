//! The messages on a control connection, between the coordinator and a process or a command.
//!
//! A frame is a `u32` little-endian length and that many bytes of postcard. The first frame from
//! either kind of peer is a [`Hello`], which carries the job's token.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Incarnation, JobId, Move, Process, Rank};
use crate::interval::Ground;
use crate::migration::{MoveDirective, MoveMode, MoveReport, Standing, Step};

/// The version of these messages. A peer with another version is refused.
pub const CONTROL_VERSION: u32 = 8;

/// The largest frame that is accepted, in bytes. A longer length is refused before anything is allocated.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Environment variables by which the coordinator hands a process its place in the job.
pub mod environment {
    /// Address of the control socket: `unix:@NAME` (abstract), `unix:PATH` or `tcp:HOST:PORT`.
    pub const CONTROL: &str = "CKPT_CONTROL";
    /// The token of this start of the job, 64 hexadecimal digits. Each start has another, so that a straggler of an earlier
    /// one is turned away.
    pub const TOKEN: &str = "CKPT_TOKEN";
    /// What links go over: [`TRANSPORT_SHM`], also where it is not set, or [`TRANSPORT_MPI`].
    pub const TRANSPORT: &str = "CKPT_TRANSPORT";
    /// Rings in shared memory.
    pub const TRANSPORT_SHM: &str = "shm";
    /// MPI: the process's number is its rank in `MPI_COMM_WORLD`, and the number of processes is that one's size.
    pub const TRANSPORT_MPI: &str = "mpi";
    /// With shared memory, this process's number.
    pub const PROCESS: &str = "CKPT_PROCESS";
    /// With shared memory, how many processes the job has.
    pub const PROCESSES: &str = "CKPT_PROCESSES";
    /// Number of the inherited file descriptor of the shared memory that holds the rings; with shared memory only.
    pub const SHM_FD: &str = "CKPT_SHM_FD";
    /// With `--label`: inherited descriptors for the output of each hosted rank, `RANK:OUT:ERR`
    /// separated by commas. Absent otherwise.
    pub const OUTPUT_FDS: &str = "CKPT_OUTPUT_FDS";
}

/// Exit codes of a rank process that the coordinator understands. Anything else is the solver's own.
pub mod exit {
    /// The process was told to end (stop, lost coordinator) and did. `EX_TEMPFAIL` of sysexits.h.
    pub const STOPPED: i32 = 75;
    /// The process could not start or go on for a reason of the library's own, already reported.
    /// `EX_SOFTWARE` of sysexits.h.
    pub const LIBRARY: i32 = 70;
    /// A rank overflowed its stack; the message is on stderr.
    pub const STACK_OVERFLOW: i32 = 71;
    /// A rank panicked; the message is on stderr. The code of Rust's own runtime.
    pub const PANIC: i32 = 101;
}

/// The first frame on a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`CONTROL_VERSION`] of the sender.
    pub version: u32,
    /// The job's token, compared in constant time.
    pub token: [u8; 32],
    /// Who is calling.
    pub caller: Caller,
}

/// Who opens a control connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Caller {
    /// A process of the job: its number, where it is, what program it runs.
    Process {
        /// Its number in the job.
        process: Process,
        /// How many processes there are by what it knows.
        processes: u32,
        /// Its process id.
        pid: u32,
        /// The name of its host, as `gethostname(2)` tells.
        host: String,
        /// The program, as mapped.
        identity: ProgramIdentity,
    },
    /// A command (`ckpt status`, `ckpt checkpoint`): one [`Request`] follows, then one [`Response`].
    Command,
}

/// What must be equal in every process of a job for a rank's bytes to mean the same (design 3.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramIdentity {
    /// Every mapped object, the program first.
    pub objects: Vec<MappedObject>,
    /// Processor features in use, sorted, as `std::arch` names them.
    pub processor_features: Vec<String>,
    /// Address of the main thread's thread-local block.
    pub thread_local_address: u64,
    /// The machine's page size, in bytes.
    pub page_bytes: u32,
}

/// One mapped object (program, shared library, vdso).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedObject {
    /// Its path as the dynamic linker tells it; the program's own is empty there and given as `/proc/self/exe`'s target.
    pub path: String,
    /// The GNU build id, or a digest of the file where it has none.
    pub build_id: Vec<u8>,
    /// The address it is loaded at.
    pub address: u64,
}

/// What the coordinator tells a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Directive {
    /// The answer to an accepted [`Hello`]: the process's part of the job.
    Assignment(Box<Assignment>),
    /// The Hello was not accepted; the process prints the reason and ends with [`exit::LIBRARY`].
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// All processes are ready: let the ranks run.
    Go,
    /// Take the snapshot with this number.
    Snapshot {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The snapshot will not be: drop what is staged, stop writing; the coordinator removes the files.
    Abort {
        /// Its epoch.
        epoch: Epoch,
        /// What the process builds on is not there any more: the next snapshot has to hold whole images.
        rebase: bool,
    },
    /// The snapshot is a checkpoint now.
    Committed {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The job is complete (every rank finished): exit 0.
    End,
    /// Exit at once with [`exit::STOPPED`].
    Stop,
    /// The process was released from the job ([`crate::migration::MoveDirective::Release`]), and every other one has ended its link
    /// to it: exit 0 now, and wait for nobody.
    Leave,
    /// Are you there? Answered by [`Report::Alive`] from the control thread.
    Ping {
        /// The number of the newest [`Report::Alive`] that the coordinator has heard, 0 for the Hello. What it acknowledges
        /// extends the process's lease ([`crate::recovery::lease`]).
        heard: u64,
    },
    /// About the move of a rank between running processes ([`crate::migration`]).
    Move(MoveDirective),
}

/// A process's part of the job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The job.
    pub job: JobId,
    /// This start of it.
    pub incarnation: Incarnation,
    /// The newest epoch that was announced before this start; the next snapshot's is greater.
    pub epoch: Epoch,
    /// The process of each rank, indexed by rank; its length is the number of ranks.
    pub placement: Vec<Process>,
    /// How many processes the job has.
    pub processes: u32,
    /// How many of them share a machine's processors and memory, on the node that has the most.
    pub processes_beside: u32,
    /// Bytes of address space per slot.
    pub slot_bytes: u64,
    /// Bytes of address space of a rank's stack.
    pub stack_bytes: u64,
    /// The store, an absolute path.
    pub store: String,
    /// How chunks are compressed.
    pub compression: Compression,
    /// Start from this checkpoint, or from the beginning.
    pub restore: Option<Restore>,
    /// `--strict`: refuse a snapshot where something would not be captured, instead of warning.
    pub strict: bool,
    /// Run the conservative pointer scan at the first snapshot (always in tests).
    pub scan: bool,
    /// Memory that the process may use for storing checkpoints, beside the ranks' own, in bytes.
    pub memory_bytes: u64,
    /// How it is found out what a rank has written.
    pub tracking: Tracking,
    /// How pages are saved at a cut.
    pub capture: CaptureMode,
    /// How long the process may go on after it sent the newest sign of life that was acknowledged, in microseconds; `None`
    /// where its end is certain without that (a child of the coordinator). See [`crate::recovery::lease`].
    pub lease_us: Option<u64>,
}

/// How it is found out which pages have changed since the checkpoint before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tracking {
    /// By the kernel where it can and where it pays off, else by digests.
    #[default]
    Auto,
    /// By the kernel (userfaultfd), for all memory; by digests where it does not do that.
    Kernel,
    /// By digests of pages.
    Hash,
    /// Not at all: every checkpoint holds all pages.
    Off,
}

/// How the pages that a checkpoint has to hold are saved at a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureMode {
    /// Whichever costs the ranks less, as far as the kernel allows.
    #[default]
    Auto,
    /// The ranks go on at once; a page is saved before its first write. Copied aside where the kernel does not allow that.
    CopyOnWrite,
    /// The ranks stand still until all pages are copied.
    CopyAside,
}

/// How the chunks of a checkpoint are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// By what the disk and the processor can take: stored as they are, or zstd at a fast level.
    #[default]
    Auto,
    /// Stored as they are.
    None,
    /// zstd at its level 1.
    Fast,
    /// zstd at this level.
    Level(i32),
}

/// A checkpoint to start from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restore {
    /// Its epoch.
    pub epoch: Epoch,
    /// The incarnation that wrote it.
    pub incarnation: Incarnation,
    /// The file of each rank, indexed by rank.
    pub files: Vec<StoredFile>,
    /// Files of other checkpoints that those of the ranks which the process hosts refer to.
    pub needs: Vec<NeededFile>,
}

/// A rank's file in a checkpoint, as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoredFile {
    /// The rank.
    pub rank: Rank,
    /// The file's path below the store.
    pub name: String,
    /// The file's length in bytes.
    pub file_bytes: u64,
    /// Digest over the whole file (XXH3-128).
    pub digest: [u8; 16],
    /// Bytes of the image before compression (pages, tables, channel state).
    pub raw_bytes: u64,
    /// Of these, bytes that this file itself holds; the others are in files of other checkpoints, or zeros.
    pub changed_bytes: u64,
}

/// A rank's file of another checkpoint, some of whose pages are part of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NeededFile {
    /// The epoch of that checkpoint.
    pub epoch: Epoch,
    /// The incarnation that wrote it.
    pub incarnation: Incarnation,
    /// The file.
    pub file: StoredFile,
}

/// What the ranks of a process felt of a snapshot after its cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Felt {
    /// Writes that had to wait until a page was saved.
    pub faults: u64,
    /// How long they waited in total, in microseconds.
    pub waited_us: u64,
    /// How long the longest waited, in microseconds.
    pub longest_us: u64,
}

/// What a process tells the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Slots are mapped, images restored, links ready: waiting for [`Directive::Go`].
    Ready {
        /// How long restoring took, in microseconds (0 at a start from the beginning).
        restore_us: u64,
    },
    /// An image could not be restored; the coordinator marks the checkpoint and takes the one before.
    RestoreFailed {
        /// Whose image.
        rank: Rank,
        /// Of which checkpoint.
        epoch: Epoch,
        /// What is wrong with it.
        reason: String,
    },
    /// The answer to [`Directive::Ping`].
    Alive {
        /// Counts these reports of a process, from 1.
        number: u64,
        /// The hosted ranks that have not entered the engine for long, with the milliseconds since.
        computing: Vec<(Rank, u64)>,
        /// How each hosted rank is, as it was looked at last: at the ping before, as a rule.
        ranks: Vec<RankFigures>,
    },
    /// The ranks of this process are captured.
    Cut {
        /// For which snapshot.
        epoch: Epoch,
        /// How long the ranks stood still, in microseconds.
        stall_us: u64,
    },
    /// Images, tables and channel state of this process are durable.
    Stored {
        /// For which snapshot.
        epoch: Epoch,
        /// A file for each hosted rank.
        files: Vec<StoredFile>,
        /// Files of other checkpoints that those refer to.
        needs: Vec<NeededFile>,
        /// What the ranks felt between the cut and now.
        felt: Felt,
        /// What was sent and received at the cut, for each opened link.
        links: Vec<LinkCount>,
    },
    /// This process can't take or store the snapshot: it is to be aborted, the job goes on.
    SnapshotFailed {
        /// Which.
        epoch: Epoch,
        /// What failed, where, why.
        reason: String,
    },
    /// A rank returned from the solver's main.
    RankFinished {
        /// The rank.
        rank: Rank,
    },
    /// A rank ended with an error or a panic: the job ends with this code.
    RankFailed {
        /// The rank.
        rank: Rank,
        /// The exit code that the job passes on.
        code: i32,
        /// What the rank said.
        message: String,
    },
    /// Something the user should know that does not end the job.
    Warning {
        /// The text, complete.
        text: String,
    },
    /// This process can't store the snapshot because it can't read a file of another checkpoint that it builds on. It is to be
    /// aborted with [`Directive::Abort`]'s `rebase`: every snapshot that builds on the same would fail like this one.
    BaseFailed {
        /// Which.
        epoch: Epoch,
        /// What failed, where, why.
        reason: String,
    },
    /// Something for the log, such as how changed memory is found and saved.
    Note {
        /// The text, complete.
        text: String,
    },
    /// The process does not see the job's store under the path of its assignment; the job can't run like this.
    StoreUnseen {
        /// What is there instead, or why it can't be read.
        reason: String,
    },
    /// About the move of a rank between running processes ([`crate::migration`]).
    Move(MoveReport),
    /// The files that the ranks had open at the checkpoint can't be gone on with in this process. Nothing was changed; the
    /// checkpoint is good, and no other would do better.
    FilesUnusable {
        /// Which file of which rank, what is wrong with it, and what to do.
        reason: String,
    },
    /// A rank has come from another process and runs here now.
    RankMoved {
        /// The move.
        id: Move,
        /// The rank.
        rank: Rank,
        /// Bytes of its image.
        image_bytes: u64,
        /// How long it stood still, in microseconds.
        stood_us: u64,
        /// How it was moved, where that was left open, or could not be done as it was asked for.
        mode: MoveMode,
        /// How many rounds were copied while it ran.
        rounds: u32,
    },
    /// This process can't go on without another one, which has ended or can't be reached. It does nothing more, and waits for its end:
    /// the coordinator finds out what became of the other.
    Stranded {
        /// Which, where it is known.
        peer: Option<Process>,
        /// What failed, where, why.
        reason: String,
    },
}

/// How a rank is, for `ckpt ps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankFigures {
    /// The rank.
    pub rank: Rank,
    /// Bytes of its memory that are in use: about what its image would be.
    pub image_bytes: u64,
    /// The share of the time in which it computed, instead of waiting in the library, in thousandths; lately, by samples.
    pub load_permille: u32,
    /// Messages that it sent in each second, lately; `None` before there was time to count.
    pub messages_per_s: Option<u64>,
}

/// Packets of one link at a cut: what this process sent to the peer, and what it took from the peer
/// before its cut plus what it recorded as channel state after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LinkCount {
    /// The process at the other end.
    pub peer: Process,
    /// Packets sent to it before the cut, in this incarnation.
    pub sent: u64,
    /// Packets received from it that belong before its cut, in this incarnation.
    pub received: u64,
}

/// What a command asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Take a checkpoint now; the response comes when it is committed or has failed.
    Checkpoint,
    /// Tell how the job is.
    Status,
    /// Move a rank to another process. [`Response::Moving`] may come before the response.
    Migrate {
        /// Which.
        rank: Rank,
        /// Where to.
        to: Process,
        /// How.
        mode: MoveMode,
        /// The longest that it may take until the rank is the target's, in microseconds; else the usual limit.
        within_us: Option<u64>,
    },
    /// Tell of each process and each rank.
    Processes,
    /// Move all ranks away from some processes, release those, and use them no more at restarts.
    Drain {
        /// The name of a node, for all processes there; or the number of a process.
        what: String,
        /// Answer when that is done, with [`Response::Draining`] on the way; else when it is planned.
        wait: bool,
    },
    /// Take back what was drained.
    Undrain {
        /// As it was drained.
        what: String,
    },
}

/// A process of a running job, for `ckpt ps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its number.
    pub process: Process,
    /// Its process id; 0 where it has not connected.
    pub pid: u32,
    /// Its host, by what it told; empty where it has not connected.
    pub host: String,
    /// Whether ranks may come to it.
    pub standing: Standing,
}

/// A rank of a running job, for `ckpt ps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Its number.
    pub rank: Rank,
    /// Its process.
    pub process: Process,
    /// It has returned from the solver's main.
    pub finished: bool,
    /// The process that it is moving to.
    pub moving_to: Option<Process>,
    /// What its process last told of it; `None` before it did.
    pub figures: Option<RankFigures>,
}

/// A rank of a process that is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainedRank {
    /// The rank.
    pub rank: Rank,
    /// Where it was.
    pub from: Process,
    /// Where it goes, or has gone.
    pub to: Process,
}

/// What became of a request to drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// The processes.
    pub processes: Vec<Process>,
    /// Their ranks and where they went, or will go.
    pub ranks: Vec<DrainedRank>,
    /// All ranks are there, nothing of them is left where they were, and the processes are released.
    pub done: bool,
}

/// What a command is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// The checkpoint is committed.
    Committed {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The request could not be done.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
    /// How the job is.
    Status(Box<JobStatus>),
    /// The move is so far. More comes.
    Moving {
        /// What is being done.
        step: Step,
    },
    /// The rank has moved, or was there already.
    Moved {
        /// Where it was.
        from: Process,
        /// Where it is.
        to: Process,
        /// Bytes of its image; 0 if it was there already.
        image_bytes: u64,
        /// How long it stood still, in microseconds.
        stood_us: u64,
        /// How long the move took from its begin until nothing of it was left, in microseconds.
        took_us: u64,
        /// How it was moved.
        mode: MoveMode,
        /// How many rounds were copied while it ran.
        rounds: u32,
    },
    /// How each process and each rank is.
    Processes {
        /// By number.
        processes: Vec<ProcessStatus>,
        /// By number.
        ranks: Vec<RankStatus>,
    },
    /// The request to drain is so far. More comes.
    Draining {
        /// Ranks that have gone, and processes that are released.
        done: u32,
        /// How many there are of both.
        all: u32,
    },
    /// The request to drain is done, or planned.
    Drained(Drained),
    /// What was drained may be used again.
    Undrained {
        /// The processes that it stands for.
        processes: Vec<Process>,
        /// Of these, those that are released: they are out until the next start of the job.
        out: Vec<Process>,
    },
}

/// The time from one snapshot to the next, and what there is to choose it by. See [`crate::interval`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalStatus {
    /// The time, in microseconds; `None` for none but those asked for.
    pub every_us: Option<u64>,
    /// Why it is that.
    pub ground: Ground,
    /// What a checkpoint costs the ranks, in microseconds, once one was measured.
    pub cost_us: Option<u64>,
    /// How long one takes to be committed, in microseconds, once one was measured.
    pub durable_us: Option<u64>,
    /// The estimated mean time between failures, in microseconds.
    pub mtbf_us: u64,
    /// Failures seen by this command.
    pub failures: u32,
    /// The time that ranks ran under this command, in microseconds.
    pub ran_us: u64,
}

/// How a running job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub job: JobId,
    /// This start of it.
    pub incarnation: Incarnation,
    /// What the job is doing: `starting`, `restoring`, `running`, `snapshot`, `stopping`.
    pub phase: String,
    /// Number of ranks.
    pub ranks: u32,
    /// Ranks that returned from the solver's main.
    pub finished: u32,
    /// The process id of each process.
    pub pids: Vec<u32>,
    /// The host of each process, by what it told; empty where it has not connected.
    pub hosts: Vec<String>,
    /// The process of each rank.
    pub placement: Vec<Process>,
    /// Restarts so far.
    pub restarts: u32,
    /// The last committed epoch.
    pub committed: Option<Epoch>,
    /// The snapshot under way.
    pub snapshot: Option<Epoch>,
    /// Ranks that have not reached the engine, with the milliseconds since they last did.
    pub computing: Vec<(Rank, u64)>,
    /// Memory that each process may use for storing checkpoints, in bytes.
    pub memory_bytes: u64,
    /// The time from one snapshot to the next, and how it came about.
    pub interval: IntervalStatus,
    /// Milliseconds until the next snapshot.
    pub next_ms: Option<u64>,
    /// Milliseconds since the job's first start of this command.
    pub elapsed_ms: u64,
}
