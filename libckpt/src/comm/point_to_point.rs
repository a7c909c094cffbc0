//! Messages from one rank to another, and probing for them (MPI 4.1, chapter 3).
//!
//! Messages of one communicator from one rank to another do not overtake each other: of two that a receive
//! matches, the one sent first is received (3.5). A rank may send to itself.
//!
//! A blocking send of a large message returns only when it has been received, so two ranks that send to
//! each other first and receive afterwards may wait for ever, as in MPI: use
//! [`send_receive`](super::send_receive) or immediate operations.
//!
//! Calls without a tag send with tag 0 and receive any tag.

use protocol::ids::Rank;

use super::communicator::{AnyProcess, AsCommunicator, Communicator, Process};
use super::datatype::{Buffer, BufferMut, Equivalence, bytes_of, bytes_of_mut, count_in};
use super::message::Message;
use super::request::{LocalScope, Request};
use crate::engine::{self, Envelope};
use crate::error::{Error, Result};

/// What a solver marks messages with, 0 or greater (MPI 4.1, 3.2.3).
pub type Tag = i32;

/// What a completed operation tells of its message (MPI 4.1, 3.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    source_rank: usize,
    tag: Tag,
    bytes: usize,
}

impl Status {
    pub(crate) fn new(communicator: &Communicator, envelope: Envelope) -> Self {
        Self {
            source_rank: communicator.rank_of(envelope.source),
            tag: envelope.tag,
            bytes: envelope.bytes,
        }
    }

    /// The sender, as a rank of the communicator of the call.
    #[must_use]
    pub fn source_rank(&self) -> usize {
        self.source_rank
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Length of the message in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Length of the message in elements of `T`; `None` if it is no whole number (`MPI_Get_count`).
    #[must_use]
    pub fn count<T: Equivalence>(&self) -> Option<usize> {
        count_in::<T>(self.bytes)
    }
}

fn check_tag(tag: Tag) -> Result<Tag> {
    if tag < 0 {
        Err(Error::InvalidTag { tag })
    } else {
        Ok(tag)
    }
}

/// A rank to send to (MPI 4.1, 3.2.1 and 3.7.2).
pub trait Destination: AsCommunicator {
    /// The receiver's rank in the communicator.
    fn destination_rank(&self) -> usize;

    /// Sends a message with tag 0 (`MPI_Send`). Returns when the buffer may be used again.
    ///
    /// # Errors
    /// The destination is not in the communicator.
    fn send<B: Buffer + ?Sized>(&self, buffer: &B) -> Result<()> {
        self.send_with_tag(buffer, 0)
    }

    /// Sends a message (`MPI_Send`). Returns when the buffer may be used again.
    ///
    /// # Errors
    /// The destination is not in the communicator, or the tag is negative.
    fn send_with_tag<B: Buffer + ?Sized>(&self, buffer: &B, tag: Tag) -> Result<()> {
        let communicator = self.as_communicator();
        let to = communicator.world_rank(self.destination_rank())?;
        engine::send(
            to,
            communicator.context(),
            check_tag(tag)?,
            bytes_of(buffer),
        )
    }

    /// Starts to send a message with tag 0 (`MPI_Isend`).
    ///
    /// # Errors
    /// The destination is not in the communicator.
    fn immediate_send<'s, 'a, B: Buffer + ?Sized>(
        &self,
        scope: &'s LocalScope<'a>,
        buffer: &'a B,
    ) -> Result<Request<'s, 'a>> {
        self.immediate_send_with_tag(scope, buffer, 0)
    }

    /// Starts to send a message (`MPI_Isend`).
    ///
    /// # Errors
    /// The destination is not in the communicator, or the tag is negative.
    fn immediate_send_with_tag<'s, 'a, B: Buffer + ?Sized>(
        &self,
        scope: &'s LocalScope<'a>,
        buffer: &'a B,
        tag: Tag,
    ) -> Result<Request<'s, 'a>> {
        let communicator = self.as_communicator();
        let context = communicator.context();
        let (to, tag) = (self.destination_rank(), check_tag(tag)?);
        Request::send(scope, communicator, context, to, tag, bytes_of(buffer))
    }
}

impl Destination for Process<'_> {
    fn destination_rank(&self) -> usize {
        self.rank()
    }
}

/// A rank, or any, to receive from (MPI 4.1, 3.2.4, 3.7.2 and 3.8).
///
/// All calls fail if the source is not in the communicator or a tag is negative.
pub trait Source: AsCommunicator {
    /// The sender's rank in the communicator; `None` for any.
    fn source_rank(&self) -> Option<usize>;

