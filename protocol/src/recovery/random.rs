//! Random sequences of inputs against what must hold whatever comes.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ids::{Epoch, Process, Rank};

const PROCESSES: u32 = 3;

/// Something that happens. It is passed on only where it can happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The store answers; 0 to 3 for the kinds of choice.
    Chosen(u8),
    /// The start succeeds, or fails after so many processes.
    Started(Option<u32>),
    Connected(u32),
    Ready(u32),
    RestoreFailed(u32),
    Verified(bool),
    /// A live process ends: by a signal, or with this code.
    Exited(u32, Option<i32>),
    Disconnected(u32),
    /// A process can't reach another, or does not know whom.
    Stranded(u32, Option<u32>),
    /// A process has answered so many pings.
    Alive(u32, u64),
    RankFailed(u32),
    Committed,
    Settled,
    Complete,
    Terminate,
    LastSnapshot,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let process = || 0..PROCESSES;
    prop_oneof![
        8 => (0u8..8).prop_map(Step::Chosen),
        8 => prop_oneof![6 => Just(None), 1 => (0..PROCESSES).prop_map(Some)]
            .prop_map(Step::Started),
        6 => process().prop_map(Step::Connected),
        12 => process().prop_map(Step::Ready),
        1 => process().prop_map(Step::RestoreFailed),
        4 => any::<bool>().prop_map(Step::Verified),
        8 => (process(), prop_oneof![
            6 => Just(None),
            1 => prop::sample::select(vec![0, 3, 70, 71, 75, 101]).prop_map(Some),
        ])
        .prop_map(|(process, code)| Step::Exited(process, code)),
        1 => process().prop_map(Step::Disconnected),
        2 => (process(), prop::option::of(process()))
            .prop_map(|(process, peer)| Step::Stranded(process, peer)),
        4 => (process(), 0u64..20).prop_map(|(process, number)| Step::Alive(process, number)),
        1 => process().prop_map(Step::RankFailed),
        3 => Just(Step::Committed),
        8 => Just(Step::Settled),
        1 => Just(Step::Complete),
        1 => Just(Step::Terminate),
        2 => Just(Step::LastSnapshot),
        6 => (0u64..200).prop_map(Step::Wait),
    ]
}

struct Run {
    machine: Recovery,
    now: Duration,
    alive: BTreeSet<u32>,
    ready: BTreeSet<u32>,
    choosing: bool,
    starting: bool,
    verifying: bool,
    /// A close was asked for and not answered.
    closing: bool,
    in_vain: u32,
    /// The start before has found its checkpoint bad.
    found_bad: bool,
    starts: u32,
    ended: Option<End>,
}

const MAX_RESTARTS: u32 = 2;

