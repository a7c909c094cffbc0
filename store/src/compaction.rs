//! Which files an image goes on referring to, and which of them are given up by carrying their pages over into
//! the new file.
//!
//! An image may be spread over many files: each costs a restore an open file, and costs the disk whatever
//! else is in it. Carrying over is part of writing a checkpoint, not a step of its own: the new file counts only
//! once its manifest is published, and until then the old files are kept. So nothing of it can be half done.
//!
//! This part is pure. [`crate::RankFileWriter::carry_over`] does what is planned here.

/// How far an image may be spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files that an image may be in, its own included; at least 1. This always holds.
    pub files_max: usize,
    /// A file of which a smaller share than one in so many bytes is still used is given up where the next limit
    /// allows it; 0 for never.
    pub garbage_divisor: u64,
    /// Bytes of pages that one checkpoint carries over at most, except where `files_max` needs more.
    pub bytes_max: u64,
}

impl Default for Limits {
    /// 8 files, of which at least a quarter is used, 256 MiB for each checkpoint.
    fn default() -> Self {
        Self {
            files_max: 8,
            garbage_divisor: 4,
            bytes_max: 256 << 20,
        }
    }
}

/// What an image uses of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// Bytes that the file holds, before compression.
    pub held_bytes: u64,
    /// Bytes of pages that the image has there. Where it is 0, the file is given up for nothing.
    pub used_bytes: u64,
}

