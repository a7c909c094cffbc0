//! One link as a ring of packets, and its two ends.
//!
//! # The ring
//!
//! Positions count bytes from the start of the link and only grow; the offset in the ring is the
//! position modulo its size. A packet is a *frame*: a header word, then the payload, in whole cache
//! lines and without a break, so that the receiver can hand out the payload where it lies. Where a frame
//! would not fit before the end of the ring, a *skip* header sends the receiver to the start.
//!
//! There is no shared tail. The header word itself says that a frame is there: it is zero before, and
//! written last. So a short packet travels in the one cache line that the receiver is looking at anyway,
//! where a tail would cost a second line, one after the other.
//!
//! The sender keeps this invariant: **the header word at its tail is zero until the frame there is
//! complete.** Before it publishes a frame it zeroes the header after it. Zeroing takes the line away
//! from the receiver, so it is done ahead for several lines, after publishing, when nobody waits for it.
//!
//! # Why the memory ordering is enough
//!
//! - *A packet is read whole.* Payload and the zero of the next header are written before the header
//!   (a store at least `Release`); the receiver loads the header with `Acquire` before it reads either. The
//!   next header it finds is therefore zero or the next frame's, never an old byte. The same holds through a
//!   skip: the frame at the start of the ring is complete before the skip header is published.
//! - *Nothing is overwritten while it is read.* The receiver stores `head` with `Release` after its last
//!   read of a frame; the sender loads it with `Acquire` before it writes there.
//! - *A process killed at any instruction* leaves its header word unwritten (the frame never was) or written
//!   (everything before it is there too: another core sees the stores in an order that respects `Release`,
//!   and being killed does not undo a store). A survivor sees whole packets only.
//!
//! Publishing is sequentially consistent because the sender then looks whether the receiver watches or
//! sleeps (see [`Bell`](crate::waker::Bell)).
//!
//! The bytes of a payload are ordinary memory to both ends; that no one writes while another reads
//! is the protocol above, which all processes of the job run from the same program. A peer that breaks
//! it on purpose is outside of what is defended: it could as well write into our memory with ptrace.

use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::packet_bytes_max;
use super::link::LinkControl;
use super::mapping::{Mapping, Shared};

/// Bytes of the header word of a frame.
pub(super) const FRAME_HEADER_BYTES: usize = 8;

/// Frames are whole cache lines of this size.
pub(super) const LINE_BYTES: usize = 64;

/// How far ahead header words are zeroed at once.
const CLEAN_AHEAD_BYTES: u64 = 16 * LINE_BYTES as u64;

/// A sender that finds all its packets read starts over at the ring's start after so many bytes,
/// instead of going on to its end: a quiet link then uses a few pages of memory and of cache only.
const REWIND_BYTES: u64 = 16 << 10;

/// Upper half of a header word: a packet, its length in the lower half.
const PACKET: u64 = 0x504b_5431 << 32;

/// The header word that sends the receiver to the start of the ring.
const SKIP: u64 = 0x534b_4950 << 32;

const KIND: u64 = 0xffff_ffff << 32;

/// What can't be in a ring, and where it was seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Impossible {
    pub what: &'static str,
    pub position: u64,
}

/// The bytes of a ring.
struct Ring {
    base: NonNull<u8>,
    bytes: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: a place in a mapping of the process, which is kept alive; who may touch which bytes is the
// ring's protocol and does not depend on the thread.
unsafe impl Send for Ring {}

impl Ring {
    fn new(mapping: &Arc<Mapping>, offset: usize, bytes: usize) -> Self {
        assert!(bytes.is_power_of_two() && offset.is_multiple_of(LINE_BYTES));
        Self {
            base: mapping.bytes(offset, bytes),
            bytes,
            _mapping: Arc::clone(mapping),
        }
    }

    fn offset(&self, position: u64) -> usize {
        // Lossless: smaller than the ring.
        (position & (self.bytes as u64 - 1)) as usize
    }

