//! The line between the source of a move and the thread that receives the rank at the target: words of the source, each with what it
//! is about, and answers. No rank has to call the library for any of it.
//!
//! There are two ways, and only this module's two ends know which it is:
//!
//! - [`memory`](super::memory): the target reads what a word is about, and the pages, out of the source's memory;
//! - [`stream`](super::stream): the source's thread sends them over a connection.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libckpt_rank::incoming::{Incoming, IncomingError};
use libckpt_rank::restore::RestoringSlot;
use protocol::dirty::PageSet;
use protocol::frame::{self, Decoder};
use protocol::ids::Rank;
use protocol::migration::rounds::COPY_BYTES_PER_S;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fetch::CameFiles;
use super::memory::ToTarget;
use super::parcel::{Files, Pages};
use super::stream::give::Giver;
use crate::fs::Unsynced;

/// What the source says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Word {
    /// Have memory for these pages ([`Pages`]), while the rank runs.
    Room,
    /// Get these pages ([`Pages`]), while the rank runs.
    Round,
    /// Read the rank's image out of the store ([`super::stored::Files`]), while the rank runs.
    Stored,
    /// The rank is frozen: a [`super::parcel::Parcel`], and the pages that it calls the rest. The last word.
    Rest,
    /// The rank is frozen, and goes ahead of its memory: a parcel. Its pages follow in any order. The last word.
    Ahead,
}

impl Word {
    /// Whether it is the last, which is not answered.
    pub(super) fn is_last(self) -> bool {
        matches!(self, Self::Rest | Self::Ahead)
    }

    /// Whether the contents of pages go with it.
    pub(super) fn has_pages(self) -> bool {
        matches!(self, Self::Round | Self::Rest)
    }
}

/// What the target answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To each word but the last: it is done.
    Done,
    /// Of a rank that went ahead: these pages are needed before others.
    Want {
        /// The first of them.
        first: u64,
        /// How many.
        pages: u32,
    },
    /// Of a rank that went ahead: so many pages that were sent are taken.
    Taken {
        /// How many since that was told last.
        pages: u32,
    },
}

/// A word with what it is about.
#[derive(Debug)]
pub(super) struct Saying {
    pub(super) word: Word,
    /// What it is about, encoded.
    pub(super) about: Box<[u8]>,
    /// The pages whose contents go with it.
    pub(super) pages: Pages,
    /// Of a rank that stands still: since when, in microseconds of [`super::parcel::now_us`].
    pub(super) frozen_us: Option<u64>,
    /// Files of which the target has to see what was written, where it opens them again.
    pub(super) unsynced: Vec<Unsynced>,
}

#[cfg(test)]
impl Saying {
    /// A word about something, without pages.
    pub(super) fn of_test(word: Word, about: &[u8]) -> Self {
        Self {
            word,
            about: about.into(),
            pages: Pages::new(),
            frozen_us: None,
            unsynced: Vec::new(),
        }
    }
}

/// What comes back on the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Answer(Answer),
    /// Nothing more comes, or goes, for this reason. The target's giving up is not told here: it tells the coordinator.
    Broken(String),
}

/// Who is told at the source, in a thread of the line.
pub(super) type Ear = Arc<dyn Fn(Heard) + Send + Sync>;

/// The source's end. Dropped, the line ends.
pub(super) enum Line {
    /// The target reads our memory.
    Memory(ToTarget),
    /// It is sent what it needs.
    Connection(Giver),
}

impl Line {
    /// How the target reaches it, in the words of [`protocol::migration::MoveNeeds::line`].
    pub(super) fn name(&self) -> String {
        match self {
            Self::Memory(memory) => memory.name(),
            Self::Connection(giver) => giver.address().to_owned(),
        }
    }

    /// The target has its end.
    pub(super) fn taken(&mut self) {
        if let Self::Memory(memory) = self {
            memory.taken();
        }
    }

    /// Whether the target shares no memory with this process: then it opens files again.
    pub(super) fn is_connection(&self) -> bool {
        matches!(self, Self::Connection(_))
    }

    /// What it gives, in bytes per second; none as long as that is being found out.
    pub(super) fn bytes_per_s(&self) -> Option<u64> {
        match self {
            Self::Memory(_) => Some(COPY_BYTES_PER_S),
            Self::Connection(giver) => giver.bytes_per_s(),
        }
    }

    /// Says something, when the word before was answered. Does not wait. What a word is about stays readable until the next.
    ///
    /// # Errors
    /// The line has ended.
    pub(super) fn say(&mut self, saying: Saying) -> Result<(), String> {
        match self {
            Self::Memory(memory) => memory.say(saying),
            Self::Connection(giver) => giver.say(saying),
        }
    }
}

/// The source of a move, as the target's thread has it.
pub(super) trait Source: Send {
    /// Waits for the next word, and what it is about, however long that takes.
    ///
    /// # Errors
    /// The line has ended, or something else came.
    fn hear(&mut self) -> Result<(Word, Vec<u8>), String>;

    /// Answers a word.
    ///
    /// # Errors
    /// The line has ended.
    fn answer(&mut self, answer: Answer) -> Result<(), String>;

    /// Fills the pages that go with the word that was heard last. They wait to be filled. Gives the slot back, and those pages that are
    /// zeros and were left as they are.
    ///
    /// # Errors
    /// They do not come as they are there.
    fn fill(
        &mut self,
        slot: RestoringSlot,
        pages: &[Range<u64>],
    ) -> Result<(RestoringSlot, PageSet), String>;

    /// Of a rank that went ahead of its memory: fills the pages that it needs to run ([`Incoming::first`]), after the last word.
    ///
    /// # Errors
    /// They do not come.
    fn fill_first(&mut self, incoming: &mut Incoming) -> Result<(), IncomingError>;

    /// Fills the rest, those first that somebody waits for, and none but those before it `runs`. False where it is given up.
    ///
    /// # Errors
    /// They do not come.
    fn follow(&mut self, incoming: &mut Incoming, runs: &AtomicBool)
    -> Result<bool, IncomingError>;

    /// Opens the rank's files here.
    ///
    /// # Errors
    /// One can't be had, or they are told in the way of another line.
    fn files(&mut self, rank: Rank, files: Files) -> Result<CameFiles, String>;

    /// The rank's own standard output and error, by their numbers at the source.
    ///
    /// # Errors
    /// They can't be had.
    fn output(&mut self, output: (i32, i32)) -> Result<(OwnedFd, OwnedFd), String>;

    /// When the rank was frozen by the clock of this machine, given that by the source's.
    fn frozen_us(&self, told_us: u64) -> u64;
}

/// Small messages on a stream.
#[derive(Debug)]
pub(super) struct Frames<S> {
    pub(super) stream: S,
    decoder: Decoder,
}

impl<S> Frames<S> {
    pub(super) fn on(stream: S) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }
}

impl<S: Read> Frames<S> {
    /// Waits for a message; none where the stream has ended.
    ///
    /// # Errors
    /// The stream broke, or something else came.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Result<Option<T>, String> {
        loop {
            if let Some(message) = self.decoder.next().map_err(|error| error.to_string())? {
                return Ok(Some(message));
            }
            let mut piece = [0; 256];
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.feed(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Writes a small message.
///
/// # Errors
/// Nobody is there.
pub(super) fn say(stream: &mut impl Write, message: &impl Serialize) -> Result<(), String> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes).map_err(|error| error.to_string())?;
    stream
        .write_all(&bytes)
        .map_err(|error| format!("nobody is there: {error}"))
}
