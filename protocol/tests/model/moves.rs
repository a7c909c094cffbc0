//! Moves of ranks as a stateright model: the real machines of both sides, snapshots, refusals and losses at every moment.
//!
//! Messages are numbered by the real channels. Each tells where its sender was, as announcements do, so that places are
//! learned from packets as well.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::channel::{Accepted, Incoming};
use protocol::control::{LinkCount, StoredFile};
use protocol::coordinator::{
    self, Coordinator, Need, Output as Told, Part, Phase, Published, RequestId,
};
use protocol::faults::Broken;
use protocol::ids::{Epoch, Move, Process, Rank};
use protocol::migration::{
    self, Ask, MoveControl, MoveDirective, MoveMode, MoveNeeds, MoveReport, Mover, MoverOutput,
    Moves, MovesOutput, Route, Step,
};
use protocol::participant::{Arrival, Gate, LinkControl, Output, Participant};
use stateright::{Model, Property};

/// What must never be violated.
pub const SAFE: &str =
    "no message is lost or doubled, no rank run by two, and every checkpoint is consistent";
/// What must be so where nothing more can happen.
pub const ENDS: &str = "every run ends with all messages delivered, each rank run by its owner, and no move or snapshot open";

const NOW: Duration = Duration::ZERO;
const LATE: Duration = Duration::from_secs(1);

/// A mistake of who drives the machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveMistake {
    /// A snapshot begins while a rank is being moved.
    SnapshotDuringMove,
    /// A move begins while a snapshot is under way.
    MoveDuringSnapshot,
    /// The snapshot side is not told where a moved rank is.
    RecordKeptBack,
}

/// How large the job is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub processes: usize,
    /// The process of each rank.
    pub placement: &'static [u32],
    /// Sender, receiver, number of messages.
    pub messages: &'static [(usize, usize, u8)],
    /// Rank and process, to be asked for in this order.
    pub moves: &'static [(u32, u32, MoveMode)],
    pub snapshots: u8,
    /// Refusals, moves that take too long, aborted snapshots.
    pub failures: u8,
    /// Lost processes.
    pub losses: u8,
}

/// The model.
pub struct Moving {
    pub limits: Limits,
    pub fault: Broken,
    pub mistake: Option<MoveMistake>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Packet {
    from: usize,
    to: usize,
    number: u64,
    at: Process,
    since: Move,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Queued {
    packet: Packet,
    forwarded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum OnLink {
    Control(LinkControl),
    Move(MoveControl),
    Data(Packet),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Order {
    Snapshot(Epoch),
    Abort(Epoch),
    Committed(Epoch),
    Move(MoveDirective),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Word {
    Stored(Epoch, Vec<LinkCount>, BTreeMap<usize, Image>),
    Move(MoveReport),
}

/// What a process has yet to do for a move.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Errand {
    Examine(Move),
    Prepare(Move),
    Freeze(Move, usize, Process),
    Come(Move, Body),
    Complete(Move),
}

/// A rank: what it has sent to and received from every other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Body {
    sent: Vec<u64>,
    incoming: Vec<Incoming<u64>>,
    /// What it had queued when it was frozen.
    unsent: Vec<Packet>,
}

/// A rank in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Image {
    body: Body,
    channel: Vec<Packet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    participant: Participant<Broken>,
    mover: Mover<Broken>,
    ranks: BTreeMap<usize, Body>,
    held: BTreeMap<usize, Vec<Queued>>,
    queues: Vec<VecDeque<Queued>>,
    arrived: BTreeMap<Move, Body>,
    modes: BTreeMap<Move, MoveMode>,
    draining: Vec<(Move, usize)>,
    staged: BTreeMap<Epoch, BTreeMap<usize, Image>>,
}

/// A state of the whole job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    nodes: Vec<Node>,
    /// Indexed by sender, then receiver.
    links: Vec<Vec<VecDeque<OnLink>>>,
    orders: Vec<VecDeque<Order>>,
    words: Vec<VecDeque<Word>>,
    errands: Vec<(usize, Errand)>,
    coordinator: Coordinator,
    moves: Moves<Broken>,
    parts: BTreeMap<usize, Image>,
    committed: Option<(Epoch, BTreeMap<usize, Image>)>,
    newest: Epoch,
    asked: usize,
    snapshots_left: u8,
    failures_left: u8,
    losses_left: u8,
    moved: u8,
    given_up: u8,
    forwarded: bool,
    committed_after_move: bool,
    pub violation: Option<String>,
}

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The rank of the first number sends to that of the second.
    Send(usize, usize),
    /// A packet of the first process reaches the second.
    Take(usize, usize),
    /// A process cuts.
    Cut(usize),
    /// A directive reaches a process.
    Order(usize),
    /// A report reaches the coordinator.
    Word(usize),
    /// A step of a move is done.
    Errand(usize),
    /// It fails.
    Refuse(usize),
    /// Somebody asks for the next move.
    Ask,
    /// A move takes too long.
    Late,
    /// Somebody asks for a checkpoint.
    Snapshot,
    /// A process could not store.
    Fail,
    /// A process is lost, and with it this incarnation.
    Lose,
}

