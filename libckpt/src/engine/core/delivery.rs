//! Packets that come: counted, delivered to their ranks, brought together with receives, and acknowledged.

use protocol::ids::{Process, Rank};
use protocol::migration::{Learned, Route};
use protocol::participant::Arrival;

use super::Core;
use crate::engine::Fatal;
use crate::engine::packet::{Control, Header, Kind, Label, Place, ShortHeader};
use crate::engine::request::{Envelope, Outcome};
use crate::engine::tables::{Arrived, Body, Posted, Queued, Rebound, Recorded, Transfer};

impl Core {
    /// Takes one packet of a link.
    ///
    /// # Errors
    /// The packet can't be: going on could corrupt the job.
    #[inline]
    pub(crate) fn handle_packet(&mut self, peer: Process, packet: &[u8]) -> Result<(), Fatal> {
        if let Some((header, body)) = ShortHeader::parse(packet) {
            return self.handle_short(peer, header, body);
        }
        self.handle_any(peer, packet)
    }

    /// An eager message of the only rank that a process had at its start, for the one that this process had.
    #[inline]
    fn handle_short(
        &mut self,
        peer: Process,
        header: &ShortHeader,
        body: &[u8],
    ) -> Result<(), Fatal> {
        let only = |process: Process| self.only_rank.get(process.index()).copied().flatten();
        let (Some(source), Some(destination)) = (only(peer), only(self.me)) else {
            return Err(Fatal::new(format!(
                "a short packet from {peer}, where one of the processes was started with several ranks"
            )));
        };
        let label = header.label(source, destination, self.incarnation, body)?;
        self.handle_data(peer, Kind::Eager, &label, body)
    }

    fn handle_any(&mut self, peer: Process, packet: &[u8]) -> Result<(), Fatal> {
        let (header, kind, body) = Header::parse(packet)?;
        if header.stamp().incarnation != self.incarnation {
            return Err(Fatal::new(format!(
                "a packet of incarnation {} from {peer} in incarnation {}",
                header.stamp().incarnation,
                self.incarnation
            )));
        }
        let label = header.label();
        if label.source.index() >= self.ranks() {
            return Err(Fatal::new(format!(
                "a packet of {} from {peer}",
                label.source
            )));
        }
        if let Some(control) = header.control(kind)? {
            return self.handle_control(peer, control);
        }
        match kind {
            Kind::Eager | Kind::Announce | Kind::Ack => self.handle_data(peer, kind, &label, body),
            Kind::Pull => {
                self.outbound[peer.index()].streams.push_back((label, 0));
                self.list(peer);
                Ok(())
            }
            Kind::Fragment => self.handle_fragment(&label, header.number(), body),
            _ => Err(Fatal::new("a control packet that is none")),
        }
    }

    fn handle_control(&mut self, peer: Process, control: Control) -> Result<(), Fatal> {
        match control {
            Control::Link(control) => self
                .participant
                .handle_link(peer, control)
                .map_err(Fatal::new),
            Control::Move(control) => {
                self.mover
                    .handle_control(peer, control)
                    .map_err(Fatal::new)?;
                self.pump_mover()
            }
        }
    }

    fn handle_data(
        &mut self,
        peer: Process,
        kind: Kind,
        label: &Label,
        body: &[u8],
    ) -> Result<(), Fatal> {
        let arrival = self.participant.handle_data(peer).map_err(Fatal::new)?;
        if kind == Kind::Eager && label.bytes != body.len() as u64 {
            return Err(Fatal::new(format!(
                "a message of {} bytes came with {}",
                label.bytes,
                body.len()
            )));
        }
        let recorded = matches!(arrival, Arrival::Record { .. });
        let to = match kind {
            Kind::Eager | Kind::Announce => label.destination,
            _ => label.source,
        };
        match self.mover.handle_packet(peer, to).map_err(Fatal::new)? {
            Route::Here => {}
            route => return self.pass_on(route, arrival, kind, label, body),
        }
        if let Arrival::Record { epoch } = arrival {
            let (rank, packet) = match kind {
                Kind::Eager => (label.destination, Recorded::Eager(*label, body.to_vec())),
                Kind::Announce => (label.destination, Recorded::Announce(*label)),
                _ => (label.source, Recorded::Ack(*label)),
            };
            // A packet that is not recorded would be lost by a restart, and no count would tell.
            let recording = self
                .recording
                .as_mut()
                .filter(|recording| recording.epoch == epoch)
                .ok_or_else(|| {
                    Fatal::new(format!("channel state of {epoch}, which is not recorded"))
                })?;
            recording.packets.push((rank, packet));
        }
        match kind {
            Kind::Eager => self.deliver_whole(label, body),
            Kind::Announce => {
                let known = recorded && self.is_complete(label);
                self.deliver_placed(label, Place::parse(body)?)?;
                if recorded && !known {
                    self.owe(label);
                }
                Ok(())
            }
            _ => self.deliver_ack(label),
        }
    }

