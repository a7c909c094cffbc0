//! Sleeping until something happens, without ever missing it.
//!
//! A [`Bell`] is a word that says whether its owner is asleep. The owner says so, looks once more at
//! everything that could wake it, and only then sleeps; whoever makes something happen does it first
//! and looks at the bell afterwards. All four steps are sequentially consistent, so they have one
//! order that all agree on: either the owner's last look sees what happened, or the other side's look
//! sees the sleeper and wakes it. (Two threads that each write one word and read the other's, and must
//! not both read the old value: Dekker's pattern. Weaker orderings allow exactly that.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::futex;
use crate::shm::SharedBell;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

/// Says whether a process is asleep, and is what it sleeps on. All zeros is an awake one.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Bell {
    state: AtomicU32,
}

impl Bell {
    /// Wakes the owner if it sleeps. What it is to find must have been written before, with an
    /// operation that is sequentially consistent.
    #[inline]
    pub(crate) fn ring(&self) {
        if self.state.load(Ordering::SeqCst) == ASLEEP {
            self.wake();
        }
    }

    /// Of several that see the sleeper, one makes the system call.
    #[cold]
    fn wake(&self) {
        if self.state.swap(AWAKE, Ordering::SeqCst) == ASLEEP {
            futex::wake_one(&self.state);
        }
    }

    /// Tells everybody that the owner sleeps, which it does after one more look.
    pub(crate) fn fall_asleep(&self) {
        self.state.store(ASLEEP, Ordering::SeqCst);
    }

    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.state.load(Ordering::SeqCst) == ASLEEP
    }

    /// Sleeps until the bell rings or `longest` is over, unless `look` finds something after the others
    /// were told of the sleep. `look` must read with sequentially consistent operations. Only the owner calls this.
    pub(crate) fn sleep<T>(
        &self,
        longest: Duration,
        look: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        self.fall_asleep();
        let found = look();
        if found.is_none() {
            futex::wait(&self.state, ASLEEP, longest);
        }
        self.state.store(AWAKE, Ordering::SeqCst);
        found
    }
}

/// Ends the idling of a process from any of its threads. Cheap to clone.
///
/// A wake is remembered: when the process is not idle, its next [`idle`](crate::Transport::idle)
/// returns at once. Several wakes before that count as one.
#[derive(Clone, Debug)]
pub struct Waker {
    woken: Arc<AtomicBool>,
    bell: BellOf,
}

#[derive(Clone, Debug)]
enum BellOf {
    Shared(SharedBell),
    Local(Arc<Bell>),
}

impl Waker {
    pub(crate) fn shared(bell: SharedBell) -> Self {
        Self {
            woken: Arc::default(),
            bell: BellOf::Shared(bell),
        }
    }

    pub(crate) fn local() -> Self {
        Self {
            woken: Arc::default(),
            bell: BellOf::Local(Arc::default()),
        }
    }

    /// Makes [`idle`](crate::Transport::idle) return. Whatever was written before this call is
    /// visible to the process after it.
    pub fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        self.bell().ring();
    }

    /// Whether it was used since the last time this was asked.
    pub(crate) fn take(&self) -> bool {
        // Looked at in every turn of a spin: no write unless there is something to take.
        self.woken.load(Ordering::SeqCst) && self.woken.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn bell(&self) -> &Bell {
        match &self.bell {
            BellOf::Shared(bell) => bell.bell(),
            BellOf::Local(bell) => bell,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::stepped::watchdog;

    /// The owner goes to sleep at once, without looking first, and the other side rings at about that
    /// time. A bell that is not heard means sleeping for ever. (Every order of the two sides' instructions
    /// is gone through in `shm::links`; here they really run at once, store buffers and all.)
    #[test]
    fn a_bell_is_heard_by_who_is_just_falling_asleep() {
        const ROUNDS: u32 = 20_000;
        watchdog();
        let bell = Bell::default();
        let rung = AtomicU32::new(0);
        let heard = AtomicU32::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    (0..round % 200).for_each(|_| std::hint::spin_loop());
                    rung.store(round, Ordering::SeqCst);
                    bell.ring();
                    while heard.load(Ordering::SeqCst) < round {
                        thread::yield_now();
                    }
                }
            });
            for round in 1..=ROUNDS {
                let look = || (rung.load(Ordering::SeqCst) == round).then_some(());
                while bell.sleep(Duration::MAX, look).or_else(look).is_none() {}
                heard.store(round, Ordering::SeqCst);
            }
        });
    }
}
