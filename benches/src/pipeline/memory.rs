//! How much memory processes have while they run.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

const EVERY: Duration = Duration::from_millis(20);

/// Looks at processes again and again, in a thread of its own, until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Sampler {
    /// Looks at these processes.
    #[must_use]
    pub fn start(pids: &[u32]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (stop, pids) = (Arc::clone(&stop), pids.to_owned());
            std::thread::spawn(move || {
                let mut peak = 0;
                while !stop.load(Ordering::Relaxed) {
                    for &pid in &pids {
                        peak = peak.max(bytes_of(pid).unwrap_or_default());
                    }
                    std::thread::sleep(EVERY);
                }
                peak
            })
        };
        Self { stop, thread }
    }

    /// The most that one of the processes had at a time: bytes in memory that are not of a file.
    ///
    /// # Errors
    /// When the thread panicked.
    pub fn peak_bytes(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the sampler panicked")
    }
}

/// Anonymous and shared memory of a process; none if it is gone.
fn bytes_of(pid: u32) -> Option<u64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((field("RssAnon:")? + field("RssShmem:")?) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_files_does_not_count() {
        let status = "VmRSS:\t   900 kB\nRssAnon:\t     300 kB\nRssFile:\t     500 kB\nRssShmem:\t     100 kB\n";
        assert_eq!(parse(status), Some(400 << 10));
        assert_eq!(parse("State:\tZ (zombie)\n"), None);
    }

    #[test]
    fn a_block_that_is_touched_is_seen() -> Result<()> {
        let sampler = Sampler::start(&[std::process::id()]);
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        std::thread::sleep(2 * EVERY);
        drop(block);
        assert!(sampler.peak_bytes()? > 64 << 20);
        Ok(())
    }
}
