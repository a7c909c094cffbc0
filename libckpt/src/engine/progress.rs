//! Moving packets: from the links into the tables, from the queues onto the links, and bulk reads.

use libckpt_transport::{BulkError, BulkSource};
use protocol::ids::{Process, Rank};
use protocol::migration::Route;
use protocol::participant::{Gate, Output};
use zerocopy::IntoBytes;

use super::core::{packet_bytes, with_parts};
use super::packet::{Control, HEADER_BYTES, Header, Kind, Label, Place};
use super::tables::{Queued, Recorded};
use super::{Engine, Fatal};

/// Packets that one call takes at the most before the ranks get their turn.
pub(crate) const PACKETS_PER_TURN: usize = 64;

impl Engine {
    /// Takes packets that are there and sends what is queued. True if anything moved.
    ///
    /// Stops at once where a cut is wanted: no further packet may be taken before it.
    pub(crate) fn progress(&mut self) -> bool {
        self.progress_by(PACKETS_PER_TURN)
    }

    /// [`progress`](Self::progress) with at most so many packets.
    #[inline]
    pub(crate) fn progress_by(&mut self, packets: usize) -> bool {
        match self.try_progress(packets) {
            Ok(moved) => moved,
            Err(fatal) => {
                self.fatal = Some(fatal);
                false
            }
        }
    }

    #[inline]
    fn try_progress(&mut self, packets: usize) -> Result<bool, Fatal> {
        let mut moved = false;
        for _ in 0..packets {
            if self.core.participant.cut_wanted().is_some()
                || self.core.transit.is_full()
                || !self.take_packet()?
            {
                break;
            }
            moved = true;
        }
        if self.core.numbered.is_busy() {
            moved |= self.take_numbered()?;
        }
        self.settle()?;
        Ok(moved)
    }

    /// Takes at most one packet.
    #[inline]
    fn take_packet(&mut self) -> Result<bool, Fatal> {
        let core = &mut self.core;
        let mut result = Ok(());
        let taken = self
            .transport
            .poll(&mut |peer, packet| result = core.handle_packet(peer, packet))?;
        result?;
        Ok(taken)
    }

    /// Does what packets and calls have left to do: bulk reads, protocol outputs, queues.
    pub(crate) fn settle(&mut self) -> Result<(), Fatal> {
        while let Some((index, key)) = self.core.reads.pop() {
            self.read(index, key)?;
        }
        if self.core.numbered.has_wanted() {
            self.receive_wanted()?;
        }
        self.pump_protocol();
        if !self.core.waiting.is_empty() {
            self.flush()?;
        }
        if self.core.transit.is_draining() {
            self.core.drain()?;
        }
        Ok(())
    }

    /// Hands the protocol's outputs on. The end of a snapshot's channel state is left for the scheduler.
    pub(crate) fn pump_protocol(&mut self) {
        while let Some(output) = self.core.participant.poll_output() {
            match output {
                Output::SendLink { peer, control } => {
                    let control = Control::Link(control);
                    self.core.outbound[peer.index()].control.push_back(control);
                    self.core.list(peer);
                }
                Output::LinkOpened { peer } => self.core.list(peer),
                Output::ChannelsComplete { epoch, links } => {
                    let event = self.core.markers_in(epoch, links);
                    self.snapshot_events.extend(event);
                }
                Output::Parted { peer } => {
                    self.core.part(peer);
                    self.transport.part(peer);
                }
                Output::Discard { epoch } => {
                    self.snapshot_events
                        .push(super::SnapshotEvent::Discard { epoch });
                }
            }
        }
    }

