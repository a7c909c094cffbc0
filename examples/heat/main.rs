//! The heat equation on a rectangle: `du/dt = a (d2u/dx2 + d2u/dy2)`, explicit in time (each point moves
//! towards the mean of its four neighbours), the edges held at fixed temperatures.
//!
//! Each rank has a block of rows. Before each step it exchanges its first and last row with the ranks above
//! and below, and computes the rows between while these are on the way.
//!
//! With `--changing` below 1 most of the grid is held at its first temperature, like the edges; the rest, a page
//! here and there, is heated with a power that changes from step to step. So a known share of the memory changes.

mod block;
mod grid;
mod patches;
mod times;

use examples::{Arguments, History, Pause, Problem};
use libckpt::prelude::*;

use crate::block::Block;
use crate::patches::Share;
use crate::times::Times;

const USAGE: &str = "\
The heat equation in two dimensions.

  --size ROWSxCOLUMNS   points of the grid, edges not counted   [1024x1024]
  --mib-per-rank MIB    instead of --size: so much memory for the grid on each rank
  --steps N             steps in time                           [1000]
  --changing SHARE      only so much of the grid changes, above 0 and at most 1, a page here and there [1]
  --warm SHARE          so much of the grid is warm at the start        [1 in 1024 points]
  --times FILE          at the end each rank writes FILE.RANK: when each step ended, and the longest time in it
                        between two looks at the clock (one for each MiB); nanoseconds of CLOCK_MONOTONIC
  --progress            rank 0 prints each step
  --pause-us US         sleep so long in each step, in microseconds; makes small runs last
  --until FILE          do not end before this file is there";

/// Columns of the grid where its size is told in MiB.
const COLUMNS_BY_MIB: usize = 2048;

#[derive(Debug)]
struct Options {
    size: Size,
    steps: u64,
    changing: Share,
    warm: Share,
    times: Option<String>,
    progress: bool,
    pause: Pause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Grid { rows: usize, columns: usize },
    MibPerRank(usize),
}

impl Options {
    fn read() -> Result<Self, Problem> {
        let mut arguments = Arguments::from_environment(USAGE)?;
        let grid = arguments.text("--size")?;
        let mib = arguments.text("--mib-per-rank")?;
        let options = Self {
            size: Size::read(grid, mib)?,
            steps: arguments.value("--steps", 1000)?,
            changing: arguments.value("--changing", Share::ALL)?,
            warm: arguments.value("--warm", Share::WARM)?,
            times: arguments.text("--times")?,
            progress: arguments.flag("--progress"),
            pause: Pause::read(&mut arguments)?,
        };
        arguments.finish()?;
        if options.times.is_some() && options.steps > times::STEPS {
            return Err(Problem::wrong(format!(
                "--times records at most {} steps",
                times::STEPS
            )));
        }
        Ok(options)
    }
}

impl Size {
    fn read(grid: Option<String>, mib: Option<String>) -> Result<Self, Problem> {
        let number = |name: &str, text: &str| match text.parse::<usize>() {
            Ok(0) => Err(Problem::wrong(format!("{name} {text}: not 0"))),
            Ok(number) => Ok(number),
            Err(error) => Err(Problem::wrong(format!("{name} {text}: {error}"))),
        };
        match (grid, mib) {
            (Some(_), Some(_)) => Err(Problem::wrong("either --size or --mib-per-rank, not both")),
            (None, Some(mib)) => Ok(Self::MibPerRank(number("--mib-per-rank", &mib)?)),
            (None, None) => Ok(Self::Grid {
                rows: 1024,
                columns: 1024,
            }),
            (Some(grid), None) => {
                let (rows, columns) = grid
                    .split_once('x')
                    .ok_or_else(|| Problem::wrong(format!("--size {grid}: not ROWSxCOLUMNS")))?;
                Ok(Self::Grid {
                    rows: number("--size", rows)?,
                    columns: number("--size", columns)?,
                })
            }
        }
    }

    /// Rows and columns of the whole grid.
    fn of_grid(self, ranks: usize) -> (usize, usize) {
        match self {
            Self::Grid { rows, columns } => (rows, columns),
            Self::MibPerRank(mib) => {
                // Each point is kept twice: before and after the step.
                let points = (mib << 20) / (2 * size_of::<f64>());
                (points / COLUMNS_BY_MIB * ranks, COLUMNS_BY_MIB)
            }
        }
    }
}

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    match Options::read() {
        Ok(options) => solve(&world, &options),
        Err(problem) => problem.told_by_rank_0(&world),
    }
}

fn solve(world: &World, options: &Options) -> Result<(), String> {
    let mut times = Times::new(options.times.as_deref(), world.rank(), options.steps);
    compute(world, options, &mut times).map_err(|error| error.to_string())?;
    times
        .write()
        .map_err(|error| format!("the times of the steps can't be written: {error}"))
}

fn compute(world: &World, options: &Options, times: &mut Times) -> libckpt::Result<()> {
    let (rows, columns) = options.size.of_grid(world.size());
    let speaks = world.rank() == 0;
    if speaks {
        println!(
            "heat: {rows} x {columns} points on {} ranks, {} steps",
            world.size(),
            options.steps
        );
    }
    let mut block = Block::new(
        rows,
        columns,
        [options.changing, options.warm],
        world.rank(),
        world.size(),
    );
    let is_sparse = !options.changing.is_all();
    if is_sparse {
        let mut pages = [0; 2];
        world.all_reduce_into(&block.pages(), &mut pages, SystemOperation::sum())?;
        if speaks {
            println!("changing: {} of {} pages", pages[1], pages[0]);
        }
    }
    let mut history = History::new();
    for step in 1..=options.steps {
        block.step(world, &mut history, times)?;
        options.pause.take();
        times.step();
        // Between two steps this rank may as well be moved; nothing happens if nobody wants it.
        libckpt::safepoint();
        if options.progress && speaks {
            println!("step {step}");
        }
    }
    options.pause.until_it_may_end(world)?;
    let mut warmth = 0.0;
    world.all_reduce_into(&block.warmth(), &mut warmth, SystemOperation::sum())?;
    history.fold_float(warmth);
    if is_sparse {
        block.fold(&mut history);
    }
    if speaks {
        println!("mean temperature: {:.9}", warmth / (rows * columns) as f64);
    }
    history.print_result(world)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_rows_by_columns_or_mib() {
        let read = |grid: Option<&str>, mib: Option<&str>| {
            Size::read(grid.map(str::to_owned), mib.map(str::to_owned))
        };
        assert_eq!(
            read(Some("3x40"), None),
            Ok(Size::Grid {
                rows: 3,
                columns: 40
            })
        );
        assert_eq!(read(None, Some("64")), Ok(Size::MibPerRank(64)));
        for wrong in ["3", "3x", "x4", "0x4", "3x-4", "3x4x5"] {
            assert!(read(Some(wrong), None).is_err(), "{wrong}");
        }
        assert!(read(Some("3x4"), Some("64")).is_err());
    }

    #[test]
    fn mib_per_rank_are_the_bytes_of_both_grids() {
        let (rows, columns) = Size::MibPerRank(64).of_grid(4);
        assert_eq!(rows / 4 * columns * 2 * size_of::<f64>(), 64 << 20);
    }
}
