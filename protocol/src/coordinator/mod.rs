//! The snapshot side of the coordinator: when a snapshot starts, what it waits for, how it ends.
//!
//! One [`Coordinator`] lives as long as one start of the job (an incarnation). It knows nothing of
//! sockets, files or child processes: the caller tells it what happened by `handle_*`, does what
//! [`Coordinator::poll_output`] says, and calls [`Coordinator::handle_timeout`] when the time that
//! [`Coordinator::poll_timeout`] names has come. Times are durations since any fixed start.
//!
//! A snapshot goes through these phases, and only one snapshot exists at a time:
//!
//! ```text
//!          Prepare            Announce             Publish             Commit
//!   idle ───────────▶ preparing ───────▶ collecting ───────▶ publishing ───────▶ idle
//!                         │                   │                │     │
//!                         │ not prepared      │ failed, lost   │     │ outcome unknown: Resolve
//!                         ▼                   ▼                │     ▼
//!                       idle ◀──── Abort ─────┴────────────────┘  resolving ──▶ Commit or Abort
//!                                       (only if no rename was tried)
//! ```
//!
//! Three rules keep it correct. An epoch's number is made durable (`Prepare`) before anybody hears
//! of it, so it is never used twice. Nothing is published unless every process has stored its part
//! and the packet counts of all links agree. Once the rename of the manifest was tried, only the
//! store can say whether the checkpoint exists ([`Output::Resolve`]).
//!
//! Images refer to files of checkpoints before. The coordinator checks that each process refers to earlier files of its own
//! ranks; that those are still there, only the store can say, before the rename ([`Published::BaseGone`]). Then the
//! processes are told with the abort to build on nothing, so that the next snapshot can be published.
//!
//! [`interface`] is what goes in and comes out, [`collection`] what one snapshot has gathered so far,
//! [`machine`] the phases.

pub mod collection;
pub mod interface;
pub mod machine;

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

pub use collection::{Collected, Part, Unsound};
pub use interface::{Config, Last, Need, Output, Phase, Published, RequestId, Resolution, Status};
pub use machine::Coordinator;
