//! Frames of the control connection: a `u32` little-endian length, then that many bytes of postcard.
//!
//! [`encode`] makes one, [`Decoder`] takes bytes as they come and gives frames back. Neither touches a
//! socket.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::FRAME_BYTES_MAX;

/// Bytes of the length in front of a frame.
pub const LENGTH_BYTES: usize = 4;

/// Why a frame could not be made or understood. After any of these on reading, the connection is of no
/// further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error(
        "a control frame of {frame_bytes} bytes exceeds the limit of {FRAME_BYTES_MAX}; the peer speaks something else, or the job has more ranks than the control messages can carry"
    )]
    TooLong {
        /// Its length.
        frame_bytes: usize,
    },
    /// The value can't be written as postcard.
    #[error("a control message cannot be encoded; this is a defect of the library")]
    Encode(#[source] postcard::Error),
    /// The bytes are not the message expected.
    #[error(
        "a control frame of {frame_bytes} bytes does not hold the expected message; the peer runs another version, or is not of this job"
    )]
    Decode {
        /// The frame's length.
        frame_bytes: usize,
        /// What postcard says.
        #[source]
        source: postcard::Error,
    },
    /// The message ends before the frame does.
    #[error(
        "a control frame of {frame_bytes} bytes holds {unused_bytes} bytes too many; the peer runs another version, or is not of this job"
    )]
    Trailing {
        /// The frame's length.
        frame_bytes: usize,
        /// Bytes after the message.
        unused_bytes: usize,
    },
}

/// Appends the frame of a message to `bytes`.
///
/// # Errors
/// When the message is too long; `bytes` is then as it was.
pub fn encode<T: Serialize + ?Sized>(message: &T, bytes: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = bytes.len();
    let body = postcard::to_allocvec(message).map_err(FrameError::Encode)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= FRAME_BYTES_MAX)
        .ok_or(FrameError::TooLong {
            frame_bytes: body.len(),
        })?;
    bytes.reserve_exact(LENGTH_BYTES + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    debug_assert_eq!(bytes.len(), start + LENGTH_BYTES + body.len());
    Ok(())
}

/// Takes bytes in any pieces and gives back frames. Holds no more than was fed.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes at the front that were given back already.
    taken: usize,
}

