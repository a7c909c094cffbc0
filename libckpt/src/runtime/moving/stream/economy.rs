//! Whether pages are compressed: where the connection is slower than that.
//!
//! Sending `n` bytes as they are takes `n * link`; compressed they take `n * zstd + n * ratio * link`. What each is, is measured
//! all along: now and then a piece is compressed to see.

use std::time::Duration;

/// One in so many pieces is compressed to see what that gives.
const PROBE_EVERY: u64 = 32;

/// What was measured counts half after so many bytes more.
const HALVED_AFTER_BYTES: f64 = 32e6;

/// Something that takes time for bytes, lately.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    bytes: f64,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, bytes: usize, took: Duration) {
        #[allow(clippy::cast_precision_loss)] // a rate
        let bytes = bytes as f64;
        let keep = 0.5_f64.powf(bytes / HALVED_AFTER_BYTES);
        self.bytes = self.bytes * keep + bytes;
        self.seconds = self.seconds * keep + took.as_secs_f64();
    }

    /// Seconds for a byte; none where nothing was measured.
    fn cost(&self) -> Option<f64> {
        (self.bytes > 0.0).then(|| self.seconds / self.bytes)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Economy {
    pieces: u64,
    link: Rate,
    /// By bytes as they are.
    zstd: Rate,
    /// Bytes before and after.
    raw_bytes: f64,
    packed_bytes: f64,
}

impl Economy {
    /// Whether the next piece is to be compressed.
    pub(super) fn packs_next(&mut self) -> bool {
        self.pieces += 1;
        self.pieces.is_multiple_of(PROBE_EVERY) || self.packs()
    }

    fn packs(&self) -> bool {
        let (Some(link), Some(zstd)) = (self.link.cost(), self.zstd.cost()) else {
            return false;
        };
        zstd + self.packed_bytes / self.raw_bytes * link < link
    }

    /// A piece was compressed; one that did not become shorter counts as it is.
    pub(super) fn packed(&mut self, raw_bytes: usize, packed_bytes: usize, took: Duration) {
        self.zstd.add(raw_bytes, took);
        #[allow(clippy::cast_precision_loss)] // a ratio
        let (raw, packed) = (raw_bytes as f64, packed_bytes as f64);
        let keep = 0.5_f64.powf(raw / HALVED_AFTER_BYTES);
        self.raw_bytes = self.raw_bytes * keep + raw;
        self.packed_bytes = self.packed_bytes * keep + packed;
    }

    /// So many bytes went onto the connection.
    pub(super) fn sent(&mut self, bytes: usize, took: Duration) {
        self.link.add(bytes, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 256 << 10;

    /// How many of 320 pieces are compressed where each costs so much, in microseconds.
    fn packed(link_us: u64, zstd_us: u64, packed_bytes: usize) -> usize {
        let mut economy = Economy::default();
        let mut count = 0;
        for _ in 0..320 {
            let packs = economy.packs_next();
            let bytes = if packs { packed_bytes } else { PIECE };
            if packs {
                count += 1;
                economy.packed(PIECE, bytes, Duration::from_micros(zstd_us));
            }
            let share = link_us * bytes as u64 / PIECE as u64;
            economy.sent(bytes, Duration::from_micros(share));
        }
        count
    }

    #[test]
    fn pages_are_compressed_where_that_is_faster_and_not_where_it_is_not() {
        let probes = 320 / PROBE_EVERY as usize;
        assert_eq!(packed(100, 600, PIECE / 4), probes, "a fast connection");
        assert!(packed(2000, 600, PIECE / 4) > 250, "a slow one");
        assert_eq!(packed(2000, 600, PIECE), probes, "nothing is gained");
    }

    #[test]
    fn what_was_measured_long_ago_is_forgotten() {
        let mut economy = Economy::default();
        economy.packed(PIECE, PIECE / 4, Duration::from_micros(600));
        economy.sent(PIECE, Duration::from_micros(100));
        assert!(!economy.packs());
        for _ in 0..2000 {
            economy.sent(PIECE, Duration::from_micros(2000));
        }
        assert!(economy.packs());
    }
}
