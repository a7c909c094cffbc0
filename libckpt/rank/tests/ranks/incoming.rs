//! Pages that come while somebody uses the memory, or a rank runs in it: as if all had been there.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use libckpt_rank::capture::CaptureError;
use libckpt_rank::incoming::{Incoming, IncomingError, is_incoming};
use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{PAGE_BYTES, Resumed, Slot, library_thread, suspend};
use protocol::ids::Rank;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::child::{Directory, layout, load, prepare, print, sole_slot, store};
use crate::tangle::{outcome, tangle};
use crate::{roles, tests};

tests![
    memory_whose_pages_still_come_is_as_if_they_were_there,
    a_rank_runs_while_its_pages_come_and_finds_what_it_had,
    a_rank_of_which_pages_are_missing_is_not_captured,
    a_page_that_no_rank_has_is_not_expected,
];

roles![
    stirred_memory,
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

// ---- memory ----------------------------------------------------------------------------------------

fn memory_whose_pages_still_come_is_as_if_they_were_there() {
    for seed in 1..=6 {
        println!("seed {seed}");
        if let Some(told) = played("stirred_memory", &[&seed.to_string()]) {
            println!("  {told}");
        }
    }
}

/// First page of a heap in the slots of these tests.
const HEAP: u64 = 1024;
/// Pages that each thread uses.
const SHARE: u64 = 24 * 512;
const THREADS: u64 = 2;

fn page_of(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    random.fill(&mut bytes[..64]);
    let word = random.random::<u8>();
    bytes[64..].fill(word);
    bytes
}

/// Pages of an image, in all densities.
fn image(random: &mut ChaCha8Rng) -> BTreeMap<u64, Vec<u8>> {
    // As every image has a header.
    let mut pages = BTreeMap::from([(0, page_of(random))]);
    for unit in 0..THREADS * SHARE / 512 {
        let density = *[0.0, 0.01, 0.3, 0.9, 1.0, 1.0].choose(random).unwrap();
        for page in 0..512 {
            if random.random_bool(density) {
                pages.insert(HEAP + unit * 512 + page, page_of(random));
            }
        }
    }
    pages
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

fn stirred_memory(arguments: &[String]) {
    let seed: u64 = arguments[0].parse().unwrap();
    prepare();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let pages = image(&mut random);
    let slot = RestoringSlot::create(layout(1), Rank(0)).unwrap();
    let base = layout(1).address(Rank(0));
    let mut incoming = incoming(&slot);
    incoming.expect(&ranges(&pages)).unwrap();
    assert!(is_incoming(Rank(0)));
    let over = AtomicBool::new(false);
    let mut users: Vec<ChaCha8Rng> = Vec::new();
    for _ in 0..THREADS {
        users.push(ChaCha8Rng::from_rng(&mut random));
    }
    let told = thread::scope(|scope| {
        let users: Vec<_> = (0..)
            .zip(users)
            .map(|(user, random)| {
                let first = HEAP + user * SHARE;
                let mine = pages.range(first..first + SHARE);
                let model: BTreeMap<u64, Vec<u8>> =
                    mine.map(|(page, bytes)| (*page, bytes.clone())).collect();
                let over = &over;
                scope.spawn(move || User::new(base, first, model, random).run(over))
            })
            .collect();
        let waited = serve(incoming, &pages, random, 1);
        if let Err(error) = &waited {
            // Whoever waits would wait for ever.
            eprintln!("{error}");
            std::process::exit(1);
        }
        over.store(true, Ordering::SeqCst);
        let steps: u64 = users.into_iter().map(|user| user.join().unwrap()).sum();
        format!(
            "{} pages, {} waited for, {steps} steps",
            pages.len(),
            waited.unwrap()
        )
    });
    assert!(!is_incoming(Rank(0)));
    println!("{told}");
}

/// Somebody who uses memory, and knows what has to be in it.
struct User {
    base: u64,
    first: u64,
    model: BTreeMap<u64, Vec<u8>>,
    random: ChaCha8Rng,
}

impl User {
    fn new(base: u64, first: u64, model: BTreeMap<u64, Vec<u8>>, random: ChaCha8Rng) -> Self {
        Self {
            base,
            first,
            model,
            random,
        }
    }

    fn at(&self, page: u64) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut((self.base as usize) + page as usize * PAGE_BYTES)
    }

    fn expected(&self, page: u64) -> Vec<u8> {
        let known = self.model.get(&page).cloned();
        known.unwrap_or_else(|| vec![0; PAGE_BYTES])
    }

    fn some_page(&mut self) -> u64 {
        self.random.random_range(self.first..self.first + SHARE)
    }

    fn some_range(&mut self) -> Range<u64> {
        let read = READ.load(Ordering::Relaxed) + self.random.random_range(0..512);
        let start = match (self.first..self.first + SHARE).contains(&read) {
            true if self.random.random_bool(0.5) => read,
            _ => self.some_page(),
        };
        let most = *[1, 8, 64, 512].choose(&mut self.random).unwrap();
        let end = start + self.random.random_range(1..=most);
        start..end.min(self.first + SHARE)
    }

    /// Until it is over, and some more; then all of it is looked at.
    fn run(mut self, over: &AtomicBool) -> u64 {
        let (mut steps, mut left) = (0, 500);
        while left > 0 {
            self.step();
            steps += 1;
            left -= u32::from(over.load(Ordering::SeqCst));
        }
        for page in self.first..self.first + SHARE {
            self.look(page);
        }
        steps
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..40 => {
                let page = self.some_page();
                self.look(page);
            }
            40..60 => {
                let page = self.some_page();
                let (offset, byte) = (
                    self.random.random_range(0..PAGE_BYTES),
                    self.random.random(),
                );
                let mut bytes = self.expected(page);
                bytes[offset] = byte;
                // SAFETY: a page of the slot, which this thread alone uses.
                unsafe { self.at(page).add(offset).write_volatile(byte) };
                self.model.insert(page, bytes);
            }
            60..75 => self.look_by_a_call(),
            75..90 => self.write_by_a_call(),
            90..99 => {
                let range = self.some_range();
                let bytes = (range.end - range.start) as usize * PAGE_BYTES;
                // SAFETY: pages of the slot, which this thread alone uses.
                let answer = unsafe {
                    libc::madvise(self.at(range.start).cast(), bytes, libc::MADV_DONTNEED)
                };
                assert_eq!(answer, 0);
                self.model.retain(|page, _| !range.contains(page));
            }
            _ => {
                let page = self.some_page();
                let range = page..(page + 3).min(self.first + SHARE);
                let bytes = (range.end - range.start) as usize * PAGE_BYTES;
                // SAFETY: as above.
                let at = unsafe {
                    libc::mmap(
                        self.at(range.start).cast(),
                        bytes,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                        -1,
                        0,
                    )
                };
                assert_eq!(at, self.at(range.start).cast());
                self.model.retain(|page, _| !range.contains(page));
            }
        }
    }

    fn look(&self, page: u64) {
        let mut found = vec![0; PAGE_BYTES];
        // SAFETY: a page of the slot, which this thread alone uses.
        unsafe {
            found
                .as_mut_ptr()
                .copy_from_nonoverlapping(self.at(page), PAGE_BYTES)
        };
        assert!(found == self.expected(page), "page {page}");
    }

    /// As another process does that reads an announced message.
    fn look_by_a_call(&mut self) {
        let range = self.some_range();
        let range = range.start..range.end.min(range.start + 40);
        let mut found = vec![0; (range.end - range.start) as usize * PAGE_BYTES];
        let remote = libc::iovec {
            iov_base: self.at(range.start).cast(),
            iov_len: found.len(),
        };
        let mut into = IoSliceMut::new(&mut found);
        // SAFETY: an IoSliceMut is an iovec; both live through the call.
        let read = unsafe {
            libc::process_vm_readv(
                libc::getpid(),
                (&raw mut into).cast(),
                1,
                &raw const remote,
                1,
                0,
            )
        };
        assert_eq!(usize::try_from(read), Ok(found.len()));
        let expected: Vec<u8> = range.clone().flat_map(|page| self.expected(page)).collect();
        assert!(found == expected, "pages {range:?}");
    }

    fn write_by_a_call(&mut self) {
        let page = self.some_page();
        let half = PAGE_BYTES / 2;
        // SAFETY: a page of the slot, which this thread alone uses.
        let into = unsafe { std::slice::from_raw_parts_mut(self.at(page), half) };
        let mut source = std::fs::File::open("/dev/zero").unwrap();
        source.read_exact(into).unwrap();
        let mut bytes = self.expected(page);
        bytes[..half].fill(0);
        self.model.insert(page, bytes);
    }
}

