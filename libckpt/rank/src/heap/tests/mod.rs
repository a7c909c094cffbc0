//! Tests of the heap as a whole, in regions mapped anywhere.

mod basics;
mod region;
