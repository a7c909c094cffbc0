//! The states of a job and what moves it from one to the next.

use std::collections::VecDeque;
use std::time::Duration;

use super::interface::{Choice, Config, End, Output, Phase};
use super::watch::{Exit, Fate, Loss, Watch};
use crate::control::exit;
use crate::ids::{Epoch, Process, Rank};

/// Pings because of stranded processes follow each other in this part of [`Config::ping_every`] at the soonest.
const STRANDED_PINGS: u32 = 10;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Choosing,
    /// What to start from is known, but processes of an earlier coordinator may still hold their leases.
    Waiting(Option<Epoch>),
    /// The caller starts processes.
    Launching,
    /// Processes connect and restore.
    Starting,
    Running,
    /// The last snapshot is under way.
    LastSnapshot,
    /// Everybody was told to end; killed at the deadline.
    Leaving {
        end: End,
        deadline: Duration,
    },
    /// Everybody is killed. Goes on when all are gone, the snapshot side is settled and the checkpoint in
    /// doubt is verified.
    Clearing {
        end: Option<End>,
        settled: bool,
        verifying: bool,
    },
    Ended,
}

/// The recovery side of the coordinator. See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recovery {
    config: Config,
    state: State,
    watch: Watch,
    /// The checkpoint of the present start.
    from: Option<Epoch>,
    /// Starts so far.
    starts: u32,
    /// Restarts since the last new checkpoint.
    in_vain: u32,
    terminated: bool,
    last_ping: Duration,
    next_ping: Duration,
    /// When time was last told, to notice that the coordinator itself was held up.
    last_now: Duration,
    outputs: VecDeque<Output>,
}

impl Recovery {
    /// A job that is to be started, or gone on with.
    #[must_use]
    pub fn new(config: Config, now: Duration) -> Self {
        Self {
            state: State::Choosing,
            watch: Watch::none(),
            from: None,
            starts: 0,
            in_vain: 0,
            terminated: false,
            last_ping: now,
            next_ping: now,
            last_now: now,
            outputs: VecDeque::from([Output::Choose]),
            config,
        }
    }

