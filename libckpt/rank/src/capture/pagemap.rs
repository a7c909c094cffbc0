//! Which pages of an address range exist, so that a capture reads no untouched memory.
//!
//! The `PAGEMAP_SCAN` ioctl tells it as ranges and skips holes (Linux 6.7, Documentation/admin-guide/mm/
//! pagemap.rst); without it, `/proc/self/pagemap` has a word per page. Both work without privilege.
//! Where neither can be had, every page counts as existing: slower, never wrong.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::layout::PAGE_BYTES;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<PageRegion>() == 24);
const _: () = assert!(size_of::<ScanArgument>() == 96);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const _: () = assert!(
    PAGEMAP_SCAN
        == (3 << 30
            | (size_of::<ScanArgument>() as libc::c_ulong) << 16
            | (b'f' as libc::c_ulong) << 8
            | 16)
);

/// Asynchronously tracked: written since the last scan that protected it.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The shared page of zeros, which a read of an untouched page maps.
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Protect what is returned again.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Fail where part of the range is not tracked.
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// Ranges asked for at once.
const REGIONS: usize = 512;

/// Bits of a word of `/proc/self/pagemap`: in memory, or in swap.
const WORD_EXISTS: u64 = 1 << 63 | 1 << 62;

/// The parts of the ranges (whole pages) that exist, in the same order; neighbours are joined.
pub(crate) fn present(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    static SCAN_FAILED: AtomicBool = AtomicBool::new(false);
    let mut found = Found::default();
    let Some(pagemap) = pagemap() else {
        ranges.iter().for_each(|range| found.push(range.clone()));
        return found.0;
    };
    for range in ranges {
        if !SCAN_FAILED.load(Ordering::Relaxed) {
            if scan(pagemap.as_raw_fd(), range.clone(), &mut found).is_ok() {
                continue;
            }
            SCAN_FAILED.store(true, Ordering::Relaxed);
        }
        if read(pagemap, range.clone(), &mut found).is_err() {
            found.push(range.clone());
        }
    }
    found.0
}

fn pagemap() -> Option<&'static File> {
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    PAGEMAP
        .get_or_init(|| File::open("/proc/self/pagemap").ok())
        .as_ref()
}

/// Ranges as they are found.
#[derive(Default)]
struct Found(Vec<Range<usize>>);

impl Found {
    fn push(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push(range),
        }
    }
}

/// What a scan of tracked memory tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tracked {
    /// The pages that exist, in order.
    pub(super) existing: Vec<Range<usize>>,
    /// Those of them that were written since the scan before, or since the range was registered.
    pub(super) written: Vec<Range<usize>>,
}

/// The pages of a tracked range that exist, and which of them were written since the scan before; these are protected anew, as the
/// others are. Untouched pages are not told, and count as written once they are. Nobody writes to the range meanwhile.
///
/// # Errors
/// `EPERM` where part of the range is not tracked: then nothing is known, and it has to be registered anew.
pub(super) fn scan_tracked(range: Range<usize>) -> io::Result<Tracked> {
    let Some(pagemap) = pagemap() else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let (mut existing, mut written) = (Found::default(), Found::default());
    scan(pagemap.as_raw_fd(), range.clone(), &mut existing)?;
    let scan = Scan {
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        inverted: PAGE_IS_PFNZERO,
        all_of: PAGE_IS_PFNZERO | PAGE_IS_WRITTEN,
        any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_WRITTEN,
    };
    scan.run(pagemap.as_raw_fd(), range, |range, _| written.push(range))?;
    Ok(Tracked {
        existing: existing.0,
        written: written.0,
    })
}

/// By the ioctl. Where it fails half-way, `found` keeps what it had before.
///
/// It is asked for what does not exist: it passes over a page that it does not tell in a quarter of the time, and most exist.
fn scan(pagemap: RawFd, range: Range<usize>, found: &mut Found) -> io::Result<()> {
    let before = found.0.len();
    let last_end = found.0.last().map(|last| last.end);
    let scan = Scan {
        flags: 0,
        inverted: PAGE_IS_PRESENT,
        all_of: 0,
        any_of: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
        return_mask: PAGE_IS_SWAPPED,
    };
    let mut exists_from = range.start;
    let outcome = scan.run(pagemap, range.clone(), |absent, categories| {
        if categories & PAGE_IS_SWAPPED == 0 {
            found.push(exists_from..absent.start);
            exists_from = absent.end;
        }
    });
    if outcome.is_ok() {
        found.push(exists_from..range.end);
    } else {
        found.0.truncate(before);
        if let (Some(last), Some(end)) = (found.0.last_mut(), last_end) {
            last.end = end;
        }
    }
    outcome
}

