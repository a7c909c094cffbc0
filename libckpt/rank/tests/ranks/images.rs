//! Images: a rank captured in one process goes on in another.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use libckpt_rank::buffer::{RankBytes, RankBytesMut};
use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{PAGE_BYTES, Resumed, Slot, note, set_note, suspend};
use protocol::ids::Rank;

use crate::child::{self, Directory, FullCopy, layout, prepare, print, restore, sole_slot, store};
use crate::tangle::{outcome, tangle};
use crate::{roles, tests};

tests![
    a_rank_goes_on_in_a_new_process_from_any_stop,
    a_capture_does_not_disturb_the_rank,
    ranks_of_one_process_go_on_in_several,
    an_image_holds_what_is_live_and_no_more,
    an_image_is_restored_by_several_threads_at_once,
    a_panic_unwinds_frames_that_another_process_made,
    floating_point_modes_belong_to_the_rank,
    a_posted_buffer_is_filled_in_the_process_after,
];

roles![
    whole,
    captured_after,
    continued,
    disturbed,
    two_captured,
    weighed,
    restored_in_parallel,
    descended,
    unwound,
    modes_set,
    modes_found,
    posted,
    filled,
];

/// Resumes until the rank is finished.
fn finish(slot: &mut Slot) {
    while let Resumed::Suspended = slot.resume() {}
}

fn a_rank_goes_on_in_a_new_process_from_any_stop() {
    let directory = Directory::new("any-stop");
    let undisturbed = print("whole", &[]);
    let stops: u32 = undisturbed.split(' ').next_back().unwrap().parse().unwrap();
    assert!(stops > 40, "{stops}");
    // From before the first instruction to after the last, the ends of the recursion among them.
    for stop in [0, 1, 2, 20, 40, 41, 42, stops - 1, stops, stops + 1] {
        let file = directory.file(&stop.to_string());
        print("captured_after", &[&stop.to_string(), &file]);
        assert_eq!(
            print("continued", &["0", "1", &file]),
            undisturbed,
            "stop {stop}"
        );
    }
}

fn whole(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(tangle);
    finish(&mut slot);
    println!("{}", outcome(&slot));
}

fn captured_after(arguments: &[String]) {
    let mut slot = sole_slot();
    slot.start(tangle);
    for _ in 0..arguments[0].parse().unwrap() {
        slot.resume();
    }
    store(&slot, Path::new(&arguments[1]));
}

fn continued(arguments: &[String]) {
    let rank = Rank(arguments[0].parse().unwrap());
    prepare();
    let layout = layout(arguments[1].parse().unwrap());
    let mut slot = restore(layout, rank, Path::new(&arguments[2]));
    if !slot.is_finished() {
        finish(&mut slot);
    }
    println!("{}", outcome(&slot));
}

fn a_capture_does_not_disturb_the_rank() {
    assert_eq!(print("disturbed", &[]), print("whole", &[]));
}

fn disturbed(_: &[String]) {
    let mut slot = sole_slot();
    slot.start(tangle);
    let mut copy = FullCopy::new();
    copy.take(&slot).unwrap();
    while let Resumed::Suspended = slot.resume() {
        copy.take(&slot).unwrap();
    }
    println!("{}", outcome(&slot));
}

fn ranks_of_one_process_go_on_in_several() {
    let directory = Directory::new("two");
    let (first, second) = (directory.file("0"), directory.file("1"));
    let outcomes = print("two_captured", &[&first, &second]);
    let outcomes: Vec<&str> = outcomes.lines().collect();
    assert_ne!(
        outcomes[0], outcomes[1],
        "the two ranks have different seeds"
    );
    assert_eq!(print("continued", &["0", "2", &first]), outcomes[0]);
    assert_eq!(print("continued", &["1", "2", &second]), outcomes[1]);
}

