//! Files of a rank: what is open at a checkpoint is open after a restart, at the same offset.
//!
//! [`File`] and [`OpenOptions`] are used like those of [`std::fs`], and work under [`std::io::BufReader`] and
//! [`std::io::BufWriter`], whose buffers lie in the rank's memory and are captured with it:
//!
//! ```no_run
//! use std::io::{BufWriter, Write};
//!
//! use libckpt::fs::File;
//! use libckpt::prelude::*;
//!
//! #[libckpt::main]
//! fn main(world: World) -> std::io::Result<()> {
//!     let mut log = BufWriter::new(File::create(format!("log.{}", world.rank()))?);
//!     for step in 1..=1000 {
//!         world.barrier().expect("all ranks take part");
//!         writeln!(log, "step {step}")?;
//!     }
//!     log.flush()
//! }
//! ```
//!
//! A checkpoint holds the path, the mode and the offset of each open file, and the length of those opened to be written.
//! It is committed when what was written before it is on disk. A restart opens the files again:
//!
//! - A file opened for *reading* goes on at its offset and is not touched.
//! - A file opened for *writing* is cut back to the length that it had. So a rank that writes each line once has it
//!   in the file once, however often the job was killed.
//! - A file opened for *appending* is cut back too, also when it was closed again before the checkpoint. So a rank may
//!   open its log for each line.
//! - A path that is missing, or a file that is shorter than it was, refuses the restart, before any file is changed.
//!
//! What is to be known:
//!
//! - *One file, one writer.* A file that a rank has open for writing is locked (flock(2)); nobody else can open
//!   it for writing through this module, no other rank and no process of an earlier start. A file that was appended to
//!   stays locked until the rank ends. Several ranks write several files, or send what they have to one that writes.
//! - *Bytes that are overwritten are not brought back*, nor are bytes that `set_len` or `truncate` took away. A rank that
//!   only writes writes the same bytes again. One that reads back what it has overwritten may read bytes from after
//!   the checkpoint: such data belongs into memory. A file that became shorter after the checkpoint refuses the restart.
//! - *A file that was opened first after the checkpoint remains as it is*, and is opened again by the rank when it comes
//!   there. [`File::create`] begins it anew; [`OpenOptions::append`] appends to lines that are there already, and
//!   [`File::create_new`] finds that it exists. So a log is created, or opened before the first checkpoint. One that is created,
//!   closed, and opened again for each line is opened for appending once before the next communication call.
//! - *A file must be found under its path* as long as it is open: what is removed or renamed while it is open refuses
//!   checkpoints, until it is closed. On several nodes the path must lead to the same file on all of them.
//! - Only regular files. Pipes, terminals and devices have no offset to go back to; use [`std::fs`] for them.

mod error;
mod hand_over;
mod open_file;
mod options;
mod record;
mod reopen;
mod table;

use std::fmt;
use std::fs::Metadata;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libckpt_rank::in_process;
use protocol::ids::Rank;

pub use self::error::FileError;
pub(crate) use self::hand_over::{Offer, Taken, is_there, offer};
use self::open_file::OpenFile;
pub use self::options::OpenOptions;
pub(crate) use self::record::{OpenFiles, record};
pub(crate) use self::reopen::{Reopened, Stragglers, check, reopen};
pub(crate) use self::table::{
    Unsynced, close_all, descriptors, keep_until_durable, let_go, release, unsynced, unsynced_of,
};

/// An open file of a rank. See the [module](self).
///
/// What the rank's memory holds is a number; path, mode and offset are recorded at a checkpoint, and the descriptor is
/// that of whatever process the rank is in. There is no way to get at it, and no `try_clone`.
pub struct File {
    rank: Rank,
    number: u64,
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        OpenOptions::new().read(true).open(path)
    }

    /// Opens a file for writing: makes it if it is not there, empties it if it is.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
    }

    /// Makes a file, and opens it for reading and writing. A rank that goes back to a checkpoint from before this call
    /// finds that the file exists.
    ///
    /// # Errors
    /// As [`OpenOptions::open`]; the file is there.
    pub fn create_new(path: impl AsRef<Path>) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
    }

    /// How to open a file otherwise.
    #[must_use]
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// The path, absolute.
    ///
    /// # Errors
    /// As [`File::metadata`].
    pub fn path(&self) -> io::Result<PathBuf> {
        Ok(self.held()?.path().to_owned())
    }

    /// What the system tells about the file.
    ///
    /// # Errors
    /// Those of the system; the file is none of a rank that is in this process.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.held()?.file().metadata()
    }

    /// Makes the file so long: cuts it off, or adds zeros. What was cut off is not brought back by a restart.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        let held = self.held()?;
        held.will_write();
        held.file().set_len(bytes)
    }

    /// Waits until content and metadata are on disk. A checkpoint does so by itself.
    ///
    /// # Errors
    /// Those of the system. What could not be written is lost; no checkpoint is taken any more that would count on it.
    pub fn sync_all(&self) -> io::Result<()> {
        let held = self.held()?;
        held.synced_by(held.file().sync_all())
    }

    /// Waits until the content is on disk.
    ///
    /// # Errors
    /// As [`File::sync_all`].
    pub fn sync_data(&self) -> io::Result<()> {
        let held = self.held()?;
        held.synced_by(held.file().sync_data())
    }

    fn held(&self) -> io::Result<Arc<OpenFile>> {
        table::find(self.rank, self.number).ok_or_else(|| {
            io::Error::other(
                "the file was opened by a rank that has ended or is not in this process",
            )
        })
    }
}

impl Read for &File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.held()?.file().read(buffer)
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let held = self.held()?;
        held.will_write();
        held.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.held()?.file().seek(to)
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        in_process(|| table::close(self.rank, self.number));
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path()).finish()
    }
}
