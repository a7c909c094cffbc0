//! The way of a rank's image to a process whose memory the target can't read: a connection over TCP, from target to source.
//!
//! ```text
//!  source                                              target
//!   Examine: listens, on the cluster's interface        │
//!   │◀──────────────────────────────── Greeting ──────── Prepare: connects, with the job's token
//!   │──────── Welcome ──────────────────────────────────▶ so the way is there before the rank is frozen
//!   Transfer: Room, pages to have memory for ───────────▶
//!   │◀───────────────────────────────────── Done ────────
//!             Round, pages, their contents, an end ─────▶ straight into the slot
//!   │◀───────────────────────────────────── Done ────────
//!   freezes;  Rest, the parcel, contents, an end ───────▶
//!   or        Ahead, the parcel; contents in any order ─▶ while the rank runs there
//!   │◀────────────── Want, pages; Taken, how many ───────
//!             an end ───────────────────────────────────▶
//! ```
//!
//! A [`Piece`] heads everything that the source sends after the welcome: words with what they are about, and pages. Of pages of zeros
//! only the numbers are sent; others are compressed where the connection is slower than that ([`economy`]). What the target answers
//! comes as frames ([`protocol::frame`]), at any time. All ends are threads of the library, and never call the transport. A connection
//! that breaks, or on which nothing moves for [`STALLED_AFTER`], fails the move: then the rank stays with the source.
//!
//! Pages of a round are read while their rank runs, so one may be torn. It is sent as it was read, digest and all, and is among those
//! that the rank has written: it comes once more.
//!
//! - [`give`]: the side of the source, from listening to the connection.
//! - [`send`]: a word and its pages.
//! - [`take`]: the side of the target.
//! - [`follow`]: both sides of pages that follow a rank.
//! - [`economy`]: whether to compress.
//! - [`probe`]: how fast the connection is, where that has to be known.
//! - [`patience`]: reading and writing that can be given up.

mod economy;
mod follow;
pub(super) mod give;
mod patience;
mod probe;
mod send;
pub(super) mod take;

use std::time::Duration;

use libckpt_rank::PAGE_BYTES;
use protocol::ids::{Incarnation, Move, Process};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::line::Word;

/// Version of what goes over the connection. Both ends run the same program; a check against strangers.
const VERSION: u32 = 3;

/// How long one end waits for the other to take or send the next bytes.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// Pages in a piece, at the most.
const PIECE_PAGES: usize = 64;

/// The first words of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Greeting {
    version: u32,
    /// The job's token.
    token: [u8; 32],
    incarnation: Incarnation,
    id: Move,
    target: Process,
}

/// What a source answers to whom it has expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Welcome {
    version: u32,
    id: Move,
}

/// What follows a [`Piece`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What a word is about.
    Word(Word),
    /// Pages, as they are.
    Pages,
    /// Pages, as one zstd frame.
    Packed,
    /// Nothing: the pages are zeros.
    Zeros,
    /// Nothing: all pages that go with the word have been sent.
    End,
    /// Bytes of no use, as many as so many pages. The last of a row is answered.
    Probe,
}

/// Heads a part of what is sent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Piece {
    kind: U32,
    /// How many pages.
    pages: U32,
    /// Number of the first page; in the end how many pieces there were since the word; of a probe
    /// how many follow it in its row; of a word for how long the rank has stood still,
    /// in microseconds.
    first: U64,
    /// Bytes that follow.
    bytes: U64,
    /// XXH3 of what the word is about, or of the pages as they are, seeded with where they belong.
    digest: U64,
}

/// A piece of which all that can be checked was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Checked {
    kind: Kind,
    pages: usize,
    first: u64,
    bytes: usize,
    digest: u64,
}

fn digest(first: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, first)
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Word(Word::Room),
        Self::Word(Word::Round),
        Self::Word(Word::Rest),
        Self::Word(Word::Stored),
        Self::Word(Word::Ahead),
        Self::Pages,
        Self::Packed,
        Self::Zeros,
        Self::End,
        Self::Probe,
    ];

    fn code(self) -> u32 {
        match self {
            Self::Pages => 1,
            Self::Packed => 2,
            Self::Zeros => 3,
            Self::End => 4,
            Self::Probe => 5,
            Self::Word(Word::Room) => 16,
            Self::Word(Word::Round) => 17,
            Self::Word(Word::Rest) => 18,
            Self::Word(Word::Stored) => 24,
            Self::Word(Word::Ahead) => 20,
        }
    }

    fn of(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

impl Piece {
    fn new(kind: Kind, first: u64, pages: usize, bytes: usize, digest: u64) -> Self {
        Self {
            kind: kind.code().into(),
            // Lossless: at most PIECE_PAGES.
            pages: (pages as u32).into(),
            first: first.into(),
            bytes: (bytes as u64).into(),
            digest: digest.into(),
        }
    }

    /// Checks the lengths, before any of them is believed. What a word is about may have so many bytes.
    fn check(&self, about_bytes_max: u64) -> Result<Checked, String> {
        let wrong = |what: &str| format!("what the source sends {what}; it is not of this version");
        let kind = Kind::of(self.kind.get()).ok_or_else(|| wrong("begins with an unknown kind"))?;
        let pages = self.pages.get() as usize;
        let raw_bytes = (pages * PAGE_BYTES) as u64;
        let bytes = self.bytes.get();
        let fits = match kind {
            Kind::Word(_) => pages == 0 && bytes <= about_bytes_max,
            Kind::Pages | Kind::Probe => (1..=PIECE_PAGES).contains(&pages) && bytes == raw_bytes,
            Kind::Packed => (1..=PIECE_PAGES).contains(&pages) && (1..raw_bytes).contains(&bytes),
            Kind::Zeros => (1..=PIECE_PAGES).contains(&pages) && bytes == 0,
            Kind::End => pages == 0 && bytes == 0,
        };
        if !fits {
            return Err(wrong(&format!(
                "tells of {bytes} bytes for {pages} pages of kind {}",
                self.kind
            )));
        }
        Ok(Checked {
            kind,
            pages,
            first: self.first.get(),
            bytes: usize::try_from(bytes).map_err(|_| wrong("is too long"))?,
            digest: self.digest.get(),
        })
    }
}

impl Checked {
    /// Whether the bytes are those that were sent.
    fn compare(&self, bytes: &[u8]) -> Result<(), String> {
        let first = match self.kind {
            Kind::Word(_) => 0,
            _ => self.first,
        };
        if digest(first, bytes) == self.digest {
            return Ok(());
        }
        Err(format!(
            "{} bytes from page {} on have come damaged",
            bytes.len(),
            self.first
        ))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
