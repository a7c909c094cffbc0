//! Reading another process's memory: `process_vm_readv(2)`, one copy and no help from its owner.

use std::io::{Error, IoSliceMut};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::{BulkError, BulkSource};

/// The most bytes asked for in one call: the kernel's own limit for one transfer (`MAX_RW_COUNT`) is
/// just below 2 GiB, and a shorter call lets a signal in between.
const CALL_BYTES_MAX: usize = 1 << 30;

/// Reads `into.len()` bytes at `from.address` of the process with this pid.
pub(crate) fn read(pid: i32, from: BulkSource, into: &mut [u8]) -> Result<(), BulkError> {
    let mut done_bytes = 0;
    while done_bytes < into.len() {
        let remaining_bytes = into.len() - done_bytes;
        let call_bytes = remaining_bytes.min(CALL_BYTES_MAX);
        let address = from.address.wrapping_add(done_bytes as u64);
        let local = &mut [IoSliceMut::new(&mut into[done_bytes..][..call_bytes])];
        // Lossless: this crate is for 64-bit Linux only.
        let remote = &[RemoteIoVec {
            base: address as usize,
            len: call_bytes,
        }];
        match process_vm_readv(Pid::from_raw(pid), local, remote) {
            // A transfer may stop early at a page that is not there; the next call then says why.
            Ok(read_bytes) if read_bytes > 0 => done_bytes += read_bytes,
            Ok(_) | Err(Errno::EFAULT) => {
                return Err(BulkError::NotMapped {
                    process: from.process,
                    address,
                    remaining_bytes,
                });
            }
            Err(Errno::EINTR) => {}
            Err(Errno::ESRCH) => {
                return Err(BulkError::Gone {
                    process: from.process,
                });
            }
            Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS)) => {
                return Err(BulkError::Forbidden {
                    process: from.process,
                    source: Error::from(errno),
                });
            }
            Err(errno) => {
                return Err(BulkError::System {
                    process: from.process,
                    address,
                    remaining_bytes,
                    source: Error::from(errno),
                });
            }
        }
    }
    Ok(())
}
