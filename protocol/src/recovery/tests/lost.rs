//! Which of several processes is named as lost, where others have noticed it as well.

use super::*;

/// What whoever can't reach a process is lost by.
fn reset(peer: Option<Process>) -> Loss {
    Loss::Stranded(peer, "connection reset".to_owned())
}

/// Whom the machine has named as lost.
fn named(job: &mut Recovery) -> Option<(Process, Loss)> {
    outputs(job).into_iter().find_map(|output| match output {
        Output::Lost { process, loss } => Some((process, loss)),
        _ => None,
    })
}

#[test]
fn the_first_of_several_processes_that_went_is_what_was_lost_however_late_that_is_seen() {
    let mut job = elsewhere();
    job.handle_disconnected(ms(10), Process(1));
    job.handle_disconnected(ms(12), Process(0));
    job.handle_timeout(ms(190));
    assert_eq!(named(&mut job), Some((Process(1), Loss::Disconnected)));
}

#[test]
fn whoever_can_not_reach_another_that_has_ended_is_not_what_was_lost() {
    for peer in [Some(Process(1)), None] {
        let mut job = elsewhere();
        job.handle_timeout(ms(100));
        assert_eq!(outputs(&mut job), [Output::Ping]);
        job.handle_stranded(ms(101), Process(0), peer, "endpoint timeout");
        job.handle_alive(ms(101), Process(0), 1);
        assert_eq!(job.poll_timeout(), Some(ms(110)), "asked soon");
        job.handle_timeout(ms(110));
        assert_eq!(outputs(&mut job), [Output::Ping]);
        job.handle_alive(ms(112), Process(0), 2);
        // An answer to a ping that went out before that was told.
        job.handle_alive(ms(113), Process(1), 1);
        job.handle_timeout(ms(150));
        assert_eq!(outputs(&mut job), []);
        job.handle_disconnected(ms(180), Process(1));
        job.handle_timeout(ms(200));
        job.handle_timeout(ms(280));
        assert_eq!(named(&mut job), Some((Process(1), Loss::Disconnected)));
        let fates: Vec<Fate> = job.fates().collect();
        assert_eq!(fates, [Fate::There, Fate::Ended(ms(180))]);
    }
}

#[test]
fn however_many_can_not_reach_another_pings_do_not_follow_each_other_closely() {
    let mut job = elsewhere();
    job.handle_timeout(ms(100));
    outputs(&mut job);
    let mut pings = 0;
    for now in 101..=140 {
        job.handle_stranded(ms(now), Process(0), Some(Process(1)), "endpoint timeout");
        job.handle_timeout(ms(now));
        pings += outputs(&mut job).len();
    }
    assert_eq!(pings, 4);
}

#[test]
fn whoever_can_not_reach_another_that_is_silent_is_not_what_was_lost() {
    let mut job = elsewhere();
    for tick in 1..=5 {
        let now = ms(tick * 100);
        if tick == 3 {
            job.handle_stranded(now, Process(0), Some(Process(1)), "connection reset");
        }
        job.handle_timeout(now);
        job.handle_alive(now, Process(0), tick);
    }
    assert_eq!(named(&mut job), Some((Process(1), Loss::Silent(ms(500)))));
}

#[test]
fn whoever_can_not_reach_another_that_lives_is_lost_once_that_one_has_answered() {
    for peer in [Some(Process(1)), None] {
        let mut job = elsewhere();
        job.handle_timeout(ms(100));
        job.handle_stranded(ms(101), Process(0), peer, "connection reset");
        job.handle_alive(ms(102), Process(1), 1);
        job.handle_timeout(ms(110));
        job.handle_alive(ms(111), Process(0), 2);
        job.handle_timeout(ms(111));
        assert_eq!(named(&mut job), None, "what was told was asked for before");
        job.handle_alive(ms(112), Process(1), 2);
        assert!(job.poll_timeout() <= Some(ms(112)));
        job.handle_timeout(ms(112));
        assert_eq!(named(&mut job), Some((Process(0), reset(peer))));
        assert_eq!(job.phase(), Phase::Clearing);
    }
}

#[test]
fn whoever_can_not_reach_a_released_process_is_lost_at_once() {
    let mut job = elsewhere();
    job.handle_released(Process(1));
    job.handle_disconnected(ms(10), Process(1));
    job.handle_stranded(ms(20), Process(0), Some(Process(1)), "connection reset");
    job.handle_timeout(ms(20));
    let loss = reset(Some(Process(1)));
    assert_eq!(named(&mut job), Some((Process(0), loss)));
}

#[test]
fn pings_from_before_a_process_had_connected_are_not_asked_of_it() {
    let mut job = Recovery::new(leased(), ms(0));
    outputs(&mut job);
    job.handle_chosen(Choice::Beginning);
    job.handle_started(ms(0), 2);
    job.handle_connected(ms(0), Process(0));
    job.handle_timeout(ms(100));
    job.handle_timeout(ms(200));
    job.handle_connected(ms(200), Process(1));
    job.handle_stranded(ms(205), Process(0), Some(Process(1)), "connection reset");
    job.handle_timeout(ms(210));
    job.handle_alive(ms(211), Process(0), 3);
    job.handle_timeout(ms(211));
    assert_eq!(named(&mut job), None);
    job.handle_alive(ms(212), Process(1), 1);
    job.handle_timeout(ms(212));
    let loss = reset(Some(Process(1)));
    assert_eq!(named(&mut job), Some((Process(0), loss)));
}
