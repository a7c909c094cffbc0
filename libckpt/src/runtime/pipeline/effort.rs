//! How hard chunks are compressed: one decision for all threads of a process, from what they measure.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use protocol::control::Assignment;
use store::Effort;
use store::{EffortControl, Situation};

use super::super::processors::Processors;
use super::{lock, packers};

/// How long it may take until a checkpoint is durable, where packing takes time from the ranks. A failure before
/// that costs what was computed since the checkpoint before, so it should be far below common intervals.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);

/// Decides for all threads of a process that pack.
pub(super) struct Efforts {
    control: Mutex<EffortControl>,
    threads: usize,
    processor_is_free: bool,
    /// Of the last checkpoint, before compression.
    raw_bytes: AtomicU64,
}

/// The packing of one chunk.
pub(super) struct Timing<'a> {
    efforts: &'a Efforts,
    effort: Effort,
    begun: Duration,
}

impl Efforts {
    pub(super) fn new(assignment: &Assignment) -> Self {
        Self {
            control: Mutex::new(assignment.compression.into()),
            threads: packers(assignment),
            processor_is_free: Processors::of(assignment).is_one_free(),
            raw_bytes: AtomicU64::new(0),
        }
    }

    /// A chunk is about to be packed on this thread.
    pub(super) fn begin(&self) -> Timing<'_> {
        let situation = Situation {
            threads: self.threads,
            processor_is_free: self.processor_is_free,
            raw_bytes: self.raw_bytes.load(Ordering::Relaxed),
            durable_within: DURABLE_WITHIN,
        };
        Timing {
            efforts: self,
            effort: lock(&self.control).next(&situation),
            begun: processor_time(),
        }
    }

    /// Files were written and made durable; `raw_bytes` is what they hold before compression.
    pub(super) fn written(&self, raw_bytes: u64, stored_bytes: u64, took: Duration) {
        self.raw_bytes.store(raw_bytes, Ordering::Relaxed);
        lock(&self.control).written(stored_bytes, took);
    }
}

impl Timing<'_> {
    /// How hard it is to be compressed.
    pub(super) fn effort(&self) -> Effort {
        self.effort
    }

    /// It was packed.
    pub(super) fn packed(self, raw_bytes: u64, stored_bytes: u64) {
        let took = processor_time().saturating_sub(self.begun);
        lock(&self.efforts.control).packed(self.effort, raw_bytes, stored_bytes, took);
    }
}

/// Processor time of this thread: unlike time, it does not grow where others have the processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
