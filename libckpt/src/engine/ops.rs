//! What a rank may ask of the engine. All of it is called in rank context.
//!
//! A call that has to wait is a loop of visits to the engine and suspensions of the rank; no borrow and
//! no guard lives across a suspension.

use libckpt_rank::buffer::{RankBytes, RankBytesMut};
use libckpt_rank::suspend;
use protocol::ids::{Process, Rank};
use protocol::migration::Route;
use zerocopy::IntoBytes;

use super::packet::{Header, Kind, Label, ShortHeader};
use super::progress::PACKETS_PER_TURN;
use super::request::Outcome;
use super::tables::{Posted, Queued, Recorded};
use super::{Engine, Envelope, Fatal, RequestId, visit};
use crate::error::{Error, Result};

/// A blocking send waits while more than this is queued for the receiver's process, in bytes.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// Names a message that a matched probe took out of matching. Plain data: it survives in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatchedId(u64);

/// How a visit that waits for something ends.
enum Turn<T> {
    /// It is there.
    Done(T),
    /// The rank is to be suspended, then look again.
    Suspend,
}

/// Visits the engine until `look` finds what it waits for. The rank is woken when a message of its own
/// arrives or one of its requests completes, so `look` may wait for nothing else.
#[inline]
fn wait_for<T>(mut look: impl FnMut(&mut Engine) -> Option<T>) -> Result<T> {
    loop {
        match visit(|engine| engine.wait_inline(&mut look)).ok_or(Error::OutsideRank)? {
            Turn::Done(found) => return Ok(found),
            Turn::Suspend => suspend(),
        }
    }
}

/// Gives way to the scheduler where it has something to do.
#[inline]
fn give_way(wanted: bool) {
    if wanted {
        yield_now();
    }
}

/// Lets the process's other ranks run, and the library do its work. A rank that computes for long may
/// call it to be captured in time.
pub fn yield_now() {
    let running = visit(|engine| {
        let index = engine.running;
        engine.progress();
        // A running rank counts as scheduled; the queue gets it back for its next turn.
        engine.core.ready.push_back(index);
    });
    if running.is_some() {
        suspend();
    }
}

/// A point at which the calling rank may well be moved to another process: between two steps, say, when little of its memory is in
/// use. A move in the mode `safepoint` waits for the next call, up to the move's time limit; the call returns in the process that the
/// rank was moved to. Without such a move it returns at once.
///
/// It is no barrier: each rank calls it when it likes, and the others need not.
pub fn safepoint() {
    let stood = visit(|engine| {
        let index = engine.running;
        let rank = engine.core.hosted[index].rank;
        let anyway = engine.scheduler_wanted();
        let stands = engine.core.transit.come_to_safepoint(rank, anyway);
        if stands {
            engine.core.ready.push_back(index);
        }
        stands.then_some(rank)
    });
    if let Some(Some(rank)) = stood {
        suspend();
        visit(|engine| engine.core.transit.leave_safepoint(rank));
    }
}

/// Seconds since the job's start, going on across restarts: the time from a checkpoint to the restart
/// is left out. As `MPI_Wtime` (MPI 4.1, 9.6).
#[must_use]
pub fn wtime() -> f64 {
    visit(|engine| {
        let before_s = engine
            .core
            .hosted
            .get(engine.running)
            .map_or(0.0, |hosted| hosted.wtime_s);
        before_s + engine.started.elapsed().as_secs_f64()
    })
    .unwrap_or(0.0)
}

/// The calling rank, in the world.
pub(crate) fn my_rank() -> Result<Rank> {
    visit(|engine| engine.core.hosted[engine.running].rank).ok_or(Error::OutsideRank)
}

/// Ranks in the world.
pub(crate) fn rank_count() -> Result<u32> {
    let count = visit(|engine| engine.core.ranks()).ok_or(Error::OutsideRank)?;
    Ok(u32::try_from(count).expect("ranks are numbered by u32"))
}

