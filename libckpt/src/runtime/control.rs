//! The process's end of the control connection.
//!
//! Two library threads: one reads directives, answers pings itself and hands the rest to the ranks'
//! thread; one writes reports, so that no rank ever waits for the socket. A coordinator that is gone ends
//! the process at once: its ranks must not go on unobserved.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use libckpt_rank::library_thread;
use libckpt_transport::Waker;
use protocol::control::{
    Assignment, CONTROL_VERSION, Caller, Directive, Hello, ProgramIdentity, Report, exit,
};
use protocol::frame::{self, Decoder};
use protocol::ids::{Process, Rank};

use crate::engine::Attention;
use crate::error::StartError;

/// How long a rank may keep away from the engine before `status` names it.
const COMPUTING_LONG: Duration = Duration::from_secs(2);

/// How long the coordinator may take to answer a Hello.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A control connection on which this process was accepted.
pub(crate) struct Joined {
    stream: UnixStream,
    decoder: Decoder,
    pub(crate) assignment: Assignment,
}

/// Connects to the coordinator and says hello.
///
/// # Errors
/// When nobody answers at the address, or the coordinator refuses this process.
pub(crate) fn join(
    address: &str,
    token: [u8; 32],
    process: Process,
    identity: ProgramIdentity,
) -> Result<Joined, StartError> {
    let failed = |what: &str, reason: &dyn std::fmt::Display| StartError::Control {
        address: address.to_owned(),
        reason: format!("{what}: {reason}; is the coordinator (`ckpt run`) still there?"),
    };
    let mut stream = connect(address).map_err(|error| failed("cannot connect", &error))?;
    let hello = Hello {
        version: CONTROL_VERSION,
        token,
        caller: Caller::Process {
            process,
            pid: std::process::id(),
            identity,
        },
    };
    let mut bytes = Vec::new();
    frame::encode(&hello, &mut bytes).map_err(|error| failed("cannot say hello", &error))?;
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
    match directive {
        Directive::Assignment(assignment) => Ok(Joined {
            stream,
            decoder,
            assignment: *assignment,
        }),
        Directive::Refused { reason } => Err(StartError::Refused { reason }),
        // The job ended while this process was starting.
        Directive::Stop | Directive::End => std::process::exit(exit::STOPPED),
        other => Err(failed("an unexpected answer", &format!("{other:?}"))),
    }
}

fn connect(address: &str) -> std::io::Result<UnixStream> {
    let malformed = || {
        let text = format!("address {address:?} is neither `unix:@NAME` nor `unix:PATH`");
        std::io::Error::new(std::io::ErrorKind::InvalidInput, text)
    };
    let name = address.strip_prefix("unix:").ok_or_else(malformed)?;
    match name.strip_prefix('@') {
        Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => UnixStream::connect(name),
    }
}

/// The control connection, with its threads running.
#[derive(Clone)]
pub(crate) struct Control {
    outgoing: Sender<Outgoing>,
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
        let control = Self { outgoing };
        library_thread("ckpt-report", move || write_reports(writing, &reports))
            .map_err(|error| failed(&error))?;
        let reader = Reader {
            stream: joined.stream,
            decoder: joined.decoder,
            directives,
            attention,
            waker,
            control: control.clone(),
            visits: 0,
            visited: Instant::now(),
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

fn write_reports(mut stream: UnixStream, reports: &Receiver<Outgoing>) {
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
                    let _ = stream.shutdown(Shutdown::Both);
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
    stream: UnixStream,
    decoder: Decoder,
    directives: Sender<Directive>,
    attention: Arc<Attention>,
    waker: Waker,
    control: Control,
    /// Visits to the engine at the last ping, and when they last changed.
    visits: u64,
    visited: Instant,
}

impl Reader {
    fn run(mut self) {
        let reason = self.read_until_the_end();
        if ENDING.load(Ordering::SeqCst) {
            return;
        }
        eprintln!(
            "libckpt: the coordinator is gone ({reason}); this process ends, `ckpt restart` goes on"
        );
        // Not `exit`: the ranks' thread is running and must not see statics destroyed.
        libckpt_rank::process::end_now(exit::STOPPED);
    }

    fn read_until_the_end(&mut self) -> String {
        let mut piece = vec![0; 64 << 10];
        loop {
            loop {
                match self.decoder.next::<Directive>() {
                    Ok(Some(directive)) => self.handle(directive),
                    Ok(None) => break,
                    Err(error) => return error.to_string(),
                }
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return "connection closed".to_owned(),
                Ok(count) => self.decoder.feed(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.to_string(),
            }
        }
    }

    fn handle(&mut self, directive: Directive) {
        match directive {
            Directive::Ping => {
                let computing = self.computing();
                self.control.report(Report::Alive { computing });
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
