//! Ranks that leave and come while the others run: where their packets wait, and how their tables go in and out.
//!
//! [`protocol::migration::Mover`] decides; this does what it says, as far as packets and tables are concerned. What needs the
//! ranks to stand still, or their memory, is left to the scheduler as an [`Errand`].
//!
//! A rank that is frozen here, or has come and does not run yet, is *aside*: none of `hosted`, so that no packet, no read and
//! no cut can come across it by accident. Packets for it are held, and count like queued ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::ids::{Move, Process, Rank};
use protocol::migration::{MoveDirective, MoveReport, MoverOutput, Route};

use super::core::{Hosted, packet_bytes};
use super::cut::{SectionError, decode, encode};
use super::packet::Control;
use super::tables::{Queued, Recorded, Tables};
use super::{Core, Engine, Fatal};

/// While more than this is held, in bytes, no packets are taken from the links, so that their senders wait. The outcome of
/// a move does not depend on links.
const HELD_BYTES_MAX: usize = 64 << 20;

/// What the scheduler has to do.
#[derive(Debug)]
pub(crate) enum Errand {
    /// What the machine says.
    Obey(MoverOutput),
    /// A rank for which a move waits has come to a safepoint, and stands still there.
    Safepoint(Move, Rank),
}

/// What is on its way because of moves. See the module.
#[derive(Debug, Default)]
pub(crate) struct Transit {
    held: BTreeMap<Rank, Vec<Queued>>,
    held_bytes: usize,
    aside: BTreeMap<Rank, Hosted>,
    /// Moves whose forwarded packets are to leave the queues.
    draining: Vec<(Move, Rank)>,
    /// Ranks that stand still at a safepoint.
    at_safepoint: BTreeSet<Rank>,
    /// Moves that wait for their rank to come to one.
    safepoints_wanted: BTreeMap<Rank, Move>,
    errands: VecDeque<Errand>,
}

impl Transit {
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// No further packet may be taken from the links.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.held_bytes > HELD_BYTES_MAX
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    #[inline]
    pub(crate) fn has_errands(&self) -> bool {
        !self.errands.is_empty()
    }

    /// The next thing for the scheduler to do.
    pub(crate) fn next_errand(&mut self) -> Option<Errand> {
        self.errands.pop_front()
    }

    /// The rank that runs has come to a safepoint. True where it is to stand still there, because of a move that waits for it
    /// or (`anyway`) something else that the scheduler has to do.
    pub(super) fn come_to_safepoint(&mut self, rank: Rank, anyway: bool) -> bool {
        let wanted = self.safepoints_wanted.remove(&rank);
        if let Some(id) = wanted {
            self.errands.push_back(Errand::Safepoint(id, rank));
        }
        let stands = anyway || wanted.is_some();
        if stands {
            self.at_safepoint.insert(rank);
        }
        stands
    }

    /// A rank goes on from a safepoint, here or elsewhere.
    pub(super) fn leave_safepoint(&mut self, rank: Rank) {
        self.at_safepoint.remove(&rank);
    }

    /// A move waits for a rank to come to a safepoint. True where it stands at one: then nothing waits.
    pub(crate) fn want_safepoint(&mut self, id: Move, rank: Rank) -> bool {
        let stands = self.at_safepoint.contains(&rank);
        if !stands {
            self.safepoints_wanted.insert(rank, id);
        }
        stands
    }

    /// No move waits for a rank any more.
    pub(crate) fn forget_safepoint(&mut self, rank: Rank) {
        self.safepoints_wanted.remove(&rank);
    }

    fn take_held(&mut self, rank: Rank) -> Vec<Queued> {
        let held = self.held.remove(&rank).unwrap_or_default();
        let bytes = held.iter().map(|queued| packet_bytes(&queued.packet));
        self.held_bytes -= bytes.sum::<usize>();
        held
    }

    /// Ranks that are here and do not run.
    pub(super) fn aside_mut(&mut self) -> impl Iterator<Item = &mut Hosted> {
        self.aside.values_mut()
    }

    fn take_aside(&mut self, rank: Rank) -> Result<Hosted, Fatal> {
        self.aside
            .remove(&rank)
            .ok_or_else(|| Fatal::new(format!("{rank} is neither frozen here nor has it come")))
    }
}

