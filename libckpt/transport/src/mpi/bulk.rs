//! Large buffers that are sent by number: one MPI message each, with the number as its tag, on a communicator of
//! their own, straight from the sender's memory into the receiver's.

use std::collections::VecDeque;
use std::ffi::c_int;

use protocol::ids::Process;

use super::call::{self, MPI_Comm, MPI_Request, MPI_Status, Outcome};
use crate::{BulkDone, BulkFrom, BulkInto};

/// The longest message in bytes. MPI counts in `int`; a longer buffer goes in several messages with the same tag, which do
/// not overtake each other.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// What memory an operation uses, kept until it is done.
#[derive(Debug)]
enum Memory {
    Sent { _from: BulkFrom },
    Received { into: BulkInto },
}

#[derive(Debug)]
struct Operation {
    peer: Process,
    number: u64,
    memory: Memory,
    /// Messages that are not done.
    messages: usize,
}

/// All that is under way, and what is done.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    requests: Vec<MPI_Request>,
    /// For each request, the key of its operation in `operations`.
    owners: Vec<usize>,
    operations: Vec<Option<Operation>>,
    free: Vec<usize>,
    done: VecDeque<BulkDone>,
    indices: Vec<c_int>,
    statuses: Vec<MPI_Status>,
}

impl Bulk {
    pub(super) fn send(
        &mut self,
        peer: Process,
        number: u64,
        from: BulkFrom,
        tag: c_int,
        comm: MPI_Comm,
    ) -> Outcome {
        let bytes = match &from {
            BulkFrom::Rank(bytes) => bytes.as_slice(),
            BulkFrom::Own(bytes) => bytes,
        };
        let first = self.requests.len();
        let mut rest = bytes;
        loop {
            let (message, after) = rest.split_at(rest.len().min(MESSAGE_BYTES_MAX));
            // SAFETY: `from` is kept until the request is complete, and whoever gave it leaves the bytes unchanged.
            self.requests
                .push(unsafe { call::send(message, to_rank(peer), tag, comm)? });
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        self.begin(first, peer, number, Memory::Sent { _from: from });
        Ok(())
    }

    pub(super) fn receive(
        &mut self,
        peer: Process,
        number: u64,
        mut into: BulkInto,
        tag: c_int,
        comm: MPI_Comm,
    ) -> Outcome {
        let bytes = match &mut into {
            BulkInto::Rank(bytes) => bytes.as_mut_slice(),
            BulkInto::Own(bytes) => bytes,
        };
        let first = self.requests.len();
        let mut rest = bytes;
        loop {
            let (message, after) = rest.split_at_mut(rest.len().min(MESSAGE_BYTES_MAX));
            // SAFETY: `into` is kept until the request is complete, and whoever gave it leaves the memory alone.
            self.requests.push(unsafe {
                call::receive(
                    message.as_mut_ptr(),
                    message.len(),
                    to_rank(peer),
                    tag,
                    comm,
                )?
            });
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        self.begin(first, peer, number, Memory::Received { into });
        Ok(())
    }

    /// Notes the operation that the requests from `first` on belong to.
    fn begin(&mut self, first: usize, peer: Process, number: u64, memory: Memory) {
        let operation = Operation {
            peer,
            number,
            memory,
            messages: self.requests.len() - first,
        };
        let key = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            self.operations.len() - 1
        });
        self.operations[key] = Some(operation);
        self.owners.resize(self.requests.len(), key);
        self.indices.resize(self.requests.len(), 0);
        self.statuses
            .resize(self.requests.len(), call::empty_status());
    }

    /// Whether anything is under way.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Looks for what is done, and tells whether there is anything to take.
    #[inline]
    pub(super) fn look(&mut self) -> Outcome<bool> {
        if self.is_busy() {
            self.look_at_requests()?;
        }
        Ok(!self.done.is_empty())
    }

    fn look_at_requests(&mut self) -> Outcome {
        let complete = call::test_some(&mut self.requests, &mut self.indices, &mut self.statuses)?;
        if complete == 0 {
            return Ok(());
        }
        for at in 0..complete {
            let index = usize::try_from(self.indices[at]).unwrap_or(usize::MAX);
            let key = self.owners[index];
            let operation = self.operations[key]
                .as_mut()
                .expect("a request's operation is there until its last message");
            operation.messages -= 1;
            if operation.messages == 0 {
                let operation = self.operations[key].take().expect("as above");
                self.free.push(key);
                self.done.push_back(operation.done());
            }
        }
        // MPI has set the requests of what is complete to none.
        let mut index = 0;
        while index < self.requests.len() {
            if call::is_no_request(self.requests[index]) {
                self.requests.swap_remove(index);
                self.owners.swap_remove(index);
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// The next operation that is done.
    #[inline]
    pub(super) fn take_done(&mut self) -> Option<BulkDone> {
        self.done.pop_front()
    }
}

impl Operation {
    fn done(self) -> BulkDone {
        let Self { peer, number, .. } = self;
        match self.memory {
            Memory::Sent { .. } => BulkDone::Sent { peer, number },
            Memory::Received { into } => {
                let own = match into {
                    BulkInto::Own(bytes) => Some(bytes),
                    BulkInto::Rank(_) => None,
                };
                BulkDone::Received { peer, number, own }
            }
        }
    }
}

impl Drop for Bulk {
    /// MPI may still use memory of ours for what is not done: it is never given back.
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.operations));
    }
}

/// A process's rank in the world.
#[inline]
pub(super) fn to_rank(process: Process) -> c_int {
    c_int::try_from(process.0).expect("ranks of MPI are of type int")
}
