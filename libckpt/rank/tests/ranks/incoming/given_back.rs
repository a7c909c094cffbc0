//! Memory that is given back while its pages are being read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::mpsc::channel;
use std::thread;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::restore::RestoringSlot;
use protocol::ids::Rank;

use super::{HEAP, address, incoming, played, ranges, read};
use crate::child::{layout, prepare};

/// Pages of a unit, which is filled at once where there are huge pages.
const UNIT: u64 = 512;
/// First page of memory that is in such units: behind the tables of the heap.
const FIRST: u64 = HEAP + 16 * UNIT;

/// Which pages of a unit an image has, and which of its pages, or of those behind it, are given back while they are read.
const CASES: [(Range<u64>, Range<u64>); 9] = [
    (0..512, 0..1),
    (0..512, 100..300),
    (0..512, 511..512),
    (0..512, 0..512),
    // Across the end of the unit.
    (0..512, 500..530),
    (0..512, 400..500),
    // With others that are zeros in the image.
    (200..400, 100..210),
    // Too few for a huge page: they are filled piece by piece.
    (0..32, 5..9),
    (0..16, 0..16),
];

pub(super) fn what_is_given_back_while_it_is_read_does_not_come() {
    if let Some(told) = played("given_back_while_read", &[]) {
        println!("  {told}");
    }
}

pub(super) fn given_back_while_read(_: &[String]) {
    prepare();
    // On one processor, who gives memory back has done it when the page, which was read before, can be put there. With several the page
    // may come first, and is given back with the rest: then nothing shows whether it should have come.
    stay_on_one_processor();
    let mut pages = BTreeMap::from([(0, vec![7; PAGE_BYTES])]);
    for (unit, (image, _)) in (0..).zip(&CASES) {
        for page in image.clone() {
            let page = FIRST + unit * UNIT + page;
            pages.insert(page, vec![page as u8 | 1; PAGE_BYTES]);
        }
    }
    let slot = RestoringSlot::create(layout(1), Rank(0)).unwrap();
    let mut incoming = incoming(&slot);
    incoming.expect(&ranges(&pages)).unwrap();
    let events = incoming.as_fd().try_clone_to_owned().unwrap();
    let mut expected = pages.clone();
    let (ask, asked) = channel::<Range<u64>>();
    let (done, is_done) = channel();
    let giver = thread::spawn(move || {
        for range in asked {
            let bytes = (range.end - range.start) as usize * PAGE_BYTES;
            // SAFETY: pages of the slot, which nobody uses.
            let answer =
                unsafe { libc::madvise(address(range.start).cast(), bytes, libc::MADV_DONTNEED) };
            assert_eq!(answer, 0);
            done.send(()).unwrap();
        }
    });
    let mut whole = 0;
    for (unit, (image, given)) in (0..).zip(CASES) {
        let start = FIRST + unit * UNIT;
        let given = start + given.start..start + given.end;
        let first = start + image.start;
        let mut to_give = Some(given.clone());
        let mut read_meanwhile = |first: u64, into: &mut [u8]| {
            if let Some(range) = to_give.take() {
                ask.send(range).unwrap();
                // Whoever gives it back waits from now on.
                let mut poll = libc::pollfd {
                    fd: events.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one entry, which lives through the call.
                unsafe { libc::poll(&raw mut poll, 1, -1) };
            }
            read(&pages, first, into)
        };
        let page = incoming.next_missing(first).unwrap();
        let end = incoming.fill_around(page, &mut read_meanwhile).unwrap();
        whole += u32::from(end == start + UNIT);
        is_done.recv().unwrap();
        expected.retain(|page, _| !given.contains(page));
    }
    while let Some(page) = incoming.next_missing(0) {
        let read = &mut |first, into: &mut [u8]| read(&pages, first, into);
        incoming.fill_around(page, read).unwrap();
    }
    // What has not come is zeros from now on, and nobody waits for it.
    drop(incoming);
    let zeros = vec![0; PAGE_BYTES];
    for page in FIRST..FIRST + CASES.len() as u64 * UNIT {
        let mut found = vec![0; PAGE_BYTES];
        // SAFETY: a page of the slot, which nobody else uses.
        unsafe {
            found
                .as_mut_ptr()
                .copy_from_nonoverlapping(address(page), PAGE_BYTES)
        };
        let (unit, at) = ((page - FIRST) / UNIT, (page - FIRST) % UNIT);
        let expected = expected.get(&page).unwrap_or(&zeros);
        assert!(found == *expected, "page {at} of unit {unit}");
    }
    drop(ask);
    giver.join().unwrap();
    // Linux 6.8 can put whole units there.
    assert!(whole >= 6 || !is_linux(6, 8), "{whole} whole units");
    println!("{whole} whole units");
}

fn stay_on_one_processor() {
    // SAFETY: a set is numbers, and lives through the calls, which have no other preconditions.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
        let answer = libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
        assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Whether the kernel is as new as this version.
fn is_linux(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|it: char| !it.is_ascii_digit());
    let mut number = || numbers.next().and_then(|it| it.parse::<u32>().ok());
    (number(), number()) >= (Some(major), Some(minor))
}
