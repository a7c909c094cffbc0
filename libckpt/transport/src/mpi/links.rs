//! All links of a process together.
//!
//! A process waits for packets of those peers that have said hello: an empty message on a communicator of its own,
//! which a peer sends once, before its first packet. So what a link costs is paid only for links that are used.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::c_int;
use std::thread;
use std::time::{Duration, Instant};

use protocol::ids::Process;

use super::bulk::{Bulk, to_rank};
use super::call::{self, Failed, MPI_Request, MPI_Status, Outcome};
use super::incoming::Incoming;
use super::outgoing::{Buffers, Outgoing};
use super::world::World;
use crate::patience::Patience;
use crate::{
    BulkDone, BulkError, BulkFrom, BulkInto, BulkSource, Transport, TransportError, Waker, Wakeup,
};

/// The longest packet in bytes.
pub const PACKET_BYTES_MAX: usize = 16 << 10;

/// Looks at the links between two looks for a peer that says hello.
const LOOKS_PER_HELLO: u32 = 16;

/// Looks before the clock is read for the first time, which costs as much as a look: the answer of a peer that
/// is waiting for us comes within them.
const LOOKS_AT_ONCE: u32 = 64;

/// How long a process that waits offers its core before it sleeps.
const OFFER: Duration = Duration::from_micros(200);

/// The same while large buffers are on their way: most are there by then.
const AWAKE_FOR_BULK: Duration = Duration::from_millis(20);

/// The first sleep, and the longest. Each is half as long again as the one before. MPI has no wait that anything
/// but a message ends, so this is the price of a waker: a packet waits half a sleep on average, but only where
/// nothing has come for long.
const SLEEP_FIRST: Duration = Duration::from_micros(20);
const SLEEP_LONGEST: Duration = Duration::from_micros(500);

/// The links of one process to all others of an MPI world.
#[derive(Debug)]
pub struct MpiTransport {
    world: World,
    outgoing: Vec<Outgoing>,
    /// Of the peers that have said hello, in the order in which they did.
    incoming: Vec<Incoming>,
    /// For each of them, the request of the next packet; none while that waits in `ready`.
    heads: Vec<MPI_Request>,
    indices: Vec<c_int>,
    statuses: Vec<MPI_Status>,
    /// Packets that have come: index into `incoming`, length.
    ready: VecDeque<(usize, usize)>,
    /// Receives the next hello.
    hello: MPI_Request,
    /// Looks until the next look for a hello.
    hello_in: u32,
    /// Hellos of ours.
    hellos: Vec<MPI_Request>,
    buffers: Buffers,
    bulk: Bulk,
    /// Peers to whom a packet found no room.
    blocked: Vec<usize>,
    waker: Waker,
    patience: Patience,
    /// What went wrong while waiting, to be told by the next poll.
    failure: Option<Failed>,
    /// Of the barrier that tells when the ranks of all processes have ended, once it has begun.
    all_done: Option<MPI_Request>,
    /// Processes that have left the job.
    gone: BTreeSet<usize>,
    closed: bool,
}

impl MpiTransport {
    pub(super) fn new(world: World) -> Outcome<Self> {
        let peers = world.processes() as usize;
        let patience = Patience::with_cores(world.has_cores());
        let mut transport = Self {
            outgoing: (0..peers).map(|_| Outgoing::default()).collect(),
            incoming: Vec::new(),
            heads: Vec::new(),
            indices: Vec::new(),
            statuses: Vec::new(),
            ready: VecDeque::new(),
            hello: call::no_request(),
            hello_in: 0,
            hellos: Vec::new(),
            buffers: Buffers::default(),
            bulk: Bulk::default(),
            blocked: Vec::new(),
            waker: Waker::local(),
            patience,
            failure: None,
            all_done: None,
            gone: BTreeSet::new(),
            closed: false,
            world,
        };
        transport.await_hello()?;
        Ok(transport)
    }

    /// Posts the receive of the next hello, if there is a peer that has not said it.
    fn await_hello(&mut self) -> Outcome {
        if self.incoming.len() + 1 < self.outgoing.len() {
            let (source, tag) = (call::any_source(), call::any_tag());
            self.hello = call::receive_nothing(source, tag, self.world.hello)?;
        }
        Ok(())
    }

    /// Begins to wait for packets of peers that say hello.
    #[cold]
    fn look_for_hellos(&mut self) -> Outcome {
        self.hello_in = LOOKS_PER_HELLO;
        while !call::is_no_request(self.hello) {
            let Some(status) = call::test(&mut self.hello)? else {
                return Ok(());
            };
            let mut incoming =
                Incoming::open(status.MPI_SOURCE, PACKET_BYTES_MAX, self.world.packets)?;
            self.heads.push(incoming.take_head());
            self.incoming.push(incoming);
            self.indices.push(0);
            self.statuses.push(call::empty_status());
            self.await_hello()?;
        }
        Ok(())
    }

