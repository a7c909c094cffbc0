//! Compression contexts and buffers, kept and used again: making them anew for every chunk costs more
//! than small chunks do, and fresh memory is slow to touch.

use std::cell::RefCell;
use std::io;

use protocol::control::Compression;
use zstd::bulk::{Compressor, Decompressor};

use crate::PAGE_BYTES;
use crate::format::layout::CHUNK_RAW_BYTES;

/// A compressed chunk must be smaller than this part of its raw bytes, or it is stored as it is:
/// below that, reading it back costs more than the bytes are worth.
const WORTH_NUMERATOR: usize = 15;
const WORTH_DENOMINATOR: usize = 16;

/// Chunks from this length on are tried by a sample first.
const SAMPLED_BYTES: usize = 64 << 10;
/// How many pages the sample has, spread over the chunk.
const SAMPLE_PAGES: usize = 4;

/// Memory that a reading thread needs: one for each thread, used for all its chunks.
#[derive(Default)]
pub struct Scratch {
    decompressor: Option<Decompressor<'static>>,
    /// A chunk as stored.
    pub(super) stored: Vec<u8>,
    /// A chunk after decompression.
    pub(super) raw: Vec<u8>,
}

impl Scratch {
    /// Nothing is allocated before it is needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// Decompresses one frame, which must fill `into` exactly.
pub(super) fn decompress(
    decompressor: &mut Option<Decompressor<'static>>,
    frame: &[u8],
    into: &mut [u8],
) -> Result<(), String> {
    let expected = into.len();
    let decompressor = match decompressor {
        Some(decompressor) => decompressor,
        None => decompressor
            .insert(Decompressor::new().map_err(|error| format!("zstd can't start: {error}"))?),
    };
    let found = decompressor
        .decompress_to_buffer(frame, into)
        .map_err(|error| format!("its zstd frame does not decompress: {error}"))?;
    if found == expected {
        Ok(())
    } else {
        Err(format!(
            "its zstd frame holds {found} bytes, not {expected}"
        ))
    }
}

impl Scratch {
    /// Decompresses what is in `stored[from..]` into `into`, which it must fill exactly.
    pub(super) fn decompress_stored(&mut self, from: usize, into: &mut [u8]) -> Result<(), String> {
        decompress(&mut self.decompressor, &self.stored[from..], into)
    }

    /// Decompresses what is in `stored[from..]` into `raw`, of which it makes `raw_bytes`.
    pub(super) fn decompress_to_raw(
        &mut self,
        from: usize,
        raw_bytes: usize,
    ) -> Result<(), String> {
        self.raw.resize(raw_bytes, 0);
        decompress(
            &mut self.decompressor,
            &self.stored[from..],
            &mut self.raw[..],
        )
    }
}

/// What a thread compresses with: made at its first chunk, kept for all writers that it runs. A process may
/// have a file open for each of many ranks, and contexts for each would cost megabytes apiece.
pub(super) struct Packer {
    compression: Compression,
    compressor: Option<Compressor<'static>>,
    decompressor: Option<Decompressor<'static>>,
    frame: Vec<u8>,
    check: Vec<u8>,
}

thread_local! {
    static KEPT: RefCell<Option<Packer>> = const { RefCell::new(None) };
}

impl Packer {
    /// Runs `use_it` with this thread's packer.
    pub(super) fn with<T>(
        compression: Compression,
        use_it: impl FnOnce(&mut Self) -> T,
    ) -> io::Result<T> {
        KEPT.with_borrow_mut(|kept| {
            if let Some(packer) = kept
                && packer.compression == compression
            {
                return Ok(use_it(packer));
            }
            Ok(use_it(kept.insert(Self::new(compression)?)))
        })
    }

    fn new(compression: Compression) -> io::Result<Self> {
        let level = match compression {
            Compression::None => None,
            Compression::Fast => Some(1),
            Compression::Level(level) => Some(level),
        };
        Ok(Self {
            compression,
            compressor: level.map(Compressor::new).transpose()?,
            decompressor: None,
            frame: Vec::new(),
            check: Vec::new(),
        })
    }

    /// One zstd frame of `raw`, decompressed again and found equal; nothing where `raw` is better stored
    /// as it is.
    pub(super) fn pack(&mut self, raw: &[u8]) -> Result<Option<&[u8]>, String> {
        if raw.len() >= SAMPLED_BYTES && !self.sample_is_worth(raw) {
            return Ok(None);
        }
        let Some(frame_bytes) = self.compress(raw) else {
            return Ok(None);
        };
        let frame = &self.frame[..frame_bytes];
        self.check.resize(raw.len(), 0);
        decompress(&mut self.decompressor, frame, &mut self.check)?;
        if self.check != raw {
            return Err("decompressing it again gives other bytes".into());
        }
        Ok(Some(frame))
    }

    /// Makes one zstd frame of `raw` in `frame`; nothing where it is not worth it.
    fn compress(&mut self, raw: &[u8]) -> Option<usize> {
        // Just enough room for what is worth it: zstd gives up where it needs more.
        let room = raw.len() / WORTH_DENOMINATOR * WORTH_NUMERATOR;
        self.frame.resize(room.max(CHUNK_RAW_BYTES), 0);
        self.compressor
            .as_mut()?
            .compress_to_buffer(raw, &mut self.frame[..room])
            .ok()
    }

    /// Whether a few pages of a chunk compress. Numbers of a solver often do not, and finding that out
    /// page by page takes processor time from the ranks.
    fn sample_is_worth(&mut self, raw: &[u8]) -> bool {
        let mut sample = std::mem::take(&mut self.check);
        sample.clear();
        let stride = raw.len() / SAMPLE_PAGES;
        for part in raw.chunks(stride).take(SAMPLE_PAGES) {
            sample.extend_from_slice(&part[..PAGE_BYTES]);
        }
        let worth = self.compress(&sample).is_some();
        self.check = sample;
        worth
    }
}
