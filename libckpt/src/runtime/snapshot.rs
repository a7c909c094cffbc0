//! Snapshots of this process: the cut, and storing what it captured while the ranks go on.
//!
//! The cut copies the ranks' images aside and encodes their message tables, with all ranks standing still.
//! A library thread compresses, verifies and writes the copies at once; when every marker has come, the
//! channel state is added, the files are made durable, and the coordinator is told.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use libckpt_rank::capture::Staging;
use libckpt_rank::inspect::{Baseline, Changes, Finding, foreign_pointers};
use libckpt_rank::{Slot, library_thread};
use protocol::control::{Assignment, Compression, LinkCount, Report, StoredFile};
use protocol::ids::{Epoch, Incarnation, JobId, Rank};
use store::{DiskStorage, Effort, FileKey, PAGE_BYTES, RankFileWriter, SectionKind, SharedStorage};

use super::control::Control;
use crate::engine::{Fatal, in_engine};
use crate::error::StartError;

/// Pages written between two looks at whether the snapshot was given up.
const PIECE_PAGES: usize = 256;

/// The snapshots of this process.
pub(crate) struct Snapshots {
    control: Control,
    jobs: Sender<Job>,
    returned: Receiver<Vec<Staging>>,
    /// One for each rank; not here while the writer uses it.
    staging: Option<Vec<Staging>>,
    /// Snapshots up to this epoch are not to be written any further.
    discarded: Arc<AtomicU64>,
    /// The writer has it to make room, not to write.
    reserving: bool,
    /// How the process was before its ranks ran; compared at the first cut.
    baseline: Option<Baseline>,
    /// Refuse a snapshot that would lose something, instead of warning.
    strict: bool,
    /// Look for pointers out of the images at the first cut.
    scan: bool,
    /// The snapshot that the writer has, until its channel state is complete.
    writing: Option<Epoch>,
}

/// One rank as captured at a cut.
struct CapturedRank {
    rank: Rank,
    tables: Vec<u8>,
}

/// What a cut took of all ranks: the pages of each lie in the staging memory with its index.
type Capture = (Vec<CapturedRank>, Vec<Staging>);

enum Job {
    /// Make room for images of so many bytes, by index of the rank.
    Reserve {
        staging: Vec<Staging>,
        image_bytes: Vec<usize>,
    },
    /// Find the words for what a restart would lose, and tell.
    Warn {
        changes: Changes,
        pointers: Vec<Finding>,
    },
    /// The pages of each rank lie in the staging memory with its index.
    Write {
        epoch: Epoch,
        ranks: Vec<CapturedRank>,
        staging: Vec<Staging>,
    },
    Finish {
        epoch: Epoch,
        channels: Vec<Vec<u8>>,
        links: Vec<LinkCount>,
    },
}

