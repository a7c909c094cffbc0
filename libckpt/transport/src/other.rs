//! Another process of the same machine, as any thread may use it: its memory and its descriptors.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use protocol::ids::Process;

use crate::{BulkError, BulkSource, bulk};

/// See the module. What is read is whatever is there: that the other keeps it unchanged is for the two to agree on.
#[derive(Clone, Copy, Debug)]
pub struct OtherProcess {
    process: Process,
    pid: i32,
}

impl OtherProcess {
    pub(crate) fn new(process: Process, pid: i32) -> Self {
        Self { process, pid }
    }

    /// This process itself: memory that others may be writing to can be read without a word that it is not.
    #[must_use]
    pub fn this(me: Process) -> Self {
        Self::new(me, std::process::id().cast_signed())
    }

    /// Reads memory, all of it or an error.
    ///
    /// # Errors
    /// As [`crate::Transport::bulk_read`].
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BulkError> {
        let process = self.process;
        bulk::read(self.pid, BulkSource { process, address }, into)
    }

    /// A descriptor of our own for what the other has open under this number: with its offset, its mode and its locks
    /// (pidfd_getfd(2), Linux 5.6). It takes the right that reading memory takes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: no pointers.
        let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) })?;
        // SAFETY: no pointers.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
    }
}

fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(answer) {
        // SAFETY: both calls give a descriptor that is new and nobody else's (close-on-exec).
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, SeekFrom};

    use super::*;

    fn this() -> OtherProcess {
        OtherProcess::this(Process(0))
    }

    #[test]
    fn memory_is_read_and_a_hole_is_an_error() {
        let bytes = [7_u8; 100];
        let mut into = [0; 100];
        this()
            .read(bytes.as_ptr().addr() as u64, &mut into)
            .unwrap();
        assert_eq!(into, bytes);
        assert!(matches!(
            this().read(8, &mut into),
            Err(BulkError::NotMapped { .. })
        ));
    }

    #[test]
    fn a_descriptor_shares_its_offset_with_the_other() {
        let mut file = File::open("/proc/version").unwrap();
        let mut ours = File::from(this().descriptor(file.as_raw_fd()).unwrap());
        file.seek(SeekFrom::Start(3)).unwrap();
        assert_eq!(ours.stream_position().unwrap(), 3);
        ours.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(file.stream_position().unwrap(), 5);
        assert!(this().descriptor(-1).is_err());
    }
}
