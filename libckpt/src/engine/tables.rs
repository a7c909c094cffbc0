//! The message tables of one rank: the part of its state that lies outside its slot.
//!
//! Everything here is kept with the rank's image at a cut, by serde, and read again by the process that
//! restores the rank. Nothing is keyed by process or link. What only means something inside this process
//! (where an announced message lies) is left out and bound anew by the re-announcement.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use libckpt_rank::buffer::{RankBytes, RankBytesMut};
use protocol::channel::{Incoming, Outgoing};
use protocol::ids::{Move, Rank};
use serde::{Deserialize, Serialize};

use super::packet::{Label, Place};
use super::request::{RequestId, Requests};

/// A message that has arrived, whole or announced.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Arrived {
    pub(crate) label: Label,
    pub(crate) body: Body,
}

/// What of a message has arrived.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// Its announcement. The place is forgotten by a restore, and bound anew by the re-announcement.
    Announced(#[serde(skip)] Option<Place>),
}

/// A receive that waits for its message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Posted {
    pub(crate) request: RequestId,
    pub(crate) source: Option<Rank>,
    pub(crate) context: u64,
    pub(crate) tag: Option<i32>,
    pub(crate) into: RankBytesMut,
}

/// A message that was announced and is not acknowledged: it belongs to the sender.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Unacked {
    pub(crate) label: Label,
    pub(crate) from: RankBytes,
    pub(crate) request: RequestId,
}

/// An announced message that has met its receive, and whose bytes are still to come.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) label: Label,
    pub(crate) into: RankBytesMut,
    pub(crate) request: RequestId,
    /// Bytes that have come by fragments.
    #[serde(skip)]
    pub(crate) received_bytes: u64,
    /// Where the message lies; unknown after a restore until it is announced again.
    #[serde(skip)]
    pub(crate) place: Option<Place>,
}

/// A packet kept as channel state, or one that its sender had not yet put on a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Recorded {
    /// A whole message.
    Eager(Label, Vec<u8>),
    /// The announcement of a message; its place means nothing in another process.
    Announce(Label),
    /// An acknowledgment from the label's destination to its source.
    Ack(Label),
}

impl Recorded {
    /// The rank that made the packet.
    pub(crate) fn from(&self) -> Rank {
        match self {
            Self::Eager(label, _) | Self::Announce(label) => label.source,
            Self::Ack(label) => label.destination,
        }
    }

    /// The rank that the packet is for.
    pub(crate) fn to(&self) -> Rank {
        match self {
            Self::Eager(label, _) | Self::Announce(label) => label.destination,
            Self::Ack(label) => label.source,
        }
    }
}

/// A packet that is not on a link: it waits for one, or for the outcome of a move.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub(crate) packet: Recorded,
    /// Of an announcement that came on a link, where the message lies. Our own get theirs when they are put on a link.
    pub(crate) place: Option<Place>,
    /// It has come on a link, or belongs to a message that has: its sender was not here.
    pub(crate) forwarded: bool,
}

impl Queued {
    /// A packet of a rank of this process.
    pub(crate) fn own(packet: Recorded) -> Self {
        Self {
            packet,
            place: None,
            forwarded: false,
        }
    }

    /// A packet that this process has made for a rank which was here.
    pub(crate) fn passed_on(packet: Recorded) -> Self {
        Self {
            packet,
            place: None,
            forwarded: true,
        }
    }
}

/// The message tables of one rank.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tables {
    pub(crate) requests: Requests,
    /// Receives in the order in which they were posted.
    pub(crate) posted: Vec<Posted>,
    /// Messages that no receive has asked for, in the order of their arrival.
    pub(crate) unexpected: VecDeque<Arrived>,
    /// Messages taken out of matching by a matched probe, by their number.
    pub(crate) probed: BTreeMap<u64, Arrived>,
    pub(crate) probes: u64,
    /// Indexed by source rank; grows to the highest that was heard of.
    incoming: Vec<Incoming<Recorded>>,
    /// Indexed by destination rank; grows to the highest that was sent to.
    outgoing: Vec<Outgoing>,
    /// By destination and sequence number.
    pub(crate) unacked: BTreeMap<(Rank, u64), Unacked>,
    /// Of them, those that the process where the rank was before sends under a number, and will acknowledge. By a restore they are
    /// as good as not sent.
    #[serde(skip)]
    pub(crate) under_way: BTreeSet<(Rank, u64)>,
    /// By source and sequence number.
    pub(crate) transfers: BTreeMap<(Rank, u64), Transfer>,
    /// Packets that were not on a link at the cut, in order. Empty but in an image.
    pub(crate) unsent: Vec<Recorded>,
    /// The rank has returned from the solver's main.
    pub(crate) finished: bool,
    /// Seconds that `wtime` had counted at the cut.
    pub(crate) wtime_s: f64,
}

impl Tables {
    pub(crate) fn new() -> Self {
        Self {
            requests: Requests::default(),
            posted: Vec::new(),
            unexpected: VecDeque::new(),
            probed: BTreeMap::new(),
            probes: 0,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            unacked: BTreeMap::new(),
            under_way: BTreeSet::new(),
            transfers: BTreeMap::new(),
            unsent: Vec::new(),
            finished: false,
            wtime_s: 0.0,
        }
    }

