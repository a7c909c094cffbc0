//! The checksums of a rank file: XXH3 with 64 bits, always over the [`Context`] first.
//!
//! They protect against accidents: torn writes, flipped bits, a chunk of another rank or epoch in the
//! place of the right one. They are no signature.

use xxhash_rust::xxh3::Xxh3;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::layout::{
    ChunkHeader, Context, FileHeader, PART_HEADER, PART_INDEX, PART_PAYLOAD, PART_RAW,
    PART_TRAILER, Trailer,
};
use crate::FileKey;

/// The checksums of one file.
#[derive(Clone, Copy, Debug)]
pub struct Checksums {
    key: FileKey,
}

impl Checksums {
    /// Those of the file `key`.
    #[must_use]
    pub fn new(key: FileKey) -> Self {
        Self { key }
    }

    fn over(&self, part: u32, pieces: &[&[u8]]) -> u64 {
        let context = Context {
            job: self.key.job.0,
            incarnation: self.key.incarnation.0.into(),
            epoch: self.key.epoch.0.into(),
            rank: self.key.rank.0.into(),
            part: part.into(),
        };
        let mut hash = Xxh3::new();
        hash.update(context.as_bytes());
        for piece in pieces {
            hash.update(piece);
        }
        hash.digest()
    }

    /// Of the file header, its last field left out.
    #[must_use]
    pub fn header(&self, header: &FileHeader) -> u64 {
        self.over(PART_HEADER, &[before_last(header.as_bytes())])
    }

    /// Of the payload of a chunk as stored.
    #[must_use]
    pub fn payload(&self, payload: &[u8]) -> u64 {
        self.over(PART_PAYLOAD, &[payload])
    }

    /// Of a chunk as stored: the header, its last field left out, the page runs, and the checksum of the payload.
    #[must_use]
    pub fn stored(&self, header: &ChunkHeader, runs: &[u8], payload_checksum: u64) -> u64 {
        let fields = before_last(header.as_bytes());
        let payload = U64::new(payload_checksum);
        self.over(header.number.get(), &[fields, runs, payload.as_bytes()])
    }

    /// Of a chunk before compression: the page runs and the raw payload.
    #[must_use]
    pub fn raw(&self, runs: &[u8], payload: &[u8]) -> u64 {
        self.over(PART_RAW, &[runs, payload])
    }

    /// Of the index.
    #[must_use]
    pub fn index(&self, index: &[u8]) -> u64 {
        self.over(PART_INDEX, &[index])
    }

    /// Of the trailer, its last field left out.
    #[must_use]
    pub fn trailer(&self, trailer: &Trailer) -> u64 {
        self.over(PART_TRAILER, &[before_last(trailer.as_bytes())])
    }
}

/// All but the last eight bytes, where these structs keep their own checksum.
fn before_last(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() - size_of::<u64>()]
}

/// A digest over a whole file, built as its bytes come by: XXH3-128, big-endian as its authors print it.
#[derive(Clone, Default)]
pub struct FileDigest(Xxh3);

impl FileDigest {
    /// A digest over nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Xxh3::new())
    }

    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest over all bytes so far.
    #[must_use]
    pub fn finish(&self) -> [u8; 16] {
        self.0.digest128().to_be_bytes()
    }
}

impl std::fmt::Debug for FileDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FileDigest").field(&self.finish()).finish()
    }
}
