//! The index of a rank file: where every page of the image is.

use zerocopy::{FromBytes, IntoBytes};

use super::map::{ImageRun, PageSource};
use crate::format::layout::{
    CHUNK_RAW_BYTES_MAX, CHUNKS_MAX, ChunkEntry, ChunkHeader, ENCODING_PLANES_ZSTD, ENCODING_RAW,
    ENCODING_ZSTD, FileHeader, INDEX_MAGIC, IndexHeader, IndexRun, IndexSource, KIND_PAGES,
    PAGE_NUMBER_MAX, PageRun, SOURCE_HERE, SOURCE_ZERO,
};
use crate::{CheckpointId, PAGE_BYTES, SectionKind};
use protocol::ids::{Epoch, Incarnation};

/// An index, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// The other checkpoints that the image needs: ascending, each used. [`PageSource::Stored`] counts
    /// them from 1.
    pub(super) sources: Vec<CheckpointId>,
    pub(super) chunks: Vec<ChunkEntry>,
    /// Sorted by page, not overlapping.
    pub(super) runs: Vec<ImageRun>,
}

impl Index {
    /// Pages of the image, zero pages included.
    pub(super) fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.pages).sum()
    }

    /// The bytes of the index.
    pub(super) fn encode(&self) -> Vec<u8> {
        let header = IndexHeader {
            magic: INDEX_MAGIC,
            sources: u32::try_from(self.sources.len())
                .expect("sources are few")
                .into(),
            chunks: u32::try_from(self.chunks.len())
                .expect("the writer counts chunks in 32 bits")
                .into(),
            runs: (self.runs.len() as u64).into(),
            pages: self.pages().into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        for need in &self.sources {
            let source = IndexSource {
                epoch: need.epoch.0.into(),
                incarnation: need.incarnation.0.into(),
            };
            bytes.extend_from_slice(source.as_bytes());
        }
        bytes.extend_from_slice(self.chunks.as_bytes());
        for run in &self.runs {
            let (source, chunk, position) = match run.source {
                PageSource::Zero => (SOURCE_ZERO, 0, 0),
                PageSource::Stored {
                    file,
                    chunk,
                    position,
                } => (file, chunk, position),
            };
            let run = IndexRun {
                first_page: run.first_page.into(),
                pages: run.pages.into(),
                source: source.into(),
                chunk: chunk.into(),
                position: position.into(),
            };
            bytes.extend_from_slice(run.as_bytes());
        }
        bytes
    }

    /// Reads an index and checks all that can be checked without the chunks. `chunks_end` is where the
    /// last chunk ends. The counts are believed only as far as the bytes are there.
    pub(super) fn decode(bytes: &[u8], chunks_end: u64) -> Result<Self, String> {
        let (header, rest) =
            IndexHeader::read_from_prefix(bytes).map_err(|_| "the index is too short")?;
        if header.magic != INDEX_MAGIC {
            return Err("the index does not start as one".into());
        }
        if u64::from(header.chunks.get()) > CHUNKS_MAX {
            return Err(format!("{} chunks are too many", header.chunks));
        }
        let (sources, rest) = table::<IndexSource>(rest, u64::from(header.sources.get()))?;
        let (chunks, rest) = table::<ChunkEntry>(rest, u64::from(header.chunks.get()))?;
        let (runs, rest) = table::<IndexRun>(rest, header.runs.get())?;
        if !rest.is_empty() {
            return Err(format!("{} bytes follow the index", rest.len()));
        }
        check_chunks(chunks, chunks_end)?;
        let sources: Vec<_> = sources
            .iter()
            .map(|source| CheckpointId {
                epoch: Epoch(source.epoch.get()),
                incarnation: Incarnation(source.incarnation.get()),
            })
            .collect();
        if !sources.is_sorted_by(|before, after| before.epoch < after.epoch) {
            return Err("the sources are not sorted".into());
        }
        let index = Self {
            runs: check_runs(runs, sources.len(), chunks)?,
            sources,
            chunks: chunks.to_vec(),
        };
        if index.pages() != header.pages.get() {
            return Err(format!(
                "the index lists {} pages where it says {}",
                index.pages(),
                header.pages
            ));
        }
        Ok(index)
    }

    /// The pages that the chunks of this file hold, in the order of their bytes. Every position of a chunk
    /// must be mapped by exactly one run.
    pub(super) fn page_table(&self) -> Result<PageTable, String> {
        let mut placed: Vec<Placed> = self
            .runs
            .iter()
            .filter_map(Placed::of)
            .filter(|placed| placed.file == SOURCE_HERE)
            .collect();
        placed.sort_unstable_by_key(Placed::place);
        let mut table = PageTable {
            runs: Vec::with_capacity(placed.len()),
            ends: Vec::with_capacity(self.chunks.len()),
        };
        let mut placed = placed.into_iter().peekable();
        for (number, entry) in (0u32..).zip(&self.chunks) {
            let wrong = || format!("the pages of chunk {number} are not mapped once each");
            let before = table.runs.len();
            let mut next = 0;
            while let Some(run) = placed.next_if(|run| run.chunk == number) {
                if run.position != next {
                    return Err(wrong());
                }
                // Runs were checked to lie in their chunks.
                next += run.pages;
                table.runs.push(PageRun {
                    first_page: run.first_page.into(),
                    pages: run.pages.into(),
                });
            }
            let expected = match entry.kind.get() {
                KIND_PAGES => entry.raw_bytes.get() / PAGE_BYTES as u32,
                _ => 0,
            };
            let page_runs = table.runs.len() - before;
            if next != expected || page_runs != entry.page_runs.get() as usize {
                return Err(wrong());
            }
            table.ends.push(table.runs.len());
        }
        Ok(table)
    }

    /// Bytes of all chunks before compression.
    pub(super) fn changed_bytes(&self) -> u64 {
        self.chunks
            .iter()
            .map(|chunk| u64::from(chunk.raw_bytes.get()))
            .sum()
    }

    /// Bytes of the image: all its pages, and its sections.
    pub(super) fn raw_bytes(&self) -> u64 {
        let sections: u64 = self
            .chunks
            .iter()
            .filter(|chunk| chunk.kind.get() != KIND_PAGES)
            .map(|chunk| u64::from(chunk.raw_bytes.get()))
            .sum();
        sections + self.pages() * PAGE_BYTES as u64
    }
}

