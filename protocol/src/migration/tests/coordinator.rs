//! The coordinator.

use super::*;

fn moves() -> Moves {
    Moves::new(Config {
        processes: 4,
        placement: placement(),
        drained: Vec::new(),
        snapshot_patience: PATIENCE,
        end_patience: PATIENCE,
    })
}

fn ask(moves: &mut Moves, number: u64, rank: u32, to: u32, mode: MoveMode) {
    let ask = Ask {
        rank: Rank(rank),
        to: Process(to),
        mode,
        within: WITHIN,
    };
    moves.handle_request(RequestId(number), ask);
}

fn says(moves: &mut Moves) -> Vec<MovesOutput> {
    std::iter::from_fn(|| moves.poll_output()).collect()
}

fn told(process: Process, directive: MoveDirective) -> MovesOutput {
    MovesOutput::Tell { process, directive }
}

fn refused(number: u64, reason: &str) -> MovesOutput {
    MovesOutput::Answer {
        request: RequestId(number),
        outcome: Err(reason.to_owned()),
    }
}

/// A move of rank 0 from process 0 to process 1 as far as this step.
fn moves_at(step: Step, mode: MoveMode) -> Moves {
    let mut moves = moves();
    ask(&mut moves, 1, 0, 1, mode);
    moves.handle_snapshots(NOW, Need::None);
    let needs = MoveNeeds::default();
    let to_there = [
        (
            Step::Examining,
            SOURCE,
            MoveReport::Movable { id: ID, needs },
        ),
        (Step::Preparing, TARGET, MoveReport::Prepared { id: ID }),
        (Step::Transferring, TARGET, MoveReport::Received { id: ID }),
    ];
    for (at, process, report) in to_there {
        if at == step {
            break;
        }
        moves.handle_report(NOW, process, report);
    }
    if step == Step::Forgetting {
        for process in (0..4).map(Process) {
            let confirmed = process == PEER;
            let learned = MoveReport::Learned { id: ID, confirmed };
            moves.handle_report(NOW, process, learned);
        }
    }
    says(&mut moves);
    assert_eq!(moves.underway().next().map(|it| it.step), Some(step));
    moves
}

#[test]
fn a_move_goes_through_its_steps_and_changes_the_record_once() {
    let mut moves = moves();
    ask(&mut moves, 1, 0, 1, MoveMode::Stop);
    assert_eq!(says(&mut moves), []);
    moves.handle_snapshots(NOW, Need::None);
    assert_eq!(says(&mut moves), [told(SOURCE, examine(MoveMode::Stop))]);
    let needs = MoveNeeds::default();
    moves.handle_report(NOW, SOURCE, MoveReport::Movable { id: ID, needs });
    assert_eq!(says(&mut moves), [told(TARGET, prepare(MoveMode::Stop))]);
    moves.handle_report(NOW, TARGET, MoveReport::Prepared { id: ID });
    let transfer = MoveDirective::Transfer { id: ID };
    assert_eq!(says(&mut moves), [told(SOURCE, transfer)]);
    assert_eq!(moves.placement(), placement());
    moves.handle_report(NOW, TARGET, MoveReport::Received { id: ID });
    let all = MovesOutput::TellAll { directive: moved() };
    assert_eq!(says(&mut moves), [all]);
    assert_eq!(moves.placement()[0], TARGET);
    assert_eq!(moves.take_recorded(), [(RANK, TARGET)]);
    for process in (0..4).map(Process) {
        assert_eq!(says(&mut moves), []);
        let confirmed = process == PEER;
        let learned = MoveReport::Learned { id: ID, confirmed };
        moves.handle_report(NOW, process, learned.clone());
        // Nobody counts twice.
        moves.handle_report(NOW, process, learned);
    }
    let forget = MoveDirective::Forget {
        id: ID,
        confirmations: 1,
    };
    assert_eq!(says(&mut moves), [told(SOURCE, forget)]);
    assert!(moves.holds_snapshots());
    moves.handle_report(NOW, SOURCE, MoveReport::Forgotten { id: ID });
    let done = Done {
        rank: RANK,
        from: SOURCE,
        to: TARGET,
    };
    let answer = MovesOutput::Answer {
        request: RequestId(1),
        outcome: Ok(done),
    };
    assert_eq!(says(&mut moves), [answer]);
    assert!(!moves.holds_snapshots());
    assert_eq!(moves.poll_timeout(), None);
}

