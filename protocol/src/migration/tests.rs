//! The steps of a move by hand: each machine by itself, each way in which a step can fail.

use std::time::Duration;

use super::*;
use crate::coordinator::{Need, RequestId};
use crate::ids::{Move, Process, Rank};

const RANK: Rank = Rank(0);
const SOURCE: Process = Process(0);
const TARGET: Process = Process(1);
const PEER: Process = Process(2);
const ID: Move = Move(1);
const NOW: Duration = Duration::ZERO;
const WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(2);

fn placement() -> Vec<Process> {
    vec![SOURCE, SOURCE, TARGET, PEER]
}

fn mover(me: Process) -> Mover {
    Mover::new(me, &placement())
}

fn outputs(mover: &mut Mover) -> Vec<MoverOutput> {
    std::iter::from_fn(|| mover.poll_output()).collect()
}

fn report(report: MoveReport) -> MoverOutput {
    MoverOutput::Report(report)
}

fn tell(mover: &mut Mover, directive: MoveDirective) -> Vec<MoverOutput> {
    mover.handle_directive(directive, |_| true).unwrap();
    outputs(mover)
}

fn examine(mode: MoveMode) -> MoveDirective {
    MoveDirective::Examine {
        id: ID,
        rank: RANK,
        to: TARGET,
        mode,
    }
}

fn prepare(mode: MoveMode) -> MoveDirective {
    MoveDirective::Prepare {
        id: ID,
        rank: RANK,
        from: SOURCE,
        mode,
        needs: MoveNeeds::default(),
    }
}

fn moved() -> MoveDirective {
    MoveDirective::Moved {
        id: ID,
        rank: RANK,
        from: SOURCE,
        to: TARGET,
    }
}

/// A source whose rank is frozen.
fn frozen() -> Mover {
    let mut source = mover(SOURCE);
    tell(&mut source, examine(MoveMode::Stop));
    source.examined(ID, Ok(MoveNeeds::default()));
    tell(&mut source, MoveDirective::Transfer { id: ID });
    assert!(source.frozen(ID));
    outputs(&mut source);
    source
}

/// A target that has everything.
fn whole(mode: MoveMode) -> Mover {
    let mut target = mover(TARGET);
    tell(&mut target, prepare(mode));
    target.prepared(ID, Ok(()));
    assert!(target.received(ID));
    outputs(&mut target);
    target
}

// ---- the source -------------------------------------------------------------------------------

#[test]
fn a_source_looks_sends_and_holds_packets_once_its_rank_is_frozen() {
    let mut source = mover(SOURCE);
    let (mode, needs) = (MoveMode::Precopy, MoveNeeds::default());
    let looks = MoverOutput::Examine {
        id: ID,
        rank: RANK,
        to: TARGET,
        mode,
    };
    assert_eq!(tell(&mut source, examine(mode)), [looks]);
    source.examined(ID, Ok(needs.clone()));
    let movable = MoveReport::Movable { id: ID, needs };
    assert_eq!(outputs(&mut source), [report(movable)]);
    let sends = MoverOutput::Transfer {
        id: ID,
        rank: RANK,
        to: TARGET,
        mode,
    };
    let transfer = MoveDirective::Transfer { id: ID };
    assert_eq!(tell(&mut source, transfer), [sends]);
    assert_eq!(source.handle_packet(PEER, RANK), Ok(Route::Here));
    assert!(source.frozen(ID));
    assert_eq!(source.handle_packet(PEER, RANK), Ok(Route::Hold));
    assert_eq!(source.route(RANK), Ok(Route::Hold));
    assert!(!source.is_here(RANK));
    assert_eq!(source.route(Rank(1)), Ok(Route::Here));
}

#[test]
fn a_source_that_is_told_to_give_up_resumes_its_rank_at_every_step() {
    let mut before = Vec::new();
    let mut source = mover(SOURCE);
    tell(&mut source, examine(MoveMode::Stop));
    before.push(source.clone());
    source.examined(ID, Ok(MoveNeeds::default()));
    outputs(&mut source);
    before.push(source.clone());
    tell(&mut source, MoveDirective::Transfer { id: ID });
    before.push(source.clone());
    source.failed(ID, "the connection broke");
    outputs(&mut source);
    before.push(source);
    before.push(frozen());
    for mut source in before {
        let undone = [
            MoverOutput::Resume { id: ID, rank: RANK },
            report(MoveReport::GivenUp { id: ID }),
        ];
        assert_eq!(tell(&mut source, MoveDirective::GiveUp { id: ID }), undone);
        assert_eq!(source, mover(SOURCE));
        // What was under way finds nothing to go on with.
        assert!(!source.frozen(ID));
        source.examined(ID, Ok(MoveNeeds::default()));
        source.failed(ID, "too late");
        assert_eq!(outputs(&mut source), []);
    }
}

