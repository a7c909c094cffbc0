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
//!
//! What becomes of messages whose sender or receiver moves meanwhile is in [`relay`](super::relay).

use std::collections::{BTreeMap, BTreeSet};

use libckpt_rank::buffer::RankBytesMut;
use libckpt_transport::{BulkDone, BulkFrom, BulkInto};
use protocol::control::LinkCount;
use protocol::ids::{Move, Process, Rank};

use super::packet::{Label, Place};
use super::tables::{Arrived, Body, Queued, Recorded, Tables};
use super::{Core, Engine, Fatal, SnapshotEvent};

/// A message: destination, source, sequence number.
pub(crate) type Key = (Rank, Rank, u64);

/// A message that is being sent.
#[derive(Debug)]
pub(super) struct Sending {
    peer: Process,
    number: u64,
    pub(super) label: Label,
    /// It is passed on to where its receiver has moved, from memory of the process: it is no rank's any more.
    pub(super) passed_on: bool,
}

/// A message that is being received.
#[derive(Debug)]
pub(super) struct Coming {
    peer: Process,
    number: u64,
    pub(super) label: Label,
    /// The memory of its receiver, where it goes there.
    into: Option<RankBytesMut>,
    /// Nobody needs it.
    pub(super) let_go: bool,
}

/// A payload to be received into memory of the process.
#[derive(Debug)]
pub(super) struct Wanted {
    place: Place,
    pub(super) label: Label,
    pub(super) let_go: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    /// The transport sends large messages by number.
    pub(crate) on: bool,
    /// The next number.
    next: u64,
    pub(super) sending: Vec<Sending>,
    pub(super) coming: Vec<Coming>,
    pub(super) wanted: Vec<Wanted>,
    /// Places of announcements that came too early and are held by their channel.
    pub(super) early: BTreeMap<Key, Place>,
}

/// What a snapshot's channel state still waits for.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    keys: BTreeSet<Key>,
    /// The markers are all in: this is to be told when nothing is owed any more.
    complete: Option<Vec<LinkCount>>,
}

pub(super) fn key_of(label: &Label) -> Key {
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

    /// Whether a message is on its way out of the memory of its sender.
    pub(crate) fn is_sending(&self, label: &Label) -> bool {
        let key = key_of(label);
        let mut own = self.sending.iter().filter(|sending| !sending.passed_on);
        own.any(|sending| key_of(&sending.label) == key)
    }

    /// Whether the payload of a message is being received for it.
    pub(super) fn is_coming(&self, label: &Label) -> bool {
        let key = key_of(label);
        let wanted = self.wanted.iter().filter(|it| !it.let_go);
        let coming = self.coming.iter().filter(|it| !it.let_go);
        (wanted.map(|it| &it.label))
            .chain(coming.map(|it| &it.label))
            .any(|label| key_of(label) == key)
    }

    /// Has a payload come into memory of the process.
    pub(super) fn want(&mut self, label: &Label, place: Place, let_go: bool) {
        self.wanted.push(Wanted {
            place,
            label: *label,
            let_go,
        });
    }

    pub(crate) fn hold_place(&mut self, label: &Label, place: Place) {
        self.early.insert(key_of(label), place);
    }

    pub(crate) fn take_place(&mut self, label: &Label) -> Option<Place> {
        self.early.remove(&key_of(label))
    }

    /// Forgets where early messages lie that a rank announced before its move `since`. Of messages that are read there; those
    /// that are sent are received.
    pub(super) fn forget_places(&mut self, of: Rank, since: Move) {
        self.early
            .retain(|key, place| key.1 != of || place.since() >= since);
    }

    /// Forgets where early messages for a rank lie that is not here any more. As above.
    pub(super) fn forget_places_for(&mut self, rank: Rank) {
        self.early.retain(|key, _| key.0 != rank);
    }
}

impl Core {
    /// A message that was announced need not come any more. What is sent under a number has to be received all the same.
    pub(crate) fn let_go(&mut self, label: &Label, place: Option<Place>) {
        match place {
            Some(place) if self.numbered.on => self.numbered.want(label, place, true),
            _ if !self.numbered.on || self.mover.is_here(label.source) => self.acknowledge(label),
            _ => {}
        }
    }

    /// Has the payload of an announced message that no receive has asked for come into memory of the process.
    pub(super) fn fetch(&mut self, index: usize, label: &Label) {
        let tables = &mut self.hosted[index].tables;
        let place = match tables.find_announced(label.source, label.sequence) {
            Some(arrived) => match &mut arrived.body {
                Body::Announced(place) => place.take(),
                Body::Whole(_) => None,
            },
            None => self.numbered.take_place(label),
        };
        if let Some(place) = place {
            self.numbered.want(label, place, false);
        }
    }

