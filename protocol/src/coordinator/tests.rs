use std::time::Duration;

use super::*;
use crate::control::{Felt, LinkCount, NeededFile, StoredFile};
use crate::ids::{Epoch, Process, Rank};

const P0: Process = Process(0);
const P1: Process = Process(1);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Two processes, the first with ranks 0 and 1, the second with rank 2. Epoch 4 was the last one used.
fn coordinator() -> Coordinator {
    let config = Config {
        processes: 2,
        placement: vec![P0, P0, P1],
        newest: Epoch(4),
        committed: Some(Epoch(3)),
        every: Some(ms(1000)),
        cut_patience: ms(5000),
        store_timeout: ms(60_000),
    };
    Coordinator::new(config, ms(0))
}

fn outputs(coordinator: &mut Coordinator) -> Vec<Output> {
    std::iter::from_fn(|| coordinator.poll_output()).collect()
}

fn file(rank: u32) -> StoredFile {
    StoredFile {
        rank: Rank(rank),
        name: format!("rank {rank}"),
        ..StoredFile::default()
    }
}

fn link(peer: Process, sent: u64, received: u64) -> LinkCount {
    LinkCount {
        peer,
        sent,
        received,
    }
}

fn part(files: Vec<StoredFile>, links: &[LinkCount]) -> Part {
    Part {
        files,
        links: links.to_vec(),
        ..Part::default()
    }
}

fn need(rank: u32, epoch: u64) -> NeededFile {
    NeededFile {
        epoch: Epoch(epoch),
        incarnation: crate::ids::Incarnation(1),
        file: file(rank),
    }
}

/// A coordinator that has announced epoch 5, asked for by request 1.
fn announced() -> Coordinator {
    let mut it = coordinator();
    it.handle_request(ms(10), RequestId(1));
    assert_eq!(outputs(&mut it), [Output::Prepare { epoch: Epoch(5) }]);
    it.handle_prepared(ms(11), Epoch(5), Ok(()));
    assert_eq!(outputs(&mut it), [Output::Announce { epoch: Epoch(5) }]);
    it
}

/// A coordinator that is publishing epoch 5.
fn publishing() -> Coordinator {
    let mut it = announced();
    it.handle_cut(ms(12), P0, Epoch(5), 700);
    it.handle_cut(ms(12), P1, Epoch(5), 900);
    it.handle_stored(
        ms(13),
        P0,
        Epoch(5),
        part(vec![file(1), file(0)], &[link(P1, 10, 4)]),
    );
    assert_eq!(outputs(&mut it), []);
    it.handle_stored(
        ms(14),
        P1,
        Epoch(5),
        part(vec![file(2)], &[link(P0, 4, 10)]),
    );
    let told = outputs(&mut it);
    let [Output::Publish(collected)] = &told[..] else {
        panic!("expected a publishing, got {told:?}");
    };
    assert_eq!(collected.files, [file(0), file(1), file(2)]);
    assert_eq!(collected.stall_us, 900);
    it
}

fn aborted(it: &mut Coordinator) -> (String, bool) {
    let abort = outputs(it)
        .into_iter()
        .find_map(|output| match output {
            Output::Abort { reason, remove, .. } => Some((reason, remove)),
            _ => None,
        })
        .expect("the snapshot is not aborted");
    assert_eq!(it.status().phase, Phase::Idle);
    abort
}

#[test]
fn a_snapshot_starts_when_its_time_has_come_and_not_before() {
    let mut it = coordinator();
    assert_eq!(it.poll_timeout(), Some(ms(1000)));
    it.handle_timeout(ms(999));
    assert_eq!(outputs(&mut it), []);
    it.handle_timeout(ms(1000));
    assert_eq!(outputs(&mut it), [Output::Prepare { epoch: Epoch(5) }]);
}

#[test]
fn an_interval_that_changes_counts_from_the_last_start() {
    let mut it = coordinator();
    it.handle_every(ms(100), Some(ms(400)));
    assert_eq!(it.poll_timeout(), Some(ms(400)));
    it.handle_every(ms(600), Some(ms(500)));
    assert_eq!(it.poll_timeout(), Some(ms(600)), "never in the past");
    it.handle_every(ms(600), None);
    assert_eq!(it.poll_timeout(), None);

    let mut it = publishing();
    it.handle_every(ms(15), Some(ms(300)));
    it.handle_published(ms(20), Epoch(5), Published::Done);
    assert_eq!(it.poll_timeout(), Some(ms(310)));
    it.handle_every(ms(21), Some(ms(700)));
    assert_eq!(it.poll_timeout(), Some(ms(710)));
}

