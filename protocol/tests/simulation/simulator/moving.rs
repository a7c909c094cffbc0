//! The moves of ranks: what a process does as source, target or any other, as its [`protocol::migration::Mover`] says.

use std::collections::{BTreeMap, VecDeque};

use protocol::dirty::Dirty;
use protocol::faults::Broken;
use protocol::ids::{Epoch, Move, Process, Rank};
use protocol::migration::{MoveMode, MoveNeeds, MoveReport, MoverOutput as Output};
use rand::RngExt;

use super::process::{Context, Control, Hosted, Queued};
use super::rank::{Address, Packet, RankState};
use super::store::ImageMap;
use super::trouble::Slip;
use super::{Checked, violated};

/// A step of a move that takes time.
#[derive(Clone, Debug)]
pub enum Errand {
    /// The source has looked what pins the rank.
    Examined(Move),
    /// The target has made ready.
    Prepared(Move),
    /// The source has sent what can be sent of a rank that runs, and freezes it.
    Freeze {
        id: Move,
        rank: Rank,
        to: Process,
        mode: MoveMode,
    },
    /// The frozen rank has come.
    Come(Box<Parcel>),
    /// The last page is read out of the source's memory. The rank may not run yet.
    LastPage { id: Move, rank: Rank, from: Process },
    /// The ranks' thread has the time to hear what others of its process have told the coordinator.
    News,
}

impl Errand {
    /// How many times longer than others it takes.
    pub fn length(&self) -> u32 {
        match self {
            Self::LastPage { .. } => 8,
            _ => 1,
        }
    }
}

/// What a thread of the target has told the coordinator by itself, and the machine does not know.
#[derive(Clone, Debug)]
pub enum News {
    Come(Box<Parcel>),
    Complete(Move),
}

/// A rank on its way.
#[derive(Clone, Debug)]
pub struct Parcel {
    id: Move,
    from: Process,
    state: RankState,
    mode: MoveMode,
    /// What its cuts have found, with the maps of what they build on; without, the next image is a whole one.
    base: Option<(Dirty<Broken>, BTreeMap<Epoch, ImageMap>)>,
}

impl Hosted {
    /// A step of a move has taken its time.
    pub fn run_errand(&mut self, errand: Errand, context: &mut Context) -> Checked {
        let fails = context.rng.random_bool(context.options.move_trouble);
        match errand {
            Errand::Examined(id) => {
                let outcome = match fails {
                    true => Err("a static points into its slot".to_owned()),
                    false => Ok(MoveNeeds::default()),
                };
                self.mover.examined(id, outcome);
            }
            Errand::Prepared(id) => {
                let outcome = match fails {
                    true => Err("no memory".to_owned()),
                    false => Ok(()),
                };
                self.mover.prepared(id, outcome);
            }
            Errand::Freeze { id, rank, to, mode } => {
                if fails && context.rng.random_bool(0.5) {
                    self.mover
                        .failed(id, "its pages are written faster than sent");
                } else if self.mover.frozen(id) {
                    let parcel = self.freeze(id, rank, mode, context);
                    // It may fail to arrive, and it may arrive when the source has said that it can't send it.
                    if fails {
                        self.mover.failed(id, "the connection broke");
                    }
                    if !fails || context.rng.random_bool(0.5) {
                        context.errands.push((to, Errand::Come(Box::new(parcel))));
                    }
                }
            }
            Errand::Come(parcel) => {
                let id = parcel.id;
                if fails {
                    self.mover.failed(id, "a checksum differs");
                } else {
                    // The rest of the pages may be there before the rank runs.
                    let follows = parcel.mode == MoveMode::Postcopy;
                    if follows {
                        let (rank, from) = (parcel.state.me, parcel.from);
                        let last = Errand::LastPage { id, rank, from };
                        context.errands.push((self.me, last));
                    }
                    let report = MoveReport::Received { id };
                    if context.rng.random_bool(0.5) {
                        self.told.insert(id);
                        self.tell_first(report, News::Come(parcel), context);
                    } else {
                        self.hear_of(News::Come(parcel), context);
                    }
                    if follows && context.options.slip == Some(Slip::CompleteTooEarly) {
                        self.complete(id, context);
                    }
                }
            }
            Errand::LastPage { id, rank, from } => {
                if self.following.remove(&id) {
                    self.read_last_page(rank, from, context)?;
                }
                if context.options.slip != Some(Slip::CompleteTooEarly) {
                    self.complete(id, context);
                }
            }
            Errand::News => self.take_news(context),
        }
        self.settle(context)
    }