    /// The channel from a rank to this one.
    #[inline]
    pub(crate) fn incoming(&mut self, source: Rank) -> &mut Incoming<Recorded> {
        if source.index() >= self.incoming.len() {
            self.incoming
                .resize_with(source.index() + 1, Incoming::default);
        }
        &mut self.incoming[source.index()]
    }

    /// How many messages the rank has sent since the start of the job.
    pub(crate) fn sent(&self) -> u64 {
        self.outgoing.iter().map(Outgoing::sent).sum()
    }

    /// The number of the next message to a rank.
    #[inline]
    pub(crate) fn next_sequence(&mut self, destination: Rank) -> u64 {
        if destination.index() >= self.outgoing.len() {
            self.outgoing
                .resize_with(destination.index() + 1, Outgoing::default);
        }
        self.outgoing[destination.index()].take()
    }

    /// Takes the first posted receive that matches a message (MPI 4.1, 3.5 "order").
    #[inline]
    pub(crate) fn take_posted(&mut self, label: &Label) -> Option<Posted> {
        let at = self.posted.iter().position(|posted| {
            posted.context == label.context
                && posted.source.is_none_or(|source| source == label.source)
                && posted.tag.is_none_or(|tag| tag == label.tag)
        })?;
        Some(self.posted.remove(at))
    }

    /// Where in `unexpected` the first message that a receive or probe asks for stands.
    #[inline]
    pub(crate) fn find_unexpected(
        &self,
        source: Option<Rank>,
        context: u64,
        tag: Option<i32>,
    ) -> Option<usize> {
        self.unexpected.iter().position(|arrived| {
            arrived.label.context == context
                && source.is_none_or(|source| source == arrived.label.source)
                && tag.is_none_or(|tag| tag == arrived.label.tag)
        })
    }

    /// Forgets where messages lie that this rank announced before its move `since`.
    pub(crate) fn forget_places(&mut self, of: Rank, since: Move) {
        let is_stale = |place: &Place| place.since() < since;
        let arrived = self.unexpected.iter_mut().chain(self.probed.values_mut());
        for arrived in arrived.filter(|arrived| arrived.label.source == of) {
            if let Body::Announced(place) = &mut arrived.body {
                *place = place.filter(|place| !is_stale(place));
            }
        }
        let transfers = self.transfers.range_mut((of, 0)..=(of, u64::MAX));
        for (_, transfer) in transfers {
            if transfer.place.as_ref().is_some_and(is_stale) {
                transfer.place = None;
                transfer.received_bytes = 0;
            }
        }
    }

    /// Binds a message that is announced again to the place where it now lies. An announcement without a place changes none: it is
    /// of a rank of this process, or an old one that has come by a longer way than the new. Tells which entry it found.
    pub(crate) fn rebind(&mut self, label: &Label, place: Option<Place>) -> Rebound {
        let same = |arrived: &Arrived| {
            arrived.label.source == label.source && arrived.label.sequence == label.sequence
        };
        let waiting = self
            .unexpected
            .iter_mut()
            .chain(self.probed.values_mut())
            .find(|arrived| same(arrived) && matches!(arrived.body, Body::Announced(_)));
        if let Some(arrived) = waiting {
            if place.is_some() {
                arrived.body = Body::Announced(place);
            }
            return Rebound::Waiting;
        }
        match self.transfers.get_mut(&(label.source, label.sequence)) {
            Some(transfer) => {
                if place.is_some() {
                    transfer.place = place;
                    transfer.received_bytes = 0;
                }
                Rebound::Transfer
            }
            None => Rebound::Complete,
        }
    }
}

/// What a message that is announced again was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rebound {
    /// No receive has asked for it.
    Waiting,
    /// Its receive waits for the bytes.
    Transfer,
    /// It was received; the acknowledgment is to be sent again.
    Complete,
}

#[cfg(test)]
mod tests {
    use protocol::ids::Process;

    use super::*;

    const FROM: Rank = Rank(4);

    fn waiting(place: Option<Place>) -> (Tables, Label) {
        let label = Label {
            source: FROM,
            destination: Rank(0),
            context: 0,
            tag: 0,
            sequence: 7,
            bytes: 1 << 20,
        };
        let mut tables = Tables::new();
        let body = Body::Announced(place);
        tables.unexpected.push_back(Arrived { label, body });
        (tables, label)
    }

    fn place_in(tables: &Tables) -> Option<(Process, Move)> {
        match &tables.unexpected[0].body {
            Body::Announced(place) => place.map(|place| (place.process(), place.since())),
            Body::Whole(_) => panic!("it was announced"),
        }
    }

    #[test]
    fn an_old_announcement_that_comes_late_does_not_take_the_new_place_away() {
        let new = Place::new(Process(2), 0x1000, Move(5));
        let (mut tables, label) = waiting(None);
        assert_eq!(tables.rebind(&label, Some(new)), Rebound::Waiting);
        assert_eq!(tables.rebind(&label, None), Rebound::Waiting);
        assert_eq!(place_in(&tables), Some((Process(2), Move(5))));
    }

    #[test]
    fn only_places_of_before_a_move_of_their_rank_are_forgotten() {
        let (mut tables, _) = waiting(Some(Place::new(Process(2), 0x1000, Move(5))));
        tables.forget_places(FROM, Move(5));
        tables.forget_places(Rank(3), Move(9));
        assert!(place_in(&tables).is_some());
        tables.forget_places(FROM, Move(6));
        assert!(place_in(&tables).is_none());
    }
}
