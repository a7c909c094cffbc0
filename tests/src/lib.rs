//! The test bed: runs whole jobs as a user would, kills their processes, and looks at what is left.
//!
//! Nothing here knows the library from the inside. A job is a `ckpt run` child process; what happens in it
//! is read from its `--events` file, its output and `/proc`, and judged by the bits of its `result:` line.
//!
//! - [`binaries`] finds (or builds) `ckpt` and the examples beside the running test.
//! - [`bed`] is a place for one job: a directory of its own, a user, and a mark by which every process of the
//!   job is found again, so that nothing is left behind. [`solver`] and [`matrix`] say what to run there, [`relay`] what writes files.
//! - [`job`] starts a job and waits for its end within a hard time limit; [`output`] is what it printed.
//! - [`events`] reads the event log while it grows; [`phase`] tells which phase of a job a moment fell in.
//! - [`process`] kills, stops and counts processes.
//! - [`ways`] lists the options that change how checkpoints are made, and nothing else.
//! - [`disk`] makes a small disk; [`skip`] tells in the open that a test could not be made.
//! - [`nodes`] makes separate nodes out of namespaces, with a network to be cut, and [`slurm`] runs on them.
//! - [`campaign`] is the long way round: seeded kills at aimed and random moments, and the checks after.
//! - [`damage`] flips and cuts off bytes of stored checkpoints.

pub mod bed;
pub mod binaries;
pub mod campaign;
pub mod damage;
pub mod disk;
pub mod events;
pub mod job;
pub mod matrix;
pub mod nodes;
pub mod output;
pub mod phase;
pub mod process;
pub mod relay;
pub mod skip;
pub mod slurm;

pub mod solver;
pub mod wander;
pub mod ways;

/// The program in README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
