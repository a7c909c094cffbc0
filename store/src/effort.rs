//! How hard chunks are compressed, by what the disk and the processors can take.
//!
//! Pure: what was measured is told to it, it decides. Packing and writing go on side by side, so the slower
//! of the two tells when a checkpoint is durable; but packing takes processor time from the ranks where no
//! processor is free.

use std::time::Duration;

use protocol::control::Compression;

use crate::rank_file::Effort;

/// What is chosen from. Beyond level 3 zstd takes far more time for little.
const CHOICES: [Effort; 4] = [
    Effort::Stored,
    Effort::Zstd(-4),
    Effort::Zstd(1),
    Effort::Zstd(3),
];
/// Where nothing is known.
const FIRST: Effort = Effort::Zstd(1);
/// Chunks that each choice is tried on before it is compared with the others.
const TRIED_CHUNKS: u64 = 4;
/// Of so many chunks one is packed in another way than the best, in turn, so that what is known of the others stays
/// true: what a solver computes changes.
const TRY_EVERY: u64 = 32;
/// How many times longer it may take until a checkpoint is durable, where that makes it so much smaller and
/// a processor is free.
const LONGER: f64 = 1.5;
const SMALLER: f64 = 0.8;
/// Bytes after which an earlier measurement counts half: of packing, and of writing.
const PACKED_WINDOW_BYTES: f64 = (4 << 20) as f64;
const WRITTEN_WINDOW_BYTES: f64 = (256 << 20) as f64;

/// What the next chunk's effort depends on besides what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// Threads that pack.
    pub threads: usize,
    /// Whether packing takes no time from the ranks, because there are more processors than ranks that run.
    pub processor_is_free: bool,
    /// Bytes of the whole checkpoint, before compression, as far as known.
    pub raw_bytes: u64,
    /// How long it may take until the checkpoint is durable. Matters only where no processor is free.
    pub durable_within: Duration,
}

/// A choice of which enough is known.
struct Known {
    effort: Effort,
    /// Seconds until a byte is durable.
    durable: f64,
    /// Processor seconds for it.
    packing: f64,
    /// Stored bytes for it.
    ratio: f64,
}

/// Time and result for each byte, later ones counting more.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    bytes: f64,
    seconds: f64,
    stored_bytes: f64,
}

impl Mean {
    fn add(&mut self, bytes: u64, stored_bytes: u64, took: Duration, window_bytes: f64) {
        if self.bytes >= window_bytes {
            self.bytes /= 2.0;
            self.seconds /= 2.0;
            self.stored_bytes /= 2.0;
        }
        self.bytes += bytes as f64;
        self.seconds += took.as_secs_f64();
        self.stored_bytes += stored_bytes as f64;
    }

    /// Seconds for each byte; `None` where nothing was measured.
    fn cost(&self) -> Option<f64> {
        (self.bytes > 0.0).then(|| self.seconds / self.bytes)
    }

    /// Stored bytes for each byte.
    fn ratio(&self) -> f64 {
        self.stored_bytes / self.bytes
    }
}

/// Decides how hard chunks are compressed. One for each process, for all its checkpoints.
#[derive(Clone, Debug)]
pub struct EffortControl {
    fixed: Option<Effort>,
    packing: [Mean; CHOICES.len()],
    writing: Mean,
    /// Chunks that a choice was given for, while nothing is known of it.
    tried: [u64; CHOICES.len()],
    chunks: u64,
}

impl From<Compression> for EffortControl {
    /// [`Compression::Auto`] adapts; the others are always the same.
    fn from(compression: Compression) -> Self {
        Self {
            fixed: (compression != Compression::Auto).then(|| compression.into()),
            packing: Default::default(),
            writing: Mean::default(),
            tried: Default::default(),
            chunks: 0,
        }
    }
}

impl EffortControl {
    /// The effort for the next chunk of pages.
    pub fn next(&mut self, situation: &Situation) -> Effort {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        self.chunks += 1;
        // Without knowing the disk there is nothing to compare.
        if self.writing.cost().is_none() {
            return FIRST;
        }
        if let Some(new) = self.tried.iter().position(|tried| *tried < TRIED_CHUNKS) {
            self.tried[new] += 1;
            return CHOICES[new];
        }
        if self.chunks.is_multiple_of(TRY_EVERY) {
            return CHOICES[(self.chunks / TRY_EVERY) as usize % CHOICES.len()];
        }
        self.best(situation)
    }

