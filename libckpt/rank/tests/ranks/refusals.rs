//! What is refused, and in which words: states that an image can't hold, images that do not fit, memory
//! that is no buffer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use libckpt_rank::buffer::{BufferError, RankBytes, RankBytesMut};
use libckpt_rank::capture::CaptureError;
use libckpt_rank::restore::{RestoreError, RestoringSlot};
use libckpt_rank::{PAGE_BYTES, RankLocal, Resumed, Slot, in_process, set_note, suspend};
use protocol::ids::Rank;
use protocol::slots::SlotLayout;

use crate::child::{
    Directory, FullCopy, from_digits, layout, load, prepare, print, sole_slot, store, to_digits,
};
use crate::tangle::tangle;
use crate::{roles, tests};

tests![
    a_rank_that_stops_in_the_middle_of_a_panic_is_not_captured,
    a_rank_that_panicked_tells_with_what,
    a_rank_that_was_not_started_is_neither_captured_nor_resumed,
    a_rank_cannot_stop_inside_a_library_section,
    an_image_that_does_not_fit_is_refused_in_words,
    a_header_with_any_bit_of_its_facts_flipped_is_refused,
    memory_that_does_not_move_with_the_rank_is_no_buffer,
];

roles![
    panicking,
    panicked,
    not_started,
    inside,
    misfits,
    flipped,
    buffers,
];

fn a_rank_that_stops_in_the_middle_of_a_panic_is_not_captured() {
    let told = print("panicking", &[]);
    assert_eq!(told, "rank 1 can't be captured while it is panicking");
}

/// Communicates in its destructor.
struct Communicates;

impl Drop for Communicates {
    fn drop(&mut self) {
        suspend();
    }
}

fn panicking(_: &[String]) {
    prepare();
    let mut slots = [0, 1].map(|rank| Slot::create(layout(2), Rank(rank)).unwrap());
    slots[0].start(|| {
        suspend();
        suspend();
    });
    slots[1].start(|| {
        let _ = catch_unwind(|| {
            let _guard = Communicates;
            panic!("on purpose");
        });
        suspend();
    });
    for slot in &mut slots {
        slot.resume();
    }
    // The other rank stops while the thread's count of panics is not zero, and is none the worse.
    slots[0].resume();
    let mut copy = FullCopy::new();
    copy.take(&slots[0]).unwrap();
    let error = copy.take(&slots[1]).unwrap_err();
    assert!(matches!(error, CaptureError::Panicking { rank: Rank(1) }));
    println!("{error}");
    // Once the panic is caught, it may be captured again.
    slots[1].resume();
    copy.take(&slots[1]).unwrap();
}

fn a_rank_that_panicked_tells_with_what() {
    print("panicked", &[]);
}

fn panicked(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| panic!("number {}", std::hint::black_box(5)));
    let Resumed::Panicked(payload) = slot.resume() else {
        panic!("it panics at once");
    };
    assert_eq!(*payload.downcast::<String>().unwrap(), "number 5");
    assert!(slot.is_panicking());
    assert!(FullCopy::new().take(&slot).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| slot.resume())).is_err());
}

fn a_rank_that_was_not_started_is_neither_captured_nor_resumed() {
    print("not_started", &[]);
}

fn not_started(_: &[String]) {
    let mut slot = sole_slot();
    assert!(!slot.is_started());
    let error = FullCopy::new().take(&slot).unwrap_err();
    assert!(matches!(error, CaptureError::NotStopped { rank: Rank(0) }));
    assert!(catch_unwind(AssertUnwindSafe(|| slot.resume())).is_err());
    slot.start(|| ());
    assert!(catch_unwind(AssertUnwindSafe(|| slot.start(|| ()))).is_err());
    assert!(matches!(slot.resume(), Resumed::Finished));
    assert!(catch_unwind(AssertUnwindSafe(|| slot.resume())).is_err());
}

fn a_rank_cannot_stop_inside_a_library_section() {
    print("inside", &[]);
}

fn inside(_: &[String]) {
    static LOCAL: RankLocal<u8> = RankLocal::new(|| 1);
    let mut slot = sole_slot();
    assert!(catch_unwind(suspend).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| slot.in_memory(suspend))).is_err());
    assert!(catch_unwind(|| LOCAL.with(|value| *value)).is_err());
    slot.start(|| {
        assert!(catch_unwind(|| in_process(suspend)).is_err());
        assert_eq!(LOCAL.with(|value| *value), 1);
        // The section is over; stopping is allowed again.
        suspend();
        set_note(0, 1);
    });
    slot.resume();
    slot.resume();
    assert_eq!(slot.note(0), 1);
}

fn an_image_that_does_not_fit_is_refused_in_words() {
    let directory = Directory::new("misfits");
    let told = print("misfits", &[&directory.file("image")]);
    for words in [
        "the image of rank 1 has a header that is that of rank 0",
        "header that is for slots or stacks of another size",
        "header that is missing",
        "holds page 0 twice",
        "holds a page of 4095 bytes",
        // Guards, and beyond the end.
        "holds pages 256 to 256, which",
        "holds pages 255 to 256, which",
        "holds pages 262143 to 262143, which",
        "holds pages 18446744073709551615 to 18446744073709551615, which",
    ] {
        assert!(told.contains(words), "{words:?} is not in {told}");
    }
}

