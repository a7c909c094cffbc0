//! Writes a rank file from its start to its end.

use protocol::control::{Compression, StoredFile};
use zerocopy::IntoBytes;

use super::SectionKind;
use super::codec::Packer;
use super::index::{ImageRun, Index, PageSource};
use crate::durable::is_failed_fsync;
use crate::format::checksum::{Checksums, FileDigest};
use crate::format::layout::{
    CHUNK_MAGIC, CHUNK_RAW_BYTES, CHUNKS_MAX, ChunkEntry, ChunkHeader, FileHeader, HEADER_MAGIC,
    KIND_PAGES, PAGE_BYTES_FIELD, PAGE_NUMBER_MAX, PageRun, RANK_FILE_VERSION, TRAILER_MAGIC,
    Trailer,
};
use crate::storage::{self, Access, SharedStorage, WriteFile, read_exact_at, write_all};
use crate::{Error, FileKey, PAGE_BYTES, Result, names};

/// Bytes copied at once where a file must be written again.
const COPY_BYTES: usize = 1 << 20;

/// Writes a rank file: pages and sections in any order, then [`RankFileWriter::finish`].
///
/// After an error nothing but [`RankFileWriter::discard`] makes sense; dropping it does the same. A file that
/// was not finished is removed: nobody can refer to it yet.
pub struct RankFileWriter {
    storage: SharedStorage,
    key: FileKey,
    sums: Checksums,
    path: String,
    file: Option<Box<dyn WriteFile>>,
    compression: Compression,
    digest: FileDigest,
    header_checksum: u64,
    written_bytes: u64,
    raw_bytes: u64,
    index: Index,
    /// The chunk of pages that is being filled.
    pending: Vec<u8>,
    pending_runs: Vec<PageRun>,
    broken: bool,
}

impl RankFileWriter {
    /// Makes the file of `key` in the directory of its epoch, which must exist.
    pub fn create(storage: SharedStorage, key: FileKey, compression: Compression) -> Result<Self> {
        let path = names::rank_file(&key, 1);
        let shown = storage.describe(&path);
        let file = storage
            .create_new(&path, Access::Owner)
            .map_err(Error::io("create", shown))?;
        let sums = Checksums::new(key);
        let mut header = FileHeader {
            magic: HEADER_MAGIC,
            version: RANK_FILE_VERSION.into(),
            page_bytes: PAGE_BYTES_FIELD.into(),
            job: key.job.0,
            incarnation: key.incarnation.0.into(),
            epoch: key.epoch.0.into(),
            rank: key.rank.0.into(),
            checksum: 0.into(),
        };
        header.checksum = sums.header(&header).into();
        let mut writer = Self {
            storage,
            key,
            sums,
            path,
            file: Some(file),
            compression,
            digest: FileDigest::new(),
            header_checksum: header.checksum.get(),
            written_bytes: 0,
            raw_bytes: 0,
            index: Index::default(),
            pending: Vec::new(),
            pending_runs: Vec::new(),
            broken: false,
        };
        writer.append(header.as_bytes())?;
        Ok(writer)
    }

    /// Adds pages: `bytes` holds those of `page_numbers` one after the other, [`PAGE_BYTES`] each. Pages
    /// of zeros are listed and not stored. Restoring is fastest where pages come in ascending order.
    /// A page can be added once.
    pub fn pages(&mut self, page_numbers: &[u64], bytes: &[u8]) -> Result<()> {
        if bytes.len() != page_numbers.len() * PAGE_BYTES {
            return Err(self.invalid(format!(
                "{} bytes given for {} pages",
                bytes.len(),
                page_numbers.len()
            )));
        }
        page_numbers
            .iter()
            .zip(bytes.chunks_exact(PAGE_BYTES))
            .try_for_each(|(number, page)| self.page(*number, page))
    }

    /// Adds pages that follow each other: `bytes` is a whole number of them, from `first_page` on.
    pub fn page_run(&mut self, first_page: u64, bytes: &[u8]) -> Result<()> {
        if !bytes.len().is_multiple_of(PAGE_BYTES) {
            return Err(self.invalid(format!("{} bytes are no whole pages", bytes.len())));
        }
        (first_page..)
            .zip(bytes.chunks_exact(PAGE_BYTES))
            .try_for_each(|(number, page)| self.page(number, page))
    }

    /// Adds pages that are known to be zeros, without looking at them.
    pub fn zero_pages(&mut self, first_page: u64, pages: u64) -> Result<()> {
        let last = first_page.checked_add(pages.saturating_sub(1));
        if last.is_none_or(|last| last > PAGE_NUMBER_MAX) {
            return Err(self.invalid(format!("{pages} pages from {first_page} on can't be")));
        }
        if pages > 0 {
            self.raw_bytes = self.raw_bytes.saturating_add(pages * PAGE_BYTES as u64);
            self.list(first_page, pages, PageSource::Zero);
        }
        Ok(())
    }

