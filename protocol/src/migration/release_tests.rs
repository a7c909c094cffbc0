//! Draining and releasing, by hand.

use std::time::Duration;

use super::*;
use crate::coordinator::{Need, RequestId};
use crate::ids::{Move, Process, Rank};
use crate::migration::{Ask, Config, Done, MoveMode, MoveNeeds, MoveReport};

const NOW: Duration = Duration::ZERO;
const PATIENCE: Duration = Duration::from_secs(2);

/// Ranks 0 and 1 in process 0, rank 2 in process 1, none in processes 2 and 3.
fn moves() -> Moves {
    Moves::new(Config {
        processes: 4,
        placement: vec![Process(0), Process(0), Process(1)],
        drained: Vec::new(),
        snapshot_patience: PATIENCE,
        end_patience: PATIENCE,
    })
}

fn outputs(moves: &mut Moves) -> Vec<Output> {
    std::iter::from_fn(|| moves.poll_output()).collect()
}

fn ask(moves: &mut Moves, rank: Rank, to: Process) {
    let ask = Ask {
        rank,
        to,
        mode: MoveMode::Stop,
        within: Duration::from_secs(60),
    };
    moves.handle_request(RequestId(u64::from(rank.0)), ask);
}

fn release(process: u32) -> Output {
    Output::TellAll {
        directive: MoveDirective::Release {
            process: Process(process),
        },
    }
}

fn parted(moves: &mut Moves, by: u32, released: u32) {
    let process = Process(released);
    moves.handle_report(NOW, Process(by), MoveReport::Parted { process });
}

/// Takes a move that has begun to its end.
fn complete(moves: &mut Moves, id: Move, from: Process, to: Process, learners: &[u32]) {
    let needs = MoveNeeds::default();
    moves.handle_report(NOW, from, MoveReport::Movable { id, needs });
    moves.handle_report(NOW, to, MoveReport::Prepared { id });
    moves.handle_report(NOW, to, MoveReport::Received { id });
    for &process in learners {
        let confirmed = false;
        moves.handle_report(NOW, Process(process), MoveReport::Learned { id, confirmed });
    }
    moves.handle_report(NOW, from, MoveReport::Forgotten { id });
    moves.handle_snapshots(NOW, Need::None);
}

#[test]
fn the_ranks_of_a_drained_process_go_to_those_with_the_fewest() {
    let mut moves = moves();
    let plan = moves.handle_drain(&[Process(0)]).unwrap();
    let to = |number: usize| plan[number].2;
    assert_eq!(plan.len(), 2);
    assert_eq!((plan[0].0, to(0)), (Rank(0), Process(2)));
    assert_eq!((plan[1].0, to(1)), (Rank(1), Process(3)));
    let plan = moves.handle_drain(&[Process(1), Process(3)]).unwrap();
    let all: Vec<_> = plan.iter().map(|part| (part.0.0, part.2.0)).collect();
    assert_eq!(all, [(2, 2)], "only process 2 is left for rank 2");
}

#[test]
fn a_drained_process_is_released_when_its_last_rank_is_gone_and_forgotten() {
    let mut moves = moves();
    for (rank, _, to) in moves.handle_drain(&[Process(0)]).unwrap() {
        ask(&mut moves, rank, to);
    }
    moves.handle_snapshots(NOW, Need::None);
    for (number, to) in [(1, Process(2)), (2, Process(3))] {
        outputs(&mut moves);
        assert!(moves.is_moving(Process(0)));
        complete(&mut moves, Move(number), Process(0), to, &[0, 1, 2, 3]);
    }
    assert!(outputs(&mut moves).contains(&release(0)));
    assert!(moves.holds_snapshots());
    for other in [1, 3] {
        parted(&mut moves, other, 0);
        parted(&mut moves, other, 0);
    }
    assert_eq!(outputs(&mut moves), [], "process 2 has not parted");
    // Nothing else begins meanwhile.
    ask(&mut moves, Rank(2), Process(2));
    moves.handle_snapshots(NOW, Need::None);
    assert_eq!(outputs(&mut moves), []);
    parted(&mut moves, 2, 0);
    let process = Process(0);
    assert_eq!(outputs(&mut moves), [Output::Released { process }]);
    assert_eq!(moves.standing(process), Standing::Released);
    assert!(!moves.is_quiet() || moves.queue.len() == 1);
    // A move needs no word of it any more.
    moves.handle_snapshots(NOW, Need::None);
    outputs(&mut moves);
    complete(&mut moves, Move(3), Process(1), Process(2), &[1, 2, 3]);
    let done = Done {
        rank: Rank(2),
        from: Process(1),
        to: Process(2),
    };
    let request = RequestId(2);
    let outcome = Ok(done);
    assert!(outputs(&mut moves).contains(&Output::Answer { request, outcome }));
    assert!(moves.is_quiet());
}

