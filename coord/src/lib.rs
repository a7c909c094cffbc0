//! The coordinator of a job: sockets, timers and child processes around the pure machines of `protocol`.
//!
//! [`run`] starts a job and sees it through: it starts the processes, takes checkpoints, notices what
//! is lost, starts again, and tells an [`Observer`] what happens. It runs inside the `ckpt` command;
//! [`client`] is the side of the other commands that talk to a running one.
//!
//! What decides is not here but in `protocol::coordinator` and `protocol::recovery`. Deliberately absent:
//! an async runtime (one thread and one epoll serve thousands of processes), and any thought about what
//! a message or an image is.

pub mod child;
pub mod client;
pub mod clock;
pub mod connection;
mod errands;
mod error;
pub mod event;
pub mod identity;
pub mod launch;
pub mod memory;
mod outcome;
pub mod plan;
mod poller;
pub mod record;
mod run;
mod signals;
pub mod storeroom;
pub mod token;

pub use error::Error;
pub use event::{Event, Observer};
pub use outcome::{Outcome, code};
pub use plan::{Every, Plan};
pub use run::run;
