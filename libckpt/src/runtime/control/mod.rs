//! The process's end of the control connection.
//!
//! Two library threads: one reads directives, answers pings itself and hands the rest to the ranks'
//! thread; one writes reports, so that no rank ever waits for the socket. A coordinator that is gone ends
//! the process at once: its ranks must not go on unobserved. Where that can't be seen at once, on another node, the
//! process has a lease, and a third thread watches it ([`watchdog`]). [`wire`] is the socket.

mod watchdog;

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use libckpt_rank::library_thread;
use libckpt_transport::Waker;
use nix::sys::signal::{SigSet, Signal};
use protocol::control::{
    Assignment, CONTROL_VERSION, Caller, Directive, Hello, ProgramIdentity, RankFigures, Report,
    environment, exit,
};
use protocol::frame::{self, Decoder};
use protocol::ids::{Process, Rank};
use store::JobStore;
use wire::{Address, Stream};

use self::watchdog::{KernelTimer, Watchdog};
use super::figures::{Loads, SAMPLE_EVERY};
use crate::engine::Attention;
use crate::error::StartError;

/// How long a rank may keep away from the engine before `status` names it.
const COMPUTING_LONG: Duration = Duration::from_secs(2);

/// How long the coordinator may take to answer a Hello.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A control connection on which this process was accepted.
pub(crate) struct Joined {
    stream: Stream,
    decoder: Decoder,
    /// When the Hello was sent.
    hello_sent: Instant,
    token: [u8; 32],
    pub(crate) assignment: Assignment,
}

/// Keeps signals by which batch systems announce the end of an allocation to all its processes from ending this one: its
/// coordinator is on another node, gets them too, and takes a last checkpoint. Without a coordinator elsewhere it does
/// nothing. To be called before there is any other thread, and so before `MPI_Init`.
///
/// # Errors
/// When the system refuses.
pub(crate) fn hold_signals_of_allocations() -> std::io::Result<()> {
    if !std::env::var(environment::CONTROL).is_ok_and(|address| address.starts_with("tcp:")) {
        return Ok(());
    }
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGUSR1);
    Ok(set.thread_block()?)
}

/// Connects to the coordinator and says hello. `processes` is how many processes there are by what this one knows.
///
/// # Errors
/// When nobody answers at the address, the coordinator refuses this process, or the process does not see the store.
pub(crate) fn join(
    address: &str,
    token: [u8; 32],
    process: Process,
    processes: u32,
    identity: ProgramIdentity,
) -> Result<Joined, StartError> {
    let failed = |what: &str, reason: &dyn std::fmt::Display| StartError::Control {
        address: address.to_owned(),
        reason: format!("{what}: {reason}; is the coordinator (`ckpt run`) still there?"),
    };
    let mut stream = address
        .parse::<Address>()
        .map_err(|error| failed("cannot connect", &error))?
        .connect()
        .map_err(|error| failed("cannot connect", &error))?;
    let hello = Hello {
        version: CONTROL_VERSION,
        token,
        caller: Caller::Process {
            process,
            processes,
            pid: std::process::id(),
            host: host(),
            identity,
        },
    };
    let mut bytes = Vec::new();
    frame::encode(&hello, &mut bytes).map_err(|error| failed("cannot say hello", &error))?;
    let hello_sent = Instant::now();
    stream
        .write_all(&bytes)
        .map_err(|error| failed("cannot say hello", &error))?;
    stream
        .set_read_timeout(Some(ANSWER_WITHIN))
        .map_err(|error| failed("cannot wait", &error))?;
    let mut decoder = Decoder::new();
    let directive = loop {
        match decoder.next::<Directive>() {
            Ok(Some(directive)) => break directive,
            Ok(None) => {}
            Err(error) => return Err(failed("a malformed answer", &error)),
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => return Err(failed("no answer", &"the connection was closed")),
            Ok(count) => decoder.feed(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("no answer", &error)),
        }
    };
    stream
        .set_read_timeout(None)
        .map_err(|error| failed("cannot wait", &error))?;
    let assignment = match directive {
        Directive::Assignment(assignment) => *assignment,
        Directive::Refused { reason } => return Err(StartError::Refused { reason }),
        // The job ended while this process was starting.
        Directive::Stop | Directive::End => std::process::exit(exit::STOPPED),
        other => return Err(failed("an unexpected answer", &format!("{other:?}"))),
    };
    // A child of the coordinator sees what that one sees.
    if stream.is_tcp()
        && let Err(reason) = see_store(&assignment)
    {
        bytes.clear();
        let report = Report::StoreUnseen {
            reason: reason.clone(),
        };
        frame::encode(&report, &mut bytes).map_err(|error| failed("cannot report", &error))?;
        stream
            .write_all(&bytes)
            .map_err(|error| failed("cannot report", &error))?;
        return Err(StartError::Refused {
            reason: format!("{}: {reason}", host()),
        });
    }
    Ok(Joined {
        stream,
        decoder,
        hello_sent,
        token,
        assignment,
    })
}

