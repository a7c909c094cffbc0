//! Cuts, one after the other: whatever is tracked, copied aside or saved at a fault, each gives the image that a
//! full copy taken beside it says.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use libckpt_rank::capture::{
    Capturer, FollowError, LivePages, Observation, Options, REGION_PAGES, RankCut, Saved,
};
use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{PAGE_BYTES, Resumed, Slot, suspend};
use protocol::control::{CaptureMode, Tracking};
use protocol::dirty::PageSet;
use protocol::ids::{Epoch, Rank};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::child::{FullCopy, Image, layout, prepare, print};
use crate::{roles, tests};

tests![
    every_cut_is_the_image_of_its_moment_tracked_and_copied_on_write,
    every_cut_is_the_image_of_its_moment_tracked_and_copied_aside,
    every_cut_is_the_image_of_its_moment_by_digests_alone,
    every_cut_is_the_image_of_its_moment_without_tracking,
    a_few_written_pages_are_all_that_a_tracked_cut_saves,
    pages_given_back_while_they_are_protected_are_saved_before,
    a_system_call_that_writes_into_protected_pages_waits_like_the_rank,
    a_cut_after_a_restore_builds_on_what_was_restored,
];

roles![churned, sparse, given_back, read_into, restored];

const SEEDS: u64 = 2;

/// What `churned` prints where the system allows no copy on write, instead of a number of regions: what a region holds
/// is copied at a cut then, and nothing has to be caught up with.
const COPIES_ASIDE: &str = "no copy on write here";

fn every_cut_is_the_image_of_its_moment_tracked_and_copied_on_write() {
    let mut calmed_down = 0;
    for seed in 0..SEEDS {
        let printed = print("churned", &["auto", "cow", &seed.to_string()]);
        match printed.as_str() {
            COPIES_ASIDE => return println!("SKIPPED regions that calm down: {COPIES_ASIDE}"),
            count => calmed_down += count.parse::<u32>().unwrap(),
        }
        print("churned", &["kernel", "cow", &seed.to_string()]);
    }
    assert!(calmed_down > 0, "no region calmed down");
}

fn every_cut_is_the_image_of_its_moment_tracked_and_copied_aside() {
    for seed in 0..SEEDS {
        print("churned", &["auto", "copy", &seed.to_string()]);
        print("churned", &["kernel", "copy", &seed.to_string()]);
    }
}

fn every_cut_is_the_image_of_its_moment_by_digests_alone() {
    print("churned", &["hash", "cow", "1"]);
    print("churned", &["hash", "copy", "2"]);
}

fn every_cut_is_the_image_of_its_moment_without_tracking() {
    print("churned", &["off", "cow", "1"]);
    print("churned", &["off", "copy", "2"]);
}

fn options(tracking: &str, mode: &str, memory_bytes: usize) -> Options {
    Options {
        tracking: match tracking {
            "auto" => Tracking::Auto,
            "kernel" => Tracking::Kernel,
            "hash" => Tracking::Hash,
            _ => Tracking::Off,
        },
        mode: match mode {
            "cow" => CaptureMode::CopyOnWrite,
            "auto" => CaptureMode::Auto,
            _ => CaptureMode::CopyAside,
        },
        memory_bytes,
    }
}

/// Takes what is saved on the fly, as packers would, so that a small budget suffices.
struct Collector {
    images: Receiver<Vec<Image>>,
}