    /// Receives a message of exactly one element with any tag.
    ///
    /// # Errors
    /// A longer or shorter message.
    fn receive<T: Equivalence>(&self) -> Result<(T, Status)> {
        receive_one(self, None)
    }

    /// Receives a message of exactly one element.
    ///
    /// # Errors
    /// A longer or shorter message.
    fn receive_with_tag<T: Equivalence>(&self, tag: Tag) -> Result<(T, Status)> {
        receive_one(self, Some(tag))
    }

    /// Receives a message with any tag into a buffer (`MPI_Recv`). It may be shorter than the buffer.
    ///
    /// # Errors
    /// A longer message.
    fn receive_into<B: BufferMut + ?Sized>(&self, buffer: &mut B) -> Result<Status> {
        receive_bytes(self, None, bytes_of_mut(buffer))
    }

    /// Receives a message into a buffer (`MPI_Recv`). It may be shorter than the buffer.
    ///
    /// # Errors
    /// A longer message.
    fn receive_into_with_tag<B: BufferMut + ?Sized>(
        &self,
        buffer: &mut B,
        tag: Tag,
    ) -> Result<Status> {
        receive_bytes(self, Some(tag), bytes_of_mut(buffer))
    }

    /// Receives a message of any length with any tag.
    ///
    /// # Errors
    /// A message that is no whole number of elements.
    fn receive_vec<T: Equivalence>(&self) -> Result<(Vec<T>, Status)> {
        self.matched_probe()?.matched_receive_vec()
    }

    /// Receives a message of any length.
    ///
    /// # Errors
    /// A message that is no whole number of elements.
    fn receive_vec_with_tag<T: Equivalence>(&self, tag: Tag) -> Result<(Vec<T>, Status)> {
        self.matched_probe_with_tag(tag)?.matched_receive_vec()
    }

    /// Starts to receive a message with any tag into a buffer (`MPI_Irecv`).
    ///
    /// # Errors
    /// See the trait.
    fn immediate_receive_into<'s, 'a, B: BufferMut + ?Sized>(
        &self,
        scope: &'s LocalScope<'a>,
        buffer: &'a mut B,
    ) -> Result<Request<'s, 'a>> {
        let communicator = self.as_communicator();
        let (context, from) = (communicator.context(), self.source_rank());
        Request::receive(
            scope,
            communicator,
            context,
            from,
            None,
            bytes_of_mut(buffer),
        )
    }

    /// Starts to receive a message into a buffer (`MPI_Irecv`).
    ///
    /// # Errors
    /// See the trait.
    fn immediate_receive_into_with_tag<'s, 'a, B: BufferMut + ?Sized>(
        &self,
        scope: &'s LocalScope<'a>,
        buffer: &'a mut B,
        tag: Tag,
    ) -> Result<Request<'s, 'a>> {
        let communicator = self.as_communicator();
        let (context, from) = (communicator.context(), self.source_rank());
        let tag = Some(check_tag(tag)?);
        Request::receive(
            scope,
            communicator,
            context,
            from,
            tag,
            bytes_of_mut(buffer),
        )
    }

    /// Waits for a message with any tag and tells of it, without receiving it (MPI 4.1, 3.8.1,
    /// `MPI_Probe`).
    ///
    /// # Errors
    /// See the trait.
    fn probe(&self) -> Result<Status> {
        let (from, context, tag) = wanted(self, None)?;
        engine::probe(from, context, tag).map(|envelope| told(self, envelope))
    }

    /// Waits for a message and tells of it, without receiving it (MPI 4.1, 3.8.1, `MPI_Probe`).
    ///
    /// # Errors
    /// See the trait.
    fn probe_with_tag(&self, tag: Tag) -> Result<Status> {
        let (from, context, tag) = wanted(self, Some(tag))?;
        engine::probe(from, context, tag).map(|envelope| told(self, envelope))
    }

    /// Tells of a message with any tag that is there (MPI 4.1, 3.8.1, `MPI_Iprobe`). Never waits, but lets
    /// messages move, so that a loop around it comes to an end.
    ///
    /// # Errors
    /// See the trait.
    fn immediate_probe(&self) -> Result<Option<Status>> {
        let (from, context, tag) = wanted(self, None)?;
        let found = engine::immediate_probe(from, context, tag)?;
        Ok(found.map(|envelope| told(self, envelope)))
    }

    /// Tells of a message that is there (MPI 4.1, 3.8.1, `MPI_Iprobe`). Never waits.
    ///
    /// # Errors
    /// See the trait.
    fn immediate_probe_with_tag(&self, tag: Tag) -> Result<Option<Status>> {
        let (from, context, tag) = wanted(self, Some(tag))?;
        let found = engine::immediate_probe(from, context, tag)?;
        Ok(found.map(|envelope| told(self, envelope)))
    }

