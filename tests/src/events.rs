//! The event log of a job (`--events`), read while it grows.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// One line of the log. The names and fields are those of `docs/cli.md`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    /// Microseconds of `CLOCK_MONOTONIC`.
    pub t_us: u64,
    /// Its name.
    #[serde(rename = "event")]
    pub name: String,
    /// The rest of its fields.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl Event {
    /// Whether this is an event of that name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// A field that is a number; none if it is absent or null.
    #[must_use]
    pub fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field)?.as_u64()
    }

    /// The epoch that it is about; none if it is absent or null.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        self.number("epoch")
    }

    /// The process that it is about.
    #[must_use]
    pub fn process(&self) -> Option<usize> {
        self.number("process")
            .and_then(|process| usize::try_from(process).ok())
    }

    /// A field that is text, or nothing.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The process ids of a `start` event, by process.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let Some(Value::Array(pids)) = self.fields.get("pids") else {
            return Vec::new();
        };
        pids.iter()
            .filter_map(|pid| u32::try_from(pid.as_u64()?).ok())
            .collect()
    }
}

/// A reader of the log that remembers how far it came.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// What was read of a line that was not yet whole.
    rest: Vec<u8>,
}

impl Tail {
    /// A reader from the beginning. The file need not be there yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            rest: Vec::new(),
        }
    }

    /// A reader of what is written from now on.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn from_end(path: &Path) -> Result<Self> {
        let mut tail = Self::new(path);
        if let Ok(mut file) = File::open(path) {
            file.seek(SeekFrom::End(0))
                .context("seek in the event log")?;
            tail.file = Some(file);
        }
        Ok(tail)
    }

    /// The events that were written since the last call.
    ///
    /// # Errors
    /// When the file can't be read or a line is not an event.
    pub fn read(&mut self) -> Result<Vec<Event>> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return Ok(Vec::new());
        };
        file.read_to_end(&mut self.rest)
            .context("read the event log")?;
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        whole
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                serde_json::from_slice(line)
                    .with_context(|| format!("not an event: {}", String::from_utf8_lossy(line)))
            })
            .collect()
    }
}

/// All events of a log.
///
/// # Errors
/// When the file can't be read or a line is not an event.
pub fn read_all(path: &Path) -> Result<Vec<Event>> {
    Tail::new(path).read()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_line_that_is_not_whole_yet_is_left_for_the_next_read() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("events");
        let mut tail = Tail::new(&path);
        assert!(tail.read()?.is_empty());
        let mut file = File::create(&path)?;
        file.write_all(b"{\"t_us\":1,\"event\":\"go\",\"epoch\":null}\n{\"t_us\":2,")?;
        let events = tail.read()?;
        assert_eq!(events.len(), 1);
        assert!(events[0].is("go"));
        assert_eq!(events[0].epoch(), None);
        file.write_all(b"\"event\":\"start\",\"pids\":[7,8],\"epoch\":3}\n")?;
        let events = tail.read()?;
        assert_eq!(events[0].pids(), [7, 8]);
        assert_eq!(events[0].epoch(), Some(3));
        Ok(())
    }
}