/// Whether the store of the assignment is there, under the same path.
fn see_store(assignment: &Assignment) -> Result<(), String> {
    let store = JobStore::open(Path::new(&assignment.store)).map_err(|error| error.to_string())?;
    let found = store.job().job;
    if found == assignment.job {
        return Ok(());
    }
    Err(format!(
        "{}: the store of another job ({found}, and this one is {})",
        assignment.store, assignment.job
    ))
}

/// The name of this host, as `gethostname(2)` tells it.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

/// The control connection, with its threads running.
#[derive(Clone)]
pub(crate) struct Control {
    outgoing: Sender<Outgoing>,
    /// The job's token.
    pub(crate) token: [u8; 32],
    /// This host's address on the cluster: by which it reaches the coordinator, where that is another host's, or could be.
    pub(crate) interface: Option<IpAddr>,
}

enum Outgoing {
    Report(Report),
    /// Everything before it is on the socket.
    Flush(Sender<()>),
}

impl Control {
    /// Starts the threads. Directives come out of the receiver; each sets `attention` and wakes the
    /// ranks' thread.
    ///
    /// # Errors
    /// When the threads can't be started.
    pub(crate) fn start(
        joined: Joined,
        attention: Arc<Attention>,
        waker: Waker,
    ) -> Result<(Self, Receiver<Directive>), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Control {
            address: "the coordinator".to_owned(),
            reason: error.to_string(),
        };
        let (outgoing, reports) = channel();
        let (directives, inbox) = channel();
        let writing = joined.stream.try_clone().map_err(|error| failed(&error))?;
        let control = Self {
            outgoing,
            token: joined.token,
            interface: joined.stream.own_address().map(|own| own.ip()),
        };
        let watchdog = match joined.assignment.lease_us {
            None => None,
            Some(lease_us) => {
                let lease = Duration::from_micros(lease_us);
                Some(Watchdog::start(lease, joined.hello_sent).map_err(|error| failed(&error))?)
            }
        };
        library_thread("ckpt-report", move || write_reports(writing, &reports))
            .map_err(|error| failed(&error))?;
        let reader = Reader {
            stream: joined.stream,
            decoder: joined.decoder,
            directives,
            attention,
            waker,
            control: control.clone(),
            watchdog,
            alive: 0,
            visits: 0,
            visited: Instant::now(),
            loads: Loads::default(),
            sampled_every: None,
        };
        library_thread("ckpt-control", move || reader.run()).map_err(|error| failed(&error))?;
        Ok((control, inbox))
    }

    /// Tells the coordinator something; never waits.
    pub(crate) fn report(&self, report: Report) {
        // Without a writer the coordinator is gone, and the reader is about to end the process.
        let _ = self.outgoing.send(Outgoing::Report(report));
    }

    /// Waits until what was reported before is on the socket, for a process that is about to end.
    pub(crate) fn flush(&self) {
        let (done, wait) = channel();
        if self.outgoing.send(Outgoing::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write_reports(mut stream: Stream, reports: &Receiver<Outgoing>) {
    let mut bytes = Vec::new();
    while let Ok(outgoing) = reports.recv() {
        match outgoing {
            Outgoing::Report(report) => {
                bytes.clear();
                if let Err(error) = frame::encode(&report, &mut bytes) {
                    eprintln!("libckpt: a report can't be sent: {error}");
                    continue;
                }
                if stream.write_all(&bytes).is_err() {
                    // The reader sees the end of the connection and ends the process.
                    stream.end();
                    return;
                }
            }
            Outgoing::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Set once the process ends by a directive, so that the end of the connection is no news.
pub(crate) static ENDING: AtomicBool = AtomicBool::new(false);

struct Reader {
    stream: Stream,
    decoder: Decoder,
    directives: Sender<Directive>,
    attention: Arc<Attention>,
    waker: Waker,
    control: Control,
    watchdog: Option<Watchdog>,
    /// Signs of life given, where no lease counts them.
    alive: u64,
    /// Visits to the engine at the last ping, and when they last changed.
    visits: u64,
    visited: Instant,
    loads: Loads,
    /// How long is read at the most before a sample is taken.
    sampled_every: Option<Duration>,
}

impl Reader {
    fn run(mut self) {
        let mut timer = None;
        if let Some(watchdog) = &self.watchdog {
            match KernelTimer::start(watchdog) {
                Ok(started) => timer = Some(started),
                // The watchdog's thread is there still.
                Err(error) => eprintln!("libckpt: no timer for the process's lease: {error}"),
            }
        }
        let reason = self.read_until_the_end(&mut timer);
        if ENDING.load(Ordering::SeqCst) {
            return;
        }
        eprintln!(
            "libckpt: the coordinator is gone ({reason}); this process ends, `ckpt restart` goes on"
        );
        // Not `exit`: the ranks' thread is running and must not see statics destroyed.
        libckpt_rank::process::end_now(exit::STOPPED);
    }

    fn read_until_the_end(&mut self, timer: &mut Option<KernelTimer>) -> String {
        let mut piece = vec![0; 64 << 10];
        loop {
            loop {
                match self.decoder.next::<Directive>() {
                    Ok(Some(directive)) => self.handle(directive, timer),
                    Ok(None) => break,
                    Err(error) => return error.to_string(),
                }
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return "connection closed".to_owned(),
                Ok(count) => self.decoder.feed(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Nothing has come in the time of a sample.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    self.loads.sample(self.computes());
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    fn handle(&mut self, directive: Directive, timer: &mut Option<KernelTimer>) {
        match directive {
            Directive::Ping { heard } => {
                let computing = self.computing();
                let ranks = self.figures();
                let number = match &self.watchdog {
                    Some(watchdog) => {
                        if watchdog.heard(heard)
                            && let Some(timer) = timer
                        {
                            timer.set(watchdog);
                        }
                        watchdog.alive()
                    }
                    None => self.alive + 1,
                };
                self.alive = number;
                self.control.report(Report::Alive {
                    number,
                    computing,
                    ranks,
                });
                // An occasion for the ranks' thread to see to what needs doing now and then.
                self.attention.directive.store(true, Ordering::SeqCst);
                self.waker.wake();
            }
            Directive::Stop => {
                ENDING.store(true, Ordering::SeqCst);
                libckpt_rank::process::end_now(exit::STOPPED);
            }
            other => {
                if self.directives.send(other).is_ok() {
                    self.attention.directive.store(true, Ordering::SeqCst);
                    self.waker.wake();
                }
            }
        }
    }

    /// The rank that runs and does not wait, if one does.
    fn computes(&self) -> Option<Rank> {
        let running = self.attention.running.load(Ordering::Relaxed);
        let waits = self.attention.idle.load(Ordering::Relaxed);
        u32::try_from(running).ok().filter(|_| !waits).map(Rank)
    }

    /// What is told of the ranks; from now on samples are taken, if there are any.
    fn figures(&mut self) -> Vec<RankFigures> {
        let looked_at = self.attention.looked_at.lock();
        let looked_at = looked_at.unwrap_or_else(|poisoned| poisoned.into_inner());
        let told = self.loads.tell(&looked_at);
        drop(looked_at);
        let every = (!self.loads.is_empty()).then_some(SAMPLE_EVERY);
        if every != self.sampled_every && self.stream.set_read_timeout(every).is_ok() {
            self.sampled_every = every;
        }
        told
    }

    /// The rank that runs, if it has not come to the engine for long.
    fn computing(&mut self) -> Vec<(Rank, u64)> {
        let visits = self.attention.visits.load(Ordering::Relaxed);
        if visits != self.visits {
            self.visits = visits;
            self.visited = Instant::now();
        }
        let since = self.visited.elapsed();
        let running = self.attention.running.load(Ordering::Relaxed);
        match u32::try_from(running) {
            Ok(rank) if since >= COMPUTING_LONG && !self.attention.idle.load(Ordering::Relaxed) => {
                vec![(
                    Rank(rank),
                    u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
                )]
            }
            _ => Vec::new(),
        }
    }
}
