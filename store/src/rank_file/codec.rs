//! Compression contexts and buffers, kept and used again: making them anew for every chunk costs more
//! than small chunks do, and fresh memory is slow to touch.

use std::io;
use std::ops::Range;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{ResetDirective, get_error_name};

use super::pack::Effort;
use super::shuffle::{from_planes, to_planes};
use crate::PAGE_BYTES;
use crate::format::layout::{CHUNK_RAW_BYTES, ENCODING_PLANES_ZSTD, ENCODING_RAW, ENCODING_ZSTD};
use crate::storage::Stretch;

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
    stored: Stretch,
    /// Where in `stored` the chunk is that was fetched last.
    chunk: Range<usize>,
    /// The number of the file that `stored` holds a stretch of, which may be more than one chunk.
    window: Option<u64>,
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

    /// The chunk that was fetched last, as stored.
    pub(super) fn stored(&self) -> &[u8] {
        &self.stored.bytes()[self.chunk.clone()]
    }

    /// Room for a chunk of so many bytes, which is the one that was fetched last when it is filled.
    pub(super) fn room_for_chunk(&mut self, bytes: usize) -> &mut [u8] {
        self.window = None;
        self.chunk = 0..bytes;
        self.stored.aim(0, bytes);
        self.stored.bytes_mut()
    }

    /// Lets `read` fill a stretch of a file, out of which chunks can be fetched if it says that it did.
    pub(super) fn fill_window(
        &mut self,
        file: u64,
        offset: u64,
        bytes: usize,
        read: impl FnOnce(&mut Stretch) -> bool,
    ) {
        self.chunk = 0..0;
        self.stored.aim(offset, bytes);
        self.window = read(&mut self.stored).then_some(file);
    }

    /// Fetches a chunk out of the stretch that was filled last, if it is there.
    pub(super) fn fetch_from_window(&mut self, file: u64, offset: u64, bytes: usize) -> bool {
        if self.window != Some(file) {
            return false;
        }
        let from = offset.checked_sub(self.stored.offset());
        let Some(from) = from.and_then(|from| usize::try_from(from).ok()) else {
            return false;
        };
        let end = from.saturating_add(bytes);
        if end > self.stored.bytes().len() {
            return false;
        }
        self.chunk = from..end;
        true
    }

    /// Decodes the chunk that was fetched last, from `from` on, into `into`, which it must fill exactly.
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
            &self.stored.bytes()[self.chunk.clone()][from..],
            into,
        )
    }

    /// Decodes the chunk that was fetched last, from `from` on, into `raw`, of which it makes `raw_bytes`.
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
            &self.stored.bytes()[self.chunk.clone()][from..],
            &mut self.raw,
        )
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// The first `bytes` of a buffer that never shrinks: memory that was touched once serves for all chunks.
fn at_least(buffer: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if buffer.len() < bytes {
        buffer.resize(bytes.max(CHUNK_RAW_BYTES), 0);
    }
    &mut buffer[..bytes]
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
            let planes = at_least(planes, into.len());
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

/// Why a chunk can't be encoded.
pub(super) enum EncodeError {
    /// zstd does not start.
    Start(io::Error),
    /// What was compressed does not decompress to what it was.
    Check(String),
}

/// Compresses chunks: what it needs for that is made when it is first needed, and kept.
#[derive(Default)]
pub(super) struct Encoder {
    compressor: Option<(i32, Compressor<'static>)>,
    decompressor: Option<Decompressor<'static>>,
    sample: Vec<u8>,
    planes: Vec<u8>,
    check_planes: Vec<u8>,
    check: Vec<u8>,
}

impl Encoder {
    /// Stores `raw` in the way that is best for it in front of `payload`, which is made as long as it
    /// needs to be; tells the encoding and how many bytes it takes. What was compressed was decoded again and
    /// found equal. `pages` tells that it is pages, which may hold arrays of words.
    pub(super) fn encode(
        &mut self,
        effort: Effort,
        pages: bool,
        raw: &[u8],
        payload: &mut Vec<u8>,
    ) -> Result<(u32, usize), EncodeError> {
        at_least(payload, raw.len());
        if let Effort::Zstd(level) = effort {
            self.set_level(level).map_err(EncodeError::Start)?;
            let encoding = if pages && raw.len() >= SAMPLED_BYTES {
                self.choose(raw, payload)
            } else {
                ENCODING_ZSTD
            };
            if let Some(stored_bytes) = self.compress(encoding, raw, payload) {
                self.compare(encoding, &payload[..stored_bytes], raw)
                    .map_err(EncodeError::Check)?;
                return Ok((encoding, stored_bytes));
            }
        }
        payload[..raw.len()].copy_from_slice(raw);
        Ok((ENCODING_RAW, raw.len()))
    }

    fn set_level(&mut self, level: i32) -> io::Result<()> {
        match &mut self.compressor {
            Some((set, _)) if *set == level => {}
            Some((set, compressor)) => {
                // A frame that did not fit is still open, and a level can't be changed in one.
                let reset = compressor.context_mut().reset(ResetDirective::SessionOnly);
                reset.map_err(|code| io::Error::other(get_error_name(code)))?;
                compressor.set_compression_level(level)?;
                *set = level;
            }
            none => *none = Some((level, Compressor::new(level)?)),
        }
        Ok(())
    }

    /// Makes one zstd frame of `raw` in front of `frame`, which has room for `raw`; nothing where it is not
    /// worth it.
    fn compress(&mut self, encoding: u32, raw: &[u8], frame: &mut [u8]) -> Option<usize> {
        let (_, compressor) = self.compressor.as_mut()?;
        let bytes = match encoding {
            ENCODING_ZSTD => raw,
            ENCODING_PLANES_ZSTD => {
                let planes = at_least(&mut self.planes, raw.len());
                to_planes(raw, planes);
                planes
            }
            _ => return None,
        };
        // Just enough room for what is worth it: zstd gives up where it needs more.
        let room = raw.len() / WORTH_DENOMINATOR * WORTH_NUMERATOR;
        compressor
            .compress_to_buffer(bytes, &mut frame[..room])
            .ok()
    }

    /// Tries the ways to compress on a few pages of a chunk. Numbers of a solver often compress in one way
    /// only, or in none, and finding that out on all pages takes processor time from the ranks.
    fn choose(&mut self, raw: &[u8], frame: &mut [u8]) -> u32 {
        let mut sample = std::mem::take(&mut self.sample);
        sample.clear();
        let stride = raw.len() / SAMPLE_PAGES;
        for part in raw.chunks(stride).take(SAMPLE_PAGES) {
            sample.extend_from_slice(&part[..PAGE_BYTES]);
        }
        let best = [ENCODING_ZSTD, ENCODING_PLANES_ZSTD]
            .into_iter()
            .filter_map(|encoding| Some((self.compress(encoding, &sample, frame)?, encoding)))
            .min();
        self.sample = sample;
        best.map_or(ENCODING_RAW, |(_, encoding)| encoding)
    }

    /// Decodes what was compressed; it must be what it was.
    fn compare(&mut self, encoding: u32, frame: &[u8], raw: &[u8]) -> Result<(), String> {
        let check = at_least(&mut self.check, raw.len());
        decode(
            &mut self.decompressor,
            &mut self.check_planes,
            encoding,
            frame,
            check,
        )?;
        if check == raw {
            Ok(())
        } else {
            Err("decompressing it again gives other bytes".into())
        }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}
