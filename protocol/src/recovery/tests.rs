mod lost;

use std::time::Duration;

use super::*;
use crate::control::exit;
use crate::ids::{Epoch, Process, Rank};

const KILLED: Exit = Exit::Signal(9);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn config() -> Config {
    Config {
        proof: Proof::Child,
        not_before: ms(0),
        max_restarts: 2,
        ping_every: ms(100),
        heartbeat_timeout: ms(500),
        start_timeout: ms(1000),
        stop_grace: ms(300),
    }
}

/// Everything the machine wants done, in order.
fn outputs(job: &mut Recovery) -> Vec<Output> {
    std::iter::from_fn(|| job.poll_output()).collect()
}

/// A job whose two processes run, started from what `choice` says.
fn running(choice: Choice) -> Recovery {
    let mut job = Recovery::new(config(), ms(0));
    assert_eq!(outputs(&mut job), [Output::Choose]);
    bring_up(&mut job, choice, ms(0));
    job
}

fn bring_up(job: &mut Recovery, choice: Choice, now: Duration) {
    job.handle_chosen(choice);
    assert!(matches!(outputs(job)[..], [Output::Start { .. }]));
    job.handle_started(now, 2);
    for process in [Process(0), Process(1)] {
        job.handle_connected(now, process);
        assert_eq!(outputs(job), []);
        job.handle_ready(now, process);
    }
    assert_eq!(outputs(job), [Output::Go]);
    assert_eq!(job.phase(), Phase::Running);
}

/// Ends both processes and settles the snapshot side.
fn clear_away(job: &mut Recovery) {
    job.handle_exited(Process(0), KILLED);
    job.handle_exited(Process(1), KILLED);
    job.handle_settled();
}

fn has_kill(outputs: &[Output]) -> bool {
    outputs.contains(&Output::Kill)
}

fn ended(job: &mut Recovery) -> End {
    match outputs(job).pop() {
        Some(Output::Ended(end)) => end,
        other => panic!("the job has not ended, the last output is {other:?}"),
    }
}

#[test]
fn a_fresh_job_starts_from_the_beginning_and_goes_when_all_are_ready() {
    let job = running(Choice::Beginning);
    assert_eq!(job.from(), None);
    assert_eq!(job.restarts(), 0);
}

#[test]
fn a_killed_process_brings_a_restart_from_the_newest_checkpoint() {
    let mut job = running(Choice::Beginning);
    job.handle_exited(Process(1), KILLED);
    assert_eq!(
        outputs(&mut job),
        [
            Output::Lost {
                process: Process(1),
                loss: Loss::Exited(KILLED)
            },
            Output::Kill,
            Output::Close {
                reason: "process 1 was ended by signal 9".to_owned()
            },
        ]
    );
    job.handle_exited(Process(0), KILLED);
    assert_eq!(outputs(&mut job), [], "a snapshot may still be undecided");
    job.handle_settled();
    assert_eq!(outputs(&mut job), [Output::Choose]);
    bring_up(&mut job, Choice::Checkpoint(Epoch(7)), ms(10));
    assert_eq!(job.from(), Some(Epoch(7)));
    assert_eq!(job.restarts(), 1);
}

#[test]
fn nothing_starts_while_a_process_of_the_old_start_lives() {
    let mut job = running(Choice::Beginning);
    job.handle_exited(Process(1), KILLED);
    job.handle_settled();
    assert!(has_kill(&outputs(&mut job)));
    assert_eq!(job.phase(), Phase::Clearing);
    job.handle_exited(Process(0), KILLED);
    assert_eq!(outputs(&mut job), [Output::Choose]);
}

