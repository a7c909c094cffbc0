//! Snapshots of this process: the cut, with all ranks standing still, and what becomes of it.
//!
//! The cut finds out what the ranks have written since the checkpoint before, copies or protects it, and
//! encodes their message tables. The pages go through the [`super::pipeline`] while the ranks go on; when every
//! marker has come, the channel state follows.

use std::io::Write;
use std::os::fd::RawFd;
use std::time::Instant;

use crossbeam_channel::Receiver;
use libckpt_rank::Slot;
use libckpt_rank::capture::{Capturer, FollowError, Look, Options, Since};
use libckpt_rank::inspect::{Baseline, PointerScan};
use protocol::control::{Assignment, LinkCount, Report};
use protocol::ids::{Epoch, Rank};
use store::PAGE_BYTES;

use super::control::Control;
use super::pipeline::{Base, CapturedRank, Outside, Pipeline, RankPlan, Stored, pool_bytes};
use super::processors::Processors;
use crate::engine::{Fatal, in_engine};
use crate::error::StartError;
use crate::fs;

/// The snapshots of this process.
pub(crate) struct Snapshots {
    control: Control,
    capturer: Capturer,
    assignment: Assignment,
    pipeline: Pipeline,
    /// How the process was before its ranks ran; compared at the first cut.
    baseline: Option<Baseline>,
    /// Look for pointers out of the images at the first cut.
    scan: bool,
    /// The snapshot whose channel state is not complete.
    recording: Option<Epoch>,
}

impl Snapshots {
    /// Finds out what the kernel allows, and starts the threads. To be called before there are slots: a thread
    /// that starts beside the only rank of a process would allocate in its memory.
    ///
    /// # Errors
    /// When the store can't be opened or a thread can't be started.
    pub(crate) fn start(assignment: &Assignment, control: Control) -> Result<Self, StartError> {
        let capturer = Capturer::new(&Options {
            tracking: assignment.tracking,
            mode: Processors::of(assignment).capture(assignment.capture),
            memory_bytes: pool_bytes(assignment, 0),
        });
        Ok(Self {
            pipeline: Pipeline::start(assignment, control.clone())?,
            control,
            capturer,
            assignment: assignment.clone(),
            baseline: None,
            scan: assignment.scan,
            recording: None,
        })
    }

    /// How changes are found and pages saved, for the log.
    pub(crate) fn description(&self) -> &str {
        self.capturer.description()
    }

    /// Notes how the process is now, just before its ranks run for the first time.
    pub(crate) fn record_baseline(&mut self) {
        let baseline = Baseline::record();
        let links_open_sockets = in_engine(|engine| engine.transport.opens_sockets());
        self.baseline = Some(if links_open_sockets {
            baseline.without_sockets()
        } else {
            baseline
        });
    }

    /// The memory of a rank is what this checkpoint holds: from here on, writes to it count.
    pub(crate) fn track_restored(&mut self, epoch: Epoch, slot: &Slot) {
        self.capturer.restored(epoch, slot);
    }

    /// Whether digests are all that tells what has changed since a restore.
    pub(crate) fn wants_digests(&self) -> bool {
        self.capturer.compares() && !self.capturer.tracks()
    }

    /// The next snapshot builds on this checkpoint.
    pub(crate) fn build_on(&self, epoch: Epoch, bases: Vec<Base>) {
        self.pipeline.restored(epoch, bases);
    }

    /// Has the memory made and touched that a cut would need now, so that the ranks need not wait for it
    /// then. Called every now and then, with all ranks suspended.
    pub(crate) fn make_room(&mut self, slots: &[Slot]) {
        if self.pipeline.busy().is_none() {
            // An image can't be longer than what is in memory, however much the rank has allocated.
            let resident_bytes = self.fit_budget(slots);
            let bytes = self.capturer.saved_bytes_max(slots).min(resident_bytes);
            self.pipeline.make_room(self.capturer.pool(), bytes);
        }
    }

    /// What is kept about pages takes memory, too: the larger the ranks, the less is left for copies.
    /// Gives the bytes of this process that are in memory.
    fn fit_budget(&self, slots: &[Slot]) -> usize {
        let resident_bytes = resident_bytes();
        let image_bytes = self.capturer.live_bytes(slots).min(resident_bytes);
        let budget = pool_bytes(&self.assignment, image_bytes);
        self.capturer.pool().set_budget(budget);
        resident_bytes
    }

    /// Bytes of a rank's memory that are in use. It is suspended.
    pub(crate) fn image_bytes(&self, slot: &Slot) -> usize {
        self.capturer.live_bytes(std::slice::from_ref(slot))
    }

    /// Captures all ranks. They are suspended. `outputs` are descriptors that the library has for them.
    ///
    /// # Errors
    /// Only what must end the process; a capture that is refused is reported and aborts the snapshot.
    pub(crate) fn cut(
        &mut self,
        epoch: Epoch,
        slots: &[Slot],
        outputs: Vec<RawFd>,
    ) -> Result<(), Fatal> {
        let begin = Instant::now();
        // What a rank has printed belongs before the cut, and must not be lost with this process.
        let _ = std::io::stdout().flush();
        let captured = self.capture(epoch, slots, outputs)?;
        in_engine(|engine| engine.begin_recording(epoch))?;
        let stall_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        match captured {
            Ok(()) => {
                self.recording = Some(epoch);
                self.control.report(Report::Cut { epoch, stall_us });
            }
            Err(reason) => self
                .control
                .report(Report::SnapshotFailed { epoch, reason }),
        }
        Ok(())
    }

