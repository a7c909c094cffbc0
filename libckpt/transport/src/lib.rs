//! Links between the processes of a job.
//!
//! A link carries packets from one process to another, in order and once; that is a [`Transport`]'s
//! whole promise, plus a bulk path that reads a large buffer of another process without a copy in
//! between. What the packets mean is the engine's affair.
//!
//! - [`shm`]: processes of one machine, by rings in shared memory. Needs nothing but Linux.
//! - [`alone`]: a job of one process, which has nobody to talk to.
//! - `mpi` (with the feature of this name): processes that mpirun or srun started, on one machine or many.
//!
//! All sleep when there is nothing to do, and all have a [`Waker`] by which another thread of the
//! process ends that sleep.

pub mod alone;
mod bulk;
mod futex;
#[cfg(feature = "mpi")]
pub mod mpi;
mod other;
mod patience;
pub mod shm;
#[cfg(test)]
mod stepped;
mod transport;
mod waker;

pub use other::OtherProcess;
pub use transport::{
    BulkDone, BulkError, BulkFrom, BulkInto, BulkSource, Transport, TransportError, Wakeup,
};
pub use waker::Waker;
