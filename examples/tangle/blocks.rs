//! Memory that comes and goes: blocks from a few bytes to megabytes, taken, written here and there, grown, cut and given
//! back at random, in no order that an allocator could like.
//!
//! The rank keeps a digest of each block. After a restart, which it notices by the process that it is in, it looks at
//! all of them before it does anything else: its memory must be what it was at the cut.

use examples::history::hash_of_bytes;
use examples::{History, Random};

use crate::{Ring, Strand};

/// What is done in a round; ranks pass a word before each.
const ACTIONS: usize = 4;

const PAGE: usize = 4096;

struct Block {
    bytes: Vec<u8>,
    digest: u64,
}

impl Block {
    /// Takes the digest of what the block is now.
    fn note(&mut self) {
        self.digest = hash_of_bytes(&self.bytes);
    }
}

/// Blocks of a rank, of so many bytes at most.
pub(crate) struct Blocks {
    random: Random,
    blocks: Vec<Block>,
    limit_bytes: usize,
    /// The process that the rank was in when it last looked.
    process: u32,
    taken: u64,
}

impl Blocks {
    pub(crate) fn new(seed: u64, limit_bytes: usize) -> Self {
        Self {
            random: Random::new(seed),
            blocks: Vec::new(),
            limit_bytes,
            process: std::process::id(),
            taken: 0,
        }
    }

    fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes.len()).sum()
    }

    /// From a few bytes to a quarter of the limit; sizes of all orders are as likely.
    fn size(&mut self) -> usize {
        let largest = (self.limit_bytes / 4).max(64).ilog2() as usize;
        let order = 4 + self.random.below(largest - 3);
        (1 << order) + self.random.below(1 << order)
    }

    fn act(&mut self, word: u64) {
        let which = self.random.below(16);
        if self.blocks.is_empty() || which < 4 {
            self.take(word);
        }
        let at = self.random.below(self.blocks.len());
        match which {
            0..4 => {}
            4..=6 => drop(self.blocks.swap_remove(at)),
            7 => self.resize(at, word),
            8 => self.blocks[at].bytes.fill(0),
            9..=10 => self.write_all(at, word),
            _ => self.write_some(at, word),
        }
        if which >= 7 {
            self.blocks[at].note();
        }
        // The oldest make way.
        while self.bytes() > self.limit_bytes {
            self.blocks.remove(0);
        }
    }

    /// Takes a new block: zeroes that nobody touches, or noise.
    fn take(&mut self, word: u64) {
        let size = self.size();
        self.taken += 1;
        self.blocks.push(Block {
            bytes: vec![0; size],
            digest: 0,
        });
        let last = self.blocks.len() - 1;
        if !self.taken.is_multiple_of(3) {
            self.write_all(last, word);
        }
        self.blocks[last].note();
    }

    /// Grows or cuts a block, which may move it.
    fn resize(&mut self, at: usize, word: u64) {
        let size = self.size();
        let block = &mut self.blocks[at];
        block.bytes.resize(size, word as u8);
        block.bytes.shrink_to_fit();
    }

    fn write_all(&mut self, at: usize, word: u64) {
        let mut noise = Random::new(word ^ self.random.word());
        for chunk in self.blocks[at].bytes.chunks_mut(8) {
            chunk.copy_from_slice(&noise.word().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Writes a byte in some of its pages.
    fn write_some(&mut self, at: usize, word: u64) {
        let block = &mut self.blocks[at];
        let mut page = self.random.below(3 * PAGE);
        while page < block.bytes.len() {
            block.bytes[page] ^= (word as u8) | 1;
            page += 1 + self.random.below(16 * PAGE);
        }
    }

    /// The first block that is not what its digest says.
    fn damaged(&self) -> Option<usize> {
        self.blocks
            .iter()
            .position(|block| hash_of_bytes(&block.bytes) != block.digest)
    }

    fn check_after_restart(&mut self) {
        let process = std::process::id();
        if process != self.process {
            self.process = process;
            if let Some(at) = self.damaged() {
                panic!(
                    "after a restart block {at} of {}, of {} bytes, is not what it was",
                    self.blocks.len(),
                    self.blocks[at].bytes.len()
                );
            }
        }
    }
}

impl Strand for Blocks {
    fn twist(&mut self, round: u64, ring: &Ring<'_>, history: &mut History) -> libckpt::Result<()> {
        self.check_after_restart();
        for action in 0..ACTIONS as u64 {
            let word = ring.pass(round << 8 | action)?;
            self.check_after_restart();
            let own = self.random.word();
            self.act(word ^ own);
        }
        history.fold(self.blocks.len() as u64);
        for block in &self.blocks {
            history.fold(block.digest);
        }
        if round.is_multiple_of(64) {
            assert_eq!(self.damaged(), None, "a block changed by itself");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stay_within_their_limit_and_true_to_their_digests() {
        let mut blocks = Blocks::new(5, 1 << 20);
        let mut sizes = Vec::new();
        for word in 0..3000 {
            blocks.act(word);
            assert!(blocks.bytes() <= 1 << 20);
            sizes.push(blocks.bytes());
        }
        assert_eq!(blocks.damaged(), None);
        assert!(sizes.iter().max().unwrap() > &(1 << 18), "{sizes:?}");
    }

    #[test]
    fn a_byte_that_is_not_what_it_was_shows_after_a_restart() {
        let mut blocks = Blocks::new(5, 1 << 20);
        (0..100).for_each(|word| blocks.act(word));
        let last = blocks.blocks.len() - 1;
        blocks.blocks[last].bytes[7] ^= 1;
        assert_eq!(blocks.damaged(), Some(last));
        blocks.check_after_restart();
        blocks.process = 0;
        let check = std::panic::AssertUnwindSafe(|| blocks.check_after_restart());
        assert!(std::panic::catch_unwind(check).is_err());
    }
}
