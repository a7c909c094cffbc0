//! A heap that has no room left.

use super::region::{Region, layout};
use crate::heap::HEAP_BYTES_MIN;

/// Allocates blocks until there is no room; what they are.
fn fill(region: &Region, bytes: usize) -> Vec<*mut u8> {
    let mut blocks = vec![];
    loop {
        // SAFETY: this thread owns the heap.
        let block = unsafe { region.heap().allocate(layout(bytes, 8)) };
        if block.is_null() {
            return blocks;
        }
        // SAFETY: inside the block.
        unsafe { block.write_bytes(0x5a, bytes.min(64)) };
        blocks.push(block);
    }
}

#[test]
fn most_of_a_heap_can_be_used_by_blocks_of_any_size() {
    for (heap_bytes, bytes, share) in [
        (HEAP_BYTES_MIN, 24, 0.3),
        (HEAP_BYTES_MIN, 5000, 0.4),
        (64 << 20, 24, 0.5),
        (64 << 20, 1 << 20, 0.8),
        (64 << 20, 3 << 20, 0.7),
        (64 << 20, 8 << 20, 0.6),
        (64 << 20, 50 << 20, 0.6),
        (1 << 30, 880 << 20, 0.8),
    ] {
        let region = Region::new(heap_bytes);
        let blocks = fill(&region, bytes);
        let used = blocks.len() * bytes;
        assert!(
            used as f64 >= share * heap_bytes as f64,
            "{used} of {heap_bytes} bytes used by blocks of {bytes}"
        );
    }
}

#[test]
fn a_full_heap_says_no_and_goes_on_when_something_is_freed() {
    let region = Region::new(64 << 20);
    let heap = region.heap();
    for bytes in [100, 40_000, 2 << 20, 9 << 20] {
        let blocks = fill(&region, bytes);
        // SAFETY: this thread owns the heap, and the blocks are its own.
        unsafe {
            let last = blocks[blocks.len() - 1];
            assert!(heap.reallocate(last, layout(bytes, 8), 60 << 20).is_null());
            assert_eq!(*last, 0x5a, "a block that could not grow has changed");
            for &block in &blocks {
                assert_eq!(*block, 0x5a);
                heap.deallocate(block, layout(bytes, 8));
            }
            heap.trim();
            assert_eq!(heap.statistics().live_bytes, 0);
        }
    }
}

#[test]
fn blocks_packed_where_runs_have_been_are_told_from_runs() {
    let region = Region::new(64 << 20);
    let heap = region.heap();
    // SAFETY: this thread owns the heap, and the blocks are its own.
    unsafe {
        let mut runs = vec![];
        loop {
            let block = heap.allocate(layout(500 << 10, 8));
            if block.is_null() {
                break;
            }
            // A block that grows to this size gets a unit of its own, one after the other.
            let grown = heap.reallocate(block, layout(500 << 10, 8), 1 << 20);
            if grown.is_null() {
                heap.deallocate(block, layout(500 << 10, 8));
                break;
            }
            runs.push(grown);
        }
        assert!(runs.len() > 20);
        for run in runs {
            heap.deallocate(run, layout(1 << 20, 8));
        }
        for bytes in [1 << 20, 1_300_000, 3 << 20] {
            for block in fill(&region, bytes) {
                heap.deallocate(block, layout(bytes, 8));
            }
        }
        heap.trim();
        assert_eq!(heap.statistics().live_bytes, 0);
    }
    // The back end has given all of its segments back.
    let large = fill(&region, 9 << 20);
    assert!(large.len() >= 5, "only {} blocks fit", large.len());
}

#[test]
fn sizes_that_no_slot_can_hold_are_refused() {
    let region = Region::new(64 << 20);
    for bytes in [64 << 20, 1 << 40, isize::MAX as usize - 4096] {
        // SAFETY: this thread owns the heap.
        unsafe {
            assert!(region.heap().allocate(layout(bytes, 8)).is_null());
            assert!(region.heap().allocate_zeroed(layout(bytes, 8)).is_null());
            let block = region.heap().allocate(layout(100, 8));
            let grown = region.heap().reallocate(block, layout(100, 8), bytes);
            assert!(grown.is_null());
        }
    }
    // SAFETY: as above.
    assert!(unsafe { region.heap().allocate(layout(8, 1 << 40)) }.is_null());
}
