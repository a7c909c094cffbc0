//! The target of a move.

use super::*;

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
