//! Random operations against a model: a list of the blocks that are allocated, and what is in them.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::region::{Region, layout};

/// A block and the seed of its contents.
#[derive(Clone, Copy)]
struct Block {
    bytes: usize,
    align: usize,
    seed: u8,
}

/// Offsets of a block that the test writes to and checks: all of small ones, and samples of large ones.
fn sampled(bytes: usize) -> impl Iterator<Item = usize> {
    let step = if bytes <= 4096 { 1 } else { 1021 };
    (0..bytes).step_by(step).chain([bytes - 1])
}

fn content(seed: u8, offset: usize) -> u8 {
    // Never zero: what was lost reads as zeros.
    (seed.wrapping_add((offset % 251) as u8)) | 1
}

struct Player {
    region: Region,
    blocks: BTreeMap<usize, Block>,
    random: ChaCha8Rng,
    /// Largest block, in bytes.
    bytes_max: usize,
}

impl Player {
    fn new(seed: u64, heap_bytes: usize, bytes_max: usize) -> Self {
        println!("seed {seed}, heap of {heap_bytes} bytes, blocks of up to {bytes_max}");
        Self {
            region: Region::new(heap_bytes),
            blocks: BTreeMap::new(),
            random: ChaCha8Rng::seed_from_u64(seed),
            bytes_max,
        }
    }

    fn pick_bytes(&mut self) -> usize {
        let octaves = self.bytes_max.ilog2();
        let octave = self.random.random_range(0..=octaves);
        self.random
            .random_range(1..=(2usize << octave).min(self.bytes_max))
    }

    fn pick_align(&mut self) -> usize {
        match self.random.random_range(0..20) {
            0 => 1 << self.random.random_range(5..23),
            1..5 => 64,
            _ => 1 << self.random.random_range(0..5),
        }
    }

    fn pick_block(&mut self) -> Option<(usize, Block)> {
        if self.blocks.is_empty() {
            return None;
        }
        let from = self.random.random_range(self.region.addresses());
        let (&at, &block) = self
            .blocks
            .range(from..)
            .next()
            .or_else(|| self.blocks.iter().next())?;
        Some((at, block))
    }

    fn fill(&mut self, at: usize, mut block: Block) {
        block.seed = self.random.random();
        for offset in sampled(block.bytes) {
            // SAFETY: inside a block of ours.
            unsafe { *((at + offset) as *mut u8) = content(block.seed, offset) };
        }
        self.blocks.insert(at, block);
    }

    fn check(&self, at: usize, block: Block, bytes: usize) {
        for offset in sampled(block.bytes).filter(|&offset| offset < bytes) {
            // SAFETY: inside a block of ours.
            let found = unsafe { *((at + offset) as *const u8) };
            assert_eq!(
                found,
                content(block.seed, offset),
                "byte {offset} of a block of {} at {at:#x} changed",
                block.bytes
            );
        }
    }

    /// Checks that a new block lies in the heap and touches no other.
    fn check_place(&self, at: usize, block: Block) {
        assert_eq!(at % block.align, 0, "misaligned for {}", block.align);
        let heap = self.region.addresses();
        assert!(at >= heap.start && at + block.bytes <= heap.end);
        if let Some((&before, other)) = self.blocks.range(..=at).next_back() {
            assert!(before + other.bytes <= at, "two blocks overlap at {at:#x}");
        }
        if let Some((&after, _)) = self.blocks.range(at..).next() {
            assert!(
                at + block.bytes <= after,
                "two blocks overlap at {after:#x}"
            );
        }
    }

    fn allocate(&mut self) {
        let block = Block {
            bytes: self.pick_bytes(),
            align: self.pick_align(),
            seed: 0,
        };
        let zeroed = self.random.random_bool(0.2);
        let shared = self.random.random_bool(0.1);
        let heap = self.region.heap();
        let layout = layout(block.bytes, block.align);
        // SAFETY: this thread owns the heap.
        let at = unsafe {
            match (zeroed, shared) {
                (false, false) => heap.allocate(layout),
                (true, false) => heap.allocate_zeroed(layout),
                (false, true) => heap.allocate_shared(layout),
                (true, true) => heap.allocate_zeroed_shared(layout),
            }
        };
        if at.is_null() {
            self.free_some();
            return;
        }
        self.check_place(at.addr(), block);
        if zeroed {
            for offset in sampled(block.bytes) {
                // SAFETY: inside the block.
                assert_eq!(unsafe { *at.add(offset) }, 0, "not zero at {offset}");
            }
        }
        self.fill(at.addr(), block);
    }

