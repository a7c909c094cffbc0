//! Seeded campaigns of `kill -9`.
//!
//! Everything about a run follows from its seed: what is run on how many ranks and processes, how often it is
//! checkpointed, and which processes are killed when. What the machine does in between does not, so a seed
//! repeats the plan, not the microsecond.
//!
//! - [`plan`] draws the plan of a seed. One kill of each run is aimed at a phase, so that no phase is left to
//!   luck; the others come at random.
//! - [`drive`] carries it out on a real job, and restarts the job by hand when its coordinator was killed.
//! - [`check`] judges: the bits of the result, the checkpoint that each restart came from, the steps that were
//!   repeated.
//! - [`tally`] adds runs up.

pub mod check;
pub mod drive;
pub mod plan;
pub mod tally;
