//! Every possible run of small jobs: the real machines under the stateright model checker.
//!
//! The simulator draws large jobs at random; here small ones are gone through completely, in every order
//! in which packets, announcements, reports, cuts, failures and losses can come. `job` is the snapshot
//! protocol, `pages` the bookkeeping of dirty pages and of the
//! files that checkpoints need.

mod job;
mod moves;
mod pages;

use std::fmt::Debug;
use std::hash::Hash;

use job::{Limits, Small};
use moves::{MoveMistake, Moving};
use pages::{Paging, StoreMistake};
use protocol::faults::{Broken, Fault};
use protocol::migration::MoveMode;
use stateright::{Checker, HasDiscoveries, Model};

/// Goes through every state; all that must hold holds, all that should be possible happens.
fn explore<M>(model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, depth {}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// With the mistake that `what` names, some state breaks one of these properties: how many steps lead there, and the state.
fn break_one<M>(model: M, properties: [&'static str; 2], what: &str) -> (usize, M::State)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let mut found = properties
        .iter()
        .filter_map(|property| checker.discovery(property));
    let Some(path) = found.next() else {
        panic!(
            "{what} was not caught in {} states",
            checker.unique_state_count()
        );
    };
    let last = path.last_state().clone();
    (path.into_actions().len(), last)
}

/// Goes through every state of jobs that don't move ranks.
fn hold(limits: Limits) {
    explore(Small::new(limits, None));
}

/// With the mistake, some state breaks what must hold.
fn caught(limits: Limits, fault: Fault) {
    let broken = Small::new(limits, Some(fault));
    let (steps, last) = break_one(broken, [job::SAFE, job::ENDS], &format!("{fault:?}"));
    println!("{fault:?} after {steps} steps: {:?}", last.violation);
}

/// Two processes that send to each other, and a snapshot that may fail or be followed by another.
const PAIR: Limits = Limits {
    messages: &[(0, 1, 1), (1, 0, 1)],
    processes: 2,
    snapshots: 2,
    failures: 1,
    losses: 0,
};

/// More messages around one snapshot.
const STREAM: Limits = Limits {
    messages: &[(0, 1, 3), (1, 0, 2)],
    processes: 2,
    snapshots: 1,
    failures: 0,
    losses: 0,
};

/// Two processes, one of which may be lost, or the coordinator, at any moment.
const LOSS: Limits = Limits {
    messages: &[(0, 1, 1), (1, 0, 1)],
    processes: 2,
    snapshots: 2,
    failures: 0,
    losses: 1,
};

/// Three processes: markers come to a process over several links, and over some that it did not know.
const ROW: Limits = Limits {
    messages: &[(0, 1, 1), (2, 1, 1)],
    processes: 3,
    snapshots: 1,
    failures: 0,
    losses: 0,
};

#[test]
fn two_processes_with_an_abort_are_always_consistent() {
    hold(PAIR);
}

#[test]
fn two_processes_with_many_messages_are_always_consistent() {
    hold(STREAM);
}

#[test]
fn two_processes_with_a_loss_are_always_consistent() {
    hold(LOSS);
}

#[test]
fn three_processes_are_always_consistent() {
    hold(ROW);
}

#[test]
fn a_marker_behind_the_next_packet_is_caught() {
    caught(PAIR, Fault::MarkerAfterNextPacket);
}

#[test]
fn recording_after_the_marker_is_caught() {
    caught(ROW, Fault::RecordAfterMarker);
}

#[test]
fn a_first_packet_that_is_not_recorded_is_caught() {
    caught(PAIR, Fault::FirstPacketUnrecorded);
}

#[test]
fn packets_before_the_answer_are_caught() {
    caught(PAIR, Fault::OpenWithoutAnswer);
}

#[test]
fn a_link_that_opens_before_the_cut_it_tells_of_is_caught() {
    caught(PAIR, Fault::OpenBeforeCut);
}

#[test]
fn a_packet_from_beyond_the_cut_is_caught() {
    caught(PAIR, Fault::DeliverBeforeCut);
}

#[test]
fn a_late_marker_that_counts_is_caught() {
    caught(PAIR, Fault::LateMarkerCounts);
}

#[test]
fn every_checkpoint_of_incremental_files_stays_whole() {
    explore(Paging {
        fault: Broken(None),
        mistake: None,
        cuts: 4,
    });
}

#[test]
fn mistakes_with_pages_and_files_are_caught() {
    let of_rank = [
        Fault::AbortedPagesForgotten,
        Fault::AbortedTakenAsParent,
        Fault::RebaseIgnored,
        Fault::RebaseForgetsCuts,
    ];
    let of_store = [StoreMistake::NeedsUnchecked, StoreMistake::NeedsNotKept];
    let of_rank = of_rank.map(|fault| (Some(fault), None));
    let of_store = of_store.map(|mistake| (None, Some(mistake)));
    for (fault, mistake) in of_rank.into_iter().chain(of_store) {
        let broken = Paging {
            fault: Broken(fault),
            mistake,
            cuts: 5,
        };
        // Depth first: one of them takes all five snapshots to show.
        let checker = broken
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_dfs()
            .join();
        let path = checker.discovery(pages::WHOLE);
        let path = path.unwrap_or_else(|| panic!("{fault:?} {mistake:?} was not caught"));
        println!("{fault:?} {mistake:?}: {:?}", path.into_actions());
    }
}

/// Sizes beyond what every build can wait for: `cargo test --release -p ckpt-protocol --test model -- --ignored`.
#[test]
#[ignore = "minutes"]
fn larger_jobs_are_always_consistent() {
    hold(Limits {
        messages: &[(0, 1, 2), (1, 0, 1)],
        losses: 1,
        ..PAIR
    });
    hold(Limits {
        messages: &[(0, 1, 1), (1, 2, 1)],
        failures: 1,
        ..ROW
    });
    let paging = Paging {
        fault: Broken(None),
        mistake: None,
        cuts: 5,
    };
    paging
        .checker()
        .threads(2)
        .spawn_bfs()
        .join()
        .assert_properties();
}

/// The same with ranks that move.
#[test]
#[ignore = "minutes"]
fn larger_jobs_with_moves_are_always_consistent() {
    move_hold(moves::Limits {
        snapshots: 1,
        losses: 1,
        ..THIRD
    });
    move_hold(BOTH_WAYS);
    move_hold(BOTH);
}

/// Goes through every state of jobs whose ranks move.
fn move_hold(limits: moves::Limits) {
    explore(Moving {
        limits,
        fault: Broken(None),
        mistake: None,
    });
}

/// With the mistake, some state breaks what must hold.
fn move_caught(limits: moves::Limits, fault: Option<Fault>, mistake: Option<MoveMistake>) {
    let broken = Moving {
        limits,
        fault: Broken(fault),
        mistake,
    };
    let what = format!("{fault:?} {mistake:?}");
    let (steps, last) = break_one(broken, [moves::SAFE, moves::ENDS], &what);
    println!("{what} after {steps} steps: {:?}", last.violation);
}

/// A rank moves to its peer's process; either may refuse, or be lost.
const ACROSS: moves::Limits = moves::Limits {
    processes: 2,
    placement: &[0, 1],
    messages: &[(0, 1, 1), (1, 0, 1)],
    moves: &[(0, 1, MoveMode::Stop)],
    snapshots: 0,
    failures: 1,
    losses: 1,
};

/// The same with a snapshot, which may fail.
const SNAPSHOT: moves::Limits = moves::Limits {
    snapshots: 1,
    losses: 0,
    ..ACROSS
};

/// A rank moves to a third process, and pages come after it.
const THIRD: moves::Limits = moves::Limits {
    processes: 3,
    messages: &[(1, 0, 2)],
    moves: &[(0, 2, MoveMode::Postcopy)],
    failures: 0,
    losses: 0,
    ..ACROSS
};

/// The same, with messages both ways.
const BOTH_WAYS: moves::Limits = moves::Limits {
    messages: &[(1, 0, 2), (0, 1, 1)],
    ..THIRD
};

/// There and back.
const BACK: moves::Limits = moves::Limits {
    moves: &[(0, 1, MoveMode::Stop), (0, 0, MoveMode::Stop)],
    messages: &[(1, 0, 2), (0, 1, 1)],
    losses: 0,
    ..ACROSS
};

/// Two ranks that talk to each other move at the same time.
const BOTH: moves::Limits = moves::Limits {
    processes: 4,
    moves: &[(0, 2, MoveMode::Stop), (1, 3, MoveMode::Stop)],
    messages: &[(0, 1, 1)],
    failures: 0,
    losses: 0,
    ..ACROSS
};

#[test]
fn a_rank_that_moves_is_always_one_process_s_whoever_refuses_or_is_lost() {
    move_hold(ACROSS);
    move_hold(moves::Limits {
        messages: &[(1, 0, 1)],
        failures: 1,
        losses: 1,
        ..THIRD
    });
}

#[test]
fn snapshots_and_moves_exclude_each_other() {
    move_hold(SNAPSHOT);
    move_hold(moves::Limits {
        failures: 0,
        losses: 1,
        ..SNAPSHOT
    });
    move_hold(moves::Limits {
        snapshots: 1,
        ..THIRD
    });
}

#[test]
fn messages_find_a_rank_that_moves_to_a_third_process() {
    move_hold(THIRD);
    move_hold(moves::Limits {
        messages: &[(1, 0, 1), (0, 1, 1)],
        ..THIRD
    });
}

#[test]
fn messages_find_a_rank_that_moves_there_and_back() {
    move_hold(BACK);
}

#[test]
fn mistakes_with_moves_are_caught() {
    for fault in [
        Fault::SourceResumesAfterHandOver,
        Fault::TargetRunsBeforeRecord,
        Fault::ForwardingDroppedEarly,
        Fault::ForgottenBeforeLearned,
        Fault::DeliveredToFrozen,
    ] {
        move_caught(THIRD, Some(fault), None);
    }
    move_caught(BOTH_WAYS, Some(Fault::StalePlaceLearned), None);
    for mistake in [
        MoveMistake::SnapshotDuringMove,
        MoveMistake::MoveDuringSnapshot,
        MoveMistake::RecordKeptBack,
    ] {
        move_caught(SNAPSHOT, None, Some(mistake));
    }
}
