//! Small runs that last.

use std::path::PathBuf;
use std::time::Duration;

use libckpt::Result;
use libckpt::prelude::*;

use crate::{Arguments, Problem};

/// How often rank 0 looks whether the solver may end.
const LOOK: Duration = Duration::from_millis(2);

/// What makes a solver last: a sleep in each of its steps (the option `--pause-us`, in microseconds), and a file without
/// which it does not end (`--until`).
#[derive(Clone, Debug)]
pub struct Pause {
    each_step: Duration,
    until: Option<PathBuf>,
}

impl Pause {
    /// What the user wants; nothing where nothing is told.
    ///
    /// # Errors
    /// A value is missing or can't be read.
    pub fn read(arguments: &mut Arguments) -> Result<Self, Problem> {
        let microseconds = arguments.value("--pause-us", 0)?;
        Ok(Self {
            each_step: Duration::from_micros(microseconds),
            until: arguments.text("--until")?.map(PathBuf::from),
        })
    }

    /// Sleeps.
    pub fn take(&self) {
        if !self.each_step.is_zero() {
            std::thread::sleep(self.each_step);
        }
    }

    /// Whether the file is there that the solver may not end without; true if none is awaited. Rank 0 looks, the others wait for
    /// its word, so that all of them can be captured meanwhile. Collective.
    ///
    /// # Errors
    /// Those of a broadcast.
    pub fn may_end(&self, world: &World) -> Result<bool> {
        let Some(path) = &self.until else {
            return Ok(true);
        };
        let zero = world.process_at_rank(0);
        let mut is_there = u8::from(zero.is_self() && path.exists());
        zero.broadcast_into(&mut is_there)?;
        if is_there == 0 && zero.is_self() {
            std::thread::sleep(LOOK);
        }
        Ok(is_there != 0)
    }

    /// Returns once [`Pause::may_end`] is true. Collective.
    ///
    /// # Errors
    /// Those of a broadcast.
    pub fn until_it_may_end(&self, world: &World) -> Result<()> {
        while !self.may_end(world)? {
            libckpt::safepoint();
        }
        Ok(())
    }
}
