//! The file operations that the store is built on, and nothing more.
//!
//! [`Storage`] is small on purpose: whatever is not in it can't be done by the store, and each operation
//! in it can be made to fail by [`crate::fault::FaultStorage`]. [`DiskStorage`] is a directory;
//! [`MemoryStorage`] is a medium in memory that loses on a crash what was not made durable.
//!
//! Paths are relative to the store, parts separated by `/`; the empty path is the store's directory.
//! Writes and reads may be short, as those of the system are; the helpers here go on until all is done.

mod disk;
mod disk_writer;
mod memory;
mod stretch;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use disk::DiskStorage;
pub use memory::{MemoryStorage, Survival};
pub use stretch::Stretch;

use crate::{Error, Result};

/// A storage shared by writers, readers and the job store.
pub type SharedStorage = Arc<dyn Storage>;

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner only (mode 0600): memory of the program, and secrets.
    Owner,
    /// Whoever the umask allows (mode 0666 before it).
    Umask,
}

/// What a directory entry is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name in the directory.
    pub name: String,
    /// Whether it is a directory itself.
    pub is_dir: bool,
}

/// What came of trying to lock.
#[derive(Debug)]
pub enum LockAttempt {
    /// The lock is held until this is dropped.
    Held(Box<dyn fmt::Debug + Send + Sync>),
    /// Another holds it, and left this note about itself.
    Busy(String),
}

/// A place for files.
pub trait Storage: fmt::Debug + Send + Sync {
    /// The path as a user should see it in a message.
    fn describe(&self, path: &str) -> String;
    /// Makes a file that must not exist, to be written from its start to its end.
    fn create_new(&self, path: &str, access: Access) -> io::Result<Box<dyn WriteFile>>;
    /// Opens a file for reading.
    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>>;
    /// Gives a file another name; a file that had that name is gone. Durable after [`Storage::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Gives a file a second name, which must not exist. Durable after [`Storage::sync_dir`].
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &str) -> io::Result<()>;
    /// Makes a directory that must not exist.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// What is in a directory, sorted by name.
    fn list(&self, path: &str) -> io::Result<Vec<Entry>>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Locks a file (made if it does not exist) against every other process and handle. `note` is left
    /// in it for those who find it locked.
    fn try_lock(&self, path: &str, note: &str) -> io::Result<LockAttempt>;
}

/// A file being written, append-only.
pub trait WriteFile: fmt::Debug + Send {
    /// Appends some of `bytes` and tells how many.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Makes what was written durable. Not to be tried again on the same file after it failed: the
    /// system may have dropped the data and report success.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file being read; several threads may read at once.
pub trait ReadFile: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    fn file_bytes(&self) -> io::Result<u64>;
    /// Reads some bytes at `offset` and tells how many; 0 at the end.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Fills a stretch that is wanted once, past the copies that the medium keeps of what was read; `false` where there
    /// are such copies, or it can't be done: it is to be read as usual then.
    fn read_past_cache(&self, stretch: &mut Stretch) -> bool {
        let _ = stretch;
        false
    }
}

/// Appends all of `bytes`.
pub(crate) fn write_all(file: &mut dyn WriteFile, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `into` from `offset`; [`io::ErrorKind::UnexpectedEof`] where the file ends before.
pub(crate) fn read_exact_at(
    file: &dyn ReadFile,
    mut into: &mut [u8],
    mut offset: u64,
) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                into = &mut into[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a whole small file, refusing one longer than `limit_bytes` before allocating for it.
pub(crate) fn read_whole(
    storage: &dyn Storage,
    path: &str,
    what: &'static str,
    limit_bytes: u64,
) -> Result<Vec<u8>> {
    let shown = storage.describe(path);
    let file = open(storage, path, what)?;
    let length = file
        .file_bytes()
        .map_err(Error::io("read the length of", &*shown))?;
    if length > limit_bytes {
        return Err(Error::corrupt(
            shown,
            format!("{length} bytes long, where at most {limit_bytes} are possible"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(length).expect("limits fit into memory")];
    read_exact_at(&*file, &mut bytes, 0).map_err(Error::io("read", shown))?;
    Ok(bytes)
}

/// Opens a file, telling apart one that is not there.
pub(crate) fn open(
    storage: &dyn Storage,
    path: &str,
    what: &'static str,
) -> Result<Box<dyn ReadFile>> {
    storage.open(path).map_err(|error| {
        let path = storage.describe(path);
        if error.kind() == io::ErrorKind::NotFound {
            Error::NotFound { path, what }
        } else {
            Error::io("open", path)(error)
        }
    })
}

/// Removes a file that may not be there.
pub(crate) fn remove_if_there(storage: &dyn Storage, path: &str) -> Result<bool> {
    match storage.remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", storage.describe(path))(error)),
    }
}

/// Makes a directory that may be there already; tells whether it is new.
pub(crate) fn create_dir_if_missing(storage: &dyn Storage, path: &str) -> Result<bool> {
    match storage.create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("make the directory", storage.describe(path))(
            error,
        )),
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(storage: &dyn Storage, path: &str) -> Result<()> {
    storage
        .sync_dir(path)
        .map_err(Error::io("fsync the directory", storage.describe(path)))
}