    /// Reads the bytes of an announced message from where they lie.
    fn read(&mut self, index: usize, key: (Rank, u64)) -> Result<(), Fatal> {
        let Some(transfer) = self.core.hosted[index].tables.transfers.get_mut(&key) else {
            return Ok(());
        };
        let label = transfer.label;
        let place = transfer.place;
        #[allow(clippy::cast_possible_truncation)] // checked against the buffer's length
        let bytes = label.bytes as usize;
        let place = match self.core.where_lies(&label, place)? {
            Lies::Here => return self.read_here(index, key, &label),
            Lies::AtHome => return self.receive_numbered(index, key),
            Lies::Untold => return Ok(()),
            Lies::At(place) => place,
        };
        let source = BulkSource {
            process: place.process(),
            address: place.address(),
        };
        let transfer = self.core.hosted[index]
            .tables
            .transfers
            .get_mut(&key)
            .expect("found above");
        let outcome = self
            .transport
            .bulk_read(source, &mut transfer.into.as_mut_slice()[..bytes]);
        match outcome {
            Ok(()) => self.core.finish_transfer(index, key),
            Err(BulkError::Forbidden { .. }) => self.pull(place.process(), label),
            // The sender's process is gone: the coordinator notices and restarts the job.
            Err(BulkError::Gone { .. }) => {}
            Err(error) => return Err(Fatal::new(error)),
        }
        Ok(())
    }

    /// Copies an announced message of a rank of this process.
    fn read_here(&mut self, index: usize, key: (Rank, u64), label: &Label) -> Result<(), Fatal> {
        let Some(from) = self.core.unacked(label).map(|unacked| unacked.from) else {
            // Sent already from where its sender was, to where its receiver was: it is passed on to here.
            if self.core.numbered.on {
                return Ok(());
            }
            return Err(Fatal::new(format!(
                "{} does not have the message that it announced",
                label.source
            )));
        };
        #[allow(clippy::cast_possible_truncation)] // checked against the buffer's length
        let bytes = label.bytes as usize;
        if let Some(transfer) = self.core.hosted[index].tables.transfers.get_mut(&key) {
            transfer.into.fill(0, &from.as_slice()[..bytes]);
        }
        self.core.finish_transfer(index, key);
        Ok(())
    }

    fn pull(&mut self, home: Process, label: Label) {
        self.core.outbound[home.index()].pulls.push_back(label);
        self.core.list(home);
    }

    /// Sends what is queued, as far as the links have room.
    fn flush(&mut self) -> Result<(), Fatal> {
        let peers = std::mem::take(&mut self.core.waiting);
        for peer in peers {
            self.core.outbound[peer.index()].listed = false;
            self.flush_to(peer)?;
            if !self.core.outbound[peer.index()].is_empty() {
                self.core.list(peer);
            }
        }
        Ok(())
    }

    fn flush_to(&mut self, peer: Process) -> Result<(), Fatal> {
        let stamp = self.core.stamp();
        while let Some(control) = self.core.outbound[peer.index()].control.front().copied() {
            let header = Header::of_control(control, stamp);
            if !self.transport.try_send(peer, &[header.as_bytes()])? {
                return Ok(());
            }
            self.core.outbound[peer.index()].control.pop_front();
        }
        while let Some(mut queued) = self.core.outbound[peer.index()].data.pop_front() {
            let bytes = packet_bytes(&queued.packet);
            if self.core.is_void(&queued.packet) {
                self.core.outbound[peer.index()].data_bytes -= bytes;
                continue;
            }
            let sent = match self.core.participant.send_gate(peer) {
                Gate::Open => self.put(peer, &mut queued)?,
                Gate::Wait => false,
            };
            let outbound = &mut self.core.outbound[peer.index()];
            if !sent {
                outbound.data.push_front(queued);
                break;
            }
            outbound.data_bytes -= bytes;
            self.core.participant.data_sent(peer);
        }
        while let Some(label) = self.core.outbound[peer.index()].pulls.front().copied() {
            let header = Header::new(Kind::Pull, &label, stamp);
            if !self.transport.try_send(peer, &[header.as_bytes()])? {
                return Ok(());
            }
            self.core.outbound[peer.index()].pulls.pop_front();
        }
        self.stream_to(peer)
    }

    /// Puts a packet of a rank on its link, if there is room.
    fn put(&mut self, peer: Process, queued: &mut Queued) -> Result<bool, Fatal> {
        if self.core.numbered.on {
            let room = self.transport.packet_bytes_max() - HEADER_BYTES;
            match &mut queued.packet {
                Recorded::Announce(label) => return self.announce_numbered(peer, label),
                Recorded::Eager(label, payload) if payload.len() > room => {
                    return self.pass_on_numbered(peer, label, payload);
                }
                Recorded::Eager(..) | Recorded::Ack(_) => {}
            }
        }
        let Self {
            core, transport, ..
        } = self;
        let place = |label: &Label| queued.place.unwrap_or_else(|| core.place_of(label));
        with_parts(&queued.packet, core.stamp(), place, |parts| {
            transport.try_send(peer, parts)
        })
        .map_err(Fatal::from)
    }