impl Moving {
    fn total(&self, from: usize, to: usize) -> u64 {
        let mut messages = self.limits.messages.iter();
        let of = messages.find(|channel| (channel.0, channel.1) == (from, to));
        of.map_or(0, |channel| u64::from(channel.2))
    }

    fn placement(&self) -> Vec<Process> {
        self.limits
            .placement
            .iter()
            .map(|&at| Process(at))
            .collect()
    }

    fn is_safe(&self) -> bool {
        self.mistake.is_none() && self.fault.0.is_none()
    }
}

impl State {
    fn violated(&mut self, what: impl ToString) {
        self.violation.get_or_insert(what.to_string());
    }

    /// A new incarnation, from the newest checkpoint.
    fn restart(&mut self, model: &Moving) {
        let size = model.limits.processes;
        let placement = model.placement();
        let ranks = placement.len();
        let blank = Image {
            body: Body {
                sent: vec![0; ranks],
                incoming: vec![Incoming::new(); ranks],
                unsent: Vec::new(),
            },
            channel: Vec::new(),
        };
        let node = |at: usize| Node {
            participant: Participant::with_faults(Process(at as u32), self.newest, model.fault),
            mover: Mover::with_faults(Process(at as u32), &placement, model.fault),
            ranks: BTreeMap::new(),
            held: BTreeMap::new(),
            queues: vec![VecDeque::new(); size],
            arrived: BTreeMap::new(),
            modes: BTreeMap::new(),
            draining: Vec::new(),
            staged: BTreeMap::new(),
        };
        self.nodes = (0..size).map(node).collect();
        self.links = vec![vec![VecDeque::new(); size]; size];
        self.orders = vec![VecDeque::new(); size];
        self.words = vec![VecDeque::new(); size];
        self.errands = Vec::new();
        self.parts = BTreeMap::new();
        let newest = self.newest;
        let committed = self.committed.as_ref().map(|committed| committed.0);
        self.coordinator = model.coordinator(newest, committed);
        self.moves = model.moves();
        let committed = self.committed.clone();
        for rank in 0..ranks {
            let images = committed.as_ref().map(|committed| &committed.1);
            let mut image = images.map_or(&blank, |images| &images[&rank]).clone();
            let at = placement[rank].index();
            let unsent = std::mem::take(&mut image.body.unsent);
            self.nodes[at].ranks.insert(rank, image.body);
            for mut packet in image.channel {
                // What it told of places is not true any more.
                (packet.at, packet.since) = (placement[packet.from], Move(0));
                self.deliver(at, packet);
            }
            for packet in unsent {
                self.dispatch(at, Queued::own(packet));
            }
        }
        (0..size).for_each(|at| self.settle(at));
    }

    fn act(&mut self, model: &Moving) {
        loop {
            let need = match self.coordinator.need() {
                Need::Due | Need::UnderWay
                    if model.mistake == Some(MoveMistake::MoveDuringSnapshot) =>
                {
                    Need::None
                }
                need => need,
            };
            if model.is_safe() {
                migration::settle(NOW, &mut self.coordinator, &mut self.moves);
            } else {
                self.moves.handle_snapshots(NOW, need);
                for (rank, process) in self.moves.take_recorded() {
                    if model.mistake != Some(MoveMistake::RecordKeptBack) {
                        self.coordinator.handle_placed(rank, process);
                    }
                }
                let held = self.moves.holds_snapshots()
                    && model.mistake != Some(MoveMistake::SnapshotDuringMove);
                self.coordinator.handle_moves(NOW, held);
            }
            if let Some(told) = self.coordinator.poll_output() {
                self.coordinate(told);
            } else if let Some(told) = self.moves.poll_output() {
                match told {
                    MovesOutput::Tell { process, directive } => {
                        self.orders[process.index()].push_back(Order::Move(directive));
                    }
                    MovesOutput::TellAll { directive } => {
                        let order = Order::Move(directive);
                        self.orders
                            .iter_mut()
                            .for_each(|orders| orders.push_back(order.clone()));
                    }
                    MovesOutput::Answer { outcome, .. } => match outcome {
                        Ok(_) => self.moved += 1,
                        Err(_) => self.given_up += 1,
                    },
                    MovesOutput::Waiting { .. }
                    | MovesOutput::WaitingToRelease { .. }
                    | MovesOutput::Released { .. } => {}
                }
            } else {
                return self.look();
            }
        }
    }

