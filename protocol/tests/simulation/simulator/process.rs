//! A process: hosts ranks, drives the participant, keeps what is not yet on a link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use protocol::control::{Assignment, Directive, LinkCount, Report};
use protocol::dirty::{Dirty, PageSet};
use protocol::faults::{Broken, Fault, Faults};
use protocol::ids::{Epoch, Incarnation, Move, Process, Rank};
use protocol::migration::{Learned, MoveControl, MoveDirective, MoveReport, Mover, Route};
use protocol::participant::{Arrival, Gate, LinkControl, Output, Participant};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::moving::{Errand, News, Parcel};
use super::rank::{Address, Packet, Progress, RankState, Tables};
use super::ring::{OnLink, Ring};
use super::script::{Memory, PAGES, Script};
use super::store::{Image, ImageMap, Store};
use super::trouble::{Options, Slip};
use super::{Checked, Violation, violated};

/// The links of all processes, by incarnation, sender, receiver.
pub type Rings = BTreeMap<(Incarnation, Process, Process), Ring>;

/// What a process may reach while it acts.
pub struct Context<'a> {
    pub now: Duration,
    pub rng: &'a mut ChaCha8Rng,
    pub script: &'a Script,
    pub options: &'a Options,
    pub rings: &'a mut Rings,
    /// The other processes that live, for reading their memory.
    pub others: &'a BTreeMap<(Incarnation, Process), Hosted>,
    /// Reports to the coordinator.
    pub reports: Vec<Report>,
    /// Epochs of which the channels are complete: to be stored.
    pub to_store: Vec<Epoch>,
    /// Steps of moves that take time, and the process that does them.
    pub errands: Vec<(Process, Errand)>,
    /// Packets that were forwarded.
    pub forwarded: u64,
    /// What threads of targets told the coordinator before the machine knew it.
    pub told_first: u64,
    /// Postcopies of which the last page had come before the rank ran.
    pub complete_before: u64,
}

/// A control packet that waits for a link.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    Link(LinkControl),
    Move(MoveControl),
}

/// A packet that waits for a link, or for the outcome of a move.
#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub packet: Packet,
    /// It has come on a link: its sender is not here.
    pub forwarded: bool,
}

/// What waits for one link.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    pub control: VecDeque<Control>,
    pub packets: VecDeque<Queued>,
}

/// A snapshot's part of this process, in memory.
#[derive(Clone, Debug, Default)]
pub struct Staged {
    pub images: BTreeMap<Rank, Image>,
    /// Where the pages of each image will be. The files of this epoch come to it when they are stored.
    pub maps: BTreeMap<Rank, ImageMap>,
    /// A full copy of each rank's memory, beside: what every restore of this snapshot must give.
    pub copies: BTreeMap<Rank, [u64; PAGES]>,
    pub links: Vec<LinkCount>,
}

/// A process.
#[derive(Clone, Debug)]
pub struct Hosted {
    pub me: Process,
    pub incarnation: Incarnation,
    processes: u32,
    /// It was told `Go`.
    pub running: bool,
    /// It does nothing any more, but lives (`SIGSTOP`).
    pub hung: bool,
    /// It can't reach another process and does nothing more, but its control thread answers: whether that one is gone.
    pub stranded: Option<bool>,
    /// Pings that it has answered.
    pub answered: u64,
    pub staged: BTreeMap<Epoch, Staged>,
    pub mailbox: VecDeque<Directive>,
    pub ranks: BTreeMap<Rank, RankState>,
    participant: Participant<Broken>,
    pub mover: Mover<Broken>,
    pub(super) dirty: BTreeMap<Rank, Dirty<Broken>>,
    /// Where the pages of stored snapshots lie: those a later cut may build on.
    pub(super) maps: BTreeMap<(Epoch, Rank), ImageMap>,
    /// It was told to forget what it builds on, and has heard of no checkpoint since.
    rebased: bool,
    pub(super) links: BTreeMap<Process, Waiting>,
    /// Packets for ranks that are frozen, or that have come before their rank runs here.
    pub(super) held: BTreeMap<Rank, Vec<Queued>>,
    /// Memory of ranks that have left, as long as it can be read.
    pub(super) ghosts: BTreeMap<Rank, RankState>,
    /// Ranks that have come and are not this process's yet.
    pub(super) arrived: BTreeMap<Move, Parcel>,
    /// Moves of which a thread tells the coordinator, and not the machine, what has come.
    pub(super) told: BTreeSet<Move>,
    /// Moves whose pages may follow to here, until the last one has been read.
    pub(super) following: BTreeSet<Move>,
    /// What it has told and the machine does not know.
    pub(super) news: VecDeque<News>,
    /// Ranks that have come to the last page and do not run yet.
    pub(super) complete_before: BTreeSet<Move>,
    /// What a frozen rank had queued.
    pub(super) taken_out: BTreeMap<Rank, VecDeque<Packet>>,
    pub(super) draining: Vec<(Move, Rank)>,
    /// Ranks whose finish was reported.
    pub(super) reported: Vec<Rank>,
    pub(super) faults: Broken,
}

