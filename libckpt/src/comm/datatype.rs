//! What can be sent: plain data, and buffers of it (MPI 4.1, chapter 5).
//!
//! A message is the bytes of its elements as they lie in memory, so an element must be a type whose every
//! bit pattern is a value and which has no padding. The traits of the `zerocopy` crate say exactly this and
//! are derived, not promised: no `unsafe` is needed to send a type of one's own.
//!
//! ```
//! #[libckpt::datatype]
//! #[derive(Debug, PartialEq)]
//! struct Particle {
//!     position: [f64; 3],
//!     charge: f64,
//! }
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::{Error, Result};

/// A type that can be an element of a message (MPI 4.1, 5.1: a datatype).
///
/// Integers, floats, and arrays of such types have it; [`datatype`](macro@crate::datatype) gives it to a
/// struct. `bool` and `char` are no plain data, as not every bit pattern is a value of theirs: send `u8` and
/// `u32`.
pub trait Equivalence: FromBytes + IntoBytes + Immutable + Copy + 'static {}

macro_rules! plain {
    ($($type:ty)*) => {$(
        impl Equivalence for $type {}
    )*};
}

plain!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

impl<T: Equivalence, const N: usize> Equivalence for [T; N] {}

/// Something that can be sent: one element, a slice, an array in a slice, or a `Vec` of elements.
pub trait Buffer {
    /// What the buffer is made of.
    type Element: Equivalence;

    /// The elements.
    fn elements(&self) -> &[Self::Element];
}

/// Something that can be received into.
pub trait BufferMut: Buffer {
    /// The elements.
    fn elements_mut(&mut self) -> &mut [Self::Element];
}

impl<T: Equivalence> Buffer for T {
    type Element = T;

    fn elements(&self) -> &[T] {
        std::slice::from_ref(self)
    }
}

impl<T: Equivalence> BufferMut for T {
    fn elements_mut(&mut self) -> &mut [T] {
        std::slice::from_mut(self)
    }
}

impl<T: Equivalence> Buffer for [T] {
    type Element = T;

    fn elements(&self) -> &[T] {
        self
    }
}

impl<T: Equivalence> BufferMut for [T] {
    fn elements_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<T: Equivalence> Buffer for Vec<T> {
    type Element = T;

    fn elements(&self) -> &[T] {
        self
    }
}

impl<T: Equivalence> BufferMut for Vec<T> {
    /// The elements that the `Vec` has: a receive never makes it longer.
    fn elements_mut(&mut self) -> &mut [T] {
        self
    }
}

/// The bytes of a buffer.
pub(crate) fn bytes_of<B: Buffer + ?Sized>(buffer: &B) -> &[u8] {
    buffer.elements().as_bytes()
}

/// The bytes of a buffer, to receive into.
pub(crate) fn bytes_of_mut<B: BufferMut + ?Sized>(buffer: &mut B) -> &mut [u8] {
    buffer.elements_mut().as_mut_bytes()
}

/// How many elements of `T` a message of so many bytes has; `None` if it is no whole number (MPI 4.1, 3.2.5,
/// where the count would be `MPI_UNDEFINED`).
pub(crate) fn count_in<T>(bytes: usize) -> Option<usize> {
    match size_of::<T>() {
        0 => (bytes == 0).then_some(0),
        element_bytes => bytes
            .is_multiple_of(element_bytes)
            .then_some(bytes / element_bytes),
    }
}

/// [`count_in`], or the error that says why not.
pub(crate) fn whole_count<T>(message_bytes: usize) -> Result<usize> {
    count_in::<T>(message_bytes).ok_or(Error::InvalidType {
        message_bytes,
        element_bytes: size_of::<T>(),
        type_name: std::any::type_name::<T>(),
    })
}

/// Blocks of a buffer, one for each rank (MPI 4.1, 6.5: counts and displacements).
#[derive(Clone, Copy, Debug)]
pub struct Partition<'b, T> {
    elements: &'b [T],
    blocks: Blocks<'b>,
}

/// Blocks of a buffer to receive into, one for each rank. They do not overlap.
#[derive(Debug)]
pub struct PartitionMut<'b, T> {
    elements: &'b mut [T],
    blocks: Blocks<'b>,
}