    fn coordinate(&mut self, told: Told) {
        let order = match told {
            Told::Prepare { epoch } => {
                self.newest = epoch;
                self.parts.clear();
                return self.coordinator.handle_prepared(NOW, epoch, Ok(()));
            }
            Told::Publish(collected) => {
                self.publish(collected.epoch);
                return self
                    .coordinator
                    .handle_published(NOW, collected.epoch, Published::Done);
            }
            Told::Announce { epoch } => Order::Snapshot(epoch),
            Told::Commit { epoch } => Order::Committed(epoch),
            Told::Abort { epoch, reason, .. } => {
                if reason != "process 0: no space" && reason != "a process was lost" {
                    self.violated(reason);
                }
                Order::Abort(epoch)
            }
            _ => return,
        };
        self.orders
            .iter_mut()
            .for_each(|orders| orders.push_back(order.clone()));
    }

    /// Nobody runs a rank but its owner.
    fn look(&mut self) {
        for rank in 0..self.moves.placement().len() {
            let owner = self.moves.placement()[rank].index();
            let runs = |at: &usize| self.nodes[*at].mover.is_here(Rank(rank as u32));
            let running: Vec<usize> = (0..self.nodes.len()).filter(runs).collect();
            if running.iter().any(|&at| at != owner) {
                self.violated(format!(
                    "rank {rank} is run by {running:?}, {owner} owns it"
                ));
            }
        }
    }

    /// The snapshot is a checkpoint now, and must be a consistent one.
    fn publish(&mut self, epoch: Epoch) {
        let images = std::mem::take(&mut self.parts);
        for (&from, sender) in &images {
            for (&to, receiver) in &images {
                let incoming = &receiver.body.incoming[from];
                let held = incoming.held().map(|(number, _)| number);
                let on_link = receiver.channel.iter().filter(|packet| packet.from == from);
                let unsent = sender.body.unsent.iter().filter(|packet| packet.to == to);
                let mut numbers: Vec<u64> = (0..incoming.received())
                    .chain(held)
                    .chain(on_link.chain(unsent).map(|packet| packet.number))
                    .collect();
                numbers.sort_unstable();
                if !numbers.iter().copied().eq(0..sender.body.sent[to]) {
                    let sent = sender.body.sent[to];
                    let text =
                        format!("{epoch}: {from} had sent {sent} to {to}, where {numbers:?} are");
                    self.violation.get_or_insert(text);
                }
            }
        }
        self.committed_after_move |= self.moved > 0;
        self.committed = Some((epoch, images));
    }

    fn settle(&mut self, at: usize) {
        loop {
            if let Some(output) = self.nodes[at].mover.poll_output() {
                self.migrate(at, output);
                continue;
            }
            let Some(output) = self.nodes[at].participant.poll_output() else {
                break;
            };
            match output {
                Output::SendLink { peer, control } => {
                    self.links[at][peer.index()].push_back(OnLink::Control(control));
                }
                Output::LinkOpened { peer } => self.flush(at, peer.index()),
                Output::ChannelsComplete { epoch, links } => {
                    let Some(images) = self.nodes[at].staged.remove(&epoch) else {
                        return self.violated("what was never cut is complete");
                    };
                    self.words[at].push_back(Word::Stored(epoch, links, images));
                }
                // Nobody is released here.
                Output::Parted { .. } => {}
                Output::Discard { epoch } => {
                    self.nodes[at].staged.remove(&epoch);
                }
            }
        }
        let drained: Vec<(Move, usize)> = self.nodes[at].draining.clone();
        for (id, rank) in drained {
            let node = &mut self.nodes[at];
            let mut queued = node.queues.iter().flatten();
            if !queued.any(|queued| queued.forwarded && queued.packet.to == rank) {
                node.draining.retain(|other| *other != (id, rank));
                node.mover.drained(id);
                self.settle(at);
            }
        }
    }

