//! The side of a process: as the source of a move, as its target, and as anybody else.
//!
//! The caller owns the ranks, their packets and the links. It
//! - asks [`Mover::route`] where a packet that a rank of its own has made goes, and [`Mover::handle_packet`] what to do with one
//!   that has come on a link;
//! - stamps announcements with [`Mover::since`], and hands in the stamps of those that come ([`Mover::handle_announced`]) when
//!   it delivers them;
//! - hands in what the coordinator says ([`Mover::handle_directive`]) and control packets ([`Mover::handle_control`]);
//! - does what [`Mover::poll_output`] says before it hands in anything else, and answers by [`Mover::examined`],
//!   [`Mover::prepared`], [`Mover::frozen`], [`Mover::received`], [`Mover::failed`], [`Mover::drained`] and
//!   [`Mover::complete`].

use std::collections::{BTreeMap, VecDeque};

use super::error::MigrationError;
use super::interface::{MoverOutput as Output, Route};
use super::messages::{MoveControl, MoveDirective, MoveMode, MoveNeeds, MoveReport};
use super::places::{Learned, Places};
use crate::faults::{Fault, Faults, Sound};
use crate::ids::{Move, Process, Rank};

/// Whether a rank is here. Kept up to date at the steps of moves, so that a packet costs one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stay {
    Elsewhere,
    Here,
    /// It is frozen here, and nobody's until the coordinator says whose.
    Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The caller looks.
    Asked,
    /// It has looked; the coordinator knows.
    Ready,
    /// Source: the rank is being sent.
    Sending,
    /// Source: frozen. Target: everything has come.
    Whole,
    /// This side can't go on, and waits for the word of the coordinator.
    Failed,
}

/// A move of which this process is the source, before the record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Leaving {
    rank: Rank,
    to: Process,
    mode: MoveMode,
    step: Step,
    frozen: bool,
    /// Confirmations can come before the word of the coordinator does.
    confirmed: u32,
}

/// A move of which this process is the target, before the record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Arriving {
    rank: Rank,
    from: Process,
    mode: MoveMode,
    step: Step,
}

/// A rank that has left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Forwarding {
    rank: Rank,
    to: Process,
    /// Who was told where it is.
    told: Vec<Process>,
    confirmed: u32,
    /// How many confirm, once the coordinator knows.
    expected: Option<u32>,
    draining: bool,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mover<F: Faults = Sound> {
    me: Process,
    places: Places<F>,
    /// Indexed by rank.
    stays: Vec<Stay>,
    leaving: BTreeMap<Move, Leaving>,
    arriving: BTreeMap<Move, Arriving>,
    forwarding: BTreeMap<Move, Forwarding>,
    /// Ranks that run here while their pages still come.
    fetching: Vec<Move>,
    outputs: VecDeque<Output>,
    faults: F,
}

impl Mover {
    /// A process of a new incarnation with this placement, indexed by rank.
    #[must_use]
    pub fn new(me: Process, placement: &[Process]) -> Self {
        Self::with_faults(me, placement, Sound)
    }
}

