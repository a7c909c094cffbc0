//! Reading and writing on a connection, with an end: when the other side does nothing for long, or when nobody needs it any more.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wire::Stream;

use super::STALLED_AFTER;

/// Between two looks whether the move was given up.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What bears to be waited for.
pub(in super::super) trait Expect {
    /// From now on nothing may happen for so long; none: until it is given up.
    fn expect_within(&mut self, longest: Option<Duration>);

    /// Waits until something can be read here or there, or for the time of a look. Whether it can be read here.
    ///
    /// # Errors
    /// Those of the system; it is given up; or nothing has been there for too long, of which it is told how long that is by now.
    fn wait_beside(&self, there: BorrowedFd<'_>, idle: Duration) -> io::Result<bool>;
}

/// See the module.
#[derive(Debug)]
pub(in super::super) struct Patient {
    stream: Stream,
    stop: Arc<AtomicBool>,
    /// How long nothing may happen; none: until it is given up.
    longest: Option<Duration>,
}

impl Patient {
    /// # Errors
    /// Those of the system.
    pub(super) fn new(stream: Stream, stop: Arc<AtomicBool>) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LOOK_EVERY))?;
        stream.set_write_timeout(Some(LOOK_EVERY))?;
        // Else nobody would notice of bytes that the system has taken that they never arrive.
        stream.set_unacknowledged_timeout(STALLED_AFTER)?;
        Ok(Self {
            stream,
            stop,
            longest: None,
        })
    }

    /// The same connection once more, with a patience of its own: without an end.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self {
            stream: self.stream.try_clone()?,
            stop: self.stop.clone(),
            longest: None,
        })
    }

    /// Ends the connection, for whoever waits at either end.
    pub(super) fn end(&self) {
        self.stream.end();
    }

    fn try_until_done(
        &mut self,
        mut once: impl FnMut(&mut Stream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let begun = Instant::now();
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return Err(io::Error::other("it was given up"));
            }
            let error = match once(&mut self.stream) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            match error.kind() {
                // `read_exact` and others try again by themselves; so does this.
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    if self
                        .longest
                        .is_some_and(|longest| begun.elapsed() >= longest)
                    {
                        return Err(stalled(begun.elapsed()));
                    }
                }
                _ => return Err(error),
            }
        }
    }
}

impl Expect for Patient {
    fn expect_within(&mut self, longest: Option<Duration>) {
        self.longest = longest;
    }

    fn wait_beside(&self, there: BorrowedFd<'_>, idle: Duration) -> io::Result<bool> {
        if self.stop.load(Ordering::SeqCst) {
            return Err(io::Error::other("it was given up"));
        }
        if self.longest.is_some_and(|longest| idle >= longest) {
            return Err(stalled(idle));
        }
        let mut both = [
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(there, PollFlags::POLLIN),
        ];
        match poll(
            &mut both,
            PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::ZERO),
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Whatever there is: reading tells.
        Ok(both[0].any().unwrap_or(false))
    }
}

fn stalled(idle: Duration) -> io::Error {
    let told = format!("nothing has moved for {} s", idle.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, told)
}

impl Read for Patient {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.try_until_done(|stream| stream.read(bytes))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_until_done(|stream| stream.write(bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_until_done(|stream| stream.write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
