//! The lines that a rank writes.

use std::io::{self, BufWriter, Write as _};
use std::str::FromStr;

use libckpt::fs::File;

/// How lines get into the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through a buffer, many at once; not at line ends.
    Buffered,
    /// One by one.
    Each,
    /// The file is opened for each.
    Reopened,
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "buffered" => Ok(Self::Buffered),
            "each" => Ok(Self::Each),
            "reopened" => Ok(Self::Reopened),
            _ => Err("not buffered, each or reopened".to_owned()),
        }
    }
}

/// Bytes of the buffer: a few lines, and no whole number of them.
const BUFFER_BYTES: usize = 200;

/// See the module.
#[derive(Debug)]
pub enum Lines {
    Buffered(BufWriter<File>),
    Each(File),
    Reopened(String),
}

impl Lines {
    /// Begins a file.
    pub fn create(path: &str, way: Way) -> io::Result<Self> {
        let file = File::create(path)?;
        Ok(match way {
            Way::Buffered => Self::Buffered(BufWriter::with_capacity(BUFFER_BYTES, file)),
            Way::Each => Self::Each(file),
            Way::Reopened => {
                drop(file);
                // From here on the library knows that the rank appends to it, also in a checkpoint before the first line.
                File::options().append(true).open(path)?;
                Self::Reopened(path.to_owned())
            }
        })
    }

    /// Writes a line.
    pub fn write(&mut self, step: u64, word: u64) -> io::Result<()> {
        let line = format!("{step} {word:016x}\n");
        match self {
            Self::Buffered(file) => file.write_all(line.as_bytes()),
            Self::Each(file) => file.write_all(line.as_bytes()),
            Self::Reopened(path) => File::options()
                .append(true)
                .open(path)?
                .write_all(line.as_bytes()),
        }
    }

    /// Writes what is left.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::Buffered(mut file) => file.flush(),
            Self::Each(_) | Self::Reopened(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_one_of_three_words() {
        assert_eq!("each".parse(), Ok(Way::Each));
        assert_eq!("reopened".parse(), Ok(Way::Reopened));
        assert!("Each".parse::<Way>().is_err());
    }
}
