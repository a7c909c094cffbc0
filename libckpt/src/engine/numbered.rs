//! Large messages that are sent by number instead of read where they lie: what is under way, and what becomes of it.
//!
//! The announcement is a packet like others, and belongs before or after a cut like others. It names the number
//! under which the payload is sent, at once, straight from the sender's memory. The receiver asks the transport for
//! that number when the message has met its receive, straight into the receive's buffer.
//!
//! The message is the sender's until the transport has sent it, and it may be in no rank's memory from then until it has been
//! received. So at a cut whoever was told of a message owes its payload to the snapshot: what was announced before the
//! sender's cut and had not come at the receiver's is recorded as channel state when it comes, and the channel
//! state is complete only then. What no receive has asked for is taken into memory of the process for that.
//! Where the sender's image has the message, too, the restored sender announces it once more, and the receiver lets that
//! one go.
//!
//! A network card may have written the payload, without a fault that anybody sees. So the processor writes to each of
//! its pages again before the message counts as received. What a card writes into a page that a cut has protected, and that is
//! not yet saved, does no harm: the message was not complete at the cut, and comes again after a restore.

use std::collections::{BTreeMap, BTreeSet};

use libckpt_transport::{BulkDone, BulkFrom, BulkInto};
use protocol::control::LinkCount;
use protocol::ids::{Move, Process, Rank};

use super::packet::{Label, Place};
use super::tables::{Arrived, Body, Recorded, Tables};
use super::{Core, Engine, Fatal, SnapshotEvent};

/// A message: destination, source, sequence number.
pub(crate) type Key = (Rank, Rank, u64);

/// A message that is being sent.
#[derive(Debug)]
struct Sending {
    peer: Process,
    number: u64,
    label: Label,
}

/// A message that is being received.
#[derive(Debug)]
struct Coming {
    peer: Process,
    number: u64,
    index: usize,
    label: Label,
    /// Nobody needs it.
    let_go: bool,
}

/// A payload to be received into memory of the process.
#[derive(Debug)]
struct Wanted {
    place: Place,
    index: usize,
    label: Label,
    let_go: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    /// The transport sends large messages by number.
    pub(crate) on: bool,
    /// The next number.
    next: u64,
    sending: Vec<Sending>,
    coming: Vec<Coming>,
    wanted: Vec<Wanted>,
    /// Places of announcements that came too early and are held by their channel.
    early: BTreeMap<Key, Place>,
}

/// What a snapshot's channel state still waits for.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    keys: BTreeSet<Key>,
    /// The markers are all in: this is to be told when nothing is owed any more.
    complete: Option<Vec<LinkCount>>,
}

fn key_of(label: &Label) -> Key {
    (label.destination, label.source, label.sequence)
}

impl Numbered {
    /// Whether the transport has anything under way for us.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        !self.sending.is_empty() || !self.coming.is_empty()
    }

    /// Whether payloads wait to be asked for.
    #[inline]
    pub(crate) fn has_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Whether a message is on its way out.
    pub(crate) fn is_sending(&self, label: &Label) -> bool {
        self.sending.iter().any(|sending| {
            sending.label.source == label.source
                && sending.label.destination == label.destination
                && sending.label.sequence == label.sequence
        })
    }

    pub(crate) fn hold_place(&mut self, label: &Label, place: Place) {
        self.early.insert(key_of(label), place);
    }

    pub(crate) fn take_place(&mut self, label: &Label) -> Option<Place> {
        self.early.remove(&key_of(label))
    }

    /// Forgets where early messages lie that a rank announced before its move `since`.
    pub(super) fn forget_places(&mut self, of: Rank, since: Move) {
        self.early
            .retain(|key, place| key.1 != of || place.since() >= since);
    }

    /// Forgets where early messages for a rank lie that is not here any more.
    pub(super) fn forget_places_for(&mut self, rank: Rank) {
        self.early.retain(|key, _| key.0 != rank);
    }
}

impl Core {
    /// A message that was announced need not come any more, for this rank.
    pub(crate) fn let_go(&mut self, index: usize, label: &Label, place: Option<Place>) {
        if !self.numbered.on || self.mover.is_here(label.source) {
            self.acknowledge(label);
        } else if let Some(place) = place {
            self.numbered.wanted.push(Wanted {
                place,
                index,
                label: *label,
                let_go: true,
            });
        }
    }

    /// Has the payload of an announced message that no receive has asked for come into memory of the process.
    fn fetch(&mut self, index: usize, label: &Label) {
        let tables = &mut self.hosted[index].tables;
        let place = match tables.find_announced(label.source, label.sequence) {
            Some(arrived) => match &mut arrived.body {
                Body::Announced(place) => place.take(),
                Body::Whole(_) => None,
            },
            None => self.numbered.take_place(label),
        };
        if let Some(place) = place {
            self.numbered.wanted.push(Wanted {
                place,
                index,
                label: *label,
                let_go: false,
            });
        }
    }