impl Collector {
    /// Begins a cut; the images are complete when [`Collector::images`] gives them.
    fn cut(capturer: &mut Capturer, epoch: Epoch, slots: &[Slot]) -> (Self, Vec<RankCut>) {
        let (blocks, inbox) = channel();
        let (give, images) = channel();
        let ranks = slots.len();
        libckpt_rank::library_thread("collector", move || {
            let mut images = vec![Image::new(); ranks];
            for saved in inbox {
                match saved {
                    Saved::Block { rank, block } => {
                        for (page, bytes) in block
                            .pages()
                            .iter()
                            .zip(block.bytes().chunks_exact(PAGE_BYTES))
                        {
                            let twice = images[rank].insert(*page, bytes.to_vec());
                            assert!(twice.is_none(), "page {page} was saved twice");
                        }
                    }
                    Saved::Failed(reason) => panic!("{reason}"),
                    Saved::All(_) => break,
                }
            }
            let _ = give.send(images);
        })
        .unwrap();
        let sink = Arc::new(move |saved| {
            // Nobody listens to a round that was given up.
            let _ = blocks.send(saved);
        });
        let cuts = capturer.cut(epoch, slots, &(sink as _)).unwrap();
        (Self { images }, cuts)
    }

    fn images(self) -> Vec<Image> {
        self.images
            .recv_timeout(Duration::from_secs(60))
            .expect("the last block of a round came")
    }
}

/// The image of a cut, from what it saved and its parent's image.
fn compose(cut: &RankCut, saved: &Image, parent: Option<&Image>) -> Image {
    let mut image = saved.clone();
    for page in saved.keys() {
        assert!(cut.saved.contains(*page) && cut.existing.contains(*page));
    }
    let kept = cut.existing.difference(&cut.saved);
    match parent {
        None => assert!(
            kept.is_empty(),
            "pages are left to a parent that is not there"
        ),
        Some(parent) => {
            for range in kept.ranges() {
                let inherited = parent.range(range.clone());
                image.extend(inherited.map(|(page, bytes)| (*page, bytes.clone())));
            }
        }
    }
    image
}

/// Blocks of all sizes, made, written to, grown and dropped at random.
fn churn() {
    let mut random = ChaCha8Rng::seed_from_u64(libckpt_rank::note(0));
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    loop {
        for _ in 0..random.random_range(0..12) {
            let choice = random.random_range(0..10);
            if choice < 3 || blocks.is_empty() {
                let bytes = match random.random_range(0..4) {
                    0 => random.random_range(1..4096),
                    1 => random.random_range(4096..1 << 20),
                    _ => random.random_range(1 << 20..14 << 20),
                };
                let block = match random.random_range(0..3) {
                    0 => vec![0; bytes],
                    _ => vec![random.random(); bytes],
                };
                blocks.push(block);
                let live: usize = blocks.iter().map(Vec::len).sum();
                if live > 80 << 20 {
                    let victim = random.random_range(0..blocks.len());
                    drop(blocks.swap_remove(victim));
                }
                continue;
            }
            let index = random.random_range(0..blocks.len());
            match choice {
                3 => drop(blocks.swap_remove(index)),
                4 => {
                    let more = random.random_range(0..8 << 20);
                    let bytes = (blocks[index].len() + more).min(64 << 20);
                    blocks[index].resize(bytes, 3);
                }
                5 => {
                    let bytes = random.random_range(0..=blocks[index].len());
                    blocks[index].truncate(bytes);
                    blocks[index].shrink_to_fit();
                }
                6 => blocks[index].fill(random.random()),
                _ => {
                    for _ in 0..random.random_range(0..50) {
                        let bytes = blocks[index].len();
                        if bytes > 0 {
                            blocks[index][random.random_range(0..bytes)] = random.random();
                        }
                    }
                }
            }
        }
        suspend();
    }
}

