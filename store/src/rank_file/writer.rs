//! Writes a rank file from its start to its end.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use protocol::control::{NeededFile, StoredFile};
use zerocopy::IntoBytes;

use super::SectionKind;
use super::carry::CarryOver;
use super::index::{Index, Placed};
use super::map::{ImageMap, ImageRun, PageSource, first_missing, push_run, sort_runs};
use super::output::Output;
use super::pack::{Effort, PackedChunk, Packer, Packing};
use crate::compaction::{self, FileUse, Limits};
use crate::format::checksum::Checksums;
use crate::format::layout::{
    CHUNK_RAW_BYTES, CHUNKS_MAX, ChunkEntry, FileHeader, HEADER_MAGIC, KIND_PAGES,
    PAGE_BYTES_FIELD, PAGE_NUMBER_MAX, PageRun, RANK_FILE_VERSION, SOURCE_HERE, TRAILER_MAGIC,
    Trailer,
};
use crate::storage::SharedStorage;
use crate::{Error, FileKey, PAGE_BYTES, Result, names};

thread_local! {
    /// What a writing thread packs sections with: kept for all files, since contexts for each would cost
    /// megabytes apiece.
    static KEPT: RefCell<Packer> = RefCell::default();
}

/// Writes a rank file: pages and sections in any order, then [`RankFileWriter::finish`].
///
/// Chunks are packed beside it, on as many threads as the caller likes ([`RankFileWriter::packing`]), and
/// appended here. Pages that have not changed since another checkpoint are inherited from its map.
///
/// After an error nothing but [`RankFileWriter::discard`] makes sense; dropping it does the same. A file that
/// was not finished is removed: nobody can refer to it yet.
pub struct RankFileWriter {
    key: FileKey,
    packing: Packing,
    base: Option<Arc<ImageMap>>,
    output: Output,
    header_checksum: u64,
    /// Bytes of the image so far.
    raw_bytes: u64,
    /// Of these, what this file holds.
    changed_bytes: u64,
    chunks: Vec<ChunkEntry>,
    /// Pages of this file, and zeros.
    own: Vec<ImageRun>,
    /// Pages of the base's files, counted as there.
    inherited: Vec<ImageRun>,
    /// Pages that are carried over: the image must have them in the end.
    carried: Vec<Range<u64>>,
}

/// A file that is complete and durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// It, for the manifest.
    pub file: StoredFile,
    /// Where each page of the image is: the base of the next file, once this one's checkpoint is committed.
    /// [`ImageMap::needs`] are the files of other checkpoints that it refers to.
    pub map: ImageMap,
}

impl RankFileWriter {
    /// Makes the file of `key` in the directory of its epoch, which must exist. `base` is the map of a
    /// checkpoint of the same rank from which unchanged pages can be inherited: a committed one, since an
    /// aborted one's files are removed.
    pub fn create(
        storage: SharedStorage,
        key: FileKey,
        base: Option<Arc<ImageMap>>,
    ) -> Result<Self> {
        if let Some(base) = &base {
            let of = base.key(0);
            if of.job != key.job
                || of.rank != key.rank
                || of.epoch >= key.epoch
                || of.incarnation > key.incarnation
            {
                let what = format!("can't build on {} of {}", base.rank(), base.checkpoint());
                let path = names::rank_file(&key, 1);
                return Err(Error::invalid(storage.describe(&path), what));
            }
        }
        let mut output = Output::create(storage, key)?;
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
        header.checksum = Checksums::new(key).header(&header).into();
        output.write(header.as_bytes())?;
        Ok(Self {
            packing: Packing::new(key, &output.shown),
            key,
            base,
            output,
            header_checksum: header.checksum.get(),
            raw_bytes: 0,
            changed_bytes: 0,
            chunks: Vec::new(),
            own: Vec::new(),
            inherited: Vec::new(),
            carried: Vec::new(),
        })
    }

