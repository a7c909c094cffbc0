//! The address range of a slot.

use std::io;
use std::ptr;

use protocol::ids::Rank;
use protocol::slots::SlotLayout;

use crate::context::in_process;
use crate::hosted;
use crate::layout::Regions;

/// Why a slot can't be.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The process has slots of another layout.
    #[error(
        "{rank}: slots of another layout ({in_force:?}) are in use in this process; end them first"
    )]
    OtherLayout {
        /// The rank asked for.
        rank: Rank,
        /// The layout of the slots there are.
        in_force: SlotLayout,
    },
    /// The rank's number is not one of the layout's.
    #[error("{rank} has no slot: the layout has {ranks}")]
    NoSuchRank {
        /// The rank asked for.
        rank: Rank,
        /// Slots in the layout.
        ranks: u32,
    },
    /// Something else is mapped where the slot has to lie.
    #[error(
        "{rank}: the address range {start:#x}-{end:#x} of its slot is taken by: {taken_by}; \
         a slot has to lie at the same address in every process"
    )]
    AddressTaken {
        /// The rank.
        rank: Rank,
        /// First address of the slot.
        start: u64,
        /// End of the slot.
        end: u64,
        /// The mapping that is there, as `/proc/self/maps` tells it.
        taken_by: String,
    },
    /// The kernel does not give that much address space.
    #[error(
        "{rank}: {slot_bytes} bytes of address space for its slot are refused: {limit}; \
         raise that, or choose a smaller --slot-size"
    )]
    NoMemory {
        /// The rank.
        rank: Rank,
        /// Bytes of the slot.
        slot_bytes: u64,
        /// The limit that stands in the way, as far as it can be told.
        limit: String,
    },
    /// Another failure of `mmap` or `mprotect`.
    #[error("{rank}: its slot at {start:#x} can't be mapped: {source}")]
    Map {
        /// The rank.
        rank: Rank,
        /// First address of the slot.
        start: u64,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The mapped range of a slot: zeroed memory with the guards in place. Unmapped when dropped.
pub(crate) struct Mapping {
    start: *mut u8,
    bytes: usize,
}

impl Mapping {
    /// Maps a rank's slot at its address.
    pub fn create(layout: &SlotLayout, rank: Rank) -> Result<Self, SlotError> {
        if rank.0 >= layout.ranks() {
            return Err(SlotError::NoSuchRank {
                rank,
                ranks: layout.ranks(),
            });
        }
        in_process(|| hosted::fix_layout(layout))
            .map_err(|in_force| SlotError::OtherLayout { rank, in_force })?;
        let start = layout.address(rank);
        let bytes = layout.slot_bytes();
        // SAFETY: MAP_FIXED_NOREPLACE puts nothing over an existing mapping.
        let at = unsafe {
            libc::mmap(
                ptr::with_exposed_provenance_mut(start as usize),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(explain(rank, start, bytes, io::Error::last_os_error()));
        }
        // The allocator and buffers turn addresses back into pointers.
        at.expose_provenance();
        let mapping = Self {
            start: at.cast(),
            bytes: bytes as usize,
        };
        if at as u64 != start {
            // A kernel before 4.17 takes the address as a hint.
            return Err(explain(
                rank,
                start,
                bytes,
                io::Error::from_raw_os_error(libc::EEXIST),
            ));
        }
        let regions = Regions::of(layout);
        for guard in [&regions.guard, &regions.end_guard] {
            // SAFETY: inside the mapping just made, where nothing lies yet.
            let answer = unsafe {
                libc::mprotect(
                    mapping.start.add(guard.start as usize).cast(),
                    (guard.end - guard.start) as usize,
                    libc::PROT_NONE,
                )
            };
            if answer != 0 {
                return Err(SlotError::Map {
                    rank,
                    start,
                    source: io::Error::last_os_error(),
                });
            }
        }
        Ok(mapping)
    }

    /// First address.
    pub fn start(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        crate::capture::guard::before_change(&(self.start.addr()..self.start.addr() + self.bytes));
        // SAFETY: mapped by `create` and owned since. Values that a rank left in it are not used any
        // more: the slot that could resume it is gone.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// Finds out what stands in the way of a mapping.
fn explain(rank: Rank, start: u64, slot_bytes: u64, source: io::Error) -> SlotError {
    match source.raw_os_error() {
        Some(libc::EEXIST) => SlotError::AddressTaken {
            rank,
            start,
            end: start + slot_bytes,
            taken_by: mapping_in(start, start + slot_bytes),
        },
        Some(libc::ENOMEM) => SlotError::NoMemory {
            rank,
            slot_bytes,
            limit: memory_limit(),
        },
        _ => SlotError::Map {
            rank,
            start,
            source,
        },
    }
}

/// The first mapping in an address range.
fn mapping_in(start: u64, end: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .find(|line| {
            let parse = |text: &str| u64::from_str_radix(text, 16).ok();
            line.split_once(' ')
                .and_then(|(range, _)| range.split_once('-'))
                .and_then(|(from, to)| Some((parse(from)?, parse(to)?)))
                .is_some_and(|(from, to)| from < end && start < to)
        })
        .map_or_else(|| "(unknown)".to_owned(), str::to_owned)
}

/// Why the kernel has no address space to give.
fn memory_limit() -> String {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: writes into a local.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    if limit.rlim_cur != libc::RLIM_INFINITY {
        return format!(
            "the limit on address space is {} bytes (ulimit -v)",
            limit.rlim_cur
        );
    }
    let overcommit = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if overcommit.trim() == "2" {
        return "the kernel does not overcommit memory (vm.overcommit_memory is 2)".to_owned();
    }
    "out of memory (ENOMEM), or too many mappings (vm.max_map_count)".to_owned()
}
