//! The source of a move.

use super::*;

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
