//! From pages that a cut has saved to durable files, while the ranks go on.
//!
//! ```text
//! ranks' thread, saver, handler       packers (several)                     writer (one)
//!   block of pages  ──unbounded──▶  digests, compress, verify  ──bounded──▶  append, fsync, report
//!       ▲                                   │
//!       └────────── pool of blocks ◀────────┘   as many as the memory budget has room for
//! ```
//!
//! - `packer`: leaves out pages that are as in the checkpoint before, compresses the others and compares
//!   them after decompression.
//! - `effort`: how hard they are compressed.
//! - `writer`: owns the files; finishes them when all pages, tables and channel state are there.
//! - `digests`: what pages were like in the checkpoint before.
//!
//! No stage waits for the ranks. Each waits for the one after it, so that a slow disk fills the blocks of the
//! budget and no more; then a rank waits that has pages to be saved.

mod digests;
mod effort;
mod packer;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use libckpt_rank::capture::{CatchUp, LivePages, Observation, Pool, RankCut, Saved, Sink};
use libckpt_rank::inspect::{Changes, PointerScan};
use libckpt_rank::library_thread;
use protocol::control::{Assignment, LinkCount};
use protocol::dirty::PageSet;
use protocol::ids::{Epoch, Rank};
use store::{DiskStorage, ImageMap, PAGE_BYTES, PackedChunk, Packing};

pub(super) use self::digests::Digest;
use self::digests::Digests;
use self::packer::Task;
use self::writer::Writer;
use super::control::Control;
use super::processors::Processors;
use crate::error::StartError;
use crate::fs::Unsynced;

/// Chunks that are packed and not yet written, at most.
const PACKED_MAX: usize = 8;

/// Most packers of a process: more would wait for the writer.
const PACKERS_MAX: usize = 4;

/// Memory for packing, in bytes: compression contexts of every level, and buffers, of a thread that packs.
const PACKER_BYTES: usize = 6 << 20;

/// Memory for what goes past the page cache, in bytes: of all files that are being written.
const GATHER_BYTES: usize = 2 << 20;

/// Least and most of it for one file.
const GATHER_MIN: usize = 64 << 10;
const GATHER_MAX: usize = 1 << 20;

/// Memory beside all that, in bytes: stacks of threads, queues, what the allocator holds back.
const PROCESS_BYTES: usize = 4 << 20;

/// The writer packs, too: sections, and pages that it carries over.
const WRITER_PACKERS: usize = 2;

/// The stages after the capture.
pub(super) struct Pipeline {
    tasks: Sender<Task>,
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

/// What all stages know.
struct Shared {
    /// Snapshots up to this epoch are not to be written any further.
    discarded: AtomicU64,
    /// The epoch that is being written; 0 for none.
    busy: AtomicU64,
    /// What checkpoints showed about the ranks' regions, until somebody wants to know.
    observed: Mutex<BTreeMap<Epoch, Vec<Observations>>>,
    /// Regions that were compared, and the pages that differ.
    caught_up: Mutex<Vec<(CatchUp, PageSet)>>,
}

/// What a checkpoint of one rank showed, by region.
pub(super) type Observations = (Rank, BTreeMap<u64, Observation>);

/// What the writer is told by the ranks' thread.
enum Job {
    /// A cut is about to be taken.
    Begin(Arc<Round>),
    /// The cut was taken: what is known now beside the pages.
    Cut {
        epoch: Epoch,
        ranks: Vec<CapturedRank>,
        outside: Outside,
    },
    /// Every marker has come.
    Channels {
        epoch: Epoch,
        channels: Vec<Vec<u8>>,
        links: Vec<LinkCount>,
    },
    /// The snapshot will not be.
    Discard(Epoch),
    /// The snapshot is a checkpoint.
    Committed(Epoch),
    /// Regions are to be compared with this checkpoint.
    CatchUp(Epoch, Vec<CatchUp>),
    /// Somebody wants to know what a rank's image is in this checkpoint.
    Stored(Epoch, Rank, Sender<Stored>),
    /// Nothing that was written can be built on.
    Rebase,
    /// The ranks were restored from this checkpoint.
    Restored(Epoch, Vec<Base>),
}

/// What the writer is told by the packers.
enum Packed {
    Chunk {
        epoch: Epoch,
        rank: usize,
        chunk: PackedChunk,
    },
    /// A chunk could not be packed.
    Failed(Arc<Round>, String),
    /// All chunks of a round have been sent.
    All(Arc<Round>),
}

/// One snapshot on its way through the stages.
struct Round {
    epoch: Epoch,
    /// The ranks in the order of their slots, and what each builds on.
    ranks: Vec<RankPlan>,
    /// Whether saved pages are compared with the parents'.
    compare: bool,
    /// The files, once the writer has made them; `None` if it could not.
    files: OnceLock<Option<Vec<RankRound>>>,
    /// Blocks that are not packed yet, and one for the last word of the capture.
    open: AtomicI64,
    felt: OnceLock<protocol::control::Felt>,
}

/// What is decided about a rank before its cut.
pub(super) struct RankPlan {
    pub(super) rank: Rank,
    pub(super) parent: Option<Epoch>,
    /// Looks for pointers out of the image, at the first cut of a job.
    pub(super) scan: Option<PointerScan>,
}

/// What is known of a rank after its cut, beside the pages.
pub(super) struct CapturedRank {
    pub(super) cut: RankCut,
    /// Its message tables, encoded.
    pub(super) tables: Vec<u8>,
    /// Its open files, encoded.
    pub(super) files: Vec<u8>,
}

/// What a checkpoint has to do with outside of the ranks' memory.
#[derive(Default)]
pub(super) struct Outside {
    /// What the first cut of a process found changed there.
    pub(super) changes: Option<Changes>,
    /// Files that have to be on disk before it is reported.
    pub(super) unsynced: Vec<Unsynced>,
}

/// A rank's file while its pages are being packed.
struct RankRound {
    packing: Packing,
    base: Option<Arc<ImageMap>>,
    digests: Arc<Digests>,
    packed: Mutex<PackedPages>,
}

/// A rank's image in the checkpoint that it was restored from.
pub(super) struct Base {
    /// Where its pages are.
    pub(super) map: Arc<ImageMap>,
    /// Digests of them, where they were taken.
    pub(super) digests: Vec<(u64, Digest)>,
}

/// A rank's image in the checkpoint that its next one builds on, as it is known here.
pub(crate) struct Stored {
    map: Arc<ImageMap>,
    digests: Arc<Digests>,
}

impl Stored {
    /// Where its pages are.
    pub(crate) fn map(&self) -> &ImageMap {
        &self.map
    }