#[test]
fn a_refusal_at_any_step_before_the_record_leaves_the_rank_where_it_was() {
    for step in [Step::Examining, Step::Preparing, Step::Transferring] {
        for process in [SOURCE, TARGET] {
            let mut moves = moves_at(step, MoveMode::Stop);
            let reason = "no".to_owned();
            moves.handle_report(NOW, process, MoveReport::Refused { id: ID, reason });
            let told_of_it = says(&mut moves);
            assert_eq!(
                told_of_it.len(),
                if step == Step::Examining { 1 } else { 2 }
            );
            // It is over when both have undone it.
            assert!(moves.holds_snapshots());
            moves.handle_report(NOW, TARGET, MoveReport::Received { id: ID });
            moves.handle_report(NOW, TARGET, MoveReport::GivenUp { id: ID });
            assert_eq!(says(&mut moves), []);
            moves.handle_report(NOW, SOURCE, MoveReport::GivenUp { id: ID });
            let reason = format!("{process}: no");
            assert_eq!(says(&mut moves), [refused(1, &reason)]);
            assert_eq!(moves.placement(), placement());
            assert!(!moves.holds_snapshots());
        }
    }
}

#[test]
fn after_the_record_nothing_is_given_up() {
    for step in [Step::Spreading, Step::Forgetting] {
        let mut moves = moves_at(step, MoveMode::Stop);
        let reason = "too late".to_owned();
        moves.handle_report(NOW, SOURCE, MoveReport::Refused { id: ID, reason });
        moves.handle_snapshots(NOW, Need::Last);
        assert_eq!(says(&mut moves), []);
        // Those that it waits for are named.
        moves.handle_timeout(WITHIN);
        let processes = match step {
            Step::Spreading => (0..4).map(Process).collect(),
            _ => vec![SOURCE],
        };
        assert_eq!(
            says(&mut moves),
            [MovesOutput::Waiting { id: ID, processes }]
        );
    }
}

#[test]
fn reports_of_the_wrong_process_or_step_change_nothing() {
    for step in [Step::Examining, Step::Preparing, Step::Transferring] {
        let reports = [
            (
                TARGET,
                MoveReport::Movable {
                    id: ID,
                    needs: MoveNeeds::default(),
                },
            ),
            (SOURCE, MoveReport::Prepared { id: ID }),
            (PEER, MoveReport::Received { id: ID }),
            (
                PEER,
                MoveReport::Refused {
                    id: ID,
                    reason: String::new(),
                },
            ),
            (
                PEER,
                MoveReport::Learned {
                    id: ID,
                    confirmed: true,
                },
            ),
            (TARGET, MoveReport::Complete { id: ID }),
            (SOURCE, MoveReport::Forgotten { id: ID }),
            (SOURCE, MoveReport::GivenUp { id: ID }),
            (
                SOURCE,
                MoveReport::Refused {
                    id: Move(9),
                    reason: String::new(),
                },
            ),
        ];
        let before = moves_at(step, MoveMode::Stop);
        for (process, report) in reports {
            let mut moves = before.clone();
            moves.handle_report(NOW, process, report);
            assert_eq!(moves, before);
        }
    }
}