#[test]
fn a_pinned_rank_is_refused_with_the_reason() {
    let mut source = mover(SOURCE);
    tell(&mut source, examine(MoveMode::Stop));
    let reason = "the static CACHE points into its slot".to_owned();
    source.examined(ID, Err(reason.clone()));
    let refused = MoveReport::Refused { id: ID, reason };
    assert_eq!(outputs(&mut source), [report(refused)]);
    assert!(source.is_here(RANK));
}

#[test]
fn a_source_that_failed_after_all_was_received_still_hands_over() {
    let mut source = frozen();
    source.failed(ID, "the connection broke");
    outputs(&mut source);
    let left = tell(&mut source, moved());
    assert!(left.contains(&MoverOutput::Left {
        id: ID,
        rank: RANK,
        to: TARGET
    }));
    assert!(!source.is_here(RANK));
}

#[test]
fn a_source_forwards_and_tells_each_peer_once_where_the_rank_is() {
    let mut source = frozen();
    tell(&mut source, moved());
    assert_eq!(source.handle_packet(PEER, RANK), Ok(Route::Link(TARGET)));
    let control = MoveControl::Moved {
        id: ID,
        rank: RANK,
        to: TARGET,
    };
    let hint = MoverOutput::SendLink {
        peer: PEER,
        control,
    };
    assert_eq!(outputs(&mut source), [hint]);
    assert_eq!(source.handle_packet(PEER, RANK), Ok(Route::Link(TARGET)));
    assert_eq!(outputs(&mut source), []);
    assert_eq!(source.route(RANK), Ok(Route::Link(TARGET)));
}

#[test]
fn a_source_forgets_when_all_have_confirmed_and_nothing_waits() {
    let confirm = MoveControl::Confirm { id: ID };
    let drain = MoverOutput::Drain { id: ID, rank: RANK };
    let mut source = frozen();
    // One confirmation comes before the coordinator's word.
    source.handle_control(PEER, confirm).unwrap();
    tell(&mut source, moved());
    let forget = MoveDirective::Forget {
        id: ID,
        confirmations: 2,
    };
    assert_eq!(tell(&mut source, forget), []);
    assert_eq!(source.handle_packet(TARGET, RANK), Ok(Route::Link(TARGET)));
    outputs(&mut source);
    source.handle_control(TARGET, confirm).unwrap();
    assert_eq!(outputs(&mut source), [drain]);
    assert!(source.is_moving());
    source.drained(ID);
    let forgotten = [
        MoverOutput::Free { id: ID, rank: RANK },
        report(MoveReport::Forgotten { id: ID }),
    ];
    assert_eq!(outputs(&mut source), forgotten);
    assert!(!source.is_moving());
    let misrouted = MigrationError::Misrouted {
        me: SOURCE,
        peer: PEER,
        rank: RANK,
    };
    assert_eq!(source.handle_packet(PEER, RANK), Err(misrouted));
    source.drained(ID);
    assert_eq!(outputs(&mut source), []);
}

#[test]
fn more_confirmations_than_counted_are_an_error() {
    let confirm = MoveControl::Confirm { id: ID };
    let mut source = frozen();
    tell(&mut source, moved());
    source.handle_control(PEER, confirm).unwrap();
    let forget = MoveDirective::Forget {
        id: ID,
        confirmations: 0,
    };
    let error = source.handle_directive(forget, |_| true).unwrap_err();
    let confirmed = MigrationError::Confirmed {
        id: ID,
        confirmed: 1,
        expected: 0,
    };
    assert_eq!(error, confirmed);
}

// ---- the target -------------------------------------------------------------------------------

#[test]
fn a_target_runs_the_rank_after_the_record_and_not_before() {
    let mut target = mover(TARGET);
    let refused_yet = target.handle_packet(PEER, RANK);
    assert!(matches!(refused_yet, Err(MigrationError::Misrouted { .. })));
    assert_eq!(tell(&mut target, prepare(MoveMode::Stop)).len(), 1);
    target.prepared(ID, Ok(()));
    assert!(target.received(ID));
    let reports = [
        report(MoveReport::Prepared { id: ID }),
        report(MoveReport::Received { id: ID }),
    ];
    assert_eq!(outputs(&mut target), reports);
    // A peer has heard the news earlier.
    assert_eq!(target.handle_packet(PEER, RANK), Ok(Route::Hold));
    assert_eq!(target.route(RANK), Ok(Route::Link(SOURCE)));
    assert!(!target.is_here(RANK));
    let runs = tell(&mut target, moved());
    let confirm = MoverOutput::SendLink {
        peer: SOURCE,
        control: MoveControl::Confirm { id: ID },
    };
    let placed = MoverOutput::Placed {
        id: ID,
        rank: RANK,
        to: TARGET,
    };
    let learned = report(MoveReport::Learned {
        id: ID,
        confirmed: true,
    });
    let run = MoverOutput::Run { id: ID, rank: RANK };
    assert_eq!(runs, [run, placed, confirm, learned]);
    assert_eq!(target.handle_packet(PEER, RANK), Ok(Route::Here));
    assert_eq!(target.since(RANK), Some(ID));
}

