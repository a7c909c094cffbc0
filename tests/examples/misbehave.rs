//! A solver that goes wrong on purpose, in the way and at the step that it is told.
//!
//! `misbehave WAY STEP [STEPS [MILLISECONDS]]`: all ranks add up numbers for STEPS steps of so many
//! milliseconds each; at STEP the last rank does WAY (`nothing`, `panic`, `error`, `exit`, `abort`, `overflow`,
//! `sleep`: a minute without a call of the library). With `--until FILE` they do not end before that file is there.

use std::time::Duration;

use examples::{Arguments, Pause, Problem};
use libckpt::prelude::*;

const USAGE: &str = "misbehave WAY STEP [STEPS [MILLISECONDS]] [--until FILE]";

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    let (pause, arguments) = match read() {
        Ok(read) => read,
        Err(problem) => return problem.told_by_rank_0(&world),
    };
    let number = |index: usize, default: u64| -> u64 {
        arguments
            .get(index)
            .map_or(default, |word| word.parse().expect("a number"))
    };
    let (at, steps, milliseconds) = (number(1, 10), number(2, 50), number(3, 20));
    let way = arguments.first().map_or("nothing", String::as_str);
    let mut hash = 0_u64;
    for step in 1..=steps {
        if step == at && world.rank() + 1 == world.size() {
            misbehave(way)?;
        }
        let mut sum = [0_u64];
        let mine = [hash.rotate_left(5) ^ (step * 31 + world.rank() as u64)];
        world
            .all_reduce_into(&mine, &mut sum, SystemOperation::sum())
            .map_err(|error| error.to_string())?;
        hash = sum[0];
        std::thread::sleep(Duration::from_millis(milliseconds));
        if world.rank() == 0 {
            println!("step {step}");
        }
    }
    pause
        .until_it_may_end(&world)
        .map_err(|error| error.to_string())?;
    if world.rank() == 0 {
        println!("result: {hash:016x}");
    }
    Ok(())
}

fn read() -> Result<(Pause, Vec<String>), Problem> {
    let mut arguments = Arguments::from_environment(USAGE)?;
    Ok((Pause::read(&mut arguments)?, arguments.rest()))
}

fn misbehave(way: &str) -> Result<(), String> {
    match way {
        "nothing" => Ok(()),
        "panic" => panic!("the matrix is singular"),
        "error" => Err("the matrix has no rows".to_owned()),
        "exit" => std::process::exit(3),
        "abort" => std::process::abort(),
        "sleep" => {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        "overflow" => {
            println!("{}", deeper(1));
            Ok(())
        }
        _ => Err(format!("{way}: no such way")),
    }
}

/// Recurses for ever, in a way that the optimiser does not turn into a loop.
fn deeper(depth: u64) -> u64 {
    let block = std::hint::black_box([depth; 64]);
    if block[0] == 0 {
        0
    } else {
        deeper(depth + 1) ^ block[63]
    }
}
