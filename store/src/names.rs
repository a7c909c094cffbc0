//! What the files of a store are called, below its directory.
//!
//! ```text
//! job                               the job record
//! lock                              held (flock) by the coordinator while it runs
//! control                           address and token of a running job (mode 0600)
//! hosts-000001                      the hosts of a start, for its launcher (mode 0600)
//! incarnations/000001               one record per start of the job
//! epochs/000007/                    made before the snapshot is announced
//! epochs/000007/i0002-r00003.img    the file of rank 3, written by incarnation 2
//! epochs/000007/manifest            makes it a checkpoint
//! epochs/000007/bad                 why it must not be used, where it failed verification
//! ```

use std::fmt;

use protocol::ids::{Epoch, Incarnation, JobId, Rank};
use serde::{Deserialize, Serialize};

/// The job record.
pub const JOB: &str = "job";
/// The lock file.
pub const LOCK: &str = "lock";
/// The control file.
pub const CONTROL: &str = "control";
/// How the names of the files begin that a launcher reads its hosts from.
const HOSTS: &str = "hosts-";
/// The directory of incarnation records.
pub const INCARNATIONS: &str = "incarnations";
/// The directory of epochs.
pub const EPOCHS: &str = "epochs";
/// The manifest, in an epoch's directory.
pub const MANIFEST: &str = "manifest";
/// The mark of a checkpoint that failed verification, in an epoch's directory.
pub const BAD: &str = "bad";
/// How the names of files that are being written end. They mean nothing until they are renamed.
pub const UNFINISHED: &str = ".tmp";

/// Which checkpoint: an epoch's number is used once in a job, the incarnation tells who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointId {
    /// Its epoch.
    pub epoch: Epoch,
    /// The start of the job that wrote it.
    pub incarnation: Incarnation,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.epoch, self.incarnation)
    }
}

/// Which rank file: what every checksum in it covers, besides the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// The job.
    pub job: JobId,
    /// The start of the job that writes it.
    pub incarnation: Incarnation,
    /// The snapshot.
    pub epoch: Epoch,
    /// Whose image.
    pub rank: Rank,
}

impl FileKey {
    /// The checkpoint that the file belongs to.
    #[must_use]
    pub fn checkpoint(&self) -> CheckpointId {
        CheckpointId {
            epoch: self.epoch,
            incarnation: self.incarnation,
        }
    }
}

/// The directory of an epoch.
#[must_use]
pub fn epoch_dir(epoch: Epoch) -> String {
    format!("{EPOCHS}/{:06}", epoch.0)
}

/// The manifest of an epoch.
#[must_use]
pub fn manifest(epoch: Epoch) -> String {
    format!("{}/{MANIFEST}", epoch_dir(epoch))
}

/// The mark of a bad checkpoint.
#[must_use]
pub fn bad(epoch: Epoch) -> String {
    format!("{}/{BAD}", epoch_dir(epoch))
}

/// The record of an incarnation.
#[must_use]
pub fn incarnation(incarnation: Incarnation) -> String {
    format!("{INCARNATIONS}/{:06}", incarnation.0)
}

/// The file that the launcher of an incarnation reads its hosts from.
#[must_use]
pub fn hosts(incarnation: Incarnation) -> String {
    format!("{HOSTS}{:06}", incarnation.0)
}

/// Whether this is the name of such a file.
#[must_use]
pub fn is_hosts(name: &str) -> bool {
    name.strip_prefix(HOSTS).and_then(number).is_some()
}

/// The file of a rank. `attempt` is 1; 2 where a failed fsync made it necessary to write it again.
#[must_use]
pub fn rank_file(key: &FileKey, attempt: u32) -> String {
    let dir = epoch_dir(key.epoch);
    let (incarnation, rank) = (key.incarnation.0, key.rank.0);
    match attempt {
        1 => format!("{dir}/i{incarnation:04}-r{rank:05}.img"),
        _ => format!("{dir}/i{incarnation:04}-r{rank:05}.{attempt}.img"),
    }
}

/// The number that the name of an epoch's directory or of an incarnation record stands for: decimal,
/// at least six digits, no more zeros in front than that takes, at least 1.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let number: u64 = name.parse().ok()?;
    (number > 0 && format!("{number:06}") == name).then_some(number)
}

/// Whether a path from a manifest stays below the store: relative, with plain components only.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// The directory that a path below the store is in; empty for the store itself.
#[must_use]
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_numbers_are_names() {
        assert_eq!(number("000007"), Some(7));
        assert_eq!(number("1234567"), Some(1_234_567));
        for wrong in [
            "",
            "7",
            "0000007",
            "000000",
            "+00007",
            "00000x",
            "000007.tmp",
        ] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paths_that_leave_the_store_are_not_plain() {
        assert!(is_plain("epochs/000001/i0001-r00000.img"));
        for wrong in [
            "",
            "/etc/passwd",
            "../job",
            "epochs/../../x",
            "a//b",
            "a/",
            "./a",
            "a\0b",
        ] {
            assert!(!is_plain(wrong), "{wrong:?}");
        }
    }
}
