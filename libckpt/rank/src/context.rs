//! In whose memory a thread allocates.
//!
//! Every thread carries a mark:
//!
//! - *rank*: the thread runs a rank right now; allocations go to the rank's heap. Only the thread
//!   that resumes ranks is ever marked so, between [`Slot::resume`](crate::Slot::resume) and the
//!   rank's next suspension.
//! - *member*: another thread that works for a rank ([`RankMemory::enter`]); allocations go to the
//!   rank's heap, under its lock.
//! - *process*: the library's own; allocations go to the system allocator. A thread of the library is
//!   marked for its whole life ([`library_thread`](crate::library_thread)), a rank for the length of a call ([`in_process`]).
//! - *unmarked*: everything else. In a process that hosts exactly one rank, such a thread can only be
//!   that rank's, and allocates in its heap; in every other process it uses the system allocator. So it does while a thread
//!   of the library is being started, which is unmarked at first.

use std::cell::Cell;
use std::ptr;

use protocol::ids::Rank;

use crate::header::SlotHeader;
use crate::hosted;

/// The mark of a thread that runs no rank at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nobody said anything about this thread.
    Unmarked,
    /// The library's own.
    Process,
    /// Works for the rank in `Context::member`.
    Member,
    /// The next allocation answers the question whether our allocator is the global one.
    Probe,
}

/// A thread's context. Constant-initialised and without a destructor, so that reading it in the
/// allocator is one instruction and allowed at any time of a thread's life.
pub(crate) struct Context {
    /// The slot whose heap this thread allocates in; null unless it is in rank context.
    pub rank: Cell<*mut SlotHeader>,
    /// The slot whose rank runs on this thread, also inside [`in_process`].
    pub running: Cell<*mut SlotHeader>,
    /// The mark that holds while `rank` is null.
    pub mark: Cell<Mark>,
    /// The slot of [`Mark::Member`].
    pub member: Cell<*mut SlotHeader>,
}

thread_local! {
    pub(crate) static CONTEXT: Context = const {
        Context {
            rank: Cell::new(ptr::null_mut()),
            running: Cell::new(ptr::null_mut()),
            mark: Cell::new(Mark::Unmarked),
            member: Cell::new(ptr::null_mut()),
        }
    };
}

/// Puts the allocation context back where it was, also when the closure panics.
struct Restore {
    rank: *mut SlotHeader,
    mark: Mark,
    member: *mut SlotHeader,
}

impl Restore {
    #[inline]
    fn enter(rank: *mut SlotHeader, mark: Mark, member: *mut SlotHeader) -> Self {
        CONTEXT.with(|context| Self {
            rank: context.rank.replace(rank),
            mark: context.mark.replace(mark),
            member: context.member.replace(member),
        })
    }
}

impl Drop for Restore {
    #[inline]
    fn drop(&mut self) {
        CONTEXT.with(|context| {
            context.rank.set(self.rank);
            context.mark.set(self.mark);
            context.member.set(self.member);
        });
    }
}

/// Runs `f` with allocations going to the system allocator, whatever the caller's context is.
///
/// The library wraps in it whatever it does for a rank with its own tables. A rank can't be suspended
/// inside ([`suspend`](crate::suspend) panics): what is on its stack then points into process memory.
#[inline]
pub fn in_process<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore::enter(ptr::null_mut(), Mark::Process, ptr::null_mut());
    f()
}

/// Runs `f` in the context of the rank that runs on this thread: the way back out of [`in_process`],
/// for what is handed to the rank.
///
/// # Panics
/// When no rank runs on this thread.
#[inline]
pub fn in_rank<R>(f: impl FnOnce() -> R) -> R {
    let running = CONTEXT.with(|context| context.running.get());
    assert!(!running.is_null(), "in_rank was called where no rank runs");
    let _restore = Restore::enter(running, Mark::Process, ptr::null_mut());
    f()
}

/// The rank that runs on this thread, also inside [`in_process`]. `None` on every thread but the one
/// that resumes ranks.
#[inline]
#[must_use]
pub fn current_rank() -> Option<Rank> {
    let running = CONTEXT.with(|context| context.running.get());
    // SAFETY: `running` is only set while that slot is mapped and its rank runs on this thread.
    (!running.is_null()).then(|| unsafe { (*running).rank() })
}

/// Does this thread allocate in a rank's heap right now? True in a rank, outside of [`in_process`].
#[inline]
#[must_use]
pub fn is_rank_context() -> bool {
    CONTEXT.with(|context| !context.rank.get().is_null())
}

/// Marks this thread as the library's own, for the rest of its life.
pub(crate) fn mark_process() {
    CONTEXT.with(|context| context.mark.set(Mark::Process));
}

/// Runs `f` in the memory of a slot whose rank does not run, on the thread that resumes it.
pub(crate) fn in_slot<R>(header: *mut SlotHeader, f: impl FnOnce() -> R) -> R {
    let _restore = Restore::enter(header, Mark::Process, ptr::null_mut());
    f()
}

/// A rank's memory, for threads that the rank starts: what they allocate belongs to the rank.
///
/// Needed only where a process hosts several ranks; where it hosts one, all threads that are not the
/// library's do so anyway.
#[derive(Clone, Copy, Debug)]
pub struct RankMemory(Rank);

impl RankMemory {
    /// The memory of the rank that calls.
    ///
    /// # Panics
    /// When it is not called by a rank.
    #[must_use]
    pub fn current() -> Self {
        Self(current_rank().expect("RankMemory::current was called where no rank runs"))
    }

    /// Runs `f` on this thread with allocations going to the rank's slot.
    ///
    /// # Panics
    /// When the rank is not hosted in this process.
    pub fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        let header = hosted::header(self.0)
            .unwrap_or_else(|| panic!("{} is not hosted in this process", self.0));
        let _restore = Restore::enter(ptr::null_mut(), Mark::Member, header);
        f()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_in_no_rank_until_a_slot_is_resumed() {
        assert_eq!(current_rank(), None);
        assert!(!is_rank_context());
    }

    #[test]
    fn process_context_ends_with_its_closure_even_when_that_panics() {
        let mark = || CONTEXT.with(|context| context.mark.get());
        assert_eq!(in_process(mark), Mark::Process);
        let _ = std::panic::catch_unwind(|| in_process(|| std::panic::resume_unwind(Box::new(()))));
        assert_eq!(mark(), Mark::Unmarked);
    }
}