    fn migrate(&mut self, at: usize, output: MoverOutput) {
        let node = &mut self.nodes[at];
        match output {
            MoverOutput::Report(report) => self.words[at].push_back(Word::Move(report)),
            MoverOutput::SendLink { peer, control } => {
                self.links[at][peer.index()].push_back(OnLink::Move(control));
            }
            MoverOutput::Examine { id, .. } => self.errands.push((at, Errand::Examine(id))),
            MoverOutput::Prepare { id, mode, .. } => {
                node.modes.insert(id, mode);
                self.errands.push((at, Errand::Prepare(id)));
            }
            MoverOutput::Transfer { id, rank, to, .. } => {
                let freeze = Errand::Freeze(id, rank.index(), to);
                self.errands.push((at, freeze));
            }
            MoverOutput::Resume { rank, .. } => {
                let rank = rank.index();
                let body = node.ranks.get_mut(&rank);
                let unsent = body.map(|body| std::mem::take(&mut body.unsent));
                let held = node.held.remove(&rank).unwrap_or_default();
                let unsent = unsent.into_iter().flatten().map(Queued::own);
                for queued in unsent.chain(held) {
                    self.dispatch(at, queued);
                }
            }
            MoverOutput::Discard { id, .. } => {
                node.arrived.remove(&id);
                node.modes.remove(&id);
            }
            MoverOutput::Run { id, rank } => {
                let rank = rank.index();
                let Some(mut body) = node.arrived.remove(&id) else {
                    return self.violated("a rank that has not come is run");
                };
                let unsent = std::mem::take(&mut body.unsent).into_iter();
                node.ranks.insert(rank, body);
                let held = node.held.remove(&rank).unwrap_or_default();
                for queued in unsent.map(Queued::own).chain(held) {
                    self.dispatch(at, queued);
                }
                if self.nodes[at].modes.remove(&id) == Some(MoveMode::Postcopy) {
                    self.errands.push((at, Errand::Complete(id)));
                }
            }
            MoverOutput::Left { rank, to, .. } => {
                node.ranks.remove(&rank.index());
                let held = node.held.remove(&rank.index()).unwrap_or_default();
                self.forwarded |= held.iter().any(|queued| queued.forwarded);
                node.queues[to.index()].extend(held);
                self.flush(at, to.index());
            }
            MoverOutput::Placed { rank, to, .. } => {
                let mut rerouted = Vec::new();
                for (peer, queue) in node.queues.iter_mut().enumerate() {
                    let for_it = |queued: &Queued| queued.packet.to == rank.index();
                    if peer != to.index() {
                        rerouted.extend(queue.iter().copied().filter(for_it));
                        queue.retain(|queued| !for_it(queued));
                    }
                }
                for queued in rerouted {
                    self.dispatch(at, queued);
                }
            }
            MoverOutput::Drain { id, rank } => node.draining.push((id, rank.index())),
            MoverOutput::Free { .. } => {}
        }
    }

    /// Gives a packet to its rank, or to the queue of the link to where that is.
    fn dispatch(&mut self, at: usize, queued: Queued) {
        let rank = queued.packet.to;
        match self.nodes[at].mover.route(Rank(rank as u32)) {
            Ok(Route::Here) => self.deliver(at, queued.packet),
            Ok(Route::Hold) => self.nodes[at].held.entry(rank).or_default().push(queued),
            Ok(Route::Link(to)) => {
                self.nodes[at].queues[to.index()].push_back(queued);
                self.flush(at, to.index());
            }
            Err(error) => self.violated(error),
        }
    }

    fn flush(&mut self, at: usize, peer: usize) {
        let node = &mut self.nodes[at];
        let process = Process(peer as u32);
        while !node.queues[peer].is_empty() && node.participant.send_gate(process) == Gate::Open {
            if let Some(queued) = node.queues[peer].pop_front() {
                self.links[at][peer].push_back(OnLink::Data(queued.packet));
                node.participant.data_sent(process);
            }
        }
    }

