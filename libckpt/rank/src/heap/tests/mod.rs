//! Tests of the heap as a whole, in regions mapped anywhere.

mod basics;
mod full;
mod large;
mod model;
mod region;
mod threads;
