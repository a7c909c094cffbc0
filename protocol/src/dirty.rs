//! Which pages a checkpoint must hold: the union of what was written since its parent's cut.
//!
//! The kernel tells what was written since the last cut, and forgets it at once (the scan protects the
//! pages again). An aborted epoch has made it forget pages that no checkpoint holds. So what every cut
//! found is kept until an epoch of that cut or a later one is committed.
//!
//! Should the parent's files be lost, the coordinator has every rank forget it ([`Dirty::rebase`]): the next
//! snapshot holds the whole image.

use std::ops::Range;

use crate::faults::{Fault, Faults, Sound};
use crate::ids::Epoch;

/// A set of pages as ranges of page numbers: sorted, apart from each other, none empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageSet {
    ranges: Vec<Range<u64>>,
}

impl PageSet {
    /// No page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The ranges, in order.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }

    /// Whether a page is in the set.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        let after = self.ranges.partition_point(|range| range.start <= page);
        after > 0 && page < self.ranges[after - 1].end
    }

    /// Whether there is no page in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The pages that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        let mut others = other.ranges.iter().peekable();
        for range in &self.ranges {
            while others.next_if(|other| other.end <= range.start).is_some() {}
            let mut left = others.clone();
            while let Some(other) = left.next_if(|other| other.start < range.end) {
                ranges.push(range.start.max(other.start)..range.end.min(other.end));
            }
        }
        Self { ranges }
    }

    /// The pages that are not in the other set.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        let mut others = other.ranges.iter().peekable();
        for range in &self.ranges {
            while others.next_if(|other| other.end <= range.start).is_some() {}
            let mut start = range.start;
            let mut left = others.clone();
            while let Some(other) = left.next_if(|other| other.start < range.end) {
                if start < other.start {
                    ranges.push(start..other.start);
                }
                start = other.end;
            }
            if start < range.end {
                ranges.push(start..range.end);
            }
        }
        Self { ranges }
    }

    /// Adds all pages of another set.
    pub fn unite(&mut self, other: &Self) {
        self.ranges = join(
            self.ranges
                .drain(..)
                .chain(other.ranges.iter().cloned())
                .collect(),
        );
    }
}

impl FromIterator<Range<u64>> for PageSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        Self {
            ranges: join(ranges.into_iter().collect()),
        }
    }
}

fn join(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What a snapshot of a rank has to hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Since {
    /// The committed epoch that holds all other pages; `None`: hold the whole image.
    pub parent: Option<Epoch>,
    /// The pages that may differ from the parent.
    pub pages: PageSet,
}

/// The dirty pages of one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dirty<F: Faults = Sound> {
    parent: Option<Epoch>,
    /// What each cut after the parent's has found.
    cuts: Vec<(Epoch, PageSet)>,
    /// What other scans have found since the last cut.
    between: PageSet,
    faults: F,
}

impl Dirty {
    /// A rank that starts from `parent`, or from the beginning.
    #[must_use]
    pub fn new(parent: Option<Epoch>) -> Self {
        Self::with_faults(parent, Sound)
    }
}

