//! A store in a directory of the file system.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use rustix::io::ReadWriteFlags;

use super::disk_writer::{DiskWriter, Gathering};
use super::stretch::{BLOCK as BLOCK_BYTES, open_past_cache};
use super::{Access, Entry, LockAttempt, ReadFile, Storage, Stretch, WriteFile};
use crate::names::is_plain;
use crate::{Error, Result};

/// A [`Storage`] below a directory.
#[derive(Clone, Debug)]
pub struct DiskStorage {
    root: PathBuf,
    /// What is written past the page cache; none for writing as usual.
    gathering: Option<Arc<Gathering>>,
}

impl DiskStorage {
    /// The directory `root`, which must exist.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let shown = root.display().to_string();
        match fs::metadata(&root) {
            Ok(found) if found.is_dir() => Ok(Self {
                root,
                gathering: None,
            }),
            Ok(_) => Err(Error::NotAStore {
                path: shown,
                why: "it is no directory".into(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotFound {
                path: shown,
                what: "the store's directory",
            }),
            Err(error) => Err(Error::io("open", shown)(error)),
        }
    }

    /// The same, but new files are written past the page cache where the file system can do that, so many bytes at a time (rounded up
    /// to blocks of 4096; 0 for writing as usual). Takes as much memory for each file that is being written, and keeps it for the next
    /// ones. What is shorter than that is written as usual.
    #[must_use]
    pub fn writing_past_cache(mut self, gather_bytes: usize) -> Self {
        let bytes = gather_bytes.next_multiple_of(BLOCK_BYTES);
        self.gathering = (bytes > 0).then(|| Arc::new(Gathering::new(bytes)));
        self
    }

    /// The directory `root`, made durably (with its parents) where it does not exist.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        make_dirs(&root)?;
        Self::open(root)
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> io::Result<PathBuf> {
        if path.is_empty() {
            Ok(self.root.clone())
        } else if is_plain(path) {
            Ok(self.root.join(path))
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path leaves the store",
            ))
        }
    }
}

/// Makes a directory and its missing parents, each durable in the one above.
fn make_dirs(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = match dir.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    make_dirs(above)?;
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        Err(error) => {
            return Err(Error::io("make the directory", dir.display().to_string())(
                error,
            ));
        }
    }
    File::open(above)
        .and_then(|above| above.sync_all())
        .map_err(Error::io(
            "fsync the directory",
            above.display().to_string(),
        ))
}

impl Storage for DiskStorage {
    fn describe(&self, path: &str) -> String {
        if path.is_empty() {
            self.root.display().to_string()
        } else {
            self.root.join(path).display().to_string()
        }
    }

    fn create_new(&self, path: &str, access: Access) -> io::Result<Box<dyn WriteFile>> {
        let mode = match access {
            Access::Owner => 0o600,
            Access::Umask => 0o666,
        };
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(self.path(path)?)?;
        Ok(Box::new(DiskWriter::new(file, self.gathering.as_ref())))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>> {
        let file = File::open(self.path(path)?)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // Only a hint: where the file system does not take it, reading is as it was.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        Ok(Box::new(DiskReadFile {
            file,
            past_cache: OnceLock::new(),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from)?, self.path(to)?)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        fs::hard_link(self.path(from)?, self.path(to)?)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path)?)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        fs::create_dir(self.path(path)?)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.path(path)?)
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let mut entries = fs::read_dir(self.path(path)?)?
            .map(|entry| {
                let entry = entry?;
                Ok(Entry {
                    // A name that is not UTF-8 is none of ours; it is only shown.
                    name: entry.file_name().to_string_lossy().into_owned(),
                    is_dir: entry.file_type()?.is_dir(),
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        File::open(self.path(path)?)?.sync_all()
    }

    fn try_lock(&self, path: &str, note: &str) -> io::Result<LockAttempt> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(path)?)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(note.as_bytes())?;
                Ok(LockAttempt::Held(Box::new(file)))
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let mut note = String::new();
                file.take(1024).read_to_string(&mut note)?;
                Ok(LockAttempt::Busy(note))
            }
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

#[derive(Debug)]
struct DiskReadFile {
    file: File,
    past_cache: OnceLock<Option<File>>,
}

impl DiskReadFile {
    /// The same file, open for reading past the page cache; `None` where the file system can't do that.
    fn past_cache(&self) -> Option<&File> {
        let open = || {
            // Nobody reads on after a stretch, and a look for one byte must not begin to read others. Only a hint.
            let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
            open_past_cache(&self.file, OpenOptions::new().read(true))
        };
        self.past_cache.get_or_init(open).as_ref()
    }

    /// Whether a byte can be read without waiting for the disk.
    fn is_cached(&self, offset: u64) -> bool {
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        !matches!(
            rustix::io::preadv2(&self.file, &mut into, offset, ReadWriteFlags::NOWAIT),
            Err(rustix::io::Errno::AGAIN)
        )
    }
}

impl ReadFile for DiskReadFile {
    fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(into, offset)
    }

    /// At a restore the page cache would be made of memory that was free for long, which is slow to touch, for bytes that
    /// nobody reads again.
    fn read_past_cache(&self, stretch: &mut Stretch) -> bool {
        let Some(file) = self.past_cache() else {
            return false;
        };
        let last = stretch.offset() + (stretch.bytes().len() as u64).saturating_sub(1);
        if self.is_cached(last) {
            return false;
        }
        let (offset, needed, blocks) = stretch.blocks_mut();
        // It may be short, where the file ends within the last block.
        matches!(file.read_at(blocks, offset), Ok(read) if read >= needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_page_cache_is_read_past_it() {
        // Not in /tmp, which may be memory.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let storage = DiskStorage::open(folder.path()).unwrap();
        let content: Vec<u8> = (0..300_001_u32).map(|at| (at % 251) as u8).collect();
        let mut file = storage.create_new("file", Access::Owner).unwrap();
        crate::storage::write_all(&mut *file, &content).unwrap();
        file.sync().unwrap();

        let file = File::open(folder.path().join("file")).unwrap();
        let reader = DiskReadFile {
            file,
            past_cache: OnceLock::new(),
        };
        let can = reader.past_cache().is_some();
        let mut stretch = Stretch::default();
        for (offset, bytes) in [(0, 1), (0, 300_001), (4095, 8194), (299_000, 1001)] {
            stretch.aim(offset, bytes);
            reader.read_at(&mut vec![0; content.len()], 0).unwrap();
            assert!(!reader.read_past_cache(&mut stretch));
            // The system may leave pages in the cache that are still in use somewhere.
            let past_cache = (0..1000).any(|_| {
                let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                posix_fadvise(&reader.file, 0, 0, advice).unwrap();
                reader.read_past_cache(&mut stretch)
            });
            assert_eq!(past_cache, can, "{bytes} bytes at {offset}");
            assert!(!can || stretch.bytes() == &content[offset as usize..][..bytes]);
        }
        stretch.aim(299_000, 1002);
        assert!(!reader.read_past_cache(&mut stretch), "beyond the end");
    }
}