    /// Appends to a section. A section that nothing was appended to reads as empty.
    pub fn section(&mut self, kind: SectionKind, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(CHUNK_RAW_BYTES) {
            self.write_chunk(kind.number(), &[], piece)?;
            self.raw_bytes += piece.len() as u64;
        }
        Ok(())
    }

    /// Bytes of the image so far, before compression.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Completes the file and makes it durable, its name included. Where fsync fails, the file is written
    /// once more under another name, and counts only if that one is the same to the last bit.
    pub fn finish(mut self) -> Result<StoredFile> {
        self.flush_pages()?;
        if let Err(page) = self.index.sort() {
            return Err(self.invalid(format!("page {page} was added twice")));
        }
        let index = self.index.encode();
        let index_offset = self.written_bytes;
        self.append(&index)?;
        let mut trailer = Trailer {
            magic: TRAILER_MAGIC,
            index_offset: index_offset.into(),
            index_bytes: (index.len() as u64).into(),
            file_bytes: (self.written_bytes + size_of::<Trailer>() as u64).into(),
            raw_bytes: self.raw_bytes.into(),
            index_checksum: self.sums.index(&index).into(),
            header_checksum: self.header_checksum.into(),
            checksum: 0.into(),
        };
        trailer.checksum = self.sums.trailer(&trailer).into();
        self.append(trailer.as_bytes())?;
        self.sync()?;
        storage::sync_dir(&*self.storage, names::parent(&self.path))?;
        self.file = None;
        Ok(StoredFile {
            rank: self.key.rank,
            name: self.path.clone(),
            file_bytes: self.written_bytes,
            digest: self.digest.finish(),
            raw_bytes: self.raw_bytes,
            changed_bytes: self.raw_bytes,
        })
    }

    /// Removes what was written.
    pub fn discard(self) {
        drop(self);
    }

    fn page(&mut self, number: u64, page: &[u8]) -> Result<()> {
        if number > PAGE_NUMBER_MAX {
            return Err(self.invalid(format!("page number {number} is too large")));
        }
        if is_zero(page) {
            return self.zero_pages(number, 1);
        }
        let position = (self.pending.len() / PAGE_BYTES) as u32;
        let chunk = self.index.chunks.len() as u32;
        self.pending.extend_from_slice(page);
        match self.pending_runs.last_mut() {
            Some(run) if run.first_page.get() + u64::from(run.pages.get()) == number => {
                run.pages += 1;
            }
            _ => self.pending_runs.push(PageRun {
                first_page: number.into(),
                pages: 1.into(),
            }),
        }
        self.raw_bytes += PAGE_BYTES as u64;
        self.list(number, 1, PageSource::Here { chunk, position });
        if self.pending.len() >= CHUNK_RAW_BYTES {
            self.flush_pages()?;
        }
        Ok(())
    }

    /// Notes in the index where pages are, as part of the run before them where they continue it.
    fn list(&mut self, first_page: u64, pages: u64, source: PageSource) {
        if let Some(last) = self.index.runs.last_mut()
            && last.first_page + last.pages == first_page
        {
            let continues = match (last.source, source) {
                (PageSource::Zero, PageSource::Zero) => true,
                (
                    PageSource::Here { chunk, position },
                    PageSource::Here {
                        chunk: next_chunk,
                        position: next,
                    },
                ) => chunk == next_chunk && u64::from(position) + last.pages == u64::from(next),
                _ => false,
            };
            if continues {
                last.pages += pages;
                return;
            }
        }
        self.index.runs.push(ImageRun {
            first_page,
            pages,
            source,
        });
    }

