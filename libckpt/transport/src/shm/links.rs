//! All links of a process together.
//!
//! Looking at one ring is one load, but a job may have hundreds. So a process *watches* the links
//! that have been in use lately, looking at each in turn, and the others are *dormant*: their sender
//! sets a bit in the receiver's record after its packet, which makes the receiver watch that link. Both
//! the bit and the bell of a sleeping receiver are looked at after publishing, in the order that
//! [`waker`](crate::waker) explains; a link falls dormant by the same pattern.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::Process;

use super::layout::{Layout, packet_bytes_max};
use super::mapping::{Mapping, Record, Shared, SharedBell};
use super::ring::{Impossible, Receiver, Sender};
use crate::patience::Patience;
use crate::{BulkError, BulkSource, OtherProcess, Transport, TransportError, Waker, Wakeup, bulk};

/// So many links are watched however quiet they are: looking at them costs less than a miss would.
const WATCHED_ANYWAY: usize = 4;

/// Polls that a link may be quiet for before it falls dormant.
const QUIET_TURNS_MAX: u64 = 4096;

/// The links of one process to all others on the same machine.
pub struct ShmTransport {
    me: Process,
    layout: Layout,
    records: Vec<Shared<Record>>,
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    /// The peers whose links are watched.
    watched: Vec<usize>,
    /// Which of them is looked at first.
    next: usize,
    /// Polls so far.
    turn: u64,
    /// Packets that found no room: to whom, and their length.
    blocked: Vec<(usize, usize)>,
    waker: Waker,
    patience: Patience,
}

impl ShmTransport {
    pub(super) fn new(mapping: &Arc<Mapping>, layout: Layout, me: Process) -> Self {
        let mine = me.index();
        let ring_bytes = layout.ring_bytes;
        let peers = 0..layout.processes;
        let records: Vec<Shared<Record>> = peers
            .clone()
            .map(|peer| Shared::new(mapping, layout.record(peer)))
            .collect();
        let sender = |peer| {
            let control = Shared::new(mapping, layout.link(peer, mine));
            Sender::new(mapping, layout.ring(peer, mine), ring_bytes, control)
        };
        let receiver = |peer| {
            let control = Shared::new(mapping, layout.link(mine, peer));
            Receiver::new(mapping, layout.ring(mine, peer), ring_bytes, control)
        };
        Self {
            me,
            layout,
            waker: Waker::shared(SharedBell(records[mine].clone())),
            records,
            senders: peers.clone().map(sender).collect(),
            receivers: peers.map(receiver).collect(),
            watched: Vec::new(),
            next: 0,
            turn: 0,
            blocked: Vec::new(),
            // Lossless: at most PROCESSES_MAX.
            patience: Patience::of_job(layout.processes as u32),
        }
    }

    /// Says that this process is there, with its pid; the pid of who said so before is the error.
    pub(super) fn join(&self, pid: u32) -> Result<(), u32> {
        self.records[self.me.index()].join(pid)
    }

    /// How many links are watched now.
    #[must_use]
    pub fn watched_links(&self) -> usize {
        self.watched.len()
    }

    fn corrupt(&self, peer: usize, impossible: Impossible) -> TransportError {
        TransportError::Corrupt {
            me: self.me,
            // Lossless: at most PROCESSES_MAX.
            peer: Process(peer as u32),
            what: impossible.what,
            position: impossible.position,
        }
    }

    fn pending_words(&self) -> usize {
        self.layout.processes.div_ceil(64)
    }

    /// Watches the links whose senders have asked for it.
    #[cold]
    fn watch_pending(&mut self) {
        for word in 0..self.pending_words() {
            for peer in self.records[self.me.index()].take_pending(word) {
                if peer < self.layout.processes && !self.watched.contains(&peer) {
                    self.receivers[peer].control().watch(true);
                    self.receivers[peer].last_turn = self.turn;
                    self.watched.push(peer);
                }
            }
        }
    }

    /// Lets links fall dormant that have been quiet for so many polls, as long as more than
    /// `watched_anyway` are watched.
    #[cold]
    fn drop_quiet(&mut self, quiet_turns: u64, watched_anyway: usize) {
        let mut index = self.watched.len();
        while index > 0 && self.watched.len() > watched_anyway {
            index -= 1;
            let receiver = &self.receivers[self.watched[index]];
            if self.turn - receiver.last_turn < quiet_turns {
                continue;
            }
            receiver.control().watch(false);
            if receiver.has_packet() {
                // It came in between: its sender may have seen the link watched, and set no bit.
                receiver.control().watch(true);
            } else {
                self.watched.swap_remove(index);
            }
        }
        self.next = 0;
    }

    /// Tells the sender of a link that there is room, if it asked.
    #[inline]
    fn pay_room(&mut self, peer: usize, empty: bool) {
        if self.receivers[peer].owes_room(empty) {
            self.records[peer].bell().ring();
        }
    }

