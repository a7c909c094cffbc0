//! Which parts of the grid change: all of it, or patches of a page's width, strewn evenly.

use std::fmt::{self, Display};
use std::ops::Range;
use std::str::FromStr;

use crate::grid::PAGE_POINTS;

/// A share of the grid: above 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share(f64);

impl Share {
    /// All of it.
    pub(crate) const ALL: Self = Self(1.0);

    /// The share in which points are warm at the start, if nothing else is told.
    pub(crate) const WARM: Self = Self(1.0 / 1024.0);

    pub(crate) fn is_all(self) -> bool {
        self.0 == 1.0
    }

    /// Whether a word that looks random falls in it.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // below 2^32
    pub(crate) fn has(self, word: u64) -> bool {
        word % (1 << 32) < (self.0 * (1_u64 << 32) as f64) as u64
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(Self(share)),
            Ok(_) => Err("more than 0 and at most 1".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A part of a row that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// The row in the whole grid.
    pub(crate) row: usize,
    pub(crate) columns: Range<usize>,
    /// Its number in the whole grid; the same however the rows are shared out.
    pub(crate) number: usize,
}

/// The patches of a grid. They are computed, not kept, so that they cost no memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patches {
    columns: usize,
    /// Patches of a row, those that are held included.
    in_row: usize,
    width: usize,
    /// Every so manieth of them changes.
    spacing: f64,
}

impl Patches {
    /// Rows of so many columns. If all of them change, a patch is a row.
    pub(crate) fn new(columns: usize, share: Share) -> Self {
        let width = if share.is_all() { columns } else { PAGE_POINTS };
        Self {
            columns,
            in_row: columns.div_ceil(width),
            width,
            spacing: 1.0 / share.0,
        }
    }

    /// The patches of some rows that change, in order.
    pub(crate) fn of_rows(self, rows: Range<usize>) -> impl Iterator<Item = Patch> {
        let end = rows.end * self.in_row;
        let first = rows.start * self.in_row;
        (self.first_from(first)..)
            .map(move |nth| self.number(nth))
            .take_while(move |&number| number < end)
            .map(move |number| {
                let start = number % self.in_row * self.width;
                Patch {
                    row: number / self.in_row,
                    columns: start..(start + self.width).min(self.columns),
                    number,
                }
            })
    }

    /// The number of the `nth` patch that changes.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    fn number(self, nth: usize) -> usize {
        (nth as f64 * self.spacing) as usize
    }

    /// The first patch that changes with a number from here on.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    fn first_from(self, number: usize) -> usize {
        // Rounding may leave it one off.
        let about = ((number as f64 / self.spacing) as usize).saturating_sub(1);
        (about..)
            .find(|&nth| self.number(nth) >= number)
            .unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_change_as_a_whole() {
        let patches: Vec<_> = Patches::new(700, Share::ALL).of_rows(3..5).collect();
        let whole = |row| Patch {
            row,
            columns: 0..700,
            number: row,
        };
        assert_eq!(patches, [whole(3), whole(4)]);
    }

    #[test]
    fn a_share_is_strewn_evenly_whoever_has_the_rows() {
        for share in [0.01, 0.1, 0.3, 0.7] {
            let patches = Patches::new(2048, Share(share));
            let whole: Vec<_> = patches.of_rows(0..1000).collect();
            let found = whole.len() as f64 / 4000.0;
            assert!((found - share).abs() < 0.001, "{share}: {found}");
            let gaps: Vec<_> = whole
                .windows(2)
                .map(|pair| pair[1].number - pair[0].number)
                .collect();
            let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
            assert!(most - least <= 1, "{share}: gaps from {least} to {most}");
            let parts: Vec<_> = [0..1, 1..2, 2..333, 333..999, 999..1000]
                .into_iter()
                .flat_map(|rows| patches.of_rows(rows))
                .collect();
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn the_last_patch_of_a_row_ends_with_it() {
        let patches: Vec<_> = Patches::new(700, Share(0.9999)).of_rows(2..3).collect();
        assert_eq!(patches[0].columns, 0..512);
        assert_eq!(patches[1].columns, 512..700);
    }

    #[test]
    fn a_share_is_above_0_and_at_most_1() {
        assert_eq!("1".parse(), Ok(Share::ALL));
        assert_eq!("0.25".parse(), Ok(Share(0.25)));
        for wrong in ["0", "-0.5", "1.5", "NaN", "all"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