    /// A packet that has come for a rank which is frozen, on its way here, or has moved on.
    #[cold]
    fn pass_on(
        &mut self,
        route: Route,
        arrival: Arrival,
        kind: Kind,
        label: &Label,
        body: &[u8],
    ) -> Result<(), Fatal> {
        if let Arrival::Record { epoch } = arrival {
            return Err(Fatal::new(format!(
                "a packet for a rank that moves belongs to the channel state of {epoch}"
            )));
        }
        let (packet, place) = match kind {
            Kind::Eager => (Recorded::Eager(*label, body.to_vec()), None),
            Kind::Announce => (Recorded::Announce(*label), Some(Place::parse(body)?)),
            _ => (Recorded::Ack(*label), None),
        };
        let queued = Queued {
            packet,
            place,
            forwarded: true,
        };
        match route {
            Route::Link(_) => self.forward(queued)?,
            Route::Hold | Route::Here => self.hold(queued),
        }
        self.pump_mover()
    }

    /// Delivers an announcement that has come on a link, with the place that it tells.
    pub(crate) fn deliver_placed(&mut self, label: &Label, place: Place) -> Result<(), Fatal> {
        let told = self.look_at_place(label, place)?;
        self.deliver_announced(label, told)?;
        // Sent from where its sender is not any more: what is left there waits for it.
        if self.numbered.on
            && self.mover.since(label.source) > Some(place.since())
            && let Some(index) = self.index_of(label.destination)
        {
            self.fetch(index, label);
        }
        Ok(())
    }

    /// Learns where a rank is from the place of a message that it announces. Gives the place, unless the rank has moved on
    /// since: then the message does not lie there any more, and is announced again. What is sent under a number is sent all the
    /// same.
    #[inline]
    fn look_at_place(&mut self, label: &Label, place: Place) -> Result<Option<Place>, Fatal> {
        let source = label.source;
        match (self.mover).handle_announced(source, place.process(), place.since()) {
            Learned::Known => Ok(Some(place)),
            Learned::Stale => Ok(self.numbered.on.then_some(place)),
            Learned::New => self.pump_mover().map(|()| Some(place)),
        }
    }

    fn index_for(&self, rank: Rank, what: &str) -> Result<usize, Fatal> {
        self.index_of(rank).ok_or_else(|| {
            Fatal::new(format!(
                "{what} for {rank}, which {} does not host",
                self.me
            ))
        })
    }

    /// A whole message for a rank of this process.
    #[inline]
    pub(crate) fn deliver_whole(&mut self, label: &Label, payload: &[u8]) -> Result<(), Fatal> {
        let index = self.index_for(label.destination, "a message")?;
        let channel = self.hosted[index].tables.incoming(label.source);
        if channel.accept_next(label.sequence) {
            self.match_whole(index, label, payload);
            return self.release_held(index, label.source);
        }
        if label.sequence < channel.received() || channel.held_mut(label.sequence).is_some() {
            // The payload of a message that was announced before; a duplicate of a whole one needs no answer.
            self.bind_payload(index, label, payload.to_vec());
            return Ok(());
        }
        channel
            .accept(label.sequence, Recorded::Eager(*label, payload.to_vec()))
            .map_err(Fatal::new)?;
        Ok(())
    }

