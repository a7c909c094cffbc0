//! A rank's memory, named by address: buffers of operations that go on after the call that began them.
//!
//! An immediate receive fills a buffer while the rank does something else, and a checkpoint in between
//! brings it back in another process. A borrow can't express that; these types hold address and length
//! instead, and are stored with the rank's message tables.
//!
//! # Contract
//!
//! What the types can't say, whoever uses them has to keep:
//!
//! - The memory that a buffer was made from stays borrowed, in the rank's code, until the buffer is
//!   dropped for good: shared for [`RankBytes`], exclusively for [`RankBytesMut`]. (The request scope of
//!   the communication layer does that: it does not return to the rank before its requests are
//!   complete or withdrawn.)
//! - A buffer is used while its rank is stopped or inside the library, on the thread that resumes
//!   ranks, and one [`RankBytesMut`] at a time.
//! - A buffer that comes back from a store (by serde) is read once the slot that it was stored with is
//!   hosted here, and used with that slot's image only.
//!
//! Checked at run time: that a buffer lies in memory that moves with the rank (or, for reading, in the
//! program's own constants, which are at the same address in every process), never in the slot's header
//! or guards, and that its slot is mapped in this process whenever it is used. Breaking the contract can
//! garble a rank's memory, but never touches the library's.

use std::ops::Range;
use std::sync::OnceLock;

use protocol::ids::Rank;
use serde::{Deserialize, Serialize};

use crate::context::{current_rank, in_process};
use crate::hosted;
use crate::identity;
use crate::layout::{PAGE_BYTES, Regions};

/// Why memory can't be a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// The memory is not the rank's.
    #[error(
        "a message buffer of {rank} at {address:#x} ({bytes} bytes) does not lie in the rank's memory; \
         use memory that the rank itself allocated, not a static, another rank's, or the stack of a \
         thread that it started"
    )]
    NotRankMemory {
        /// The rank.
        rank: Rank,
        /// First address of the memory.
        address: u64,
        /// Its length.
        bytes: u64,
    },
    /// No rank runs on this thread.
    #[error(
        "a message buffer was made where no rank runs; ranks communicate on their own stack only"
    )]
    NoRank,
}

/// A buffer as it is stored: with its rank's message tables, to be bound to the restored slot again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredBuffer {
    rank: Rank,
    address: u64,
    bytes: u64,
}

/// A rank's memory for reading. See the module for the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredBuffer", into = "StoredBuffer")]
pub struct RankBytes {
    rank: Rank,
    address: u64,
    bytes: u64,
}

impl RankBytes {
    /// The memory behind a slice of the rank that runs on this thread (also inside
    /// [`in_process`]). Constants of the program will do, too.
    ///
    /// # Errors
    /// The slice is neither the rank's nor the program's.
    #[inline]
    pub fn new(slice: &[u8]) -> Result<Self, BufferError> {
        let rank = current_rank().ok_or(BufferError::NoRank)?;
        Self::checked(
            rank,
            slice.as_ptr().expose_provenance() as u64,
            slice.len() as u64,
        )
    }

    #[inline]
    fn checked(rank: Rank, address: u64, bytes: u64) -> Result<Self, BufferError> {
        if bytes == 0 || is_in_slot(rank, address, bytes) || is_in_program(address, bytes) {
            Ok(Self {
                rank,
                address,
                bytes,
            })
        } else {
            Err(BufferError::NotRankMemory {
                rank,
                address,
                bytes,
            })
        }
    }

    /// The bytes. Kept no longer than until the rank runs again.
    ///
    /// # Panics
    /// When the rank is not hosted in this process (any more).
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: checked when it was made: see `bytes_at`.
        unsafe { bytes_at(self.rank, self.address, self.bytes) }
    }

    /// First address, for a transport that reads it from another process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes as usize
    }

    /// Is it of length 0?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl From<RankBytes> for StoredBuffer {
    fn from(buffer: RankBytes) -> Self {
        Self {
            rank: buffer.rank,
            address: buffer.address,
            bytes: buffer.bytes,
        }
    }
}

impl TryFrom<StoredBuffer> for RankBytes {
    type Error = BufferError;

    fn try_from(stored: StoredBuffer) -> Result<Self, BufferError> {
        Self::checked(stored.rank, stored.address, stored.bytes)
    }
}

impl TryFrom<StoredBuffer> for RankBytesMut {
    type Error = BufferError;

    fn try_from(stored: StoredBuffer) -> Result<Self, BufferError> {
        Self::checked(stored.rank, stored.address, stored.bytes)
    }
}

/// A rank's memory for writing. See the module for the contract.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "StoredBuffer")]
pub struct RankBytesMut {
    rank: Rank,
    address: u64,
    bytes: u64,
}

impl Serialize for RankBytesMut {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            rank,
            address,
            bytes,
        } = *self;
        StoredBuffer {
            rank,
            address,
            bytes,
        }
        .serialize(serializer)
    }
}

