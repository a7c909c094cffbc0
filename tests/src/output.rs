//! What a job printed, line by line, with the time at which each line was read.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::process::now_us;

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was read: not before it was printed.
    pub t_us: u64,
    /// The line without its end.
    pub text: String,
}

/// Reads a stream to its end in a thread of its own.
#[derive(Debug)]
pub struct Reader {
    lines: Arc<Mutex<Vec<Line>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// Starts to read.
    pub fn start(stream: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let thread = {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                let mut bytes = Vec::new();
                while matches!(stream.read_until(b'\n', &mut bytes), Ok(count) if count > 0) {
                    let text = String::from_utf8_lossy(&bytes)
                        .trim_end_matches('\n')
                        .to_owned();
                    bytes.clear();
                    lines
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Line {
                            t_us: now_us(),
                            text,
                        });
                }
            })
        };
        Self { lines, thread }
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the stream has ended: every process that could write to it is gone.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Lines as one text.
#[must_use]
pub fn text(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.text);
        text.push('\n');
    }
    text
}
