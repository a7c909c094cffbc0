//! Free spans by size: a list per size class, four classes per doubling, and a bit map of the classes
//! that have any.

use super::table::{Links, NONE, Table};

/// Number of lists: sizes of up to 2^32 units.
const BINS: usize = 128;

/// Spans of one list that a search looks at, so that a search takes bounded time.
const LOOKS: usize = 16;

/// The lists.
#[repr(C)]
pub(super) struct Bins {
    filled: u128,
    heads: [u32; BINS],
}

/// The list for spans of a size.
fn bin_of(units: u32) -> usize {
    if units < 4 {
        units as usize
    } else {
        let octave = units.ilog2();
        (octave << 2 | (units >> (octave - 2)) & 3) as usize
    }
}

impl Bins {
    /// No spans.
    pub(super) const fn new() -> Self {
        Self {
            filled: 0,
            heads: [NONE; BINS],
        }
    }

    /// Adds a span.
    pub(super) fn insert(&mut self, table: &mut Table, first: u32) {
        let bin = bin_of(table.head(first).units);
        let head = self.heads[bin];
        table.head_mut(first).list = Links {
            before: NONE,
            after: head,
        };
        if head != NONE {
            table.head_mut(head).list.before = first;
        }
        self.heads[bin] = first;
        self.filled |= 1 << bin;
    }

    /// Removes a span.
    pub(super) fn remove(&mut self, table: &mut Table, first: u32) {
        let entry = *table.head(first);
        let bin = bin_of(entry.units);
        if entry.list.before == NONE {
            self.heads[bin] = entry.list.after;
            if entry.list.after == NONE {
                self.filled &= !(1 << bin);
            }
        } else {
            table.head_mut(entry.list.before).list.after = entry.list.after;
        }
        if entry.list.after != NONE {
            table.head_mut(entry.list.after).list.before = entry.list.before;
        }
        table.head_mut(first).list = Links::NONE;
    }

    /// An acceptable span of at least `units`, close to the smallest there is.
    pub(super) fn best(
        &self,
        table: &Table,
        units: u32,
        accept: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let mut bins = self.filled & (!0 << bin_of(units));
        while bins != 0 {
            let best = self
                .looked_at(table, bins.trailing_zeros() as usize)
                .filter(|&first| table.head(first).units >= units && accept(first))
                .min_by_key(|&first| table.head(first).units);
            if best.is_some() {
                return best;
            }
            bins &= bins - 1;
        }
        None
    }

    /// A span close to the largest there is.
    pub(super) fn largest(&self, table: &Table) -> Option<u32> {
        if self.filled == 0 {
            return None;
        }
        let bin = (127 - self.filled.leading_zeros()) as usize;
        self.looked_at(table, bin)
            .max_by_key(|&first| table.head(first).units)
    }

    fn looked_at<'a>(&'a self, table: &'a Table, bin: usize) -> impl Iterator<Item = u32> + 'a {
        let head = self.heads[bin];
        std::iter::successors((head != NONE).then_some(head), |&first| {
            let after = table.head(first).list.after;
            (after != NONE).then_some(after)
        })
        .take(LOOKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_span_is_never_in_a_lower_list() {
        let mut last = 0;
        for units in (1..10_000).chain([1 << 20, (1 << 20) + 1, u32::MAX]) {
            let bin = bin_of(units);
            assert!(bin >= last && bin < BINS, "{units} units in list {bin}");
            last = bin;
        }
    }
}
