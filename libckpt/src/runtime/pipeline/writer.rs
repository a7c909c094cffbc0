//! The writer: owns the files of the snapshot under way, and finishes them when everything is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use libckpt_rank::capture::{CatchUp, RankCut};
use libckpt_rank::inspect::{Changes, Finding};
use protocol::control::{Assignment, LinkCount, NeededFile, Report, StoredFile};
use protocol::dirty::PageSet;
use protocol::ids::{Epoch, Incarnation, JobId, Rank};
use store::compaction::Limits;
use store::{Effort, FileKey, ImageMap, Packer, RankFileWriter, SectionKind, SharedStorage};

use super::digests::{Digest, Digests};
use super::effort::Efforts;
use super::packer::{Task, ranges};
use super::{CapturedRank, Job, Outside, Packed, RankRound, Round, Shared, Stored, lock};
use crate::fs::Unsynced;
use crate::runtime::control::Control;

/// The writer's thread.
pub(super) struct Writer {
    storage: SharedStorage,
    job: JobId,
    incarnation: Incarnation,
    strict: bool,
    tasks: Sender<Task>,
    control: Control,
    shared: Arc<Shared>,
    efforts: Arc<Efforts>,
    /// What is known about each rank's newest checkpoint.
    ranks: BTreeMap<Rank, Lineage>,
    /// What was written and is not decided yet, or decided and nothing was built on it yet.
    written: BTreeMap<Epoch, Written>,
    open: Option<Open>,
    /// For pages that are carried over.
    packer: Packer,
    pages: Vec<u64>,
    bytes: Vec<u8>,
}

/// The checkpoint that a rank's next one builds on.
#[derive(Default)]
struct Lineage {
    base: Option<(Epoch, Arc<ImageMap>)>,
    digests: Arc<Digests>,
}

/// The files of an epoch, complete.
struct Written {
    committed: bool,
    ranks: Vec<WrittenRank>,
}

struct WrittenRank {
    rank: Rank,
    map: Arc<ImageMap>,
    changed: Vec<(u64, Digest)>,
}

/// The files of an epoch, incomplete.
struct Open {
    round: Arc<Round>,
    files: Vec<RankFileWriter>,
    cut: Option<Vec<RankCut>>,
    packed: bool,
    channels: Option<(Vec<Vec<u8>>, Vec<LinkCount>)>,
    /// Files of the ranks with something written that may not be on disk.
    unsynced: Vec<Unsynced>,
    /// Time spent in writing.
    wrote: Duration,
}

impl Writer {
    pub(super) fn new(
        assignment: &Assignment,
        tasks: Sender<Task>,
        storage: SharedStorage,
        control: Control,
        shared: Arc<Shared>,
        efforts: Arc<Efforts>,
    ) -> Self {
        Self {
            storage,
            job: assignment.job,
            incarnation: assignment.incarnation,
            strict: assignment.strict,
            tasks,
            control,
            shared,
            efforts,
            ranks: BTreeMap::new(),
            written: BTreeMap::new(),
            open: None,
            packer: Packer::new(),
            pages: Vec::new(),
            bytes: Vec::new(),
        }
    }

    pub(super) fn run(mut self, jobs: &Receiver<Job>, packed: &Receiver<Packed>) {
        loop {
            select! {
                recv(jobs) -> job => match job {
                    Ok(job) => self.handle_job(job),
                    Err(_) => return,
                },
                recv(packed) -> packed => match packed {
                    Ok(packed) => self.handle_packed(packed),
                    Err(_) => return,
                },
            }
        }
    }

    fn handle_job(&mut self, job: Job) {
        match job {
            Job::Begin(round) => self.begin(round),
            Job::Cut {
                epoch,
                ranks,
                outside,
            } => self.handle_cut(epoch, ranks, outside),
            Job::Channels {
                epoch,
                channels,
                links,
            } => {
                if let Some(open) = self.open(epoch) {
                    open.channels = Some((channels, links));
                    self.finish_if_complete();
                }
            }
            Job::Discard(epoch) => {
                self.written.remove(&epoch);
                if self.open(epoch).is_some() {
                    self.close();
                }
            }
            Job::Committed(epoch) => {
                if let Some(written) = self.written.get_mut(&epoch) {
                    written.committed = true;
                }
            }
            Job::CatchUp(epoch, regions) => self.catch_up(epoch, regions),
            Job::Stored(epoch, rank, asked) => {
                // Else whoever waits sees that nothing comes.
                if let Some(stored) = self.stored(epoch, rank) {
                    let _ = asked.send(stored);
                }
            }
            // What is written already may still be committed.
            Job::Rebase => self.ranks.clear(),
            Job::Restored(epoch, bases) => {
                for base in bases {
                    let lineage = self.ranks.entry(base.map.rank()).or_default();
                    lineage.digests.update(&base.digests);
                    lineage.base = Some((epoch, base.map));
                }
            }
        }
    }

