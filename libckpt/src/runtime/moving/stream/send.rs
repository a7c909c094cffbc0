//! What the source sends: a word with what it is about, and the pages that go with it.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::Instant;

use libckpt_rank::PAGE_BYTES;
use protocol::page::is_zero;
use zerocopy::IntoBytes as _;
use zstd::bulk::Compressor;

use super::economy::Economy;
use super::{Kind, PIECE_PAGES, Piece, digest};
use crate::runtime::moving::line::Saying;
use crate::runtime::moving::parcel::now_us;

/// zstd's level. Higher ones take far more time for little.
const LEVEL: i32 = 1;

/// So many bytes are worth a call. A whole piece is longer, and not copied for it.
const GATHERED_BYTES: usize = 128 << 10;

/// Sends words to `to`; `read` copies memory of the rank, from a page on.
pub(super) struct Sending<W, R> {
    to: W,
    read: R,
    pub(super) economy: Economy,
    compressor: Option<Compressor<'static>>,
    packed: Vec<u8>,
    /// Short parts that were not sent yet.
    gathered: Vec<u8>,
    /// Since the last word.
    pub(super) pieces: u64,
}

fn broke(error: io::Error) -> String {
    format!("the connection to the target broke: {error}")
}

impl<W: io::Write, R: Fn(u64, &mut [u8]) -> Result<(), String>> Sending<W, R> {
    pub(super) fn to(to: W, read: R) -> Self {
        Self {
            to,
            read,
            economy: Economy::default(),
            compressor: None,
            packed: Vec::new(),
            gathered: Vec::with_capacity(GATHERED_BYTES),
            pieces: 0,
        }
    }

    pub(super) fn into_inner(self) -> W {
        self.to
    }

    /// Says a word.
    ///
    /// # Errors
    /// The connection broke, the memory can't be read, or a file can't be synced.
    pub(super) fn say(&mut self, saying: &Saying) -> Result<(), String> {
        for file in &saying.unsynced {
            file.sync().map_err(|error| error.to_string())?;
        }
        let frozen_us = saying.frozen_us;
        let stood_us = frozen_us.map_or(0, |frozen_us| now_us().saturating_sub(frozen_us));
        let about = &saying.about;
        let kind = Kind::Word(saying.word);
        let head = Piece::new(kind, stood_us, 0, about.len(), digest(0, about));
        self.write(&head, about)?;
        self.pieces = 0;
        if saying.word.has_pages() {
            self.send_pages(&saying.pages)?;
            self.send_end()?;
        }
        self.flush()
    }

    /// Sends a head and what follows it, when there is enough of that for a call.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) fn write(&mut self, head: &Piece, bytes: &[u8]) -> Result<(), String> {
        let head = head.as_bytes();
        if self.gathered.len() + head.len() + bytes.len() <= GATHERED_BYTES {
            self.gathered.extend_from_slice(head);
            self.gathered.extend_from_slice(bytes);
            return Ok(());
        }
        self.write_all(head, bytes)
    }

    /// Sends what was gathered.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        self.write_all(&[], &[])?;
        self.to.flush().map_err(broke)
    }

    /// All pages have been sent.
    pub(super) fn send_end(&mut self) -> Result<(), String> {
        let pieces = self.pieces;
        let end = Piece::new(Kind::End, pieces, 0, 0, digest(pieces, &[]));
        self.write(&end, &[])
    }

    fn write_all(&mut self, head: &[u8], bytes: &[u8]) -> Result<(), String> {
        let mut parts = [&self.gathered, head, bytes].map(IoSlice::new);
        let mut parts = &mut parts[..];
        // Drops such as are empty.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.to.write_vectored(parts) {
                Ok(0) => return Err(broke(io::ErrorKind::WriteZero.into())),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broke(error)),
            }
        }
        self.gathered.clear();
        Ok(())
    }

    pub(super) fn send_pages(&mut self, pages: &[Range<u64>]) -> Result<(), String> {
        let mut raw = vec![0; PIECE_PAGES * PAGE_BYTES];
        for range in pages {
            let mut next = range.start;
            while next < range.end {
                // Lossless: at most PIECE_PAGES.
                let count = (range.end - next).min(PIECE_PAGES as u64) as usize;
                let raw = &mut raw[..count * PAGE_BYTES];
                (self.read)(next, raw)?;
                for (run, are_zeros) in runs(raw) {
                    let first = next + run.start as u64;
                    if are_zeros {
                        self.send_zeros(first, run.len())?;
                    } else {
                        self.send(first, &raw[run.start * PAGE_BYTES..run.end * PAGE_BYTES])?;
                    }
                }
                next += count as u64;
            }
        }
        Ok(())
    }

    fn send_zeros(&mut self, first: u64, pages: usize) -> Result<(), String> {
        let head = Piece::new(Kind::Zeros, first, pages, 0, digest(first, &[]));
        self.pieces += 1;
        self.write(&head, &[])
    }

    fn send(&mut self, first: u64, raw: &[u8]) -> Result<(), String> {
        let digest = digest(first, raw);
        let (kind, bytes) = match self.economy.packs_next() && self.pack(raw)? {
            true => (Kind::Packed, self.packed.len()),
            false => (Kind::Pages, raw.len()),
        };
        let head = Piece::new(kind, first, raw.len() / PAGE_BYTES, bytes, digest);
        let begun = Instant::now();
        match kind {
            Kind::Packed => {
                let packed = std::mem::take(&mut self.packed);
                self.write(&head, &packed)?;
                self.packed = packed;
            }
            _ => self.write(&head, raw)?,
        }
        self.economy.sent(bytes, begun.elapsed());
        self.pieces += 1;
        Ok(())
    }

    /// Compresses a piece; false where it does not become shorter.
    fn pack(&mut self, raw: &[u8]) -> Result<bool, String> {
        let begun = Instant::now();
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => {
                let made = Compressor::new(LEVEL);
                none.insert(made.map_err(|error| format!("zstd can't start: {error}"))?)
            }
        };
        self.packed.resize(raw.len(), 0);
        let packed = compressor.compress_to_buffer(raw, &mut self.packed[..raw.len() - 1]);
        // It gives up where it needs more room than the pages do.
        let bytes = packed.unwrap_or(raw.len());
        self.packed.truncate(bytes);
        self.economy.packed(raw.len(), bytes, begun.elapsed());
        Ok(bytes < raw.len())
    }
}

/// Runs of pages that are all zeros, or of which none is.
fn runs(raw: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for (number, page) in raw.as_chunks::<PAGE_BYTES>().0.iter().enumerate() {
        let is_zero = is_zero(page);
        match runs.last_mut() {
            Some((last, are_zeros)) if *are_zeros == is_zero => last.end += 1,
            _ => runs.push((number..number + 1, is_zero)),
        }
    }
    runs
}
