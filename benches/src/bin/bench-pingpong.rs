//! The solver of the `p2p` benchmark: two ranks play ping-pong with messages of three sizes.
//!
//! Sizes take turns in windows of round trips; rank 0 prints `pingpong SIZE MICROSECONDS`, half a round trip in the
//! median window.

use libckpt::prelude::*;

/// Name, bytes, and round trips in a window.
const SIZES: [(&str, usize, usize); 3] = [
    ("8B", 8, 20_000),
    ("64KiB", 64 << 10, 1_000),
    ("1MiB", 1 << 20, 60),
];

const WINDOWS: usize = 15;

#[libckpt::main]
fn main(world: World) -> Result<(), libckpt::Error> {
    let mut windows_us = vec![Vec::new(); SIZES.len()];
    for window in 0..=WINDOWS {
        for (index, &(_, bytes, trips)) in SIZES.iter().enumerate() {
            let mut buffer = vec![window as u8; bytes];
            world.barrier()?;
            let start = libckpt::wtime();
            for _ in 0..trips {
                if world.rank() == 0 {
                    world.process_at_rank(1).send(&buffer[..])?;
                    world.process_at_rank(1).receive_into(&mut buffer[..])?;
                } else {
                    world.process_at_rank(0).receive_into(&mut buffer[..])?;
                    world.process_at_rank(0).send(&buffer[..])?;
                }
            }
            // The first window of each size warms up.
            if window > 0 {
                windows_us[index].push((libckpt::wtime() - start) * 1e6 / (2 * trips) as f64);
            }
        }
    }
    if world.rank() == 0 {
        for ((name, _, _), windows_us) in SIZES.iter().zip(&mut windows_us) {
            windows_us.sort_by(f64::total_cmp);
            println!("pingpong {name} {:.4}", windows_us[windows_us.len() / 2]);
        }
    }
    Ok(())
}
