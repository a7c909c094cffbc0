//! Pages that follow a rank which runs at the target already: those that somebody waits for there first, the others one after the other.
//!
//! The source sends no more unasked than [`AHEAD_PAGES`] that the target has not taken yet. So a page that somebody waits for is behind
//! a millisecond of others at the most, and not behind whatever the connection takes.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::incoming::{Incoming, IncomingError, Pages};

use super::patience::{Expect, LOOK_EVERY};
use super::send::Sending;
use super::take::Taker;
use super::{Kind, PIECE_PAGES};
use crate::runtime::moving::line::{Answer, Source as _};

/// Pages that are under way unasked, at the most.
const AHEAD_PAGES: u32 = 256;

/// Pages after which the source is told that they are taken.
const TOLD_PAGES: u32 = 64;

/// Pages that are asked for at once, where somebody waits for the first.
const WANTED_PAGES: u32 = 16;

// ---- the source ------------------------------------------------------------------------------------

impl<W: Write, R: Fn(u64, &mut [u8]) -> Result<(), String>> Sending<W, R> {
    /// Sends pages in any order, those first that the target asks for, and an end.
    ///
    /// # Errors
    /// The connection broke, the memory can't be read, or it is given up.
    pub(super) fn follow(
        &mut self,
        pages: &[Range<u64>],
        asked: &Receiver<Answer>,
        stop: &AtomicBool,
    ) -> Result<(), String> {
        let end = pages.last().map_or(0, |range| range.end);
        let mut left = Pages::none_of(end);
        pages.iter().for_each(|range| left.insert(range));
        let (mut next, mut ahead) = (0, 0_u32);
        while left.count() > 0 {
            let answer = match ahead < AHEAD_PAGES {
                true => asked.try_recv().ok(),
                false => {
                    let begun = Instant::now();
                    let heard = asked.recv_timeout(LOOK_EVERY);
                    // By so much the connection and the target are slower than this thread.
                    self.economy.sent(0, begun.elapsed());
                    match heard {
                        Ok(answer) => Some(answer),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => {
                            return Err("the target is gone".to_owned());
                        }
                    }
                }
            };
            if stop.load(Ordering::SeqCst) {
                return Err("it was given up".to_owned());
            }
            let piece = match answer {
                Some(Answer::Taken { pages }) => {
                    ahead = ahead.saturating_sub(pages);
                    continue;
                }
                Some(Answer::Want { first, pages }) => first..first.saturating_add(pages.into()),
                Some(Answer::Done) => continue,
                None if ahead < AHEAD_PAGES => {
                    let all = next..end;
                    let Some(run) = left.run_in(&all).or_else(|| left.run_in(&(0..end))) else {
                        break;
                    };
                    run.start..run.end.min(run.start + PIECE_PAGES as u64)
                }
                None => continue,
            };
            // What was asked for may be under way already.
            let runs: Vec<_> = left.runs_in(piece.clone()).collect();
            self.send_pages(&runs)?;
            let begun = Instant::now();
            self.flush()?;
            self.economy.sent(0, begun.elapsed());
            left.remove(&piece);
            let sent: u64 = runs.iter().map(|run| run.end - run.start).sum();
            ahead = ahead.saturating_add(u32::try_from(sent).unwrap_or(u32::MAX));
            // Who has waited for a page will mostly come to those behind it.
            next = piece.end;
        }
        self.send_end()?;
        self.flush()
    }
}

// ---- the target ------------------------------------------------------------------------------------

fn told(reason: String) -> IncomingError {
    IncomingError::Source(reason)
}

impl<S: Read + Write + Expect + Send> Taker<S> {
    /// Takes what the rank needs to run, and whatever else comes meanwhile.
    pub(super) fn take_first(&mut self, incoming: &mut Incoming) -> Result<(), IncomingError> {
        let first = incoming.first();
        for run in &first {
            let pages = u32::try_from(run.end - run.start).unwrap_or(u32::MAX);
            let first = run.start;
            self.answer(Answer::Want { first, pages }).map_err(told)?;
        }
        while first.iter().any(|run| incoming.is_missing(run)) {
            if self.take_piece(incoming)? {
                return Err(told(
                    "the source ends before the first pages have come".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// Takes the rest, and asks for what somebody waits for.
    pub(super) fn take_all(
        &mut self,
        incoming: &mut Incoming,
        runs: &AtomicBool,
    ) -> Result<(), IncomingError> {
        let mut came = Instant::now();
        loop {
            while let Some(first) = incoming.next_fault()? {
                let pages = WANTED_PAGES;
                self.answer(Answer::Want { first, pages }).map_err(told)?;
            }
            // The source stops by itself when nothing is taken.
            if !runs.load(Ordering::SeqCst) && !incoming.is_waited_for() {
                incoming.wait();
                came = Instant::now();
                continue;
            }
            let is_ahead = !self.source.buffer().is_empty();
            let source = self.source.get_ref();
            let wait = || source.wait_beside(incoming.as_fd(), came.elapsed());
            if is_ahead || wait().map_err(|error| told(error.to_string()))? {
                if self.take_piece(incoming)? {
                    break;
                }
                came = Instant::now();
            }
        }
        match incoming.missing() {
            0 => Ok(()),
            pages => Err(told(format!(
                "the source ends, and {pages} pages have not come"
            ))),
        }
    }

    /// Takes a piece. Whether it was the end.
    fn take_piece(&mut self, incoming: &mut Incoming) -> Result<bool, IncomingError> {
        let piece = self.next().map_err(told)?;
        let end = piece.first.checked_add(piece.pages as u64);
        let pages = piece.first..end.ok_or_else(|| told("there are no such pages".to_owned()))?;
        match piece.kind {
            Kind::Pages | Kind::Packed => {
                let mut bytes = vec![0; piece.pages * PAGE_BYTES];
                self.read_into(&piece, &mut bytes).map_err(told)?;
                incoming.fill(piece.first, &bytes)?;
            }
            Kind::Zeros => {
                piece.compare(&[]).map_err(told)?;
                incoming.leave_out(&pages);
            }
            Kind::End if piece.first == self.pieces => {
                piece.compare(&[]).map_err(told)?;
                return Ok(true);
            }
            Kind::End | Kind::Word(_) | Kind::Probe => {
                return Err(told(format!(
                    "the source ends after {} pieces of {}",
                    self.pieces, piece.first
                )));
            }
        }
        self.pieces += 1;
        // Lossless: at most PIECE_PAGES.
        self.untold += piece.pages as u32;
        if self.untold >= TOLD_PAGES {
            let pages = std::mem::take(&mut self.untold);
            self.answer(Answer::Taken { pages }).map_err(told)?;
        }
        Ok(false)
    }
}