#[test]
fn a_postcopy_s_source_is_needed_until_the_last_page() {
    let mut moves = moves_at(Step::Spreading, MoveMode::Postcopy);
    for process in (0..4).map(Process) {
        let confirmed = false;
        moves.handle_report(NOW, process, MoveReport::Learned { id: ID, confirmed });
    }
    assert_eq!(says(&mut moves), []);
    moves.handle_timeout(WITHIN);
    let processes = vec![TARGET];
    assert_eq!(
        says(&mut moves),
        [MovesOutput::Waiting { id: ID, processes }]
    );
    moves.handle_report(NOW, TARGET, MoveReport::Complete { id: ID });
    let forget = MoveDirective::Forget {
        id: ID,
        confirmations: 0,
    };
    assert_eq!(says(&mut moves), [told(SOURCE, forget)]);
}

#[test]
fn what_takes_too_long_before_the_record_is_given_up() {
    for step in [Step::Examining, Step::Preparing, Step::Transferring] {
        let mut moves = moves_at(step, MoveMode::Stop);
        assert_eq!(moves.poll_timeout(), Some(WITHIN));
        moves.handle_timeout(WITHIN - Duration::from_millis(1));
        assert_eq!(says(&mut moves), []);
        moves.handle_timeout(WITHIN);
        let give_up = MoveDirective::GiveUp { id: ID };
        assert_eq!(says(&mut moves)[0], told(SOURCE, give_up));
    }
}

#[test]
fn a_snapshot_waits_for_a_move_and_not_for_ever() {
    let mut moves = moves_at(Step::Transferring, MoveMode::Stop);
    moves.handle_snapshots(NOW, Need::Due);
    assert_eq!(moves.poll_timeout(), Some(PATIENCE));
    // The time counts from when it became due.
    moves.handle_snapshots(Duration::from_secs(1), Need::Due);
    assert_eq!(moves.poll_timeout(), Some(PATIENCE));
    moves.handle_timeout(PATIENCE);
    let steps: Vec<Step> = moves.underway().map(|it| it.step).collect();
    assert_eq!(steps, [Step::GivingUp]);
    let mut recorded = moves_at(Step::Spreading, MoveMode::Stop);
    recorded.handle_snapshots(NOW, Need::Due);
    recorded.handle_timeout(PATIENCE);
    let steps: Vec<Step> = recorded.underway().map(|it| it.step).collect();
    assert_eq!(steps, [Step::Spreading]);
}

#[test]
fn moves_that_wait_for_a_snapshot_are_next_and_then_the_next_snapshot_is() {
    let mut moves = moves();
    moves.handle_snapshots(NOW, Need::UnderWay);
    ask(&mut moves, 1, 0, 1, MoveMode::Stop);
    moves.handle_snapshots(NOW, Need::UnderWay);
    assert_eq!(says(&mut moves), []);
    assert!(moves.holds_snapshots());
    // The next snapshot is due at once.
    moves.handle_snapshots(NOW, Need::Due);
    assert_eq!(says(&mut moves), [told(SOURCE, examine(MoveMode::Stop))]);
    ask(&mut moves, 2, 3, 0, MoveMode::Stop);
    moves.handle_snapshots(NOW, Need::Due);
    assert_eq!(says(&mut moves), []);
    let reason = "no".to_owned();
    moves.handle_report(NOW, SOURCE, MoveReport::Refused { id: ID, reason });
    moves.handle_report(NOW, SOURCE, MoveReport::GivenUp { id: ID });
    moves.handle_snapshots(NOW, Need::Due);
    assert!(!moves.holds_snapshots());
    assert_eq!(moves.waiting(), 1);
}

#[test]
fn the_last_snapshot_waits_for_no_move_that_can_be_given_up() {
    let mut moves = moves_at(Step::Transferring, MoveMode::Stop);
    ask(&mut moves, 2, 3, 0, MoveMode::Stop);
    moves.handle_snapshots(NOW, Need::Last);
    let outputs = says(&mut moves);
    assert!(outputs.contains(&refused(2, "the job is stopping")));
    assert!(outputs.contains(&told(TARGET, MoveDirective::GiveUp { id: ID })));
    ask(&mut moves, 3, 3, 0, MoveMode::Stop);
    assert_eq!(says(&mut moves), [refused(3, "the job is stopping")]);
}

