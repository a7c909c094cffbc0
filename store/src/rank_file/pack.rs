//! Makes chunks ready to be appended: compressed, decompressed again and compared, with their checksums. By
//! any number of threads at once, beside the one that writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::control::Compression;
use zerocopy::IntoBytes;

use super::SectionKind;
use super::codec::{EncodeError, Encoder};
use crate::format::checksum::Checksums;
use crate::format::layout::{
    CHUNK_MAGIC, CHUNK_RAW_BYTES, CHUNKS_MAX, ChunkEntry, ChunkHeader, KIND_PAGES, PAGE_NUMBER_MAX,
    PageRun,
};
use crate::{Error, FileKey, PAGE_BYTES, Result};

/// How much work is put into a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effort {
    /// It is stored as it is.
    Stored,
    /// It is compressed with zstd at this level, where that is worth it.
    Zstd(i32),
}

impl From<Compression> for Effort {
    /// The effort where nothing is measured; [`Compression::Auto`] begins with the level 1.
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::Stored,
            Compression::Auto | Compression::Fast => Self::Zstd(1),
            Compression::Level(level) => Self::Zstd(level),
        }
    }
}

/// What a thread packs with: compression contexts and buffers, made when they are first needed and kept. One
/// for each thread, for all files that it packs chunks of.
#[derive(Debug, Default)]
pub struct Packer {
    encoder: Encoder,
    /// Pages without the zero pages between them.
    dense: Vec<u8>,
    /// Where its chunks give their memory back: fresh memory is slow to touch.
    spare: Arc<Spare>,
}

#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Body>>);

/// The memory of a chunk.
#[derive(Debug, Default)]
struct Body {
    /// The payload and whatever follows it.
    payload: Vec<u8>,
    runs: Vec<PageRun>,
    zeros: Vec<PageRun>,
}

impl Spare {
    fn take(&self) -> Body {
        // A list is whole at any moment.
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_default()
    }

    fn give_back(&self, mut body: Body) {
        body.runs.clear();
        body.zeros.clear();
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(body);
    }
}

impl Packer {
    /// Nothing is allocated before it is needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// What packing chunks of one file takes: see [`super::RankFileWriter::packing`]. It can be used on many
/// threads, each with a [`Packer`] of its own.
#[derive(Clone, Debug)]
pub struct Packing {
    key: FileKey,
    sums: Checksums,
    /// The file's path as users see it.
    shown: Arc<str>,
    /// The number of the next chunk.
    next: Arc<AtomicU64>,
}

impl Packing {
    pub(super) fn new(key: FileKey, shown: &str) -> Self {
        Self {
            key,
            sums: Checksums::new(key),
            shown: shown.into(),
            next: Arc::default(),
        }
    }

    /// The file.
    #[must_use]
    pub fn key(&self) -> FileKey {
        self.key
    }

    /// How many numbers of chunks were handed out.
    pub(super) fn handed_out(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Packs up to [`CHUNK_RAW_BYTES`] of pages: `bytes` holds those of the numbers `pages`, one after the other,
    /// [`PAGE_BYTES`] each. Pages of zeros are listed and not stored. Restoring is fastest where pages
    /// ascend and few are missing between them.
    ///
    /// The chunk must be appended, or the file can't be finished. It may be appended in any order, but
    /// the writer keeps it until those that were packed before it have come.
    pub fn pack(
        &self,
        packer: &mut Packer,
        effort: Effort,
        pages: &[u64],
        bytes: &[u8],
    ) -> Result<PackedChunk> {
        if bytes.len() != pages.len() * PAGE_BYTES || bytes.len() > CHUNK_RAW_BYTES {
            return Err(self.invalid(format!(
                "{} bytes given for {} pages of a chunk",
                bytes.len(),
                pages.len()
            )));
        }
        if let Some(page) = pages.iter().find(|page| **page > PAGE_NUMBER_MAX) {
            return Err(self.invalid(format!("page number {page} is too large")));
        }
        let mut body = packer.spare.take();
        for (number, page) in pages.iter().zip(bytes.chunks_exact(PAGE_BYTES)) {
            let runs = if is_zero(page) {
                &mut body.zeros
            } else {
                &mut body.runs
            };
            push_page(runs, *number);
        }
        let mut chunk = PackedChunk {
            key: self.key,
            header: None,
            body,
            home: packer.spare.clone(),
        };
        if chunk.body.zeros.is_empty() {
            self.encode(&mut packer.encoder, effort, KIND_PAGES, bytes, &mut chunk)?;
        } else {
            packer.dense.clear();
            for page in bytes.chunks_exact(PAGE_BYTES) {
                if !is_zero(page) {
                    packer.dense.extend_from_slice(page);
                }
            }
            let encoder = &mut packer.encoder;
            self.encode(encoder, effort, KIND_PAGES, &packer.dense, &mut chunk)?;
        }
        Ok(chunk)
    }

    /// Packs a piece of a section, at most [`CHUNK_RAW_BYTES`] of it.
    pub(super) fn pack_section(
        &self,
        packer: &mut Packer,
        effort: Effort,
        kind: SectionKind,
        piece: &[u8],
    ) -> Result<PackedChunk> {
        let mut chunk = PackedChunk {
            key: self.key,
            header: None,
            body: packer.spare.take(),
            home: packer.spare.clone(),
        };
        self.encode(
            &mut packer.encoder,
            effort,
            kind.number(),
            piece,
            &mut chunk,
        )?;
        Ok(chunk)
    }

    fn encode(
        &self,
        encoder: &mut Encoder,
        effort: Effort,
        kind: u32,
        raw: &[u8],
        chunk: &mut PackedChunk,
    ) -> Result<()> {
        if raw.is_empty() {
            return Ok(());
        }
        let body = &mut chunk.body;
        let (encoding, stored_bytes) = encoder
            .encode(effort, kind == KIND_PAGES, raw, &mut body.payload)
            .map_err(|error| match error {
                EncodeError::Start(error) => Error::io("start zstd for", &*self.shown)(error),
                EncodeError::Check(what) => Error::corrupt(
                    &*self.shown,
                    format!("compressing a chunk failed its check: {what}"),
                ),
            })?;
        // Handed out as late as can be: whoever appends has to wait for the chunks with lower numbers.
        let number = self.number()?;
        let runs = body.runs.as_bytes();
        let mut header = ChunkHeader {
            magic: CHUNK_MAGIC,
            number: number.into(),
            kind: kind.into(),
            encoding: encoding.into(),
            page_runs: (body.runs.len() as u32).into(),
            raw_bytes: (raw.len() as u32).into(),
            stored_bytes: (stored_bytes as u32).into(),
            raw_checksum: self.sums.raw(number, runs, raw).into(),
            stored_checksum: 0.into(),
        };
        let payload = &body.payload[..stored_bytes];
        header.stored_checksum = self.sums.stored(&header, runs, payload).into();
        chunk.header = Some(header);
        Ok(())
    }

    fn number(&self) -> Result<u32> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        u32::try_from(number)
            .ok()
            .filter(|_| number < CHUNKS_MAX)
            .ok_or_else(|| self.invalid("the image has too many chunks".into()))
    }

