//! Conjugate gradients with Jacobi's preconditioner (Hestenes, Stiefel 1952; Saad, "Iterative Methods for
//! Sparse Linear Systems", algorithm 9.1): solves `A x = b` for a symmetric positive definite matrix.

mod distributed;
mod matrix_market;
mod solver;
mod sparse;

use examples::{Arguments, History, Pause, Problem};
use libckpt::prelude::*;
use std::path::{Path, PathBuf};

use crate::distributed::{Distributed, rows_of};
use crate::solver::{Failure, Limits, Solver};
use crate::sparse::Sparse;

const USAGE: &str = "\
Conjugate gradients on a sparse symmetric positive definite matrix.

  --matrix FILE.mtx    a Matrix Market file: coordinate, real, symmetric or general
  --poisson N          instead: the Laplacian on N x N points     [100]
  --tolerance T        residual to reach, relative to the right-hand side [1e-10]
  --max-iterations N   give up after so many                      [10 for each row]
  --repeat N           solve so often, each time for another right-hand side [1]
  --progress           rank 0 prints each iteration
  --pause-us US        sleep so long in each iteration, in microseconds; makes small runs last
  --until FILE         do not end before this file is there";

#[derive(Debug)]
struct Options {
    matrix: Matrix,
    tolerance: f64,
    max_iterations: Option<u64>,
    repeat: u64,
    progress: bool,
    pause: Pause,
}

#[derive(Debug)]
enum Matrix {
    File(PathBuf),
    Poisson { side: usize },
}

impl Options {
    fn read() -> Result<Self, Problem> {
        let mut arguments = Arguments::from_environment(USAGE)?;
        let matrix = match (arguments.text("--matrix")?, arguments.text("--poisson")?) {
            (Some(_), Some(_)) => {
                return Err(Problem::wrong("either --matrix or --poisson, not both"));
            }
            (Some(path), None) => Matrix::File(path.into()),
            (None, side) => {
                let side = side.as_deref().unwrap_or("100");
                match side.parse::<usize>() {
                    Ok(side) if side > 0 => Matrix::Poisson { side },
                    _ => {
                        return Err(Problem::wrong(format!(
                            "--poisson {side}: not a number above 0"
                        )));
                    }
                }
            }
        };
        let limit = arguments.value("--max-iterations", 0)?;
        let options = Self {
            matrix,
            tolerance: arguments.value("--tolerance", 1e-10)?,
            max_iterations: (limit > 0).then_some(limit),
            repeat: arguments.value("--repeat", 1)?,
            progress: arguments.flag("--progress"),
            pause: Pause::read(&mut arguments)?,
        };
        if options.tolerance.is_nan() || options.tolerance <= 0.0 {
            return Err(Problem::wrong(format!(
                "--tolerance {}: not above 0",
                options.tolerance
            )));
        }
        arguments.finish()?;
        Ok(options)
    }
}

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    let options = match Options::read() {
        Ok(options) => options,
        Err(problem) => return problem.told_by_rank_0(&world),
    };
    match solve(&world, &options) {
        Ok(()) => Ok(()),
        // All ranks come to it together, so one speaks.
        Err(Failure::Everywhere(what)) => Problem::Wrong(what).told_by_rank_0(&world),
        Err(Failure::Library(error)) => Err(error.to_string()),
    }
}

fn solve(world: &World, options: &Options) -> Result<(), Failure> {
    let speaks = world.rank() == 0;
    let matrix = match &options.matrix {
        Matrix::Poisson { side } => {
            let own = rows_of(world.rank(), world.size(), side * side);
            Distributed::new(world, Sparse::poisson(*side, own), side * side)?
        }
        Matrix::File(path) => read_and_scatter(world, path)?,
    };
    let mut totals = [0; 2];
    let own = [matrix.own().len(), matrix.len()];
    world.all_reduce_into(&own, &mut totals, SystemOperation::sum())?;
    let [rows, entries] = totals;
    if speaks {
        println!(
            "cg: {rows} rows with {entries} entries on {} ranks",
            world.size()
        );
    }
    let limits = Limits {
        tolerance: options.tolerance,
        iterations: options.max_iterations.unwrap_or(10 * rows as u64),
    };
    let mut solver = Solver::new(world, matrix)?;
    let mut history = History::new();
    let mut steps = 0;
    for number in 0..options.repeat {
        let solution = solver.solve(world, number, limits, &mut history, || {
            steps += 1;
            options.pause.take();
            // Between two iterations this rank may as well be moved; nothing happens if nobody wants it.
            libckpt::safepoint();
            if options.progress && speaks {
                println!("step {steps}");
            }
        })?;
        if speaks {
            println!(
                "solution {}: {} iterations, residual {:.3e}",
                number + 1,
                solution.iterations,
                solution.residual
            );
        }
    }
    options.pause.until_it_may_end(world)?;
    history.print_result(world)?;
    Ok(())
}

/// Rank 0 reads the file; all learn whether it could.
fn read_and_scatter(world: &World, path: &Path) -> Result<Distributed, Failure> {
    let read = (world.rank() == 0).then(|| matrix_market::read(path));
    let mut could_read = u8::from(matches!(read, Some(Ok(_))));
    world.process_at_rank(0).broadcast_into(&mut could_read)?;
    match read {
        Some(Err(what)) => Err(Failure::Everywhere(what)),
        _ if could_read == 0 => Err(Failure::Everywhere(
            "rank 0 could not read the matrix".to_owned(),
        )),
        Some(Ok(matrix)) => Ok(Distributed::scatter(world, Some(&matrix))?),
        None => Ok(Distributed::scatter(world, None)?),
    }
}