    /// The effort that is best by what was measured so far: for chunks of which nothing is to be learnt.
    #[must_use]
    pub fn best(&self, situation: &Situation) -> Effort {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let Some(writing) = self.writing.cost() else {
            return FIRST;
        };
        let threads = situation.threads.max(1) as f64;
        let known: Vec<Known> = CHOICES
            .into_iter()
            .zip(&self.packing)
            .filter_map(|(effort, packed)| {
                let packing = packed.cost()?;
                let ratio = packed.ratio();
                Some(Known {
                    effort,
                    durable: (packing / threads).max(ratio * writing),
                    packing,
                    ratio,
                })
            })
            .collect();
        if !situation.processor_is_free {
            let within = situation.durable_within.as_secs_f64();
            let cheapest = known
                .iter()
                .filter(|known| known.durable * situation.raw_bytes as f64 <= within)
                .min_by(|a, b| a.packing.total_cmp(&b.packing));
            if let Some(cheapest) = cheapest {
                return cheapest.effort;
            }
        }
        let by_time = |a: &&Known, b: &&Known| {
            let by_durable = a.durable.total_cmp(&b.durable);
            by_durable.then(a.packing.total_cmp(&b.packing))
        };
        let Some(soonest) = known.iter().min_by(by_time) else {
            return FIRST;
        };
        if !situation.processor_is_free {
            return soonest.effort;
        }
        // Nobody misses the processor, and disks fill up: what is much smaller may take a little longer.
        known
            .iter()
            .filter(|known| known.durable <= soonest.durable * LONGER)
            .filter(|known| known.ratio <= soonest.ratio * SMALLER)
            .min_by(|a, b| a.ratio.total_cmp(&b.ratio))
            .map_or(soonest.effort, |smallest| smallest.effort)
    }

    /// Learns how long packing a chunk took on one thread, and what came of it.
    pub fn packed(&mut self, effort: Effort, raw_bytes: u64, stored_bytes: u64, took: Duration) {
        if raw_bytes == 0 {
            return;
        }
        if let Some(at) = CHOICES.iter().position(|choice| *choice == effort) {
            self.packing[at].add(raw_bytes, stored_bytes, took, PACKED_WINDOW_BYTES);
        }
    }

