//! What the example solvers share.
