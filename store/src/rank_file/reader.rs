//! Reads one rank file: nothing in it is believed before its checksum is right, and no length before it is
//! known to lie in the file.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::control::StoredFile;
use zerocopy::{FromZeros, IntoBytes};

use super::SectionKind;
use super::codec::Scratch;
use super::index::{Index, PageTable};
use crate::format::checksum::{Checksums, FileDigest};
use crate::format::layout::{
    ChunkEntry, ChunkHeader, ENCODING_RAW, FileHeader, HEADER_MAGIC, PAGE_BYTES_FIELD, PageRun,
    RANK_FILE_VERSION, TRAILER_MAGIC, Trailer,
};
use crate::storage::{self, ReadFile, Storage, Stretch, read_exact_at};
use crate::{Error, FileKey, Result};

/// How many files were opened.
static FILES: AtomicU64 = AtomicU64::new(0);

/// Bytes read at once for the digest.
const READ_BYTES: usize = 1 << 20;

/// A rank file, open for reading. Several threads may read chunks at once, each with its own [`Scratch`].
#[derive(Debug)]
pub(crate) struct RankFile {
    file: Box<dyn ReadFile>,
    /// Tells this open file from all others of the process.
    number: u64,
    /// The path as users see it.
    pub(super) shown: String,
    sums: Checksums,
    stored: StoredFile,
    pub(super) index: Index,
    pub(super) pages: PageTable,
}

impl RankFile {
    /// Opens the file that the manifest calls `stored`, which must be the one of `key`. Checks length,
    /// header, trailer and index; chunks are checked when they are read, and what the index says of
    /// other files where those are open.
    pub(crate) fn open(storage: &dyn Storage, stored: &StoredFile, key: FileKey) -> Result<Self> {
        let (file, header) = open_and_look(storage, stored, key)?;
        let shown = storage.describe(&stored.name);
        let corrupt = |what: String| Error::corrupt(shown.as_str(), what);
        let sums = Checksums::new(key);
        let read = |into: &mut [u8], offset| {
            read_exact_at(&*file, into, offset).map_err(Error::io("read", shown.as_str()))
        };

        let mut trailer = Trailer::new_zeroed();
        let trailer_offset = stored.file_bytes - size_of::<Trailer>() as u64;
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
        let pages = index.page_table().map_err(corrupt)?;
        let (raw, changed) = (index.raw_bytes(), index.changed_bytes());
        if raw != trailer.raw_bytes.get() || raw != stored.raw_bytes {
            return Err(corrupt(format!(
                "the index stands for {raw} bytes, the trailer for {}, the manifest for {}",
                trailer.raw_bytes, stored.raw_bytes
            )));
        }
        if changed != stored.changed_bytes {
            return Err(corrupt(format!(
                "its chunks stand for {changed} bytes, the manifest for {}",
                stored.changed_bytes
            )));
        }
        Ok(Self {
            file,
            number: FILES.fetch_add(1, Ordering::Relaxed),
            shown,
            sums,
            stored: stored.clone(),
            index,
            pages,
        })
    }

    /// Checks the length and the header of a file, and nothing more.
    pub(crate) fn look(storage: &dyn Storage, stored: &StoredFile, key: FileKey) -> Result<()> {
        open_and_look(storage, stored, key).map(drop)
    }

    /// Reads and checks every byte: each chunk as stored and after decompression, and the digest over the
    /// whole file that the manifest holds.
    pub(crate) fn verify(&self) -> Result<()> {
        let mut scratch = Scratch::new();
        let mut digest = FileDigest::new();
        let mut at = size_of::<FileHeader>() as u64;
        self.digest(0, at, &mut digest)?;
        // Chunks follow each other from there, so that each is read once for both.
        for (number, entry) in (0u32..).zip(&self.index.chunks) {
            let raw = self.raw_chunk(number, &mut scratch)?;
            if entry.encoding.get() == ENCODING_RAW {
                self.check_raw(number, raw)?;
            }
            digest.update(scratch.stored());
            at += scratch.stored().len() as u64;
        }
        self.digest(at, self.stored.file_bytes, &mut digest)?;
        if digest.finish() != self.stored.digest {
            return Err(Error::corrupt(
                self.shown.as_str(),
                "the digest over the whole file is not the manifest's",
            ));
        }
        Ok(())
    }