/// The message tables of a rank that moves, as its source has described them.
///
/// # Errors
/// They are none.
pub(crate) fn tables_of(section: &[u8]) -> Result<Tables, SectionError> {
    let (mut tables, under_way): (Tables, BTreeSet<_>) = decode("message tables", section)?;
    tables.under_way = under_way;
    Ok(tables)
}

impl Core {
    // ---- packets --------------------------------------------------------------------------------

    /// Gives a packet that is not on a link to its rank, or to the link to where that is.
    pub(crate) fn dispatch(&mut self, queued: Queued) -> Result<(), Fatal> {
        match self.mover.route(queued.packet.to()).map_err(Fatal::new)? {
            Route::Here => self.deliver(queued),
            Route::Hold => {
                self.hold(queued);
                Ok(())
            }
            Route::Link(peer) => {
                self.enqueue(peer, queued);
                Ok(())
            }
        }
    }

    /// Gives a packet to its rank, which is here.
    pub(super) fn deliver(&mut self, queued: Queued) -> Result<(), Fatal> {
        match queued.packet {
            Recorded::Eager(label, payload) => self.deliver_whole(&label, &payload),
            Recorded::Announce(label) => match queued.place {
                Some(place) => self.deliver_placed(&label, place),
                None => self.deliver_announced(&label, None),
            },
            Recorded::Ack(label) => self.deliver_ack(&label),
        }
    }

    /// Keeps a packet until it is known who runs its rank.
    pub(super) fn hold(&mut self, queued: Queued) {
        self.transit.held_bytes += packet_bytes(&queued.packet);
        let held = self.transit.held.entry(queued.packet.to()).or_default();
        held.push(queued);
    }

    /// Does what the machine says. What only the scheduler can do is left to it.
    pub(super) fn pump_mover(&mut self) -> Result<(), Fatal> {
        while let Some(output) = self.mover.poll_output() {
            if let Some(output) = self.obey_mover(output)? {
                self.transit.errands.push_back(Errand::Obey(output));
            }
        }
        Ok(())
    }

