//! A rank's file in a checkpoint: its writer and its reader.
//!
//! The file is append-only: header, chunks, index, trailer (`docs/format.md`). A chunk holds pages of
//! the image or a piece of a section, is compressed by itself and checked by itself, so that several threads
//! can read one file at once and a single page can be had without the rest. The index at the end maps
//! every page of the image to a chunk, of this file or of the same rank's file of an earlier checkpoint; only a file
//! that ends in a right trailer is one.
//!
//! - `pack`: chunks made ready, by many threads; `codec` and `shuffle` compress and decompress;
//! - `writer`: puts chunks into a file in their order, and finishes it; `output` is the file as bytes;
//! - `map`: where each page of an image is, which the next file builds on;
//! - `carry`: pages on their way from old files into the new one;
//! - `index`: the bytes of the index, and all that can be checked of them;
//! - `reader`: one file, checked; `image`: an image out of several.

mod carry;
mod codec;
mod image;
mod index;
mod map;
mod output;
mod pack;
mod reader;
mod shuffle;
mod writer;

pub use carry::CarryOver;
pub use codec::Scratch;
pub use image::RankImage;
pub use map::{ImageMap, ImageRun, PageSource};
pub use pack::{Effort, PackedChunk, Packer, Packing};
pub(crate) use reader::RankFile;
pub use writer::{Finished, RankFileWriter};

/// What a section of a rank file holds. To the store they are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SectionKind {
    /// The files that the rank had open at the cut.
    Metadata = 2,
    /// The rank's message tables at the cut.
    Tables = 3,
    /// Channel state: packets to this rank that were under way at the cut.
    Channel = 4,
}

impl SectionKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Metadata, Self::Tables, Self::Channel];

    /// Its number in [`crate::format::layout::ChunkHeader::kind`].
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }
}