    fn invalid(&self, what: String) -> Error {
        Error::invalid(&*self.shown, what)
    }
}

/// A chunk, ready to be appended to the file whose [`Packing`] made it. Its memory goes back to the packer
/// that made it when it is dropped.
#[derive(Debug)]
pub struct PackedChunk {
    key: FileKey,
    /// `None` where all is zeros.
    header: Option<ChunkHeader>,
    body: Body,
    home: Arc<Spare>,
}

impl PackedChunk {
    /// Bytes before compression, zero pages not counted.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.header
            .map_or(0, |header| u64::from(header.raw_bytes.get()))
    }

    /// Bytes that the payload takes in the file.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.header
            .map_or(0, |header| u64::from(header.stored_bytes.get()))
    }

    /// Pages of zeros, which are listed only.
    #[must_use]
    pub fn zero_pages(&self) -> u64 {
        self.zeros().iter().map(|run| u64::from(run.pages)).sum()
    }

    pub(super) fn key(&self) -> FileKey {
        self.key
    }

    /// Its number in the file; `None` where all is zeros and there is nothing to append.
    pub(super) fn number(&self) -> Option<u32> {
        self.header.map(|header| header.number.get())
    }

    /// What its entry in the index is, at this offset; `None` where all is zeros.
    pub(super) fn entry(&self, offset: u64) -> Option<ChunkEntry> {
        let header = self.header?;
        Some(ChunkEntry {
            offset: offset.into(),
            kind: header.kind,
            encoding: header.encoding,
            page_runs: header.page_runs,
            raw_bytes: header.raw_bytes,
            stored_bytes: header.stored_bytes,
            raw_checksum: header.raw_checksum,
            stored_checksum: header.stored_checksum,
        })
    }

    /// The pages that it holds, in the order of its bytes.
    pub(super) fn runs(&self) -> &[PageRun] {
        &self.body.runs
    }

    pub(super) fn zeros(&self) -> &[PageRun] {
        &self.body.zeros
    }

    /// Its bytes in the file but for the header: page runs and payload.
    pub(super) fn payload(&self) -> &[u8] {
        &self.body.payload[..self.stored_bytes() as usize]
    }

    /// Its header.
    pub(super) fn header(&self) -> Option<&ChunkHeader> {
        self.header.as_ref()
    }
}

impl Drop for PackedChunk {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.body));
    }
}

fn push_page(runs: &mut Vec<PageRun>, number: u64) {
    match runs.last_mut() {
        Some(run) if run.first_page.get() + u64::from(run.pages.get()) == number => {
            run.pages += 1;
        }
        _ => runs.push(PageRun {
            first_page: number.into(),
            pages: 1.into(),
        }),
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages that are not zero show it in their first bytes.
    page[..64].iter().all(|byte| *byte == 0) && page == [0; PAGE_BYTES]
}
