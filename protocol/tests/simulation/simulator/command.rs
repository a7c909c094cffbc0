//! One run of `ckpt`: drives the coordinator and the recovery, as the product's command does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::control::{Directive, Report};
use protocol::coordinator::{
    self, Collected, Coordinator, Last, Need, Part, Published, RequestId, Resolution,
};
use protocol::faults::Broken;
use protocol::frame::{self, Decoder};
use protocol::ids::{Epoch, Incarnation, Process};
use protocol::interval::{Bounds, Estimator};
use protocol::migration::{self, Ask, MoveMode, Moves, MovesOutput};
use protocol::recovery::{self, Choice, End, Exit, Loss, Recovery};

use super::trouble::{Options, Slip};

/// What the command wants done outside.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Send a frame to a process of this incarnation.
    Send(Process, Vec<u8>),
    /// Begin a storage operation or a start; [`Done`] comes back.
    Begin(Task),
    /// Kill all processes of this incarnation.
    Kill,
    /// The checkpoint is committed and announced.
    Committed(Epoch),
    /// The epoch is aborted and that is announced.
    Aborted {
        epoch: Epoch,
        reason: String,
        remove: bool,
    },
    /// Mark a checkpoint as bad.
    MarkBad(Epoch, String),
    /// A process is out of the job.
    Released(Process),
    /// A process counts as lost.
    Lost(Process, Loss),
    /// A move is over, or will not be.
    Moved(Result<protocol::migration::Done, String>),
    /// The command is over.
    Ended(End),
}

/// Something that takes time.
#[derive(Clone, Debug)]
pub enum Task {
    Prepare(Epoch),
    /// The manifest is being written under its new name.
    Write(Box<Collected>),
    /// It is about to be renamed.
    Rename(Box<Collected>),
    /// It was renamed, or not, and the directory is being made durable.
    Sync(Epoch),
    Resolve(Epoch),
    Choose,
    Start(Option<Epoch>),
    Verify(Epoch),
}

/// The outcome of a [`Task`].
#[derive(Clone, Debug)]
pub enum Done {
    Prepared(Epoch, Result<(), String>),
    Published(Epoch, Published),
    Resolved(Epoch, Resolution),
    Chosen(Choice),
    Started(Incarnation),
    Verified(Result<(), String>),
}

/// A running `ckpt`.
pub struct Command {
    pub incarnation: Option<Incarnation>,
    pub processes: u32,
    pub recovery: Recovery,
    pub coordinator: Option<Coordinator>,
    pub moves: Option<Moves<Broken>>,
    asked: u64,
    snapshot_patience: Duration,
    fault: Broken,
    slip: Option<Slip>,
    pub placement: Vec<Process>,
    pub deeds: Vec<Deed>,
    every: Duration,
    /// With an interval that is estimated.
    pub estimator: Option<Estimator>,
    /// What the snapshot that is published held the ranks up, and its start.
    cost: Duration,
    announced: Duration,
    /// The newest epoch with a directory and the newest checkpoint, as the store says.
    pub newest: (Epoch, Option<Epoch>),
    decoders: BTreeMap<Process, Decoder>,
    closing: bool,
    /// Processes of this start that are out of the job.
    pub released: BTreeSet<Process>,
}

impl Command {
    pub fn new(now: Duration, processes: u32, auto: Option<Bounds>, options: &Options) -> Self {
        let ms = Duration::from_millis;
        let rules = recovery::Config {
            proof: recovery::Proof::Child,
            not_before: Duration::ZERO,
            max_restarts: 100,
            ping_every: ms(20),
            heartbeat_timeout: ms(100),
            start_timeout: ms(500),
            stop_grace: ms(50),
        };
        Self {
            incarnation: None,
            processes,
            recovery: Recovery::new(rules, now),
            coordinator: None,
            moves: None,
            asked: 0,
            snapshot_patience: options.snapshot_patience,
            fault: options.fault,
            slip: options.slip,
            placement: Vec::new(),
            deeds: Vec::new(),
            every: options.every,
            estimator: auto.map(Estimator::new),
            cost: Duration::ZERO,
            announced: Duration::ZERO,
            newest: (Epoch(0), None),
            decoders: BTreeMap::new(),
            closing: false,
            released: BTreeSet::new(),
        }
    }

