//! The running job: its state, and the loop that everything happens in.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use protocol::control::{Directive, IntervalStatus, JobStatus, Response};
use protocol::coordinator::{self, Coordinator, RequestId};
use protocol::ids::{Epoch, JobId, Process, Rank};
use protocol::interval::{Estimate, Estimator, Ground};
use protocol::recovery::{End, Output, Phase, Recovery};
use protocol::walltime::Walltime;
use wire::{Address, Listener};

use super::cluster::{Cluster, Stops};
use super::drains::Drains;
use super::moves::Moving;
use super::peers::Peers;
use super::start::Start;
use super::teller::Teller;
use crate::child::spawn::OpenFiles;
use crate::clock;
use crate::errands::Errands;
use crate::error::Error;
use crate::event::{self, Committed, Event};
use crate::outcome::Outcome;
use crate::plan::{Every, Plan};
use crate::poller::{Poller, Ready};
use crate::signals::Signals;
use crate::storeroom::{Chosen, StoreRoom};
use crate::token::Token;

/// What the snapshot under way has cost so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Cost {
    pub(super) announced: Duration,
    pub(super) figures: Committed,
}

/// A job being run.
pub(super) struct Job<'a> {
    pub(super) plan: &'a Plan,
    pub(super) job: JobId,
    pub(super) address: Address,
    /// What commands have to show.
    pub(super) token: Token,
    pub(super) listener: Listener,
    /// The processes' limit of open files.
    pub(super) open_files: OpenFiles,
    pub(super) poller: Poller,
    pub(super) signals: Signals,
    /// The present start. Before the store: its processes are gone before the store's lock is given back.
    pub(super) start: Start,
    pub(super) store: StoreRoom,
    pub(super) teller: Teller<'a>,
    pub(super) recovery: Recovery,
    /// The snapshot side, while ranks run and until its last epoch is decided.
    pub(super) coordinator: Option<Coordinator>,
    /// The moves of ranks, for as long.
    pub(super) moving: Option<Moving>,
    /// The recovery side waits for the snapshot side to settle.
    pub(super) closing: bool,
    /// What the store offered to start from.
    pub(super) chosen: Option<Chosen>,
    pub(super) peers: Peers,
    /// Requests that came while no ranks ran.
    pub(super) held: Vec<RequestId>,
    /// Ranks that had finished already when their checkpoint was taken, told before the ranks run.
    pub(super) finished_early: Vec<Rank>,
    pub(super) cost: Cost,
    /// What the checkpoints cost and how often processes are lost.
    pub(super) estimator: Estimator,
    pub(super) committed: Option<Epoch>,
    /// Epochs whose files were removed on abort, since the newest commit; late writers may have made some again.
    pub(super) aborted: Vec<Epoch>,
    pub(super) began: Duration,
    pub(super) next_tick: Duration,
    pub(super) outcome: Option<Outcome>,
    /// The nodes, where a launcher starts the processes.
    pub(super) cluster: Option<Cluster>,
    /// What is drained, and who waits for it.
    pub(super) drains: Drains,
    pub(super) errands: Errands,
    /// The time of the allocation.
    pub(super) walltime: Option<Walltime>,
    pub(super) stops: Stops,
    /// The present start's number, for whoever looks after newer ones; 0 while there is none.
    pub(super) fence: Arc<AtomicU64>,
}