// ---- ranks -----------------------------------------------------------------------------------------

/// A rank that allocates, grows, frees and looks at memory, of blocks in all sizes.
fn stir(seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut blocks: Vec<Vec<u64>> = Vec::new();
    let mut sum = 0_u64;
    for step in 0..1200 {
        let what = random.random_range(0..100);
        if blocks.len() < 8 || what < 25 {
            let words = *[10, 1000, 40_000, 200_000, 1_500_000]
                .choose(&mut random)
                .unwrap();
            let words = random.random_range(1..words);
            blocks.push((0..words as u64).map(|word| word * 31 + step).collect());
        } else {
            let at = random.random_range(0..blocks.len());
            match what {
                25..45 => drop(blocks.swap_remove(at)),
                45..60 => {
                    // Beyond what it has room for: its pages are moved.
                    let words = blocks[at].len();
                    blocks[at].resize(words * 2 + 7, step);
                    blocks[at].truncate(3_000_000);
                }
                60..70 => {
                    let words = blocks[at].len();
                    blocks[at].truncate(words / 2 + 1);
                    blocks[at].shrink_to_fit();
                }
                70..85 => {
                    for _ in 0..50 {
                        let words = blocks[at].len();
                        blocks[at][random.random_range(0..words)] += step;
                    }
                }
                _ => {
                    let words = blocks[at].iter();
                    sum = words.fold(sum, |sum, word| sum.rotate_left(5) ^ word);
                }
            }
        }
        while blocks.iter().map(Vec::len).sum::<usize>() > 12_000_000 {
            let at = random.random_range(0..blocks.len());
            blocks.swap_remove(at);
        }
        suspend();
    }
    for block in &blocks {
        sum = block
            .iter()
            .fold(sum, |sum, word| sum.rotate_left(5) ^ word);
    }
    libckpt_rank::set_note(0, sum);
}

