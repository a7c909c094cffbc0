//! The sockets of control connections: a unix socket between a coordinator and what runs on its own machine, TCP to
//! other nodes. What goes through them is `protocol::frame`'s. And how much memory their machine has to give.
//!
//! Both ends use it, the coordinator and the processes, which don't share anything else that does I/O.

#![forbid(unsafe_code)]

mod address;
pub mod memory;
mod stream;

pub use address::{Address, NotAnAddress};
pub use stream::{Listener, Stream};
