//! A store in memory, on a medium that keeps after a crash only what was made durable.
//!
//! It promises no more than POSIX does: data of a file are durable after its fsync, entries of a directory
//! after the directory's, and everything else may or may not have reached the medium, in any order.
//! [`MemoryStorage::after_crash`] chooses.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Access, Entry, LockAttempt, ReadFile, Storage, WriteFile};
use crate::names::parent;

/// A [`Storage`] in memory. Clones share the medium.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    medium: Arc<Mutex<Medium>>,
}

/// What becomes of that which was not made durable before a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// It is lost.
    Nothing,
    /// It happens to have reached the medium.
    Everything,
    /// Each change of a directory, and each block of a file, has or has not, by a sequence with this seed.
    Random(u64),
}

const ROOT: usize = 0;
/// Medium blocks: a block that did not reach the medium reads as zeros where the file's length did.
const BLOCK_BYTES: usize = 512;

#[derive(Debug)]
struct Medium {
    nodes: Vec<Node>,
    locks: HashMap<String, String>,
}

#[derive(Clone, Debug)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Clone, Debug, Default)]
struct FileNode {
    bytes: Vec<u8>,
    durable_bytes: usize,
}

#[derive(Clone, Debug, Default)]
struct DirNode {
    entries: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// What makes `entries` of `durable`, in order.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Add(String, usize),
    Remove(String),
    Rename(String, String, usize),
}

impl Change {
    fn apply(&self, entries: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, node) => {
                entries.insert(name.clone(), *node);
            }
            Self::Remove(name) => {
                entries.remove(name);
            }
            Self::Rename(from, to, node) => {
                entries.remove(from);
                entries.insert(to.clone(), *node);
            }
        }
    }
}

impl DirNode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.entries);
        self.pending.push(change);
    }
}

impl Default for Medium {
    fn default() -> Self {
        Self {
            nodes: vec![Node::Dir(DirNode::default())],
            locks: HashMap::new(),
        }
    }
}

