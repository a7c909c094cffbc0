//! The part of the engine that needs no transport: matching, sequencing, queues, recording.
//!
//! Packets come in by [`Core::handle_packet`] and go out by the queues of [`Outbound`], which the
//! engine's progress empties into the links. So a packet can be handled while the transport lends its
//! bytes out of the ring.

use std::collections::VecDeque;

use libckpt_rank::buffer::RankBytes;
use protocol::ids::{Epoch, Process, Rank};
use protocol::migration::{Learned, Mover, Route};
use protocol::participant::{Arrival, Gate, Participant};
use zerocopy::IntoBytes;

use super::Fatal;
use super::moving::Transit;
use super::numbered::{Numbered, Owed};
use super::packet::{Control, HEADER_BYTES, Header, Kind, Label, Place, ShortHeader, Stamp};
use super::request::{Envelope, Outcome, RequestId};
use super::tables::{Arrived, Body, Posted, Queued, Rebound, Recorded, Tables, Transfer, Unacked};

/// A rank of this process.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) rank: Rank,
    pub(crate) tables: Tables,
    /// In `ready`, or running: the scheduler will come to it.
    pub(crate) scheduled: bool,
    /// Seconds of `wtime` before this process started the rank.
    pub(crate) wtime_s: f64,
}

/// What waits to go to one process.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    /// Goes ahead of the data, also while the link is not open.
    pub(crate) control: VecDeque<Control>,
    /// Packets in order. They belong to their ranks' images until they are on the link.
    pub(crate) data: VecDeque<Queued>,
    pub(crate) data_bytes: usize,
    /// Requests for fragments, to the process that has the message.
    pub(crate) pulls: VecDeque<Label>,
    /// Messages that are being sent in fragments, and how far.
    pub(crate) streams: VecDeque<(Label, u64)>,
    /// Listed in `Core::waiting`.
    pub(crate) listed: bool,
}

impl Outbound {
    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty()
            && self.data.is_empty()
            && self.pulls.is_empty()
            && self.streams.is_empty()
    }
}

/// The channel state of the snapshot under way.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) epoch: Epoch,
    pub(crate) packets: Vec<(Rank, Recorded)>,
    /// Payloads that belong to it and have not come.
    pub(crate) owed: Owed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) me: Process,
    pub(crate) incarnation: u32,
    /// Where the ranks are.
    pub(crate) mover: Mover,
    /// What is on its way because of moves.
    pub(crate) transit: Transit,
    /// The only rank that each process had at its start; `None` for processes that had none or several.
    only_rank: Vec<Option<Rank>>,
    /// Index into `hosted` by rank; `None` for ranks of other processes.
    hosted_at: Vec<Option<u32>>,
    /// In the order of their numbers.
    pub(crate) hosted: Vec<Hosted>,
    pub(crate) participant: Participant,
    pub(crate) outbound: Vec<Outbound>,
    /// Processes with something in their [`Outbound`].
    pub(crate) waiting: Vec<Process>,
    /// Transfers whose bytes can be read now: index into `hosted`, key in `transfers`.
    pub(crate) reads: Vec<(usize, (Rank, u64))>,
    pub(crate) recording: Option<Recording>,
    /// Large messages that are sent by number.
    pub(crate) numbered: Numbered,
    /// Indices into `hosted` that the scheduler is to run.
    pub(crate) ready: VecDeque<usize>,
    /// A message of at most so many bytes is sent eagerly.
    pub(crate) eager_bytes_max: usize,
}

impl Core {
    pub(crate) fn new(
        me: Process,
        incarnation: u32,
        epoch: Epoch,
        placement: &[Process],
        processes: u32,
        eager_bytes_max: usize,
    ) -> Self {
        let mut hosted_at = vec![None; placement.len()];
        let mut hosted = Vec::new();
        for (number, process) in (0u32..).zip(placement) {
            if *process == me {
                hosted_at[number as usize] = u32::try_from(hosted.len()).ok();
                hosted.push(Hosted {
                    rank: Rank(number),
                    tables: Tables::new(),
                    scheduled: false,
                    wtime_s: 0.0,
                });
            }
        }
        let mut only_rank = vec![None; processes as usize];
        let mut crowded = vec![false; processes as usize];
        for (number, process) in (0u32..).zip(placement) {
            let at = process.index();
            let first = only_rank[at].is_none() && !crowded[at];
            only_rank[at] = first.then_some(Rank(number));
            crowded[at] |= !first;
        }
        Self {
            me,
            incarnation,
            mover: Mover::new(me, placement),
            transit: Transit::default(),
            only_rank,
            hosted_at,
            hosted,
            participant: Participant::new(me, epoch),
            outbound: (0..processes).map(|_| Outbound::default()).collect(),
            waiting: Vec::new(),
            reads: Vec::new(),
            recording: None,
            numbered: Numbered::default(),
            ready: VecDeque::new(),
            eager_bytes_max,
        }
    }

    /// Where in `hosted` a rank is.
    #[inline]
    pub(crate) fn index_of(&self, rank: Rank) -> Option<usize> {
        self.hosted_at
            .get(rank.index())
            .copied()
            .flatten()
            .map(|index| index as usize)
    }

    /// Number of ranks of the job.
    #[inline]
    pub(crate) fn ranks(&self) -> usize {
        self.hosted_at.len()
    }