    /// The announcement of a message for a rank of this process.
    pub(crate) fn deliver_announced(
        &mut self,
        label: &Label,
        place: Option<Place>,
    ) -> Result<(), Fatal> {
        let index = self.index_for(label.destination, "an announcement")?;
        let channel = self.hosted[index].tables.incoming(label.source);
        if channel.accept_next(label.sequence) {
            self.match_announced(index, label, place);
            return self.release_held(index, label.source);
        }
        if label.sequence >= channel.received() {
            channel
                .accept(label.sequence, Recorded::Announce(*label))
                .map_err(Fatal::new)?;
            if let Some(place) = place {
                self.numbered.hold_place(label, place);
            }
            return Ok(());
        }
        match self.hosted[index].tables.rebind(label, place) {
            Rebound::Waiting => {}
            Rebound::Transfer => self.reads.push((index, (label.source, label.sequence))),
            Rebound::Complete => self.let_go(label, place),
        }
        Ok(())
    }

    /// The receiver has a message that a rank of this process announced.
    pub(crate) fn deliver_ack(&mut self, label: &Label) -> Result<(), Fatal> {
        let index = self.index_for(label.source, "an acknowledgment")?;
        if self.numbered.is_sending(label) {
            // Acknowledged before a restart, and announced again after: it is read until it has been sent.
            return Ok(());
        }
        // An acknowledgment may come again after a restart; the second tells nothing new.
        self.complete_send(index, label);
        Ok(())
    }

    /// A message of this rank needs its sender no more: its request is complete. Nothing where that was known.
    pub(crate) fn complete_send(&mut self, index: usize, label: &Label) {
        let key = (label.destination, label.sequence);
        let tables = &mut self.hosted[index].tables;
        if !tables.under_way.is_empty() {
            tables.under_way.remove(&key);
        }
        if let Some(unacked) = tables.unacked.remove(&key) {
            let envelope = Envelope {
                source: label.source,
                tag: label.tag,
                bytes: unacked.from.len(),
            };
            self.complete(index, unacked.request, Outcome::Done(envelope));
        }
    }

    fn release_held(&mut self, index: usize, source: Rank) -> Result<(), Fatal> {
        while let Some(held) = self.hosted[index].tables.incoming(source).next_held() {
            match held {
                Recorded::Eager(label, payload) => self.match_whole(index, &label, &payload),
                Recorded::Announce(label) => {
                    let place = self.numbered.take_place(&label);
                    self.match_announced(index, &label, place);
                }
                Recorded::Ack(_) => return Err(Fatal::new("an acknowledgment held in a channel")),
            }
        }
        Ok(())
    }

    fn match_whole(&mut self, index: usize, label: &Label, payload: &[u8]) {
        match self.hosted[index].tables.take_posted(label) {
            Some(posted) => self.complete_whole(index, label, payload, posted),
            None => {
                let body = Body::Whole(payload.to_vec());
                self.hosted[index].tables.unexpected.push_back(Arrived {
                    label: *label,
                    body,
                });
                self.wake(index);
            }
        }
    }

    fn complete_whole(&mut self, index: usize, label: &Label, payload: &[u8], mut posted: Posted) {
        let envelope = Envelope {
            source: label.source,
            tag: label.tag,
            bytes: payload.len(),
        };
        let outcome = if payload.len() <= posted.into.len() {
            posted.into.fill(0, payload);
            Outcome::Done(envelope)
        } else {
            Outcome::Truncated(envelope, posted.into.len())
        };
        self.complete(index, posted.request, outcome);
    }

    fn match_announced(&mut self, index: usize, label: &Label, place: Option<Place>) {
        match self.hosted[index].tables.take_posted(label) {
            Some(posted) => self.begin_transfer(index, label, place, posted),
            None => {
                let body = Body::Announced(place);
                self.hosted[index].tables.unexpected.push_back(Arrived {
                    label: *label,
                    body,
                });
                self.wake(index);
            }
        }
    }

