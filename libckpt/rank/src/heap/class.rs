//! Size classes of small blocks.
//!
//! Up to 1 KiB the classes follow the back end's own chunks (16 bytes apart, 8 of them the chunk's
//! header), so that nothing is lost by rounding. Above, there are four classes per doubling, with
//! powers of two among them: the sizes that a growing `Vec` asks for.

/// Largest block, in bytes, that the front keeps a free list for.
pub(super) const FRONT_BYTES_MAX: usize = 32 << 10;

/// Alignment of every block of the front and of every plain block of the back end.
pub(super) const BLOCK_ALIGN: usize = 16;

/// Number of classes 16 bytes apart: 24, 40, …, 1016, 1032 bytes.
const FINE: usize = 64;

/// Largest block of the fine classes.
const FINE_BYTES_MAX: usize = class_bytes(FINE - 1);

/// Number of classes.
pub(super) const CLASSES: usize = class_of(FRONT_BYTES_MAX) + 1;

/// The class whose blocks hold `bytes` (at most [`FRONT_BYTES_MAX`]).
#[inline]
pub(super) const fn class_of(bytes: usize) -> usize {
    if bytes <= FINE_BYTES_MAX {
        // 0..=24 is class 0, 25..=40 class 1, and so on.
        bytes.saturating_sub(9) / 16
    } else {
        let octave = (bytes - 1).ilog2() as usize;
        let quarter = (bytes - 1) >> (octave - 2);
        FINE + (octave - 10) * 4 + (quarter - 4)
    }
}

/// Size of a class's blocks, in bytes.
#[inline]
pub(super) const fn class_bytes(class: usize) -> usize {
    if class < FINE {
        16 * class + 24
    } else {
        let coarse = class - FINE;
        (coarse % 4 + 5) << (coarse / 4 + 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_class_and_not_the_one_below() {
        for bytes in 0..=FRONT_BYTES_MAX {
            let class = class_of(bytes);
            assert!(class < CLASSES);
            assert!(
                bytes <= class_bytes(class),
                "{bytes} bytes in class {class}"
            );
            if class > 0 {
                assert!(
                    bytes > class_bytes(class - 1),
                    "{bytes} bytes in class {class}"
                );
            }
        }
    }

    #[test]
    fn powers_of_two_above_a_kibibyte_are_not_rounded() {
        for shift in 11..=15 {
            assert_eq!(class_bytes(class_of(1 << shift)), 1 << shift);
        }
    }

    #[test]
    fn a_block_holds_the_two_words_of_a_remote_free() {
        assert!(class_bytes(0) >= 2 * size_of::<usize>());
    }
}
