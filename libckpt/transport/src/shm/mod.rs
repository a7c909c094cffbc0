//! Links between processes of one machine: rings in memory that they share.
//!
//! The coordinator makes the memory ([`create`]) and lets the processes inherit its descriptor; each
//! of them joins with [`attach`]. The memory is a `memfd`: it has no name, counts against nobody's
//! /dev/shm, and is gone with the last process that knows it.
//!
//! What lives where:
//!
//! - `layout`: which byte belongs to what, and the header by which a process checks that it and the
//!   coordinator mean the same;
//! - `region`: creating the memory and joining it;
//! - `mapping`: the memory as mapped here, and typed places in it;
//! - `ring`: one link as a ring of packets, its two ends, and why their memory ordering is enough;
//! - `link`: what the two ends tell each other besides packets: who watches, who wants room;
//! - `links`: all links of a process together, which is the [`Transport`](crate::Transport).

mod layout;
mod link;
mod links;
mod mapping;
mod region;
mod ring;

pub use layout::{PROCESSES_MAX, RING_BYTES_MAX, packet_bytes_max};
pub use links::ShmTransport;
pub(crate) use mapping::SharedBell;
pub use region::{ShmError, attach, create};
