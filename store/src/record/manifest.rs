//! The manifest: what makes the files of an epoch a checkpoint.

use std::collections::BTreeSet;

use protocol::control::{Felt, MappedObject, NeededFile, ProgramIdentity, StoredFile};
use protocol::ids::{Epoch, Incarnation, JobId, Rank};
use serde::{Deserialize, Serialize};

use super::Record;
use super::text::Hex;
use crate::{CheckpointId, FileKey, names};

/// A checkpoint: all that is needed to restore it and to know whether it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The job.
    pub job: JobId,
    /// The start of the job that took it.
    pub incarnation: Incarnation,
    /// Its epoch.
    pub epoch: Epoch,
    /// The checkpoint that the incarnation started from; `None` for the job's beginning.
    pub from: Option<CheckpointId>,
    /// The checkpoint before it, which an incremental one builds on.
    pub parent: Option<CheckpointId>,
    /// The programs that ran: equal ones once (design 3.3).
    pub programs: Vec<ProgramIdentity>,
    /// The file of each rank, in the order of ranks.
    pub files: Vec<StoredFile>,
    /// Files of other checkpoints that the images refer to. Empty where all are full images.
    pub needs: Vec<NeededFile>,
    /// When it was committed, in milliseconds since 1970.
    pub committed_unix_ms: u64,
    /// What it cost.
    pub figures: Figures,
}

/// What a checkpoint cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// The longest that a rank stood still, in microseconds.
    pub stall_us: u64,
    /// From the announcement to the commit, in microseconds.
    pub elapsed_us: u64,
    /// Bytes of all images before compression.
    pub raw_bytes: u64,
    /// Of these, bytes that the checkpoint's own files hold: pages that had changed, and sections.
    pub changed_bytes: u64,
    /// Bytes of all files.
    pub stored_bytes: u64,
    /// Writes of the ranks that had to wait, after the cut, until a page was saved.
    pub faults: u64,
    /// How long they waited in total, in microseconds.
    pub waited_us: u64,
    /// How long the longest of them waited, in microseconds.
    pub longest_us: u64,
}

impl Figures {
    /// Adds what the ranks of one process felt: faults and waiting are summed, the longest is the longest of all.
    pub fn add_felt(&mut self, felt: &Felt) {
        self.faults += felt.faults;
        self.waited_us += felt.waited_us;
        self.longest_us = self.longest_us.max(felt.longest_us);
    }
}

impl Manifest {
    /// Which checkpoint it is of.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        CheckpointId {
            epoch: self.epoch,
            incarnation: self.incarnation,
        }
    }

    /// How many ranks.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.files.len() as u32
    }

    /// The key of a rank's file.
    #[must_use]
    pub fn file_key(&self, rank: Rank) -> FileKey {
        FileKey {
            job: self.job,
            incarnation: self.incarnation,
            epoch: self.epoch,
            rank,
        }
    }

    /// What must hold of every manifest; also checked before one is published.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.files.is_empty() {
            return Err("a checkpoint without files".into());
        }
        if self.epoch.0 == 0 || self.incarnation.0 == 0 {
            return Err("epoch or incarnation 0".into());
        }
        for (rank, file) in (0u32..).zip(&self.files) {
            if file.rank.0 != rank {
                return Err(format!(
                    "the file of {} in the place of rank {rank}",
                    file.rank
                ));
            }
            if names::parent(&file.name) != names::epoch_dir(self.epoch) {
                return Err(format!(
                    "the file {} is in another epoch's directory",
                    file.name
                ));
            }
        }
        if self
            .files
            .iter()
            .chain(self.needs.iter().map(|need| &need.file))
            .any(|file| !names::is_plain(&file.name))
        {
            return Err("a file's name leads out of the store".into());
        }
        self.check_needs()?;
        if self.parent.is_some_and(|parent| parent.epoch >= self.epoch) {
            return Err("its parent is not before it".into());
        }
        Ok(())
    }

    /// What must hold of the files of other checkpoints, as far as the manifest alone tells.
    fn check_needs(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for need in &self.needs {
            let (epoch, file) = (need.epoch, &need.file);
            if epoch.0 == 0
                || epoch >= self.epoch
                || need.incarnation.0 == 0
                || need.incarnation > self.incarnation
            {
                return Err(format!(
                    "{} is needed, and of no earlier checkpoint",
                    file.name
                ));
            }
            if file.rank.index() >= self.files.len() {
                return Err(format!("{} is needed, and of no rank", file.name));
            }
            if names::parent(&file.name) != names::epoch_dir(epoch) {
                return Err(format!(
                    "the file {} is in another epoch's directory",
                    file.name
                ));
            }
            if !seen.insert((file.rank, epoch)) {
                return Err(format!("two files of {} and {epoch} are needed", file.rank));
            }
        }
        Ok(())
    }
}