fn two_captured(arguments: &[String]) {
    prepare();
    let mut slots = [0, 1].map(|rank| {
        let mut slot = Slot::create(layout(2), Rank(rank)).unwrap();
        slot.start(tangle);
        slot
    });
    for _ in 0..15 {
        for slot in &mut slots {
            slot.resume();
        }
    }
    for (slot, file) in slots.iter_mut().zip(arguments) {
        store(slot, Path::new(file));
    }
    for slot in &mut slots {
        finish(slot);
        println!("{}", outcome(slot));
    }
}

fn an_image_holds_what_is_live_and_no_more() {
    print("weighed", &[]);
}

fn weighed(_: &[String]) {
    const MIB: usize = 1 << 20;
    let mut slot = sole_slot();
    let mut copy = FullCopy::new();
    slot.start(|| {
        suspend();
        let kept = vec![1_u8; 10 * MIB];
        suspend();
        let zeros = vec![0_u8; 50 * MIB];
        // Read, so that pages of zeros exist where the kernel wants them to.
        set_note(0, zeros.iter().map(|&byte| u64::from(byte)).sum());
        suspend();
        drop(vec![2_u8; 100 * MIB]);
        use_stack(500);
        suspend();
        std::hint::black_box((kept, zeros));
    });
    let mut weigh = |slot: &mut Slot| {
        slot.resume();
        copy.take(slot).unwrap().len() * PAGE_BYTES
    };
    let start = weigh(&mut slot);
    assert!(
        start < 256 << 10,
        "{start} bytes for a rank that holds nothing"
    );
    let with_kept = weigh(&mut slot);
    assert!(
        (start + 10 * MIB..start + 11 * MIB).contains(&with_kept),
        "{with_kept}"
    );
    let with_zeros = weigh(&mut slot);
    assert!(
        (with_kept..with_kept + MIB).contains(&with_zeros),
        "{with_zeros}"
    );
    let after_drop = weigh(&mut slot);
    assert!(
        (with_kept..with_kept + MIB).contains(&after_drop),
        "{after_drop}"
    );
    let finished = weigh(&mut slot);
    assert!(
        finished < start + MIB,
        "{finished} bytes for a finished rank"
    );
}

/// Uses about 1 KiB of stack for each level.
fn use_stack(levels: u32) {
    let frame = std::hint::black_box([levels as u8; 1024]);
    if levels > 0 {
        use_stack(levels - 1);
    }
    std::hint::black_box(frame);
}

fn an_image_is_restored_by_several_threads_at_once() {
    let directory = Directory::new("parallel");
    let file = directory.file("image");
    print("captured_after", &["30", &file]);
    assert_eq!(print("restored_in_parallel", &[&file]), print("whole", &[]));
}

fn restored_in_parallel(arguments: &[String]) {
    prepare();
    let slot = RestoringSlot::create(layout(1), Rank(0)).unwrap();
    let pages = child::load(Path::new(&arguments[0]));
    std::thread::scope(|scope| {
        for part in 0..3 {
            let (slot, pages) = (&slot, &pages);
            scope.spawn(move || {
                for (page, bytes) in pages.iter().skip(part).step_by(3) {
                    slot.window(*page, 1).unwrap().copy_from_slice(bytes);
                }
            });
        }
    });
    let mut slot = slot.finish(|_| ()).unwrap();
    finish(&mut slot);
    println!("{}", outcome(&slot));
}

fn a_panic_unwinds_frames_that_another_process_made() {
    let directory = Directory::new("unwound");
    let file = directory.file("image");
    print("descended", &[&file]);
    assert_eq!(
        print("unwound", &[&file]),
        "25 frames, thrown at the bottom"
    );
}

/// Counts frames as they are left, in a panic too.
struct Counted<'a>(&'a Cell<u64>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

fn throw_below(frames: u64, left: &Cell<u64>) {
    if frames == 0 {
        suspend();
        panic!("thrown at the {}", std::hint::black_box("bottom"));
    }
    let counted = Counted(left);
    throw_below(frames - 1, left);
    drop(counted);
}

