//! The side of the target: the source as it is over a connection.

use std::fmt;
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::incoming::{Incoming, IncomingError};
use libckpt_rank::restore::RestoringSlot;
use protocol::dirty::PageSet;
use protocol::ids::{Incarnation, Move, Process, Rank};
use wire::Address;
use zerocopy::{FromZeros as _, IntoBytes as _};
use zstd::bulk::Decompressor;

use super::give::{read_message, write_message};
use super::patience::{Expect, Patient};
use super::{Checked, Greeting, Kind, Piece, STALLED_AFTER, VERSION, Welcome};
use crate::fs;
use crate::runtime::moving::fetch::CameFiles;
use crate::runtime::moving::line::{Answer, Source, Word, say};
use crate::runtime::moving::parcel::{Files, PARCEL_BYTES_MAX, now_us};

/// Memory for a parcel is taken in steps of so many bytes, as they come.
const STEP_BYTES: usize = 1 << 20;

/// So many bytes are read ahead: pages that are no neighbours come in pieces of their own, and a call for each head and each page would
/// take longer than to copy them.
const AHEAD_BYTES: usize = 32 << 10;

/// A connection to the source of a move.
pub(in super::super) struct Taker<S = Patient> {
    pub(super) source: BufReader<S>,
    /// For how long the rank had stood still when the last word came, and when that was, in microseconds.
    stood: (u64, u64),
    decompressor: Option<Decompressor<'static>>,
    packed: Vec<u8>,
    /// Of a rank that went ahead: pieces that have come, and pages of which the source was not told.
    pub(super) pieces: u64,
    pub(super) untold: u32,
}

impl Taker {
    /// Connects to the source.
    ///
    /// # Errors
    /// The way is not there.
    pub(in super::super) fn connect(
        address: &str,
        token: [u8; 32],
        (incarnation, id, target): (Incarnation, Move, Process),
        stop: Arc<AtomicBool>,
    ) -> Result<Self, String> {
        let told = |error: &dyn std::fmt::Display| {
            format!(
                "the source can't be reached at {address}: {error}; the nodes of a job must be able to connect to each other"
            )
        };
        let place: Address = address.parse().map_err(|error| told(&error))?;
        let stream = place.connect().map_err(|error| told(&error))?;
        let mut source = Patient::new(stream, stop).map_err(|error| told(&error))?;
        source.expect_within(Some(STALLED_AFTER));
        let greeting = Greeting {
            version: VERSION,
            token,
            incarnation,
            id,
            target,
        };
        write_message(&mut source, &greeting).map_err(|error| told(&error))?;
        let welcome: Welcome = read_message(&mut source).map_err(|error| told(&error))?;
        if welcome
            != (Welcome {
                version: VERSION,
                id,
            })
        {
            return Err(told(&"it does not know of the move"));
        }
        Ok(Self::on(source))
    }
}

impl<S: Read + Write + Expect + Send> Source for Taker<S> {
    fn hear(&mut self) -> Result<(Word, Vec<u8>), String> {
        let head = loop {
            // Until the source has something to say nothing comes, however long that takes.
            self.source.get_mut().expect_within(None);
            let head = self.next()?;
            self.stood = (head.first, now_us());
            self.source.get_mut().expect_within(Some(STALLED_AFTER));
            if head.kind != Kind::Probe {
                break head;
            }
            self.packed.resize(head.bytes, 0);
            let read = self.source.read_exact(&mut self.packed);
            read.map_err(|error| broke(&error))?;
            head.compare(&self.packed)?;
            if head.first == 0 {
                self.answer(Answer::Done)?;
            }
        };
        let Kind::Word(word) = head.kind else {
            return Err(format!(
                "the source sends {:?} instead of a word",
                head.kind
            ));
        };
        let about = read_steps(&mut self.source, head.bytes)?;
        head.compare(&about)?;
        Ok((word, about))
    }

    fn answer(&mut self, answer: Answer) -> Result<(), String> {
        say(self.source.get_mut(), &answer)
    }

    fn fill(
        &mut self,
        slot: RestoringSlot,
        pages: &[Range<u64>],
    ) -> Result<(RestoringSlot, PageSet), String> {
        let mut due = Due::of(pages);
        let mut zeros = Vec::new();
        for pieces in 0.. {
            let piece = self.next()?;
            match piece.kind {
                Kind::Pages | Kind::Packed => {
                    due.take(&piece)?;
                    self.place(&slot, &piece)?;
                }
                Kind::Zeros => {
                    due.take(&piece)?;
                    piece.compare(&[])?;
                    zeros.push(piece.first..piece.first + piece.pages as u64);
                }
                Kind::End if piece.first == pieces && due.is_over() => {
                    piece.compare(&[])?;
                    break;
                }
                Kind::End | Kind::Word(_) | Kind::Probe => {
                    return Err(format!(
                        "the source ends after {pieces} pieces of {}, where {} pages were to come",
                        piece.first, due
                    ));
                }
            }
        }
        Ok((slot, zeros.into_iter().collect()))
    }

