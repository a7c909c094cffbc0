//! Memory for a piece of a file.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// What reads and writes past the page cache need: addresses, offsets and lengths are multiples of it. No common device has larger
/// logical blocks (open(2), `O_DIRECT`).
pub(super) const BLOCK: usize = 4096;

/// A piece of a file in memory, which is kept and used again for the next piece.
///
/// It lies to blocks of memory as it lies to blocks of the file, so that the whole blocks around it can be read into
/// place.
#[derive(Debug, Default)]
pub struct Stretch {
    memory: Vec<u8>,
    /// Where the piece begins in the file.
    offset: u64,
    /// Where it is in `memory`.
    held: Range<usize>,
}

impl Stretch {
    /// Makes room for so many bytes of a file from `offset` on, to be filled.
    pub fn aim(&mut self, offset: u64, bytes: usize) {
        let front = front(offset);
        // The start of the first block may be anywhere in one.
        let needed = BLOCK + (front + bytes).next_multiple_of(BLOCK);
        if self.memory.len() < needed {
            self.memory.resize(needed, 0);
        }
        let start = self.memory.as_ptr().align_offset(BLOCK).min(BLOCK) + front;
        self.offset = offset;
        self.held = start..start + bytes;
    }

    /// Where the piece begins in the file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.held.clone()]
    }

    /// Its bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.held.clone()]
    }

    /// The whole blocks that the piece lies in, with the offset of the first in the file and how many of their bytes
    /// have to be there for the piece to be.
    pub(super) fn blocks_mut(&mut self) -> (u64, usize, &mut [u8]) {
        let front = front(self.offset);
        let needed = front + self.held.len();
        let start = self.held.start - front;
        let blocks = &mut self.memory[start..start + needed.next_multiple_of(BLOCK)];
        (self.offset - front as u64, needed, blocks)
    }
}

/// The same file, opened once more past the page cache; `None` where the file system can't do that.
pub(super) fn open_past_cache(file: &File, options: &mut OpenOptions) -> Option<File> {
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    options.custom_flags(libc::O_DIRECT).open(same).ok()
}

/// How far into a block an offset is.
fn front(offset: u64) -> usize {
    (offset % BLOCK as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_and_the_piece_is_in_them() {
        let mut stretch = Stretch::default();
        for (offset, bytes) in [
            (0, 0),
            (0, 1),
            (4095, 2),
            (8192, 4096),
            (12_345, 100_000),
            (7, 3),
        ] {
            stretch.aim(offset, bytes);
            let (first, needed, blocks) = stretch.blocks_mut();
            assert_eq!((first % 4096, blocks.len() % 4096), (0, 0));
            assert_eq!(blocks.as_ptr().addr() % 4096, 0);
            assert_eq!(first + needed as u64, offset + bytes as u64);
            for (byte, at) in blocks.iter_mut().zip(first..) {
                *byte = (at % 251) as u8;
            }
            let expected = (offset..offset + bytes as u64).map(|at| (at % 251) as u8);
            assert!(
                stretch.bytes().iter().copied().eq(expected),
                "{offset} {bytes}"
            );
        }
    }
}
