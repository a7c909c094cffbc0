//! The line between the source of a move and the thread that receives the rank at the target: words about what lies ready in the
//! source's memory, and answers. No rank has to call the library for any of it.
//!
//! A pair of sockets (socketpair(2)), of which the target takes its end out of the source by number (pidfd_getfd(2)). When one side is
//! gone, or gives the move up, the other sees the end of the line.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use libckpt_transport::OtherProcess;
use protocol::frame::{self, Decoder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where something lies in the source's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

impl Place {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            address: bytes.as_ptr().addr() as u64,
            bytes: bytes.len() as u64,
        }
    }
}

/// What the source says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Word {
    /// Have memory for these pages ([`super::parcel::Pages`]), while the rank runs.
    Room(Place),
    /// Copy these pages, while the rank runs.
    Round(Place),
    /// Read the rank's image out of these files of the store ([`super::stored::Files`]), while the rank runs.
    Stored(Place),
    /// The rank is frozen: a [`super::parcel::Parcel`].
    Rest(Place),
}

/// What the target answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// A round is copied, an image read, or there is memory.
    Done,
}

/// One end.
#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
    decoder: Decoder,
}

/// The other end, as long as it was not taken.
#[derive(Debug)]
pub(super) struct OtherEnd(OwnedFd);

impl OtherEnd {
    /// How it is reached, in the words of [`protocol::migration::MoveNeeds::line`].
    pub(super) fn name(&self) -> String {
        format!("{SCHEME}{}", self.0.as_raw_fd())
    }
}

const SCHEME: &str = "fd:";

impl Line {
    /// A line, with one end for this process.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn new() -> io::Result<(Self, OtherEnd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::on(ours), OtherEnd(theirs.into())))
    }

    /// The other end of a line of that process.
    ///
    /// # Errors
    /// It is not called like one, or can't be had.
    pub(super) fn take(source: &OtherProcess, name: &str) -> Result<Self, String> {
        let number = name.strip_prefix(SCHEME);
        let number = number.and_then(|number| number.parse::<RawFd>().ok());
        let number = number.ok_or_else(|| format!("the source can't be reached by {name:?}"))?;
        let descriptor = source.descriptor(number);
        let descriptor =
            descriptor.map_err(|error| format!("the source can't be reached: {error}"))?;
        Ok(Self::on(descriptor.into()))
    }

    fn on(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }

    /// This end once more: one for saying, one for hearing, one to end it by.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self::on(self.stream.try_clone()?))
    }

    /// Says something. The words of a move are few: this does not wait.
    ///
    /// # Errors
    /// The line has ended.
    pub(super) fn say<T: Serialize>(&mut self, word: &T) -> Result<(), String> {
        let mut bytes = Vec::new();
        frame::encode(word, &mut bytes).map_err(|error| error.to_string())?;
        self.stream
            .write_all(&bytes)
            .map_err(|error| format!("nobody is there: {error}"))
    }

    /// Waits for a word.
    ///
    /// # Errors
    /// The line has ended, or something else came.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        loop {
            if let Some(word) = self.decoder.next().map_err(|error| error.to_string())? {
                return Ok(word);
            }
            let mut piece = [0; 256];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err("the line has ended".to_owned()),
                Ok(count) => self.decoder.feed(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Ends it, for whoever waits at either end.
    pub(super) fn end(&self) {
        // It may have ended.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_in_order_and_the_end_is_seen() {
        let (mut ours, theirs) = Line::new().unwrap();
        assert!(theirs.name().starts_with("fd:"));
        let mut theirs = Line::on(theirs.0.into());
        let place = Place::of(b"abc");
        assert_eq!(place.bytes, 3);
        ours.say(&Word::Round(place)).unwrap();
        ours.say(&Word::Rest(place)).unwrap();
        assert_eq!(theirs.hear(), Ok(Word::Round(place)));
        assert_eq!(theirs.hear(), Ok(Word::Rest(place)));
        theirs.say(&Answer::Done).unwrap();
        assert_eq!(ours.hear(), Ok(Answer::Done));
        ours.again().unwrap().end();
        assert!(theirs.hear::<Word>().unwrap_err().contains("ended"));
        assert!(ours.hear::<Answer>().is_err());
    }
}
