//! Faults: a stack overflow is told in words, other faults end the process as ever.

use std::os::unix::process::ExitStatusExt;

use libckpt_rank::{Slot, startup};
use protocol::control::exit;
use protocol::ids::Rank;

use crate::child::{layout, prepare, run, sole_slot, text};
use crate::{roles, tests};

tests![
    a_stack_overflow_names_the_rank_and_the_remedy,
    another_fault_of_a_rank_ends_the_process_by_its_signal,
    an_overflow_of_the_process_s_own_stack_is_left_to_std,
];

roles![overflowing, faulting, overflowing_outside];

fn a_stack_overflow_names_the_rank_and_the_remedy() {
    let output = run("overflowing", &[]);
    assert_eq!(output.status.code(), Some(exit::STACK_OVERFLOW));
    assert_eq!(
        text(&output.stderr),
        "libckpt: rank 1: stack overflow: its stack of 1048576 bytes is used up; use --stack-size to \
         give ranks a larger one\n"
    );
}

fn recurse(levels: u64) -> u64 {
    let frame = std::hint::black_box([levels; 64]);
    if levels == u64::MAX {
        return 0;
    }
    recurse(levels + 1) + frame[5]
}

fn overflowing(_: &[String]) {
    prepare();
    let mut slots = [0, 1].map(|rank| Slot::create(layout(2), Rank(rank)).unwrap());
    slots[0].start(libckpt_rank::suspend);
    slots[1].start(|| {
        std::hint::black_box(recurse(0));
    });
    for slot in &mut slots {
        slot.resume();
    }
}

fn another_fault_of_a_rank_ends_the_process_by_its_signal() {
    for thread in ["main", "fixed"] {
        let output = run("faulting", &[thread]);
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{thread}");
    }
}

fn faulting(arguments: &[String]) {
    prepare();
    if arguments[0] == "fixed" {
        startup::run_on_fixed_thread(fault).unwrap();
    } else {
        fault();
    }
}

fn fault() {
    let mut slot = Slot::create(layout(1), Rank(0)).unwrap();
    slot.start(|| {
        // SAFETY: not at all; the fault is what is asked for.
        unsafe { std::ptr::without_provenance_mut::<u8>(4096).write_volatile(1) };
    });
    slot.resume();
}

fn an_overflow_of_the_process_s_own_stack_is_left_to_std() {
    let output = run("overflowing_outside", &[]);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
    assert!(text(&output.stderr).contains("has overflowed its stack"));
}

fn overflowing_outside(_: &[String]) {
    let _slot = sole_slot();
    std::hint::black_box(recurse(0));
}