impl<F: Faults> Dirty<F> {
    /// Like [`Dirty::new`], with a deliberate mistake: for the tests of the tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_faults(parent: Option<Epoch>, faults: F) -> Self {
        Self {
            parent,
            cuts: Vec::new(),
            between: PageSet::new(),
            faults,
        }
    }

    /// The committed epoch that the next snapshot builds on.
    #[must_use]
    pub fn parent(&self) -> Option<Epoch> {
        self.parent
    }

    /// A scan that was none of a cut, for a move of the rank, has found these pages written since the scan before, and the
    /// kernel has forgotten it. They count as written for the next cut.
    pub fn found_between(&mut self, written: &PageSet) {
        self.between.unite(written);
    }

    /// All that the scans so far have found written since the cut of the parent, whatever became of the cuts that found it.
    #[must_use]
    pub fn found(&self) -> PageSet {
        let mut pages = self.between.clone();
        for (_, found) in &self.cuts {
            pages.unite(found);
        }
        pages
    }

    /// The rank was cut for `epoch`, and `written` was found written since the cut before (or the start),
    /// whatever became of that one. Tells what this snapshot has to hold. What scans between the two have found
    /// ([`Dirty::found_between`]) counts as found by this cut.
    ///
    /// # Panics
    /// If a cut of this epoch or a later one was taken before.
    #[must_use]
    pub fn cut(&mut self, epoch: Epoch, mut written: PageSet) -> Since {
        written.unite(&std::mem::take(&mut self.between));
        let last = self.cuts.last().map(|cut| cut.0).max(self.parent);
        assert!(last < Some(epoch), "{epoch} was cut after {last:?}");
        self.cuts.push((epoch, written));
        Since {
            parent: self.parent,
            pages: self.found(),
        }
    }

    /// The epoch is a checkpoint: later ones hold only what was written after its cut.
    pub fn committed(&mut self, epoch: Epoch) {
        self.cuts.retain(|cut| cut.0 > epoch);
        self.parent = self.parent.max(Some(epoch));
    }

    /// The epoch will never be a checkpoint. Its pages stay: nothing else knows of them.
    pub fn aborted(&mut self, epoch: Epoch) {
        if self.faults.has(Fault::AbortedPagesForgotten) {
            self.cuts.retain(|cut| cut.0 != epoch);
        }
        if self.faults.has(Fault::AbortedTakenAsParent) {
            self.committed(epoch);
        }
    }

    /// What the parent holds is not there any more: the next snapshots hold whole images, until one of them is a
    /// checkpoint.
    ///
    /// What the cuts have found stays. One of them may be of a checkpoint whose news has not come yet, and later ones will
    /// build on that.
    pub fn rebase(&mut self) {
        if !self.faults.has(Fault::RebaseIgnored) {
            self.parent = None;
        }
        if self.faults.has(Fault::RebaseForgetsCuts) {
            self.cuts.clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a set of one range is meant
mod tests {
    use super::*;

    fn pages(ranges: &[Range<u64>]) -> PageSet {
        ranges.iter().cloned().collect()
    }

    #[test]
    fn ranges_join_where_they_touch_or_overlap() {
        let set = pages(&[8..9, 0..2, 2..4, 3..5, 6..6]);
        assert_eq!(set.ranges(), [0..5, 8..9]);
        assert_eq!(set.pages(), 6);
        assert!(set.contains(4) && !set.contains(5) && set.contains(8) && !set.contains(9));
    }

    #[test]
    fn after_a_rebase_whole_images_are_held_until_one_of_them_is_a_checkpoint() {
        let mut dirty = Dirty::new(Some(Epoch(1)));
        let _ = dirty.cut(Epoch(2), pages(&[0..1]));
        dirty.aborted(Epoch(2));
        dirty.rebase();
        assert_eq!(dirty.cut(Epoch(3), pages(&[4..5])).parent, None);
        dirty.aborted(Epoch(3));
        assert_eq!(dirty.cut(Epoch(4), pages(&[5..6])).parent, None);
        dirty.committed(Epoch(4));
        let since = dirty.cut(Epoch(5), pages(&[7..8]));
        assert_eq!(since.parent, Some(Epoch(4)));
        assert_eq!(since.pages, pages(&[7..8]));
    }

    #[test]
    fn a_rebase_that_is_heard_late_loses_no_page_of_the_checkpoint_after_it() {
        // The process hears of the abort of 2 only when it has cut for 4; 3 is a checkpoint meanwhile.
        let mut dirty = Dirty::new(Some(Epoch(1)));
        let _ = dirty.cut(Epoch(2), pages(&[0..1]));
        let _ = dirty.cut(Epoch(3), pages(&[2..3]));
        let _ = dirty.cut(Epoch(4), pages(&[4..5]));
        dirty.aborted(Epoch(2));
        dirty.rebase();
        dirty.committed(Epoch(3));
        let since = dirty.cut(Epoch(5), pages(&[6..7]));
        assert_eq!(since.parent, Some(Epoch(3)));
        assert_eq!(since.pages, pages(&[4..5, 6..7]));
    }

    proptest::proptest! {
        #[test]
        fn sets_are_joined_cut_and_subtracted_page_by_page(
            a in proptest::collection::vec((0_u64..40, 0_u64..8), 0..8),
            b in proptest::collection::vec((0_u64..40, 0_u64..8), 0..8),
        ) {
            let set = |ranges: &[(u64, u64)]| -> PageSet {
                ranges.iter().map(|&(start, pages)| start..start + pages).collect()
            };
            let (a, b) = (set(&a), set(&b));
            let mut union = a.clone();
            union.unite(&b);
            let (both, only_a) = (a.intersection(&b), a.difference(&b));
            for page in 0..50 {
                let (in_a, in_b) = (a.contains(page), b.contains(page));
                proptest::prop_assert_eq!(union.contains(page), in_a || in_b);
                proptest::prop_assert_eq!(both.contains(page), in_a && in_b);
                proptest::prop_assert_eq!(only_a.contains(page), in_a && !in_b);
            }
            for set in [&both, &only_a] {
                let rebuilt: PageSet = set.ranges().iter().cloned().collect();
                proptest::prop_assert_eq!(rebuilt.pages(), set.pages());
            }
        }
    }

    #[test]
    fn the_first_snapshot_has_no_parent() {
        let mut dirty = Dirty::new(None);
        assert_eq!(dirty.cut(Epoch(1), pages(&[0..1])).parent, None);
    }

    #[test]
    fn after_a_commit_only_what_was_written_since_is_held() {
        let mut dirty = Dirty::new(None);
        let _ = dirty.cut(Epoch(1), pages(&[0..4]));
        dirty.committed(Epoch(1));
        let since = dirty.cut(Epoch(2), pages(&[6..7]));
        assert_eq!(since.parent, Some(Epoch(1)));
        assert_eq!(since.pages, pages(&[6..7]));
    }

    #[test]
    fn what_a_scan_between_two_cuts_has_found_belongs_to_the_next_and_outlives_its_abort() {
        let mut dirty = Dirty::new(Some(Epoch(1)));
        dirty.found_between(&pages(&[0..2]));
        dirty.found_between(&pages(&[7..8]));
        let since = dirty.cut(Epoch(2), pages(&[3..4]));
        assert_eq!(since.pages, pages(&[0..2, 3..4, 7..8]));
        dirty.aborted(Epoch(2));
        let since = dirty.cut(Epoch(3), pages(&[]));
        assert_eq!(since.pages, pages(&[0..2, 3..4, 7..8]));
        dirty.committed(Epoch(3));
        // Found after the cut of the checkpoint, heard of before.
        dirty.found_between(&pages(&[5..6]));
        dirty.committed(Epoch(3));
        assert_eq!(dirty.cut(Epoch(4), pages(&[])).pages, pages(&[5..6]));
    }

    #[test]
    fn an_aborted_epoch_leaves_its_pages_to_the_next() {
        let mut dirty = Dirty::new(Some(Epoch(1)));
        let _ = dirty.cut(Epoch(2), pages(&[0..4]));
        dirty.aborted(Epoch(2));
        let _ = dirty.cut(Epoch(3), pages(&[2..6]));
        dirty.aborted(Epoch(3));
        let since = dirty.cut(Epoch(4), PageSet::new());
        assert_eq!(since.parent, Some(Epoch(1)));
        assert_eq!(since.pages, pages(&[0..6]));
    }

    #[test]
    fn a_cut_before_the_last_is_decided_builds_on_the_last_known_checkpoint() {
        let mut dirty = Dirty::new(Some(Epoch(1)));
        let _ = dirty.cut(Epoch(2), pages(&[0..1]));
        let since = dirty.cut(Epoch(3), pages(&[4..5]));
        assert_eq!(since.parent, Some(Epoch(1)));
        assert_eq!(since.pages, pages(&[0..1, 4..5]));
        dirty.committed(Epoch(2));
        dirty.aborted(Epoch(3));
        let since = dirty.cut(Epoch(4), PageSet::new());
        assert_eq!(since.parent, Some(Epoch(2)));
        assert_eq!(since.pages, pages(&[4..5]));
    }

    proptest::proptest! {
        /// A page-by-page model: the base that the rank knows of plus the pages always gives the memory at the
        /// cut, however late it hears what became of its snapshots.
        #[test]
        fn base_and_pages_give_the_memory_of_the_cut(
            rounds in proptest::collection::vec(
                (proptest::collection::vec(0_usize..12, 0..6), 0..3_usize, 0..4_u8, 0..4_usize), 1..16)
        ) {
            let mut memory = [0_u64; 12];
            let mut copies = std::collections::BTreeMap::new();
            let mut news = std::collections::VecDeque::new();
            let mut dirty = Dirty::new(None);
            let mut base = None;
            for (round, (writes, between, fate, heard)) in rounds.into_iter().enumerate() {
                let epoch = Epoch(round as u64 + 1);
                for &page in &writes {
                    memory[page] += 1;
                }
                // Moves have looked once or more, the cut finds the rest.
                let set = |writes: &[usize]| -> PageSet {
                    writes.iter().map(|&page| page as u64..page as u64 + 1).collect()
                };
                let seen = between.min(writes.len());
                for write in &writes[..seen] {
                    dirty.found_between(&set(&[*write]));
                }
                // What was not found yet is in none of the sets; with it, they are what the cut finds.
                let mut found = dirty.found();
                found.unite(&set(&writes[seen..]));
                let written = set(&writes[seen..]);
                let since = dirty.cut(epoch, written);
                proptest::prop_assert_eq!(&since.pages, &found);
                proptest::prop_assert_eq!(since.parent, base);
                if let Some(base) = base {
                    let mut restored: [u64; 12] = copies[&base];
                    for range in since.pages.ranges() {
                        let range = range.start as usize..range.end as usize;
                        restored[range.clone()].copy_from_slice(&memory[range]);
                    }
                    proptest::prop_assert_eq!(restored, memory);
                }
                copies.insert(epoch, memory);
                news.push_back((epoch, fate));
                for (epoch, fate) in news.drain(..heard.min(news.len())) {
                    match fate {
                        0 | 1 => {
                            dirty.committed(epoch);
                            base = Some(epoch);
                        }
                        2 => dirty.aborted(epoch),
                        _ => {
                            dirty.aborted(epoch);
                            dirty.rebase();
                            base = None;
                        }
                    }
                }
            }
        }
    }
}
