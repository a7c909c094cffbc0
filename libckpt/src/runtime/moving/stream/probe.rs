//! How fast the connection is, found out before it is decided how a rank is moved: the source sends bytes of no use, as pages go, and
//! waits until the target has them all; more and more, until that takes long enough to tell.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use libckpt_rank::PAGE_BYTES;

use super::send::Sending;
use super::{Kind, PIECE_PAGES, Piece, digest};
use crate::runtime::moving::line::{Answer, Frames};

/// What takes so long tells enough: many times what a message takes to the target and back.
const ENOUGH: Duration = Duration::from_millis(5);

/// The most pieces that are sent at once.
const PIECES_MAX: u64 = 64;

impl<W: io::Write, R: Fn(u64, &mut [u8]) -> Result<(), String>> Sending<W, R> {
    /// What the connection gives, in bytes per second. Nothing else goes over it meanwhile.
    ///
    /// # Errors
    /// It broke, or something else than an answer comes.
    pub(super) fn probe(&mut self, answers: &mut Frames<impl Read>) -> Result<u64, String> {
        // Before the first it is not known whether anybody listens already.
        self.probe_with(1, answers)?;
        let mut pieces = 1;
        loop {
            let took = self.probe_with(pieces, answers)?;
            if took >= ENOUGH || pieces == PIECES_MAX {
                let bytes = u128::from(pieces) * (PIECE_PAGES * PAGE_BYTES) as u128;
                let bytes_per_s = bytes * 1_000_000_000 / took.as_nanos().max(1);
                return Ok(u64::try_from(bytes_per_s).unwrap_or(u64::MAX));
            }
            pieces *= 2;
        }
    }

    fn probe_with(
        &mut self,
        pieces: u64,
        answers: &mut Frames<impl Read>,
    ) -> Result<Duration, String> {
        let raw = vec![0; PIECE_PAGES * PAGE_BYTES];
        let begun = Instant::now();
        for left in (0..pieces).rev() {
            let digest = digest(left, &raw);
            let head = Piece::new(Kind::Probe, left, PIECE_PAGES, raw.len(), digest);
            self.write(&head, &raw)?;
        }
        self.flush()?;
        let broke = |error: String| format!("the connection to the target broke: {error}");
        match answers.hear().map_err(broke)? {
            Some(Answer::Done) => Ok(begun.elapsed()),
            Some(answer) => Err(broke(format!("it answers {answer:?}"))),
            None => Err(broke("it has ended".to_owned())),
        }
    }
}
