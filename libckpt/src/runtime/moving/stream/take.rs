//! The side of the target: a thread for each move, which connects to the source, and fills the slot with what comes.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::restore::RestoringSlot;
use protocol::ids::{Incarnation, Move, Process, Rank};
use wire::Address;
use zerocopy::{FromZeros as _, IntoBytes as _};
use zstd::bulk::Decompressor;

use super::give::{read_message, write_message};
use super::patience::Patient;
use super::{Checked, Greeting, Kind, Piece, STALLED_AFTER, VERSION, Welcome};
use crate::fs;
use crate::runtime::moving::fetch::{CameFiles, Fetched};
use crate::runtime::moving::parcel::{Files, PARCEL_BYTES_MAX, Parcel, now_us};

/// Memory for a parcel is taken in steps of so many bytes, as they come.
const STEP_BYTES: usize = 1 << 20;

/// A connection to the source of a move.
pub(in super::super) struct Taker {
    source: Patient,
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
        // Until the rank is frozen nothing comes, however long that takes.
        source.expect_within(None);
        Ok(Self { source })
    }

    /// Takes the rank, when it is sent.
    ///
    /// # Errors
    /// It does not come, or not as it was sent.
    pub(in super::super) fn take(
        mut self,
        rank: Rank,
        slot: RestoringSlot,
    ) -> Result<Fetched, String> {
        let begun = |source: &mut Patient| source.expect_within(Some(STALLED_AFTER));
        let (mut parcel, image_bytes) = receive(&mut self.source, rank, &slot, begun)?;
        let none = Files::Recorded(fs::OpenFiles::default());
        let Files::Recorded(files) = std::mem::replace(&mut parcel.files, none) else {
            return Err("its files are told in another way than they were asked for".to_owned());
        };
        let files = fs::reopen(rank, files).map_err(|error| error.to_string())?;
        Ok(Fetched {
            is_behind: false,
            slot,
            parcel,
            files: CameFiles::Reopened(files),
            output: None,
            image_bytes,
        })
    }
}

/// Receives a rank: its parcel, and how many bytes its image has. `begun` is called when it begins to come.
pub(super) fn receive<R: Read>(
    source: &mut R,
    rank: Rank,
    slot: &RestoringSlot,
    begun: impl FnOnce(&mut R),
) -> Result<(Parcel, u64), String> {
    let head = next(source)?;
    let arrived_us = now_us();
    begun(source);
    if head.kind != Kind::Parcel {
        return Err("the source begins with something else than the rank's description".to_owned());
    }
    let described = read_steps(source, head.bytes)?;
    head.compare(&described)?;
    let mut parcel = Parcel::decode(&described, rank)?;
    drop(described);
    // By the clock of this machine.
    parcel.frozen_us = arrived_us.saturating_sub(head.first);
    let mut taking = Taking {
        source,
        slot,
        decompressor: None,
        packed: Vec::new(),
    };
    let mut pieces = 0;
    loop {
        let piece = next(taking.source)?;
        match piece.kind {
            Kind::Pages | Kind::Packed => taking.fill(&piece)?,
            Kind::End if piece.first == pieces => break,
            Kind::End | Kind::Parcel => {
                return Err(format!(
                    "the source ends after {pieces} pieces of {}",
                    piece.first
                ));
            }
        }
        pieces += 1;
    }
    let pages = parcel.pages.iter();
    let pages: u64 = pages
        .map(|range| range.end.saturating_sub(range.start))
        .sum();
    Ok((parcel, pages * PAGE_BYTES as u64))
}

fn broke(error: &std::io::Error) -> String {
    format!("the connection to the source broke: {error}")
}

fn next(source: &mut impl Read) -> Result<Checked, String> {
    let mut piece = Piece::new_zeroed();
    let read = source.read_exact(piece.as_mut_bytes());
    read.map_err(|error| broke(&error))?;
    piece.check(PARCEL_BYTES_MAX)
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

struct Taking<'a, R> {
    source: &'a mut R,
    slot: &'a RestoringSlot,
    decompressor: Option<Decompressor<'static>>,
    packed: Vec<u8>,
}

impl<R: Read> Taking<'_, R> {
    /// Puts a piece of the image where it belongs. The slot looks whether it may be there, and comes once.
    fn fill(&mut self, piece: &Checked) -> Result<(), String> {
        let into = self.slot.window(piece.first, piece.pages);
        let into = into.map_err(|error| error.to_string())?;
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
