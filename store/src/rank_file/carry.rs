//! Reads the pages that a new file takes over from old ones, piece by piece.

use std::sync::Arc;

use super::codec::Scratch;
use super::image::check_part;
use super::index::Placed;
use super::map::ImageMap;
use super::reader::RankFile;
use crate::format::layout::CHUNK_RAW_BYTES;
use crate::storage::SharedStorage;
use crate::{Error, PAGE_BYTES, Result};

/// Pages on their way from old files into a new one: see [`super::RankFileWriter::carry_over`].
///
/// Each piece is read when it is asked for, so that whoever packs and appends them can give way to others, or
/// give up, between any two.
#[derive(Debug)]
pub struct CarryOver {
    storage: SharedStorage,
    base: Arc<ImageMap>,
    /// What is left, sorted so that the end comes first; files counted as the base does.
    left: Vec<Placed>,
    /// The file that is being read.
    open: Option<(u32, RankFile)>,
    scratch: Scratch,
}

impl CarryOver {
    /// Of pages that are in the base's files.
    pub(super) fn new(storage: SharedStorage, base: Arc<ImageMap>, mut left: Vec<Placed>) -> Self {
        left.sort_unstable_by_key(|run| std::cmp::Reverse(run.place()));
        Self {
            storage,
            base,
            left,
            open: None,
            scratch: Scratch::new(),
        }
    }

    /// Bytes of pages that are still to come.
    #[must_use]
    pub fn bytes_left(&self) -> u64 {
        let pages: u64 = self.left.iter().map(|run| u64::from(run.pages)).sum();
        pages * PAGE_BYTES as u64
    }

    /// Reads the next piece, of at most [`CHUNK_RAW_BYTES`]: the numbers of its pages into `pages`, and into
    /// `bytes` what they hold. Both are emptied before; false where nothing is left.
    ///
    /// Each chunk is checked as at a restore. An error names the old file: it can't be built on any more.
    pub fn next_piece(&mut self, pages: &mut Vec<u64>, bytes: &mut Vec<u8>) -> Result<bool> {
        pages.clear();
        bytes.clear();
        while let Some(next) = self.left.last().copied() {
            let room = CHUNK_RAW_BYTES / PAGE_BYTES - pages.len();
            let of_chunk = self
                .left
                .iter()
                .rev()
                .take_while(|run| (run.file, run.chunk) == (next.file, next.chunk));
            let mut runs: Vec<Placed> = of_chunk.copied().collect();
            let wanted: usize = runs.iter().map(|run| run.pages as usize).sum();
            if wanted > room && !pages.is_empty() {
                break;
            }
            self.left.truncate(self.left.len() - runs.len());
            if wanted > room {
                self.left
                    .extend(split_off(&mut runs, room).into_iter().rev());
            }
            self.read(next.file, next.chunk, &runs, pages, bytes)?;
        }
        Ok(!pages.is_empty())
    }

    /// Reads these pages of a chunk, and adds them to what was read before.
    fn read(
        &mut self,
        number: u32,
        chunk: u32,
        runs: &[Placed],
        pages: &mut Vec<u64>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let open = match self.open.take() {
            Some((open, file)) if open == number => file,
            _ => {
                let of = number as usize;
                let stored = &self.base.files[of].file;
                RankFile::open(&*self.storage, stored, self.base.key(of))?
            }
        };
        let (_, file) = self.open.insert((number, open));
        check_part(file, chunk, runs).map_err(|page| {
            Error::corrupt(
                &*file.shown,
                format!("page {page} is not in chunk {chunk} any more"),
            )
        })?;
        let raw = file.raw_chunk(chunk, &mut self.scratch)?;
        for run in runs {
            pages.extend(run.first_page..run.first_page + u64::from(run.pages));
            let start = run.position as usize * PAGE_BYTES;
            bytes.extend_from_slice(&raw[start..start + run.pages as usize * PAGE_BYTES]);
        }
        Ok(())
    }
}

/// Leaves so many pages in `runs` and gives the rest.
fn split_off(runs: &mut Vec<Placed>, mut pages: usize) -> Vec<Placed> {
    let mut at = 0;
    while pages >= runs[at].pages as usize {
        pages -= runs[at].pages as usize;
        at += 1;
    }
    let mut rest = runs.split_off(at);
    if pages > 0 {
        let (first, skipped) = (&mut rest[0], pages as u32);
        runs.push(Placed {
            pages: skipped,
            ..*first
        });
        first.position += skipped;
        first.first_page += u64::from(skipped);
        first.pages -= skipped;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_split_at_any_page() {
        let run = |position, pages, first_page| Placed {
            file: 1,
            chunk: 2,
            position,
            pages,
            first_page,
        };
        let all = vec![run(0, 3, 10), run(3, 1, 20), run(4, 2, 30)];
        let pages = |runs: &[Placed]| -> Vec<(u32, u64)> {
            let each = |run: &Placed| {
                let Placed {
                    position,
                    first_page,
                    pages,
                    ..
                } = *run;
                (0..pages).map(move |at| (position + at, first_page + u64::from(at)))
            };
            runs.iter().flat_map(each).collect()
        };
        for at in 0..6 {
            let mut front = all.clone();
            let rest = split_off(&mut front, at);
            assert_eq!(pages(&front), pages(&all)[..at], "{at}");
            assert_eq!(pages(&rest), pages(&all)[at..], "{at}");
        }
    }
}
