//! The contents of pages.

/// Bytes that are looked at at once.
const WORD_BYTES: usize = 64;

/// Whether a page is all zeros. Most that are not show it in their first bytes.
#[inline]
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<WORD_BYTES>();
    // The length of a word is known, so that it is one or two instructions.
    let are_zeros = |word: &[u8; WORD_BYTES]| word.iter().fold(0, |all, &byte| all | byte) == 0;
    words.iter().all(are_zeros) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_makes_a_page_none_of_zeros() {
        for bytes in [0, 1, 64, 4096, 4100] {
            let mut page = vec![0_u8; bytes];
            assert!(is_zero(&page));
            for at in 0..bytes {
                page[at] = 1 << (at % 8);
                assert!(!is_zero(&page), "byte {at} of {bytes}");
                page[at] = 0;
            }
        }
    }
}