/// Where blocks lie in a buffer, in elements.
#[derive(Clone, Copy, Debug)]
struct Blocks<'b> {
    counts: &'b [usize],
    /// `None`: one behind the other.
    displacements: Option<&'b [usize]>,
}

impl<'b> Blocks<'b> {
    fn check(
        counts: &'b [usize],
        displacements: Option<&'b [usize]>,
        elements: usize,
    ) -> Result<Self> {
        if let Some(displacements) = displacements
            && displacements.len() != counts.len()
        {
            return Err(Error::InvalidCount {
                what: "displacements of a partition",
                expected: counts.len(),
                found: displacements.len(),
            });
        }
        let blocks = Self {
            counts,
            displacements,
        };
        let mut end = 0_usize;
        for (index, &count) in counts.iter().enumerate() {
            let start = displacements.map_or(end, |displacements| displacements[index]);
            end = start.saturating_add(count);
            if end > elements {
                return Err(Error::InvalidCount {
                    what: "elements in the buffer of a partition",
                    expected: end,
                    found: elements,
                });
            }
        }
        Ok(blocks)
    }

    /// Start and count of each block.
    fn ranges(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut end = 0;
        self.counts.iter().enumerate().map(move |(index, &count)| {
            let start = self
                .displacements
                .map_or(end, |displacements| displacements[index]);
            end = start + count;
            (start, count)
        })
    }
}

impl<'b, T: Equivalence> Partition<'b, T> {
    /// Block `i` has `counts[i]` elements from `displacements[i]` on.
    ///
    /// # Errors
    /// A block that goes beyond the buffer, or lists of different lengths.
    pub fn new<B>(buffer: &'b B, counts: &'b [usize], displacements: &'b [usize]) -> Result<Self>
    where
        B: Buffer<Element = T> + ?Sized,
    {
        let elements = buffer.elements();
        let blocks = Blocks::check(counts, Some(displacements), elements.len())?;
        Ok(Self { elements, blocks })
    }

    /// Blocks of `counts[i]` elements, one behind the other.
    ///
    /// # Errors
    /// The counts add up to more than the buffer has.
    pub fn packed<B>(buffer: &'b B, counts: &'b [usize]) -> Result<Self>
    where
        B: Buffer<Element = T> + ?Sized,
    {
        let elements = buffer.elements();
        let blocks = Blocks::check(counts, None, elements.len())?;
        Ok(Self { elements, blocks })
    }

    /// Number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.counts.len()
    }

    /// True if there is no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.counts.is_empty()
    }

    /// The bytes of each block, in the order of the blocks.
    pub(crate) fn split(&self) -> Vec<&'b [u8]> {
        let elements = self.elements;
        self.blocks
            .ranges()
            .map(|(start, count)| elements[start..start + count].as_bytes())
            .collect()
    }
}