fn misfits(arguments: &[String]) {
    prepare();
    let file = Path::new(&arguments[0]);
    let mut slot = Slot::create(layout(2), Rank(0)).unwrap();
    slot.start(tangle);
    slot.resume();
    store(&slot, file);
    drop(slot);

    let attempt = |layout: SlotLayout, rank: u32, skip: usize| {
        let slot = RestoringSlot::create(layout, Rank(rank)).unwrap();
        for (page, bytes) in load(file).into_iter().skip(skip) {
            slot.place(page, &bytes)?;
        }
        slot.finish(|_| ()).map(|slot| slot.rank())
    };
    println!("{}", attempt(layout(2), 1, 0).unwrap_err());
    println!("{}", attempt(layout(3), 0, 0).unwrap_err());
    println!("{}", attempt(layout(2), 0, 1).unwrap_err());
    assert_eq!(attempt(layout(2), 0, 0).unwrap(), Rank(0));

    let slot = RestoringSlot::create(layout(2), Rank(0)).unwrap();
    slot.place(0, &[0; PAGE_BYTES]).unwrap();
    let tell = |result: Result<(), RestoreError>| println!("{}", result.unwrap_err());
    tell(slot.place(0, &[0; PAGE_BYTES]));
    tell(slot.place(1, &[0; PAGE_BYTES - 1]));
    tell(slot.place(256, &[0; PAGE_BYTES]));
    tell(slot.window(255, 2).map(drop));
    tell(slot.place((1 << 30) / 4096 - 1, &[0; PAGE_BYTES]));
    tell(slot.place(u64::MAX, &[0; PAGE_BYTES]));
    assert!(slot.window(3, usize::MAX).is_err());
    // The last pages of the stack and the first of the heap are handed out as one.
    assert_eq!(slot.window(767, 300).unwrap().len(), 300 * PAGE_BYTES);
}

fn a_header_with_any_bit_of_its_facts_flipped_is_refused() {
    let directory = Directory::new("flipped");
    print("flipped", &[&directory.file("image")]);
}

/// Every bit of magic, version, size, rank, state, number of ranks, slot and stack size.
fn flipped(arguments: &[String]) {
    prepare();
    let file = Path::new(&arguments[0]);
    let mut slot = Slot::create(layout(2), Rank(0)).unwrap();
    slot.start(tangle);
    slot.resume();
    store(&slot, file);
    drop(slot);
    let pages = load(file);
    assert_eq!(pages[0].0, 0, "the header comes first");
    for byte in (0..28).chain(32..48) {
        for bit in 0..8 {
            let mut pages = pages.clone();
            pages[0].1[byte] ^= 1 << bit;
            let slot = RestoringSlot::create(layout(2), Rank(0)).unwrap();
            for (page, bytes) in pages {
                slot.place(page, &bytes).unwrap();
            }
            // From suspended to finished is the one flip that leaves a state that exists.
            let finished = byte == 20 && bit == 1;
            assert_eq!(
                slot.finish(|_| ()).is_ok(),
                finished,
                "byte {byte} bit {bit}"
            );
        }
    }
}

fn memory_that_does_not_move_with_the_rank_is_no_buffer() {
    print("buffers", &[]);
}

fn buffers(_: &[String]) {
    static CONSTANT: [u8; 16] = [9; 16];
    static VARIABLE: Mutex<[u8; 100]> = Mutex::new([9; 100]);
    prepare();
    assert_eq!(RankBytes::new(&CONSTANT), Err(BufferError::NoRank));
    let mut slots = [0, 1].map(|rank| Slot::create(layout(2), Rank(rank)).unwrap());
    slots[0].start(|| {
        let mut heap = vec![1_u8; 100];
        let mut stack = [2_u8; 100];
        assert_eq!(RankBytes::new(&heap).unwrap().as_slice(), [1; 100]);
        assert_eq!(RankBytes::new(&stack).unwrap().as_slice(), [2; 100]);
        RankBytesMut::new(&mut stack).unwrap().fill(98, &[3, 4]);
        assert_eq!(std::hint::black_box(stack)[97..], [2, 3, 4]);
        let mut posted = RankBytesMut::new(&mut heap).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| posted.fill(99, &[1, 2]))).is_err());
        assert_eq!(RankBytes::new(&CONSTANT).unwrap().as_slice(), CONSTANT);
        assert!(RankBytes::new(&[]).unwrap().is_empty());
        let mut process = in_process(|| vec![1_u8; 100]);
        let variable = VARIABLE.lock().unwrap();
        for error in [
            RankBytes::new(&process).map(drop),
            RankBytesMut::new(&mut process).map(drop),
            RankBytes::new(&variable[..]).map(drop),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains("rank 0") && error.contains("(100 bytes)"),
                "{error}"
            );
        }
        suspend();
    });
    slots[0].resume();
    // Stored addresses are checked when they come back.
    let start = slots[0].address();
    let inside = start + (10 << 20);
    let constant = CONSTANT.as_ptr() as u64;
    let read = |stored: (u32, u64, u64)| from_digits::<RankBytes>(&to_digits(&stored));
    let write = |stored: (u32, u64, u64)| from_digits::<RankBytesMut>(&to_digits(&stored));
    assert!(write((0, inside, 100)).is_ok());
    for stored in [
        (1, inside, 100),
        (2, inside, 100),
        (0, start, 100),
        (0, start + (1 << 20), 100),
        (0, start + (2 << 20) - 1, 100),
        (0, inside, 1 << 30),
        (0, inside, u64::MAX),
        (0, u64::MAX, 1),
        (0, 0, 1),
    ] {
        assert!(
            read(stored).is_err() && write(stored).is_err(),
            "{stored:x?}"
        );
    }
    assert_eq!(read((1, constant, 16)).unwrap().as_slice(), CONSTANT);
    assert!(
        write((1, constant, 16)).is_err(),
        "the program's data is not to be written"
    );
    // A buffer is not used once its rank is gone.
    let buffer = read((0, inside, 100)).unwrap();
    drop(slots);
    assert!(catch_unwind(AssertUnwindSafe(|| buffer.as_slice().len())).is_err());
}
