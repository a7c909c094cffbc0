//! Pages of a rank, read out of a process that runs: real data for references.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};

const PAGE: u64 = 4096;

/// Pages that are looked up at once.
const LOOK: u64 = 64 << 10;

/// A page of this entry is in memory.
const PRESENT: u64 = 1 << 63;

/// Reads up to so many bytes of the mapping that has most in memory: the slot of the process's rank.
///
/// # Errors
/// When the process may not be looked at, or is gone.
pub fn of_process(pid: u32, limit: usize) -> Result<Vec<u8>> {
    let (start, end) = largest(&fs::read_to_string(format!("/proc/{pid}/smaps"))?)
        .with_context(|| format!("the mappings of process {pid}"))?;
    let pages = File::open(format!("/proc/{pid}/pagemap"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut content = Vec::with_capacity(limit);
    let mut at = start / PAGE;
    while at < end / PAGE && content.len() < limit {
        let count = LOOK.min(end / PAGE - at);
        let mut entries = vec![0; usize::try_from(count)? * 8];
        pages.read_exact_at(&mut entries, at * 8)?;
        let present: Vec<u64> = (at..)
            .zip(entries.as_chunks::<8>().0)
            .filter(|(_, entry)| u64::from_le_bytes(**entry) & PRESENT != 0)
            .map(|(page, _)| page)
            .collect();
        // Pages side by side in one go.
        for run in present.chunk_by(|page, next| page + 1 == *next) {
            let bytes = (run.len() * 4096).min(limit - content.len());
            let from = content.len();
            content.resize(from + bytes, 0);
            memory
                .read_exact_at(&mut content[from..], run[0] * PAGE)
                .context("read the memory of a rank")?;
        }
        at += count;
    }
    ensure!(!content.is_empty(), "process {pid} has nothing in memory");
    Ok(content)
}

/// Start and end of the mapping with most in memory.
fn largest(smaps: &str) -> Option<(u64, u64)> {
    let mut best = None;
    let mut range = None;
    for line in smaps.lines() {
        let word = line.split_whitespace().next()?;
        if let Some((start, end)) = word.split_once('-') {
            let parse = |text| u64::from_str_radix(text, 16).ok();
            range = parse(start).zip(parse(end));
        } else if word == "Rss:" {
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            if best.is_none_or(|(most, _)| kib > most) {
                best = Some((kib, range?));
            }
        }
    }
    best.map(|(_, range)| range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_with_most_in_memory_is_found() {
        let smaps = "\
1000-3000 rw-p 00000000 00:00 0
Size:                  8 kB
Rss:                   4 kB
7f0000000000-7f0000900000 rw-p 00000000 00:00 0 [anon: slot]
Rss:                 900 kB
ffff0000-ffff1000 r-xp 00000000 00:00 0 [vdso]
Rss:                   0 kB
";
        assert_eq!(largest(smaps), Some((0x7f00_0000_0000, 0x7f00_0090_0000)));
    }

    #[test]
    fn pages_of_this_process_are_read() -> Result<()> {
        // Far more than anything else here has.
        let mark: Vec<u8> = (0..200 << 20).map(|byte| (byte % 251) as u8).collect();
        let read = of_process(std::process::id(), 1 << 20)?;
        assert_eq!(read.len(), 1 << 20);
        let steps = read
            .windows(2)
            .filter(|pair| pair[1] == (pair[0] + 1) % 251)
            .count();
        assert!(steps > 1 << 19, "{steps}");
        drop(mark);
        Ok(())
    }
}