impl RankBytesMut {
    /// The memory behind a slice of the rank that runs on this thread (also inside
    /// [`in_process`]).
    ///
    /// # Errors
    /// The slice is not the rank's.
    #[inline]
    pub fn new(slice: &mut [u8]) -> Result<Self, BufferError> {
        let rank = current_rank().ok_or(BufferError::NoRank)?;
        let address = slice.as_mut_ptr().expose_provenance() as u64;
        Self::checked(rank, address, slice.len() as u64)
    }

    #[inline]
    fn checked(rank: Rank, address: u64, bytes: u64) -> Result<Self, BufferError> {
        if bytes == 0 || is_in_slot(rank, address, bytes) {
            Ok(Self {
                rank,
                address,
                bytes,
            })
        } else {
            Err(BufferError::NotRankMemory {
                rank,
                address,
                bytes,
            })
        }
    }

    /// The bytes, to be written. Kept no longer than until the rank runs again.
    ///
    /// # Panics
    /// When the rank is not hosted in this process (any more).
    #[inline]
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.bytes == 0 {
            return &mut [];
        }
        assert_hosted(self.rank);
        // SAFETY: the range was checked to lie in the slot, which is mapped; it was an exclusive slice,
        // and stays borrowed by the contract above.
        unsafe {
            std::slice::from_raw_parts_mut(
                std::ptr::with_exposed_provenance_mut(self.address as usize),
                self.bytes as usize,
            )
        }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// When they do not fit, or the rank is not hosted in this process (any more).
    pub fn fill(&mut self, offset: usize, bytes: &[u8]) {
        self.as_mut_slice()[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    /// The first `bytes` of the memory once more, for a transport that fills them while `self` stays in the message
    /// tables. Until the transport is done, and has dropped it, the other is the one that is used.
    ///
    /// # Panics
    /// When there are fewer bytes.
    #[must_use]
    pub fn lend(&self, bytes: usize) -> Self {
        assert!(bytes <= self.len(), "a buffer lends more than it has");
        Self {
            bytes: bytes as u64,
            ..*self
        }
    }

    /// The bytes, as they are now. Kept no longer than until the rank runs again.
    ///
    /// # Panics
    /// When the rank is not hosted in this process (any more).
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: checked when it was made: see `bytes_at`.
        unsafe { bytes_at(self.rank, self.address, self.bytes) }
    }

    /// Writes a byte of each page of the memory, unchanged, with the processor. For memory that was filled by someone else:
    /// a network card writes without a fault, so neither the kernel's tracking nor whoever saves pages before they change
    /// has seen that it did. To be called before the content counts as there.
    ///
    /// # Panics
    /// When the rank is not hosted in this process (any more).
    pub fn touch(&mut self) {
        for page in self.as_mut_slice().chunks_mut(PAGE_BYTES) {
            let byte: *mut u8 = &raw mut page[0];
            // SAFETY: a byte of the slice. Volatile, so that a write of what is there is not left out.
            unsafe { byte.write_volatile(byte.read_volatile()) };
        }
        // Chunks do not begin with pages: the last byte may be in one more.
        if let Some(last) = self.as_mut_slice().last_mut() {
            // SAFETY: as above.
            unsafe { std::ptr::from_mut(last).write_volatile(*last) };
        }
    }

    /// First address, for a transport that fills it by a system call.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes as usize
    }

    /// Is it of length 0?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// The bytes of a buffer.
///
/// # Safety
/// The range was checked to lie in the rank's slot or in the program; it was a slice, and stays borrowed by the
/// contract above for longer than `'a`.
#[inline]
unsafe fn bytes_at<'a>(rank: Rank, address: u64, bytes: u64) -> &'a [u8] {
    if bytes == 0 {
        return &[];
    }
    assert_hosted(rank);
    // SAFETY: by the caller; a slot that is hosted is mapped.
    unsafe {
        std::slice::from_raw_parts(
            std::ptr::with_exposed_provenance(address as usize),
            bytes as usize,
        )
    }
}

#[inline]
fn assert_hosted(rank: Rank) {
    assert!(
        hosted::is_hosted(rank),
        "a buffer of {rank} was used in a process that does not host it"
    );
}

/// Does the range lie on the rank's stack or in its heap?
#[inline]
fn is_in_slot(rank: Rank, address: u64, bytes: u64) -> bool {
    let Some(header) = hosted::header(rank) else {
        return false;
    };
    let Some(start) = address.checked_sub(header.addr() as u64) else {
        return false;
    };
    let Some(end) = start.checked_add(bytes) else {
        return false;
    };
    start >= Regions::guard().end && end <= hosted::slot_bytes() - Regions::END_GUARD_BYTES
}

/// Does the range lie in the constants of the program or a library, the same in every process?
fn is_in_program(address: u64, bytes: u64) -> bool {
    static RANGES: OnceLock<Vec<Range<usize>>> = OnceLock::new();
    let ranges = in_process(|| RANGES.get_or_init(identity::constant_ranges));
    let (Ok(start), Ok(bytes)) = (usize::try_from(address), usize::try_from(bytes)) else {
        return false;
    };
    ranges
        .iter()
        .any(|range| range.start <= start && start <= range.end && bytes <= range.end - start)
}