/// Sends a message and returns when its buffer may be used again.
pub(crate) fn send(to: Rank, context: u64, tag: i32, bytes: &[u8]) -> Result<()> {
    let sent = visit(|engine| {
        if bytes.len() > engine.core.eager_bytes_max {
            return None;
        }
        engine.send_eager(to, context, tag, bytes);
        Some((engine.scheduler_wanted(), engine.is_throttled(to)))
    })
    .ok_or(Error::OutsideRank)?;
    match sent {
        None => {
            let request = start_send(to, context, tag, bytes)?;
            wait(request).map(drop)
        }
        Some((wanted, throttled)) => {
            give_way(wanted);
            if throttled {
                drain(to);
            }
            Ok(())
        }
    }
}

/// Waits until the queue to a rank's process is short again.
#[cold]
fn drain(to: Rank) {
    while visit(|engine| engine.is_throttled(to)) == Some(true) {
        std::thread::yield_now();
        yield_now();
    }
}

/// Starts a send. The caller keeps the buffer unchanged until the request is complete.
pub(crate) fn start_send(to: Rank, context: u64, tag: i32, bytes: &[u8]) -> Result<RequestId> {
    let (request, wanted) = visit(|engine| {
        let request = engine.start_send(to, context, tag, bytes);
        (request, engine.scheduler_wanted())
    })
    .ok_or(Error::OutsideRank)?;
    give_way(wanted);
    request
}

/// Starts a receive. The caller leaves the buffer alone until the request is complete.
pub(crate) fn start_receive(
    from: Option<Rank>,
    context: u64,
    tag: Option<i32>,
    into: &mut [u8],
) -> Result<RequestId> {
    visit(|engine| engine.start_receive(from, context, tag, into)).ok_or(Error::OutsideRank)?
}

/// Receives a message.
///
/// # Errors
/// [`Error::Truncated`] where it is longer than the buffer.
pub(crate) fn receive(
    from: Option<Rank>,
    context: u64,
    tag: Option<i32>,
    into: &mut [u8],
) -> Result<Envelope> {
    let request = start_receive(from, context, tag, into)?;
    wait(request)
}

/// Waits for a request and frees it.
pub(crate) fn wait(request: RequestId) -> Result<Envelope> {
    wait_for(|engine| engine.take(request))?.into_result()
}

/// Frees a request if it is complete.
pub(crate) fn test(request: RequestId) -> Result<Option<Envelope>> {
    match look(|engine| engine.take(request))? {
        Some(outcome) => outcome.into_result().map(Some),
        None => Ok(None),
    }
}

/// Waits until one of the requests is complete, and tells which of the list. It is left to be taken.
pub(crate) fn wait_until_one(requests: &[RequestId]) -> Result<usize> {
    wait_for(|engine| {
        let table = &engine.core.hosted[engine.running].tables.requests;
        requests
            .iter()
            .position(|&request| !table.is_pending(request))
    })
}

/// Looks for a request that is complete, and tells which of the list. It is left to be taken.
pub(crate) fn find_complete(requests: &[RequestId]) -> Result<Option<usize>> {
    look(|engine| {
        let table = &engine.core.hosted[engine.running].tables.requests;
        requests
            .iter()
            .position(|&request| !table.is_pending(request))
    })
}

/// Ends a request whose buffer is about to go: a receive that no message has met is withdrawn, anything
/// else is waited for. Tells the message if there was one.
pub(crate) fn cancel(request: RequestId) -> Result<Option<Envelope>> {
    let withdrawn = visit(|engine| {
        let tables = &mut engine.core.hosted[engine.running].tables;
        let at = tables
            .posted
            .iter()
            .position(|posted| posted.request == request)?;
        tables.posted.remove(at);
        tables.requests.withdraw(request);
        Some(())
    })
    .ok_or(Error::OutsideRank)?;
    match withdrawn {
        Some(()) => Ok(None),
        None => wait(request).map(Some),
    }
}

/// Waits for a message without receiving it.
pub(crate) fn probe(from: Option<Rank>, context: u64, tag: Option<i32>) -> Result<Envelope> {
    wait_for(|engine| engine.peek(from, context, tag))
}

/// Looks for a message without receiving it.
pub(crate) fn immediate_probe(
    from: Option<Rank>,
    context: u64,
    tag: Option<i32>,
) -> Result<Option<Envelope>> {
    look(|engine| engine.peek(from, context, tag))
}

