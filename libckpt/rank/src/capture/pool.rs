//! The memory that pages are saved into: blocks of 2 MiB, kept and used again, never more than a budget.
//!
//! Touching fresh memory costs several times what copying costs, so blocks go back to the pool. Whoever wants
//! one when the budget is used up waits until the pages of another one are on their way to the disk.

use std::io;
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use protocol::page::is_zero;

use crate::context::in_process;
use crate::layout::PAGE_BYTES;
use crate::touch::touch;

/// Size of a block in bytes: a huge page. Touching a new one takes far less time than touching its 512 small
/// pages.
pub const BLOCK_BYTES: usize = 2 << 20;

/// Pages of a block.
pub const BLOCK_PAGES: usize = BLOCK_BYTES / PAGE_BYTES;

/// Blocks that saving in the background leaves to ranks that wait.
const RESERVE: usize = 2;

/// Blocks are given back where there are more than so many times those wanted, and so many more.
const SURPLUS: usize = 2;
const SURPLUS_MIN: usize = 32;

/// Fewest blocks of a pool.
const BLOCKS_MIN: usize = 4;

/// Who wants a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A rank stands still until it is there.
    Rank,
    /// Nobody waits for it.
    Background,
}

/// The blocks of a process.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<Memory>,
    /// Blocks made so far, free or not.
    made: usize,
    /// Most blocks that may be made.
    limit: usize,
}

