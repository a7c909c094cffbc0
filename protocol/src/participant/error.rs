//! What a peer or a caller can do wrong.

use crate::ids::{Epoch, Process};

/// An input that the protocol does not allow. The sender and this process no longer mean the same:
/// the job has to stop and go on from its last checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ProtocolError {
    /// A packet or a marker on a link that was not opened.
    #[error("{peer} sent a packet on a link that was not opened; this is a defect of the library")]
    NotOpen {
        /// The sender.
        peer: Process,
    },
    /// A second opening of the same link.
    #[error("{peer} opened a link that was open; this is a defect of the library")]
    OpenedTwice {
        /// The sender.
        peer: Process,
    },
    /// An answer to an opening that was not asked for, or was answered before.
    #[error(
        "{peer} answered the opening of a link that nobody asked for; this is a defect of the library"
    )]
    AnsweredUnasked {
        /// The sender.
        peer: Process,
    },
    /// A control packet with an epoch that is not later than what the same link has told before.
    #[error(
        "{peer} sent a marker of {epoch} after one of {known}; this is a defect of the library"
    )]
    EpochWentBack {
        /// The sender.
        peer: Process,
        /// The epoch it sent.
        epoch: Epoch,
        /// The latest that it had sent before.
        known: Epoch,
    },
    /// A packet that belongs after a cut which this process has not taken: it would be an orphan.
    #[error(
        "a packet of {peer} from after the cut of {epoch} was handed in before this process had cut; this is a defect of the library"
    )]
    CutFirst {
        /// The sender.
        peer: Process,
        /// The cut that the sender has taken.
        epoch: Epoch,
    },
    /// A cut that nobody wants, or of another epoch than wanted.
    #[error("{} was cut although {} was wanted; this is a defect of the library", .epoch, display(*.wanted))]
    CutUnwanted {
        /// The epoch that was cut.
        epoch: Epoch,
        /// The epoch that was wanted.
        wanted: Option<Epoch>,
    },
    /// A commit of an epoch to which this process has not contributed.
    #[error(
        "the coordinator committed {epoch}, which this process has not completed; do not restore it, and report the defect"
    )]
    CommittedIncomplete {
        /// The epoch.
        epoch: Epoch,
    },
    /// A process is released while a snapshot is under way here.
    #[error(
        "{process} is released although {epoch} is not decided here; this is a defect of the library"
    )]
    ReleasedInSnapshot {
        /// The process that is released.
        process: Process,
        /// The snapshot.
        epoch: Epoch,
    },
    /// A packet on a link that its sender has ended.
    #[error("{peer} sent a packet after its farewell; this is a defect of the library")]
    AfterFarewell {
        /// The sender.
        peer: Process,
    },
}

fn display(wanted: Option<Epoch>) -> String {
    wanted.map_or_else(|| "nothing".to_owned(), |epoch| epoch.to_string())
}
