//! A control connection that never blocks: bytes in either direction, cut into frames.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use protocol::frame::{Decoder, FrameError, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::Stream;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// What became of reading all that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// More may come.
    Open,
    /// The peer closed its end, as its system does when it has ended.
    Closed,
    /// The connection broke, and whether the peer is there is not known: why.
    Broken(String),
}

/// One end of a control connection.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    decoder: Decoder,
    /// Bytes that the socket did not take yet.
    unsent: Vec<u8>,
}

impl Connection {
    /// A connection over an accepted stream.
    ///
    /// # Errors
    /// When the stream can't be made non-blocking.
    pub fn new(stream: Stream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            decoder: Decoder::new(),
            unsent: Vec::new(),
        })
    }

    /// The user id of the peer, as the kernel tells it of those on this machine; `None` where the connection may come from
    /// another.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer_uid(&self) -> io::Result<Option<u32>> {
        match &self.stream {
            Stream::Unix(stream) => Ok(Some(getsockopt(stream, PeerCredentials)?.uid())),
            Stream::Tcp(_) => Ok(None),
        }
    }

    /// Lets the peer read to an end. What it sends can still be read, and its own end be seen.
    pub fn end_sending(&mut self) {
        self.unsent.clear();
        self.stream.end_sending();
    }

    /// Takes in what has come. Frames are then given by [`Self::next_message`], also after [`Flow::Closed`].
    pub fn fill(&mut self) -> Flow {
        let mut bytes = [0; READ_BYTES];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Flow::Closed,
                Ok(count) => self.decoder.feed(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flow::Open,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A process that ends with bytes unread resets its connection; so does a machine that was started anew.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Flow::Closed;
                }
                Err(error) => return Flow::Broken(error.to_string()),
            }
        }
    }

    /// The next complete message.
    ///
    /// # Errors
    /// When the peer sends something else than such messages; nothing more can be read then.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        self.decoder.next()
    }

    /// Sends a message, or keeps what the socket does not take for [`Self::flush`]. A peer that is gone
    /// shows when reading, so it is no error here.
    ///
    /// # Errors
    /// When the message is too long for a frame.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        encode(message, &mut self.unsent)?;
        self.flush();
        Ok(())
    }

    /// Sends what is kept, as far as the socket takes it.
    pub fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.unsent.clear(),
            }
        }
    }

    /// Whether bytes wait for the socket to take them.
    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