impl Job<'_> {
    /// Runs to the end.
    pub(super) fn run(mut self) -> Result<Outcome, Error> {
        self.poller
            .add(&self.listener, Ready::Listener)
            .and_then(|()| self.poller.add(&self.signals, Ready::Signal))
            .and_then(|()| self.poller.add(self.store.as_fd(), Ready::Store))
            .and_then(|()| self.poller.add(self.errands.as_fd(), Ready::News))
            .map_err(Error::system("watch the control socket"))?;
        self.carry_out();
        loop {
            if let Some(outcome) = self.outcome.take() {
                self.finish(&outcome);
                return Ok(outcome);
            }
            let timeout = self
                .next_deadline()
                .map(|deadline| deadline.saturating_sub(clock::now()));
            let all_ready = self
                .poller
                .wait(timeout)
                .map_err(Error::system("wait for events"))?;
            for ready in all_ready {
                self.handle(ready)?;
                self.carry_out();
            }
            self.handle_time();
            self.carry_out();
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let machines = [
            self.recovery.poll_timeout(),
            self.coordinator
                .as_ref()
                .and_then(Coordinator::poll_timeout),
            self.moving.as_ref().and_then(Moving::poll_timeout),
            self.peers.next_deadline(),
            self.start.kill_at(),
            self.walltime.as_ref().and_then(Walltime::poll_timeout),
        ];
        let tick = self.teller.tick_every().map(|_| self.next_tick);
        machines.into_iter().chain([tick]).flatten().min()
    }

    fn handle(&mut self, ready: Ready) -> Result<(), Error> {
        match ready {
            Ready::Listener => self
                .peers
                .accept(&self.listener, &self.poller, clock::now()),
            Ready::Signal => {
                while let Some(signal) = self.signals.next() {
                    self.teller.tell(&Event::Stopping {
                        signal: signal.to_string(),
                    });
                    if self.stops.counts(signal) {
                        self.recovery.handle_termination();
                    }
                }
            }
            Ready::Launcher => self.handle_launcher()?,
            Ready::News => {
                while let Some(news) = self.errands.next() {
                    self.handle_news(news);
                    self.carry_out();
                }
            }
            Ready::Store => {
                while let Some(answer) = self.store.next_answer() {
                    self.handle_answer(answer);
                    self.carry_out();
                }
            }
            Ready::Child(process) => self.handle_child(process)?,
            Ready::Connection(number) => self.handle_connection(number),
        }
        Ok(())
    }

    fn handle_time(&mut self) {
        let now = clock::now();
        self.recovery.handle_timeout(now);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.handle_timeout(now);
        }
        if let Some(moving) = &mut self.moving {
            moving.handle_timeout(now);
        }
        self.peers.expire(now, &self.poller);
        self.start.handle_timeout(now);
        self.watch_walltime(now);
        if let Some(every) = self.teller.tick_every()
            && now >= self.next_tick
        {
            self.next_tick = now + every;
            let status = self.status();
            self.teller.tick(&status);
        }
    }

    /// Does what the machines want, until they want nothing more.
    pub(super) fn carry_out(&mut self) {
        loop {
            self.settle_moves();
            // In this order: processes hear what was decided about a snapshot before they hear of the next move.
            if let Some(output) = self.coordinator.as_mut().and_then(Coordinator::poll_output) {
                self.obey_coordinator(output);
            } else if let Some(output) = self.moving.as_mut().and_then(Moving::poll_output) {
                self.obey_moves(output);
            } else if self.closing && self.is_settled() {
                self.closing = false;
                self.coordinator = None;
                self.moving = None;
                self.break_off_drains();
                self.recovery.handle_settled();
            } else if let Some(output) = self.recovery.poll_output() {
                self.obey_recovery(output);
            } else {
                return;
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.coordinator
            .as_ref()
            .is_none_or(Coordinator::is_settled)
    }

    fn obey_recovery(&mut self, output: Output) {
        match output {
            Output::Choose => self.store.choose(),
            Output::Start { from } => self.begin_start(from),
            Output::Go => self.go(),
            Output::Ping => {
                for process in (0..self.start.processes()).map(Process) {
                    let heard = self.recovery.heard_of(process);
                    self.peers
                        .tell(process, &Directive::Ping { heard }, &self.poller);
                }
            }
            Output::Verify { epoch } => self.store.verify(epoch),
            Output::MarkBad { epoch, reason } => {
                self.teller.tell(&Event::Bad {
                    epoch: epoch.0,
                    reason: reason.clone(),
                });
                self.store.mark_bad(epoch, reason);
            }
            Output::Lost { process, loss } => {
                self.estimator.handle_failure(clock::now());
                self.teller.tell(&Event::Lost {
                    process: process.0,
                    pid: self.start.pid(process),
                    reason: loss.to_string(),
                });
            }
            Output::Close { reason } => {
                self.estimator.handle_end(clock::now());
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_lost(clock::now(), &reason);
                }
                self.closing = true;
            }
            Output::Kill => self.kill(),
            Output::LastSnapshot => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_termination(clock::now());
                }
            }
            Output::Stop => self.peers.tell_all(&Directive::Stop, &self.poller),
            Output::End => self.peers.tell_all(&Directive::End, &self.poller),
            Output::Ended(end) => {
                let end = self.if_still_ours(end);
                self.outcome = Some(Outcome {
                    end,
                    committed: self.committed,
                    restarts: self.recovery.restarts(),
                });
            }
        }
    }

    /// All are ready: the ranks run, and snapshots may be taken.
    fn go(&mut self) {
        let now = clock::now();
        self.peers.tell_all(&Directive::Go, &self.poller);
        // All that it starts has been started by now.
        if let Some(launcher) = self.start.launcher() {
            launcher.look();
        }
        self.teller.tell(&Event::Go {
            incarnation: self.start.incarnation().0,
            epoch: self.recovery.from().map(|epoch| epoch.0),
        });
        let config = coordinator::Config {
            processes: self.start.processes(),
            placement: self.start.placement().to_vec(),
            newest: self.start.newest(),
            committed: self.committed,
            every: None,
            cut_patience: crate::plan::CUT_PATIENCE,
            store_timeout: crate::plan::STORE_TIMEOUT,
        };
        let mut coordinator = Coordinator::new(config, now);
        for rank in self.finished_early.drain(..) {
            coordinator.handle_rank_finished(now, rank);
        }
        for request in self.held.drain(..) {
            coordinator.handle_request(now, request);
        }
        self.coordinator = Some(coordinator);
        let drained = match self.cluster {
            None => self.drains.processes(),
            Some(_) => Vec::new(),
        };
        let processes = self.start.processes();
        self.moving = Some(Moving::new(self.start.placement(), processes, drained));
        self.estimator.handle_go(now);
        self.set_interval();
    }

    /// Lets the snapshot side know how often snapshots are to be taken from now on.
    pub(super) fn set_interval(&mut self) {
        let now = clock::now();
        let (every, estimate) = self.interval(now);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.handle_every(now, every);
        }
        if let Every::Auto(_) = self.plan.every {
            self.teller.tell(&Event::Interval {
                every_ms: milliseconds(estimate.every),
                ground: event::ground(estimate.ground),
                cost_us: estimate.cost.map(microseconds),
                durable_us: estimate.durable.map(microseconds),
                mtbf_ms: milliseconds(estimate.mtbf),
                failures: estimate.failures,
            });
        }
    }

    /// The time from one snapshot to the next, and what costs and failures suggest.
    fn interval(&self, now: Duration) -> (Option<Duration>, Estimate) {
        let estimate = self.estimator.estimate(now);
        let every = match self.plan.every {
            Every::Off => None,
            Every::Fixed(every) => Some(every),
            Every::Auto(_) => Some(estimate.every),
        };
        (every, estimate)
    }

    fn interval_status(&self, now: Duration) -> IntervalStatus {
        let (every, estimate) = self.interval(now);
        IntervalStatus {
            every_us: every.map(microseconds),
            ground: match self.plan.every {
                Every::Auto(_) => estimate.ground,
                Every::Off | Every::Fixed(_) => Ground::Fixed,
            },
            cost_us: estimate.cost.map(microseconds),
            durable_us: estimate.durable.map(microseconds),
            mtbf_us: microseconds(estimate.mtbf),
            failures: estimate.failures,
            ran_us: microseconds(estimate.ran),
        }
    }

    /// Answers who still waits and says how it ended.
    fn finish(&mut self, outcome: &Outcome) {
        for request in self.held.drain(..) {
            let reason = format!("the job is over: {}", outcome.message());
            let response = Response::Failed { reason };
            self.peers
                .answer(number_of(request), &response, &self.poller);
        }
        if outcome.end == End::Complete {
            self.store.complete();
        }
        // No process writes any more. A coordinator that has taken over has swept the store for itself.
        if !matches!(outcome.end, End::Superseded { .. }) {
            for &epoch in &self.aborted {
                self.store.abort(epoch);
            }
        }
        self.start.see_launcher_out(outcome.end == End::Complete);
        self.teller.tell(&Event::End {
            outcome: outcome.name().to_owned(),
            message: outcome.message(),
            code: outcome.code(),
        });
    }

    /// How the job is now.
    pub(super) fn status(&self) -> JobStatus {
        let now = clock::now();
        let snapshots = self.coordinator.as_ref().map(Coordinator::status);
        let snapshot = snapshots.as_ref().and_then(|status| status.snapshot);
        let phase = match self.recovery.phase() {
            Phase::Running if snapshot.is_some() => "snapshot",
            Phase::Running => "running",
            Phase::Stopping | Phase::Ending | Phase::Ended => "stopping",
            Phase::Choosing | Phase::Clearing if self.recovery.restarts() == 0 => "starting",
            Phase::Starting if self.recovery.from().is_none() => "starting",
            Phase::Choosing | Phase::Clearing | Phase::Starting => "restoring",
        };
        let next_at = snapshots.as_ref().and_then(|status| status.next_at);
        JobStatus {
            job: self.job,
            incarnation: self.start.incarnation(),
            phase: phase.to_owned(),
            ranks: self.plan.ranks,
            finished: snapshots.as_ref().map_or(0, |status| status.finished),
            pids: self.start.pids().to_vec(),
            hosts: self.start.hosts().to_vec(),
            placement: match &self.moving {
                Some(moving) => moving.placement().to_vec(),
                None => self.start.placement().to_vec(),
            },
            restarts: self.recovery.restarts(),
            committed: self.committed,
            snapshot,
            computing: self.start.computing(),
            memory_bytes: self.start.memory_bytes(),
            interval: self.interval_status(now),
            next_ms: next_at.map(|at| milliseconds(at.saturating_sub(now))),
            elapsed_ms: milliseconds(now.saturating_sub(self.began)),
        }
    }
}

/// A request's number is that of the connection it came by.
pub(super) fn number_of(request: RequestId) -> u32 {
    u32::try_from(request.0).unwrap_or(u32::MAX)
}

pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
