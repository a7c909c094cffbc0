//! Restoring the ranks of this process out of a checkpoint.
//!
//! Each rank's file is checked and its chunks are decompressed straight into the slot, by as many library
//! threads as there are processors to the process. Then the message tables and the channel state go back
//! into the engine.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{Slot, library_thread};
use protocol::control::{Assignment, Restore};
use protocol::ids::Rank;
use protocol::slots::SlotLayout;
use store::{DiskStorage, FileKey, RankImage, Scratch, SectionKind};

use super::pipeline::{Base, Digest};
use super::processors::Processors;
use crate::engine::in_engine;
use crate::fs::OpenFiles;

/// One waits for the disk while the other decompresses.
const THREADS_PER_PROCESSOR: usize = 2;

/// Chunks that a thread takes at once; it reads them together where they follow each other.
const CHUNKS_AT_ONCE: usize = 8;

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
    /// What the next checkpoint of each builds on.
    pub(crate) bases: Vec<Base>,
    /// The open files of each rank, not looked at yet.
    pub(crate) files: Vec<(Rank, OpenFiles)>,
    /// How long it took, in microseconds.
    pub(crate) took_us: u64,
}

/// Restores all hosted ranks. `as_stored` sees each while its memory is what the checkpoint holds; what comes
/// afterwards, such as messages under way, changes it. With `digests`, those of all pages are taken on the way.
pub(crate) fn restore(
    assignment: &Assignment,
    restore: &Restore,
    layout: SlotLayout,
    hosted: &[Rank],
    digests: bool,
    mut as_stored: impl FnMut(&Slot),
) -> Result<Restored, Failure> {
    let begin = Instant::now();
    let threads = Processors::of(assignment).share() * THREADS_PER_PROCESSOR;
    let mut slots = Vec::with_capacity(hosted.len());
    let mut bases = Vec::with_capacity(hosted.len());
    let mut sections = Vec::with_capacity(hosted.len());
    let mut files = Vec::with_capacity(hosted.len());
    for &rank in hosted {
        let failed = |reason: String| Failure { rank, reason };
        let image = restore_rank(
            assignment,
            restore,
            layout,
            rank,
            threads,
            digests,
            &mut as_stored,
        )
        .map_err(failed)?;
        slots.push(image.slot);
        bases.push(image.base);
        sections.push((image.tables, image.channel));
        files.push((rank, OpenFiles::decode(&image.files).map_err(failed)?));
    }
    in_engine(|engine| engine.restore(sections))
        .map_err(|(rank, reason)| Failure { rank, reason })?;
    Ok(Restored {
        slots,
        bases,
        files,
        took_us: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
    })
}

struct RestoredRank {
    slot: Slot,
    base: Base,
    tables: Vec<u8>,
    channel: Vec<u8>,
    files: Vec<u8>,
}

fn restore_rank(
    assignment: &Assignment,
    restore: &Restore,
    layout: SlotLayout,
    rank: Rank,
    threads: usize,
    digests: bool,
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
        digests: digests.then(Mutex::default),
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
    let files = image
        .file
        .section(SectionKind::Metadata)
        .map_err(|error| said(&error))?;
    Ok(RestoredRank {
        base: Base {
            map: image.file.map(),
            digests: image.digests.map_or_else(Vec::new, |digests| {
                digests.into_inner().unwrap_or_else(PoisonError::into_inner)
            }),
        },
        slot: image.slot.finish(as_stored).map_err(|error| said(&error))?,
        tables,
        channel,
        files,
    })
}

/// A rank's file and the slot that it is put into, by any number of threads.
struct Image {
    file: RankImage,
    slot: RestoringSlot,
    /// The chunk that nobody has taken.
    next: AtomicUsize,
    digests: Option<Mutex<Vec<(u64, Digest)>>>,
}

impl Image {
    /// Takes chunks and puts them into place until there are none.
    fn place_chunks(&self) -> Result<(), String> {
        let mut scratch = Scratch::default();
        loop {
            let first = self.next.fetch_add(CHUNKS_AT_ONCE, Ordering::Relaxed);
            let end = (first + CHUNKS_AT_ONCE).min(self.file.part_count());
            if first >= end {
                return Ok(());
            }
            let mut next = first;
            while next < end {
                let together = self.file.read_together(next..end, &mut scratch).max(1);
                for chunk in next..next + together {
                    self.place(chunk, &mut scratch)?;
                }
                next += together;
            }
        }
    }

    fn place(&self, chunk: usize, scratch: &mut Scratch) -> Result<(), String> {
        if let Some(digests) = &self.digests {
            return self.place_with_digests(chunk, scratch, digests);
        }
        let mut refused = None;
        let read = self.file.read_part_into(chunk, scratch, |first, count| {
            self.slot
                .window(first, count)
                .map_err(|error| refused = Some(error))
                .ok()
        });
        read.map_err(|error| error.to_string())?;
        refused.map_or(Ok(()), |error| Err(error.to_string()))
    }

    /// Puts a chunk into place page by page, and takes the digest of each.
    fn place_with_digests(
        &self,
        chunk: usize,
        scratch: &mut Scratch,
        digests: &Mutex<Vec<(u64, Digest)>>,
    ) -> Result<(), String> {
        let mut found = Vec::new();
        let mut placed = Ok(());
        let read = self.file.read_part(chunk, scratch, |page, bytes| {
            found.push((page, Digest::of(bytes)));
            if placed.is_ok() {
                placed = self.slot.place(page, bytes);
            }
        });
        read.map_err(|error| error.to_string())?;
        placed.map_err(|error| error.to_string())?;
        // A list is whole at any moment.
        let mut all = digests.lock().unwrap_or_else(PoisonError::into_inner);
        all.append(&mut found);
        Ok(())
    }
}