    /// The header word at a position, which is a multiple of the line size.
    fn header(&self, position: u64) -> &AtomicU64 {
        debug_assert!(position.is_multiple_of(LINE_BYTES as u64));
        // SAFETY: the offset is inside the ring, which is mapped as long as `self` lives, and aligned to 8
        // because position and base are multiples of a line. Both ends use header words as atomics as long
        // as they are header words; when the bytes are payload, only one end uses them at all.
        unsafe { AtomicU64::from_ptr(self.base.add(self.offset(position)).cast().as_ptr()) }
    }
}

/// The sending end.
pub(super) struct Sender {
    ring: Ring,
    control: Shared<LinkControl>,
    /// Where the next frame goes.
    tail: u64,
    /// Header words from `tail` up to here are zero, the one at `tail` at least.
    clean: u64,
    /// The receiver's head when it was last looked at.
    head_seen: u64,
    /// From this position on, it is worth a look whether to start over.
    rewind_from: u64,
}

impl Sender {
    /// The sending end of a link that has carried nothing yet.
    pub(super) fn new(
        mapping: &Arc<Mapping>,
        offset: usize,
        bytes: usize,
        control: Shared<LinkControl>,
    ) -> Self {
        Self {
            ring: Ring::new(mapping, offset, bytes),
            control,
            tail: 0,
            // Fresh memory is zero.
            clean: bytes as u64,
            head_seen: 0,
            rewind_from: REWIND_BYTES,
        }
    }

    pub(super) fn control(&self) -> &LinkControl {
        &self.control
    }

    /// How many bytes of the ring a packet takes now, with what is skipped before it and the header after it.
    fn needed_bytes(&self, payload_bytes: usize) -> u64 {
        let frame = frame_bytes(payload_bytes);
        (self.skip_bytes(frame) + frame + LINE_BYTES) as u64
    }

    /// What is left before the end of the ring, if a frame of this size does not fit there.
    fn skip_bytes(&self, frame: usize) -> usize {
        let rest = self.ring.bytes - self.ring.offset(self.tail);
        if frame > rest { rest } else { 0 }
    }

    /// Whether everything is read, and the frame would fit at the ring's start if the rest of this lap
    /// were skipped. Reads a line that the receiver writes: not to be asked with every packet.
    fn may_rewind(&mut self, frame: usize) -> bool {
        self.rewind_from = self.tail + REWIND_BYTES;
        let offset = self.ring.offset(self.tail);
        // With the ring empty, the skipped rest, the frame and the next header must not exceed it.
        let fits = offset as u64 >= REWIND_BYTES && frame + LINE_BYTES <= offset;
        if fits && self.control.head() == self.tail {
            self.head_seen = self.tail;
            return true;
        }
        false
    }

    /// Whether a packet of this length fits now.
    pub(super) fn has_room(&mut self, payload_bytes: usize) -> Result<bool, Impossible> {
        let end = self.tail + self.needed_bytes(payload_bytes);
        let ring_bytes = self.ring.bytes as u64;
        if end - self.head_seen <= ring_bytes {
            return Ok(true);
        }
        let head = self.control.head();
        if head < self.head_seen || head > self.tail {
            return Err(Impossible {
                what: "the receiver's position is out of range",
                position: head,
            });
        }
        self.head_seen = head;
        Ok(end - head <= ring_bytes)
    }

    /// Sends a packet; `false` if there is no room. The parts' lengths add up to `payload_bytes`, which
    /// is at most what a ring of this size carries.
    #[inline]
    pub(super) fn send(
        &mut self,
        payload_bytes: usize,
        parts: &[&[u8]],
    ) -> Result<bool, Impossible> {
        assert!(payload_bytes <= packet_bytes_max(self.ring.bytes));
        if !self.has_room(payload_bytes)? {
            return Ok(false);
        }
        let line = LINE_BYTES as u64;
        let frame = frame_bytes(payload_bytes);
        let skip = if self.tail >= self.rewind_from && self.may_rewind(frame) {
            self.ring.bytes - self.ring.offset(self.tail)
        } else {
            self.skip_bytes(frame)
        };
        let start = self.tail + skip as u64;
        let end = start + frame as u64;

        let offset = self.ring.offset(start);
        assert!(offset + frame <= self.ring.bytes);
        let mut at = offset + FRAME_HEADER_BYTES;
        let frame_end = offset + frame;
        for part in parts {
            assert!(part.len() <= frame_end - at);
            // SAFETY: the part fits into the frame, and the frame into the ring (just checked). The receiver
            // does not touch it: it is beyond its head (has_room) and not published. `part` is no place in the
            // ring, since views of a ring can't outlive the callback of a poll, which has no access to us.
            unsafe {
                ptr::copy_nonoverlapping(
                    part.as_ptr(),
                    self.ring.base.add(at).as_ptr(),
                    part.len(),
                );
            }
            at += part.len();
        }
        if self.clean < end + line {
            self.ring.header(end).store(0, Ordering::Relaxed);
            self.clean = end + line;
        }
        let header = PACKET | payload_bytes as u64;
        if skip > 0 {
            self.ring.header(start).store(header, Ordering::Relaxed);
            self.ring.header(self.tail).store(SKIP, Ordering::SeqCst);
        } else {
            self.ring.header(start).store(header, Ordering::SeqCst);
        }
        self.tail = end;
        Ok(true)
    }

