//! Whole jobs: the real coordinator, real processes, real sockets and a real store. Only the solver is small.

mod common;

use std::time::Duration;

use common::bed::{Bed, Watcher, lives, signal};
use coord::Every;
use coord::client;
use coord::event::Event;
use coord::token::Token;
use nix::sys::signal::Signal;
use protocol::control::{Request, Response};
use protocol::interval::{Bounds, Ground};
use protocol::recovery::End;
use store::CheckpointState;
use wire::Address;

/// No test: what the tests here run as the processes of their jobs.
#[test]
fn process_of_the_job() {
    if std::env::var_os(protocol::control::environment::CONTROL).is_some() {
        common::process::run();
    }
}

fn is_committed(event: &Event) -> bool {
    matches!(event, Event::Committed(_))
}

#[test]
fn a_job_runs_to_its_end_and_leaves_its_newest_checkpoints() {
    let bed = Bed::new(3, 2, 200, "good");
    let mut watcher = Watcher::new();
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert_eq!(outcome.code(), 0);
    assert!(watcher.count(is_committed) >= 2);
    let listing = bed.store().list().unwrap();
    assert!(listing.usable().count() <= 2);
    assert_eq!(
        listing.newest_usable().map(|newest| newest.epoch),
        outcome.committed
    );
    assert!(bed.store().read_control().unwrap().is_none());
    assert!(watcher.pids.iter().all(|&pid| !lives(pid)));
}

