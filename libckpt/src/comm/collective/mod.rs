//! Collective calls (MPI 4.1, chapter 6).
//!
//! Built on messages alone: a snapshot may cut through a collective as through any other exchange of
//! messages, and a restart goes on in the middle of it. The messages travel in a context of their own (one
//! bit of the communicator's), so that no receive of the solver can meet them.
//!
//! **Order of reductions.** `reduce` and `all_reduce` join values in one fixed tree, whatever the algorithm,
//! the root and the placement of ranks: with `p = 2^k + r` ranks, the first `2r` ranks are joined in pairs,
//! then neighbouring blocks of 1, 2, 4 … of what remains, lower ranks always on the left. So the bits of a
//! floating-point sum depend on the size of the communicator and the values alone.
//!
//! **No call meets another's messages.** All ranks make the collective calls of a communicator in the same
//! order (6.1), between two ranks a call sends as many messages as the other side receives in it, each
//! receive names its source, and messages of one rank to another do not overtake. So the n-th receive from a
//! rank meets the n-th message of that rank, which is the one meant for it. The tag carries the kind and
//! number of the call all the same, and a message of another call is the error
//! [`CollectiveMismatch`](crate::Error::CollectiveMismatch): it shows that ranks called different collectives.
//!
//! After an error of a collective the communicator must not be used again: ranks may be at different
//! places in it.

mod all_gather;
mod all_to_all;
mod barrier;
mod broadcast;
mod gather;
mod reduce;
mod round;
mod scan;
mod scatter;
mod tree;

use super::communicator::{AsCommunicator, Communicator, Process};
use super::datatype::{Buffer, BufferMut, Partition, PartitionMut, bytes_of, bytes_of_mut};
use super::operation::Operation;
use crate::error::{Error, Result};

/// Collectives in which all ranks do the same.
///
/// Every rank of the communicator must make the call. All calls fail with
/// [`InvalidCount`](Error::InvalidCount) where lengths do not fit together, and with
/// [`CollectiveMismatch`](Error::CollectiveMismatch) where ranks call different collectives.
pub trait CommunicatorCollectives: AsCommunicator {
    /// Returns when every rank has made the call (MPI 4.1, 6.3, `MPI_Barrier`).
    ///
    /// # Errors
    /// See the trait.
    fn barrier(&self) -> Result<()> {
        barrier::barrier(self.as_communicator())
    }

    /// Gives every rank the elements of all ranks, in the order of ranks (MPI 4.1, 6.7, `MPI_Allgather`).
    /// Every rank sends the same number; `received` has room for all.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather_into<S, R>(&self, sent: &S, received: &mut R) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
    {
        let communicator = self.as_communicator();
        let (sent, received) = (bytes_of(sent), bytes_of_mut(received));
        let mut blocks = equal_blocks_mut(communicator, received, sent.len())?;
        all_gather::all_gather(communicator, sent, &mut blocks)
    }

