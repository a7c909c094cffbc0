//! Messages that a probe took out of matching (MPI 4.1, 3.8.2 and 3.8.3).

use zerocopy::IntoBytes;

use super::datatype::{BufferMut, Equivalence, bytes_of_mut, whole_count};
use super::point_to_point::{Source, Status, exactly_one};
use crate::engine::{self, Envelope, MatchedId};
use crate::error::Result;

/// A message that a matched probe took out of matching (MPI 4.1, 3.8.2). It must be received; one that is
/// dropped is received into nothing.
#[derive(Debug)]
#[must_use = "a matched message that is dropped is lost"]
pub struct Message {
    /// `None` once it was received.
    id: Option<MatchedId>,
    status: Status,
}

impl Message {
    pub(super) fn new<S: Source + ?Sized>(
        source: &S,
        (id, envelope): (MatchedId, Envelope),
    ) -> Self {
        Self {
            id: Some(id),
            status: Status::new(source.as_communicator(), envelope),
        }
    }

    /// Where it comes from, its tag and length.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Receives it into a buffer (MPI 4.1, 3.8.3, `MPI_Mrecv`).
    ///
    /// # Errors
    /// It is longer than the buffer.
    pub fn matched_receive_into<B: BufferMut + ?Sized>(mut self, buffer: &mut B) -> Result<Status> {
        self.take_into(bytes_of_mut(buffer))
    }

    /// Receives it as exactly one element.
    ///
    /// # Errors
    /// It is longer or shorter.
    pub fn matched_receive<T: Equivalence>(mut self) -> Result<(T, Status)> {
        exactly_one::<T>(&self.status)?;
        let mut value = T::new_zeroed();
        let status = self.take_into(value.as_mut_bytes())?;
        Ok((value, status))
    }

    /// Receives it whole.
    ///
    /// # Errors
    /// It is no whole number of elements.
    pub fn matched_receive_vec<T: Equivalence>(mut self) -> Result<(Vec<T>, Status)> {
        let mut elements = vec![T::new_zeroed(); whole_count::<T>(self.status.bytes())?];
        let status = self.take_into(elements.as_mut_bytes())?;
        Ok((elements, status))
    }

    fn take_into(&mut self, into: &mut [u8]) -> Result<Status> {
        match self.id.take() {
            Some(id) => engine::receive_matched(id, into).map(|_| self.status),
            None => Ok(self.status),
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            // Refused as too long for no buffer, and so consumed: the sender must not wait for ever.
            let _ = engine::receive_matched(id, &mut []);
        }
    }
}
