//! What links by MPI have to do, played by all processes of an MPI world: the test `mpi` runs it under mpirun.
//!
//! `mpi_links SCENE SEED`. Every process checks what it gets, and ends with 0 if all was right.

#[path = "../tests/common/talk.rs"]
mod talking;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libckpt_transport::mpi::{MpiTransport, World, launch, library_version};
use libckpt_transport::{BulkDone, BulkFrom, BulkInto, Transport, TransportError, Wakeup};
use protocol::ids::Process;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use talking::talk_to_all;

const FOREVER: Duration = Duration::from_secs(3600);
const CLOSE_WITHIN: Duration = Duration::from_secs(60);

fn main() {
    // SAFETY: no handler is involved; the default action ends a process that hangs.
    unsafe { libc::alarm(180) };
    let arguments: Vec<String> = std::env::args().collect();
    let [_, scene, seed] = arguments.as_slice() else {
        panic!("mpi_links SCENE SEED");
    };
    let seed: u64 = seed.parse().expect("a seed is a number");
    let world = World::initialise(launch()).expect("MPI");
    let mut transport = world.into_transport().expect("links");
    match scene.as_str() {
        "talk" => talk_to_all(&mut transport, seed),
        "bulk" => move_buffers(&mut transport, seed),
        "full" => fill_links(&mut transport),
        "ring" => pass_around(&mut transport, seed),
        "waker" => wake_from_a_thread(&mut transport),
        "refused" => ask_the_impossible(&mut transport),
        "leave" => one_leaves(&mut transport, seed),
        "silent" => {}
        other => panic!("no scene {other}"),
    }
    while !transport.all_done() {
        transport.idle(Duration::from_millis(1));
    }
    assert!(transport.close(CLOSE_WITHIN), "the links did not end well");
}

/// One process leaves, and the others go on talking and end without it. As MPI may not end in order then, none returns.
fn one_leaves(transport: &mut MpiTransport, seed: u64) -> ! {
    talk_to_all(transport, seed);
    while !transport.all_done() {
        transport.idle(Duration::from_millis(1));
    }
    let leaver = Process(1);
    let mut others = peers(transport);
    others.retain(|&peer| peer != leaver);
    let begin = Instant::now();
    let in_order = if transport.me() == leaver {
        for &peer in &others {
            send(transport, peer, b"farewell");
        }
        transport.leave(CLOSE_WITHIN)
    } else {
        let mut early = 0;
        while receive(transport).0 != leaver {
            early += 1;
        }
        transport.part(leaver);
        for round in 0..100_u8 {
            for &peer in &others {
                send(transport, peer, &[round]);
            }
        }
        for _ in early..100 * others.len() {
            let (from, _) = receive(transport);
            assert!(others.contains(&from), "a packet of {from}");
        }
        transport.close(CLOSE_WITHIN)
    };
    assert!(begin.elapsed() < CLOSE_WITHIN, "it waited for others");
    assert_eq!(in_order, library_version().starts_with("Open MPI"));
    match in_order {
        true => std::process::exit(0),
        // SAFETY: ends the process.
        false => unsafe { libc::_exit(0) },
    }
}

