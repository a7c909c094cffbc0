//! What every transport can do, and how it fails.

use std::time::Duration;

use libckpt_rank::buffer::{RankBytes, RankBytesMut};
use protocol::ids::Process;

use crate::{OtherProcess, Waker};

/// The links of one process to all others of its job.
///
/// One thread uses it; other threads only hold its [`Waker`].
///
/// Large buffers move beside the packets, in one of two ways. Either the receiver reads them where they lie
/// ([`bulk_read`](Self::bulk_read)), or, where [`sends_bulk`](Self::sends_bulk) says so, the sender sends them under a
/// number that both ends know from a packet ([`bulk_send`](Self::bulk_send), [`bulk_receive`](Self::bulk_receive)).
pub trait Transport {
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

    /// A process of the job whose memory this one may read, for any thread; `None` where links don't tell, or the other has
    /// not joined.
    fn other(&self, _process: Process) -> Option<OtherProcess> {
        None
    }

    /// Whether large buffers are sent by number; [`bulk_read`](Self::bulk_read) is no use then.
    fn sends_bulk(&self) -> bool {
        false
    }

    /// Begins to send a buffer under a number that no other buffer to this peer has while it is under way. It is to
    /// be left unchanged until [`bulk_done`](Self::bulk_done) names it. What has been sent is received some time,
    /// whatever becomes of this process: when it is done, it may be in no memory of ours any more.
    ///
    /// # Errors
    /// It can never be sent: there is no such peer, or the transport does not do this.
    fn bulk_send(
        &mut self,
        peer: Process,
        number: u64,
        _from: BulkFrom,
    ) -> Result<(), TransportError> {
        Err(TransportError::NoBulk { peer, number })
    }

    /// Begins to receive the buffer that `peer` sends or will send under a number, and which has exactly the length of
    /// `into`. It is filled at any time until [`bulk_done`](Self::bulk_done) names it.
    ///
    /// # Errors
    /// As [`bulk_send`](Self::bulk_send).
    fn bulk_receive(
        &mut self,
        peer: Process,
        number: u64,
        _into: BulkInto,
    ) -> Result<(), TransportError> {
        Err(TransportError::NoBulk { peer, number })
    }

    /// The next buffer that has been moved by number, each once. [`poll`](Self::poll) and [`idle`](Self::idle) find
    /// them; this only tells.
    fn bulk_done(&mut self) -> Option<BulkDone> {
        None
    }

    /// Whether links may open sockets when they are first used.
    fn opens_sockets(&self) -> bool {
        false
    }

    /// Whether each of the job's processes on this machine has a core for itself.
    fn has_cores(&self) -> bool {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.processes() as usize <= cores
    }

    /// Tells the others that the ranks of this process have ended, and whether those of all have. To be called until it
    /// says so, by processes that nobody else tells; packets are served meanwhile.
    fn all_done(&mut self) -> bool {
        true
    }

    /// A process leaves the job while the others go on: nothing comes from it any more, and nothing goes to it.
    fn part(&mut self, _peer: Process) {}

    /// Ends the links of this process, which leaves the job while the others go on and [`part`](Self::part) with it. Waits
    /// for none of them. `false` says that the process is not to end in order, as that might wait for others. Nothing may
    /// be called afterwards.
    fn leave(&mut self, _longest: Duration) -> bool {
        true
    }

    /// Ends the links of a job whose ranks have all ended well. Packets that still come are dropped. Every
    /// process of the job that has not left has to call it, within about `longest`; `false` says that not all did, or that the
    /// process is not to end in order for another reason. Nothing may be called afterwards.
    fn close(&mut self, _longest: Duration) -> bool {
        true
    }

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
    /// A buffer has been moved by number: see [`bulk_done`](Transport::bulk_done).
    Bulk,
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

/// What is sent by number.
#[derive(Debug)]
pub enum BulkFrom {
    /// Memory of a rank.
    Rank(RankBytes),
    /// Memory of the transport's own from now on.
    Own(Vec<u8>),
}

/// Where something that is sent by number goes.
#[derive(Debug)]
pub enum BulkInto {
    /// Memory of a rank.
    Rank(RankBytesMut),
    /// Memory of the transport's own until it is done.
    Own(Vec<u8>),
}

/// A buffer that has been moved by number.
#[derive(Debug, PartialEq, Eq)]
pub enum BulkDone {
    /// It was sent.
    Sent {
        /// Where it went.
        peer: Process,
        /// Its number.
        number: u64,
    },
    /// It was received.
    Received {
        /// Where it came from.
        peer: Process,
        /// Its number.
        number: u64,
        /// It, if it was received by [`BulkInto::Own`].
        own: Option<Vec<u8>>,
    },
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
    /// This transport does not send buffers by number.
    #[error(
        "buffer {number} to or from {peer} can't be sent by number on these links; read it where it lies"
    )]
    NoBulk {
        /// The other end.
        peer: Process,
        /// The buffer's number.
        number: u64,
    },
    /// The MPI library reports an error.
    #[error("{call} {} failed: {reason}", place(*me, *peer))]
    Mpi {
        /// The process that saw it.
        me: Process,
        /// The process at the other end, where it is known.
        peer: Option<Process>,
        /// The MPI function.
        call: &'static str,
        /// What the MPI library says.
        reason: String,
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

fn place(me: Process, peer: Option<Process>) -> String {
    match peer {
        Some(peer) => format!("on the link between {me} and {peer}"),
        None => format!("on a link of {me}"),
    }
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
