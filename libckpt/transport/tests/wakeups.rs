//! A sleeper is always woken. Nothing here waits for a time to be over: a wake-up that is lost means
//! that two processes sleep for ever, and the watchdog ends them.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use common::{FOREVER, Job, Role, dawdle, random, receive, send};
use libckpt_transport::alone::Alone;
use libckpt_transport::{Transport, Wakeup};
use protocol::ids::Process;
use rand::RngExt;

const TURNS: u32 = 2000;

#[test]
fn peer() {
    let Some(role) = Role::of_this_process() else {
        return;
    };
    match role.name.as_str() {
        "pass" => pass_token(&role),
        "slow reader" => read_slowly(&role),
        other => panic!("no role {other}"),
    }
}

/// Waits for the token and passes it on, after a time that makes the next one sleep, or nearly.
fn pass_token(role: &Role) {
    let mut transport = role.join();
    let mut random = random(role.seed, u64::from(role.me.0));
    let next = Process((role.me.0 + 1) % role.processes);
    for turn in 0..TURNS {
        let (_, token) = receive(&mut transport);
        assert_eq!(token, turn.to_le_bytes());
        dawdle(&mut random, 100);
        send(&mut transport, next, &token);
    }
}

fn pass_around(processes: u32) {
    let job = Job::new(processes, rand::random());
    println!("seed {}", job.seed);
    let mut me = job.join(0);
    let peers: Vec<_> = (1..processes).map(|peer| job.start("pass", peer)).collect();
    let mut random = random(job.seed, 0);
    for turn in 0..TURNS {
        dawdle(&mut random, 100);
        send(&mut me, Process(1), &turn.to_le_bytes());
        assert_eq!(receive(&mut me).1, turn.to_le_bytes());
    }
    for peer in peers {
        peer.must_succeed();
    }
}

#[test]
fn a_packet_wakes_a_sleeping_peer_every_time() {
    pass_around(2);
}

#[test]
fn more_processes_than_cores_wake_each_other_every_time() {
    pass_around(4);
}

/// Takes numbered packets, in bursts, and falls asleep in between.
fn read_slowly(role: &Role) {
    let mut transport = role.join();
    let mut random = random(role.seed, 1);
    let mut expected = 0_u32;
    while expected < TURNS {
        for _ in 0..random.random_range(1..20) {
            if expected < TURNS {
                let (_, packet) = receive(&mut transport);
                assert_eq!(packet[..4], expected.to_le_bytes());
                expected += 1;
            }
        }
        dawdle(&mut random, 200);
    }
}

#[test]
fn room_in_a_full_ring_wakes_a_sleeping_sender_every_time() {
    let job = Job::new(2, rand::random());
    println!("seed {}", job.seed);
    let mut me = job.join(0);
    let reader = job.start("slow reader", 1);
    let mut random = random(job.seed, 0);
    for number in 0..TURNS {
        let mut packet = vec![0; random.random_range(4..=me.packet_bytes_max())];
        packet[..4].copy_from_slice(&number.to_le_bytes());
        send(&mut me, Process(1), &packet);
    }
    reader.must_succeed();
}

/// The first time the sender is told about room it is not enough yet, because the packet does not fit
/// before the end of the ring: it has to ask again.
#[test]
fn room_that_is_not_enough_is_asked_for_again() {
    let job = Job::new(2, 0);
    let (mut here, mut there) = (job.join(0), job.join(1));
    let mut filled = 0;
    while here.try_send(Process(1), &[&[0; 1000]]).unwrap() {
        filled += 1;
    }
    let longest = vec![1; here.packet_bytes_max()];
    let reader = thread::spawn(move || {
        // A quarter of the ring, which is when its sender is told.
        for number in 0..filled {
            assert_eq!(receive(&mut there).1, [0; 1000]);
            if number % (filled / 8) == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        receive(&mut there).1
    });
    send(&mut here, Process(1), &longest);
    assert_eq!(reader.join().unwrap(), longest);
}

/// Another thread hands over numbers one by one, each only after the one before was seen.
fn wake_from_a_thread(mut transport: impl Transport) {
    let waker = transport.waker();
    let given = Arc::new(AtomicU32::new(0));
    let seen = Arc::new(AtomicU32::new(0));
    let giver = thread::spawn({
        let (given, seen) = (Arc::clone(&given), Arc::clone(&seen));
        move || {
            let mut random = random(7, 0);
            for number in 1..=TURNS {
                dawdle(&mut random, 100);
                given.store(number, Ordering::Relaxed);
                waker.wake();
                while seen.load(Ordering::Relaxed) < number {
                    thread::yield_now();
                }
            }
        }
    });
    let mut last = 0;
    while last < TURNS {
        assert_eq!(transport.idle(FOREVER), Wakeup::Waker);
        let now = given.load(Ordering::Relaxed);
        assert_eq!(now, last + 1);
        last = now;
        seen.store(now, Ordering::Relaxed);
    }
    giver.join().unwrap();
}

#[test]
fn a_thread_wakes_its_own_process_every_time() {
    wake_from_a_thread(Job::new(2, 0).join(0));
}

#[test]
fn a_process_without_peers_is_woken_too() {
    common::watchdog();
    wake_from_a_thread(Alone::new());
}

#[test]
fn a_wake_before_the_idling_is_not_forgotten_and_counts_once() {
    let mut transport = Job::new(2, 0).join(1);
    let waker = transport.waker();
    waker.wake();
    waker.clone().wake();
    assert_eq!(transport.idle(FOREVER), Wakeup::Waker);
    assert_eq!(transport.idle(Duration::from_millis(1)), Wakeup::Timeout);
}

#[test]
fn a_packet_that_came_before_the_idling_ends_it() {
    let job = Job::new(2, 0);
    let (mut here, mut there) = (job.join(0), job.join(1));
    // The link is dormant at first and watched later: both must do.
    for _ in 0..2 {
        send(&mut here, Process(1), b"early");
        assert_eq!(there.idle(FOREVER), Wakeup::Packet);
        assert_eq!(receive(&mut there).1, b"early");
    }
    assert_eq!(there.idle(Duration::ZERO), Wakeup::Timeout);
}
