//! Other threads: frees from anywhere, and a rank's own threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::region::{Region, layout};

/// A block on its way to another thread.
struct Sent {
    block: *mut u8,
    bytes: usize,
}

// SAFETY: the sender does not use it any more.
unsafe impl Send for Sent {}

/// Block sizes of all kinds: front, packed, large.
fn pick_bytes(random: &mut ChaCha8Rng) -> usize {
    match random.random_range(0..100) {
        0 => random.random_range(1 << 20..10 << 20),
        1..10 => random.random_range(20_000..100_000),
        _ => random.random_range(1..2000),
    }
}

fn write(block: *mut u8, bytes: usize) {
    // SAFETY: the caller's block.
    unsafe {
        *block = bytes as u8;
        *block.add(bytes - 1) = bytes as u8;
    }
}

fn check(block: *mut u8, bytes: usize) {
    // SAFETY: the caller's block.
    unsafe {
        assert_eq!(*block, bytes as u8);
        assert_eq!(*block.add(bytes - 1), bytes as u8);
    }
}

#[test]
fn blocks_freed_by_other_threads_come_back_to_the_owner() {
    let region = Region::new(8 << 30);
    let heap = region.heap();
    thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let (sender, receiver) = mpsc::channel::<Sent>();
                scope.spawn(move || {
                    for Sent { block, bytes } in receiver {
                        check(block, bytes);
                        // SAFETY: the owner has sent it away.
                        unsafe { heap.deallocate_remote(block, layout(bytes, 8)) };
                    }
                });
                sender
            })
            .collect();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for index in 0..60_000 {
            let bytes = pick_bytes(&mut random);
            // SAFETY: this thread owns the heap.
            let block = unsafe { heap.allocate(layout(bytes, 8)) };
            assert!(!block.is_null());
            write(block, bytes);
            senders[index % 3].send(Sent { block, bytes }).unwrap();
        }
    });
    // SAFETY: this thread owns the heap.
    let statistics = unsafe {
        heap.trim();
        heap.statistics()
    };
    assert_eq!(statistics.live_bytes, 0, "{statistics:?}");
}

#[test]
fn the_threads_of_a_rank_share_its_heap_with_the_owner() {
    let region = Region::new(16 << 30);
    let heap = region.heap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..3 {
            let stop = &stop;
            scope.spawn(move || {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                let mut held: Vec<Sent> = vec![];
                while !stop.load(Ordering::Relaxed) || !held.is_empty() {
                    if held.len() < 100 && !stop.load(Ordering::Relaxed) {
                        let bytes = pick_bytes(&mut random);
                        let block = heap.allocate_shared(layout(bytes, 8));
                        assert!(!block.is_null());
                        write(block, bytes);
                        held.push(Sent { block, bytes });
                        continue;
                    }
                    let index = random.random_range(0..held.len());
                    let Sent { block, bytes } = held.swap_remove(index);
                    check(block, bytes);
                    // SAFETY: a block of this thread's own.
                    unsafe {
                        if random.random_bool(0.5) {
                            heap.deallocate_shared(block, layout(bytes, 8));
                        } else if random.random_bool(0.5) {
                            heap.deallocate_remote(block, layout(bytes, 8));
                        } else {
                            let more = bytes + random.random_range(0..bytes + 100);
                            let block = heap.reallocate_shared(block, layout(bytes, 8), more);
                            assert_eq!(*block, bytes as u8);
                            assert_eq!(*block.add(bytes - 1), bytes as u8);
                            heap.deallocate_shared(block, layout(more, 8));
                        }
                    }
                }
            });
        }
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let mut held = vec![];
        for _ in 0..600_000 {
            // SAFETY: this thread owns the heap, and the blocks are its own.
            unsafe {
                if held.len() < 300 {
                    let bytes = pick_bytes(&mut random);
                    let block = heap.allocate(layout(bytes, 8));
                    write(block, bytes);
                    held.push((block, bytes));
                } else {
                    let (block, bytes) = held.swap_remove(random.random_range(0..300));
                    check(block, bytes);
                    heap.deallocate(block, layout(bytes, 8));
                }
            }
        }
        for (block, bytes) in held {
            check(block, bytes);
            // SAFETY: as above.
            unsafe { heap.deallocate(block, layout(bytes, 8)) };
        }
        stop.store(true, Ordering::Relaxed);
    });
    // SAFETY: this thread owns the heap.
    let statistics = unsafe {
        heap.trim();
        heap.statistics()
    };
    assert_eq!(statistics.live_bytes, 0, "{statistics:?}");
}
