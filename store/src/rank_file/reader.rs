//! Reads a rank file: nothing in it is believed before its checksum is right, and no length before it is
//! known to lie in the file.

use protocol::control::StoredFile;
use zerocopy::{FromZeros, IntoBytes};

use super::SectionKind;
use super::codec::Scratch;
use super::index::Index;
use super::map::{ImageRun, PageSource};
use crate::format::checksum::Checksums;
use crate::format::layout::{
    ChunkEntry, ChunkHeader, ENCODING_RAW, FileHeader, HEADER_MAGIC, KIND_PAGES, PAGE_BYTES_FIELD,
    PageRun, RANK_FILE_VERSION, SOURCE_HERE, TRAILER_MAGIC, Trailer,
};
use crate::storage::{self, ReadFile, Storage, read_exact_at};
use crate::{Error, FileKey, PAGE_BYTES, Result};

/// A rank file, open for reading. Several threads may read chunks at once, each with its own [`Scratch`].
#[derive(Debug)]
pub struct RankFile {
    pub(super) file: Box<dyn ReadFile>,
    /// The path as users see it.
    pub(super) shown: String,
    pub(super) sums: Checksums,
    pub(super) stored: StoredFile,
    pub(super) index: Index,
    /// The pages of each chunk, in the order of its bytes.
    page_runs: Vec<Vec<PageRun>>,
    /// Numbers of the chunks that hold pages.
    page_chunks: Vec<u32>,
}

impl RankFile {
    /// Opens the file that the manifest calls `stored`, which must be the one of `key`. Checks length,
    /// header, trailer and index; chunks are checked when they are read.
    pub fn open(storage: &dyn Storage, stored: &StoredFile, key: FileKey) -> Result<Self> {
        let shown = storage.describe(&stored.name);
        let corrupt = |what: String| Error::corrupt(shown.as_str(), what);
        let file = storage::open(storage, &stored.name, "a rank's file of a checkpoint")?;
        let file_bytes = file
            .file_bytes()
            .map_err(Error::io("read the length of", shown.as_str()))?;
        if file_bytes != stored.file_bytes {
            return Err(corrupt(format!(
                "{file_bytes} bytes long where the manifest says {}: truncated, or written to later",
                stored.file_bytes
            )));
        }
        let ends = (size_of::<FileHeader>() + size_of::<Trailer>()) as u64;
        if file_bytes < ends {
            return Err(corrupt("too short for a rank file".into()));
        }
        let sums = Checksums::new(key);
        let read = |into: &mut [u8], offset| {
            read_exact_at(&*file, into, offset).map_err(Error::io("read", shown.as_str()))
        };

        let mut header = FileHeader::new_zeroed();
        read(header.as_mut_bytes(), 0)?;
        check_header(&header, &sums, key, &shown)?;
        let mut trailer = Trailer::new_zeroed();
        let trailer_offset = file_bytes - size_of::<Trailer>() as u64;
        read(trailer.as_mut_bytes(), trailer_offset)?;
        check_trailer(&trailer, &header, &sums, trailer_offset).map_err(corrupt)?;

        let index_bytes = usize::try_from(trailer.index_bytes.get())
            .map_err(|_| corrupt("the index is longer than memory".into()))?;
        let mut index = vec![0; index_bytes];
        read(&mut index, trailer.index_offset.get())?;
        if sums.index(&index) != trailer.index_checksum.get() {
            return Err(corrupt("the checksum of the index is wrong".into()));
        }
        let index = Index::decode(&index, trailer.index_offset.get()).map_err(corrupt)?;
        if let Some(other) = index.sources.first() {
            return Err(Error::Unsupported {
                path: shown,
                what: format!("an incremental image, which needs pages of {other}"),
            });
        }
        let page_runs = index.page_runs().map_err(corrupt)?;
        let raw_bytes = raw_bytes(&index);
        if raw_bytes != trailer.raw_bytes.get() || raw_bytes != stored.raw_bytes {
            return Err(corrupt(format!(
                "the index stands for {raw_bytes} bytes, the trailer for {}, the manifest for {}",
                trailer.raw_bytes, stored.raw_bytes
            )));
        }
        let page_chunks = (0u32..)
            .zip(&index.chunks)
            .filter(|(_, chunk)| chunk.kind.get() == KIND_PAGES)
            .map(|(number, _)| number)
            .collect();
        Ok(Self {
            file,
            shown,
            sums,
            stored: stored.clone(),
            index,
            page_runs,
            page_chunks,
        })
    }