    /// An announced message has met its receive.
    fn begin_transfer(
        &mut self,
        index: usize,
        label: &Label,
        place: Option<Place>,
        posted: Posted,
    ) {
        if label.bytes > posted.into.len() as u64 {
            #[allow(clippy::cast_possible_truncation)] // 64-bit machines only
            let envelope = Envelope {
                source: label.source,
                tag: label.tag,
                bytes: label.bytes as usize,
            };
            self.complete(
                index,
                posted.request,
                Outcome::Truncated(envelope, posted.into.len()),
            );
            self.let_go(label, place);
            return;
        }
        let key = (label.source, label.sequence);
        let transfer = Transfer {
            label: *label,
            into: posted.into,
            request: posted.request,
            received_bytes: 0,
            place,
        };
        self.hosted[index].tables.transfers.insert(key, transfer);
        self.reads.push((index, key));
    }

    /// All bytes of a transfer are in place.
    pub(crate) fn finish_transfer(&mut self, index: usize, key: (Rank, u64)) {
        let Some(transfer) = self.hosted[index].tables.transfers.remove(&key) else {
            return;
        };
        #[allow(clippy::cast_possible_truncation)] // checked against the buffer's length
        let bytes = transfer.label.bytes as usize;
        let envelope = Envelope {
            source: transfer.label.source,
            tag: transfer.label.tag,
            bytes,
        };
        self.complete(index, transfer.request, Outcome::Done(envelope));
        // A message that was sent by number is its sender's no more.
        if !self.numbered.on || self.mover.is_here(transfer.label.source) {
            self.acknowledge(&transfer.label);
        }
    }

    fn handle_fragment(&mut self, label: &Label, offset: u64, piece: &[u8]) -> Result<(), Fatal> {
        // A rank that is frozen or has moved gets the message by another way.
        let Some(index) = self.index_of(label.destination) else {
            return Ok(());
        };
        let key = (label.source, label.sequence);
        // Not wanted any more when the message came by another way meanwhile.
        let Some(transfer) = self.hosted[index].tables.transfers.get_mut(&key) else {
            return Ok(());
        };
        if offset != transfer.received_bytes {
            return Ok(());
        }
        let end = offset + piece.len() as u64;
        if end > transfer.label.bytes {
            return Err(Fatal::new(format!(
                "a fragment up to byte {end} of a message of {}",
                transfer.label.bytes
            )));
        }
        #[allow(clippy::cast_possible_truncation)] // checked against the buffer's length
        transfer.into.fill(offset as usize, piece);
        transfer.received_bytes = end;
        if end == transfer.label.bytes {
            self.finish_transfer(index, key);
        }
        Ok(())
    }

    /// Tells the sender that its message has been received.
    pub(crate) fn acknowledge(&mut self, label: &Label) {
        match self.mover.route(label.source) {
            // The sender is one of ours: its entry is there, or it was told before.
            Ok(Route::Here) => drop(self.deliver_ack(label)),
            Ok(Route::Hold) => self.hold(Queued::own(Recorded::Ack(*label))),
            Ok(Route::Link(peer)) => self.enqueue(peer, Queued::own(Recorded::Ack(*label))),
            // Looked at when the packet came.
            Err(_) => {}
        }
    }

    // ---- receiving ------------------------------------------------------------------------------

    /// Posts a receive, or meets it with a message that is there.
    pub(crate) fn post(&mut self, index: usize, posted: Posted) {
        let tables = &mut self.hosted[index].tables;
        match tables.find_unexpected(posted.source, posted.context, posted.tag) {
            Some(at) => {
                let arrived = tables.unexpected.remove(at).expect("found just now");
                self.meet(index, arrived, posted);
            }
            None => tables.posted.push(posted),
        }
    }

    /// Brings a message that has arrived and its receive together.
    pub(crate) fn meet(&mut self, index: usize, arrived: Arrived, posted: Posted) {
        match arrived.body {
            Body::Whole(payload) => self.complete_whole(index, &arrived.label, &payload, posted),
            Body::Announced(place) => self.begin_transfer(index, &arrived.label, place, posted),
        }
    }
}