impl Hosted {
    /// A process that has just been started.
    pub fn new(me: Process, incarnation: Incarnation, faults: Broken) -> Self {
        Self {
            me,
            incarnation,
            processes: 0,
            running: false,
            hung: false,
            stranded: None,
            answered: 0,
            staged: BTreeMap::new(),
            mailbox: VecDeque::new(),
            ranks: BTreeMap::new(),
            participant: Participant::with_faults(me, Epoch(0), faults),
            mover: Mover::with_faults(me, &[], faults),
            dirty: BTreeMap::new(),
            maps: BTreeMap::new(),
            rebased: false,
            links: BTreeMap::new(),
            held: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            arrived: BTreeMap::new(),
            told: BTreeSet::new(),
            news: VecDeque::new(),
            following: BTreeSet::new(),
            complete_before: BTreeSet::new(),
            taken_out: BTreeMap::new(),
            draining: Vec::new(),
            reported: Vec::new(),
            faults,
        }
    }

    /// Takes its part of the job: begins or restores its ranks.
    pub fn restore(
        &mut self,
        part: &Assignment,
        store: &Store,
        keep_addresses: bool,
    ) -> Result<(), (Rank, String)> {
        self.processes = part.processes;
        self.mover = Mover::with_faults(self.me, &part.placement, self.faults);
        self.participant = Participant::with_faults(self.me, part.epoch, self.faults);
        let home = Address {
            incarnation: self.incarnation,
            process: self.me,
            since: Move(0),
        };
        let from = part.restore.as_ref().map(|restore| restore.epoch);
        let mine = (0..).map(Rank).zip(&part.placement);
        let mut channel = Vec::new();
        for (rank, _) in mine.filter(|(_, host)| **host == self.me) {
            self.dirty
                .insert(rank, Dirty::with_faults(from, self.faults));
            let mut state = RankState::new(
                rank,
                Tables::default(),
                &Memory::default(),
                home,
                self.faults,
            );
            if let Some(epoch) = from {
                let (image, memory, map) = store
                    .restore(epoch, rank)
                    .map_err(|reason| (rank, reason))?;
                self.maps.insert((epoch, rank), map);
                state = RankState::new(rank, image.tables, &memory, home, self.faults);
                if !keep_addresses {
                    state.forget_addresses();
                }
                // What was queued goes out again; announcements are made anew.
                let is_kept = |packet: &Packet| {
                    packet.sequence().is_none_or(|number| {
                        !state.tables.unacked.contains_key(&(packet.to, number))
                    })
                };
                state.out = image.unsent.into_iter().filter(is_kept).collect();
                if !keep_addresses {
                    state.out.iter_mut().for_each(Packet::forget_address);
                }
                channel.extend(image.channel);
                state.announce_again();
            }
            self.ranks.insert(rank, state);
        }
        for mut packet in channel {
            if !keep_addresses {
                packet.forget_address();
            }
            let rank = self
                .ranks
                .get_mut(&packet.to)
                .expect("it came with this rank");
            rank.accept(packet)
                .map_err(|violation| (rank.me, violation.0))?;
        }
        Ok(())
    }

    /// One turn of the engine: a few things in a random order. A wanted cut comes before the next packet
    /// is handed in, and at the latest at the end of the turn; what else happens before it is chance.
    pub fn enter(&mut self, context: &mut Context) -> Checked {
        while let Some(directive) = self.mailbox.pop_front() {
            // It may be the answer to what a thread has told.
            let hasty = context.options.slip == Some(Slip::NewsTakenLate);
            if matches!(directive, Directive::Move(_)) && !hasty {
                self.take_news(context);
                self.settle(context)?;
            }
            self.obey(directive)?;
            self.settle(context)?;
        }
        for _ in 0..context.rng.random_range(1..5) {
            match context.rng.random_range(0..4) {
                0 => self.poll(context)?,
                1 => self.run(context)?,
                2 => self.flush(context)?,
                _ => self.cut_if_wanted(context)?,
            }
        }
        self.cut_if_wanted(context)
    }