/// Two ranks that churn; cuts at random, some given up half-way, some aborted later; the ranks go on while
/// pages are being saved.
fn churned(arguments: &[String]) {
    prepare();
    let seed: u64 = arguments[2].parse().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut slots: Vec<Slot> = (0..2)
        .map(|rank| {
            let mut slot = Slot::create(layout(2), Rank(rank)).unwrap();
            slot.set_note(0, seed * 100 + u64::from(rank));
            slot.start(churn);
            slot
        })
        .collect();
    let budget = random.random_range(4..40) << 20;
    let mut capturer = Capturer::new(&options(&arguments[0], &arguments[1], budget));
    let mut copies = [FullCopy::new(), FullCopy::new()];
    let mut checkpoints: BTreeMap<Epoch, Vec<Image>> = BTreeMap::new();
    let mut committed = None;
    let mut caught_up = 0;
    let mut moves = 0;
    for number in 1..25 {
        let epoch = Epoch(number);
        for _ in 0..random.random_range(1..4) {
            resume_all(&mut slots);
        }
        if random.random_range(0..2) == 0 {
            let rank = random.random_range(0..2);
            let rounds = random.random_range(0..4);
            let base = committed.filter(|_| random.random_range(0..2) == 0);
            let base = base.map(|epoch| &checkpoints[&epoch][rank]);
            if committed.is_none() && capturer.tracks() {
                let refused = capturer.look_since_checkpoint(&slots[rank]);
                assert!(matches!(refused, Err(FollowError::NoCheckpoint { .. })));
            }
            moves += u32::from(follow(
                &mut capturer,
                &mut slots,
                rank,
                rounds,
                &mut copies[rank],
                base,
            ));
            for _ in 0..random.random_range(0..2) {
                resume_all(&mut slots);
            }
        }
        let expected: Vec<Image> = slots
            .iter()
            .zip(&mut copies)
            .map(|(slot, copy)| copy.take(slot).unwrap())
            .collect();
        let (collector, cuts) = Collector::cut(&mut capturer, epoch, &slots);
        for _ in 0..random.random_range(0..3) {
            resume_all(&mut slots);
        }
        if random.random_range(0..8) == 0 {
            // Given up while it may still be saving.
            capturer.aborted(epoch);
            continue;
        }
        let saved = collector.images();
        let images: Vec<Image> = cuts
            .iter()
            .zip(&saved)
            .enumerate()
            .map(|(rank, (cut, saved))| {
                let parent = cut.parent.map(|parent| &checkpoints[&parent][rank]);
                compose(cut, saved, parent)
            })
            .collect();
        for (rank, (image, expected)) in images.iter().zip(&expected).enumerate() {
            assert_same(
                image,
                expected,
                &format!("rank {rank} of {epoch}, seed {seed}"),
            );
        }
        match random.random_range(0..10) {
            0 => capturer.aborted(epoch),
            1 => {
                capturer.aborted(epoch);
                capturer.rebase();
                committed = None;
            }
            _ => {
                for (rank, cut) in cuts.iter().enumerate() {
                    let parent = committed.map(|parent| &checkpoints[&parent][rank]);
                    capturer.observe(cut.rank, &observations(&saved[rank], parent));
                }
                capturer.committed(epoch);
                checkpoints.insert(epoch, images);
                committed = Some(epoch);
                let regions = capturer.catch_up(&slots);
                caught_up += regions.len();
                for _ in 0..random.random_range(0..3) {
                    resume_all(&mut slots);
                }
                for region in regions {
                    // Some come too late.
                    if random.random_range(0..5) > 0 {
                        let base = &checkpoints[&epoch][region.pages().rank().index()];
                        let differing = differing(region.pages(), base);
                        capturer.caught_up(&region, differing);
                    }
                }
            }
        }
    }
    assert!(!checkpoints.is_empty());
    assert_eq!(moves > 0, capturer.tracks());
    if capturer.description().ends_with("copy on write") {
        println!("{caught_up}");
    } else {
        println!("{COPIES_ASIDE}");
    }
}

