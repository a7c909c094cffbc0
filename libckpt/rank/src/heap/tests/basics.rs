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