    fn obey(&mut self, directive: Directive) -> Checked {
        match directive {
            Directive::Snapshot { epoch } => self.participant.handle_snapshot(epoch),
            Directive::Abort { epoch, rebase } => {
                self.participant.handle_abort(epoch);
                self.dirty
                    .values_mut()
                    .for_each(|dirty| dirty.aborted(epoch));
                if rebase {
                    self.dirty.values_mut().for_each(Dirty::rebase);
                    self.rebased = true;
                }
            }
            Directive::Committed { epoch } => {
                self.staged.remove(&epoch);
                self.maps.retain(|key, _| key.0 >= epoch);
                self.rebased = false;
                self.dirty
                    .values_mut()
                    .for_each(|dirty| dirty.committed(epoch));
                self.participant
                    .handle_committed(epoch)
                    .map_err(|error| Violation(error.to_string()))?;
            }
            Directive::Move(MoveDirective::Release { process }) => {
                let all = self.links.iter();
                let mut concerned = all.filter(|(peer, _)| process == self.me || **peer == process);
                if concerned.any(|(_, link)| !link.packets.is_empty()) {
                    return violated(format!(
                        "{process} is released, and packets wait for its links"
                    ));
                }
                self.participant
                    .handle_release(process, self.processes)
                    .map_err(|error| Violation(error.to_string()))?;
            }
            Directive::Move(directive) => {
                let participant = &self.participant;
                self.mover
                    .handle_directive(directive, |peer| participant.is_open(peer))
                    .map_err(|error| Violation(error.to_string()))?;
            }
            Directive::Go => self.running = true,
            other => unreachable!("{other:?} is not for the engine"),
        }
        Ok(())
    }

    fn cut_if_wanted(&mut self, context: &mut Context) -> Checked {
        if let Some(epoch) = self.participant.cut_wanted() {
            self.capture(epoch)?;
            self.participant
                .cut_taken(epoch)
                .map_err(|error| Violation(error.to_string()))?;
            context.reports.push(Report::Cut { epoch, stall_us: 1 });
            self.settle(context)?;
        }
        Ok(())
    }

    /// Does what the machines say.
    pub(super) fn settle(&mut self, context: &mut Context) -> Checked {
        while let Some(output) = self.mover.poll_output() {
            self.migrate(output, context)?;
        }
        while let Some(output) = self.participant.poll_output() {
            match output {
                Output::SendLink { peer, control } => {
                    self.links
                        .entry(peer)
                        .or_default()
                        .control
                        .push_back(Control::Link(control));
                }
                Output::LinkOpened { .. } => {}
                Output::Parted { peer } => {
                    let parted = MoveReport::Parted { process: peer };
                    context.reports.push(Report::Move(parted));
                }
                Output::ChannelsComplete { epoch, links } => {
                    let staged = self.staged.entry(epoch).or_default();
                    staged.links = links;
                    context.to_store.push(epoch);
                }
                Output::Discard { epoch } => {
                    self.staged.remove(&epoch);
                }
            }
        }
        Ok(())
    }

    /// The files of an epoch are durable: where its pages are is known, should it become a checkpoint.
    pub fn stored(&mut self, epoch: Epoch, rank: Rank, map: ImageMap) {
        self.maps.insert((epoch, rank), map);
    }

    fn capture(&mut self, epoch: Epoch) -> Checked {
        let mut staged = Staged::default();
        for (&rank, state) in &mut self.ranks {
            let written: PageSet = std::mem::take(&mut state.written)
                .into_iter()
                .map(|page| page..page + 1)
                .collect();
            let dirty = self
                .dirty
                .get_mut(&rank)
                .expect("every rank has its dirty set");
            if std::mem::replace(&mut state.cut, epoch) >= epoch {
                return violated(format!("{rank} is captured twice for {epoch}"));
            }
            let since = dirty.cut(epoch, written);
            let all = since.parent.is_none();
            if !all && self.rebased {
                return violated(format!("{rank} builds on what it was told to forget"));
            }
            let pages: BTreeMap<u64, u64> = (0..)
                .zip(state.pages)
                .filter(|(page, _)| all || since.pages.contains(*page))
                .collect();
            let here = (epoch, self.incarnation);
            let parent = since.parent.map(|parent| (parent, rank));
            // What a wrong parent holds nobody may know.
            let holder = since.parent.map_or(here, |epoch| (epoch, here.1));
            let mut map = parent
                .and_then(|parent| self.maps.get(&parent))
                .cloned()
                .unwrap_or(ImageMap {
                    index: vec![holder; PAGES],
                    ..ImageMap::default()
                });
            for &page in pages.keys() {
                map.index[page as usize] = here;
            }
            let ImageMap { index, files } = &mut map;
            files.retain(|holder, _| index.contains(holder));
            let of_rank = |packet: &&Packet| packet.from == rank;
            let waiting = self.links.values().flat_map(|link| &link.packets);
            let waiting = waiting.map(|queued| &queued.packet);
            let image = Image {
                rank,
                tables: state.tables.clone(),
                parent: since.parent,
                pages,
                index: map.index.clone(),
                unsent: waiting.chain(&state.out).filter(of_rank).cloned().collect(),
                channel: Vec::new(),
            };
            staged.images.insert(rank, image);
            staged.maps.insert(rank, map);
            staged.copies.insert(rank, state.pages);
        }
        self.staged.insert(epoch, staged);
        Ok(())
    }

