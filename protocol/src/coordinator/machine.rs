//! The phases of a snapshot, from the decision to take it to its commit or its end.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::collection::{Collection, Part};
use super::interface::{
    Config, Last, Need, Output, Phase, Published, RequestId, Resolution, Status,
};
use crate::ids::{Epoch, Process, Rank};

/// How long to wait before the store is asked again what became of a publishing.
const RESOLVE_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Snapshot {
    Preparing,
    Collecting {
        parts: Box<Collection>,
        /// When to name those that have not cut, or, once all have, when to give up.
        deadline: Duration,
    },
    Publishing,
    Resolving {
        /// When to ask the store again; `None` while a question is open.
        again_at: Option<Duration>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Running,
    /// Termination was asked for; `tries` snapshots may still be started for it.
    Terminating {
        tries: u32,
    },
    /// A process was lost: nothing new is started, what is open gets decided.
    Closed,
    /// `End` or `Stop` was said.
    Over,
}

/// The snapshot side of the coordinator. See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    config: Config,
    newest: Epoch,
    committed: Option<Epoch>,
    life: Life,
    /// The snapshot under way and its start.
    current: Option<(Epoch, Duration, Snapshot)>,
    next_at: Option<Duration>,
    /// From when the time to the next snapshot is counted: the start of the last one, or its abort.
    since: Duration,
    /// The last snapshot was aborted because files that it built on were gone.
    rebased: bool,
    /// Requests that the snapshot under way answers.
    serving: Vec<RequestId>,
    /// Requests that came after the cut may have begun: they want a later one.
    waiting: Vec<RequestId>,
    finished: BTreeSet<Rank>,
    /// Processes that are out of the job: they have no part of a snapshot.
    released: BTreeSet<Process>,
    /// Ranks are being moved: no snapshot begins.
    held: bool,
    /// The time for a snapshot came while it was held.
    due: bool,
    outputs: VecDeque<Output>,
}

