//! The shared memory as mapped into this process, and typed places in it.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::waker::Bell;

/// Words of 64 pending bits in a [`Record`].
pub(super) const PENDING_WORDS: usize = 8;

/// What may be placed in shared memory.
///
/// # Safety
/// All fields are atomics, so that other processes may write them at any time, and every bit pattern
/// is a value.
pub(super) unsafe trait InSharedMemory {}

/// What others need to know of a process.
#[repr(C, align(64))]
pub(crate) struct Record {
    bell: Bell,
    pending: Pending,
    pid: Pid,
}

// SAFETY: atomics only, for which every bit pattern is a value.
unsafe impl InSharedMemory for Record {}

/// A bit for each process whose packets wait on a link that this process does not watch.
#[repr(C, align(64))]
struct Pending {
    words: [AtomicU64; PENDING_WORDS],
}

#[repr(C, align(64))]
struct Pid {
    /// 0 until the process has joined.
    pid: AtomicU32,
}

impl Record {
    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// By a sender, after its packet: look at the link from process `from`.
    pub(super) fn set_pending(&self, from: usize) {
        self.pending.words[from / 64].fetch_or(1 << (from % 64), Ordering::SeqCst);
    }

    /// Whether any of the first `words` words has a bit set.
    #[inline]
    pub(super) fn has_pending(&self, words: usize) -> bool {
        self.pending.words[..words]
            .iter()
            .any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// By the process itself: the senders that set their bit in this word since it was last taken.
    pub(super) fn take_pending(&self, word: usize) -> impl Iterator<Item = usize> + use<> {
        let mut bits = self.pending.words[word].swap(0, Ordering::SeqCst);
        std::iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(word * 64 + bit)
        })
    }

    /// The process's pid, once it has joined.
    pub(super) fn pid(&self) -> Option<i32> {
        // Lossless: pids are positive i32.
        Some(self.pid.pid.load(Ordering::Acquire) as i32).filter(|&pid| pid > 0)
    }

    /// Joins as the process with this pid; the pid of another that did so before is the error.
    pub(super) fn join(&self, pid: u32) -> Result<(), u32> {
        self.pid
            .pid
            .compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
}

/// The shared memory, mapped until nobody here refers to it any more.
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; what it holds is reached by atomics only,
// or by the two ends of a ring under the ring's own protocol.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` bytes of `file`, which must not get shorter (it is sealed).
    pub(super) fn new(file: &File, bytes: usize) -> io::Result<Arc<Self>> {
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice: nothing existing is touched.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
                file,
                0,
            )
        }?;
        Ok(Arc::new(Self {
            base: base.cast(),
            bytes,
        }))
    }

    /// The `bytes` bytes at `offset`.
    ///
    /// # Panics
    /// If they are not all inside the mapping.
    pub(super) fn bytes(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        assert!(offset <= self.bytes && bytes <= self.bytes - offset);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; every reference into it holds this alive.
        if let Err(error) = unsafe { munmap(self.base.cast(), self.bytes) } {
            tracing::warn!(%error, "could not unmap the shared memory of the links");
        }
    }
}

/// A `T` in shared memory, which keeps the memory mapped.
pub(super) struct Shared<T> {
    at: NonNull<T>,
    _mapping: Arc<Mapping>,
    _of: PhantomData<T>,
}

// SAFETY: gives shared references to a T only, and T is made of atomics (InSharedMemory, see `new`).
unsafe impl<T: InSharedMemory> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: InSharedMemory> Sync for Shared<T> {}

impl<T: InSharedMemory> Shared<T> {
    /// The `T` at `offset`.
    ///
    /// # Panics
    /// If it would not lie inside the mapping, or not be aligned.
    pub(super) fn new(mapping: &Arc<Mapping>, offset: usize) -> Self {
        let at = mapping.bytes(offset, size_of::<T>()).cast::<T>();
        assert!(at.is_aligned());
        Self {
            at,
            _mapping: Arc::clone(mapping),
            _of: PhantomData,
        }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self {
            at: self.at,
            _mapping: Arc::clone(&self._mapping),
            _of: PhantomData,
        }
    }
}

impl<T: InSharedMemory> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: inside the mapping and aligned (`new`), mapped as long as `self` lives; any bytes are
        // a T, and others change it through atomics only (InSharedMemory).
        unsafe { self.at.as_ref() }
    }
}

/// The bell of a process, for its [`Waker`](crate::Waker).
#[derive(Clone)]
pub(crate) struct SharedBell(pub(super) Shared<Record>);

impl SharedBell {
    pub(crate) fn bell(&self) -> &Bell {
        self.0.bell()
    }
}

impl fmt::Debug for SharedBell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedBell").field(self.bell()).finish()
    }
}
