//! The solver of the `mpi` benchmark: two ranks exchange messages through the library and through plain MPI, in turn.
//!
//! Windows of round trips (or of all-reduces) take turns: library, plain MPI, and so on, for each size. Rank 0 prints
//! `mpi CASE LIBRARY_US PLAIN_US`, once for each pair of windows: half a round trip, or one all-reduce, on average.
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
        let us = |seconds: f64| seconds * 1e6 / times as f64;
        println!("mpi {case} {:.4} {:.4}", us(ours_s), us(plain_s));
    }
}
