//! Addresses, page numbers, regions and units of a slot: one as the other.

use std::collections::BTreeMap;
use std::ops::Range;

use protocol::dirty::PageSet;

use super::guard::{UNIT_BYTES, Unit};
use super::regions::REGION_BYTES;
use crate::layout::PAGE_BYTES;
use crate::slot::Slot;

/// The addresses of a region, as far as they are the heap's.
pub(super) fn region_range(slot: &Slot, index: usize) -> Range<usize> {
    let (heap, heap_bytes) = slot.heap_range();
    let start = slot.base() + index * REGION_BYTES;
    start.max(heap.addr())..(start + REGION_BYTES).min(heap.addr() + heap_bytes)
}

/// The units of 2 MiB in which the pages to be saved lie, ascending.
pub(super) fn units_of(rank: usize, slot: &Slot, saved: &PageSet) -> Vec<Unit> {
    let (heap, heap_bytes) = slot.heap_range();
    let heap = heap.addr()..heap.addr() + heap_bytes;
    let mut by_unit: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
    for range in saved.ranges() {
        let range = slot.base() + range.start as usize * PAGE_BYTES
            ..slot.base() + range.end as usize * PAGE_BYTES;
        for (unit, piece) in split(range, 0, UNIT_BYTES) {
            by_unit.entry(unit).or_default().push(piece);
        }
    }
    by_unit
        .into_iter()
        .map(|(unit, pages)| {
            let start = (unit * UNIT_BYTES).max(heap.start);
            let end = ((unit + 1) * UNIT_BYTES).min(heap.end);
            Unit::new(rank, slot.base(), start..end, pages)
        })
        .collect()
}

/// The pieces of a range between multiples of `step` from `origin` on, with the number of the multiple.
fn split(
    range: Range<usize>,
    origin: usize,
    step: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let number = (start - origin) / step;
        let end = (origin + (number + 1) * step).min(range.end);
        let piece = start..end;
        start = end;
        Some((number, piece))
    })
}

/// Addresses of the heap, by region.
pub(super) fn by_region(
    slot: &Slot,
    ranges: &[Range<usize>],
) -> BTreeMap<usize, Vec<Range<usize>>> {
    let mut regions: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    for range in ranges {
        for (index, piece) in split(range.clone(), slot.base(), REGION_BYTES) {
            regions.entry(index).or_default().push(piece);
        }
    }
    regions
}

/// Pages by region; those of no region under [`UNWATCHED`].
pub(super) fn pages_by_region(slot: &Slot, set: &PageSet) -> BTreeMap<usize, PageSet> {
    let heap = slot.heap_pages();
    let mut regions: BTreeMap<usize, Vec<Range<u64>>> = BTreeMap::new();
    for range in set.ranges() {
        // Header and stack may share a region's number with the heap's first, but are none of it.
        let unwatched = range.start..range.end.min(heap.start);
        if !unwatched.is_empty() {
            regions.entry(UNWATCHED).or_default().push(unwatched);
        }
        let bytes =
            range.start.max(heap.start) as usize * PAGE_BYTES..range.end as usize * PAGE_BYTES;
        for (index, piece) in split(bytes, 0, REGION_BYTES) {
            let pages = (piece.start / PAGE_BYTES) as u64..(piece.end / PAGE_BYTES) as u64;
            regions.entry(index).or_default().push(pages);
        }
    }
    regions
        .into_iter()
        .map(|(index, ranges)| (index, ranges.into_iter().collect()))
        .collect()
}

/// The number under which pages are that are in no region.
pub(super) const UNWATCHED: usize = usize::MAX;

/// Addresses as page numbers.
pub(super) fn pages(slot: &Slot, range: &Range<usize>) -> Range<u64> {
    ((range.start - slot.base()) / PAGE_BYTES) as u64
        ..((range.end - slot.base()) / PAGE_BYTES) as u64
}

/// Addresses as a set of pages.
pub(super) fn page_set(slot: &Slot, ranges: &[Range<usize>]) -> PageSet {
    ranges.iter().map(|range| pages(slot, range)).collect()
}
