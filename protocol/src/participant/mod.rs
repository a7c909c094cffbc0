//! The process's side of the snapshot protocol: links, cuts, markers, channel state.
//!
//! Chandy and Lamport's algorithm (ACM TOCS 3(1), 1985) between processes, with links that are opened
//! when they are first needed. `machine` holds [`Participant`], `link` what it knows about one link,
//! `error` what a peer or a caller can do wrong.
//!
//! The caller owns the links and the ranks. It
//! - asks [`Participant::send_gate`] before it puts a packet on a link and tells
//!   [`Participant::data_sent`] after;
//! - hands in what arrives, in the order of each link: [`Participant::handle_data`],
//!   [`Participant::handle_link`];
//! - hands in what the coordinator says: [`Participant::handle_snapshot`],
//!   [`Participant::handle_abort`], [`Participant::handle_committed`], [`Participant::handle_release`];
//! - while [`Participant::cut_wanted`] names an epoch, hands in no further packet, captures its ranks
//!   and says [`Participant::cut_taken`];
//! - after each of these takes every [`Output`] and does it, before any other packet goes on the same
//!   link. Control packets go ahead of packets that are still queued for a link.

mod error;
mod link;
mod machine;
mod release;
#[cfg(test)]
mod tests;

pub use error::ProtocolError;
pub use machine::Participant;

use serde::{Deserialize, Serialize};

use crate::control::LinkCount;
use crate::ids::{Epoch, Process};

/// A control packet on a link. Not counted, never channel state.
///
/// Each tells the epoch of the sender's last cut, and so is a marker of it: whatever the sender put on
/// the link before belongs before that cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LinkControl {
    /// I want to send you packets. None comes before you have answered.
    Open {
        /// The sender's last cut.
        epoch: Epoch,
    },
    /// The answer to an `Open`: packets may flow both ways.
    OpenAck {
        /// The sender's last cut.
        epoch: Epoch,
    },
    /// I have cut.
    Marker {
        /// The sender's last cut, just taken.
        epoch: Epoch,
    },
    /// I am released from the job, and this is the last that comes on this link.
    Farewell {
        /// The sender's last cut.
        epoch: Epoch,
    },
}

impl LinkControl {
    /// The sender's last cut.
    #[must_use]
    pub fn epoch(self) -> Epoch {
        match self {
            Self::Open { epoch }
            | Self::OpenAck { epoch }
            | Self::Marker { epoch }
            | Self::Farewell { epoch } => epoch,
        }
    }
}

/// Whether a packet may go on a link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// It may.
    Open,
    /// Not yet: keep it until [`Output::LinkOpened`].
    Wait,
}

/// What to do with a packet that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// Deliver it.
    Deliver,
    /// Deliver it, and record it as channel state of this snapshot.
    Record {
        /// The snapshot.
        epoch: Epoch,
    },
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Put this control packet on the link, before any further packet.
    SendLink {
        /// The other end.
        peer: Process,
        /// The control packet.
        control: LinkControl,
    },
    /// The gate of this link is open now: packets that waited may go.
    LinkOpened {
        /// The other end.
        peer: Process,
    },
    /// All markers are in: images and channel state of this process are complete and can be stored.
    ChannelsComplete {
        /// The snapshot.
        epoch: Epoch,
        /// The counts of every link on which anything was sent or received before the cut.
        links: Vec<LinkCount>,
    },
    /// The snapshot will not be: drop its images, its channel state and what is being written.
    Discard {
        /// The snapshot.
        epoch: Epoch,
    },
    /// The link to a process that is released has ended: nothing comes or goes on it any more.
    Parted {
        /// The process that is released.
        peer: Process,
    },
}
