//! From a rank's image in the store to its slot: its chunks are checked and decompressed straight into their places, by several
//! threads of the library.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libckpt_rank::restore::RestoringSlot;
use store::{RankImage, Scratch};

use super::pipeline::Digest;
use super::threads::{Work, do_together};

/// One waits for the disk while the other decompresses.
pub(super) const THREADS_PER_PROCESSOR: usize = 2;

/// Chunks that a thread takes at once; it reads them together where they follow each other.
const CHUNKS_AT_ONCE: usize = 8;

/// A rank's image and the slot that it is put into.
pub(super) struct Filling {
    file: RankImage,
    slot: RestoringSlot,
    digests: Option<Mutex<Vec<(u64, Digest)>>>,
    /// Set where the image is not wanted after all.
    stop: Arc<AtomicBool>,
}

/// A slot that holds an image.
pub(super) struct Filled {
    pub(super) file: RankImage,
    pub(super) slot: RestoringSlot,
    /// Those of its pages, where they were asked for.
    pub(super) digests: Vec<(u64, Digest)>,
}

/// Puts an image into its slot, by so many threads with this name.
///
/// # Errors
/// A chunk can't be read or is damaged, a page is none of the rank's memory, or it was stopped.
pub(super) fn fill(filling: Filling, threads: usize, name: &str) -> Result<Filled, String> {
    let filling = do_together(filling, threads, name)?;
    Ok(Filled {
        file: filling.file,
        slot: filling.slot,
        digests: filling.digests.map_or_else(Vec::new, |digests| {
            digests.into_inner().unwrap_or_else(PoisonError::into_inner)
        }),
    })
}

impl Filling {
    /// An image, and an empty slot. With `digests`, those of all pages are taken on the way.
    pub(super) fn new(file: RankImage, slot: RestoringSlot, digests: bool) -> Self {
        Self {
            file,
            slot,
            digests: digests.then(Mutex::default),
            stop: Arc::default(),
        }
    }

    /// The threads end, without the image, when this is set.
    pub(super) fn until(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = stop;
        self
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

impl Work for Filling {
    type Scratch = Scratch;

    fn pieces(&self) -> usize {
        self.file.part_count().div_ceil(CHUNKS_AT_ONCE)
    }

    fn is_given_up(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Puts some chunks that follow each other into place.
    fn do_piece(&self, piece: usize, scratch: &mut Scratch) -> Result<(), String> {
        let mut next = piece * CHUNKS_AT_ONCE;
        let end = (next + CHUNKS_AT_ONCE).min(self.file.part_count());
        while next < end {
            let together = self.file.read_together(next..end, scratch).max(1);
            for chunk in next..next + together {
                self.place(chunk, scratch)?;
            }
            next += together;
        }
        Ok(())
    }
}
