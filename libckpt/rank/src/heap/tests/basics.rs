//! Single properties, one at a time.

use super::region::{Region, layout};
use crate::heap::LARGE_BYTES_MIN;

#[test]
fn blocks_of_every_size_and_alignment_are_aligned_and_inside() {
    let region = Region::new(1 << 30);
    let heap = region.heap();
    for align in (0..24).map(|shift| 1 << shift) {
        for bytes in [
            1,
            7,
            24,
            25,
            1000,
            5000,
            40_000,
            300_000,
            LARGE_BYTES_MIN,
            5 << 20,
        ] {
            let layout = layout(bytes, align);
            // SAFETY: this thread owns the heap; the block is freed with its layout.
            unsafe {
                let block = heap.allocate(layout);
                assert!(!block.is_null(), "{layout:?}");
                assert_eq!(block.addr() % align, 0, "{layout:?}");
                assert!(region.addresses().contains(&block.addr()));
                assert!(region.addresses().contains(&(block.addr() + bytes - 1)));
                block.write_bytes(0xa5, bytes);
                heap.deallocate(block, layout);
            }
        }
    }
}

#[test]
fn the_front_keeps_a_bounded_number_of_free_blocks() {
    let region = Region::with_small_pages(2 << 30);
    let heap = region.heap();
    // SAFETY: this thread owns the heap, and the blocks are its own.
    unsafe {
        for bytes in [16, 300, 2000, 30_000] {
            let blocks: Vec<_> = (0..12_000)
                .map(|_| heap.allocate(layout(bytes, 8)))
                .collect();
            for round in 0..3 {
                for &block in &blocks[round * 3_000..][..3_000] {
                    heap.deallocate(block, layout(bytes, 8));
                }
                // Some are fetched again in between.
                for _ in 0..100 {
                    heap.allocate(layout(bytes, 8));
                }
            }
            for &block in &blocks[9_000..] {
                heap.deallocate(block, layout(bytes, 8));
            }
        }
        let statistics = heap.statistics();
        assert!(statistics.front_bytes <= 4 * (256 << 10), "{statistics:?}");
        let still_used = 300 * (24 + 312 + 2048 + 32_768);
        assert!(
            (still_used - 300 * 300..=still_used).contains(&statistics.live_bytes),
            "{statistics:?}"
        );
    }
}

#[test]
fn blocks_on_their_way_back_when_an_image_is_taken_do_no_harm() {
    let region = Region::new(1 << 30);
    let heap = region.heap();
    let layout = layout(64, 8);
    // SAFETY: this thread owns the heap, and the blocks are its own.
    unsafe {
        let blocks: Vec<_> = (0..100).map(|_| heap.allocate(layout)).collect();
        for &block in &blocks {
            block.write_bytes(0xff, 64);
        }
        let image = region.image();
        // The header is in the image as it is now, the blocks as they were.
        for &block in &blocks[..50] {
            heap.deallocate_remote(block, layout);
        }
        region.wipe_and_restore(image);
        for _ in 0..1000 {
            let block = heap.allocate(layout);
            assert!(!blocks.contains(&block));
        }
        for &block in &blocks {
            assert_eq!(*block, 0xff);
        }
    }
}
