//! The part of the engine that needs no transport: matching, sequencing, queues, recording.
//!
//! Packets come in by [`Core::handle_packet`] and go out by the queues of [`Outbound`], which the
//! engine's progress empties into the links. So a packet can be handled while the transport lends its
//! bytes out of the ring.
//!
//! - `delivery`: packets that come, and the receives that they meet.

mod delivery;

use std::collections::VecDeque;

use libckpt_rank::buffer::RankBytes;
use protocol::ids::{Epoch, Process, Rank};
use protocol::migration::Mover;
use protocol::participant::{Gate, Participant};
use zerocopy::IntoBytes;

use super::moving::Transit;
use super::numbered::{Numbered, Owed};
use super::packet::{Control, HEADER_BYTES, Header, Kind, Label, Place, Stamp};
use super::request::{Outcome, RequestId};
use super::tables::{Queued, Recorded, Tables, Unacked};

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
