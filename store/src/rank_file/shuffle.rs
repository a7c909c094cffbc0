//! Bytes of words in planes: all first bytes, then all second bytes, and so on up to the eighth.
//!
//! The numbers of a solver have noise in their low bytes, where nothing compresses, and little change in
//! the high ones, where nearly all does. With words as they lie in memory the noise breaks every match;
//! in planes the high bytes are found together. On fields of `f64` this makes a chunk a quarter smaller
//! and compresses in half the time (the filter is known from HDF5 and Blosc as "shuffle").

/// Bytes of a word.
const WORD_BYTES: usize = 8;
/// Words that are turned at once.
const BLOCK_WORDS: usize = 8;
/// Lengths must be a multiple of this.
const BLOCK_BYTES: usize = WORD_BYTES * BLOCK_WORDS;

/// Splits words into planes. Both slices have the same length, a multiple of 64.
pub(super) fn to_planes(words: &[u8], planes: &mut [u8]) {
    assert_eq!(words.len(), planes.len());
    assert!(words.len().is_multiple_of(BLOCK_BYTES));
    let plane_bytes = words.len() / WORD_BYTES;
    let mut planes = split(planes, plane_bytes);
    for (at, block) in words.chunks_exact(BLOCK_BYTES).enumerate() {
        let (block, _) = block.as_chunks::<WORD_BYTES>();
        let turned = turn(std::array::from_fn(|word| u64::from_le_bytes(block[word])));
        let here = at * BLOCK_WORDS..(at + 1) * BLOCK_WORDS;
        for (plane, bytes) in planes.iter_mut().zip(turned) {
            plane[here.clone()].copy_from_slice(&bytes.to_le_bytes());
        }
    }
}

/// Puts words together from planes; undoes [`to_planes`].
pub(super) fn from_planes(planes: &[u8], words: &mut [u8]) {
    assert_eq!(words.len(), planes.len());
    assert!(words.len().is_multiple_of(BLOCK_BYTES));
    let plane_bytes = words.len() / WORD_BYTES;
    let planes: [&[[u8; BLOCK_WORDS]]; WORD_BYTES] = std::array::from_fn(|plane| {
        let plane = &planes[plane * plane_bytes..(plane + 1) * plane_bytes];
        plane.as_chunks().0
    });
    for (at, block) in words.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        let turned = turn(std::array::from_fn(|plane| {
            u64::from_le_bytes(planes[plane][at])
        }));
        let (block, _) = block.as_chunks_mut::<WORD_BYTES>();
        for (word, bytes) in block.iter_mut().zip(turned) {
            *word = bytes.to_le_bytes();
        }
    }
}

fn split(planes: &mut [u8], plane_bytes: usize) -> [&mut [u8]; WORD_BYTES] {
    let mut rest = planes;
    std::array::from_fn(|_| {
        let (plane, after) = std::mem::take(&mut rest).split_at_mut(plane_bytes);
        rest = after;
        plane
    })
}

/// Turns an 8 by 8 square of bytes: byte j of word i becomes byte i of word j. Halves, quarters and
/// single bytes change places in turn (Warren, "Hacker's Delight", 7-3).
fn turn(mut words: [u64; BLOCK_WORDS]) -> [u64; BLOCK_WORDS] {
    let mut swap = |low: usize, high: usize, bits: u32, mask: u64| {
        let differ = ((words[low] >> bits) ^ words[high]) & mask;
        words[high] ^= differ;
        words[low] ^= differ << bits;
    };
    for low in [0, 1, 2, 3] {
        swap(low, low + 4, 32, 0x0000_0000_ffff_ffff);
    }
    for low in [0, 1, 4, 5] {
        swap(low, low + 2, 16, 0x0000_ffff_0000_ffff);
    }
    for low in [0, 2, 4, 6] {
        swap(low, low + 1, 8, 0x00ff_00ff_00ff_00ff);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_b_of_word_w_is_byte_w_of_plane_b() {
        let words: Vec<u8> = (0..640u32).map(|at| (at * 7 + at / 256) as u8).collect();
        let mut planes = vec![0; words.len()];
        to_planes(&words, &mut planes);
        for (at, byte) in words.iter().enumerate() {
            assert_eq!(planes[at % 8 * 80 + at / 8], *byte, "{at}");
        }
        let mut again = vec![0; words.len()];
        from_planes(&planes, &mut again);
        assert_eq!(again, words);
    }
}
