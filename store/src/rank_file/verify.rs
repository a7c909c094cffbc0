//! Verifies a whole rank file.

use super::codec::Scratch;
use super::reader::RankFile;
use crate::format::checksum::FileDigest;
use crate::storage::read_exact_at;
use crate::{Error, Result};

/// Bytes read at once for the digest.
const READ_BYTES: usize = 1 << 20;

impl RankFile {
    /// Reads and checks every byte: each chunk as stored and after decompression, and the digest over the
    /// whole file that the manifest holds.
    pub fn verify(&self) -> Result<()> {
        let mut scratch = Scratch::new();
        for (number, _) in (0u32..).zip(&self.index.chunks) {
            let raw = self.raw_chunk(number, &mut scratch)?;
            self.check_raw(number, raw)?;
        }
        let mut digest = FileDigest::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut at = 0;
        while at < self.stored.file_bytes {
            let left = usize::try_from(self.stored.file_bytes - at).unwrap_or(READ_BYTES);
            let piece = &mut buffer[..left.min(READ_BYTES)];
            read_exact_at(&*self.file, piece, at)
                .map_err(Error::io("read", self.shown.as_str()))?;
            digest.update(piece);
            at += piece.len() as u64;
        }
        if digest.finish() != self.stored.digest {
            return Err(Error::corrupt(
                self.shown.as_str(),
                "the digest over the whole file is not the manifest's",
            ));
        }
        Ok(())
    }
}