#[test]
fn processes_without_ranks_are_released_one_after_the_other_and_snapshots_get_their_turn() {
    let mut moves = moves();
    assert_eq!(moves.handle_drain(&[Process(2), Process(3)]).unwrap(), []);
    moves.handle_snapshots(NOW, Need::UnderWay);
    assert_eq!(outputs(&mut moves), [], "not during a snapshot");
    moves.handle_snapshots(NOW, Need::None);
    assert_eq!(outputs(&mut moves), [release(2)]);
    for other in [0, 1, 3] {
        parted(&mut moves, other, 2);
    }
    moves.handle_snapshots(NOW, Need::Due);
    let process = Process(2);
    assert_eq!(outputs(&mut moves), [Output::Released { process }]);
    assert!(!moves.holds_snapshots(), "the snapshot is next");
    moves.handle_snapshots(NOW, Need::UnderWay);
    assert!(moves.holds_snapshots(), "and then the other release");
    moves.handle_snapshots(NOW, Need::Due);
    assert_eq!(outputs(&mut moves), [release(3)]);
    // The first one has no link to it any more.
    for other in [0, 1] {
        parted(&mut moves, other, 3);
    }
    let process = Process(3);
    assert_eq!(outputs(&mut moves), [Output::Released { process }]);
}

#[test]
fn those_that_keep_a_release_waiting_are_named_again_and_again() {
    let mut moves = moves();
    moves.handle_drain(&[Process(2)]).unwrap();
    moves.handle_snapshots(NOW, Need::None);
    outputs(&mut moves);
    parted(&mut moves, 0, 2);
    for round in 1..=2 {
        let now = round * PATIENCE;
        assert_eq!(moves.poll_timeout(), Some(now));
        moves.handle_timeout(now);
        let waiting = Output::WaitingToRelease {
            process: Process(2),
            processes: vec![Process(1), Process(3)],
        };
        assert_eq!(outputs(&mut moves), [waiting]);
    }
}

#[test]
fn no_rank_comes_to_a_drained_process() {
    let mut moves = moves();
    moves.handle_drain(&[Process(2)]).unwrap();
    ask(&mut moves, Rank(2), Process(2));
    let refused = outputs(&mut moves);
    let [
        Output::Answer {
            outcome: Err(why), ..
        },
    ] = &refused[..]
    else {
        panic!("{refused:?}");
    };
    assert_eq!(why, "process 2 is drained: no rank can go there");
    // Nor one that was asked for before, and waits.
    ask(&mut moves, Rank(2), Process(3));
    let plan = moves.handle_drain(&[Process(3)]).unwrap();
    assert_eq!(plan, [(Rank(2), Process(1), Process(1))]);
    moves.handle_undrain(&[Process(2)]).unwrap();
    ask(&mut moves, Rank(2), Process(2));
    assert_eq!(outputs(&mut moves), []);
}

#[test]
fn what_can_t_be_drained_or_taken_back_is_refused_and_changes_nothing() {
    let mut moves = moves();
    let process = Process(4);
    let none = DrainError::NoSuchProcess {
        process,
        processes: 4,
    };
    assert_eq!(moves.handle_drain(&[process]), Err(none.clone()));
    assert_eq!(moves.handle_undrain(&[process]), Err(none));
    let all: Vec<Process> = (0..4).map(Process).collect();
    assert_eq!(moves.handle_drain(&all), Err(DrainError::NobodyLeft));
    assert_eq!(moves.handle_undrain(&all), Err(DrainError::NotDrained));
    moves.handle_drain(&all[2..]).unwrap();
    let again = moves.handle_drain(&[Process(3)]);
    assert_eq!(again, Err(DrainError::AlreadyDrained));
    assert_eq!(moves.handle_drain(&all[..2]), Err(DrainError::NobodyLeft));
    moves.handle_snapshots(NOW, Need::None);
    // The release of process 2 has begun, that of process 3 has not.
    assert_eq!(moves.handle_undrain(&all[2..]), Ok(vec![Process(2)]));
    assert_eq!(moves.standing(Process(3)), Standing::Member);
}

#[test]
fn a_rank_that_could_not_be_moved_keeps_its_process_from_being_released() {
    let mut moves = moves();
    let plan = moves.handle_drain(&[Process(1)]).unwrap();
    let [(rank, _, to)] = plan[..] else {
        panic!("{plan:?}")
    };
    ask(&mut moves, rank, to);
    moves.handle_snapshots(NOW, Need::None);
    let (id, reason) = (Move(1), "a static points into its slot".to_owned());
    moves.handle_report(NOW, Process(1), MoveReport::Refused { id, reason });
    moves.handle_report(NOW, Process(1), MoveReport::GivenUp { id });
    moves.handle_snapshots(NOW, Need::None);
    assert!(!outputs(&mut moves).contains(&release(1)));
    assert!(moves.is_quiet());
    // It may be tried again.
    assert_eq!(moves.handle_drain(&[Process(1)]).unwrap(), plan);
}

#[test]
fn what_is_drained_from_the_beginning_is_released_at_once() {
    let mut moves = Moves::new(Config {
        processes: 2,
        placement: vec![Process(0)],
        drained: vec![Process(1)],
        snapshot_patience: PATIENCE,
        end_patience: PATIENCE,
    });
    moves.handle_snapshots(NOW, Need::None);
    assert_eq!(outputs(&mut moves), [release(1)]);
    moves.handle_lost("lost");
    assert!(!moves.holds_snapshots());
    parted(&mut moves, 0, 1);
    assert_eq!(outputs(&mut moves), []);
}