    /// Takes a few packets from the links.
    fn poll(&mut self, context: &mut Context) -> Checked {
        let peers: Vec<Process> = context
            .rings
            .range((self.incarnation, Process(0), Process(0))..)
            .map(|(&(_, from, to), _)| (from, to))
            .filter(|link| link.1 == self.me)
            .map(|link| link.0)
            .collect();
        if peers.is_empty() {
            return Ok(());
        }
        for _ in 0..context.rng.random_range(1..5) {
            // The fault is as if an engine did not look whether a cut is wanted.
            if !self.faults.has(Fault::DeliverBeforeCut) {
                self.cut_if_wanted(context)?;
            }
            let peer = peers[context.rng.random_range(0..peers.len())];
            let ring = context.rings.get_mut(&(self.incarnation, peer, self.me));
            match ring.and_then(|ring| ring.take(context.now)) {
                None => {}
                Some(OnLink::Control(control)) => {
                    self.participant
                        .handle_link(peer, control)
                        .map_err(|error| Violation(error.to_string()))?;
                    self.settle(context)?;
                    // What waited for an opening may go before the cut that the same packet asks for.
                    if context.rng.random_bool(0.5) {
                        self.flush(context)?;
                    }
                }
                Some(OnLink::Move(control)) => {
                    self.mover
                        .handle_control(peer, control)
                        .map_err(|error| Violation(error.to_string()))?;
                    self.settle(context)?;
                }
                Some(OnLink::Data(packet)) => {
                    self.arrive(peer, packet, context)?;
                    self.settle(context)?;
                }
            }
        }
        Ok(())
    }

    fn arrive(&mut self, peer: Process, packet: Packet, context: &mut Context) -> Checked {
        let arrival = self
            .participant
            .handle_data(peer)
            .map_err(|error| Violation(error.to_string()))?;
        let rank = packet.to;
        let route = self
            .mover
            .handle_packet(peer, rank)
            .map_err(|error| Violation(error.to_string()))?;
        if let Arrival::Record { epoch } = arrival {
            let staged = self
                .staged
                .get_mut(&epoch)
                .expect("what is recorded was cut");
            let Some(image) = staged
                .images
                .get_mut(&rank)
                .filter(|_| route == Route::Here)
            else {
                return violated(format!(
                    "a packet for {rank}, which moves, is channel state"
                ));
            };
            image.channel.push(packet.clone());
        }
        let queued = Queued {
            packet,
            forwarded: true,
        };
        match route {
            Route::Here => self.deliver(queued),
            Route::Hold => {
                self.held.entry(rank).or_default().push(queued);
                Ok(())
            }
            Route::Link(to) => {
                context.forwarded += 1;
                self.links.entry(to).or_default().packets.push_back(queued);
                Ok(())
            }
        }
    }

    /// Gives a packet to its rank, which is here.
    pub(super) fn deliver(&mut self, queued: Queued) -> Checked {
        let Queued {
            mut packet,
            forwarded,
        } = queued;
        if let Some(Address { process, since, .. }) = packet.address()
            && self.mover.handle_announced(packet.from, process, since) == Learned::Stale
        {
            packet.forget_address();
        }
        let Some(rank) = self.ranks.get_mut(&packet.to) else {
            return violated(format!("a packet for {}, which is not here", packet.to));
        };
        if forwarded {
            *rank.tables.taken.entry(packet.from).or_default() += 1;
        }
        rank.accept(packet)
    }