/// Waits for a message and takes it out of matching, for [`receive_matched`] (MPI 4.1, 3.8.2).
pub(crate) fn matched_probe(
    from: Option<Rank>,
    context: u64,
    tag: Option<i32>,
) -> Result<(MatchedId, Envelope)> {
    wait_for(|engine| engine.take_probed(from, context, tag))
}

/// Looks for a message and takes it out of matching if there is one.
pub(crate) fn immediate_matched_probe(
    from: Option<Rank>,
    context: u64,
    tag: Option<i32>,
) -> Result<Option<(MatchedId, Envelope)>> {
    look(|engine| engine.take_probed(from, context, tag))
}

/// Receives a message that a matched probe took.
pub(crate) fn receive_matched(matched: MatchedId, into: &mut [u8]) -> Result<Envelope> {
    let request =
        visit(|engine| engine.start_receive_matched(matched, into)).ok_or(Error::OutsideRank)??;
    wait(request)
}

/// One look, after taking what is there. A rank that looks in a loop must not keep others from running.
fn look<T>(mut look: impl FnMut(&mut Engine) -> Option<T>) -> Result<Option<T>> {
    let (found, yielding) = visit(|engine| {
        if let Some(found) = look(engine) {
            return (Some(found), engine.scheduler_wanted());
        }
        engine.progress();
        let found = look(engine);
        let yielding =
            engine.scheduler_wanted() || (found.is_none() && engine.core.hosted.len() > 1);
        if found.is_none() && !yielding {
            engine.relax();
        }
        (found, yielding)
    })
    .ok_or(Error::OutsideRank)?;
    give_way(yielding);
    Ok(found)
}

impl Engine {
    #[inline]
    fn wait_inline<T>(&mut self, look: &mut impl FnMut(&mut Engine) -> Option<T>) -> Turn<T> {
        loop {
            if let Some(found) = look(self) {
                return Turn::Done(found);
            }
            // For a rank that has the process for itself one packet is mostly the one that it waits for.
            let packets = match self.core.hosted.len() {
                1 => 1,
                _ => PACKETS_PER_TURN,
            };
            let moved = self.progress_by(packets);
            if let Some(found) = look(self) {
                return Turn::Done(found);
            }
            if self.core.hosted.len() > 1 || self.scheduler_wanted() {
                // From here on a message or completion of this rank puts it back into the queue.
                self.core.hosted[self.running].scheduled = false;
                return Turn::Suspend;
            }
            if !moved {
                self.idle();
            }
        }
    }

    /// A rank that looks in a loop on a crowded machine must let the process run that it waits for.
    fn relax(&self) {
        if self.crowded {
            std::thread::yield_now();
        }
    }

    #[inline]
    fn take(&mut self, request: RequestId) -> Option<Outcome> {
        self.core.hosted[self.running].tables.requests.take(request)
    }

    fn peek(&mut self, from: Option<Rank>, context: u64, tag: Option<i32>) -> Option<Envelope> {
        let tables = &self.core.hosted[self.running].tables;
        let label = &tables.unexpected[tables.find_unexpected(from, context, tag)?].label;
        #[allow(clippy::cast_possible_truncation)] // 64-bit machines only
        Some(Envelope {
            source: label.source,
            tag: label.tag,
            bytes: label.bytes as usize,
        })
    }

    fn take_probed(
        &mut self,
        from: Option<Rank>,
        context: u64,
        tag: Option<i32>,
    ) -> Option<(MatchedId, Envelope)> {
        let envelope = self.peek(from, context, tag)?;
        let tables = &mut self.core.hosted[self.running].tables;
        let at = tables.find_unexpected(from, context, tag)?;
        let arrived = tables.unexpected.remove(at)?;
        tables.probes += 1;
        tables.probed.insert(tables.probes, arrived);
        Some((MatchedId(tables.probes), envelope))
    }

