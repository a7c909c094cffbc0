//! The open files of all ranks in this process.
//!
//! In the process's memory, by rank and number: a rank holds nothing but the number. All functions but [`find`] are to be
//! called in process context.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::ids::Rank;

use super::error::{FileError, Refusal};
use super::open_file::OpenFile;
use super::options::OpenOptions;

/// How many closed files may wait for the next checkpoint to make them durable. A rank that closes more waits for the disk.
const RETIRED_MAX: usize = 256;

static TABLE: Mutex<Table> = Mutex::new(Table::new());

/// See the module.
#[derive(Debug)]
struct Table {
    ranks: BTreeMap<Rank, RankFiles>,
    /// Closed files whose content may not be on disk, the oldest first.
    retired: Vec<Arc<OpenFile>>,
    /// Whether there are checkpoints, which count on what was written.
    keeps_until_durable: bool,
}

/// The files of one rank.
#[derive(Clone, Debug, Default)]
pub(super) struct RankFiles {
    /// The newest number.
    pub(super) numbers: u64,
    pub(super) open: BTreeMap<u64, Arc<OpenFile>>,
    /// Files that were appended to and closed. They are kept, with their locks: a restart has to cut them back.
    pub(super) appended: Vec<Arc<OpenFile>>,
}

impl RankFiles {
    fn all(&self) -> impl Iterator<Item = &Arc<OpenFile>> {
        self.open.values().chain(&self.appended)
    }
}

impl Table {
    const fn new() -> Self {
        Self {
            ranks: BTreeMap::new(),
            retired: Vec::new(),
            keeps_until_durable: false,
        }
    }

    /// The rank that has the same file open for writing.
    fn writer_of(&self, file: &OpenFile) -> Option<Rank> {
        let writes = |open: &Arc<OpenFile>| open.mode().writes() && open.is_same(file);
        let has = |files: &RankFiles| files.all().any(writes);
        let found = self.ranks.iter().find(|(_, files)| has(files));
        found.map(|(rank, _)| *rank)
    }

    /// A file is no longer used. It stays open until its content is on disk, but is no longer ours alone.
    fn retire(&mut self, file: Arc<OpenFile>) {
        if !file.mode().writes() {
            return;
        }
        file.unlock();
        if self.keeps_until_durable && file.is_unsynced() {
            self.retired.push(file);
        }
        self.retired.retain(|file| file.is_unsynced());
        if self.retired.len() > RETIRED_MAX {
            // One that fails stays, for the next checkpoint to come across it.
            let _ = self.retired[0].sync();
            self.retired.rotate_left(1);
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<OpenFile>> {
        let of_ranks = self.ranks.values().flat_map(RankFiles::all);
        of_ranks.chain(&self.retired)
    }

    fn files(&mut self, rank: Rank) -> &mut RankFiles {
        self.ranks.entry(rank).or_default()
    }
}

/// From now on there may be checkpoints.
pub(crate) fn keep_until_durable() {
    table().keeps_until_durable = true;
}

/// Opens a file for a rank, and gives it a number.
pub(super) fn open(rank: Rank, path: &Path, options: &OpenOptions) -> Result<u64, Refusal> {
    let path = std::path::absolute(path)?;
    let of_system = options.of_system()?;
    // Not after it was opened: that would wait for the other end of a pipe.
    let before = std::fs::metadata(&path);
    if before.as_ref().is_ok_and(|found| !found.is_file()) {
        return Err(Refusal::NotRegular);
    }
    let is_new = before.is_err() && options.creates();
    let opened = OpenFile::new(of_system.open(&path)?, path, options.mode, is_new)?;
    if options.mode.writes() {
        // The rank's own of earlier, if it is that.
        let of_earlier = |closed: &mut Arc<OpenFile>| closed.is_same(&opened);
        for closed in table().files(rank).appended.extract_if(.., of_earlier) {
            closed.unlock();
            opened.take_over(&closed);
        }
        if let Some(writer) = table().writer_of(&opened) {
            return Err(Refusal::OfRank(writer));
        }
        if !opened.lock()? {
            return Err(Refusal::OfOther);
        }
        if options.truncate {
            opened.will_write();
            opened.file().set_len(0)?;
        }
    }
    let mut table = table();
    let files = table.files(rank);
    files.numbers += 1;
    files.open.insert(files.numbers, Arc::new(opened));
    Ok(files.numbers)
}

/// An open file of a rank. In any context: nothing is allocated.
pub(super) fn find(rank: Rank, number: u64) -> Option<Arc<OpenFile>> {
    table().ranks.get(&rank)?.open.get(&number).cloned()
}

/// A rank closes a file.
pub(super) fn close(rank: Rank, number: u64) {
    let mut table = table();
    let files = table.files(rank);
    let Some(file) = files.open.remove(&number) else {
        return;
    };
    if file.mode().append && table.keeps_until_durable {
        table.files(rank).appended.push(file);
    } else {
        table.retire(file);
    }
}

/// A rank goes on in another process, which has the same files open. So they are closed, and not unlocked: the lock is
/// the other's as well.
pub(crate) fn let_go(rank: Rank) {
    let files = table().ranks.remove(&rank);
    drop(files);
}

/// A rank goes on in another process, which has opened the same files by itself. So they are closed, and others may write: that
/// process waits for it.
pub(crate) fn release(rank: Rank) {
    let files = table().ranks.remove(&rank);
    for file in files.iter().flat_map(RankFiles::all) {
        if file.mode().writes() {
            file.unlock();
        }
    }
}

/// Closes all files of a rank: it has ended.
pub(crate) fn close_all(rank: Rank) {
    let mut table = table();
    let Some(files) = table.ranks.remove(&rank) else {
        return;
    };
    for file in files.open.into_values().chain(files.appended) {
        table.retire(file);
    }
}

/// The files of a rank.
pub(super) fn of_rank(rank: Rank) -> RankFiles {
    table().ranks.get(&rank).cloned().unwrap_or_default()
}

/// Gives a rank its files, in this process.
pub(super) fn put(rank: Rank, files: RankFiles) {
    table().ranks.insert(rank, files);
}

/// The descriptors of all files here.
pub(crate) fn descriptors() -> Vec<RawFd> {
    table().all().map(|file| file.file().as_raw_fd()).collect()
}

/// The files with something written that may not be on disk, closed ones included.
pub(crate) fn unsynced() -> Vec<Unsynced> {
    let table = table();
    let unsynced = table.all().filter(|file| file.is_unsynced());
    unsynced.map(|file| Unsynced(file.clone())).collect()
}

/// The same of one rank: what another machine may not see yet.
pub(crate) fn unsynced_of(rank: Rank) -> Vec<Unsynced> {
    let table = table();
    let files = table.ranks.get(&rank);
    let unsynced = files.into_iter().flat_map(RankFiles::all);
    let unsynced = unsynced.filter(|file| file.is_unsynced());
    unsynced.map(|file| Unsynced(file.clone())).collect()
}

/// A file that a checkpoint has to make durable.
#[derive(Debug)]
pub(crate) struct Unsynced(Arc<OpenFile>);

impl Unsynced {
    /// Whether it is the file of this path.
    #[cfg(test)]
    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.0.path() == path
    }

    /// Waits until it is on disk.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.0.sync()
    }
}

/// All files, for tests that stand for another process.
#[cfg(test)]
pub(super) fn all_of_tests() -> Vec<Arc<OpenFile>> {
    table().all().cloned().collect()
}

fn table() -> MutexGuard<'static, Table> {
    // Whole at any moment.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}
