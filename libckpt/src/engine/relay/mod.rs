//! Messages sent by number whose sender or receiver moves while they are under way.
//!
//! A number is a promise between two processes, and moves with nobody: what one of them sends under it, the other receives,
//! wherever the ranks are by then. So
//!
//! - *a message is sent under a number once*: a rank that moves announces again what is not under way, and nobody announces
//!   again what is ([`Core::is_under_way`]);
//! - *the process that a message was announced to receives it*, into the receiver's memory where that had begun, else into memory
//!   of its own, and passes it on as a whole message: announced and sent under a number once more, by itself
//!   ([`Engine::pass_on_numbered`](super::Engine::pass_on_numbered));
//! - *the process that sends it tells the sender* when it is sent, by an acknowledgment, which finds the sender like any other;
//! - places by number are never stale, and each is received once, whatever becomes of the message.
//!
//! A source has drained when nothing comes for the rank any more and nothing is sent from its memory. So that this waits for no
//! rank, every process that hears of a move has the rank's messages come which no receive has asked for.

use std::collections::BTreeSet;

use protocol::ids::{Move, Rank};

use super::core::Hosted;
use super::numbered::{Key, Numbered};
use super::packet::{Label, Place};
use super::tables::{Body, Queued, Recorded};
use super::{Core, Fatal};

impl Numbered {
    /// Has payloads come into memory of the process that were announced to a rank, and that nobody has asked the transport for:
    /// those that `which` wants.
    pub(super) fn fetch_all(
        &mut self,
        hosted: &mut Hosted,
        which: impl Fn(&Label, &Place) -> bool,
    ) {
        let tables = &mut hosted.tables;
        let arrived = tables.unexpected.iter_mut();
        for arrived in arrived.chain(tables.probed.values_mut()) {
            if let Body::Announced(place) = &mut arrived.body
                && let Some(place) = place.take_if(|place| which(&arrived.label, place))
            {
                self.want(&arrived.label, place, false);
            }
        }
        for transfer in tables.transfers.values_mut() {
            let place = &mut transfer.place;
            if let Some(place) = place.take_if(|place| which(&transfer.label, place)) {
                self.want(&transfer.label, place, false);
            }
        }
        let early = self.early.range((hosted.rank, Rank(0), 0)..);
        let of_rank = |key: &Key| key.0 == hosted.rank;
        let early: Vec<Key> = early.map(|(key, _)| *key).take_while(of_rank).collect();
        for key in early {
            if let Some(Recorded::Announce(label)) = tables.incoming(key.1).held_mut(key.2)
                && self
                    .early
                    .get(&key)
                    .is_some_and(|place| which(label, place))
                && let Some(place) = self.early.remove(&key)
            {
                self.want(label, place, false);
            }
        }
    }

    /// Whether something comes for a rank that has left, or is sent from its memory.
    pub(super) fn is_busy_with(&self, rank: Rank) -> bool {
        let own = |sent: bool, label: &Label| match sent {
            true => label.source == rank,
            false => label.destination == rank,
        };
        let mut sending = self.sending.iter().filter(|it| !it.passed_on);
        let mut coming = self.coming.iter().filter(|it| !it.let_go);
        let mut wanted = self.wanted.iter().filter(|it| !it.let_go);
        sending.any(|it| own(true, &it.label))
            || coming.any(|it| own(false, &it.label))
            || wanted.any(|it| own(false, &it.label))
    }
}

impl Core {
    /// Whether a message of a rank of this process is under way by number: from here, or from where the rank was.
    pub(super) fn is_under_way(&self, label: &Label) -> bool {
        let tables = self
            .index_of(label.source)
            .map(|index| &self.hosted[index].tables);
        let key = (label.destination, label.sequence);
        tables.is_some_and(|tables| tables.under_way.contains(&key))
            || self.numbered.is_sending(label)
    }

    /// The messages of a rank that stands still which its target must not announce again.
    pub(super) fn under_way_of(&self, hosted: &Hosted) -> BTreeSet<(Rank, u64)> {
        let mut under_way = hosted.tables.under_way.clone();
        let sending = self.numbered.sending.iter();
        let own = sending.filter(|it| !it.passed_on && it.label.source == hosted.rank);
        under_way.extend(own.map(|it| (it.label.destination, it.label.sequence)));
        under_way
    }

    /// A rank has moved: has everything come that it has announced from where it was before.
    pub(super) fn fetch_of_moved(&mut self, source: Rank, since: Move) {
        let Self {
            hosted,
            transit,
            numbered,
            ..
        } = self;
        for hosted in hosted.iter_mut().chain(transit.aside_mut()) {
            numbered.fetch_all(hosted, |label, place| {
                label.source == source && place.since() < since
            });
        }
    }

    /// A packet for a rank that is another process's. A message that was announced to this process is received here first.
    pub(super) fn forward(&mut self, queued: Queued) -> Result<(), Fatal> {
        match (&queued.packet, queued.place) {
            (Recorded::Announce(label), Some(place)) if self.numbered.on => {
                self.numbered.want(label, place, false);
                Ok(())
            }
            _ => self.dispatch(queued),
        }
    }
}

#[cfg(test)]
mod tests;
