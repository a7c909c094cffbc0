//! Things that are asked of others and may take long: each has a thread of its own, so that the loop never waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// What an errand brings back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Nodes were checked, by their numbers.
    Checked(Vec<(usize, Result<(), String>)>),
    /// The time that is left of the allocation.
    Left(Option<Duration>),
    /// Another coordinator has begun a newer start of the job.
    Superseded(String),
}

/// The errands under way.
#[derive(Debug)]
pub struct Errands {
    outbox: Sender<News>,
    news: Receiver<News>,
    bell: Arc<EventFd>,
}

/// Where an errand brings its news.
#[derive(Clone, Debug)]
pub struct Door {
    outbox: Sender<News>,
    bell: Arc<EventFd>,
}

impl Door {
    /// Brings news. False if nobody is there any more.
    pub fn bring(&self, news: News) -> bool {
        let there = self.outbox.send(news).is_ok();
        let _ = self.bell.write(1);
        there
    }
}

impl Errands {
    /// None yet.
    ///
    /// # Errors
    /// When the system gives no descriptor.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let (outbox, news) = channel();
        Ok(Self {
            outbox,
            news,
            bell: Arc::new(EventFd::from_value_and_flags(0, flags)?),
        })
    }

    /// Sends somebody on an errand.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn send(&self, name: &str, errand: impl FnOnce(&Door) + Send + 'static) -> io::Result<()> {
        let door = Door {
            outbox: self.outbox.clone(),
            bell: Arc::clone(&self.bell),
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || errand(&door))?;
        Ok(())
    }

    /// Becomes readable when there is news.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The next news.
    pub fn next(&mut self) -> Option<News> {
        // Rung before news is sent is never lost: the bell is read first.
        let _ = self.bell.read();
        self.news.try_recv().ok()
    }
}
