//! What comes in: ends of children, frames of processes and commands.

use std::time::Duration;

use protocol::control::{
    CONTROL_VERSION, Caller, Directive, Hello, ProgramIdentity, Report, Request, Response,
};
use protocol::coordinator::{Part, RequestId};
use protocol::ids::Process;
use protocol::migration::Ask;
use protocol::recovery::{End, Loss, Phase};

use super::job::Job;
use super::moves::Trip;
use super::peers::Who;
use super::start::Mismatch;
use crate::clock;
use crate::connection::Flow;
use crate::error::Error;
use crate::event::Event;
use crate::plan::MOVE_WITHIN;

impl Job<'_> {
    /// A child has ended. Its last words come first: they say more than its exit code.
    pub(super) fn handle_child(&mut self, process: Process) -> Result<(), Error> {
        if let Some(number) = self.peers.number_of(process) {
            self.handle_connection(number);
            self.carry_out();
        }
        if let Some(pidfd) = self.start.children().pidfd(process) {
            self.poller.remove(pidfd);
        }
        let exit = self
            .start
            .children()
            .reap(process)
            .map_err(Error::system("wait for a process"))?;
        match exit {
            Some(exit) => self.recovery.handle_exited(process, exit),
            // Not its end after all.
            None => {
                if let Some(pidfd) = self.start.children().pidfd(process) {
                    self.poller
                        .add(pidfd, crate::poller::Ready::Child(process))
                        .map_err(Error::system("watch a process"))?;
                }
            }
        }
        Ok(())
    }

    /// A connection has something to read, or room to write.
    pub(super) fn handle_connection(&mut self, number: u32) {
        self.peers.flush(number, &self.poller);
        let Some(peer) = self.peers.get_mut(number) else {
            return;
        };
        let flow = peer.connection.fill();
        let understood = self.handle_frames(number);
        match flow {
            Flow::Closed => self.close(number, None),
            Flow::Broken(reason) => self.close(number, Some(&reason)),
            Flow::Open if !understood => self.close(number, Some("it talks nonsense")),
            Flow::Open => {}
        }
    }

    /// Handles the frames that are complete; false if the peer talks nonsense or was turned away.
    fn handle_frames(&mut self, number: u32) -> bool {
        while let Some(peer) = self.peers.get_mut(number) {
            let connection = &mut peer.connection;
            let handled = match peer.who {
                Who::Unknown { .. } => connection
                    .next_message::<Hello>()
                    .map(|hello| hello.map(|hello| self.handle_hello(number, hello))),
                Who::Process(process) => connection.next_message::<Report>().map(|report| {
                    report.map(|report| {
                        self.handle_report(process, report);
                        true
                    })
                }),
                Who::Command { asked: true } => return true,
                Who::Command { asked: false } => {
                    connection.next_message::<Request>().map(|request| {
                        request.map(|request| {
                            self.handle_request(number, &request);
                            true
                        })
                    })
                }
            };
            match handled {
                Ok(Some(true)) => self.carry_out(),
                Ok(Some(false)) => return false,
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(%error, "a caller was turned away");
                    return false;
                }
            }
        }
        true
    }

    /// Closes a connection. If it broke, a process that can't be seen to end may go on.
    fn close(&mut self, number: u32, broken: Option<&str>) {
        if let Some(Who::Process(process)) = self.peers.remove(number, &self.poller) {
            match broken {
                Some(reason) if self.cluster.is_some() => {
                    self.recovery.handle_unreachable(process, reason);
                    self.recovery.handle_timeout(clock::now());
                }
                _ => self.recovery.handle_disconnected(clock::now(), process),
            }
            if self.peers.is_released(process) {
                self.handle_left(process);
            }
        }
    }

    fn handle_hello(&mut self, number: u32, hello: Hello) -> bool {
        let is_process = matches!(hello.caller, Caller::Process { .. });
        let known = match is_process {
            true => self.start.has_token(&hello.token),
            false => self.token.is(&hello.token),
        };
        if !known {
            let reason = "the token is not that of this start of the job; a process of an earlier start, or of another job".to_owned();
            return self.refuse(number, is_process, reason);
        }
        if hello.version != CONTROL_VERSION {
            let reason = format!(
                "the program speaks version {} of the control messages, ckpt version {CONTROL_VERSION}; build both from the same release",
                hello.version
            );
            let end = End::CannotStart {
                reason: reason.clone(),
            };
            if is_process {
                self.recovery.handle_hopeless(&reason, end);
            }
            return self.refuse(number, is_process, reason);
        }
        match hello.caller {
            Caller::Command => {
                if let Some(peer) = self.peers.get_mut(number) {
                    peer.who = Who::Command { asked: false };
                }
                true
            }
            Caller::Process {
                process,
                processes,
                pid,
                host,
                identity,
            } => self.handle_joining(number, (process, processes), (pid, &host), identity),
        }
    }

    fn handle_joining(
        &mut self,
        number: u32,
        (process, processes): (Process, u32),
        (pid, host): (u32, &str),
        identity: ProgramIdentity,
    ) -> bool {
        if processes != self.start.processes() {
            let reason = format!(
                "{process} on {host} finds itself one of {processes}, and the job has {} processes; is the program built for the MPI of this launcher?",
                self.start.processes()
            );
            let end = End::CannotStart {
                reason: reason.clone(),
            };
            self.recovery.handle_hopeless(&reason, end);
            return self.refuse(number, true, reason);
        }
        if process.0 >= processes || self.recovery.phase() != Phase::Starting {
            return self.refuse(number, true, format!("no {process} is awaited"));
        }
        if let Err(mismatch) = self.start.accept(identity) {
            let (reason, end) = describe(&shown(process, host), &mismatch);
            self.recovery.handle_hopeless(&reason, end);
            return self.refuse(number, true, reason);
        }
        if let Err(reason) = self.handle_place(process, host) {
            let end = End::CannotStart {
                reason: reason.clone(),
            };
            self.recovery.handle_hopeless(&reason, end);
            return self.refuse(number, true, reason);
        }
        if !self.peers.set_process(number, process) {
            return self.refuse(number, true, format!("{process} has connected before"));
        }
        self.recovery.handle_connected(clock::now(), process);
        self.start.set_place(process, pid, host);
        self.teller.tell(&Event::Connected {
            process: process.0,
            pid,
            host: host.to_owned(),
        });
        let assignment = self.start.assignment(self.plan, self.job, process);
        let directive = Directive::Assignment(Box::new(assignment));
        self.peers.tell(process, &directive, &self.poller);
        true
    }

    /// Tells a caller that it is turned away, in the language that it understands.
    fn refuse(&mut self, number: u32, is_process: bool, reason: String) -> bool {
        tracing::warn!(%reason, "a caller was refused");
        if let Some(peer) = self.peers.get_mut(number) {
            let sent = match is_process {
                true => peer.connection.send(&Directive::Refused { reason }),
                false => peer.connection.send(&Response::Failed { reason }),
            };
            if let Err(error) = sent {
                tracing::warn!(%error, "a refusal could not be sent");
            }
        }
        false
    }

    fn handle_report(&mut self, process: Process, report: Report) {
        let now = clock::now();
        self.recovery.handle_heard(now, process);
        let epoch_us = |cost: &super::job::Cost| now.saturating_sub(cost.announced);
        match report {
            Report::Ready { restore_us } => {
                self.teller.tell(&Event::Ready {
                    process: process.0,
                    restore_us,
                });
                self.recovery.handle_ready(now, process);
            }
            Report::RestoreFailed {
                rank,
                epoch,
                reason,
            } => {
                let reason = format!("{rank} of {epoch}: {reason}");
                self.recovery.handle_restore_failed(process, &reason);
            }
            Report::Alive {
                number,
                computing,
                mut ranks,
            } => {
                self.recovery.handle_alive(now, process, number);
                self.start.set_computing(process, computing);
                let placement = match &self.moving {
                    Some(moving) => moving.placement(),
                    None => self.start.placement(),
                };
                // Of a rank that has moved meanwhile, what is told by where it is counts.
                ranks.retain(|told| placement.get(told.rank.index()) == Some(&process));
                self.start.set_figures(ranks);
            }
            Report::Cut { epoch, stall_us } => {
                self.teller.tell(&Event::Cut {
                    epoch: epoch.0,
                    process: process.0,
                    stall_us,
                });
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_cut(now, process, epoch, stall_us);
                }
            }
            Report::Stored {
                epoch,
                files,
                needs,
                felt,
                links,
            } => {
                tracing::debug!(%process, %epoch, after = ?epoch_us(&self.cost), "stored");
                self.teller.tell(&Event::Stored {
                    epoch: epoch.0,
                    process: process.0,
                    file_bytes: files.iter().map(|file| file.file_bytes).sum(),
                    changed_bytes: files.iter().map(|file| file.changed_bytes).sum(),
                    needs: needs.len() as u64,
                    faults: felt.faults,
                    waited_us: felt.waited_us,
                    longest_us: felt.longest_us,
                });
                let part = Part {
                    files,
                    needs,
                    felt,
                    links,
                };
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_stored(now, process, epoch, part);
                }
            }
            Report::SnapshotFailed { epoch, reason } => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_failed(now, process, epoch, &reason);
                }
            }
            Report::BaseFailed { epoch, reason } => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.handle_base_failed(now, process, epoch, &reason);
                }
            }
            Report::RankFinished { rank } => {
                self.teller.tell(&Event::Finished { rank: rank.0 });
                self.start.set_finished(rank);
                match &mut self.coordinator {
                    Some(coordinator) => coordinator.handle_rank_finished(now, rank),
                    None => self.finished_early.push(rank),
                }
            }
            Report::RankFailed {
                rank,
                code,
                message,
            } => self
                .recovery
                .handle_rank_failed(process, rank, code, message),
            Report::StoreUnseen { reason } => {
                let reason = format!(
                    "{} does not see the store at {}: {reason}; give a --store on a file system that all nodes share",
                    self.shown(process),
                    self.plan.store.display(),
                );
                let end = End::CannotStart {
                    reason: reason.clone(),
                };
                self.recovery.handle_hopeless(&reason, end);
            }
            Report::FilesUnusable { reason } => {
                let reason = format!("{}: {reason}", self.shown(process));
                let end = End::FilesUnusable {
                    reason: reason.clone(),
                };
                self.recovery.handle_hopeless(&reason, end);
            }
            Report::Move(report) => self.handle_move_report(process, report),
            Report::RankMoved {
                id,
                rank: _,
                image_bytes,
                stood_us,
                mode,
                rounds,
            } => {
                let trip = Trip {
                    image_bytes,
                    stood_us,
                    mode,
                    rounds,
                };
                self.handle_rank_moved(id, trip);
            }
            Report::Warning { text } => self.teller.warn(text),
            Report::Note { text } => self.note(process, text),
            Report::Stranded { peer, reason } => {
                self.recovery.handle_stranded(now, process, peer, &reason);
                self.note(process, Loss::Stranded(peer, reason).to_string());
            }
        }
    }

    fn note(&mut self, process: Process, text: String) {
        tracing::info!(%process, %text, "note");
        self.teller.tell(&Event::Note {
            process: process.0,
            text,
        });
    }

    /// A process and where it is, for messages.
    fn shown(&self, process: Process) -> String {
        let host = self.start.hosts().get(process.index());
        shown(process, host.map_or("", String::as_str))
    }

    fn handle_request(&mut self, number: u32, request: &Request) {
        if let Some(peer) = self.peers.get_mut(number) {
            peer.who = Who::Command { asked: true };
        }
        match request {
            Request::Status => {
                let response = Response::Status(Box::new(self.status()));
                self.peers.answer(number, &response, &self.poller);
            }
            Request::Checkpoint => {
                let request = RequestId(u64::from(number));
                match &mut self.coordinator {
                    Some(coordinator) => coordinator.handle_request(clock::now(), request),
                    None => self.held.push(request),
                }
            }
            Request::Processes => {
                let response = self.processes();
                self.peers.answer(number, &response, &self.poller);
            }
            Request::Drain { what, wait } => self.handle_drain(number, what, *wait),
            Request::Undrain { what } => self.handle_undrain(number, what),
            &Request::Migrate {
                rank,
                to,
                mode,
                within_us,
            } => {
                let within = within_us.map_or(MOVE_WITHIN, Duration::from_micros);
                let ask = Ask {
                    rank,
                    to,
                    mode,
                    within,
                };
                self.handle_migrate(RequestId(u64::from(number)), ask);
            }
        }
    }
}

/// A process and its host, if that is known, for messages.
fn shown(process: Process, host: &str) -> String {
    match host {
        "" => process.to_string(),
        host => format!("{process} on {host}"),
    }
}

/// What is wrong with a program, and how the job ends with it. `place` names the process.
fn describe(place: &str, mismatch: &Mismatch) -> (String, End) {
    let reason = match mismatch {
        Mismatch::Processes(what) => format!(
            "{place} does not run the same program at the same addresses as the others: {what}; start the same build everywhere, where address randomisation can be switched off (personality)"
        ),
        Mismatch::Checkpoint(what) => format!(
            "{place}: the program is not the one that wrote the checkpoint: {what}; restart with the same build on a like machine, or begin anew with another --store"
        ),
    };
    let end = End::CannotStart {
        reason: reason.clone(),
    };
    (reason, end)
}
