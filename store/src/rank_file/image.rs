//! Reads an image: from the rank's own file, and from those of other checkpoints that it refers to.

use std::ops::Range;
use std::sync::Arc;

use protocol::control::{NeededFile, StoredFile};

use super::SectionKind;
use super::codec::Scratch;
use super::index::Placed;
use super::map::{ImageMap, PageSource};
use super::reader::RankFile;
use crate::format::layout::{KIND_PAGES, PageRun};
use crate::storage::Storage;
use crate::{CheckpointId, Error, FileKey, PAGE_BYTES, Result};

/// Bytes of chunks, before compression, that are read at once at most: a disk is as fast with these as with more.
const TOGETHER_RAW_BYTES: u64 = 2 << 20;

/// The image of a rank, open for reading. Several threads may read parts at once, each with its own
/// [`Scratch`].
///
/// A *part* is a chunk that holds pages of the image, in the order of files and chunks. Every page that is
/// not zeros is in exactly one part.
#[derive(Debug)]
pub struct RankImage {
    map: Arc<ImageMap>,
    /// As the map counts them.
    files: Vec<RankFile>,
    parts: Vec<Part>,
    /// The runs of all parts, one part's after the other's, by position.
    wanted: Vec<Placed>,
}

/// A chunk of which pages are part of the image.
#[derive(Clone, Copy, Debug)]
struct Part {
    file: u32,
    chunk: u32,
    /// Where its runs are in `wanted`.
    first: usize,
    end: usize,
}

impl RankImage {
    /// Opens the file that the manifest calls `stored`, which must be the one of `key`, and those of `needs`
    /// that it refers to. `needs` may hold others, as those of a whole manifest do.
    ///
    /// Checks of every file its length, header, trailer and index, and that each page which the image has
    /// in another file is there: in a chunk of pages, and where it is said to be. Chunks are checked when they
    /// are read.
    pub fn open(
        storage: &dyn Storage,
        stored: &StoredFile,
        key: FileKey,
        needs: &[NeededFile],
    ) -> Result<Self> {
        let mut own = RankFile::open(storage, stored, key)?;
        let shown = own.shown.clone();
        let runs = std::mem::take(&mut own.index.runs);
        let mut named = vec![NeededFile {
            epoch: key.epoch,
            incarnation: key.incarnation,
            file: stored.clone(),
        }];
        let mut files = Vec::with_capacity(1 + own.index.sources.len());
        for source in &own.index.sources {
            let need = find(needs, *source, stored)
                .ok_or_else(|| {
                    let what =
                        format!("has pages in a file of {source} that the manifest does not list");
                    Error::corrupt(&*shown, what)
                })?
                .clone();
            named.push(need);
        }
        files.push(own);
        let map = ImageMap {
            job: key.job,
            files: named,
            runs,
        };
        for (number, need) in map.files.iter().enumerate().skip(1) {
            if need.epoch >= key.epoch || need.incarnation > key.incarnation {
                let what = format!(
                    "has pages in a file of {}, which is no earlier one",
                    need.epoch
                );
                return Err(Error::corrupt(shown, what));
            }
            let mut file = RankFile::open(storage, &need.file, map.key(number))?;
            // Where its own image was is of no interest.
            file.index.runs = Vec::new();
            files.push(file);
        }
        let mut wanted: Vec<Placed> = map.runs.iter().filter_map(Placed::of).collect();
        wanted.sort_unstable_by_key(Placed::place);
        let mut parts: Vec<Part> = Vec::new();
        for (at, run) in wanted.iter().enumerate() {
            match parts.last_mut() {
                Some(part) if (part.file, part.chunk) == (run.file, run.chunk) => part.end += 1,
                _ => parts.push(Part {
                    file: run.file,
                    chunk: run.chunk,
                    first: at,
                    end: at + 1,
                }),
            }
        }
        // Of its own file, the index was checked as a whole.
        for part in parts.iter().filter(|part| part.file != 0) {
            let file = &files[part.file as usize];
            if let Err(page) = check_part(file, part.chunk, &wanted[part.first..part.end]) {
                let what = format!(
                    "page {page} is said to be in chunk {} of {}, and is not there",
                    part.chunk, file.shown
                );
                return Err(Error::corrupt(shown, what));
            }
        }
        Ok(Self {
            map: Arc::new(map),
            files,
            parts,
            wanted,
        })
    }

    /// Where each page of the image is: what the next checkpoint can build on.
    #[must_use]
    pub fn map(&self) -> Arc<ImageMap> {
        self.map.clone()
    }

    /// How many parts the image has.
    #[must_use]
    pub fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// Reads parts from the start of the range on, as many as follow each other in their file, up to 2 MiB or so, and
    /// tells how many. Where the medium has to fetch them, they are fetched at once and are there when they are
    /// read next with this scratch; else, nothing is read yet. 0 where the range is empty, or not of this image.
    #[must_use]
    pub fn read_together(&self, parts: Range<usize>, scratch: &mut Scratch) -> usize {
        let Some(parts) = self.parts.get(parts) else {
            return 0;
        };
        let Some(first) = parts.first() else {
            return 0;
        };
        let file = &self.files[first.file as usize];
        let mut raw_bytes = 0;
        let together = (first.chunk..).zip(parts).take_while(|(chunk, part)| {
            if (part.file, part.chunk) != (first.file, *chunk) {
                return false;
            }
            raw_bytes += u64::from(file.index.chunks[part.chunk as usize].raw_bytes.get());
            raw_bytes <= TOGETHER_RAW_BYTES || *chunk == first.chunk
        });
        let count = together.count();
        file.read_window(first.chunk..first.chunk + count as u32, scratch);
        count
    }

