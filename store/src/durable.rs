//! Small files written so that a crash leaves the old content or the new, never a mixture.

use crate::storage::{self, Access, Storage, write_all};
use crate::{Error, Result, names};

/// Writes `bytes` to a new, durable file with one of two names and tells which. The second is taken where
/// fsync failed on the first: what a failed fsync left of a file is unknown, and trying it again may
/// report success for data that the system has dropped.
pub(crate) fn write_new(
    storage: &dyn Storage,
    names: [&str; 2],
    bytes: &[u8],
    access: Access,
) -> Result<String> {
    let first = match attempt(storage, names[0], bytes, access) {
        Ok(()) => return Ok(names[0].to_owned()),
        Err(error) => error,
    };
    if !is_failed_fsync(&first) {
        return Err(first);
    }
    tracing::warn!("{first}; writing it again to a new file");
    attempt(storage, names[1], bytes, access)?;
    Ok(names[1].to_owned())
}

/// One attempt of [`write_new`]; removes what it leaves where it fails.
fn attempt(storage: &dyn Storage, name: &str, bytes: &[u8], access: Access) -> Result<()> {
    let shown = storage.describe(name);
    // A file with this name is what an interrupted attempt left: only the lock's holder writes here.
    storage::remove_if_there(storage, name)?;
    let mut file = storage
        .create_new(name, access)
        .map_err(Error::io("create", &*shown))?;
    let written = write_all(&mut *file, bytes)
        .map_err(Error::io("write", &*shown))
        .and_then(|()| file.sync().map_err(Error::io("fsync", &*shown)));
    if written.is_err() {
        // Nobody reads the name of an unfinished file, so a failure to remove it changes nothing.
        let _ = storage.remove_file(name);
    }
    written
}

pub(crate) fn is_failed_fsync(error: &Error) -> bool {
    matches!(
        error,
        Error::Io {
            operation: "fsync",
            ..
        }
    )
}

/// The names that [`write_new`] gives an unfinished file which is to become `path`.
pub(crate) fn unfinished(path: &str) -> [String; 2] {
    [
        format!("{path}{}", names::UNFINISHED),
        format!("{path}.2{}", names::UNFINISHED),
    ]
}

/// Gives `path` the content `bytes`, durably, whether or not it exists.
pub(crate) fn replace(
    storage: &dyn Storage,
    path: &str,
    bytes: &[u8],
    access: Access,
) -> Result<()> {
    let [first, second] = unfinished(path);
    let from = write_new(storage, [&first, &second], bytes, access)?;
    storage
        .rename(&from, path)
        .map_err(Error::io("rename to its place", storage.describe(path)))?;
    storage::sync_dir(storage, names::parent(path))
}
