//! The protocol of the checkpoint and migration layer, as pure state machines.
//!
//! Nothing here does I/O, reads a clock or starts a thread. Inputs go in by `handle_*`, outputs come
//! out by `poll_*`, time is passed in. The same code runs in the product, in the simulator
//! (`protocol/tests/simulation`) and in the model checker (`protocol/tests/model`).

#![forbid(unsafe_code)]

pub mod channel;
pub mod control;
pub mod coordinator;
pub mod dirty;
pub mod faults;
pub mod frame;
pub mod identity;
pub mod ids;
pub mod interval;
pub mod migration;
pub mod nodes;
pub mod page;
pub mod participant;
pub mod placement;
pub mod recovery;
pub mod slots;
pub mod walltime;
