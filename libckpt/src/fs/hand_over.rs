//! The files of a rank that moves to another process of this machine.
//!
//! The other process gets descriptors of its own for what is open here ([`libckpt_transport::OtherProcess::descriptor`]):
//! the same offset, the same mode and the same lock. So no moment passes in which nobody holds the lock, whoever of the two
//! goes on; the other one closes its own, and does not unlock.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

use protocol::ids::Rank;
use serde::{Deserialize, Serialize};

use super::error::FileError;
use super::open_file::{OpenFile, Written};
use super::options::Mode;
use super::table::{self, RankFiles};

/// The open files of a rank that stands still, for the process that it moves to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The newest number that a file got.
    numbers: u64,
    files: Vec<Offered>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Offered {
    /// By which the rank knows it; `None` for one that it has appended to and closed.
    number: Option<u64>,
    /// Absolute, as bytes.
    path: Vec<u8>,
    mode: Mode,
    /// In the process that offers it.
    descriptor: RawFd,
    written: Written,
}

/// The files of a rank that has come, open in this process, and not its own yet.
#[derive(Debug)]
pub(crate) struct Taken {
    rank: Rank,
    files: RankFiles,
}

/// The files of a rank that stands still.
///
/// # Errors
/// One is not found under its path any more, so that the rank is pinned to this process.
pub(crate) fn offer(rank: Rank) -> Result<Offer, FileError> {
    let known = table::of_rank(rank);
    let mut files = Vec::with_capacity(known.open.len() + known.appended.len());
    let offered = |number, file: &OpenFile| Offered {
        number,
        path: file.path().as_os_str().as_bytes().to_owned(),
        mode: file.mode(),
        descriptor: file.file().as_raw_fd(),
        written: file.written(),
    };
    for (number, file) in &known.open {
        if !file.is_at_its_path() {
            return Err(FileError::Moved {
                rank,
                path: file.path().to_owned(),
            });
        }
        files.push(offered(Some(*number), file));
    }
    // What became of one since it was closed is not the rank's business.
    let appended = known.appended.iter().filter(|file| file.is_at_its_path());
    files.extend(appended.map(|file| offered(None, file)));
    Ok(Offer {
        numbers: known.numbers,
        files,
    })
}

impl Offer {
    /// The paths of the open files, as far as they are text.
    pub(crate) fn paths(&self) -> Vec<String> {
        let open = self.files.iter().filter(|file| file.number.is_some());
        open.filter_map(|file| String::from_utf8(file.path.clone()).ok())
            .collect()
    }

    /// Takes the files over, by descriptors that `fetch` gives. Any thread may do it, in process context.
    ///
    /// # Errors
    /// Which file can't be had, and why.
    pub(crate) fn take(
        self,
        rank: Rank,
        fetch: impl Fn(RawFd) -> std::io::Result<File>,
    ) -> Result<Taken, String> {
        let mut files = RankFiles {
            numbers: self.numbers,
            ..RankFiles::default()
        };
        for offered in self.files {
            let path = OsString::from_vec(offered.path);
            let told = |what: &dyn std::fmt::Display| {
                format!("the file {} of {rank}: {what}", Path::new(&path).display())
            };
            let file = fetch(offered.descriptor).map_err(|error| told(&error))?;
            let file = OpenFile::taken(file, path.clone().into(), offered.mode, offered.written)
                .map_err(|error| told(&error))?;
            if !file.is_at_its_path() {
                return Err(told(
                    &"it is not found under its path here; files must be seen alike by all processes",
                ));
            }
            let file = Arc::new(file);
            match offered.number {
                Some(number) => drop(files.open.insert(number, file)),
                None => files.appended.push(file),
            }
        }
        Ok(Taken { rank, files })
    }
}

impl Taken {
    /// The rank goes on in this process: the files are its own.
    pub(crate) fn adopt(self) {
        table::put(self.rank, self.files);
    }
}

/// Whether a file is there under its path, as one that a rank has open elsewhere has to be.
pub(crate) fn is_there(path: &str) -> bool {
    std::fs::metadata(OsStr::new(path)).is_ok_and(|found| found.is_file())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

    use super::super::{OpenOptions, close_all, keep_until_durable};
    use super::*;

    /// As another process would get them.
    fn duplicate(descriptor: RawFd) -> std::io::Result<File> {
        let open = table::all_of_tests();
        let file = open
            .iter()
            .find(|file| file.file().as_raw_fd() == descriptor);
        file.ok_or(std::io::ErrorKind::NotFound)?.file().try_clone()
    }

    #[test]
    fn a_file_goes_with_its_rank_with_offset_lock_and_what_is_not_on_disk() {
        keep_until_durable();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let rank = Rank(7_000_001);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let number = table::open(rank, &path, &options).unwrap();
        let here = table::find(rank, number).unwrap();
        here.file().write_all(b"0123456789").unwrap();
        here.will_write();
        here.file().seek(SeekFrom::Start(4)).unwrap();

        let offer = offer(rank).unwrap();
        assert_eq!(offer.paths(), [path.to_str().unwrap()]);
        let given_up = offer.clone().take(rank, duplicate).unwrap();
        drop(given_up);
        let is_locked = || File::open(&path).unwrap().try_lock().is_err();
        assert!(is_locked(), "who does not get it must not unlock it");

        let taken = offer.take(rank, duplicate).unwrap();
        drop(here);
        table::let_go(rank);
        assert!(table::find(rank, number).is_none());
        assert!(is_locked(), "who lets it go must not unlock it");
        taken.adopt();
        let there = table::find(rank, number).unwrap();
        assert!(there.is_unsynced());
        let mut rest = String::new();
        there.file().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "456789");
        drop(there);
        close_all(rank);
        assert!(!is_locked());
    }

    #[test]
    fn a_file_that_is_gone_pins_its_rank() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let rank = Rank(7_000_002);
        let mut options = OpenOptions::new();
        options.write(true).create(true);
        table::open(rank, &path, &options).unwrap();
        assert!(is_there(path.to_str().unwrap()));
        std::fs::remove_file(&path).unwrap();
        assert!(!is_there(path.to_str().unwrap()));
        assert!(matches!(offer(rank), Err(FileError::Moved { .. })));
        close_all(rank);
    }
}
