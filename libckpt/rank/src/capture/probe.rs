//! Whether the kernel tracks writes as it says: what a kernel announces and what it does were not always the same.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::pagemap;
use crate::layout::PAGE_BYTES;
use crate::uffd::Uffd;

/// Tries the asynchronous mode on a page of its own.
pub(super) fn probe(asynchronous: &Uffd) -> io::Result<()> {
    let page = ProbePage::new()?;
    asynchronous.register(&page.0)?;
    let outcome = probe_tracking(&page);
    asynchronous.unregister(&page.0)?;
    outcome
}

fn probe_tracking(page: &ProbePage) -> io::Result<()> {
    page.write();
    let written = || -> io::Result<bool> {
        let found = pagemap::scan_tracked(page.0.clone())?;
        Ok(!found.written.is_empty())
    };
    let is = |expected: bool, what: &str| match written() {
        Ok(found) if found == expected => Ok(()),
        Ok(_) => Err(io::Error::other(what.to_owned())),
        Err(error) => Err(error),
    };
    is(true, "a written page is not told as written")?;
    is(false, "a page is told as written although it was not")?;
    page.write();
    is(true, "a write after the first scan is not told")?;
    // By a system call as well, which must not fail.
    let mut zeros = File::open("/dev/zero")?;
    // SAFETY: the page is mapped, and nobody else uses it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page.0.start as *mut u8, PAGE_BYTES) };
    io::Read::read_exact(&mut zeros, bytes)?;
    is(true, "a write by a system call is not told")
}

/// A mapped page.
struct ProbePage(Range<usize>);

impl ProbePage {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(at as usize..at as usize + PAGE_BYTES))
    }

    fn write(&self) {
        // SAFETY: the page is mapped and nobody else's.
        unsafe { std::ptr::write_volatile(self.0.start as *mut u8, 1) };
    }
}

impl Drop for ProbePage {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.0.start as *mut _, PAGE_BYTES) };
    }
}
