//! Random sequences of inputs to both sides of the coordinator together, against what must hold whatever comes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::control::StoredFile;
use crate::coordinator::{self, Coordinator, Part, Published, RequestId};
use crate::ids::{Epoch, Move, Process, Rank};

const PROCESSES: u32 = 4;
const RANKS: u32 = 5;

/// Something that happens. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Act {
    Ask(u32, u32, bool),
    Checkpoint,
    Every(Option<u64>),
    Terminate,
    Lost,
    /// The move of this place in the order of those under way goes on by what its step needs.
    Go(usize, u32),
    /// Its source, or its target, refuses.
    Refuse(usize, bool),
    /// Any process says anything about any move.
    Noise(u32, u64, u8),
    Prepared,
    Stored(u32),
    Fail,
    Wait(u64),
    /// Somebody drains the processes of these bits.
    Drain(u32),
    Undrain(u32),
    /// A process has ended its link to the one that is released.
    Parted(u32),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..RANKS, 0..PROCESSES, any::<bool>()).prop_map(|(a, b, c)| Act::Ask(a, b, c)),
        2 => Just(Act::Checkpoint),
        1 => prop::option::of(0u64..3000).prop_map(Act::Every),
        1 => Just(Act::Terminate),
        1 => Just(Act::Lost),
        30 => (0usize..4, 0..PROCESSES).prop_map(|(a, b)| Act::Go(a, b)),
        2 => (0usize..4, any::<bool>()).prop_map(|(a, b)| Act::Refuse(a, b)),
        4 => (0..PROCESSES, 0u64..8, 0u8..9).prop_map(|(a, b, c)| Act::Noise(a, b, c)),
        6 => Just(Act::Prepared),
        12 => (0..PROCESSES).prop_map(Act::Stored),
        1 => Just(Act::Fail),
        4 => (0u64..2000).prop_map(Act::Wait),
        1 => (1u32..1 << PROCESSES).prop_map(Act::Drain),
        1 => (0..PROCESSES).prop_map(Act::Undrain),
        12 => (0..PROCESSES).prop_map(Act::Parted),
    ]
}

struct Run {
    coordinator: Coordinator,
    moves: Moves,
    now: Duration,
    /// Requests for moves that were not answered.
    asked: BTreeSet<u64>,
    requests: u64,
    /// The owner of each rank, by what every process was told.
    owners: Vec<Process>,
    /// Moves whose source was told to examine, and which were neither recorded nor given up.
    open: BTreeMap<Move, Rank>,
    snapshot: Option<Epoch>,
    commits: u32,
    ended: bool,
    /// The process that all were told is released, and those that are.
    releasing: Option<Process>,
    out: Vec<Process>,
}

impl Run {
    fn new() -> Self {
        let owners: Vec<Process> = (0..RANKS).map(|rank| Process(rank % PROCESSES)).collect();
        let now = Duration::ZERO;
        let rules = coordinator::Config {
            processes: PROCESSES,
            placement: owners.clone(),
            newest: Epoch(0),
            committed: None,
            every: Some(Duration::from_secs(2)),
            cut_patience: Duration::from_secs(1),
            store_timeout: Duration::from_secs(3),
        };
        let of_moves = Config {
            processes: PROCESSES,
            placement: owners.clone(),
            drained: Vec::new(),
            snapshot_patience: Duration::from_millis(700),
            end_patience: Duration::from_secs(1),
        };
        Self {
            coordinator: Coordinator::new(rules, now),
            moves: Moves::new(of_moves),
            now,
            asked: BTreeSet::new(),
            requests: 0,
            owners,
            open: BTreeMap::new(),
            snapshot: None,
            commits: 0,
            ended: false,
            releasing: None,
            out: Vec::new(),
        }
    }

