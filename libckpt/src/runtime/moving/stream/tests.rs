//! A rank over a connection: whole, or not at all.

#![allow(clippy::single_range_in_vec_init)] // ranges of pages

use std::io::{self, Cursor, Read, Write};
use std::iter::once;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use libckpt_rank::incoming::{Incoming, IncomingError};
use libckpt_rank::restore::RestoringSlot;
use protocol::dirty::PageSet;
use protocol::ids::Rank;
use protocol::migration::MoveMode;
use protocol::slots::SlotLayout;
use wire::Stream;

use super::give::{Expected, Giver};
use super::patience::{Expect, Patient};
use super::send::Sending;
use super::take::Taker;
use super::*;
use crate::fs;
use crate::runtime::moving::fetch::Fetch;
use crate::runtime::moving::line::{Answer, Ear, Frames, Heard, Saying, Source, say};
use crate::runtime::moving::parcel::{
    Files, PARCEL_BYTES_MAX, Parcel, decode_pages, encode_pages, now_us,
};
use crate::runtime::moving::stored::Store;

const TOKEN: [u8; 32] = [3; 32];
const ID: Move = Move(9);
const TARGET: Process = Process(2);
const INCARNATION: Incarnation = Incarnation(4);

/// First page of the heap that a slot of 4 GiB has, or one a little behind it.
const HEAP: u64 = (1 << 20) - 5000;

/// A page that is full of its number, one in three of zeros, one in three of noise.
fn page(number: u64) -> Vec<u8> {
    match number % 3 {
        0 => vec![0; PAGE_BYTES],
        1 => number.to_le_bytes().repeat(PAGE_BYTES / 8),
        _ => {
            let mut word = number;
            let words = std::iter::repeat_with(|| {
                word = word
                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                    .wrapping_add(1442695);
                (word >> 32) as u32
            });
            let words = words.take(PAGE_BYTES / 4);
            words.flat_map(u32::to_le_bytes).collect()
        }
    }
}

/// The memory of a rank whose pages are those.
fn memory(first: u64, into: &mut [u8]) -> Result<(), String> {
    for (number, into) in (first..).zip(into.chunks_mut(PAGE_BYTES)) {
        into.copy_from_slice(&page(number));
    }
    Ok(())
}

/// A frozen rank.
fn rest(rank: Rank, pages: impl IntoIterator<Item = Range<u64>>) -> Saying {
    let pages: Vec<_> = pages.into_iter().collect();
    let parcel = Parcel {
        rank,
        pages: pages.clone(),
        rest: pages.clone(),
        mode: MoveMode::Stop,
        rounds: 0,
        tables: vec![1; 3 << 20],
        files: Files::Recorded(fs::OpenFiles::default()),
        output: None,
        frozen_us: now_us(),
    };
    Saying {
        pages,
        frozen_us: Some(parcel.frozen_us),
        ..Saying::of_test(Word::Rest, &parcel.encode().unwrap())
    }
}

/// Pages of a rank that runs.
fn round(pages: impl IntoIterator<Item = Range<u64>>) -> Saying {
    let pages: PageSet = pages.into_iter().collect();
    Saying {
        pages: pages.ranges().to_vec(),
        ..Saying::of_test(Word::Round, &encode_pages(&pages).unwrap())
    }
}

fn pages() -> Vec<Range<u64>> {
    vec![0..1, HEAP..HEAP + 300, HEAP + 1000..HEAP + 1001]
}

fn room(rank: Rank) -> RestoringSlot {
    let layout = SlotLayout::new(64, 4 << 30, 1 << 20).unwrap();
    RestoringSlot::create(layout, rank).unwrap()
}

/// What lies in a page of a slot, which was filled or was not.
fn held(slot: &mut RestoringSlot, number: u64) -> Vec<u8> {
    slot.again(&[number..number + 1]);
    slot.window(number, 1).unwrap().to_vec()
}

/// A connection that was recorded.
struct Recorded(Cursor<Vec<u8>>);

impl Read for Recorded {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Expect for Recorded {
    fn expect_within(&mut self, _: Option<Duration>) {}