/// Copies a rank while it runs, as for a move that comes to nothing, from nothing or out of its last checkpoint. False where
/// the kernel tracks nothing.
fn follow(
    capturer: &mut Capturer,
    slots: &mut [Slot],
    rank: usize,
    rounds: u32,
    copy: &mut FullCopy,
    base: Option<&Image>,
) -> bool {
    let mut copied = Image::new();
    if let Some(base) = base {
        let since = match capturer.look_since_checkpoint(&slots[rank]) {
            Ok(since) => since,
            Err(FollowError::Untracked) => return false,
            Err(error) => panic!("{error}"),
        };
        // What is written from here on is told by the next look, whatever the comparison finds.
        resume_all(slots);
        let differing = differing(&since.unknown, base);
        let existing = since.existing.ranges();
        let stored = existing
            .iter()
            .flat_map(|range| base.range(range.clone()))
            .filter(|(page, _)| !since.written.contains(**page) && !differing.contains(**page));
        copied.extend(stored.map(|(page, bytes)| (*page, bytes.clone())));
    }
    for round in 0..=rounds {
        let look = match capturer.look(&slots[rank]) {
            Ok(look) => look,
            Err(FollowError::Untracked) => return false,
            Err(error) => panic!("{error}"),
        };
        let is_first = round == 0 && base.is_none();
        assert!(
            !is_first || look.written == look.existing,
            "all is new at first"
        );
        let image = copy.take(&slots[rank]).unwrap();
        copied.retain(|page, _| look.existing.contains(*page) && !look.written.contains(*page));
        // Header and stack are not followed; of the heap, what was told as written is all there is to copy, but for what a
        // checkpoint did not have.
        let followed: Image = image
            .into_iter()
            .filter(|(page, _)| look.existing.contains(*page))
            .collect();
        for (page, bytes) in &followed {
            let is_missing = round == 0 && base.is_some() && !copied.contains_key(page);
            if is_missing || look.written.contains(*page) {
                copied.insert(*page, bytes.clone());
            }
        }
        assert_same(
            &copied,
            &followed,
            &format!(
                "rank {rank}, round {round}, out of a checkpoint: {}",
                base.is_some()
            ),
        );
        if round < rounds {
            resume_all(slots);
        }
    }
    assert!(capturer.follows(Rank(rank as u32)));
    capturer.unfollow(&slots[rank]);
    assert!(!capturer.follows(Rank(rank as u32)));
    true
}

/// The pages that are not as in the base.
fn differing(live: &LivePages, base: &Image) -> PageSet {
    let mut pages = Vec::new();
    let zeros = vec![0; PAGE_BYTES];
    live.read(|page, bytes| {
        if base.get(&page).unwrap_or(&zeros) != bytes {
            pages.push(page..page + 1);
        }
    })
    .unwrap();
    pages.into_iter().collect()
}

/// What packers would tell: how many of the pages saved differ from the parent's.
fn observations(saved: &Image, parent: Option<&Image>) -> BTreeMap<u64, Observation> {
    let mut observations: BTreeMap<u64, Observation> = BTreeMap::new();
    for (page, bytes) in saved {
        let region = observations.entry(page / REGION_PAGES).or_default();
        region.saved += 1;
        let before = parent.and_then(|parent| parent.get(page));
        region.changed += u64::from(before != Some(bytes));
    }
    observations
}

fn resume_all(slots: &mut [Slot]) {
    for slot in slots {
        assert!(matches!(slot.resume(), Resumed::Suspended));
    }
}

fn assert_same(image: &Image, expected: &Image, what: &str) {
    let missing: Vec<_> = expected
        .keys()
        .filter(|page| !image.contains_key(page))
        .collect();
    let surplus: Vec<_> = image
        .keys()
        .filter(|page| !expected.contains_key(page))
        .collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "{what}: {} pages missing ({:?}), {} too many ({:?})",
        missing.len(),
        missing.first(),
        surplus.len(),
        surplus.first(),
    );
    let wrong: Vec<_> = image
        .iter()
        .filter(|(page, bytes)| expected[page] != **bytes)
        .collect();
    assert!(
        wrong.is_empty(),
        "{what}: {} pages differ, the first is {}",
        wrong.len(),
        wrong[0].0
    );
}