    fn deliver(&mut self, at: usize, packet: Packet) {
        let node = &mut self.nodes[at];
        let from = Rank(packet.from as u32);
        node.mover.handle_announced(from, packet.at, packet.since);
        let Some(body) = node.ranks.get_mut(&packet.to) else {
            return self.violated("a packet for a rank that is not here");
        };
        let incoming = &mut body.incoming[packet.from];
        match incoming.accept(packet.number, packet.number) {
            Ok(Accepted::Next(_)) => while incoming.next_held().is_some() {},
            Ok(Accepted::Early) => {}
            Ok(Accepted::Duplicate(_)) => self.violated("a message came twice"),
            Err(error) => self.violated(error),
        }
    }

    fn take(&mut self, from: usize, to: usize) {
        let peer = Process(from as u32);
        let Some(packet) = self.links[from][to].pop_front() else {
            return;
        };
        let node = &mut self.nodes[to];
        match packet {
            OnLink::Control(control) => {
                if let Err(error) = node.participant.handle_link(peer, control) {
                    self.violated(error);
                }
            }
            OnLink::Move(control) => {
                if let Err(error) = node.mover.handle_control(peer, control) {
                    self.violated(error);
                }
            }
            OnLink::Data(packet) => {
                let arrival = match node.participant.handle_data(peer) {
                    Ok(arrival) => arrival,
                    Err(error) => return self.violated(error),
                };
                let route = match node.mover.handle_packet(peer, Rank(packet.to as u32)) {
                    Ok(route) => route,
                    Err(error) => return self.violated(error),
                };
                if let Arrival::Record { epoch } = arrival {
                    let images = node.staged.get_mut(&epoch);
                    match images.and_then(|images| images.get_mut(&packet.to)) {
                        Some(image) => image.channel.push(packet),
                        None => return self.violated("channel state of a rank that moves"),
                    }
                }
                let forwarded = true;
                let queued = Queued { packet, forwarded };
                match route {
                    Route::Here => self.deliver(to, packet),
                    Route::Hold => node.held.entry(packet.to).or_default().push(queued),
                    Route::Link(on) => {
                        self.forwarded = true;
                        node.queues[on.index()].push_back(queued);
                        self.flush(to, on.index());
                    }
                }
            }
        }
        self.settle(to);
    }

    fn cut(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(epoch) = node.participant.cut_wanted() else {
            return;
        };
        let mut images = BTreeMap::new();
        for (&rank, body) in &node.ranks {
            let mut body = body.clone();
            let queued = node.queues.iter().flatten();
            let of_rank = queued.filter(|queued| queued.packet.from == rank);
            body.unsent.extend(of_rank.map(|queued| queued.packet));
            let channel = Vec::new();
            images.insert(rank, Image { body, channel });
        }
        node.staged.insert(epoch, images);
        if let Err(error) = node.participant.cut_taken(epoch) {
            self.violated(error);
        }
        self.settle(at);
    }

    fn order(&mut self, at: usize) {
        let Some(order) = self.orders[at].pop_front() else {
            return;
        };
        let node = &mut self.nodes[at];
        match order {
            Order::Snapshot(epoch) => node.participant.handle_snapshot(epoch),
            Order::Abort(epoch) => node.participant.handle_abort(epoch),
            Order::Committed(epoch) => {
                if let Err(error) = node.participant.handle_committed(epoch) {
                    self.violated(error);
                }
            }
            Order::Move(directive) => {
                let participant = &node.participant;
                let is_open = |peer| participant.is_open(peer);
                if let Err(error) = node.mover.handle_directive(directive, is_open) {
                    self.violated(error);
                }
            }
        }
        self.settle(at);
    }

    fn word(&mut self, at: usize) {
        let process = Process(at as u32);
        match self.words[at].pop_front() {
            Some(Word::Stored(epoch, links, images)) => {
                let file = |&rank: &usize| StoredFile {
                    rank: Rank(rank as u32),
                    ..StoredFile::default()
                };
                let part = Part {
                    files: images.keys().map(file).collect(),
                    links,
                    ..Part::default()
                };
                if self.coordinator.status().snapshot == Some(epoch) {
                    self.parts.extend(images);
                }
                self.coordinator.handle_stored(NOW, process, epoch, part);
            }
            Some(Word::Move(report)) => self.moves.handle_report(NOW, process, report),
            None => {}
        }
    }