impl Snapshots {
    /// Starts the writer.
    ///
    /// # Errors
    /// When the store can't be opened or the thread can't be started.
    pub(crate) fn start(assignment: &Assignment, control: Control) -> Result<Self, StartError> {
        let path = Path::new(&assignment.store);
        let failed = |reason: String| StartError::Store {
            path: path.to_owned(),
            reason,
        };
        let storage = DiskStorage::open(path).map_err(|error| failed(error.to_string()))?;
        let (jobs, inbox) = channel();
        let (give_back, returned) = channel();
        let discarded = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            storage: Arc::new(storage),
            job: assignment.job,
            incarnation: assignment.incarnation,
            compression: assignment.compression,
            control: control.clone(),
            discarded: discarded.clone(),
            give_back,
            open: None,
        };
        library_thread("ckpt-writer", move || writer.run(&inbox))
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            control,
            jobs,
            returned,
            staging: Some(Vec::new()),
            reserving: false,
            discarded,
            baseline: None,
            strict: assignment.strict,
            scan: assignment.scan,
            writing: None,
        })
    }

    /// Notes how the process is now, just before its ranks run for the first time.
    pub(crate) fn record_baseline(&mut self) {
        self.baseline = Some(Baseline::record());
    }

    /// Has the writer make and touch the staging memory that a cut would need now, so that the ranks need
    /// not wait for it then. Called every now and then, with all ranks suspended.
    pub(crate) fn make_room(&mut self, slots: &[Slot]) {
        if !self.take_back() {
            return;
        }
        self.reserving = false;
        let staging = self.staging.as_deref().unwrap_or_default();
        // An image can't be longer than what is in memory, however much the rank has allocated.
        let resident_bytes = resident_bytes();
        let image_bytes: Vec<_> = slots
            .iter()
            .map(|slot| slot.image_bytes_max().min(resident_bytes))
            .collect();
        let capacity_bytes = |index| staging.get(index).map_or(0, Staging::capacity_bytes);
        let lacking = (0..)
            .zip(&image_bytes)
            .any(|(index, bytes)| capacity_bytes(index) < *bytes);
        if lacking && let Some(mut staging) = self.staging.take() {
            staging.resize_with(slots.len(), Staging::new);
            self.reserving = true;
            let _ = self.jobs.send(Job::Reserve {
                staging,
                image_bytes,
            });
        }
    }

    /// Takes the staging memory back if the writer is done with it. Tells whether it is here.
    fn take_back(&mut self) -> bool {
        if self.staging.is_none() {
            self.staging = self.returned.try_recv().ok();
        }
        self.staging.is_some()
    }

    /// Captures all ranks. They are suspended.
    ///
    /// # Errors
    /// Only what must end the process; a capture that is refused is reported and aborts the snapshot.
    pub(crate) fn cut(&mut self, epoch: Epoch, slots: &[Slot]) -> Result<(), Fatal> {
        let begin = Instant::now();
        // What a rank has printed belongs before the cut, and must not be lost with this process.
        let _ = std::io::stdout().flush();
        let captured = self.capture(slots)?;
        in_engine(|engine| engine.begin_recording(epoch))?;
        let stall_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        match captured {
            Ok((ranks, staging)) => {
                self.control.report(Report::Cut { epoch, stall_us });
                self.writing = Some(epoch);
                self.jobs
                    .send(Job::Write {
                        epoch,
                        ranks,
                        staging,
                    })
                    .map_err(|_| writer_gone())
            }
            Err(reason) => {
                self.control
                    .report(Report::SnapshotFailed { epoch, reason });
                Ok(())
            }
        }
    }

    fn capture(&mut self, slots: &[Slot]) -> Result<Result<Capture, String>, Fatal> {
        if !self.take_back() && self.reserving {
            // Room that is just being made is worth waiting for; a disk is not.
            self.staging = self.returned.recv().ok();
        }
        self.reserving = false;
        let Some(mut staging) = self.staging.take() else {
            return Ok(Err("the snapshot before is still being written; the store's disk is too slow for this \
                           interval, choose a longer --every"
                .to_owned()));
        };
        staging.resize_with(slots.len(), Staging::new);
        let mut ranks = Vec::with_capacity(slots.len());
        for (index, slot) in slots.iter().enumerate() {
            match slot.capture(&mut staging[index]) {
                Ok(_) => {
                    let tables = in_engine(|engine| engine.capture_tables(index))?;
                    ranks.push(CapturedRank {
                        rank: slot.rank(),
                        tables,
                    });
                }
                Err(error) => {
                    self.staging = Some(staging);
                    return Ok(Err(error.to_string()));
                }
            }
        }
        if let Err(refusal) = self.inspect(slots, &staging) {
            self.staging = Some(staging);
            return Ok(Err(refusal));
        }
        Ok(Ok((ranks, staging)))
    }

    /// At the first cut: tells what a restart would lose, or refuses.
    fn inspect(&mut self, slots: &[Slot], staging: &[Staging]) -> Result<(), String> {
        let Some(baseline) = &self.baseline else {
            return Ok(());
        };
        let changes = baseline.changes();
        let mut pointers = Vec::new();
        if self.scan {
            let images = slots.iter().zip(staging);
            pointers.extend(images.filter_map(|(slot, staging)| foreign_pointers(slot, staging)));
        }
        if self.strict {
            let findings = changes.findings().into_iter().chain(pointers);
            let reasons: Vec<_> = findings.map(|Finding(text)| text).collect();
            if !reasons.is_empty() {
                return Err(format!(
                    "{} (refused because of --strict)",
                    reasons.join("; ")
                ));
            }
        } else {
            let _ = self.jobs.send(Job::Warn { changes, pointers });
        }
        self.baseline = None;
        Ok(())
    }

    /// Every marker has come.
    pub(crate) fn channels_complete(&mut self, epoch: Epoch, links: Vec<LinkCount>) {
        if self.writing != Some(epoch) {
            // The capture was refused; the abort is on its way.
            in_engine(|engine| engine.discard_recording(epoch));
            return;
        }
        self.writing = None;
        let channels = in_engine(|engine| engine.take_channels(epoch));
        match channels {
            Ok(channels) => {
                let _ = self.jobs.send(Job::Finish {
                    epoch,
                    channels,
                    links,
                });
            }
            Err(fatal) => self.control.report(Report::SnapshotFailed {
                epoch,
                reason: fatal.to_string(),
            }),
        }
    }

    /// The snapshot will not be.
    pub(crate) fn discard(&mut self, epoch: Epoch) {
        self.discarded.fetch_max(epoch.0, Ordering::SeqCst);
        in_engine(|engine| engine.discard_recording(epoch));
        if self.writing == Some(epoch) {
            self.writing = None;
            // The writer looks up from waiting for the channel state.
            let _ = self.jobs.send(Job::Finish {
                epoch,
                channels: Vec::new(),
                links: Vec::new(),
            });
        }
    }
}

