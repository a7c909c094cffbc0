//! A ring against a queue, and against what can't be in a ring.

use std::collections::VecDeque;
use std::fs::File;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::shm::layout::Layout;
use crate::shm::region::create;

/// Both ends of a ring of the smallest size, in a region of their own.
fn ends() -> (Sender, Receiver) {
    ends_in_job_of(512)
}

fn ends_in_job_of(processes: u32) -> (Sender, Receiver) {
    let layout = Layout::of_job(processes as usize);
    let file = File::from(create(processes).unwrap());
    let mapping = Mapping::new(&file, layout.region_bytes()).unwrap();
    let place = layout.ring(0, 1);
    let control = || Shared::new(&mapping, layout.link(0, 1));
    (
        Sender::new(&mapping, place, layout.ring_bytes, control()),
        Receiver::new(&mapping, place, layout.ring_bytes, control()),
    )
}

fn received(receiver: &mut Receiver) -> Option<Vec<u8>> {
    let mut packet = None;
    let taken = receiver
        .receive(|bytes| packet = Some(bytes.to_vec()))
        .unwrap();
    assert_eq!(taken, packet.is_some());
    packet
}

#[test]
fn a_ring_is_a_queue() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The smallest rings and the largest, where a drained link starts over early.
    for round in 0..60 {
        let (mut sender, mut receiver) = ends_in_job_of(if round % 3 == 0 { 2 } else { 512 });
        let mut model = VecDeque::new();
        let longest = packet_bytes_max(sender.ring.bytes);
        // A sender that is faster, then a receiver that is, over and over: full and empty both happen.
        let mut full = 0;
        for turn in 0..4000 {
            let sends = if turn / 500 % 2 == 0 { 0.9 } else { 0.2 };
            if random.random_bool(sends) {
                let most = if random.random_bool(0.3) {
                    longest
                } else {
                    130
                };
                let mut packet = vec![0; random.random_range(0..=most)];
                random.fill_bytes(&mut packet);
                let (one, two) = packet.split_at(random.random_range(0..=packet.len()));
                if sender.send(packet.len(), &[one, two]).unwrap() {
                    model.push_back(packet);
                } else {
                    full += 1;
                    // Only a ring that really holds something may be full.
                    assert!(!model.is_empty());
                }
                if random.random_bool(0.5) {
                    sender.clean_ahead();
                }
            } else {
                assert_eq!(receiver.has_packet(), !model.is_empty());
                assert_eq!(received(&mut receiver), model.pop_front());
            }
        }
        assert!(full > 0);
        while let Some(packet) = model.pop_front() {
            assert_eq!(received(&mut receiver), Some(packet));
        }
        assert_eq!(received(&mut receiver), None);
    }
}

#[test]
fn the_longest_packet_fits_an_empty_ring_wherever_it_stands() {
    let (mut sender, mut receiver) = ends();
    let longest = vec![7; packet_bytes_max(sender.ring.bytes)];
    for _ in 0..2 * sender.ring.bytes / LINE_BYTES {
        assert!(sender.send(longest.len(), &[&longest]).unwrap());
        assert_eq!(received(&mut receiver).as_ref(), Some(&longest));
        // One line further at each turn, but for the ends of laps.
        assert!(sender.send(0, &[]).unwrap());
        assert_eq!(received(&mut receiver), Some(Vec::new()));
    }
}

#[test]
fn a_frame_without_header_is_not_there() {
    let (mut sender, mut receiver) = ends();
    assert!(sender.send(100, &[&[1; 100]]).unwrap());
    sender.ring.header(0).store(0, Ordering::SeqCst);
    assert!(!receiver.has_packet());
    assert_eq!(received(&mut receiver), None);
}

/// What a receiver says of this header word where its next frame should be, `offset` bytes into the ring.
fn verdict(offset: usize, header: u64) -> &'static str {
    let (mut sender, mut receiver) = ends();
    while sender.ring.offset(sender.tail) < offset {
        assert!(sender.send(0, &[]).unwrap());
        assert_eq!(received(&mut receiver), Some(Vec::new()));
    }
    sender
        .ring
        .header(sender.tail)
        .store(header, Ordering::SeqCst);
    let impossible = receiver
        .receive(|_| panic!("taken as a packet"))
        .unwrap_err();
    assert_eq!(impossible.position, sender.tail);
    // And it stays so: nothing was consumed.
    assert_eq!(
        receiver.receive(|_| panic!("taken as a packet")),
        Err(impossible)
    );
    receiver.receive(|_| ()).unwrap_err().what
}

#[test]
fn a_header_that_can_not_be_is_told_and_never_read_through() {
    let (sender, _) = ends();
    let ring_bytes = sender.ring.bytes;
    let longest = packet_bytes_max(ring_bytes) as u64;
    let too_long = "a frame longer than a link carries";
    let no_frame = "no frame where one must be";
    for length in [longest + 1, ring_bytes as u64, u64::from(u32::MAX)] {
        assert_eq!(verdict(0, PACKET | length), too_long);
    }
    // Short enough for a packet, but it would run over the end of the ring.
    assert_eq!(verdict(ring_bytes - LINE_BYTES, PACKET | 57), too_long);
    assert_eq!(verdict(ring_bytes - 1024, PACKET | longest), too_long);
    for header in [1, longest, u64::MAX, SKIP | 1, PACKET ^ 1 << 40] {
        assert_eq!(verdict(128, header), no_frame);
    }
    assert_eq!(verdict(0, SKIP), "a skip at the start of the ring");
    // A skip to a start where no packet is, or another skip.
    let (mut sender, mut receiver) = ends();
    for start in [0, SKIP] {
        while sender.ring.offset(sender.tail) < 128 {
            assert!(sender.send(0, &[]).unwrap());
            assert_eq!(received(&mut receiver), Some(Vec::new()));
        }
        sender
            .ring
            .header(sender.tail)
            .store(SKIP, Ordering::SeqCst);
        sender.ring.header(0).store(start, Ordering::SeqCst);
        assert_eq!(
            receiver.receive(|_| panic!("taken")).unwrap_err().what,
            no_frame
        );
    }
}

#[test]
fn a_receiver_that_claims_to_have_read_more_than_was_sent_is_told() {
    let (mut sender, _) = ends();
    let packet = [0; 1000];
    while sender.send(packet.len(), &[&packet]).unwrap() {}
    sender.control().set_head(sender.tail + 64);
    let impossible = sender.send(packet.len(), &[&packet]).unwrap_err();
    assert_eq!(impossible.position, sender.tail + 64);
}

#[test]
fn the_sender_is_told_about_room_when_the_ring_is_empty_or_a_quarter_was_read() {
    let (mut sender, mut receiver) = ends();
    let packet = [0; 1000];
    while sender.send(packet.len(), &[&packet]).unwrap() {}
    sender.control().want_room();
    let mut taken_bytes = 0;
    let mut told = 0;
    while received(&mut receiver).is_some() {
        taken_bytes += 1024;
        if receiver.owes_room(false) {
            assert!(taken_bytes >= sender.ring.bytes / 4);
            told += 1;
        }
    }
    // Once, for one wish.
    assert_eq!(told, 1);
    assert!(!receiver.owes_room(true));

    assert!(sender.send(packet.len(), &[&packet]).unwrap());
    sender.control().want_room();
    assert!(received(&mut receiver).is_some());
    assert!(!receiver.owes_room(false));
    assert!(receiver.owes_room(true));
    assert!(!receiver.owes_room(true));
}
