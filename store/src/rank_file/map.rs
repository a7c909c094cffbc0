//! Where each page of an image is: in the rank's file of this checkpoint, in one of another checkpoint, or
//! nowhere because it is zeros.

use std::ops::Range;

use protocol::control::{NeededFile, StoredFile};
use protocol::ids::{JobId, Rank};

use crate::{CheckpointId, FileKey};

/// Pages that follow each other in the image and come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRun {
    /// Number of the first page.
    pub first_page: u64,
    /// How many pages.
    pub pages: u64,
    /// Where they are.
    pub source: PageSource,
}

/// Where pages of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSource {
    /// All zeros; stored nowhere.
    Zero,
    /// In a chunk of a file.
    Stored {
        /// Which file: 0 is the image's own, n the one of source n-1.
        file: u32,
        /// The chunk's number in that file.
        chunk: u32,
        /// Position of the first page in the chunk, in pages.
        position: u32,
    },
}

impl ImageRun {
    /// The page after the last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first_page + self.pages
    }

    /// The part from `first` up to `end`, which must lie in it.
    fn part(&self, first: u64, end: u64) -> Self {
        let skipped = first - self.first_page;
        let source = match self.source {
            PageSource::Zero => PageSource::Zero,
            PageSource::Stored {
                file,
                chunk,
                position,
            } => PageSource::Stored {
                file,
                chunk,
                // Runs in a chunk are shorter than a chunk can be, which is far below 2^32 pages.
                position: position + skipped as u32,
            },
        };
        Self {
            first_page: first,
            pages: end - first,
            source,
        }
    }

    /// Whether `next` goes on where this run ends, in the image and in its place.
    fn continues_with(&self, next: &Self) -> bool {
        let in_place = match (self.source, next.source) {
            (PageSource::Zero, PageSource::Zero) => true,
            (
                PageSource::Stored {
                    file,
                    chunk,
                    position,
                },
                PageSource::Stored {
                    file: next_file,
                    chunk: next_chunk,
                    position: next_position,
                },
            ) => {
                (file, chunk) == (next_file, next_chunk)
                    && u64::from(position) + self.pages == u64::from(next_position)
            }
            _ => false,
        };
        in_place && self.end() == next.first_page
    }
}

/// Adds a run to those collected so far, as part of the last where it continues that.
pub(super) fn push_run(runs: &mut Vec<ImageRun>, run: ImageRun) {
    match runs.last_mut() {
        Some(last) if last.continues_with(&run) => last.pages += run.pages,
        _ => runs.push(run),
    }
}

/// Sorts runs and joins those that continue each other; tells a page that is in two of them.
pub(super) fn sort_runs(runs: &mut Vec<ImageRun>) -> Result<(), u64> {
    // A stable sort takes advantage of what is sorted already: own pages and inherited ones mostly are.
    runs.sort_by_key(|run| run.first_page);
    for pair in runs.windows(2) {
        if pair[1].first_page < pair[0].end() {
            return Err(pair[1].first_page);
        }
    }
    runs.dedup_by(|next, last| {
        let joined = last.continues_with(next);
        if joined {
            last.pages += next.pages;
        }
        joined
    });
    // They are kept until the next checkpoint, for each rank.
    runs.shrink_to_fit();
    Ok(())
}

/// The first page of `ranges`, which this sorts, that is in none of the runs, which are sorted.
pub(super) fn first_missing(runs: &[ImageRun], ranges: &mut [Range<u64>]) -> Option<u64> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut runs = runs.iter().peekable();
    for range in ranges {
        let mut page = range.start;
        while page < range.end {
            let run = runs.peek().filter(|run| run.first_page <= page);
            match run.map(|run| run.end()) {
                None => return Some(page),
                Some(end) if end <= page => drop(runs.next()),
                Some(end) => page = end,
            }
        }
    }
    None
}

/// Where each page of one rank's image in one checkpoint is, and which files that are.
///
/// It takes 32 bytes for each run of pages that lie in a row, however large the image is. The writer of the next
/// checkpoint inherits from it the pages that have not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMap {
    pub(super) job: JobId,
    /// The image's own file, then those of the sources, ascending by epoch.
    pub(super) files: Vec<NeededFile>,
    /// Sorted by page, not overlapping.
    pub(super) runs: Vec<ImageRun>,
}

impl ImageMap {
    /// The job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Whose image it is.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.files[0].file.rank
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> CheckpointId {
        self.key(0).checkpoint()
    }

    /// The image's own file.
    #[must_use]
    pub fn file(&self) -> &StoredFile {
        &self.files[0].file
    }

    /// The files of other checkpoints that hold pages of the image, ascending by epoch.
    #[must_use]
    pub fn needs(&self) -> &[NeededFile] {
        &self.files[1..]
    }

    /// The pages of the image in ascending order, and where they are. A page that is not listed is no part
    /// of it.
    #[must_use]
    pub fn runs(&self) -> &[ImageRun] {
        &self.runs
    }

