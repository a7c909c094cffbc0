//! Operations that go on while the rank computes (MPI 4.1, 3.7).
//!
//! An immediate operation reads or writes a buffer after the call that started it has returned. A
//! [`scope`] makes this safe: the buffers must outlive the scope, and the scope does not end before its
//! operations have.
//!
//! ```
//! use libckpt::prelude::*;
//! # fn exchange(world: &World, mine: &[f64], theirs: &mut [f64]) -> Result<(), libckpt::Error> {
//! libckpt::request::scope(|scope| {
//!     let receive = world.process_at_rank(1).immediate_receive_into(scope, theirs)?;
//!     let send = world.process_at_rank(1).immediate_send(scope, mine)?;
//!     // Here the rank may compute.
//!     send.wait()?;
//!     receive.wait()?;
//!     Ok(())
//! })
//! # }
//! ```
//!
//! A request is a number in the rank's memory, so a snapshot may be taken while operations are under way:
//! after a restart they go on.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;

use super::communicator::Communicator;
use super::point_to_point::Status;
use crate::engine::{self, RequestId};
use crate::error::Result;

/// Runs `f` with a scope for immediate operations whose buffers live at least as long as `'a`.
///
/// When `f` returns `Ok`, the scope waits for every operation that `f` started and did not complete,
/// receives included (a request that was dropped is still under way), and returns the first error of these.
/// When `f` returns an error, receives that have not met a message are withdrawn, so that the error is
/// not hidden behind a message that will never come; everything else is waited for.
///
/// # Errors
/// What `f` returns, or the error of an operation that was left to the end of the scope.
pub fn scope<'a, F, R>(f: F) -> Result<R>
where
    F: FnOnce(&LocalScope<'a>) -> Result<R>,
{
    let scope = LocalScope {
        entries: RefCell::new(Entries::default()),
        lifetime: PhantomData,
    };
    let result = f(&scope)?;
    scope.wait_for_rest()?;
    Ok(result)
}

/// Keeps the buffers of immediate operations borrowed until the operations are complete. Made by [`scope`].
pub struct LocalScope<'a> {
    entries: RefCell<Entries>,
    /// Invariant in `'a`: a longer or shorter borrow must not pass for it.
    lifetime: PhantomData<Cell<&'a ()>>,
}

/// How many operations a scope notes without allocating.
const INLINE: usize = 4;

/// The operations under way in a scope. A request knows its place here.
#[derive(Debug, Default)]
struct Entries {
    inline: [Option<RequestId>; INLINE],
    more: Vec<Option<RequestId>>,
    /// Free places of `more`.
    free: Vec<usize>,
}

impl Entries {
    fn insert(&mut self, request: RequestId) -> usize {
        if let Some(place) = self.inline.iter().position(Option::is_none) {
            self.inline[place] = Some(request);
            return place;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.more.push(None);
            self.more.len() - 1
        });
        self.more[at] = Some(request);
        INLINE + at
    }

    fn get(&self, place: usize) -> RequestId {
        let entry = self
            .inline
            .get(place)
            .unwrap_or_else(|| &self.more[place - INLINE]);
        entry.expect("a request's place is kept until it is complete")
    }

    fn remove(&mut self, place: usize) {
        match place.checked_sub(INLINE) {
            None => self.inline[place] = None,
            Some(at) => {
                self.more[at] = None;
                self.free.push(at);
            }
        }
    }

    /// Takes any request that is left.
    fn take_any(&mut self) -> Option<RequestId> {
        let inline = self.inline.iter_mut().find_map(Option::take);
        inline.or_else(|| std::iter::from_fn(|| self.more.pop()).flatten().next())
    }
}

impl LocalScope<'_> {
    fn insert(&self, request: RequestId) -> usize {
        self.entries.borrow_mut().insert(request)
    }

    fn get(&self, place: usize) -> RequestId {
        self.entries.borrow().get(place)
    }

    /// The engine has completed and freed the request.
    fn remove(&self, place: usize) {
        self.entries.borrow_mut().remove(place);
    }

    fn next_left(&self) -> Option<RequestId> {
        self.entries.borrow_mut().take_any()
    }

    fn wait_for_rest(&self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(request) = self.next_left() {
            let completed = engine::wait(request).map(drop);
            outcome = outcome.and(completed);
        }
        outcome
    }
}