    fn flush_pages(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.pending);
        let runs = std::mem::take(&mut self.pending_runs);
        let written = self.write_chunk(KIND_PAGES, &runs, &raw);
        self.pending = raw;
        self.pending.clear();
        self.pending_runs = runs;
        self.pending_runs.clear();
        written
    }

    fn write_chunk(&mut self, kind: u32, runs: &[PageRun], raw: &[u8]) -> Result<()> {
        // A section's chunk must not take the number that the pages being collected count on.
        if kind != KIND_PAGES {
            self.flush_pages()?;
            // Pages rarely follow a section, and a process may have many files open.
            self.pending = Vec::new();
        }
        let shown = self.storage.describe(&self.path);
        Packer::with(self.compression, |packer| {
            self.pack_and_append(packer, kind, runs, raw)
        })
        .map_err(Error::io("start zstd for", shown))?
    }

    fn pack_and_append(
        &mut self,
        packer: &mut Packer,
        kind: u32,
        runs: &[PageRun],
        raw: &[u8],
    ) -> Result<()> {
        let number = u32::try_from(self.index.chunks.len())
            .ok()
            .filter(|number| u64::from(*number) < CHUNKS_MAX)
            .ok_or_else(|| self.invalid("the image has too many chunks".into()))?;
        let raw_checksum = self.sums.raw(number, runs.as_bytes(), raw);
        let packed = packer.pack(raw, kind == KIND_PAGES);
        let (encoding, payload) = packed.map_err(|what| {
            Error::corrupt(
                self.storage.describe(&self.path),
                format!("compressing chunk {number} failed its check: {what}"),
            )
        })?;
        let mut header = ChunkHeader {
            magic: CHUNK_MAGIC,
            number: number.into(),
            kind: kind.into(),
            encoding: encoding.into(),
            page_runs: (runs.len() as u32).into(),
            raw_bytes: (raw.len() as u32).into(),
            stored_bytes: (payload.len() as u32).into(),
            raw_checksum: raw_checksum.into(),
            stored_checksum: 0.into(),
        };
        header.stored_checksum = self.sums.stored(&header, runs.as_bytes(), payload).into();
        self.index.chunks.push(ChunkEntry {
            offset: self.written_bytes.into(),
            kind: header.kind,
            encoding: header.encoding,
            page_runs: header.page_runs,
            raw_bytes: header.raw_bytes,
            stored_bytes: header.stored_bytes,
            raw_checksum: header.raw_checksum,
            stored_checksum: header.stored_checksum,
        });
        let front = [header.as_bytes(), runs.as_bytes()].concat();
        self.append(&front)?;
        self.append(payload)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let shown = self.storage.describe(&self.path);
        if self.broken {
            return Err(Error::invalid(
                shown,
                "an earlier write of this file failed",
            ));
        }
        let file = self.file.as_mut().expect("open until finished");
        if let Err(error) = write_all(&mut **file, bytes) {
            self.broken = true;
            return Err(Error::io("write", shown)(error));
        }
        self.digest.update(bytes);
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the content durable, in another file where this one's fsync fails.
    fn sync(&mut self) -> Result<()> {
        let file = self.file.as_mut().expect("open until finished");
        let Err(error) = file.sync() else {
            return Ok(());
        };
        let failed = Error::io("fsync", self.storage.describe(&self.path))(error);
        debug_assert!(is_failed_fsync(&failed));
        tracing::warn!("{failed}; writing it again to a new file");
        let again = names::rank_file(&self.key, 2);
        match self.copy_to(&again) {
            Ok(file) => {
                // The name of the first is in nobody's hands: what can't be removed is swept up later.
                let _ = self.storage.remove_file(&self.path);
                self.path = again;
                self.file = Some(file);
                Ok(())
            }
            Err(error) => {
                let _ = self.storage.remove_file(&again);
                tracing::warn!("{error}");
                Err(failed)
            }
        }
    }

    /// Copies the file as the system gives it back, which is right only if its digest is that of the bytes
    /// that were written.
    fn copy_to(&self, again: &str) -> Result<Box<dyn WriteFile>> {
        let (from, to) = (
            self.storage.describe(&self.path),
            self.storage.describe(again),
        );
        let source = storage::open(&*self.storage, &self.path, "a rank file being written")?;
        let mut copy = self
            .storage
            .create_new(again, Access::Owner)
            .map_err(Error::io("create", &*to))?;
        let mut digest = FileDigest::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = 0;
        while at < self.written_bytes {
            let count = usize::try_from(self.written_bytes - at)
                .map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
            let piece = &mut buffer[..count];
            read_exact_at(&*source, piece, at).map_err(Error::io("read back", &*from))?;
            write_all(&mut *copy, piece).map_err(Error::io("write", &*to))?;
            digest.update(piece);
            at += count as u64;
        }
        if digest.finish() != self.digest.finish() {
            return Err(Error::corrupt(
                from,
                "after the failed fsync it does not read back as it was written",
            ));
        }
        copy.sync().map_err(Error::io("fsync", &*to))?;
        Ok(copy)
    }

    fn invalid(&self, what: String) -> Error {
        Error::invalid(self.storage.describe(&self.path), what)
    }
}

impl Drop for RankFileWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // What can't be removed has no manifest and is swept up by the coordinator.
            let _ = self.storage.remove_file(&self.path);
        }
    }
}

impl std::fmt::Debug for RankFileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RankFileWriter")
            .field("path", &self.path)
            .field("written_bytes", &self.written_bytes)
            .finish_non_exhaustive()
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages that are not zero show it in their first bytes.
    page[..64].iter().all(|byte| *byte == 0) && page == [0; PAGE_BYTES]
}