    /// Those pages that are not as in the image. Reads memory of a rank that runs, on any thread.
    ///
    /// # Errors
    /// A page can't be read, because its slot is gone.
    pub(crate) fn differing(&self, live: &LivePages) -> std::io::Result<PageSet> {
        packer::differing(live, &self.map, &self.digests)
    }
}

/// What packers found out about the pages of one rank.
#[derive(Default)]
struct PackedPages {
    /// Pages that were saved, and are as in the parent.
    unchanged: Vec<u64>,
    /// Those that are not.
    changed: Vec<(u64, Digest)>,
    observations: BTreeMap<u64, Observation>,
}

impl Pipeline {
    /// Starts the threads. `pool` is where the blocks come from.
    ///
    /// # Errors
    /// When the store can't be opened or a thread can't be started.
    pub(super) fn start(assignment: &Assignment, control: Control) -> Result<Self, StartError> {
        let path = Path::new(&assignment.store);
        let failed = |reason: String| StartError::Store {
            path: path.to_owned(),
            reason,
        };
        let storage = DiskStorage::open(path)
            .map_err(|error| failed(error.to_string()))?
            .writing_past_cache(gather_bytes(assignment));
        let (tasks, task_inbox) = unbounded();
        let (jobs, job_inbox) = unbounded();
        let (packed, packed_inbox) = bounded(PACKED_MAX);
        let shared = Arc::new(Shared {
            discarded: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            observed: Mutex::default(),
            caught_up: Mutex::default(),
        });
        let efforts = Arc::new(effort::Efforts::new(assignment));
        for _ in 0..packers(assignment) {
            let (inbox, packed) = (task_inbox.clone(), packed.clone());
            let (shared, efforts) = (shared.clone(), efforts.clone());
            library_thread("ckpt-packer", move || {
                packer::run(&inbox, &packed, &shared, &efforts);
            })
            .map_err(|error| failed(error.to_string()))?;
        }
        let writer = Writer::new(
            assignment,
            tasks.clone(),
            Arc::new(storage),
            control,
            shared.clone(),
            efforts,
        );
        library_thread("ckpt-writer", move || writer.run(&job_inbox, &packed_inbox))
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            tasks,
            jobs,
            shared,
        })
    }

    /// The snapshot that is still being written or given up, if there is one.
    pub(super) fn busy(&self) -> Option<Epoch> {
        let epoch = self.shared.busy.load(Ordering::SeqCst);
        (epoch != 0).then_some(Epoch(epoch))
    }

    /// Whether a snapshot is not to be written any further.
    pub(super) fn is_discarded(&self, epoch: Epoch) -> bool {
        self.shared.is_discarded(epoch)
    }

    /// Begins to write a snapshot; its cut is about to be taken, and what it saves goes into the sink. Each
    /// rank comes with the checkpoint that it builds on.
    pub(super) fn begin(&self, epoch: Epoch, ranks: Vec<RankPlan>, compare: bool) -> Sink {
        let round = Arc::new(Round {
            epoch,
            ranks,
            compare,
            files: OnceLock::new(),
            open: AtomicI64::new(1),
            felt: OnceLock::new(),
        });
        self.shared.busy.store(epoch.0, Ordering::SeqCst);
        self.tell(Job::Begin(round.clone()));
        let tasks = self.tasks.clone();
        Arc::new(move |saved| {
            if matches!(saved, Saved::Block { .. }) {
                round.open.fetch_add(1, Ordering::SeqCst);
            }
            // Without packers the process is ending.
            let _ = tasks.send(Task::Saved(round.clone(), saved));
        })
    }

    /// The cut was taken.
    pub(super) fn cut(&self, epoch: Epoch, ranks: Vec<CapturedRank>, outside: Outside) {
        self.tell(Job::Cut {
            epoch,
            ranks,
            outside,
        });
    }

    /// Every marker has come.
    pub(super) fn channels(&self, epoch: Epoch, channels: Vec<Vec<u8>>, links: Vec<LinkCount>) {
        self.tell(Job::Channels {
            epoch,
            channels,
            links,
        });
    }

    /// The snapshot will not be.
    pub(super) fn discard(&self, epoch: Epoch) {
        self.shared.discarded.fetch_max(epoch.0, Ordering::SeqCst);
        self.tell(Job::Discard(epoch));
    }

    /// The snapshot is a checkpoint: later ones build on it. Gives what it showed about the ranks.
    pub(super) fn committed(&self, epoch: Epoch) -> Vec<Observations> {
        self.tell(Job::Committed(epoch));
        let mut observed = self.shared.observed();
        let found = observed.remove(&epoch).unwrap_or_default();
        observed.retain(|other, _| *other > epoch);
        found
    }

    /// Has regions compared with this checkpoint, in the background.
    pub(super) fn catch_up(&self, epoch: Epoch, regions: Vec<CatchUp>) {
        if !regions.is_empty() {
            self.tell(Job::CatchUp(epoch, regions));
        }
    }

    /// The regions that were compared since this was asked, and the pages that differ.
    pub(super) fn caught_up(&self) -> Vec<(CatchUp, PageSet)> {
        std::mem::take(&mut *lock(&self.shared.caught_up))
    }

    /// Asks for a rank's image in this checkpoint, which is the newest that is known to be one. It comes when the writer has the time,
    /// if it has it.
    pub(super) fn stored(&self, epoch: Epoch, rank: Rank) -> Receiver<Stored> {
        let (give, take) = bounded(1);
        self.tell(Job::Stored(epoch, rank, give));
        take
    }

    /// Nothing that was written can be built on.
    pub(super) fn rebase(&self) {
        self.tell(Job::Rebase);
    }

    /// The ranks were restored from this checkpoint.
    pub(super) fn restored(&self, epoch: Epoch, bases: Vec<Base>) {
        self.tell(Job::Restored(epoch, bases));
    }

    /// Has somebody make blocks for so many bytes, or give back what is far more.
    pub(super) fn make_room(&self, pool: &Pool, bytes: usize) {
        if !pool.fits(bytes) {
            let _ = self.tasks.send(Task::MakeRoom(pool.clone(), bytes));
        }
    }

    fn tell(&self, job: Job) {
        // Without a writer the process is ending.
        let _ = self.jobs.send(job);
    }
}