    /// How many chunks hold pages: what [`RankFile::read_chunk`] counts.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        self.page_chunks.len()
    }

    /// Pages of the image, zero pages included.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.index.pages()
    }

    /// The pages of the image in ascending order, and where they are. Pages that are not listed are no part
    /// of it; zero pages are listed and in no chunk.
    #[must_use]
    pub fn runs(&self) -> &[ImageRun] {
        &self.index.runs
    }

    /// Reads page chunk `i` and hands out its pages, each with its number. Nothing is handed out unless the
    /// whole chunk is right.
    pub fn read_chunk(
        &self,
        i: usize,
        scratch: &mut Scratch,
        mut page: impl FnMut(u64, &[u8]),
    ) -> Result<()> {
        let number = self.page_chunk(i)?;
        let raw = self.raw_chunk(number, scratch)?;
        let mut rest = raw;
        for run in &self.page_runs[number as usize] {
            for number in run.first_page.get()..run.first_page.get() + u64::from(run.pages.get()) {
                let (bytes, after) = rest.split_at(PAGE_BYTES);
                page(number, bytes);
                rest = after;
            }
        }
        Ok(())
    }

    /// Reads page chunk `i` straight into the memory that `place` names: asked for a first page and a
    /// number of pages, it gives exactly that many bytes, or `None` where they are not wanted.
    ///
    /// This is the fast way to restore: a chunk of consecutive pages is decompressed into its place, and a
    /// chunk stored as it is is read into it, with no copy between. In return, memory that was handed out holds
    /// anything where an error is returned.
    pub fn read_chunk_into<'m>(
        &self,
        i: usize,
        scratch: &mut Scratch,
        mut place: impl FnMut(u64, usize) -> Option<&'m mut [u8]>,
    ) -> Result<()> {
        let number = self.page_chunk(i)?;
        let runs = &self.page_runs[number as usize];
        let mut placed = Vec::with_capacity(runs.len());
        for run in runs {
            let (first, pages) = (run.first_page.get(), run.pages.get() as usize);
            let into = place(first, pages);
            if let Some(into) = &into
                && into.len() != pages * PAGE_BYTES
            {
                return Err(Error::invalid(
                    self.shown.as_str(),
                    format!("{} bytes of memory given for {pages} pages", into.len()),
                ));
            }
            placed.push(into);
        }
        if let [Some(into)] = &mut placed[..] {
            return self.raw_chunk_into(number, scratch, into);
        }
        let mut rest = self.raw_chunk(number, scratch)?;
        for (run, into) in runs.iter().zip(placed) {
            let (bytes, after) = rest.split_at(run.pages.get() as usize * PAGE_BYTES);
            if let Some(into) = into {
                into.copy_from_slice(bytes);
            }
            rest = after;
        }
        Ok(())
    }

    /// Reads one page of the image, `None` if it is no part of it.
    pub fn read_page(&self, page: u64, scratch: &mut Scratch) -> Result<Option<[u8; PAGE_BYTES]>> {
        let after = self
            .index
            .runs
            .partition_point(|run| run.first_page <= page);
        let Some(run) = after.checked_sub(1).map(|at| self.index.runs[at]) else {
            return Ok(None);
        };
        if page >= run.first_page + run.pages {
            return Ok(None);
        }
        match run.source {
            PageSource::Zero => Ok(Some([0; PAGE_BYTES])),
            PageSource::Stored {
                file: SOURCE_HERE,
                chunk,
                position,
            } => {
                let raw = self.raw_chunk(chunk, scratch)?;
                let at = (position as usize + (page - run.first_page) as usize) * PAGE_BYTES;
                let mut bytes = [0; PAGE_BYTES];
                bytes.copy_from_slice(&raw[at..at + PAGE_BYTES]);
                Ok(Some(bytes))
            }
            PageSource::Stored { .. } => unreachable!("open refuses incremental images"),
        }
    }

    /// Reads a section, empty if nothing was written to it.
    pub fn section(&self, kind: SectionKind) -> Result<Vec<u8>> {
        let mut scratch = Scratch::new();
        let mut section = Vec::new();
        for (number, chunk) in (0u32..).zip(&self.index.chunks) {
            if chunk.kind.get() == kind.number() {
                section.extend_from_slice(self.raw_chunk(number, &mut scratch)?);
            }
        }
        Ok(section)
    }

    fn page_chunk(&self, i: usize) -> Result<u32> {
        self.page_chunks.get(i).copied().ok_or_else(|| {
            Error::invalid(
                self.shown.as_str(),
                format!(
                    "there is no page chunk {i}, only {}",
                    self.page_chunks.len()
                ),
            )
        })
    }

    /// The raw bytes of a chunk, checked.
    pub(super) fn raw_chunk<'s>(&self, number: u32, scratch: &'s mut Scratch) -> Result<&'s [u8]> {
        let payload = self.fetch(number, scratch)?;
        let entry = &self.index.chunks[number as usize];
        if entry.encoding.get() == ENCODING_RAW {
            return Ok(&scratch.stored[payload..]);
        }
        scratch
            .decode_to_raw(
                entry.encoding.get(),
                payload,
                entry.raw_bytes.get() as usize,
            )
            .map_err(|what| self.corrupt_chunk(number, &what))?;
        self.check_raw(number, &scratch.raw)?;
        Ok(&scratch.raw)
    }

    fn raw_chunk_into(&self, number: u32, scratch: &mut Scratch, into: &mut [u8]) -> Result<()> {
        let entry = &self.index.chunks[number as usize];
        if entry.encoding.get() == ENCODING_RAW {
            let payload = self.fetch_bytes(number, scratch, false)?;
            let offset = entry.offset.get() + payload as u64;
            read_exact_at(&*self.file, into, offset)
                .map_err(Error::io("read", self.shown.as_str()))?;
            return self.check_stored(number, &scratch.stored, into);
        }
        let payload = self.fetch(number, scratch)?;
        scratch
            .decode_into(entry.encoding.get(), payload, into)
            .map_err(|what| self.corrupt_chunk(number, &what))?;
        self.check_raw(number, into)
    }

    /// Reads a chunk as stored, checks it, and tells where in `scratch.stored` its payload starts.
    pub(super) fn fetch(&self, number: u32, scratch: &mut Scratch) -> Result<usize> {
        let payload = self.fetch_bytes(number, scratch, true)?;
        let (front, rest) = scratch.stored.split_at(payload);
        self.check_stored(number, front, rest)?;
        Ok(payload)
    }

    /// Reads a chunk, with or without its payload, into `scratch.stored`; nothing is checked yet.
    fn fetch_bytes(&self, number: u32, scratch: &mut Scratch, payload: bool) -> Result<usize> {
        let entry = &self.index.chunks[number as usize];
        let front = front_bytes(entry);
        let wanted = front
            + if payload {
                entry.stored_bytes.get() as usize
            } else {
                0
            };
        scratch.stored.resize(wanted, 0);
        read_exact_at(&*self.file, &mut scratch.stored, entry.offset.get())
            .map_err(Error::io("read", self.shown.as_str()))?;
        Ok(front)
    }

    /// The header must be what the index says, the page runs too, and the checksum over it all right.
    fn check_stored(&self, number: u32, front: &[u8], payload: &[u8]) -> Result<()> {
        let entry = &self.index.chunks[number as usize];
        let expected = entry.header(number);
        let (header, runs) = front.split_at(size_of::<ChunkHeader>());
        if header != expected.as_bytes() {
            return Err(self.corrupt_chunk(number, "its header is not what the index says"));
        }
        if runs != self.page_runs[number as usize].as_bytes() {
            return Err(self.corrupt_chunk(number, "its pages are not those that the index says"));
        }
        if self.sums.stored(&expected, runs, payload) != entry.stored_checksum.get() {
            return Err(self.corrupt_chunk(number, "the checksum of its stored bytes is wrong"));
        }
        Ok(())
    }

    pub(super) fn check_raw(&self, number: u32, raw: &[u8]) -> Result<()> {
        let entry = &self.index.chunks[number as usize];
        let runs = self.page_runs[number as usize].as_bytes();
        if self.sums.raw(number, runs, raw) == entry.raw_checksum.get() {
            Ok(())
        } else {
            Err(self.corrupt_chunk(number, "the checksum of its raw bytes is wrong"))
        }
    }

    fn corrupt_chunk(&self, number: u32, what: &str) -> Error {
        let offset = self.index.chunks[number as usize].offset;
        Error::corrupt(
            self.shown.as_str(),
            format!("chunk {number} at offset {offset}: {what}"),
        )
    }
}

