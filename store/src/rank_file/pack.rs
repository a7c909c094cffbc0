//! Makes chunks ready to be appended: compressed, decompressed again and compared, with their checksums. By
//! any number of threads at once, beside the one that writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::control::Compression;
use protocol::page::is_zero;
use zerocopy::IntoBytes;

use super::SectionKind;
use super::codec::{EncodeError, Encoder};
use crate::format::checksum::Checksums;
use crate::format::layout::{
    CHUNK_MAGIC, CHUNK_RAW_BYTES, ChunkHeader, KIND_PAGES, PAGE_NUMBER_MAX, PageRun,
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
    /// How many chunks were packed that have to be appended.
    packed: Arc<AtomicU64>,
}

impl Packing {
    pub(super) fn new(key: FileKey, shown: &str) -> Self {
        Self {
            key,
            sums: Checksums::new(key),
            shown: shown.into(),
            packed: Arc::default(),
        }
    }

    /// The file.
    #[must_use]
    pub fn key(&self) -> FileKey {
        self.key
    }

    /// How many chunks were packed that have to be appended.
    pub(super) fn packed(&self) -> u64 {
        self.packed.load(Ordering::SeqCst)
    }

    /// Packs up to [`CHUNK_RAW_BYTES`] of pages: `bytes` holds those of the numbers `pages`, one after the other,
    /// [`PAGE_BYTES`] each. Pages of zeros are listed and not stored. Restoring is fastest where pages
    /// ascend and few are missing between them.
    ///
    /// The chunk must be appended, in whatever order, or the file can't be finished.
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
            content: None,
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
            content: None,
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
        let payload = &body.payload[..stored_bytes];
        chunk.content = Some(Content {
            kind,
            encoding,
            raw_bytes: raw.len() as u32,
            stored_bytes: stored_bytes as u32,
            raw_checksum: self.sums.raw(body.runs.as_bytes(), raw),
            payload_checksum: self.sums.payload(payload),
        });
        self.packed.fetch_add(1, Ordering::SeqCst);
        Ok(())
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
    content: Option<Content>,
    body: Body,
    home: Arc<Spare>,
}

/// What is said of a payload in its chunk's header. The chunk's number is not: it is known when the chunk is
/// appended, so that none has to wait for another.
#[derive(Clone, Copy, Debug)]
struct Content {
    kind: u32,
    encoding: u32,
    raw_bytes: u32,
    stored_bytes: u32,
    raw_checksum: u64,
    payload_checksum: u64,
}

impl PackedChunk {
    /// Bytes before compression, zero pages not counted.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.content
            .map_or(0, |content| u64::from(content.raw_bytes))
    }

    /// Bytes that the payload takes in the file.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.content
            .map_or(0, |content| u64::from(content.stored_bytes))
    }

    /// Pages of zeros, which are listed only.
    #[must_use]
    pub fn zero_pages(&self) -> u64 {
        self.zeros().iter().map(|run| u64::from(run.pages)).sum()
    }

    pub(super) fn key(&self) -> FileKey {
        self.key
    }

    /// The header that it gets as number `number` of its file; `None` where all is zeros and there is
    /// nothing to append.
    pub(super) fn header(&self, number: u32) -> Option<ChunkHeader> {
        let content = self.content?;
        let mut header = ChunkHeader {
            magic: CHUNK_MAGIC,
            number: number.into(),
            kind: content.kind.into(),
            encoding: content.encoding.into(),
            page_runs: (self.body.runs.len() as u32).into(),
            raw_bytes: content.raw_bytes.into(),
            stored_bytes: content.stored_bytes.into(),
            raw_checksum: content.raw_checksum.into(),
            stored_checksum: 0.into(),
        };
        let sums = Checksums::new(self.key);
        let runs = self.body.runs.as_bytes();
        let checksum = sums.stored(&header, runs, content.payload_checksum);
        header.stored_checksum = checksum.into();
        Some(header)
    }

    /// The pages that it holds, in the order of its bytes.
    pub(super) fn runs(&self) -> &[PageRun] {
        &self.body.runs
    }

    pub(super) fn zeros(&self) -> &[PageRun] {
        &self.body.zeros
    }

    /// Its bytes in the file after header and page runs.
    pub(super) fn payload(&self) -> &[u8] {
        &self.body.payload[..self.stored_bytes() as usize]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_chunk_is_used_again_once_it_is_dropped() {
        let key = FileKey {
            job: protocol::ids::JobId::default(),
            incarnation: protocol::ids::Incarnation(1),
            epoch: protocol::ids::Epoch(1),
            rank: protocol::ids::Rank(0),
        };
        let packing = Packing::new(key, "a file");
        let mut packer = Packer::new();
        let mut pack = |effort, pages: &[u64]| {
            let bytes = vec![7; pages.len() * PAGE_BYTES];
            packing.pack(&mut packer, effort, pages, &bytes).unwrap()
        };
        let first = pack(Effort::Zstd(1), &[1, 2]);
        let second = pack(Effort::Stored, &[3]);
        let places = [first.payload().as_ptr(), second.payload().as_ptr()];
        assert_ne!(places[0], places[1]);
        drop(first);
        drop(second);
        // Also for larger chunks, with other efforts.
        let pages: Vec<u64> = (10..74).collect();
        let again = [pack(Effort::Stored, &pages), pack(Effort::Zstd(2), &pages)];
        for chunk in &again {
            assert!(places.contains(&chunk.payload().as_ptr()));
            assert_eq!(chunk.runs().len(), 1);
        }
    }
}