/// A manifest as it lies in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    job: Hex,
    incarnation: Incarnation,
    epoch: Epoch,
    ranks: u32,
    from: Option<CheckpointId>,
    parent: Option<CheckpointId>,
    programs: Vec<DiskProgram>,
    files: Vec<DiskFile>,
    needs: Vec<DiskNeeded>,
    committed_unix_ms: u64,
    figures: Figures,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskFile {
    rank: Rank,
    name: String,
    file_bytes: u64,
    digest: Hex,
    raw_bytes: u64,
    changed_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskNeeded {
    epoch: Epoch,
    incarnation: Incarnation,
    file: DiskFile,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskProgram {
    objects: Vec<DiskObject>,
    processor_features: Vec<String>,
    thread_local_address: u64,
    page_bytes: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskObject {
    path: String,
    build_id: Hex,
    address: u64,
}

fn file_to_disk(file: &StoredFile) -> DiskFile {
    DiskFile {
        rank: file.rank,
        name: file.name.clone(),
        file_bytes: file.file_bytes,
        digest: Hex(file.digest.to_vec()),
        raw_bytes: file.raw_bytes,
        changed_bytes: file.changed_bytes,
    }
}

fn file_from_disk(file: DiskFile) -> Result<StoredFile, String> {
    Ok(StoredFile {
        rank: file.rank,
        digest: file.digest.array("a file's digest")?,
        name: file.name,
        file_bytes: file.file_bytes,
        raw_bytes: file.raw_bytes,
        changed_bytes: file.changed_bytes,
    })
}

fn needed_to_disk(need: &NeededFile) -> DiskNeeded {
    DiskNeeded {
        epoch: need.epoch,
        incarnation: need.incarnation,
        file: file_to_disk(&need.file),
    }
}

fn needed_from_disk(need: DiskNeeded) -> Result<NeededFile, String> {
    Ok(NeededFile {
        epoch: need.epoch,
        incarnation: need.incarnation,
        file: file_from_disk(need.file)?,
    })
}

fn program_to_disk(program: &ProgramIdentity) -> DiskProgram {
    DiskProgram {
        objects: program
            .objects
            .iter()
            .map(|object| DiskObject {
                path: object.path.clone(),
                build_id: Hex(object.build_id.clone()),
                address: object.address,
            })
            .collect(),
        processor_features: program.processor_features.clone(),
        thread_local_address: program.thread_local_address,
        page_bytes: program.page_bytes,
    }
}

fn program_from_disk(program: DiskProgram) -> ProgramIdentity {
    ProgramIdentity {
        objects: program
            .objects
            .into_iter()
            .map(|object| MappedObject {
                path: object.path,
                build_id: object.build_id.0,
                address: object.address,
            })
            .collect(),
        processor_features: program.processor_features,
        thread_local_address: program.thread_local_address,
        page_bytes: program.page_bytes,
    }
}

impl Record for Manifest {
    const MAGIC: [u8; 8] = *b"CKPTMANI";
    const VERSION: u32 = 2;
    const WHAT: &'static str = "a manifest";
    type Disk = Disk;

    fn to_disk(&self) -> Disk {
        Disk {
            job: Hex(self.job.0.to_vec()),
            incarnation: self.incarnation,
            epoch: self.epoch,
            ranks: self.ranks(),
            from: self.from,
            parent: self.parent,
            programs: self.programs.iter().map(program_to_disk).collect(),
            files: self.files.iter().map(file_to_disk).collect(),
            needs: self.needs.iter().map(needed_to_disk).collect(),
            committed_unix_ms: self.committed_unix_ms,
            figures: self.figures,
        }
    }

    fn from_disk(disk: Disk) -> Result<Self, String> {
        let files = disk.files.into_iter().map(file_from_disk);
        let needs = disk.needs.into_iter().map(needed_from_disk);
        let manifest = Self {
            job: JobId(disk.job.array("the job's identity")?),
            incarnation: disk.incarnation,
            epoch: disk.epoch,
            from: disk.from,
            parent: disk.parent,
            programs: disk.programs.into_iter().map(program_from_disk).collect(),
            files: files.collect::<Result<_, _>>()?,
            needs: needs.collect::<Result<_, _>>()?,
            committed_unix_ms: disk.committed_unix_ms,
            figures: disk.figures,
        };
        if manifest.ranks() != disk.ranks {
            return Err(format!(
                "{} files for {} ranks",
                manifest.ranks(),
                disk.ranks
            ));
        }
        manifest.check()?;
        Ok(manifest)
    }
}