#[test]
fn a_process_that_answers_no_ping_is_lost_after_the_heartbeat_timeout() {
    let mut job = running(Choice::Beginning);
    for tick in 1..5 {
        let now = ms(tick * 100);
        assert_eq!(job.poll_timeout(), Some(now));
        job.handle_timeout(now);
        assert_eq!(outputs(&mut job), [Output::Ping]);
        job.handle_heard(now, Process(0));
    }
    job.handle_timeout(ms(500));
    let told = outputs(&mut job);
    assert!(has_kill(&told));
    assert!(told.contains(&Output::Lost {
        process: Process(1),
        loss: Loss::Silent(ms(500))
    }));
}

#[test]
fn a_coordinator_that_was_itself_held_up_blames_nobody() {
    let mut job = running(Choice::Beginning);
    job.handle_timeout(ms(100));
    job.handle_timeout(ms(60_000));
    assert!(!has_kill(&outputs(&mut job)));
    assert_eq!(job.phase(), Phase::Running);
    job.handle_timeout(ms(60_200));
    job.handle_timeout(ms(60_400));
    job.handle_timeout(ms(60_500));
    assert!(has_kill(&outputs(&mut job)), "from then on silence counts");
}

#[test]
fn a_closed_connection_is_a_loss_unless_the_end_of_the_process_tells_more() {
    let mut job = running(Choice::Beginning);
    job.handle_disconnected(ms(10), Process(0));
    assert_eq!(outputs(&mut job), []);
    let deadline = job.poll_timeout().unwrap();
    for tick in 1..=6 {
        job.handle_heard(ms(tick * 100), Process(1));
        job.handle_timeout(ms(tick * 100));
    }
    assert!(deadline <= ms(600));
    assert!(outputs(&mut job).contains(&Output::Lost {
        process: Process(0),
        loss: Loss::Disconnected
    }));

    let mut job = running(Choice::Beginning);
    job.handle_disconnected(ms(10), Process(0));
    job.handle_exited(Process(0), Exit::Signal(11));
    assert!(outputs(&mut job).contains(&Output::Lost {
        process: Process(0),
        loss: Loss::Exited(Exit::Signal(11))
    }));
}

#[test]
fn the_job_ends_when_it_fails_once_more_than_allowed_without_a_checkpoint() {
    let mut job = running(Choice::Beginning);
    for _ in 0..2 {
        job.handle_exited(Process(0), KILLED);
        clear_away(&mut job);
        assert_eq!(outputs(&mut job).pop(), Some(Output::Choose));
        bring_up(&mut job, Choice::Beginning, ms(0));
    }
    job.handle_exited(Process(0), KILLED);
    clear_away(&mut job);
    assert_eq!(
        ended(&mut job),
        End::RestartsUsedUp {
            restarts: 2,
            last: "process 0 was ended by signal 9".to_owned()
        }
    );
}

#[test]
fn a_new_checkpoint_gives_the_whole_budget_of_restarts_back() {
    let mut job = running(Choice::Beginning);
    for _ in 0..20 {
        job.handle_committed();
        job.handle_exited(Process(0), KILLED);
        clear_away(&mut job);
        assert_eq!(outputs(&mut job).pop(), Some(Output::Choose));
        bring_up(&mut job, Choice::Checkpoint(Epoch(1)), ms(0));
    }
    assert_eq!(job.restarts(), 20);
}

#[test]
fn a_checkpoint_that_does_not_verify_is_marked_and_the_one_before_is_taken() {
    let mut job = Recovery::new(config(), ms(0));
    outputs(&mut job);
    job.handle_chosen(Choice::Checkpoint(Epoch(9)));
    job.handle_started(ms(0), 2);
    outputs(&mut job);
    job.handle_restore_failed(Process(1), "chunk 3: checksum differs");
    let told = outputs(&mut job);
    assert!(has_kill(&told));
    assert_eq!(told.last(), Some(&Output::Verify { epoch: Epoch(9) }));
    clear_away(&mut job);
    assert_eq!(
        outputs(&mut job),
        [],
        "the store has not said yet what is wrong"
    );
    job.handle_verified(Err("chunk 3: checksum differs".to_owned()));
    assert_eq!(
        outputs(&mut job),
        [
            Output::MarkBad {
                epoch: Epoch(9),
                reason: "chunk 3: checksum differs".to_owned()
            },
            Output::Choose
        ]
    );
    bring_up(&mut job, Choice::Checkpoint(Epoch(8)), ms(5));
}

