//! A rank whose state is hard to describe, on purpose: what a programmer would never register variable by
//! variable. All of it is alive while ranks communicate, so every call is a place where it may be captured.
//!
//! Each [`Strand`] is another kind of state. None depends on the order of a hash map, on addresses, or on
//! time, so the result is the same on every run.

mod blocks;
mod closures;
mod generators;
mod graph;
mod recursion;
mod tables;

use examples::{Arguments, History, Pause, Problem, Random};
use libckpt::prelude::*;

const USAGE: &str = "\
Rank state made hard on purpose: recursion, closures, graphs, trait objects, maps, generators, blocks
of memory that come and go.

  --rounds N     how often each kind of state is worked on [1000] (or --steps N)
  --depth D      how deep the recursion goes               [40]
  --blocks MIB   memory that comes and goes on each rank   [4]
  --seed S       other numbers for another seed            [1]
  --progress     rank 0 prints each round
  --pause-us US  sleep so long in each round, in microseconds; makes small runs last
  --until FILE   do not end before this file is there";

struct Options {
    rounds: u64,
    depth: usize,
    blocks_mib: usize,
    seed: u64,
    progress: bool,
    pause: Pause,
}

impl Options {
    fn read() -> Result<Self, Problem> {
        let mut arguments = Arguments::from_environment(USAGE)?;
        let steps = arguments.value("--steps", 1000)?;
        let options = Self {
            rounds: arguments.value("--rounds", steps)?,
            depth: arguments.value("--depth", 40)?,
            blocks_mib: arguments.value("--blocks", 4)?,
            seed: arguments.value("--seed", 1)?,
            progress: arguments.flag("--progress"),
            pause: Pause::read(&mut arguments)?,
        };
        arguments.finish()?;
        if options.blocks_mib == 0 {
            return Err(Problem::wrong("--blocks 0: not 0"));
        }
        Ok(options)
    }
}

/// The ranks as a ring: everyone passes something up and gets something from below.
pub(crate) struct Ring<'w> {
    world: &'w World,
}

impl Ring<'_> {
    fn above(&self) -> Process<'_> {
        self.world
            .process_at_rank((self.world.rank() + 1) % self.world.size())
    }

    fn below(&self) -> Process<'_> {
        self.world
            .process_at_rank((self.world.rank() + self.world.size() - 1) % self.world.size())
    }

    /// Passes a word up.
    pub(crate) fn pass(&self, word: u64) -> libckpt::Result<u64> {
        Ok(send_receive(&word, &self.above(), &self.below())?.0)
    }

    /// Passes a text up; the one from below may have any length.
    pub(crate) fn pass_text(&self, text: &str) -> libckpt::Result<String> {
        request::scope(|scope| {
            let send = self.above().immediate_send(scope, text.as_bytes())?;
            let (bytes, _) = self.below().receive_vec()?;
            send.wait()?;
            Ok(String::from_utf8(bytes).expect("texts are passed as they are"))
        })
    }

    /// The sum over all ranks.
    pub(crate) fn sum(&self, word: u64) -> libckpt::Result<u64> {
        let mut sum = 0;
        self.world
            .all_reduce_into(&word, &mut sum, SystemOperation::sum())?;
        Ok(sum)
    }
}

/// One kind of state, worked on once in each round.
pub(crate) trait Strand {
    /// All ranks twist the same strand at the same time.
    fn twist(&mut self, round: u64, ring: &Ring<'_>, history: &mut History) -> libckpt::Result<()>;
}

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    match Options::read() {
        Ok(options) => tangle(&world, &options).map_err(|error| error.to_string()),
        Err(problem) => problem.told_by_rank_0(&world),
    }
}

fn tangle(world: &World, options: &Options) -> libckpt::Result<()> {
    let speaks = world.rank() == 0;
    let mut random = Random::new(options.seed ^ (world.rank() as u64) << 32);
    let mut strands: Vec<Box<dyn Strand>> = vec![
        Box::new(recursion::Descent::new(options.depth, random.word())),
        Box::new(graph::Forest::new(random.word())),
        Box::new(closures::Workshop::new(random.word())),
        Box::new(tables::Library::new(random.word())),
        Box::new(generators::Springs::new(random.word())),
        Box::new(blocks::Blocks::new(random.word(), options.blocks_mib << 20)),
    ];
    if speaks {
        println!(
            "tangle: {} rounds of {} strands on {} ranks",
            options.rounds,
            strands.len(),
            world.size()
        );
    }
    let ring = Ring { world };
    let mut history = History::new();
    for round in 1..=options.rounds {
        for strand in &mut strands {
            strand.twist(round, &ring, &mut history)?;
        }
        // Another strand comes first in each round.
        strands.rotate_left(1);
        options.pause.take();
        libckpt::safepoint();
        if options.progress && speaks {
            println!("step {round}");
        }
    }
    options.pause.until_it_may_end(world)?;
    history.print_result(world)
}
