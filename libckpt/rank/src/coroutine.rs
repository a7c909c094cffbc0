//! A rank's flow of control: a `corosensei` coroutine on the stack of its slot.

use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use corosensei::stack::{Stack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::context::CONTEXT;
use crate::header::{SlotHeader, State};
use crate::layout::Regions;

/// What a rank's entry leaves behind: nothing, or the payload of its panic.
type Outcome = Result<(), Box<dyn std::any::Any + Send>>;

pub(crate) type RankCoroutine = Coroutine<(), (), Outcome, SlotStack>;
pub(crate) type RankYielder = Yielder<(), ()>;

/// Distance below the recorded stack pointer up to which a suspended rank's stack may be in use:
/// the frame of the switch itself and the red zone of the System V ABI, with much room to spare.
const SWITCH_FRAME_BYTES: u64 = 4096;

/// The largest object that `corosensei` passes to a new stack, and the links above it.
const INITIAL_FRAME_BYTES: u64 = 4096;

/// The stack of a slot. Its memory is the slot's, which outlives the coroutine.
pub(crate) struct SlotStack {
    start: StackPointer,
    end: StackPointer,
}

// SAFETY: the range is the slot's stack with the guard region below it, mapped as long as the slot,
// and page-aligned.
unsafe impl Stack for SlotStack {
    fn base(&self) -> StackPointer {
        self.end
    }

    fn limit(&self) -> StackPointer {
        self.start
    }
}

/// How a resumption ended.
#[derive(Debug)]
pub enum Resumed {
    /// The rank called [`suspend`].
    Suspended,
    /// The rank's entry returned.
    Finished,
    /// The rank's entry panicked; the payload is as from [`std::panic::catch_unwind`].
    Panicked(Box<dyn std::any::Any + Send>),
}

/// Makes the coroutine of a slot, suspended before its first instruction.
///
/// # Safety
/// `header` is a mapped slot whose heap is initialised, in state `Empty`; the caller is in the slot's
/// context, so that the boxed entry lies in its heap.
pub(crate) unsafe fn start(
    header: *mut SlotHeader,
    regions: &Regions,
    entry: impl FnOnce() + 'static,
) {
    let base = header as usize as u64;
    let address = |offset: u64| {
        StackPointer::new((base + offset) as usize).expect("a slot does not start at address 0")
    };
    let stack = SlotStack {
        start: address(regions.guard.start),
        end: address(regions.stack.end),
    };
    // Boxed because corosensei takes closures of at most 1 KiB.
    let entry: Box<dyn FnOnce()> = Box::new(entry);
    let coroutine = RankCoroutine::with_stack(stack, move |yielder: &RankYielder, ()| {
        // SAFETY: the slot is mapped while its rank runs, and always at this address.
        unsafe { (*header).yielder.set(yielder) };
        catch_unwind(AssertUnwindSafe(entry))
    });
    // SAFETY: by the contract nobody else uses the header now.
    unsafe {
        (*(*header).coroutine.get()).write(coroutine);
        (*header).floating_point_modes.set(floating_point::modes());
        (*header)
            .stack_used_from
            .set(base + regions.stack.end - INITIAL_FRAME_BYTES);
        (*header).set_state(State::Suspended);
    }
}

/// Runs a rank until it suspends itself or ends.
///
/// # Safety
/// `header` is a mapped slot in state `Suspended`; this thread runs no rank and is the one that
/// resumes all of them.
#[inline]
pub(crate) unsafe fn resume(header: *mut SlotHeader) -> Resumed {
    // SAFETY: by the contract the slot is mapped and no other thread uses these fields.
    let header_ref = unsafe { &*header };
    let was_panicking = thread::panicking();
    let process_modes = floating_point::modes();
    let (outer_rank, outer_running) = CONTEXT.with(|context| {
        (
            context.rank.replace(header),
            context.running.replace(header),
        )
    });
    header_ref.set_state(State::Running);
    floating_point::switch(process_modes, header_ref.floating_point_modes.get());

    // SAFETY: a suspended slot has a coroutine. Nobody else reaches this field: the rank's own code
    // uses the yielder.
    let coroutine = unsafe { MaybeUninit::assume_init_mut(&mut *header_ref.coroutine.get()) };
    let result = coroutine.resume(());

    let rank_modes = floating_point::modes();
    header_ref.floating_point_modes.set(rank_modes);
    floating_point::switch(rank_modes, process_modes);
    CONTEXT.with(|context| {
        context.rank.set(outer_rank);
        context.running.set(outer_running);
    });
    // Whether a thread is panicking is a count of the thread, not of the stack: what was true before
    // says nothing about this rank.
    if !thread::panicking() {
        header_ref.panicking.set(false);
    } else if !was_panicking {
        header_ref.panicking.set(true);
    }
    match result {
        CoroutineResult::Yield(()) => {
            header_ref.set_state(State::Suspended);
            Resumed::Suspended
        }
        CoroutineResult::Return(Ok(())) => {
            header_ref.set_state(State::Finished);
            Resumed::Finished
        }
        CoroutineResult::Return(Err(payload)) => {
            header_ref.set_state(State::Panicked);
            Resumed::Panicked(payload)
        }
    }
}

/// Stops the rank that calls, until its slot is resumed: in this process, or from an image of it in
/// another. Returns to whoever called [`Slot::resume`](crate::Slot::resume).
///
/// # Panics
/// When it is not called in rank context: where no rank runs, or inside
/// [`in_process`](crate::in_process).
#[inline(never)]
pub fn suspend() {
    let (header, running) = CONTEXT.with(|context| (context.rank.get(), context.running.get()));
    assert!(
        !header.is_null() && header == running,
        "suspend was called outside of rank context"
    );
    // SAFETY: a slot whose rank runs is mapped.
    let header_ref = unsafe { &*header };
    let here = stack_pointer();
    header_ref
        .stack_used_from
        .set(here.saturating_sub(SWITCH_FRAME_BYTES));
    // SAFETY: a running rank has set its yielder, which lies at the far end of the stack that this is.
    unsafe { (*header_ref.yielder.get()).suspend(()) };
}

/// An address in the caller's frame, not above its lowest byte in use by more than the red zone.
#[inline(always)]
fn stack_pointer() -> u64 {
    let here: u64;
    // SAFETY: reads a register.
    unsafe {
        std::arch::asm!("mov {}, rsp", out(reg) here, options(nomem, nostack, preserves_flags));
    }
    here
}

/// Rounding and flush-to-zero modes. They belong to the thread; solvers set them, so each rank keeps
/// its own, and the library's code runs with the process's.
mod floating_point {
    /// Exception flags that have been raised: a history, not a mode.
    const RAISED: u32 = 0x3f;

    #[inline(always)]
    pub fn modes() -> u32 {
        let mut modes: u32 = 0;
        // SAFETY: stores the control register into a local.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut modes, options(nostack, preserves_flags));
        }
        modes & !RAISED
    }

    #[inline(always)]
    pub fn switch(from: u32, to: u32) {
        if from != to {
            // SAFETY: `to` was read from the register, so that no reserved bit is set.
            unsafe {
                std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const to, options(nostack, preserves_flags));
            }
        }
    }
}
