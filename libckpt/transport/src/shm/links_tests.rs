//! Falling asleep and falling dormant, interrupted after every single instruction by the very thing
//! that must not be missed.

use super::*;
use crate::shm::{attach, create};
use crate::stepped::{Outcome, interrupt, watchdog};

/// The links of two processes, both played by the test.
fn pair() -> (ShmTransport, ShmTransport) {
    watchdog();
    let fd = create(2).unwrap();
    let join = |me| attach(&fd, Process(me), 2).unwrap();
    (join(0), join(1))
}

fn send(from: &mut ShmTransport, packet: &[u8]) -> bool {
    let peer = Process(1 - from.me().0);
    from.try_send(peer, &[packet]).unwrap()
}

fn take(transport: &mut ShmTransport) -> bool {
    transport.poll(&mut |_, _| {}).unwrap()
}

/// Goes through the moments until one comes after the end of what is interrupted, or in its sleep.
/// `moment` gets a number of instructions and sets everything up anew.
fn at_every_moment(moment: impl Fn(u32) -> Outcome) {
    let mut instructions = 0;
    loop {
        match moment(instructions) {
            Outcome::During(true) => instructions += 1,
            Outcome::Asleep(true) | Outcome::Over => break,
            other => panic!("{other:?} when interrupted after {instructions} instructions"),
        }
    }
    assert!(instructions > 20, "only {instructions} moments");
}

#[test]
fn a_packet_on_a_dormant_link_wakes_at_every_moment_of_falling_asleep() {
    at_every_moment(|instructions| {
        let (mut here, mut there) = pair();
        interrupt(
            instructions,
            || here.sleep(None) == Wakeup::Packet,
            || assert!(send(&mut there, b"wake")),
        )
    });
}

#[test]
fn a_packet_on_a_watched_link_wakes_at_every_moment_of_falling_asleep() {
    at_every_moment(|instructions| {
        let (mut here, mut there) = pair();
        assert!(send(&mut there, b"watch me") && take(&mut here));
        interrupt(
            instructions,
            || here.sleep(None) == Wakeup::Packet,
            || assert!(send(&mut there, b"wake")),
        )
    });
}

#[test]
fn room_wakes_at_every_moment_of_falling_asleep() {
    at_every_moment(|instructions| {
        let (mut here, mut there) = pair();
        while send(&mut here, &[0; 60_000]) {}
        interrupt(
            instructions,
            || here.sleep(None) == Wakeup::Room,
            || while take(&mut there) {},
        )
    });
}

#[test]
fn a_packet_is_heard_at_every_moment_of_a_link_falling_dormant() {
    at_every_moment(|instructions| {
        let (mut here, mut there) = pair();
        assert!(send(&mut there, b"watch me") && take(&mut here));
        interrupt(
            instructions,
            || {
                here.drop_quiet(0, 0);
                here.sleep(None) == Wakeup::Packet && take(&mut here)
            },
            || assert!(send(&mut there, b"hear me")),
        )
    });
}

/// The other way round: the sender is interrupted by its receiver's falling asleep.
#[test]
fn a_sender_wakes_who_falls_asleep_at_any_moment_of_its_sending() {
    at_every_moment(|instructions| {
        let (here, mut there) = pair();
        let bell = here.records[0].clone();
        let bell = bell.bell();
        // What the receiver does up to its system call, and what it would see then.
        let mut seen = false;
        let outcome = interrupt(
            instructions,
            || send(&mut there, b"wake"),
            || {
                bell.fall_asleep();
                seen = here.records[0].has_pending(1);
            },
        );
        match outcome {
            Outcome::During(true) if seen || !bell.is_asleep() => outcome,
            Outcome::Over => outcome,
            _ => Outcome::Hung,
        }
    });
}