/// A rank whose large blocks lie close together and grow, one after the other, so that they have to be moved.
fn grow() {
    let words = 1_400_000;
    let mut blocks: Vec<Vec<u64>> = (0..8)
        .map(|block| (0..words).map(|word| word * 7 + block).collect())
        .collect();
    suspend();
    for round in 1..=2 {
        for block in &mut blocks {
            block.resize(block.len() * 2, round);
            suspend();
        }
    }
    let words = blocks.iter().flatten();
    let sum = words.fold(0_u64, |sum, word| sum.rotate_left(5) ^ word);
    libckpt_rank::set_note(0, sum);
}

fn start(slot: &mut Slot, what: &str) {
    match what {
        "tangle" => slot.start(tangle),
        "grow" => slot.start(grow),
        seed => {
            let seed: u64 = seed.parse().unwrap();
            slot.start(move || stir(seed));
        }
    }
}

fn told(slot: &Slot, what: &str) -> String {
    match what {
        "tangle" => outcome(slot),
        _ => slot.note(0).to_string(),
    }
}

fn finish(slot: &mut Slot) {
    while let Resumed::Suspended = slot.resume() {}
}

fn a_rank_runs_while_its_pages_come_and_finds_what_it_had() {
    let directory = Directory::new("lazily");
    let mut random = ChaCha8Rng::seed_from_u64(8);
    for what in ["tangle", "grow", "1", "2", "3"] {
        let undisturbed = print("stirring", &[what]);
        for _ in 0..3 {
            let stop = match what {
                "tangle" => random.random_range(1..40),
                "grow" => random.random_range(1..10),
                _ => random.random_range(1..1100),
            };
            let stop = stop.to_string();
            println!("{what}, stop {stop}");
            let file = directory.file(&format!("{what}-{stop}"));
            print("stirring_captured", &[what, &stop, &file]);
            if let Some(came) = played("came_lazily", &[what, &stop, &file]) {
                assert_eq!(came, undisturbed, "{what}, stop {stop}");
            }
            std::fs::remove_file(&file).unwrap();
        }
    }
}

fn stirring(arguments: &[String]) {
    let mut slot = sole_slot();
    start(&mut slot, &arguments[0]);
    finish(&mut slot);
    println!("{}", told(&slot, &arguments[0]));
}

fn stirring_captured(arguments: &[String]) {
    let mut slot = sole_slot();
    start(&mut slot, &arguments[0]);
    for _ in 0..arguments[1].parse().unwrap() {
        slot.resume();
    }
    store(&slot, Path::new(&arguments[2]));
}

fn came_lazily(arguments: &[String]) {
    prepare();
    let pages: BTreeMap<u64, Vec<u8>> = load(Path::new(&arguments[2])).into_iter().collect();
    let slot = RestoringSlot::create(layout(1), Rank(0)).unwrap();
    let mut incoming = incoming(&slot);
    incoming.expect(&ranges(&pages)).unwrap();
    fill_first(&mut incoming, &pages);
    let random = ChaCha8Rng::seed_from_u64(arguments[1].parse().unwrap());
    let server = library_thread("serves", move || serve(incoming, &pages, random, 20));
    let mut slot = slot.finish(|_| ()).unwrap();
    finish(&mut slot);
    server.unwrap().join().unwrap().unwrap();
    println!("{}", told(&slot, &arguments[0]));
}

fn a_rank_of_which_pages_are_missing_is_not_captured() {
    let directory = Directory::new("incomplete");
    let file = directory.file("image");
    print("stirring_captured", &["1", "100", &file]);
    if let Some(told) = played("incomplete", &[&file]) {
        assert!(
            told.contains("rank 0") && told.contains("not all of its pages"),
            "{told}"
        );
    }
}

fn incomplete(arguments: &[String]) {
    prepare();
    let pages: BTreeMap<u64, Vec<u8>> = load(Path::new(&arguments[0])).into_iter().collect();
    let slot = RestoringSlot::create(layout(1), Rank(0)).unwrap();
    let mut incoming = incoming(&slot);
    incoming.expect(&ranges(&pages)).unwrap();
    fill_first(&mut incoming, &pages);
    assert!(incoming.missing() > 0);
    let slot = slot.finish(|_| ()).unwrap();
    let error = slot.image().unwrap_err();
    assert!(matches!(error, CaptureError::Incoming { rank: Rank(0) }));
    let mut next = 0;
    while let Some(page) = incoming.next_missing(next) {
        let read = &mut |first, into: &mut [u8]| read(&pages, first, into);
        next = incoming.fill_around(page, read).unwrap();
    }
    drop(incoming);
    let pages_here: u64 = (slot.image().unwrap().iter())
        .map(|range| range.end - range.start)
        .sum();
    assert!(pages_here >= pages.len() as u64);
    println!("{error}");
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
