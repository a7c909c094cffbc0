//! A rank whose target reads its last checkpoint first, while the rank runs: its source gives nothing but what has changed since.
//!
//! The source knows which files of the store the image is in, and which pages have been written since its cut: of regions that the
//! kernel has tracked all the time it tells, others are compared with the checkpoint's digests ([`Stored::differing`]) while the
//! target reads. What has changed is then copied as by rounds that have begun ([`super::rounds`]): while the rank runs where it is much,
//! and in any case the rest when it stands still.
//!
//! The store may change meanwhile: no file is ever written anew, but one may be removed. Each file is checked for its length, its
//! names and its index when it is opened, and each chunk for its digest when it is read; where one is not as it was, the rank stays.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libckpt_rank::capture::FollowError;
use libckpt_rank::library_thread;
use libckpt_rank::restore::RestoringSlot;
use protocol::control::{NeededFile, StoredFile};
use protocol::dirty::PageSet;
use protocol::ids::{Epoch, Incarnation, JobId, Move, Rank};
use protocol::migration::rounds::{Next, Rounds};
use serde::{Deserialize, Serialize};
use store::{DiskStorage, FileKey, ImageMap, RankImage};

use super::line::Word;
use super::parcel::Pages;
use super::rounds::Rounding;
use super::{Moving, News};
use crate::engine::{Fatal, in_engine};
use crate::runtime::fill::{Filling, THREADS_PER_PROCESSOR, fill};
use crate::runtime::pipeline::Stored;
use crate::runtime::schedule::Scheduler;

/// Version of [`Files`]. Both ends run the same program; a check against garbage.
const VERSION: u32 = 1;

/// Which files a rank's image is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Files {
    epoch: Epoch,
    incarnation: Incarnation,
    file: StoredFile,
    needs: Vec<NeededFile>,
}

impl Files {
    fn of(map: &ImageMap) -> Self {
        let checkpoint = map.checkpoint();
        Self {
            epoch: checkpoint.epoch,
            incarnation: checkpoint.incarnation,
            file: map.file().clone(),
            needs: map.needs().to_vec(),
        }
    }

    fn encode(&self) -> Result<Box<[u8]>, String> {
        postcard::to_stdvec(&(VERSION, self))
            .map(Vec::into_boxed_slice)
            .map_err(|error| error.to_string())
    }

    fn decode(bytes: &[u8], rank: Rank) -> Result<Self, String> {
        let (version, files): (u32, Self) =
            postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
        if version != VERSION || files.file.rank != rank {
            return Err(format!(
                "what the source tells of its checkpoint is of version {version} and about {}",
                files.file.rank
            ));
        }
        Ok(files)
    }
}

/// The pages of an image, zeros included.
fn pages_of(map: &ImageMap) -> PageSet {
    let runs = map.runs().iter();
    runs.map(|run| run.first_page..run.end()).collect()
}

/// What the thread of a move tells about the rank's last checkpoint.
pub(super) enum Told {
    /// Which files it is in, and which pages it has.
    Image(Files, PageSet),
    /// The pages that were compared with it, and differ.
    Differing(PageSet),
    /// It can't be used.
    Failed(String),
}

/// The source's side, while the target reads.
pub(super) struct Reading {
    /// The rank's pages when it was first looked at.
    existing: PageSet,
    /// Of these, such as differ from the checkpoint as far as is known, or may do so.
    written: PageSet,
    /// The pages of the checkpoint.
    stored: PageSet,
    is_compared: bool,
    is_read: bool,
}

impl Reading {
    /// The target has read the checkpoint.
    pub(super) fn is_read(&mut self) {
        self.is_read = true;
    }

    /// The pages that the target has as they were when the rank was first looked at.
    fn taken(&self) -> PageSet {
        let stored = self.existing.intersection(&self.stored);
        stored.difference(&self.written)
    }
}