    /// Waits for a message with any tag and takes it out of matching: no other receive or probe will meet it
    /// (MPI 4.1, 3.8.2, `MPI_Mprobe`).
    ///
    /// # Errors
    /// See the trait.
    fn matched_probe(&self) -> Result<Message> {
        let (from, context, tag) = wanted(self, None)?;
        engine::matched_probe(from, context, tag).map(|found| Message::new(self, found))
    }

    /// Waits for a message and takes it out of matching (MPI 4.1, 3.8.2, `MPI_Mprobe`).
    ///
    /// # Errors
    /// See the trait.
    fn matched_probe_with_tag(&self, tag: Tag) -> Result<Message> {
        let (from, context, tag) = wanted(self, Some(tag))?;
        engine::matched_probe(from, context, tag).map(|found| Message::new(self, found))
    }

    /// Takes a message with any tag that is there out of matching (MPI 4.1, 3.8.2, `MPI_Improbe`). Never
    /// waits.
    ///
    /// # Errors
    /// See the trait.
    fn immediate_matched_probe(&self) -> Result<Option<Message>> {
        let (from, context, tag) = wanted(self, None)?;
        let found = engine::immediate_matched_probe(from, context, tag)?;
        Ok(found.map(|found| Message::new(self, found)))
    }

    /// Takes a message that is there out of matching (MPI 4.1, 3.8.2, `MPI_Improbe`). Never waits.
    ///
    /// # Errors
    /// See the trait.
    fn immediate_matched_probe_with_tag(&self, tag: Tag) -> Result<Option<Message>> {
        let (from, context, tag) = wanted(self, Some(tag))?;
        let found = engine::immediate_matched_probe(from, context, tag)?;
        Ok(found.map(|found| Message::new(self, found)))
    }
}

impl Source for Process<'_> {
    fn source_rank(&self) -> Option<usize> {
        Some(self.rank())
    }
}

impl Source for AnyProcess<'_> {
    fn source_rank(&self) -> Option<usize> {
        None
    }
}

/// What the engine is to look for.
fn wanted<S: Source + ?Sized>(
    source: &S,
    tag: Option<Tag>,
) -> Result<(Option<Rank>, u64, Option<Tag>)> {
    let communicator = source.as_communicator();
    let from = source
        .source_rank()
        .map(|rank| communicator.world_rank(rank))
        .transpose()?;
    Ok((
        from,
        communicator.context(),
        tag.map(check_tag).transpose()?,
    ))
}

fn told<S: Source + ?Sized>(source: &S, envelope: Envelope) -> Status {
    Status::new(source.as_communicator(), envelope)
}

fn receive_bytes<S: Source + ?Sized>(
    source: &S,
    tag: Option<Tag>,
    into: &mut [u8],
) -> Result<Status> {
    let (from, context, tag) = wanted(source, tag)?;
    engine::receive(from, context, tag, into).map(|envelope| told(source, envelope))
}

fn receive_one<T: Equivalence, S: Source + ?Sized>(
    source: &S,
    tag: Option<Tag>,
) -> Result<(T, Status)> {
    let mut value = T::new_zeroed();
    let status = receive_bytes(source, tag, value.as_mut_bytes())?;
    exactly_one::<T>(&status)?;
    Ok((value, status))
}

pub(super) fn exactly_one<T>(status: &Status) -> Result<()> {
    if status.bytes == size_of::<T>() {
        return Ok(());
    }
    Err(Error::InvalidType {
        message_bytes: status.bytes,
        element_bytes: size_of::<T>(),
        type_name: std::any::type_name::<T>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_speaks_of_ranks_and_elements() {
        let world = Communicator::everyone(1, 4);
        let status = Status::new(
            &world,
            Envelope {
                source: Rank(3),
                tag: 5,
                bytes: 12,
            },
        );
        assert_eq!(
            (status.source_rank(), status.tag(), status.bytes()),
            (3, 5, 12)
        );
        assert_eq!(status.count::<u32>(), Some(3));
        assert_eq!(status.count::<u64>(), None);
    }

    #[test]
    fn a_wrong_destination_or_tag_is_refused_before_anything_is_sent() {
        let world = Communicator::everyone(0, 2);
        assert!(matches!(
            world.process_at_rank(2).send(&1_u8),
            Err(Error::InvalidRank { rank: 2, size: 2 })
        ));
        assert!(matches!(
            world.process_at_rank(1).send_with_tag(&1_u8, -1),
            Err(Error::InvalidTag { tag: -1 })
        ));
        assert!(matches!(
            world.any_process().probe_with_tag(-7),
            Err(Error::InvalidTag { tag: -7 })
        ));
    }
}