impl Medium {
    fn find(&self, path: &str) -> io::Result<usize> {
        let mut at = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let Node::Dir(dir) = &self.nodes[at] else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            at = *dir.entries.get(part).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn dir(&mut self, path: &str) -> io::Result<&mut DirNode> {
        let at = self.find(path)?;
        match &mut self.nodes[at] {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn add(&mut self, path: &str, node: usize) -> io::Result<()> {
        let name = file_name(path)?.to_owned();
        let dir = self.dir(parent(path))?;
        if dir.entries.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        dir.change(Change::Add(name, node));
        Ok(())
    }

    fn add_new(&mut self, path: &str, node: Node) -> io::Result<usize> {
        let at = self.nodes.len();
        self.add(path, at)?;
        self.nodes.push(node);
        Ok(at)
    }

    fn file(&mut self, at: usize) -> &mut FileNode {
        match &mut self.nodes[at] {
            Node::File(file) => file,
            Node::Dir(_) => unreachable!("handles are of files"),
        }
    }
}

impl MemoryStorage {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is found after the machine stopped at this moment. This storage is left as it is; nobody holds
    /// a lock on the new one.
    #[must_use]
    pub fn after_crash(&self, survival: Survival) -> Self {
        let medium = self.medium();
        let mut chance = Chance(match survival {
            Survival::Random(seed) => seed,
            _ => 0,
        });
        let survives = |chance: &mut Chance| match survival {
            Survival::Nothing => false,
            Survival::Everything => true,
            Survival::Random(_) => chance.below(2) == 1,
        };
        let nodes = medium
            .nodes
            .iter()
            .map(|node| match node {
                Node::File(file) => {
                    let mut bytes = file.bytes.clone();
                    let lost_from = match survival {
                        Survival::Nothing => file.durable_bytes,
                        Survival::Everything => bytes.len(),
                        Survival::Random(_) => {
                            file.durable_bytes + chance.below(bytes.len() - file.durable_bytes + 1)
                        }
                    };
                    bytes.truncate(lost_from);
                    for block in bytes[file.durable_bytes..].chunks_mut(BLOCK_BYTES) {
                        if !survives(&mut chance) {
                            block.fill(0);
                        }
                    }
                    Node::File(FileNode {
                        durable_bytes: bytes.len(),
                        bytes,
                    })
                }
                Node::Dir(dir) => {
                    let mut entries = dir.durable.clone();
                    for change in &dir.pending {
                        if survives(&mut chance) {
                            change.apply(&mut entries);
                        }
                    }
                    Node::Dir(DirNode {
                        durable: entries.clone(),
                        entries,
                        pending: Vec::new(),
                    })
                }
            })
            .collect();
        Self {
            medium: Arc::new(Mutex::new(Medium {
                nodes,
                locks: HashMap::new(),
            })),
        }
    }

    /// Changes the bytes of a file behind the store's back, as a failing medium would.
    pub fn tamper(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut medium = self.medium();
        let at = medium.find(path)?;
        let file = medium.file(at);
        change(&mut file.bytes);
        file.durable_bytes = file.durable_bytes.min(file.bytes.len());
        Ok(())
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        // A panic of a test's thread leaves no half change behind: each is made in one step.
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sequence of choices (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

fn file_name(path: &str) -> io::Result<&str> {
    path.rsplit('/')
        .next()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl Storage for MemoryStorage {
    fn describe(&self, path: &str) -> String {
        if path.is_empty() {
            "(memory)".into()
        } else {
            format!("(memory)/{path}")
        }
    }

    fn create_new(&self, path: &str, _access: Access) -> io::Result<Box<dyn WriteFile>> {
        let node = self
            .medium()
            .add_new(path, Node::File(FileNode::default()))?;
        Ok(Box::new(MemoryFile {
            storage: self.clone(),
            node,
        }))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>> {
        let medium = self.medium();
        let node = medium.find(path)?;
        if matches!(medium.nodes[node], Node::Dir(_)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Box::new(MemoryFile {
            storage: self.clone(),
            node,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if parent(from) != parent(to) {
            // Nothing here renames across directories, which two changes could tear apart.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut medium = self.medium();
        let node = medium.find(from)?;
        let (from_name, to_name) = (file_name(from)?.to_owned(), file_name(to)?.to_owned());
        medium
            .dir(parent(from))?
            .change(Change::Rename(from_name, to_name, node));
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut medium = self.medium();
        let node = medium.find(from)?;
        medium.add(to, node)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let mut medium = self.medium();
        let node = medium.find(path)?;
        if matches!(medium.nodes[node], Node::Dir(_)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = file_name(path)?.to_owned();
        medium.dir(parent(path))?.change(Change::Remove(name));
        Ok(())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.medium()
            .add_new(path, Node::Dir(DirNode::default()))
            .map(drop)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut medium = self.medium();
        if !medium.dir(path)?.entries.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let name = file_name(path)?.to_owned();
        medium.dir(parent(path))?.change(Change::Remove(name));
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let mut medium = self.medium();
        let entries = medium.dir(path)?.entries.clone();
        Ok(entries
            .into_iter()
            .map(|(name, node)| Entry {
                name,
                is_dir: matches!(medium.nodes[node], Node::Dir(_)),
            })
            .collect())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut medium = self.medium();
        let dir = medium.dir(path)?;
        dir.durable = dir.entries.clone();
        dir.pending.clear();
        Ok(())
    }

    fn try_lock(&self, path: &str, note: &str) -> io::Result<LockAttempt> {
        let mut medium = self.medium();
        if let Some(holder) = medium.locks.get(path) {
            return Ok(LockAttempt::Busy(holder.clone()));
        }
        if medium.find(path).is_err() {
            medium.add_new(path, Node::File(FileNode::default()))?;
        }
        medium.locks.insert(path.to_owned(), note.to_owned());
        Ok(LockAttempt::Held(Box::new(MemoryLock {
            storage: self.clone(),
            path: path.to_owned(),
        })))
    }
}

#[derive(Debug)]
struct MemoryFile {
    storage: MemoryStorage,
    node: usize,
}

impl WriteFile for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut medium = self.storage.medium();
        medium.file(self.node).bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut medium = self.storage.medium();
        let file = medium.file(self.node);
        file.durable_bytes = file.bytes.len();
        Ok(())
    }
}

impl ReadFile for MemoryFile {
    fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.storage.medium().file(self.node).bytes.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut medium = self.storage.medium();
        let bytes = &medium.file(self.node).bytes;
        let start = usize::try_from(offset).map_or(bytes.len(), |start| start.min(bytes.len()));
        let count = into.len().min(bytes.len() - start);
        into[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }
}

#[derive(Debug)]
struct MemoryLock {
    storage: MemoryStorage,
    path: String,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.storage.medium().locks.remove(&self.path);
    }
}
