//! The side of the source: a thread for each move, which waits for the target, and then for the frozen rank.

use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use libckpt_rank::capture::is_zero;
use libckpt_rank::{PAGE_BYTES, library_thread};
use libckpt_transport::OtherProcess;
use protocol::frame::{self, Decoder};
use protocol::ids::{Incarnation, Move, Process};
use subtle::ConstantTimeEq as _;
use wire::{Address, Listener, Stream};
use zerocopy::IntoBytes as _;
use zstd::bulk::Compressor;

use super::economy::Economy;
use super::patience::{LOOK_EVERY, Patient};
use super::{Greeting, Kind, PIECE_PAGES, Piece, STALLED_AFTER, VERSION, Welcome, digest};
use crate::fs::Unsynced;

/// How long a caller has to say who it is.
const GREETING_WITHIN: Duration = Duration::from_secs(2);

/// zstd's level. Higher ones take far more time for little.
const LEVEL: i32 = 1;

/// What is asked of whoever connects.
#[derive(Clone)]
pub(in super::super) struct Expected {
    pub(in super::super) token: [u8; 32],
    pub(in super::super) incarnation: Incarnation,
    pub(in super::super) id: Move,
    pub(in super::super) target: Process,
}

/// A rank that stands still.
pub(in super::super) struct Freight {
    pub(in super::super) parcel: Vec<u8>,
    /// Its pages, by their numbers.
    pub(in super::super) pages: Vec<Range<u64>>,
    /// First address of its slot. What is read there stays as it is until the move is over.
    pub(in super::super) address: u64,
    /// Files of which the target must see what was written.
    pub(in super::super) unsynced: Vec<Unsynced>,
    pub(in super::super) frozen: Instant,
}

/// A thread that gives a rank to its target. Dropped, it ends.
pub(in super::super) struct Giver {
    freight: Sender<Freight>,
    stop: Arc<AtomicBool>,
    address: String,
}

impl Giver {
    /// Listens at this address of ours, for this target. What goes wrong is told by `failed`.
    ///
    /// # Errors
    /// Nothing can listen there, or no thread can be started.
    pub(in super::super) fn start(
        interface: IpAddr,
        me: Process,
        expected: Expected,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, String> {
        let told = |error: io::Error| format!("nothing can listen on {interface}: {error}");
        let place = std::net::SocketAddr::from((interface, 0)).to_string();
        let listener = Address::Tcp(place).listen().map_err(told)?;
        let bound = listener
            .internet_address()
            .ok_or_else(|| told(io::ErrorKind::AddrNotAvailable.into()))?;
        let (freight, waiting) = channel();
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let give = move || {
            let given = (|| {
                let mut target = await_target(&listener, &expected, &stopped)?;
                drop(listener);
                let Some(freight) = await_freight(&waiting, &stopped) else {
                    return Ok(());
                };
                let memory = OtherProcess::this(me);
                send(&freight, &mut target, |address, into| {
                    memory
                        .read(address, into)
                        .map_err(|error| error.to_string())
                })
            })();
            if let Err(reason) = given
                && !stopped.load(Ordering::SeqCst)
            {
                failed(reason);
            }
        };
        library_thread("ckpt-give", give)
            .map_err(|error| format!("no thread can be started to give it: {error}"))?;
        Ok(Self {
            freight,
            stop,
            address: Address::Tcp(bound.to_string()).to_string(),
        })
    }

    /// Where it listens.
    pub(in super::super) fn address(&self) -> &str {
        &self.address
    }

    /// The rank is frozen.
    pub(in super::super) fn give(&self, freight: Freight) {
        // Without the thread it was told that it failed.
        let _ = self.freight.send(freight);
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Waits for the target to connect. Others are turned away.
fn await_target(
    listener: &Listener,
    expected: &Expected,
    stop: &Arc<AtomicBool>,
) -> Result<Patient, String> {
    loop {
        if stop.load(Ordering::SeqCst) {
            return Err("it was given up".to_owned());
        }
        match listener.accept() {
            Ok(stream) => match welcome(stream, expected, stop) {
                Ok(target) => return Ok(target),
                Err(error) => tracing::warn!(%error, "a caller was turned away"),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => tracing::warn!(%error, "a caller was not accepted"),
        }
    }
}

/// Looks whether a caller is the target, and answers.
fn welcome(stream: Stream, expected: &Expected, stop: &Arc<AtomicBool>) -> io::Result<Patient> {
    let mut caller = Patient::new(stream, stop.clone())?;
    caller.expect_within(Some(GREETING_WITHIN));
    let greeting = read_message::<Greeting>(&mut caller)?;
    // Takes as long for any wrong token.
    let knows: bool = greeting.token.ct_eq(&expected.token).into();
    let is_it = greeting.version == VERSION
        && greeting.incarnation == expected.incarnation
        && greeting.id == expected.id
        && greeting.target == expected.target;
    if !(knows && is_it) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let id = expected.id;
    write_message(
        &mut caller,
        &Welcome {
            version: VERSION,
            id,
        },
    )?;
    caller.expect_within(Some(STALLED_AFTER));
    Ok(caller)
}

/// Reads a message of the beginning, a byte at a time where it must be: what follows it is none.
pub(super) fn read_message<T: serde::de::DeserializeOwned>(from: &mut Patient) -> io::Result<T> {
    let mut decoder = Decoder::new();
    let begun = Instant::now();
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        decoder.feed(&byte);
        match decoder.next::<T>() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) if begun.elapsed() > STALLED_AFTER => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(None) => {}
            Err(error) => return Err(io::Error::other(error.to_string())),
        }
    }
}

pub(super) fn write_message<T: serde::Serialize>(to: &mut Patient, message: &T) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    to.write_all(&bytes)
}

