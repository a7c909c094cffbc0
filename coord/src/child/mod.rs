//! The processes of a job as children of this one.
//!
//! Promises kept here: a child is killed by the kernel when the thread that started it ends
//! (`PDEATHSIG`, so start children from a thread that lasts as long as the job); it runs with address
//! randomisation off and a fixed stack limit, so that libckpt need not start it a second time; it has a
//! process group of its own, so that Ctrl-C in the terminal reaches `ckpt` only; its end is seen at once
//! (`pidfd`); and no end is ever reported for a child that has not been reaped.
//!
//! [`spawn`] starts a child, [`table`] keeps those that live, [`label`] marks their output lines.

pub mod label;
pub mod spawn;
pub mod table;