impl Decoder {
    /// A decoder at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that have come.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete frame as a message; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the length is beyond the limit (told as soon as the length is there) or the frame does not
    /// hold exactly one `T`.
    #[allow(clippy::should_implement_trait)] // the item's type is chosen by each call
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let waiting = &self.bytes[self.taken..];
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let frame_bytes = u32::from_le_bytes(*length) as usize;
        if frame_bytes > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { frame_bytes });
        }
        let Some(body) = rest.get(..frame_bytes) else {
            return Ok(None);
        };
        let (message, unused) =
            postcard::take_from_bytes(body).map_err(|source| FrameError::Decode {
                frame_bytes,
                source,
            })?;
        if !unused.is_empty() {
            return Err(FrameError::Trailing {
                frame_bytes,
                unused_bytes: unused.len(),
            });
        }
        self.taken += LENGTH_BYTES + frame_bytes;
        Ok(Some(message))
    }

    /// Whether the connection ended inside a frame.
    #[must_use]
    pub fn is_inside_frame(&self) -> bool {
        self.taken < self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Directive, Felt, LinkCount, Report};
    use crate::ids::{Epoch, Move, Process, Rank};
    use crate::migration::{MoveDirective, MoveMode, MoveNeeds, MoveReport};

    fn stored() -> Report {
        Report::Stored {
            epoch: Epoch(7),
            files: Vec::new(),
            needs: Vec::new(),
            felt: Felt::default(),
            links: vec![LinkCount {
                peer: Process(3),
                sent: u64::MAX,
                received: 0,
            }],
        }
    }

    #[test]
    fn messages_come_back_whatever_pieces_they_come_in() {
        let mut bytes = Vec::new();
        encode(&stored(), &mut bytes).unwrap();
        encode(&Report::Ready { restore_us: 5 }, &mut bytes).unwrap();
        for piece_bytes in 1..=bytes.len() {
            let mut decoder = Decoder::new();
            let mut messages: Vec<Report> = Vec::new();
            for piece in bytes.chunks(piece_bytes) {
                decoder.feed(piece);
                while let Some(message) = decoder.next().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [stored(), Report::Ready { restore_us: 5 }]);
            assert!(!decoder.is_inside_frame());
        }
    }

    #[test]
    fn messages_about_moves_come_back_as_they_were() {
        let (id, rank, from, to) = (Move(u64::MAX), Rank(7), Process(0), Process(u32::MAX));
        let mode = MoveMode::Postcopy;
        let needs = MoveNeeds {
            image_bytes: 1 << 40,
            files: vec!["/data/out.bin".to_owned(), String::new()],
            line: "fd:7".to_owned(),
        };
        let release = MoveDirective::Release { process: from };
        let parted = MoveReport::Parted { process: from };
        let directives = [
            release.clone(),
            MoveDirective::Examine { id, rank, to, mode },
            MoveDirective::Prepare {
                id,
                rank,
                from,
                mode,
                needs: needs.clone(),
            },
            MoveDirective::Transfer { id },
            MoveDirective::GiveUp { id },
            MoveDirective::Moved { id, rank, from, to },
            MoveDirective::Forget {
                id,
                confirmations: u32::MAX,
            },
        ];
        let reports = [
            parted.clone(),
            MoveReport::Movable { id, needs },
            MoveReport::Prepared { id },
            MoveReport::Received { id },
            MoveReport::Refused {
                id,
                reason: "no".to_owned(),
            },
            MoveReport::GivenUp { id },
            MoveReport::Learned {
                id,
                confirmed: true,
            },
            MoveReport::Complete { id },
            MoveReport::Forgotten { id },
        ];
        let mut bytes = Vec::new();
        for directive in directives.clone() {
            encode(&Directive::Move(directive), &mut bytes).unwrap();
        }
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        for directive in directives {
            assert_eq!(directive.id(), (directive != release).then_some(id));
            let came = decoder.next().unwrap();
            assert_eq!(came, Some(Directive::Move(directive)));
        }
        bytes.clear();
        for report in reports.clone() {
            encode(&Report::Move(report), &mut bytes).unwrap();
        }
        decoder.feed(&bytes);
        for report in reports {
            assert_eq!(report.id(), (report != parted).then_some(id));
            assert_eq!(decoder.next().unwrap(), Some(Report::Move(report)));
        }
        assert!(!decoder.is_inside_frame());
    }

    #[test]
    fn needs_beyond_the_limit_are_not_sent_and_a_false_count_of_them_is_refused() {
        let needs = MoveNeeds {
            image_bytes: 0,
            files: vec!["x".repeat(FRAME_BYTES_MAX / 2); 3],
            line: String::new(),
        };
        let id = Move(1);
        let mut bytes = Vec::new();
        let error = encode(&Report::Move(MoveReport::Movable { id, needs }), &mut bytes);
        assert!(matches!(error.unwrap_err(), FrameError::TooLong { .. }));
        // A short frame that announces four thousand million files.
        let needs = MoveNeeds::default();
        encode(&Report::Move(MoveReport::Movable { id, needs }), &mut bytes).unwrap();
        bytes.pop();
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
        bytes[0] += 4;
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        let error = decoder.next::<Report>().unwrap_err();
        assert!(matches!(error, FrameError::Decode { .. }));
    }

    #[test]
    fn a_cut_off_frame_is_no_message() {
        let mut bytes = Vec::new();
        encode(&stored(), &mut bytes).unwrap();
        for kept in 0..bytes.len() {
            let mut decoder = Decoder::new();
            decoder.feed(&bytes[..kept]);
            assert!(decoder.next::<Report>().unwrap().is_none());
            assert_eq!(decoder.is_inside_frame(), kept > 0);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_come() {
        for length in [FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut decoder = Decoder::new();
            decoder.feed(&length.to_le_bytes());
            let error = decoder.next::<Report>().unwrap_err();
            assert!(
                matches!(error, FrameError::TooLong { frame_bytes } if frame_bytes == length as usize)
            );
        }
    }

    #[test]
    fn a_message_beyond_the_limit_is_not_sent() {
        let mut bytes = vec![1, 2, 3];
        let text = "x".repeat(FRAME_BYTES_MAX);
        let error = encode(&Report::Warning { text }, &mut bytes).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { .. }));
        assert_eq!(bytes, [1, 2, 3]);
    }

    #[test]
    fn bytes_after_the_message_are_an_error() {
        let mut bytes = Vec::new();
        encode(&Directive::Go, &mut bytes).unwrap();
        bytes[0] += 1;
        bytes.push(0);
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        let error = decoder.next::<Directive>().unwrap_err();
        assert!(matches!(
            error,
            FrameError::Trailing {
                unused_bytes: 1,
                ..
            }
        ));
    }

    #[test]
    fn an_empty_frame_is_an_error() {
        let mut decoder = Decoder::new();
        decoder.feed(&[0; 4]);
        assert!(decoder.next::<Directive>().is_err());
    }

    proptest::proptest! {
        /// Garbage is refused or waits for more; it never panics and never grows.
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next::<Report>() {}
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next::<Directive>() {}
        }
    }
}
