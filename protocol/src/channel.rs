//! Sequence numbers of a channel: the one mechanism behind ordering, restart, re-sending and forwarding
//! (design 5).
//!
//! The sender numbers the messages of a channel from 0. The receiver takes them in this order, whatever
//! way they came: it holds what came too early until the gap closes, and knows what came twice. Both ends
//! are part of their rank's image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How far beyond the next number a message may be. Only a moved rank makes messages come early, and then
/// no more than its peers can have sent meanwhile; a number far beyond is garbage or malice.
pub const EARLY_MAX: u64 = 1 << 16;

/// The sender's end of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outgoing {
    next: u64,
}

impl Outgoing {
    /// A channel on which nothing was sent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number for a new message.
    #[inline]
    pub fn take(&mut self) -> u64 {
        let sequence = self.next;
        self.next += 1;
        sequence
    }

    /// How many messages were numbered.
    #[inline]
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.next
    }
}

/// The receiver's end of a channel, holding packets of type `P` that came too early.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incoming<P> {
    next: u64,
    held: BTreeMap<u64, P>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accepted<P> {
    /// It is the next one. After it, take what [`Incoming::next_held`] gives.
    Next(P),
    /// It came too early and is held.
    Early,
    /// It was accepted before. If it asks for an acknowledgment it wants that again, or, where its
    /// payload is not complete, its new address.
    Duplicate(P),
}

/// A sequence number that no peer of ours sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error(
    "message {sequence} came on a channel whose next message is {next}: more than {EARLY_MAX} too early; the packet is damaged or not of this job"
)]
pub struct TooFarAhead {
    /// The number that came.
    pub sequence: u64,
    /// The number that is next.
    pub next: u64,
}

impl<P> Default for Incoming<P> {
    fn default() -> Self {
        Self {
            next: 0,
            held: BTreeMap::new(),
        }
    }
}

impl<P> Incoming<P> {
    /// A channel on which nothing has come.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes message number `sequence`.
    ///
    /// # Errors
    /// When the number is more than [`EARLY_MAX`] too early; nothing is held then.
    #[inline]
    pub fn accept(&mut self, sequence: u64, packet: P) -> Result<Accepted<P>, TooFarAhead> {
        if sequence == self.next {
            self.next += 1;
            return Ok(Accepted::Next(packet));
        }
        self.accept_out_of_order(sequence, packet)
    }

    /// Takes message number `sequence` if it is the next one, and tells whether it was: what
    /// [`accept`](Self::accept) does first, for a packet that is lent and need not be kept. After it, too, take what
    /// [`next_held`](Self::next_held) gives.
    #[inline]
    pub fn accept_next(&mut self, sequence: u64) -> bool {
        let is_next = sequence == self.next;
        self.next += u64::from(is_next);
        is_next
    }