    /// The source is needed until the last page has come from it. Where it is lost, the job goes on from a checkpoint.
    fn read_last_page(&self, rank: Rank, from: Process, context: &Context) -> Checked {
        let source = context.others.get(&(self.incarnation, from));
        let has = |it: &Hosted| it.ranks.contains_key(&rank) || it.ghosts.contains_key(&rank);
        match source.is_none_or(has) {
            true => Ok(()),
            false => violated(format!(
                "{from} has forgotten {rank}, of which {} has not read all",
                self.me
            )),
        }
    }

    /// Tells that the last page has come.
    fn complete(&mut self, id: Move, context: &mut Context) {
        let news = News::Complete(id);
        match self.told.contains(&id) {
            true => self.tell_first(MoveReport::Complete { id }, news, context),
            false => self.hear_of(news, context),
        }
    }

    /// A thread of the target tells the coordinator by itself, and the machine hears of it later.
    fn tell_first(&mut self, report: MoveReport, news: News, context: &mut Context) {
        context.told_first += 1;
        context
            .reports
            .push(protocol::control::Report::Move(report));
        self.news.push_back(news);
        context.errands.push((self.me, Errand::News));
    }

    /// Tells the machine what has been told to the coordinator.
    pub(super) fn take_news(&mut self, context: &Context) {
        while let Some(news) = self.news.pop_front() {
            self.hear_of(news, context);
        }
    }

    fn hear_of(&mut self, news: News, context: &Context) {
        match news {
            News::Come(parcel) => {
                let id = parcel.id;
                if self.mover.received(id) {
                    self.arrived.insert(id, *parcel);
                }
            }
            News::Complete(id) if self.arrived.contains_key(&id) => {
                if context.options.slip != Some(Slip::EarlyCompleteForgotten) {
                    self.complete_before.insert(id);
                }
            }
            News::Complete(id) => self.mover.complete(id),
        }
    }

    /// Takes what there is of a rank: from here on nothing of it changes here.
    fn freeze(&mut self, id: Move, rank: Rank, mode: MoveMode, context: &mut Context) -> Parcel {
        let mut taken_out = VecDeque::new();
        if context.options.slip != Some(Slip::QueuedStayBehind) {
            for link in self.links.values_mut() {
                let of_rank = |queued: &Queued| !queued.forwarded && queued.packet.from == rank;
                let (of_rank, rest) = link.packets.drain(..).partition(of_rank);
                link.packets = rest;
                let of_rank: VecDeque<Queued> = of_rank;
                taken_out.extend(of_rank.into_iter().map(|queued| queued.packet));
            }
        }
        let mut state = self.ranks[&rank].clone();
        let made: Vec<Packet> = state.out.drain(..).collect();
        state.out = taken_out.iter().cloned().chain(made).collect();
        self.taken_out.insert(rank, taken_out);
        let base = context.rng.random_bool(0.5).then(|| {
            let of_rank = self.maps.iter().filter(|(key, _)| key.1 == rank);
            let maps = of_rank.map(|(key, map)| (key.0, map.clone())).collect();
            (self.dirty[&rank].clone(), maps)
        });
        Parcel {
            id,
            from: self.me,
            state,
            mode,
            base,
        }
    }

    /// Does what the machine says.
    pub(super) fn migrate(&mut self, output: Output, context: &mut Context) -> Checked {
        match output {
            Output::Report(MoveReport::Received { id } | MoveReport::Complete { id })
                if self.told.contains(&id) => {}
            Output::Report(report) => {
                let report = protocol::control::Report::Move(report);
                context.reports.push(report);
            }
            Output::SendLink { peer, control } => {
                let link = self.links.entry(peer).or_default();
                link.control.push_back(Control::Move(control));
            }
            Output::Examine { id, .. } => context.errands.push((self.me, Errand::Examined(id))),
            Output::Prepare { id, mode, .. } => {
                if mode == MoveMode::Postcopy {
                    self.following.insert(id);
                }
                context.errands.push((self.me, Errand::Prepared(id)));
            }
            Output::Transfer { id, rank, to, mode } => {
                let freeze = Errand::Freeze { id, rank, to, mode };
                context.errands.push((self.me, freeze));
            }
            Output::Resume { rank, .. } => self.resume(rank)?,
            Output::Discard { id, .. } => {
                self.arrived.remove(&id);
                self.following.remove(&id);
                self.complete_before.remove(&id);
            }
            Output::Run { id, rank } => self.run_moved(id, rank, context)?,
            Output::Left { rank, to, .. } => {
                if let Some(state) = self.ranks.remove(&rank) {
                    self.ghosts.insert(rank, state);
                }
                self.taken_out.remove(&rank);
                self.dirty.remove(&rank);
                self.maps.retain(|key, _| key.1 != rank);
                self.reported.retain(|reported| *reported != rank);
                let held = self.held.remove(&rank).unwrap_or_default();
                context.forwarded += held.iter().filter(|queued| queued.forwarded).count() as u64;
                self.links.entry(to).or_default().packets.extend(held);
            }
            Output::Placed { id, rank, to } => self.placed(id, rank, to, context)?,
            Output::Drain { id, rank } => {
                self.draining.push((id, rank));
                self.drain(context.options.slip == Some(Slip::NotDrained));
            }
            Output::Free { rank, .. } => {
                self.ghosts.remove(&rank);
            }
        }
        Ok(())
    }