    /// The next thing to do, if any. To be called until it returns `None` after every `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called next, if nothing else happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match &self.state {
            State::Starting | State::Running | State::LastSnapshot => {
                let overdue = self
                    .watch
                    .next_deadline(self.config.start_timeout, self.config.heartbeat_timeout);
                Some(overdue.map_or(self.next_ping, |at| at.min(self.next_ping)))
            }
            State::Waiting(_) => Some(self.config.not_before),
            State::Leaving { deadline, .. } => {
                let certain = self.watch.next_certain();
                Some(certain.map_or(*deadline, |at| at.min(*deadline)))
            }
            State::Clearing { .. } => self.watch.next_certain(),
            State::Choosing | State::Launching | State::Ended => None,
        }
    }

    /// What the job is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Choosing | State::Waiting(_) => Phase::Choosing,
            State::Launching | State::Starting => Phase::Starting,
            State::Running => Phase::Running,
            State::LastSnapshot => Phase::Stopping,
            State::Leaving {
                end: End::Complete, ..
            } => Phase::Ending,
            State::Leaving { .. } => Phase::Stopping,
            State::Clearing { .. } => Phase::Clearing,
            State::Ended => Phase::Ended,
        }
    }

    /// The checkpoint that the present start began from.
    #[must_use]
    pub fn from(&self) -> Option<Epoch> {
        self.from
    }

    /// Restarts so far.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.starts.saturating_sub(1)
    }

    /// The answer to [`Output::Choose`].
    pub fn handle_chosen(&mut self, choice: Choice) {
        if self.state != State::Choosing {
            return;
        }
        match choice {
            Choice::Checkpoint(epoch) => self.launch(self.last_now, Some(epoch)),
            Choice::Beginning => self.launch(self.last_now, None),
            Choice::Nothing(reason) => self.ended(End::NoCheckpoint { reason }),
            Choice::Unreadable(reason) => self.ended(End::StoreFailed { reason }),
        }
    }

    /// All processes of [`Output::Start`] are started, so many, or their launcher is.
    pub fn handle_started(&mut self, now: Duration, processes: u32) {
        if self.state == State::Launching {
            self.watch = Watch::new(processes, self.config.proof, now);
            self.last_ping = now;
            self.next_ping = now + self.config.ping_every;
            self.last_now = now;
            self.state = State::Starting;
            if self.terminated {
                self.stop_at_once(None);
            }
        }
    }

    /// [`Output::Start`] failed after this many processes were started; no later start can go better.
    pub fn handle_start_failed(&mut self, now: Duration, started: u32, end: End) {
        if self.state == State::Launching {
            self.watch = Watch::new(started, self.config.proof, now);
            self.clear("the job can't be started", Some(end), false);
        }
    }

    /// The caller found out that no restart can help, as when the program is not the one that wrote the
    /// checkpoint.
    pub fn handle_hopeless(&mut self, reason: &str, end: End) {
        if self.is_up() {
            self.clear(reason, Some(end), false);
            self.go_on_when_clear();
        }
    }

    /// Another coordinator has taken the job over: whatever this one is doing, it ends, and starts nothing.
    pub fn handle_superseded(&mut self, reason: &str) {
        let over = End::Superseded {
            reason: reason.to_owned(),
        };
        match &mut self.state {
            State::Starting | State::Running | State::LastSnapshot => {
                self.clear(reason, Some(over), false);
                self.go_on_when_clear();
            }
            State::Clearing { end, .. } => *end = Some(over),
            State::Choosing | State::Waiting(_) => self.ended(over),
            // Recording a new start fails, or the ranks have finished.
            State::Launching | State::Leaving { .. } | State::Ended => {}
        }
    }

    /// A process has connected and was accepted.
    pub fn handle_connected(&mut self, now: Duration, process: Process) {
        self.watch.heard(process, now);
    }

    /// Something was heard of a process.
    pub fn handle_heard(&mut self, now: Duration, process: Process) {
        self.watch.heard(process, now);
    }

    /// A process gave the sign of life with this number.
    pub fn handle_alive(&mut self, now: Duration, process: Process, number: u64) {
        self.watch.heard(process, now);
        self.watch.alive(process, number);
    }

    /// The number of the newest sign of life of a process, which the next ping acknowledges.
    #[must_use]
    pub fn heard_of(&self, process: Process) -> u64 {
        self.watch.number(process)
    }

    /// A process is out of the job ([`crate::migration::MovesOutput::Released`]): that it ends, is killed or falls silent
    /// is no loss from now on. Before the next start its end is waited for like that of any other.
    pub fn handle_released(&mut self, process: Process) {
        self.watch.release(process);
    }

    /// A process's control connection was closed from its end.
    pub fn handle_disconnected(&mut self, now: Duration, process: Process) {
        self.watch.closed(process, now);
        self.go_on_when_clear();
    }

    /// A process's control connection broke, and does not tell whether the process lives.
    pub fn handle_unreachable(&mut self, process: Process, reason: &str) {
        self.watch.broken(process, reason);
    }

    /// A process can't go on: it can't reach `peer`, or it is not known whom. It does nothing more. Mostly that one has ended, which
    /// shows soon; whoever has told this counts as lost only once `peer` gives a sign of life that it was asked for after this. It is
    /// asked soon.
    pub fn handle_stranded(
        &mut self,
        now: Duration,
        process: Process,
        peer: Option<Process>,
        reason: &str,
    ) {
        self.watch.stranded(process, peer, reason);
        // All that have a link to the same process may tell this one after the other.
        let soonest = self.last_ping + self.config.ping_every / STRANDED_PINGS;
        self.next_ping = self.next_ping.min(soonest.max(now));
    }

    /// The launcher of the processes has ended; `words` tell how, and what it said. Once all have connected, this proves
    /// nothing: neither that they have ended, nor that they did what they should.
    pub fn handle_launcher_exited(&mut self, words: &str) {
        if !self.watch.launcher_exited() {
            return;
        }
        if self.is_up()
            && let Some((process, _)) = self.watch.awaited()
        {
            self.lose(process, Loss::NotLaunched(words.to_owned()));
        }
        self.go_on_when_clear();
    }

    /// What became of each process of the present start, or the one before if that is over.
    pub fn fates(&self) -> impl Iterator<Item = Fate> {
        self.watch.fates()
    }

    /// A process has mapped its slots and restored its ranks.
    pub fn handle_ready(&mut self, now: Duration, process: Process) {
        self.watch.heard(process, now);
        if self.state == State::Starting {
            self.watch.ready(process);
            if self.watch.all_ready() {
                self.state = State::Running;
                self.outputs.push_back(Output::Go);
            }
        }
    }

    /// A process could not restore one of its ranks. Whether the checkpoint is to blame is for the
    /// store to say; the answer comes by [`Self::handle_verified`].
    pub fn handle_restore_failed(&mut self, process: Process, reason: &str) {
        if self.state != State::Starting {
            return;
        }
        let loss = Loss::CannotRestore(reason.to_owned());
        let Some(epoch) = self.from else {
            self.lose(process, loss);
            return;
        };
        self.outputs.push_back(Output::Lost { process, loss });
        self.clear(reason, None, true);
        self.outputs.push_back(Output::Verify { epoch });
    }

    /// The answer to [`Output::Verify`]: why the checkpoint is bad, or `Ok` if all its files verify.
    pub fn handle_verified(&mut self, outcome: Result<(), String>) {
        let State::Clearing { verifying, end, .. } = &mut self.state else {
            return;
        };
        if !std::mem::replace(verifying, false) {
            return;
        }
        match (outcome, self.from) {
            (Err(reason), Some(epoch)) => {
                self.outputs.push_back(Output::MarkBad { epoch, reason });
            }
            _ if end.is_none() => {
                let last = "a process can't restore a checkpoint whose files verify";
                *end = Self::count_restart(&mut self.in_vain, self.config.max_restarts, last);
            }
            _ => {}
        }
        self.go_on_when_clear();
    }

    /// A process ended.
    pub fn handle_exited(&mut self, process: Process, exited: Exit) {
        if !self.watch.exited(process) {
            return;
        }
        match self.state {
            State::Starting | State::Running | State::LastSnapshot
                if !self.watch.is_released(process) =>
            {
                self.judge_exit(process, exited);
            }
            _ => self.go_on_when_clear(),
        }
    }

    /// A rank ended with an error or a panic of its own.
    pub fn handle_rank_failed(&mut self, process: Process, rank: Rank, code: i32, message: String) {
        if self.is_up() {
            let reason = format!("{rank} failed with code {code}");
            let end = End::SolverFailed {
                process,
                rank: Some(rank),
                code,
                message,
            };
            self.clear(&reason, Some(end), false);
        }
    }

    /// A new checkpoint is committed: failures before it no longer count.
    pub fn handle_committed(&mut self) {
        self.in_vain = 0;
    }

    /// The snapshot side has no undecided epoch (the answer to [`Output::Close`]).
    pub fn handle_settled(&mut self) {
        if let State::Clearing { settled, .. } = &mut self.state {
            *settled = true;
            self.go_on_when_clear();
        }
    }

    /// Every rank finished and the snapshot side has closed.
    pub fn handle_complete(&mut self, now: Duration) {
        if self.is_up() {
            self.leave(now, Output::End, End::Complete);
        }
    }

    /// Somebody wants the job to stop. The first time it gets a last checkpoint if it runs; the second
    /// time it ends at once.
    pub fn handle_termination(&mut self) {
        let again = std::mem::replace(&mut self.terminated, true);
        match &mut self.state {
            State::Running => {
                self.state = State::LastSnapshot;
                self.outputs.push_back(Output::LastSnapshot);
            }
            State::Starting => self.stop_at_once(None),
            State::LastSnapshot | State::Leaving { .. } if again => {
                if matches!(
                    self.state,
                    State::Leaving {
                        end: End::Complete,
                        ..
                    }
                ) {
                    self.clear("told to end at once", Some(End::Complete), false);
                } else {
                    self.stop_at_once(Some("told to end at once".to_owned()));
                }
            }
            State::Choosing | State::Waiting(_) => self.ended(End::Stopped { without_last: None }),
            State::Clearing { end, .. } if end.is_none() => {
                *end = Some(End::Stopped { without_last: None });
            }
            _ => {}
        }
    }

    /// The answer to [`Output::LastSnapshot`]: why there is no last checkpoint, or `None`.
    pub fn handle_last_snapshot(&mut self, now: Duration, without_last: Option<String>) {
        if self.state == State::LastSnapshot {
            self.leave(now, Output::Stop, End::Stopped { without_last });
        }
    }

    /// The time of [`Self::poll_timeout`] has come. Harmless if it has not.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &self.state {
            State::Starting | State::Running | State::LastSnapshot => self.watch_over(now),
            State::Leaving { end, deadline } if now >= *deadline => {
                let end = end.clone();
                self.clear("did not end in time when told to", Some(end), false);
            }
            State::Waiting(from) => {
                let from = *from;
                self.launch(now, from);
            }
            State::Leaving { .. } | State::Clearing { .. } => {
                self.watch.expire(now);
                self.go_on_when_clear();
            }
            _ => {}
        }
        self.last_now = now;
    }

    fn is_up(&self) -> bool {
        matches!(
            self.state,
            State::Starting | State::Running | State::LastSnapshot
        )
    }

    fn watch_over(&mut self, now: Duration) {
        // Whoever was stopped for longer than two pings has heard nobody, and proves nothing by it.
        if now.saturating_sub(self.last_now) > 2 * self.config.ping_every {
            self.watch.forgive(now);
        }
        if now >= self.next_ping {
            self.last_ping = now;
            self.next_ping = now + self.config.ping_every;
            self.watch.ping();
            self.outputs.push_back(Output::Ping);
        }
        let overdue = self.watch.overdue(
            now,
            self.config.start_timeout,
            self.config.heartbeat_timeout,
        );
        if let Some((process, loss)) = overdue {
            self.lose(process, loss);
        }
    }

    fn judge_exit(&mut self, process: Process, exited: Exit) {
        let connected = self.watch.connected(process);
        let first_start = self.starts == 1 && self.state == State::Starting;
        match exited {
            Exit::Code(exit::STOPPED) | Exit::Signal(_) => {
                self.lose(process, Loss::Exited(exited));
            }
            Exit::Code(exit::LIBRARY) if first_start => {
                let reason = format!("{process} could not start; it has said why");
                self.clear(
                    &reason,
                    Some(End::Broken {
                        reason: reason.clone(),
                    }),
                    false,
                );
            }
            Exit::Code(exit::LIBRARY) => self.lose(process, Loss::Exited(exited)),
            Exit::Code(_) if !connected && self.state == State::Starting => {
                let reason = format!(
                    "{process} {exited} without having connected; is the program built with libckpt, and its main function marked #[libckpt::main]?"
                );
                self.clear(
                    &reason,
                    Some(End::CannotStart {
                        reason: reason.clone(),
                    }),
                    false,
                );
            }
            Exit::Code(0) => {
                let reason = format!(
                    "{process} exited with code 0 before every rank had finished; a rank must return from main instead of calling exit"
                );
                self.clear(
                    &reason,
                    Some(End::Broken {
                        reason: reason.clone(),
                    }),
                    false,
                );
            }
            Exit::Code(code) => {
                let message = format!("{process} {exited}");
                let end = End::SolverFailed {
                    process,
                    rank: None,
                    code,
                    message: message.clone(),
                };
                self.clear(&message, Some(end), false);
            }
        }
        self.go_on_when_clear();
    }

    fn lose(&mut self, process: Process, loss: Loss) {
        let reason = format!("{process} {loss}");
        let end = match (&loss, &self.state) {
            (Loss::NotLaunched(_), State::Starting) if self.starts == 1 => Some(End::CannotStart {
                reason: reason.clone(),
            }),
            (Loss::NeverConnected(_), State::Starting) if self.starts == 1 => {
                Some(End::CannotStart {
                    reason: format!(
                        "{reason}; is the program built with libckpt, and its main function marked #[libckpt::main]?"
                    ),
                })
            }
            (_, State::LastSnapshot) => Some(End::Stopped {
                without_last: Some(reason.clone()),
            }),
            _ => Self::count_restart(&mut self.in_vain, self.config.max_restarts, &reason),
        };
        self.outputs.push_back(Output::Lost { process, loss });
        self.clear(&reason, end, false);
    }

    /// One more failure: the end, if it is one too many.
    fn count_restart(in_vain: &mut u32, max_restarts: u32, last: &str) -> Option<End> {
        if *in_vain >= max_restarts {
            return Some(End::RestartsUsedUp {
                restarts: *in_vain,
                last: last.to_owned(),
            });
        }
        *in_vain += 1;
        None
    }

    fn launch(&mut self, now: Duration, from: Option<Epoch>) {
        if now < self.config.not_before {
            self.state = State::Waiting(from);
            return;
        }
        self.from = from;
        self.starts += 1;
        self.state = State::Launching;
        self.outputs.push_back(Output::Start { from });
    }

    fn leave(&mut self, now: Duration, order: Output, end: End) {
        self.outputs.push_back(order);
        self.state = State::Leaving {
            end,
            deadline: now + self.config.stop_grace,
        };
        self.go_on_when_clear();
    }

    fn stop_at_once(&mut self, without_last: Option<String>) {
        self.clear(
            "the job was told to stop",
            Some(End::Stopped { without_last }),
            false,
        );
    }

    fn clear(&mut self, reason: &str, end: Option<End>, verifying: bool) {
        self.state = State::Clearing {
            end,
            settled: false,
            verifying,
        };
        self.outputs.push_back(Output::Kill);
        self.outputs.push_back(Output::Close {
            reason: reason.to_owned(),
        });
    }

    fn go_on_when_clear(&mut self) {
        if self.watch.any_lives() {
            return;
        }
        match &self.state {
            State::Leaving { end, .. } => {
                let end = end.clone();
                self.ended(end);
            }
            State::Clearing {
                end,
                settled: true,
                verifying: false,
            } => match end.clone() {
                Some(end) => self.ended(end),
                None => {
                    self.state = State::Choosing;
                    self.outputs.push_back(Output::Choose);
                }
            },
            _ => {}
        }
    }

    fn ended(&mut self, end: End) {
        self.state = State::Ended;
        self.outputs.push_back(Output::Ended(end));
    }
}
