//! What every transport can do, and how it fails.

use std::time::Duration;

use protocol::ids::Process;

use crate::Waker;

/// The links of one process to all others of its job.
///
/// One thread uses it; other threads only hold its [`Waker`].
pub trait Transport: Send {
    /// The process whose links these are.
    fn me(&self) -> Process;

    /// How many processes the job has.
    fn processes(&self) -> u32;

    /// The largest packet that [`try_send`](Self::try_send) takes, in bytes.
    fn packet_bytes_max(&self) -> usize;

    /// Sends one packet to `peer`, gathered from `parts`.
    ///
    /// `false` means that the link has no room now and nothing was sent. The transport remembers that:
    /// [`idle`](Self::idle) returns with [`Wakeup::Room`] when it is worth trying again.
    ///
    /// # Errors
    /// The packet can never be sent (too large, no such peer), or the link is corrupt.
    fn try_send(&mut self, peer: Process, parts: &[&[u8]]) -> Result<bool, TransportError>;

    /// Takes at most one packet, and tells whether there was one.
    ///
    /// `take` gets the sender and the packet where it lies; its bytes start at a multiple of 8 and
    /// are gone when `take` returns. A peer that sends all the time does not keep others out. Cheap when there is nothing.
    ///
    /// # Errors
    /// A link is corrupt: the job can't go on.
    fn poll(&mut self, take: &mut dyn FnMut(Process, &[u8])) -> Result<bool, TransportError>;

    /// Reads `into.len()` bytes of another process's memory into `into`, all of them or an error.
    ///
    /// The other process takes no part in it and must keep the bytes unchanged until it is told, by a
    /// packet, that they were read. After an error `into` may be partly overwritten.
    ///
    /// # Errors
    /// [`BulkError::Forbidden`]: this machine does not let us; send the bytes as packets instead.
    fn bulk_read(&mut self, from: BulkSource, into: &mut [u8]) -> Result<(), BulkError>;

    /// Waits until there is something to do, at most about `longest`.
    ///
    /// Call it when [`poll`](Self::poll) found nothing and no rank can go on. It spins briefly, then
    /// gives the core away a few times, then sleeps. A packet, room on a link that had none, or the
    /// [`Waker`] ends it, also when that happened before the call.
    fn idle(&mut self, longest: Duration) -> Wakeup;

    /// A handle by which any thread of this process ends [`idle`](Self::idle).
    fn waker(&self) -> Waker;
}

/// Why [`Transport::idle`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// There is a packet to [`poll`](Transport::poll).
    Packet,
    /// A link that had no room may have some now.
    Room,
    /// The [`Waker`] was used.
    Waker,
    /// Nothing came within the time given.
    Timeout,
}

/// Where bytes lie in the memory of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkSource {
    /// The process that has them.
    pub process: Process,
    /// Their address there.
    pub address: u64,
}

/// Why a packet could not be sent or taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The packet is longer than [`Transport::packet_bytes_max`].
    #[error(
        "a packet of {packet_bytes} bytes to {peer} is longer than the {packet_bytes_max} bytes that a link carries; send it in pieces"
    )]
    PacketTooLarge {
        /// Where it was to go.
        peer: Process,
        /// Its length.
        packet_bytes: usize,
        /// The longest that is possible.
        packet_bytes_max: usize,
    },
    /// There is no link to this process: it is not in the job, or it is the process itself.
    #[error(
        "{me} has no link to {peer}: the job has {processes} processes and none has a link to itself"
    )]
    NoLink {
        /// The process that tried.
        me: Process,
        /// The process that it tried to reach.
        peer: Process,
        /// How many processes the job has.
        processes: u32,
    },
    /// What the peer wrote into the link is impossible.
    #[error(
        "the link between {me} and {peer} is corrupt: {what} at position {position}; memory shared by the job was overwritten, restart from the last checkpoint"
    )]
    Corrupt {
        /// The process that saw it.
        me: Process,
        /// The process at the other end.
        peer: Process,
        /// What is impossible about it.
        what: &'static str,
        /// How many bytes the link had carried, frames included.
        position: u64,
    },
}

/// Why the memory of another process could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// This machine does not let one process read another's memory (no permission, or no such
    /// system call). It will not change: send the bytes as packets.
    #[error(
        "reading the memory of {process} is not permitted here ({source}); its bytes have to go through the link"
    )]
    Forbidden {
        /// The process that was to be read.
        process: Process,
        /// What the system said.
        source: std::io::Error,
    },
    /// The process has ended, or never joined.
    #[error("{process} is gone: its memory can't be read")]
    Gone {
        /// The process that was to be read.
        process: Process,
    },
    /// The bytes are not there.
    #[error(
        "{process} has no readable memory at {address:#x} ({remaining_bytes} bytes were still to be read)"
    )]
    NotMapped {
        /// The process that was to be read.
        process: Process,
        /// The first address that failed.
        address: u64,
        /// How much was missing.
        remaining_bytes: usize,
    },
    /// Anything else the system said.
    #[error("reading {remaining_bytes} bytes at {address:#x} of {process} failed: {source}")]
    System {
        /// The process that was to be read.
        process: Process,
        /// The first address that failed.
        address: u64,
        /// How much was missing.
        remaining_bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
}
