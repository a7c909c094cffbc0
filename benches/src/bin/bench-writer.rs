//! The solver of the `migrate` benchmark: rank 1 has memory and writes to a share of its pages every second, evenly; rank 0 waits.
//!
//! `bench-writer MIB PERCENT FILE`: until the file is there. Rank 1 calls the library every fifth of a millisecond. When it could not
//! for longer than half a millisecond, it prints for how many microseconds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use libckpt::prelude::*;

const PAGE_WORDS: usize = 512;

/// From one look at the clock to the next.
const TURN: Duration = Duration::from_micros(200);

/// Longer pauses than this, beside the turn itself, are told.
const PAUSE_MIN: Duration = Duration::from_micros(500);

/// How often is looked for the file.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A rank that stood still does not make up for more than this.
const BEHIND_MAX_S: f64 = 0.01;

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    let told = |error: libckpt::Error| error.to_string();
    if world.rank() == 0 {
        return world
            .process_at_rank(1)
            .receive_into(&mut [0_u64])
            .map(drop)
            .map_err(told);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mib, percent, until] = arguments.as_slice() else {
        return Err("MIB PERCENT FILE".to_owned());
    };
    let mib: usize = mib.parse().map_err(|_| "MIB")?;
    let percent: f64 = percent.parse().map_err(|_| "PERCENT")?;
    let until = PathBuf::from(until);
    let pages = (mib << 20) / (8 * PAGE_WORDS);
    let mut memory: Vec<u64> = (0..(pages * PAGE_WORDS) as u64).collect();
    #[allow(clippy::cast_precision_loss)] // pages
    let pages_per_s = pages as f64 * percent / 100.0;
    // A prime number of pages further each time, so that all are written in turn and no two neighbours.
    let (mut at, mut due) = (0, 0.0);
    let (mut last, mut looked) = (Instant::now(), Instant::now());
    println!("ready");
    loop {
        std::thread::sleep(TURN);
        libckpt::yield_now();
        libckpt::safepoint();
        if let Some(pause) = last
            .elapsed()
            .checked_sub(TURN)
            .filter(|it| *it >= PAUSE_MIN)
        {
            println!("pause {}", pause.as_micros());
        }
        due += (last.elapsed().as_secs_f64().min(BEHIND_MAX_S)) * pages_per_s;
        last = Instant::now();
        while due >= 1.0 {
            due -= 1.0;
            at = (at + 7919) % pages;
            memory[at * PAGE_WORDS] += 1;
        }
        if looked.elapsed() > LOOK_EVERY {
            looked = Instant::now();
            if until.exists() {
                break;
            }
        }
    }
    let sum = memory
        .iter()
        .fold(0_u64, |sum, word| sum.wrapping_add(*word));
    world.process_at_rank(0).send(&[sum]).map_err(told)
}