#[test]
fn a_target_that_hears_from_a_peer_first_keeps_packets_and_has_no_link_to_itself() {
    let mut target = whole(MoveMode::Stop);
    let hint = MoveControl::Moved {
        id: ID,
        rank: RANK,
        to: TARGET,
    };
    target.handle_control(SOURCE, hint).unwrap();
    outputs(&mut target);
    assert_eq!(target.route(RANK), Ok(Route::Hold));
    let runs = tell(&mut target, moved());
    assert_eq!(runs[0], MoverOutput::Run { id: ID, rank: RANK });
    assert_eq!(target.route(RANK), Ok(Route::Here));
}

#[test]
fn a_target_drops_what_has_come_when_the_move_is_given_up() {
    let mut refusing = mover(TARGET);
    tell(&mut refusing, prepare(MoveMode::Stop));
    refusing.prepared(ID, Err("no memory".to_owned()));
    outputs(&mut refusing);
    for mut target in [refusing, whole(MoveMode::Stop)] {
        let undone = [
            MoverOutput::Discard { id: ID, rank: RANK },
            report(MoveReport::GivenUp { id: ID }),
        ];
        assert_eq!(tell(&mut target, MoveDirective::GiveUp { id: ID }), undone);
        assert_eq!(target, mover(TARGET));
        assert!(!target.received(ID));
    }
}

#[test]
fn a_target_that_has_received_everything_can_t_refuse_any_more() {
    let mut target = whole(MoveMode::Stop);
    target.failed(ID, "a change of mind");
    assert_eq!(outputs(&mut target), []);
}

#[test]
fn a_postcopy_s_target_says_when_the_last_page_has_come() {
    let mut target = whole(MoveMode::Postcopy);
    target.complete(ID);
    assert_eq!(outputs(&mut target), []);
    tell(&mut target, moved());
    assert!(target.is_moving());
    target.complete(ID);
    let complete = report(MoveReport::Complete { id: ID });
    assert_eq!(outputs(&mut target), [complete]);
    assert!(!target.is_moving());
}

// ---- every other process ----------------------------------------------------------------------

#[test]
fn a_peer_learns_once_from_whoever_tells_first_and_confirms_when_the_coordinator_says() {
    let mut peer = mover(PEER);
    let hint = MoveControl::Moved {
        id: ID,
        rank: RANK,
        to: TARGET,
    };
    let placed = MoverOutput::Placed {
        id: ID,
        rank: RANK,
        to: TARGET,
    };
    peer.handle_control(SOURCE, hint).unwrap();
    assert_eq!(outputs(&mut peer), [placed]);
    assert_eq!(peer.route(RANK), Ok(Route::Link(TARGET)));
    peer.handle_control(SOURCE, hint).unwrap();
    assert_eq!(peer.handle_announced(RANK, TARGET, ID), Learned::Known);
    assert_eq!(outputs(&mut peer), []);
    let confirm = MoverOutput::SendLink {
        peer: SOURCE,
        control: MoveControl::Confirm { id: ID },
    };
    let learned = report(MoveReport::Learned {
        id: ID,
        confirmed: true,
    });
    assert_eq!(tell(&mut peer, moved()), [confirm, learned]);
}

#[test]
fn a_peer_without_a_link_to_the_source_has_nothing_to_confirm() {
    let mut peer = mover(PEER);
    peer.handle_directive(moved(), |_| false).unwrap();
    let learned = report(MoveReport::Learned {
        id: ID,
        confirmed: false,
    });
    assert_eq!(outputs(&mut peer).last(), Some(&learned));
}

#[test]
fn an_announcement_of_before_a_known_move_is_stale() {
    let mut peer = mover(PEER);
    let later = Move(7);
    assert_eq!(peer.handle_announced(RANK, TARGET, later), Learned::New);
    assert_eq!(peer.handle_announced(RANK, SOURCE, ID), Learned::Stale);
    assert_eq!(peer.process(RANK), Some(TARGET));
}

#[test]
fn directives_that_fit_nothing_are_errors() {
    let transfer = MoveDirective::Transfer { id: ID };
    let give_up = MoveDirective::GiveUp { id: ID };
    let forget = MoveDirective::Forget {
        id: ID,
        confirmations: 0,
    };
    let no_rank = MoveDirective::Moved {
        id: ID,
        rank: Rank(99),
        from: SOURCE,
        to: PEER,
    };
    for directive in [transfer, give_up, forget, no_rank, moved()] {
        for process in [SOURCE, TARGET] {
            let mut mover = mover(process);
            let outcome = mover.handle_directive(directive.clone(), |_| true);
            assert!(outcome.is_err(), "{directive:?} at {process}");
        }
    }
    let confirm = MoveControl::Confirm { id: ID };
    assert!(mover(SOURCE).handle_control(PEER, confirm).is_err());
    assert!(
        mover(TARGET)
            .handle_directive(examine(MoveMode::Stop), |_| true)
            .is_err()
    );
    assert!(
        mover(SOURCE)
            .handle_directive(prepare(MoveMode::Stop), |_| true)
            .is_err()
    );
}

// ---- the coordinator --------------------------------------------------------------------------

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