/// A scan for pages by their categories, each taken for its contrary where it is among the inverted ones: a page has to have all of
/// some and any of others. See `PAGEMAP_SCAN` in pagemap.rst.
struct Scan {
    flags: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    return_mask: u64,
}

impl Scan {
    fn run(
        &self,
        pagemap: RawFd,
        range: Range<usize>,
        mut each: impl FnMut(Range<usize>, u64),
    ) -> io::Result<()> {
        let mut regions = [PageRegion::default(); REGIONS];
        let mut start = range.start as u64;
        while start < range.end as u64 {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: self.flags,
                start,
                end: range.end as u64,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: self.inverted,
                category_mask: self.all_of,
                category_anyof_mask: self.any_of,
                return_mask: self.return_mask,
            };
            // SAFETY: the argument and the array that it names live through the call and are as long as told.
            let count = unsafe { libc::ioctl(pagemap, PAGEMAP_SCAN, &raw mut argument) };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            for region in &regions[..count as usize] {
                each(
                    region.start as usize..region.end as usize,
                    region.categories,
                );
            }
            start = argument.walk_end;
        }
        Ok(())
    }
}

/// By the file, a word per page.
fn read(pagemap: &File, range: Range<usize>, found: &mut Found) -> io::Result<()> {
    let mut words = [0_u8; 8 * 512];
    let mut page = range.start / PAGE_BYTES;
    let end = range.end / PAGE_BYTES;
    while page < end {
        let wanted = (end - page).min(words.len() / 8);
        pagemap.read_exact_at(&mut words[..wanted * 8], page as u64 * 8)?;
        for word in words[..wanted * 8].as_chunks::<8>().0 {
            if u64::from_ne_bytes(*word) & WORD_EXISTS != 0 {
                found.push(page * PAGE_BYTES..(page + 1) * PAGE_BYTES);
            }
            page += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mapping of so many pages, never touched.
    /// A new mapping, left to the end of the test process.
    fn map(pages: usize) -> Range<usize> {
        let start = crate::capture::map(pages * PAGE_BYTES).unwrap();
        start..start + pages * PAGE_BYTES
    }

    fn touch(range: &Range<usize>, page: usize) {
        // SAFETY: inside the mapping.
        unsafe { *((range.start + page * PAGE_BYTES) as *mut u8) = 1 };
    }

    fn pages(range: &Range<usize>, found: &[Range<usize>]) -> Vec<Range<usize>> {
        let page = |address| (address - range.start) / PAGE_BYTES;
        found
            .iter()
            .map(|run| page(run.start)..page(run.end))
            .collect()
    }

    #[test]
    fn only_written_pages_exist() {
        let range = map(4096);
        for page in [0, 1, 2, 700, 4095] {
            touch(&range, page);
        }
        // SAFETY: inside the mapping. Reading maps the page of zeros.
        std::hint::black_box(unsafe { *((range.start + 50 * PAGE_BYTES) as *const u8) });
        let found = present(std::slice::from_ref(&range));
        assert_eq!(pages(&range, &found), [0..3, 700..701, 4095..4096]);
    }

    #[test]
    fn the_file_tells_the_same_as_the_ioctl() {
        let range = map(2000);
        for page in (0..2000).filter(|page| page % 7 < 3) {
            touch(&range, page);
        }
        let mut by_file = Found::default();
        read(pagemap().unwrap(), range.clone(), &mut by_file).unwrap();
        assert_eq!(present(std::slice::from_ref(&range)), by_file.0);
    }

    #[test]
    fn huge_pages_and_holes_between_them_are_told_apart() {
        const HUGE: usize = 512;
        let range = map(4 * HUGE);
        // SAFETY: the mapping of this test.
        unsafe { libc::madvise(range.start as *mut _, range.len(), libc::MADV_HUGEPAGE) };
        // Some of its pages may be small ones, where no huge one is to be had.
        let whole = |start: usize| (0..HUGE).for_each(|page| touch(&range, start + page));
        let first = range.start.next_multiple_of(HUGE * PAGE_BYTES);
        let first = (first - range.start) / PAGE_BYTES;
        whole(first);
        whole(first + 2 * HUGE);
        let found = present(std::slice::from_ref(&range));
        let expected = [first..first + HUGE, first + 2 * HUGE..first + 3 * HUGE];
        assert_eq!(pages(&range, &found), expected);
        let all = present(&[range.start..range.start, range.clone()]);
        assert_eq!(pages(&range, &all), expected);
    }

    #[test]
    fn a_failed_scan_leaves_what_was_found_before() {
        let before = 0..PAGE_BYTES;
        let mut found = Found::default();
        found.push(before.clone());
        assert!(scan(-1, PAGE_BYTES..2 * PAGE_BYTES, &mut found).is_err());
        assert_eq!(found.0, std::slice::from_ref(&before));
    }
}
