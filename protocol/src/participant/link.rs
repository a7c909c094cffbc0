//! What a process knows about its link to one peer.

use crate::ids::Epoch;

/// What happens to a packet from this link. Kept up to date at cuts and markers, so that a packet
/// costs one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    /// Nothing may come: the link was not opened.
    #[default]
    NotOpen,
    /// Deliver.
    Deliver,
    /// Deliver, and record: this process has cut, the peer's marker is not in.
    Record,
    /// The peer has cut and this process has not: its packets have to wait.
    CutFirst,
}

/// One link, seen from one of its ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Link {
    /// Packets may go out.
    pub gate_open: bool,
    /// What happens to packets that come in.
    pub mode: Mode,
    /// In the list of links that markers go over.
    pub known: bool,
    /// This process has sent `Open`.
    pub asked: bool,
    /// The peer's `OpenAck` has come.
    pub answered: bool,
    /// The peer's `Open` has come.
    pub was_asked: bool,
    /// The peer's `Open` has come and `OpenAck` goes out after this process's cut.
    pub owes_answer: bool,
    /// The coordinator has told that the peer is released: nothing more goes on the link.
    pub released: bool,
    /// The peer's `Farewell` has come: nothing more comes on the link.
    pub ended: bool,
    /// This process has cut, and the peer's marker is awaited.
    pub awaited: bool,
    /// The latest cut that the peer has told of.
    pub peer_epoch: Epoch,
    /// Packets put on the link in this incarnation.
    pub sent: u64,
    /// Packets taken from the link in this incarnation.
    pub received: u64,
    /// `sent` at this process's last cut.
    pub sent_at_cut: u64,
    /// `received` up to the peer's marker of that cut.
    pub received_at_cut: u64,
}

impl Link {
    /// Whether anything but an `Open` or `OpenAck` may come from the peer.
    pub fn may_receive(&self) -> bool {
        (self.was_asked || self.answered) && !self.ended
    }
}
