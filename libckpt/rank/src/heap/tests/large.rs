//! Large blocks: growth, room, what is kept and what is given back.

use super::region::{Region, layout};
use crate::heap::{GROWN_BYTES_MIN, Heap, LARGE_BYTES_MIN};

const MIB: usize = 1 << 20;

/// Writes a number to every page of a block.
fn mark(block: *mut u8, bytes: usize, seed: usize) {
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: inside the block.
        unsafe { block.add(offset).cast::<usize>().write(seed + offset) };
    }
}

fn assert_marked(block: *mut u8, bytes: usize, seed: usize) {
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: inside the block.
        let found = unsafe { block.add(offset).cast::<usize>().read() };
        assert_eq!(found, seed + offset, "page at {offset} of {bytes} bytes");
    }
}

/// Pages of a range that have memory, in bytes.
fn resident_bytes(address: usize, bytes: usize) -> usize {
    let mut pages = vec![0u8; bytes / 4096];
    // SAFETY: `mincore` writes one byte per page.
    let answer = unsafe { libc::mincore(address as *mut _, bytes, pages.as_mut_ptr()) };
    assert_eq!(answer, 0);
    pages.iter().filter(|&&page| page & 1 == 1).count() * 4096
}

/// Mappings that lie in a region.
fn mappings_in(region: &Region) -> usize {
    let addresses = region.addresses();
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .filter(|line| {
            let start = line.split('-').next().unwrap();
            addresses.contains(&usize::from_str_radix(start, 16).unwrap())
        })
        .count()
}

fn allocate(heap: &Heap, bytes: usize) -> *mut u8 {
    // SAFETY: the test's thread owns the heap.
    let block = unsafe { heap.allocate(layout(bytes, 8)) };
    assert!(!block.is_null());
    block
}

fn free(heap: &Heap, block: *mut u8, bytes: usize) {
    // SAFETY: the test's thread owns the heap, and uses the block no more.
    unsafe { heap.deallocate(block, layout(bytes, 8)) };
}

fn grow(heap: &Heap, block: *mut u8, bytes: usize, to: usize) -> *mut u8 {
    // SAFETY: the test's thread owns the heap, and uses the old block no more.
    let grown = unsafe { heap.reallocate(block, layout(bytes, 8), to) };
    assert!(!grown.is_null());
    grown
}

#[test]
fn a_block_that_doubles_stays_where_it_is_once_it_is_large() {
    let region = Region::with_small_pages(64 << 30);
    let heap = region.heap();
    let mut bytes = 64;
    let mut block = allocate(heap, bytes);
    while bytes < GROWN_BYTES_MIN {
        block = grow(heap, block, bytes, 2 * bytes);
        bytes *= 2;
    }
    let place = block;
    while bytes < 1 << 30 {
        block = grow(heap, block, bytes, 2 * bytes);
        bytes *= 2;
        assert_eq!(block, place, "moved at {bytes} bytes");
        // Others come and go beside it.
        let other = allocate(heap, LARGE_BYTES_MIN);
        allocate(heap, LARGE_BYTES_MIN);
        free(heap, other, LARGE_BYTES_MIN);
    }
}

#[test]
fn a_block_without_room_is_moved_by_its_pages() {
    let region = Region::new(4 << 30);
    let heap = region.heap();
    let bytes = 16 * MIB;
    let block = allocate(heap, bytes);
    let next = allocate(heap, bytes);
    assert_eq!(
        next.addr(),
        block.addr() + bytes,
        "no longer behind each other"
    );
    mark(block, bytes, 7);
    let moved = grow(heap, block, bytes, 2 * bytes);
    assert_ne!(moved, block);
    assert_marked(moved, bytes, 7);
    let mut remapped = vec![];
    assert!(heap.remapped_since(0, |range| remapped.push(range)));
    assert_eq!(
        remapped,
        [
            block.addr()..block.addr() + bytes,
            moved.addr()..moved.addr() + bytes
        ]
    );
    assert_eq!(
        resident_bytes(block.addr(), bytes),
        0,
        "the old place keeps memory"
    );
    // The place that it left is clean.
    // SAFETY: the test's thread owns the heap.
    let zeros = unsafe { heap.allocate_zeroed(layout(bytes, 8)) };
    assert_eq!(zeros, block, "the gap is not used");
    for at in (0..bytes).step_by(4096) {
        // SAFETY: inside the block.
        assert_eq!(unsafe { *zeros.add(at) }, 0);
    }
}

