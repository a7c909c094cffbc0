//! The packers: what of the saved pages has changed, compressed and verified.

use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender};
use libckpt_rank::capture::{Block, CatchUp, LivePages, Pool, REGION_PAGES, Saved};
use libckpt_rank::threads::{Urgency, set_urgency};
use protocol::dirty::PageSet;
use protocol::page::is_zero;
use store::rank_file::PageSource;
use store::{ImageMap, PAGE_BYTES, Packer};

use super::digests::{Digest, Digests};
use super::effort::Efforts;
use super::{Packed, RankPlan, RankRound, Round, Shared, lock};

/// Pages of a chunk.
const CHUNK_PAGES: usize = store::format::layout::CHUNK_RAW_BYTES / PAGE_BYTES;

/// What a packer is to do.
pub(super) enum Task {
    /// What a cut handed on.
    Saved(Arc<Round>, Saved),
    /// Find out which pages of a region differ from a checkpoint.
    CatchUp {
        region: CatchUp,
        base: Arc<ImageMap>,
        digests: Arc<Digests>,
    },
    /// Have blocks for so many bytes.
    MakeRoom(Pool, usize),
}

/// Packs until the process ends.
pub(super) fn run(
    tasks: &Receiver<Task>,
    packed: &Sender<Packed>,
    shared: &Shared,
    efforts: &Efforts,
) {
    set_urgency(Urgency::Spare);
    let mut packer = Packer::new();
    let mut digests = Vec::new();
    while let Ok(task) = tasks.recv() {
        let (round, saved) = match task {
            Task::MakeRoom(pool, bytes) => {
                pool.make_room(bytes);
                continue;
            }
            Task::CatchUp {
                region,
                base,
                digests,
            } => {
                // Once the next cut has begun it is too late. Where a region can't be read it is not tracked, this
                // once.
                if shared.busy.load(Ordering::SeqCst) == 0
                    && let Ok(differing) = differing(region.pages(), &base, &digests)
                {
                    lock(&shared.caught_up).push((region, differing));
                }
                continue;
            }
            Task::Saved(round, saved) => (round, saved),
        };
        match saved {
            Saved::Block { rank, block } => {
                let job = Job {
                    round: &round,
                    shared,
                    efforts,
                    packed,
                };
                let done = catch_unwind(AssertUnwindSafe(|| {
                    job.pack(rank, block, &mut packer, &mut digests)
                }));
                let failed = match done {
                    Ok(Ok(())) => None,
                    Ok(Err(reason)) => Some(reason),
                    Err(_) => Some("a thread that packs pages panicked".to_owned()),
                };
                if let Some(reason) = failed {
                    let _ = packed.send(Packed::Failed(round.clone(), reason));
                }
            }
            Saved::Failed(reason) => {
                let _ = packed.send(Packed::Failed(round, reason));
                continue;
            }
            Saved::All(felt) => {
                let _ = round.felt.set(felt);
            }
        }
        if round.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = packed.send(Packed::All(round));
        }
    }
}

/// Packing one block.
struct Job<'a> {
    round: &'a Round,
    shared: &'a Shared,
    efforts: &'a Efforts,
    packed: &'a Sender<Packed>,
}

impl Job<'_> {
    /// Packs what of a block has changed. Nothing where the snapshot was given up.
    fn pack(
        &self,
        rank: usize,
        mut block: Block,
        packer: &mut Packer,
        digests: &mut Vec<Digest>,
    ) -> Result<(), String> {
        if self.shared.is_discarded(self.round.epoch) {
            return Ok(());
        }
        let Some(files) = self.round.files() else {
            return Ok(());
        };
        let (plan, file) = (&self.round.ranks[rank], &files[rank]);
        if let Some(scan) = &plan.scan {
            scan.scan(block.pages(), block.bytes());
        }
        if self.round.compare {
            leave_out_unchanged(plan, file, &mut block, digests);
        }
        let chunks = block
            .pages()
            .chunks(CHUNK_PAGES)
            .zip(block.bytes().chunks(CHUNK_PAGES * PAGE_BYTES));
        for (pages, bytes) in chunks {
            if self.shared.is_discarded(self.round.epoch) {
                return Ok(());
            }
            let timing = self.efforts.begin();
            let chunk = file
                .packing
                .pack(packer, timing.effort(), pages, bytes)
                .map_err(|error| error.to_string())?;
            timing.packed(chunk.raw_bytes(), chunk.stored_bytes());
            let epoch = self.round.epoch;
            let _ = self.packed.send(Packed::Chunk { epoch, rank, chunk });
        }
        Ok(())
    }
}

/// Takes the pages out of a block that are as in the parent, and notes what was found.
fn leave_out_unchanged(
    plan: &RankPlan,
    file: &RankRound,
    block: &mut Block,
    digests: &mut Vec<Digest>,
) {
    digests.clear();
    digests.extend(block.bytes().chunks_exact(PAGE_BYTES).map(Digest::of));
    let mut unchanged = vec![false; digests.len()];
    if let (Some(base), Some(_)) = (&file.base, plan.parent) {
        file.digests
            .compare(block.pages(), digests, |index, is_same| {
                // A page that was zeros or was not there in between is in no file, whatever it was before.
                unchanged[index] = is_same && is_stored(base, block.pages()[index]);
            });
    }
    {
        let mut found = lock(&file.packed);
        for (index, (&page, &is_same)) in block.pages().iter().zip(&unchanged).enumerate() {
            let region = found.observations.entry(page / REGION_PAGES).or_default();
            region.saved += 1;
            region.changed += u64::from(!is_same);
            if is_same {
                found.unchanged.push(page);
            } else {
                found.changed.push((page, digests[index]));
            }
        }
    }
    block.retain(|index, _| !unchanged[index]);
}

/// Those pages that are not as in the base.
pub(super) fn differing(
    live: &LivePages,
    base: &ImageMap,
    digests: &Digests,
) -> io::Result<PageSet> {
    let mut pages = Vec::new();
    live.read(|page, bytes| {
        let mut is_same = false;
        if is_stored(base, page) {
            digests.compare(&[page], &[Digest::of(bytes)], |_, same| is_same = same);
        } else if is_zero(bytes) {
            is_same = true;
        }
        if !is_same {
            pages.push(page);
        }
    })?;
    Ok(ranges(pages).into_iter().collect())
}

fn is_stored(base: &ImageMap, page: u64) -> bool {
    matches!(base.locate(page), Some(PageSource::Stored { .. }))
}

/// Pages as ranges.
pub(super) fn ranges(mut pages: Vec<u64>) -> Vec<Range<u64>> {
    pages.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => ranges.push(page..page + 1),
        }
    }
    ranges
}
