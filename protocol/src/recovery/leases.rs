//! Processes on other nodes against the recovery machine: whatever the network does, no start is begun while a process
//! of an earlier one may go on.
//!
//! Messages are delivered when the sequence of steps says so, in order on each connection, or never. Each process's
//! clock runs at a speed of its own. The coordinator is held up now and then.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

use super::lease::Lease;
use super::*;
use crate::ids::{Epoch, Process};

const PROCESSES: u32 = 3;
const LENGTH: Duration = Duration::from_millis(250);
const MARGIN: Duration = Duration::from_millis(25);

/// What a mistaken implementation would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    /// A process counts its lease from when it hears the acknowledgment.
    CountedFromAcknowledgment,
    /// The coordinator waits for less than the lease.
    MarginMissing,
    /// A process never looks at its lease.
    NoWatchdog,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The network brings the next message from a process to the coordinator, or the other way.
    Up(usize),
    Down(usize),
    /// Nothing passes between a process and the coordinator from now on; or again.
    Cut(usize),
    Heal(usize),
    /// A connection that is cut breaks for the coordinator.
    Break(usize),
    Kill(usize),
    LauncherEnds,
    /// Time passes, with the coordinator attentive or held up.
    Wait(u64),
    HeldUp(u64),
    Settled,
    Terminate,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let process = || 0..PROCESSES as usize;
    let step = prop_oneof![
        20 => process().prop_map(Step::Up),
        20 => process().prop_map(Step::Down),
        1 => process().prop_map(Step::Cut),
        1 => process().prop_map(Step::Heal),
        1 => process().prop_map(Step::Break),
        1 => process().prop_map(Step::Kill),
        3 => Just(Step::LauncherEnds),
        12 => (1u64..60).prop_map(Step::Wait),
        1 => (1u64..400).prop_map(Step::HeldUp),
        6 => Just(Step::Settled),
    ];
    prop::collection::vec(step, 0..400)
}

/// Speeds of clocks, in percent.
fn speeds() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(95u32..106, PROCESSES as usize)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Up {
    Hello,
    Ready,
    Alive(u64),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Down {
    Assignment,
    Ping(u64),
    Close,
}

struct Remote {
    runs: bool,
    assigned: bool,
    /// The coordinator holds its connection still.
    connected: bool,
    cut: bool,
    lease: Lease,
    speed: u32,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
}

impl Remote {
    fn new(now: Duration, speed: u32) -> Self {
        Self {
            runs: true,
            assigned: false,
            connected: true,
            cut: false,
            lease: Lease::new(LENGTH, now * speed / 100),
            speed,
            up: VecDeque::from([Up::Hello]),
            down: VecDeque::new(),
        }
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.runs, false) {
            self.up.push_back(Up::Closed);
        }
    }
}

struct World {
    machine: Recovery,
    slip: Option<Slip>,
    now: Duration,
    speeds: Vec<u32>,
    remotes: Vec<Remote>,
    launcher: bool,
    closing: bool,
    starts: u32,
    ended: bool,
    overlap: bool,
}

impl World {
    fn new(speeds: Vec<u32>, slip: Option<Slip>) -> Self {
        let margin = if slip == Some(Slip::MarginMissing) {
            Duration::ZERO
        } else {
            MARGIN
        };
        let config = Config {
            proof: Proof::Lease {
                length: LENGTH,
                margin,
            },
            not_before: Duration::ZERO,
            max_restarts: 100,
            ping_every: Duration::from_millis(50),
            heartbeat_timeout: LENGTH,
            start_timeout: Duration::from_millis(500),
            stop_grace: Duration::from_millis(100),
        };
        let mut world = Self {
            machine: Recovery::new(config, Duration::ZERO),
            slip,
            now: Duration::ZERO,
            speeds,
            remotes: Vec::new(),
            launcher: false,
            closing: false,
            starts: 0,
            ended: false,
            overlap: false,
        };
        world.drain();
        world
    }

