//! Values that are static in the program text but belong to a rank: [`RankLocal`].

use std::cell::Cell;

use crate::context::CONTEXT;

/// A value per rank, for what would otherwise be a `static` or a `thread_local!`.
///
/// A static of the program is not part of a rank's image, and is shared by all ranks of a process. A
/// `RankLocal` looks like one and lies in the rank's slot: it is made when a rank first uses it, moves
/// with the rank, and is restored with it. It is never dropped.
///
/// ```no_run
/// use std::cell::Cell;
/// use libckpt_rank::RankLocal;
///
/// static CALLS: RankLocal<Cell<u32>> = RankLocal::new(|| Cell::new(0));
///
/// fn count() -> u32 {
///     CALLS.with(|calls| {
///         calls.set(calls.get() + 1);
///         calls.get()
///     })
/// }
/// ```
pub struct RankLocal<T: 'static> {
    initial: fn() -> T,
    /// A static of size zero would share its address with others.
    _own_address: u8,
}

// SAFETY: the value is only reached by the rank that owns it, on the thread that the rank runs on.
unsafe impl<T> Sync for RankLocal<T> {}

impl<T: 'static> RankLocal<T> {
    /// A value that each rank makes with `initial` when it first uses it. To be put into a `static`:
    /// its address is what the value is found by.
    #[must_use]
    pub const fn new(initial: fn() -> T) -> Self {
        Self {
            initial,
            _own_address: 0,
        }
    }

    /// Uses the calling rank's value.
    ///
    /// # Panics
    /// When it is not called by a rank (in a thread that the rank started, for one).
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        let header = CONTEXT.with(|context| context.rank.get());
        assert!(
            !header.is_null(),
            "a RankLocal was used outside of a rank; threads that a rank starts have none"
        );
        // SAFETY: in rank context the slot is mapped, and only this thread uses its locals.
        let locals = unsafe { &(*header).locals };
        let key = std::ptr::from_ref(self) as usize;
        let value = locals.find(key).unwrap_or_else(|| {
            // The initial value may use other rank-local values, so nothing is held meanwhile.
            let value = Box::into_raw(Box::new((self.initial)())).cast::<()>();
            locals.insert(key, value);
            value
        });
        // SAFETY: found under this static's address, so it was made above with this type, in rank
        // context and so in the slot; it is never freed nor borrowed mutably.
        f(unsafe { &*value.cast::<T>() })
    }
}

/// The table in the slot's header: static's address to value, in the order of first use. Few enough
/// that a walk is quicker than a hash.
#[repr(C)]
pub(crate) struct RankLocals {
    newest: Cell<*const Entry>,
}

struct Entry {
    key: usize,
    value: *mut (),
    older: *const Entry,
}

impl RankLocals {
    fn find(&self, key: usize) -> Option<*mut ()> {
        let mut entry = self.newest.get();
        while !entry.is_null() {
            // SAFETY: entries are made by `insert` and never freed.
            let Entry {
                key: at,
                value,
                older,
            } = unsafe { &*entry };
            if *at == key {
                return Some(*value);
            }
            entry = *older;
        }
        None
    }

    fn insert(&self, key: usize, value: *mut ()) {
        let older = self.newest.get();
        self.newest
            .set(Box::into_raw(Box::new(Entry { key, value, older })));
    }
}