fn random(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

fn peers(transport: &impl Transport) -> Vec<Process> {
    let me = transport.me();
    (0..transport.processes())
        .map(Process)
        .filter(|&peer| peer != me)
        .collect()
}

fn send(transport: &mut impl Transport, to: Process, packet: &[u8]) {
    while !transport.try_send(to, &[packet]).unwrap() {
        transport.idle(FOREVER);
    }
}

fn receive(transport: &mut impl Transport) -> (Process, Vec<u8>) {
    loop {
        let mut packet = None;
        transport
            .poll(&mut |from, bytes| packet = Some((from, bytes.to_vec())))
            .unwrap();
        match packet {
            Some(packet) => return packet,
            None => transport.idle(FOREVER),
        };
    }
}

const BUFFERS: u64 = 60;

/// The buffer with a number, which both ends can draw: short, long, or longer than what any MPI sends at once.
fn buffer(seed: u64, from: Process, to: Process, number: u64) -> Vec<u8> {
    let link = u64::from(from.0) << 20 | u64::from(to.0);
    let mut random = random(seed, link << 20 | number);
    let bytes = match number % 4 {
        0 => random.random_range(1..=100),
        1 | 2 => random.random_range(1000..=100_000),
        _ => random.random_range(1 << 20..=3 << 20),
    };
    let mut buffer = vec![0; bytes];
    random.fill_bytes(&mut buffer);
    buffer
}

/// Every process sends numbered buffers to every other. Numbers are announced by packets, and asked for in another
/// order; some are asked for before they are sent.
fn move_buffers(transport: &mut impl Transport, seed: u64) {
    let me = transport.me();
    let peers = peers(transport);
    let mut random = random(seed, u64::from(me.0));
    let mut to_send: Vec<(Process, u64)> = peers
        .iter()
        .flat_map(|&peer| (0..BUFFERS).map(move |number| (peer, number)))
        .collect();
    to_send.shuffle(&mut random);
    let mut announced: Vec<(Process, u64)> = Vec::new();
    let (mut sent, mut received) = (0, 0);
    let all = peers.len() as u64 * BUFFERS;
    while sent < all || received < all {
        if let Some((peer, number)) = to_send.pop() {
            send(transport, peer, &number.to_le_bytes());
            let from = BulkFrom::Own(buffer(seed, me, peer, number));
            transport.bulk_send(peer, number, from).unwrap();
        }
        transport
            .poll(&mut |from, packet| {
                let number = u64::from_le_bytes(packet.try_into().unwrap());
                announced.push((from, number));
            })
            .unwrap();
        if announced.len() > 5 || to_send.is_empty() {
            announced.shuffle(&mut random);
            for (peer, number) in announced.drain(..) {
                let into = vec![0; buffer(seed, peer, me, number).len()];
                transport
                    .bulk_receive(peer, number, BulkInto::Own(into))
                    .unwrap();
            }
        }
        while let Some(done) = transport.bulk_done() {
            match done {
                BulkDone::Sent { .. } => sent += 1,
                BulkDone::Received { peer, number, own } => {
                    received += 1;
                    let own = own.expect("what was received by Own");
                    assert!(
                        own == buffer(seed, peer, me, number),
                        "{me} got a wrong buffer {number} from {peer}"
                    );
                }
            }
        }
        if to_send.is_empty() && announced.is_empty() && (sent < all || received < all) {
            transport.idle(FOREVER);
        }
    }
    assert_eq!((sent, received), (all, all));
}

/// Process 0 sends until nothing more fits, to a peer that does not look. Then that one does, and there is room.
fn fill_links(transport: &mut impl Transport) {
    let packet = |number: u32| [number.to_le_bytes(); 3000].concat();
    match transport.me() {
        Process(0) => {
            let mut sent = 0;
            while transport.try_send(Process(1), &[&packet(sent)]).unwrap() {
                sent += 1;
                assert!(sent < 1 << 20, "a link takes everything");
            }
            for peer in 1..transport.processes() {
                // Those who wait for others are told of no room before there is any.
                send(transport, Process(peer), &packet(sent));
            }
            send(transport, Process(1), b"end");
            let (_, count) = receive(transport);
            assert_eq!(count, (sent + 1).to_le_bytes());
        }
        Process(1) => {
            thread::sleep(Duration::from_millis(300));
            let mut expected = 0;
            loop {
                let (from, bytes) = receive(transport);
                assert_eq!(from, Process(0));
                if bytes == b"end" {
                    break;
                }
                assert_eq!(bytes, packet(expected));
                expected += 1;
            }
            send(transport, Process(0), &expected.to_le_bytes());
        }
        _ => {
            receive(transport);
        }
    }
}

/// A token goes around, and everybody dawdles: a packet that wakes nobody means waiting for ever.
fn pass_around(transport: &mut impl Transport, seed: u64) {
    let me = transport.me();
    let mut random = random(seed, u64::from(me.0));
    let next = Process((me.0 + 1) % transport.processes());
    for turn in 0..300_u32 {
        if me == Process(0) {
            send(transport, next, &turn.to_le_bytes());
        }
        assert_eq!(receive(transport).1, turn.to_le_bytes());
        if random.random_bool(0.1) {
            thread::sleep(Duration::from_micros(random.random_range(0..=3000)));
        }
        if me != Process(0) {
            send(transport, next, &turn.to_le_bytes());
        }
    }
}

/// Another thread hands over numbers one by one, each only after the one before was seen.
fn wake_from_a_thread(transport: &mut impl Transport) {
    const TURNS: u32 = 300;
    let waker = transport.waker();
    let given = Arc::new(AtomicU32::new(0));
    let seen = Arc::new(AtomicU32::new(0));
    let giver = thread::spawn({
        let (given, seen) = (Arc::clone(&given), Arc::clone(&seen));
        move || {
            let mut random = random(7, 0);
            for number in 1..=TURNS {
                thread::sleep(Duration::from_micros(random.random_range(0..=1500)));
                given.store(number, Ordering::Relaxed);
                waker.wake();
                while seen.load(Ordering::Relaxed) < number {
                    thread::yield_now();
                }
            }
        }
    });
    for number in 1..=TURNS {
        assert_eq!(transport.idle(FOREVER), Wakeup::Waker);
        assert_eq!(given.load(Ordering::Relaxed), number);
        seen.store(number, Ordering::Relaxed);
    }
    giver.join().unwrap();
    assert_eq!(transport.idle(Duration::from_millis(1)), Wakeup::Timeout);
}

fn ask_the_impossible(transport: &mut impl Transport) {
    let me = transport.me();
    let longest = vec![0; transport.packet_bytes_max()];
    for peer in peers(transport) {
        let too_long = transport.try_send(peer, &[&longest, &[0]]).unwrap_err();
        assert!(matches!(too_long, TransportError::PacketTooLarge { .. }));
        send(transport, peer, &longest);
        assert_eq!(receive(transport).1, longest);
    }
    for nobody in [me, Process(transport.processes()), Process(u32::MAX)] {
        let refused = transport.try_send(nobody, &[&[0]]).unwrap_err();
        assert!(matches!(refused, TransportError::NoLink { peer, .. } if peer == nobody));
        let own = BulkFrom::Own(vec![0]);
        assert!(transport.bulk_send(nobody, 0, own).is_err());
    }
}
