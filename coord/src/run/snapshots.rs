//! Carrying out what the snapshot side wants, and what the store's room answers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::control::{Directive, Response};
use protocol::coordinator::{Collected, Last, Output};
use protocol::ids::Epoch;
use protocol::recovery::{Choice, End, Phase};
use store::{CheckpointId, Figures, Manifest};

use super::job::{Cost, Job, number_of};
use super::start::{Start, StartError};
use crate::clock;
use crate::event::{Cause, Committed, Event};
use crate::storeroom::{Answer, Begun};
use crate::token::Token;

impl Job<'_> {
    pub(super) fn obey_coordinator(&mut self, output: Output) {
        match output {
            Output::Prepare { epoch } => {
                self.store.prepare(epoch, self.aborted.last().copied());
            }
            Output::Announce { epoch } => {
                self.cost = Cost {
                    announced: clock::now(),
                    figures: Committed::default(),
                };
                self.teller.tell(&Event::Announced { epoch: epoch.0 });
                self.tell_processes(&Directive::Snapshot { epoch });
            }
            Output::Waiting { epoch, processes } => self.teller.tell(&Event::Waiting {
                epoch: epoch.0,
                processes: processes.iter().map(|process| process.0).collect(),
            }),
            Output::Publish(collected) => self.publish(*collected),
            Output::Resolve { epoch } => self.store.resolve(epoch),
            Output::Commit { epoch } => self.commit(epoch),
            Output::Abort {
                epoch,
                reason,
                remove,
                rebase,
            } => {
                self.tell_processes(&Directive::Abort { epoch, rebase });
                let cause = self.cause_of_abort();
                self.teller.tell(&Event::Aborted {
                    epoch: epoch.0,
                    cause,
                    reason,
                    rebase,
                });
                if remove {
                    self.store.abort(epoch);
                    self.aborted.push(epoch);
                }
            }
            Output::Answer { request, outcome } => {
                let response = match outcome {
                    Ok(epoch) => Response::Committed { epoch },
                    Err(reason) => Response::Failed { reason },
                };
                self.peers
                    .answer(number_of(request), &response, &self.poller);
            }
            Output::End => self.recovery.handle_complete(clock::now()),
            Output::Stop { last } => {
                let without_last = match last {
                    Last::Committed(_) => None,
                    Last::Failed(reason) => Some(reason),
                };
                self.recovery
                    .handle_last_snapshot(clock::now(), without_last);
            }
        }
    }

    fn cause_of_abort(&self) -> Cause {
        let finished = self
            .coordinator
            .as_ref()
            .map(|coordinator| coordinator.status().finished);
        match self.recovery.phase() {
            Phase::Clearing => Cause::Lost,
            _ if finished == Some(self.plan.ranks) => Cause::Finished,
            _ => Cause::Failed,
        }
    }

    fn tell_processes(&mut self, directive: &Directive) {
        self.peers.tell_members(directive, &self.poller);
    }

    fn publish(&mut self, collected: Collected) {
        let epoch = collected.epoch;
        self.teller.tell(&Event::Publishing { epoch: epoch.0 });
        let took = clock::now().saturating_sub(self.cost.announced);
        let figures = Figures {
            stall_us: collected.stall_us,
            elapsed_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            raw_bytes: collected.files.iter().map(|file| file.raw_bytes).sum(),
            changed_bytes: collected.files.iter().map(|file| file.changed_bytes).sum(),
            stored_bytes: collected.files.iter().map(|file| file.file_bytes).sum(),
            faults: collected.felt.faults,
            waited_us: collected.felt.waited_us,
            longest_us: collected.felt.longest_us,
        };
        self.cost.figures = Committed {
            epoch: epoch.0,
            file_bytes: figures.stored_bytes,
            raw_bytes: figures.raw_bytes,
            changed_bytes: figures.changed_bytes,
            needs: collected.needs.len() as u64,
            stall_us: figures.stall_us,
            faults: figures.faults,
            waited_us: figures.waited_us,
            longest_us: figures.longest_us,
            held_up_us: collected.held_up_us,
            took_us: 0,
        };
        // An image that refers to other checkpoints has a parent; one that holds everything stands alone.
        let parent = (!collected.needs.is_empty()).then(|| self.newest_id());
        self.store.publish(Manifest {
            job: self.job,
            incarnation: self.start.incarnation(),
            epoch,
            from: self.chosen.as_ref().map(|chosen| chosen.id),
            parent: parent.flatten(),
            programs: self.start.identity().cloned().into_iter().collect(),
            files: collected.files,
            needs: collected.needs,
            committed_unix_ms: 0,
            figures,
        });
    }

    /// The newest checkpoint: of this start, or the one it began from.
    fn newest_id(&self) -> Option<CheckpointId> {
        let chosen = self.chosen.as_ref().map(|chosen| chosen.id);
        let own = self.committed.map(|epoch| CheckpointId {
            epoch,
            incarnation: self.start.incarnation(),
        });
        match (chosen, own) {
            (Some(chosen), Some(own)) if own.epoch == chosen.epoch => Some(chosen),
            (_, own) => own,
        }
    }

    fn commit(&mut self, epoch: Epoch) {
        self.tell_processes(&Directive::Committed { epoch });
        self.recovery.handle_committed();
        self.committed = Some(epoch);
        // Who has stored a later epoch writes nothing of them any more, and `retain` removes what they left.
        self.aborted.clear();
        let took = clock::now().saturating_sub(self.cost.announced);
        let mut figures = std::mem::take(&mut self.cost.figures);
        figures.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let cost = Duration::from_micros(figures.held_up_us);
        self.teller.tell(&Event::Committed(figures));
        self.estimator.handle_checkpoint(cost, took);
        if let Some(walltime) = &mut self.walltime {
            walltime.handle_checkpoint(took);
        }
        self.set_interval();
        self.store.retain(self.plan.keep);
    }

    /// Starts the incarnation that the recovery side wants: first its record, then its processes.
    pub(super) fn begin_start(&mut self, from: Option<Epoch>) {
        if self.recovery.restarts() > 0 {
            self.teller.tell(&Event::Restart {
                restarts: self.recovery.restarts(),
                epoch: from.map(|epoch| epoch.0),
            });
        }
        // The processes of the start before are gone; so are their connections and pipes.
        self.peers.remove_processes(&self.poller);
        self.start = Start::default();
        self.finished_early.clear();
        // A new start sweeps the whole store.
        self.aborted.clear();
        match self.cluster {
            Some(_) => self.find_nodes(),
            None => self.record_start(),
        }
    }

    /// Records the new start in the store; then its processes are started.
    pub(super) fn record_start(&mut self) {
        // Until it is known under which number, a newer start may be our own.
        self.fence.store(0, Ordering::SeqCst);
        self.store
            .begin(self.chosen.as_ref().map(|chosen| chosen.id));
    }

    pub(super) fn handle_answer(&mut self, answer: Answer) {
        let now = clock::now();
        match answer {
            Answer::Chosen(choice, chosen) => {
                self.committed = match &choice {
                    Choice::Checkpoint(epoch) => Some(*epoch),
                    Choice::Beginning | Choice::Nothing(_) => None,
                    Choice::Unreadable(_) => self.committed,
                };
                self.chosen = chosen;
                self.recovery.handle_chosen(choice);
            }
            Answer::Begun(Ok(begun)) => self.start_processes(begun),
            Answer::Begun(Err(reason)) => {
                self.recovery
                    .handle_start_failed(now, 0, End::StoreFailed { reason });
            }
            Answer::Prepared(epoch, outcome) => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_prepared(now, epoch, outcome);
                }
            }
            Answer::Renaming(epoch) => self.teller.tell(&Event::Renaming { epoch: epoch.0 }),
            Answer::Published(epoch, outcome) => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_published(now, epoch, outcome);
                }
            }
            Answer::Resolved(epoch, resolution) => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_resolved(now, epoch, resolution);
                }
            }
            Answer::Verified(outcome) => self.recovery.handle_verified(outcome),
            Answer::Removed(epochs) => self.teller.tell(&Event::Removed {
                epochs: epochs.iter().map(|epoch| epoch.0).collect(),
            }),
            Answer::PassedOver(epoch, reason) => self.teller.tell(&Event::Bad {
                epoch: epoch.0,
                reason,
            }),
            Answer::Trouble(text) => self.teller.warn(text),
            Answer::Superseded(reason) => self.recovery.handle_superseded(&reason),
        }
    }

    fn start_processes(&mut self, begun: Begun) {
        let (restore, origins) = match &self.chosen {
            Some(chosen) => (Some(chosen.restore.clone()), chosen.programs.clone()),
            None => (None, Vec::new()),
        };
        self.fence.store(begun.incarnation.0, Ordering::SeqCst);
        let now = clock::now();
        let token = match Token::draw() {
            Ok(token) => token,
            Err(error) => {
                let reason = format!("no random numbers for a token: {error}");
                let end = End::Broken { reason };
                return self.recovery.handle_start_failed(now, 0, end);
            }
        };
        let layout = self.cluster.as_ref().map(|cluster| &cluster.layout);
        let drained = self.drains.processes();
        self.start = Start::new(
            self.plan,
            begun.incarnation,
            begun.newest,
            restore,
            origins,
            (layout, &drained),
            token,
        );
        let spawned = match (&self.plan.launch, &self.cluster) {
            (Some(launch), Some(cluster)) => self.start.launch(
                self.plan,
                launch,
                (&cluster.nodes, &cluster.layout),
                &self.address,
                self.open_files,
                &self.poller,
            ),
            _ => self
                .start
                .spawn(self.plan, &self.address, self.open_files, &self.poller),
        };
        let now = clock::now();
        match spawned {
            Ok(()) => {
                self.teller.tell(&Event::Start {
                    incarnation: begun.incarnation.0,
                    epoch: self.recovery.from().map(|epoch| epoch.0),
                    pids: match self.cluster {
                        Some(_) => Vec::new(),
                        None => self.start.pids().to_vec(),
                    },
                    launcher: self.start.launcher().map(|launcher| launcher.pid()),
                    nodes: self.shares(),
                    memory_bytes: self.start.memory_bytes(),
                });
                self.recovery.handle_started(now, self.start.processes());
            }
            Err(error) => {
                let reason = error.to_string();
                let end = match error {
                    StartError::Program(_) => End::CannotStart { reason },
                    StartError::SharedMemory(_) | StartError::System { .. } => {
                        End::Broken { reason }
                    }
                };
                let started = self.start.children().started();
                self.recovery.handle_start_failed(now, started, end);
            }
        }
    }
}