    /// Learns how long writing took, fsync included: of whole files, since a system takes bytes faster than its
    /// disk does at first.
    pub fn written(&mut self, stored_bytes: u64, took: Duration) {
        if stored_bytes > 0 {
            self.writing
                .add(stored_bytes, stored_bytes, took, WRITTEN_WINDOW_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK_BYTES: u64 = 256 << 10;

    /// A machine and what is packed on it: for each choice, how fast (bytes a second) and how small it gets.
    #[derive(Clone, Copy)]
    struct Machine {
        packing: [(f64, f64); CHOICES.len()],
        disk: f64,
    }

    /// Fields of a solver, on a processor of today.
    const FIELDS: [(f64, f64); 4] = [(4e9, 1.0), (700e6, 0.7), (400e6, 0.5), (120e6, 0.42)];
    const NOISE: [(f64, f64); 4] = [(4e9, 1.0), (1.5e9, 1.0), (1.4e9, 1.0), (1.2e9, 1.0)];

    const FREE: Situation = Situation {
        threads: 1,
        processor_is_free: true,
        raw_bytes: 1 << 30,
        durable_within: Duration::from_secs(10),
    };

    /// Packs so many checkpoints of 1000 chunks; the effort of most chunks of the last.
    fn settle(
        control: &mut EffortControl,
        machine: Machine,
        situation: Situation,
        checkpoints: usize,
    ) -> Effort {
        let mut counts = [0; CHOICES.len()];
        for _ in 0..checkpoints {
            counts = Default::default();
            let mut stored = 0;
            for _ in 0..1000 {
                let effort = control.next(&situation);
                let at = CHOICES.iter().position(|choice| *choice == effort).unwrap();
                counts[at] += 1;
                let (speed, ratio) = machine.packing[at];
                let bytes = (CHUNK_BYTES as f64 * ratio) as u64;
                stored += bytes;
                let took = Duration::from_secs_f64(CHUNK_BYTES as f64 / speed);
                control.packed(effort, CHUNK_BYTES, bytes, took);
            }
            control.written(
                stored,
                Duration::from_secs_f64(stored as f64 / machine.disk),
            );
        }
        let most = (0..CHOICES.len()).max_by_key(|at| counts[*at]).unwrap();
        assert!(counts[most] > 900, "{counts:?}");
        CHOICES[most]
    }

    fn settled(packing: [(f64, f64); 4], disk: f64, situation: Situation) -> Effort {
        settle(
            &mut Compression::Auto.into(),
            Machine { packing, disk },
            situation,
            4,
        )
    }

    #[test]
    fn a_fast_disk_takes_pages_as_they_are_and_a_slow_one_is_spared() {
        assert_eq!(settled(FIELDS, 3e9, FREE), Effort::Stored);
        assert_eq!(settled(FIELDS, 600e6, FREE), Effort::Zstd(-4));
        assert_eq!(settled(FIELDS, 350e6, FREE), Effort::Zstd(1));
        assert_eq!(settled(FIELDS, 150e6, FREE), Effort::Zstd(1));
        assert_eq!(settled(FIELDS, 20e6, FREE), Effort::Zstd(3));
    }

    #[test]
    fn what_gets_much_smaller_may_take_a_little_longer_where_a_processor_is_free() {
        const SMOOTH: [(f64, f64); 4] = [(4e9, 1.0), (1.6e9, 0.05), (1.5e9, 0.03), (400e6, 0.02)];
        assert_eq!(settled(SMOOTH, 2e9, FREE), Effort::Zstd(1));
        assert_eq!(settled(SMOOTH, 3e9, FREE), Effort::Stored);
        let busy = Situation {
            processor_is_free: false,
            ..FREE
        };
        assert_eq!(settled(SMOOTH, 2e9, busy), Effort::Stored);
    }

    #[test]
    fn more_threads_make_compression_pay_on_a_faster_disk() {
        let with = |threads| settled(FIELDS, 1.5e9, Situation { threads, ..FREE });
        assert_eq!(with(1), Effort::Stored);
        assert_eq!(with(8), Effort::Zstd(1));
    }

    #[test]
    fn what_does_not_compress_is_not_tried_on_and_on() {
        for disk in [20e6, 150e6, 3e9] {
            assert_eq!(settled(NOISE, disk, FREE), Effort::Stored, "{disk}");
        }
    }

    #[test]
    fn busy_processors_are_left_to_the_ranks_while_there_is_time() {
        let busy = |seconds| Situation {
            processor_is_free: false,
            durable_within: Duration::from_secs(seconds),
            ..FREE
        };
        // 1 GiB at 150 MB/s takes 7 s as it is, 5 s with level -4, 3.6 s with level 1.
        assert_eq!(settled(FIELDS, 150e6, busy(8)), Effort::Stored);
        assert_eq!(settled(FIELDS, 150e6, busy(6)), Effort::Zstd(-4));
        assert_eq!(settled(FIELDS, 150e6, busy(4)), Effort::Zstd(1));
        // Where nothing is soon enough, the soonest.
        assert_eq!(settled(FIELDS, 150e6, busy(1)), Effort::Zstd(1));
    }

    #[test]
    fn it_follows_a_disk_that_becomes_slow_and_data_that_become_noise() {
        let mut control = Compression::Auto.into();
        let machine = |packing, disk| Machine { packing, disk };
        let mut after = |machine| settle(&mut control, machine, FREE, 10);
        assert_eq!(after(machine(FIELDS, 3e9)), Effort::Stored);
        assert_eq!(after(machine(FIELDS, 150e6)), Effort::Zstd(1));
        assert_eq!(after(machine(NOISE, 150e6)), Effort::Stored);
        assert_eq!(after(machine(FIELDS, 150e6)), Effort::Zstd(1));
    }

    #[test]
    fn what_was_told_by_the_user_is_done() {
        for (compression, effort) in [
            (Compression::None, Effort::Stored),
            (Compression::Fast, Effort::Zstd(1)),
            (Compression::Level(9), Effort::Zstd(9)),
        ] {
            let mut control = EffortControl::from(compression);
            control.written(1 << 20, Duration::from_secs(1));
            for _ in 0..200 {
                assert_eq!(control.next(&FREE), effort);
                control.packed(effort, 1000, 900, Duration::from_secs(1));
            }
        }
        assert_eq!(EffortControl::from(Compression::Auto).next(&FREE), FIRST);
    }

    #[test]
    fn chunks_of_zeros_and_files_of_nothing_teach_nothing() {
        let mut control = EffortControl::from(Compression::Auto);
        control.written(0, Duration::from_secs(1));
        control.packed(FIRST, 0, 0, Duration::from_secs(1));
        assert_eq!(control.best(&FREE), FIRST);
        control.written(1, Duration::ZERO);
        assert_eq!(control.best(&FREE), FIRST);
    }
}
