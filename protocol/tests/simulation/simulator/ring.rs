//! A link between two processes: packets arrive in order and once, after a while; it holds only so many.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::migration::MoveControl;
use protocol::participant::LinkControl;
use serde::{Deserialize, Serialize};

use super::rank::Packet;

/// What is on a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum OnLink {
    Control(LinkControl),
    Move(MoveControl),
    Data(Packet),
}

/// One direction of a link.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Wire form, and when it can be seen at the other end.
    packets: VecDeque<(Duration, Vec<u8>)>,
}

impl Ring {
    /// How many packets are on it.
    pub fn length(&self) -> usize {
        self.packets.len()
    }

    /// Puts a packet on it.
    pub fn put(&mut self, now: Duration, delay: Duration, packet: &OnLink) {
        let last = self
            .packets
            .back()
            .map_or(Duration::ZERO, |packet| packet.0);
        let wire = postcard::to_allocvec(packet).expect("a packet has a wire form");
        self.packets.push_back((last.max(now + delay), wire));
    }

    /// Takes the next packet, if one can be seen.
    pub fn take(&mut self, now: Duration) -> Option<OnLink> {
        if self.packets.front()?.0 > now {
            return None;
        }
        let (_, wire) = self.packets.pop_front()?;
        Some(postcard::from_bytes(&wire).expect("a packet comes as it was sent"))
    }
}