    /// Looks for packets, and tells whether there is one.
    #[inline]
    fn look_for_packets(&mut self) -> Outcome<bool> {
        if self.hello_in == 0 {
            self.look_for_hellos()?;
        } else if !call::is_no_request(self.hello) {
            self.hello_in -= 1;
        }
        if !self.ready.is_empty() {
            return Ok(true);
        }
        match self.heads.as_mut_slice() {
            [] => {}
            [head] => {
                if let Some(status) = call::test(head)? {
                    self.ready.push_back((0, call::count(&status)?));
                } else if self.incoming[0].has_idle() {
                    self.incoming[0].post_idle(self.world.packets)?;
                }
            }
            heads => {
                let complete = call::test_some(heads, &mut self.indices, &mut self.statuses)?;
                for at in 0..complete {
                    let index = usize::try_from(self.indices[at]).unwrap_or(usize::MAX);
                    let bytes = call::count(&self.statuses[at])?;
                    self.ready.push_back((index, bytes));
                }
                if complete == 0 {
                    for incoming in &mut self.incoming {
                        incoming.post_idle(self.world.packets)?;
                    }
                }
            }
        }
        Ok(!self.ready.is_empty())
    }

    /// What there is to do.
    fn look(&mut self) -> Outcome<Option<Wakeup>> {
        if self.waker.take() {
            return Ok(Some(Wakeup::Waker));
        }
        if self.look_for_packets()? {
            return Ok(Some(Wakeup::Packet));
        }
        if self.bulk.look()? {
            return Ok(Some(Wakeup::Bulk));
        }
        for index in 0..self.blocked.len() {
            let peer = self.blocked[index];
            if self.outgoing[peer].has_room(&mut self.buffers)? {
                self.blocked.swap_remove(index);
                return Ok(Some(Wakeup::Room));
            }
        }
        Ok(None)
    }

    /// Waits awake for a while, then sleeps and looks in turn.
    fn wait(&mut self, longest: Duration) -> Outcome<Wakeup> {
        let patience = self.patience;
        if patience == Patience::Some {
            for _ in 0..LOOKS_AT_ONCE {
                if let Some(found) = self.look()? {
                    return Ok(found);
                }
            }
        }
        let start = Instant::now();
        if let Some(found) = patience.look(|| self.look().transpose()) {
            return found;
        }
        while start.elapsed() < OFFER.min(longest) {
            thread::yield_now();
            if let Some(found) = self.look()? {
                return Ok(found);
            }
        }
        // A large buffer on its way needs us: MPI moves it in pieces, from within our calls.
        while self.bulk.is_busy() && start.elapsed() < AWAKE_FOR_BULK.min(longest) {
            thread::yield_now();
            if let Some(found) = self.look()? {
                return Ok(found);
            }
        }
        let mut sleep = SLEEP_FIRST;
        loop {
            let rest = longest.saturating_sub(start.elapsed());
            if rest.is_zero() {
                return Ok(Wakeup::Timeout);
            }
            let waker = self.waker.clone();
            let look = || waker.take().then_some(Wakeup::Waker);
            if let Some(found) = waker.bell().sleep(sleep.min(rest), look) {
                return Ok(found);
            }
            if let Some(found) = self.look()? {
                return Ok(found);
            }
            sleep = (sleep + sleep / 2).min(SLEEP_LONGEST);
        }
    }

    #[cold]
    fn failed(&self, peer: Option<Process>, failed: Failed) -> TransportError {
        TransportError::Mpi {
            me: self.world.me(),
            peer,
            call: failed.call,
            reason: failed.reason,
        }
    }

    fn check_peer(&self, peer: Process) -> Result<(), TransportError> {
        if peer.0 >= self.world.processes() || peer == self.world.me() {
            return Err(TransportError::NoLink {
                me: self.world.me(),
                peer,
                processes: self.world.processes(),
            });
        }
        Ok(())
    }

    /// Tells a peer that packets of ours will come.
    #[cold]
    fn say_hello(&mut self, peer: Process) -> Outcome {
        let request = call::send_nothing(to_rank(peer), 0, self.world.hello)?;
        self.hellos.push(request);
        self.outgoing[peer.index()].said_hello = true;
        Ok(())
    }

    fn try_to_send(&mut self, peer: Process, parts: &[&[u8]]) -> Outcome<bool> {
        if !self.outgoing[peer.index()].said_hello {
            self.say_hello(peer)?;
        }
        let to = to_rank(peer);
        self.outgoing[peer.index()].send(parts, to, self.world.packets, &mut self.buffers)
    }