impl fmt::Debug for LocalScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalScope").finish_non_exhaustive()
    }
}

impl Drop for LocalScope<'_> {
    /// Reached with operations under way only where the closure returned an error or panicked.
    fn drop(&mut self) {
        while let Some(request) = self.next_left() {
            if std::thread::panicking() {
                // The buffers are about to go, and a rank that panics may not wait: a message that never
                // comes would hide the panic. The hook has printed what happened.
                libckpt_rank::in_process(|| std::process::exit(protocol::control::exit::PANIC));
            }
            // The error of the closure is the one to be told.
            let _ = engine::cancel(request);
        }
    }
}

/// An operation under way (MPI 4.1, 3.7.1).
///
/// Dropping a request does not stop its operation: the scope waits for it.
#[must_use = "a request that is not waited for is completed only at the end of its scope"]
pub struct Request<'s, 'a> {
    scope: &'s LocalScope<'a>,
    place: usize,
    communicator: Communicator,
}

impl fmt::Debug for Request<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Request")
            .field(&self.scope.get(self.place))
            .finish()
    }
}

impl<'s, 'a> Request<'s, 'a> {
    /// Starts a send. The only place, with [`Self::receive`], that hands the engine a buffer that it uses
    /// later: the scope's lifetime is the buffer's, and the scope does not end before the operation.
    pub(crate) fn send(
        scope: &'s LocalScope<'a>,
        communicator: &Communicator,
        context: u64,
        to: usize,
        tag: i32,
        bytes: &'a [u8],
    ) -> Result<Self> {
        let request = engine::start_send(communicator.world_rank(to)?, context, tag, bytes)?;
        Ok(Self {
            place: scope.insert(request),
            scope,
            communicator: communicator.clone(),
        })
    }

    /// Starts a receive.
    pub(crate) fn receive(
        scope: &'s LocalScope<'a>,
        communicator: &Communicator,
        context: u64,
        from: Option<usize>,
        tag: Option<i32>,
        into: &'a mut [u8],
    ) -> Result<Self> {
        let from = from.map(|from| communicator.world_rank(from)).transpose()?;
        let request = engine::start_receive(from, context, tag, into)?;
        Ok(Self {
            place: scope.insert(request),
            scope,
            communicator: communicator.clone(),
        })
    }

    fn id(&self) -> RequestId {
        self.scope.get(self.place)
    }

    /// The engine has freed the request: tells what it said of the message.
    fn finish(self, outcome: Result<engine::Envelope>) -> Result<Status> {
        self.scope.remove(self.place);
        outcome.map(|envelope| Status::new(&self.communicator, envelope))
    }

    /// Waits until the operation is complete (MPI 4.1, 3.7.3, `MPI_Wait`). The status of a send tells the
    /// sender itself.
    ///
    /// # Errors
    /// [`Truncated`](crate::Error::Truncated) for a receive whose message was longer than its buffer.
    pub fn wait(self) -> Result<Status> {
        let outcome = engine::wait(self.id());
        self.finish(outcome)
    }

    /// Waits until the operation is complete, where its status is of no interest.
    ///
    /// # Errors
    /// Like [`wait`](Self::wait).
    pub fn wait_without_status(self) -> Result<()> {
        self.wait().map(drop)
    }

    /// Looks whether the operation is complete (MPI 4.1, 3.7.3, `MPI_Test`); hands the request back if not.
    /// Never waits, but lets messages move, so that a loop around it comes to an end.
    ///
    /// # Errors
    /// Like [`wait`](Self::wait).
    pub fn test(self) -> Result<Test<'s, 'a>> {
        match engine::test(self.id()) {
            Ok(None) => Ok(Test::Pending(self)),
            Ok(Some(envelope)) => self.finish(Ok(envelope)).map(Test::Complete),
            Err(error) => self.finish(Err(error)).map(Test::Complete),
        }
    }

