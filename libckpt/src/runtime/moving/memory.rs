//! The line where the target can read the source's memory: what the source says is where something lies ready there, and the target
//! gets it by itself.
//!
//! A pair of sockets (socketpair(2)), of which the target takes its end out of the source by number (pidfd_getfd(2)). When one side is
//! gone, or gives the move up, the other sees the end of the line.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use libckpt_rank::incoming::{Incoming, IncomingError};
use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{PAGE_BYTES, library_thread};
use libckpt_transport::OtherProcess;
use protocol::dirty::PageSet;
use protocol::ids::Rank;
use serde::{Deserialize, Serialize};

use super::fetch::CameFiles;
use super::line::{Answer, Ear, Frames, Heard, Saying, Source, Word, say};
use super::parcel::{Files, PARCEL_BYTES_MAX};
use crate::runtime::threads::{Work, do_together};

/// Pages that a thread copies at once.
const PIECE_PAGES: u64 = 1024;

const SCHEME: &str = "fd:";

/// As many lines are remembered, newest last. Of a move before, one may be open as long as the rank's memory stays.
const LINES_MOST: usize = 256;

/// The sockets of lines, as `/proc/self/fd` has them (proc(5)).
static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Remembers a socket as one of a line.
fn remember(socket: &impl AsRawFd) {
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let Ok(name) = std::fs::read_link(path) else {
        return;
    };
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    if lines.len() == LINES_MOST {
        lines.pop_front();
    }
    lines.push_back(name.to_string_lossy().into_owned());
}

/// Whether a descriptor, as `number (target)`, is one of a line and nothing that the program has opened.
pub(super) fn is_line(descriptor: &str) -> bool {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lines = lines.iter();
    lines.any(|line| descriptor.ends_with(&format!("({line})")))
}

/// Where something lies in the source's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    address: u64,
    bytes: u64,
}

impl Place {
    fn of(bytes: &[u8]) -> Self {
        Self {
            address: bytes.as_ptr().addr() as u64,
            bytes: bytes.len() as u64,
        }
    }
}

/// The source's end.
pub(super) struct ToTarget {
    stream: UnixStream,
    /// The other end, as long as it was not taken.
    theirs: Option<OwnedFd>,
    /// What the target reads at this moment.
    about: Box<[u8]>,
    ear: Ear,
    listener: Option<JoinHandle<()>>,
}

impl ToTarget {
    /// A line; `ear` is told the answers.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn new(ear: Ear) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        remember(&ours);
        remember(&theirs);
        Ok(Self {
            stream: ours,
            theirs: Some(theirs.into()),
            about: Box::default(),
            ear,
            listener: None,
        })
    }

    /// See [`super::line::Line::name`].
    pub(super) fn name(&self) -> String {
        let number = self.theirs.as_ref().map_or(-1, |theirs| theirs.as_raw_fd());
        format!("{SCHEME}{number}")
    }

    /// See [`super::line::Line::taken`].
    pub(super) fn taken(&mut self) {
        self.theirs = None;
    }

    /// See [`super::line::Line::say`].
    pub(super) fn say(&mut self, saying: Saying) -> Result<(), String> {
        if !saying.word.is_last() && self.listener.is_none() {
            let stream = self.stream.try_clone();
            let ear = self.ear.clone();
            let listener = stream.and_then(|stream| {
                library_thread("ckpt-move", move || {
                    let mut answers = Frames::on(stream);
                    while let Ok(Some(answer)) = answers.hear() {
                        ear(Heard::Answer(answer));
                    }
                })
            });
            self.listener = Some(listener.map_err(|error| error.to_string())?);
        }
        self.about = saying.about;
        say(&mut self.stream, &(saying.word, Place::of(&self.about)))
    }
}