    /// What packing chunks of this file takes, on any thread.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.packing.clone()
    }

    /// Appends a chunk that this file's [`Packing`] made. A page can be part of the image once.
    pub fn append(&mut self, chunk: PackedChunk) -> Result<()> {
        if chunk.key() != self.key {
            return Err(self.invalid("given a chunk of another file".into()));
        }
        for run in chunk.zeros() {
            self.list_zeros(run.first_page.get(), u64::from(run.pages.get()));
        }
        let number = u32::try_from(self.chunks.len())
            .ok()
            .filter(|number| u64::from(*number) < CHUNKS_MAX)
            .ok_or_else(|| self.invalid("the image has too many chunks".into()))?;
        let Some(header) = chunk.header(number) else {
            return Ok(());
        };
        let offset = self.output.written_bytes;
        let front = [header.as_bytes(), chunk.runs().as_bytes()].concat();
        self.output.write(&front)?;
        self.output.write(chunk.payload())?;
        self.chunks.push(ChunkEntry::of(&header, offset));
        self.changed_bytes += chunk.raw_bytes();
        if header.kind.get() == KIND_PAGES {
            self.list_chunk(number, chunk.runs());
        }
        Ok(())
    }

    /// Packs and appends pages on this thread: `bytes` holds those of `page_numbers` one after the other,
    /// [`PAGE_BYTES`] each.
    pub fn pages(&mut self, effort: Effort, page_numbers: &[u64], bytes: &[u8]) -> Result<()> {
        if bytes.len() != page_numbers.len() * PAGE_BYTES {
            return Err(self.invalid(format!(
                "{} bytes given for {} pages",
                bytes.len(),
                page_numbers.len()
            )));
        }
        let pieces = page_numbers
            .chunks(CHUNK_RAW_BYTES / PAGE_BYTES)
            .zip(bytes.chunks(CHUNK_RAW_BYTES));
        for (numbers, piece) in pieces {
            let chunk =
                KEPT.with_borrow_mut(|packer| self.packing.pack(packer, effort, numbers, piece))?;
            self.append(chunk)?;
        }
        Ok(())
    }

    /// Adds pages that are known to be zeros, without looking at them.
    pub fn zero_pages(&mut self, first_page: u64, pages: u64) -> Result<()> {
        let last = first_page.checked_add(pages.saturating_sub(1));
        if last.is_none_or(|last| last > PAGE_NUMBER_MAX) {
            return Err(self.invalid(format!("{pages} pages from {first_page} on can't be")));
        }
        if pages > 0 {
            self.list_zeros(first_page, pages);
        }
        Ok(())
    }

    /// Takes pages over from the base, where they are as they were: `ranges` of page numbers, which ascend
    /// best. All of them must be part of the base's image ([`ImageMap::missing`] tells those that are not).
    pub fn inherit(&mut self, ranges: &[Range<u64>]) -> Result<()> {
        let Some(base) = self.base.clone() else {
            return Err(self.invalid("there is nothing to inherit pages from".into()));
        };
        let (mut pages, inherited) = (0, &mut self.inherited);
        let selected = base.select(ranges, |run| {
            pages += run.pages;
            push_run(inherited, run);
        });
        self.count_pages(pages);
        selected.map_err(|page| {
            self.invalid(format!(
                "page {page} can't be inherited: it is no part of {}",
                base.checkpoint()
            ))
        })
    }

    /// Decides which of the inherited pages this file takes over from the old ones, so that the image is in
    /// few files and little of those is garbage ([`crate::compaction::plan`]). They are inherited no more:
    /// every piece of what is returned must be packed and appended, or the file can't be finished. To
    /// be called once, when all that has changed was appended and the rest inherited.
    pub fn carry_over(&mut self, limits: &Limits) -> Result<CarryOver> {
        let Some(base) = self.base.clone() else {
            return Err(self.invalid("there is nothing to carry over from".into()));
        };
        let mut files: Vec<FileUse> = base
            .files
            .iter()
            .map(|need| FileUse {
                held_bytes: need.file.changed_bytes,
                used_bytes: 0,
            })
            .collect();
        for run in self.inherited.iter().filter_map(Placed::of) {
            files[run.file as usize].used_bytes += u64::from(run.pages) * PAGE_BYTES as u64;
        }
        let given_up = compaction::plan(&files, self.changed_bytes, limits);
        let mut carried = Vec::new();
        if !given_up.is_empty() {
            self.inherited.retain(|run| {
                let goes = Placed::of(run)
                    .filter(|placed| given_up.binary_search(&(placed.file as usize)).is_ok());
                carried.extend(goes);
                goes.is_none()
            });
        }
        for run in &carried {
            self.raw_bytes -= u64::from(run.pages) * PAGE_BYTES as u64;
            self.carried
                .push(run.first_page..run.first_page + u64::from(run.pages));
        }
        Ok(CarryOver::new(self.output.storage().clone(), base, carried))
    }

    /// Appends to a section. A section that nothing was appended to reads as empty.
    pub fn section(&mut self, kind: SectionKind, effort: Effort, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(CHUNK_RAW_BYTES) {
            let chunk = KEPT
                .with_borrow_mut(|packer| self.packing.pack_section(packer, effort, kind, piece))?;
            self.append(chunk)?;
            self.raw_bytes += piece.len() as u64;
        }
        Ok(())
    }

    /// Bytes of the image so far, before compression, inherited pages too.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.output.written_bytes
    }

    /// Completes the file and makes it durable, its name included. Where fsync fails, the file is written
    /// once more under another name, and counts only if that one is the same to the last bit.
    pub fn finish(mut self) -> Result<Finished> {
        let missing = self.packing.packed() - self.chunks.len() as u64;
        if missing > 0 {
            return Err(self.invalid(format!("{missing} chunks were packed and not appended")));
        }
        let (needs, runs) = self.whole_image()?;
        if let Some(page) = first_missing(&runs, &mut self.carried) {
            return Err(self.invalid(format!("page {page} was not carried over")));
        }
        let index = Index {
            sources: needs
                .iter()
                .map(|need| crate::CheckpointId {
                    epoch: need.epoch,
                    incarnation: need.incarnation,
                })
                .collect(),
            chunks: std::mem::take(&mut self.chunks),
            runs,
        };
        let bytes = index.encode();
        let index_offset = self.output.written_bytes;
        let sums = Checksums::new(self.key);
        let mut trailer = Trailer {
            magic: TRAILER_MAGIC,
            index_offset: index_offset.into(),
            index_bytes: (bytes.len() as u64).into(),
            file_bytes: (index_offset + (bytes.len() + size_of::<Trailer>()) as u64).into(),
            raw_bytes: self.raw_bytes.into(),
            index_checksum: sums.index(&bytes).into(),
            header_checksum: self.header_checksum.into(),
            checksum: 0.into(),
        };
        trailer.checksum = sums.trailer(&trailer).into();
        self.output.write(&bytes)?;
        self.output.write(trailer.as_bytes())?;
        let (name, digest) = self.output.finish()?;
        let file = StoredFile {
            rank: self.key.rank,
            name,
            file_bytes: self.output.written_bytes,
            digest,
            raw_bytes: self.raw_bytes,
            changed_bytes: self.changed_bytes,
        };
        let own = NeededFile {
            epoch: self.key.epoch,
            incarnation: self.key.incarnation,
            file: file.clone(),
        };
        let map = ImageMap {
            job: self.key.job,
            files: [vec![own], needs].concat(),
            runs: index.runs,
        };
        Ok(Finished { file, map })
    }

    /// Removes what was written.
    pub fn discard(self) {
        drop(self);
    }

    /// The runs of the whole image in order, and the files that the inherited ones are in, counted from 1.
    fn whole_image(&mut self) -> Result<(Vec<NeededFile>, Vec<ImageRun>)> {
        let mut needs = Vec::new();
        if let Some(base) = &self.base {
            let mut numbers = vec![0; base.files.len()];
            for run in &self.inherited {
                if let PageSource::Stored { file, .. } = run.source {
                    numbers[file as usize] = 1;
                }
            }
            // The base's own file is the newest, and sources ascend.
            for file in (1..base.files.len()).chain([0]) {
                if numbers[file] != 0 {
                    needs.push(base.files[file].clone());
                    numbers[file] = needs.len() as u32;
                }
            }
            for run in &mut self.inherited {
                if let PageSource::Stored { file, .. } = &mut run.source {
                    *file = numbers[*file as usize];
                }
            }
        }
        let mut runs = std::mem::take(&mut self.own);
        runs.append(&mut self.inherited);
        sort_runs(&mut runs)
            .map_err(|page| self.invalid(format!("page {page} was added twice")))?;
        Ok((needs, runs))
    }

    fn count_pages(&mut self, pages: u64) {
        self.raw_bytes = self
            .raw_bytes
            .saturating_add(pages.saturating_mul(PAGE_BYTES as u64));
    }

    fn list_zeros(&mut self, first_page: u64, pages: u64) {
        self.count_pages(pages);
        let source = PageSource::Zero;
        let run = ImageRun {
            first_page,
            pages,
            source,
        };
        push_run(&mut self.own, run);
    }

    fn list_chunk(&mut self, chunk: u32, runs: &[PageRun]) {
        let mut position = 0;
        for run in runs {
            let pages = run.pages.get();
            self.own.push(ImageRun {
                first_page: run.first_page.get(),
                pages: u64::from(pages),
                source: PageSource::Stored {
                    file: SOURCE_HERE,
                    chunk,
                    position,
                },
            });
            position += pages;
        }
        self.count_pages(u64::from(position));
    }

    fn invalid(&self, what: String) -> Error {
        Error::invalid(&*self.output.shown, what)
    }
}

impl std::fmt::Debug for RankFileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RankFileWriter")
            .field("path", &self.output.shown)
            .field("written_bytes", &self.output.written_bytes)
            .finish_non_exhaustive()
    }
}
