//! Compression contexts and buffers, kept and used again: making them anew for every chunk costs more
//! than small chunks do, and fresh memory is slow to touch.

use std::cell::RefCell;
use std::io;

use protocol::control::Compression;
use zstd::bulk::{Compressor, Decompressor};

use super::shuffle::{from_planes, to_planes};
use crate::PAGE_BYTES;
use crate::format::layout::{CHUNK_RAW_BYTES, ENCODING_PLANES_ZSTD, ENCODING_RAW, ENCODING_ZSTD};

/// A compressed chunk must be smaller than this part of its raw bytes, or it is stored as it is:
/// below that, reading it back costs more than the bytes are worth.
const WORTH_NUMERATOR: usize = 15;
const WORTH_DENOMINATOR: usize = 16;

/// Chunks of pages from this length on are tried by a sample first.
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
    planes: Vec<u8>,
}

impl Scratch {
    /// Nothing is allocated before it is needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes what is in `stored[from..]` into `into`, which it must fill exactly.
    pub(super) fn decode_into(
        &mut self,
        encoding: u32,
        from: usize,
        into: &mut [u8],
    ) -> Result<(), String> {
        decode(
            &mut self.decompressor,
            &mut self.planes,
            encoding,
            &self.stored[from..],
            into,
        )
    }

    /// Decodes what is in `stored[from..]` into `raw`, of which it makes `raw_bytes`.
    pub(super) fn decode_to_raw(
        &mut self,
        encoding: u32,
        from: usize,
        raw_bytes: usize,
    ) -> Result<(), String> {
        self.raw.resize(raw_bytes, 0);
        decode(
            &mut self.decompressor,
            &mut self.planes,
            encoding,
            &self.stored[from..],
            &mut self.raw,
        )
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// Decodes a compressed payload, which must fill `into` exactly.
fn decode(
    decompressor: &mut Option<Decompressor<'static>>,
    planes: &mut Vec<u8>,
    encoding: u32,
    payload: &[u8],
    into: &mut [u8],
) -> Result<(), String> {
    match encoding {
        ENCODING_ZSTD => decompress(decompressor, payload, into),
        ENCODING_PLANES_ZSTD => {
            planes.resize(into.len(), 0);
            decompress(decompressor, payload, planes)?;
            from_planes(planes, into);
            Ok(())
        }
        _ => Err(format!("encoding {encoding} is none of a compressed chunk")),
    }
}

/// Decompresses one frame, which must fill `into` exactly.
fn decompress(
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

/// What a thread compresses with: made at its first chunk, kept for all writers that it runs. A process may
/// have a file open for each of many ranks, and contexts for each would cost megabytes apiece.
pub(super) struct Packer {
    compression: Compression,
    compressor: Option<Compressor<'static>>,
    decompressor: Option<Decompressor<'static>>,
    frame: Vec<u8>,
    planes: Vec<u8>,
    check_planes: Vec<u8>,
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
            Compression::Auto | Compression::Fast => Some(1),
            Compression::Level(level) => Some(level),
        };
        Ok(Self {
            compression,
            compressor: level.map(Compressor::new).transpose()?,
            decompressor: None,
            frame: Vec::new(),
            planes: Vec::new(),
            check_planes: Vec::new(),
            check: Vec::new(),
        })
    }

    /// How `raw` is best stored, and its payload, which was decoded again and found equal. `pages` tells that
    /// it is pages, which may hold arrays of words.
    pub(super) fn pack<'a>(
        &'a mut self,
        raw: &'a [u8],
        pages: bool,
    ) -> Result<(u32, &'a [u8]), String> {
        let encoding = match self.compressor {
            None => ENCODING_RAW,
            Some(_) if pages && raw.len() >= SAMPLED_BYTES => self.choose(raw),
            Some(_) => ENCODING_ZSTD,
        };
        let Some(frame_bytes) = self.compress(encoding, raw) else {
            return Ok((ENCODING_RAW, raw));
        };
        let frame = &self.frame[..frame_bytes];
        self.check.resize(raw.len(), 0);
        decode(
            &mut self.decompressor,
            &mut self.check_planes,
            encoding,
            frame,
            &mut self.check,
        )?;
        if self.check != raw {
            return Err("decompressing it again gives other bytes".into());
        }
        Ok((encoding, frame))
    }

    /// Makes one zstd frame of `raw` in `frame`; nothing where it is not worth it.
    fn compress(&mut self, encoding: u32, raw: &[u8]) -> Option<usize> {
        let compressor = self.compressor.as_mut()?;
        let bytes = match encoding {
            ENCODING_ZSTD => raw,
            ENCODING_PLANES_ZSTD => {
                self.planes.resize(raw.len(), 0);
                to_planes(raw, &mut self.planes);
                &self.planes
            }
            _ => return None,
        };
        // Just enough room for what is worth it: zstd gives up where it needs more.
        let room = raw.len() / WORTH_DENOMINATOR * WORTH_NUMERATOR;
        self.frame.resize(room.max(CHUNK_RAW_BYTES), 0);
        compressor
            .compress_to_buffer(bytes, &mut self.frame[..room])
            .ok()
    }

    /// Tries the ways to compress on a few pages of a chunk. Numbers of a solver often compress in one way
    /// only, or in none, and finding that out on all pages takes processor time from the ranks.
    fn choose(&mut self, raw: &[u8]) -> u32 {
        let mut sample = std::mem::take(&mut self.check);
        sample.clear();
        let stride = raw.len() / SAMPLE_PAGES;
        for part in raw.chunks(stride).take(SAMPLE_PAGES) {
            sample.extend_from_slice(&part[..PAGE_BYTES]);
        }
        let best = [ENCODING_ZSTD, ENCODING_PLANES_ZSTD]
            .into_iter()
            .filter_map(|encoding| Some((self.compress(encoding, &sample)?, encoding)))
            .min();
        self.check = sample;
        best.map_or(ENCODING_RAW, |(_, encoding)| encoding)
    }
}