    /// Gives every rank the elements of all ranks; block `i` of `received` takes those of rank `i` (MPI 4.1,
    /// 6.7, `MPI_Allgatherv`). Counts are the same on every rank.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather_varcount_into<S>(
        &self,
        sent: &S,
        received: &mut PartitionMut<'_, S::Element>,
    ) -> Result<()>
    where
        S: Buffer + ?Sized,
    {
        let communicator = self.as_communicator();
        expect(
            "blocks to receive into",
            communicator.size(),
            received.len(),
        )?;
        all_gather::all_gather(communicator, bytes_of(sent), &mut received.split())
    }

    /// Sends the `i`-th of equal blocks to rank `i`, and receives one from each (MPI 4.1, 6.8,
    /// `MPI_Alltoall`).
    ///
    /// # Errors
    /// See the trait.
    fn all_to_all_into<S, R>(&self, sent: &S, received: &mut R) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
    {
        let communicator = self.as_communicator();
        let (sent, received) = (bytes_of(sent), bytes_of_mut(received));
        let block_bytes = received.len() / communicator.size();
        let sent = equal_blocks(communicator, sent, block_bytes)?;
        let mut received = equal_blocks_mut(communicator, received, block_bytes)?;
        all_to_all::all_to_all(communicator, &sent, &mut received)
    }

    /// Sends block `i` to rank `i`, and receives block `i` from rank `i` (MPI 4.1, 6.8, `MPI_Alltoallv`).
    /// Ranks with nothing for each other exchange no message.
    ///
    /// # Errors
    /// See the trait.
    fn all_to_all_varcount_into<T: super::datatype::Equivalence>(
        &self,
        sent: &Partition<'_, T>,
        received: &mut PartitionMut<'_, T>,
    ) -> Result<()> {
        let communicator = self.as_communicator();
        expect("blocks to send", communicator.size(), sent.len())?;
        expect(
            "blocks to receive into",
            communicator.size(),
            received.len(),
        )?;
        all_to_all::all_to_all(communicator, &sent.split(), &mut received.split())
    }

    /// Joins the values of all ranks, element by element, and gives every rank the result (MPI 4.1, 6.9.6,
    /// `MPI_Allreduce`). For the order of joining see the [module](self).
    ///
    /// # Errors
    /// See the trait.
    fn all_reduce_into<S, R, O>(&self, sent: &S, received: &mut R, operation: O) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
        O: Operation<S::Element>,
    {
        let (sent, received) = (sent.elements(), received.elements_mut());
        expect(
            "elements to receive a reduction into",
            sent.len(),
            received.len(),
        )?;
        received.copy_from_slice(sent);
        reduce::all_reduce(self.as_communicator(), received, &operation)
    }

    /// Joins the values of the ranks up to and including the calling one (MPI 4.1, 6.11.1, `MPI_Scan`).
    ///
    /// # Errors
    /// See the trait.
    fn scan_into<S, R, O>(&self, sent: &S, received: &mut R, operation: O) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
        O: Operation<S::Element>,
    {
        let (sent, received) = (sent.elements(), received.elements_mut());
        expect(
            "elements to receive a scan into",
            sent.len(),
            received.len(),
        )?;
        scan::inclusive(self.as_communicator(), sent, received, &operation)
    }

    /// Joins the values of the ranks before the calling one (MPI 4.1, 6.11.2, `MPI_Exscan`). Rank 0 keeps
    /// what was in `received`.
    ///
    /// # Errors
    /// See the trait.
    fn exclusive_scan_into<S, R, O>(&self, sent: &S, received: &mut R, operation: O) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
        O: Operation<S::Element>,
    {
        let (sent, received) = (sent.elements(), received.elements_mut());
        expect(
            "elements to receive a scan into",
            sent.len(),
            received.len(),
        )?;
        scan::exclusive(self.as_communicator(), sent, received, &operation)
    }
}

impl CommunicatorCollectives for Communicator {}

/// Collectives in which one rank, the root, differs from the others.
///
/// Every rank of the communicator must make the call with the same root. Errors are those of
/// [`CommunicatorCollectives`], and [`InvalidRoot`](Error::InvalidRoot) where the root calls what the others
/// should or the other way round.
pub trait Root: AsCommunicator {
    /// The root's rank in the communicator.
    fn root_rank(&self) -> usize;

    /// Gives every rank the root's elements (MPI 4.1, 6.4, `MPI_Bcast`).
    ///
    /// # Errors
    /// See the trait.
    fn broadcast_into<B: BufferMut + ?Sized>(&self, buffer: &mut B) -> Result<()> {
        let communicator = self.as_communicator();
        let root = communicator.check_rank(self.root_rank())?;
        broadcast::broadcast(communicator, root, bytes_of_mut(buffer))
    }