    #[inline]
    fn send_eager(&mut self, to: Rank, context: u64, tag: i32, bytes: &[u8]) {
        let label = self.core.label(self.running, to, context, tag, bytes.len());
        let result = match self.core.mover.route(to) {
            Ok(Route::Here) => self.core.deliver_whole(&label, bytes),
            Ok(Route::Link(peer)) if self.core.may_send_now(peer) => {
                self.put_eager(peer, &label, bytes)
            }
            Ok(_) => self.dispatch_eager(&label, bytes),
            Err(error) => Err(Fatal::new(error)),
        };
        self.note(result);
    }

    /// Puts an eager message on its link, or into the queue if there is no room.
    #[inline]
    fn put_eager(&mut self, peer: Process, label: &Label, bytes: &[u8]) -> Result<(), Fatal> {
        let stamp = self.core.stamp();
        let short = match self.core.is_pair(label.source, peer, label.destination) {
            true => ShortHeader::new(label, stamp),
            false => None,
        };
        let sent = match short {
            Some(header) => self.transport.try_send(peer, &[header.as_bytes(), bytes]),
            None => {
                let header = Header::new(Kind::Eager, label, stamp);
                self.transport.try_send(peer, &[header.as_bytes(), bytes])
            }
        };
        match sent? {
            true => {
                self.core.participant.data_sent(peer);
                Ok(())
            }
            false => self.dispatch_eager(label, bytes),
        }
    }

    /// An eager message that can't go on its link now.
    fn dispatch_eager(&mut self, label: &Label, bytes: &[u8]) -> Result<(), Fatal> {
        let packet = Recorded::Eager(*label, bytes.to_vec());
        self.core.dispatch(Queued::own(packet))?;
        self.settle()
    }

    fn start_send(&mut self, to: Rank, context: u64, tag: i32, bytes: &[u8]) -> Result<RequestId> {
        let from = RankBytes::new(bytes)?;
        let request = self.core.hosted[self.running].tables.requests.start();
        if bytes.len() <= self.core.eager_bytes_max {
            self.send_eager(to, context, tag, bytes);
            let hosted = &mut self.core.hosted[self.running];
            let envelope = Envelope {
                source: hosted.rank,
                tag,
                bytes: bytes.len(),
            };
            hosted
                .tables
                .requests
                .complete(request, Outcome::Done(envelope));
            return Ok(request);
        }
        let label = self.core.label(self.running, to, context, tag, bytes.len());
        self.core.keep(self.running, label, from, request);
        let announced = self.core.dispatch(Queued::own(Recorded::Announce(label)));
        let result = announced.and_then(|()| self.settle());
        self.note(result);
        Ok(request)
    }

    fn start_receive(
        &mut self,
        from: Option<Rank>,
        context: u64,
        tag: Option<i32>,
        into: &mut [u8],
    ) -> Result<RequestId> {
        let into = RankBytesMut::new(into)?;
        let request = self.core.hosted[self.running].tables.requests.start();
        self.core.post(
            self.running,
            Posted {
                request,
                source: from,
                context,
                tag,
                into,
            },
        );
        if !self.core.reads.is_empty() {
            let result = self.settle();
            self.note(result);
        }
        Ok(request)
    }

    fn start_receive_matched(&mut self, matched: MatchedId, into: &mut [u8]) -> Result<RequestId> {
        let into = RankBytesMut::new(into)?;
        let tables = &mut self.core.hosted[self.running].tables;
        let request = tables.requests.start();
        let arrived = tables
            .probed
            .remove(&matched.0)
            .expect("a matched message is received once");
        let posted = Posted {
            request,
            source: Some(arrived.label.source),
            context: arrived.label.context,
            tag: Some(arrived.label.tag),
            into,
        };
        self.core.meet(self.running, arrived, posted);
        let result = self.settle();
        self.note(result);
        Ok(request)
    }

    #[inline]
    fn note(&mut self, result: Result<(), Fatal>) {
        if let Err(fatal) = result {
            self.fatal = Some(fatal);
        }
    }

    #[inline]
    fn is_throttled(&self, to: Rank) -> bool {
        match self.core.mover.route(to) {
            Ok(Route::Link(peer)) => self.core.outbound[peer.index()].data_bytes > QUEUED_BYTES_MAX,
            Ok(Route::Hold) => self.core.transit.held_bytes() > QUEUED_BYTES_MAX,
            Ok(Route::Here) | Err(_) => false,
        }
    }
}