    /// Zeroes header words ahead, where short packets will need it soon. To be called when nobody
    /// waits for the sender.
    #[inline]
    pub(super) fn clean_ahead(&mut self) {
        if self.clean - self.tail <= LINE_BYTES as u64 {
            let free_end = self.head_seen + self.ring.bytes as u64;
            let end = (self.tail + CLEAN_AHEAD_BYTES).min(free_end);
            while self.clean < end {
                self.ring.header(self.clean).store(0, Ordering::Relaxed);
                self.clean += LINE_BYTES as u64;
            }
        }
    }
}

/// The receiving end.
pub(super) struct Receiver {
    ring: Ring,
    control: Shared<LinkControl>,
    head: u64,
    /// Read since the sender was last told about room.
    unreported_bytes: u64,
    /// When this link last had a packet, in the owner's count of turns.
    pub last_turn: u64,
}

impl Receiver {
    /// The receiving end of a link that has carried nothing yet.
    pub(super) fn new(
        mapping: &Arc<Mapping>,
        offset: usize,
        bytes: usize,
        control: Shared<LinkControl>,
    ) -> Self {
        Self {
            ring: Ring::new(mapping, offset, bytes),
            control,
            head: 0,
            unreported_bytes: 0,
            last_turn: 0,
        }
    }

    pub(super) fn control(&self) -> &LinkControl {
        &self.control
    }

    /// Whether something is there. Sequentially consistent, for a last look before sleeping.
    #[inline]
    pub(super) fn has_packet(&self) -> bool {
        self.ring.header(self.head).load(Ordering::SeqCst) != 0
    }

    /// Takes one packet, if there is one: `take` gets its payload, which is the sender's again afterwards.
    #[inline]
    pub(super) fn receive(&mut self, take: impl FnOnce(&[u8])) -> Result<bool, Impossible> {
        let mut header = self.ring.header(self.head).load(Ordering::Acquire);
        if header == 0 {
            return Ok(false);
        }
        let mut start = self.head;
        if header == SKIP {
            let offset = self.ring.offset(start);
            if offset == 0 {
                return Err(self.impossible("a skip at the start of the ring"));
            }
            start += (self.ring.bytes - offset) as u64;
            header = self.ring.header(start).load(Ordering::Acquire);
        }
        if header & KIND != PACKET {
            return Err(self.impossible("no frame where one must be"));
        }
        // Lossless: 32 bits.
        let payload_bytes = (header & !KIND) as usize;
        let offset = self.ring.offset(start);
        if payload_bytes > packet_bytes_max(self.ring.bytes)
            || frame_bytes(payload_bytes) > self.ring.bytes - offset
        {
            return Err(self.impossible("a frame longer than a link carries"));
        }
        // SAFETY: inside the ring (just checked), published with Release before the header that was loaded
        // with Acquire, and not written by the sender until `head` moves past it below.
        let payload = unsafe {
            let at = self.ring.base.add(offset + FRAME_HEADER_BYTES);
            slice::from_raw_parts(at.as_ptr(), payload_bytes)
        };
        take(payload);
        let end = start + frame_bytes(payload_bytes) as u64;
        self.unreported_bytes += end - self.head;
        self.head = end;
        self.control.set_head(end);
        Ok(true)
    }

    /// Whether the sender is to be told that there is room: now and then while packets come, and when
    /// there are none left (`empty`). Clears its wish.
    #[inline]
    pub(super) fn owes_room(&mut self, empty: bool) -> bool {
        let due = if empty {
            self.unreported_bytes > 0
        } else {
            self.unreported_bytes >= self.ring.bytes as u64 / 4
        };
        due && self.report_room()
    }

    fn report_room(&mut self) -> bool {
        self.unreported_bytes = 0;
        self.control.report_head(self.head);
        self.control.take_wants_room()
    }

    fn impossible(&self, what: &'static str) -> Impossible {
        Impossible {
            what,
            position: self.head,
        }
    }
}

/// Bytes that a packet takes in a ring.
const fn frame_bytes(payload_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + payload_bytes).next_multiple_of(LINE_BYTES)
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
