//! Small runs that last.

use std::time::Duration;

use crate::{Arguments, Problem};

/// How long a rank sleeps in each of its steps: the option `--pause-us`, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Pause(Duration);

impl Pause {
    /// What the user wants; none where nothing is told.
    ///
    /// # Errors
    /// The value is missing or can't be read.
    pub fn read(arguments: &mut Arguments) -> Result<Self, Problem> {
        let microseconds = arguments.value("--pause-us", 0)?;
        Ok(Self(Duration::from_micros(microseconds)))
    }

    /// Sleeps.
    pub fn take(self) {
        if !self.0.is_zero() {
            std::thread::sleep(self.0);
        }
    }
}