    /// When time is to be told next.
    pub fn timeout(&self) -> Option<Duration> {
        let coordinator = self
            .coordinator
            .as_ref()
            .and_then(Coordinator::poll_timeout);
        let moves = self.moves.as_ref().and_then(Moves::poll_timeout);
        [self.recovery.poll_timeout(), coordinator, moves]
            .into_iter()
            .flatten()
            .min()
    }

    /// Bytes from a process.
    pub fn hear(&mut self, now: Duration, process: Process, bytes: &[u8]) {
        let decoder = self.decoders.entry(process).or_default();
        decoder.feed(bytes);
        let mut reports: Vec<Report> = Vec::new();
        while let Some(report) = decoder.next().expect("processes send whole reports") {
            reports.push(report);
        }
        for report in reports {
            self.take(now, process, report);
        }
        self.act(now);
    }

    fn take(&mut self, now: Duration, process: Process, report: Report) {
        self.recovery.handle_heard(now, process);
        match report {
            Report::Ready { .. } => self.recovery.handle_ready(now, process),
            Report::RestoreFailed { reason, .. } => {
                self.recovery.handle_restore_failed(process, &reason);
            }
            Report::Alive { number, .. } => self.recovery.handle_alive(now, process, number),
            Report::Stranded { reason, .. } if self.slip == Some(Slip::WitnessLost) => {
                self.recovery.handle_unreachable(process, &reason);
                self.recovery.handle_timeout(now);
            }
            Report::Stranded { peer, reason } => {
                self.recovery.handle_stranded(now, process, peer, &reason);
            }
            Report::Move(report) => {
                if let Some(moves) = &mut self.moves {
                    moves.handle_report(now, process, report);
                }
            }
            report => {
                let Some(coordinator) = &mut self.coordinator else {
                    return;
                };
                match report {
                    Report::Cut { epoch, stall_us } => {
                        coordinator.handle_cut(now, process, epoch, stall_us);
                    }
                    Report::Stored {
                        epoch,
                        files,
                        needs,
                        felt,
                        links,
                    } => {
                        let part = Part {
                            files,
                            needs,
                            felt,
                            links,
                        };
                        coordinator.handle_stored(now, process, epoch, part);
                    }
                    Report::SnapshotFailed { epoch, reason } => {
                        coordinator.handle_failed(now, process, epoch, &reason);
                    }
                    Report::BaseFailed { epoch, reason } => {
                        coordinator.handle_base_failed(now, process, epoch, &reason);
                    }
                    Report::RankFinished { rank } => coordinator.handle_rank_finished(now, rank),
                    _ => {}
                }
            }
        }
    }