    fn handle_packed(&mut self, packed: Packed) {
        match packed {
            Packed::Chunk { epoch, rank, chunk } => {
                // One of a round that was given up may still come.
                let Some(open) = self.open(epoch) else {
                    return;
                };
                let begin = Instant::now();
                let appended = open.files[rank].append(chunk);
                open.wrote += begin.elapsed();
                if let Err(error) = appended {
                    self.fail(&error.to_string());
                }
            }
            Packed::Failed(round, reason) => {
                if self.open(round.epoch).is_some() {
                    self.fail(&reason);
                }
            }
            Packed::All(round) => {
                if let Some(open) = self.open(round.epoch) {
                    open.packed = true;
                    self.finish_if_complete();
                }
            }
        }
    }

    /// The snapshot under way, if it is that one.
    fn open(&mut self, epoch: Epoch) -> Option<&mut Open> {
        self.open.as_mut().filter(|open| open.round.epoch == epoch)
    }

    fn begin(&mut self, round: Arc<Round>) {
        self.close();
        self.shared.busy.store(round.epoch.0, Ordering::SeqCst);
        match self.make_files(&round) {
            Ok((files, rounds)) => {
                let _ = round.files.set(Some(rounds));
                self.open = Some(Open {
                    round,
                    files,
                    cut: None,
                    packed: false,
                    channels: None,
                    unsynced: Vec::new(),
                    wrote: Duration::ZERO,
                });
            }
            Err(reason) => {
                let _ = round.files.set(None);
                self.report_failure(round.epoch, &reason);
                self.shared.busy.store(0, Ordering::SeqCst);
            }
        }
    }

    fn make_files(
        &mut self,
        round: &Round,
    ) -> Result<(Vec<RankFileWriter>, Vec<RankRound>), String> {
        let mut files = Vec::with_capacity(round.ranks.len());
        let mut rounds = Vec::with_capacity(round.ranks.len());
        if let Some(parent) = round.ranks.iter().filter_map(|plan| plan.parent).max() {
            self.build_on(parent);
        }
        for plan in &round.ranks {
            let key = FileKey {
                job: self.job,
                incarnation: self.incarnation,
                epoch: round.epoch,
                rank: plan.rank,
            };
            let lineage = self.ranks.entry(plan.rank).or_default();
            let base = match (plan.parent, &lineage.base) {
                (None, _) => None,
                (Some(parent), Some((epoch, map))) if *epoch == parent => Some(map.clone()),
                (Some(parent), _) => {
                    return Err(format!(
                        "{} is to build on {parent}, whose map is not known (an error of the library)",
                        plan.rank
                    ));
                }
            };
            let file = RankFileWriter::create(self.storage.clone(), key, base.clone())
                .map_err(|error| error.to_string())?;
            rounds.push(RankRound {
                packing: file.packing(),
                base,
                digests: lineage.digests.clone(),
                packed: Default::default(),
            });
            files.push(file);
        }
        Ok((files, rounds))
    }

    /// Hands out regions that are to be compared with a checkpoint, unless a round has begun meanwhile: then it is too
    /// late.
    fn catch_up(&mut self, epoch: Epoch, regions: Vec<CatchUp>) {
        if self.open.is_some() {
            return;
        }
        self.build_on(epoch);
        for region in regions {
            let lineage = self.ranks.entry(region.pages().rank()).or_default();
            if let Some((base_epoch, base)) = &lineage.base
                && *base_epoch == epoch
            {
                let (base, digests) = (base.clone(), lineage.digests.clone());
                let _ = self.tasks.send(Task::CatchUp {
                    region,
                    base,
                    digests,
                });
            }
        }
    }

