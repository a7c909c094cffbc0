//! Checkpoint, restart and migration for MPI-style Rust solvers.
//!
//! A solver is an ordinary program: it registers no variable and makes no checkpoint call.
//!
//! ```no_run
//! use libckpt::prelude::*;
//!
//! #[libckpt::main]
//! fn main(world: World) -> Result<(), libckpt::Error> {
//!     let mut sum = [0.0];
//!     world.all_reduce_into(&[world.rank() as f64], &mut sum, SystemOperation::sum())?;
//!     if world.rank() == 0 {
//!         println!("{}", sum[0]);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Started by `ckpt run`, the job's ranks are captured while they run, and a job that loses a process goes
//! on from its last checkpoint with the same bits. Started alone, the program is one rank and takes no
//! checkpoints.
//!
//! Files that are to go on with a rank are opened by [`mod@fs`].
//!
//! The layers, from the solver down: [`comm`], `engine`, `runtime`, and the crates `libckpt-rank`,
//! `libckpt-transport`, `ckpt-store` and `ckpt-protocol`.

#![forbid(unsafe_code)]

pub mod comm;
mod engine;
mod error;
pub mod fs;
pub mod prelude;
mod runtime;

pub use libckpt_macros::{datatype, main};
pub use libckpt_rank as rank;
/// The crate whose derives [`macro@datatype`] uses.
pub use zerocopy;

pub use self::comm::request;
pub use self::engine::{safepoint, wtime, yield_now};
pub use self::error::{Error, Result, StartError};
pub use self::runtime::{Ending, ExitStatus, Termination, run};
