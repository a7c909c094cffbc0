//! Work that several threads of the library do together: each takes pieces of it until there are none.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libckpt_rank::library_thread;

/// Work in pieces, any of which any thread can do.
pub(super) trait Work: Send + Sync + 'static {
    /// What a thread keeps from piece to piece.
    type Scratch: Default;

    /// How many pieces there are.
    fn pieces(&self) -> usize;

    /// Whether nobody wants it any more.
    fn is_given_up(&self) -> bool;

    /// Does the piece of this number, which no other thread does.
    ///
    /// # Errors
    /// It can't be done, nor can the whole then.
    fn do_piece(&self, piece: usize, scratch: &mut Self::Scratch) -> Result<(), String>;
}

/// Does all of a work by so many threads, the calling one and others with this name; fewer where the system starts no more. Gives
/// the work back, done.
///
/// # Errors
/// What the first piece that could not be done says: the threads take no more pieces then. Or the work was given up, or a thread
/// panicked.
pub(super) fn do_together<W: Work>(work: W, threads: usize, name: &str) -> Result<W, String> {
    let shared = Arc::new(Shared {
        work,
        next: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
        failed: Mutex::new(None),
    });
    let helpers: Vec<_> = (1..threads)
        .map_while(|_| {
            let shared = shared.clone();
            library_thread(name, move || shared.take_part()).ok()
        })
        .collect();
    shared.take_part();
    for helper in helpers {
        if helper.join().is_err() {
            shared.fail("a thread that brought its pages panicked".to_owned());
        }
    }
    let shared = Arc::into_inner(shared).ok_or("a thread still brings its pages")?;
    let failed = shared.failed.into_inner();
    match failed.unwrap_or_else(PoisonError::into_inner) {
        Some(reason) => Err(reason),
        None => Ok(shared.work),
    }
}

struct Shared<W> {
    work: W,
    /// The piece that nobody has taken.
    next: AtomicUsize,
    /// Set when it has failed, after the reason was noted.
    is_over: AtomicBool,
    /// Why the first of the threads that failed did.
    failed: Mutex<Option<String>>,
}

impl<W: Work> Shared<W> {
    /// Takes pieces and does them until there are none.
    fn take_part(&self) {
        let mut scratch = W::Scratch::default();
        while !self.is_over.load(Ordering::SeqCst) {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.work.pieces() {
                return;
            }
            let done = match self.work.is_given_up() {
                true => Err("it was given up".to_owned()),
                false => self.work.do_piece(piece, &mut scratch),
            };
            if let Err(reason) = done {
                return self.fail(reason);
            }
        }
    }

    fn fail(&self, reason: String) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(reason);
        self.is_over.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Work for tests: what is done with a piece, how many there are, whether it was given up, and how often each was done.
    struct Tried<F> {
        piece: F,
        given_up: AtomicBool,
        done: Vec<AtomicUsize>,
        pieces: usize,
    }

    impl<F> Tried<F> {
        fn new(pieces: usize, piece: F) -> Self {
            Self {
                piece,
                given_up: AtomicBool::new(false),
                done: (0..1000).map(|_| AtomicUsize::new(0)).collect(),
                pieces,
            }
        }
    }

    impl<F: Fn(usize) -> Result<(), String> + Send + Sync + 'static> Work for Tried<F> {
        type Scratch = Option<usize>;

        fn pieces(&self) -> usize {
            self.pieces
        }

        fn is_given_up(&self) -> bool {
            self.given_up.load(Ordering::SeqCst)
        }

        fn do_piece(&self, piece: usize, last: &mut Option<usize>) -> Result<(), String> {
            // A thread's pieces ascend, and what it keeps is its own.
            assert!(last.replace(piece).is_none_or(|last| last < piece));
            if let Some(done) = self.done.get(piece) {
                done.fetch_add(1, Ordering::SeqCst);
            }
            (self.piece)(piece)
        }
    }

    #[test]
    fn every_piece_is_done_once_by_however_many_threads() {
        for threads in [0, 1, 2, 5] {
            let work = Tried::new(1000, |_| Ok(()));
            let work = do_together(work, threads, "tried").unwrap();
            assert!(work.done.iter().all(|it| it.load(Ordering::SeqCst) == 1));
        }
        assert!(do_together(Tried::new(0, |_| Ok(())), 3, "tried").is_ok());
    }

    #[test]
    fn all_threads_take_part_and_end_when_one_fails() {
        // Whoever takes a piece waits until all have one. Of those there are more than could ever be done.
        let threads = 3;
        let all = Barrier::new(threads);
        let work = Tried::new(usize::MAX / 2, move |piece| {
            if piece < threads {
                all.wait();
            }
            match piece {
                2 => Err("the disk is gone".to_owned()),
                _ => Ok(()),
            }
        });
        let failed = do_together(work, threads, "tried").err();
        assert_eq!(failed.as_deref(), Some("the disk is gone"));
    }

    #[test]
    fn work_that_was_given_up_is_not_begun() {
        let work = Tried::new(5, |_| panic!("it is begun"));
        work.given_up.store(true, Ordering::SeqCst);
        let failed = do_together(work, 2, "tried").err();
        assert_eq!(failed.as_deref(), Some("it was given up"));
    }

    #[test]
    fn a_helper_that_panics_is_a_failure() {
        let all = Barrier::new(2);
        let work = Tried::new(2, move |_| {
            all.wait();
            assert_ne!(std::thread::current().name(), Some("panics"));
            Ok(())
        });
        let failed = do_together(work, 2, "panics").err();
        assert!(failed.is_some_and(|it| it.contains("panicked")));
    }
}