    fn take_packet(&mut self, take: &mut dyn FnMut(Process, &[u8])) -> Outcome<bool> {
        if self.bulk.is_busy() {
            self.bulk.look()?;
        }
        if !self.look_for_packets()? {
            return Ok(false);
        }
        let Some((index, bytes)) = self.ready.pop_front() else {
            return Ok(false);
        };
        let incoming = &mut self.incoming[index];
        // Lossless: ranks of MPI are not negative.
        take(Process(incoming.from as u32), incoming.packet(bytes));
        incoming.advance(self.world.packets)?;
        self.heads[index] = incoming.take_head();
        Ok(true)
    }

    /// The tag of a numbered buffer. Far fewer are under way at a time than there are tags.
    fn tag_of(&self, number: u64) -> c_int {
        // Lossless: a remainder by a positive int.
        (number % (self.world.tag_max as u64 + 1)) as c_int
    }

    /// Looks until `done` says so or it is too late, dropping packets.
    fn drain(
        &mut self,
        end: Instant,
        mut done: impl FnMut(&mut Self) -> Outcome<bool>,
    ) -> Outcome<bool> {
        loop {
            while self.take_packet(&mut |_, _| {})? {}
            while self.bulk.take_done().is_some() {}
            if done(self)? {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            thread::yield_now();
        }
    }

    fn look_whether_all_done(&mut self) -> Outcome<bool> {
        let request = match &mut self.all_done {
            Some(request) => request,
            None => self.all_done.insert(call::barrier(self.world.bulk)?),
        };
        Ok(call::is_no_request(*request) || call::test(request)?.is_some())
    }

    /// Waits until MPI is done with all that was sent.
    fn finish_sending(&mut self, end: Instant) -> Outcome<bool> {
        self.drain(end, |transport| {
            let mut done = !transport.bulk.is_busy();
            for (peer, outgoing) in transport.outgoing.iter_mut().enumerate() {
                // Whoever is gone had taken all by then.
                done &=
                    transport.gone.contains(&peer) || outgoing.is_done(&mut transport.buffers)?;
            }
            for hello in &mut transport.hellos {
                done &= call::is_no_request(*hello) || call::test(hello)?.is_some();
            }
            Ok(done)
        })
    }

    /// Waits until all others that are left are as far. For processes that end; `turn` is another number each time.
    fn meet(&mut self, turn: c_int, end: Instant) -> Outcome<bool> {
        if self.gone.is_empty() {
            let mut barrier = call::barrier(self.world.hello)?;
            return self.drain(end, |_| Ok(call::test(&mut barrier)?.is_some()));
        }
        // MPI knows no barrier of some of a communicator's processes that all the others need not have agreed on before. In
        // round after round each sends to, and hears from, those at 1, 2, 4 and so on places from it: then it has heard from all.
        let left: Vec<usize> = (0..self.outgoing.len())
            .filter(|peer| !self.gone.contains(peer))
            .collect();
        let me = self.world.me().index();
        let Some(place) = left.iter().position(|&peer| peer == me) else {
            return Ok(false);
        };
        let (mut distance, mut round) = (1, 0);
        while distance < left.len() {
            let number = |at: usize| c_int::try_from(left[at % left.len()]).unwrap_or(c_int::MAX);
            let (to, from) = (
                number(place + distance),
                number(place + left.len() - distance),
            );
            let tag = turn * c_int::BITS.cast_signed() + round;
            let mut sent = call::send_nothing(to, tag, self.world.meeting)?;
            let mut heard = call::receive_nothing(from, tag, self.world.meeting)?;
            let met = self.drain(end, |_| {
                let sent = call::is_no_request(sent) || call::test(&mut sent)?.is_some();
                let heard = call::is_no_request(heard) || call::test(&mut heard)?.is_some();
                Ok(sent && heard)
            })?;
            if !met {
                return Ok(false);
            }
            (distance, round) = (distance * 2, round + 1);
        }
        Ok(true)
    }

    /// Ends the receives that wait for messages.
    fn end_receives(&mut self) -> Outcome {
        call::cancel(&mut self.hello)?;
        for (incoming, head) in self.incoming.iter_mut().zip(&mut self.heads) {
            call::cancel(head)?;
            incoming.cancel()?;
        }
        Ok(())
    }

    /// Ends the links: all that was sent is sent, everybody else is as far, and nothing waits for messages any more.
    fn end_links(&mut self, end: Instant) -> Outcome<bool> {
        if !self.finish_sending(end)? {
            return Ok(false);
        }
        // Twice: when the first is over, nobody sends any more, and what was sent is on its way.
        for turn in 0..2 {
            if !self.meet(turn, end)? {
                return Ok(false);
            }
        }
        self.end_receives()?;
        Ok(true)
    }

    /// Ends the links to others that go on.
    fn leave_links(&mut self, end: Instant) -> Outcome<bool> {
        if !self.finish_sending(end)? {
            return Ok(false);
        }
        self.end_receives()?;
        Ok(self.world.finalises_alone())
    }

    /// Ends the receives that wait for messages of a process that has left.
    fn end_receives_from(&mut self, peer: Process) -> Outcome {
        let from = to_rank(peer);
        let Some(index) = self.incoming.iter().position(|it| it.from == from) else {
            return Ok(());
        };
        let last = self.incoming.len() - 1;
        let mut incoming = self.incoming.swap_remove(index);
        let mut head = self.heads.swap_remove(index);
        self.ready.retain(|(ready, _)| *ready != index);
        for (ready, _) in &mut self.ready {
            if *ready == last {
                *ready = index;
            }
        }
        call::cancel(&mut head)?;
        incoming.cancel()
    }
}

impl Transport for MpiTransport {
    fn me(&self) -> Process {
        self.world.me()
    }