fn a_few_written_pages_are_all_that_a_tracked_cut_saves() {
    print("sparse", &["kernel", "copy"]);
    print("sparse", &["auto", "cow"]);
    print("sparse", &["auto", "copy"]);
}

fn sparse(arguments: &[String]) {
    const PAGES: usize = 48 << 8;
    prepare();
    let mut slot = Slot::create(layout(1), Rank(0)).unwrap();
    slot.start(|| {
        let mut field = vec![1_u8; PAGES * PAGE_BYTES];
        for step in 0_usize.. {
            suspend();
            for page in (0..PAGES).step_by(100) {
                field[page * PAGE_BYTES] = step as u8;
            }
        }
    });
    slot.resume();
    let mut capturer = Capturer::new(&options(&arguments[0], &arguments[1], 64 << 20));
    let mut parent = None;
    let mut last = 0;
    for number in 1..8 {
        let epoch = Epoch(number);
        let slots = std::slice::from_ref(&slot);
        let (collector, cuts) = Collector::cut(&mut capturer, epoch, slots);
        let saved = collector.images().remove(0);
        capturer.observe(Rank(0), &observations(&saved, parent.as_ref()));
        parent = Some(compose(&cuts[0], &saved, parent.as_ref()));
        capturer.committed(epoch);
        last = saved.len();
        slot.resume();
        let regions = capturer.catch_up(std::slice::from_ref(&slot));
        slot.resume();
        for region in regions {
            let differing = differing(region.pages(), parent.as_ref().unwrap());
            capturer.caught_up(&region, differing);
        }
    }
    // Stack, header and the heap's own tables on top of it.
    let written = PAGES / 100 + 1;
    assert!(
        (written..written + 60).contains(&last),
        "{last} of {written}"
    );
}

fn pages_given_back_while_they_are_protected_are_saved_before() {
    print("given_back", &[]);
}

fn given_back(_: &[String]) {
    prepare();
    let mut slot = Slot::create(layout(2), Rank(0)).unwrap();
    // With a second one, threads that start allocate nothing in the first, not even before they run.
    let _other = Slot::create(layout(2), Rank(1)).unwrap();
    slot.start(|| {
        loop {
            let mut block = vec![7_u8; 200 << 20];
            let mut grown = vec![8_u8; 20 << 20];
            suspend();
            // All its pages go back to the system at once, or move elsewhere.
            grown.reserve_exact(100 << 20);
            block.truncate(1 << 20);
            block.shrink_to_fit();
            drop(block);
            suspend();
        }
    });
    full_cuts_at_every_other_stop(&mut slot);
}

/// Cuts that save all pages; the rank goes on to its next stop while they are saved.
fn full_cuts_at_every_other_stop(slot: &mut Slot) {
    let mut capturer = Capturer::new(&options("off", "cow", 16 << 20));
    let mut copy = FullCopy::new();
    for number in 1..6 {
        slot.resume();
        let expected = copy.take(slot).unwrap();
        let slots = std::slice::from_ref(slot);
        let (collector, cuts) = Collector::cut(&mut capturer, Epoch(number), slots);
        slot.resume();
        let saved = collector.images().remove(0);
        let what = format!("cut {number}");
        assert_same(&compose(&cuts[0], &saved, None), &expected, &what);
    }
}

fn a_system_call_that_writes_into_protected_pages_waits_like_the_rank() {
    print("read_into", &[]);
}

fn read_into(_: &[String]) {
    prepare();
    let mut slot = Slot::create(layout(2), Rank(0)).unwrap();
    // With a second one, threads that start allocate nothing in the first, not even before they run.
    let _other = Slot::create(layout(2), Rank(1)).unwrap();
    slot.start(|| {
        let mut buffer = vec![7_u8; 20 << 20];
        loop {
            suspend();
            let mut zeros = std::fs::File::open("/dev/zero").unwrap();
            for piece in buffer.chunks_mut(3 << 20) {
                zeros.read_exact(piece).expect("the kernel may write");
            }
            drop(zeros);
            assert!(buffer.iter().all(|byte| *byte == 0));
            suspend();
            buffer.fill(7);
        }
    });
    full_cuts_at_every_other_stop(&mut slot);
}