impl Drop for ToTarget {
    fn drop(&mut self) {
        end(&self.stream);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Ends a line, for whoever waits at either end.
pub(super) fn end(stream: &UnixStream) {
    // It may have ended.
    let _ = stream.shutdown(Shutdown::Both);
}

/// The target's end.
pub(super) struct Memory {
    words: Frames<UnixStream>,
    source: OtherProcess,
    /// First address of the rank's slot, in every process.
    address: u64,
    /// Threads that copy beside each other.
    threads: usize,
    /// Set where the rank does not come after all.
    stop: Arc<AtomicBool>,
}

impl Memory {
    /// Takes the other end of a line of that process.
    ///
    /// # Errors
    /// It is not called like one, or can't be had.
    pub(super) fn reach(
        source: OtherProcess,
        name: &str,
        address: u64,
        threads: usize,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, String> {
        let number = name.strip_prefix(SCHEME);
        let number = number.and_then(|number| number.parse::<RawFd>().ok());
        let number = number.ok_or_else(|| format!("the source can't be reached by {name:?}"))?;
        let descriptor = source.descriptor(number);
        let descriptor =
            descriptor.map_err(|error| format!("the source can't be reached: {error}"))?;
        remember(&descriptor);
        Ok(Self {
            words: Frames::on(descriptor.into()),
            source,
            address,
            threads,
            stop,
        })
    }

    /// This end once more, to end the line by.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn again(&self) -> io::Result<UnixStream> {
        self.words.stream.try_clone()
    }

    /// Reads pages of the rank.
    fn read_pages(&self, first: u64, into: &mut [u8]) -> Result<(), String> {
        let address = self.address + first * PAGE_BYTES as u64;
        let read = self.source.read(address, into);
        read.map_err(|error| error.to_string())
    }

    /// Reads what a word is about.
    fn read(&self, place: Place) -> Result<Vec<u8>, String> {
        let bytes = (place.bytes <= PARCEL_BYTES_MAX).then_some(place.bytes);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or("what the source tells of it is too long")?;
        let mut about = Vec::new();
        about
            .try_reserve_exact(bytes)
            .map_err(|error| format!("no memory for its message tables: {error}"))?;
        about.resize(bytes, 0);
        self.source
            .read(place.address, &mut about)
            .map_err(|error| error.to_string())?;
        Ok(about)
    }
}

impl Source for Memory {
    fn hear(&mut self) -> Result<(Word, Vec<u8>), String> {
        let (word, place) = self.words.hear()?.ok_or("the line has ended")?;
        Ok((word, self.read(place)?))
    }

    fn answer(&mut self, answer: Answer) -> Result<(), String> {
        say(&mut self.words.stream, &answer)
    }

    /// Copies pages straight to where they belong, by several threads.
    fn fill(
        &mut self,
        slot: RestoringSlot,
        pages: &[Range<u64>],
    ) -> Result<(RestoringSlot, PageSet), String> {
        let count: u64 = pages
            .iter()
            .map(|range| range.end.saturating_sub(range.start))
            .sum();
        let threads = usize::try_from(count / PIECE_PAGES).unwrap_or(usize::MAX);
        let copying = Copying {
            pieces: pieces(pages),
            slot,
            source: self.source,
            address: self.address,
            stop: self.stop.clone(),
        };
        let copied = do_together(copying, self.threads.min(threads), "ckpt-move")?;
        Ok((copied.slot, PageSet::new()))
    }

    fn fill_first(&mut self, incoming: &mut Incoming) -> Result<(), IncomingError> {
        for pages in incoming.first() {
            incoming.fill_pages(&pages, &mut |first, into| self.read_pages(first, into))?;
        }
        Ok(())
    }

    /// Nothing is to be done at the source: the rank's old memory stays as it is until the move is over.
    fn follow(
        &mut self,
        incoming: &mut Incoming,
        runs: &AtomicBool,
    ) -> Result<bool, IncomingError> {
        let read = &mut |first, into: &mut [u8]| self.read_pages(first, into);
        let mut next = 0;
        while let Some(page) = incoming.next_missing(next) {
            if self.stop.load(Ordering::SeqCst) {
                return Ok(false);
            }
            let page = match incoming.next_fault()? {
                // Who has waited for a page will mostly come to those behind it.
                Some(page) => page,
                None if runs.load(Ordering::SeqCst) => page,
                None => {
                    incoming.wait();
                    continue;
                }
            };
            next = incoming.fill_around(page, read)?;
        }
        Ok(true)
    }

    fn files(&mut self, rank: Rank, files: Files) -> Result<CameFiles, String> {
        let Files::Offered(files) = files else {
            return Err("its files are told in another way than they were asked for".to_owned());
        };
        let open = |number| self.source.descriptor(number).map(File::from);
        files.take(rank, open).map(CameFiles::Taken)
    }

    fn output(&mut self, (out, err): (i32, i32)) -> Result<(OwnedFd, OwnedFd), String> {
        let told = |error| format!("its output can't be had: {error}");
        let out = self.source.descriptor(out).map_err(told)?;
        let err = self.source.descriptor(err).map_err(told)?;
        Ok((out, err))
    }

    fn frozen_us(&self, told_us: u64) -> u64 {
        told_us
    }
}

/// Page ranges, cut into pieces.
fn pieces(pages: &[Range<u64>]) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    for range in pages {
        let mut next = range.start;
        while next < range.end {
            let count = (range.end - next).min(PIECE_PAGES);
            pieces.push((next, count));
            next += count;
        }
    }
    pieces
}

/// Pages that are copied, and where to.
struct Copying {
    /// First pages of pieces, and how many each has.
    pieces: Vec<(u64, u64)>,
    slot: RestoringSlot,
    source: OtherProcess,
    address: u64,
    stop: Arc<AtomicBool>,
}

impl Work for Copying {
    type Scratch = ();

