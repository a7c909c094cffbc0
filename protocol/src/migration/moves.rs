//! The coordinator's side: which moves are under way, how far they are, and who owns a rank.
//!
//! The caller tells what happened by `handle_*`, then calls [`settle`], then does what [`Moves::poll_output`] says. Times are
//! durations since any fixed start, as for [`crate::coordinator`].
//!
//! - A process takes part in one transfer at a time, as source or as target; transfers of different processes go on beside
//!   each other. What follows the record does not hold up the next transfer.
//! - A rank moves again only when its last move is over. So no rank has two forwarding entries, none leads back, and nothing
//!   that is on its way tells of a place that two moves have made untrue.
//! - A snapshot that is due waits for the moves under way, but not longer than [`Config::snapshot_patience`] for those that
//!   are not recorded: they are given up. One that is due before the job stops waits for none of those.
//! - A move that is asked for while a snapshot is due or under way waits; then all that can begin do so, before the next
//!   snapshot. So neither starves the other.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::interface::{Ask, Config, Done, MovesOutput as Output, Step, Underway};
use super::messages::{MoveDirective, MoveMode, MoveNeeds, MoveReport};
use super::release::Releases;
use crate::coordinator::{Coordinator, Need, RequestId};
use crate::faults::{Fault, Faults, Sound};
use crate::ids::{Move, Process, Rank};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Active {
    request: RequestId,
    rank: Rank,
    from: Process,
    to: Process,
    mode: MoveMode,
    step: Step,
    /// Before the record: when it is given up. After it: when those that it waits for are named.
    deadline: Duration,
    /// Who has learned, by process.
    learned: Vec<bool>,
    confirmations: u32,
    /// The target needs the source no more.
    complete: bool,
    /// Of a move that is given up: why, and who has not undone it.
    given_up: Option<(String, Vec<Process>)>,
}

impl Active {
    fn is_recorded(&self) -> bool {
        matches!(self.step, Step::Spreading | Step::Forgetting)
    }

    /// Whether it can still be given up.
    fn is_open(&self) -> bool {
        matches!(
            self.step,
            Step::Examining | Step::Preparing | Step::Transferring
        )
    }

    fn has_learned(&self, process: Process) -> bool {
        self.learned.get(process.index()).copied().unwrap_or(false)
    }

    /// Whether the transfer occupies this process.
    fn occupies(&self, process: Process) -> bool {
        let over = self.is_recorded()
            && self.complete
            && self.has_learned(self.to)
            && self.has_learned(self.from);
        !over && (self.from == process || self.to == process)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Moves<F: Faults = Sound> {
    pub(super) config: Config,
    pub(super) placement: Vec<Process>,
    last: Move,
    pub(super) queue: VecDeque<(RequestId, Ask)>,
    active: BTreeMap<Move, Active>,
    /// Records that the snapshot side has not been told of.
    recorded: Vec<(Rank, Process)>,
    /// A snapshot was under way since moves last began: moves that wait are next.
    turn: bool,
    /// Which processes are drained and released.
    pub(super) releases: Releases,
    /// Until when the snapshot that is due waits for moves that are not recorded.
    snapshot_waits_until: Option<Duration>,
    /// Nothing begins any more, and why.
    over: Option<&'static str>,
    pub(super) outputs: VecDeque<Output>,
    faults: F,
}

/// Has the two sides of the coordinator exclude each other: no snapshot begins while a move is under way, no move while a
/// snapshot is. To be called after every `handle_*` of either, before their outputs are taken.
pub fn settle<F: Faults>(now: Duration, coordinator: &mut Coordinator, moves: &mut Moves<F>) {
    moves.handle_snapshots(now, coordinator.need());
    for (rank, process) in moves.take_recorded() {
        coordinator.handle_placed(rank, process);
    }
    for process in moves.take_released() {
        coordinator.handle_released(process);
    }
    coordinator.handle_moves(now, moves.holds_snapshots());
}

impl Moves {
    /// The moves of an incarnation whose ranks have just been let go.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::with_faults(config, Sound)
    }
}

impl<F: Faults> Moves<F> {
    /// Like [`Moves::new`], with a deliberate mistake: for the tests of the tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_faults(config: Config, faults: F) -> Self {
        Self {
            placement: config.placement.clone(),
            releases: Releases::new(config.processes, &config.drained),
            config,
            last: Move(0),
            queue: VecDeque::new(),
            active: BTreeMap::new(),
            recorded: Vec::new(),
            turn: false,
            snapshot_waits_until: None,
            over: None,
            outputs: VecDeque::new(),
            faults,
        }
    }

