//! Digests of a rank's pages in the checkpoint that the next one builds on.
//!
//! A page whose digest is the same is not written again. XXH3 with 128 bits, the digest that the store trusts
//! for whole files: two different pages have the same one with a chance of 2^-128, far below that of a flipped
//! bit in memory. Per page and not per block of 64 KiB, so that a few changed pages here and there do not
//! make everything look changed; 16 bytes for a page of 4 KiB.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use store::PAGE_BYTES;
use xxhash_rust::xxh3::xxh3_128;

/// The digest of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime) struct Digest(u128);

impl Digest {
    pub(in crate::runtime) fn of(page: &[u8]) -> Self {
        debug_assert_eq!(page.len(), PAGE_BYTES);
        Self(xxh3_128(page))
    }
}

/// Pages whose digests lie together.
const GROUP: u64 = 512;

/// What is in the place of a digest that is not known. A page that happens to have it is written each time.
const UNKNOWN: u128 = 0;

/// The digests of a rank's pages.
#[derive(Default)]
pub(super) struct Digests(RwLock<HashMap<u64, Box<[u128; GROUP as usize]>>>);

impl Digests {
    /// Calls `each` with the index of each page and whether its digest is known to be the one given.
    pub(super) fn compare(
        &self,
        pages: &[u64],
        digests: &[Digest],
        mut each: impl FnMut(usize, bool),
    ) {
        let groups = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (index, (page, digest)) in pages.iter().zip(digests).enumerate() {
            let number = page / GROUP;
            let group = match found {
                Some((last, group)) if last == number => group,
                _ => groups.get(&number),
            };
            found = Some((number, group));
            let known = group.map_or(UNKNOWN, |group| group[(page % GROUP) as usize]);
            each(index, known != UNKNOWN && known == digest.0);
        }
    }

    /// The pages are like this now.
    pub(super) fn update(&self, changed: &[(u64, Digest)]) {
        let mut groups = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (page, digest) in changed {
            let group = groups
                .entry(page / GROUP)
                .or_insert_with(|| Box::new([UNKNOWN; GROUP as usize]));
            group[(page % GROUP) as usize] = digest.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_are_known_and_the_same_are_unchanged() {
        let page = |byte: u8| Digest::of(&[byte; PAGE_BYTES]);
        let digests = Digests::default();
        digests.update(&[(5, page(1)), (511, page(2)), (512, page(3))]);
        digests.update(&[(511, page(4))]);
        let mut same = Vec::new();
        digests.compare(
            &[4, 5, 511, 512, 9000],
            &[page(1), page(1), page(2), page(3), page(3)],
            |index, is_same| same.push((index, is_same)),
        );
        assert_eq!(
            same,
            [(0, false), (1, true), (2, false), (3, true), (4, false)]
        );
    }
}
