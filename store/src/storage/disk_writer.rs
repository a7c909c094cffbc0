//! A file of the file system while it is being written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::stretch::open_past_cache;
use super::{Stretch, WriteFile};

/// Bytes after which the system is told to begin with writing.
const PUSH_BYTES: u64 = 8 << 20;

/// A [`WriteFile`] of a directory.
#[derive(Debug)]
pub(super) struct DiskWriter {
    file: File,
    written_bytes: u64,
    /// How far the system was told to begin with writing.
    pushed_bytes: u64,
    past_cache: Option<PastCache>,
}

/// What is written in whole blocks past the page cache.
///
/// The page cache would be made of memory that is touched for the first time and not soon again, and each byte copied
/// there: several times the work for the processor that handing blocks to the disk is (docs/performance.md).
#[derive(Debug)]
struct PastCache {
    gathering: Arc<Gathering>,
    /// The same file; none before there is enough for it.
    file: Option<File>,
    /// What was written and is not in the file yet. It begins on a block.
    gathered: Stretch,
    gathered_bytes: usize,
    /// Bytes that are in the file.
    passed_bytes: u64,
}

/// How much is gathered for each write past the page cache, and the memory that no file needs at the moment: memory that is touched for
/// the first time is slow.
#[derive(Debug)]
pub(super) struct Gathering {
    bytes: usize,
    /// As many as there were files at once, at most.
    spares: Mutex<Vec<Stretch>>,
}

impl Gathering {
    /// So many bytes for each write, a multiple of 4096 and not 0.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            spares: Mutex::default(),
        }
    }

    fn take(&self) -> Stretch {
        let mut stretch = self.spares().pop().unwrap_or_default();
        stretch.aim(0, self.bytes);
        stretch
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Stretch>> {
        // Whole at any moment.
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PastCache {
    fn drop(&mut self) {
        let gathered = std::mem::take(&mut self.gathered);
        self.gathering.spares().push(gathered);
    }
}

impl DiskWriter {
    /// A writer of an empty file. Gathers what goes past the page cache, where it is told how and the file system can do that.
    pub(super) fn new(file: File, gathering: Option<&Arc<Gathering>>) -> Self {
        let past_cache = gathering
            .filter(|_| !is_memory(&file))
            .map(|gathering| PastCache {
                gathering: gathering.clone(),
                file: None,
                gathered: gathering.take(),
                gathered_bytes: 0,
                passed_bytes: 0,
            });
        Self {
            file,
            written_bytes: 0,
            pushed_bytes: 0,
            past_cache,
        }
    }

    /// Lets the system begin to write what it holds back, so that the fsync at the end has little left to do. On
    /// Linux this advice starts the writing of pages that are not written yet, and drops only those that are: told
    /// once for each, right after they were given, it drops hardly any.
    fn push(&mut self) {
        let (from, bytes) = (self.pushed_bytes, self.written_bytes - self.pushed_bytes);
        if let (Ok(from), Ok(bytes)) = (i64::try_from(from), i64::try_from(bytes)) {
            // Only a hint: where the file system does not take it, fsync does all.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&self.file, from, bytes, advice);
        }
        self.pushed_bytes = self.written_bytes;
    }
}

impl WriteFile for DiskWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(past_cache) = &mut self.past_cache {
            let taken = past_cache.gather(bytes);
            if past_cache.is_full() && !past_cache.pass(&self.file)? {
                // From here on as usual: the file's own position is where the next byte belongs.
                self.file.write_all(past_cache.rest())?;
                self.past_cache = None;
            }
            return Ok(taken);
        }
        let written = self.file.write(bytes)?;
        self.written_bytes += written as u64;
        if self.written_bytes - self.pushed_bytes >= PUSH_BYTES {
            self.push();
        }
        Ok(written)
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(past_cache) = self.past_cache.take() {
            self.file
                .write_all_at(past_cache.rest(), past_cache.passed_bytes)?;
        }
        self.file.sync_all()
    }
}

impl PastCache {
    /// Takes as many bytes as there is room for.
    fn gather(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.gathered.bytes_mut()[self.gathered_bytes..];
        let taken = bytes.len().min(room.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.gathered_bytes += taken;
        taken
    }

    fn is_full(&self) -> bool {
        self.gathered_bytes == self.gathered.bytes().len()
    }

    /// What is not in the file yet.
    fn rest(&self) -> &[u8] {
        &self.gathered.bytes()[..self.gathered_bytes]
    }

    /// Writes all that is gathered, when it is full. False, and nothing of the file was written so far, where the file system can't write past the
    /// page cache.
    fn pass(&mut self, usual: &File) -> io::Result<bool> {
        let is_first = self.file.is_none();
        let file = match &self.file {
            Some(file) => file,
            None => {
                let Some(file) = open_past_cache(usual, OpenOptions::new().write(true)) else {
                    return Ok(false);
                };
                self.file.insert(file)
            }
        };
        // A write that is cut short ends on a block, or with an error at the next one.
        match file.write_all_at(self.gathered.bytes(), self.passed_bytes) {
            Err(error) if is_first && error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                return Ok(false);
            }
            passed => passed?,
        }
        self.passed_bytes += self.gathered_bytes as u64;
        self.gathered_bytes = 0;
        Ok(true)
    }
}

/// Whether the file lies in memory anyway.
fn is_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::write_all;

    const GATHER_BYTES: usize = 64 << 10;

    fn gathering() -> Arc<Gathering> {
        Arc::new(Gathering::new(GATHER_BYTES))
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn what_is_written_past_the_page_cache_is_what_was_given_whatever_its_length() {
        // Not in /tmp, which may be memory.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        // Memory of files before is used again.
        let gathering = gathering();
        for bytes in [
            0,
            1,
            GATHER_BYTES - 1,
            GATHER_BYTES,
            GATHER_BYTES + 1,
            5 * GATHER_BYTES,
            1_000_001,
        ] {
            let path = folder.path().join(bytes.to_string());
            let file = File::create_new(&path).unwrap();
            let mut writer = DiskWriter::new(file, Some(&gathering));
            let content = content(bytes);
            for piece in content.chunks(70_001) {
                write_all(&mut writer, piece).unwrap();
            }
            writer.sync().unwrap();
            assert!(std::fs::read(&path).unwrap() == content, "{bytes} bytes");
            assert_eq!(gathering.spares().len(), 1, "kept for the next file");
        }
    }

    #[test]
    fn files_in_memory_are_written_as_usual() {
        if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
            let file = File::create_new(folder.path().join("file")).unwrap();
            assert!(
                DiskWriter::new(file, Some(&gathering()))
                    .past_cache
                    .is_none()
            );
        }
    }

    #[test]
    fn a_file_system_that_can_not_write_past_its_cache_gets_the_same_bytes() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("file");
        let mut writer = DiskWriter::new(File::create_new(&path).unwrap(), Some(&gathering()));
        // A block that does not begin at a multiple of its size is what the system refuses, with the same error.
        if let Some(past_cache) = &mut writer.past_cache {
            past_cache.gathered.aim(1, GATHER_BYTES);
        }
        let content = content(300_001);
        write_all(&mut writer, &content).unwrap();
        assert!(writer.past_cache.is_none());
        writer.sync().unwrap();
        assert!(std::fs::read(&path).unwrap() == content);
    }

    #[test]
    fn a_write_that_fails_is_told() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("file");
        File::create_new(&path).unwrap();
        // It may not be written to.
        let mut writer = DiskWriter::new(File::open(&path).unwrap(), Some(&gathering()));
        write_all(&mut writer, &content(100)).unwrap();
        assert!(writer.sync().is_err());
    }
}
