//! Ranks in a ring that read numbers from one file, work on them, pass what they got to the next, and write a line for each
//! step to a file of their own: every line is in it once, however often the job was killed.

mod lines;
mod numbers;

use examples::random::mix;
use examples::{Arguments, History, Pause, Problem};
use libckpt::prelude::*;

use crate::lines::{Lines, Way};
use crate::numbers::Numbers;

const USAGE: &str = "\
Ranks that read a number and write a line in each step.

  --output FILE  each rank writes its lines to FILE.RANK     [relay]
  --write WAY    how: buffered, each (line by itself), or reopened (for each line)  [buffered]
  --input FILE   numbers, one on each line, that all ranks read, again and again; without it they read none
  --steps N      how many                                    [1000]
  --mib MIB      memory of each rank, of which each step changes a page [4]
  --progress     rank 0 prints each step
  --pause-us US  sleep so long in each step, in microseconds; makes small runs last
  --until FILE   do not end before this file is there";

/// Words of a page.
const PAGE_WORDS: usize = 512;

struct Options {
    output: String,
    way: Way,
    input: Option<String>,
    steps: u64,
    mib: usize,
    progress: bool,
    pause: Pause,
}

impl Options {
    fn read() -> Result<Self, Problem> {
        let mut arguments = Arguments::from_environment(USAGE)?;
        let options = Self {
            output: arguments
                .text("--output")?
                .unwrap_or_else(|| "relay".to_owned()),
            way: arguments.value("--write", Way::Buffered)?,
            input: arguments.text("--input")?,
            steps: arguments.value("--steps", 1000)?,
            mib: arguments.value("--mib", 4)?,
            progress: arguments.flag("--progress"),
            pause: Pause::read(&mut arguments)?,
        };
        arguments.finish()?;
        if options.mib == 0 {
            return Err(Problem::wrong("--mib 0: not 0"));
        }
        Ok(options)
    }
}

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    match Options::read() {
        Ok(options) => relay(&world, &options),
        Err(problem) => problem.told_by_rank_0(&world),
    }
}

fn relay(world: &World, options: &Options) -> Result<(), String> {
    let (rank, size) = (world.rank(), world.size());
    let next = world.process_at_rank((rank + 1) % size);
    let before = world.process_at_rank((rank + size - 1) % size);
    let path = format!("{}.{rank}", options.output);
    let of_output = |error: std::io::Error| format!("{path}: {error}");
    let mut lines = Lines::create(&path, options.way).map_err(of_output)?;
    let mut numbers = match &options.input {
        Some(path) => Some(Numbers::open(path)?),
        None => None,
    };
    let mut memory = vec![0_u64; options.mib << 17];
    let mut history = History::new();
    let mut word = mix(rank as u64);
    for step in 1..=options.steps {
        if let Some(numbers) = &mut numbers {
            word ^= numbers.read()?;
        }
        let page = mix(word) as usize % (memory.len() / PAGE_WORDS) * PAGE_WORDS;
        word = mix(word ^ memory[page]);
        memory[page] = word;
        (word, _) =
            send_receive(&word, &next, &before).map_err(|error| format!("step {step}: {error}"))?;
        history.fold(word);
        lines.write(step, word).map_err(of_output)?;
        options.pause.take();
        libckpt::safepoint();
        if options.progress && rank == 0 {
            println!("step {step}");
        }
    }
    let told = |error: libckpt::Error| error.to_string();
    options.pause.until_it_may_end(world).map_err(told)?;
    lines.finish().map_err(of_output)?;
    history.print_result(world).map_err(told)
}
