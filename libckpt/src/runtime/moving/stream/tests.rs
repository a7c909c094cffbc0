//! A rank over a connection: whole, or not at all.

use std::io::Cursor;
use std::iter::once;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use libckpt_rank::restore::RestoringSlot;
use protocol::ids::Rank;
use protocol::migration::MoveMode;
use protocol::slots::SlotLayout;

use super::give::{Expected, Freight, Giver, send};
use super::take::{Taker, receive};
use super::*;
use crate::fs;
use crate::runtime::moving::parcel::{Files, PARCEL_BYTES_MAX, Parcel, now_us};

const TOKEN: [u8; 32] = [3; 32];
const ID: Move = Move(9);
const TARGET: Process = Process(2);
const INCARNATION: Incarnation = Incarnation(4);

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

fn memory(address: u64, into: &mut [u8]) -> Result<(), String> {
    let first = address / PAGE_BYTES as u64;
    for (number, into) in (first..).zip(into.chunks_mut(PAGE_BYTES)) {
        into.copy_from_slice(&page(number));
    }
    Ok(())
}

fn freight(rank: Rank, pages: impl IntoIterator<Item = Range<u64>>) -> Freight {
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
    Freight {
        parcel: parcel.encode().unwrap().into_vec(),
        pages,
        address: 0,
        unsynced: Vec::new(),
        frozen: Instant::now(),
    }
}

/// Pages of the header, and of the heap that a slot of 4 GiB has.
fn pages() -> Vec<Range<u64>> {
    let heap = (1 << 20) - 5000;
    vec![0..1, heap..heap + 300, heap + 1000..heap + 1001]
}

fn room(rank: Rank) -> RestoringSlot {
    let layout = SlotLayout::new(64, 4 << 30, 1 << 20).unwrap();
    RestoringSlot::create(layout, rank).unwrap()
}

fn sent(rank: Rank) -> Vec<u8> {
    let mut bytes = Vec::new();
    send(&freight(rank, pages()), &mut bytes, memory).unwrap();
    bytes
}

#[test]
fn what_was_sent_is_what_comes_and_pages_of_zeros_are_not_sent() {
    let rank = Rank(40);
    let bytes = sent(rank);
    assert!(bytes.len() < (3 << 20) + 302 * PAGE_BYTES * 3 / 4);
    let slot = room(rank);
    let (parcel, image_bytes) = receive(&mut Cursor::new(&bytes), rank, &slot, |_| ()).unwrap();
    assert_eq!(parcel.pages, pages());
    assert_eq!(image_bytes, 302 * PAGE_BYTES as u64);
    for range in pages() {
        for number in range {
            // What has come was claimed; what was not sent is as it was, zero.
            match slot.window(number, 1) {
                Ok(left_out) => assert!(page(number) == left_out, "page {number}"),
                Err(_) => assert_ne!(page(number), vec![0; PAGE_BYTES], "page {number}"),
            }
        }
    }
}

#[test]
fn no_byte_may_be_missing_and_none_may_be_changed() {
    let rank = Rank(41);
    let bytes = sent(rank);
    let come = |bytes: &[u8]| receive(&mut Cursor::new(bytes), rank, &room(rank), |_| ());
    let head = size_of::<Piece>();
    let parcel =
        usize::try_from(Piece::read_from_bytes(&bytes[..head]).unwrap().bytes.get()).unwrap();
    let first = head + parcel;
    let kept = [
        0,
        10,
        head,
        first - 1,
        first,
        first + 100,
        bytes.len() - head,
        bytes.len() - 1,
    ];
    for kept in kept {
        let error = come(&bytes[..kept]).unwrap_err();
        assert!(error.contains("broke"), "{kept}: {error}");
    }
    let field = |at: usize| (0..head / 8).map(move |word| at + 8 * word);
    let mut changed: Vec<usize> = field(first).collect();
    changed.extend(field(bytes.len() - head).take(3));
    // In front of the parcel the time may be any.
    changed.extend([
        0,
        4,
        16,
        24,
        head + 100,
        first + head + 7,
        first + head + 4000,
    ]);
    for at in changed {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(come(&damaged).is_err(), "byte {at} of {}", bytes.len());
    }
    assert!(come(&bytes).is_ok());
}

