//! Communication between ranks: what a solver sees of the library.
//!
//! Names are those of the `mpi` crate, so that a solver written for it needs few changes; the semantics
//! are those of MPI 4.1, whose sections the items name. Three things differ on purpose: calls return
//! [`Result`](crate::Result) where MPI would abort, ranks, sizes and counts are `usize`, and a communicator is plain
//! data in the rank's own memory, captured and restored with it.
//!
//! - [`communicator`]: which ranks talk to each other, and how new communicators are made; `group` and
//!   `context` are what one consists of;
//! - [`point_to_point`]: messages from one rank to another, and probing for them; [`message`]: those that a
//!   probe took; [`send_receive`]: both ways at the same time;
//! - [`request`]: operations that go on while the rank computes, and the scopes that keep their buffers alive;
//! - [`datatype`]: what can be sent: plain data, and buffers of it;
//! - [`operation`]: how a reduction joins two values;
//! - [`collective`]: barrier, broadcast, reductions, gather, scatter and the like, built on messages alone.
//!
//! No state lies outside the rank's memory but what the engine keeps in the rank's message tables, so a
//! snapshot may cut through any call here, a collective included.

pub mod collective;
pub mod communicator;
mod context;
pub mod datatype;
mod group;
pub mod message;
pub mod operation;
pub mod point_to_point;
pub mod request;
pub mod send_receive;

pub use self::communicator::{Communicator, World};
