//! The solver of the `latency` benchmark: two ranks play ping-pong, in windows, until a file is there.
//!
//! `bench-latency FILE`. Rank 0 prints `window SIZE MICROSECONDS`: half a round trip in a window of them.

use std::path::Path;

use libckpt::prelude::*;

/// Name, bytes, and round trips in a window.
const SIZES: [(&str, usize, usize); 2] = [("8B", 8, 5_000), ("64KiB", 64 << 10, 300)];

#[libckpt::main]
fn main(world: World) -> Result<(), libckpt::Error> {
    let end = std::env::args().nth(1).unwrap_or_default();
    let mut buffer = vec![0_u8; 64 << 10];
    let mut ended = 0_u8;
    while ended == 0 {
        for (name, bytes, trips) in SIZES {
            let buffer = &mut buffer[..bytes];
            world.barrier()?;
            let start = libckpt::wtime();
            for _ in 0..trips {
                if world.rank() == 0 {
                    world.process_at_rank(1).send(&*buffer)?;
                    world.process_at_rank(1).receive_into(buffer)?;
                } else {
                    world.process_at_rank(0).receive_into(buffer)?;
                    world.process_at_rank(0).send(&*buffer)?;
                }
            }
            if world.rank() == 0 {
                let us = (libckpt::wtime() - start) * 1e6 / (2 * trips) as f64;
                println!("window {name} {us:.4}");
            }
        }
        if world.rank() == 0 {
            ended = u8::from(Path::new(&end).exists());
            world.process_at_rank(1).send(&ended)?;
        } else {
            world.process_at_rank(0).receive_into(&mut ended)?;
        }
    }
    Ok(())
}