    /// What the channel state of the snapshot that begins has to wait for: payloads that were announced and have
    /// not come.
    pub(crate) fn owed_at_cut(&mut self) -> Owed {
        let mut owed = Owed::default();
        if !self.numbered.on {
            return owed;
        }
        let mut waiting: Vec<(usize, Label)> = Vec::new();
        for (index, hosted) in self.hosted.iter_mut().enumerate() {
            for arrived in hosted.tables.arrived() {
                if matches!(arrived.body, Body::Announced(Some(_))) {
                    waiting.push((index, arrived.label));
                }
            }
            let early = self.numbered.early.range((hosted.rank, Rank(0), 0)..);
            let of_rank = |key: &Key| key.0 == hosted.rank;
            let early: Vec<Key> = early.map(|(key, _)| *key).take_while(of_rank).collect();
            for key in early {
                if let Some(Recorded::Announce(label)) =
                    hosted.tables.incoming(key.1).held_mut(key.2)
                {
                    waiting.push((index, *label));
                }
            }
        }
        for (index, label) in waiting {
            self.fetch(index, &label);
        }
        let wanted = &self.numbered.wanted;
        let coming = &self.numbered.coming;
        owed.keys.extend(
            wanted
                .iter()
                .filter(|wanted| !wanted.let_go)
                .map(|wanted| key_of(&wanted.label)),
        );
        owed.keys.extend(
            coming
                .iter()
                .filter(|coming| !coming.let_go)
                .map(|coming| key_of(&coming.label)),
        );
        owed
    }

    /// An announcement was recorded as channel state: its payload is owed as well.
    pub(crate) fn owe(&mut self, label: &Label) {
        let Some(index) = self.index_of(label.destination) else {
            return;
        };
        if !self.numbered.on {
            return;
        }
        if let Some(recording) = &mut self.recording {
            recording.owed.keys.insert(key_of(label));
        }
        self.fetch(index, label);
    }

    /// Whether a message that is announced was had before, payload and all.
    pub(crate) fn is_complete(&mut self, label: &Label) -> bool {
        let Some(index) = self.index_of(label.destination) else {
            return false;
        };
        let tables = &mut self.hosted[index].tables;
        label.sequence < tables.incoming(label.source).received()
            && tables
                .find_announced(label.source, label.sequence)
                .is_none()
            && !tables
                .transfers
                .contains_key(&(label.source, label.sequence))
    }

    /// A payload has come.
    fn came(&mut self, coming: &Coming, own: Option<Vec<u8>>) -> Option<SnapshotEvent> {
        let Coming { index, label, .. } = coming;
        let key = (label.source, label.sequence);
        if own.is_none()
            && let Some(transfer) = self.hosted[*index].tables.transfers.get_mut(&key)
        {
            transfer.into.touch();
        }
        let event = self.pay(*index, label, own.as_deref());
        match own {
            Some(payload) if !coming.let_go => self.bind_payload(*index, label, payload),
            Some(_) => {}
            None => self.finish_transfer(*index, key),
        }
        event
    }

    /// Records a payload if the snapshot under way waits for it. Tells if that was the last.
    fn pay(&mut self, index: usize, label: &Label, own: Option<&[u8]>) -> Option<SnapshotEvent> {
        let recording = self.recording.as_mut()?;
        if !recording.owed.keys.remove(&key_of(label)) {
            return None;
        }
        let payload = match own {
            Some(payload) => payload.to_vec(),
            None => {
                let key = (label.source, label.sequence);
                let transfer = self.hosted[index].tables.transfers.get(&key)?;
                #[allow(clippy::cast_possible_truncation)] // checked against the buffer's length
                transfer.into.as_slice()[..label.bytes as usize].to_vec()
            }
        };
        recording
            .packets
            .push((label.destination, Recorded::Eager(*label, payload)));
        if !recording.owed.keys.is_empty() {
            return None;
        }
        let links = recording.owed.complete.take()?;
        Some(SnapshotEvent::ChannelsComplete {
            epoch: recording.epoch,
            links,
        })
    }

    /// Every marker is in. Gives the event, unless payloads are owed.
    pub(crate) fn markers_in(
        &mut self,
        epoch: protocol::ids::Epoch,
        links: Vec<LinkCount>,
    ) -> Option<SnapshotEvent> {
        if let Some(recording) = &mut self.recording
            && recording.epoch == epoch
            && !recording.owed.keys.is_empty()
        {
            recording.owed.complete = Some(links);
            return None;
        }
        Some(SnapshotEvent::ChannelsComplete { epoch, links })
    }

    /// Brings the payload of a message that was announced before to where the message waits. One that waits
    /// nowhere has been had already.
    pub(crate) fn bind_payload(&mut self, index: usize, label: &Label, payload: Vec<u8>) {
        let key = (label.source, label.sequence);
        let tables = &mut self.hosted[index].tables;
        if let Some(arrived) = tables.find_announced(label.source, label.sequence) {
            arrived.body = Body::Whole(payload);
        } else if let Some(transfer) = tables.transfers.get_mut(&key) {
            transfer.into.fill(0, &payload);
            self.finish_transfer(index, key);
        } else if let Some(held) = tables.incoming(label.source).held_mut(label.sequence) {
            *held = Recorded::Eager(*label, payload);
        }
    }