    /// What there is to do. With `arm`, blocked links ask their receivers to ring once more.
    fn look(&mut self, arm: bool) -> Option<Wakeup> {
        if self.waker.take() {
            return Some(Wakeup::Waker);
        }
        let has_packet = |&peer: &usize| self.receivers[peer].has_packet();
        if self.watched.iter().any(has_packet)
            || self.records[self.me.index()].has_pending(self.pending_words())
        {
            return Some(Wakeup::Packet);
        }
        for index in 0..self.blocked.len() {
            let (peer, payload_bytes) = self.blocked[index];
            let sender = &mut self.senders[peer];
            if arm {
                sender.control().want_room();
            }
            // What is impossible is told by the next try_send.
            if sender.has_room(payload_bytes).unwrap_or(true) {
                self.blocked.swap_remove(index);
                return Some(Wakeup::Room);
            }
        }
        None
    }

    /// Sleeps until there is something to do, or until `end`.
    fn sleep(&mut self, end: Option<Instant>) -> Wakeup {
        let record = self.records[self.me.index()].clone();
        loop {
            let rest = end.map_or(Duration::MAX, |end| {
                end.saturating_duration_since(Instant::now())
            });
            let found = record.bell().sleep(rest, || self.look(true));
            if let Some(wakeup) = found.or_else(|| self.look(false)) {
                return wakeup;
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Wakeup::Timeout;
            }
        }
    }

    fn unblock(&mut self, peer: usize) {
        self.blocked.retain(|&(blocked, _)| blocked != peer);
    }
}

impl Transport for ShmTransport {
    fn me(&self) -> Process {
        self.me
    }

    fn processes(&self) -> u32 {
        // Lossless: at most PROCESSES_MAX.
        self.layout.processes as u32
    }

    fn packet_bytes_max(&self) -> usize {
        packet_bytes_max(self.layout.ring_bytes)
    }

    fn try_send(&mut self, peer: Process, parts: &[&[u8]]) -> Result<bool, TransportError> {
        let to = peer.index();
        if to >= self.layout.processes || peer == self.me {
            return Err(TransportError::NoLink {
                me: self.me,
                peer,
                processes: self.processes(),
            });
        }
        let packet_bytes = parts.iter().map(|part| part.len()).sum();
        if packet_bytes > self.packet_bytes_max() {
            return Err(TransportError::PacketTooLarge {
                peer,
                packet_bytes,
                packet_bytes_max: self.packet_bytes_max(),
            });
        }
        let sender = &mut self.senders[to];
        let mut sent = sender.send(packet_bytes, parts);
        if sent == Ok(false) {
            // Ask first, then look again: the receiver reads first and looks for wishes then.
            sender.control().want_room();
            sent = sender.send(packet_bytes, parts);
        }
        if !sent.map_err(|impossible| self.corrupt(to, impossible))? {
            self.unblock(to);
            self.blocked.push((to, packet_bytes));
            return Ok(false);
        }
        let sender = &mut self.senders[to];
        let record = &self.records[to];
        if !sender.control().is_watched() {
            record.set_pending(self.me.index());
        }
        record.bell().ring();
        sender.clean_ahead();
        if !self.blocked.is_empty() {
            self.unblock(to);
        }
        Ok(true)
    }

    fn poll(&mut self, take: &mut dyn FnMut(Process, &[u8])) -> Result<bool, TransportError> {
        self.turn += 1;
        if self.records[self.me.index()].has_pending(self.pending_words()) {
            self.watch_pending();
        }
        if self.turn.is_multiple_of(QUIET_TURNS_MAX) {
            self.drop_quiet(QUIET_TURNS_MAX, WATCHED_ANYWAY);
        }
        let count = self.watched.len();
        for step in 0..count {
            let mut index = self.next + step;
            if index >= count {
                index -= count;
            }
            let peer = self.watched[index];
            // Lossless: at most PROCESSES_MAX.
            let from = Process(peer as u32);
            let taken = self.receivers[peer]
                .receive(|packet| take(from, packet))
                .map_err(|impossible| self.corrupt(peer, impossible))?;
            self.pay_room(peer, !taken);
            if taken {
                self.receivers[peer].last_turn = self.turn;
                self.next = if index + 1 == count { 0 } else { index + 1 };
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn bulk_read(&mut self, from: BulkSource, into: &mut [u8]) -> Result<(), BulkError> {
        let pid = self
            .records
            .get(from.process.index())
            .and_then(|record| record.pid())
            .ok_or(BulkError::Gone {
                process: from.process,
            })?;
        bulk::read(pid, from, into)
    }

    fn other(&self, process: Process) -> Option<OtherProcess> {
        let pid = self.records.get(process.index())?.pid()?;
        Some(OtherProcess::new(process, pid))
    }

    fn idle(&mut self, longest: Duration) -> Wakeup {
        let end = Instant::now().checked_add(longest);
        if let Some(wakeup) = self.patience.look(|| self.look(false)) {
            return wakeup;
        }
        self.sleep(end)
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