/// A run of pages in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) file: u32,
    pub(super) chunk: u32,
    pub(super) position: u32,
    pub(super) pages: u32,
    pub(super) first_page: u64,
}

impl Placed {
    /// `None` for zeros.
    pub(super) fn of(run: &ImageRun) -> Option<Self> {
        match run.source {
            PageSource::Zero => None,
            PageSource::Stored {
                file,
                chunk,
                position,
            } => Some(Self {
                file,
                chunk,
                position,
                pages: u32::try_from(run.pages).expect("a chunk has less than 2^32 pages"),
                first_page: run.first_page,
            }),
        }
    }

    /// What sorting is by.
    pub(super) fn place(&self) -> (u32, u32, u32) {
        (self.file, self.chunk, self.position)
    }
}

/// The page runs of all chunks of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageTable {
    runs: Vec<PageRun>,
    /// For each chunk, where its runs end.
    ends: Vec<usize>,
}

impl PageTable {
    /// The pages of a chunk, in the order of its bytes.
    pub(super) fn of(&self, chunk: u32) -> &[PageRun] {
        let start = match (chunk as usize).checked_sub(1) {
            Some(before) => self.ends[before],
            None => 0,
        };
        &self.runs[start..self.ends[chunk as usize]]
    }
}

/// Splits a table of `count` items off `bytes`.
fn table<T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned>(
    bytes: &[u8],
    count: u64,
) -> Result<(&[T], &[u8]), String> {
    usize::try_from(count)
        .ok()
        .filter(|count| {
            count
                .checked_mul(size_of::<T>())
                .is_some_and(|needed| needed <= bytes.len())
        })
        .and_then(|count| <[T]>::ref_from_prefix_with_elems(bytes, count).ok())
        .ok_or_else(|| format!("a table of {count} entries does not fit into the index"))
}