    fn resume(&mut self, rank: Rank) -> Checked {
        if let Some(taken_out) = self.taken_out.remove(&rank)
            && let Some(state) = self.ranks.get_mut(&rank).or(self.ghosts.get_mut(&rank))
        {
            let made: Vec<Packet> = state.out.drain(..).collect();
            state.out = taken_out.into_iter().chain(made).collect();
        }
        for queued in self.held.remove(&rank).unwrap_or_default() {
            self.deliver(queued)?;
        }
        self.route(rank)
    }

    fn run_moved(&mut self, id: Move, rank: Rank, context: &mut Context) -> Checked {
        let Some(parcel) = self.arrived.remove(&id) else {
            return violated(format!("{rank} is to run here and has not come"));
        };
        let mut state = parcel.state;
        state.home = Address {
            incarnation: self.incarnation,
            process: self.me,
            since: id,
        };
        state.forget_addresses();
        // Announcements are made anew, with the new place.
        let unacked = &state.tables.unacked;
        let is_kept = |packet: &Packet| {
            let kept = |number| !unacked.contains_key(&(packet.to, number));
            packet.sequence().is_none_or(kept)
        };
        let out = state.out.drain(..).filter(is_kept).collect();
        state.out = out;
        state.out.iter_mut().for_each(Packet::forget_address);
        state.announce_again();
        self.ranks.insert(rank, state);
        let mut dirty = Dirty::with_faults(None, self.faults);
        if let Some((carried, maps)) = parcel.base {
            dirty = carried;
            let maps = maps.into_iter().map(|(epoch, map)| ((epoch, rank), map));
            self.maps.extend(maps);
        }
        self.dirty.insert(rank, dirty);
        for queued in self.held.remove(&rank).unwrap_or_default() {
            self.deliver(queued)?;
        }
        if self.complete_before.remove(&id) {
            context.complete_before += 1;
            self.mover.complete(id);
        }
        self.route(rank)
    }

    fn placed(&mut self, id: Move, rank: Rank, to: Process, context: &mut Context) -> Checked {
        let mut rerouted = Vec::new();
        for (_, link) in self.links.iter_mut().filter(|(peer, _)| **peer != to) {
            let (for_it, rest) = std::mem::take(&mut link.packets)
                .into_iter()
                .partition(|queued| queued.packet.to == rank);
            link.packets = rest;
            let for_it: VecDeque<Queued> = for_it;
            rerouted.extend(for_it);
            if context.options.slip == Some(Slip::QueueKept) {
                link.packets.extend(rerouted.drain(..));
            }
        }
        for queued in rerouted {
            self.dispatch(queued)?;
        }
        let moved_before = |packet: &Packet| {
            packet.from == rank && packet.address().is_some_and(|address| address.since < id)
        };
        for state in self.ranks.values_mut() {
            state.forget_addresses_if(moved_before);
            if context.options.slip != Some(Slip::NotAnnouncedAgain) {
                state.announce_again_if(|to| to == rank);
            }
        }
        let ranks: Vec<Rank> = self.ranks.keys().copied().collect();
        ranks.into_iter().try_for_each(|rank| self.route(rank))
    }

    /// Ends the draining of moves whose forwarded packets are all on links.
    pub(super) fn drain(&mut self, hasty: bool) {
        let waiting = |rank: Rank| {
            let mut packets = self.links.values().flat_map(|link| &link.packets);
            packets.any(|queued| queued.forwarded && queued.packet.to == rank)
        };
        let done = |drain: &(Move, Rank)| hasty || !waiting(drain.1);
        let done: Vec<(Move, Rank)> = self.draining.iter().copied().filter(done).collect();
        for (id, rank) in done {
            self.draining.retain(|other| *other != (id, rank));
            self.mover.drained(id);
        }
    }
}