    fn wait_beside(&self, _: BorrowedFd<'_>, _: Duration) -> io::Result<bool> {
        Ok(true)
    }
}

fn taker(bytes: &[u8]) -> Taker<Recorded> {
    Taker::on(Recorded(Cursor::new(bytes.to_vec())))
}

fn sent(sayings: &[Saying]) -> Vec<u8> {
    let mut sending = Sending::to(Vec::new(), memory);
    for saying in sayings {
        sending.say(saying).unwrap();
    }
    sending.into_inner()
}

/// What comes of a frozen rank: its parcel, its slot, and the pages of zeros.
fn come(bytes: &[u8], rank: Rank) -> Result<(Parcel, RestoringSlot, PageSet), String> {
    let mut taker = taker(bytes);
    let (word, about) = taker.hear()?;
    assert_eq!(word, Word::Rest);
    let parcel = Parcel::decode(&about, rank)?;
    let (slot, zeros) = taker.fill(room(rank), &parcel.rest)?;
    Ok((parcel, slot, zeros))
}

#[test]
fn what_was_sent_is_what_comes_and_pages_of_zeros_are_not_sent() {
    let rank = Rank(40);
    let bytes = sent(&[rest(rank, pages())]);
    assert!(bytes.len() < (3 << 20) + 302 * PAGE_BYTES * 3 / 4);
    let (parcel, mut slot, zeros) = come(&bytes, rank).unwrap();
    assert_eq!(parcel.pages, pages());
    for number in pages().into_iter().flatten() {
        assert_eq!(zeros.contains(number), number.is_multiple_of(3));
        assert!(held(&mut slot, number) == page(number), "page {number}");
    }
}

/// Where the heads are.
fn heads(bytes: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let mut heads = Vec::new();
    while at < bytes.len() {
        heads.push(at);
        let head = Piece::read_from_bytes(&bytes[at..at + size_of::<Piece>()]).unwrap();
        at += size_of::<Piece>() + usize::try_from(head.bytes.get()).unwrap();
    }
    heads
}

#[test]
fn no_byte_may_be_missing_and_none_may_be_changed() {
    let rank = Rank(41);
    let bytes = sent(&[rest(rank, pages())]);
    let heads = heads(&bytes);
    assert!(heads.len() > 100, "{} pieces", heads.len());
    let places = heads.iter().take(8).chain(heads.iter().rev().take(8));
    for &at in places.clone() {
        for kept in [at, at + 10, at + size_of::<Piece>() - 1] {
            let error = come(&bytes[..kept], rank).map(drop).unwrap_err();
            assert!(error.contains("broke"), "{kept}: {error}");
        }
    }
    let fields = places.flat_map(|at| [0, 4, 8, 16, 24].map(|field| at + field));
    // Of the word the time may be any.
    let mut changed: Vec<usize> = fields.filter(|at| *at != 8).collect();
    // In the parcel, and in each of the first pieces that have bytes.
    changed.push(100);
    let with_bytes = heads.windows(2).filter(|at| at[1] - at[0] > PAGE_BYTES);
    changed.extend(with_bytes.take(8).map(|at| at[0] + size_of::<Piece>() + 7));
    for at in changed {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let outcome = come(&damaged, rank);
        assert!(outcome.is_err(), "byte {at} of {}", bytes.len());
    }
    assert!(come(&bytes, rank).is_ok());
}

#[test]
fn lengths_are_checked_before_they_are_believed() {
    let refused = [
        Piece::new(
            Kind::Word(Word::Rest),
            0,
            0,
            1 + (PARCEL_BYTES_MAX as usize),
            0,
        ),
        Piece::new(Kind::Word(Word::Round), 0, 1, 10, 0),
        Piece::new(Kind::Pages, 0, 0, 0, 0),
        Piece::new(Kind::Pages, 0, 2, PAGE_BYTES, 0),
        Piece::new(
            Kind::Pages,
            0,
            PIECE_PAGES + 1,
            (PIECE_PAGES + 1) * PAGE_BYTES,
            0,
        ),
        Piece::new(Kind::Packed, 0, 1, PAGE_BYTES, 0),
        Piece::new(Kind::Packed, 0, 1, 0, 0),
        Piece::new(Kind::Zeros, 0, 0, 0, 0),
        Piece::new(Kind::Zeros, 0, PIECE_PAGES + 1, 0, 0),
        Piece::new(Kind::Zeros, 0, 1, 1, 0),
        Piece::new(Kind::End, 0, 0, 1, 0),
        Piece::new(Kind::Probe, 0, 1, 1, 0),
    ];
    for piece in refused {
        assert!(piece.check(PARCEL_BYTES_MAX).is_err(), "{piece:?}");
    }
    let mut unknown = Piece::new(Kind::End, 0, 0, 0, 0);
    assert!(unknown.check(PARCEL_BYTES_MAX).is_ok());
    unknown.kind = 7.into();
    assert!(unknown.check(PARCEL_BYTES_MAX).is_err());
    for kind in Kind::ALL {
        assert_eq!(Kind::of(kind.code()), Some(kind));
    }
}

#[test]
fn pages_come_in_their_order_and_no_others() {
    let rank = Rank(45);
    let told = vec![HEAP..HEAP + 2, HEAP + 10..HEAP + 12];
    let come_with = |sent_pages: &[Range<u64>]| {
        let saying = Saying {
            pages: sent_pages.to_vec(),
            ..round(told.clone())
        };
        let bytes = sent(&[saying]);
        let mut taker = taker(&bytes);
        let (_, about) = taker.hear()?;
        let filled = taker.fill(room(rank), &decode_pages(&about)?);
        filled.map(drop)
    };
    assert_eq!(come_with(&told), Ok(()));
    for wrong in [
        vec![HEAP..HEAP + 2],
        vec![HEAP + 10..HEAP + 12],
        vec![HEAP + 10..HEAP + 12, HEAP..HEAP + 2],
        vec![HEAP..HEAP + 3, HEAP + 10..HEAP + 12],
        vec![HEAP..HEAP + 2, HEAP + 10..HEAP + 12, HEAP + 12..HEAP + 13],
        vec![HEAP..HEAP + 2, HEAP + 9..HEAP + 12],
        vec![],
    ] {
        let error = come_with(&wrong).unwrap_err();
        assert!(error.contains("were to come"), "{wrong:?}: {error}");
    }
}

#[test]
fn a_page_that_has_become_zeros_is_cleared_at_the_target() {
    let rank = Rank(46);
    let all = once(HEAP..HEAP + 90);
    let zeros_then = |number: u64| number.is_multiple_of(4);
    let mut sending = Sending::to(Vec::new(), memory);
    sending.say(&round(all.clone())).unwrap();
    // Every fourth page is zeros when it is sent again, and no other is sent.
    let again: PageSet = all
        .clone()
        .flatten()
        .filter(|it| zeros_then(*it))
        .map(|it| it..it + 1)
        .collect();
    let mut bytes = sending.into_inner();
    let zeros = |_: u64, into: &mut [u8]| {
        into.fill(0);
        Ok(())
    };
    let mut sending = Sending::to(Vec::new(), zeros);
    sending.say(&round(again.ranges().to_vec())).unwrap();
    bytes.extend(sending.into_inner());
    let mut fetch = Fetch::new(
        (ID, rank, Process(1)),
        taker(&bytes),
        (None, room(rank)),
        Store::none(),
    );
    for _ in 0..2 {
        let (_, about) = fetch.source.hear().unwrap();
        fetch = fetch.fill(&decode_pages(&about).unwrap()).unwrap();
    }
    for number in all.flatten() {
        let expected = match zeros_then(number) {
            true => vec![0; PAGE_BYTES],
            false => page(number),
        };
        assert!(held(&mut fetch.slot, number) == expected, "page {number}");
    }
}

fn giver(slot: u64) -> (Giver, Receiver<Heard>) {
    start_giver(slot, false)
}

fn start_giver(slot: u64, probes: bool) -> (Giver, Receiver<Heard>) {
    let (told, heard) = channel();
    let expected = Expected {
        token: TOKEN,
        incarnation: INCARNATION,
        id: ID,
        target: TARGET,
    };
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ear: Ear = Arc::new(move |heard| {
        let _ = told.send(heard);
    });
    let giver = Giver::start(loopback, (Process(1), slot), expected, probes, ear);
    (giver.unwrap(), heard)
}

fn connect(giver: &Giver, stop: &Arc<AtomicBool>) -> Taker {
    let me = (INCARNATION, ID, TARGET);
    Taker::connect(giver.address(), TOKEN, me, stop.clone()).unwrap()
}

/// Where the slot would begin whose page `first` is at this address.
fn slot_around(memory: *const u8, first: u64) -> u64 {
    (memory.expose_provenance() as u64).wrapping_sub(first * PAGE_BYTES as u64)
}

#[test]
fn a_rank_comes_over_a_connection_to_who_shows_the_token_and_to_nobody_else() {
    let rank = Rank(42);
    // Of this process's own memory: the pages of a vector, which lie somewhere else in the slot.
    let image: Vec<u8> = (0..300).flat_map(page).collect();
    let (giver, heard) = giver(slot_around(image.as_ptr(), HEAP));
    let stop = Arc::<AtomicBool>::default();
    let mut wrong = TOKEN;
    wrong[31] ^= 1;
    for (token, incarnation, id, target) in [
        (wrong, INCARNATION, ID, TARGET),
        (TOKEN, Incarnation(3), ID, TARGET),
        (TOKEN, INCARNATION, Move(8), TARGET),
        (TOKEN, INCARNATION, ID, Process(1)),
    ] {
        let me = (incarnation, id, target);
        assert!(Taker::connect(giver.address(), token, me, stop.clone()).is_err());
    }
    let mut taker = connect(&giver, &stop);
    giver.say(Saying::of_test(Word::Room, b"where")).unwrap();
    assert_eq!(taker.hear(), Ok((Word::Room, b"where".to_vec())));
    taker.answer(Answer::Done).unwrap();
    assert_eq!(heard.recv(), Ok(Heard::Answer(Answer::Done)));
    giver.say(rest(rank, once(HEAP..HEAP + 300))).unwrap();
    let (word, about) = taker.hear().unwrap();
    assert_eq!(word, Word::Rest);
    let parcel = Parcel::decode(&about, rank).unwrap();
    let (mut slot, _) = taker.fill(room(rank), &parcel.rest).unwrap();
    for (number, came) in (0..300).zip(HEAP..) {
        assert!(held(&mut slot, came) == page(number), "page {number}");
    }
    assert!(taker.frozen_us(0) <= now_us());
    drop(giver);
    assert!(taker.hear().is_err(), "the line ends");
    drop(taker);
    assert!(heard.recv().is_err(), "nothing has failed");
}

#[test]
fn pages_that_are_written_while_they_are_read_come_as_they_were_read() {
    let rank = Rank(47);
    let words = 64 * PAGE_BYTES / 8;
    let image: Arc<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(1)).collect();
    let (giver, _heard) = giver(slot_around(image.as_ptr().cast(), HEAP));
    let written = Arc::<AtomicBool>::default();
    let writer = {
        let (image, written) = (image.clone(), written.clone());
        std::thread::spawn(move || {
            for value in 2.. {
                image
                    .iter()
                    .for_each(|it| it.store(value, Ordering::Relaxed));
                if written.load(Ordering::SeqCst) {
                    return;
                }
            }
        })
    };
    let taker = connect(&giver, &Arc::default());
    let mut fetch = Fetch::new(
        (ID, rank, Process(1)),
        taker,
        (None, room(rank)),
        Store::none(),
    );
    let rounds = |fetch: Fetch<Taker>, count: usize| {
        (0..count).fold(fetch, |mut fetch, _| {
            giver.say(round(once(HEAP..HEAP + 64))).unwrap();
            let (_, about) = fetch.source.hear().unwrap();
            fetch.fill(&decode_pages(&about).unwrap()).unwrap()
        })
    };
    fetch = rounds(fetch, 200);
    written.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    fetch = rounds(fetch, 1);
    let expected: Vec<u8> = image
        .iter()
        .flat_map(|it| it.load(Ordering::Relaxed).to_ne_bytes())
        .collect();
    for (number, expected) in (HEAP..).zip(expected.chunks(PAGE_BYTES)) {
        assert!(held(&mut fetch.slot, number) == expected, "page {number}");
    }
}