    /// A rank's image in the checkpoint that is built on next.
    fn stored(&mut self, epoch: Epoch, rank: Rank) -> Option<Stored> {
        if self.open.is_some() {
            return None;
        }
        self.build_on(epoch);
        let lineage = self.ranks.get(&rank)?;
        let (_, map) = lineage.base.as_ref().filter(|base| base.0 == epoch)?;
        Some(Stored {
            map: map.clone(),
            digests: lineage.digests.clone(),
        })
    }

    /// Takes over what checkpoints up to this one showed. Only between two rounds: a round compares with one
    /// and the same checkpoint from its start to its end.
    fn build_on(&mut self, parent: Epoch) {
        let later = self.written.split_off(&Epoch(parent.0 + 1));
        for (epoch, written) in std::mem::replace(&mut self.written, later) {
            // One that is not committed was given up, and nobody had the time to say so.
            if !written.committed {
                continue;
            }
            for written in written.ranks {
                let lineage = self.ranks.entry(written.rank).or_default();
                lineage.digests.update(&written.changed);
                lineage.base = Some((epoch, written.map));
            }
        }
    }

    fn handle_cut(&mut self, epoch: Epoch, ranks: Vec<CapturedRank>, outside: Outside) {
        let findings: Vec<_> = outside.changes.iter().flat_map(Changes::findings).collect();
        let refusal = self.tell_findings(findings);
        let Some(open) = self.open(epoch) else {
            return;
        };
        if let Some(refusal) = refusal {
            self.fail(&refusal);
            return;
        }
        let mut cuts = Vec::with_capacity(ranks.len());
        let mut written = Ok(());
        for (file, rank) in open.files.iter_mut().zip(ranks) {
            for (kind, bytes) in [
                (SectionKind::Tables, &rank.tables),
                (SectionKind::Metadata, &rank.files),
            ] {
                written = written.and(file.section(kind, SECTION_EFFORT, bytes));
            }
            cuts.push(rank.cut);
        }
        open.cut = Some(cuts);
        open.unsynced = outside.unsynced;
        match written {
            Ok(()) => self.finish_if_complete(),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Tells the user what was found, or gives the words for refusing the snapshot because of it.
    fn tell_findings(&self, findings: Vec<Finding>) -> Option<String> {
        let texts: Vec<_> = findings.into_iter().map(|Finding(text)| text).collect();
        if texts.is_empty() {
            return None;
        }
        if self.strict {
            return Some(format!(
                "{} (refused because of --strict)",
                texts.join("; ")
            ));
        }
        for text in texts {
            self.control.report(Report::Warning { text });
        }
        None
    }

    fn finish_if_complete(&mut self) {
        let complete = self
            .open
            .as_ref()
            .is_some_and(|open| open.packed && open.cut.is_some() && open.channels.is_some());
        if !complete {
            return;
        }
        let Some(open) = self.open.take() else {
            return;
        };
        let round = open.round.clone();
        let scans = round.ranks.iter().filter_map(|plan| plan.scan.as_ref());
        let findings = scans.filter_map(|scan| scan.finding()).collect();
        let finished = match self.tell_findings(findings) {
            Some(refusal) => Err(Failure::Snapshot(refusal)),
            None => self.finish(open),
        };
        if let Err(failure) = finished {
            self.report(round.epoch, failure);
        }
        self.shared.busy.store(0, Ordering::SeqCst);
    }

    /// Finishes the files, and reports. Nothing where the snapshot was given up meanwhile.
    fn finish(&mut self, open: Open) -> Result<(), Failure> {
        let epoch = open.round.epoch;
        let said = Failure::snapshot;
        let (Some(cuts), Some((channels, links)), Some(rounds)) =
            (open.cut, open.channels, open.round.files())
        else {
            let reason = "a snapshot was finished before it was complete".to_owned();
            return Err(Failure::Snapshot(reason));
        };
        let mut stored: Vec<StoredFile> = Vec::with_capacity(cuts.len());
        let mut needs: Vec<NeededFile> = Vec::new();
        let mut written = Vec::with_capacity(cuts.len());
        let mut observed = Vec::with_capacity(cuts.len());
        let mut wrote = open.wrote;
        // Here, as all pages are packed: no rank waits for memory that this thread would have to free.
        for file in open.unsynced {
            if self.shared.is_discarded(epoch) {
                return Ok(());
            }
            file.sync()
                .map_err(|error| Failure::Snapshot(error.to_string()))?;
        }
        for (((mut file, cut), round), channel) in
            open.files.into_iter().zip(cuts).zip(rounds).zip(channels)
        {
            if self.shared.is_discarded(epoch) {
                return Ok(());
            }
            let packed = std::mem::take(&mut *lock(&round.packed));
            file.section(SectionKind::Channel, SECTION_EFFORT, &channel)
                .map_err(said)?;
            if let Some(base) = &round.base {
                let kept = inherited(&cut, packed.unchanged, base);
                file.inherit(kept.ranges()).map_err(said)?;
                self.carry_over(epoch, &mut file)?;
            }
            let begin = Instant::now();
            let finished = file.finish().map_err(said)?;
            wrote += begin.elapsed();
            needs.extend(finished.map.needs().iter().cloned());
            stored.push(finished.file);
            written.push(WrittenRank {
                rank: cut.rank,
                map: Arc::new(finished.map),
                changed: packed.changed,
            });
            observed.push((cut.rank, packed.observations));
        }
        self.efforts.written(
            stored.iter().map(|file| file.changed_bytes).sum(),
            stored.iter().map(|file| file.file_bytes).sum(),
            wrote,
        );
        self.shared.observed().insert(epoch, observed);
        self.written.insert(
            epoch,
            Written {
                committed: false,
                ranks: written,
            },
        );
        self.control.report(Report::Stored {
            epoch,
            files: stored,
            needs,
            felt: open.round.felt.get().copied().unwrap_or_default(),
            links,
        });
        Ok(())
    }

    /// Takes pages over from old files, so that the image does not get spread over too many.
    fn carry_over(&mut self, epoch: Epoch, file: &mut RankFileWriter) -> Result<(), Failure> {
        let said = Failure::snapshot;
        let mut carried = file.carry_over(&Limits::default()).map_err(said)?;
        let packing = file.packing();
        while !self.shared.is_discarded(epoch)
            && carried
                .next_piece(&mut self.pages, &mut self.bytes)
                .map_err(|error| Failure::Base(error.to_string()))?
        {
            let timing = self.efforts.begin();
            let chunk = packing
                .pack(&mut self.packer, timing.effort(), &self.pages, &self.bytes)
                .map_err(said)?;
            timing.packed(chunk.raw_bytes(), chunk.stored_bytes());
            file.append(chunk).map_err(said)?;
        }
        Ok(())
    }

    /// Gives the snapshot under way up, and says why.
    fn fail(&mut self, reason: &str) {
        if let Some(open) = &self.open {
            self.report_failure(open.round.epoch, reason);
        }
        self.close();
    }

    fn close(&mut self) {
        self.open = None;
        self.shared.busy.store(0, Ordering::SeqCst);
    }

    fn report_failure(&self, epoch: Epoch, reason: &str) {
        self.report(epoch, Failure::Snapshot(reason.to_owned()));
    }

    fn report(&self, epoch: Epoch, failure: Failure) {
        if !self.shared.is_discarded(epoch) {
            self.control.report(match failure {
                Failure::Snapshot(reason) => Report::SnapshotFailed { epoch, reason },
                Failure::Base(reason) => Report::BaseFailed { epoch, reason },
            });
        }
    }
}

/// Why there will be no files of an epoch.
enum Failure {
    /// Something is wrong with the snapshot itself; the next one may do better.
    Snapshot(String),
    /// What it builds on can't be read, so that others which do would fail as well.
    Base(String),
}

impl Failure {
    fn snapshot(error: store::Error) -> Self {
        Self::Snapshot(error.to_string())
    }
}

/// Tables and channel state are small, and seldom numbers.
const SECTION_EFFORT: Effort = Effort::Zstd(1);

/// The pages that are as in the base: those that the cut did not save, and those that were saved and found to be
/// the same. Such that the base does not have are zeros.
fn inherited(cut: &RankCut, unchanged: Vec<u64>, base: &ImageMap) -> PageSet {
    let mut kept = cut.existing.difference(&cut.saved);
    let missing = base.missing(kept.ranges());
    if !missing.is_empty() {
        kept = kept.difference(&missing.into_iter().collect());
    }
    kept.unite(&ranges(unchanged).into_iter().collect());
    kept
}