/// Which of `files` to give up, ascending. `new_bytes` is what the new file holds by itself, before
/// compression.
///
/// The smallest go first. Once some have to go, those that are not larger than what is carried over already
/// go with them: one that is merged with its like is touched again only when as much has come again, so that
/// a page is carried over a few times in its life and not by every checkpoint (as in the binomial merges of C.
/// Mathieu et al., "Bigtable merge compaction", 2014).
#[must_use]
pub fn plan(files: &[FileUse], new_bytes: u64, limits: &Limits) -> Vec<usize> {
    let mut by_size: Vec<usize> = (0..files.len())
        .filter(|at| files[*at].used_bytes > 0)
        .collect();
    by_size.sort_by_key(|at| (files[*at].used_bytes, *at));
    let must_go = (by_size.len() + 1).saturating_sub(limits.files_max.max(1));
    let mut carried_bytes = 0;
    let mut carried = Vec::new();
    let mut merging = must_go > 0;
    for (place, at) in by_size.into_iter().enumerate() {
        let FileUse {
            held_bytes,
            used_bytes,
        } = files[at];
        let is_garbage = limits.garbage_divisor > 0
            && used_bytes.saturating_mul(limits.garbage_divisor) < held_bytes;
        merging &= place < must_go || used_bytes <= new_bytes.saturating_add(carried_bytes);
        let fits = used_bytes.saturating_add(carried_bytes) <= limits.bytes_max;
        if place < must_go || (fits && (is_garbage || merging)) {
            carried_bytes += used_bytes;
            carried.push(at);
        }
    }
    carried.sort_unstable();
    carried
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn used(used_bytes: &[u64]) -> Vec<FileUse> {
        let files = used_bytes.iter().map(|used_bytes| FileUse {
            held_bytes: *used_bytes,
            used_bytes: *used_bytes,
        });
        files.collect()
    }

    fn limits(files_max: usize, bytes_max: u64) -> Limits {
        Limits {
            files_max,
            bytes_max,
            ..Limits::default()
        }
    }

    #[test]
    fn where_nothing_has_to_go_nothing_goes() {
        assert!(plan(&[], 7, &Limits::default()).is_empty());
        assert!(plan(&used(&[1, 2, 3]), 100, &limits(4, 1000)).is_empty());
    }

    #[test]
    fn the_smallest_go_with_their_like_and_large_ones_stay() {
        let files = used(&[1000, 3, 2, 40, 2]);
        assert_eq!(plan(&files, 2, &limits(5, 1000)), [1, 2, 4]);
        // What is larger than all before it together stays.
        assert_eq!(plan(&files, 33, &limits(5, 1000)), [1, 2, 3, 4]);
        // Where there is no room for the others, only what has to.
        assert_eq!(plan(&files, 33, &limits(5, 1)), [2]);
        assert_eq!(plan(&files, 33, &limits(1, 1)), [0, 1, 2, 3, 4]);
        assert_eq!(plan(&files, 33, &limits(0, 1)), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn files_that_are_mostly_garbage_go_where_there_is_room() {
        let mut files = used(&[100, 100, 100]);
        files[1].held_bytes = 401;
        files[2].held_bytes = 400;
        assert_eq!(plan(&files, 0, &limits(8, 100)), [1]);
        assert!(plan(&files, 0, &limits(8, 99)).is_empty());
        files[0].used_bytes = 0;
        assert_eq!(plan(&files, 0, &limits(8, 100)), [1], "not used at all");
    }

    proptest! {
        #[test]
        fn the_limits_hold(
            sizes in prop::collection::vec((0u64..1000, 0u64..5000), 0..20),
            new_bytes in 0u64..2000,
            files_max in 0usize..12,
            bytes_max in 0u64..5000,
        ) {
            let files: Vec<FileUse> = sizes
                .iter()
                .map(|(used_bytes, more)| FileUse { held_bytes: used_bytes + more, used_bytes: *used_bytes })
                .collect();
            let limits = limits(files_max, bytes_max);
            let carried = plan(&files, new_bytes, &limits);
            prop_assert!(carried.is_sorted_by(|a, b| a < b));
            prop_assert!(carried.iter().all(|at| files[*at].used_bytes > 0));
            let left = files.iter().filter(|file| file.used_bytes > 0).count() - carried.len();
            prop_assert!(left < files_max.max(1));
            // More bytes than allowed are the least that keep the number of files.
            let mut carried_bytes: Vec<u64> = carried.iter().map(|at| files[*at].used_bytes).collect();
            if carried_bytes.iter().sum::<u64>() > bytes_max {
                let in_use = left + carried.len();
                prop_assert_eq!(carried.len(), in_use + 1 - files_max.max(1));
                let mut all: Vec<u64> = files.iter().map(|file| file.used_bytes).filter(|used| *used > 0).collect();
                all.sort_unstable();
                carried_bytes.sort_unstable();
                prop_assert_eq!(&carried_bytes, &all[..carried.len()]);
            }
        }
    }

    /// Checkpoints of an image of which a share changes each time, anywhere. Gives bytes carried over for
    /// each byte that changed.
    fn carried_for_each_changed(pages: usize, changed: usize, epochs: usize) -> f64 {
        let mut owner = vec![0usize; pages];
        let mut held = vec![pages as u64];
        let mut state = 1u64;
        let mut carried_total = 0u64;
        for epoch in 1..=epochs {
            held.push(0);
            for _ in 0..changed {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                owner[(state >> 33) as usize % pages] = epoch;
            }
            let mut used = vec![0u64; epoch];
            for of in owner.iter().filter(|of| **of < epoch) {
                used[*of] += 1;
            }
            let files: Vec<FileUse> = (0..epoch)
                .map(|of| FileUse {
                    held_bytes: held[of],
                    used_bytes: used[of],
                })
                .collect();
            let carried = plan(&files, changed as u64, &limits(8, pages as u64));
            for of in &mut owner {
                if *of < epoch && carried.binary_search(of).is_ok() {
                    *of = epoch;
                    carried_total += 1;
                }
            }
            held[epoch] = owner.iter().filter(|of| **of == epoch).count() as u64;
            let mut in_use = owner.clone();
            in_use.sort_unstable();
            in_use.dedup();
            assert!(in_use.len() <= 8, "{epoch}");
        }
        carried_total as f64 / (epochs * changed) as f64
    }

    #[test]
    fn a_page_is_carried_over_a_few_times_in_its_life() {
        for changed in [100, 1000] {
            let carried = carried_for_each_changed(10_000, changed, 300);
            assert!(carried < 3.0, "{changed}: {carried}");
        }
    }
}
