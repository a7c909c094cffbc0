//! Requests: operations under way, named by numbers that may lie in a rank's memory.

use protocol::ids::Rank;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Names a request of a rank. Plain data: it survives in the rank's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct RequestId(u32);

/// What a completed operation tells of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// The sender, as a rank of the world.
    pub(crate) source: Rank,
    /// The tag.
    pub(crate) tag: i32,
    /// Length of the message.
    pub(crate) bytes: usize,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Well.
    Done(Envelope),
    /// The message was longer than the buffer of this many bytes.
    Truncated(Envelope, usize),
}

impl Outcome {
    pub(crate) fn into_result(self) -> Result<Envelope> {
        match self {
            Outcome::Done(envelope) => Ok(envelope),
            Outcome::Truncated(envelope, buffer_bytes) => Err(Error::Truncated {
                source_rank: envelope.source.0,
                tag: envelope.tag,
                message_bytes: envelope.bytes,
                buffer_bytes,
            }),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Entry {
    Free,
    Pending,
    Complete(Outcome),
}

/// The requests of a rank. Numbers are used again once a request was taken.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Requests {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Requests {
    /// A new request.
    #[inline]
    pub(crate) fn start(&mut self) -> RequestId {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Entry::Pending;
            return RequestId(index);
        }
        let index = u32::try_from(self.entries.len()).expect("a rank has fewer than 2^32 requests");
        self.entries.push(Entry::Pending);
        RequestId(index)
    }

    /// Marks a request complete.
    #[inline]
    pub(crate) fn complete(&mut self, request: RequestId, outcome: Outcome) {
        let entry = &mut self.entries[request.0 as usize];
        debug_assert!(matches!(entry, Entry::Pending), "a request completes once");
        *entry = Entry::Complete(outcome);
    }

    /// Takes the outcome of a complete request and frees its number.
    #[inline]
    pub(crate) fn take(&mut self, request: RequestId) -> Option<Outcome> {
        let entry = &mut self.entries[request.0 as usize];
        let Entry::Complete(outcome) = *entry else {
            return None;
        };
        *entry = Entry::Free;
        self.free.push(request.0);
        Some(outcome)
    }

    /// Frees a pending request that was withdrawn.
    pub(crate) fn withdraw(&mut self, request: RequestId) {
        self.entries[request.0 as usize] = Entry::Free;
        self.free.push(request.0);
    }

    /// True while the request is under way.
    pub(crate) fn is_pending(&self, request: RequestId) -> bool {
        matches!(self.entries[request.0 as usize], Entry::Pending)
    }
}
