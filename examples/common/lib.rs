//! What the example solvers share.
//!
//! - [`arguments`]: the command line. Every rank reads it for itself, in its own memory: a parser that kept
//!   something in the process would keep it outside of the ranks' images.
//! - [`history`]: a hash over everything that the ranks did, for the line `result: …` at the end. A solver
//!   corrects itself, so that its final state alone would hide a restart that went wrong.
//! - [`random`]: numbers that look random and are the same on every run.

pub mod arguments;
pub mod history;
pub mod pause;
pub mod random;

pub use arguments::{Arguments, Problem};
pub use history::History;
pub use pause::Pause;
pub use random::Random;
