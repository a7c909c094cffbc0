//! A deterministic simulator of a whole job: everything that happens follows from one seed.
//!
//! What is real here is the protocol: [`protocol::participant`], [`protocol::channel`],
//! [`protocol::dirty`], [`protocol::coordinator`], [`protocol::migration`], [`protocol::recovery`] and
//! [`protocol::frame`] are the machines of the product. What is played is the world around them: ranks, links, the store, the
//! control connections, time, and trouble.
//!
//! - `script`: what the ranks do, and what their memory must be after every step, whatever happens.
//! - `rank`: a rank with its message tables: a small engine.
//! - `process`: a process that hosts ranks and drives the participant.
//! - `moving`: what it does when ranks move.
//! - `ring`: a link: in order, late, of limited size.
//! - `store`: epochs, files, manifests; what survives every kill.
//! - `check`: what must hold for every published checkpoint.
//! - `command`: one run of `ckpt`, which drives the coordinator, the moves and the recovery.
//! - `unrest`: who wants ranks moved, and what must hold of moves.
//! - `witness`: who can't reach a process that is gone, and what must hold of that.
//! - `trouble`: how sizes, delays and the amount of trouble are drawn.
//! - `world`: events in the order of time.
//! - `deeds`: what the command wants done, and trouble: kills of processes and of `ckpt`, hangs, failed and
//!   torn writes, bit flips, stops and restarts with another number of processes.

pub mod check;
pub mod command;
mod deeds;
mod moving;
pub mod process;
pub mod rank;
pub mod ring;
pub mod script;
pub mod store;
pub mod trouble;
mod unrest;
mod witness;
pub mod world;

pub use trouble::Mistake;
pub use world::{Report, simulate};

/// Something that must never happen, in words.
#[derive(Clone, Debug)]
pub struct Violation(pub String);

/// The outcome of something that checks itself.
pub type Checked<T = ()> = Result<T, Violation>;

/// Fails with a text.
pub fn violated<T>(text: impl Into<String>) -> Checked<T> {
    Err(Violation(text.into()))
}

/// Mixes numbers into one; equal only for equal numbers, as good as.
pub fn mix(numbers: &[u64]) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for &number in numbers {
        state = (state ^ number).wrapping_mul(0xff51_afd7_ed55_8ccd);
        state ^= state >> 32;
    }
    state
}