impl<F: Faults> Mover<F> {
    /// Like [`Mover::new`], with a deliberate mistake: for the tests of the tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_faults(me: Process, placement: &[Process], faults: F) -> Self {
        let stay = |&process| match process == me {
            true => Stay::Here,
            false => Stay::Elsewhere,
        };
        Self {
            me,
            stays: placement.iter().map(stay).collect(),
            places: Places::new(placement, faults.clone()),
            leaving: BTreeMap::new(),
            arriving: BTreeMap::new(),
            forwarding: BTreeMap::new(),
            fetching: Vec::new(),
            outputs: VecDeque::new(),
            faults,
        }
    }

    // ---- packets ------------------------------------------------------------------------------

    /// Where a packet goes that a rank of this process has made for another, or that waits here.
    ///
    /// # Errors
    /// There is no such rank.
    #[inline]
    pub fn route(&self, rank: Rank) -> Result<Route, MigrationError> {
        match self.stays.get(rank.index()) {
            Some(Stay::Here) => Ok(Route::Here),
            Some(Stay::Held) => Ok(Route::Hold),
            Some(Stay::Elsewhere) | None => match self.places.process(rank) {
                // A peer has told that the rank is this process's, and the coordinator's word is under way.
                Some(process) if process == self.me => Ok(Route::Hold),
                Some(process) => Ok(Route::Link(process)),
                None => Err(self.no_such(rank)),
            },
        }
    }

    /// What to do with a packet for this rank that was taken from the link of `peer`, after
    /// [`crate::participant::Participant::handle_data`] has counted it.
    ///
    /// # Errors
    /// When it should not have come here.
    #[inline]
    pub fn handle_packet(&mut self, peer: Process, rank: Rank) -> Result<Route, MigrationError> {
        match self.stays.get(rank.index()) {
            Some(Stay::Here) => Ok(Route::Here),
            Some(Stay::Held) => Ok(Route::Hold),
            Some(Stay::Elsewhere) => self.pass_on(peer, rank),
            None => Err(self.no_such(rank)),
        }
    }

    #[cold]
    fn pass_on(&mut self, peer: Process, rank: Rank) -> Result<Route, MigrationError> {
        // Its sender has heard earlier than this process that the rank is here. What has received the rank may have told the
        // coordinator before it has told this machine.
        let may_be_whole =
            |it: &Arriving| it.rank == rank && matches!(it.step, Step::Ready | Step::Whole);
        if self.arriving.values().any(may_be_whole) {
            return Ok(Route::Hold);
        }
        let entry = self.forwarding.iter_mut().find(|(_, it)| it.rank == rank);
        let Some((&id, entry)) = entry else {
            return Err(MigrationError::Misrouted {
                me: self.me,
                peer,
                rank,
            });
        };
        let to = entry.to;
        if !entry.told.contains(&peer) {
            entry.told.push(peer);
            let control = MoveControl::Moved { id, rank, to };
            self.outputs.push_back(Output::SendLink { peer, control });
        }
        Ok(Route::Link(to))
    }

    /// The process that hosts the rank, as far as known here.
    #[must_use]
    pub fn process(&self, rank: Rank) -> Option<Process> {
        self.places.process(rank)
    }

    /// The move that brought the rank to where it is known to be: for a rank of this process, the stamp of its announcements.
    #[inline]
    #[must_use]
    pub fn since(&self, rank: Rank) -> Option<Move> {
        self.places.since(rank)
    }

    /// Whether the rank is here and not frozen.
    #[inline]
    #[must_use]
    pub fn is_here(&self, rank: Rank) -> bool {
        self.stays.get(rank.index()) == Some(&Stay::Here)
    }

    /// Whether this process has a part in a move that is not over.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        !(self.leaving.is_empty()
            && self.arriving.is_empty()
            && self.forwarding.is_empty()
            && self.fetching.is_empty())
    }

    /// An announcement of a rank is about to be delivered that tells where the rank was when it made it. Where that is
    /// [`Learned::Stale`], the message does not lie there any more: the rank has announced it again, or will, and this one
    /// is delivered without a place and changes none.
    pub fn handle_announced(&mut self, rank: Rank, process: Process, since: Move) -> Learned {
        let learned = self.places.learn(rank, process, since);
        if learned == Learned::New {
            self.placed(since, rank, process);
        }
        learned
    }

    // ---- what the coordinator and peers say ---------------------------------------------------

    /// The coordinator says something about a move. `is_open` tells of a peer whether packets may have gone on the link to it
    /// ([`crate::participant::Participant::is_open`]).
    ///
    /// # Errors
    /// When it does not fit what is known here.
    pub fn handle_directive(
        &mut self,
        directive: MoveDirective,
        is_open: impl FnOnce(Process) -> bool,
    ) -> Result<(), MigrationError> {
        match directive {
            MoveDirective::Examine { id, rank, to, mode } => {
                if !self.is_here(rank) || to == self.me || self.has_part(id) {
                    return Err(self.unexpected("the request to examine the rank", id));
                }
                let leaving = Leaving {
                    rank,
                    to,
                    mode,
                    step: Step::Asked,
                    frozen: false,
                    confirmed: 0,
                };
                self.leaving.insert(id, leaving);
                let examine = Output::Examine { id, rank, to, mode };
                self.outputs.push_back(examine);
            }
            MoveDirective::Prepare {
                id,
                rank,
                from,
                mode,
                needs,
            } => {
                if self.route(rank)? != Route::Link(from) || self.has_part(id) {
                    return Err(self.unexpected("the request to prepare for the rank", id));
                }
                let arriving = Arriving {
                    rank,
                    from,
                    mode,
                    step: Step::Asked,
                };
                self.arriving.insert(id, arriving);
                self.outputs.push_back(Output::Prepare {
                    id,
                    rank,
                    from,
                    mode,
                    needs,
                });
            }
            MoveDirective::Transfer { id } => {
                let ready = |it: &&mut Leaving| matches!(it.step, Step::Ready | Step::Failed);
                let Some(leaving) = self.leaving.get_mut(&id).filter(ready) else {
                    return Err(self.unexpected("the word to send the rank", id));
                };
                if leaving.step == Step::Ready {
                    leaving.step = Step::Sending;
                    let Leaving { rank, to, mode, .. } = *leaving;
                    let transfer = Output::Transfer { id, rank, to, mode };
                    self.outputs.push_back(transfer);
                }
            }
            MoveDirective::GiveUp { id } => self.give_up(id)?,
            MoveDirective::Moved { id, rank, from, to } => {
                if self.places.process(rank).is_none() {
                    return Err(self.no_such(rank));
                }
                self.moved(id, rank, from, to, is_open)?;
            }
            MoveDirective::Forget { id, confirmations } => {
                let fresh = |it: &&mut Forwarding| it.expected.is_none();
                let Some(entry) = self.forwarding.get_mut(&id).filter(fresh) else {
                    return Err(self.unexpected("the word to forget the rank", id));
                };
                entry.expected = Some(confirmations);
                self.drain_if_due(id)?;
            }
            // The links' affair: [`crate::participant::Participant::handle_release`].
            MoveDirective::Release { .. } => {}
        }
        Ok(())
    }

    /// A control packet about a move was taken from a link.
    ///
    /// # Errors
    /// When it does not fit what is known here.
    pub fn handle_control(
        &mut self,
        _peer: Process,
        control: MoveControl,
    ) -> Result<(), MigrationError> {
        match control {
            MoveControl::Moved { id, rank, to } => {
                if self.places.process(rank).is_none() {
                    return Err(self.no_such(rank));
                }
                if self.places.learn(rank, to, id) == Learned::New {
                    self.placed(id, rank, to);
                }
                Ok(())
            }
            MoveControl::Confirm { id } => {
                if let Some(leaving) = self.leaving.get_mut(&id).filter(|it| it.frozen) {
                    leaving.confirmed += 1;
                    return Ok(());
                }
                let Some(entry) = self.forwarding.get_mut(&id) else {
                    if self.faults.has(Fault::ForwardingDroppedEarly)
                        || self.faults.has(Fault::ForgottenBeforeLearned)
                    {
                        return Ok(());
                    }
                    return Err(self.unexpected("a confirmation", id));
                };
                entry.confirmed += 1;
                self.drain_if_due(id)
            }
        }
    }

    // ---- what the caller answers --------------------------------------------------------------

    /// The answer to [`Output::Examine`]: what the rank needs, or what pins it. Ignored where the move was given up.
    pub fn examined(&mut self, id: Move, outcome: Result<MoveNeeds, String>) {
        let asked = |it: &&mut Leaving| it.step == Step::Asked;
        let Some(leaving) = self.leaving.get_mut(&id).filter(asked) else {
            return;
        };
        let report = match outcome {
            Ok(needs) => {
                leaving.step = Step::Ready;
                MoveReport::Movable { id, needs }
            }
            Err(reason) => {
                leaving.step = Step::Failed;
                MoveReport::Refused { id, reason }
            }
        };
        self.outputs.push_back(Output::Report(report));
    }

    /// The answer to [`Output::Prepare`]: ready, or what is missing. Ignored where the move was given up.
    pub fn prepared(&mut self, id: Move, outcome: Result<(), String>) {
        let asked = |it: &&mut Arriving| it.step == Step::Asked;
        let Some(arriving) = self.arriving.get_mut(&id).filter(asked) else {
            return;
        };
        let report = match outcome {
            Ok(()) => {
                arriving.step = Step::Ready;
                MoveReport::Prepared { id }
            }
            Err(reason) => {
                arriving.step = Step::Failed;
                MoveReport::Refused { id, reason }
            }
        };
        self.outputs.push_back(Output::Report(report));
    }

    /// Source: the rank stands still and what is sent of it is final. False where the move was given up meanwhile: then the
    /// rank goes on.
    #[must_use]
    pub fn frozen(&mut self, id: Move) -> bool {
        let sending = |it: &&mut Leaving| it.step == Step::Sending;
        let Some(leaving) = self.leaving.get_mut(&id).filter(sending) else {
            return false;
        };
        leaving.step = Step::Whole;
        leaving.frozen = true;
        if !self.faults.has(Fault::DeliveredToFrozen) {
            self.stays[leaving.rank.index()] = Stay::Held;
        }
        true
    }

    /// Target: everything that the rank needs to run has come. False where the move was given up, or not prepared.
    ///
    /// Whoever has received it may send [`MoveReport::Received`] by itself, so that the record need not wait for this machine:
    /// the coordinator takes it once. It must have called this before it hands in what the coordinator answers.
    #[must_use]
    pub fn received(&mut self, id: Move) -> bool {
        let ready = |it: &&mut Arriving| it.step == Step::Ready;
        let Some(arriving) = self.arriving.get_mut(&id).filter(ready) else {
            return false;
        };
        arriving.step = Step::Whole;
        let rank = arriving.rank;
        self.outputs
            .push_back(Output::Report(MoveReport::Received { id }));
        if self.faults.has(Fault::TargetRunsBeforeRecord) {
            self.stays[rank.index()] = Stay::Here;
            self.outputs.push_back(Output::Run { id, rank });
        }
        true
    }

    /// Source or target can't go on with sending or receiving. Ignored where the move is over, and at a target that has
    /// received everything: that one can only end.
    pub fn failed(&mut self, id: Move, reason: impl Into<String>) {
        let under_way = |step: Step| matches!(step, Step::Asked | Step::Ready | Step::Sending);
        let step = match (self.leaving.get_mut(&id), self.arriving.get_mut(&id)) {
            (Some(leaving), _) if leaving.step != Step::Failed => &mut leaving.step,
            (_, Some(arriving)) if under_way(arriving.step) => &mut arriving.step,
            _ => return,
        };
        *step = Step::Failed;
        let reason = reason.into();
        let refused = MoveReport::Refused { id, reason };
        self.outputs.push_back(Output::Report(refused));
    }

    /// The answer to [`Output::Drain`].
    pub fn drained(&mut self, id: Move) {
        let draining = |it: &&Forwarding| it.draining;
        let Some(entry) = self.forwarding.get(&id).filter(draining) else {
            return;
        };
        let rank = entry.rank;
        self.forwarding.remove(&id);
        self.outputs.push_back(Output::Free { id, rank });
        self.outputs
            .push_back(Output::Report(MoveReport::Forgotten { id }));
    }

    /// Target of a [`MoveMode::Postcopy`]: the last page has come.
    pub fn complete(&mut self, id: Move) {
        if let Some(at) = self.fetching.iter().position(|&other| other == id) {
            self.fetching.remove(at);
            self.outputs
                .push_back(Output::Report(MoveReport::Complete { id }));
        }
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // ---- inside -------------------------------------------------------------------------------

    fn placed(&mut self, id: Move, rank: Rank, to: Process) {
        self.outputs.push_back(Output::Placed { id, rank, to });
    }

    fn give_up(&mut self, id: Move) -> Result<(), MigrationError> {
        if !self.leaving.contains_key(&id) && !self.arriving.contains_key(&id) {
            return Err(self.unexpected("the word to give up", id));
        }
        if let Some(Leaving { rank, frozen, .. }) = self.leaving.remove(&id) {
            if frozen {
                self.stays[rank.index()] = Stay::Here;
            }
            self.outputs.push_back(Output::Resume { id, rank });
        }
        if let Some(Arriving { rank, .. }) = self.arriving.remove(&id) {
            self.outputs.push_back(Output::Discard { id, rank });
        }
        self.outputs
            .push_back(Output::Report(MoveReport::GivenUp { id }));
        Ok(())
    }

    fn moved(
        &mut self,
        id: Move,
        rank: Rank,
        from: Process,
        to: Process,
        is_open: impl FnOnce(Process) -> bool,
    ) -> Result<(), MigrationError> {
        let is_new = self.places.learn(rank, to, id) == Learned::New;
        let mut confirmed = false;
        if to == self.me {
            self.arrive(id)?;
        }
        if from == self.me {
            self.leave(id)?;
        }
        if is_new {
            self.placed(id, rank, to);
        }
        // What was queued for the link goes elsewhere now, so this is behind the last packet for the rank.
        if from != self.me && is_open(from) {
            confirmed = true;
            let control = MoveControl::Confirm { id };
            let confirm = Output::SendLink {
                peer: from,
                control,
            };
            self.outputs.push_back(confirm);
        }
        self.outputs
            .push_back(Output::Report(MoveReport::Learned { id, confirmed }));
        Ok(())
    }

    fn arrive(&mut self, id: Move) -> Result<(), MigrationError> {
        let whole = |it: &Arriving| it.step == Step::Whole;
        if !self.arriving.get(&id).is_some_and(whole) {
            return Err(self.unexpected("the word that the rank is here", id));
        }
        if let Some(Arriving { rank, mode, .. }) = self.arriving.remove(&id) {
            if !self.faults.has(Fault::TargetRunsBeforeRecord) {
                self.stays[rank.index()] = Stay::Here;
                self.outputs.push_back(Output::Run { id, rank });
            }
            if mode == MoveMode::Postcopy {
                self.fetching.push(id);
            }
        }
        Ok(())
    }

    fn leave(&mut self, id: Move) -> Result<(), MigrationError> {
        if !self.leaving.get(&id).is_some_and(|it| it.frozen) {
            return Err(self.unexpected("the word that the rank has left", id));
        }
        if let Some(Leaving {
            rank,
            to,
            confirmed,
            ..
        }) = self.leaving.remove(&id)
        {
            self.stays[rank.index()] = Stay::Elsewhere;
            let entry = Forwarding {
                rank,
                to,
                told: Vec::new(),
                confirmed,
                expected: None,
                draining: false,
            };
            self.forwarding.insert(id, entry);
            self.outputs.push_back(Output::Left { id, rank, to });
            if self.faults.has(Fault::SourceResumesAfterHandOver) {
                self.stays[rank.index()] = Stay::Here;
                self.outputs.push_back(Output::Resume { id, rank });
            }
        }
        Ok(())
    }

    /// Begins the end of a forwarding entry, once no packet for its rank can come any more.
    fn drain_if_due(&mut self, id: Move) -> Result<(), MigrationError> {
        let Some(entry) = self.forwarding.get_mut(&id) else {
            return Ok(());
        };
        let Some(expected) = entry.expected else {
            return Ok(());
        };
        let hasty = self.faults.has(Fault::ForwardingDroppedEarly);
        if entry.confirmed > expected && !self.faults.has(Fault::ForgottenBeforeLearned) {
            return Err(MigrationError::Confirmed {
                id,
                confirmed: entry.confirmed,
                expected,
            });
        }
        if (entry.confirmed >= expected || hasty) && !entry.draining {
            entry.draining = true;
            let rank = entry.rank;
            self.outputs.push_back(Output::Drain { id, rank });
        }
        Ok(())
    }

    fn has_part(&self, id: Move) -> bool {
        self.leaving.contains_key(&id)
            || self.arriving.contains_key(&id)
            || self.forwarding.contains_key(&id)
    }

    fn no_such(&self, rank: Rank) -> MigrationError {
        let ranks = self.places.ranks();
        MigrationError::NoSuchRank { rank, ranks }
    }

    fn unexpected(&self, what: &'static str, id: Move) -> MigrationError {
        let leaving = |it: &Leaving| match it.step {
            Step::Asked => "being examined",
            Step::Ready => "examined",
            Step::Sending => "being sent",
            Step::Whole => "sent",
            Step::Failed => "refused",
        };
        let arriving = |it: &Arriving| match it.step {
            Step::Asked => "being prepared",
            Step::Ready => "prepared",
            Step::Sending | Step::Whole => "received",
            Step::Failed => "refused",
        };
        let state = (self.leaving.get(&id).map(leaving))
            .or_else(|| self.arriving.get(&id).map(arriving))
            .or_else(|| self.forwarding.get(&id).map(|_| "forwarding"));
        MigrationError::Unexpected {
            what,
            id,
            me: self.me,
            state: state.unwrap_or("unknown"),
        }
    }
}