    pub fn tick(&mut self, now: Duration) {
        self.recovery.handle_timeout(now);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.handle_timeout(now);
        }
        if let Some(moves) = &mut self.moves {
            moves.handle_timeout(now);
        }
        self.act(now);
    }

    /// Somebody wants a rank moved.
    pub fn ask(&mut self, now: Duration, ask: Ask) {
        if let Some(moves) = &mut self.moves {
            self.asked += 1;
            moves.handle_request(RequestId(self.asked), ask);
            self.act(now);
        }
    }

    /// Somebody wants a process drained, or taken back.
    pub fn drain(&mut self, now: Duration, process: Process, back: bool) {
        let Some(moves) = &mut self.moves else {
            return;
        };
        if back {
            // Refused where it is not drained.
            drop(moves.handle_undrain(&[process]));
        } else {
            for (rank, _, to) in moves.handle_drain(&[process]).unwrap_or_default() {
                self.asked += 1;
                let ask = Ask {
                    rank,
                    to,
                    mode: MoveMode::Stop,
                    within: Duration::from_millis(50),
                };
                moves.handle_request(RequestId(self.asked), ask);
            }
        }
        self.act(now);
    }

    /// Has snapshots and moves exclude each other, or fails to.
    fn settle(&mut self, now: Duration) {
        let (Some(coordinator), Some(moves)) = (&mut self.coordinator, &mut self.moves) else {
            return;
        };
        let Some(slip) = self.slip else {
            return migration::settle(now, coordinator, moves);
        };
        let need = match coordinator.need() {
            Need::Due | Need::UnderWay if slip == Slip::MoveDuringSnapshot => Need::None,
            need => need,
        };
        moves.handle_snapshots(now, need);
        for (rank, process) in moves.take_recorded() {
            if slip != Slip::RecordKeptBack {
                coordinator.handle_placed(rank, process);
            }
        }
        for process in moves.take_released() {
            coordinator.handle_released(process);
        }
        let held = moves.holds_snapshots() && slip != Slip::SnapshotDuringMove;
        coordinator.handle_moves(now, held);
    }

    pub fn connected(&mut self, now: Duration, process: Process) {
        self.decoders.insert(process, Decoder::new());
        self.recovery.handle_connected(now, process);
        self.act(now);
    }

    pub fn exited(&mut self, now: Duration, process: Process, exit: Exit) {
        self.recovery.handle_disconnected(now, process);
        self.recovery.handle_exited(process, exit);
        self.act(now);
    }

    pub fn terminate(&mut self, now: Duration) {
        self.recovery.handle_termination();
        self.act(now);
    }

    pub fn done(&mut self, now: Duration, done: Done) {
        match done {
            Done::Chosen(choice) => self.recovery.handle_chosen(choice),
            Done::Started(incarnation) => {
                self.incarnation = Some(incarnation);
                self.recovery.handle_started(now, self.processes);
            }
            Done::Verified(outcome) => self.recovery.handle_verified(outcome),
            done => {
                let Some(coordinator) = &mut self.coordinator else {
                    return;
                };
                match done {
                    Done::Prepared(epoch, outcome) => {
                        coordinator.handle_prepared(now, epoch, outcome);
                    }
                    Done::Published(epoch, outcome) => {
                        coordinator.handle_published(now, epoch, outcome);
                    }
                    Done::Resolved(epoch, outcome) => {
                        coordinator.handle_resolved(now, epoch, outcome);
                    }
                    _ => {}
                }
            }
        }
        self.act(now);
    }

    /// Sends a directive to one process.
    pub fn tell(&mut self, process: Process, directive: &Directive) {
        let mut bytes = Vec::new();
        frame::encode(directive, &mut bytes).expect("directives are short");
        self.deeds.push(Deed::Send(process, bytes));
    }

    fn tell_all(&mut self, directive: &Directive) {
        for process in (0..self.processes).map(Process) {
            if !self.released.contains(&process) {
                self.tell(process, directive);
            }
        }
    }

    /// Does what both machines say until neither says more.
    pub fn act(&mut self, now: Duration) {
        loop {
            self.settle(now);
            if let Some(output) = self.recovery.poll_output() {
                self.recover(now, output);
            } else if let Some(output) =
                self.coordinator.as_mut().and_then(Coordinator::poll_output)
            {
                self.coordinate(now, output);
            } else if let Some(output) = self.moves.as_mut().and_then(Moves::poll_output) {
                match output {
                    MovesOutput::Tell { process, directive } => {
                        self.tell(process, &Directive::Move(directive));
                    }
                    MovesOutput::TellAll { directive } => {
                        self.tell_all(&Directive::Move(directive));
                    }
                    MovesOutput::Waiting { .. } | MovesOutput::WaitingToRelease { .. } => {}
                    MovesOutput::Released { process } => {
                        self.recovery.handle_released(process);
                        self.tell(process, &Directive::Leave);
                        self.released.insert(process);
                        self.deeds.push(Deed::Released(process));
                    }
                    MovesOutput::Answer { outcome, .. } => self.deeds.push(Deed::Moved(outcome)),
                }
            } else if self.closing
                && self
                    .coordinator
                    .as_ref()
                    .is_none_or(Coordinator::is_settled)
            {
                self.closing = false;
                self.coordinator = None;
                self.moves = None;
                self.recovery.handle_settled();
            } else {
                return;
            }
        }
    }

    fn recover(&mut self, now: Duration, output: recovery::Output) {
        use recovery::Output as To;
        match output {
            To::Choose => self.deeds.push(Deed::Begin(Task::Choose)),
            To::Start { from } => {
                self.released.clear();
                self.deeds.push(Deed::Begin(Task::Start(from)));
            }
            To::Go => {
                let (newest, committed) = self.newest;
                if let Some(estimator) = &mut self.estimator {
                    estimator.handle_go(now);
                    self.every = estimator.estimate(now).every;
                }
                let rules = coordinator::Config {
                    processes: self.processes,
                    placement: self.placement.clone(),
                    newest,
                    committed,
                    every: Some(self.every),
                    cut_patience: Duration::from_millis(10),
                    store_timeout: Duration::from_millis(20),
                };
                self.coordinator = Some(Coordinator::new(rules, now));
                let rules = migration::Config {
                    processes: self.processes,
                    placement: self.placement.clone(),
                    drained: Vec::new(),
                    snapshot_patience: self.snapshot_patience,
                    end_patience: Duration::from_millis(10),
                };
                self.moves = Some(Moves::with_faults(rules, self.fault));
                self.tell_all(&Directive::Go);
            }
            To::Ping => self.tell_all(&Directive::Ping { heard: 0 }),
            To::Verify { epoch } => self.deeds.push(Deed::Begin(Task::Verify(epoch))),
            To::MarkBad { epoch, reason } => self.deeds.push(Deed::MarkBad(epoch, reason)),
            To::Lost { process, loss } => {
                self.deeds.push(Deed::Lost(process, loss));
                if let Some(estimator) = &mut self.estimator {
                    estimator.handle_failure(now);
                }
            }
            To::Close { reason } => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_lost(now, &reason);
                }
                if let Some(estimator) = &mut self.estimator {
                    estimator.handle_end(now);
                }
                self.closing = true;
            }
            To::Kill => self.deeds.push(Deed::Kill),
            To::LastSnapshot => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_termination(now);
                }
            }
            To::Stop => self.tell_all(&Directive::Stop),
            To::End => self.tell_all(&Directive::End),
            To::Ended(end) => self.deeds.push(Deed::Ended(end)),
        }
    }

    fn coordinate(&mut self, now: Duration, output: coordinator::Output) {
        use coordinator::Output as To;
        match output {
            To::Prepare { epoch } => self.deeds.push(Deed::Begin(Task::Prepare(epoch))),
            To::Announce { epoch } => {
                self.announced = now;
                self.tell_all(&Directive::Snapshot { epoch });
            }
            To::Waiting { .. } | To::Answer { .. } => {}
            To::Publish(collected) => {
                self.cost = Duration::from_micros(collected.held_up_us);
                self.deeds.push(Deed::Begin(Task::Write(collected)));
            }
            To::Resolve { epoch } => self.deeds.push(Deed::Begin(Task::Resolve(epoch))),
            To::Commit { epoch } => {
                self.recovery.handle_committed();
                if let (Some(estimator), Some(coordinator)) =
                    (&mut self.estimator, &mut self.coordinator)
                {
                    estimator.handle_checkpoint(self.cost, now.saturating_sub(self.announced));
                    let every = estimator.estimate(now).every;
                    coordinator.handle_every(now, Some(every));
                }
                self.tell_all(&Directive::Committed { epoch });
                self.deeds.push(Deed::Committed(epoch));
            }
            To::Abort {
                epoch,
                reason,
                remove,
                rebase,
            } => {
                self.tell_all(&Directive::Abort { epoch, rebase });
                self.deeds.push(Deed::Aborted {
                    epoch,
                    reason,
                    remove,
                });
            }
            To::End => self.recovery.handle_complete(now),
            To::Stop { last } => {
                let without_last = match last {
                    Last::Committed(_) => None,
                    Last::Failed(reason) => Some(reason),
                };
                self.recovery.handle_last_snapshot(now, without_last);
            }
        }
    }
}
