//! Pages that come while somebody uses the memory, or a rank runs in it: as if all had been there.

mod given_back;
mod memory;
mod ranks;

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::incoming::{Incoming, IncomingError};
use libckpt_rank::restore::RestoringSlot;
use protocol::ids::Rank;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use self::given_back::{given_back_while_read, what_is_given_back_while_it_is_read_does_not_come};
use self::memory::{memory_whose_pages_still_come_is_as_if_they_were_there, stirred_memory};
use self::ranks::{
    a_rank_of_which_pages_are_missing_is_not_captured,
    a_rank_runs_while_its_pages_come_and_finds_what_it_had, came_lazily, incomplete, stirring,
    stirring_captured,
};
use crate::child::{layout, prepare, print};
use crate::{roles, tests};

tests![
    memory_whose_pages_still_come_is_as_if_they_were_there,
    what_is_given_back_while_it_is_read_does_not_come,
    a_rank_runs_while_its_pages_come_and_finds_what_it_had,
    a_rank_of_which_pages_are_missing_is_not_captured,
    a_page_that_no_rank_has_is_not_expected,
];

roles![
    stirred_memory,
    given_back_while_read,
    stirring,
    stirring_captured,
    came_lazily,
    incomplete,
    expected_wrongly
];

/// What a child says where it may not handle faults of system calls.
const REFUSED: &str = "refused";

/// The pages that come to a slot; none, and the process ends, where that is refused, for the right reason.
fn incoming(slot: &RestoringSlot) -> Incoming {
    match Incoming::new(slot) {
        Ok(incoming) => incoming,
        Err(error @ IncomingError::Unavailable { .. }) => {
            let told = error.to_string();
            assert!(
                told.contains("vm.unprivileged_userfaultfd") && told.contains("/dev/userfaultfd"),
                "{told}"
            );
            println!("{REFUSED}");
            std::process::exit(0);
        }
        Err(error) => panic!("{error}"),
    }
}

/// Whether this user may have a userfaultfd that handles faults of the kernel.
fn is_allowed() -> bool {
    let sysctl = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    // SAFETY: no preconditions.
    (unsafe { libc::geteuid() }) == 0
        || sysctl.is_ok_and(|it| it.trim() == "1")
        || std::fs::File::open("/dev/userfaultfd").is_ok()
}

/// Plays a role; `None` where it was refused what it takes, as it has to be.
fn played(name: &str, arguments: &[&str]) -> Option<String> {
    let printed = print(name, arguments);
    assert_eq!(printed == REFUSED, !is_allowed(), "{name}: {printed}");
    (printed != REFUSED).then_some(printed)
}

/// First page of a heap in the slots of these tests.
const HEAP: u64 = 1024;

/// Where a page of rank 0 is.
fn address(page: u64) -> *mut u8 {
    let base = layout(1).address(Rank(0)) as usize;
    std::ptr::with_exposed_provenance_mut(base + page as usize * PAGE_BYTES)
}

fn ranges(pages: &BTreeMap<u64, Vec<u8>>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for &page in pages.keys() {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => ranges.push(page..page + 1),
        }
    }
    ranges
}

/// Reads pages of an image. Others are not to be asked for.
fn read(pages: &BTreeMap<u64, Vec<u8>>, first: u64, into: &mut [u8]) -> Result<(), String> {
    for (page, into) in (first..).zip(into.chunks_exact_mut(PAGE_BYTES)) {
        let bytes = pages.get(&page).ok_or(format!("page {page} is read"))?;
        into.copy_from_slice(bytes);
    }
    Ok(())
}

/// Fills what is filled before a rank runs.
fn fill_first(incoming: &mut Incoming, pages: &BTreeMap<u64, Vec<u8>>) {
    for range in incoming.first() {
        let read = &mut |first, into: &mut [u8]| read(pages, first, into);
        incoming.fill_pages(&range, read).unwrap();
    }
}

/// The page that is being read, if that takes long.
static READ: AtomicU64 = AtomicU64::new(0);

/// Serves until all pages have come, not faster than one piece in so many milliseconds, and tells how many were waited for.
fn serve(
    mut incoming: Incoming,
    pages: &BTreeMap<u64, Vec<u8>>,
    mut random: ChaCha8Rng,
    pause_ms: i32,
) -> Result<u64, IncomingError> {
    let mut slow = ChaCha8Rng::from_rng(&mut random);
    let mut read_slowly = |first: u64, into: &mut [u8]| {
        if slow.random_bool(0.2) {
            // Meanwhile others go on, and may give back what is read.
            READ.store(first, Ordering::Relaxed);
            thread::sleep(Duration::from_micros(slow.random_range(0..2000)));
        }
        read(pages, first, into)
    };
    let (mut waited, mut next) = (0, 0);
    while let Some(page) = incoming.next_missing(next) {
        while let Some(page) = incoming.next_fault()? {
            waited += 1;
            next = incoming.fill_around(page, &mut read_slowly)?;
        }
        if random.random_bool(0.1) {
            // As from a connection: what has been sent comes, wanted or not.
            let end = page + random.random_range(1..100);
            let bytes: Vec<u8> = (page..end)
                .map_while(|page| pages.get(&page))
                .flatten()
                .copied()
                .collect();
            incoming.fill(page, &bytes)?;
            next = end;
        } else if incoming.next_missing(page) == Some(page) {
            next = incoming.fill_around(page, &mut read_slowly)?;
        }
        wait(&incoming, random.random_range(0..=pause_ms));
    }
    assert_eq!(incoming.missing(), 0);
    Ok(waited)
}

/// Waits for a fault, or so many milliseconds.
fn wait(incoming: &Incoming, ms: i32) {
    let mut poll = libc::pollfd {
        fd: incoming.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, ms) };
}

fn a_page_that_no_rank_has_is_not_expected() {
    if let Some(told) = played("expected_wrongly", &[]) {
        assert_eq!(told, "no part of a rank's memory");
    }
}

fn expected_wrongly(_: &[String]) {
    prepare();
    let slot = RestoringSlot::create(layout(1), Rank(0)).unwrap();
    let mut incoming = incoming(&slot);
    // The guard, beyond the slot, backwards, and a number that is no address.
    let (guard, slot_pages) = (300_u64, (1_u64 << 30) / PAGE_BYTES as u64);
    for wrong in [
        guard..guard + 1,
        slot_pages - 1..slot_pages + 1,
        Range {
            start: HEAP + 9,
            end: HEAP,
        },
        u64::MAX - 1..u64::MAX,
    ] {
        let error = incoming.expect(std::slice::from_ref(&wrong)).unwrap_err();
        assert!(
            error.to_string().contains("no part of a rank's memory"),
            "{error}"
        );
    }
    let error = incoming
        .expect(std::slice::from_ref(&(HEAP..HEAP + 2)))
        .unwrap_err();
    assert!(error.to_string().contains("no header"), "{error}");
    println!("no part of a rank's memory");
}
