//! A set of pages that shrinks while it is asked: a bit for each page of a slot.

use std::ops::Range;

use crate::context::in_process;

const BITS: u64 = 64;

/// Numbers of pages, or of anything else that there is a limited number of.
#[derive(Debug)]
pub struct Pages {
    words: Box<[u64]>,
    count: u64,
}

impl Pages {
    /// None of so many. Memory is taken as far as numbers are put in.
    #[must_use]
    pub fn none_of(count: u64) -> Self {
        let words = count.div_ceil(BITS) as usize;
        Self {
            words: in_process(|| vec![0; words].into_boxed_slice()),
            count: 0,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether this one is in it.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        let word = self.words.get((page / BITS) as usize);
        word.is_some_and(|word| word >> (page % BITS) & 1 == 1)
    }

    /// Puts a range in, as far as there are such numbers.
    pub fn insert(&mut self, range: &Range<u64>) {
        self.change(range, |word, mask| *word |= mask);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: &Range<u64>) {
        self.change(range, |word, mask| *word &= !mask);
    }

    fn change(&mut self, range: &Range<u64>, change: impl Fn(&mut u64, u64)) {
        let end = range.end.min(self.words.len() as u64 * BITS);
        let mut at = range.start;
        while at < end {
            let bit = at % BITS;
            let bits = (BITS - bit).min(end - at);
            let mask = u64::MAX >> (BITS - bits) << bit;
            let word = &mut self.words[(at / BITS) as usize];
            let before = word.count_ones();
            change(word, mask);
            self.count = self.count + u64::from(word.count_ones()) - u64::from(before);
            at += bits;
        }
    }

    /// The first one of a range.
    #[must_use]
    pub fn first_in(&self, range: &Range<u64>) -> Option<u64> {
        self.find(range, |word| word)
    }

    /// The first run of a range.
    #[must_use]
    pub fn run_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let start = self.first_in(range)?;
        let end = self.find(&(start..range.end), |word| !word);
        Some(start..end.unwrap_or(range.end))
    }

    /// All runs of a range, ascending.
    pub fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut left = range;
        std::iter::from_fn(move || {
            let run = self.run_in(&left)?;
            left.start = run.end;
            Some(run)
        })
    }

    fn find(&self, range: &Range<u64>, of: impl Fn(u64) -> u64) -> Option<u64> {
        let end = range.end.min(self.words.len() as u64 * BITS);
        let mut at = range.start;
        while at < end {
            let bit = at % BITS;
            let word = of(self.words[(at / BITS) as usize]) >> bit;
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < end).then_some(found);
            }
            at += BITS - bit;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn it_is_a_set() {
        let seed = 7;
        println!("seed {seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = 300;
        let (mut pages, mut model) = (Pages::none_of(count), BTreeSet::new());
        for _ in 0..3000 {
            let start = random.random_range(0..count);
            let range = start..random.random_range(start..=count);
            if random.random_range(0..2) == 0 {
                pages.insert(&range);
                model.extend(range);
            } else {
                pages.remove(&range);
                model.retain(|page| !range.contains(page));
            }
            assert_eq!(pages.count(), model.len() as u64);
            let start = random.random_range(0..count);
            let asked = start..random.random_range(start..=count);
            assert_eq!(
                pages.first_in(&asked),
                model.range(asked.clone()).next().copied()
            );
            let found: Vec<u64> = pages.runs_in(asked.clone()).flatten().collect();
            assert!(found.iter().eq(model.range(asked)), "{found:?}");
            assert_eq!(pages.contains(start), model.contains(&start));
        }
    }

    #[test]
    fn what_there_can_not_be_is_not_in_it() {
        let mut pages = Pages::none_of(100);
        pages.insert(&(90..500));
        assert!(!pages.contains(400) && pages.contains(99));
        assert_eq!(pages.first_in(&(200..300)), None);
    }
}