#[test]
fn nobody_hears_of_an_epoch_before_its_number_is_durable() {
    let mut it = coordinator();
    it.handle_request(ms(0), RequestId(1));
    outputs(&mut it);
    it.handle_prepared(ms(0), Epoch(5), Err("no space left".to_owned()));
    let told = outputs(&mut it);
    assert!(
        !told
            .iter()
            .any(|output| matches!(output, Output::Announce { .. }))
    );
    assert!(matches!(
        &told[0],
        Output::Answer {
            outcome: Err(_),
            ..
        }
    ));
}

#[test]
fn a_checkpoint_is_published_when_all_have_stored_and_committed_when_it_is_durable() {
    let mut it = publishing();
    assert_eq!(it.committed(), Some(Epoch(3)));
    it.handle_published(ms(20), Epoch(5), Published::Done);
    assert_eq!(
        outputs(&mut it),
        [
            Output::Commit { epoch: Epoch(5) },
            Output::Answer {
                request: RequestId(1),
                outcome: Ok(Epoch(5))
            }
        ]
    );
    assert_eq!(it.committed(), Some(Epoch(5)));
    assert_eq!(
        it.poll_timeout(),
        Some(ms(1010)),
        "an interval after its start"
    );
}

#[test]
fn a_link_whose_ends_count_differently_is_never_committed() {
    let mut it = announced();
    it.handle_stored(
        ms(13),
        P0,
        Epoch(5),
        part(vec![file(0), file(1)], &[link(P1, 10, 4)]),
    );
    it.handle_stored(ms(14), P1, Epoch(5), part(vec![file(2)], &[link(P0, 4, 9)]));
    let (reason, _) = aborted(&mut it);
    assert!(
        reason.contains("from process 0 to process 1") && reason.contains("10"),
        "{reason}"
    );
}

#[test]
fn a_link_that_only_one_end_knows_counts_as_zero_at_the_other() {
    let mut it = announced();
    it.handle_stored(ms(13), P0, Epoch(5), part(vec![file(0), file(1)], &[]));
    it.handle_stored(ms(14), P1, Epoch(5), part(vec![file(2)], &[link(P0, 0, 0)]));
    assert!(matches!(outputs(&mut it)[..], [Output::Publish(_)]));

    let mut it = announced();
    it.handle_stored(ms(13), P0, Epoch(5), part(vec![file(0), file(1)], &[]));
    it.handle_stored(ms(14), P1, Epoch(5), part(vec![file(2)], &[link(P0, 1, 0)]));
    aborted(&mut it);
}

#[test]
fn a_rank_without_a_file_or_with_a_strangers_file_aborts_the_snapshot() {
    for files in [
        vec![file(0)],
        vec![file(0), file(1), file(2)],
        vec![file(0), file(1), file(1)],
        vec![file(0), file(1), file(77)],
    ] {
        let mut it = announced();
        it.handle_stored(ms(13), P0, Epoch(5), part(files, &[]));
        aborted(&mut it);
    }
}

#[test]
fn a_process_that_can_not_store_aborts_the_snapshot_and_the_next_has_a_new_number() {
    let mut it = announced();
    it.handle_failed(ms(13), P1, Epoch(5), "no space left on device");
    let (reason, remove) = aborted(&mut it);
    assert_eq!(reason, "process 1: no space left on device");
    assert!(remove);
    it.handle_request(ms(20), RequestId(2));
    assert_eq!(outputs(&mut it), [Output::Prepare { epoch: Epoch(6) }]);
}

#[test]
fn words_about_another_epoch_change_nothing() {
    let mut it = announced();
    it.handle_failed(ms(13), P1, Epoch(4), "late");
    it.handle_stored(ms(13), P1, Epoch(4), part(vec![file(2)], &[]));
    it.handle_stored(ms(13), P1, Epoch(6), part(vec![file(2)], &[]));
    it.handle_published(ms(13), Epoch(5), Published::Done);
    it.handle_prepared(ms(13), Epoch(5), Ok(()));
    assert_eq!(outputs(&mut it), []);
    assert_eq!(it.status().not_cut, [P0, P1]);
}