    /// Pages of the image, zero pages included.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.runs.iter().map(|run| run.pages).sum()
    }

    /// Where a page is; `None` where it is no part of the image.
    #[must_use]
    pub fn locate(&self, page: u64) -> Option<PageSource> {
        locate(&self.runs, page)
    }

    /// Those pages of `ranges` that are no part of the image.
    #[must_use]
    pub fn missing(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        self.walk(ranges, |first, end, run| {
            if run.is_none() {
                missing.push(first..end);
            }
        });
        missing
    }

    /// Which file number `file` of a [`PageSource`] is.
    pub(super) fn key(&self, file: usize) -> FileKey {
        let needed = &self.files[file];
        FileKey {
            job: self.job,
            incarnation: needed.incarnation,
            epoch: needed.epoch,
            rank: needed.file.rank,
        }
    }

    /// Calls `take` with the parts of runs that make up `ranges`, or tells the first page that is in none.
    pub(super) fn select(
        &self,
        ranges: &[Range<u64>],
        mut take: impl FnMut(ImageRun),
    ) -> Result<(), u64> {
        let mut missing = None;
        self.walk(ranges, |first, _, run| match run {
            Some(run) => take(run),
            None => missing = missing.or(Some(first)),
        });
        missing.map_or(Ok(()), Err)
    }

    /// Goes through `ranges`, piece by piece: from a page, up to a page, and the run that they are, or
    /// `None` where they are no part of the image. Costs as much as there are runs, where ranges ascend.
    fn walk(&self, ranges: &[Range<u64>], mut piece: impl FnMut(u64, u64, Option<ImageRun>)) {
        let runs = &self.runs;
        let mut at = 0;
        for range in ranges {
            // The first run that ends after the start: mostly the one that the range before ended in.
            let is_first = |at: usize| {
                runs.get(at).is_some_and(|run| run.end() > range.start)
                    && (at == 0 || runs[at - 1].end() <= range.start)
            };
            if is_first(at + 1) {
                at += 1;
            } else if !is_first(at) {
                at = runs.partition_point(|run| run.end() <= range.start);
            }
            let mut page = range.start;
            while page < range.end {
                match runs.get(at) {
                    Some(run) if run.first_page <= page => {
                        let end = run.end().min(range.end);
                        piece(page, end, Some(run.part(page, end)));
                        page = end;
                        if end == run.end() {
                            at += 1;
                        }
                    }
                    next => {
                        let end = next.map_or(range.end, |run| run.first_page.min(range.end));
                        piece(page, end, None);
                        page = end;
                    }
                }
            }
        }
    }
}

/// Where a page is, by sorted runs.
pub(super) fn locate(runs: &[ImageRun], page: u64) -> Option<PageSource> {
    let at = runs.partition_point(|run| run.end() <= page);
    let run = runs.get(at).filter(|run| run.first_page <= page)?;
    Some(run.part(page, page + 1).source)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn stored(first_page: u64, pages: u64, chunk: u32, position: u32) -> ImageRun {
        ImageRun {
            first_page,
            pages,
            source: PageSource::Stored {
                file: 0,
                chunk,
                position,
            },
        }
    }

    fn map(runs: Vec<ImageRun>) -> ImageMap {
        ImageMap {
            job: JobId::default(),
            files: vec![NeededFile::default()],
            runs,
        }
    }

    #[test]
    fn ranges_are_cut_out_of_runs_in_any_order() {
        let map = map(vec![
            stored(3, 4, 0, 0),
            stored(7, 1, 5, 2),
            stored(10, 3, 1, 8),
        ]);
        let mut taken = Vec::new();
        map.select(&[4..8, 10..11, 12..13, 3..4], |run| taken.push(run))
            .unwrap();
        assert_eq!(
            taken,
            [
                stored(4, 3, 0, 1),
                stored(7, 1, 5, 2),
                stored(10, 1, 1, 8),
                stored(12, 1, 1, 10),
                stored(3, 1, 0, 0)
            ]
        );
        assert_eq!(map.select(from_ref(&(5..12)), |_| {}), Err(8));
        assert_eq!(map.select(from_ref(&(12..14)), |_| {}), Err(13));
        assert_eq!(map.missing(&[0..5, 6..11, 12..20]), [0..3, 8..10, 13..20]);
        assert_eq!(map.missing(&[3..8, 10..13]), []);
        for page in 0..15 {
            let listed = map.missing(from_ref(&(page..page + 1))).is_empty();
            assert_eq!(map.locate(page).is_some(), listed, "{page}");
        }
    }

    #[test]
    fn runs_that_continue_each_other_are_one() {
        let mut runs = vec![
            stored(5, 2, 0, 2),
            stored(3, 2, 0, 0),
            stored(7, 1, 1, 4),
            stored(8, 1, 1, 6),
        ];
        sort_runs(&mut runs).unwrap();
        assert_eq!(
            runs,
            [stored(3, 4, 0, 0), stored(7, 1, 1, 4), stored(8, 1, 1, 6)]
        );
        runs.push(stored(6, 1, 9, 0));
        assert_eq!(sort_runs(&mut runs), Err(6));
    }
}