#[test]
fn a_sound_checkpoint_is_never_marked_for_a_restore_that_failed_otherwise() {
    let mut job = Recovery::new(config(), ms(0));
    for attempt in 0..3 {
        assert_eq!(outputs(&mut job).pop(), Some(Output::Choose));
        job.handle_chosen(Choice::Checkpoint(Epoch(9)));
        job.handle_started(ms(0), 2);
        job.handle_restore_failed(Process(1), "no memory");
        outputs(&mut job);
        job.handle_verified(Ok(()));
        clear_away(&mut job);
        if attempt == 2 {
            assert!(matches!(ended(&mut job), End::RestartsUsedUp { .. }));
        }
    }
}

#[test]
fn all_checkpoints_bad_is_an_end_and_never_a_silent_start_from_zero() {
    let mut job = Recovery::new(config(), ms(0));
    outputs(&mut job);
    job.handle_chosen(Choice::Nothing("epoch 1 is marked bad".to_owned()));
    assert!(matches!(ended(&mut job), End::NoCheckpoint { .. }));
}

#[test]
fn a_failing_rank_ends_the_job_with_its_code() {
    let mut job = running(Choice::Beginning);
    job.handle_rank_failed(Process(1), Rank(3), 12, "diverged".to_owned());
    job.handle_exited(Process(1), Exit::Code(12));
    job.handle_exited(Process(0), KILLED);
    job.handle_settled();
    assert_eq!(
        ended(&mut job),
        End::SolverFailed {
            process: Process(1),
            rank: Some(Rank(3)),
            code: 12,
            message: "diverged".to_owned()
        }
    );
}

#[test]
fn a_solver_that_calls_exit_ends_the_job_with_that_code() {
    let mut job = running(Choice::Beginning);
    job.handle_exited(Process(0), Exit::Code(3));
    clear_away(&mut job);
    assert!(matches!(
        ended(&mut job),
        End::SolverFailed {
            code: 3,
            rank: None,
            ..
        }
    ));
}

#[test]
fn exit_code_zero_before_the_end_is_no_success() {
    let mut job = running(Choice::Beginning);
    job.handle_exited(Process(0), Exit::Code(0));
    clear_away(&mut job);
    assert!(matches!(ended(&mut job), End::Broken { .. }));
}

#[test]
fn a_process_that_believes_its_coordinator_lost_is_restarted() {
    let mut job = running(Choice::Beginning);
    job.handle_exited(Process(0), Exit::Code(exit::STOPPED));
    clear_away(&mut job);
    assert_eq!(outputs(&mut job).pop(), Some(Output::Choose));
}

#[test]
fn a_program_without_the_library_is_an_end_with_advice() {
    for silent in [false, true] {
        let mut job = Recovery::new(config(), ms(0));
        job.handle_chosen(Choice::Beginning);
        job.handle_started(ms(0), 2);
        outputs(&mut job);
        if silent {
            for tick in 1..=10 {
                job.handle_timeout(ms(tick * 100));
            }
        } else {
            job.handle_exited(Process(0), Exit::Code(0));
        }
        clear_away(&mut job);
        let End::CannotStart { reason } = ended(&mut job) else {
            panic!("the job did not end as one that can't start");
        };
        assert!(reason.contains("#[libckpt::main]"), "{reason}");
    }
}

