//! A process that is killed in the middle of sending: its peers read whole packets, then nothing.

mod common;

use std::time::Duration;

use common::{Job, Role, dawdle, random, receive, send};
use libckpt_transport::Transport;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};
use protocol::ids::Process;
use rand::RngExt;

/// Enough processes that rings are small and wrap often.
const MANY: u32 = 512;

#[test]
fn peer() {
    let Some(role) = Role::of_this_process() else {
        return;
    };
    match role.name.as_str() {
        "pour" => pour(&role),
        "step" => send_step_by_step(&role),
        other => panic!("no role {other}"),
    }
}

/// A packet that tells by itself whether it is whole: its number, then bytes that follow from it.
fn packet(number: u32, longest: usize) -> Vec<u8> {
    let bytes = random(99, number.into()).random_range(4..=longest);
    let mut packet = vec![number.wrapping_mul(31) as u8; bytes];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    packet
}

fn pour(role: &Role) {
    let mut transport = role.join();
    let longest = transport.packet_bytes_max();
    for number in 0.. {
        send(&mut transport, Process(0), &packet(number, longest));
    }
}

#[test]
fn after_kill_9_the_survivor_has_read_whole_packets_only() {
    let mut seen = 0;
    for round in 0..40 {
        let job = Job::new(if round % 2 == 0 { 2 } else { MANY }, round);
        let mut survivor = job.join(0);
        let longest = survivor.packet_bytes_max();
        let mut victim = job.start("pour", 1);
        let mut random = random(rand::random(), 0);
        let mut expected = 0;
        let mut take = |survivor: &mut dyn Transport| {
            survivor
                .poll(&mut |_, bytes| {
                    assert!(
                        bytes == packet(expected, longest),
                        "packet {expected} of round {round} is not whole"
                    );
                    expected += 1;
                })
                .unwrap()
        };
        for _ in 0..random.random_range(1..500) {
            if !take(&mut survivor) {
                survivor.idle(Duration::from_millis(100));
            }
        }
        dawdle(&mut random, 300);
        victim.kill();
        while take(&mut survivor) {}
        assert!(!take(&mut survivor));
        seen += expected;
    }
    assert!(seen > 1000, "only {seen} packets were read");
}

const FILLERS: u32 = 15;
const STEPPED_PACKETS: u32 = 6;

/// Fills the ring nearly to its end, then sends a few packets of which one wraps, stopped by the
/// tracer after every instruction.
fn send_step_by_step(role: &Role) {
    let mut transport = role.join();
    let packets: Vec<_> = (0..STEPPED_PACKETS).map(stepped_packet).collect();
    // A ring of 16 KiB: these frames of 1 KiB bring its end within reach.
    for _ in 0..FILLERS {
        send(&mut transport, Process(0), &[0; 1000]);
    }
    // A test runs in a thread of its own, and it is the thread that is traced. Only then is it one that the
    // tracer may wait for, so it tells its number afterwards.
    ptrace::traceme().unwrap();
    send(&mut transport, Process(0), &gettid().as_raw().to_le_bytes());
    raise(Signal::SIGSTOP).unwrap();
    for packet in &packets {
        assert!(transport.try_send(Process(0), &[packet]).unwrap());
    }
    // SAFETY: ends the process without any of the clean-up, of which there would be much to step through.
    unsafe { libc::_exit(0) };
}

fn stepped_packet(number: u32) -> Vec<u8> {
    vec![number as u8 + 1; [8, 300, 0, 700, 56, 57][number as usize]]
}

/// What memory holds after an instruction is what a SIGKILL at that point leaves behind.
#[test]
fn a_sender_stopped_after_any_instruction_shows_whole_packets_only() {
    let job = Job::new(MANY, 0);
    let mut survivor = job.join(0);
    let _victim = job.start("step", 1);
    for _ in 0..FILLERS {
        assert_eq!(receive(&mut survivor).1, [0; 1000]);
    }
    let (_, thread) = receive(&mut survivor);
    let thread = Pid::from_raw(i32::from_le_bytes(thread.try_into().unwrap()));
    let wait = || waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert_eq!(wait(), WaitStatus::Stopped(thread, Signal::SIGSTOP));
    let mut expected = 0;
    let mut steps = 0;
    loop {
        ptrace::step(thread, None).unwrap();
        match wait() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Exited(_, 0) => break,
            other => panic!("the sender ended with {other:?}"),
        }
        steps += 1;
        while survivor
            .poll(&mut |from, bytes| {
                assert_eq!(from, Process(1));
                assert_eq!(
                    bytes,
                    stepped_packet(expected),
                    "after {steps} instructions"
                );
                expected += 1;
            })
            .unwrap()
        {}
    }
    assert_eq!(expected, STEPPED_PACKETS);
    assert!(
        steps > 500,
        "only {steps} instructions were stepped through"
    );
}