    fn errand(&mut self, index: usize, fails: bool) {
        let (at, errand) = self.errands.remove(index);
        let node = &mut self.nodes[at];
        let outcome = |fails: bool| match fails {
            true => Err("refused".to_owned()),
            false => Ok(()),
        };
        match errand {
            Errand::Examine(id) => {
                let needs = outcome(fails).map(|()| MoveNeeds::default());
                node.mover.examined(id, needs);
            }
            Errand::Prepare(id) => node.mover.prepared(id, outcome(fails)),
            Errand::Freeze(id, rank, to) => {
                if node.mover.frozen(id) {
                    let mut taken = Vec::new();
                    for queue in &mut node.queues {
                        let own = |queued: &Queued| queued.packet.from == rank;
                        let of_rank = queue.iter().filter(|queued| own(queued));
                        taken.extend(of_rank.map(|queued| queued.packet));
                        queue.retain(|queued| !own(queued));
                    }
                    if let Some(body) = node.ranks.get_mut(&rank) {
                        body.unsent = taken;
                        let come = Errand::Come(id, body.clone());
                        self.errands.push((to.index(), come));
                    }
                    // It says that it failed, and the rank may come all the same.
                    if fails {
                        self.nodes[at].mover.failed(id, "refused");
                    }
                }
            }
            Errand::Come(id, body) => {
                if fails {
                    node.mover.failed(id, "refused");
                } else if node.mover.received(id) {
                    node.arrived.insert(id, body);
                    // The mistake that runs it at once finds it there.
                }
            }
            Errand::Complete(id) => node.mover.complete(id),
        }
        self.settle(at);
    }

    fn is_done(&self, model: &Moving) -> bool {
        let received = |&(from, to, total): &(usize, usize, u8)| {
            let mut bodies = self.nodes.iter().filter_map(|node| node.ranks.get(&to));
            bodies.any(|body| body.incoming[from].received() == u64::from(total))
        };
        let owned = |(rank, owner): (usize, &Process)| {
            let node = &self.nodes[owner.index()];
            node.mover.is_here(Rank(rank as u32)) && node.ranks.contains_key(&rank)
        };
        let hosted: usize = self.nodes.iter().map(|node| node.ranks.len()).sum();
        self.coordinator.is_settled()
            && self.moves.underway().next().is_none()
            && self.moves.waiting() == 0
            && hosted == model.limits.placement.len()
            && self.moves.placement().iter().enumerate().all(owned)
            && self.nodes.iter().all(|node| !node.mover.is_moving())
            && self
                .nodes
                .iter()
                .all(|node| node.held.is_empty() && node.arrived.is_empty())
            && model.limits.messages.iter().all(received)
    }
}

impl Queued {
    fn own(packet: Packet) -> Self {
        Self {
            packet,
            forwarded: false,
        }
    }
}

impl Moving {
    fn coordinator(&self, newest: Epoch, committed: Option<Epoch>) -> Coordinator {
        let rules = coordinator::Config {
            processes: self.limits.processes as u32,
            placement: self.placement(),
            newest,
            committed,
            every: None,
            cut_patience: LATE,
            store_timeout: LATE,
        };
        Coordinator::new(rules, NOW)
    }

    fn moves(&self) -> Moves<Broken> {
        let rules = migration::Config {
            processes: self.limits.processes as u32,
            placement: self.placement(),
            drained: Vec::new(),
            snapshot_patience: LATE,
            end_patience: 2 * LATE,
        };
        Moves::with_faults(rules, self.fault)
    }
}