    fn pieces(&self) -> usize {
        self.pieces.len()
    }

    fn is_given_up(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn do_piece(&self, piece: usize, (): &mut ()) -> Result<(), String> {
        let (first, count) = self.pieces[piece];
        let count = usize::try_from(count).map_err(|error| error.to_string())?;
        let into = self
            .slot
            .window(first, count)
            .map_err(|error| error.to_string())?;
        let address = self.address + first * PAGE_BYTES as u64;
        self.source
            .read(address, into)
            .map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn words_come_in_order_with_what_they_are_about_and_the_end_is_seen() {
        let (told, heard) = channel();
        let ear: Ear = Arc::new(move |word| told.send(word).unwrap());
        let mut ours = ToTarget::new(ear).unwrap();
        let theirs = ours.theirs.as_ref().unwrap().try_clone().unwrap();
        let (name, stop) = (ours.name(), Arc::<AtomicBool>::default());
        assert_eq!(
            name,
            format!("fd:{}", ours.theirs.as_ref().unwrap().as_raw_fd())
        );
        let mut theirs = Memory {
            words: Frames::on(theirs.into()),
            source: OtherProcess::this(protocol::ids::Process(0)),
            address: 0,
            threads: 1,
            stop,
        };
        ours.taken();
        for (word, about) in [(Word::Room, "of"), (Word::Round, ""), (Word::Rest, "it")] {
            let about = about.as_bytes();
            ours.say(Saying::of_test(word, about)).unwrap();
            assert_eq!(theirs.hear(), Ok((word, about.to_vec())));
        }
        theirs.answer(Answer::Done).unwrap();
        assert_eq!(heard.recv(), Ok(Heard::Answer(Answer::Done)));
        drop(ours);
        assert!(theirs.hear().unwrap_err().contains("ended"));
        assert!(theirs.answer(Answer::Done).is_err());
    }

    #[test]
    fn a_line_is_nothing_that_a_program_has_opened_and_a_socket_of_its_own_is() {
        let before = libckpt_rank::inspect::descriptors::Descriptors::record();
        let line = ToTarget::new(Arc::new(|_| ())).unwrap();
        let (own, _other) = UnixStream::pair().unwrap();
        let number = own.as_raw_fd();
        let mut opened = before.opened(&[]);
        let is_of = |number: RawFd| move |it: &String| it.starts_with(&format!("{number} ("));
        assert!(opened.iter().any(is_of(line.stream.as_raw_fd())));
        opened.retain(|it| !is_line(it));
        assert!(!opened.iter().any(is_of(line.stream.as_raw_fd())));
        let theirs = line.theirs.as_ref().unwrap().as_raw_fd();
        assert!(!opened.iter().any(is_of(theirs)));
        assert!(opened.iter().any(is_of(number)), "{opened:?}");
    }
}
