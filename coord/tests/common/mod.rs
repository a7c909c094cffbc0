//! What the tests of whole jobs share: [`process`] is a small program that takes the process's side with real
//! files, [`bed`] runs jobs of it and watches their events.

// Each test program uses a part of it.
#[allow(dead_code)]
pub mod bed;
pub mod process;
