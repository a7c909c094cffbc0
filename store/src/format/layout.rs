//! The fixed parts of a rank file. Little-endian, without alignment and without a byte to spare: every byte
//! is part of a field, and every field is covered by a checksum and checked.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::PAGE_BYTES;

/// The version of the rank file's format.
pub const RANK_FILE_VERSION: u32 = 2;
/// How a rank file starts.
pub const HEADER_MAGIC: [u8; 8] = *b"CKPTRANK";
/// How a chunk starts.
pub const CHUNK_MAGIC: [u8; 4] = *b"CHNK";
/// How the index starts.
pub const INDEX_MAGIC: [u8; 8] = *b"CKPTINDX";
/// How the trailer starts.
pub const TRAILER_MAGIC: [u8; 8] = *b"CKPTDONE";

/// Raw bytes at which the writer closes a chunk.
pub const CHUNK_RAW_BYTES: usize = 256 << 10;
/// The most raw bytes of a chunk that the reader accepts.
pub const CHUNK_RAW_BYTES_MAX: usize = 4 << 20;
/// The largest page number that is accepted, so that addresses can't overflow.
pub const PAGE_NUMBER_MAX: u64 = (1 << 48) - 1;
/// The most chunks of a file.
pub const CHUNKS_MAX: u64 = 1 << 31;

/// [`IndexRun::source`] of pages that are all zeros and stored nowhere.
pub const SOURCE_ZERO: u32 = u32::MAX;
/// [`IndexRun::source`] of pages in this file. Source n ≥ 1 is entry n-1 of the source table.
pub const SOURCE_HERE: u32 = 0;

/// [`ChunkHeader::kind`] of a chunk of pages; the kinds of section chunks are [`crate::SectionKind`]'s.
pub const KIND_PAGES: u32 = 1;
/// [`ChunkHeader::encoding`]: the payload is the raw bytes.
pub const ENCODING_RAW: u32 = 0;
/// [`ChunkHeader::encoding`]: the payload is one zstd frame of the raw bytes.
pub const ENCODING_ZSTD: u32 = 1;
/// [`ChunkHeader::encoding`]: the payload is one zstd frame of the raw bytes of pages, their 8-byte words
/// split into planes: all first bytes, then all second bytes, and so on.
pub const ENCODING_PLANES_ZSTD: u32 = 2;

/// A page's size as the file states it.
pub const PAGE_BYTES_FIELD: u32 = PAGE_BYTES as u32;

/// What the checksums cover besides the bytes: which part of which file it is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Context {
    /// The job.
    pub job: [u8; 16],
    /// The incarnation that writes.
    pub incarnation: U64,
    /// The epoch.
    pub epoch: U64,
    /// The rank.
    pub rank: U32,
    /// The chunk's number, or one of the numbers `PART_*`.
    pub part: U32,
}

/// [`Context::part`] of the file header.
pub const PART_HEADER: u32 = u32::MAX;
/// [`Context::part`] of the index.
pub const PART_INDEX: u32 = u32::MAX - 1;
/// [`Context::part`] of the trailer.
pub const PART_TRAILER: u32 = u32::MAX - 2;
/// [`Context::part`] of a chunk before compression, whatever its number.
pub const PART_RAW: u32 = u32::MAX - 3;
/// [`Context::part`] of the payload of a chunk as stored, whatever its number.
pub const PART_PAYLOAD: u32 = u32::MAX - 4;

/// The start of a rank file.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FileHeader {
    /// [`HEADER_MAGIC`].
    pub magic: [u8; 8],
    /// [`RANK_FILE_VERSION`].
    pub version: U32,
    /// [`PAGE_BYTES`].
    pub page_bytes: U32,
    /// The job.
    pub job: [u8; 16],
    /// The incarnation that wrote the file.
    pub incarnation: U64,
    /// The epoch.
    pub epoch: U64,
    /// The rank.
    pub rank: U32,
    /// Over the fields before it.
    pub checksum: U64,
}

/// The start of a chunk. The page runs follow, then the payload.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ChunkHeader {
    /// [`CHUNK_MAGIC`].
    pub magic: [u8; 4],
    /// Number of the chunk in the file, from 0.
    pub number: U32,
    /// What it holds.
    pub kind: U32,
    /// How the payload is stored.
    pub encoding: U32,
    /// How many [`PageRun`]s follow.
    pub page_runs: U32,
    /// Length of the payload before compression.
    pub raw_bytes: U32,
    /// Length of the payload as stored.
    pub stored_bytes: U32,
    /// Over the page runs and the payload before compression.
    pub raw_checksum: U64,
    /// Over the fields before it, the page runs and the checksum of the payload as stored.
    pub stored_checksum: U64,
}