/// Chunks must follow each other from the file header to `chunks_end`, with no byte between them.
fn check_chunks(chunks: &[ChunkEntry], chunks_end: u64) -> Result<(), String> {
    let mut next = size_of::<FileHeader>() as u64;
    for (number, chunk) in chunks.iter().enumerate() {
        let wrong = |what: &str| Err(format!("chunk {number} {what}"));
        let (raw, stored) = (chunk.raw_bytes.get(), chunk.stored_bytes.get());
        if chunk.offset.get() != next {
            return wrong("does not start where the one before it ends");
        }
        if raw as usize > CHUNK_RAW_BYTES_MAX {
            return wrong("is too long");
        }
        let kind = chunk.kind.get();
        if kind == KIND_PAGES {
            let pages = raw as usize / PAGE_BYTES;
            if pages == 0 || !(raw as usize).is_multiple_of(PAGE_BYTES) {
                return wrong("is no whole number of pages");
            }
            if !(1..=pages).contains(&(chunk.page_runs.get() as usize)) {
                return wrong("has an impossible number of page runs");
            }
        } else if SectionKind::ALL.iter().all(|known| known.number() != kind) {
            return wrong("is of an unknown kind");
        } else if chunk.page_runs.get() != 0 {
            return wrong("is a section's, and has page runs");
        } else if raw == 0 {
            return wrong("is empty");
        }
        match chunk.encoding.get() {
            ENCODING_RAW if stored == raw => {}
            ENCODING_ZSTD if stored < raw => {}
            ENCODING_PLANES_ZSTD if stored < raw && kind == KIND_PAGES => {}
            _ => return wrong("has an unknown encoding, or a length that does not fit it"),
        }
        next = next
            .checked_add(chunk.whole_bytes())
            .ok_or("the chunks are longer than a file can be")?;
    }
    if next != chunks_end {
        return Err("the chunks do not end where the index starts".into());
    }
    Ok(())
}

fn check_runs(
    runs: &[IndexRun],
    sources: usize,
    chunks: &[ChunkEntry],
) -> Result<Vec<ImageRun>, String> {
    let mut used = vec![false; sources];
    let mut next_page = 0;
    let mut checked = Vec::with_capacity(runs.len());
    for run in runs {
        let (first_page, pages) = (run.first_page.get(), run.pages.get());
        let wrong = |what: &str| Err(format!("the index's run at page {first_page} {what}"));
        let end = first_page
            .checked_add(pages)
            .filter(|end| *end <= PAGE_NUMBER_MAX + 1);
        let Some(end) = end else {
            return wrong("ends beyond the last possible page");
        };
        if pages == 0 || first_page < next_page {
            return wrong("is empty, or not after the one before it");
        }
        next_page = end;
        let (chunk, position) = (run.chunk.get(), run.position.get());
        let in_chunk =
            |raw_bytes: u64| u64::from(position) + pages <= raw_bytes / PAGE_BYTES as u64;
        let source = match run.source.get() {
            SOURCE_ZERO if chunk == 0 && position == 0 => PageSource::Zero,
            SOURCE_ZERO => return wrong("is of zero pages, and names a chunk"),
            file => {
                let raw_bytes = if file == SOURCE_HERE {
                    match chunks.get(chunk as usize) {
                        Some(entry) if entry.kind.get() == KIND_PAGES => {
                            u64::from(entry.raw_bytes.get())
                        }
                        _ => return wrong("is not in the chunk that it names"),
                    }
                } else {
                    match used.get_mut(file as usize - 1) {
                        Some(used) => *used = true,
                        None => return wrong("has no such source"),
                    }
                    // More is known where that file is open.
                    CHUNK_RAW_BYTES_MAX as u64
                };
                if !in_chunk(raw_bytes) {
                    return wrong("is not in the chunk that it names");
                }
                PageSource::Stored {
                    file,
                    chunk,
                    position,
                }
            }
        };
        checked.push(ImageRun {
            first_page,
            pages,
            source,
        });
    }
    if used.contains(&false) {
        return Err("a source is not needed".into());
    }
    Ok(checked)
}

const _: () = assert!(size_of::<ChunkHeader>() == 44 && size_of::<PageRun>() == 12);