#[test]
fn a_failed_start_waits_for_those_that_were_started() {
    let mut job = Recovery::new(config(), ms(0));
    job.handle_chosen(Choice::Beginning);
    outputs(&mut job);
    let end = End::CannotStart {
        reason: "no such file".to_owned(),
    };
    job.handle_start_failed(ms(0), 1, end.clone());
    assert!(has_kill(&outputs(&mut job)));
    job.handle_settled();
    assert_eq!(outputs(&mut job), []);
    job.handle_exited(Process(0), KILLED);
    assert_eq!(ended(&mut job), end);
}

#[test]
fn a_complete_job_ends_once_its_processes_have() {
    let mut job = running(Choice::Beginning);
    job.handle_complete(ms(50));
    assert_eq!(outputs(&mut job), [Output::End]);
    job.handle_exited(Process(0), Exit::Code(0));
    assert_eq!(outputs(&mut job), []);
    job.handle_exited(Process(1), Exit::Code(0));
    assert_eq!(ended(&mut job), End::Complete);
}

#[test]
fn a_process_killed_after_the_end_was_announced_spoils_nothing() {
    let mut job = running(Choice::Beginning);
    job.handle_complete(ms(50));
    job.handle_exited(Process(0), KILLED);
    job.handle_exited(Process(1), Exit::Code(0));
    assert_eq!(ended(&mut job), End::Complete);
}

#[test]
fn a_process_that_does_not_end_when_told_is_killed_after_the_grace() {
    let mut job = running(Choice::Beginning);
    job.handle_complete(ms(50));
    outputs(&mut job);
    assert_eq!(job.poll_timeout(), Some(ms(350)));
    job.handle_timeout(ms(350));
    assert!(has_kill(&outputs(&mut job)));
    clear_away(&mut job);
    assert_eq!(ended(&mut job), End::Complete);
}

#[test]
fn a_stop_takes_a_last_snapshot_and_then_stops_everybody() {
    let mut job = running(Choice::Beginning);
    job.handle_termination();
    assert_eq!(outputs(&mut job), [Output::LastSnapshot]);
    job.handle_last_snapshot(ms(80), None);
    assert_eq!(outputs(&mut job), [Output::Stop]);
    job.handle_exited(Process(0), Exit::Code(exit::STOPPED));
    job.handle_exited(Process(1), Exit::Code(exit::STOPPED));
    assert_eq!(ended(&mut job), End::Stopped { without_last: None });
}

#[test]
fn a_second_stop_kills_at_once() {
    let mut job = running(Choice::Beginning);
    job.handle_termination();
    outputs(&mut job);
    job.handle_termination();
    assert!(has_kill(&outputs(&mut job)));
    clear_away(&mut job);
    assert!(matches!(ended(&mut job), End::Stopped { .. }));
}

#[test]
fn a_process_lost_during_the_last_snapshot_is_not_started_again() {
    let mut job = running(Choice::Beginning);
    job.handle_termination();
    job.handle_exited(Process(0), KILLED);
    clear_away(&mut job);
    assert!(matches!(
        ended(&mut job),
        End::Stopped {
            without_last: Some(_)
        }
    ));
}

#[test]
fn a_stop_while_processes_start_or_are_cleared_away_is_a_stop() {
    let mut starting = Recovery::new(config(), ms(0));
    starting.handle_chosen(Choice::Beginning);
    starting.handle_termination();
    starting.handle_started(ms(0), 2);
    clear_away(&mut starting);
    assert!(matches!(ended(&mut starting), End::Stopped { .. }));

    let mut clearing = running(Choice::Beginning);
    clearing.handle_exited(Process(0), KILLED);
    clearing.handle_termination();
    clear_away(&mut clearing);
    assert!(matches!(ended(&mut clearing), End::Stopped { .. }));
}

#[test]
fn a_coordinator_that_was_replaced_starts_nothing_more_whatever_it_was_doing() {
    let superseded = |job: &mut Recovery| {
        job.handle_superseded("another start is newer");
        clear_away(job);
        assert!(matches!(ended(job), End::Superseded { .. }));
    };
    superseded(&mut running(Choice::Beginning));
    superseded(&mut Recovery::new(config(), ms(0)));
    let mut clearing = running(Choice::Beginning);
    clearing.handle_exited(Process(0), KILLED);
    superseded(&mut clearing);
}