    /// What the channel state of the snapshot that begins has to wait for: payloads that were announced and have
    /// not come.
    pub(crate) fn owed_at_cut(&mut self) -> Owed {
        let mut owed = Owed::default();
        if !self.numbered.on {
            return owed;
        }
        for hosted in &mut self.hosted {
            self.numbered.fetch_all(hosted, |_, _| true);
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
    fn came(
        &mut self,
        coming: Coming,
        own: Option<Vec<u8>>,
    ) -> Result<Option<SnapshotEvent>, Fatal> {
        let label = coming.label;
        let Some(index) = self.index_of(label.destination) else {
            return self.came_for_another(coming, own).map(|()| None);
        };
        let key = (label.source, label.sequence);
        if own.is_none()
            && let Some(transfer) = self.hosted[index].tables.transfers.get_mut(&key)
        {
            transfer.into.touch();
        }
        let event = self.pay(index, &label, own.as_deref());
        match own {
            Some(payload) if !coming.let_go => self.bind_payload(index, &label, payload),
            Some(_) => {}
            None => self.finish_transfer(index, key),
        }
        Ok(event)
    }

    /// A payload has come for a rank that is frozen here, or has left: it goes after it as a whole message.
    fn came_for_another(&mut self, coming: Coming, own: Option<Vec<u8>>) -> Result<(), Fatal> {
        let Coming { label, into, .. } = coming;
        if coming.let_go {
            return Ok(());
        }
        let payload = match (own, into) {
            (Some(own), _) => own,
            (None, Some(into)) => {
                let mut own = own_memory(&label)?;
                own.copy_from_slice(into.as_slice());
                own
            }
            (None, None) => return Err(Fatal::new("a message has come without its bytes")),
        };
        self.dispatch(Queued::passed_on(Recorded::Eager(label, payload)))
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

    /// A message has left this process. Its sender, where it has moved meanwhile, is told as if its message were acknowledged.
    fn sent(&mut self, sending: &Sending) -> Result<(), Fatal> {
        let label = &sending.label;
        if sending.passed_on {
            return Ok(());
        }
        match self.index_of(label.source) {
            Some(index) => self.complete_send(index, label),
            None => self.dispatch(Queued::passed_on(Recorded::Ack(*label)))?,
        }
        Ok(())
    }
}

/// Memory of the process for the payload of a message.
fn own_memory(label: &Label) -> Result<Vec<u8>, Fatal> {
    let bytes = usize::try_from(label.bytes).map_err(Fatal::new)?;
    let mut own = Vec::new();
    own.try_reserve_exact(bytes).map_err(|error| {
        Fatal::new(format!(
            "no memory for a message of {bytes} bytes from {}: {error}",
            label.source
        ))
    })?;
    own.resize(bytes, 0);
    Ok(own)
}

impl Tables {
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
            .bulk_send(peer, number, BulkFrom::Rank(from))?;
        self.core.numbered.sending.push(Sending {
            peer,
            number,
            label: *label,
            passed_on: false,
        });
        Ok(true)
    }

    /// Passes a message on that came whole for a rank which has moved, if there is room. The link is told of it by an
    /// announcement. Its place is stamped with no move: it says nothing of where the sender is.
    pub(crate) fn pass_on_numbered(
        &mut self,
        peer: Process,
        label: &Label,
        payload: &mut Vec<u8>,
    ) -> Result<bool, Fatal> {
        let number = self.core.numbered.next;
        let place = Place::new(self.core.me, number, Move(0));
        if !self.put_announcement(peer, label, place)? {
            return Ok(false);
        }
        self.core.numbered.next += 1;
        self.transport
            .bulk_send(peer, number, BulkFrom::Own(std::mem::take(payload)))?;
        self.core.numbered.sending.push(Sending {
            peer,
            number,
            label: *label,
            passed_on: true,
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
        let bytes = label.bytes as usize;
        let (into, known) = (transfer.into.lend(bytes), transfer.into.lend(bytes));
        self.receive_into(place, label, BulkInto::Rank(into), Some(known), false)
    }

    fn receive_into(
        &mut self,
        place: Place,
        label: Label,
        into: BulkInto,
        known: Option<RankBytesMut>,
        let_go: bool,
    ) -> Result<(), Fatal> {
        let (peer, number) = (place.process(), place.address());
        self.transport.bulk_receive(peer, number, into)?;
        self.core.numbered.coming.push(Coming {
            peer,
            number,
            label,
            into: known,
            let_go,
        });
        Ok(())
    }

    /// Asks for payloads that go into memory of the process.
    pub(crate) fn receive_wanted(&mut self) -> Result<(), Fatal> {
        for wanted in std::mem::take(&mut self.core.numbered.wanted) {
            let own = BulkInto::Own(own_memory(&wanted.label)?);
            self.receive_into(wanted.place, wanted.label, own, None, wanted.let_go)?;
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
                    self.core.sent(&sending)?;
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
                    if let Some(event) = self.core.came(coming, own)? {
                        self.snapshot_events.push(event);
                    }
                }
            }
        }
        Ok(moved)
    }
}
