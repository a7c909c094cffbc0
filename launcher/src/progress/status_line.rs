//! For a terminal: one line that is drawn anew, with what is notable scrolling by above it.

use std::time::Duration;

use coord::event::{Event, Observer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::control::JobStatus;

use super::words;

const TICK: Duration = Duration::from_millis(200);

pub struct StatusLine {
    line: ProgressBar,
    /// The last checkpoint in words.
    checkpoint: Option<String>,
    narrator: words::Narrator,
}

impl StatusLine {
    pub fn new() -> Self {
        let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // The template is a constant; a wrong one would show as the default style.
        if let Ok(style) = ProgressStyle::with_template("{spinner} ckpt: {wide_msg}") {
            line.set_style(style);
        }
        Self {
            line,
            checkpoint: None,
            narrator: words::Narrator::default(),
        }
    }
}

/// The status line's text.
fn tell(status: &JobStatus, checkpoint: Option<&str>) -> String {
    let mut parts = vec![match status.finished {
        0 => format!("{} ranks {}", status.ranks, status.phase),
        finished => format!(
            "{} ranks {}, {finished} finished",
            status.ranks, status.phase
        ),
    }];
    if let (Some(next_ms), None) = (status.next_ms, status.snapshot) {
        parts.push(format!("next in {}", words::next(next_ms)));
    }
    parts.push(match (checkpoint, status.committed) {
        (Some(checkpoint), _) => checkpoint.to_owned(),
        (None, Some(epoch)) => epoch.to_string(),
        (None, None) => "no checkpoint yet".to_owned(),
    });
    if let Some((rank, ms)) = status.computing.iter().max_by_key(|(_, ms)| *ms) {
        parts.push(format!("{rank} computing for {} s", ms / 1000));
    }
    match status.restarts {
        0 => {}
        1 => parts.push("1 restart".to_owned()),
        restarts => parts.push(format!("{restarts} restarts")),
    }
    parts.join(" · ")
}

impl Observer for StatusLine {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Committed(committed) => self.checkpoint = Some(words::checkpoint(committed)),
            Event::End { .. } => self.line.finish_and_clear(),
            event => {
                if let Some(text) = self.narrator.tell(event) {
                    self.line.println(format!("ckpt: {text}"));
                }
            }
        }
    }

    fn tick(&mut self, status: &JobStatus) {
        self.line
            .set_message(tell(status, self.checkpoint.as_deref()));
        self.line.tick();
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(TICK)
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::{Epoch, Rank};

    use super::*;

    #[test]
    fn the_line_tells_ranks_checkpoint_and_time_to_the_next() {
        let mut status = JobStatus {
            ranks: 4,
            phase: "running".to_owned(),
            next_ms: Some(1200),
            ..JobStatus::default()
        };
        assert_eq!(
            tell(&status, None),
            "4 ranks running · next in 1.2 s · no checkpoint yet"
        );
        status.committed = Some(Epoch(3));
        status.restarts = 2;
        status.computing = vec![(Rank(1), 4000)];
        assert_eq!(
            tell(&status, Some("epoch 3: 1.00 MiB")),
            "4 ranks running · next in 1.2 s · epoch 3: 1.00 MiB · rank 1 computing for 4 s · 2 restarts"
        );
    }
}