#[cfg(test)]
mod tests {
    use super::super::map::sort_runs;
    use super::*;

    fn entry(offset: u64, pages: u32, page_runs: u32) -> ChunkEntry {
        ChunkEntry {
            offset: offset.into(),
            kind: KIND_PAGES.into(),
            encoding: ENCODING_RAW.into(),
            page_runs: page_runs.into(),
            raw_bytes: (pages * PAGE_BYTES as u32).into(),
            stored_bytes: (pages * PAGE_BYTES as u32).into(),
            raw_checksum: 1.into(),
            stored_checksum: 2.into(),
        }
    }

    fn run(first_page: u64, pages: u64, source: PageSource) -> ImageRun {
        ImageRun {
            first_page,
            pages,
            source,
        }
    }

    fn stored(file: u32, chunk: u32, position: u32) -> PageSource {
        PageSource::Stored {
            file,
            chunk,
            position,
        }
    }

    /// An incremental image: two pages of its own, one of another checkpoint's, zeros.
    fn example() -> (Index, u64) {
        let first = entry(size_of::<FileHeader>() as u64, 2, 2);
        let end = first.offset.get() + first.whole_bytes();
        let other = |epoch| CheckpointId {
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
        };
        let index = Index {
            sources: vec![other(4), other(5)],
            chunks: vec![first],
            runs: vec![
                run(3, 1, stored(0, 0, 1)),
                run(4, 5, PageSource::Zero),
                run(9, 1, stored(0, 0, 0)),
                run(10, 2, stored(2, 8, 3)),
                run(12, 1, stored(1, 0, 0)),
            ],
        };
        (index, end)
    }

    #[test]
    fn an_index_that_refers_to_other_checkpoints_reads_back_as_written() {
        let (index, end) = example();
        assert_eq!(Index::decode(&index.encode(), end).unwrap(), index);
        let pages: Vec<u64> = index
            .page_table()
            .unwrap()
            .of(0)
            .iter()
            .map(|run| run.first_page.get())
            .collect();
        assert_eq!(pages, [9, 3], "in the order of the chunk's bytes");
    }

    #[test]
    fn hostile_counts_are_refused_before_anything_is_allocated() {
        let (index, end) = example();
        let bytes = index.encode();
        for (at, width) in [(8, 4), (12, 4), (16, 8), (24, 8)] {
            let mut hostile = bytes.clone();
            hostile[at..at + width].fill(0xff);
            Index::decode(&hostile, end).unwrap_err();
        }
    }

    #[test]
    fn sources_ascend_and_each_is_used() {
        let (index, end) = example();
        let mut unused = index.clone();
        unused.sources[1].epoch = Epoch(3);
        assert!(
            Index::decode(&unused.encode(), end).is_err(),
            "not ascending"
        );
        let mut unused = index.clone();
        let another = CheckpointId {
            epoch: Epoch(6),
            ..index.sources[0]
        };
        unused.sources.push(another);
        assert!(Index::decode(&unused.encode(), end).is_err(), "not used");
        let mut unknown = index;
        unknown.sources.pop();
        assert!(Index::decode(&unknown.encode(), end).is_err(), "not there");
    }

    #[test]
    fn a_page_may_be_in_one_run_only() {
        let (mut index, end) = example();
        index.runs.push(run(7, 3, PageSource::Zero));
        assert!(Index::decode(&index.encode(), end).is_err());
        assert_eq!(sort_runs(&mut index.runs), Err(7));
    }

    #[test]
    fn a_position_of_a_chunk_is_mapped_exactly_once() {
        let (mut index, _) = example();
        index.runs[0].source = stored(0, 0, 0);
        assert!(index.page_table().is_err(), "twice");
        index.runs.remove(0);
        assert!(index.page_table().is_err(), "not at all");
    }

    #[test]
    fn bytes_between_chunks_are_refused() {
        let (mut index, end) = example();
        index.chunks[0].offset = (size_of::<FileHeader>() as u64 + 1).into();
        assert!(Index::decode(&index.encode(), end + 1).is_err());
        assert!(Index::decode(&example().0.encode(), end + 1).is_err());
    }
}
