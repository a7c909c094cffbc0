//! A file being written: its bytes in order, their digest, and what is done where they don't become durable.

use std::sync::Arc;

use crate::durable::is_failed_fsync;
use crate::format::checksum::FileDigest;
use crate::storage::{self, Access, SharedStorage, WriteFile, read_exact_at, write_all};
use crate::{Error, FileKey, Result, names};

/// Bytes copied at once where a file must be written again.
const COPY_BYTES: usize = 1 << 20;

/// A rank file as bytes. Dropped before it is finished, it is removed: nobody can refer to it yet.
pub(super) struct Output {
    storage: SharedStorage,
    key: FileKey,
    path: String,
    /// The path as users see it.
    pub(super) shown: Arc<str>,
    file: Option<Box<dyn WriteFile>>,
    digest: FileDigest,
    pub(super) written_bytes: u64,
    broken: bool,
}

impl Output {
    /// Makes the file of `key` in the directory of its epoch.
    pub(super) fn create(storage: SharedStorage, key: FileKey) -> Result<Self> {
        let path = names::rank_file(&key, 1);
        let shown = storage.describe(&path);
        let file = storage
            .create_new(&path, Access::Owner)
            .map_err(Error::io("create", &*shown))?;
        Ok(Self {
            storage,
            key,
            path,
            shown: shown.into(),
            file: Some(file),
            digest: FileDigest::new(),
            written_bytes: 0,
            broken: false,
        })
    }

    pub(super) fn storage(&self) -> &SharedStorage {
        &self.storage
    }

    /// Appends all of `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.broken {
            return Err(Error::invalid(
                &*self.shown,
                "an earlier write of this file failed",
            ));
        }
        let file = self.file.as_mut().expect("open until finished");
        if let Err(error) = write_all(&mut **file, bytes) {
            self.broken = true;
            return Err(Error::io("write", &*self.shown)(error));
        }
        self.digest.update(bytes);
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the file durable, its name included, and gives its path and digest. Where fsync fails, it is written
    /// once more under another name, and counts only if that one is the same to the last bit.
    pub(super) fn finish(&mut self) -> Result<(String, [u8; 16])> {
        self.sync()?;
        storage::sync_dir(&*self.storage, names::parent(&self.path))?;
        self.file = None;
        Ok((self.path.clone(), self.digest.finish()))
    }

    /// Makes the content durable, in another file where this one's fsync fails.
    fn sync(&mut self) -> Result<()> {
        let file = self.file.as_mut().expect("open until finished");
        let Err(error) = file.sync() else {
            return Ok(());
        };
        let failed = Error::io("fsync", &*self.shown)(error);
        debug_assert!(is_failed_fsync(&failed));
        tracing::warn!("{failed}; writing it again to a new file");
        let again = names::rank_file(&self.key, 2);
        match self.copy_to(&again) {
            Ok(file) => {
                // The name of the first is in nobody's hands: what can't be removed is swept up later.
                let _ = self.storage.remove_file(&self.path);
                self.path = again;
                self.file = Some(file);
                Ok(())
            }
            Err(error) => {
                let _ = self.storage.remove_file(&again);
                tracing::warn!("{error}");
                Err(failed)
            }
        }
    }

    /// Copies the file as the system gives it back, which is right only if its digest is that of the bytes
    /// that were written.
    fn copy_to(&self, again: &str) -> Result<Box<dyn WriteFile>> {
        let (from, to) = (&*self.shown, self.storage.describe(again));
        let source = storage::open(&*self.storage, &self.path, "a rank file being written")?;
        let mut copy = self
            .storage
            .create_new(again, Access::Owner)
            .map_err(Error::io("create", &*to))?;
        let mut digest = FileDigest::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = 0;
        while at < self.written_bytes {
            let count = usize::try_from(self.written_bytes - at)
                .map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
            let piece = &mut buffer[..count];
            read_exact_at(&*source, piece, at).map_err(Error::io("read back", from))?;
            write_all(&mut *copy, piece).map_err(Error::io("write", &*to))?;
            digest.update(piece);
            at += count as u64;
        }
        if digest.finish() != self.digest.finish() {
            return Err(Error::corrupt(
                from,
                "after the failed fsync it does not read back as it was written",
            ));
        }
        copy.sync().map_err(Error::io("fsync", &*to))?;
        Ok(copy)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // What can't be removed has no manifest and is swept up by the coordinator.
            let _ = self.storage.remove_file(&self.path);
        }
    }
}