#[test]
fn different_processes_move_ranks_at_the_same_time_and_one_process_one_after_the_other() {
    let mut moves = moves();
    ask(&mut moves, 1, 0, 1, MoveMode::Stop);
    ask(&mut moves, 2, 1, 3, MoveMode::Stop);
    ask(&mut moves, 3, 3, 3, MoveMode::Stop);
    ask(&mut moves, 4, 0, 3, MoveMode::Stop);
    moves.handle_snapshots(NOW, Need::None);
    let begun: Vec<(Rank, Process)> = moves.underway().map(|it| (it.rank, it.to)).collect();
    assert_eq!(begun, [(RANK, TARGET), (Rank(3), Process(3))]);
    // Once both know of the record, the source can send the next rank, but the same rank has to wait.
    let needs = MoveNeeds::default();
    moves.handle_report(NOW, SOURCE, MoveReport::Movable { id: ID, needs });
    moves.handle_report(NOW, TARGET, MoveReport::Prepared { id: ID });
    moves.handle_report(NOW, TARGET, MoveReport::Received { id: ID });
    let reason = "no".to_owned();
    let other = Move(2);
    moves.handle_report(NOW, PEER, MoveReport::Refused { id: other, reason });
    moves.handle_report(NOW, PEER, MoveReport::GivenUp { id: other });
    moves.handle_snapshots(NOW, Need::None);
    assert_eq!(moves.waiting(), 2);
    for process in [SOURCE, TARGET] {
        let confirmed = false;
        moves.handle_report(NOW, process, MoveReport::Learned { id: ID, confirmed });
    }
    moves.handle_snapshots(NOW, Need::None);
    assert_eq!(moves.waiting(), 1);
    let begun: Vec<Rank> = moves.underway().map(|it| it.rank).collect();
    assert_eq!(begun, [RANK, Rank(1)]);
}

#[test]
fn what_can_t_be_is_answered_at_once() {
    let mut moves = moves();
    ask(&mut moves, 1, 9, 1, MoveMode::Stop);
    ask(&mut moves, 2, 0, 9, MoveMode::Stop);
    let outputs = says(&mut moves);
    assert_eq!(
        outputs[0],
        refused(1, "there is no rank 9: the job has 4 ranks")
    );
    assert_eq!(
        outputs[1],
        refused(2, "there is no process 9: the job has 4 processes")
    );
    // A rank that is there already need not be moved.
    ask(&mut moves, 3, 0, 0, MoveMode::Stop);
    moves.handle_snapshots(NOW, Need::None);
    let done = Done {
        rank: RANK,
        from: SOURCE,
        to: SOURCE,
    };
    let answer = MovesOutput::Answer {
        request: RequestId(3),
        outcome: Ok(done),
    };
    assert_eq!(says(&mut moves), [answer]);
}

#[test]
fn a_loss_forgets_all_moves_and_answers_all_requests() {
    for step in [
        Step::Examining,
        Step::Transferring,
        Step::Spreading,
        Step::Forgetting,
    ] {
        let mut moves = moves_at(step, MoveMode::Stop);
        ask(&mut moves, 2, 1, 3, MoveMode::Stop);
        moves.handle_lost("a process was lost");
        let answers = [
            refused(1, "a process was lost"),
            refused(2, "a process was lost"),
        ];
        assert_eq!(says(&mut moves), answers);
        assert_eq!(moves.underway().count(), 0);
        assert_eq!(moves.poll_timeout(), None);
        moves.handle_report(NOW, SOURCE, MoveReport::Forgotten { id: ID });
        assert_eq!(says(&mut moves), []);
    }
}
