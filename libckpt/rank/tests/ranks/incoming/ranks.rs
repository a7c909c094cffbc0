//! Ranks that run while their pages come.

use std::collections::BTreeMap;
use std::path::Path;

use libckpt_rank::capture::CaptureError;
use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{Resumed, Slot, library_thread, suspend};
use protocol::ids::Rank;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{fill_first, incoming, played, ranges, read, serve};
use crate::child::{Directory, layout, load, prepare, print, sole_slot, store};
use crate::tangle::{outcome, tangle};

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

pub(super) fn a_rank_runs_while_its_pages_come_and_finds_what_it_had() {
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

pub(super) fn stirring(arguments: &[String]) {
    let mut slot = sole_slot();
    start(&mut slot, &arguments[0]);
    finish(&mut slot);
    println!("{}", told(&slot, &arguments[0]));
}

pub(super) fn stirring_captured(arguments: &[String]) {
    let mut slot = sole_slot();
    start(&mut slot, &arguments[0]);
    for _ in 0..arguments[1].parse().unwrap() {
        slot.resume();
    }
    store(&slot, Path::new(&arguments[2]));
}

pub(super) fn came_lazily(arguments: &[String]) {
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

pub(super) fn a_rank_of_which_pages_are_missing_is_not_captured() {
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

pub(super) fn incomplete(arguments: &[String]) {
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
