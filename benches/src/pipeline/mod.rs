//! What an application feels of checkpoints, and what they cost: the parts that the benchmarks `stall`,
//! `incremental`, `overhead` and `restore` share.
//!
//! - [`case`] names what is measured: ranks, memory, the share of it that changes, where the store is; and the ways
//!   of capture that run in turn with an undisturbed run.
//! - [`run`] runs `heat` for a number of steps, with checkpoints or without.
//! - [`steps`] reads when each of its steps ended, and tells what a checkpoint did to them.
//! - [`turns`] lets the runs of a case take turns and makes figures of them.
//! - [`memory`] samples how much memory the processes have.
//! - [`image`] fetches pages of a rank out of a running process, for references on the same bytes.
//! - [`limits`] is what the machine needs for the same bytes: to copy, compress, decompress and write them.

pub mod case;
pub mod image;
pub mod limits;
pub mod memory;
pub mod run;
pub mod steps;
pub mod turns;
