//! A solver whose last rank is tied to its process in the way that it is told, or not.
//!
//! `pinned WAY STEPS MILLISECONDS`: all ranks add up numbers for STEPS steps of so many milliseconds each. Before the first,
//! the last rank does WAY: `nothing`, `static`, `thread_local`, `thread` (one that lives), `file` (one that the library
//! does not know of), `returns` (from main, while the others go on without it), `memory` (it keeps 64 MiB), or `safepoint` (it comes
//! to one every 16 steps, and may be moved nowhere else). With `--until FILE` they do not end before that
//! file is there, but for `returns`.

use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use examples::{Arguments, Pause, Problem};
use libckpt::prelude::*;

const USAGE: &str = "pinned WAY STEPS MILLISECONDS [--until FILE]";

/// Memory of a rank, kept where no rank can take it along.
static CACHE_OF_THE_SOLVER: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    static SCRATCH_OF_THE_SOLVER: Cell<*mut u64> = const { Cell::new(std::ptr::null_mut()) };
}

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    let told = |error: libckpt::Error| error.to_string();
    let (pause, arguments) = match read() {
        Ok(read) => read,
        Err(problem) => return problem.told_by_rank_0(&world),
    };
    let number = |index: usize, default: u64| -> u64 {
        arguments
            .get(index)
            .map_or(default, |word| word.parse().expect("a number"))
    };
    let (steps, milliseconds) = (number(1, 100), number(2, 20));
    let way = arguments.first().map_or("nothing", String::as_str);
    let is_last = world.rank() + 1 == world.size();
    let returns = way == "returns";
    let others = world
        .split_by_color(Color::with_value(u32::from(returns && is_last)))
        .map_err(told)?
        .ok_or("no communicator")?;
    let mut kept = Vec::new();
    let _file = match way {
        _ if !is_last => None,
        "returns" => return Ok(()),
        "file" => Some(std::fs::File::open("/proc/version").map_err(|error| error.to_string())?),
        "memory" => {
            kept = (0..8 << 20).collect::<Vec<u64>>();
            None
        }
        _ => {
            pin(way);
            None
        }
    };
    let mut hash = 0_u64;
    let mut place = place();
    for step in 1..=steps {
        let mut sum = [0_u64];
        let own = kept.get((step as usize * 7919) % kept.len().max(1));
        let mine = [hash.rotate_left(5) ^ (step * 31 + world.rank() as u64) ^ own.unwrap_or(&0)];
        // Else the compiler would leave them out.
        std::hint::black_box(&CACHE_OF_THE_SOLVER);
        SCRATCH_OF_THE_SOLVER.with(|scratch| std::hint::black_box(scratch.get()));
        others
            .all_reduce_into(&mine, &mut sum, SystemOperation::sum())
            .map_err(told)?;
        hash = sum[0];
        std::thread::sleep(Duration::from_millis(milliseconds));
        if world.rank() == 0 {
            println!("step {step}");
        }
        if way == "safepoint" && is_last {
            let here = self::place();
            // A restart goes on elsewhere, too.
            if here.0 == place.0 && here != place {
                return Err(format!("moved between safepoints, at step {step}"));
            }
            if step % 16 == 0 {
                libckpt::safepoint();
            }
            place = self::place();
        }
    }
    if !returns {
        // No safepoint here.
        while !pause.may_end(&world).map_err(told)? {}
    }
    if world.rank() == 0 {
        println!("result: {hash:016x}");
    }
    Ok(())
}

fn read() -> Result<(Pause, Vec<String>), Problem> {
    let mut arguments = Arguments::from_environment(USAGE)?;
    Ok((Pause::read(&mut arguments)?, arguments.rest()))
}

/// Which start of the job this is, by its token, and which process.
fn place() -> (Option<String>, u32) {
    (std::env::var("CKPT_TOKEN").ok(), std::process::id())
}

fn pin(way: &str) {
    match way {
        "static" => {
            let kept = Box::leak(Box::new(7_u64));
            CACHE_OF_THE_SOLVER.store(kept, Ordering::SeqCst);
        }
        "thread_local" => {
            let kept: *mut u64 = Box::leak(Box::new(7_u64));
            SCRATCH_OF_THE_SOLVER.with(|scratch| scratch.set(kept));
        }
        "thread" => {
            let named = std::thread::Builder::new().name("helper-of-solver".to_owned());
            let forever = || std::thread::sleep(Duration::from_secs(3600));
            named.spawn(forever).expect("a thread");
        }
        _ => {}
    }
}