impl<'b, T: Equivalence> PartitionMut<'b, T> {
    /// Block `i` has `counts[i]` elements from `displacements[i]` on.
    ///
    /// # Errors
    /// A block that goes beyond the buffer or into another block, or lists of different lengths.
    pub fn new<B>(
        buffer: &'b mut B,
        counts: &'b [usize],
        displacements: &'b [usize],
    ) -> Result<Self>
    where
        B: BufferMut<Element = T> + ?Sized,
    {
        let elements = buffer.elements_mut();
        let blocks = Blocks::check(counts, Some(displacements), elements.len())?;
        let mut ranges: Vec<_> = blocks.ranges().filter(|&(_, count)| count > 0).collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let end = pair[0].0 + pair[0].1;
            if pair[1].0 < end {
                return Err(Error::InvalidCount {
                    what: "blocks of a partition to receive into overlap; the start of the later one",
                    expected: end,
                    found: pair[1].0,
                });
            }
        }
        Ok(Self { elements, blocks })
    }

    /// Blocks of `counts[i]` elements, one behind the other.
    ///
    /// # Errors
    /// The counts add up to more than the buffer has.
    pub fn packed<B>(buffer: &'b mut B, counts: &'b [usize]) -> Result<Self>
    where
        B: BufferMut<Element = T> + ?Sized,
    {
        let elements = buffer.elements_mut();
        let blocks = Blocks::check(counts, None, elements.len())?;
        Ok(Self { elements, blocks })
    }

    /// Number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.counts.len()
    }

    /// True if there is no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.counts.is_empty()
    }

    /// The bytes of each block, in the order of the blocks.
    pub(crate) fn split(&mut self) -> Vec<&mut [u8]> {
        let mut ranges: Vec<_> = self
            .blocks
            .ranges()
            .enumerate()
            .map(|(index, (start, count))| (start, count, index))
            .collect();
        // Empty blocks may stand inside of others; they take nothing of the buffer.
        ranges.retain(|&(_, count, _)| count > 0);
        ranges.sort_unstable();
        let mut parts: Vec<&mut [u8]> = Vec::new();
        parts.resize_with(self.blocks.counts.len(), Default::default);
        let mut rest = &mut *self.elements;
        let mut taken = 0;
        for (start, count, index) in ranges {
            let (_, behind) = rest.split_at_mut(start - taken);
            let (block, behind) = behind.split_at_mut(count);
            parts[index] = block.as_mut_bytes();
            rest = behind;
            taken = start + count;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_element_a_slice_and_a_vec_are_buffers() {
        assert_eq!(bytes_of(&0x0102_u16), 0x0102_u16.to_ne_bytes());
        assert_eq!(bytes_of(&[1_u8, 2][..]), [1, 2]);
        assert_eq!(bytes_of(&vec![[1_u8, 2], [3, 4]]), [1, 2, 3, 4]);
        assert_eq!(Vec::<f64>::new().elements().len(), 0);
        let mut one = 0_u32;
        bytes_of_mut(&mut one).copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(one, 7);
    }

    #[test]
    fn a_message_that_is_no_whole_number_of_elements_has_no_count() {
        assert_eq!(count_in::<u64>(24), Some(3));
        assert_eq!(count_in::<u64>(23), None);
        assert_eq!(count_in::<[f64; 0]>(0), Some(0));
        assert_eq!(count_in::<[f64; 0]>(8), None);
        let error = whole_count::<u64>(23).unwrap_err().to_string();
        assert!(
            error.contains("23 bytes") && error.contains("u64"),
            "{error}"
        );
    }

    #[test]
    fn blocks_may_lie_in_any_order_and_leave_gaps() {
        let mut buffer = [0_u8; 8];
        let mut partition = PartitionMut::new(&mut buffer[..], &[2, 0, 3], &[6, 1, 0]).unwrap();
        let mut blocks = partition.split();
        blocks[0].fill(1);
        blocks[2].fill(3);
        assert!(blocks[1].is_empty());
        assert_eq!(buffer, [3, 3, 3, 0, 0, 0, 1, 1]);
        let blocks = Partition::new(&buffer[..], &[2, 0, 3], &[6, 1, 0])
            .unwrap()
            .split();
        assert_eq!(blocks, [&[1_u8, 1][..], &[], &[3, 3, 3]]);
    }

    #[test]
    fn packed_blocks_lie_one_behind_the_other() {
        let buffer = [1_u16, 2, 3, 4];
        let blocks = Partition::packed(&buffer[..], &[1, 0, 2]).unwrap().split();
        assert_eq!(
            blocks.iter().map(|block| block.len()).collect::<Vec<_>>(),
            [2, 0, 4]
        );
        assert_eq!(blocks[2], [2_u16, 3].as_bytes());
    }

    #[test]
    fn blocks_beyond_the_buffer_or_into_another_are_refused() {
        let mut buffer = [0_u8; 4];
        assert!(Partition::new(&buffer[..], &[2, 3], &[0, 2]).is_err());
        assert!(Partition::new(&buffer[..], &[1], &[usize::MAX]).is_err());
        assert!(Partition::new(&buffer[..], &[1, 1], &[0]).is_err());
        assert!(PartitionMut::packed(&mut buffer[..], &[3, 2]).is_err());
        assert!(PartitionMut::new(&mut buffer[..], &[2, 2], &[0, 1]).is_err());
        // Reading the same elements twice is allowed.
        assert!(Partition::new(&buffer[..], &[2, 2], &[0, 1]).is_ok());
        // An empty block inside another takes nothing.
        assert!(PartitionMut::new(&mut buffer[..], &[4, 0], &[0, 2]).is_ok());
    }
}