#[test]
fn a_run_whose_pages_cannot_be_moved_is_copied() {
    let region = Region::new(4 << 30);
    let heap = region.heap();
    let bytes = 16 * MIB;
    let block = allocate(heap, bytes);
    allocate(heap, bytes);
    mark(block, bytes, 5);
    // The kernel moves pages of one mapping only, and now there are two.
    // SAFETY: it changes what a fork would do, no contents.
    let answer = unsafe { libc::madvise(block.cast(), bytes / 2, libc::MADV_DONTFORK) };
    assert_eq!(answer, 0);
    let moved = grow(heap, block, bytes, 2 * bytes);
    assert_ne!(moved, block);
    assert_marked(moved, bytes, 5);
    mark(moved, 2 * bytes, 6);
    region.wipe_and_restore(region.image());
    assert_marked(moved, 2 * bytes, 6);
    free(heap, moved, 2 * bytes);
}

#[test]
fn moves_leave_no_mappings_behind() {
    let region = Region::new(16 << 30);
    let heap = region.heap();
    let before = mappings_in(&region);
    for round in 0..2 {
        let bytes = 8 * MIB;
        let blocks: Vec<_> = (0..80)
            .map(|index| {
                let block = allocate(heap, bytes);
                mark(block, bytes, index);
                block
            })
            .collect();
        let grown: Vec<_> = blocks
            .iter()
            .enumerate()
            .map(|(index, &block)| {
                let to = bytes * (2 + (index + round) % 3);
                let block = grow(heap, block, bytes, to);
                assert_marked(block, bytes, index);
                (block, to)
            })
            .collect();
        let most = mappings_in(&region);
        assert!(
            most < before + 3 * 64 + 10,
            "{most} mappings in round {round}"
        );
        for (index, &(block, bytes)) in grown.iter().enumerate() {
            assert_marked(block, 8 * MIB, index);
            free(heap, block, bytes);
        }
        let after = mappings_in(&region);
        assert!(
            after <= before + 2,
            "{after} mappings after round {round}, {before} before"
        );
    }
}

#[test]
fn a_block_that_moves_again_and_again_keeps_its_contents() {
    let region = Region::new(2 << 30);
    let heap = region.heap();
    let mut bytes = 8 * MIB;
    let mut block = allocate(heap, bytes);
    mark(block, bytes, 3);
    let mut places = vec![block];
    for _ in 0..8 {
        wall_up(heap, block.addr() + bytes.next_multiple_of(2 * MIB));
        let to = bytes + 6 * MIB;
        block = grow(heap, block, bytes, to);
        assert_marked(block, bytes, 3);
        mark(block, to, 3);
        bytes = to;
        places.push(block);
    }
    places.dedup();
    assert_eq!(places.len(), 9, "not moved each time: {places:?}");
}

/// Sees to it that a block lies at an address.
fn wall_up(heap: &Heap, address: usize) {
    let mut others = vec![];
    loop {
        // SAFETY: the test's thread owns the heap.
        let block = unsafe { heap.allocate(layout(LARGE_BYTES_MIN, 8)) };
        if block.is_null() {
            break;
        }
        others.push(block);
    }
    for block in others {
        if !(block.addr()..block.addr() + LARGE_BYTES_MIN).contains(&address) {
            free(heap, block, LARGE_BYTES_MIN);
        }
    }
}

#[test]
fn a_run_that_is_cut_shorter_leaves_the_image() {
    let region = Region::new(4 << 30);
    let heap = region.heap();
    let block = allocate(heap, 64 * MIB);
    mark(block, 64 * MIB, 1);
    let cut = grow(heap, block, 64 * MIB, 20 * MIB + 5);
    assert_eq!(cut, block);
    let end = block.addr() + 20 * MIB + 4096;
    heap.live_ranges(|range| {
        assert!(
            !range.contains(&end),
            "{range:x?} holds the end that was cut off"
        );
    });
    region.wipe_and_restore(region.image());
    assert_marked(block, 20 * MIB, 1);
}

#[test]
fn a_block_made_in_every_step_gets_the_same_memory_again() {
    let region = Region::new(4 << 30);
    let heap = region.heap();
    for bytes in [4 * MIB, 20 * MIB, 60 * MIB] {
        let first = allocate(heap, bytes);
        mark(first, bytes, 1);
        free(heap, first, bytes);
        for _ in 0..10 {
            let again = allocate(heap, bytes);
            assert_eq!(again, first);
            assert!(
                resident_bytes(again.addr().next_multiple_of(4096), bytes - 4096) >= bytes - 8192
            );
            free(heap, again, bytes);
        }
    }
}