#[test]
fn nothing_is_started_before_leases_of_an_earlier_coordinator_are_over() {
    let config = Config {
        not_before: ms(700),
        ..config()
    };
    let mut job = Recovery::new(config, ms(0));
    outputs(&mut job);
    job.handle_chosen(Choice::Checkpoint(Epoch(3)));
    assert_eq!(outputs(&mut job), []);
    assert_eq!(job.poll_timeout(), Some(ms(700)));
    job.handle_timeout(ms(699));
    assert_eq!(outputs(&mut job), []);
    job.handle_timeout(ms(700));
    assert_eq!(
        outputs(&mut job),
        [Output::Start {
            from: Some(Epoch(3))
        }]
    );
}

/// The rules where processes run elsewhere, started by a launcher.
fn leased() -> Config {
    Config {
        proof: Proof::Lease {
            length: ms(500),
            margin: ms(50),
        },
        ..config()
    }
}

/// A job whose processes run elsewhere.
fn elsewhere() -> Recovery {
    let mut job = Recovery::new(leased(), ms(0));
    outputs(&mut job);
    bring_up(&mut job, Choice::Beginning, ms(0));
    job
}

#[test]
fn a_process_that_is_cut_off_is_waited_for_until_its_lease_and_the_margin_are_over() {
    let mut job = elsewhere();
    for tick in 1..=5 {
        job.handle_timeout(ms(tick * 100));
        if tick < 5 {
            job.handle_alive(ms(tick * 100), Process(0), tick);
        }
    }
    assert!(
        has_kill(&outputs(&mut job)),
        "process 1 was last heard at 0"
    );
    job.handle_disconnected(ms(510), Process(0));
    job.handle_launcher_exited("mpirun exited with code 137");
    job.handle_settled();
    assert_eq!(job.poll_timeout(), Some(ms(550)));
    job.handle_timeout(ms(549));
    assert_eq!(outputs(&mut job), []);
    job.handle_timeout(ms(550));
    assert_eq!(outputs(&mut job), [Output::Choose]);
    let fates: Vec<Fate> = job.fates().collect();
    assert_eq!(fates, [Fate::Ended(ms(510)), Fate::Silent]);
}

#[test]
fn a_connection_that_breaks_loses_the_process_at_once_but_does_not_prove_its_end() {
    let mut job = elsewhere();
    job.handle_timeout(ms(100));
    job.handle_alive(ms(100), Process(1), 1);
    job.handle_unreachable(Process(1), "connection timed out");
    outputs(&mut job);
    job.handle_timeout(ms(101));
    let told = outputs(&mut job);
    assert!(told.contains(&Output::Lost {
        process: Process(1),
        loss: Loss::Unreachable("connection timed out".to_owned())
    }));
    job.handle_disconnected(ms(110), Process(0));
    job.handle_launcher_exited("mpirun exited with code 1");
    job.handle_settled();
    assert_eq!(outputs(&mut job), []);
    assert_eq!(job.poll_timeout(), Some(ms(650)));
    job.handle_timeout(ms(650));
    assert_eq!(outputs(&mut job), [Output::Choose]);
}

#[test]
fn a_launcher_that_ends_before_all_have_connected_is_a_failure_told_with_its_words() {
    let mut job = Recovery::new(leased(), ms(0));
    job.handle_chosen(Choice::Beginning);
    job.handle_started(ms(0), 2);
    job.handle_connected(ms(10), Process(0));
    outputs(&mut job);
    job.handle_launcher_exited("mpirun exited with code 1; it said: no such node");
    assert!(has_kill(&outputs(&mut job)));
    job.handle_disconnected(ms(20), Process(0));
    job.handle_settled();
    let End::CannotStart { reason } = ended(&mut job) else {
        panic!("the job did not end as one that can't start");
    };
    assert!(
        reason.contains("process 1") && reason.contains("no such node"),
        "{reason}"
    );
}

