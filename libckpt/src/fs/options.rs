//! How a file is opened.

use std::fs;
use std::io;
use std::path::Path;

use libckpt_rank::{current_rank, in_process};
use serde::{Deserialize, Serialize};

use super::error::Refusal;
use super::{File, table};

/// How a file is to be opened: [`std::fs::OpenOptions`], for [`File`].
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    pub(super) mode: Mode,
    pub(super) truncate: bool,
    create: bool,
    create_new: bool,
}

/// What may be done with an open file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mode {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) append: bool,
}

impl Mode {
    /// Whether the file can be changed.
    pub(super) fn writes(self) -> bool {
        self.write || self.append
    }

    /// Options that open it so, and change nothing.
    pub(super) fn reopening(self) -> fs::OpenOptions {
        let mut options = fs::OpenOptions::new();
        options
            .read(self.read)
            .write(self.write)
            .append(self.append);
        options
    }

    /// For messages: open for what.
    pub(super) fn shown(self) -> &'static str {
        match (self.writes(), self.append) {
            (false, _) => "reading",
            (true, false) => "writing",
            (true, true) => "appending",
        }
    }
}

impl OpenOptions {
    /// Options that allow nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// To be read.
    pub fn read(&mut self, read: bool) -> &mut Self {
        self.mode.read = read;
        self
    }

    /// To be written, from the beginning on.
    pub fn write(&mut self, write: bool) -> &mut Self {
        self.mode.write = write;
        self
    }

    /// To be written at its end. See the [module](super) for what to know about it.
    pub fn append(&mut self, append: bool) -> &mut Self {
        self.mode.append = append;
        self
    }

    /// To be emptied; for writing only.
    pub fn truncate(&mut self, truncate: bool) -> &mut Self {
        self.truncate = truncate;
        self
    }

    /// To be made if it is not there; for writing or appending only.
    pub fn create(&mut self, create: bool) -> &mut Self {
        self.create = create;
        self
    }

    /// To be made, and an error if it is there; for writing or appending only.
    pub fn create_new(&mut self, create_new: bool) -> &mut Self {
        self.create_new = create_new;
        self
    }

    /// Opens a file. The path is made absolute, so that it means the same later.
    ///
    /// # Errors
    /// Those of the system. No rank runs on this thread; the path is that of no regular file; it is to be written, and
    /// another rank or process writes to it.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        let Some(rank) = current_rank() else {
            return Err(Refusal::OutsideRank.told(path));
        };
        // What is told belongs to the rank, so that it is put together in its memory.
        match in_process(|| table::open(rank, path, self)) {
            Ok(number) => Ok(File { rank, number }),
            Err(refusal) => Err(refusal.told(path)),
        }
    }

    /// Whether a file of this name may come into being.
    pub(super) fn creates(&self) -> bool {
        self.create || self.create_new
    }

    /// The same for the system, but for emptying: that has to wait until the file is known to be ours.
    ///
    /// # Errors
    /// Options that exclude each other, as the standard library has it.
    pub(super) fn of_system(&self) -> io::Result<fs::OpenOptions> {
        let Mode { write, append, .. } = self.mode;
        let nonsense = match (write, append) {
            (_, true) => self.truncate && !self.create_new,
            (true, false) => false,
            (false, false) => self.truncate || self.creates(),
        };
        if nonsense {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut options = self.mode.reopening();
        options.create(self.create).create_new(self.create_new);
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_the_standard_library_refuses_are_refused_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        for bits in 0..64_u32 {
            let [read, write, append, truncate, create, create_new] =
                std::array::from_fn(|bit| bits >> bit & 1 == 1);
            let path = folder.path().join(bits.to_string());
            if !create_new {
                fs::write(&path, "here").unwrap();
            }
            let mut ours = OpenOptions::new();
            ours.read(read).write(write).append(append);
            ours.truncate(truncate)
                .create(create)
                .create_new(create_new);
            let mut theirs = fs::OpenOptions::new();
            theirs.read(read).write(write).append(append);
            theirs
                .truncate(truncate)
                .create(create)
                .create_new(create_new);
            let ours = ours.of_system().and_then(|options| options.open(&path));
            if create_new && ours.is_ok() {
                fs::remove_file(&path).unwrap();
            }
            let theirs = theirs.open(&path);
            assert_eq!(
                ours.is_ok(),
                theirs.is_ok(),
                "{bits:06b}: {ours:?}, {theirs:?}"
            );
        }
    }
}