    #[cold]
    fn accept_out_of_order(
        &mut self,
        sequence: u64,
        packet: P,
    ) -> Result<Accepted<P>, TooFarAhead> {
        if sequence < self.next {
            return Ok(Accepted::Duplicate(packet));
        }
        if sequence - self.next > EARLY_MAX {
            return Err(TooFarAhead {
                sequence,
                next: self.next,
            });
        }
        match self.held.entry(sequence) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(packet);
                Ok(Accepted::Early)
            }
            std::collections::btree_map::Entry::Occupied(_) => Ok(Accepted::Duplicate(packet)),
        }
    }

    /// The next message, if it is held: to be asked until `None` after each [`Accepted::Next`].
    #[inline]
    pub fn next_held(&mut self) -> Option<P> {
        if self.held.is_empty() {
            return None;
        }
        let packet = self.held.remove(&self.next)?;
        self.next += 1;
        Some(packet)
    }

    /// A held message, to change it: a re-announcement binds the new address to it.
    pub fn held_mut(&mut self, sequence: u64) -> Option<&mut P> {
        self.held.get_mut(&sequence)
    }

    /// The messages held, with their numbers.
    pub fn held(&self) -> impl Iterator<Item = (u64, &P)> {
        self.held
            .iter()
            .map(|(&sequence, packet)| (sequence, packet))
    }

    /// How many messages were taken in order.
    #[inline]
    #[must_use]
    pub fn received(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_order(channel: &mut Incoming<u64>, arrivals: &[u64]) -> Vec<u64> {
        let mut taken = Vec::new();
        for &sequence in arrivals {
            if let Accepted::Next(packet) = channel.accept(sequence, sequence).unwrap() {
                taken.push(packet);
                taken.extend(std::iter::from_fn(|| channel.next_held()));
            }
        }
        taken
    }

    #[test]
    fn messages_are_numbered_from_zero_without_gaps() {
        let mut channel = Outgoing::new();
        assert_eq!([channel.take(), channel.take(), channel.take()], [0, 1, 2]);
        assert_eq!(channel.sent(), 3);
    }

    #[test]
    fn early_messages_wait_until_the_gap_closes() {
        let mut channel = Incoming::new();
        assert_eq!(channel.accept(2, 2), Ok(Accepted::Early));
        assert_eq!(channel.accept(1, 1), Ok(Accepted::Early));
        assert_eq!(channel.next_held(), None);
        assert_eq!(channel.received(), 0);
        assert_eq!(in_order(&mut channel, &[0]), [0, 1, 2]);
        assert_eq!(channel.received(), 3);
    }

    #[test]
    fn a_message_that_came_before_is_a_duplicate_whether_taken_or_held() {
        let mut channel = Incoming::new();
        assert_eq!(channel.accept(0, 'a'), Ok(Accepted::Next('a')));
        assert_eq!(channel.accept(0, 'a'), Ok(Accepted::Duplicate('a')));
        assert_eq!(channel.accept(5, 'f'), Ok(Accepted::Early));
        assert_eq!(channel.accept(5, 'g'), Ok(Accepted::Duplicate('g')));
        assert_eq!(channel.held().collect::<Vec<_>>(), [(5, &'f')]);
        *channel.held_mut(5).unwrap() = 'g';
        assert_eq!(channel.held().collect::<Vec<_>>(), [(5, &'g')]);
    }

    #[test]
    fn a_lent_packet_is_taken_only_if_it_is_the_next() {
        let mut channel = Incoming::new();
        assert!(channel.accept_next(0));
        assert!(!channel.accept_next(0));
        assert!(!channel.accept_next(2));
        assert_eq!(channel.accept(2, 'c'), Ok(Accepted::Early));
        assert!(channel.accept_next(1));
        assert_eq!(channel.next_held(), Some('c'));
        assert_eq!(channel.received(), 3);
    }

    #[test]
    fn a_number_far_ahead_is_refused_and_nothing_is_held_for_it() {
        let mut channel = Incoming::new();
        assert_eq!(channel.accept(EARLY_MAX, ()), Ok(Accepted::Early));
        let refused = channel.accept(EARLY_MAX + 1, ()).unwrap_err();
        assert_eq!((refused.sequence, refused.next), (EARLY_MAX + 1, 0));
        assert!(channel.accept(u64::MAX, ()).is_err());
        assert_eq!(channel.held().count(), 1);
    }

    #[test]
    fn both_ends_survive_their_stored_form_with_what_is_held() {
        let mut out = Outgoing::new();
        out.take();
        let mut incoming = Incoming::new();
        incoming.accept(0, 7_u8).unwrap();
        incoming.accept(2, 9_u8).unwrap();
        let bytes = postcard::to_allocvec(&(&out, &incoming)).unwrap();
        let (out_again, incoming_again): (Outgoing, Incoming<u8>) =
            postcard::from_bytes(&bytes).unwrap();
        assert_eq!((out_again, incoming_again), (out, incoming));
    }

    proptest::proptest! {
        /// Whatever order and however often messages come, each is taken once and in order.
        #[test]
        fn any_arrival_order_gives_the_sent_order(
            order in proptest::collection::vec(0_u64..24, 0..200)
        ) {
            let mut channel = Incoming::new();
            let mut arrivals = order;
            arrivals.extend(0..24);
            let taken = in_order(&mut channel, &arrivals);
            proptest::prop_assert_eq!(taken, (0..24).collect::<Vec<_>>());
            proptest::prop_assert_eq!(channel.held().count(), 0);
        }
    }
}