fn a_cut_after_a_restore_builds_on_what_was_restored() {
    for seed in 0..SEEDS {
        print("restored", &["auto", "cow", &seed.to_string()]);
        print("restored", &["kernel", "copy", &seed.to_string()]);
    }
}

/// Restored again and again in one process; what making the heap fit for use writes must count as written.
fn restored(arguments: &[String]) {
    prepare();
    let seed: u64 = arguments[2].parse().unwrap();
    // With a second one, threads that start allocate nothing in the first, not even before they run.
    let _other = Slot::create(layout(2), Rank(1)).unwrap();
    let mut slot = Slot::create(layout(2), Rank(0)).unwrap();
    slot.set_note(0, seed);
    slot.start(churn);
    let mut copy = FullCopy::new();
    let mut epoch = Epoch(0);
    for round in 1..6 {
        for _ in 0..4 {
            resume_all(std::slice::from_mut(&mut slot));
        }
        let image = copy.take(&slot).unwrap();
        drop(slot);
        epoch.0 += 1;
        let mut capturer = Capturer::new(&options(&arguments[0], &arguments[1], 32 << 20));
        let mut restoring = RestoringSlot::create(layout(2), Rank(0)).unwrap();
        // As a move does it: filled while the rank still writes, then anew; what is not in the image in the end becomes zeros.
        let held: PageSet = image.keys().map(|page| *page..*page + 1).collect();
        let surplus = std::iter::once(200_000..210_000)
            .collect::<PageSet>()
            .difference(&held);
        restoring.make_room(held.ranges());
        for page in held
            .ranges()
            .iter()
            .chain(surplus.ranges())
            .flat_map(Clone::clone)
        {
            restoring.place(page, &[0xab; PAGE_BYTES]).unwrap();
        }
        // What was filled stays.
        restoring.make_room(held.ranges());
        restoring.clear(surplus.ranges()).unwrap();
        assert!(
            restoring
                .clear(std::slice::from_ref(&(100_000_000..100_000_001)))
                .is_err()
        );
        restoring.again(held.ranges());
        for page in held.ranges().iter().flat_map(Clone::clone) {
            let window = restoring.window(page, 1).unwrap();
            assert!(window.iter().all(|&byte| byte == 0xab), "page {page}");
        }
        restoring.again(held.ranges());
        for (page, bytes) in &image {
            restoring.place(*page, bytes).unwrap();
        }
        let zeros = surplus.ranges().first().map_or(0..0, Clone::clone);
        for page in zeros {
            let window = restoring.window(page, 1).unwrap();
            assert!(window.iter().all(|&byte| byte == 0), "page {page}");
        }
        restoring.check().unwrap();
        slot = restoring
            .finish(|slot| capturer.restored(epoch, slot))
            .unwrap();
        let mut parent = image;
        let mut parent_epoch = epoch;
        for _ in 0..3 {
            for _ in 0..round % 2 {
                resume_all(std::slice::from_mut(&mut slot));
            }
            let expected = copy.take(&slot).unwrap();
            epoch.0 += 1;
            let slots = std::slice::from_ref(&slot);
            let (collector, cuts) = Collector::cut(&mut capturer, epoch, slots);
            let saved = collector.images().remove(0);
            assert_eq!(cuts[0].parent, Some(parent_epoch));
            let built = compose(&cuts[0], &saved, Some(&parent));
            assert_same(
                &built,
                &expected,
                &format!("{epoch}, round {round}, seed {seed}"),
            );
            capturer.committed(epoch);
            (parent, parent_epoch) = (built, epoch);
        }
    }
}