    /// Lets the ranks run a little.
    fn run(&mut self, context: &mut Context) -> Checked {
        let here = |rank: &Rank| self.mover.is_here(*rank);
        let ranks: Vec<Rank> = self.ranks.keys().copied().filter(here).collect();
        for rank in ranks {
            for _ in 0..context.rng.random_range(0..4) {
                let mut state = self.ranks.remove(&rank).expect("it is hosted here");
                let mut read = |from: Rank, to: Rank, number: u64, address: Address| {
                    self.read(from, to, number, address, context)
                };
                let progress = state.run(context.script, &mut read);
                self.ranks.insert(rank, state);
                self.route(rank)?;
                self.settle(context)?;
                if progress? != Progress::Stepped {
                    break;
                }
            }
            let finished = self.ranks[&rank].is_finished(context.script);
            if finished && !self.reported.contains(&rank) {
                self.reported.push(rank);
                context.reports.push(Report::RankFinished { rank });
            }
        }
        Ok(())
    }

    /// Reads an announced message from the memory of its sender.
    fn read(
        &self,
        from: Rank,
        to: Rank,
        number: u64,
        address: Address,
        context: &Context,
    ) -> Checked<Option<u64>> {
        if address.incarnation != self.incarnation {
            return violated("an address of an earlier incarnation was used");
        }
        let host = if address.process == self.me {
            self
        } else {
            match context.others.get(&(address.incarnation, address.process)) {
                Some(host) => host,
                None => return Ok(None),
            }
        };
        let Some(sender) = host.ranks.get(&from).or(host.ghosts.get(&from)) else {
            return violated(format!("{from} is not at the address that it announced"));
        };
        match sender.tables.unacked.get(&(to, number)) {
            Some(message) => Ok(Some(message.payload)),
            None => violated(format!("{from} has let go of message {number} too early")),
        }
    }

    /// Gives the packets that a rank has made to their ranks or links. A frozen rank's stay with it.
    pub(super) fn route(&mut self, rank: Rank) -> Checked {
        let mut from = vec![rank];
        while let Some(rank) = from.pop() {
            while self.mover.is_here(rank)
                && let Some(packet) = self
                    .ranks
                    .get_mut(&rank)
                    .and_then(|rank| rank.out.pop_front())
            {
                let to = packet.to;
                let forwarded = false;
                self.dispatch(Queued { packet, forwarded })?;
                from.push(to);
            }
        }
        Ok(())
    }

    /// Gives a packet that is not on a link to its rank, or to the link to where that is.
    pub(super) fn dispatch(&mut self, queued: Queued) -> Checked {
        let rank = queued.packet.to;
        let route = self.mover.route(rank);
        match route.map_err(|error| Violation(error.to_string()))? {
            Route::Here => self.deliver(queued)?,
            Route::Hold => self.held.entry(rank).or_default().push(queued),
            Route::Link(to) => self.links.entry(to).or_default().packets.push_back(queued),
        }
        Ok(())
    }

    /// Puts what waits on the links, control packets first.
    fn flush(&mut self, context: &mut Context) -> Checked {
        self.put_on_links(context)?;
        self.drain(context.options.slip == Some(Slip::NotDrained));
        self.settle(context)
    }

    fn put_on_links(&mut self, context: &mut Context) -> Checked {
        let ranks: Vec<Rank> = self.ranks.keys().copied().collect();
        for rank in ranks {
            self.route(rank)?;
        }
        let peers: Vec<Process> = self.links.keys().copied().collect();
        for peer in peers {
            for _ in 0..context.rng.random_range(0..4) {
                let ring = context
                    .rings
                    .entry((self.incarnation, self.me, peer))
                    .or_default();
                if ring.length() >= context.options.ring_packets {
                    break;
                }
                let delay = context.options.link_delay.draw(context.rng);
                let waiting = self.links.entry(peer).or_default();
                if let Some(control) = waiting.control.pop_front() {
                    let control = match control {
                        Control::Link(control) => OnLink::Control(control),
                        Control::Move(control) => OnLink::Move(control),
                    };
                    ring.put(context.now, delay, &control);
                    continue;
                }
                if waiting.packets.is_empty() {
                    break;
                }
                if self.participant.send_gate(peer) == Gate::Open {
                    let Queued { packet, forwarded } =
                        waiting.packets.pop_front().expect("there is one");
                    ring.put(context.now, delay, &OnLink::Data(packet.clone()));
                    if !forwarded {
                        let Some(rank) = self.ranks.get_mut(&packet.from) else {
                            return violated(format!(
                                "{} has a packet of {} in its queues, which is not there",
                                self.me, packet.from
                            ));
                        };
                        *rank.tables.put.entry(packet.to).or_default() += 1;
                    }
                    self.participant.data_sent(peer);
                }
                self.settle(context)?;
            }
        }
        Ok(())
    }
}