    /// Gives the root the elements of all ranks, in the order of ranks: on all ranks but the root (MPI 4.1,
    /// 6.5, `MPI_Gather`).
    ///
    /// # Errors
    /// See the trait.
    fn gather_into<S: Buffer + ?Sized>(&self, sent: &S) -> Result<()> {
        let root = other_root(self, "gather_into")?;
        gather::gather(self.as_communicator(), root, bytes_of(sent), None)
    }

    /// The root's side of [`gather_into`](Self::gather_into): `received` has room for the elements of all.
    ///
    /// # Errors
    /// See the trait.
    fn gather_into_root<S, R>(&self, sent: &S, received: &mut R) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
    {
        let (communicator, root) = (self.as_communicator(), own_root(self, "gather_into_root")?);
        let (sent, received) = (bytes_of(sent), bytes_of_mut(received));
        expect(
            "bytes to gather into",
            sent.len() * communicator.size(),
            received.len(),
        )?;
        gather::gather(communicator, root, sent, Some(received))
    }

    /// Gives the root as many elements of each rank as each has: on all ranks but the root (MPI 4.1, 6.5,
    /// `MPI_Gatherv`).
    ///
    /// # Errors
    /// See the trait.
    fn gather_varcount_into<S: Buffer + ?Sized>(&self, sent: &S) -> Result<()> {
        let root = other_root(self, "gather_varcount_into")?;
        gather::gather_varcount(self.as_communicator(), root, bytes_of(sent), None)
    }

    /// The root's side of [`gather_varcount_into`](Self::gather_varcount_into): block `i` takes what rank `i`
    /// sends.
    ///
    /// # Errors
    /// See the trait.
    fn gather_varcount_into_root<S: Buffer + ?Sized>(
        &self,
        sent: &S,
        received: &mut PartitionMut<'_, S::Element>,
    ) -> Result<()> {
        let communicator = self.as_communicator();
        let root = own_root(self, "gather_varcount_into_root")?;
        expect("blocks to gather into", communicator.size(), received.len())?;
        gather::gather_varcount(communicator, root, bytes_of(sent), Some(received.split()))
    }

    /// Receives one of the equal blocks that the root has: on all ranks but the root (MPI 4.1, 6.6,
    /// `MPI_Scatter`).
    ///
    /// # Errors
    /// See the trait.
    fn scatter_into<R: BufferMut + ?Sized>(&self, received: &mut R) -> Result<()> {
        let root = other_root(self, "scatter_into")?;
        scatter::scatter(self.as_communicator(), root, None, bytes_of_mut(received))
    }

    /// The root's side of [`scatter_into`](Self::scatter_into): `sent` has the blocks of all ranks, in their
    /// order.
    ///
    /// # Errors
    /// See the trait.
    fn scatter_into_root<S, R>(&self, sent: &S, received: &mut R) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
    {
        let (communicator, root) = (self.as_communicator(), own_root(self, "scatter_into_root")?);
        let (sent, received) = (bytes_of(sent), bytes_of_mut(received));
        expect(
            "bytes to scatter",
            received.len() * communicator.size(),
            sent.len(),
        )?;
        scatter::scatter(communicator, root, Some(sent), received)
    }

    /// Receives the root's block for this rank: on all ranks but the root (MPI 4.1, 6.6, `MPI_Scatterv`).
    /// `received` is as long as the block.
    ///
    /// # Errors
    /// See the trait.
    fn scatter_varcount_into<R: BufferMut + ?Sized>(&self, received: &mut R) -> Result<()> {
        let root = other_root(self, "scatter_varcount_into")?;
        scatter::scatter_varcount(self.as_communicator(), root, None, bytes_of_mut(received))
    }

    /// The root's side of [`scatter_varcount_into`](Self::scatter_varcount_into): block `i` goes to rank `i`.
    ///
    /// # Errors
    /// See the trait.
    fn scatter_varcount_into_root<R: BufferMut + ?Sized>(
        &self,
        sent: &Partition<'_, R::Element>,
        received: &mut R,
    ) -> Result<()> {
        let communicator = self.as_communicator();
        let root = own_root(self, "scatter_varcount_into_root")?;
        expect("blocks to scatter", communicator.size(), sent.len())?;
        scatter::scatter_varcount(
            communicator,
            root,
            Some(sent.split()),
            bytes_of_mut(received),
        )
    }