impl Run {
    fn new() -> Self {
        let config = Config {
            proof: Proof::Child,
            not_before: Duration::ZERO,
            max_restarts: MAX_RESTARTS,
            ping_every: Duration::from_millis(50),
            heartbeat_timeout: Duration::from_millis(250),
            start_timeout: Duration::from_millis(500),
            stop_grace: Duration::from_millis(100),
        };
        let mut run = Self {
            machine: Recovery::new(config, Duration::ZERO),
            now: Duration::ZERO,
            alive: BTreeSet::new(),
            ready: BTreeSet::new(),
            choosing: false,
            starting: false,
            verifying: false,
            closing: false,
            in_vain: 0,
            found_bad: false,
            starts: 0,
            ended: None,
        };
        run.drain();
        run
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            assert!(self.ended.is_none(), "{output:?} after the end");
            match output {
                Output::Choose => {
                    assert!(self.alive.is_empty(), "processes of the old start live");
                    assert!(!self.closing, "a snapshot is undecided");
                    assert!(!self.verifying);
                    self.choosing = true;
                }
                Output::Start { .. } => {
                    assert!(self.alive.is_empty());
                    // Where a checkpoint turned out bad, another one is tried: that start is free.
                    if self.starts > 0 && !std::mem::take(&mut self.found_bad) {
                        self.in_vain += 1;
                    }
                    self.starts += 1;
                    self.starting = true;
                }
                Output::Go => assert_eq!(self.ready.len(), PROCESSES as usize),
                Output::Close { .. } => self.closing = true,
                Output::Verify { .. } => self.verifying = true,
                Output::Ended(end) => {
                    assert!(self.alive.is_empty(), "the end with processes that live");
                    self.ended = Some(end);
                }
                Output::Ping
                | Output::MarkBad { .. }
                | Output::Lost { .. }
                | Output::Kill
                | Output::LastSnapshot
                | Output::Stop
                | Output::End => {}
            }
        }
    }

    fn apply(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Chosen(kind) if self.choosing => {
                self.choosing = false;
                self.machine.handle_chosen(match kind {
                    0 => Choice::Beginning,
                    1 => Choice::Nothing("all bad".to_owned()),
                    2 => Choice::Unreadable("EIO".to_owned()),
                    _ => Choice::Checkpoint(Epoch(4)),
                });
            }
            Step::Started(outcome) if self.starting => {
                self.starting = false;
                self.ready.clear();
                self.alive = (0..outcome.unwrap_or(PROCESSES)).collect();
                match outcome {
                    None => self.machine.handle_started(now, PROCESSES),
                    Some(started) => {
                        let end = End::CannotStart {
                            reason: "no such file".to_owned(),
                        };
                        self.machine.handle_start_failed(now, started, end);
                    }
                }
            }
            Step::Connected(process) if self.alive.contains(&process) => {
                self.machine.handle_connected(now, Process(process));
            }
            Step::Ready(process) if self.alive.contains(&process) => {
                self.ready.insert(process);
                self.machine.handle_ready(now, Process(process));
            }
            Step::RestoreFailed(process) if self.alive.contains(&process) => {
                let reason = "torn";
                self.machine.handle_restore_failed(Process(process), reason);
            }
            Step::Verified(sound) if self.verifying => {
                self.verifying = false;
                let outcome = if sound {
                    Ok(())
                } else {
                    Err("torn".to_owned())
                };
                self.found_bad |= !sound;
                self.machine.handle_verified(outcome);
            }
            Step::Exited(process, code) if self.alive.remove(&process) => {
                let exit = code.map_or(Exit::Signal(9), Exit::Code);
                self.machine.handle_exited(Process(process), exit);
            }
            Step::Disconnected(process) if self.alive.contains(&process) => {
                self.machine.handle_disconnected(now, Process(process));
            }
            Step::Stranded(process, peer) if self.alive.contains(&process) => {
                let peer = peer.map(Process);
                self.machine
                    .handle_stranded(now, Process(process), peer, "endpoint timeout");
            }
            Step::Alive(process, number) if self.alive.contains(&process) => {
                self.machine.handle_alive(now, Process(process), number);
            }
            Step::RankFailed(process) if self.alive.contains(&process) => {
                let message = "diverged".to_owned();
                self.machine
                    .handle_rank_failed(Process(process), Rank(0), 9, message);
            }
            Step::Committed if self.machine.phase() == Phase::Running => {
                self.in_vain = 0;
                self.machine.handle_committed();
            }
            Step::Settled if self.closing => {
                self.closing = false;
                self.machine.handle_settled();
            }
            Step::Complete if self.machine.phase() == Phase::Running => {
                self.machine.handle_complete(now);
            }
            Step::Terminate => self.machine.handle_termination(),
            Step::LastSnapshot if self.machine.phase() == Phase::Stopping => {
                self.machine.handle_last_snapshot(now, None);
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.machine.handle_timeout(self.now);
            }
            _ => {}
        }
        self.drain();
        assert!(
            self.in_vain <= MAX_RESTARTS,
            "more restarts without a checkpoint than allowed"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_comes_no_two_starts_overlap_and_the_job_can_be_ended(
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut run = Run::new();
        for step in steps {
            run.apply(step);
        }
        // Told twice to stop, with everybody answering, the job ends.
        for _ in 0..3 {
            run.apply(Step::Terminate);
            run.apply(Step::Chosen(0));
            run.apply(Step::Started(None));
            run.apply(Step::Terminate);
            run.apply(Step::Verified(true));
            for process in 0..PROCESSES {
                run.apply(Step::Exited(process, None));
            }
            run.apply(Step::Settled);
        }
        prop_assert!(run.ended.is_some(), "the job goes on: {:?}", run.machine);
    }
}
