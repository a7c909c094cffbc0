//! The slots that are mapped in this process, for code that has nothing but an address: the global
//! allocator, the fault handler, the checks of buffers.
//!
//! Everything here is read without locks, also in a signal handler.

use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use protocol::ids::Rank;
use protocol::slots::{ORIGIN, SlotLayout};

use crate::header::SlotHeader;
use crate::layout::Regions;

/// Facts about every slot of the job, the same for all of them; 0 until the first slot is made.
static SLOT_BYTES: AtomicU64 = AtomicU64::new(0);
static STACK_BYTES: AtomicU64 = AtomicU64::new(0);
static RANKS: AtomicU64 = AtomicU64::new(0);

/// One bit per rank: is its slot mapped here? Allocated at the first slot and never freed.
static HOSTED: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The slot of a process that hosts exactly one.
static SOLE: AtomicPtr<SlotHeader> = AtomicPtr::new(ptr::null_mut());

/// The layout and the number of hosted slots; also serialises changes to the statics above.
static CHANGES: Mutex<(Option<SlotLayout>, usize)> = Mutex::new((None, 0));

/// Bytes of every slot, 0 when none was made.
#[inline]
pub(crate) fn slot_bytes() -> u64 {
    SLOT_BYTES.load(Ordering::Relaxed)
}

/// Bytes of every stack.
pub(crate) fn stack_bytes() -> u64 {
    STACK_BYTES.load(Ordering::Relaxed)
}

/// The rank whose slot holds this address, hosted here or not. Safe in a signal handler.
#[inline]
pub(crate) fn rank_of(address: usize) -> Option<Rank> {
    let slot_bytes = slot_bytes();
    let offset = (address as u64).checked_sub(ORIGIN)?;
    if slot_bytes == 0 {
        return None;
    }
    // slot_bytes is a power of two.
    let index = offset >> slot_bytes.trailing_zeros();
    (index < RANKS.load(Ordering::Relaxed)).then_some(Rank(index as u32))
}

/// The header of the slot that holds this address, where that slot is mapped in this process.
#[inline]
pub(crate) fn header_of(address: usize) -> Option<*mut SlotHeader> {
    let rank = rank_of(address)?;
    is_hosted(rank).then(|| header_address(rank))
}

/// Where the header of a rank's slot lies, mapped or not.
fn header_address(rank: Rank) -> *mut SlotHeader {
    ptr::with_exposed_provenance_mut((ORIGIN + u64::from(rank.0) * slot_bytes()) as usize)
}

/// Is this rank's slot mapped in this process?
#[inline]
pub(crate) fn is_hosted(rank: Rank) -> bool {
    let words = HOSTED.load(Ordering::Acquire);
    if words.is_null() || u64::from(rank.0) >= RANKS.load(Ordering::Relaxed) {
        return false;
    }
    // SAFETY: the table has a bit for every rank of the layout, checked above, and is never freed.
    let word = unsafe { &*words.add(rank.index() / 64) };
    word.load(Ordering::Acquire) >> (rank.0 % 64) & 1 == 1
}

/// The only slot of this process; null where there are none or several.
#[inline]
pub(crate) fn sole() -> *mut SlotHeader {
    SOLE.load(Ordering::Acquire)
}

/// Fixes the layout at the first slot. `Err` holds the layout in force where it is another one.
pub(crate) fn fix_layout(layout: &SlotLayout) -> Result<(), SlotLayout> {
    let mut changes = lock();
    match changes.0 {
        Some(fixed) if fixed == *layout => Ok(()),
        Some(fixed) if changes.1 > 0 => Err(fixed),
        _ => {
            let words = layout.ranks().div_ceil(64).max(1) as usize;
            let table: Box<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
            RANKS.store(u64::from(layout.ranks()), Ordering::Relaxed);
            STACK_BYTES.store(layout.stack_bytes(), Ordering::Relaxed);
            SLOT_BYTES.store(layout.slot_bytes(), Ordering::Relaxed);
            HOSTED.store(Box::leak(table).as_mut_ptr(), Ordering::Release);
            changes.0 = Some(*layout);
            Ok(())
        }
    }
}

/// A slot's header and heap are ready for use.
pub(crate) fn add(rank: Rank) {
    let mut changes = lock();
    set_bit(rank, true);
    changes.1 += 1;
    update_sole(changes.1);
}

/// A slot is about to be unmapped.
pub(crate) fn remove(rank: Rank) {
    let mut changes = lock();
    set_bit(rank, false);
    changes.1 -= 1;
    update_sole(changes.1);
}

fn set_bit(rank: Rank, on: bool) {
    let words = HOSTED.load(Ordering::Acquire);
    debug_assert!(!words.is_null());
    // SAFETY: fix_layout came before and the rank is one of the layout's; the table is never freed.
    let word = unsafe { &*words.add(rank.index() / 64) };
    let bit = 1 << (rank.0 % 64);
    if on {
        word.fetch_or(bit, Ordering::AcqRel);
    } else {
        word.fetch_and(!bit, Ordering::AcqRel);
    }
}

/// Where the address of a slot is kept beside the slots themselves.
pub(crate) fn own_pointer() -> usize {
    (&raw const SOLE).addr()
}

fn update_sole(count: usize) {
    let ranks = RANKS.load(Ordering::Relaxed) as u32;
    let sole = if count == 1 {
        (0..ranks).map(Rank).find(|&rank| is_hosted(rank))
    } else {
        None
    };
    SOLE.store(
        sole.map_or(ptr::null_mut(), header_address),
        Ordering::Release,
    );
}

/// What a faulting address is to a slot of this process. Safe in a signal handler.
pub(crate) fn stack_overflow_at(address: usize) -> Option<Rank> {
    let rank = rank_of(address).filter(|&rank| is_hosted(rank))?;
    let offset = (address as u64 - ORIGIN) % slot_bytes();
    Regions::guard().contains(&offset).then_some(rank)
}

fn lock() -> std::sync::MutexGuard<'static, (Option<SlotLayout>, usize)> {
    // Nothing panics while the lock is held; a poisoned one is as good as another.
    CHANGES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The header of a rank's slot, where it is mapped in this process.
pub(crate) fn header(rank: Rank) -> Option<*mut SlotHeader> {
    is_hosted(rank).then(|| header_address(rank))
}
