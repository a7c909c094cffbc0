//! What the machine needs for the same bytes, without any of ours.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};

/// Bytes that zstd gets at a time, and the level.
const FRAME: usize = 1 << 20;
const LEVEL: i32 = 1;

/// How many threads can run at once.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory that is copied as an image would be: touched before, as kept staging memory is.
pub struct Copies {
    pairs: Vec<Mutex<(Vec<u8>, Vec<u8>)>>,
}

impl Copies {
    /// So many bytes in each of some threads.
    #[must_use]
    pub fn new(threads: usize, bytes: usize) -> Self {
        Self {
            pairs: (0..threads)
                .map(|_| Mutex::new((vec![1; bytes], vec![2; bytes])))
                .collect(),
        }
    }

    /// The longest time of a copy, in milliseconds, with all made at once.
    #[must_use]
    pub fn run_ms(&self) -> f64 {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .pairs
                .iter()
                .map(|pair| {
                    scope.spawn(move || {
                        let mut pair = pair
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner);
                        let (from, to) = &mut *pair;
                        let start = Instant::now();
                        to.copy_from_slice(std::hint::black_box(from));
                        std::hint::black_box(to);
                        start.elapsed().as_secs_f64() * 1e3
                    })
                })
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .fold(0.0, f64::max)
        })
    }
}

/// Whether what is written must have reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// It may be in the page cache.
    No,
    /// The file is fsynced.
    Yes,
}

/// Writes a file of so many bytes by each of some threads, with names that begin with a path; how long all took, in
/// milliseconds.
///
/// # Errors
/// When they can't be written.
pub fn write_files_ms(path: &Path, threads: usize, bytes: usize, sync: Sync) -> Result<f64> {
    // Not zeroes: some disks store those for nothing.
    let content: Vec<u8> = (0..FRAME).map(|index| (index * 31 % 251) as u8).collect();
    let names: Vec<PathBuf> = (0..threads)
        .map(|thread| path.with_extension(thread.to_string()))
        .collect();
    let start = Instant::now();
    let written = std::thread::scope(|scope| -> Result<()> {
        let writers: Vec<_> = names
            .iter()
            .map(|name| {
                let content = &content;
                scope.spawn(move || -> Result<()> {
                    let mut file = File::create(name)?;
                    let mut left = bytes;
                    while left > 0 {
                        let count = left.min(content.len());
                        file.write_all(&content[..count])?;
                        left -= count;
                    }
                    if sync == Sync::Yes {
                        file.sync_all()?;
                    }
                    Ok(())
                })
            })
            .collect();
        for writer in writers {
            writer.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        Ok(())
    });
    let elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
    for name in names {
        std::fs::remove_file(name)?;
    }
    written.map(|()| elapsed_ms)
}

/// Compresses so many bytes of a content, again and again if need be, on some threads; milliseconds.
///
/// # Errors
/// When zstd fails.
pub fn compress_ms(content: &[u8], bytes: usize, threads: usize) -> Result<f64> {
    let frames: Vec<&[u8]> = content.chunks(FRAME).collect();
    let wanted = bytes.div_ceil(FRAME);
    let start = Instant::now();
    on_threads(threads, wanted, |take| {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        let mut out = vec![0; zstd::zstd_safe::compress_bound(FRAME)];
        while let Some(nth) = take() {
            compressor.compress_to_buffer(frames[nth % frames.len()], &mut out)?;
        }
        Ok(())
    })?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// A content in a file, compressed by plain zstd, frame by frame.
pub struct Compressed {
    file: File,
    /// Where each frame begins, and how long it is, compressed and raw.
    frames: Vec<(u64, usize, usize)>,
    bytes: usize,
}

/// What is decompressed into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Memory that is touched for the first time, as that of a process that was just started.
    Fresh,
    /// Memory that was touched before.
    Touched,
}

impl Compressed {
    /// Compresses a content into a file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(path: &Path, content: &[u8]) -> Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        let mut file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(path)?;
        let (mut frames, mut at) = (Vec::new(), 0);
        for raw in content.chunks(FRAME) {
            let frame = compressor.compress(raw)?;
            file.write_all(&frame)?;
            frames.push((at, frame.len(), raw.len()));
            at += frame.len() as u64;
        }
        file.sync_all()?;
        Ok(Self {
            file,
            frames,
            bytes: content.len(),
        })
    }

    /// Drops the file from the page cache.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn evict(&self) -> Result<()> {
        evict(&self.file)
    }

    /// Reads and decompresses it so many times over, each into memory of its own, on all cores; milliseconds.
    ///
    /// # Errors
    /// When it is not what was written.
    pub fn read_ms(&self, times: usize, memory: Memory) -> Result<f64> {
        // Zeroes that nobody has touched are memory that is not there yet.
        let mut images: Vec<Vec<u8>> = (0..times).map(|_| vec![0; self.bytes]).collect();
        if memory == Memory::Touched {
            images.iter_mut().for_each(|image| image.fill(1));
        }
        let start = Instant::now();
        let pieces: Vec<Mutex<&mut [u8]>> = images
            .iter_mut()
            .flat_map(|image| image.chunks_mut(FRAME))
            .map(Mutex::new)
            .collect();
        on_threads(cores(), pieces.len(), |take| {
            let mut decompressor = zstd::bulk::Decompressor::new()?;
            let mut frame = Vec::new();
            while let Some(nth) = take() {
                let (at, bytes, raw_bytes) = self.frames[nth % self.frames.len()];
                frame.resize(bytes, 0);
                self.file.read_exact_at(&mut frame, at)?;
                let mut piece = pieces[nth]
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let count = decompressor.decompress_to_buffer(&frame, &mut **piece)?;
                ensure!(count == raw_bytes, "a frame of another length");
            }
            Ok(())
        })?;
        let elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
        std::hint::black_box(&images);
        Ok(elapsed_ms)
    }
}

/// Drops a file from the page cache. It must have been synced.
///
/// # Errors
/// When the system refuses.
pub fn evict(file: &File) -> Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .context("drop a file from the page cache")
}

/// Shares out so many pieces of work among threads, that each take the next one until there is none.
fn on_threads(
    threads: usize,
    pieces: usize,
    work: impl Fn(&dyn Fn() -> Option<usize>) -> Result<()> + Send + std::marker::Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let take = || {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        (nth < pieces).then_some(nth)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&take))).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_is_read_again() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let content: Vec<u8> = (0..FRAME * 2 + 5).map(|at| (at / 7 % 256) as u8).collect();
        let compressed = Compressed::write(&folder.path().join("c"), &content)?;
        assert_eq!(compressed.frames.len(), 3);
        assert!(compressed.file.metadata()?.len() < content.len() as u64);
        compressed.evict()?;
        for memory in [Memory::Fresh, Memory::Touched] {
            assert!(compressed.read_ms(2, memory)? > 0.0);
        }
        Ok(())
    }

    #[test]
    fn files_are_gone_after_they_were_written() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for sync in [Sync::No, Sync::Yes] {
            write_files_ms(&folder.path().join("reference"), 2, FRAME + 3, sync)?;
        }
        assert_eq!(folder.path().read_dir()?.count(), 0);
        Ok(())
    }
}