#[test]
fn a_killed_process_costs_no_more_than_the_steps_since_the_newest_checkpoint() {
    let bed = Bed::new(3, 3, 300, "good");
    let mut committed = 0;
    let mut killed = false;
    let mut newest = None;
    let mut watcher = Watcher::acting(|event, pids| {
        if let Event::Committed(figures) = event {
            committed += 1;
            newest = Some(figures.epoch);
            if committed == 2 && !killed {
                killed = true;
                signal(pids[1], Signal::SIGKILL);
            }
        }
        if let Event::Restart { epoch, .. } = event {
            assert_eq!(*epoch, newest, "the restart is from the newest checkpoint");
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert_eq!(outcome.restarts, 1);
    assert!(watcher.told("was ended by signal 9"));
    for rank in 0..3 {
        let beginnings = bed.beginnings(rank);
        assert_eq!(beginnings.len(), 2);
        assert_eq!(beginnings[0], 0);
        assert!(beginnings[1] > 0, "a restart from zero");
    }
}

#[test]
fn two_processes_killed_at_once_make_one_restart() {
    let bed = Bed::new(4, 4, 200, "good");
    let mut killed = false;
    let mut watcher = Watcher::acting(|event, pids| {
        if is_committed(event) && !killed {
            killed = true;
            signal(pids[0], Signal::SIGKILL);
            signal(pids[3], Signal::SIGKILL);
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert_eq!(outcome.restarts, 1);
}

#[test]
fn a_process_killed_before_the_first_checkpoint_brings_the_job_back_to_its_beginning() {
    let mut bed = Bed::new(2, 2, 50, "good");
    bed.plan.every = Every::Off;
    let mut killed = false;
    let mut watcher = Watcher::acting(|event, pids| {
        if matches!(event, Event::Go { .. }) && !killed {
            killed = true;
            signal(pids[0], Signal::SIGKILL);
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert_eq!(watcher.starts(), [None, None]);
}

#[test]
fn a_process_that_is_stopped_is_lost_by_its_silence() {
    let mut bed = Bed::new(2, 2, 200, "good");
    bed.plan.heartbeat_timeout = Duration::from_millis(500);
    let mut stopped = false;
    let mut watcher = Watcher::acting(|event, pids| {
        if is_committed(event) && !stopped {
            stopped = true;
            signal(pids[1], Signal::SIGSTOP);
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert!(watcher.told("gave no sign of life"));
}

#[test]
fn a_process_whose_control_thread_hangs_is_lost() {
    let mut bed = Bed::new(2, 2, 2000, "mute");
    bed.plan.heartbeat_timeout = Duration::from_millis(500);
    bed.plan.every = Every::Off;
    let mut watcher = Watcher::new();
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert_eq!(outcome.restarts, 1);
}

#[test]
fn a_job_that_fails_again_and_again_is_given_up() {
    let mut bed = Bed::new(2, 2, 1000, "crash");
    bed.plan.every = Every::Off;
    bed.plan.max_restarts = 2;
    let mut watcher = Watcher::new();
    let outcome = bed.run(&mut watcher);
    assert!(matches!(
        outcome.end,
        End::RestartsUsedUp { restarts: 2, .. }
    ));
    assert_eq!(outcome.code(), 69);
    assert_eq!(watcher.starts().len(), 3);
}

#[test]
fn a_flipped_byte_costs_one_checkpoint_which_is_marked_and_the_one_before_is_used() {
    let bed = Bed::new(2, 2, 400, "good");
    let mut committed = 0;
    let store = bed.plan.store.clone();
    let mut watcher = Watcher::acting(|event, pids| {
        if let Event::Committed(figures) = event {
            committed += 1;
            if committed == 3 {
                let file = store.join(format!("epochs/{:06}/i0001-r00001.img", figures.epoch));
                let mut bytes = std::fs::read(&file).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
                std::fs::write(&file, bytes).unwrap();
                signal(pids[0], Signal::SIGKILL);
            }
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    let bad: Vec<u64> = watcher
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Bad { epoch, .. } => Some(*epoch),
            _ => None,
        })
        .collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(
        watcher.starts(),
        [None, Some(bad[0]), Some(bad[0] - 1)],
        "the newest, and when that is bad the one before"
    );
}

#[test]
fn checkpoints_hold_what_changed_and_need_the_files_before_them_which_retention_keeps() {
    let mut bed = Bed::new(3, 2, 500, "good");
    bed.plan.keep = 1;
    let mut killed = false;
    let mut watcher = Watcher::acting(|event, pids| {
        if let Event::Committed(figures) = event
            && figures.epoch >= 6
            && !killed
        {
            killed = true;
            signal(pids[1], Signal::SIGKILL);
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert_eq!(outcome.restarts, 1);
    let committed: Vec<_> = watcher
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Committed(figures) => Some(figures),
            _ => None,
        })
        .collect();
    let (first, later) = committed.split_first().unwrap();
    assert_eq!((first.needs, first.changed_bytes), (0, first.raw_bytes));
    for figures in later {
        // Of four pages of each rank one changes all the time, two now and then, one never.
        assert!(figures.needs >= 3, "{figures:?}");
        assert!(figures.changed_bytes < first.changed_bytes, "{figures:?}");
        assert_eq!(figures.raw_bytes, first.raw_bytes);
        assert_eq!((figures.faults, figures.waited_us), (4, 60));
        assert_eq!((figures.longest_us, figures.held_up_us), (20, 40));
    }
    // One checkpoint is left, with files of others.
    let store = bed.store();
    let listing = store.list().unwrap();
    assert_eq!(listing.usable().count(), 1);
    let newest = listing.newest_usable().unwrap();
    assert!(!newest.needs.is_empty());
    assert!(
        newest
            .parent
            .is_some_and(|parent| parent.epoch < newest.epoch)
    );
    assert!(
        store::job_store::verify_store(store.storage(), |_| {})
            .unwrap()
            .is_sound()
    );
}

#[test]
fn a_lost_file_aborts_what_builds_on_it_and_the_next_checkpoint_is_a_full_one() {
    let bed = Bed::new(2, 2, 500, "good");
    let store = bed.plan.store.clone();
    let mut lost = 0;
    let mut full = None;
    let mut watcher = Watcher::acting(|event, pids| match event {
        Event::Committed(figures) if figures.epoch == 3 => {
            lost = figures.epoch;
            // The page that never changes is in the first file.
            let file = store.join("epochs/000001/i0001-r00001.img");
            std::fs::remove_file(file).unwrap();
        }
        Event::Committed(figures) if lost > 0 && full.is_none() => {
            full = Some((figures.epoch, figures.needs));
            signal(pids[0], Signal::SIGKILL);
        }
        _ => {}
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    let rebased: Vec<(u64, &String)> = watcher
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Aborted {
                epoch,
                reason,
                rebase: true,
                ..
            } => Some((*epoch, reason)),
            _ => None,
        })
        .collect();
    assert_eq!(rebased.len(), 1, "{rebased:?}");
    let (aborted, reason) = rebased[0];
    assert_eq!(aborted, 4);
    assert!(reason.contains("i0001-r00001.img"), "{reason}");
    let restarted = watcher.starts();
    drop(watcher);
    assert_eq!(full, Some((5, 0)));
    assert_eq!(restarted, [None, Some(5)]);
}

#[test]
fn a_process_that_can_not_read_what_it_builds_on_gets_a_full_checkpoint_next() {
    let bed = Bed::new(2, 2, 300, "bad-base");
    let mut watcher = Watcher::new();
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert!(watcher.told("process 1: a chunk of epoch 1 is damaged"));
    let needs: Vec<(u64, u64)> = watcher
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Committed(figures) => Some((figures.epoch, figures.needs)),
            _ => None,
        })
        .take(4)
        .collect();
    assert_eq!(needs[..3], [(1, 0), (2, 2), (4, 0)]);
    assert!(needs[3].1 >= 2);
}

#[test]
fn an_interval_that_is_chosen_follows_what_checkpoints_cost() {
    let mut bed = Bed::new(2, 2, 400, "good");
    let ms = Duration::from_millis;
    bed.plan.every = Every::Auto(Bounds {
        min: ms(20),
        max: ms(50),
    });
    let mut committed = 0;
    let mut watcher = Watcher::acting(|event, pids| {
        committed += u32::from(is_committed(event));
        if is_committed(event) && committed == 3 {
            signal(pids[0], Signal::SIGKILL);
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    let intervals: Vec<_> = watcher
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Interval {
                every_ms,
                ground,
                failures,
                ..
            } => Some((*every_ms, *ground, *failures)),
            _ => None,
        })
        .collect();
    assert_eq!(intervals[0], (20, "unmeasured", 0));
    // 40 µs each, and a failure in two hours: far longer than allowed here.
    assert_eq!(intervals[1].1, "unmeasured");
    assert_eq!(intervals[2], (50, "longest", 0));
    assert_eq!(intervals.last(), Some(&(50, "longest", 1)));
}

#[test]
fn a_store_that_is_full_for_a_while_costs_snapshots_but_not_the_job() {
    let bed = Bed::new(2, 2, 300, "full-disk");
    let mut watcher = Watcher::new();
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert_eq!(outcome.restarts, 0);
    assert!(watcher.told("no space left on device"));
    assert!(outcome.committed.is_some_and(|epoch| epoch.0 >= 3));
}

#[test]
fn links_that_count_unevenly_are_never_committed() {
    let bed = Bed::new(2, 2, 150, "uneven");
    let mut watcher = Watcher::new();
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert_eq!(outcome.committed, None);
    assert!(watcher.told("cut unevenly"));
}

#[test]
fn the_solvers_exit_code_passes_through() {
    let bed = Bed::new(2, 2, 1000, "exit-five");
    let outcome = bed.run(&mut Watcher::new());
    assert_eq!(outcome.code(), 5);

    let bed = Bed::new(2, 2, 1000, "rank-fails");
    let outcome = bed.run(&mut Watcher::new());
    assert_eq!(outcome.code(), 6);
    assert_eq!(
        outcome.message(),
        "rank 0 failed with code 6: the sum is negative"
    );
}

#[test]
fn a_program_that_is_not_ours_is_told_apart_from_one_that_fails() {
    for (path, words) in [
        ("/bin/true", "without having connected"),
        ("/nonexistent/solver", "can't be started"),
    ] {
        let mut bed = Bed::new(2, 2, 10, "good");
        bed.plan.program.path = path.into();
        bed.plan.program.arguments = vec![path.into()];
        let outcome = bed.run(&mut Watcher::new());
        assert_eq!(outcome.code(), 64, "{path}");
        assert!(outcome.message().contains(words), "{}", outcome.message());
    }
}

#[test]
fn a_program_that_was_rebuilt_is_refused_with_the_difference() {
    let bed = Bed::new(2, 2, 1000, "rebuilt");
    let mut killed = false;
    let mut watcher = Watcher::acting(|event, pids| {
        if is_committed(event) && !killed {
            killed = true;
            signal(pids[0], Signal::SIGKILL);
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.code(), 64);
    assert!(
        outcome.message().contains("pages of 4096 bytes there"),
        "{}",
        outcome.message()
    );
}

#[test]
fn a_stopped_job_goes_on_where_its_last_checkpoint_was() {
    let mut bed = Bed::new(2, 2, 300, "good");
    bed.plan.every = Every::Off;
    let me = nix::unistd::gettid();
    let mut watcher = Watcher::acting(|event, _| {
        if matches!(event, Event::Go { .. }) {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                // To the thread that runs the job: the whole process is that of all tests.
                // SAFETY: tgkill takes three integers; the thread is one of this process.
                unsafe {
                    libc::syscall(
                        libc::SYS_tgkill,
                        std::process::id(),
                        me.as_raw(),
                        libc::SIGTERM,
                    )
                };
            });
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Stopped { without_last: None });
    assert_eq!(outcome.code(), 75);
    let last = outcome.committed.expect("a last checkpoint");

    let mut watcher = Watcher::new();
    let outcome = bed.restart(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert_eq!(watcher.starts(), [Some(last.0)]);
    let beginnings = bed.beginnings(0);
    assert!(beginnings[1] > 0);
}

#[test]
fn a_command_gets_a_checkpoint_and_the_status() {
    let mut bed = Bed::new(2, 1, 2000, "good");
    bed.plan.every = Every::Off;
    let store = bed.plan.store.clone();
    let asking = std::thread::spawn(move || {
        let control = loop {
            if let Ok(store) = store::JobStore::open(&store)
                && let Ok(Some(control)) = store.read_control()
            {
                break control;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let address: Address = control.address.parse().unwrap();
        let token = Token::from_bytes(control.token);
        let taken = client::ask(&address, &token, &Request::Checkpoint, None).unwrap();
        let status = client::ask(&address, &token, &Request::Status, None).unwrap();
        let stranger = Token::draw().unwrap();
        let refused = client::ask(&address, &stranger, &Request::Status, None);
        (taken, status, refused.unwrap())
    });
    let outcome = bed.run(&mut Watcher::new());
    assert_eq!(outcome.end, End::Complete);
    let (taken, status, refused) = asking.join().unwrap();
    let Response::Committed { epoch } = taken else {
        panic!("{taken:?}");
    };
    let Response::Status(status) = status else {
        panic!("{status:?}");
    };
    assert_eq!(status.committed, Some(epoch));
    assert_eq!(status.ranks, 2);
    assert_eq!(status.pids.len(), 1);
    assert!(status.memory_bytes >= coord::memory::DEFAULT_LEAST_BYTES);
    let interval = status.interval;
    assert_eq!((interval.every_us, interval.ground), (None, Ground::Fixed));
    assert_eq!((interval.cost_us, interval.failures), (Some(40), 0));
    assert!(interval.durable_us.is_some() && interval.ran_us > 0);
    let Response::Failed { reason } = refused else {
        panic!("a caller without the token was told {refused:?}");
    };
    assert!(reason.contains("token"));
}

#[test]
fn a_job_can_go_on_with_fewer_processes() {
    let mut bed = Bed::new(4, 4, 200, "good");
    bed.plan.max_restarts = 0;
    let mut committed = 0;
    let mut watcher = Watcher::acting(|event, pids| {
        if is_committed(event) {
            committed += 1;
            if committed == 2 {
                signal(pids[2], Signal::SIGKILL);
            }
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.code(), 69);
    bed.plan.processes = 2;
    let outcome = bed.restart(&mut Watcher::new());
    assert_eq!(outcome.end, End::Complete);
    assert!(bed.beginnings(3)[1] > 0);
}

/// A job of which every snapshot is aborted; its store is left without files of them.
fn leaves_no_files_of_aborted_snapshots(behaviour: &str) {
    let bed = Bed::new(2, 2, 120, behaviour);
    bed.run(&mut Watcher::new());
    let listing = bed.store().list().unwrap();
    assert!(!listing.checkpoints.is_empty());
    for checkpoint in &listing.checkpoints {
        assert!(matches!(checkpoint.state, CheckpointState::Unpublished));
        let dir = bed
            .plan
            .store
            .join(format!("epochs/{:06}", checkpoint.epoch.0));
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    }
}

#[test]
fn aborted_snapshots_leave_no_files_behind() {
    leaves_no_files_of_aborted_snapshots("uneven");
}

#[test]
fn files_that_are_written_after_a_snapshot_was_aborted_are_removed_at_the_latest_when_the_job_ends()
{
    leaves_no_files_of_aborted_snapshots("late");
}

#[test]
fn events_are_appended_as_lines_of_json() {
    let mut bed = Bed::new(1, 1, 60, "good");
    bed.plan.events = Some(bed.dir().join("events"));
    bed.run(&mut Watcher::new());
    let text = std::fs::read_to_string(bed.dir().join("events")).unwrap();
    let names: Vec<String> = text
        .lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(value["t_us"].is_u64());
            value["event"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names.first().map(String::as_str), Some("open"));
    assert_eq!(names.last().map(String::as_str), Some("end"));
    for name in ["start", "connected", "ready", "go", "finished"] {
        assert!(names.iter().any(|told| told == name), "{name}");
    }
}
