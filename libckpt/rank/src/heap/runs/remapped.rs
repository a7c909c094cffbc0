//! Which pages were moved or mapped anew: whoever tracks writes has to start anew there.

use std::ops::Range;

/// Ranges that are remembered.
const REMEMBERED: usize = 64;

/// The latest ranges, and how many there were.
#[repr(C)]
pub(in crate::heap) struct RemappedLog {
    ranges: [[usize; 2]; REMEMBERED],
    count: u64,
}

impl RemappedLog {
    /// None so far.
    pub(super) const fn new() -> Self {
        Self {
            ranges: [[0; 2]; REMEMBERED],
            count: 0,
        }
    }

    /// Adds a range.
    pub(super) fn note(&mut self, range: Range<usize>) {
        self.ranges[self.count as usize % REMEMBERED] = [range.start, range.end];
        self.count += 1;
    }

    /// How many ranges there have been.
    pub(in crate::heap) fn count(&self) -> u64 {
        self.count
    }

    /// The ranges since the count was `since`; false if not all are remembered.
    pub(in crate::heap) fn since(&self, since: u64, mut each: impl FnMut(Range<usize>)) -> bool {
        let remembered = self.count.saturating_sub(REMEMBERED as u64);
        for index in since.max(remembered)..self.count {
            let [start, end] = self.ranges[index as usize % REMEMBERED];
            each(start..end);
        }
        since >= remembered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_ranges_than_are_remembered_are_told_as_such() {
        let mut log = RemappedLog::new();
        for index in 0..100 {
            log.note(index..index + 1);
        }
        let mut found = vec![];
        assert!(log.since(90, |range| found.push(range.start)));
        assert_eq!(found, (90..100).collect::<Vec<_>>());
        found.clear();
        assert!(!log.since(10, |range| found.push(range.start)));
        assert_eq!(found, (36..100).collect::<Vec<_>>());
    }
}