#[test]
fn a_long_computation_keeps_the_snapshot_waiting_and_is_named_but_never_aborts_it() {
    let mut it = announced();
    it.handle_cut(ms(12), P0, Epoch(5), 1);
    for _ in 0..100 {
        let at = it.poll_timeout().unwrap();
        it.handle_timeout(at);
        assert_eq!(
            outputs(&mut it),
            [Output::Waiting {
                epoch: Epoch(5),
                processes: vec![P1]
            }]
        );
    }
    assert_eq!(it.status().not_cut, [P1]);
}

#[test]
fn a_store_that_hangs_aborts_the_snapshot_once_all_have_cut() {
    let mut it = announced();
    it.handle_cut(ms(12), P0, Epoch(5), 1);
    it.handle_cut(ms(100), P1, Epoch(5), 1);
    assert_eq!(it.poll_timeout(), Some(ms(60_100)));
    it.handle_stored(ms(200), P1, Epoch(5), part(vec![file(2)], &[]));
    it.handle_timeout(ms(60_100));
    let (reason, _) = aborted(&mut it);
    assert_eq!(reason, "not stored in time by process 0");
}

#[test]
fn after_the_rename_was_tried_a_lost_process_aborts_nothing() {
    let mut it = publishing();
    it.handle_lost(ms(15), "process 0 was ended by signal 9");
    assert_eq!(outputs(&mut it), []);
    assert!(!it.is_settled());
    it.handle_published(ms(16), Epoch(5), Published::Done);
    assert!(matches!(outputs(&mut it)[0], Output::Commit { .. }));
    assert!(it.is_settled());
    it.handle_timeout(ms(5000));
    assert_eq!(outputs(&mut it), [], "nothing new is started after a loss");
}

#[test]
fn an_unknown_outcome_is_resolved_by_the_store_alone() {
    let mut it = publishing();
    it.handle_published(ms(20), Epoch(5), Published::Unknown("EIO".to_owned()));
    assert_eq!(outputs(&mut it), [Output::Resolve { epoch: Epoch(5) }]);
    it.handle_resolved(ms(21), Epoch(5), Resolution::Unreadable("EIO".to_owned()));
    assert_eq!(outputs(&mut it), []);
    let again = it.poll_timeout().unwrap();
    it.handle_timeout(again);
    assert_eq!(outputs(&mut it), [Output::Resolve { epoch: Epoch(5) }]);
    it.handle_resolved(again, Epoch(5), Resolution::Present);
    assert!(matches!(outputs(&mut it)[0], Output::Commit { .. }));
}

#[test]
fn a_manifest_that_is_not_there_after_its_rename_leaves_the_files_alone() {
    let mut it = publishing();
    it.handle_published(ms(20), Epoch(5), Published::Unknown("EIO".to_owned()));
    it.handle_resolved(ms(21), Epoch(5), Resolution::Absent);
    let (_, remove) = aborted(&mut it);
    assert!(!remove);
}

#[test]
fn a_manifest_that_was_never_renamed_aborts_like_any_failure() {
    let mut it = publishing();
    it.handle_published(ms(20), Epoch(5), Published::NotTried("ENOSPC".to_owned()));
    let (_, remove) = aborted(&mut it);
    assert!(remove);
}

#[test]
fn what_processes_need_and_felt_is_gathered_for_the_manifest() {
    let mut it = announced();
    it.handle_cut(ms(12), P0, Epoch(5), 700);
    it.handle_cut(ms(12), P1, Epoch(5), 900);
    let first = Part {
        needs: vec![need(1, 3), need(0, 3), need(0, 2)],
        felt: Felt {
            faults: 2,
            waited_us: 500,
            longest_us: 300,
        },
        ..part(vec![file(0), file(1)], &[])
    };
    let second = Part {
        needs: vec![need(2, 2)],
        felt: Felt {
            faults: 1,
            waited_us: 200,
            longest_us: 200,
        },
        ..part(vec![file(2)], &[])
    };
    it.handle_stored(ms(13), P1, Epoch(5), second);
    it.handle_stored(ms(13), P0, Epoch(5), first);
    let told = outputs(&mut it);
    let [Output::Publish(collected)] = &told[..] else {
        panic!("expected a publishing, got {told:?}");
    };
    assert_eq!(
        collected.needs,
        [need(0, 2), need(0, 3), need(1, 3), need(2, 2)]
    );
    let felt = Felt {
        faults: 3,
        waited_us: 700,
        longest_us: 300,
    };
    assert_eq!(collected.felt, felt);
    assert_eq!(
        collected.held_up_us, 1200,
        "the process that was held up longest, not the longest of each"
    );
}