#[test]
fn what_is_kept_is_bounded_and_given_back_oldest_first() {
    let region = Region::new(16 << 30);
    let heap = region.heap();
    let blocks: Vec<_> = (0..32).map(|_| allocate(heap, 16 * MIB)).collect();
    for &block in &blocks {
        mark(block, 16 * MIB, 9);
    }
    for &block in blocks
        .iter()
        .step_by(2)
        .chain(blocks.iter().skip(1).step_by(2))
    {
        free(heap, block, 16 * MIB);
    }
    // SAFETY: the test's thread owns the heap.
    let statistics = unsafe { heap.statistics() };
    assert_eq!(statistics.live_bytes, 0);
    assert!(statistics.warm_bytes <= 64 * MIB, "{statistics:?}");
    let resident: usize = blocks
        .iter()
        .map(|block| resident_bytes(block.addr(), 16 * MIB))
        .sum();
    assert!(resident <= 64 * MIB, "{resident} bytes kept");
    // SAFETY: as above.
    unsafe { heap.trim() };
    let resident: usize = blocks
        .iter()
        .map(|block| resident_bytes(block.addr(), 16 * MIB))
        .sum();
    assert_eq!(resident, 0);
}

#[test]
fn a_restored_heap_keeps_no_memory_that_it_does_not_use() {
    let region = Region::new(4 << 30);
    let heap = region.heap();
    let small = allocate(heap, 4 * MIB);
    let large = allocate(heap, 20 * MIB);
    mark(small, 4 * MIB, 1);
    mark(large, 20 * MIB, 1);
    free(heap, small, 4 * MIB);
    free(heap, large, 20 * MIB);
    // SAFETY: the test's thread owns the heap.
    assert!(unsafe { heap.statistics() }.warm_bytes >= 20 * MIB);
    region.wipe_and_restore(region.image());
    // SAFETY: as above.
    assert_eq!(unsafe { heap.statistics() }.warm_bytes, 0);
    // What is known to be zero is not cleared again.
    // SAFETY: as above.
    let zeros = unsafe { heap.allocate_zeroed(layout(20 * MIB, 8)) };
    assert_eq!(resident_bytes(zeros.addr(), 20 * MIB), 0);
}

#[test]
fn memory_never_touched_is_not_touched_to_make_it_zero() {
    let region = Region::new(16 << 30);
    // SAFETY: the test's thread owns the heap.
    let block = unsafe { region.heap().allocate_zeroed(layout(8 << 30, 4096)) };
    assert!(!block.is_null());
    assert_eq!(resident_bytes(block.addr(), 8 << 30), 0);
}

#[test]
fn memory_used_before_is_zero_when_zeros_are_asked_for() {
    let region = Region::new(4 << 30);
    let heap = region.heap();
    for bytes in [3 * MIB, 12 * MIB, 200 * MIB] {
        let block = allocate(heap, bytes);
        mark(block, bytes, 1);
        free(heap, block, bytes);
        // SAFETY: the test's thread owns the heap; the reads are inside the block.
        unsafe {
            let block = heap.allocate_zeroed(layout(bytes, 8));
            assert!((0..bytes).step_by(512).all(|at| *block.add(at) == 0));
            heap.deallocate(block, layout(bytes, 8));
        }
    }
}

#[test]
fn thousands_of_runs_are_no_trouble() {
    let region = Region::with_small_pages(64 << 30);
    let heap = region.heap();
    let bytes = LARGE_BYTES_MIN;
    let mut blocks: Vec<_> = (0..5000).map(|_| allocate(heap, bytes)).collect();
    for (index, &block) in blocks.iter().enumerate() {
        // SAFETY: inside the block.
        unsafe { block.cast::<usize>().write(index) };
    }
    let mut runs = 0;
    heap.live_ranges(|range| runs += usize::from(range.len() == bytes));
    assert_eq!(runs, 5000);
    for (index, &block) in blocks.iter().enumerate().rev() {
        // SAFETY: inside the block.
        assert_eq!(unsafe { block.cast::<usize>().read() }, index);
    }
    while let Some(block) = blocks.pop() {
        free(heap, block, bytes);
    }
    // All is one piece again.
    let whole = allocate(heap, 50 << 30);
    free(heap, whole, 50 << 30);
}