/// Pages that follow each other, in the image and in the chunk's raw bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PageRun {
    /// Number of the first.
    pub first_page: U64,
    /// How many.
    pub pages: U32,
}

/// The start of the index. The sources follow, then the chunk entries, then the runs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IndexHeader {
    /// [`INDEX_MAGIC`].
    pub magic: [u8; 8],
    /// How many [`IndexSource`]s.
    pub sources: U32,
    /// How many [`ChunkEntry`]s.
    pub chunks: U32,
    /// How many [`IndexRun`]s.
    pub runs: U64,
    /// Pages of the image, zero pages included.
    pub pages: U64,
}

/// Another checkpoint whose file (of the same rank) holds pages of this image.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IndexSource {
    /// Its epoch.
    pub epoch: U64,
    /// The incarnation that wrote it.
    pub incarnation: U64,
}

/// A chunk of this file. All but the offset repeats the chunk's header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ChunkEntry {
    /// Where its header starts.
    pub offset: U64,
    /// What it holds.
    pub kind: U32,
    /// How the payload is stored.
    pub encoding: U32,
    /// How many [`PageRun`]s it has.
    pub page_runs: U32,
    /// Length of the payload before compression.
    pub raw_bytes: U32,
    /// Length of the payload as stored.
    pub stored_bytes: U32,
    /// As in the header.
    pub raw_checksum: U64,
    /// As in the header.
    pub stored_checksum: U64,
}

/// Pages that follow each other, and where they are.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IndexRun {
    /// Number of the first page.
    pub first_page: U64,
    /// How many pages.
    pub pages: U64,
    /// Whose chunk: [`SOURCE_HERE`], [`SOURCE_ZERO`], or n for entry n-1 of the source table.
    pub source: U32,
    /// Number of the chunk in the source's file; 0 for zero pages.
    pub chunk: U32,
    /// Position of the first page in the chunk, in pages; 0 for zero pages.
    pub position: U32,
}

/// The end of a rank file.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Trailer {
    /// [`TRAILER_MAGIC`].
    pub magic: [u8; 8],
    /// Where the index starts.
    pub index_offset: U64,
    /// Its length.
    pub index_bytes: U64,
    /// Length of the whole file, trailer included.
    pub file_bytes: U64,
    /// Bytes of the image before compression: pages (zero pages too) and sections.
    pub raw_bytes: U64,
    /// Over the index.
    pub index_checksum: U64,
    /// The header's checksum again, which ties both ends together.
    pub header_checksum: U64,
    /// Over the fields before it.
    pub checksum: U64,
}

/// The start of a small record: job, incarnation, manifest. The payload follows and ends the file.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RecordHeader {
    /// Which kind of record.
    pub magic: [u8; 8],
    /// The version of that kind.
    pub version: U32,
    /// Length of the payload.
    pub payload_bytes: U32,
    /// XXH3-128 over the fields before it and the payload.
    pub digest: [u8; 16],
}

impl ChunkEntry {
    /// The entry of the chunk that has this header, and starts at `offset`.
    #[must_use]
    pub fn of(header: &ChunkHeader, offset: u64) -> Self {
        Self {
            offset: offset.into(),
            kind: header.kind,
            encoding: header.encoding,
            page_runs: header.page_runs,
            raw_bytes: header.raw_bytes,
            stored_bytes: header.stored_bytes,
            raw_checksum: header.raw_checksum,
            stored_checksum: header.stored_checksum,
        }
    }

    /// The header that the chunk must have, given its number.
    #[must_use]
    pub fn header(&self, number: u32) -> ChunkHeader {
        ChunkHeader {
            magic: CHUNK_MAGIC,
            number: number.into(),
            kind: self.kind,
            encoding: self.encoding,
            page_runs: self.page_runs,
            raw_bytes: self.raw_bytes,
            stored_bytes: self.stored_bytes,
            raw_checksum: self.raw_checksum,
            stored_checksum: self.stored_checksum,
        }
    }

    /// Length of the whole chunk in the file.
    #[must_use]
    pub fn whole_bytes(&self) -> u64 {
        (size_of::<ChunkHeader>() + size_of::<PageRun>() * self.page_runs.get() as usize) as u64
            + u64::from(self.stored_bytes.get())
    }
}
