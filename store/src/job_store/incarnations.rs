//! The record that every start of a job makes, exclusively, before anything of it runs (design 8).

use std::io;

use protocol::ids::Incarnation;

use super::{JobStore, host, numbered, read_of_job, since_1970};
use crate::record::{self, IncarnationRecord};
use crate::storage::{self, Access};
use crate::{CheckpointId, Error, Result, durable, names};

impl JobStore {
    /// Begins a new start of the job from a checkpoint, or from the job's beginning. From here on
    /// whatever an earlier start publishes later is ignored.
    pub fn begin_incarnation(&mut self, from: Option<CheckpointId>) -> Result<IncarnationRecord> {
        self.require_mine("starting the job")?;
        let last_epoch = self.highest_epoch()?;
        let started = since_1970();
        let record = IncarnationRecord {
            job: self.job.job,
            incarnation: Incarnation(self.newest_incarnation()?.map_or(0, |newest| newest.0) + 1),
            from,
            last_epoch,
            host: host(),
            pid: std::process::id(),
            started_unix_us: u64::try_from(started.as_micros()).unwrap_or(u64::MAX),
        };
        self.claim(&record)?;
        self.incarnation = Some(record.incarnation);
        Ok(record)
    }

    /// Gives a complete and durable record its name, which nobody else can do: linking fails where the name
    /// exists, and no record is ever seen half written.
    fn claim(&self, record: &IncarnationRecord) -> Result<()> {
        let storage = &*self.storage;
        let path = names::incarnation(record.incarnation);
        let shown = storage.describe(&path);
        let bytes = record::encode(record);
        // A name of its own, should the lock be worth nothing on this file system.
        let own = format!("{path}.{}-{}", record.pid, record.started_unix_us);
        let [first, second] = durable::unfinished(&own);
        let unfinished = durable::write_new(storage, [&first, &second], &bytes, Access::Umask)?;
        let linked = storage.link(&unfinished, &path);
        // A name that nobody reads: what can't be removed does no harm.
        let _ = storage.remove_file(&unfinished);
        match linked {
            Ok(()) => {}
            Err(error) if can_not_link(&error) => self.write_in_place(&path, &bytes)?,
            // Over a network a request that succeeded may be repeated, and fail then.
            Err(_)
                if self
                    .read_incarnation(record.incarnation)
                    .is_ok_and(|found| found == *record) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(taken(shown));
            }
            Err(error) => return Err(Error::io("link", shown)(error)),
        }
        storage::sync_dir(storage, names::INCARNATIONS)
    }

    /// For file systems without hard links: exclusive as well, but a crash may leave half a record, which
    /// then is reported as corrupt.
    fn write_in_place(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let shown = self.storage.describe(path);
        let mut file = match self.storage.create_new(path, Access::Umask) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(taken(shown)),
            Err(error) => return Err(Error::io("create", shown)(error)),
        };
        storage::write_all(&mut *file, bytes).map_err(Error::io("write", shown.as_str()))?;
        file.sync().map_err(Error::io("fsync", shown))
    }

    /// The newest start of the job, whether or not its record can be read.
    pub fn newest_incarnation(&self) -> Result<Option<Incarnation>> {
        let (numbers, _) = numbered(&*self.storage, names::INCARNATIONS, false)?;
        Ok(numbers.last().copied().map(Incarnation))
    }

    /// The records of all starts, ascending, and the errors of those that can't be read.
    pub fn incarnations(&self) -> Result<(Vec<IncarnationRecord>, Vec<Error>)> {
        let (numbers, _) = numbered(&*self.storage, names::INCARNATIONS, false)?;
        let mut records = Vec::with_capacity(numbers.len());
        let mut errors = Vec::new();
        for number in numbers {
            match self.read_incarnation(Incarnation(number)) {
                Ok(record) => records.push(record),
                Err(error) => errors.push(error),
            }
        }
        Ok((records, errors))
    }

    pub(super) fn read_incarnation(&self, incarnation: Incarnation) -> Result<IncarnationRecord> {
        let path = names::incarnation(incarnation);
        let record: IncarnationRecord = read_of_job(
            &*self.storage,
            &path,
            &self.job,
            |record: &IncarnationRecord| record.job,
        )?;
        if record.incarnation == incarnation {
            Ok(record)
        } else {
            Err(Error::corrupt(
                self.storage.describe(&path),
                format!("is the record of {}", record.incarnation),
            ))
        }
    }
}

fn can_not_link(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK)
    ) || error.kind() == io::ErrorKind::Unsupported
}

fn taken(path: String) -> Error {
    Error::AlreadyExists {
        path,
        what: "the record of a new start of the job",
        todo: "the job was started elsewhere at the same moment: end one of the two",
    }
}