    fn go(&mut self, at: usize, process: u32) {
        let count = self.moves.underway().count().max(1);
        let Some(chosen) = self.moves.underway().nth(at % count) else {
            return;
        };
        let Underway { id, from, to, .. } = chosen;
        let needs = MoveNeeds::default();
        let process = Process(process);
        let (process, report) = match chosen.step {
            Step::Examining => (from, MoveReport::Movable { id, needs }),
            Step::Preparing => (to, MoveReport::Prepared { id }),
            Step::Transferring => (to, MoveReport::Received { id }),
            Step::Spreading if process == to => {
                let complete = MoveReport::Complete { id };
                self.moves.handle_report(self.now, to, complete);
                (
                    to,
                    MoveReport::Learned {
                        id,
                        confirmed: true,
                    },
                )
            }
            Step::Spreading => (
                process,
                MoveReport::Learned {
                    id,
                    confirmed: true,
                },
            ),
            Step::Forgetting => (from, MoveReport::Forgotten { id }),
            Step::GivingUp => (process, MoveReport::GivenUp { id }),
        };
        self.moves.handle_report(self.now, process, report);
    }

    fn noise(&mut self, process: u32, id: u64, kind: u8) {
        let id = Move(id);
        let needs = MoveNeeds::default();
        let report = match kind {
            0 => MoveReport::Movable { id, needs },
            1 => MoveReport::Prepared { id },
            2 => MoveReport::Received { id },
            3 => MoveReport::Refused {
                id,
                reason: "noise".to_owned(),
            },
            4 => MoveReport::GivenUp { id },
            5 => MoveReport::Learned {
                id,
                confirmed: false,
            },
            7 => MoveReport::Parted {
                process: Process(PROCESSES + 1),
            },
            6 => MoveReport::Complete { id },
            _ => MoveReport::Forgotten { id },
        };
        self.moves.handle_report(self.now, Process(process), report);
    }

