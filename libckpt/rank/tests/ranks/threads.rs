//! Threads: in whose memory they allocate, and which of them stand in the way of a capture.

use std::sync::mpsc;
use std::thread;

use libckpt_rank::capture::CaptureError;
use libckpt_rank::{RankMemory, Resumed, Slot, in_process, library_thread, suspend};
use protocol::ids::Rank;

use crate::child::{FullCopy, layout, prepare, print, sole_slot};
use crate::{roles, tests};

tests![
    a_live_thread_of_the_rank_refuses_capture_by_its_name,
    threads_that_have_ended_refuse_nothing,
    a_thread_of_a_sole_rank_allocates_in_its_slot,
    a_thread_of_one_of_several_ranks_does_when_it_says_so,
    a_library_thread_never_allocates_in_a_slot,
    the_start_of_a_library_thread_leaves_a_slot_as_it_is,
    threads_of_a_rank_allocate_at_the_same_time_as_the_rank,
];

roles![
    threaded,
    threaded_before,
    sole_threads,
    several_threads,
    library_threads,
    starting,
    crowded,
];

/// Does a value lie in the slot of this rank (of a job with small slots)?
fn is_in_slot<T: ?Sized>(value: &T, rank: u32) -> bool {
    let address = std::ptr::from_ref(value).cast::<u8>() as u64;
    layout(4).rank_of(address) == Some(Rank(rank))
}

fn a_live_thread_of_the_rank_refuses_capture_by_its_name() {
    let told = print("threaded", &[]);
    assert!(
        told.contains("worker-7") && told.contains("worker-8"),
        "{told}"
    );
    assert!(!told.contains("ckpt-writer"), "{told}");
}

fn threaded(_: &[String]) {
    let mut slot = sole_slot();
    let (stop_writer, stopped) = mpsc::channel::<()>();
    let writer = library_thread("ckpt-writer", move || stopped.recv()).unwrap();
    slot.start(|| {
        let (end, ended) = mpsc::channel::<()>();
        let idle = thread::Builder::new()
            .name("worker-7".to_owned())
            .spawn(move || ended.recv())
            .unwrap();
        thread::scope(|scope| {
            thread::Builder::new()
                .name("worker-8".to_owned())
                .spawn_scoped(scope, || {
                    while !thread::panicking() && !DONE.load() {
                        thread::yield_now();
                    }
                })
                .unwrap();
            suspend();
            DONE.store();
        });
        drop(end);
        let _ = idle.join();
        suspend();
    });
    slot.resume();
    let mut copy = FullCopy::new();
    let error = copy.take(&slot).unwrap_err();
    assert!(matches!(error, CaptureError::LiveThreads { .. }));
    println!("{error}");
    // The threads have been joined: nothing is in the way, the library's thread least of all.
    slot.resume();
    copy.take(&slot).unwrap();
    drop(stop_writer);
    let _ = writer.join();
}

/// A flag between the rank and its thread.
struct Flag(std::sync::atomic::AtomicBool);

static DONE: Flag = Flag(std::sync::atomic::AtomicBool::new(false));

impl Flag {
    fn load(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Acquire)
    }

    fn store(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Release);
    }
}

fn threads_that_have_ended_refuse_nothing() {
    print("threaded_before", &[]);
}

fn threaded_before(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| {
        for _ in 0..300 {
            // Joined the moment before: the kernel may still list it.
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| std::hint::black_box(Box::new(1)));
                }
            });
            suspend();
        }
    });
    let mut copy = FullCopy::new();
    while let Resumed::Suspended = slot.resume() {
        copy.take(&slot).unwrap();
    }
}

fn a_thread_of_a_sole_rank_allocates_in_its_slot() {
    print("sole_threads", &[]);
}