    /// A message has left this process.
    fn sent(&mut self, label: &Label) {
        let Some(index) = self.index_of(label.source) else {
            return;
        };
        self.complete_send(index, label);
    }
}

impl Tables {
    /// Messages that have arrived and were not received.
    fn arrived(&self) -> impl Iterator<Item = &Arrived> {
        self.unexpected.iter().chain(self.probed.values())
    }

    /// A message that has arrived by its announcement only.
    pub(crate) fn find_announced(&mut self, source: Rank, sequence: u64) -> Option<&mut Arrived> {
        self.unexpected
            .iter_mut()
            .chain(self.probed.values_mut())
            .find(|arrived| {
                arrived.label.source == source
                    && arrived.label.sequence == sequence
                    && matches!(arrived.body, Body::Announced(_))
            })
    }
}

impl Engine {
    /// Puts an announcement on its link and has the message follow it, if there is room.
    pub(crate) fn announce_numbered(
        &mut self,
        peer: Process,
        label: &Label,
    ) -> Result<bool, Fatal> {
        let Some(from) = self.core.unacked(label).map(|unacked| unacked.from) else {
            return Err(Fatal::new("an announcement without its message"));
        };
        let number = self.core.numbered.next;
        let since = self.core.mover.since(label.source).unwrap_or_default();
        let place = Place::new(self.core.me, number, since);
        if !self.put_announcement(peer, label, place)? {
            return Ok(false);
        }
        self.core.numbered.next += 1;
        self.transport
            .bulk_send(peer, number, BulkFrom::Rank(from))
            .map_err(Fatal::new)?;
        self.core.numbered.sending.push(Sending {
            peer,
            number,
            label: *label,
        });
        Ok(true)
    }

    /// Asks for the payload of a message that has met its receive.
    pub(crate) fn receive_numbered(&mut self, index: usize, key: (Rank, u64)) -> Result<(), Fatal> {
        let Some(transfer) = self.core.hosted[index].tables.transfers.get_mut(&key) else {
            return Ok(());
        };
        // Without its place it comes into memory of the process, or will be announced again.
        let Some(place) = transfer.place.take() else {
            return Ok(());
        };
        let label = transfer.label;
        #[allow(clippy::cast_possible_truncation)] // checked against the buffer's length
        let into = transfer.into.lend(label.bytes as usize);
        self.receive_into(place, index, label, BulkInto::Rank(into), false)
    }

    fn receive_into(
        &mut self,
        place: Place,
        index: usize,
        label: Label,
        into: BulkInto,
        let_go: bool,
    ) -> Result<(), Fatal> {
        let (peer, number) = (place.process(), place.address());
        self.transport
            .bulk_receive(peer, number, into)
            .map_err(Fatal::new)?;
        self.core.numbered.coming.push(Coming {
            peer,
            number,
            index,
            label,
            let_go,
        });
        Ok(())
    }

    /// Asks for payloads that go into memory of the process.
    pub(crate) fn receive_wanted(&mut self) -> Result<(), Fatal> {
        for wanted in std::mem::take(&mut self.core.numbered.wanted) {
            let bytes = usize::try_from(wanted.label.bytes).map_err(Fatal::new)?;
            let mut own = Vec::new();
            own.try_reserve_exact(bytes).map_err(|error| {
                Fatal::new(format!(
                    "no memory for a message of {bytes} bytes from {}: {error}",
                    wanted.label.source
                ))
            })?;
            own.resize(bytes, 0);
            self.receive_into(
                wanted.place,
                wanted.index,
                wanted.label,
                BulkInto::Own(own),
                wanted.let_go,
            )?;
        }
        Ok(())
    }

    /// Takes what the transport has sent and received. True if there was anything.
    pub(crate) fn take_numbered(&mut self) -> Result<bool, Fatal> {
        let mut moved = false;
        while let Some(done) = self.transport.bulk_done() {
            moved = true;
            match done {
                BulkDone::Sent { peer, number } => {
                    let sending = &mut self.core.numbered.sending;
                    let at = sending
                        .iter()
                        .position(|sending| sending.peer == peer && sending.number == number)
                        .ok_or_else(|| {
                            Fatal::new(format!("message {number} to {peer} was not being sent"))
                        })?;
                    let sending = sending.swap_remove(at);
                    self.core.sent(&sending.label);
                }
                BulkDone::Received { peer, number, own } => {
                    let coming = &mut self.core.numbered.coming;
                    let at = coming
                        .iter()
                        .position(|coming| coming.peer == peer && coming.number == number)
                        .ok_or_else(|| {
                            Fatal::new(format!("message {number} of {peer} was not asked for"))
                        })?;
                    let coming = coming.swap_remove(at);
                    if let Some(event) = self.core.came(&coming, own) {
                        self.snapshot_events.push(event);
                    }
                }
            }
        }
        Ok(moved)
    }
}