/// Bytes of this process that are in memory (`statm` in proc(5)); no bound where that can't be read.
fn resident_bytes() -> usize {
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<usize>().ok())
        .map_or(usize::MAX, |pages| pages.saturating_mul(PAGE_BYTES))
}

fn writer_gone() -> Fatal {
    Fatal::new("the writer thread has ended")
}

/// The library thread that stores what was captured.
struct Writer {
    storage: SharedStorage,
    job: JobId,
    incarnation: Incarnation,
    compression: Compression,
    control: Control,
    discarded: Arc<AtomicU64>,
    give_back: Sender<Vec<Staging>>,
    /// Files that lack their channel state only.
    open: Option<(Epoch, Vec<RankFileWriter>)>,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Reserve {
                    mut staging,
                    image_bytes,
                } => {
                    for (staging, bytes) in staging.iter_mut().zip(image_bytes) {
                        // Without it the cut takes longer, or says that there is no memory.
                        let _ = staging.reserve(bytes);
                    }
                    let _ = self.give_back.send(staging);
                }
                Job::Warn { changes, pointers } => {
                    for Finding(text) in changes.findings().into_iter().chain(pointers) {
                        self.control.report(Report::Warning { text });
                    }
                }
                Job::Write {
                    epoch,
                    ranks,
                    staging,
                } => {
                    let written = self.write(epoch, &ranks, &staging);
                    // Whoever waits for it is gone only at the end of the process.
                    let _ = self.give_back.send(staging);
                    self.open = self
                        .keep_or_report(epoch, written)
                        .flatten()
                        .map(|files| (epoch, files));
                }
                Job::Finish {
                    epoch,
                    channels,
                    links,
                } => {
                    let Some((_, files)) = self.open.take_if(|(open, _)| *open == epoch) else {
                        continue;
                    };
                    if self.is_discarded(epoch) {
                        continue;
                    }
                    let finished = finish(files, &channels);
                    if let Some(files) = self.keep_or_report(epoch, finished) {
                        self.control.report(Report::Stored {
                            epoch,
                            files,
                            needs: Vec::new(),
                            felt: protocol::control::Felt::default(),
                            links,
                        });
                    }
                }
            }
        }
    }

    fn is_discarded(&self, epoch: Epoch) -> bool {
        self.discarded.load(Ordering::SeqCst) >= epoch.0
    }

    fn keep_or_report<T>(&self, epoch: Epoch, result: store::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if !self.is_discarded(epoch) {
                    self.control.report(Report::SnapshotFailed {
                        epoch,
                        reason: error.to_string(),
                    });
                }
                None
            }
        }
    }

    /// Writes images and tables. `None` when the snapshot was given up meanwhile.
    fn write(
        &self,
        epoch: Epoch,
        ranks: &[CapturedRank],
        staging: &[Staging],
    ) -> store::Result<Option<Vec<RankFileWriter>>> {
        let mut files = Vec::with_capacity(ranks.len());
        for (captured, staging) in ranks.iter().zip(staging) {
            let key = FileKey {
                job: self.job,
                incarnation: self.incarnation,
                epoch,
                rank: captured.rank,
            };
            let mut file = RankFileWriter::create(self.storage.clone(), key, None)?;
            let pieces = staging
                .pages()
                .chunks(PIECE_PAGES)
                .zip(staging.bytes().chunks(PIECE_PAGES * PAGE_BYTES));
            for (pages, bytes) in pieces {
                if self.is_discarded(epoch) {
                    return Ok(None);
                }
                file.pages(self.compression.into(), pages, bytes)?;
            }
            file.section(
                SectionKind::Tables,
                self.compression.into(),
                &captured.tables,
            )?;
            files.push(file);
        }
        Ok(Some(files))
    }
}

fn finish(files: Vec<RankFileWriter>, channels: &[Vec<u8>]) -> store::Result<Vec<StoredFile>> {
    files
        .into_iter()
        .zip(channels)
        .map(|(mut file, channel)| {
            file.section(SectionKind::Channel, Effort::Stored, channel)?;
            file.finish().map(|finished| finished.file)
        })
        .collect()
}
