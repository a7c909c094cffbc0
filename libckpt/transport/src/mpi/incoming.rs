//! Receives that wait for the packets of one peer: a ring of them, matched in the order in which they were posted.

use std::ffi::c_int;

use super::call::{self, MPI_Comm, MPI_Request, Outcome};

/// Receives that wait at a time. What comes beyond MPI keeps in memory of its own.
const DEPTH: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) from: c_int,
    slots: Vec<Slot>,
    /// The slot that the next packet is in.
    head: usize,
    /// Slots before the head that have been read and wait for nothing yet.
    idle: usize,
    bytes: usize,
}

/// One receive. Words, so that packets begin at a multiple of 8.
#[derive(Debug)]
struct Slot {
    buffer: Box<[u64]>,
    request: MPI_Request,
}

impl Incoming {
    /// Posts receives for packets of at most `bytes` bytes.
    pub(super) fn open(from: c_int, bytes: usize, comm: MPI_Comm) -> Outcome<Self> {
        let mut incoming = Self {
            from,
            slots: Vec::with_capacity(DEPTH),
            head: 0,
            idle: 0,
            bytes,
        };
        for _ in 0..DEPTH {
            incoming.slots.push(Slot {
                buffer: vec![0; bytes.div_ceil(8)].into_boxed_slice(),
                request: call::no_request(),
            });
        }
        for index in 0..DEPTH {
            incoming.post(index, comm)?;
        }
        Ok(incoming)
    }

    /// Takes the request of the next packet out, to be tested among those of other peers.
    #[inline]
    pub(super) fn take_head(&mut self) -> MPI_Request {
        std::mem::replace(&mut self.slots[self.head].request, call::no_request())
    }

    /// The packet that has come into the head's buffer. To be called when its request is complete.
    #[inline]
    pub(super) fn packet(&self, bytes: usize) -> &[u8] {
        let words = &self.slots[self.head].buffer;
        assert!(bytes <= size_of_val::<[u64]>(words));
        // SAFETY: so many bytes lie in the words, and bytes are valid whatever they are.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), bytes) }
    }

    /// The head has been read. Its receive is posted again behind all others, some time: at the latest when half of
    /// them are idle, and otherwise by [`post_idle`](Self::post_idle), which costs nothing while there is nothing else to do.
    #[inline]
    pub(super) fn advance(&mut self, comm: MPI_Comm) -> Outcome {
        self.head = (self.head + 1) % DEPTH;
        self.idle += 1;
        if self.idle == DEPTH / 2 {
            self.post_idle(comm)?;
        }
        Ok(())
    }

    /// Whether there are idle receives.
    #[inline]
    pub(super) fn has_idle(&self) -> bool {
        self.idle > 0
    }

    /// Posts receives that are idle.
    pub(super) fn post_idle(&mut self, comm: MPI_Comm) -> Outcome {
        while self.idle > 0 {
            let index = (self.head + DEPTH - self.idle) % DEPTH;
            self.post(index, comm)?;
            self.idle -= 1;
        }
        Ok(())
    }

    #[inline]
    fn post(&mut self, index: usize, comm: MPI_Comm) -> Outcome {
        let slot = &mut self.slots[index];
        // SAFETY: the buffer has so many bytes, is not moved or freed while MPI may write into it (it is read only when
        // its request is complete), and ends with the process or after `cancel`.
        slot.request = unsafe {
            call::receive(
                slot.buffer.as_mut_ptr().cast::<u8>(),
                self.bytes,
                self.from,
                call::any_tag(),
                comm,
            )?
        };
        Ok(())
    }

    /// Ends all receives but the head's, whose request was taken out.
    pub(super) fn cancel(&mut self) -> Outcome {
        for slot in &mut self.slots {
            call::cancel(&mut slot.request)?;
        }
        Ok(())
    }
}

impl Drop for Incoming {
    /// MPI may still write into buffers of receives that were not ended: they are never given back.
    fn drop(&mut self) {
        for slot in &mut self.slots {
            std::mem::forget(std::mem::take(&mut slot.buffer));
        }
    }
}