#[test]
fn a_process_builds_on_earlier_files_of_its_own_ranks_only() {
    for (needs, words) in [
        (vec![need(2, 3)], "process 0 needs a file of rank 2, which"),
        (vec![need(77, 3)], "process 0 needs a file of rank 77"),
        (
            vec![need(0, 5)],
            "of rank 0 of epoch 5, which is not before",
        ),
        (
            vec![need(0, 0)],
            "of rank 0 of epoch 0, which is not before",
        ),
        (vec![need(1, 3), need(1, 3)], "needs two files of rank 1"),
    ] {
        let mut it = announced();
        let part = Part {
            needs,
            ..part(vec![file(0), file(1)], &[])
        };
        it.handle_stored(ms(13), P0, Epoch(5), part);
        let (reason, remove) = aborted(&mut it);
        assert!(reason.contains(words) && remove, "{reason}");
    }
}

#[test]
fn when_the_base_is_gone_processes_forget_it_and_the_next_snapshot_comes_at_once_but_not_for_ever()
{
    let mut it = publishing();
    let gone = || Published::BaseGone("rank 0 of epoch 3 is gone".to_owned());
    it.handle_published(ms(20), Epoch(5), gone());
    let told = outputs(&mut it);
    let [
        Output::Abort {
            remove: true,
            rebase: true,
            reason,
            ..
        },
        Output::Prepare { epoch: Epoch(6) },
    ] = &told[..]
    else {
        panic!("expected an abort and the next snapshot, which answers the request, got {told:?}");
    };
    assert_eq!(reason, "rank 0 of epoch 3 is gone");
    it.handle_prepared(ms(21), Epoch(6), Ok(()));
    it.handle_stored(ms(22), P0, Epoch(6), part(vec![file(0), file(1)], &[]));
    it.handle_stored(ms(22), P1, Epoch(6), part(vec![file(2)], &[]));
    outputs(&mut it);
    it.handle_published(ms(30), Epoch(6), gone());
    let told = outputs(&mut it);
    assert!(matches!(
        told[..],
        [
            Output::Answer {
                request: RequestId(1),
                outcome: Err(_)
            },
            Output::Abort { rebase: true, .. }
        ]
    ));
    assert_eq!(it.poll_timeout(), Some(ms(1030)), "after an interval");
}

#[test]
fn a_process_that_can_not_read_what_it_builds_on_has_all_forget_it() {
    let mut it = announced();
    it.handle_base_failed(ms(12), P1, Epoch(4), "late");
    assert_eq!(outputs(&mut it), []);
    it.handle_base_failed(
        ms(13),
        P1,
        Epoch(5),
        "chunk 3 of rank 2 of epoch 3 is damaged",
    );
    let told = outputs(&mut it);
    let [
        Output::Abort {
            rebase: true,
            reason,
            ..
        },
        Output::Prepare { epoch: Epoch(6) },
    ] = &told[..]
    else {
        panic!("expected an abort and the next snapshot, got {told:?}");
    };
    assert_eq!(reason, "process 1: chunk 3 of rank 2 of epoch 3 is damaged");
}

#[test]
fn an_abort_for_another_reason_leaves_the_base_as_it_is() {
    let mut it = announced();
    it.handle_failed(ms(13), P1, Epoch(5), "no space left on device");
    let rebases = outputs(&mut it)
        .into_iter()
        .filter(|output| matches!(output, Output::Abort { rebase: true, .. }));
    assert_eq!(rebases.count(), 0);
}

