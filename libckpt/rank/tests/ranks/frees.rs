//! Blocks go back where they came from, whoever frees or grows them.

// Where a block is made is what is tested.
#![allow(clippy::unnecessary_to_owned)]

use std::mem;
use std::sync::Mutex;

use libckpt_rank::{Resumed, Slot, in_process, in_rank, library_thread, suspend};
use protocol::ids::Rank;

use crate::child::{FullCopy, layout, prepare, print, sole_slot};
use crate::{roles, tests};

tests![
    what_a_rank_allocates_lies_in_its_slot,
    a_block_grown_in_another_context_stays_where_it_was,
    blocks_freed_elsewhere_come_back_to_the_rank,
    a_rank_frees_what_another_allocated,
    a_rank_that_prints_and_panics_leaves_nothing_of_the_process_in_its_slot,
];

roles![located, grown, freed_elsewhere, freed_by_another, printed];

fn rank_of<T>(values: &[T]) -> Option<u32> {
    layout(2).rank_of(values.as_ptr() as u64).map(|rank| rank.0)
}

fn what_a_rank_allocates_lies_in_its_slot() {
    print("located", &[]);
}

fn located(_: &[String]) {
    prepare();
    let mut slots = [0, 1].map(|rank| Slot::create(layout(2), Rank(rank)).unwrap());
    for slot in &mut slots {
        slot.start(|| {
            let own = libckpt_rank::current_rank().map(|rank| rank.0);
            assert_eq!(rank_of(&[1; 3].to_vec()), own);
            assert_eq!(rank_of(&vec![0_u8; 10 << 20]), own, "zeroed and large");
            in_process(|| {
                assert_eq!(rank_of(&[1].to_vec()), None);
                assert_eq!(in_rank(|| rank_of(&[1].to_vec())), own);
            });
            suspend();
            assert_eq!(rank_of(&[1].to_vec()), own);
        });
    }
    for _ in 0..2 {
        for slot in &mut slots {
            slot.resume();
            assert_eq!(rank_of(&[1].to_vec()), None);
            assert_eq!(
                slot.in_memory(|| rank_of(&[1].to_vec())),
                Some(slot.rank().0)
            );
        }
    }
    assert!(slots.iter().all(Slot::is_finished));
}

fn a_block_grown_in_another_context_stays_where_it_was() {
    print("grown", &[]);
}

fn grown(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| {
        let mut own = vec![1_u32; 10];
        let mut process = in_process(|| vec![1_u32; 10]);
        for length in [20, 5000, 4_000_000] {
            in_process(|| own.resize(length, 1));
            process.resize(length, 1);
            assert_eq!(rank_of(&own), Some(0));
            assert_eq!(rank_of(&process), None);
        }
        assert_eq!(own, process);
        in_process(|| own.shrink_to(10));
        assert_eq!(rank_of(&own), Some(0));
    });
    assert!(matches!(slot.resume(), Resumed::Finished));
}

fn blocks_freed_elsewhere_come_back_to_the_rank() {
    print("freed_elsewhere", &[]);
}

fn freed_elsewhere(_: &[String]) {
    static HANDED_OVER: Mutex<Vec<Vec<u64>>> = Mutex::new(Vec::new());
    let mut slot = sole_slot();
    slot.start(|| {
        for round in 0..200 {
            let blocks: Vec<Vec<u64>> = (0..50).map(|n| vec![n; 2000 + round]).collect();
            in_process(|| HANDED_OVER.lock().unwrap().extend(blocks));
            suspend();
        }
    });
    // 160 MiB in all; the heap would have grown by so much if nothing came back.
    while let Resumed::Suspended = slot.resume() {
        let blocks = mem::take(&mut *HANDED_OVER.lock().unwrap());
        assert!(blocks.iter().all(|block| rank_of(block) == Some(0)));
        library_thread("ckpt-free", || drop(blocks))
            .unwrap()
            .join()
            .unwrap();
    }
    let mut copy = FullCopy::new();
    let image = copy.take(&slot).unwrap();
    assert!(
        image.len() * libckpt_rank::PAGE_BYTES < 16 << 20,
        "{} pages",
        image.len()
    );
}

fn a_rank_frees_what_another_allocated() {
    print("freed_by_another", &[]);
}

fn freed_by_another(_: &[String]) {
    static BETWEEN: Mutex<Option<Vec<String>>> = Mutex::new(None);
    prepare();
    let mut slots = [0, 1].map(|rank| Slot::create(layout(2), Rank(rank)).unwrap());
    for slot in &mut slots {
        slot.start(|| {
            for round in 0..100 {
                let mut between = BETWEEN.lock().unwrap();
                if let Some(strings) = between.take() {
                    assert_ne!(
                        rank_of(&strings),
                        libckpt_rank::current_rank().map(|rank| rank.0)
                    );
                    assert!(strings.iter().all(|text| text.starts_with("round")));
                }
                *between = Some((0..100).map(|n| format!("round {round}, {n}")).collect());
                drop(between);
                suspend();
            }
        });
    }
    for _ in 0..101 {
        for slot in &mut slots {
            if !slot.is_finished() {
                slot.resume();
            }
        }
    }
    assert!(slots.iter().all(Slot::is_finished));
}

fn a_rank_that_prints_and_panics_leaves_nothing_of_the_process_in_its_slot() {
    let told = print("printed", &[]);
    assert!(
        told.contains("printed by the rank") && told.contains("and by the next"),
        "{told}"
    );
}

/// If the buffer of stdout, or the symbol tables of a backtrace, lay in the first slot, its end would be
/// theirs.
fn printed(_: &[String]) {
    prepare();
    // SAFETY: no other thread exists.
    unsafe { std::env::set_var("RUST_BACKTRACE", "1") };
    for text in ["printed by the rank", "and by the next"] {
        let mut slot = Slot::create(layout(1), Rank(0)).unwrap();
        slot.start(move || {
            println!("{text}");
            eprintln!("{text}");
            let caught = std::panic::catch_unwind(|| panic!("{text}"));
            assert_eq!(*caught.unwrap_err().downcast::<String>().unwrap(), text);
        });
        assert!(matches!(slot.resume(), Resumed::Finished));
        drop(slot);
    }
}