    /// Joins the values of all ranks, element by element, at the root: on all ranks but the root (MPI 4.1,
    /// 6.9.1, `MPI_Reduce`). The result has the same bits whatever rank is the root, and as
    /// [`all_reduce_into`](CommunicatorCollectives::all_reduce_into).
    ///
    /// # Errors
    /// See the trait.
    fn reduce_into<S, O>(&self, sent: &S, operation: O) -> Result<()>
    where
        S: Buffer + ?Sized,
        O: Operation<S::Element>,
    {
        let root = other_root(self, "reduce_into")?;
        reduce::reduce(
            self.as_communicator(),
            root,
            sent.elements(),
            None,
            &operation,
        )
    }

    /// The root's side of [`reduce_into`](Self::reduce_into).
    ///
    /// # Errors
    /// See the trait.
    fn reduce_into_root<S, R, O>(&self, sent: &S, received: &mut R, operation: O) -> Result<()>
    where
        S: Buffer + ?Sized,
        R: BufferMut<Element = S::Element> + ?Sized,
        O: Operation<S::Element>,
    {
        let (communicator, root) = (self.as_communicator(), own_root(self, "reduce_into_root")?);
        let (sent, received) = (sent.elements(), received.elements_mut());
        expect(
            "elements to receive a reduction into",
            sent.len(),
            received.len(),
        )?;
        reduce::reduce(communicator, root, sent, Some(received), &operation)
    }
}

impl Root for Process<'_> {
    fn root_rank(&self) -> usize {
        self.rank()
    }
}

/// The root, which the calling rank is not.
fn other_root<R: Root + ?Sized>(root: &R, call: &'static str) -> Result<usize> {
    let root_rank = root.as_communicator().check_rank(root.root_rank())?;
    if root_rank == root.as_communicator().rank() {
        return Err(Error::InvalidRoot {
            call,
            rank: root_rank,
            root: root_rank,
        });
    }
    Ok(root_rank)
}

/// The root, which the calling rank is.
fn own_root<R: Root + ?Sized>(root: &R, call: &'static str) -> Result<usize> {
    let root_rank = root.as_communicator().check_rank(root.root_rank())?;
    let rank = root.as_communicator().rank();
    if root_rank != rank {
        return Err(Error::InvalidRoot {
            call,
            rank,
            root: root_rank,
        });
    }
    Ok(root_rank)
}

fn expect(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        Ok(())
    } else {
        Err(Error::InvalidCount {
            what,
            expected,
            found,
        })
    }
}

/// A buffer as one block of `block_bytes` for each rank.
fn equal_blocks<'b>(
    communicator: &Communicator,
    buffer: &'b [u8],
    block_bytes: usize,
) -> Result<Vec<&'b [u8]>> {
    expect(
        "bytes to send",
        block_bytes * communicator.size(),
        buffer.len(),
    )?;
    Ok((0..communicator.size())
        .map(|rank| &buffer[rank * block_bytes..][..block_bytes])
        .collect())
}

/// A buffer to receive into as one block of `block_bytes` for each rank.
fn equal_blocks_mut<'b>(
    communicator: &Communicator,
    buffer: &'b mut [u8],
    block_bytes: usize,
) -> Result<Vec<&'b mut [u8]>> {
    expect(
        "bytes to receive into",
        block_bytes * communicator.size(),
        buffer.len(),
    )?;
    let mut rest = buffer;
    Ok((0..communicator.size())
        .map(|_| {
            let (block, behind) = std::mem::take(&mut rest).split_at_mut(block_bytes);
            rest = behind;
            block
        })
        .collect())
}
