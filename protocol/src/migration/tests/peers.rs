//! Every other process.

use super::*;

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
