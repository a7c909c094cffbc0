//! A hash over everything that the ranks did.

use libckpt::Result;
use libckpt::prelude::*;

use crate::random::mix;

/// What one rank did so far, as a hash: of two histories that differ anywhere, the hashes differ.
#[derive(Clone, Debug, Default)]
pub struct History {
    state: u64,
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a word. The order of words matters.
    pub fn fold(&mut self, word: u64) {
        self.state =
            mix(self.state.rotate_left(23) ^ mix(word.wrapping_add(0x2545_f491_4f6c_dd1d)));
    }

    /// Adds the bits of a number.
    pub fn fold_float(&mut self, number: f64) {
        self.fold(number.to_bits());
    }

    /// Adds many numbers.
    pub fn fold_floats(&mut self, numbers: &[f64]) {
        self.fold(numbers.len() as u64);
        self.fold(hash_of_floats(numbers));
    }

    /// Adds bytes.
    pub fn fold_bytes(&mut self, bytes: &[u8]) {
        self.fold(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.fold(u64::from_le_bytes(last));
    }

    /// The hash of this rank's history.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.state
    }

    /// The hash of the histories of all ranks, in their order, at rank 0. Collective.
    ///
    /// # Errors
    /// Those of a gather.
    pub fn of_all(&self, world: &World) -> Result<Option<u64>> {
        let zero = world.process_at_rank(0);
        if !zero.is_self() {
            zero.gather_into(&self.state)?;
            return Ok(None);
        }
        let mut states = vec![0; world.size()];
        zero.gather_into_root(&self.state, &mut states)?;
        let mut all = Self::new();
        for state in states {
            all.fold(state);
        }
        Ok(Some(all.state))
    }

    /// Prints the last line of a solver, `result: ` and 16 hexadecimal digits, from rank 0. Collective.
    ///
    /// # Errors
    /// Those of a gather.
    pub fn print_result(&self, world: &World) -> Result<()> {
        if let Some(result) = self.of_all(world)? {
            println!("result: {result:016x}");
        }
        Ok(())
    }
}

/// A hash of the bits of many numbers, at the speed of memory: eight lanes that rotate and add, which a
/// compiler makes vector instructions of. Each step can be undone, so that one number that differs always
/// shows.
#[must_use]
pub fn hash_of_floats(numbers: &[f64]) -> u64 {
    let mut lanes = Lanes::new();
    let (blocks, rest) = numbers.as_chunks();
    for block in blocks {
        lanes.take(block.map(f64::to_bits));
    }
    rest.iter()
        .fold(lanes.hash(), |hash, number| mix(hash ^ number.to_bits()))
}

/// The same for bytes.
#[must_use]
pub fn hash_of_bytes(bytes: &[u8]) -> u64 {
    let mut lanes = Lanes::new();
    let (words, rest) = bytes.as_chunks::<8>();
    let (blocks, more) = words.as_chunks();
    for block in blocks {
        lanes.take(block.map(u64::from_le_bytes));
    }
    let hash = more.iter().fold(lanes.hash(), |hash, word| {
        mix(hash ^ u64::from_le_bytes(*word))
    });
    rest.iter()
        .fold(hash, |hash, byte| mix(hash ^ u64::from(*byte) ^ 0x100))
}

struct Lanes([u64; 8]);

impl Lanes {
    fn new() -> Self {
        Self([0x6a09_e667_f3bc_c908; 8])
    }

    #[inline]
    fn take(&mut self, words: [u64; 8]) {
        for (lane, word) in self.0.iter_mut().zip(words) {
            *lane = lane.rotate_left(7).wrapping_add(word);
        }
    }

    fn hash(self) -> u64 {
        self.0
            .into_iter()
            .fold(0, |hash, lane| mix(hash ^ lane).rotate_left(11))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_every_bit_matter() {
        let of = |words: &[u64]| {
            let mut history = History::new();
            words.iter().for_each(|&word| history.fold(word));
            history.value()
        };
        assert_eq!(of(&[1, 2]), of(&[1, 2]));
        assert_ne!(of(&[1, 2]), of(&[2, 1]));
        assert_ne!(of(&[0]), of(&[0, 0]));
        assert_ne!(of(&[1]), of(&[1 | 1 << 63]));
    }

    #[test]
    fn one_bit_of_one_number_of_many_shows() {
        let numbers: Vec<f64> = (0..1003).map(f64::from).collect();
        let hash = hash_of_floats(&numbers);
        for at in [0, 7, 8, 500, 999, 1000, 1002] {
            for bit in [0, 31, 63] {
                let mut other = numbers.clone();
                other[at] = f64::from_bits(other[at].to_bits() ^ (1 << bit));
                assert_ne!(hash_of_floats(&other), hash, "number {at}, bit {bit}");
            }
        }
        let mut swapped = numbers.clone();
        swapped.swap(3, 11);
        assert_ne!(hash_of_floats(&swapped), hash);
    }

    #[test]
    fn one_bit_of_one_byte_of_many_shows() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1003).collect();
        let hash = hash_of_bytes(&bytes);
        for at in [0, 63, 64, 960, 999, 1000, 1002] {
            let mut other = bytes.clone();
            other[at] ^= 0x10;
            assert_ne!(hash_of_bytes(&other), hash, "byte {at}");
        }
        assert_ne!(hash_of_bytes(&bytes[..1002]), hash);
        assert_ne!(hash_of_bytes(&[]), hash_of_bytes(&[0]));
    }

    #[test]
    fn bytes_are_told_apart_by_length_too() {
        let of = |bytes: &[u8]| {
            let mut history = History::new();
            history.fold_bytes(bytes);
            history.value()
        };
        assert_ne!(of(&[1]), of(&[1, 0]));
        assert_ne!(of(&[0; 8]), of(&[0; 9]));
        assert_eq!(of(&[1, 2, 3]), of(&[1, 2, 3]));
    }
}
