//! Links between processes that an MPI launcher started, on one machine or many.
//!
//! What lives where:
//!
//! - `call`: MPI's functions with their return codes checked (the `mpi` crate drops them);
//! - `launch`: whether this process was started by an MPI launcher, as told by the environment, before any call;
//! - `world`: the beginning and the end of MPI in this process;
//! - `outgoing`: packets that are being sent to a peer;
//! - `incoming`: receives that wait for a peer's packets;
//! - `bulk`: large buffers, sent by number straight from and into a rank's memory;
//! - `links`: all of it together, which is the [`Transport`](crate::Transport).
//!
//! # How packets stay in order
//!
//! All packets go over one communicator, a duplicate of `MPI_COMM_WORLD`, to receives that were posted in advance,
//! that take any tag, and that wait in memory of the library. Messages of one sender that the same receives match do
//! not overtake each other (MPI 4.1, 3.5), so packets come in the order in which they were sent, markers among them.
//! No receive that MPI knows names memory of a rank before the engine has seen the packet that announces that very
//! buffer; so whatever a marker says about a packet holds for the buffer that it announces, and nothing sent after
//! a cut can end in memory of before.
//!
//! # Threads
//!
//! MPI is initialised with `MPI_THREAD_FUNNELED`. All calls are made by the thread that initialised it, the ranks'
//! thread. Other threads only hold the [`Waker`](crate::Waker), which MPI knows nothing of. MPI has no wait that
//! another thread could end; so [`idle`](crate::Transport::idle) looks again and again, at growing intervals.

mod bulk;
mod call;
mod incoming;
mod launch;
mod links;
mod outgoing;
mod world;

pub use launch::{Launch, launch};
pub use links::{MpiTransport, PACKET_BYTES_MAX};
pub use world::{MpiError, World, library_version};
