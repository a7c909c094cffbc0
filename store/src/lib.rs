//! The store: where a job's checkpoints live (design 8).
//!
//! `docs/format.md` is the specification of every byte that this crate writes. The rooms:
//!
//! - [`storage`]: the few file operations that everything here is built on, on a disk or in memory;
//! - [`fault`]: the same operations, failing on purpose, for tests;
//! - [`format`](mod@format): the bytes of a rank file as structs, and their checksums;
//! - [`rank_file`]: the writer and the reader of a rank file;
//! - [`compaction`]: which files an image goes on referring to;
//! - [`record`]: small files (job, incarnation, manifest) with magic, version and digest;
//! - [`job_store`]: the store directory as a whole: incarnations, epochs, publishing, retention, verification;
//! - [`names`]: what files are called.
//!
//! Deliberately absent: memory mapping. A mapped file that is truncated, or whose disk fails, ends the
//! process with SIGBUS; a positional read returns an error, which only costs that checkpoint.

#![forbid(unsafe_code)]

pub mod compaction;
mod durable;
mod effort;
mod error;
pub mod fault;
pub mod format;
pub mod job_store;
pub mod names;
pub mod rank_file;
pub mod record;
pub mod storage;

pub use effort::{EffortControl, Situation};
pub use error::{Error, ErrorKind, Result};
pub use job_store::{
    Checkpoint, CheckpointState, ControlFile, FileReport, JobStore, Listing, PublishError,
    Published, VerifyReport,
};
pub use names::{CheckpointId, FileKey};
pub use rank_file::{
    CarryOver, Effort, Finished, ImageMap, PackedChunk, Packer, Packing, RankFileWriter, RankImage,
    Scratch, SectionKind,
};
pub use record::{Figures, IncarnationRecord, JobRecord, Manifest};
pub use storage::{DiskStorage, MemoryStorage, SharedStorage, Storage};

/// Bytes of a page in a rank file.
pub const PAGE_BYTES: usize = 4096;