    /// Whether any process of the start that was goes on.
    fn is_any_at_work(&self) -> bool {
        let mut remotes = self.remotes.iter();
        self.launcher || remotes.any(|remote| remote.runs && remote.assigned)
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Choose => {
                    self.overlap |= self.is_any_at_work();
                    self.machine.handle_chosen(Choice::Checkpoint(Epoch(1)));
                }
                Output::Start { .. } => {
                    self.overlap |= self.is_any_at_work();
                    self.starts += 1;
                    self.launcher = true;
                    let speeds = self.speeds.iter();
                    self.remotes = speeds.map(|&speed| Remote::new(self.now, speed)).collect();
                    self.machine.handle_started(self.now, PROCESSES);
                }
                Output::Ping => {
                    for (number, remote) in (0..).zip(&mut self.remotes) {
                        if remote.connected && remote.assigned {
                            let heard = self.machine.heard_of(Process(number));
                            remote.down.push_back(Down::Ping(heard));
                        }
                    }
                }
                Output::Kill => {
                    for remote in &mut self.remotes {
                        remote.down.push_back(Down::Close);
                    }
                }
                Output::Close { .. } => self.closing = true,
                Output::Ended(_) => {
                    self.overlap |= self.is_any_at_work();
                    self.ended = true;
                }
                _ => {}
            }
        }
    }

    /// Time passes; processes look at their own clocks all the while.
    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        for remote in &mut self.remotes {
            let over = remote.lease.is_over(self.now * remote.speed / 100);
            if remote.runs && over && self.slip != Some(Slip::NoWatchdog) {
                remote.end();
            }
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Up(index) => self.bring_up(index),
            Step::Down(index) => self.bring_down(index),
            Step::Cut(index) => self.with(index, |remote| remote.cut = true),
            Step::Heal(index) => self.with(index, |remote| remote.cut = false),
            Step::Break(index) => {
                let broken = |remote: &&mut Remote| remote.cut && remote.connected;
                if let Some(remote) = self.remotes.get_mut(index).filter(broken) {
                    remote.connected = false;
                    let process = Process(u32::try_from(index).expect("few"));
                    self.machine.handle_unreachable(process, "no route to host");
                }
            }
            Step::Kill(index) => self.with(index, Remote::end),
            Step::LauncherEnds if self.launcher && self.machine.phase() == Phase::Clearing => {
                self.launcher = false;
                self.machine.handle_launcher_exited("exited with code 0");
            }
            Step::LauncherEnds => {}
            Step::Wait(ms) => {
                for _ in 0..ms {
                    self.pass(1);
                    self.machine.handle_timeout(self.now);
                    self.drain();
                }
            }
            Step::HeldUp(ms) => {
                for _ in 0..ms {
                    self.pass(1);
                }
                self.machine.handle_timeout(self.now);
            }
            Step::Settled if self.closing => {
                self.closing = false;
                self.machine.handle_settled();
            }
            Step::Settled => {}
            Step::Terminate => self.machine.handle_termination(),
        }
        self.drain();
    }

    fn with(&mut self, index: usize, act: impl FnOnce(&mut Remote)) {
        if let Some(remote) = self.remotes.get_mut(index) {
            act(remote);
        }
    }

    fn bring_up(&mut self, index: usize) {
        let Some(remote) = self.remotes.get_mut(index) else {
            return;
        };
        if remote.cut || !remote.connected {
            return;
        }
        let process = Process(u32::try_from(index).expect("few"));
        match remote.up.pop_front() {
            // Only while a start waits for its processes is anybody taken in.
            Some(Up::Hello) if self.machine.phase() == Phase::Starting => {
                remote.down.push_back(Down::Assignment);
                self.machine.handle_connected(self.now, process);
            }
            Some(Up::Hello) => remote.down.push_back(Down::Close),
            Some(Up::Ready) => self.machine.handle_ready(self.now, process),
            Some(Up::Alive(number)) => self.machine.handle_alive(self.now, process, number),
            Some(Up::Closed) => {
                remote.connected = false;
                self.machine.handle_disconnected(self.now, process);
            }
            None => {}
        }
    }

    fn bring_down(&mut self, index: usize) {
        let slip = self.slip;
        let now = self.now;
        let Some(remote) = self.remotes.get_mut(index) else {
            return;
        };
        if remote.cut || !remote.runs {
            return;
        }
        let local = now * remote.speed / 100;
        match remote.down.pop_front() {
            Some(Down::Assignment) => {
                remote.assigned = true;
                remote.up.push_back(Up::Ready);
            }
            Some(Down::Ping(heard)) => {
                if remote.lease.handle_heard(heard) && slip == Some(Slip::CountedFromAcknowledgment)
                {
                    remote.lease = Lease::new(LENGTH, local);
                }
                let number = remote.lease.handle_alive(local);
                remote.up.push_back(Up::Alive(number));
            }
            Some(Down::Close) => remote.end(),
            None => {}
        }
    }
}

fn run(steps: &[Step], speeds: Vec<u32>, slip: Option<Slip>) -> World {
    let mut world = World::new(speeds, slip);
    for &step in steps {
        world.apply(step);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn no_start_begins_while_a_process_of_an_earlier_one_may_hold_its_lease(
        steps in steps(),
        speeds in speeds(),
    ) {
        let mut world = run(&steps, speeds, None);
        prop_assert!(!world.overlap);
        // Whoever is cut off for good, the job comes to its end: leases run out.
        for _ in 0..3 {
            world.apply(Step::Terminate);
            world.apply(Step::LauncherEnds);
            world.apply(Step::Settled);
            world.apply(Step::Wait(400));
        }
        prop_assert!(world.ended, "the job goes on: {:?}", world.machine);
        prop_assert!(!world.overlap);
    }
}

/// The same sequences each time.
fn deterministic(config: ProptestConfig) -> TestRunner {
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Looks for a sequence of steps by which the mistake shows.
fn is_caught(slip: Slip) -> bool {
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 0,
        cases: 4000,
        ..ProptestConfig::default()
    };
    let mut runner = deterministic(config);
    let outcome = runner.run(&(steps(), speeds()), |(steps, speeds)| {
        prop_assert!(!run(&steps, speeds, Some(slip)).overlap);
        Ok(())
    });
    matches!(outcome, Err(TestError::Fail(..)))
}

#[test]
fn mistakes_in_keeping_leases_are_caught() {
    for slip in [
        Slip::CountedFromAcknowledgment,
        Slip::MarginMissing,
        Slip::NoWatchdog,
    ] {
        assert!(is_caught(slip), "{slip:?} goes unnoticed");
    }
}

#[test]
fn jobs_of_these_sequences_do_start_again() {
    let config = ProptestConfig {
        failure_persistence: None,
        cases: 300,
        ..ProptestConfig::default()
    };
    let mut runner = deterministic(config);
    let again = std::cell::Cell::new(0);
    let outcome = runner.run(&(steps(), speeds()), |(steps, speeds)| {
        again.set(again.get() + u32::from(run(&steps, speeds, None).starts > 1));
        Ok(())
    });
    assert!(outcome.is_ok());
    assert!(again.get() > 30, "only {} of 300 did", again.get());
}