impl Coordinator {
    /// A coordinator for an incarnation whose ranks have just been let go.
    #[must_use]
    pub fn new(config: Config, now: Duration) -> Self {
        Self {
            newest: config.newest,
            committed: config.committed,
            life: Life::Running,
            current: None,
            next_at: config.every.map(|every| now.saturating_add(every)),
            since: now,
            rebased: false,
            serving: Vec::new(),
            waiting: Vec::new(),
            finished: BTreeSet::new(),
            released: BTreeSet::new(),
            held: false,
            due: false,
            outputs: VecDeque::new(),
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
        match &self.current {
            Some((_, _, Snapshot::Collecting { deadline, .. })) => Some(*deadline),
            Some((_, _, Snapshot::Resolving { again_at })) => *again_at,
            Some(_) => None,
            None if self.life == Life::Running && !self.due => self.next_at,
            None => None,
        }
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> Status {
        let (phase, not_cut) = match &self.current {
            None => (Phase::Idle, Vec::new()),
            Some((_, _, Snapshot::Preparing)) => (Phase::Preparing, Vec::new()),
            Some((_, _, Snapshot::Collecting { parts, .. })) => {
                (Phase::Collecting, parts.not_cut())
            }
            Some((_, _, Snapshot::Publishing)) => (Phase::Publishing, Vec::new()),
            Some((_, _, Snapshot::Resolving { .. })) => (Phase::Resolving, Vec::new()),
        };
        Status {
            phase,
            snapshot: self.current.as_ref().map(|(epoch, ..)| *epoch),
            committed: self.committed,
            not_cut,
            next_at: match self.life {
                Life::Running => self.next_at,
                _ => None,
            },
            finished: u32::try_from(self.finished.len()).unwrap_or(u32::MAX),
        }
    }

    /// Whether no epoch is undecided: the store's newest checkpoint is final for this incarnation
    /// once the coordinator was told of a loss ([`Self::handle_lost`]).
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.current.is_none()
    }

    /// The newest committed checkpoint.
    #[must_use]
    pub fn committed(&self) -> Option<Epoch> {
        self.committed
    }

    /// What is wanted of the moves of ranks.
    #[must_use]
    pub fn need(&self) -> Need {
        match self.life {
            Life::Closed | Life::Over => Need::Over,
            _ if self.current.is_some() => Need::UnderWay,
            Life::Terminating { .. } => Need::Last,
            Life::Running if self.due || !self.waiting.is_empty() => Need::Due,
            Life::Running => Need::None,
        }
    }

    /// Whether moves of ranks are under way, or next: no snapshot begins while they are. [`crate::migration::settle`] calls it.
    pub fn handle_moves(&mut self, now: Duration, held: bool) {
        if std::mem::replace(&mut self.held, held) != held {
            self.advance(now);
        }
    }

    /// A rank is another process's from now on. Only while no snapshot is under way, as [`Self::handle_moves`] has it.
    pub fn handle_placed(&mut self, rank: Rank, process: Process) {
        if let Some(place) = self.config.placement.get_mut(rank.index()) {
            *place = process;
        }
    }

    /// A process is out of the job, and hosts no rank. Only while no snapshot is under way, as [`Self::handle_moves`] has it.
    pub fn handle_released(&mut self, process: Process) {
        self.released.insert(process);
    }

    /// Somebody asks for a checkpoint of how things are now.
    ///
    /// A snapshot that is already announced may have cut before the request, so it does not answer it.
    pub fn handle_request(&mut self, now: Duration, request: RequestId) {
        match (self.life, &self.current) {
            (Life::Closed | Life::Over, _) => self.outputs.push_back(Output::Answer {
                request,
                outcome: Err("the job is ending or about to restart; ask again later".to_owned()),
            }),
            (_, Some((_, _, Snapshot::Preparing))) => self.serving.push(request),
            (_, Some(_)) => self.waiting.push(request),
            (_, None) => {
                self.waiting.push(request);
                self.advance(now);
            }
        }
    }

    /// From now on, so much time is to be from one snapshot's start to the next one's, also to the next one from now.
    pub fn handle_every(&mut self, now: Duration, every: Option<Duration>) {
        if self.config.every == every {
            return;
        }
        self.config.every = every;
        if self.current.is_none() {
            self.next_at = every.map(|every| self.since.saturating_add(every).max(now));
            self.due = self.held && self.next_at.is_some_and(|at| at <= now);
        }
    }

    /// The job is to stop after a last checkpoint. A snapshot under way serves as that; if it fails,
    /// one more is tried.
    pub fn handle_termination(&mut self, now: Duration) {
        if self.life == Life::Running {
            let tries = if self.current.is_some() { 1 } else { 2 };
            self.life = Life::Terminating { tries };
            self.advance(now);
        }
    }

    /// The answer to [`Output::Prepare`].
    pub fn handle_prepared(&mut self, now: Duration, epoch: Epoch, outcome: Result<(), String>) {
        let Some((current, _, snapshot @ Snapshot::Preparing)) = &mut self.current else {
            return;
        };
        if *current != epoch {
            return;
        }
        match outcome {
            Ok(()) => {
                *snapshot = Snapshot::Collecting {
                    parts: Box::new(Collection::new(
                        self.config.processes,
                        &self.released,
                        self.config.placement.len(),
                    )),
                    deadline: now + self.config.cut_patience,
                };
                self.outputs.push_back(Output::Announce { epoch });
            }
            Err(reason) => self.abort(now, format!("its directory can't be made: {reason}"), true),
        }
    }

    /// A process has captured its ranks.
    pub fn handle_cut(&mut self, now: Duration, process: Process, epoch: Epoch, stall_us: u64) {
        let store_timeout = self.config.store_timeout;
        if let Some((parts, deadline)) = self.collecting(epoch) {
            let before = parts.all_cut();
            parts.add_cut(process, stall_us);
            if !before && parts.all_cut() {
                *deadline = now + store_timeout;
            }
        }
    }

    /// A process's part is durable.
    pub fn handle_stored(&mut self, now: Duration, process: Process, epoch: Epoch, part: Part) {
        let placement = std::mem::take(&mut self.config.placement);
        let store_timeout = self.config.store_timeout;
        let outcome = self.collecting(epoch).map(|(parts, deadline)| {
            let before = parts.all_cut();
            let added = parts.add_stored(process, epoch, part, &placement);
            if !before && parts.all_cut() {
                *deadline = now + store_timeout;
            }
            added.map(|()| parts.all_stored())
        });
        self.config.placement = placement;
        match outcome {
            Some(Ok(true)) => self.publish(now),
            Some(Err(unsound)) => self.abort(now, unsound.to_string(), true),
            Some(Ok(false)) | None => {}
        }
    }

    /// A process can't take or store the snapshot.
    pub fn handle_failed(&mut self, now: Duration, process: Process, epoch: Epoch, reason: &str) {
        if self.collecting(epoch).is_some() {
            self.abort(now, format!("{process}: {reason}"), true);
        }
    }

    /// A process can't read a file that its part of the snapshot builds on.
    pub fn handle_base_failed(
        &mut self,
        now: Duration,
        process: Process,
        epoch: Epoch,
        reason: &str,
    ) {
        if self.collecting(epoch).is_some() {
            self.give_up(now, format!("{process}: {reason}"), true, true);
        }
    }

    /// The answer to [`Output::Publish`].
    pub fn handle_published(&mut self, now: Duration, epoch: Epoch, outcome: Published) {
        let Some((current, _, snapshot @ Snapshot::Publishing)) = &mut self.current else {
            return;
        };
        if *current != epoch {
            return;
        }
        match outcome {
            Published::Done => self.commit(now),
            Published::NotTried(reason) => {
                self.abort(
                    now,
                    format!("the manifest can't be written: {reason}"),
                    true,
                );
            }
            Published::BaseGone(reason) => self.give_up(now, reason, true, true),
            Published::Unknown(_) => {
                *snapshot = Snapshot::Resolving { again_at: None };
                self.outputs.push_back(Output::Resolve { epoch });
            }
        }
    }

    /// The answer to [`Output::Resolve`].
    pub fn handle_resolved(&mut self, now: Duration, epoch: Epoch, resolution: Resolution) {
        let Some((current, _, Snapshot::Resolving { again_at })) = &mut self.current else {
            return;
        };
        if *current != epoch {
            return;
        }
        match resolution {
            Resolution::Present => self.commit(now),
            Resolution::Absent => {
                self.abort(
                    now,
                    "the manifest's rename did not happen".to_owned(),
                    false,
                );
            }
            Resolution::Unreadable(_) => *again_at = Some(now + RESOLVE_AGAIN),
        }
    }

    /// A rank has returned from the solver's main.
    pub fn handle_rank_finished(&mut self, now: Duration, rank: Rank) {
        if rank.index() < self.config.placement.len() {
            self.finished.insert(rank);
            if self.all_finished() {
                if let Some((_, _, Snapshot::Preparing | Snapshot::Collecting { .. })) =
                    self.current
                {
                    self.abort(now, "every rank has finished".to_owned(), true);
                } else {
                    self.advance(now);
                }
            }
        }
    }

    /// A process of this incarnation is lost, or the job ends for another reason: nothing new is
    /// started. What is still open is aborted, or decided first if its rename was tried
    /// ([`Self::is_settled`]).
    pub fn handle_lost(&mut self, now: Duration, reason: &str) {
        if matches!(self.life, Life::Over | Life::Closed) {
            return;
        }
        self.life = Life::Closed;
        if let Some((_, _, Snapshot::Preparing | Snapshot::Collecting { .. })) = self.current {
            self.abort(now, reason.to_owned(), true);
        }
        self.refuse_waiting(reason);
    }

    /// The time of [`Self::poll_timeout`] has come. Harmless if it has not.
    pub fn handle_timeout(&mut self, now: Duration) {
        let cut_patience = self.config.cut_patience;
        match &mut self.current {
            None => self.advance(now),
            Some((epoch, _, Snapshot::Collecting { parts, deadline })) if now >= *deadline => {
                if parts.all_cut() {
                    let late: Vec<String> =
                        parts.not_stored().iter().map(Process::to_string).collect();
                    let reason = format!("not stored in time by {}", late.join(", "));
                    self.abort(now, reason, true);
                } else {
                    *deadline = now + cut_patience;
                    self.outputs.push_back(Output::Waiting {
                        epoch: *epoch,
                        processes: parts.not_cut(),
                    });
                }
            }
            Some((epoch, _, Snapshot::Resolving { again_at })) if Some(now) >= *again_at => {
                if again_at.take().is_some() {
                    self.outputs.push_back(Output::Resolve { epoch: *epoch });
                }
            }
            Some(_) => {}
        }
    }

    fn all_finished(&self) -> bool {
        self.finished.len() == self.config.placement.len()
    }

    fn collecting(&mut self, epoch: Epoch) -> Option<(&mut Collection, &mut Duration)> {
        match &mut self.current {
            Some((current, _, Snapshot::Collecting { parts, deadline })) if *current == epoch => {
                Some((parts, deadline))
            }
            _ => None,
        }
    }

    fn publish(&mut self, now: Duration) {
        let Some((epoch, _, snapshot @ Snapshot::Collecting { .. })) = &mut self.current else {
            return;
        };
        let epoch = *epoch;
        let Snapshot::Collecting { parts, .. } = std::mem::replace(snapshot, Snapshot::Publishing)
        else {
            return;
        };
        match parts.finish(epoch) {
            Ok(collected) => self.outputs.push_back(Output::Publish(Box::new(collected))),
            Err(unsound) => self.abort(now, unsound.to_string(), true),
        }
    }

    fn commit(&mut self, now: Duration) {
        let Some((epoch, started, _)) = self.current.take() else {
            return;
        };
        self.committed = Some(epoch);
        self.rebased = false;
        self.outputs.push_back(Output::Commit { epoch });
        for request in self.serving.drain(..) {
            self.outputs.push_back(Output::Answer {
                request,
                outcome: Ok(epoch),
            });
        }
        self.since = started;
        self.next_at = self.config.every.map(|every| started.saturating_add(every));
        if matches!(self.life, Life::Terminating { .. }) && !self.all_finished() {
            self.stop(Last::Committed(epoch));
        } else {
            self.advance(now);
        }
    }

    fn abort(&mut self, now: Duration, reason: String, remove: bool) {
        self.give_up(now, reason, remove, false);
    }

    fn give_up(&mut self, now: Duration, reason: String, remove: bool, rebase: bool) {
        let Some((epoch, ..)) = self.current.take() else {
            return;
        };
        // The next one holds whole images, so it can do what this one could not. It is not hurried a second time.
        let again = matches!(self.life, Life::Running | Life::Terminating { .. });
        let hurry = rebase && !std::mem::replace(&mut self.rebased, rebase) && again;
        if hurry {
            self.waiting.append(&mut self.serving);
        }
        for request in self.serving.drain(..) {
            self.outputs.push_back(Output::Answer {
                request,
                outcome: Err(format!("{epoch} was aborted: {reason}")),
            });
        }
        self.outputs.push_back(Output::Abort {
            epoch,
            reason: reason.clone(),
            remove,
            rebase,
        });
        let pause = |every| if hurry { Duration::ZERO } else { every };
        self.since = now;
        self.next_at = self
            .config
            .every
            .map(|every| now.saturating_add(pause(every)));
        if self.life == (Life::Terminating { tries: 0 }) && !self.all_finished() {
            self.stop(Last::Failed(reason));
        } else {
            self.advance(now);
        }
    }

    fn stop(&mut self, last: Last) {
        self.life = Life::Over;
        self.refuse_waiting("the job is stopping");
        self.outputs.push_back(Output::Stop { last });
    }

    fn refuse_waiting(&mut self, reason: &str) {
        for request in self.waiting.drain(..) {
            self.outputs.push_back(Output::Answer {
                request,
                outcome: Err(reason.to_owned()),
            });
        }
    }

    /// Decides what to do when no snapshot is under way.
    fn advance(&mut self, now: Duration) {
        if self.current.is_some() || matches!(self.life, Life::Over | Life::Closed) {
            return;
        }
        if self.all_finished() {
            self.life = Life::Over;
            self.refuse_waiting("every rank has finished");
            self.outputs.push_back(Output::End);
            return;
        }
        let due = self.next_at.is_some_and(|at| now >= at);
        if self.held {
            self.due |= due;
        } else if let Life::Terminating { tries } = &mut self.life {
            *tries = tries.saturating_sub(1);
            self.start(now);
        } else if !self.waiting.is_empty() || due {
            self.start(now);
        }
    }

    fn start(&mut self, now: Duration) {
        self.due = false;
        self.newest = self.newest.next();
        let epoch = self.newest;
        self.serving.append(&mut self.waiting);
        self.current = Some((epoch, now, Snapshot::Preparing));
        self.outputs.push_back(Output::Prepare { epoch });
    }
}
