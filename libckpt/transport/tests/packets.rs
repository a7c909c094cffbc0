//! Packets between processes: whole, in order, once, whatever their sizes and however full the rings.

mod common;
#[path = "common/talk.rs"]
mod talking;

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use common::{FOREVER, Job, Role};
use libckpt_transport::{Transport, TransportError, Wakeup};
use protocol::ids::Process;
use talking::talk_to_all;

#[test]
fn peer() {
    let Some(role) = Role::of_this_process() else {
        return;
    };
    assert_eq!(role.name, "talk");
    talk_to_all(&mut role.join(), role.seed);
}

fn talk(processes: u32, seed: u64) {
    println!("seed {seed}");
    let job = Job::new(processes, seed);
    let peers: Vec<_> = (1..processes).map(|me| job.start("talk", me)).collect();
    talk_to_all(&mut job.join(0), seed);
    for peer in peers {
        peer.must_succeed();
    }
}

#[test]
fn random_packets_both_ways_arrive_whole_in_order_and_once() {
    talk(2, 1);
    talk(2, rand::random());
}

#[test]
fn several_processes_talk_all_to_all() {
    talk(5, rand::random());
}

#[test]
fn a_full_ring_says_so_and_loses_nothing() {
    let job = Job::new(2, 0);
    let (mut here, mut there) = (job.join(0), job.join(1));
    let packet = |number: u32| [number.to_le_bytes(); 300].concat();
    let mut sent = 0;
    while here.try_send(Process(1), &[&packet(sent)]).unwrap() {
        sent += 1;
    }
    assert!(sent > 100);
    assert!(!here.try_send(Process(1), &[&packet(sent)]).unwrap());
    assert_eq!(
        here.idle(std::time::Duration::from_millis(1)),
        Wakeup::Timeout
    );
    // Room for one more comes with the first that is taken, and the sender need not ask again.
    let mut expected = 0;
    while there
        .poll(&mut |_, bytes| assert_eq!(bytes, packet(expected)))
        .unwrap()
    {
        expected += 1;
        if expected == 2 {
            assert_eq!(here.idle(FOREVER), Wakeup::Room);
            assert!(here.try_send(Process(1), &[&packet(sent)]).unwrap());
            sent += 1;
        }
    }
    assert_eq!(expected, sent);
}

#[test]
fn a_busy_peer_does_not_keep_others_out() {
    let job = Job::new(8, 0);
    let mut me = job.join(0);
    let mut peers: Vec<_> = (1..8).map(|peer| job.join(peer)).collect();
    for peer in &mut peers {
        while peer.try_send(Process(0), &[&[0; 100]]).unwrap() {}
    }
    // All rings are full: any seven packets in a row come from seven peers, even while the last of them
    // goes on sending.
    for _ in 0..500 {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..7 {
            assert!(me.poll(&mut |from, _| assert!(seen.insert(from))).unwrap());
            let _ = peers[6].try_send(Process(0), &[&[0; 100]]).unwrap();
        }
    }
}

#[test]
fn a_link_that_was_quiet_for_long_is_heard_again() {
    let job = Job::new(16, 0);
    let mut me = job.join(0);
    let mut peers: Vec<_> = (1..16).map(|peer| job.join(peer)).collect();
    for round in 0..3 {
        for peer in &mut peers {
            assert!(peer.try_send(Process(0), &[&[round]]).unwrap());
        }
        let mut heard = 0;
        while me
            .poll(&mut |_, packet| assert_eq!(packet, [round]))
            .unwrap()
        {
            heard += 1;
        }
        assert_eq!(heard, 15);
        assert_eq!(me.watched_links(), 15);
        for _ in 0..20_000 {
            assert!(!me.poll(&mut |_, _| {}).unwrap());
        }
        assert!(me.watched_links() < 15);
    }
}

#[test]
fn a_link_whose_packets_are_read_at_once_uses_little_memory() {
    let job = Job::new(2, 0);
    let (mut here, mut there) = (job.join(0), job.join(1));
    for number in 0..20_000_u32 {
        let packet = number.to_le_bytes().repeat(1 + number as usize % 200);
        assert!(here.try_send(Process(1), &[&packet]).unwrap());
        assert!(
            there
                .poll(&mut |_, bytes| assert_eq!(bytes, packet))
                .unwrap()
        );
    }
    let used_bytes = File::from(job.fd).metadata().unwrap().blocks() * 512;
    assert!(used_bytes <= 48 << 10, "{used_bytes} bytes used");
}

#[test]
fn what_can_never_be_sent_is_an_error() {
    let job = Job::new(2, 0);
    let mut me = job.join(0);
    let longest = vec![0; me.packet_bytes_max()];
    assert!(me.try_send(Process(1), &[&longest]).unwrap());
    let too_long = me.try_send(Process(1), &[&longest, &[0]]).unwrap_err();
    assert_eq!(
        too_long,
        TransportError::PacketTooLarge {
            peer: Process(1),
            packet_bytes: longest.len() + 1,
            packet_bytes_max: longest.len(),
        }
    );
    for nobody in [Process(0), Process(2), Process(u32::MAX)] {
        let refused = me.try_send(nobody, &[&[0]]).unwrap_err();
        assert!(matches!(refused, TransportError::NoLink { peer, .. } if peer == nobody));
    }
}
