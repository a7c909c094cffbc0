//! For logs: what is notable as it happens, and how the checkpoints are doing now and then.

use std::io::Write;
use std::time::{Duration, Instant};

use coord::event::{Event, Observer};

use super::words;

/// Checkpoints are told at most this often, so that `--every 1s` does not fill a log.
const COMMITTED_EVERY: Duration = Duration::from_secs(10);

/// Writes lines to standard error.
pub struct Lines {
    told: Option<Instant>,
    narrator: words::Narrator,
}

impl Lines {
    pub fn new() -> Self {
        Self {
            told: None,
            narrator: words::Narrator::default(),
        }
    }

    fn say(text: &str) {
        // Nobody reads any more: the job goes on all the same.
        let _ = writeln!(std::io::stderr(), "ckpt: {text}");
    }
}

impl Observer for Lines {
    fn event(&mut self, event: &Event) {
        if let Event::Committed(committed) = event {
            if self
                .told
                .is_none_or(|told| told.elapsed() >= COMMITTED_EVERY)
            {
                self.told = Some(Instant::now());
                Self::say(&words::committed(committed));
            }
        } else if let Some(text) = self.narrator.tell(event) {
            Self::say(&text);
        }
    }
}
