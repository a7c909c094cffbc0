//! The live migration of a rank between processes of a running job.
//!
//! A rank is the bytes of its slot and its message tables. To move it, the process that has it freezes it and sends both to
//! another one; the channels' sequence numbers ([`crate::channel`]) make the new path invisible to its peers. Who owns the
//! rank changes in the coordinator's record and nowhere else: the target runs it, or the source resumes it, after that and
//! not before.
//!
//! ```text
//!  coordinator              source                 target               every other process
//!   ask ── Examine ──────────▶ what pins it
//!       ◀─ Movable ───────────
//!       ── Prepare ────────────────────────────────▶ slot, memory, files
//!       ◀─ Prepared ────────────────────────────────
//!       ── Transfer ─────────▶ copy, freeze, ship ═▶
//!       ◀─ Received ────────────────────────────────
//!   record
//!       ── Moved ────────────▶ forwards ───────────▶ runs it ────────────▶ sends there from now on
//!       ◀─ Learned ─────────── ◀─────────────────── ◀──────────────────── and Confirm, on the link to the source
//!       ── Forget ───────────▶ once all confirmed and all forwarded:
//!       ◀─ Forgotten ───────── the entry and the memory go
//! ```
//!
//! Before the record everything can be refused, fail or take too long: the coordinator gives the move up, the source
//! resumes, the target drops what came. After it there is no way back: a process that can't do its part is lost, and that is a
//! restart from the newest checkpoint, which knows of no moves.
//!
//! No cut while a move is under way, and no move while a snapshot is: [`settle`] sees to it. So no cut meets a rank that is
//! nowhere, a forwarding entry, or a packet that waits to be forwarded.
//!
//! - [`moves`]: the coordinator's side.
//! - [`mover`]: the side of a process: as source, as target, and as any other.
//! - `release`: which processes get no rank any more, and how they leave the job.
//! - [`places`]: where the ranks are, and since which move: stale news are known by that.
//! - [`rounds`]: when a rank that is copied while it runs is frozen, and which way of moving pays.
//! - [`interface`]: what goes in and comes out of both.
//! - [`messages`]: what they tell each other.

pub mod error;
pub mod interface;
pub mod messages;
pub mod mover;
pub mod moves;
pub mod places;
mod release;
pub mod rounds;

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

pub use error::MigrationError;
pub use interface::{Ask, Config, Done, MoverOutput, MovesOutput, Route, Step, Underway};
pub use messages::{MoveControl, MoveDirective, MoveMode, MoveNeeds, MoveReport};
pub use mover::Mover;
pub use moves::{Moves, settle};
pub use places::{Learned, Places};
pub use release::{DrainError, Standing};