    /// Does what the machine says, or gives it back where only the scheduler can.
    pub(crate) fn obey_mover(&mut self, output: MoverOutput) -> Result<Option<MoverOutput>, Fatal> {
        match output {
            MoverOutput::SendLink { peer, control } => {
                let waiting = &mut self.outbound[peer.index()].control;
                waiting.push_back(Control::Move(control));
                self.list(peer);
            }
            MoverOutput::Placed { id, rank, to } => self.placed(id, rank, to)?,
            MoverOutput::Drain { id, rank } => self.transit.draining.push((id, rank)),
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// A rank is there now, by this move.
    fn placed(&mut self, id: Move, rank: Rank, to: Process) -> Result<(), Fatal> {
        let mut rerouted = Vec::new();
        for (peer, outbound) in (0..).map(Process).zip(&mut self.outbound) {
            if peer != to {
                rerouted.extend(outbound.take_out(|queued| queued.packet.to() == rank));
            }
        }
        for queued in rerouted {
            self.dispatch(queued)?;
        }
        if self.numbered.on {
            self.fetch_of_moved(rank, id);
        } else {
            let hosted = self.hosted.iter_mut();
            let hosted = hosted.chain(self.transit.aside_mut());
            hosted.for_each(|hosted| hosted.tables.forget_places(rank, id));
            self.numbered.forget_places(rank, id);
        }
        let mut again = Vec::new();
        for hosted in &self.hosted {
            let unacked = &hosted.tables.unacked;
            let unacked = unacked.range((rank, 0)..=(rank, u64::MAX));
            again.extend(unacked.map(|(_, unacked)| unacked.label));
        }
        for label in again {
            self.dispatch(Queued::own(Recorded::Announce(label)))?;
        }
        Ok(())
    }

    /// Tells the machine of moves whose forwarded packets are all on links, and whose rank's memory no message needs.
    pub(super) fn drain(&mut self) -> Result<(), Fatal> {
        let waits = |rank: Rank| {
            let mut queued = self.outbound.iter().flat_map(|outbound| &outbound.data);
            queued.any(|queued| queued.forwarded && queued.packet.to() == rank)
        };
        let busy = |rank: Rank| waits(rank) || self.numbered.is_busy_with(rank);
        let done = |drain: &mut (Move, Rank)| !busy(drain.1);
        let done: Vec<_> = self.transit.draining.extract_if(.., done).collect();
        for (id, _) in done {
            self.mover.drained(id);
        }
        self.pump_mover()
    }

    // ---- released processes ---------------------------------------------------------------------

    /// A process is released, this one or another.
    fn release(&mut self, process: Process) -> Result<(), Fatal> {
        let to_it = |peer: usize| process == self.me || peer == process.index();
        for (peer, outbound) in self.outbound.iter_mut().enumerate() {
            if to_it(peer) && !outbound.data.is_empty() {
                return Err(Fatal::new(format!(
                    "{process} is released, and packets of ranks wait for its link"
                )));
            }
            if to_it(peer) {
                outbound.forget_pieces();
            }
        }
        let processes = u32::try_from(self.outbound.len()).unwrap_or(u32::MAX);
        self.participant
            .handle_release(process, processes)
            .map_err(Fatal::new)
    }

    /// Nothing comes from a released process any more, and nothing goes to it.
    pub(super) fn part(&mut self, peer: Process) {
        let outbound = &mut self.outbound[peer.index()];
        outbound.forget_pieces();
        outbound.control.clear();
        let report = MoverOutput::Report(MoveReport::Parted { process: peer });
        self.transit.errands.push_back(Errand::Obey(report));
    }

    // ---- ranks ----------------------------------------------------------------------------------

    /// Takes a rank that stands still aside with its packets, and gives its message tables as they go to the target.
    fn freeze(&mut self, index: usize, ran_s: f64) -> Result<Vec<u8>, Fatal> {
        let mut hosted = self.take_out(index);
        let rank = hosted.rank;
        let own = |queued: &Queued| !queued.forwarded && queued.packet.from() == rank;
        let outbound = self.outbound.iter_mut();
        let taken = outbound.flat_map(|outbound| outbound.take_out(own));
        // Announcements are made anew from the unacknowledged messages.
        let taken = taken.map(|queued| queued.packet);
        let taken = taken.filter(|packet| !matches!(packet, Recorded::Announce(_)));
        hosted.tables.unsent = taken.collect();
        hosted.tables.wtime_s = hosted.wtime_s + ran_s;
        let section = encode(&(&hosted.tables, self.under_way_of(&hosted)));
        self.transit.aside.insert(rank, hosted);
        section
    }

    /// The message tables of a rank have come: it is aside until it is known who runs it.
    fn arrive(&mut self, rank: Rank, tables: Tables) {
        let hosted = Hosted {
            rank,
            wtime_s: tables.wtime_s,
            tables,
            scheduled: false,
        };
        self.transit.aside.insert(rank, hosted);
    }

    /// A frozen rank is another process's: what was held for it goes there, and what was announced to it here is received here.
    fn leave(&mut self, rank: Rank) -> Result<(), Fatal> {
        let mut hosted = self.transit.take_aside(rank)?;
        if self.numbered.on {
            self.numbered.fetch_all(&mut hosted, |_, _| true);
        } else {
            self.numbered.forget_places_for(rank);
        }
        drop(hosted);
        for queued in self.transit.take_held(rank) {
            self.forward(queued)?;
        }
        Ok(())
    }

    /// Takes a rank out of those that run here. Those after it in `hosted` move up.
    fn take_out(&mut self, index: usize) -> Hosted {
        let mut hosted = self.hosted.remove(index);
        self.transit.leave_safepoint(hosted.rank);
        hosted.scheduled = false;
        self.set_index(hosted.rank, None);
        for at in index..self.hosted.len() {
            self.set_index(self.hosted[at].rank, Some(at));
        }
        let moved_up = |at: usize| if at > index { at - 1 } else { at };
        self.ready.retain(|at| *at != index);
        self.ready.iter_mut().for_each(|at| *at = moved_up(*at));
        self.reads.retain(|read| read.0 != index);
        self.reads
            .iter_mut()
            .for_each(|read| read.0 = moved_up(read.0));
        hosted
    }

    /// Puts a rank that was aside among those that run here, in the order of their numbers: those after it move down. Gives it
    /// what was held for it, sends what it has queued, and announces again what it has announced: who was told of it may have
    /// asked in vain. Then it may run.
    fn put_back(&mut self, hosted: Hosted) -> Result<(), Fatal> {
        let rank = hosted.rank;
        let index = self.hosted.partition_point(|other| other.rank < rank);
        let moved_down = |at: usize| if at >= index { at + 1 } else { at };
        self.ready.iter_mut().for_each(|at| *at = moved_down(*at));
        let reads = self.reads.iter_mut();
        reads.for_each(|read| read.0 = moved_down(read.0));
        self.hosted.insert(index, hosted);
        for at in index..self.hosted.len() {
            self.set_index(self.hosted[at].rank, Some(at));
        }
        let tables = &mut self.hosted[index].tables;
        let unsent = std::mem::take(&mut tables.unsent);
        for (key, transfer) in &mut tables.transfers {
            transfer.received_bytes = 0;
            self.reads.push((index, *key));
        }
        let announced = tables.unacked.values().map(|unacked| unacked.label);
        let announced: Vec<_> = announced.map(Recorded::Announce).collect();
        for packet in unsent.into_iter().chain(announced) {
            self.dispatch(Queued::own(packet))?;
        }
        for queued in self.transit.take_held(rank) {
            self.deliver(queued)?;
        }
        self.wake(index);
        Ok(())
    }
}

impl super::core::Outbound {
    /// Pieces of messages that nobody at the other end waits for any more: their ranks have moved, and ask elsewhere.
    fn forget_pieces(&mut self) {
        self.pulls.clear();
        self.streams.clear();
    }

    /// Takes queued packets out, in their order.
    fn take_out(&mut self, mut wanted: impl FnMut(&Queued) -> bool) -> Vec<Queued> {
        let mut taken = Vec::new();
        let mut kept = VecDeque::with_capacity(self.data.len());
        for queued in std::mem::take(&mut self.data) {
            if wanted(&queued) {
                self.data_bytes -= packet_bytes(&queued.packet);
                taken.push(queued);
            } else {
                kept.push_back(queued);
            }
        }
        self.data = kept;
        taken
    }
}

impl Engine {
    /// The coordinator says something about a move. What the machine wants then is to be asked by the caller.
    pub(crate) fn handle_move(&mut self, directive: MoveDirective) -> Result<(), Fatal> {
        if let MoveDirective::Release { process } = directive {
            return self.core.release(process);
        }
        let participant = &self.core.participant;
        self.core
            .mover
            .handle_directive(directive, |peer| participant.is_open(peer))
            .map_err(Fatal::new)
    }

    /// Source: takes a frozen rank and its packets aside, and gives its message tables as they go to the target.
    pub(crate) fn freeze(&mut self, index: usize) -> Result<Vec<u8>, Fatal> {
        let ran_s = self.started.elapsed().as_secs_f64();
        self.core.freeze(index, ran_s)
    }

    /// Source: a frozen rank stays.
    pub(crate) fn thaw(&mut self, rank: Rank) -> Result<(), Fatal> {
        let hosted = self.core.transit.take_aside(rank)?;
        self.core.put_back(hosted)?;
        self.settle()
    }

    /// Source: a frozen rank is another process's.
    pub(crate) fn leave(&mut self, rank: Rank) -> Result<(), Fatal> {
        self.core.leave(rank)?;
        self.settle()
    }

    /// Target: the message tables of a rank have come.
    pub(crate) fn arrive(&mut self, rank: Rank, tables: Tables) {
        self.core.arrive(rank, tables);
    }

    /// Target: a rank that has come does not stay.
    pub(crate) fn send_away(&mut self, rank: Rank) {
        self.core.transit.aside.remove(&rank);
    }

    /// Target: a rank that has come is this process's. It has stood still for so many seconds.
    pub(crate) fn welcome(&mut self, rank: Rank, stood_s: f64) -> Result<(), Fatal> {
        let mut hosted = self.core.transit.take_aside(rank)?;
        // By the clock of this process, which has not run for as long.
        hosted.wtime_s += stood_s - self.started.elapsed().as_secs_f64();
        self.core.put_back(hosted)?;
        self.settle()
    }
}

#[cfg(test)]
#[path = "moving_tests.rs"]
mod tests;
