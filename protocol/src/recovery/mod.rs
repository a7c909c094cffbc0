//! The life of a job over its starts: what is begun from, who is watched, when it is begun again.
//!
//! One [`Recovery`] lives as long as the `ckpt` command that runs the job. Like
//! [`crate::coordinator`] it does nothing itself: events go in by `handle_*`, orders come out of
//! [`Recovery::poll_output`].
//!
//! ```text
//!            Choose          Start            Hello from all          Ready from all: Go
//!  choosing ────────▶ starting ────▶ (restoring in each process) ──────────────▶ running
//!     ▲                  │                      │                                  │  │  │
//!     │                  └── lost ──────────────┴─────────────┬──────── lost ──────┘  │  │
//!     │ all gone, snapshot decided                            ▼                       │  │
//!     └───────────────────────────────────────────────── clearing (Kill)              │  │
//!                                                             │ no restart left, solver│  │
//!                                                             ▼ failed                 │  │
//!                       ended ◀── all gone ── ending (End) ◀──────── complete ─────────┘  │
//!                         ▲                                                               │
//!                         └─────── all gone ── stopping (Stop) ◀── termination ───────────┘
//! ```
//!
//! A restart needs two things first: no process of the old start does anything any more (two incarnations must never
//! compute side by side), and no snapshot is undecided (the newest checkpoint must be
//! final). Of its children the coordinator learns the end from the system. Elsewhere it shows by the end of the
//! connection; and a process that is cut off ends itself when its lease is over ([`lease`]). A job may be restarted [`Config::max_restarts`] times without a new checkpoint in between.
//!
//! [`interface`] is what goes in and comes out, [`machine`] holds the states, [`watch`] who of the processes lives and
//! when it was last heard, [`lease`] the process's side of that.

pub mod interface;
pub mod lease;
pub mod machine;
pub mod watch;

#[cfg(test)]
mod leases;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

pub use interface::{Choice, Config, End, Output, Phase};
pub use machine::Recovery;
pub use watch::{Exit, Fate, Loss, Proof};
