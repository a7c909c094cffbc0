//! Which byte of the shared memory belongs to what.
//!
//! ```text
//! header                      one page
//! records    [process]        bell, pending links, pid
//! links      [to][from]       what the ends of a link tell each other
//! rings      [to][from]       the packets
//! ```
//!
//! Everything starts as zeros, and zeros are the right start for everything but the header, so no page
//! is touched before it is needed: links that are never used cost address space only.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::link::LinkControl;
use super::mapping::Record;
use super::ring::{FRAME_HEADER_BYTES, LINE_BYTES};

/// The most processes that share one region: their pending bits fill one cache line.
pub const PROCESSES_MAX: u32 = 512;

/// Bytes of a ring while the job has few processes. A ring should hold several of the largest
/// packets, so that sender and receiver copy at the same time, and stay well within a core's
/// second-level cache.
pub const RING_BYTES_MAX: usize = 256 << 10;

/// Bytes of the smallest ring, for jobs of very many processes.
const RING_BYTES_MIN: usize = 16 << 10;

/// What all rings together may come to before they are made smaller: what a job costs if every
/// process talks to every other.
const RINGS_BYTES_MAX: usize = 256 << 20;

/// A ring holds at least this many of the largest packets.
const PACKETS_PER_RING_MIN: usize = 4;

const PAGE_BYTES: usize = 4096;

/// First bytes of the region.
pub(super) const MAGIC: [u8; 8] = *b"CKPTRING";

/// Version of everything in this folder that two processes must agree on.
pub(super) const VERSION: u32 = 1;

/// The largest packet that a ring of this size carries, in bytes.
#[must_use]
pub const fn packet_bytes_max(ring_bytes: usize) -> usize {
    ring_bytes / PACKETS_PER_RING_MIN - FRAME_HEADER_BYTES
}

/// The start of the region, by which a process sees that it understands the rest.
///
/// Only ever read by the same program on the same machine: native byte order.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    pub processes: u32,
    pub ring_bytes: u64,
    pub region_bytes: u64,
    pub creator_pid: u32,
    pub reserved: u32,
}

/// Where everything lies, from the two numbers that decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub processes: usize,
    pub ring_bytes: usize,
}

impl Layout {
    /// The layout for a job of this many processes, at most [`PROCESSES_MAX`].
    pub(super) fn of_job(processes: usize) -> Self {
        let mut ring_bytes = RING_BYTES_MAX;
        while ring_bytes > RING_BYTES_MIN && processes * processes * ring_bytes > RINGS_BYTES_MAX {
            ring_bytes /= 2;
        }
        Self {
            processes,
            ring_bytes,
        }
    }

    pub(super) fn record(&self, process: usize) -> usize {
        assert!(process < self.processes);
        PAGE_BYTES + process * size_of::<Record>()
    }

    fn links(&self) -> usize {
        (PAGE_BYTES + self.processes * size_of::<Record>()).next_multiple_of(PAGE_BYTES)
    }

    pub(super) fn link(&self, to: usize, from: usize) -> usize {
        assert!(to < self.processes && from < self.processes);
        self.links() + (to * self.processes + from) * size_of::<LinkControl>()
    }

    fn rings(&self) -> usize {
        (self.links() + self.processes * self.processes * size_of::<LinkControl>())
            .next_multiple_of(PAGE_BYTES)
    }

    pub(super) fn ring(&self, to: usize, from: usize) -> usize {
        assert!(to < self.processes && from < self.processes);
        self.rings() + (to * self.processes + from) * self.ring_bytes
    }

    pub(super) fn region_bytes(&self) -> usize {
        self.rings() + self.processes * self.processes * self.ring_bytes
    }

    pub(super) fn header(&self, creator_pid: u32) -> Header {
        Header {
            magic: MAGIC,
            version: VERSION,
            // Lossless: bounded by PROCESSES_MAX when the region was made.
            processes: self.processes as u32,
            ring_bytes: self.ring_bytes as u64,
            region_bytes: self.region_bytes() as u64,
            creator_pid,
            reserved: 0,
        }
    }
}

const _: () = {
    assert!(RING_BYTES_MIN.is_power_of_two() && RING_BYTES_MAX.is_power_of_two());
    assert!(RING_BYTES_MIN.is_multiple_of(PAGE_BYTES));
    assert!(PROCESSES_MAX as usize == super::mapping::PENDING_WORDS * 64);
    // A packet, the rest of the ring skipped before it, and the next header always fit an empty ring.
    assert!(
        2 * (RING_BYTES_MIN / PACKETS_PER_RING_MIN + LINE_BYTES) + LINE_BYTES <= RING_BYTES_MIN
    );
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_everything_is_inside() {
        for processes in [1, 2, 3, 16, 64, 65, 512] {
            let layout = Layout::of_job(processes);
            let last = processes - 1;
            assert!(size_of::<Header>() <= layout.record(0));
            assert!(layout.record(last) + size_of::<Record>() <= layout.link(0, 0));
            assert!(layout.link(last, last) + size_of::<LinkControl>() <= layout.ring(0, 0));
            assert_eq!(
                layout.ring(last, last) + layout.ring_bytes,
                layout.region_bytes()
            );
            if processes > 1 {
                assert_eq!(layout.ring(0, 1) - layout.ring(0, 0), layout.ring_bytes);
                assert!(layout.ring(0, last) < layout.ring(1, 0));
            }
        }
    }

    #[test]
    fn places_start_at_cache_lines_and_rings_at_pages() {
        let layout = Layout::of_job(7);
        for to in 0..7 {
            assert_eq!(layout.record(to) % LINE_BYTES, 0);
            for from in 0..7 {
                assert_eq!(layout.link(to, from) % LINE_BYTES, 0);
                assert_eq!(layout.ring(to, from) % PAGE_BYTES, 0);
            }
        }
    }

    #[test]
    fn rings_shrink_with_the_number_of_processes_but_not_below_a_useful_size() {
        assert_eq!(Layout::of_job(2).ring_bytes, RING_BYTES_MAX);
        assert_eq!(Layout::of_job(16).ring_bytes, RING_BYTES_MAX);
        assert_eq!(Layout::of_job(64).ring_bytes, 64 << 10);
        assert_eq!(Layout::of_job(512).ring_bytes, RING_BYTES_MIN);
    }
}
