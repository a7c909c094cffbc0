//! What a checkpoint holds of a rank's files: the metadata section of the rank's file.

use std::ffi::OsStr;
use std::io::Seek as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use protocol::ids::Rank;
use serde::{Deserialize, Serialize};

use super::error::FileError;
use super::open_file::OpenFile;
use super::options::Mode;
use super::table;

/// The version of the section.
const VERSION: u32 = 1;

/// The open files of a rank, as they were when it stood still. What it takes to open them elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenFiles {
    /// The newest number that a file got.
    pub(super) numbers: u64,
    pub(super) files: Vec<FileRecord>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    /// By which the rank knows it; `None` for one that it has appended to and closed.
    pub(super) number: Option<u64>,
    /// Absolute, as bytes: a path need not be UTF-8.
    path: Vec<u8>,
    pub(super) mode: Mode,
    pub(super) offset: u64,
    /// Its length.
    pub(super) bytes: u64,
}

impl FileRecord {
    pub(super) fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }
}

impl OpenFiles {
    /// The section; empty for a rank that has opened no file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        if self.numbers == 0 {
            return Ok(Vec::new());
        }
        postcard::to_stdvec(&(VERSION, self)).map_err(|error| error.to_string())
    }

    /// Reads a section.
    ///
    /// # Errors
    /// It is of another version, or no such section.
    pub(crate) fn decode(section: &[u8]) -> Result<Self, String> {
        if section.is_empty() {
            return Ok(Self::default());
        }
        let malformed = |error: &dyn std::fmt::Display| {
            format!("the section of open files does not decode: {error}")
        };
        let (version, rest) =
            postcard::take_from_bytes::<u32>(section).map_err(|error| malformed(&error))?;
        if version != VERSION {
            return Err(format!(
                "the section of open files has version {version}, this library reads version {VERSION}; restart with the \
                 version of the library that wrote the checkpoint"
            ));
        }
        let (files, rest) = postcard::take_from_bytes(rest).map_err(|error| malformed(&error))?;
        match rest.len() {
            0 => Ok(files),
            more => Err(malformed(&format!("{more} bytes too many"))),
        }
    }
}

/// The open files of a rank that stands still.
///
/// # Errors
/// One can't be opened elsewhere, so that the rank is pinned to this process and no checkpoint of it could be gone on from.
pub(crate) fn record(rank: Rank) -> Result<OpenFiles, FileError> {
    let known = table::of_rank(rank);
    let mut files = Vec::with_capacity(known.open.len() + known.appended.len());
    for (number, file) in &known.open {
        if !file.is_at_its_path() {
            return Err(FileError::Moved {
                rank,
                path: file.path().to_owned(),
            });
        }
        files.push(record_file(rank, Some(*number), file)?);
    }
    for file in &known.appended {
        // What became of it since it was closed is not the rank's business.
        if file.is_at_its_path() {
            files.push(record_file(rank, None, file)?);
        }
    }
    Ok(OpenFiles {
        numbers: known.numbers,
        files,
    })
}

fn record_file(rank: Rank, number: Option<u64>, file: &OpenFile) -> Result<FileRecord, FileError> {
    let unknown = |source| FileError::Unknown {
        rank,
        path: file.path().to_owned(),
        source,
    };
    Ok(FileRecord {
        number,
        path: file.path().as_os_str().as_bytes().to_owned(),
        mode: file.mode(),
        offset: file.file().stream_position().map_err(unknown)?,
        bytes: file.file().metadata().map_err(unknown)?.len(),
    })
}

#[cfg(test)]
impl FileRecord {
    /// Of a file that is open so at this length.
    pub(super) fn of(path: &Path, mode: Mode, offset: u64, bytes: u64) -> Self {
        Self {
            number: Some(1),
            path: path.as_os_str().as_bytes().to_owned(),
            mode,
            offset,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rank_without_files_has_an_empty_section_and_an_empty_section_is_no_files() {
        assert_eq!(OpenFiles::default().encode(), Ok(Vec::new()));
        assert_eq!(OpenFiles::decode(&[]), Ok(OpenFiles::default()));
    }

    #[test]
    fn a_section_of_another_version_is_refused_by_its_number() {
        let section = postcard::to_stdvec(&(VERSION + 1, OpenFiles::default())).unwrap();
        let refusal = OpenFiles::decode(&section).unwrap_err();
        assert!(refusal.contains("version 2"), "{refusal}");
    }

    fn files() -> impl Strategy<Value = OpenFiles> {
        let mode = any::<[bool; 3]>().prop_map(|[read, write, append]| Mode {
            read,
            write,
            append,
        });
        let path = proptest::collection::vec(1..=255_u8, 1..40);
        let file = (any::<Option<u64>>(), path, mode, any::<[u64; 2]>()).prop_map(
            |(number, path, mode, [offset, bytes])| FileRecord {
                number,
                path,
                mode,
                offset,
                bytes,
            },
        );
        (1..u64::MAX, proptest::collection::vec(file, 0..6))
            .prop_map(|(numbers, files)| OpenFiles { numbers, files })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_a_byte_more_or_less_is_refused(files in files()) {
            let mut section = files.encode().unwrap();
            prop_assert_eq!(OpenFiles::decode(&section), Ok(files));
            section.push(0);
            prop_assert!(OpenFiles::decode(&section).is_err());
            section.truncate(section.len() - 2);
            prop_assert!(OpenFiles::decode(&section).is_err());
        }
    }
}
