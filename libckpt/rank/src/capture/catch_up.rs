//! How a region comes to be tracked between two cuts, without being copied while the rank stands still.
//!
//! The kernel tracks it from some moment after a checkpoint's cut on. What was written before that moment shows by
//! comparing the region with the checkpoint, in the background, while the rank runs: a page that is written meanwhile is
//! told by the kernel, and one that is not is what it was at that moment.

use std::io;
use std::ops::Range;

use protocol::ids::Rank;

use crate::layout::PAGE_BYTES;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// A region that is to be compared with the last checkpoint.
#[derive(Debug)]
pub struct CatchUp {
    pub(super) region: usize,
    /// Which attempt this is.
    pub(super) ticket: u64,
    /// What existed when tracking began.
    pub(super) pages: LivePages,
}

impl CatchUp {
    /// What is to be compared.
    #[must_use]
    pub fn pages(&self) -> &LivePages {
        &self.pages
    }
}

/// Pages of a rank that runs. The kernel tracks them from a moment before they are read.
#[derive(Debug)]
pub struct LivePages {
    pub(super) rank: Rank,
    /// First address of the slot.
    pub(super) slot: usize,
    /// Their numbers.
    pub(super) pages: Vec<Range<u64>>,
}

impl LivePages {
    /// Whose memory it is.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Their numbers.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.pages
    }

    /// Reads the pages as they are now, on any thread; `each` gets their numbers and bytes. A page that is written at the same
    /// time may come torn, which does no harm: it counts as written anyway.
    ///
    /// # Errors
    /// A page can't be read, because its slot is gone.
    pub fn read(&self, mut each: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        for range in &self.pages {
            let mut next = range.start;
            while next < range.end {
                let count = ((range.end - next) as usize).min(READ_BYTES / PAGE_BYTES);
                let bytes = &mut buffer[..count * PAGE_BYTES];
                copy(self.slot + next as usize * PAGE_BYTES, bytes)?;
                for (page, bytes) in (next..).zip(bytes.chunks_exact(PAGE_BYTES)) {
                    each(page, bytes);
                }
                next += count as u64;
            }
        }
        Ok(())
    }
}

/// Copies memory that others may be writing to, by the kernel (process_vm_readv(2) of this process): for which, unlike
/// for a read of our own, that is no error.
fn copy(address: usize, into: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address),
        iov_len: into.len(),
    };
    // SAFETY: the kernel writes into the buffer and nowhere else; addresses that can't be read are an error.
    let copied = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    match usize::try_from(copied) {
        Ok(copied) if copied == into.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
