//! The job record: what a restart must know about a job before it reads any checkpoint.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use protocol::control::Compression;
use protocol::ids::JobId;
use serde::{Deserialize, Serialize};

use super::Record;
use super::text::Hex;

/// A job, as it was first started.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    /// Its identity.
    pub job: JobId,
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// The directory it was started in.
    pub cwd: PathBuf,
    /// How many ranks it has.
    pub ranks: u32,
    /// On how many processes it was first started.
    pub processes: u32,
    /// Address space of a slot, in bytes.
    pub slot_bytes: u64,
    /// Address space of a rank's stack, in bytes.
    pub stack_bytes: u64,
    /// How chunks are compressed.
    pub compression: Compression,
    /// How many checkpoints are kept.
    pub keep: u32,
    /// When the store was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Other options of the launcher that a restart takes over, by name.
    pub options: BTreeMap<String, String>,
}

/// Text of the operating system: UTF-8 where it is, bytes where it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OsText(TextOrBytes);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum TextOrBytes {
    Text(String),
    Bytes(NotText),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotText {
    bytes: Hex,
}

impl From<OsString> for OsText {
    fn from(text: OsString) -> Self {
        Self(match text.into_string() {
            Ok(text) => TextOrBytes::Text(text),
            Err(other) => TextOrBytes::Bytes(NotText {
                bytes: Hex(other.into_vec()),
            }),
        })
    }
}

impl From<OsText> for OsString {
    fn from(text: OsText) -> Self {
        match text.0 {
            TextOrBytes::Text(text) => text.into(),
            TextOrBytes::Bytes(NotText { bytes }) => Self::from_vec(bytes.0),
        }
    }
}

/// A job record as it lies in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    job: Hex,
    argv: Vec<OsText>,
    cwd: OsText,
    ranks: u32,
    processes: u32,
    slot_bytes: u64,
    stack_bytes: u64,
    compression: Compression,
    keep: u32,
    created_unix_ms: u64,
    options: BTreeMap<String, String>,
}

impl Record for JobRecord {
    const MAGIC: [u8; 8] = *b"CKPT-JOB";
    const VERSION: u32 = 1;
    const WHAT: &'static str = "a job record";
    type Disk = Disk;

    fn to_disk(&self) -> Disk {
        Disk {
            job: Hex(self.job.0.to_vec()),
            argv: self.argv.iter().cloned().map(OsText::from).collect(),
            cwd: self.cwd.clone().into_os_string().into(),
            ranks: self.ranks,
            processes: self.processes,
            slot_bytes: self.slot_bytes,
            stack_bytes: self.stack_bytes,
            compression: self.compression,
            keep: self.keep,
            created_unix_ms: self.created_unix_ms,
            options: self.options.clone(),
        }
    }

    fn from_disk(disk: Disk) -> Result<Self, String> {
        if disk.ranks == 0 || disk.processes == 0 {
            return Err("a job without ranks or processes".into());
        }
        if disk.argv.is_empty() {
            return Err("a job without a program".into());
        }
        if disk.keep == 0 {
            return Err("a job that keeps no checkpoint".into());
        }
        Ok(Self {
            job: JobId(disk.job.array("the job's identity")?),
            argv: disk.argv.into_iter().map(OsString::from).collect(),
            cwd: OsString::from(disk.cwd).into(),
            ranks: disk.ranks,
            processes: disk.processes,
            slot_bytes: disk.slot_bytes,
            stack_bytes: disk.stack_bytes,
            compression: disk.compression,
            keep: disk.keep,
            created_unix_ms: disk.created_unix_ms,
            options: disk.options,
        })
    }
}
