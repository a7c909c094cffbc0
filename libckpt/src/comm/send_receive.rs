//! Sends and receives at the same time (MPI 4.1, 3.10).
//!
//! What two ranks that exchange large messages need: a blocking send of each might wait for the other's receive.

use super::datatype::{Buffer, BufferMut, Equivalence};
use super::point_to_point::{Destination, Source, Status, Tag, exactly_one};
use super::request;
use crate::error::Result;

/// Sends `message` and receives one element at the same time (MPI 4.1, 3.10, `MPI_Sendrecv`).
///
/// # Errors
/// Those of [`Destination::send`] and [`Source::receive`].
pub fn send_receive<T, M, D, S>(message: &M, destination: &D, source: &S) -> Result<(T, Status)>
where
    T: Equivalence,
    M: Buffer + ?Sized,
    D: Destination + ?Sized,
    S: Source + ?Sized,
{
    let mut value = T::new_zeroed();
    let status = send_receive_into(message, destination, &mut value, source)?;
    exactly_one::<T>(&status)?;
    Ok((value, status))
}

/// Sends `message` with tag 0 and receives a message of any tag into `buffer` at the same time (MPI 4.1,
/// 3.10, `MPI_Sendrecv`).
///
/// # Errors
/// Those of [`Destination::send`] and [`Source::receive_into`].
pub fn send_receive_into<M, D, B, S>(
    message: &M,
    destination: &D,
    buffer: &mut B,
    source: &S,
) -> Result<Status>
where
    M: Buffer + ?Sized,
    D: Destination + ?Sized,
    B: BufferMut + ?Sized,
    S: Source + ?Sized,
{
    request::scope(|scope| {
        let receive = source.immediate_receive_into(scope, buffer)?;
        destination.send(message)?;
        receive.wait()
    })
}

/// Like [`send_receive_into`], with a tag to send and one to receive.
///
/// # Errors
/// Those of [`Destination::send_with_tag`] and [`Source::receive_into_with_tag`].
pub fn send_receive_into_with_tags<M, D, B, S>(
    message: &M,
    destination: &D,
    send_tag: Tag,
    buffer: &mut B,
    source: &S,
    receive_tag: Tag,
) -> Result<Status>
where
    M: Buffer + ?Sized,
    D: Destination + ?Sized,
    B: BufferMut + ?Sized,
    S: Source + ?Sized,
{
    request::scope(|scope| {
        let receive = source.immediate_receive_into_with_tag(scope, buffer, receive_tag)?;
        destination.send_with_tag(message, send_tag)?;
        receive.wait()
    })
}

/// Sends what is in `buffer` and then has what was received in it (MPI 4.1, 3.10, `MPI_Sendrecv_replace`).
///
/// # Errors
/// Those of [`Destination::send`] and [`Source::receive_into`].
pub fn send_receive_replace_into<B, D, S>(
    buffer: &mut B,
    destination: &D,
    source: &S,
) -> Result<Status>
where
    B: BufferMut + ?Sized,
    D: Destination + ?Sized,
    S: Source + ?Sized,
{
    let sent = buffer.elements().to_vec();
    send_receive_into(&sent, destination, buffer, source)
}