/// A rank that goes ahead of its memory, of which some pages are zeros and some are noise; page 0 is its header.
fn ahead(rank: Rank, pages: &[Range<u64>]) -> Saying {
    Saying {
        word: Word::Ahead,
        ..rest(rank, pages.iter().cloned())
    }
}

/// First page of the heap in the slots of these tests.
const HEAP_FIRST: u64 = 1024;

/// Where pages come to a slot; none where this user may not have it.
fn incoming(slot: &RestoringSlot) -> Option<Incoming> {
    match Incoming::new(slot) {
        Ok(incoming) => Some(incoming),
        Err(error @ IncomingError::Unavailable { .. }) => {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn pages_follow_a_rank_in_the_order_in_which_they_are_needed() {
    let rank = Rank(48);
    let mut slot = room(rank);
    let Some(mut incoming) = incoming(&slot) else {
        return;
    };
    let end = HEAP_FIRST + 3000;
    let pages = vec![0..2, HEAP_FIRST..HEAP_FIRST + 700, HEAP_FIRST + 900..end];
    let image: Vec<u8> = (0..end).flat_map(page).collect();
    let (giver, heard) = giver(slot_around(image.as_ptr(), 0));
    let mut taker = connect(&giver, &Arc::default());
    giver.say(ahead(rank, &pages)).unwrap();
    let (word, about) = taker.hear().unwrap();
    assert_eq!(word, Word::Ahead);
    let parcel = Parcel::decode(&about, rank).unwrap();
    incoming.expect(&parcel.pages).unwrap();
    taker.fill_first(&mut incoming).unwrap();
    assert!(!incoming.is_missing(&(0..2)) && incoming.missing() > 2000);
    let follows =
        std::thread::spawn(move || taker.follow(&mut incoming, &AtomicBool::new(true)).unwrap());
    // Whoever reads a page waits until it is here.
    for step in 0..500_u64 {
        let number = HEAP_FIRST + step * 7919 % 3010;
        let expected = match pages.iter().any(|range| range.contains(&number)) {
            true => page(number),
            false => vec![0; PAGE_BYTES],
        };
        assert!(held(&mut slot, number) == expected, "page {number}");
    }
    assert!(follows.join().unwrap(), "all have come");
    for number in pages.into_iter().flatten() {
        assert!(held(&mut slot, number) == page(number), "page {number}");
    }
    drop(giver);
    assert!(heard.recv().is_err(), "nothing has failed");
}

#[test]
fn a_rank_that_is_sent_in_another_way_than_it_was_asked_for_is_refused() {
    let rank = Rank(51);
    let refused = |incoming: Option<Incoming>, slot: RestoringSlot, saying: Saying| {
        let source = taker(&sent(&[saying]));
        let about = (ID, rank, Process(1));
        let fetch = Fetch::new(about, source, (incoming, slot), Store::none());
        let error = fetch.fetch(|_| ()).map(drop).unwrap_err();
        assert!(error.contains("another way"), "{error}");
    };
    refused(None, room(rank), ahead(rank, &pages()));
    // Whoever touches a page of such a slot waits for it, here for ever.
    let places: PageSet = pages().into_iter().collect();
    let places = encode_pages(&places).unwrap();
    for saying in [
        rest(rank, pages()),
        round(pages()),
        Saying::of_test(Word::Room, &places),
        Saying::of_test(Word::Stored, b"where"),
    ] {
        let slot = room(rank);
        let Some(incoming) = incoming(&slot) else {
            return;
        };
        refused(Some(incoming), slot, saying);
    }
}

#[test]
fn a_source_that_goes_away_before_the_last_page_is_noticed() {
    let rank = Rank(49);
    let slot = room(rank);
    let Some(mut incoming) = incoming(&slot) else {
        return;
    };
    // More than is sent unasked before the target takes any.
    let end = HEAP_FIRST + 1000;
    let image: Vec<u8> = (0..end).flat_map(page).collect();
    let (giver, _heard) = giver(slot_around(image.as_ptr(), 0));
    let mut taker = connect(&giver, &Arc::default());
    giver.say(ahead(rank, &[0..1, HEAP_FIRST..end])).unwrap();
    let (_, about) = taker.hear().unwrap();
    let parcel = Parcel::decode(&about, rank).unwrap();
    incoming.expect(&parcel.pages).unwrap();
    taker.fill_first(&mut incoming).unwrap();
    drop(giver);
    let error = taker
        .follow(&mut incoming, &AtomicBool::new(true))
        .unwrap_err()
        .to_string();
    let told = ["broke", "nobody is there"];
    assert!(told.iter().any(|it| error.contains(it)), "{error}");
    assert!(incoming.missing() > 0);
}

#[test]
fn an_end_before_the_last_page_is_no_end() {
    let rank = Rank(50);
    let slot = room(rank);
    let Some(mut incoming) = incoming(&slot) else {
        return;
    };
    let (_told, asked) = channel();
    let mut sending = Sending::to(Vec::new(), memory);
    let sent = [0..1, HEAP_FIRST..HEAP_FIRST + 100];
    sending
        .follow(&sent, &asked, &AtomicBool::new(false))
        .unwrap();
    let bytes = sending.into_inner();
    incoming
        .expect(&[0..1, HEAP_FIRST..HEAP_FIRST + 101])
        .unwrap();
    let mut wrong = |bytes: &[u8]| {
        let error = taker(bytes)
            .follow(&mut incoming, &AtomicBool::new(true))
            .unwrap_err();
        error.to_string()
    };
    let error = wrong(&bytes);
    assert!(error.contains("1 pages have not come"), "{error}");
    for kept in [bytes.len() - 1, bytes.len() - size_of::<Piece>(), 40] {
        let error = wrong(&bytes[..kept]);
        assert!(error.contains("broke"), "{kept}: {error}");
    }
    for at in heads(&bytes).into_iter().take(8) {
        for field in [0, 4, 8, 16, 24] {
            let mut damaged = bytes.clone();
            damaged[at + field] ^= 1;
            let error = wrong(&damaged);
            assert!(
                !error.contains("1 pages have not come"),
                "byte {at} + {field}: {error}"
            );
        }
    }
}

#[test]
fn a_target_that_goes_away_is_told_and_one_that_gives_up_stops_waiting() {
    let (giver, heard) = giver(0);
    let stop = Arc::<AtomicBool>::default();
    drop(connect(&giver, &stop));
    giver.say(rest(Rank(43), once(0..1 << 20))).unwrap();
    let Heard::Broken(reason) = heard.recv().unwrap() else {
        panic!("an answer of nobody");
    };
    assert!(reason.contains("broke"), "{reason}");

    let (giver, _heard) = self::giver(0);
    let taker = connect(&giver, &stop);
    let fetch = Fetch::new(
        (ID, Rank(44), Process(1)),
        taker,
        (None, room(Rank(44))),
        Store::none(),
    );
    let waiting = std::thread::spawn(move || fetch.fetch(|_| ()).map(drop));
    stop.store(true, Ordering::SeqCst);
    let error = waiting.join().unwrap().unwrap_err();
    assert!(error.contains("given up"), "{error}");
    drop(giver);
}

#[test]
fn how_fast_the_connection_is_is_found_out_before_anything_is_said() {
    let (giver, heard) = start_giver(0, true);
    assert_eq!(giver.bytes_per_s(), None);
    let mut taker = connect(&giver, &Arc::default());
    giver.say(Saying::of_test(Word::Room, b"where")).unwrap();
    assert_eq!(taker.hear(), Ok((Word::Room, b"where".to_vec())));
    assert!(giver.bytes_per_s().is_some());
    assert!(heard.try_recv().is_err(), "no word was answered");
    // A row of the longest kind at the most, and all the shorter ones.
    let mut sending = Sending::to(Vec::new(), memory);
    let done = Recorded(Cursor::new(answers(9)));
    sending.probe(&mut Frames::on(done)).unwrap();
    let sent = sending.into_inner();
    assert!(heads(&sent).len() <= 128);
    let mut damaged = sent.clone();
    damaged[size_of::<Piece>() + 9] ^= 1;
    assert!(
        self::taker(&damaged)
            .hear()
            .unwrap_err()
            .contains("damaged")
    );
    let mut ended = Sending::to(Vec::new(), memory);
    let error = ended.probe(&mut Frames::on(Recorded(Cursor::new(answers(1)))));
    assert!(error.unwrap_err().contains("broke"));
}

/// So many answers of a target.
fn answers(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        say(&mut bytes, &Answer::Done).unwrap();
    }
    bytes
}

#[test]
fn memory_that_can_not_be_read_is_told() {
    let (giver, heard) = giver(0);
    let _taker = connect(&giver, &Arc::default());
    giver.say(round(once(1..2))).unwrap();
    let Heard::Broken(reason) = heard.recv().unwrap() else {
        panic!("an answer of nobody");
    };
    assert!(reason.contains("0x1000"), "{reason}");
}

/// Both ends of a connection.
fn pair() -> (TcpStream, Patient) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = Stream::Tcp(listener.accept().unwrap().0);
    (ours, Patient::new(theirs, Arc::default()).unwrap())
}

#[test]
fn a_peer_that_neither_takes_nor_sends_is_not_waited_for_without_end() {
    let (ours, mut theirs) = pair();
    theirs.expect_within(Some(Duration::from_millis(100)));
    let stalled = |error: io::Error| {
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("nothing has moved"), "{error}");
    };
    stalled(theirs.read_exact(&mut [0]).unwrap_err());
    stalled(theirs.write_all(&vec![0; 64 << 20]).unwrap_err());
    drop(ours);
    // Whoever expects nothing waits, and sees the end.
    theirs.expect_within(None);
    assert!(matches!(theirs.read(&mut [0]), Ok(0) | Err(_)));
}
