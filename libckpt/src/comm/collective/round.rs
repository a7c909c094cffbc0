//! One collective call, as its messages see it.

use crate::comm::communicator::Communicator;
use crate::comm::point_to_point::Status;
use crate::comm::request::{self, LocalScope, Request};
use crate::engine;
use crate::error::{Error, Result};

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Barrier,
    Broadcast,
    Gather,
    Scatter,
    AllGather,
    AllToAll,
    Reduce,
    AllReduce,
    Scan,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Barrier, "barrier"),
    (Kind::Broadcast, "broadcast"),
    (Kind::Gather, "gather"),
    (Kind::Scatter, "scatter"),
    (Kind::AllGather, "all_gather"),
    (Kind::AllToAll, "all_to_all"),
    (Kind::Reduce, "reduce"),
    (Kind::AllReduce, "all_reduce"),
    (Kind::Scan, "scan"),
];

/// Bits of a tag that hold the number of the call; the kind stands above them.
const NUMBER_BITS: u32 = 26;

fn tag_of(kind: Kind, number: u64) -> i32 {
    let number = number & ((1 << NUMBER_BITS) - 1);
    i32::try_from(((kind as u64) << NUMBER_BITS) | number).expect("31 bits hold kind and number")
}

/// A tag as the error message names it.
fn describe(tag: i32) -> String {
    let number = tag & ((1 << NUMBER_BITS) - 1);
    let name = usize::try_from(tag >> NUMBER_BITS)
        .ok()
        .and_then(|kind| KINDS.get(kind))
        .map_or("something else", |(_, name)| name);
    format!("{name} (collective call {number})")
}

/// One collective call of one rank: its messages.
pub(super) struct Round<'c> {
    communicator: &'c Communicator,
    tag: i32,
}

impl<'c> Round<'c> {
    /// Begins the next collective call of the communicator.
    ///
    /// A rank that is alone in it sends and receives nothing, but this is a call of the library all the same:
    /// a place where the rank can be captured. Without it, a job of one rank might never be.
    pub(super) fn start(communicator: &'c Communicator, kind: Kind) -> Self {
        if communicator.size() == 1 {
            crate::engine::yield_now();
        }
        Self {
            communicator,
            tag: tag_of(kind, communicator.next_collective()),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.communicator.rank()
    }

    pub(super) fn size(&self) -> usize {
        self.communicator.size()
    }

    /// The rank `steps` above the calling one, in a ring.
    pub(super) fn above(&self, steps: usize) -> usize {
        (self.rank() + steps) % self.size()
    }

    /// The rank `steps` below the calling one, in a ring; at most as many steps as ranks.
    pub(super) fn below(&self, steps: usize) -> usize {
        (self.rank() + self.size() - steps) % self.size()
    }

    /// Sends to a rank.
    pub(super) fn send(&self, to: usize, bytes: &[u8]) -> Result<()> {
        let context = self.communicator.collective_context();
        engine::send(self.communicator.world_rank(to)?, context, self.tag, bytes)
    }

    /// Receives exactly so many bytes from a rank.
    pub(super) fn receive(&self, from: usize, into: &mut [u8]) -> Result<()> {
        let expected_bytes = into.len();
        let context = self.communicator.collective_context();
        let from = self.communicator.world_rank(from)?;
        let outcome = engine::receive(Some(from), context, None, into);
        self.check(
            outcome.map(|envelope| Status::new(self.communicator, envelope)),
            expected_bytes,
        )
    }

    /// Sends to a rank and receives from one at the same time.
    pub(super) fn exchange(
        &self,
        to: usize,
        bytes: &[u8],
        from: usize,
        into: &mut [u8],
    ) -> Result<()> {
        request::scope(|scope| {
            let receive = self.start_receive(scope, from, into)?;
            self.send(to, bytes)?;
            receive.wait()
        })
    }

    /// Starts a send.
    pub(super) fn start_send<'s, 'a>(
        &self,
        scope: &'s LocalScope<'a>,
        to: usize,
        bytes: &'a [u8],
    ) -> Result<Request<'s, 'a>> {
        let context = self.communicator.collective_context();
        Request::send(scope, self.communicator, context, to, self.tag, bytes)
    }

    /// Starts to receive exactly so many bytes from a rank.
    pub(super) fn start_receive<'s, 'a>(
        &self,
        scope: &'s LocalScope<'a>,
        from: usize,
        into: &'a mut [u8],
    ) -> Result<Receive<'_, 's, 'a>> {
        let expected_bytes = into.len();
        let context = self.communicator.collective_context();
        let request = Request::receive(scope, self.communicator, context, Some(from), None, into)?;
        Ok(Receive {
            round: self,
            request,
            expected_bytes,
        })
    }

    /// Is it a message of this call, and as long as expected?
    fn check(&self, outcome: Result<Status>, expected_bytes: usize) -> Result<()> {
        let (source_rank, tag, found_bytes) = match outcome {
            Ok(status) => (status.source_rank(), status.tag(), status.bytes()),
            Err(Error::Truncated {
                source_rank,
                tag,
                message_bytes,
                ..
            }) => {
                let source = protocol::ids::Rank(source_rank);
                (self.communicator.rank_of(source), tag, message_bytes)
            }
            Err(error) => return Err(error),
        };
        if tag != self.tag {
            return Err(Error::CollectiveMismatch {
                rank: source_rank,
                theirs: describe(tag),
                ours: describe(self.tag),
            });
        }
        super::expect(
            "bytes that another rank sent in a collective",
            expected_bytes,
            found_bytes,
        )
    }
}

/// A receive of a collective under way.
#[must_use]
pub(super) struct Receive<'r, 's, 'a> {
    round: &'r Round<'r>,
    request: Request<'s, 'a>,
    expected_bytes: usize,
}

impl Receive<'_, '_, '_> {
    /// Waits for the message and checks that it is the one expected.
    pub(super) fn wait(self) -> Result<()> {
        self.round.check(self.request.wait(), self.expected_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_tells_kind_and_number_and_is_never_negative() {
        for (index, (kind, name)) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            for number in [0, 1, (1 << NUMBER_BITS) - 1, 1 << NUMBER_BITS, u64::MAX] {
                let tag = tag_of(kind, number);
                assert!(tag >= 0);
                assert!(describe(tag).starts_with(name), "{}", describe(tag));
            }
        }
        assert_ne!(tag_of(Kind::Scan, 4), tag_of(Kind::Scan, 5));
        assert!(describe(i32::MAX).starts_with("something else"));
    }

    #[test]
    fn a_message_of_another_call_is_named_in_the_error() {
        let world = Communicator::everyone(0, 2);
        let round = Round::start(&world, Kind::Barrier);
        let error = round
            .check(
                Err(Error::Truncated {
                    source_rank: 1,
                    tag: tag_of(Kind::Broadcast, 3),
                    message_bytes: 8,
                    buffer_bytes: 0,
                }),
                0,
            )
            .unwrap_err()
            .to_string();
        assert!(error.contains("broadcast (collective call 3)"), "{error}");
        assert!(error.contains("barrier (collective call 0)"), "{error}");
    }

    #[test]
    fn a_length_that_differs_between_ranks_is_an_error() {
        let world = Communicator::everyone(0, 2);
        let round = Round::start(&world, Kind::Gather);
        let truncated = Error::Truncated {
            source_rank: 1,
            tag: tag_of(Kind::Gather, 0),
            message_bytes: 8,
            buffer_bytes: 4,
        };
        let error = round.check(Err(truncated), 4).unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidCount {
                    expected: 4,
                    found: 8,
                    ..
                }
            ),
            "{error}"
        );
    }
}