impl Pool {
    /// A pool of at most `budget_bytes`, though of a few blocks at least. Nothing is allocated yet.
    #[must_use]
    pub fn new(budget_bytes: usize) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                free: Vec::new(),
                made: 0,
                limit: limit(budget_bytes),
            }),
            returned: Condvar::new(),
        }))
    }

    /// From now on it takes at most so much memory, though a few blocks at least. What is more of it is given back
    /// as it comes in.
    pub fn set_budget(&self, budget_bytes: usize) {
        let mut state = self.lock();
        state.limit = limit(budget_bytes);
        while state.made > state.limit && state.free.pop().is_some() {
            state.made -= 1;
        }
    }

    /// Most memory that it takes, in bytes.
    #[must_use]
    pub fn budget_bytes(&self) -> usize {
        self.lock().limit * BLOCK_BYTES
    }

    /// Memory that it has taken, in bytes.
    #[must_use]
    pub fn made_bytes(&self) -> usize {
        self.lock().made * BLOCK_BYTES
    }

    /// Whether there are blocks for so many bytes, as far as the budget allows, and not far more.
    #[must_use]
    pub fn fits(&self, bytes: usize) -> bool {
        let wanted = bytes.div_ceil(BLOCK_BYTES);
        let state = self.lock();
        state.made >= wanted.min(state.limit) && state.made <= wanted * SURPLUS + SURPLUS_MIN
    }

    /// Makes blocks until there are enough for so many bytes, as far as the budget allows: better now than
    /// while a rank waits. Where there are far more, free ones are given back to the system.
    pub fn make_room(&self, bytes: usize) {
        let wanted = bytes.div_ceil(BLOCK_BYTES);
        loop {
            let surplus = {
                let mut state = self.lock();
                if state.made > wanted * SURPLUS + SURPLUS_MIN {
                    let surplus = state.made - wanted;
                    let kept = state.free.len().saturating_sub(surplus);
                    let surplus = state.free.split_off(kept);
                    state.made -= surplus.len();
                    surplus
                } else if state.made >= wanted.min(state.limit) {
                    return;
                } else {
                    state.made += 1;
                    Vec::new()
                }
            };
            if !surplus.is_empty() {
                return;
            }
            match Memory::new() {
                Ok(memory) => self.put(memory),
                Err(_) => {
                    self.lock().made -= 1;
                    return;
                }
            }
        }
    }

    /// An empty block. Waits for one where the budget is used up, or the system has no memory though blocks
    /// are in use.
    ///
    /// # Errors
    /// When the system has no memory, and there is nothing to wait for.
    pub(super) fn take(&self, need: Need) -> io::Result<Block> {
        // A rank that frees memory may come here with its own heap locked.
        in_process(|| self.take_in_process(need))
    }

    fn take_in_process(&self, need: Need) -> io::Result<Block> {
        let kept_back = match need {
            Need::Rank => 0,
            Need::Background => RESERVE,
        };
        let mut state = self.lock();
        loop {
            if state.free.len() + state.limit.saturating_sub(state.made) > kept_back {
                if let Some(memory) = state.free.pop() {
                    return Ok(self.block(memory));
                }
                state.made += 1;
                drop(state);
                match Memory::new() {
                    Ok(memory) => return Ok(self.block(memory)),
                    Err(error) => {
                        state = self.lock();
                        state.made -= 1;
                        if state.made == 0 {
                            return Err(error);
                        }
                        // Those that exist have to do.
                        state.limit = state.made;
                        continue;
                    }
                }
            }
            state = self
                .0
                .returned
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn block(&self, memory: Memory) -> Block {
        Block {
            memory: Some(memory),
            pages: Vec::with_capacity(BLOCK_PAGES),
            pool: self.clone(),
        }
    }

    fn put(&self, memory: Memory) {
        {
            let mut state = self.lock();
            if state.made > state.limit {
                state.made -= 1;
            } else {
                state.free.push(memory);
            }
        }
        self.0.returned.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limit(budget_bytes: usize) -> usize {
    (budget_bytes / BLOCK_BYTES).max(BLOCKS_MIN)
}

/// Pages of a rank: their numbers, counted from the start of the slot, and their bytes. Its memory goes back to
/// the pool when it is dropped.
#[derive(Debug)]
pub struct Block {
    memory: Option<Memory>,
    pages: Vec<u64>,
    pool: Pool,
}

impl Block {
    /// The numbers of the pages held, in the order of their bytes.
    #[must_use]
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// The bytes of all pages held, [`PAGE_BYTES`] for each number.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let bytes = self.pages.len() * PAGE_BYTES;
        self.memory
            .as_ref()
            // SAFETY: so many bytes have been written, and the block is borrowed.
            .map_or(&[], |memory| unsafe {
                std::slice::from_raw_parts(memory.0, bytes)
            })
    }

    /// Drops the pages that `keep` does not want to have, by index and bytes; the others close up.
    pub fn retain(&mut self, mut keep: impl FnMut(usize, &[u8]) -> bool) {
        let Some(memory) = &self.memory else {
            return;
        };
        let mut kept = 0;
        for index in 0..self.pages.len() {
            // SAFETY: so many pages have been written, and the block is borrowed exclusively; the place of a
            // page that is kept lies before it or is its own.
            unsafe {
                let page = memory.0.add(index * PAGE_BYTES);
                if !keep(index, std::slice::from_raw_parts(page, PAGE_BYTES)) {
                    continue;
                }
                if kept != index {
                    ptr::copy_nonoverlapping(page, memory.0.add(kept * PAGE_BYTES), PAGE_BYTES);
                }
            }
            self.pages[kept] = self.pages[index];
            kept += 1;
        }
        self.pages.truncate(kept);
    }

    /// Whether there is no room for another page.
    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Pages that it can take.
    pub(super) fn room(&self) -> usize {
        BLOCK_PAGES - self.pages.len()
    }

    /// Copies those of a run of pages that are not all zero. There must be room.
    ///
    /// # Safety
    /// So many pages are mapped and readable from `source` on, and nobody writes to them meanwhile, other than
    /// what [`crate::capture`] says about freed blocks.
    pub(super) unsafe fn push_pages(&mut self, first: u64, source: *const u8, pages: usize) {
        assert!(pages <= self.room());
        let Some(memory) = &self.memory else {
            return;
        };
        // SAFETY: as the caller says.
        let source =
            unsafe { std::slice::from_raw_parts(source.cast::<[u8; PAGE_BYTES]>(), pages) };
        let mut next = 0;
        while next < pages {
            if is_zero(&source[next]) {
                next += 1;
                continue;
            }
            let start = next;
            while next < pages && !is_zero(&source[next]) {
                next += 1;
            }
            let run = &source[start..next];
            // SAFETY: there is room, as asserted; the block is other memory.
            unsafe {
                ptr::copy_nonoverlapping(
                    run.as_ptr().cast(),
                    memory.0.add(self.pages.len() * PAGE_BYTES),
                    run.len() * PAGE_BYTES,
                );
            }
            self.pages.extend(first + start as u64..first + next as u64);
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.put(memory);
        }
    }
}

/// A mapping of [`BLOCK_BYTES`] on a boundary of that size, all touched.
#[derive(Debug)]
struct Memory(*mut u8);

// SAFETY: the mapping is owned, and reached only through the block that holds it.
unsafe impl Send for Memory {}
// SAFETY: a shared block is only read.
unsafe impl Sync for Memory {}

impl Memory {
    fn new() -> io::Result<Self> {
        // Twice as much, so that a boundary is in it.
        let at = map(2 * BLOCK_BYTES)?;
        let start = at.next_multiple_of(BLOCK_BYTES);
        // SAFETY: the two ends of the mapping just made.
        unsafe {
            if start > at {
                libc::munmap(at as *mut _, start - at);
            }
            let end = start + BLOCK_BYTES;
            if end < at + 2 * BLOCK_BYTES {
                libc::munmap(end as *mut _, at + 2 * BLOCK_BYTES - end);
            }
        }
        let memory = Self(start as *mut u8);
        // SAFETY: advice about the mapping just made, which nobody else knows of.
        unsafe {
            libc::madvise(start as *mut _, BLOCK_BYTES, libc::MADV_HUGEPAGE);
            touch(memory.0, BLOCK_PAGES);
        }
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` and owned since.
        unsafe { libc::munmap(self.0.cast(), BLOCK_BYTES) };
    }
}

/// Maps memory that nobody has touched; gives its address.
pub(crate) fn map(bytes: usize) -> io::Result<usize> {
    // SAFETY: a new anonymous mapping.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(at as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::present;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    fn push(block: &mut Block, first: u64, source: &[u8]) {
        // SAFETY: a slice of whole pages.
        unsafe { block.push_pages(first, source.as_ptr(), source.len() / PAGE_BYTES) };
    }

    #[test]
    fn zero_pages_are_left_out_and_the_others_keep_their_numbers() {
        let mut source = vec![0_u8; 6 * PAGE_BYTES];
        source[PAGE_BYTES] = 1;
        source[3 * PAGE_BYTES - 1] = 2;
        source[5 * PAGE_BYTES + 77] = 3;
        let pool = Pool::new(BLOCK_BYTES);
        let mut block = pool.take(Need::Rank).unwrap();
        push(&mut block, 100, &source);
        assert_eq!(block.pages(), [101, 102, 105]);
        assert_eq!(block.bytes().len(), 3 * PAGE_BYTES);
        assert_eq!(block.bytes()[2 * PAGE_BYTES - 1], 2);
        block.retain(|index, _| index != 1);
        assert_eq!(block.pages(), [101, 105]);
        assert_eq!(block.bytes()[0], 1);
        assert_eq!(block.bytes()[PAGE_BYTES + 77], 3);
    }

    #[test]
    fn a_block_is_all_there_before_a_rank_waits_for_it() {
        let pool = Pool::new(0);
        let block = pool.take(Need::Rank).unwrap();
        let memory = block.memory.as_ref().unwrap();
        let start = memory.0.addr();
        let all = start..start + BLOCK_BYTES;
        assert_eq!(present(std::slice::from_ref(&all)), [all]);
    }

    #[test]
    fn memory_comes_back_and_there_is_never_more_than_the_budget() {
        let pool = Pool::new(0);
        assert_eq!(pool.budget_bytes(), BLOCKS_MIN * BLOCK_BYTES);
        for _ in 0..10 {
            let blocks: Vec<_> = (0..BLOCKS_MIN)
                .map(|_| pool.take(Need::Rank).unwrap())
                .collect();
            assert!(blocks.iter().all(|block| block.pages().is_empty()));
        }
        assert_eq!(pool.made_bytes(), BLOCKS_MIN * BLOCK_BYTES);
        pool.make_room(100 * BLOCK_BYTES);
        assert_eq!(pool.made_bytes(), BLOCKS_MIN * BLOCK_BYTES);
    }

    #[test]
    fn room_is_made_before_and_far_too_much_of_it_given_back() {
        let blocks = |count: usize| count * BLOCK_BYTES;
        let pool = Pool::new(blocks(60));
        assert!(pool.fits(0) && !pool.fits(1));
        pool.make_room(blocks(50));
        assert!(pool.fits(blocks(50)));
        let taken = pool.take(Need::Rank).unwrap();
        assert_eq!(pool.made_bytes(), blocks(50));
        assert!(pool.fits(blocks(10)), "not so much more");
        assert!(!pool.fits(blocks(2)));
        pool.make_room(blocks(2));
        assert_eq!(pool.made_bytes(), blocks(2));
        drop(taken);
    }

    #[test]
    fn a_smaller_budget_is_kept_as_soon_as_blocks_come_back() {
        let pool = Pool::new(10 * BLOCK_BYTES);
        let mut taken: Vec<_> = (0..8).map(|_| pool.take(Need::Rank).unwrap()).collect();
        taken.truncate(6);
        pool.set_budget(5 * BLOCK_BYTES);
        assert_eq!(pool.made_bytes(), 6 * BLOCK_BYTES, "those in use");
        taken.truncate(3);
        assert_eq!(pool.made_bytes(), 5 * BLOCK_BYTES);
        taken.extend((0..2).map(|_| pool.take(Need::Rank).unwrap()));
        assert_eq!(pool.made_bytes(), 5 * BLOCK_BYTES);
    }

    #[test]
    fn the_last_blocks_are_for_ranks_that_wait() {
        let pool = Pool::new(BLOCKS_MIN * BLOCK_BYTES);
        let mut taken: Vec<_> = (0..BLOCKS_MIN - RESERVE)
            .map(|_| pool.take(Need::Background).unwrap())
            .collect();
        let had = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let block = pool.take(Need::Background);
                had.store(true, Ordering::SeqCst);
                drop(block);
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!had.load(Ordering::SeqCst));
            // A rank gets one of those kept back, and it is not enough for the other when it comes back.
            drop(pool.take(Need::Rank).unwrap());
            assert!(!had.load(Ordering::SeqCst));
            taken.pop();
        });
        assert!(had.load(Ordering::SeqCst));
    }
}