    fn fill_first(&mut self, incoming: &mut Incoming) -> Result<(), IncomingError> {
        self.take_first(incoming)
    }

    fn follow(
        &mut self,
        incoming: &mut Incoming,
        runs: &AtomicBool,
    ) -> Result<bool, IncomingError> {
        self.take_all(incoming, runs).map(|()| true)
    }

    fn files(&mut self, rank: Rank, files: Files) -> Result<CameFiles, String> {
        let Files::Recorded(files) = files else {
            return Err("its files are told in another way than they were asked for".to_owned());
        };
        let files = fs::reopen(rank, files).map_err(|error| error.to_string())?;
        Ok(CameFiles::Reopened(files))
    }

    fn output(&mut self, _: (i32, i32)) -> Result<(OwnedFd, OwnedFd), String> {
        Err("an output of its own does not go over a connection".to_owned())
    }

    fn frozen_us(&self, _: u64) -> u64 {
        let (stood_us, came_us) = self.stood;
        came_us.saturating_sub(stood_us)
    }
}

/// The pages that are to come, in order.
struct Due<'a> {
    pages: &'a [Range<u64>],
    next: u64,
}

impl<'a> Due<'a> {
    fn of(pages: &'a [Range<u64>]) -> Self {
        let next = pages.first().map_or(0, |range| range.start);
        let mut due = Self { pages, next };
        due.pass();
        due
    }

    /// Passes over ranges that have come.
    fn pass(&mut self) {
        while let [range, rest @ ..] = self.pages
            && self.next >= range.end
        {
            self.pages = rest;
            self.next = rest.first().map_or(0, |range| range.start);
        }
    }

    /// Pages have come: they must be the next ones.
    fn take(&mut self, piece: &Checked) -> Result<(), String> {
        let end = piece.first.checked_add(piece.pages as u64);
        match (self.pages.first(), end) {
            (Some(range), Some(end)) if piece.first == self.next && end <= range.end => {
                self.next = end;
                self.pass();
                Ok(())
            }
            _ => Err(format!(
                "the source sends {} pages from {} on, where {self} pages were to come",
                piece.pages, piece.first
            )),
        }
    }

    fn is_over(&self) -> bool {
        self.pages.is_empty()
    }
}

impl fmt::Display for Due<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pages.first() {
            Some(range) => write!(f, "{} to {}", self.next, range.end - 1),
            None => f.write_str("no"),
        }
    }
}

fn broke(error: &std::io::Error) -> String {
    format!("the connection to the source broke: {error}")
}

/// Reads so many bytes, and believes in none before it has come.
fn read_steps(source: &mut impl Read, bytes: usize) -> Result<Vec<u8>, String> {
    let mut read = Vec::new();
    while read.len() < bytes {
        let have = read.len();
        let step = STEP_BYTES.min(bytes - have);
        let room = read.try_reserve(step);
        room.map_err(|error| format!("no memory for its message tables: {error}"))?;
        read.resize(have + step, 0);
        let step = source.read_exact(&mut read[have..]);
        step.map_err(|error| broke(&error))?;
    }
    Ok(read)
}

impl<S: Read> Taker<S> {
    pub(super) fn on(source: S) -> Self {
        Self {
            source: BufReader::with_capacity(AHEAD_BYTES, source),
            stood: (0, 0),
            decompressor: None,
            packed: Vec::new(),
            pieces: 0,
            untold: 0,
        }
    }

    pub(super) fn next(&mut self) -> Result<Checked, String> {
        let mut piece = Piece::new_zeroed();
        let read = self.source.read_exact(piece.as_mut_bytes());
        read.map_err(|error| broke(&error))?;
        piece.check(PARCEL_BYTES_MAX)
    }

    /// Puts pages where they belong. The slot looks whether they may be there.
    fn place(&mut self, slot: &RestoringSlot, piece: &Checked) -> Result<(), String> {
        let into = slot.window(piece.first, piece.pages);
        self.read_into(piece, into.map_err(|error| error.to_string())?)
    }

    /// Reads the pages of a piece, which are as many as that says.
    pub(super) fn read_into(&mut self, piece: &Checked, into: &mut [u8]) -> Result<(), String> {
        if piece.kind == Kind::Pages {
            let read = self.source.read_exact(into);
            read.map_err(|error| broke(&error))?;
        } else {
            self.packed.resize(piece.bytes, 0);
            let read = self.source.read_exact(&mut self.packed);
            read.map_err(|error| broke(&error))?;
            let decompressor = match &mut self.decompressor {
                Some(decompressor) => decompressor,
                none => {
                    let made = Decompressor::new();
                    none.insert(made.map_err(|error| format!("zstd can't start: {error}"))?)
                }
            };
            let found = decompressor
                .decompress_to_buffer(&self.packed, into)
                .map_err(|error| format!("pages that came do not decompress: {error}"))?;
            if found != piece.pages * PAGE_BYTES {
                return Err(format!("{found} bytes have come for {} pages", piece.pages));
            }
        }
        piece.compare(into)
    }
}
