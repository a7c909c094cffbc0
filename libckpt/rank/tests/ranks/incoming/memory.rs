//! Memory that somebody uses while its pages come.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read as _};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use libckpt_rank::PAGE_BYTES;
use libckpt_rank::incoming::is_incoming;
use libckpt_rank::restore::RestoringSlot;
use protocol::ids::Rank;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{HEAP, READ, address, incoming, played, ranges, serve};
use crate::child::{layout, prepare};

pub(super) fn memory_whose_pages_still_come_is_as_if_they_were_there() {
    for seed in 1..=6 {
        println!("seed {seed}");
        if let Some(told) = played("stirred_memory", &[&seed.to_string()]) {
            println!("  {told}");
        }
    }
}

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

pub(super) fn stirred_memory(arguments: &[String]) {
    let seed: u64 = arguments[0].parse().unwrap();
    prepare();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let pages = image(&mut random);
    let slot = RestoringSlot::create(layout(1), Rank(0)).unwrap();
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
                scope.spawn(move || User::new(first, model, random).run(over))
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
    first: u64,
    model: BTreeMap<u64, Vec<u8>>,
    random: ChaCha8Rng,
}

impl User {
    fn new(first: u64, model: BTreeMap<u64, Vec<u8>>, random: ChaCha8Rng) -> Self {
        Self {
            first,
            model,
            random,
        }
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
                unsafe { address(page).add(offset).write_volatile(byte) };
                self.model.insert(page, bytes);
            }
            60..75 => self.look_by_a_call(),
            75..90 => self.write_by_a_call(),
            90..99 => {
                let range = self.some_range();
                let bytes = (range.end - range.start) as usize * PAGE_BYTES;
                // SAFETY: pages of the slot, which this thread alone uses.
                let answer = unsafe {
                    libc::madvise(address(range.start).cast(), bytes, libc::MADV_DONTNEED)
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
                        address(range.start).cast(),
                        bytes,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                        -1,
                        0,
                    )
                };
                assert_eq!(at, address(range.start).cast());
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
                .copy_from_nonoverlapping(address(page), PAGE_BYTES)
        };
        assert!(found == self.expected(page), "page {page}");
    }

    /// As another process does that reads an announced message.
    fn look_by_a_call(&mut self) {
        let range = self.some_range();
        let range = range.start..range.end.min(range.start + 40);
        let mut found = vec![0; (range.end - range.start) as usize * PAGE_BYTES];
        let remote = libc::iovec {
            iov_base: address(range.start).cast(),
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
        let into = unsafe { std::slice::from_raw_parts_mut(address(page), half) };
        let mut source = std::fs::File::open("/dev/zero").unwrap();
        source.read_exact(into).unwrap();
        let mut bytes = self.expected(page);
        bytes[..half].fill(0);
        self.model.insert(page, bytes);
    }
}