    fn capture(
        &mut self,
        epoch: Epoch,
        slots: &[Slot],
        outputs: Vec<RawFd>,
    ) -> Result<Result<(), String>, Fatal> {
        if let Some(busy) = self.pipeline.busy() {
            let what = if self.pipeline.is_discarded(busy) {
                "was given up, and its files are still being closed"
            } else {
                "is still being written"
            };
            return Ok(Err(format!(
                "{busy} {what}; the store's disk or the processors are too slow for this interval, choose a longer \
                 --every"
            )));
        }
        self.fit_budget(slots);
        self.catch_up();
        // A rank whose files could not be opened elsewhere could not be gone on with.
        let mut files = Vec::with_capacity(slots.len());
        for slot in slots {
            let recorded = fs::record(slot.rank()).map_err(|error| error.to_string());
            match recorded.and_then(|recorded| recorded.encode()) {
                Ok(section) => files.push(section),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        let scan = self.scan && self.baseline.is_some();
        let plans = slots
            .iter()
            .map(|slot| {
                let rank = slot.rank();
                RankPlan {
                    rank,
                    parent: self.capturer.parent(rank),
                    scan: scan.then(|| PointerScan::new(slot)),
                }
            })
            .collect();
        // Before the files of the snapshot are opened, which are none of the program's.
        let baseline = self.baseline.take();
        let own = [fs::descriptors(), outputs].concat();
        let outside = Outside {
            changes: baseline.map(|baseline| baseline.changes(&own)),
            unsynced: fs::unsynced(),
        };
        let sink = self.pipeline.begin(epoch, plans, self.capturer.compares());
        let cuts = match self.capturer.cut(epoch, slots, &sink) {
            Ok(cuts) => cuts,
            Err(error) => {
                self.pipeline.discard(epoch);
                return Ok(Err(error.to_string()));
            }
        };
        let mut ranks = Vec::with_capacity(cuts.len());
        for (index, (cut, files)) in cuts.into_iter().zip(files).enumerate() {
            let tables = in_engine(|engine| engine.capture_tables(index))?;
            ranks.push(CapturedRank { cut, tables, files });
        }
        self.pipeline.cut(epoch, ranks, outside);
        Ok(Ok(()))
    }

    /// Every marker has come.
    pub(crate) fn channels_complete(&mut self, epoch: Epoch, links: Vec<LinkCount>) {
        if self.recording != Some(epoch) {
            // The capture was refused; the abort is on its way.
            in_engine(|engine| engine.discard_recording(epoch));
            return;
        }
        self.recording = None;
        match in_engine(|engine| engine.take_channels(epoch)) {
            Ok(channels) => self.pipeline.channels(epoch, channels, links),
            Err(fatal) => self.control.report(Report::SnapshotFailed {
                epoch,
                reason: fatal.to_string(),
            }),
        }
    }

    /// The snapshot is a checkpoint. The ranks are suspended.
    pub(crate) fn committed(&mut self, epoch: Epoch, slots: &[Slot]) {
        self.capturer.committed(epoch);
        for (rank, observations) in self.pipeline.committed(epoch) {
            self.capturer.observe(rank, &observations);
        }
        self.pipeline.catch_up(epoch, self.capturer.catch_up(slots));
    }

    /// The snapshot will not be.
    pub(crate) fn discard(&mut self, epoch: Epoch) {
        self.recording = self.recording.filter(|recording| *recording != epoch);
        in_engine(|engine| engine.discard_recording(epoch));
        self.capturer.aborted(epoch);
        self.pipeline.discard(epoch);
    }

    /// Looks what a rank has written since the look before, for a move ([`Capturer::look`]). The ranks are suspended.
    pub(crate) fn look(&mut self, slot: &Slot) -> Result<Look, FollowError> {
        self.capturer.look(slot)
    }

    /// The checkpoint that a rank's next one builds on, where what was written since can be told.
    ///
    /// # Errors
    /// There is none, or it can't.
    pub(crate) fn checkpoint_of(&self, rank: Rank) -> Result<Epoch, FollowError> {
        if !self.capturer.tracks() {
            return Err(FollowError::Untracked);
        }
        let parent = self.capturer.parent(rank);
        parent.ok_or(FollowError::NoCheckpoint { rank })
    }

    /// Looks what a rank has written since its last checkpoint, and begins to follow it for a move. The rank's image in that
    /// checkpoint comes by the channel.
    pub(crate) fn look_since_checkpoint(
        &mut self,
        slot: &Slot,
    ) -> Result<(Since, Receiver<Stored>), FollowError> {
        self.catch_up();
        let since = self.capturer.look_since_checkpoint(slot)?;
        let stored = self.pipeline.stored(since.checkpoint, slot.rank());
        Ok((since, stored))
    }

    /// Takes over what comparing has found.
    fn catch_up(&mut self) {
        for (region, differing) in self.pipeline.caught_up() {
            self.capturer.caught_up(&region, differing);
        }
    }

    /// A rank stays, and moves look at it no more.
    pub(crate) fn unfollow(&mut self, slot: &Slot) {
        self.capturer.unfollow(slot);
    }

    /// A rank has gone to another process. Should it come back, its next image is a whole one.
    pub(crate) fn forget(&mut self, rank: Rank) {
        self.capturer.forget(rank);
    }

    /// What checkpoints build on is not there any more: the next one holds whole images.
    pub(crate) fn rebase(&mut self) {
        self.capturer.rebase();
        self.pipeline.rebase();
    }
}

/// Bytes of this process that are in memory (`statm` in proc(5)); no bound where that can't be read.
fn resident_bytes() -> usize {
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<usize>().ok())
        .map_or(usize::MAX, |pages| pages.saturating_mul(PAGE_BYTES))
}