fn sole_threads(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| {
        let sums = thread::spawn(|| vec![1.0; 1000]).join().unwrap();
        assert!(is_in_slot(&sums[0], 0));
        let grown = thread::scope(|scope| {
            let mut sums = sums;
            scope
                .spawn(move || {
                    sums.extend(vec![2.0; 1_000_000]);
                    sums
                })
                .join()
                .unwrap()
        });
        assert!(is_in_slot(&grown[1_000_999], 0));
        assert_eq!(grown.iter().sum::<f64>(), 2_001_000.0);
    });
    assert!(matches!(slot.resume(), Resumed::Finished));
}

fn a_thread_of_one_of_several_ranks_does_when_it_says_so() {
    print("several_threads", &[]);
}

fn several_threads(_: &[String]) {
    prepare();
    let mut slots = [0, 1, 2, 3].map(|rank| Slot::create(layout(4), Rank(rank)).unwrap());
    slots[2].start(|| {
        let memory = RankMemory::current();
        let (unsaid, said) = thread::spawn(move || {
            let unsaid = Box::new(5);
            (unsaid, memory.enter(|| Box::new(6)))
        })
        .join()
        .unwrap();
        assert!(!(0..4).any(|rank| is_in_slot(&*unsaid, rank)));
        assert!(is_in_slot(&*said, 2));
        assert_eq!(*unsaid + *said, 11);
    });
    assert!(matches!(slots[2].resume(), Resumed::Finished));
}

fn a_library_thread_never_allocates_in_a_slot() {
    print("library_threads", &[]);
}

fn library_threads(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| {
        // Even when it is started from a rank, with a closure that owns memory of the rank.
        let mine = vec![1_u8; 100];
        assert!(is_in_slot(&mine[0], 0));
        let theirs = in_process(|| {
            library_thread("ckpt-test", move || mine.clone())
                .unwrap()
                .join()
        });
        assert!(!is_in_slot(&theirs.unwrap()[0], 0));
    });
    assert!(matches!(slot.resume(), Resumed::Finished));
}

fn the_start_of_a_library_thread_leaves_a_slot_as_it_is() {
    print("starting", &[]);
}

/// Bytes of a slot's header that are looked at: more than it has.
const HEADER_BYTES: usize = 64 << 10;

fn starting(_: &[String]) {
    let slot = sole_slot();
    let header = || {
        let at: *const u8 = std::ptr::with_exposed_provenance(slot.address() as usize);
        // SAFETY: the first pages of the slot are its header, mapped and readable; no rank runs.
        (0..HEADER_BYTES)
            .map(|offset| unsafe { at.add(offset).read_volatile() })
            .collect::<Vec<_>>()
    };
    let before = header();
    // The standard library makes a copy of the name in the new thread, before that runs anything of ours.
    for number in 0..20 {
        let started = library_thread(&format!("ckpt-test-{number}"), || ());
        started.unwrap().join().unwrap();
        assert!(header() == before, "the heap was used");
    }
}

fn threads_of_a_rank_allocate_at_the_same_time_as_the_rank() {
    print("crowded", &[]);
}

fn crowded(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| {
        let work = |seed: usize| {
            let mut kept: Vec<Vec<usize>> = Vec::new();
            for round in 0..20_000 {
                let length = (round * 7919 + seed * 104_729) % 300 + 1;
                kept.push(vec![length; length]);
                if kept.len() > 100 {
                    let gone = kept.swap_remove((round * 31) % 100);
                    assert!(gone.iter().all(|&value| value == gone.len()));
                }
            }
            kept
        };
        let all: Vec<Vec<Vec<usize>>> = thread::scope(|scope| {
            let threads: Vec<_> = (1..4).map(|seed| scope.spawn(move || work(seed))).collect();
            let own = work(0);
            let mut all: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            all.push(own);
            all
        });
        // The rank frees what its threads have allocated.
        assert!(
            all.iter()
                .flatten()
                .flatten()
                .all(|value| is_in_slot(value, 0))
        );
        drop(all);
    });
    assert!(matches!(slot.resume(), Resumed::Finished));
}
