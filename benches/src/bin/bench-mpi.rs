//! The solver of the `mpi` benchmark: two ranks exchange messages through the library and through plain MPI, in turn.
//!
//! Windows of round trips (or of all-reduces) take turns: library, plain MPI, and so on, for each size. Rank 0 prints
//! `mpi CASE LIBRARY_US PLAIN_US`, once for each pair of windows: half a round trip, or one all-reduce, on average. For small
//! messages `packets CASE US` follows: the least that can be done in MPI where no receive names a rank's memory. A message goes
//! with a header into a receive that waits in other memory, is tested for, and copied; nothing is matched, numbered or counted.
//!
//! ```text
//! mpirun -np 2 bench-mpi [WINDOWS [CASE]]
//! ```

use libckpt::prelude::*;
use mpi::collective::SystemOperation as PlainOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives as _, Destination as _, Source as _};

/// Name, bytes, and round trips in a window.
const SIZES: [(&str, usize, usize); 6] = [
    ("8B", 8, 20_000),
    ("1KiB", 1 << 10, 10_000),
    ("16KiB", 16 << 10, 2_000),
    ("64KiB", 64 << 10, 1_000),
    ("1MiB", 1 << 20, 60),
    ("16MiB", 16 << 20, 5),
];

/// A message up to this size goes as one packet.
const PACKET_BYTES: usize = 16 << 10;

/// Bytes of a packet before the message.
const HEADER_BYTES: usize = 16;

/// The case of all-reduces.
const REDUCE: &str = "all_reduce-8B";

/// All-reduces in a window.
const REDUCES: usize = 20_000;

#[libckpt::main]
fn main(world: World) -> Result<(), libckpt::Error> {
    let windows = std::env::args()
        .nth(1)
        .and_then(|windows| windows.parse().ok())
        .unwrap_or(15);
    let only = std::env::args().nth(2);
    let is_wanted = |case: &str| only.as_deref().is_none_or(|only| only == case);
    let plain = SimpleCommunicator::world();
    let me = world.rank();
    assert_eq!(
        (world.size(), plain.size(), plain.rank() as usize),
        (2, 2, me),
        "two processes with a rank each, please"
    );
    let peer = 1 - me;
    // The first window of each case warms up.
    for window in 0..=windows {
        for (name, bytes, trips) in SIZES {
            if !is_wanted(name) {
                continue;
            }
            let mut buffer = vec![window as u8; bytes];
            world.barrier()?;
            let start = libckpt::wtime();
            for _ in 0..trips {
                if me == 0 {
                    world.process_at_rank(peer).send(&buffer[..])?;
                    world.process_at_rank(peer).receive_into(&mut buffer[..])?;
                } else {
                    world.process_at_rank(peer).receive_into(&mut buffer[..])?;
                    world.process_at_rank(peer).send(&buffer[..])?;
                }
            }
            let ours_s = libckpt::wtime() - start;
            plain.barrier();
            let start = libckpt::wtime();
            let other = plain.process_at_rank(peer as i32);
            for _ in 0..trips {
                if me == 0 {
                    other.send(&buffer[..]);
                    other.receive_into(&mut buffer[..]);
                } else {
                    other.receive_into(&mut buffer[..]);
                    other.send(&buffer[..]);
                }
            }
            let plain_s = libckpt::wtime() - start;
            if window > 0 {
                tell(me, name, ours_s, plain_s, 2 * trips);
            }
            if bytes + HEADER_BYTES <= PACKET_BYTES {
                plain.barrier();
                let packets_s = exchange_packets(me, &other, &mut buffer, trips);
                if window > 0 && me == 0 {
                    println!("packets {name} {:.4}", us(packets_s, 2 * trips));
                }
            }
        }
        if !is_wanted(REDUCE) {
            continue;
        }
        world.barrier()?;
        let mut sum = [0.0];
        let start = libckpt::wtime();
        for _ in 0..REDUCES {
            world.all_reduce_into(&[1.0], &mut sum, SystemOperation::sum())?;
        }
        let ours_s = libckpt::wtime() - start;
        plain.barrier();
        let start = libckpt::wtime();
        for _ in 0..REDUCES {
            plain.all_reduce_into(&[1.0], &mut sum, PlainOperation::sum());
        }
        let plain_s = libckpt::wtime() - start;
        if window > 0 {
            tell(me, REDUCE, ours_s, plain_s, REDUCES);
        }
    }
    Ok(())
}

fn tell(me: usize, case: &str, ours_s: f64, plain_s: f64, times: usize) {
    if me == 0 {
        println!(
            "mpi {case} {:.4} {:.4}",
            us(ours_s, times),
            us(plain_s, times)
        );
    }
}

fn us(seconds: f64, times: usize) -> f64 {
    seconds * 1e6 / times as f64
}

/// Round trips of packets, and how long they took.
fn exchange_packets(
    me: usize,
    other: &mpi::topology::Process<'_>,
    buffer: &mut [u8],
    trips: usize,
) -> f64 {
    let mut inbox = vec![0_u8; PACKET_BYTES];
    let mut packet = Vec::with_capacity(PACKET_BYTES);
    let start = libckpt::wtime();
    for trip in 0..trips {
        let mut send = |message: &[u8]| {
            packet.clear();
            packet.extend_from_slice(&[trip as u8; HEADER_BYTES]);
            packet.extend_from_slice(message);
            other.send(&packet[..]);
        };
        if me == 1 && trip > 0 {
            send(buffer);
        }
        // It waits before its message is asked for.
        mpi::request::scope(|scope| {
            let mut receive = other.immediate_receive_into(scope, &mut inbox[..]);
            if me == 0 {
                send(buffer);
            }
            while let Err(again) = receive.test() {
                receive = again;
            }
        });
        buffer.copy_from_slice(&inbox[HEADER_BYTES..][..buffer.len()]);
    }
    if me == 1 {
        other.send(&inbox[..HEADER_BYTES + buffer.len()]);
    }
    libckpt::wtime() - start
}
