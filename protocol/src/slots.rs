//! Where slots lie: arithmetic only, the same in every process of a job (design 3.1).

use serde::{Deserialize, Serialize};

use crate::ids::Rank;

/// First address of slot 0: above everything that a program maps low, far below the program itself.
pub const ORIGIN: u64 = 0x0100_0000_0000;

/// End of the slots' range: below `0x5555_5555_4000`, where Linux loads a position-independent
/// program when address randomisation is off.
pub const END: u64 = 0x5500_0000_0000;

/// Address space of a slot where nothing else is asked, in bytes.
pub const SLOT_BYTES_DEFAULT: u64 = 64 << 30;

/// The smallest slot, in bytes.
pub const SLOT_BYTES_MIN: u64 = 64 << 20;

/// Address space of a rank's stack where nothing else is asked, in bytes. Only touched pages cost memory.
pub const STACK_BYTES_DEFAULT: u64 = 64 << 20;

/// The smallest stack, in bytes.
pub const STACK_BYTES_MIN: u64 = 128 << 10;

/// The slots of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotLayout {
    ranks: u32,
    slot_bytes: u64,
    stack_bytes: u64,
}

/// Why slots of the sizes asked for can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotLayoutError {
    /// The slot size is no power of two, or below [`SLOT_BYTES_MIN`].
    #[error(
        "slot size {slot_bytes} is not a power of two of at least {SLOT_BYTES_MIN} bytes; choose another --slot-size"
    )]
    SlotBytes {
        /// The size asked for.
        slot_bytes: u64,
    },
    /// The stack is too small, not a whole number of 4 KiB pages, or more than half the slot.
    #[error(
        "stack size {stack_bytes} must be a multiple of 4096, at least {STACK_BYTES_MIN} and at most half the slot size {slot_bytes}; choose another --stack-size"
    )]
    StackBytes {
        /// The stack size asked for.
        stack_bytes: u64,
        /// The slot size.
        slot_bytes: u64,
    },
    /// The slots do not fit between [`ORIGIN`] and [`END`].
    #[error("{ranks} slots of {slot_bytes} bytes do not fit into the {} bytes of address space kept for slots; choose a smaller --slot-size or fewer ranks", END - ORIGIN)]
    TooMany {
        /// Number of ranks.
        ranks: u32,
        /// The slot size.
        slot_bytes: u64,
    },
}

impl SlotLayout {
    /// Slots of the given size.
    ///
    /// # Errors
    /// Names the size that can't be.
    pub fn new(ranks: u32, slot_bytes: u64, stack_bytes: u64) -> Result<Self, SlotLayoutError> {
        if !slot_bytes.is_power_of_two() || slot_bytes < SLOT_BYTES_MIN {
            return Err(SlotLayoutError::SlotBytes { slot_bytes });
        }
        if !stack_bytes.is_multiple_of(4096)
            || stack_bytes < STACK_BYTES_MIN
            || stack_bytes > slot_bytes / 2
        {
            return Err(SlotLayoutError::StackBytes {
                stack_bytes,
                slot_bytes,
            });
        }
        if u128::from(ranks) * u128::from(slot_bytes) > u128::from(END - ORIGIN) {
            return Err(SlotLayoutError::TooMany { ranks, slot_bytes });
        }
        Ok(Self {
            ranks,
            slot_bytes,
            stack_bytes,
        })
    }

    /// The largest slot size, at most [`SLOT_BYTES_DEFAULT`], at which all ranks fit.
    #[must_use]
    pub fn fitting_slot_bytes(ranks: u32) -> u64 {
        let mut slot_bytes = SLOT_BYTES_DEFAULT;
        while u64::from(ranks).saturating_mul(slot_bytes) > END - ORIGIN {
            slot_bytes /= 2;
        }
        slot_bytes
    }

    /// Number of slots.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Address space of a slot, in bytes.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Address space of a stack, in bytes.
    #[must_use]
    pub fn stack_bytes(&self) -> u64 {
        self.stack_bytes
    }

    /// First address of a rank's slot.
    #[must_use]
    pub fn address(&self, rank: Rank) -> u64 {
        ORIGIN + u64::from(rank.0) * self.slot_bytes
    }

    /// The rank in whose slot an address lies.
    #[must_use]
    pub fn rank_of(&self, address: u64) -> Option<Rank> {
        let index = address.checked_sub(ORIGIN)? / self.slot_bytes;
        u32::try_from(index)
            .ok()
            .filter(|&rank| rank < self.ranks)
            .map(Rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_many_ranks_shrink_until_they_fit() {
        assert_eq!(SlotLayout::fitting_slot_bytes(4), 64 << 30);
        let many = SlotLayout::fitting_slot_bytes(10_000);
        assert!(many < 64 << 30);
        SlotLayout::new(10_000, many, STACK_BYTES_DEFAULT).unwrap();
    }

    #[test]
    fn an_address_belongs_to_the_slot_around_it() {
        let layout = SlotLayout::new(3, 64 << 30, STACK_BYTES_DEFAULT).unwrap();
        assert_eq!(layout.rank_of(layout.address(Rank(2))), Some(Rank(2)));
        assert_eq!(layout.rank_of(layout.address(Rank(2)) - 1), Some(Rank(1)));
        assert_eq!(layout.rank_of(layout.address(Rank(2)) + (64 << 30)), None);
        assert_eq!(layout.rank_of(ORIGIN - 1), None);
    }
}
