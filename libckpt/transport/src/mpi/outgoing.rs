//! Packets on their way to one peer.
//!
//! MPI keeps no copy of what it sends later, so a packet is gathered in a buffer that stays until MPI is done
//! with it. Mostly that is at once, and one buffer serves for all.

use std::collections::VecDeque;
use std::ffi::c_int;

use super::call::{self, MPI_Comm, MPI_Request, Outcome};

/// Packets to one peer that MPI may be busy with at a time. Further ones find no room.
const UNDER_WAY_MAX: usize = 32;

/// Buffers kept for the next packets.
const SPARE_MAX: usize = 64;

/// Empty buffers. Their heap memory stays where it is when they move, as MPI wants it.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    #[inline]
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    #[inline]
    pub(super) fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.0.len() < SPARE_MAX {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    under_way: VecDeque<(MPI_Request, Vec<u8>)>,
    /// The peer was told that there is a link.
    pub(super) said_hello: bool,
}

impl Outgoing {
    /// Sends a packet, or tells that there is no room.
    #[inline]
    pub(super) fn send(
        &mut self,
        parts: &[&[u8]],
        to: c_int,
        comm: MPI_Comm,
        buffers: &mut Buffers,
    ) -> Outcome<bool> {
        if !self.under_way.is_empty() && !self.has_room(buffers)? {
            return Ok(false);
        }
        let mut packet = buffers.take();
        for part in parts {
            packet.extend_from_slice(part);
        }
        // SAFETY: the buffer's memory is kept, unchanged, until the request is complete.
        let mut request = unsafe { call::send(&packet, to, 0, comm)? };
        if call::test(&mut request)?.is_some() {
            buffers.give_back(packet);
        } else {
            self.under_way.push_back((request, packet));
        }
        Ok(true)
    }

    /// Whether there is room for a packet, after letting go of those that MPI is done with.
    pub(super) fn has_room(&mut self, buffers: &mut Buffers) -> Outcome<bool> {
        while let Some((request, _)) = self.under_way.front_mut() {
            if call::test(request)?.is_none() {
                break;
            }
            if let Some((_, packet)) = self.under_way.pop_front() {
                buffers.give_back(packet);
            }
        }
        Ok(self.under_way.len() < UNDER_WAY_MAX)
    }

    /// Whether MPI is done with all packets.
    pub(super) fn is_done(&mut self, buffers: &mut Buffers) -> Outcome<bool> {
        self.has_room(buffers)?;
        Ok(self.under_way.is_empty())
    }
}

impl Drop for Outgoing {
    /// MPI may still read what it is busy with: that is never given back.
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.under_way));
    }
}