    /// Adds the bytes from `at` up to `end` to a digest.
    fn digest(&self, mut at: u64, end: u64, digest: &mut FileDigest) -> Result<()> {
        let mut buffer = vec![0; READ_BYTES.min(usize::try_from(end - at).unwrap_or(READ_BYTES))];
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(READ_BYTES);
            let piece = &mut buffer[..left.min(READ_BYTES)];
            read_exact_at(&*self.file, piece, at)
                .map_err(Error::io("read", self.shown.as_str()))?;
            digest.update(piece);
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads a section, empty if nothing was written to it.
    pub(super) fn section(&self, kind: SectionKind) -> Result<Vec<u8>> {
        let mut scratch = Scratch::new();
        let mut section = Vec::new();
        for (number, chunk) in (0u32..).zip(&self.index.chunks) {
            if chunk.kind.get() == kind.number() {
                section.extend_from_slice(self.raw_chunk(number, &mut scratch)?);
            }
        }
        Ok(section)
    }

    /// The raw bytes of a chunk, checked.
    pub(super) fn raw_chunk<'s>(&self, number: u32, scratch: &'s mut Scratch) -> Result<&'s [u8]> {
        let payload = self.fetch(number, scratch)?;
        let entry = &self.index.chunks[number as usize];
        if entry.encoding.get() == ENCODING_RAW {
            return Ok(&scratch.stored()[payload..]);
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

    /// The same, decompressed or read straight into `into`, which has the length that the index says.
    pub(super) fn raw_chunk_into(
        &self,
        number: u32,
        scratch: &mut Scratch,
        into: &mut [u8],
    ) -> Result<()> {
        let entry = &self.index.chunks[number as usize];
        if entry.encoding.get() == ENCODING_RAW {
            if self.is_in_window(number, scratch) {
                let (front, payload) = scratch.stored().split_at(front_bytes(entry));
                self.check_stored(number, front, payload)?;
                into.copy_from_slice(payload);
                return Ok(());
            }
            let payload = self.fetch_bytes(number, scratch, false)?;
            let offset = entry.offset.get() + payload as u64;
            read_exact_at(&*self.file, into, offset)
                .map_err(Error::io("read", self.shown.as_str()))?;
            return self.check_stored(number, scratch.stored(), into);
        }
        let payload = self.fetch(number, scratch)?;
        scratch
            .decode_into(entry.encoding.get(), payload, into)
            .map_err(|what| self.corrupt_chunk(number, &what))?;
        self.check_raw(number, into)
    }

    /// Reads these chunks, which follow each other in the file, at once past the medium's cache, if they are not in it.
    /// Those of them that are fetched next with this scratch are there already.
    pub(super) fn read_window(&self, chunks: Range<u32>, scratch: &mut Scratch) {
        let chunks = &self.index.chunks[chunks.start as usize..chunks.end as usize];
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
            return;
        };
        let offset = first.offset.get();
        let bytes = last.offset.get() + last.whole_bytes() - offset;
        let Ok(bytes) = usize::try_from(bytes) else {
            return;
        };
        let read = |stretch: &mut Stretch| self.file.read_past_cache(stretch);
        scratch.fill_window(self.number, offset, bytes, read);
    }

    fn is_in_window(&self, number: u32, scratch: &mut Scratch) -> bool {
        let entry = &self.index.chunks[number as usize];
        let bytes = entry.whole_bytes() as usize;
        scratch.fetch_from_window(self.number, entry.offset.get(), bytes)
    }

    /// Reads a chunk as stored, checks it, and tells where in it its payload starts.
    fn fetch(&self, number: u32, scratch: &mut Scratch) -> Result<usize> {
        let payload = self.fetch_bytes(number, scratch, true)?;
        let (front, rest) = scratch.stored().split_at(payload);
        self.check_stored(number, front, rest)?;
        Ok(payload)
    }

    /// Reads a chunk, with or without its payload, into the scratch, where it is not there already; nothing is checked
    /// yet.
    fn fetch_bytes(&self, number: u32, scratch: &mut Scratch, payload: bool) -> Result<usize> {
        let entry = &self.index.chunks[number as usize];
        let front = front_bytes(entry);
        if payload && self.is_in_window(number, scratch) {
            return Ok(front);
        }
        let wanted = front
            + if payload {
                entry.stored_bytes.get() as usize
            } else {
                0
            };
        read_exact_at(
            &*self.file,
            scratch.room_for_chunk(wanted),
            entry.offset.get(),
        )
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
        if runs != self.pages.of(number).as_bytes() {
            return Err(self.corrupt_chunk(number, "its pages are not those that the index says"));
        }
        if self
            .sums
            .stored(&expected, runs, self.sums.payload(payload))
            != entry.stored_checksum.get()
        {
            return Err(self.corrupt_chunk(number, "the checksum of its stored bytes is wrong"));
        }
        Ok(())
    }

    fn check_raw(&self, number: u32, raw: &[u8]) -> Result<()> {
        let entry = &self.index.chunks[number as usize];
        let runs = self.pages.of(number).as_bytes();
        if self.sums.raw(runs, raw) == entry.raw_checksum.get() {
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

/// Opens a file and checks its length and its header.
fn open_and_look(
    storage: &dyn Storage,
    stored: &StoredFile,
    key: FileKey,
) -> Result<(Box<dyn ReadFile>, FileHeader)> {
    let shown = storage.describe(&stored.name);
    let file = storage::open(storage, &stored.name, "a rank's file of a checkpoint")?;
    let file_bytes = file
        .file_bytes()
        .map_err(Error::io("read the length of", shown.as_str()))?;
    if file_bytes != stored.file_bytes {
        return Err(Error::corrupt(
            shown,
            format!(
                "{file_bytes} bytes long where the manifest says {}: truncated, or written to later",
                stored.file_bytes
            ),
        ));
    }
    let ends = (size_of::<FileHeader>() + size_of::<Trailer>()) as u64;
    if file_bytes < ends {
        return Err(Error::corrupt(shown, "too short for a rank file"));
    }
    let mut header = FileHeader::new_zeroed();
    read_exact_at(&*file, header.as_mut_bytes(), 0).map_err(Error::io("read", shown.as_str()))?;
    check_header(&header, &Checksums::new(key), key, &shown)?;
    Ok((file, header))
}

fn front_bytes(entry: &ChunkEntry) -> usize {
    size_of::<ChunkHeader>() + size_of::<PageRun>() * entry.page_runs.get() as usize
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