impl Scheduler {
    /// Whether there is a checkpoint of a rank, and it can be told what was written since.
    pub(super) fn has_checkpoint(&self, rank: Rank) -> Result<(), String> {
        let snapshots = self.snapshots.as_ref().ok_or("it takes no checkpoints")?;
        let checkpoint = snapshots.checkpoint_of(rank);
        checkpoint.map(drop).map_err(|error| refusal(rank, error))
    }

    /// Has the target read the last checkpoint of a rank that runs.
    pub(super) fn begin_from_stored(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        let slot = self.slots.iter().find(|slot| slot.rank() == rank);
        let looked = match (slot, &mut self.snapshots) {
            (Some(slot), Some(snapshots)) => snapshots.look_since_checkpoint(slot),
            _ => Err(FollowError::NoCheckpoint { rank }),
        };
        let Some((tell, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        let begun = looked.map_err(|error| refusal(rank, error));
        let begun = begun.and_then(|(since, stored)| {
            leaving.reading = Some(Reading {
                existing: since.existing,
                written: since.written,
                stored: PageSet::new(),
                is_compared: false,
                is_read: false,
            });
            let compare = move || {
                let told = |told| tell.tell(News::Stored(id, told));
                let Ok(stored) = stored.recv() else {
                    return told(Told::Failed(format!(
                        "where {} of {rank} is stored is not known (an error of the library)",
                        since.checkpoint
                    )));
                };
                told(Told::Image(Files::of(stored.map()), pages_of(stored.map())));
                let differing = Stored::differing(&stored, &since.unknown);
                told(differing.map_or_else(
                    |error| Told::Failed(format!("its memory can't be compared: {error}")),
                    Told::Differing,
                ));
            };
            library_thread("ckpt-move", compare)
                .map_err(|error| format!("no thread can be started for its move: {error}"))
        });
        if let Err(reason) = begun {
            in_engine(|engine| engine.core.mover.failed(id, reason));
        }
        Ok(())
    }

    /// Something is known about the last checkpoint of a rank.
    pub(super) fn stored(&mut self, id: Move, told: Told) -> Result<(), Fatal> {
        let Some((_, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        let rank = leaving.rank;
        let Some(reading) = &mut leaving.reading else {
            return Ok(());
        };
        match told {
            Told::Image(files, pages) => {
                reading.stored = pages;
                self.say_about(id, rank, Word::Stored, files.encode(), Pages::new());
            }
            Told::Differing(differing) => {
                reading.written.unite(&differing);
                reading.is_compared = true;
                return self.go_on_from_stored(id, rank);
            }
            Told::Failed(reason) => in_engine(|engine| engine.core.mover.failed(id, reason)),
        }
        Ok(())
    }

    /// Copies what has changed since the checkpoint, once the target has that and it is known.
    pub(super) fn go_on_from_stored(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        let Some((_, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        let is_there = |reading: &mut Reading| reading.is_compared && reading.is_read;
        let Some(reading) = leaving.reading.take_if(is_there) else {
            return Ok(());
        };
        let taken = reading.taken();
        let Some(look) = self.look_at_writes(id, rank) else {
            return self.freeze(id, rank, None);
        };
        let mut changed = look.existing.difference(&taken);
        changed.unite(&look.written);
        tracing::debug!(%id, read = taken.pages(), changed = changed.pages(), "a checkpoint is read");
        // However much has changed, the rank does not stand still for all of it.
        let mut rounds = Rounds::begin(u64::MAX);
        let next = rounds.copied(changed.pages());
        let mut sent = taken;
        if next == Next::Round {
            sent.unite(&changed);
        }
        if let Some((_, leaving)) = self.leaving(id) {
            leaving.rounding = Some(Rounding::new(rounds, sent));
        }
        match next {
            Next::Freeze => self.freeze(id, rank, Some(&look)),
            Next::Round => {
                self.say_pages(id, rank, Word::Round, &changed);
                Ok(())
            }
        }
    }
}

fn refusal(rank: Rank, error: FollowError) -> String {
    match error {
        FollowError::NoCheckpoint { rank } => {
            let me = in_engine(|engine| engine.core.me);
            format!(
                "no checkpoint of {rank} has been taken since it came to {me}: take one first with `ckpt checkpoint`, or move it in \
                 another mode"
            )
        }
        error => format!(
            "what {rank} has written since its last checkpoint can't be told: {error}; move it in another mode"
        ),
    }
}

impl Moving {
    /// The job's checkpoints, for a thread that reads one.
    pub(super) fn checkpoints(&self, stop: Arc<AtomicBool>) -> Store {
        Store {
            path: self.store.clone(),
            job: self.job,
            threads: self.threads * THREADS_PER_PROCESSOR,
            stop,
        }
    }
}

/// The job's checkpoints.
pub(super) struct Store {
    path: String,
    job: JobId,
    /// Threads that read one beside each other.
    threads: usize,
    /// Set where the rank does not come after all.
    pub(super) stop: Arc<AtomicBool>,
}

impl Store {
    /// Reads an image into an empty slot, out of the files that the source names. Gives the pages that are there then.
    ///
    /// # Errors
    /// A file is missing or not what it was, or there is a page in it that no rank has.
    pub(super) fn read(
        &self,
        rank: Rank,
        files: &[u8],
        slot: RestoringSlot,
    ) -> Result<(RestoringSlot, PageSet), String> {
        let files = Files::decode(files, rank)?;
        let epoch = files.epoch;
        self.try_read(files, slot).map_err(|reason| {
            format!(
                "its image in {epoch} can't be read: {reason}; look at the store with `ckpt verify`, and move it in another mode"
            )
        })
    }

    fn try_read(
        &self,
        files: Files,
        slot: RestoringSlot,
    ) -> Result<(RestoringSlot, PageSet), String> {
        let key = FileKey {
            job: self.job,
            incarnation: files.incarnation,
            epoch: files.epoch,
            rank: slot.rank(),
        };
        let told = |error: store::Error| error.to_string();
        let storage = DiskStorage::open(Path::new(&self.path)).map_err(told)?;
        let image = RankImage::open(&storage, &files.file, key, &files.needs).map_err(told)?;
        let filling = Filling::new(image, slot, false).until(self.stop.clone());
        let filled = fill(filling, self.threads, "ckpt-move")?;
        Ok((filled.slot, pages_of(&filled.file.map())))
    }
}

#[cfg(test)]
impl Store {
    /// Where there is none.
    pub(super) fn none() -> Self {
        Self {
            path: "/nowhere".to_owned(),
            job: JobId::default(),
            threads: 1,
            stop: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(ranges: &[std::ops::Range<u64>]) -> PageSet {
        ranges.iter().cloned().collect()
    }

    #[test]
    fn of_a_checkpoint_only_pages_are_taken_that_are_in_it_and_known_to_be_as_they_were() {
        let reading = Reading {
            existing: pages(&[2..10, 20..24]),
            written: pages(&[4..5, 22..23]),
            stored: pages(&[0..8, 21..30]),
            is_compared: true,
            is_read: true,
        };
        assert_eq!(reading.taken(), pages(&[2..4, 5..8, 21..22, 23..24]));
    }

    #[test]
    fn files_of_another_rank_or_none_at_all_are_refused() {
        let files = Files {
            epoch: Epoch(7),
            incarnation: Incarnation(2),
            file: StoredFile {
                rank: Rank(3),
                name: "epochs/7/3".to_owned(),
                ..StoredFile::default()
            },
            needs: vec![NeededFile::default()],
        };
        let bytes = files.encode().unwrap();
        assert_eq!(Files::decode(&bytes, Rank(3)), Ok(files));
        let other = Files::decode(&bytes, Rank(4)).unwrap_err();
        assert!(other.contains("rank 3"), "{other}");
        assert!(Files::decode(&bytes[..5], Rank(3)).is_err());
        assert!(Files::decode(&[], Rank(3)).is_err());
    }
}