    fn apply(&mut self, act: Act) {
        let now = self.now;
        let epoch = self.snapshot.unwrap_or_default();
        match act {
            Act::Ask(rank, to, postcopy) => {
                self.requests += 1;
                self.asked.insert(self.requests);
                let mode = match postcopy {
                    true => MoveMode::Postcopy,
                    false => MoveMode::Stop,
                };
                let ask = Ask {
                    rank: Rank(rank),
                    to: Process(to),
                    mode,
                    within: Duration::from_millis(1500),
                };
                self.moves.handle_request(RequestId(self.requests), ask);
            }
            Act::Checkpoint => self.coordinator.handle_request(now, RequestId(0)),
            Act::Every(ms) => self
                .coordinator
                .handle_every(now, ms.map(Duration::from_millis)),
            Act::Terminate => self.coordinator.handle_termination(now),
            Act::Lost => self.coordinator.handle_lost(now, "a process was lost"),
            Act::Go(at, process) => self.go(at, process),
            Act::Refuse(at, source) => {
                let count = self.moves.underway().count().max(1);
                let chosen = self.moves.underway().nth(at % count);
                if let Some(chosen) = chosen {
                    let id = chosen.id;
                    let reason = "refused".to_owned();
                    let process = if source { chosen.from } else { chosen.to };
                    let refused = MoveReport::Refused { id, reason };
                    self.moves.handle_report(now, process, refused);
                }
            }
            Act::Noise(process, id, kind) => self.noise(process, id, kind),
            Act::Prepared => self.coordinator.handle_prepared(now, epoch, Ok(())),
            Act::Drain(bits) => {
                let all = (0..PROCESSES).filter(|number| bits & (1 << number) != 0);
                let processes: Vec<Process> = all.map(Process).collect();
                for (rank, from, to) in self.moves.handle_drain(&processes).unwrap_or_default() {
                    assert_eq!(self.owners[rank.index()], from);
                    assert!(!processes.contains(&to));
                    self.apply(Act::Ask(rank.0, to.0, false));
                }
            }
            Act::Undrain(process) => {
                // Refused where it is not drained.
                drop(self.moves.handle_undrain(&[Process(process)]));
            }
            Act::Parted(process) => {
                if let Some(released) = self.releasing
                    && released != Process(process)
                {
                    let parted = MoveReport::Parted { process: released };
                    self.moves.handle_report(now, Process(process), parted);
                }
            }
            // It is out, and was told of no snapshot.
            Act::Stored(process) if self.out.contains(&Process(process)) => {}
            Act::Stored(process) => {
                let process = Process(process);
                // What the process hosts, by what it was told.
                let ranks = (0..).map(Rank).zip(&self.owners);
                let hosted = ranks.filter(|(_, owner)| **owner == process);
                let file = |(rank, _): (Rank, &Process)| StoredFile {
                    rank,
                    ..StoredFile::default()
                };
                let part = Part {
                    files: hosted.map(file).collect(),
                    ..Part::default()
                };
                self.coordinator.handle_stored(now, process, epoch, part);
            }
            Act::Fail => self
                .coordinator
                .handle_failed(now, Process(0), epoch, "no space"),
            Act::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.coordinator.handle_timeout(self.now);
                self.moves.handle_timeout(self.now);
            }
        }
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            settle(self.now, &mut self.coordinator, &mut self.moves);
            if let Some(output) = self.coordinator.poll_output() {
                self.see_snapshot(output);
            } else if let Some(output) = self.moves.poll_output() {
                self.see_move(output);
            } else {
                break;
            }
        }
        assert_eq!(self.moves.placement(), self.owners);
        assert!(self.snapshot.is_none() || self.moves.underway().count() == 0);
        for (at, one) in self.moves.underway().enumerate() {
            for other in self.moves.underway().skip(at + 1) {
                assert_ne!(one.rank, other.rank, "a rank moves twice at once");
            }
        }
        // Nothing that waits is forgotten: somebody is asked, or time will tell.
        let waits = self.moves.waiting() > 0 && self.snapshot.is_none() && self.releasing.is_none();
        assert!(
            !waits
                || self.moves.underway().count() > 0
                || self.coordinator.poll_timeout().is_some()
        );
    }

    fn see_snapshot(&mut self, output: coordinator::Output) {
        use coordinator::Output as Seen;
        match output {
            Seen::Prepare { epoch } => {
                let over = |process| self.moves.standing(process) == Standing::Released;
                assert!(
                    self.releasing.is_none_or(over),
                    "a snapshot during a release"
                );
                assert_eq!(self.moves.underway().count(), 0, "a snapshot during a move");
                self.snapshot = Some(epoch);
            }
            Seen::Publish(collected) => {
                let epoch = collected.epoch;
                let done = Published::Done;
                self.coordinator.handle_published(self.now, epoch, done);
            }
            Seen::Commit { .. } => {
                self.commits += 1;
                self.snapshot = None;
            }
            Seen::Abort { reason, .. } => {
                assert!(!reason.contains("host"), "{reason}");
                self.snapshot = None;
            }
            Seen::End | Seen::Stop { .. } => self.ended = true,
            _ => {}
        }
    }

    fn see_move(&mut self, output: MovesOutput) {
        match output {
            MovesOutput::Tell { process, directive } => match directive {
                MoveDirective::Examine { id, rank, to, .. } => {
                    assert!(self.snapshot.is_none(), "a move during a snapshot");
                    assert!(!self.ended, "a move after the end");
                    assert_eq!(process, self.owners[rank.index()]);
                    assert_ne!(process, to);
                    assert_eq!(self.moves.standing(to), Standing::Member);
                    assert!(self.releasing.is_none(), "a move during a release");
                    assert!(self.open.insert(id, rank).is_none());
                }
                MoveDirective::Prepare { id, .. } | MoveDirective::Transfer { id } => {
                    assert!(self.open.contains_key(&id));
                }
                MoveDirective::GiveUp { id } => {
                    self.open.remove(&id);
                }
                MoveDirective::Forget { id, .. } => assert!(!self.open.contains_key(&id)),
                MoveDirective::Moved { .. } | MoveDirective::Release { .. } => {
                    panic!("not all were told")
                }
            },
            MovesOutput::TellAll {
                directive: MoveDirective::Release { process },
            } => {
                assert!(self.snapshot.is_none(), "a release during a snapshot");
                assert_eq!(self.moves.underway().count(), 0, "a release during a move");
                assert!(!self.owners.contains(&process), "it hosts a rank");
                assert!(!self.out.contains(&process), "it is out");
                assert!(self.releasing.replace(process).is_none());
            }
            MovesOutput::Released { process } => {
                assert_eq!(self.releasing.take(), Some(process));
                assert!(!self.owners.contains(&process));
                self.out.push(process);
            }
            MovesOutput::WaitingToRelease { processes, .. } => assert!(!processes.is_empty()),
            MovesOutput::TellAll { directive } => {
                let MoveDirective::Moved { id, rank, from, to } = directive else {
                    panic!("{directive:?} for all");
                };
                assert_eq!(self.open.remove(&id), Some(rank), "recorded, and given up");
                let owner = &mut self.owners[rank.index()];
                assert_eq!(*owner, from);
                *owner = to;
            }
            MovesOutput::Waiting { processes, .. } => assert!(!processes.is_empty()),
            MovesOutput::Answer { request, outcome } => {
                assert!(self.asked.remove(&request.0), "answered twice");
                if let Ok(done) = outcome {
                    assert_eq!(self.owners[done.rank.index()], done.to);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn whatever_comes_each_rank_has_one_owner_and_each_request_one_answer(
        acts in prop::collection::vec(act(), 0..150),
    ) {
        let mut run = Run::new();
        for act in acts {
            run.apply(act);
        }
        run.apply(Act::Lost);
        prop_assert!(run.asked.is_empty(), "a request was never answered");
        prop_assert_eq!(run.moves.underway().count(), 0);
    }

    #[test]
    fn what_is_drained_is_released_when_nothing_goes_wrong(
        asks in prop::collection::vec((0..RANKS, 0..PROCESSES, any::<bool>()), 0..6),
        drained in 1u32..(1 << PROCESSES) - 1,
        every_ms in prop::option::of(1u64..2000),
    ) {
        let mut run = Run::new();
        run.apply(Act::Every(every_ms));
        for (at, (rank, to, postcopy)) in asks.iter().enumerate() {
            if at == asks.len() / 2 {
                run.apply(Act::Drain(drained));
            }
            run.apply(Act::Ask(*rank, *to, *postcopy));
        }
        run.apply(Act::Drain(drained));
        for _ in 0..300 {
            run.apply(Act::Wait(1));
            run.apply(Act::Prepared);
            for process in 0..PROCESSES {
                run.apply(Act::Stored(process));
                run.apply(Act::Parted(process));
                for at in 0..4 {
                    run.apply(Act::Go(at, process));
                }
            }
        }
        prop_assert!(run.asked.is_empty(), "moves starve");
        run.out.sort_unstable();
        let wanted = (0..PROCESSES).filter(|number| drained & (1 << number) != 0);
        prop_assert_eq!(&run.out, &wanted.map(Process).collect::<Vec<_>>());
        prop_assert!(every_ms.is_none_or(|ms| ms > 20) || run.commits > 0, "snapshots starve");
    }

    #[test]
    fn what_is_asked_for_happens_when_nothing_goes_wrong(
        asks in prop::collection::vec((0..RANKS, 0..PROCESSES, any::<bool>()), 1..12),
        every_ms in prop::option::of(1u64..2000),
    ) {
        let mut run = Run::new();
        run.apply(Act::Every(every_ms));
        for (rank, to, postcopy) in asks {
            run.apply(Act::Ask(rank, to, postcopy));
        }
        for _ in 0..200 {
            run.apply(Act::Wait(1));
            run.apply(Act::Prepared);
            for process in 0..PROCESSES {
                run.apply(Act::Stored(process));
                for at in 0..4 {
                    run.apply(Act::Go(at, process));
                }
            }
        }
        prop_assert!(run.asked.is_empty(), "moves starve");
        prop_assert!(every_ms.is_none_or(|ms| ms > 20) || run.commits > 0, "snapshots starve");
    }
}
