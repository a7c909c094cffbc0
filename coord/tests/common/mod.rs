//! What the tests of whole jobs share: [`process`] is a small program that takes the process's side with real
//! files, [`bed`] runs jobs of it and watches their events.

pub mod bed;
pub mod process;