#[test]
fn lengths_are_checked_before_they_are_believed() {
    let refused = [
        Piece::new(Kind::Parcel, 0, 0, 1 + (PARCEL_BYTES_MAX as usize), 0),
        Piece::new(Kind::Parcel, 0, 1, 10, 0),
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
        Piece::new(Kind::End, 0, 0, 1, 0),
    ];
    for piece in refused {
        assert!(piece.check(PARCEL_BYTES_MAX).is_err(), "{piece:?}");
    }
    let mut unknown = Piece::new(Kind::End, 0, 0, 0, 0);
    assert!(unknown.check(PARCEL_BYTES_MAX).is_ok());
    unknown.kind = 7.into();
    assert!(unknown.check(PARCEL_BYTES_MAX).is_err());
}

fn giver() -> (Giver, std::sync::mpsc::Receiver<String>) {
    let (failed, failures) = channel();
    let expected = Expected {
        token: TOKEN,
        incarnation: INCARNATION,
        id: ID,
        target: TARGET,
    };
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let giver = Giver::start(loopback, Process(1), expected, move |reason| {
        failed.send(reason).unwrap();
    });
    (giver.unwrap(), failures)
}

#[test]
fn a_rank_comes_over_a_connection_to_who_shows_the_token_and_to_nobody_else() {
    let rank = Rank(42);
    let (giver, failures) = giver();
    let stop = Arc::<AtomicBool>::default();
    let connect = |token, incarnation, id, target| {
        Taker::connect(
            giver.address(),
            token,
            (incarnation, id, target),
            stop.clone(),
        )
    };
    let mut wrong = TOKEN;
    wrong[31] ^= 1;
    for refused in [
        connect(wrong, INCARNATION, ID, TARGET),
        connect(TOKEN, Incarnation(3), ID, TARGET),
        connect(TOKEN, INCARNATION, Move(8), TARGET),
        connect(TOKEN, INCARNATION, ID, Process(1)),
    ] {
        assert!(refused.is_err());
    }
    let taker = connect(TOKEN, INCARNATION, ID, TARGET).unwrap();
    // Of this process's own memory: the pages of a vector, which lie somewhere else in the slot.
    let image: Vec<u8> = (0..300).flat_map(page).collect();
    let first = (1 << 20) - 5000;
    let mut freight = freight(rank, once(first..first + 300));
    freight.address =
        (image.as_ptr().expose_provenance() as u64).wrapping_sub(first * PAGE_BYTES as u64);
    giver.give(freight);
    let fetched = taker.take(rank, room(rank)).unwrap();
    assert_eq!(fetched.image_bytes, 300 * PAGE_BYTES as u64);
    assert!(fetched.slot.window(first, 1).is_ok(), "a page of zeros");
    assert!(fetched.slot.window(first + 1, 1).is_err(), "it has come");
    drop(giver);
    assert!(failures.recv().is_err(), "nothing has failed");
}

#[test]
fn a_target_that_goes_away_is_told_and_one_that_gives_up_stops_waiting() {
    let (giver, failures) = giver();
    let stop = Arc::<AtomicBool>::default();
    let connect = || {
        Taker::connect(
            giver.address(),
            TOKEN,
            (INCARNATION, ID, TARGET),
            stop.clone(),
        )
    };
    drop(connect().unwrap());
    giver.give(freight(Rank(43), once(0..1 << 20)));
    assert!(failures.recv().unwrap().contains("broke"));

    let (giver, _failures) = self::giver();
    let taker = Taker::connect(
        giver.address(),
        TOKEN,
        (INCARNATION, ID, TARGET),
        stop.clone(),
    )
    .unwrap();
    let waiting = std::thread::spawn(move || taker.take(Rank(44), room(Rank(44))).map(drop));
    stop.store(true, Ordering::SeqCst);
    let error = waiting.join().unwrap().unwrap_err();
    assert!(error.contains("given up"), "{error}");
    drop(giver);
}
