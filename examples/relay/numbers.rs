//! The numbers that a rank reads.

use std::io::{BufRead as _, BufReader, Seek as _};

use libckpt::fs::File;

/// The numbers of a file, one on each line, from its beginning again after its end.
#[derive(Debug)]
pub struct Numbers {
    path: String,
    file: BufReader<File>,
    line: String,
}

impl Numbers {
    /// Opens the file.
    pub fn open(path: &str) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| format!("{path}: {error}"))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(100, file),
            line: String::new(),
        })
    }

    /// The next number.
    pub fn read(&mut self) -> Result<u64, String> {
        let said = |error: &dyn std::fmt::Display| format!("{}: {error}", self.path);
        self.line.clear();
        if self
            .file
            .read_line(&mut self.line)
            .map_err(|error| said(&error))?
            == 0
        {
            self.file.rewind().map_err(|error| said(&error))?;
            self.file
                .read_line(&mut self.line)
                .map_err(|error| said(&error))?;
        }
        let line = self.line.trim_end();
        line.parse()
            .map_err(|error| said(&format!("{line:?}: {error}")))
    }
}
