//! Large messages between ranks that move, by engines on links that are queues: each packet goes through its bytes, and each
//! number is received once.

mod job;
mod wires;

use proptest::prelude::*;
use protocol::ids::{Process, Rank};

use self::job::{Job, Moving};

/// Rank r is in process r at first.
const RANKS: u32 = 3;

/// What ranks send from: a constant of the program, because no rank runs here. Message n is its first `LARGE_BYTES + n` bytes.
static FROM: [u8; 64 << 10] = [7; 64 << 10];
const LARGE_BYTES: usize = 20 << 10;

const MOVING: Rank = Rank(1);

#[test]
fn a_message_under_way_to_a_rank_that_leaves_is_received_where_it_was_and_passed_on() {
    let mut job = Job::new();
    job.send(Rank(0), MOVING);
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.settle();
    job.finish(moving);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 1, "sent once by its sender");
    assert_eq!(job.wires.borrow().sent.len(), 2, "and once more whole");
}

#[test]
fn a_message_that_is_announced_when_its_receiver_has_left_is_passed_on() {
    let mut job = Job::new();
    job.send(Rank(0), MOVING);
    job.check();
    let moving = job.freeze(MOVING, 2);
    // One comes while it is frozen, one when it has left.
    job.send(Rank(0), MOVING);
    job.settle();
    let confirmed = [1, 2].map(|process| job.learn(process, moving));
    job.send(Rank(0), MOVING);
    job.settle();
    let last = job.learn(0, moving);
    let confirmed = confirmed.iter().filter(|it| **it).count() + usize::from(last);
    job.forget(moving, confirmed);
    job.send(Rank(0), MOVING);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 4);
}

#[test]
fn a_message_under_way_from_a_rank_that_leaves_is_sent_once_and_the_rank_is_told() {
    let mut job = Job::new();
    job.send(MOVING, Rank(0));
    job.send(MOVING, Rank(2));
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.settle();
    // No receive has asked for them, and the source can forget the rank all the same.
    job.finish(moving);
    let core = &job.engines[2].core;
    let tables = &core.hosted[core.index_of(MOVING).unwrap()].tables;
    assert!(tables.unacked.is_empty());
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 2);
}

#[test]
fn a_message_on_a_link_whose_sender_has_left_is_received_by_its_number() {
    let mut job = Job::new();
    job.send(MOVING, Rank(0));
    job.check();
    job.send(MOVING, Rank(0));
    let moving = job.freeze(MOVING, 2);
    // The peer learns of the move before it takes the announcement from its link.
    job.finish(moving);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 2);
}

#[test]
fn what_was_under_way_when_a_move_is_given_up_comes_once() {
    let mut job = Job::new();
    job.send(MOVING, Rank(0));
    job.send(Rank(0), MOVING);
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.send(Rank(2), MOVING);
    job.settle();
    job.give_up(moving);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 3);
    assert_eq!(job.wires.borrow().sent.len(), 3);
}

#[test]
fn ranks_that_meet_in_one_process_have_what_was_under_way_between_them() {
    let mut job = Job::new();
    job.send(MOVING, Rank(2));
    job.send(Rank(2), MOVING);
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.finish(moving);
    job.send(MOVING, Rank(2));
    job.check();
    let moving = job.freeze(Rank(2), 1);
    job.send(MOVING, Rank(2));
    job.finish(moving);
    job.send(Rank(2), MOVING);
    job.check();
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Send(u32, u32),
    Progress(u32),
    /// Freezes a rank, if none is under way.
    Freeze(u32, u32),
    /// Tells one process of the move.
    Learn(u32),
    GiveUp,
}

fn deed() -> impl Strategy<Value = Deed> {
    let one = || 0..RANKS;
    prop_oneof![
        6 => (one(), one()).prop_map(|(from, to)| Deed::Send(from, to)),
        8 => one().prop_map(Deed::Progress),
        2 => (one(), one()).prop_map(|(rank, to)| Deed::Freeze(rank, to)),
        3 => one().prop_map(Deed::Learn),
        1 => Just(Deed::GiveUp),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_happens_in_whatever_order_each_message_comes_once_and_in_order(
        deeds in proptest::collection::vec(deed(), 1..120)
    ) {
        let mut job = Job::new();
        let mut moving: Option<(Moving, Vec<(u32, bool)>)> = None;
        for deed in deeds {
            let frozen = moving.as_ref().filter(|(it, learned)| {
                !learned.iter().any(|(process, _)| Process(*process) == it.to)
            });
            let frozen = frozen.map(|(it, _)| it.rank);
            match deed {
                Deed::Send(from, to) if from != to && Some(Rank(from)) != frozen => {
                    job.send(Rank(from), Rank(to));
                }
                Deed::Progress(process) => drop(job.progress(process as usize)),
                Deed::Freeze(rank, to)
                    if moving.is_none() && job.home(Rank(rank)) != to as usize =>
                {
                    moving = Some((job.freeze(Rank(rank), to as usize), Vec::new()));
                }
                Deed::Learn(process) => {
                    if let Some((it, learned)) = &mut moving
                        && !learned.iter().any(|(other, _)| *other == process)
                    {
                        learned.push((process, job.learn(process as usize, *it)));
                    }
                }
                Deed::GiveUp => {
                    if let Some((it, _)) = moving.take_if(|(_, learned)| learned.is_empty()) {
                        job.give_up(it);
                    }
                }
                _ => {}
            }
            if let Some((it, learned)) = moving.take_if(|(_, learned)| learned.len() == RANKS as usize) {
                job.forget(it, learned.iter().filter(|(_, confirmed)| *confirmed).count());
            }
        }
        if let Some((it, learned)) = moving {
            if learned.is_empty() {
                job.give_up(it);
            } else {
                let mut confirmed = learned.iter().filter(|(_, confirmed)| *confirmed).count();
                for process in 0..RANKS {
                    if !learned.iter().any(|(other, _)| *other == process) {
                        confirmed += usize::from(job.learn(process as usize, it));
                    }
                }
                job.forget(it, confirmed);
            }
        }
        job.check();
    }
}