fn front_bytes(entry: &ChunkEntry) -> usize {
    size_of::<ChunkHeader>() + size_of::<PageRun>() * entry.page_runs.get() as usize
}

fn raw_bytes(index: &Index) -> u64 {
    let sections: u64 = index
        .chunks
        .iter()
        .filter(|chunk| chunk.kind.get() != KIND_PAGES)
        .map(|chunk| u64::from(chunk.raw_bytes.get()))
        .sum();
    sections + index.pages() * PAGE_BYTES as u64
}

fn check_header(header: &FileHeader, sums: &Checksums, key: FileKey, shown: &str) -> Result<()> {
    let corrupt = |what: &str| Err(Error::corrupt(shown, what));
    if header.magic != HEADER_MAGIC {
        return corrupt("does not start as a rank file");
    }
    if header.version.get() != RANK_FILE_VERSION {
        return Err(Error::Version {
            path: shown.to_owned(),
            found: header.version.get(),
            known: RANK_FILE_VERSION,
        });
    }
    let named = (
        header.job,
        header.incarnation.get(),
        header.epoch.get(),
        header.rank.get(),
    );
    if named != (key.job.0, key.incarnation.0, key.epoch.0, key.rank.0) {
        return corrupt("belongs to another job, incarnation, epoch or rank");
    }
    if header.page_bytes.get() != PAGE_BYTES_FIELD {
        return corrupt("has pages of another size");
    }
    if sums.header(header) != header.checksum.get() {
        return corrupt("the checksum of the header is wrong");
    }
    Ok(())
}

fn check_trailer(
    trailer: &Trailer,
    header: &FileHeader,
    sums: &Checksums,
    trailer_offset: u64,
) -> Result<(), String> {
    if trailer.magic != TRAILER_MAGIC {
        return Err("does not end as a rank file: torn, or written over".into());
    }
    if sums.trailer(trailer) != trailer.checksum.get() {
        return Err("the checksum of the trailer is wrong".into());
    }
    if trailer.header_checksum != header.checksum {
        return Err("header and trailer are not of the same file".into());
    }
    let file_bytes = trailer_offset + size_of::<Trailer>() as u64;
    if trailer.file_bytes.get() != file_bytes {
        return Err(format!(
            "{file_bytes} bytes long where the trailer says {}",
            trailer.file_bytes
        ));
    }
    let index_end = trailer
        .index_offset
        .get()
        .checked_add(trailer.index_bytes.get());
    if index_end != Some(trailer_offset)
        || trailer.index_offset.get() < size_of::<FileHeader>() as u64
    {
        return Err("the index is not between the chunks and the trailer".into());
    }
    Ok(())
}