impl Shared {
    fn is_discarded(&self, epoch: Epoch) -> bool {
        self.discarded.load(Ordering::SeqCst) >= epoch.0
    }

    fn observed(&self) -> MutexGuard<'_, BTreeMap<Epoch, Vec<Observations>>> {
        lock(&self.observed)
    }
}

impl Round {
    /// The files, as soon as the writer has made them.
    fn files(&self) -> Option<&[RankRound]> {
        self.files.wait().as_deref()
    }
}

/// What is kept about a page of an image, in bytes: its digest, while a checkpoint is written the new one, and its
/// share of the maps of two checkpoints.
const PAGE_RECORD_BYTES: usize = 80;

/// The memory that is left of the budget for copies of pages, in bytes, where images take so much.
pub(super) fn pool_bytes(assignment: &Assignment, image_bytes: usize) -> usize {
    let budget = usize::try_from(assignment.memory_bytes).unwrap_or(usize::MAX);
    let packing = (packers(assignment) + WRITER_PACKERS) * PACKER_BYTES
        + PACKED_MAX * store::format::layout::CHUNK_RAW_BYTES;
    let records = image_bytes / PAGE_BYTES * PAGE_RECORD_BYTES;
    budget.saturating_sub(PROCESS_BYTES + GATHER_BYTES + packing + records)
}

/// How much is gathered for each write past the page cache, in bytes. Nothing, so that files go through the cache and are there for
/// a restart, where a processor is free to copy them.
fn gather_bytes(assignment: &Assignment) -> usize {
    if Processors::of(assignment).is_one_free() {
        return 0;
    }
    let ranks = assignment.placement.len() / assignment.processes.max(1) as usize;
    (GATHER_BYTES / ranks.max(1)).clamp(GATHER_MIN, GATHER_MAX)
}

/// How many packers this process has: its share of the processors.
fn packers(assignment: &Assignment) -> usize {
    Processors::of(assignment).share().min(PACKERS_MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they hold is whole at any moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