    /// The next thing to do, if any. To be called until it returns `None` after every [`settle`].
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called next, if nothing else happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let deadlines = self.active.values().map(|active| active.deadline);
        let open = self.active.values().any(Active::is_open);
        let snapshot = self.snapshot_waits_until.filter(|_| open);
        let release = self.releases.deadline();
        deadlines.chain(snapshot).chain(release).min()
    }

    /// The record: the process of each rank.
    #[must_use]
    pub fn placement(&self) -> &[Process] {
        &self.placement
    }

    /// The moves under way.
    pub fn underway(&self) -> impl Iterator<Item = Underway> {
        self.active.iter().map(|(&id, active)| Underway {
            id,
            request: active.request,
            rank: active.rank,
            from: active.from,
            to: active.to,
            step: active.step,
        })
    }

    /// How many moves wait for their begin.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether no snapshot may begin.
    #[must_use]
    pub fn holds_snapshots(&self) -> bool {
        let wants = || !self.queue.is_empty() || self.next_to_release().is_some();
        !self.active.is_empty()
            || self.releases.is_under_way()
            || (self.turn && self.over.is_none() && wants())
    }

    /// Records that the snapshot side has not been told of ([`Coordinator::handle_placed`]): which rank, and its process.
    pub fn take_recorded(&mut self) -> Vec<(Rank, Process)> {
        std::mem::take(&mut self.recorded)
    }

    /// Releases that the snapshot side has not been told of ([`Coordinator::handle_released`]).
    pub fn take_released(&mut self) -> Vec<Process> {
        self.releases.take_untold()
    }

    /// Somebody wants a rank moved.
    pub fn handle_request(&mut self, request: RequestId, ask: Ask) {
        let ranks = self.config.placement.len();
        let processes = self.config.processes;
        let refusal = if let Some(over) = self.over {
            over.to_owned()
        } else if ask.rank.index() >= ranks {
            let rank = ask.rank;
            format!("there is no {rank}: the job has {ranks} ranks")
        } else if ask.to.0 >= processes {
            let to = ask.to;
            format!("there is no {to}: the job has {processes} processes")
        } else if let Some(why) = self.releases.closed(ask.to) {
            format!("{} {why}: no rank can go there", ask.to)
        } else {
            self.queue.push_back((request, ask));
            return;
        };
        self.answer(request, Err(refusal));
    }

    /// A process reports about a move. Late words about moves that were given up say nothing.
    pub fn handle_report(&mut self, now: Duration, process: Process, report: MoveReport) {
        let Some(id) = report.id() else {
            if let MoveReport::Parted { process: released } = report {
                self.handle_parted(process, released);
            }
            return;
        };
        let end_patience = self.config.end_patience;
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let (from, to) = (active.from, active.to);
        match (report, active.step) {
            (MoveReport::Movable { needs, .. }, Step::Examining) if process == from => {
                active.step = Step::Preparing;
                self.prepare(id, needs);
            }
            (MoveReport::Prepared { .. }, Step::Preparing) if process == to => {
                active.step = Step::Transferring;
                self.tell(from, MoveDirective::Transfer { id });
            }
            // The one place where the owner of a rank changes.
            (MoveReport::Received { .. }, Step::Transferring) if process == to => {
                active.step = Step::Spreading;
                active.deadline = now.saturating_add(end_patience);
                active.learned = self.releases.released();
                active.complete = active.mode != MoveMode::Postcopy;
                let rank = active.rank;
                self.placement[rank.index()] = to;
                self.recorded.push((rank, to));
                let directive = MoveDirective::Moved { id, rank, from, to };
                self.outputs.push_back(Output::TellAll { directive });
            }
            (MoveReport::Refused { reason, .. }, _)
                if active.is_open() && (process == from || process == to) =>
            {
                self.give_up(now, id, &format!("{process}: {reason}"));
            }
            (MoveReport::GivenUp { .. }, Step::GivingUp) => {
                let Some((reason, awaited)) = &mut active.given_up else {
                    return;
                };
                awaited.retain(|other| *other != process);
                if awaited.is_empty() {
                    let (request, reason) = (active.request, std::mem::take(reason));
                    self.active.remove(&id);
                    self.answer(request, Err(reason));
                }
            }
            (MoveReport::Learned { confirmed, .. }, Step::Spreading) => {
                if let Some(learned) = active.learned.get_mut(process.index())
                    && !std::mem::replace(learned, true)
                {
                    active.confirmations += u32::from(confirmed);
                }
                self.forget_if_due(id);
            }
            (MoveReport::Complete { .. }, Step::Spreading) if process == to => {
                active.complete = true;
                self.forget_if_due(id);
            }
            (MoveReport::Forgotten { .. }, Step::Forgetting) if process == from => {
                let (request, rank) = (active.request, active.rank);
                self.active.remove(&id);
                self.answer(request, Ok(Done { rank, from, to }));
            }
            _ => {}
        }
    }

    /// A process of this incarnation is lost, or the job ends: the moves are forgotten. A restart begins from the newest
    /// checkpoint, with a placement of its own.
    pub fn handle_lost(&mut self, reason: &'static str) {
        self.over.get_or_insert(reason);
        let active = std::mem::take(&mut self.active).into_values();
        let queued = std::mem::take(&mut self.queue).into_iter();
        let requests: Vec<RequestId> = active
            .map(|active| active.request)
            .chain(queued.map(|(request, _)| request))
            .collect();
        for request in requests {
            self.answer(request, Err(reason.to_owned()));
        }
        self.snapshot_waits_until = None;
        self.releases.give_up();
    }

    /// How the snapshot side is. Begins what waits, or gives up what is in the way. [`settle`] calls it.
    pub fn handle_snapshots(&mut self, now: Duration, need: Need) {
        if need != Need::Due {
            self.snapshot_waits_until = None;
        }
        match need {
            Need::Over => {
                self.handle_lost("the job is ending or about to restart; ask again later")
            }
            Need::Last => {
                let reason = "the job is stopping";
                self.over.get_or_insert(reason);
                for (request, _) in std::mem::take(&mut self.queue) {
                    self.answer(request, Err(reason.to_owned()));
                }
                self.give_up_open(now, reason);
            }
            Need::UnderWay => self.turn = true,
            Need::Due if self.is_quiet() && self.turn => self.begin(now),
            Need::Due if self.is_quiet() => {}
            Need::Due => {
                let until = now.saturating_add(self.config.snapshot_patience);
                self.snapshot_waits_until.get_or_insert(until);
            }
            Need::None => self.begin(now),
        }
    }

    /// The time of [`Self::poll_timeout`] has come. Harmless if it has not.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.snapshot_waits_until.is_some_and(|until| now >= until) {
            self.give_up_open(
                now,
                "a checkpoint was due, and had waited long enough; ask again",
            );
        }
        self.name_late_links(now);
        let late = self.active.iter().filter(|(_, it)| now >= it.deadline);
        let late: Vec<Move> = late.map(|(&id, _)| id).collect();
        for id in late {
            let end_patience = self.config.end_patience;
            let Some(active) = self.active.get_mut(&id) else {
                continue;
            };
            let processes = match active.step {
                Step::Spreading => {
                    let named = (0..).map(Process).zip(&active.learned);
                    let mut named: Vec<Process> = named.filter(|it| !it.1).map(|it| it.0).collect();
                    if named.is_empty() {
                        named.push(active.to);
                    }
                    named
                }
                Step::Forgetting => vec![active.from],
                Step::GivingUp => active
                    .given_up
                    .as_ref()
                    .map_or_else(Vec::new, |(_, awaited)| awaited.clone()),
                Step::Examining | Step::Preparing | Step::Transferring => {
                    let what = match active.step {
                        Step::Examining => "examined",
                        Step::Preparing => "prepared for",
                        _ => "sent",
                    };
                    let at = match (active.step, active.mode) {
                        (Step::Transferring, MoveMode::Safepoint) => {
                            ": it has come to no safepoint, does its program call libckpt::safepoint()?"
                        }
                        _ => "",
                    };
                    let reason = format!("{} was not {what} in time{at}", active.rank);
                    self.give_up(now, id, &reason);
                    continue;
                }
            };
            active.deadline = now.saturating_add(end_patience);
            self.outputs.push_back(Output::Waiting { id, processes });
        }
    }

    /// Nothing is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.active.is_empty() && !self.releases.is_under_way()
    }

    /// Whether a move under way has this process as its source or target.
    pub(super) fn is_moving(&self, process: Process) -> bool {
        let mut active = self.active.values();
        active.any(|it| it.from == process || it.to == process)
    }

    fn tell(&mut self, process: Process, directive: MoveDirective) {
        self.outputs.push_back(Output::Tell { process, directive });
    }

    fn answer(&mut self, request: RequestId, outcome: Result<Done, String>) {
        self.outputs.push_back(Output::Answer { request, outcome });
    }

    fn prepare(&mut self, id: Move, needs: MoveNeeds) {
        let Some(active) = self.active.get(&id) else {
            return;
        };
        let directive = MoveDirective::Prepare {
            id,
            rank: active.rank,
            from: active.from,
            mode: active.mode,
            needs,
        };
        self.tell(active.to, directive);
    }

    /// Begins every move that waits and is not in the way of another.
    fn begin(&mut self, now: Duration) {
        if self.over.is_some() || self.releases.is_under_way() {
            return;
        }
        // A release has all processes for itself, so it lets no move begin before it.
        if let Some(process) = self.next_to_release() {
            if self.active.is_empty() {
                self.turn = false;
                self.begin_release(now, process);
            }
            return;
        }
        for (request, ask) in std::mem::take(&mut self.queue) {
            let from = self.placement[ask.rank.index()];
            let mut active = self.active.values();
            let blocked =
                active.any(|it| it.rank == ask.rank || it.occupies(from) || it.occupies(ask.to));
            // Nobody overtakes one that waits for the same rank.
            if blocked || self.queue.iter().any(|(_, it)| it.rank == ask.rank) {
                self.queue.push_back((request, ask));
                continue;
            }
            // It was drained while this one waited.
            if from != ask.to
                && let Some(why) = self.releases.closed(ask.to)
            {
                let refusal = format!("{} {why}: no rank can go there", ask.to);
                self.answer(request, Err(refusal));
                continue;
            }
            if from == ask.to {
                let Ask { rank, to, .. } = ask;
                self.answer(request, Ok(Done { rank, from, to }));
                continue;
            }
            self.turn = false;
            self.last = Move(self.last.0 + 1);
            let id = self.last;
            let Ask { rank, to, mode, .. } = ask;
            let active = Active {
                request,
                rank,
                from,
                to,
                mode,
                step: Step::Examining,
                deadline: now.saturating_add(ask.within),
                learned: Vec::new(),
                confirmations: 0,
                complete: false,
                given_up: None,
            };
            self.active.insert(id, active);
            self.tell(from, MoveDirective::Examine { id, rank, to, mode });
        }
    }

    fn forget_if_due(&mut self, id: Move) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let hasty = self.faults.has(Fault::ForgottenBeforeLearned)
            && active.has_learned(active.to)
            && active.has_learned(active.from);
        let all = active.learned.iter().all(|&learned| learned);
        if active.step == Step::Spreading && active.complete && (all || hasty) {
            active.step = Step::Forgetting;
            let (from, confirmations) = (active.from, active.confirmations);
            self.tell(from, MoveDirective::Forget { id, confirmations });
        }
    }

    fn give_up_open(&mut self, now: Duration, reason: &str) {
        let open = self.active.iter().filter(|(_, it)| it.is_open());
        let open: Vec<Move> = open.map(|(&id, _)| id).collect();
        for id in open {
            self.give_up(now, id, reason);
        }
    }

    /// The rank stays where it is. The move is over when those that were told of it have undone what they did: a frozen rank,
    /// and packets that are held for it, would be in nobody's cut.
    fn give_up(&mut self, now: Duration, id: Move, reason: &str) {
        let end_patience = self.config.end_patience;
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let mut told = vec![active.from];
        if active.step != Step::Examining {
            told.push(active.to);
        }
        active.step = Step::GivingUp;
        active.deadline = now.saturating_add(end_patience);
        active.given_up = Some((reason.to_owned(), told.clone()));
        for process in told {
            self.tell(process, MoveDirective::GiveUp { id });
        }
    }
}