fn descended(arguments: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| {
        let left = Cell::new(0);
        let payload = catch_unwind(AssertUnwindSafe(|| throw_below(25, &left))).unwrap_err();
        let text = payload.downcast::<String>().unwrap();
        println!("{} frames, {text}", left.get());
    });
    slot.resume();
    store(&slot, Path::new(&arguments[0]));
}

fn unwound(arguments: &[String]) {
    prepare();
    finish(&mut restore(layout(1), Rank(0), Path::new(&arguments[0])));
}

fn floating_point_modes_belong_to_the_rank() {
    let directory = Directory::new("modes");
    let file = directory.file("image");
    print("modes_set", &[&file]);
    print("modes_found", &[&file]);
}

/// Flush to zero, in the control register of SSE.
const FLUSH_TO_ZERO: u32 = 1 << 15;

fn modes() -> u32 {
    let mut modes = 0_u32;
    // SAFETY: stores a register into a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut modes) };
    modes
}

fn modes_set(arguments: &[String]) {
    let mut slot = sole_slot();
    slot.start(|| {
        let changed = modes() | FLUSH_TO_ZERO;
        // SAFETY: changes a mode that no code up to the end of this process depends on.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const changed) };
        suspend();
        set_note(0, u64::from(modes() & FLUSH_TO_ZERO != 0));
    });
    slot.resume();
    assert_eq!(modes() & FLUSH_TO_ZERO, 0, "the process keeps its own");
    store(&slot, Path::new(&arguments[0]));
}

fn modes_found(arguments: &[String]) {
    prepare();
    let mut slot = restore(layout(1), Rank(0), Path::new(&arguments[0]));
    slot.resume();
    assert_eq!(slot.note(0), 1, "the rank finds its own");
    assert_eq!(modes() & FLUSH_TO_ZERO, 0);
}

fn a_posted_buffer_is_filled_in_the_process_after() {
    let directory = Directory::new("posted");
    let file = directory.file("image");
    let stored = print("posted", &[&file]);
    assert_eq!(print("filled", &[&file, &stored]), "constant 45");
}

/// A message table as it is stored with the image.
type Table = (RankBytes, RankBytesMut);

/// Where the rank leaves its table for the process that stores it.
static TABLE: Mutex<Option<Table>> = Mutex::new(None);

fn posted(arguments: &[String]) {
    static CONSTANT: &[u8; 8] = b"constant";
    let mut slot = sole_slot();
    slot.start(|| {
        let mut received = vec![0_u8; 100_000];
        let receive = RankBytesMut::new(&mut received[..]).unwrap();
        let send = RankBytes::new(CONSTANT).unwrap();
        *TABLE.lock().unwrap() = Some((send, receive));
        suspend();
        let received = std::hint::black_box(received);
        set_note(0, received.iter().map(|&byte| u64::from(byte)).sum());
    });
    slot.resume();
    store(&slot, Path::new(&arguments[0]));
    println!(
        "{}",
        child::to_digits(&TABLE.lock().unwrap().take().unwrap())
    );
}

fn filled(arguments: &[String]) {
    prepare();
    // The image first: a buffer is of a rank that is here.
    assert!(child::from_digits::<Table>(&arguments[1]).is_err());
    let mut slot = restore(layout(1), Rank(0), Path::new(&arguments[0]));
    let (send, mut receive): Table = child::from_digits(&arguments[1]).unwrap();
    receive.fill(0, &[7]);
    receive.fill(99_995, &[8, 9, 10, 0, 11]);
    let send = String::from_utf8_lossy(send.as_slice()).into_owned();
    finish(&mut slot);
    println!("{send} {}", slot.note(0));
    // A note of the running rank is not to be had where none runs.
    assert!(catch_unwind(|| note(0)).is_err());
}