    fn processes(&self) -> u32 {
        self.world.processes()
    }

    fn packet_bytes_max(&self) -> usize {
        PACKET_BYTES_MAX
    }

    fn try_send(&mut self, peer: Process, parts: &[&[u8]]) -> Result<bool, TransportError> {
        self.check_peer(peer)?;
        let packet_bytes = parts.iter().map(|part| part.len()).sum();
        if packet_bytes > PACKET_BYTES_MAX {
            return Err(TransportError::PacketTooLarge {
                peer,
                packet_bytes,
                packet_bytes_max: PACKET_BYTES_MAX,
            });
        }
        let sent = self
            .try_to_send(peer, parts)
            .map_err(|failed| self.failed(Some(peer), failed))?;
        if !sent && !self.blocked.contains(&peer.index()) {
            self.blocked.push(peer.index());
        }
        Ok(sent)
    }

    fn poll(&mut self, take: &mut dyn FnMut(Process, &[u8])) -> Result<bool, TransportError> {
        self.failure
            .take()
            .map_or_else(|| self.take_packet(take), Err)
            .map_err(|failed| self.failed(None, failed))
    }

    fn bulk_read(&mut self, from: BulkSource, _into: &mut [u8]) -> Result<(), BulkError> {
        Err(BulkError::Forbidden {
            process: from.process,
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    fn sends_bulk(&self) -> bool {
        true
    }

    fn bulk_send(
        &mut self,
        peer: Process,
        number: u64,
        from: BulkFrom,
    ) -> Result<(), TransportError> {
        self.check_peer(peer)?;
        let tag = self.tag_of(number);
        self.bulk
            .send(peer, number, from, tag, self.world.bulk)
            .map_err(|failed| self.failed(Some(peer), failed))
    }

    fn bulk_receive(
        &mut self,
        peer: Process,
        number: u64,
        into: BulkInto,
    ) -> Result<(), TransportError> {
        self.check_peer(peer)?;
        let tag = self.tag_of(number);
        self.bulk
            .receive(peer, number, into, tag, self.world.bulk)
            .map_err(|failed| self.failed(Some(peer), failed))
    }

    fn bulk_done(&mut self) -> Option<BulkDone> {
        self.bulk.take_done()
    }

    fn opens_sockets(&self) -> bool {
        true
    }

    fn has_cores(&self) -> bool {
        self.world.has_cores()
    }

    fn idle(&mut self, longest: Duration) -> Wakeup {
        self.wait(longest).unwrap_or_else(|failed| {
            self.failure = Some(failed);
            Wakeup::Packet
        })
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn all_done(&mut self) -> bool {
        self.look_whether_all_done().unwrap_or_else(|failed| {
            self.failure = Some(failed);
            false
        })
    }

    fn part(&mut self, peer: Process) {
        self.gone.insert(peer.index());
        self.blocked.retain(|blocked| *blocked != peer.index());
        if let Err(failed) = self.end_receives_from(peer) {
            self.failure = Some(failed);
        }
    }

    fn leave(&mut self, longest: Duration) -> bool {
        if std::mem::replace(&mut self.closed, true) {
            return true;
        }
        let end = Instant::now() + longest;
        matches!(self.leave_links(end), Ok(true)) && self.world.finalise_alone().is_ok()
    }

    fn close(&mut self, longest: Duration) -> bool {
        if std::mem::replace(&mut self.closed, true) {
            return true;
        }
        let end = Instant::now() + longest;
        if !matches!(self.end_links(end), Ok(true)) {
            return false;
        }
        match self.gone.is_empty() {
            true => self.world.finalise().is_ok(),
            false => self.world.finalises_alone() && self.world.finalise_alone().is_ok(),
        }
    }
}
