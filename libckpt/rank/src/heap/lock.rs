//! The lock around what the owner of a heap shares with other threads of its process.
//!
//! Taking it uncontended is one atomic exchange. It lies in the slot and is free whenever a rank is
//! captured: a rank stops inside the library, never inside its allocator.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

/// Tries before the processor is given to another thread.
const SPINS: u32 = 64;

/// A value behind a spin lock.
#[repr(C)]
pub(super) struct Lock<T> {
    taken: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is only reached through a guard, of which there is one at a time.
unsafe impl<T> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock.
    pub(super) const fn new(value: T) -> Self {
        Self {
            taken: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock, waiting for whoever holds it.
    #[inline]
    pub(super) fn lock(&self) -> Guard<'_, T> {
        if self.taken.swap(1, Ordering::Acquire) != 0 {
            self.wait();
        }
        Guard { lock: self }
    }

    /// Where the value lies, for the pointers that it keeps into itself.
    pub(super) const fn as_ptr(&self) -> *mut T {
        self.value.get()
    }

    /// Frees a lock that came with an image.
    pub(super) fn reset(&self) {
        self.taken.store(0, Ordering::Release);
    }

    #[cold]
    fn wait(&self) {
        let mut spins = 0;
        loop {
            while self.taken.load(Ordering::Relaxed) != 0 {
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    // The holder may be off the processor, or in a system call over a large run.
                    std::thread::yield_now();
                }
            }
            if self.taken.swap(1, Ordering::Acquire) == 0 {
                return;
            }
        }
    }
}

/// The right to use the locked value.
pub(super) struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> std::ops::Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> std::ops::DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and is borrowed for as long as the reference lives.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.taken.store(0, Ordering::Release);
    }
}
