//! The side of the source: for each move a thread that waits for the target, and then for what is to be said; and one that hears.

use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use libckpt_rank::{PAGE_BYTES, library_thread};
use libckpt_transport::OtherProcess;
use protocol::frame::{self, Decoder};
use protocol::ids::{Incarnation, Move, Process};
use subtle::ConstantTimeEq as _;
use wire::{Address, Listener, Stream};

use super::patience::{Expect as _, LOOK_EVERY, Patient};
use super::send::Sending;
use super::{Greeting, STALLED_AFTER, VERSION, Welcome};
use crate::runtime::moving::line::{Answer, Ear, Frames, Heard, Saying, Word};

/// How long a caller has to say who it is.
const GREETING_WITHIN: Duration = Duration::from_secs(2);

/// What is asked of whoever connects.
#[derive(Clone)]
pub(in super::super) struct Expected {
    pub(in super::super) token: [u8; 32],
    pub(in super::super) incarnation: Incarnation,
    pub(in super::super) id: Move,
    pub(in super::super) target: Process,
}

/// Threads that give a rank to its target: one says, one hears. Dropped, they end.
pub(in super::super) struct Giver {
    sayings: Sender<Saying>,
    stop: Arc<AtomicBool>,
    address: String,
    /// What the connection gives, in bytes per second; 0 until it was found out.
    bytes_per_s: Arc<AtomicU64>,
}

impl Giver {
    /// Listens at this address of ours, for this target. `slot` is the first address of the rank's slot. What comes back, and what
    /// goes wrong, is told to `ear`. If it `probes`, how fast the connection is, is found out before anything is said.
    ///
    /// # Errors
    /// Nothing can listen there, or no thread can be started.
    pub(in super::super) fn start(
        interface: IpAddr,
        (me, slot): (Process, u64),
        expected: Expected,
        probes: bool,
        ear: Ear,
    ) -> Result<Self, String> {
        let told = |error: io::Error| format!("nothing can listen on {interface}: {error}");
        let place = std::net::SocketAddr::from((interface, 0)).to_string();
        let listener = Address::Tcp(place).listen().map_err(told)?;
        let bound = listener
            .internet_address()
            .ok_or_else(|| told(io::ErrorKind::AddrNotAvailable.into()))?;
        let (sayings, waiting) = channel();
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let bytes_per_s = Arc::<AtomicU64>::default();
        let found = bytes_per_s.clone();
        let give = move || {
            let given = (|| {
                let target = await_target(&listener, &expected, &stopped)?;
                drop(listener);
                let told = |error: io::Error| format!("nobody can hear its target: {error}");
                let mut answers = Frames::on(target.again().map_err(told)?);
                let memory = OtherProcess::this(me);
                let mut sending = Sending::to(target, |page, into: &mut [u8]| {
                    let address = slot.wrapping_add(page.wrapping_mul(PAGE_BYTES as u64));
                    let read = memory.read(address, into);
                    read.map_err(|error| error.to_string())
                });
                if probes {
                    found.store(sending.probe(&mut answers)?.max(1), Ordering::SeqCst);
                }
                let (ask, asked) = channel();
                hear(answers, ear.clone(), ask, stopped.clone()).map_err(told)?;
                let mut said = Ok(());
                while said.is_ok()
                    && let Some(saying) = await_saying(&waiting, &stopped)
                {
                    said = sending.say(&saying);
                    if saying.word == Word::Ahead && said.is_ok() {
                        said = sending.follow(&saying.pages, &asked, &stopped);
                    }
                }
                sending.into_inner().end();
                said
            })();
            if let Err(reason) = given
                && !stopped.load(Ordering::SeqCst)
            {
                ear(Heard::Broken(reason));
            }
        };
        library_thread("ckpt-give", give)
            .map_err(|error| format!("no thread can be started to give it: {error}"))?;
        Ok(Self {
            sayings,
            stop,
            address: Address::Tcp(bound.to_string()).to_string(),
            bytes_per_s,
        })
    }

    /// What the connection gives, in bytes per second; none until that was found out.
    pub(in super::super) fn bytes_per_s(&self) -> Option<u64> {
        let found = self.bytes_per_s.load(Ordering::SeqCst);
        (found > 0).then_some(found)
    }

    /// Where it listens.
    pub(in super::super) fn address(&self) -> &str {
        &self.address
    }

    /// See [`crate::runtime::moving::line::Line::say`].
    pub(in super::super) fn say(&self, saying: Saying) -> Result<(), String> {
        // What ended the thread was told.
        self.sayings
            .send(saying)
            .map_err(|_| "the connection to the target has ended".to_owned())
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Starts the thread that hears what the target answers, until the connection ends or breaks.
fn hear(
    mut answers: Frames<Patient>,
    ear: Ear,
    ask: Sender<Answer>,
    stop: Arc<AtomicBool>,
) -> io::Result<()> {
    let hear = move || {
        loop {
            match answers.hear() {
                Ok(Some(Answer::Done)) => ear(Heard::Answer(Answer::Done)),
                // Of no use any more to a thread that has ended.
                Ok(Some(asked)) => drop(ask.send(asked)),
                Ok(None) => return,
                Err(reason) if !stop.load(Ordering::SeqCst) => {
                    let reason = format!("the connection to the target broke: {reason}");
                    return ear(Heard::Broken(reason));
                }
                Err(_) => return,
            }
        }
    };
    library_thread("ckpt-hear", hear).map(drop)
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

fn await_saying(waiting: &Receiver<Saying>, stop: &AtomicBool) -> Option<Saying> {
    while !stop.load(Ordering::SeqCst) {
        match waiting.recv_timeout(LOOK_EVERY) {
            Ok(saying) => return Some(saying),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}
