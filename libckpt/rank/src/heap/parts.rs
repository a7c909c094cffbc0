//! Where the parts of a heap lie: arithmetic only, the same in every process.
//!
//! ```text
//! base      table    of the runs, an entry per unit
//! ...       small    the back end's memory, up to its break
//! ...       units    of 2 MiB, where runs are, up to the end
//! ```

use super::pages::{PAGE_BYTES, page_up};
use super::runs::{ENTRY_BYTES, UNIT_BYTES};

/// Where the parts of a heap lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// The table of the runs.
    pub(super) table: usize,
    /// The back end's memory.
    pub(super) small: usize,
    /// The first unit of the runs.
    pub(super) origin: usize,
    /// Number of units.
    pub(super) units: u32,
    /// From here on huge pages pay off.
    pub(super) huge: usize,
    /// End of the heap.
    pub(super) end: usize,
}

/// The back end's share of the address space: one in so many. It can take more among the runs.
const SMALL_SHARE: usize = 8;

/// Memory at the start of the heap in small pages, so that a rank with little data costs little.
const SMALL_PAGES_BYTES: usize = 2 << 20;

impl Parts {
    /// The parts of a heap in `bytes` bytes at `base`.
    pub(super) fn of(base: usize, bytes: usize) -> Self {
        let table = page_up(base);
        let end = (base + bytes) & !(PAGE_BYTES - 1);
        let most = (end - table) / UNIT_BYTES;
        let small = page_up(table + most * ENTRY_BYTES);
        let origin = (small + (end - small) / SMALL_SHARE)
            .next_multiple_of(UNIT_BYTES)
            .min(end);
        let units = (end - origin) / UNIT_BYTES;
        Self {
            table,
            small,
            origin,
            units: u32::try_from(units).unwrap_or(u32::MAX - 1),
            huge: (small + SMALL_PAGES_BYTES)
                .next_multiple_of(UNIT_BYTES)
                .min(end),
            end,
        }
    }
}
