//! One place to wait for everything: sockets, ends of children, signals, the store's thread.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocol::ids::Process;

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Somebody connects.
    Listener,
    /// A signal has come.
    Signal,
    /// The store's thread has an answer.
    Store,
    /// A child has ended.
    Child(Process),
    /// The launcher has ended.
    Launcher,
    /// There is news from an errand.
    News,
    /// A connection has bytes to read, or room to write.
    Connection(u32),
}

const KIND_SHIFT: u32 = 32;

impl Ready {
    fn to_token(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Signal => (1, 0),
            Self::Store => (2, 0),
            Self::Child(process) => (3, process.0),
            Self::Connection(number) => (4, number),
            Self::Launcher => (5, 0),
            Self::News => (6, 0),
        };
        kind << KIND_SHIFT | u64::from(number)
    }

    fn from_token(token: u64) -> Option<Self> {
        let number = (token & u64::from(u32::MAX)) as u32;
        Some(match token >> KIND_SHIFT {
            0 => Self::Listener,
            1 => Self::Signal,
            2 => Self::Store,
            3 => Self::Child(Process(number)),
            4 => Self::Connection(number),
            5 => Self::Launcher,
            6 => Self::News,
            _ => return None,
        })
    }
}

/// The waiting place.
#[derive(Debug)]
pub struct Poller(Epoll);

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// When the system gives no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches a descriptor for being readable.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn add(&self, fd: impl AsFd, ready: Ready) -> io::Result<()> {
        Ok(self
            .0
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, ready.to_token()))?)
    }

    /// Watches a descriptor also, or no longer, for taking more bytes.
    ///
    /// # Errors
    /// When the descriptor is not watched.
    pub fn set_writing(&self, fd: impl AsFd, ready: Ready, writing: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, writing);
        let mut event = EpollEvent::new(flags, ready.to_token());
        Ok(self.0.modify(fd, &mut event)?)
    }

    /// Watches a descriptor no longer.
    pub fn remove(&self, fd: impl AsFd) {
        // It is not watched: that is what was wanted.
        let _ = self.0.delete(fd);
    }

    /// Waits until something is ready or the time is over.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Ready>> {
        // Rounded up: waking before a deadline would only mean to wait again.
        let timeout = timeout.map_or(EpollTimeout::NONE, |timeout| {
            let milliseconds = timeout.as_nanos().div_ceil(1_000_000).min(60_000);
            EpollTimeout::try_from(milliseconds as i32).unwrap_or(EpollTimeout::ZERO)
        });
        let mut events = [EpollEvent::empty(); 128];
        match self.0.wait(&mut events, timeout) {
            Ok(count) => Ok(events[..count]
                .iter()
                .filter_map(|event| Ready::from_token(event.data()))
                .collect()),
            Err(nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
