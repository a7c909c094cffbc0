//! How a running job is shown: a status line on a terminal, lines elsewhere, or nothing.
//!
//! All of it goes to standard error; standard output belongs to the program that runs.

mod lines;
mod status_line;
mod words;

pub use lines::Lines;
pub use status_line::StatusLine;

use std::io::IsTerminal;

use coord::event::{Event, Observer};

/// Shows nothing, but keeps the warnings for the record at the end.
#[derive(Default)]
pub struct Warnings {
    pub texts: Vec<String>,
}

impl Observer for Warnings {
    fn event(&mut self, event: &Event) {
        if let Some(text) = words::warning(event) {
            self.texts.push(text);
        }
    }
}

/// What fits standard error: a line that is drawn anew on a terminal, lines elsewhere.
pub fn for_people() -> Box<dyn Observer> {
    if std::io::stderr().is_terminal() {
        Box::new(StatusLine::new())
    } else {
        Box::new(Lines::new())
    }
}
