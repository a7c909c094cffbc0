//! What it costs to look for packets when there are none, by how many links were used lately.
//!
//! `cargo run --release -p libckpt-transport --example poll_cost`
//!
//! All ends live in this one process, so that the links' words are in its cache, as they are for a
//! process that waits.

use std::hint::black_box;
use std::time::Instant;

use libckpt_transport::Transport;
use libckpt_transport::shm::{self, ShmTransport};
use protocol::ids::Process;

/// Fewer than the polls after which a link falls dormant.
const POLLS: u32 = 2000;

fn main() {
    println!("{:>9} {:>8} {:>13}", "processes", "watched", "poll_ns");
    for (processes, talking) in [
        (2, 1),
        (16, 1),
        (16, 4),
        (16, 15),
        (64, 1),
        (64, 63),
        (512, 1),
        (512, 511),
    ] {
        let fd = shm::create(processes).expect("shared memory");
        let mut me = shm::attach(&fd, Process(0), processes).expect("join");
        let mut peers: Vec<ShmTransport> = (1..=talking)
            .map(|peer| shm::attach(&fd, Process(peer), processes).expect("join"))
            .collect();
        let mut best_ns = f64::INFINITY;
        for _ in 0..50 {
            for peer in &mut peers {
                assert!(peer.try_send(Process(0), &[b"awake"]).expect("link"));
            }
            while me.poll(&mut |_, _| {}).expect("link") {}
            let start = Instant::now();
            for _ in 0..POLLS {
                black_box(me.poll(&mut |_, _| {}).expect("link"));
            }
            best_ns = best_ns.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(POLLS));
        }
        println!("{processes:>9} {:>8} {best_ns:>13.1}", me.watched_links());
    }
}
