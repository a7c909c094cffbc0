//! `--label`: output of the ranks through pipes, each line marked with its rank.
//!
//! A thread of its own does the copying, so that a terminal that takes no output holds up the ranks that
//! write, as it should, and not the coordinator.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::ids::Rank;

/// A line longer than this is broken up, so that a rank that writes no newline fills no memory.
const LINE_BYTES_MAX: usize = 64 << 10;

/// How long output of processes that have ended is still waited for; only something that they started
/// themselves can hold a pipe open that long.
const LINGER: Duration = Duration::from_millis(200);

/// Where a line belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// The reading end of one rank's pipe.
#[derive(Debug)]
struct Source {
    rank: Rank,
    stream: Stream,
    pipe: std::fs::File,
    line: Vec<u8>,
    open: bool,
}

/// The writing ends for one process, to be inherited by it.
#[derive(Debug, Default)]
pub struct Ends {
    /// Value of [`protocol::control::environment::OUTPUT_FDS`].
    pub variable: String,
    /// The descriptors named in it.
    pub descriptors: Vec<OwnedFd>,
}

/// The pipes of one start of the job.
#[derive(Debug, Default)]
pub struct Pipes {
    sources: Vec<Source>,
}

impl Pipes {
    /// No pipes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the pipes for the ranks of one process.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn add(&mut self, ranks: &[Rank]) -> io::Result<Ends> {
        let mut ends = Ends::default();
        for &rank in ranks {
            let mut numbers = [0; 2];
            for (number, stream) in numbers.iter_mut().zip([Stream::Out, Stream::Err]) {
                let (reading, writing) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                nix::fcntl::fcntl(&reading, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
                *number = writing.as_raw_fd();
                ends.descriptors.push(writing);
                self.sources.push(Source {
                    rank,
                    stream,
                    pipe: reading.into(),
                    line: Vec::new(),
                    open: true,
                });
            }
            if !ends.variable.is_empty() {
                ends.variable.push(',');
            }
            let [out, err] = numbers;
            ends.variable.push_str(&format!("{}:{out}:{err}", rank.0));
        }
        Ok(ends)
    }

    /// Copies what comes to standard output and standard error, until all writing ends are closed.
    #[must_use]
    pub fn pump(self) -> Pump {
        let ending = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ending);
        let thread = std::thread::Builder::new()
            .name("labels".to_owned())
            .spawn(move || copy(self.sources, &told, &mut io::stdout(), &mut io::stderr()))
            .ok();
        Pump { thread, ending }
    }
}

/// The thread that copies. Dropping it waits until what the processes wrote is out.
#[derive(Debug)]
pub struct Pump {
    thread: Option<JoinHandle<()>>,
    ending: Arc<AtomicBool>,
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been told by its own message; there is nothing to add.
            let _ = thread.join();
        }
    }
}

fn copy(mut sources: Vec<Source>, ending: &AtomicBool, out: &mut impl Write, err: &mut impl Write) {
    let tick = PollTimeout::try_from(LINGER).unwrap_or(PollTimeout::ZERO);
    loop {
        sources.retain(|source| source.open);
        if sources.is_empty() {
            return;
        }
        let mut waiting: Vec<PollFd<'_>> = sources
            .iter()
            .map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN))
            .collect();
        let ready = poll(&mut waiting, tick);
        if ready == Ok(0) && ending.load(Ordering::Relaxed) {
            return;
        }
        let readable: Vec<bool> = waiting
            .iter()
            .map(|waiting| waiting.any().unwrap_or(false))
            .collect();
        for (source, readable) in sources.iter_mut().zip(readable) {
            if readable {
                match source.stream {
                    Stream::Out => source.take(out),
                    Stream::Err => source.take(err),
                }
            }
        }
    }
}

impl Source {
    /// Reads what has come and writes the lines that are complete. Output that nobody takes (a closed
    /// pipe of ours) is dropped: the job matters more.
    fn take(&mut self, to: &mut impl Write) {
        let mut bytes = [0; 16 << 10];
        match self.pipe.read(&mut bytes) {
            Ok(0) => {
                self.open = false;
                if !self.line.is_empty() {
                    self.line.push(b'\n');
                }
            }
            Ok(count) => self.line.extend_from_slice(&bytes[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.open = false,
        }
        while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.mark(&line, to);
        }
        if self.line.len() > LINE_BYTES_MAX {
            let mut line = std::mem::take(&mut self.line);
            line.push(b'\n');
            self.mark(&line, to);
        }
        let _ = to.flush();
    }

    fn mark(&self, line: &[u8], to: &mut impl Write) {
        let mut marked = format!("[{}] ", self.rank.0).into_bytes();
        marked.extend_from_slice(line);
        let _ = to.write_all(&marked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_marked_with_its_rank_and_stream_and_the_last_needs_no_newline() {
        let mut pipes = Pipes::new();
        let ends = pipes.add(&[Rank(3), Rank(4)]).unwrap();
        assert_eq!(ends.variable.split(',').count(), 2);
        let mut writing: Vec<std::fs::File> =
            ends.descriptors.into_iter().map(Into::into).collect();
        writing[0].write_all(b"one\ntwo\nth").unwrap();
        writing[0].write_all(b"ree").unwrap();
        writing[3].write_all(b"bad\n").unwrap();
        drop(writing);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        copy(pipes.sources, &AtomicBool::new(false), &mut out, &mut err);
        assert_eq!(out, b"[3] one\n[3] two\n[3] three\n");
        assert_eq!(err, b"[4] bad\n");
    }

    #[test]
    fn a_pipe_that_something_else_holds_open_does_not_hold_up_the_end() {
        let mut pipes = Pipes::new();
        let ends = pipes.add(&[Rank(0)]).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        copy(pipes.sources, &AtomicBool::new(true), &mut out, &mut err);
        drop(ends);
        assert!(out.is_empty() && err.is_empty());
    }

    #[test]
    fn a_line_without_end_is_broken_up() {
        let mut pipes = Pipes::new();
        let ends = pipes.add(&[Rank(0)]).unwrap();
        let mut writing: Vec<std::fs::File> =
            ends.descriptors.into_iter().map(Into::into).collect();
        let writer = std::thread::spawn(move || {
            let _ = writing[0].write_all(&[b'x'; 200_000]);
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        copy(pipes.sources, &AtomicBool::new(false), &mut out, &mut err);
        writer.join().unwrap();
        assert_eq!(out.iter().filter(|&&byte| byte == b'x').count(), 200_000);
        assert!(out.iter().filter(|&&byte| byte == b'\n').count() >= 2);
    }
}