    /// Reads part `i` and hands out its pages, each with its number. Nothing is handed out unless the
    /// whole chunk is right.
    pub fn read_part(
        &self,
        i: usize,
        scratch: &mut Scratch,
        mut page: impl FnMut(u64, &[u8]),
    ) -> Result<()> {
        let part = self.part(i)?;
        let raw = self.files[part.file as usize].raw_chunk(part.chunk, scratch)?;
        for run in &self.wanted[part.first..part.end] {
            let pages = (run.first_page..).zip(bytes_of(raw, run).chunks_exact(PAGE_BYTES));
            for (number, bytes) in pages {
                page(number, bytes);
            }
        }
        Ok(())
    }

    /// Reads part `i` straight into the memory that `place` names: asked for a first page and a
    /// number of pages, it gives exactly that many bytes, or `None` where they are not wanted.
    ///
    /// This is the fast way to restore: a chunk of consecutive pages is decompressed into its place, and a
    /// chunk stored as it is is read into it, with no copy between. In return, memory that was handed out holds
    /// anything where an error is returned.
    pub fn read_part_into<'m>(
        &self,
        i: usize,
        scratch: &mut Scratch,
        mut place: impl FnMut(u64, usize) -> Option<&'m mut [u8]>,
    ) -> Result<()> {
        let part = self.part(i)?;
        let file = &self.files[part.file as usize];
        let wanted = &self.wanted[part.first..part.end];
        let mut placed = Vec::with_capacity(wanted.len());
        for run in wanted {
            let (first, pages) = (run.first_page, run.pages as usize);
            let into = place(first, pages);
            if let Some(into) = &into
                && into.len() != pages * PAGE_BYTES
            {
                return Err(Error::invalid(
                    file.shown.as_str(),
                    format!("{} bytes of memory given for {pages} pages", into.len()),
                ));
            }
            placed.push(into);
        }
        let chunk_bytes = file.index.chunks[part.chunk as usize].raw_bytes.get() as usize;
        if let [Some(into)] = &mut placed[..]
            && into.len() == chunk_bytes
        {
            return file.raw_chunk_into(part.chunk, scratch, into);
        }
        let raw = file.raw_chunk(part.chunk, scratch)?;
        for (run, into) in wanted.iter().zip(placed) {
            if let Some(into) = into {
                into.copy_from_slice(bytes_of(raw, run));
            }
        }
        Ok(())
    }

    /// Reads one page of the image, `None` if it is no part of it.
    pub fn read_page(&self, page: u64, scratch: &mut Scratch) -> Result<Option<[u8; PAGE_BYTES]>> {
        let (file, chunk, position) = match self.map.locate(page) {
            None => return Ok(None),
            Some(PageSource::Zero) => return Ok(Some([0; PAGE_BYTES])),
            Some(PageSource::Stored {
                file,
                chunk,
                position,
            }) => (file, chunk, position),
        };
        let raw = self.files[file as usize].raw_chunk(chunk, scratch)?;
        let mut bytes = [0; PAGE_BYTES];
        bytes.copy_from_slice(&raw[position as usize * PAGE_BYTES..][..PAGE_BYTES]);
        Ok(Some(bytes))
    }

    /// Reads a section, empty if nothing was written to it. Sections are never in another checkpoint's file.
    pub fn section(&self, kind: SectionKind) -> Result<Vec<u8>> {
        self.files[0].section(kind)
    }

    /// Reads and checks every byte of every file of the image, also of those pages that are no part of
    /// it any more, and the digests over the whole files.
    pub fn verify(&self) -> Result<()> {
        self.files.iter().try_for_each(RankFile::verify)
    }

    fn part(&self, i: usize) -> Result<Part> {
        self.parts.get(i).copied().ok_or_else(|| {
            Error::invalid(
                self.files[0].shown.as_str(),
                format!("there is no part {i}, only {}", self.parts.len()),
            )
        })
    }
}

/// The file of the same rank in another checkpoint.
fn find<'n>(
    needs: &'n [NeededFile],
    checkpoint: CheckpointId,
    own: &StoredFile,
) -> Option<&'n NeededFile> {
    needs.iter().find(|need| {
        need.file.rank == own.rank
            && (need.epoch, need.incarnation) == (checkpoint.epoch, checkpoint.incarnation)
    })
}

/// The bytes of a run in its chunk.
fn bytes_of<'r>(raw: &'r [u8], run: &Placed) -> &'r [u8] {
    &raw[run.position as usize * PAGE_BYTES..][..run.pages as usize * PAGE_BYTES]
}

/// Whether the runs, sorted by position, are pages of that chunk, each in its place; the first page that is not.
pub(super) fn check_part(file: &RankFile, chunk: u32, wanted: &[Placed]) -> Result<(), u64> {
    let is_pages = file
        .index
        .chunks
        .get(chunk as usize)
        .is_some_and(|entry| entry.kind.get() == KIND_PAGES);
    if !is_pages {
        return Err(wanted[0].first_page);
    }
    let mut held = file.pages.of(chunk).iter();
    // The run of the chunk that is looked at, and its position.
    let (mut here, mut start): (Option<&PageRun>, u64) = (held.next(), 0);
    for run in wanted {
        let position = u64::from(run.position);
        let (mut page, mut at) = (run.first_page, position);
        while at < position + u64::from(run.pages) {
            let Some(found) = here else {
                return Err(page);
            };
            let end = start + u64::from(found.pages.get());
            if at >= end {
                (here, start) = (held.next(), end);
                continue;
            }
            if at < start || found.first_page.get() + (at - start) != page {
                return Err(page);
            }
            let pages = end.min(position + u64::from(run.pages)) - at;
            page += pages;
            at += pages;
        }
    }
    Ok(())
}
