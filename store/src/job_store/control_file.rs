//! Where a running job can be reached: its address and token, for commands of the same user.

use protocol::ids::JobId;
use serde::{Deserialize, Serialize};

use super::JobStore;
use crate::record::{self, Record};
use crate::storage::{self, Access};
use crate::{Error, Result, names};

/// The control file of a running job.
#[derive(Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The job.
    pub job: JobId,
    /// Address of the control socket.
    pub address: String,
    /// The job's token, without which nobody is heard there.
    pub token: [u8; 32],
    /// Process id of the coordinator.
    pub pid: u32,
}

impl std::fmt::Debug for ControlFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret, and debug output ends in logs.
        f.debug_struct("ControlFile")
            .field("job", &self.job)
            .field("address", &self.address)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// A control file as it lies in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    job: JobId,
    address: String,
    token: [u8; 32],
    pid: u32,
}

impl Record for ControlFile {
    const MAGIC: [u8; 8] = *b"CKPTCTRL";
    const VERSION: u32 = 1;
    const WHAT: &'static str = "a control file";
    type Disk = Disk;

    fn to_disk(&self) -> Disk {
        Disk {
            job: self.job,
            address: self.address.clone(),
            token: self.token,
            pid: self.pid,
        }
    }

    fn from_disk(disk: Disk) -> Result<Self, String> {
        Ok(Self {
            job: disk.job,
            address: disk.address,
            token: disk.token,
            pid: disk.pid,
        })
    }
}

impl JobStore {
    /// Tells commands where this job can be reached. The file appears complete, and only its owner can
    /// read it. It need not outlive a crash: no job would be there.
    pub fn write_control(&self, control: &ControlFile) -> Result<()> {
        self.require_lock("writing the control file")?;
        let unfinished = format!("{}{}", names::CONTROL, names::UNFINISHED);
        storage::remove_if_there(&*self.storage, &unfinished)?;
        let shown = self.storage.describe(names::CONTROL);
        let mut file = self
            .storage
            .create_new(&unfinished, Access::Owner)
            .map_err(Error::io("create", shown.as_str()))?;
        storage::write_all(&mut *file, &record::encode(control))
            .map_err(Error::io("write", shown.as_str()))?;
        self.storage
            .rename(&unfinished, names::CONTROL)
            .map_err(Error::io("rename to its place", shown))
    }

    /// Where the job can be reached; `None` where it is not running, as far as the file tells.
    pub fn read_control(&self) -> Result<Option<ControlFile>> {
        match record::read(&*self.storage, names::CONTROL) {
            Ok(control) => Ok(Some(control)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the control file, at the end of the job or before a new start of it.
    pub fn remove_control(&self) -> Result<()> {
        self.require_lock("removing the control file")?;
        storage::remove_if_there(&*self.storage, names::CONTROL).map(drop)
    }
}
