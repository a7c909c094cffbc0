//! The iteration.

use examples::History;
use examples::random::mix;
use libckpt::prelude::*;

use crate::distributed::Distributed;

/// Why there is no solution.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Of a communication call of this rank.
    Library(libckpt::Error),
    /// All ranks found the same.
    Everywhere(String),
}

impl From<libckpt::Error> for Failure {
    fn from(error: libckpt::Error) -> Self {
        Self::Library(error)
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Residual to reach, relative to the right-hand side.
    pub(crate) tolerance: f64,
    /// Iterations after which to give up.
    pub(crate) iterations: u64,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Solution {
    pub(crate) iterations: u64,
    /// `|b - A x| / |b|`, computed anew at the end.
    pub(crate) residual: f64,
}

/// A matrix and its preconditioner.
#[derive(Debug)]
pub(crate) struct Solver {
    matrix: Distributed,
    inverse_diagonal: Vec<f64>,
}

impl Solver {
    /// Collective.
    pub(crate) fn new(world: &World, matrix: Distributed) -> Result<Self, Failure> {
        let diagonal = matrix.diagonal();
        // The first row, in the whole matrix, whose diagonal is not above 0.
        let own = matrix.own();
        let wrong = diagonal.iter().position(|&element| !is_positive(element));
        let wrong = wrong.map_or(usize::MAX, |row| own.start + row);
        let mut first_wrong = 0;
        world.all_reduce_into(&wrong, &mut first_wrong, SystemOperation::min())?;
        if first_wrong != usize::MAX {
            return Err(Failure::Everywhere(format!(
                "the matrix is not positive definite: the diagonal of row {} is not above 0",
                first_wrong + 1
            )));
        }
        let inverse_diagonal = diagonal.into_iter().map(f64::recip).collect();
        Ok(Self {
            matrix,
            inverse_diagonal,
        })
    }

    /// Solves for right-hand side `number`, from 0 on; `after_each` is called after each iteration.
    /// Collective.
    pub(crate) fn solve(
        &mut self,
        world: &World,
        number: u64,
        limits: Limits,
        history: &mut History,
        mut after_each: impl FnMut(),
    ) -> Result<Solution, Failure> {
        let right: Vec<f64> = self
            .matrix
            .own()
            .map(|row| right_hand_side(number, row))
            .collect();
        let mut solution = vec![0.0; right.len()];
        let mut residual = right.clone();
        let mut conditioned: Vec<f64> = residual
            .iter()
            .zip(&self.inverse_diagonal)
            .map(|(r, d)| r * d)
            .collect();
        let mut direction = self.matrix.vector();
        direction[..right.len()].copy_from_slice(&conditioned);
        let mut product = vec![0.0; right.len()];
        let [mut rz, rr] = sums(
            world,
            [dot(&residual, &conditioned), dot(&residual, &residual)],
        )?;
        let norm = rr.sqrt();
        let mut iterations = 0;
        let mut reached = rr.sqrt();
        // What is not a number goes on, into an error.
        while reached.is_nan() || reached > limits.tolerance * norm {
            if iterations == limits.iterations {
                return Err(Failure::Everywhere(format!(
                    "no convergence in {iterations} iterations: the residual is {:.3e}, {:e} was asked for",
                    reached / norm,
                    limits.tolerance
                )));
            }
            iterations += 1;
            self.matrix.multiply(world, &mut direction, &mut product)?;
            let [curvature] = sums(world, [dot(&direction[..right.len()], &product)])?;
            if !is_positive(curvature) {
                return Err(Failure::Everywhere(format!(
                    "the matrix is not positive definite: p' A p = {curvature:e} in iteration {iterations}"
                )));
            }
            let alpha = rz / curvature;
            for (row, product) in product.iter().enumerate() {
                solution[row] += alpha * direction[row];
                residual[row] -= alpha * product;
                conditioned[row] = residual[row] * self.inverse_diagonal[row];
            }
            let [rz_next, rr] = sums(
                world,
                [dot(&residual, &conditioned), dot(&residual, &residual)],
            )?;
            let beta = rz_next / rz;
            for (element, conditioned) in direction.iter_mut().zip(&conditioned) {
                *element = conditioned + beta * *element;
            }
            rz = rz_next;
            reached = rr.sqrt();
            history.fold_float(alpha);
            history.fold_float(beta);
            history.fold_floats(&residual);
            after_each();
        }
        history.fold_floats(&solution);
        let residual = self.true_residual(world, &right, &solution)?;
        history.fold_float(residual);
        Ok(Solution {
            iterations,
            residual,
        })
    }

    /// `|b - A x| / |b|`.
    fn true_residual(
        &mut self,
        world: &World,
        right: &[f64],
        solution: &[f64],
    ) -> Result<f64, Failure> {
        let mut vector = self.matrix.vector();
        vector[..solution.len()].copy_from_slice(solution);
        let mut product = vec![0.0; right.len()];
        self.matrix.multiply(world, &mut vector, &mut product)?;
        let error: f64 = right
            .iter()
            .zip(&product)
            .map(|(b, ax)| (b - ax) * (b - ax))
            .sum();
        let [error, norm] = sums(world, [error, dot(right, right)])?;
        Ok((error / norm).sqrt())
    }
}

/// An element of a right-hand side: all ones at first, then others that are the same on every run.
fn right_hand_side(number: u64, row: usize) -> f64 {
    if number == 0 {
        return 1.0;
    }
    let word = mix(mix(number) ^ row as u64);
    // From -1 to below 1.
    (word >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

/// Above 0, and a number.
fn is_positive(number: f64) -> bool {
    number > 0.0
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The sums over all ranks. Their bits depend on the number of ranks alone.
fn sums<const N: usize>(world: &World, own: [f64; N]) -> Result<[f64; N], Failure> {
    let mut sums = [0.0; N];
    world.all_reduce_into(&own, &mut sums, SystemOperation::sum())?;
    Ok(sums)
}