    fn free(&mut self) {
        let Some((at, block)) = self.pick_block() else {
            return;
        };
        self.check(at, block, block.bytes);
        self.blocks.remove(&at);
        let layout = layout(block.bytes, block.align);
        let heap = self.region.heap();
        // SAFETY: a block of ours that the model forgets.
        unsafe {
            match self.random.random_range(0..10) {
                0 => heap.deallocate_shared(at as *mut u8, layout),
                1 => heap.deallocate_remote(at as *mut u8, layout),
                _ => heap.deallocate(at as *mut u8, layout),
            }
        }
    }

    fn free_some(&mut self) {
        for _ in 0..10 {
            self.free();
        }
    }

    fn resize(&mut self) {
        let Some((at, block)) = self.pick_block() else {
            return;
        };
        let bytes = match self.random.random_range(0..4) {
            // What a growing `Vec` does.
            0..3 if block.bytes * 2 <= self.bytes_max => block.bytes * 2,
            _ => self.pick_bytes(),
        };
        let layout = layout(block.bytes, block.align);
        let heap = self.region.heap();
        // SAFETY: a block of ours; the model takes the new one for it.
        let new = unsafe {
            if self.random.random_bool(0.1) {
                heap.reallocate_shared(at as *mut u8, layout, bytes)
            } else {
                heap.reallocate(at as *mut u8, layout, bytes)
            }
        };
        if new.is_null() {
            self.check(at, block, block.bytes);
            self.free_some();
            return;
        }
        self.blocks.remove(&at);
        let resized = Block { bytes, ..block };
        self.check_place(new.addr(), resized);
        self.check(new.addr(), block, bytes.min(block.bytes));
        self.fill(new.addr(), resized);
    }

    fn check_all(&self) {
        for (&at, &block) in &self.blocks {
            self.check(at, block, block.bytes);
        }
        let asked: usize = self.blocks.values().map(|block| block.bytes).sum();
        // SAFETY: this thread owns the heap.
        let statistics = unsafe {
            self.region.heap().drain_remote();
            self.region.heap().statistics()
        };
        assert!(
            statistics.live_bytes >= asked,
            "{statistics:?}, {asked} bytes asked for"
        );
        assert!(statistics.live_bytes <= statistics.mapped_bytes);
    }

    /// Plays `steps` operations; `restores` times of these the heap is taken through an image.
    fn play(&mut self, steps: usize, restores: usize) {
        for step in 1..=steps {
            match self.random.random_range(0..100) {
                0..45 => self.allocate(),
                45..75 => self.free(),
                75..99 => self.resize(),
                // SAFETY: this thread owns the heap.
                _ => unsafe { self.region.heap().drain_remote() },
            }
            if step % (steps / 200).max(1) == 0 && self.random.random_bool(0.02) {
                // SAFETY: this thread owns the heap.
                unsafe { self.region.heap().trim() };
            }
            if restores > 0 && step % (steps / restores) == 0 {
                self.check_all();
                // SAFETY: this thread owns the heap.
                unsafe { self.region.heap().drain_remote() };
                self.region.wipe_and_restore(self.region.image());
                self.check_all();
            }
        }
        self.check_all();
        while !self.blocks.is_empty() {
            self.free();
        }
        // SAFETY: this thread owns the heap.
        let statistics = unsafe {
            self.region.heap().trim();
            self.region.heap().statistics()
        };
        assert_eq!(statistics.live_bytes, 0, "{statistics:?}");
        assert_eq!(statistics.front_bytes, 0, "{statistics:?}");
    }
}

#[test]
fn random_operations_keep_all_contents_and_never_overlap() {
    for seed in 0..4 {
        Player::new(seed, 8 << 30, 64 << 10).play(40_000, 0);
        Player::new(seed, 8 << 30, 24 << 20).play(1_000, 0);
    }
}

#[test]
fn a_heap_taken_through_an_image_goes_on_as_if_nothing_had_happened() {
    for seed in 100..104 {
        Player::new(seed, 8 << 30, 64 << 10).play(20_000, 10);
        Player::new(seed, 8 << 30, 24 << 20).play(600, 4);
    }
}

#[test]
fn a_heap_that_is_often_full_stays_sound() {
    for seed in 200..204 {
        Player::new(seed, 48 << 20, 12 << 20).play(3_000, 3);
        Player::new(seed, 4 << 20, 100 << 10).play(20_000, 5);
    }
}