#[test]
fn a_launcher_that_ends_after_all_have_connected_proves_nothing() {
    let mut job = elsewhere();
    job.handle_launcher_exited("mpirun exited with code 0");
    assert_eq!(outputs(&mut job), []);
    assert_eq!(job.phase(), Phase::Running);
    job.handle_complete(ms(50));
    job.handle_disconnected(ms(60), Process(0));
    job.handle_disconnected(ms(60), Process(1));
    assert_eq!(ended(&mut job), End::Complete);
}

#[test]
fn a_launcher_that_lives_is_waited_for_as_well() {
    let mut job = elsewhere();
    job.handle_complete(ms(50));
    job.handle_disconnected(ms(60), Process(0));
    job.handle_disconnected(ms(60), Process(1));
    outputs(&mut job);
    job.handle_timeout(ms(350));
    assert!(has_kill(&outputs(&mut job)), "the grace is over");
    job.handle_settled();
    job.handle_launcher_exited("mpirun was ended by signal 15");
    assert_eq!(ended(&mut job), End::Complete);
}

// ---- released processes -----------------------------------------------------------------------

#[test]
fn whatever_becomes_of_a_released_process_is_no_loss() {
    for exit in [Exit::Code(0), KILLED, Exit::Code(7)] {
        let mut job = running(Choice::Beginning);
        job.handle_released(Process(1));
        job.handle_disconnected(ms(10), Process(1));
        for now in [10, 100, 700] {
            job.handle_heard(ms(now), Process(0));
            job.handle_timeout(ms(now));
        }
        job.handle_exited(Process(1), exit);
        let told = outputs(&mut job);
        assert!(told.iter().all(|it| *it == Output::Ping), "{told:?}");
        assert_eq!(job.phase(), Phase::Running);
        // The others count as before.
        job.handle_exited(Process(0), KILLED);
        assert!(has_kill(&outputs(&mut job)));
        job.handle_settled();
        assert_eq!(outputs(&mut job), [Output::Choose]);
    }
}

#[test]
fn the_next_start_waits_for_a_released_process_that_lives() {
    let mut job = running(Choice::Beginning);
    job.handle_released(Process(1));
    job.handle_exited(Process(0), KILLED);
    assert!(has_kill(&outputs(&mut job)));
    job.handle_settled();
    assert_eq!(outputs(&mut job), [], "it lives");
    job.handle_exited(Process(1), KILLED);
    assert_eq!(outputs(&mut job), [Output::Choose]);
    // In the next start a process of that number is like the others.
    bring_up(&mut job, Choice::Beginning, ms(10));
    job.handle_exited(Process(1), KILLED);
    assert!(has_kill(&outputs(&mut job)));
}

#[test]
fn a_released_process_elsewhere_that_falls_silent_is_no_loss_but_its_lease_is_waited_for() {
    let mut job = elsewhere();
    outputs(&mut job);
    job.handle_released(Process(1));
    job.handle_unreachable(Process(1), "timed out");
    let length = ms(500);
    for now in [100, 300, 500, 700, 900] {
        job.handle_heard(ms(now), Process(0));
        job.handle_timeout(ms(now));
    }
    let told = outputs(&mut job);
    assert!(told.iter().all(|it| *it == Output::Ping), "{told:?}");
    assert_eq!(job.phase(), Phase::Running);
    let fates: Vec<Fate> = job.fates().collect();
    assert_eq!(fates, [Fate::There, Fate::Released]);
    assert!(length < ms(900));
    job.handle_disconnected(ms(910), Process(0));
    job.handle_timeout(ms(1100));
    assert!(has_kill(&outputs(&mut job)));
}
