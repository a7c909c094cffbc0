//! Restoring the ranks of this process out of a checkpoint.
//!
//! Each rank's file is checked and its chunks are decompressed straight into the slot ([`super::fill`]), by as many library
//! threads as there are processors to the process. Then the message tables and the channel state go back
//! into the engine.

use std::path::Path;
use std::time::Instant;

use libckpt_rank::Slot;
use libckpt_rank::restore::RestoringSlot;
use protocol::control::{Assignment, Restore};
use protocol::ids::Rank;
use protocol::slots::SlotLayout;
use store::{DiskStorage, FileKey, RankImage, SectionKind};

use super::fill::{Filling, THREADS_PER_PROCESSOR, fill};
use super::pipeline::Base;
use super::processors::Processors;
use crate::engine::in_engine;
use crate::fs::OpenFiles;

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
    let image = fill(Filling::new(file, slot, digests), threads, "ckpt-restore")?;
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
            digests: image.digests,
        },
        slot: image.slot.finish(as_stored).map_err(|error| said(&error))?,
        tables,
        channel,
        files,
    })
}
