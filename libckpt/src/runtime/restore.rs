//! Restoring the ranks of this process out of a checkpoint.
//!
//! Each rank's file is checked and its chunks are decompressed straight into the slot, by as many library
//! threads as there are processors to the process. Then the message tables and the channel state go back
//! into the engine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{Slot, library_thread};
use protocol::control::{Assignment, Restore};
use protocol::ids::Rank;
use protocol::slots::SlotLayout;
use store::{DiskStorage, FileKey, ImageMap, RankImage, Scratch, SectionKind};

use crate::engine::in_engine;

/// Why a rank can't be restored.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) rank: Rank,
    pub(crate) reason: String,
}

/// What was restored.
pub(crate) struct Restored {
    /// The slots of the hosted ranks.
    pub(crate) slots: Vec<Slot>,
    /// Where the pages of each are in the store.
    pub(crate) maps: Vec<Arc<ImageMap>>,
    /// How long it took, in microseconds.
    pub(crate) took_us: u64,
}

/// Restores all hosted ranks. `as_stored` sees each while its memory is what the checkpoint holds; what comes
/// afterwards, such as messages under way, changes it.
pub(crate) fn restore(
    assignment: &Assignment,
    restore: &Restore,
    layout: SlotLayout,
    hosted: &[Rank],
    mut as_stored: impl FnMut(&Slot),
) -> Result<Restored, Failure> {
    let begin = Instant::now();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (processors / assignment.processes.max(1) as usize).max(1);
    let mut slots = Vec::with_capacity(hosted.len());
    let mut maps = Vec::with_capacity(hosted.len());
    let mut sections = Vec::with_capacity(hosted.len());
    for &rank in hosted {
        let failed = |reason: String| Failure { rank, reason };
        let image = restore_rank(assignment, restore, layout, rank, threads, &mut as_stored)
            .map_err(failed)?;
        slots.push(image.slot);
        maps.push(image.map);
        sections.push((image.tables, image.channel));
    }
    in_engine(|engine| engine.restore(sections))
        .map_err(|(rank, reason)| Failure { rank, reason })?;
    Ok(Restored {
        slots,
        maps,
        took_us: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
    })
}

struct RestoredRank {
    slot: Slot,
    map: Arc<ImageMap>,
    tables: Vec<u8>,
    channel: Vec<u8>,
}

fn restore_rank(
    assignment: &Assignment,
    restore: &Restore,
    layout: SlotLayout,
    rank: Rank,
    threads: usize,
    as_stored: &mut impl FnMut(&Slot),
) -> Result<RestoredRank, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let stored = restore
        .files
        .get(rank.index())
        .filter(|stored| stored.rank == rank)
        .ok_or_else(|| format!("{} has no file for {rank}", restore.epoch))?;
    let key = FileKey {
        job: assignment.job,
        incarnation: restore.incarnation,
        epoch: restore.epoch,
        rank,
    };
    let storage = DiskStorage::open(Path::new(&assignment.store)).map_err(|error| said(&error))?;
    let file =
        RankImage::open(&storage, stored, key, &restore.needs).map_err(|error| said(&error))?;
    let slot = RestoringSlot::create(layout, rank).map_err(|error| said(&error))?;
    let image = Arc::new(Image {
        file,
        slot,
        next: AtomicUsize::new(0),
    });

    let helpers = (1..threads)
        .map(|_| {
            let image = image.clone();
            library_thread("ckpt-restore", move || image.place_chunks())
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| said(&error))?;
    let mut placed = image.place_chunks();
    for helper in helpers {
        let by_helper = helper
            .join()
            .unwrap_or_else(|_| Err("a thread that restored panicked".to_owned()));
        placed = placed.and(by_helper);
    }
    placed?;

    let image = Arc::into_inner(image).ok_or("a thread still restores")?;
    let tables = image
        .file
        .section(SectionKind::Tables)
        .map_err(|error| said(&error))?;
    let channel = image
        .file
        .section(SectionKind::Channel)
        .map_err(|error| said(&error))?;
    Ok(RestoredRank {
        map: image.file.map(),
        slot: image.slot.finish(as_stored).map_err(|error| said(&error))?,
        tables,
        channel,
    })
}

/// A rank's file and the slot that it is put into, by any number of threads.
struct Image {
    file: RankImage,
    slot: RestoringSlot,
    /// The chunk that nobody has taken.
    next: AtomicUsize,
}

impl Image {
    /// Takes chunks and puts them into place until there are none.
    fn place_chunks(&self) -> Result<(), String> {
        let mut scratch = Scratch::default();
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= self.file.part_count() {
                return Ok(());
            }
            let mut refused = None;
            let read = self
                .file
                .read_part_into(chunk, &mut scratch, |first, count| {
                    self.slot
                        .window(first, count)
                        .map_err(|error| refused = Some(error))
                        .ok()
                });
            read.map_err(|error| error.to_string())?;
            if let Some(error) = refused {
                return Err(error.to_string());
            }
        }
    }
}