#[test]
fn a_loss_while_collecting_aborts_and_answers_everybody() {
    let mut it = announced();
    it.handle_request(ms(12), RequestId(2));
    it.handle_lost(ms(13), "process 1 was ended by signal 9");
    let answered: Vec<RequestId> = outputs(&mut it)
        .into_iter()
        .filter_map(|output| match output {
            Output::Answer {
                request,
                outcome: Err(_),
            } => Some(request),
            _ => None,
        })
        .collect();
    assert_eq!(answered, [RequestId(1), RequestId(2)]);
    assert!(it.is_settled());
}

#[test]
fn a_request_after_the_announcement_gets_a_snapshot_of_its_own() {
    let mut it = publishing();
    it.handle_request(ms(15), RequestId(2));
    it.handle_published(ms(20), Epoch(5), Published::Done);
    let told = outputs(&mut it);
    assert_eq!(told.last(), Some(&Output::Prepare { epoch: Epoch(6) }));
    assert!(!told.contains(&Output::Answer {
        request: RequestId(2),
        outcome: Ok(Epoch(5))
    }));
}

#[test]
fn the_job_ends_when_all_ranks_have_finished_and_no_snapshot_is_open() {
    let mut it = coordinator();
    for rank in [2, 0, 0] {
        it.handle_rank_finished(ms(1), Rank(rank));
        assert_eq!(outputs(&mut it), []);
    }
    it.handle_rank_finished(ms(1), Rank(1));
    assert_eq!(outputs(&mut it), [Output::End]);
    assert_eq!(it.poll_timeout(), None);
}

#[test]
fn the_end_of_the_job_waits_for_a_publishing_and_drops_a_snapshot_that_is_not_stored() {
    let mut it = publishing();
    for rank in 0..3 {
        it.handle_rank_finished(ms(15), Rank(rank));
    }
    assert_eq!(outputs(&mut it), []);
    it.handle_published(ms(16), Epoch(5), Published::Done);
    assert_eq!(outputs(&mut it).last(), Some(&Output::End));

    let mut it = announced();
    for rank in 0..3 {
        it.handle_rank_finished(ms(15), Rank(rank));
    }
    let told = outputs(&mut it);
    assert!(
        told.iter()
            .any(|output| matches!(output, Output::Abort { .. }))
    );
    assert_eq!(told.last(), Some(&Output::End));
}

#[test]
fn termination_takes_a_last_checkpoint_and_stops() {
    let mut it = coordinator();
    it.handle_termination(ms(5));
    assert_eq!(outputs(&mut it), [Output::Prepare { epoch: Epoch(5) }]);
    it.handle_prepared(ms(5), Epoch(5), Ok(()));
    it.handle_stored(ms(6), P0, Epoch(5), part(vec![file(0), file(1)], &[]));
    it.handle_stored(ms(6), P1, Epoch(5), part(vec![file(2)], &[]));
    it.handle_published(ms(7), Epoch(5), Published::Done);
    assert_eq!(
        outputs(&mut it).last(),
        Some(&Output::Stop {
            last: Last::Committed(Epoch(5))
        })
    );
}

#[test]
fn a_snapshot_under_way_serves_as_the_last_and_one_more_is_tried_if_it_fails() {
    let mut it = announced();
    it.handle_termination(ms(12));
    assert_eq!(outputs(&mut it), []);
    it.handle_failed(ms(13), P0, Epoch(5), "EIO");
    assert_eq!(
        outputs(&mut it).last(),
        Some(&Output::Prepare { epoch: Epoch(6) })
    );
    it.handle_prepared(ms(13), Epoch(6), Ok(()));
    it.handle_failed(ms(14), P0, Epoch(6), "EIO");
    assert_eq!(
        outputs(&mut it).last(),
        Some(&Output::Stop {
            last: Last::Failed("process 0: EIO".to_owned())
        })
    );
}

#[test]
fn a_job_that_completes_while_it_is_being_stopped_is_complete() {
    let mut it = coordinator();
    it.handle_termination(ms(5));
    it.handle_prepared(ms(5), Epoch(5), Ok(()));
    for rank in 0..3 {
        it.handle_rank_finished(ms(6), Rank(rank));
    }
    assert_eq!(outputs(&mut it).last(), Some(&Output::End));
}