    /// Withdraws a receive that has not met a message (MPI 4.1, 3.8.4, `MPI_Cancel`, here with its
    /// completion): `None`. A receive that has met one, and a send, is waited for instead.
    ///
    /// # Errors
    /// Like [`wait`](Self::wait), where it was waited for.
    pub fn cancel(self) -> Result<Option<Status>> {
        let outcome = engine::cancel(self.id()).transpose();
        match outcome {
            Some(outcome) => self.finish(outcome).map(Some),
            None => {
                self.scope.remove(self.place);
                Ok(None)
            }
        }
    }
}

/// What [`Request::test`] found.
#[derive(Debug)]
pub enum Test<'s, 'a> {
    /// The operation is complete.
    Complete(Status),
    /// It is not: the request, to ask again.
    Pending(Request<'s, 'a>),
}

/// Waits for all requests (MPI 4.1, 3.7.5, `MPI_Waitall`). Statuses are in the order of the requests.
///
/// # Errors
/// The first error; every request is complete nevertheless.
pub fn wait_all<'s, 'a: 's>(
    requests: impl IntoIterator<Item = Request<'s, 'a>>,
) -> Result<Vec<Status>> {
    let requests = requests.into_iter();
    let mut statuses = Vec::with_capacity(requests.size_hint().0);
    let mut outcome = Ok(());
    for request in requests {
        match request.wait() {
            Ok(status) => statuses.push(status),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    if statuses.is_empty() && outcome.is_ok() {
        // A rank at the edge of the world, or alone in it, waits for nothing here; yet it calls the library,
        // and may be captured.
        engine::yield_now();
    }
    outcome.map(|()| statuses)
}

/// Waits until one of the requests is complete, takes it out of the `Vec` (later ones move down), and
/// tells which it was (MPI 4.1, 3.7.5, `MPI_Waitany`). `None` if there is no request.
///
/// # Errors
/// Like [`Request::wait`]; the request that failed is taken out.
pub fn wait_any(requests: &mut Vec<Request<'_, '_>>) -> Result<Option<(usize, Status)>> {
    if requests.is_empty() {
        return Ok(None);
    }
    let ids: Vec<_> = requests.iter().map(Request::id).collect();
    let index = engine::wait_until_one(&ids)?;
    let status = requests.remove(index).wait()?;
    Ok(Some((index, status)))
}

/// Looks for a request that is complete; like [`wait_any`], but never waits (MPI 4.1, 3.7.5,
/// `MPI_Testany`).
///
/// # Errors
/// Like [`Request::wait`]; the request that failed is taken out.
pub fn test_any(requests: &mut Vec<Request<'_, '_>>) -> Result<Option<(usize, Status)>> {
    let ids: Vec<_> = requests.iter().map(Request::id).collect();
    match engine::find_complete(&ids)? {
        None => Ok(None),
        Some(index) => {
            let status = requests.remove(index).wait()?;
            Ok(Some((index, status)))
        }
    }
}

/// Waits until at least one of the requests is complete, takes all that are out of the `Vec`, and tells
/// which they were, by their places before the call (MPI 4.1, 3.7.5, `MPI_Waitsome`). Empty if there is no
/// request.
///
/// # Errors
/// The first error; the requests that were complete are taken out.
pub fn wait_some(requests: &mut Vec<Request<'_, '_>>) -> Result<Vec<(usize, Status)>> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<_> = requests.iter().map(Request::id).collect();
    engine::wait_until_one(&ids)?;
    let mut complete = Vec::new();
    let mut outcome = Ok(());
    let mut pending = Vec::with_capacity(requests.len());
    for (index, request) in requests.drain(..).enumerate() {
        match request.test() {
            Ok(Test::Complete(status)) => complete.push((index, status)),
            Ok(Test::Pending(request)) => pending.push(request),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    *requests = pending;
    outcome.map(|()| complete)
}
