//! Small records: the job, its incarnations, the manifests of its checkpoints.
//!
//! Each is a file of its own: a [`RecordHeader`] with magic, version, length and digest, and then JSON.
//! The header is checked before a byte of the JSON is looked at; then fields that are not known are
//! refused, because a field that an older program passes over may be the one that matters. JSON, so that
//! a person can read a manifest without this program (`tail -c +33 manifest`).

mod incarnation;
mod job;
mod manifest;
mod text;

pub use incarnation::IncarnationRecord;
pub use job::{JobRecord, OsText};
pub use manifest::{Figures, Manifest};

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::Xxh3;
use zerocopy::{FromBytes, IntoBytes};

use crate::format::layout::RecordHeader;
use crate::storage::{self, Storage};
use crate::{Error, Result};

/// The longest record that is read: a manifest of 10^5 ranks is a tenth of it.
pub const RECORD_BYTES_MAX: u64 = 256 << 20;

/// A record with a file of its own.
pub trait Record: Sized {
    /// How its files start.
    const MAGIC: [u8; 8];
    /// The version that is written, and the only one that is read.
    const VERSION: u32;
    /// What it is, for messages.
    const WHAT: &'static str;
    /// How it lies in the file.
    type Disk: Serialize + DeserializeOwned;

    /// As it lies in the file.
    fn to_disk(&self) -> Self::Disk;
    /// From how it lies in the file, checked for sense; what is wrong otherwise.
    fn from_disk(disk: Self::Disk) -> Result<Self, String>;
}

/// The bytes of a record's file.
pub fn encode<R: Record>(record: &R) -> Vec<u8> {
    let payload = serde_json::to_vec_pretty(&record.to_disk())
        .expect("records are plain structs, which serialise");
    let mut header = RecordHeader {
        magic: R::MAGIC,
        version: R::VERSION.into(),
        payload_bytes: u32::try_from(payload.len())
            .expect("a record is far below 4 GiB")
            .into(),
        digest: [0; 16],
    };
    header.digest = digest(&header, &payload);
    [header.as_bytes(), &payload].concat()
}

/// Reads the bytes of a record's file. `shown` is the file's path in messages.
pub fn decode<R: Record>(bytes: &[u8], shown: &str) -> Result<R> {
    let corrupt = |what: String| Error::corrupt(shown, what);
    let (header, payload) = RecordHeader::read_from_prefix(bytes)
        .map_err(|_| corrupt(format!("too short for {}", R::WHAT)))?;
    if header.magic != R::MAGIC {
        return Err(corrupt(format!("does not start as {}", R::WHAT)));
    }
    if header.version.get() != R::VERSION {
        return Err(Error::Version {
            path: shown.to_owned(),
            found: header.version.get(),
            known: R::VERSION,
        });
    }
    if payload.len() as u64 != u64::from(header.payload_bytes.get()) {
        return Err(corrupt(format!(
            "{} bytes follow the header, which says {}",
            payload.len(),
            header.payload_bytes
        )));
    }
    if digest(&header, payload) != header.digest {
        return Err(corrupt("the digest is wrong".into()));
    }
    let disk = serde_json::from_slice(payload).map_err(|error| Error::Unsupported {
        path: shown.to_owned(),
        what: format!("{} with content that is not known ({error})", R::WHAT),
    })?;
    R::from_disk(disk).map_err(corrupt)
}

/// Reads the record at `path`.
pub(crate) fn read<R: Record>(storage: &dyn Storage, path: &str) -> Result<R> {
    let bytes = storage::read_whole(storage, path, R::WHAT, RECORD_BYTES_MAX)?;
    decode(&bytes, &storage.describe(path))
}

fn digest(header: &RecordHeader, payload: &[u8]) -> [u8; 16] {
    let fields = header.as_bytes();
    let mut hash = Xxh3::new();
    hash.update(&fields[..fields.len() - header.digest.len()]);
    hash.update(payload);
    hash.digest128().to_be_bytes()
}
