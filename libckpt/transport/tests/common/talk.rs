//! Random packets all to all, over whatever links.

use std::collections::HashMap;
use std::time::Duration;

use libckpt_transport::Transport;
use protocol::ids::Process;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Longer than any test is let run.
const FOREVER: Duration = Duration::from_secs(3600);

fn random_of(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

const PACKETS: usize = 3000;

/// The packets of one link, one after the other: both ends can draw them.
struct Stream {
    random: ChaCha8Rng,
    longest: usize,
}

impl Stream {
    fn of_link(seed: u64, from: Process, to: Process, longest: usize) -> Self {
        Self {
            random: random_of(seed, u64::from(from.0) << 32 | u64::from(to.0)),
            longest,
        }
    }

    /// Mostly short, often long, sometimes as long as can be, sometimes empty.
    fn next(&mut self) -> Vec<u8> {
        let bytes = match self.random.random_range(0..10) {
            0 => 0,
            1..=5 => self.random.random_range(1..=200),
            6..=8 => self.random.random_range(0..=self.longest),
            _ => self.longest,
        };
        let mut packet = vec![0; bytes];
        self.random.fill_bytes(&mut packet);
        packet
    }
}

/// The packet in up to four parts of random lengths.
fn in_parts<'a>(packet: &'a [u8], random: &mut ChaCha8Rng) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut rest = packet;
    for _ in 0..random.random_range(0..=3) {
        let (part, after) = rest.split_at(random.random_range(0..=rest.len()));
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

struct Outgoing {
    peer: Process,
    stream: Stream,
    next: Vec<u8>,
    left: usize,
}

/// Sends to all peers and receives from all of them, at once, and checks every byte.
pub fn talk_to_all(transport: &mut impl Transport, seed: u64) {
    let me = transport.me();
    let longest = transport.packet_bytes_max();
    let peers = || {
        (0..transport.processes())
            .map(Process)
            .filter(|&peer| peer != me)
    };
    let mut outgoing: Vec<Outgoing> = peers()
        .map(|peer| {
            let mut stream = Stream::of_link(seed, me, peer, longest);
            let next = stream.next();
            Outgoing {
                peer,
                stream,
                next,
                left: PACKETS,
            }
        })
        .collect();
    let mut incoming: HashMap<Process, (Stream, usize)> = peers()
        .map(|peer| (peer, (Stream::of_link(seed, peer, me, longest), PACKETS)))
        .collect();
    let mut random = random_of(seed, u64::MAX - u64::from(me.0));

    while outgoing.iter().any(|to| to.left > 0) || incoming.values().any(|from| from.1 > 0) {
        let mut stuck = true;
        for to in &mut outgoing {
            if to.left > 0 {
                let parts = in_parts(&to.next, &mut random);
                if transport.try_send(to.peer, &parts).unwrap() {
                    to.next = to.stream.next();
                    to.left -= 1;
                    stuck = false;
                }
            }
        }
        for _ in 0..random.random_range(0..4) {
            let taken = transport
                .poll(&mut |from, packet| {
                    let (stream, left) = incoming.get_mut(&from).unwrap();
                    assert!(*left > 0, "a packet too many from {from}");
                    *left -= 1;
                    assert!(
                        packet == stream.next(),
                        "{me} got a wrong packet from {from}, {left} before the last"
                    );
                    assert_eq!(packet.as_ptr() as usize % 8, 0);
                })
                .unwrap();
            stuck &= !taken;
        }
        if stuck {
            transport.idle(FOREVER);
        }
    }
    assert!(
        !transport.poll(&mut |_, _| {}).unwrap(),
        "{me} got a packet that nobody sent"
    );
}