    /// Takes note that a rank is, or is not, at this index of `hosted`.
    pub(super) fn set_index(&mut self, rank: Rank, index: Option<usize>) {
        if let Some(at) = self.hosted_at.get_mut(rank.index()) {
            *at = index.and_then(|index| u32::try_from(index).ok());
        }
    }

    /// True where both ranks were the only ones of this process and of a peer at their start: then the link between the
    /// two tells who sends to whom.
    #[inline]
    pub(crate) fn is_pair(&self, from: Rank, peer: Process, to: Rank) -> bool {
        self.only_rank[self.me.index()] == Some(from) && self.only_rank[peer.index()] == Some(to)
    }

    #[inline]
    pub(crate) fn stamp(&self) -> Stamp {
        #[allow(clippy::cast_possible_truncation)] // compared modulo 2^32 only
        Stamp {
            incarnation: self.incarnation,
            epoch: self.participant.epoch().0 as u32,
        }
    }

    /// Lets the scheduler run a rank.
    #[inline]
    pub(crate) fn wake(&mut self, index: usize) {
        if !self.hosted[index].scheduled {
            self.hosted[index].scheduled = true;
            self.ready.push_back(index);
        }
    }

    #[inline]
    pub(crate) fn complete(&mut self, index: usize, request: RequestId, outcome: Outcome) {
        self.hosted[index]
            .tables
            .requests
            .complete(request, outcome);
        self.wake(index);
    }

    /// Notes that a process has something queued.
    pub(crate) fn list(&mut self, peer: Process) {
        let outbound = &mut self.outbound[peer.index()];
        if !outbound.listed {
            outbound.listed = true;
            self.waiting.push(peer);
        }
    }

    /// Queues a packet of a rank, in order behind those queued before.
    pub(crate) fn enqueue(&mut self, peer: Process, queued: Queued) {
        let outbound = &mut self.outbound[peer.index()];
        outbound.data_bytes += packet_bytes(&queued.packet);
        outbound.data.push_back(queued);
        self.list(peer);
    }

    /// True where a packet may go straight to the link, past no other.
    #[inline]
    pub(crate) fn may_send_now(&mut self, peer: Process) -> bool {
        if !self.outbound[peer.index()].is_empty() {
            return false;
        }
        match self.participant.send_gate(peer) {
            Gate::Open => true,
            Gate::Wait => false,
        }
    }

    /// Gives a message its number and label.
    #[inline]
    pub(crate) fn label(
        &mut self,
        index: usize,
        to: Rank,
        context: u64,
        tag: i32,
        bytes: usize,
    ) -> Label {
        let hosted = &mut self.hosted[index];
        Label {
            source: hosted.rank,
            destination: to,
            context,
            tag,
            sequence: hosted.tables.next_sequence(to),
            bytes: bytes as u64,
        }
    }

    /// Keeps an announced message with its sender until it is acknowledged.
    pub(crate) fn keep(&mut self, index: usize, label: Label, from: RankBytes, request: RequestId) {
        self.hosted[index].tables.unacked.insert(
            (label.destination, label.sequence),
            Unacked {
                label,
                from,
                request,
            },
        );
    }

    /// A message that this process's rank has announced, or will announce.
    pub(crate) fn unacked(&self, label: &Label) -> Option<&Unacked> {
        let index = self.index_of(label.source)?;
        let unacked = &self.hosted[index].tables.unacked;
        unacked.get(&(label.destination, label.sequence))
    }

    // ---- arriving -----------------------------------------------------------------------------

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
    pub(super) fn deliver_placed(&mut self, label: &Label, place: Place) -> Result<(), Fatal> {
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
    pub(super) fn complete_send(&mut self, index: usize, label: &Label) {
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

    // ---- the cut --------------------------------------------------------------------------------

    /// What the queues hold of a rank's packets, for its image. Announcements are left out: the rank
    /// makes them again from its unacknowledged messages.
    pub(crate) fn unsent_of(&self, rank: Rank) -> Vec<Recorded> {
        self.outbound
            .iter()
            .flat_map(|outbound| &outbound.data)
            .map(|queued| &queued.packet)
            .filter(|packet| packet.from() == rank && !matches!(packet, Recorded::Announce(_)))
            .cloned()
            .collect()
    }
}

/// Bytes of a packet in a queue, for the bound on queued bytes.
pub(crate) fn packet_bytes(packet: &Recorded) -> usize {
    HEADER_BYTES
        + match packet {
            Recorded::Eager(_, payload) => payload.len(),
            Recorded::Announce(_) => size_of::<Place>(),
            Recorded::Ack(_) => 0,
        }
}

/// Header and body of a packet that goes onto a link now.
pub(crate) fn with_parts<R>(
    packet: &Recorded,
    stamp: Stamp,
    place: impl FnOnce(&Label) -> Place,
    put: impl FnOnce(&[&[u8]]) -> R,
) -> R {
    match packet {
        Recorded::Eager(label, payload) => {
            put(&[Header::new(Kind::Eager, label, stamp).as_bytes(), payload])
        }
        Recorded::Announce(label) => {
            let place = place(label);
            put(&[
                Header::new(Kind::Announce, label, stamp).as_bytes(),
                place.as_bytes(),
            ])
        }
        Recorded::Ack(label) => put(&[Header::new(Kind::Ack, label, stamp).as_bytes()]),
    }
}