    /// Puts an announcement on its link, if there is room.
    pub(crate) fn put_announcement(
        &mut self,
        peer: Process,
        label: &Label,
        place: Place,
    ) -> Result<bool, Fatal> {
        let header = Header::new(Kind::Announce, label, self.core.stamp());
        self.transport
            .try_send(peer, &[header.as_bytes(), place.as_bytes()])
            .map_err(Fatal::from)
    }

    /// Sends pieces of the messages that a process has asked for.
    fn stream_to(&mut self, peer: Process) -> Result<(), Fatal> {
        let stamp = self.core.stamp();
        let piece_bytes = self.transport.packet_bytes_max() - HEADER_BYTES;
        while let Some((label, offset)) = self.core.outbound[peer.index()].streams.front().copied()
        {
            let unacked = self.core.index_of(label.source).and_then(|index| {
                self.core.hosted[index]
                    .tables
                    .unacked
                    .get(&(label.destination, label.sequence))
            });
            let Some(unacked) = unacked else {
                // Acknowledged meanwhile: nobody waits for the rest.
                self.core.outbound[peer.index()].streams.pop_front();
                continue;
            };
            let bytes = unacked.from.as_slice();
            #[allow(clippy::cast_possible_truncation)] // an offset into a slice
            let at = offset as usize;
            let piece = &bytes[at..bytes.len().min(at + piece_bytes)];
            let header = Header::new(Kind::Fragment, &label, stamp).with_number(offset);
            if !self.transport.try_send(peer, &[header.as_bytes(), piece])? {
                return Ok(());
            }
            let end = at + piece.len();
            let done = end == bytes.len();
            let streams = &mut self.core.outbound[peer.index()].streams;
            if done {
                streams.pop_front();
            } else if let Some(front) = streams.front_mut() {
                front.1 = end as u64;
            }
        }
        Ok(())
    }
}

/// Where the bytes of an announced message are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lies {
    /// In the memory of a rank that runs here.
    Here,
    /// In memory that can be read.
    At(Place),
    /// In another process, which sends it under a number.
    AtHome,
    /// It is being received; or it will be announced again: the job was restored, or one of the ranks has moved or is about to.
    Untold,
}

impl super::Core {
    /// Where an announced message is to be read, of which this place was told.
    pub(super) fn where_lies(&self, label: &Label, place: Option<Place>) -> Result<Lies, Fatal> {
        if self.numbered.on {
            return Ok(match place {
                Some(_) => Lies::AtHome,
                None if self.numbered.is_coming(label) => Lies::Untold,
                None if self.mover.is_here(label.source) => Lies::Here,
                None => Lies::Untold,
            });
        }
        Ok(match self.mover.route(label.source).map_err(Fatal::new)? {
            Route::Here => Lies::Here,
            Route::Link(_) => place.map_or(Lies::Untold, Lies::At),
            // A rank that is frozen here may run at its target already, and have announced the message from there, before the
            // coordinator's word has come: it will not do so again. Otherwise it does when it goes on, here or elsewhere.
            Route::Hold => place
                .filter(|place| place.process() != self.me)
                .map_or(Lies::Untold, Lies::At),
        })
    }

    /// An announcement whose message was acknowledged while it was queued, by an acknowledgment of before a restart: the
    /// receiver has the message. Or it is under way by number, and announced again because one of the ranks has moved.
    pub(super) fn is_void(&self, packet: &Recorded) -> bool {
        match packet {
            Recorded::Announce(label) if self.numbered.on => {
                self.unacked(label).is_none() || self.is_under_way(label)
            }
            _ => false,
        }
    }

    /// Where an announced message of a rank of this process lies.
    pub(crate) fn place_of(&self, label: &Label) -> Place {
        let address = self
            .unacked(label)
            .map_or(0, |unacked| unacked.from.address());
        let since = self.mover.since(label.source).unwrap_or_default();
        Place::new(self.me, address, since)
    }
}
