//! A file that is open in this process: the descriptor, and what of it is on disk.

use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::FileError;
use super::options::Mode;

/// How long a lock is waited for: a process of an earlier start may take a moment to end.
const LOCK_WITHIN: Duration = Duration::from_secs(10);

/// Between two tries for a lock.
const LOCK_LOOK: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: fs::File,
    path: PathBuf,
    mode: Mode,
    /// Device and inode.
    identity: (u64, u64),
    /// Counts what may have changed the file.
    changes: AtomicU64,
    /// Of them, those known to be on disk.
    durable: AtomicU64,
    /// Its name may not be on disk: it was made, maybe.
    is_new: AtomicBool,
    /// Why something that was written may never reach the disk.
    failure: OnceLock<String>,
}

/// What of a file may not be on disk, for another process that takes it over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    is_unsynced: bool,
    is_new: bool,
    failure: Option<String>,
}

impl OpenFile {
    /// A regular file that was just opened.
    pub(super) fn new(file: fs::File, path: PathBuf, mode: Mode, is_new: bool) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            file,
            path,
            mode,
            identity: identity(&metadata),
            changes: AtomicU64::new(u64::from(is_new)),
            durable: AtomicU64::new(0),
            is_new: AtomicBool::new(is_new),
            failure: OnceLock::new(),
        })
    }

    /// One that another process of this machine has open, with a descriptor of our own.
    pub(super) fn taken(
        file: fs::File,
        path: PathBuf,
        mode: Mode,
        written: Written,
    ) -> io::Result<Self> {
        let taken = Self::new(file, path, mode, written.is_new)?;
        if written.is_unsynced {
            taken.will_write();
        }
        if let Some(reason) = written.failure {
            let _ = taken.failure.set(reason);
        }
        Ok(taken)
    }

    /// What of it may not be on disk.
    pub(super) fn written(&self) -> Written {
        Written {
            is_unsynced: self.is_unsynced(),
            is_new: self.is_new.load(Ordering::SeqCst),
            failure: self.failure.get().cloned(),
        }
    }

    pub(super) fn file(&self) -> &fs::File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether both are the same file, whatever their paths.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Whether the path still leads to it.
    pub(super) fn is_at_its_path(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Makes this the file's only writer; false if another process is that, and stays it for long. Where the file
    /// system knows no locks, nobody is hindered.
    pub(super) fn lock(&self) -> io::Result<bool> {
        let begin = Instant::now();
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::Error(error)) if knows_no_locks(&error) => {
                    tracing::debug!(path = %self.path.display(), %error, "not locked");
                    return Ok(true);
                }
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if begin.elapsed() >= LOCK_WITHIN => {
                    return Ok(false);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_LOOK),
            }
        }
    }

    /// Lets others write.
    pub(super) fn unlock(&self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(path = %self.path.display(), %error, "not unlocked");
        }
    }

    /// To be called before anything that changes the file.
    pub(super) fn will_write(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether something that was written may not be on disk.
    pub(super) fn is_unsynced(&self) -> bool {
        self.durable.load(Ordering::SeqCst) < self.changes.load(Ordering::SeqCst)
    }

    /// Waits until what was written so far is on disk, and the file's name. By any thread.
    ///
    /// A failure is for good: after it the system takes the pages for written (fsync(2)), and trying again would succeed
    /// with the data lost.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        let changes = self.changes.load(Ordering::SeqCst);
        if self.failure.get().is_none() {
            let synced = self.file.sync_data().and_then(|()| self.sync_name());
            match synced {
                Ok(()) => {
                    self.durable.fetch_max(changes, Ordering::SeqCst);
                    return Ok(());
                }
                Err(error) => self.fail(&error),
            }
        }
        Err(FileError::NotDurable {
            path: self.path.clone(),
            reason: self.failure.get().cloned().unwrap_or_default(),
        })
    }

    /// Makes what is not durable of the same file, opened earlier, a matter of this one.
    pub(super) fn take_over(&self, earlier: &Self) {
        if earlier.is_unsynced() {
            self.will_write();
        }
        if earlier.is_new.load(Ordering::SeqCst) {
            self.is_new.store(true, Ordering::SeqCst);
        }
        if let Some(reason) = earlier.failure.get() {
            let _ = self.failure.set(reason.clone());
        }
    }

    /// Takes note of how a sync by the solver went.
    pub(super) fn synced_by(&self, outcome: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &outcome {
            libckpt_rank::in_process(|| self.fail(error));
        }
        outcome
    }

    fn fail(&self, error: &io::Error) {
        // Such that a checkpoint comes across it, also if all was on disk before.
        self.will_write();
        let _ = self.failure.set(error.to_string());
    }

    /// Makes the entry in the folder durable, where it may be new.
    fn sync_name(&self) -> io::Result<()> {
        if !self.is_new.load(Ordering::SeqCst) {
            return Ok(());
        }
        // A folder that may not be read can't be synced either.
        if let Some(Ok(folder)) = self.path.parent().map(fs::File::open) {
            folder.sync_all()?;
        }
        self.is_new.store(false, Ordering::SeqCst);
        Ok(())
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// What flock(2) says on file systems without locks, such as Lustre mounted without them or NFS without its lock service.
fn knows_no_locks(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::ENOLCK | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path) -> OpenFile {
        let mode = Mode {
            write: true,
            ..Mode::default()
        };
        let file = mode.reopening().create(true).open(path).unwrap();
        OpenFile::new(file, path.to_owned(), mode, true).unwrap()
    }

    #[test]
    fn what_is_written_after_a_sync_is_unsynced_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = written(&folder.path().join("file"));
        assert!(file.is_unsynced(), "its name may be new");
        file.sync().unwrap();
        assert!(!file.is_unsynced());
        file.will_write();
        assert!(file.is_unsynced());
        file.sync().unwrap();
        assert!(!file.is_unsynced());
    }

    #[test]
    fn a_sync_that_failed_is_never_taken_for_good_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = written(&folder.path().join("file"));
        file.sync().unwrap();
        let failed = file.synced_by(Err(io::Error::other("no such luck")));
        assert!(failed.is_err());
        for _ in 0..2 {
            assert!(file.is_unsynced());
            let told = file.sync().unwrap_err().to_string();
            assert!(told.contains("no such luck"), "{told}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_is_not_at_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = written(&path);
        assert!(file.is_at_its_path());
        fs::rename(&path, folder.path().join("other")).unwrap();
        assert!(!file.is_at_its_path());
        fs::write(&path, "another").unwrap();
        assert!(!file.is_at_its_path());
    }
}
