//! The regions of a slot: header, guard, stack, heap. Arithmetic on offsets from the slot's start.
//!
//! ```text
//! 0         header      rank number, coroutine, heap tables, rank-local values
//! 1 MiB     guard       no access; a stack that overflows ends here
//! 2 MiB     stack       grows down from its end
//! ...       heap        everything the rank allocates (starts on a 2 MiB boundary)
//! end-1 MiB end guard   no access; an overrun does not reach the next rank
//! ```

use std::ops::Range;

use protocol::slots::SlotLayout;

/// The page size that slots, page numbers and checkpoints are made of, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Bytes of address space of the header region.
pub(crate) const HEADER_BYTES: u64 = 1 << 20;

/// Bytes of each of the two guard regions. Larger than a page because C code on a rank's stack
/// need not touch every page on its way down.
pub(crate) const GUARD_BYTES: u64 = 1 << 20;

/// The heap starts on a boundary of huge pages.
const HEAP_ALIGN_BYTES: u64 = 2 << 20;

/// Where the regions lie, as offsets from the slot's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Regions {
    /// The guard below the stack.
    pub guard: Range<u64>,
    /// The stack; its end is where it starts to grow from.
    pub stack: Range<u64>,
    /// The heap.
    pub heap: Range<u64>,
    /// The guard at the slot's end.
    pub end_guard: Range<u64>,
}

impl Regions {
    /// Length of the guard at the slot's end.
    pub const END_GUARD_BYTES: u64 = GUARD_BYTES;

    /// The guard below the stack: the same in every layout, so that a signal handler can ask.
    pub const fn guard() -> Range<u64> {
        HEADER_BYTES..HEADER_BYTES + GUARD_BYTES
    }

    /// The regions of every slot of a job. [`SlotLayout`] has checked that the stack takes at most
    /// half the slot, and that a slot is large enough for the rest.
    pub fn of(layout: &SlotLayout) -> Self {
        let guard = Self::guard();
        let stack = guard.end..guard.end + layout.stack_bytes();
        let heap_start = stack.end.next_multiple_of(HEAP_ALIGN_BYTES);
        let end = layout.slot_bytes() - Self::END_GUARD_BYTES;
        Self {
            guard,
            stack,
            heap: heap_start..end,
            end_guard: end..layout.slot_bytes(),
        }
    }

    /// The parts that an image may hold pages of, by offset: the header, and the stack with the heap behind it.
    pub fn of_images(&self) -> [Range<u64>; 2] {
        [0..HEADER_BYTES, self.stack.start..self.heap.end]
    }

    /// The offsets of a run of pages (counted from the slot's start), if an image may hold all of them. A run may cross from the
    /// stack into the heap. `None` for one whose end is before its start, too.
    pub fn image_bytes(&self, pages: &Range<u64>) -> Option<Range<u64>> {
        let start = pages.start.checked_mul(PAGE_BYTES as u64)?;
        let end = pages.end.checked_mul(PAGE_BYTES as u64)?;
        let fits = |part: &Range<u64>| part.start <= start && end <= part.end;
        (start <= end && self.of_images().iter().any(fits)).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::slots::{SLOT_BYTES_MIN, STACK_BYTES_DEFAULT, STACK_BYTES_MIN};

    fn assert_regions_fill_the_slot(layout: &SlotLayout) {
        let regions = Regions::of(layout);
        assert_eq!(regions.guard.end, regions.stack.start);
        assert_eq!(
            regions.stack.end - regions.stack.start,
            layout.stack_bytes()
        );
        assert!(regions.stack.end <= regions.heap.start);
        assert!(regions.heap.end - regions.heap.start >= 8 << 20);
        assert_eq!(regions.heap.end, regions.end_guard.start);
        assert_eq!(regions.end_guard.end, layout.slot_bytes());
        assert_eq!(regions.heap.start % HEAP_ALIGN_BYTES, 0);
    }

    #[test]
    fn regions_fill_slots_of_any_size() {
        for (slot_bytes, stack_bytes) in [
            (64 << 30, STACK_BYTES_DEFAULT),
            (SLOT_BYTES_MIN, SLOT_BYTES_MIN / 2),
            (SLOT_BYTES_MIN, STACK_BYTES_MIN),
            (1 << 30, 512 << 20),
            (1 << 30, STACK_BYTES_MIN + 4096),
        ] {
            assert_regions_fill_the_slot(&SlotLayout::new(1, slot_bytes, stack_bytes).unwrap());
        }
    }

    #[test]
    fn images_hold_pages_of_header_stack_and_heap_and_no_others() {
        let layout = SlotLayout::new(1, SLOT_BYTES_MIN, STACK_BYTES_MIN + 4096).unwrap();
        let regions = Regions::of(&layout);
        let page = |offset: u64| offset / PAGE_BYTES as u64;
        let (header_end, stack) = (page(HEADER_BYTES), page(regions.stack.start));
        let (heap, heap_end) = (page(regions.heap.start), page(regions.heap.end));
        for pages in [
            0..header_end,
            stack..heap_end,
            heap - 2..heap + 1,
            heap_end..heap_end,
        ] {
            let bytes = pages.start * PAGE_BYTES as u64..pages.end * PAGE_BYTES as u64;
            assert_eq!(regions.image_bytes(&pages), Some(bytes));
        }
        let backwards = Range {
            start: heap + 1,
            end: heap,
        };
        for pages in [
            header_end - 1..header_end + 1,
            header_end..stack,
            0..heap,
            stack - 1..stack,
            heap_end - 1..heap_end + 1,
            backwards,
            u64::MAX - 1..u64::MAX,
            // Its end is 2^64 bytes and one page.
            0..(1 << 52) + 1,
        ] {
            assert_eq!(regions.image_bytes(&pages), None, "{pages:?}");
        }
    }
}