fn await_freight(waiting: &Receiver<Freight>, stop: &AtomicBool) -> Option<Freight> {
    while !stop.load(Ordering::SeqCst) {
        match waiting.recv_timeout(LOOK_EVERY) {
            Ok(freight) => return Some(freight),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

/// Sends a frozen rank; `read` copies memory of this process.
pub(super) fn send(
    freight: &Freight,
    to: &mut impl io::Write,
    read: impl Fn(u64, &mut [u8]) -> Result<(), String>,
) -> Result<(), String> {
    for file in &freight.unsynced {
        file.sync().map_err(|error| error.to_string())?;
    }
    let broke = |error: io::Error| format!("the connection to the target broke: {error}");
    let stood_us = u64::try_from(freight.frozen.elapsed().as_micros()).unwrap_or(u64::MAX);
    let parcel = &freight.parcel;
    let head = Piece::new(Kind::Parcel, stood_us, 0, parcel.len(), digest(0, parcel));
    to.write_all(head.as_bytes()).map_err(broke)?;
    to.write_all(parcel).map_err(broke)?;

    let mut sender = Sending {
        to,
        economy: Economy::default(),
        compressor: None,
        packed: Vec::new(),
        pieces: 0,
    };
    let mut raw = vec![0; PIECE_PAGES * PAGE_BYTES];
    for range in &freight.pages {
        let mut next = range.start;
        while next < range.end {
            // Lossless: at most PIECE_PAGES.
            let count = (range.end - next).min(PIECE_PAGES as u64) as usize;
            let raw = &mut raw[..count * PAGE_BYTES];
            read(freight.address + next * PAGE_BYTES as u64, raw)?;
            for run in runs(raw) {
                let bytes = &raw[run.start * PAGE_BYTES..run.end * PAGE_BYTES];
                sender.send(next + run.start as u64, bytes)?;
            }
            next += count as u64;
        }
    }
    let end = Piece::new(Kind::End, sender.pieces, 0, 0, 0);
    sender.to.write_all(end.as_bytes()).map_err(broke)?;
    sender.to.flush().map_err(broke)
}

/// Runs of pages that are not all zeros.
fn runs(raw: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (number, page) in raw.as_chunks::<PAGE_BYTES>().0.iter().enumerate() {
        if is_zero(page) {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

struct Sending<'a, W> {
    to: &'a mut W,
    economy: Economy,
    compressor: Option<Compressor<'static>>,
    packed: Vec<u8>,
    pieces: u64,
}

impl<W: io::Write> Sending<'_, W> {
    fn send(&mut self, first: u64, raw: &[u8]) -> Result<(), String> {
        let digest = digest(first, raw);
        let (kind, bytes) = match self.economy.packs_next() && self.pack(raw)? {
            true => (Kind::Packed, self.packed.as_slice()),
            false => (Kind::Pages, raw),
        };
        let pages = raw.len() / PAGE_BYTES;
        let head = Piece::new(kind, first, pages, bytes.len(), digest);
        let begun = Instant::now();
        let sent = self.to.write_all(head.as_bytes());
        sent.and_then(|()| self.to.write_all(bytes))
            .map_err(|error| format!("the connection to the target broke: {error}"))?;
        let sent_bytes = bytes.len();
        self.economy.sent(sent_bytes, begun.elapsed());
        self.pieces += 1;
        Ok(())
    }

    /// Compresses a piece; false where it does not become shorter.
    fn pack(&mut self, raw: &[u8]) -> Result<bool, String> {
        let begun = Instant::now();
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => {
                let made = Compressor::new(LEVEL);
                none.insert(made.map_err(|error| format!("zstd can't start: {error}"))?)
            }
        };
        self.packed.resize(raw.len(), 0);
        let packed = compressor.compress_to_buffer(raw, &mut self.packed[..raw.len() - 1]);
        // It gives up where it needs more room than the pages do.
        let bytes = packed.unwrap_or(raw.len());
        self.packed.truncate(bytes);
        self.economy.packed(raw.len(), bytes, begun.elapsed());
        Ok(bytes < raw.len())
    }
}