impl Model for Moving {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            nodes: Vec::new(),
            links: Vec::new(),
            orders: Vec::new(),
            words: Vec::new(),
            errands: Vec::new(),
            coordinator: self.coordinator(Epoch(0), None),
            moves: self.moves(),
            parts: BTreeMap::new(),
            committed: None,
            newest: Epoch(0),
            asked: 0,
            snapshots_left: self.limits.snapshots,
            failures_left: self.limits.failures,
            losses_left: self.limits.losses,
            moved: 0,
            given_up: 0,
            forwarded: false,
            committed_after_move: false,
            violation: None,
        };
        state.restart(self);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        for at in 0..self.limits.processes {
            let node = &state.nodes[at];
            let cut_wanted = node.participant.cut_wanted().is_some();
            if cut_wanted {
                actions.push(Action::Cut(at));
            }
            for (&rank, body) in &node.ranks {
                for to in 0..self.limits.placement.len() {
                    let here = node.mover.is_here(Rank(rank as u32));
                    if here && body.sent[to] < self.total(rank, to) {
                        actions.push(Action::Send(rank, to));
                    }
                }
            }
            for peer in 0..self.limits.processes {
                if !cut_wanted && !state.links[peer][at].is_empty() {
                    actions.push(Action::Take(peer, at));
                }
            }
            if !state.orders[at].is_empty() {
                actions.push(Action::Order(at));
            }
            if !state.words[at].is_empty() {
                actions.push(Action::Word(at));
            }
        }
        for index in 0..state.errands.len() {
            actions.push(Action::Errand(index));
            if state.failures_left > 0 && !matches!(state.errands[index].1, Errand::Complete(_)) {
                actions.push(Action::Refuse(index));
            }
        }
        if state.asked < self.limits.moves.len() {
            actions.push(Action::Ask);
        }
        let open = |step| matches!(step, Step::Examining | Step::Preparing | Step::Transferring);
        if state.failures_left > 0 && state.moves.underway().any(|underway| open(underway.step)) {
            actions.push(Action::Late);
        }
        if state.snapshots_left > 0 {
            actions.push(Action::Snapshot);
        }
        if state.failures_left > 0 && state.coordinator.status().phase == Phase::Collecting {
            actions.push(Action::Fail);
        }
        if state.losses_left > 0 {
            actions.push(Action::Lose);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Send(from, to) => {
                let hosts = |node: &Node| node.mover.is_here(Rank(from as u32));
                let at = state.nodes.iter().position(hosts)?;
                let node = &mut state.nodes[at];
                let since = node.mover.since(Rank(from as u32)).unwrap_or_default();
                let body = node.ranks.get_mut(&from)?;
                let number = body.sent[to];
                body.sent[to] += 1;
                let packet = Packet {
                    from,
                    to,
                    number,
                    at: Process(at as u32),
                    since,
                };
                state.dispatch(at, Queued::own(packet));
                state.settle(at);
            }
            Action::Take(from, to) => state.take(from, to),
            Action::Cut(at) => state.cut(at),
            Action::Order(at) => state.order(at),
            Action::Word(at) => state.word(at),
            Action::Errand(index) => state.errand(index, false),
            Action::Refuse(index) => {
                state.failures_left -= 1;
                state.errand(index, true);
            }
            Action::Ask => {
                let (rank, to, mode) = self.limits.moves[state.asked];
                state.asked += 1;
                let ask = Ask {
                    rank: Rank(rank),
                    to: Process(to),
                    mode,
                    within: LATE,
                };
                let request = RequestId(state.asked as u64);
                state.moves.handle_request(request, ask);
            }
            Action::Late => {
                state.failures_left -= 1;
                state.moves.handle_timeout(LATE);
            }
            Action::Snapshot => {
                state.snapshots_left -= 1;
                state.coordinator.handle_request(NOW, RequestId(0));
            }
            Action::Fail => {
                state.failures_left -= 1;
                let epoch = state.coordinator.status().snapshot?;
                let process = Process(0);
                state
                    .coordinator
                    .handle_failed(NOW, process, epoch, "no space");
            }
            Action::Lose => {
                state.losses_left -= 1;
                state.coordinator.handle_lost(NOW, "a process was lost");
                state.act(self);
                if !state.coordinator.is_settled() || state.moves.underway().next().is_some() {
                    state.violated("something is open after a loss");
                }
                state.restart(self);
            }
        }
        state.act(self);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(SAFE, |_, state: &State| state.violation.is_none()),
            Property::always(ENDS, |model: &Self, state: &State| {
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                let moves = |action: Action| model.next_state(state, action).is_some();
                state.is_done(model) || actions.into_iter().any(moves)
            }),
        ];
        if !self.is_safe() {
            return properties;
        }
        properties.push(Property::sometimes(
            "every rank has moved",
            |model: &Self, state: &State| usize::from(state.moved) == model.limits.moves.len(),
        ));
        properties.push(Property::sometimes(
            "a packet is forwarded",
            |_, state: &State| state.forwarded,
        ));
        if self.limits.snapshots > 0 {
            properties.push(Property::sometimes(
                "a checkpoint follows a move",
                |_, state: &State| state.committed_after_move,
            ));
        }
        if self.limits.failures + self.limits.losses > 0 {
            properties.push(Property::sometimes(
                "a move is given up",
                |_, state: &State| state.given_up > 0,
            ));
        }
        properties
    }
}
