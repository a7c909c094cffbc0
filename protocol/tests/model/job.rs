//! A small job as a stateright model: real participants, the real coordinator, one rank per process.
//!
//! The message with number n of a channel is the number n: so a message lost, doubled or out of order shows
//! at once, and a rank's state is how many it has sent and received on each channel.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::control::{LinkCount, StoredFile};
use protocol::coordinator::{
    Config, Coordinator, Output as Told, Part, Phase, Published, RequestId, Resolution,
};
use protocol::faults::{Broken, Fault, Faults};
use protocol::ids::{Epoch, Process, Rank};
use protocol::participant::{Arrival, Gate, LinkControl, Output, Participant};
use stateright::{Model, Property};

/// What must never be violated.
pub const SAFE: &str = "no message is lost, doubled, orphaned or delivered out of order";
/// What must be so where nothing more can happen.
pub const ENDS: &str = "every run ends with all messages delivered and no snapshot open";

const NOW: Duration = Duration::ZERO;

/// How large the job is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sender, receiver, number of messages.
    pub messages: &'static [(usize, usize, u8)],
    pub processes: usize,
    pub snapshots: u8,
    /// Aborted snapshots and failed or unclear renames.
    pub failures: u8,
    /// Lost processes or coordinators.
    pub losses: u8,
}

/// The model.
pub struct Small {
    limits: Limits,
    fault: Broken,
}

impl Small {
    pub fn new(limits: Limits, fault: Option<Fault>) -> Self {
        Self {
            limits,
            fault: Broken(fault),
        }
    }

    fn total(&self, from: usize, to: usize) -> u8 {
        let of = self
            .limits
            .messages
            .iter()
            .find(|channel| (channel.0, channel.1) == (from, to));
        of.map_or(0, |channel| channel.2)
    }

    fn coordinator(&self, newest: Epoch, committed: Option<Epoch>) -> Coordinator {
        let processes = self.limits.processes as u32;
        let rules = Config {
            processes,
            placement: (0..processes).map(Process).collect(),
            newest,
            committed,
            every: None,
            cut_patience: NOW,
            store_timeout: NOW,
        };
        Coordinator::new(rules, NOW)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum OnLink {
    Control(LinkControl),
    Message(u8),
}

/// What the coordinator tells a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Order {
    Snapshot(Epoch),
    Abort(Epoch),
    Committed(Epoch),
}

/// What a process tells the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Word {
    Stored(Epoch, Vec<LinkCount>, Image),
}

/// A rank: messages sent to and received from every other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Image {
    sent: Vec<u8>,
    received: Vec<u8>,
    /// Numbers of recorded messages, by sender.
    channel: Vec<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    participant: Participant<Broken>,
    sent: Vec<u8>,
    received: Vec<u8>,
    staged: Vec<(Epoch, Image)>,
}

/// A state of the whole job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    nodes: Vec<Node>,
    /// Indexed by sender, then receiver.
    links: Vec<Vec<VecDeque<OnLink>>>,
    orders: Vec<VecDeque<Order>>,
    words: Vec<VecDeque<Word>>,
    coordinator: Coordinator,
    /// The epoch whose manifest is being renamed.
    renaming: Option<Epoch>,
    /// What was reported stored for the present epoch.
    parts: Vec<Option<Image>>,
    committed: Option<(Epoch, Vec<Image>)>,
    newest: Epoch,
    snapshots_left: u8,
    failures_left: u8,
    losses_left: u8,
    /// Of the last committed snapshot: some channel state; some process lost since.
    saw_channel_state: bool,
    saw_abort: bool,
    pub violation: Option<String>,
}

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The rank of the first sends to that of the second.
    Send(usize, usize),
    /// A packet of the first reaches the second.
    Take(usize, usize),
    /// A process cuts.
    Cut(usize),
    /// A directive reaches a process.
    Order(usize),
    /// A report reaches the coordinator.
    Word(usize),
    /// Somebody asks for a checkpoint.
    Snapshot,
    /// A process could not store, or time ran out.
    Fail,
    /// The rename is done.
    Rename,
    /// The rename gave no clear answer; whether it happened.
    Unclear(bool),
    /// A process is lost, and with it this incarnation.
    LoseProcess,
    /// The coordinator is lost; whether a rename under way happened.
    LoseCoordinator(bool),
}

impl State {
    fn violated(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert(what.into());
    }

    /// Does what a participant says.
    fn settle(&mut self, at: usize) {
        while let Some(output) = self.nodes[at].participant.poll_output() {
            match output {
                Output::SendLink { peer, control } => {
                    self.links[at][peer.index()].push_back(OnLink::Control(control));
                }
                Output::LinkOpened { .. } => {}
                Output::ChannelsComplete { epoch, links } => {
                    let staged = &mut self.nodes[at].staged;
                    let Some(of) = staged.iter().position(|staged| staged.0 == epoch) else {
                        return self.violated("what was never cut is complete");
                    };
                    let (_, image) = staged.remove(of);
                    self.words[at].push_back(Word::Stored(epoch, links, image));
                }
                // Nobody is released here.
                Output::Parted { .. } => {}
                Output::Discard { epoch } => {
                    self.nodes[at].staged.retain(|staged| staged.0 != epoch);
                }
            }
        }
    }

    /// Does what the coordinator says.
    fn act(&mut self, model: &Small) {
        while let Some(told) = self.coordinator.poll_output() {
            let order = match told {
                Told::Prepare { epoch } => {
                    if epoch <= self.newest {
                        self.violated("an epoch was used twice");
                    }
                    self.newest = epoch;
                    self.parts = vec![None; model.limits.processes];
                    self.coordinator.handle_prepared(NOW, epoch, Ok(()));
                    continue;
                }
                Told::Publish(collected) => {
                    self.renaming = Some(collected.epoch);
                    continue;
                }
                Told::Resolve { epoch } => {
                    let present = self.committed.as_ref().is_some_and(|it| it.0 == epoch);
                    let is = if present {
                        Resolution::Present
                    } else {
                        Resolution::Absent
                    };
                    self.coordinator.handle_resolved(NOW, epoch, is);
                    continue;
                }
                Told::Announce { epoch } => Order::Snapshot(epoch),
                Told::Commit { epoch } => {
                    if self
                        .committed
                        .as_ref()
                        .is_none_or(|committed| committed.0 != epoch)
                    {
                        self.violated("an epoch that is not in the store was announced");
                    }
                    Order::Committed(epoch)
                }
                Told::Abort { epoch, reason, .. } => {
                    self.saw_abort = true;
                    if reason.contains("unevenly") {
                        self.violated(reason);
                    }
                    if self
                        .committed
                        .as_ref()
                        .is_some_and(|committed| committed.0 == epoch)
                    {
                        self.violated("an epoch that is in the store was aborted");
                    }
                    Order::Abort(epoch)
                }
                _ => continue,
            };
            self.orders
                .iter_mut()
                .for_each(|orders| orders.push_back(order.clone()));
        }
    }

    /// The rename has happened: now the epoch is a checkpoint, and must be a consistent one.
    fn publish(&mut self, epoch: Epoch) {
        let images: Vec<Image> = self.parts.iter().flatten().cloned().collect();
        for from in 0..images.len() {
            for to in 0..images.len() {
                let sent = images[from].sent[to];
                let received = images[to].received[from];
                let channel = &images[to].channel[from];
                self.saw_channel_state |= !channel.is_empty();
                if !channel.iter().copied().eq(received..sent) {
                    let text = format!(
                        "{epoch}: {from} had sent {sent} to {to}, which had received {received} and recorded {channel:?}"
                    );
                    self.violated(text);
                }
            }
        }
        self.committed = Some((epoch, images));
    }

    /// A new incarnation, from the newest checkpoint.
    fn restart(&mut self, model: &Small) {
        let size = model.limits.processes;
        let blank = Image {
            sent: vec![0; size],
            received: vec![0; size],
            channel: vec![Vec::new(); size],
        };
        self.nodes = (0..size)
            .map(|at| {
                let image = self
                    .committed
                    .as_ref()
                    .map_or(&blank, |committed| &committed.1[at]);
                let process = Process(at as u32);
                let from_channel = image.channel.iter().map(|channel| channel.len() as u8);
                Node {
                    participant: Participant::with_faults(process, self.newest, model.fault),
                    sent: image.sent.clone(),
                    received: image
                        .received
                        .iter()
                        .zip(from_channel)
                        .map(|(a, b)| a + b)
                        .collect(),
                    staged: Vec::new(),
                }
            })
            .collect();
        self.links = vec![vec![VecDeque::new(); size]; size];
        self.orders = vec![VecDeque::new(); size];
        self.words = vec![VecDeque::new(); size];
        self.renaming = None;
        let committed = self.committed.as_ref().map(|committed| committed.0);
        self.coordinator = model.coordinator(self.newest, committed);
    }

    fn is_done(&self, model: &Small) -> bool {
        let all = model.limits.messages.iter();
        self.coordinator.is_settled()
            && all
                .clone()
                .all(|&(from, to, total)| self.nodes[to].received[from] == total)
    }
}

impl Model for Small {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            nodes: Vec::new(),
            links: Vec::new(),
            orders: Vec::new(),
            words: Vec::new(),
            coordinator: self.coordinator(Epoch(0), None),
            renaming: None,
            parts: Vec::new(),
            committed: None,
            newest: Epoch(0),
            snapshots_left: self.limits.snapshots,
            failures_left: self.limits.failures,
            losses_left: self.limits.losses,
            saw_channel_state: false,
            saw_abort: false,
            violation: None,
        };
        state.restart(self);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        let size = self.limits.processes;
        for at in 0..size {
            let node = &state.nodes[at];
            let cut_wanted = node.participant.cut_wanted().is_some();
            if cut_wanted {
                actions.push(Action::Cut(at));
            }
            for peer in 0..size {
                if node.sent[peer] < self.total(at, peer) {
                    actions.push(Action::Send(at, peer));
                }
                let may_take = !cut_wanted || self.fault.has(Fault::DeliverBeforeCut);
                if may_take && !state.links[peer][at].is_empty() {
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
        if state.snapshots_left > 0 && state.coordinator.is_settled() {
            actions.push(Action::Snapshot);
        }
        let collecting = state.coordinator.status().phase == Phase::Collecting;
        if state.failures_left > 0 && collecting {
            actions.push(Action::Fail);
        }
        if state.renaming.is_some() {
            actions.push(Action::Rename);
            if state.failures_left > 0 {
                actions.extend([Action::Unclear(false), Action::Unclear(true)]);
            }
        }
        if state.losses_left > 0 {
            actions.extend([Action::LoseProcess, Action::LoseCoordinator(false)]);
            if state.renaming.is_some() {
                actions.push(Action::LoseCoordinator(true));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Send(from, to) => {
                let peer = Process(to as u32);
                let node = &mut state.nodes[from];
                if node.participant.send_gate(peer) == Gate::Open {
                    let number = node.sent[to];
                    node.sent[to] += 1;
                    node.participant.data_sent(peer);
                    state.links[from][to].push_back(OnLink::Message(number));
                }
                state.settle(from);
            }
            Action::Take(from, to) => state.take(from, to),
            Action::Cut(at) => {
                let node = &mut state.nodes[at];
                let epoch = node.participant.cut_wanted()?;
                let image = Image {
                    sent: node.sent.clone(),
                    received: node.received.clone(),
                    channel: vec![Vec::new(); self.limits.processes],
                };
                node.staged.push((epoch, image));
                node.participant.cut_taken(epoch).expect("it was wanted");
                state.settle(at);
            }
            Action::Order(at) => {
                let order = state.orders[at].pop_front()?;
                let participant = &mut state.nodes[at].participant;
                match order {
                    Order::Snapshot(epoch) => participant.handle_snapshot(epoch),
                    Order::Abort(epoch) => participant.handle_abort(epoch),
                    Order::Committed(epoch) => {
                        if let Err(error) = participant.handle_committed(epoch) {
                            state.violated(error.to_string());
                        }
                    }
                }
                state.settle(at);
            }
            Action::Word(at) => {
                let process = Process(at as u32);
                match state.words[at].pop_front()? {
                    Word::Stored(epoch, links, image) => {
                        if state.coordinator.status().snapshot == Some(epoch) {
                            state.parts[at] = Some(image);
                        }
                        let file = StoredFile {
                            rank: Rank(at as u32),
                            ..StoredFile::default()
                        };
                        let part = Part {
                            files: vec![file],
                            links,
                            ..Part::default()
                        };
                        state.coordinator.handle_stored(NOW, process, epoch, part);
                    }
                }
            }
            Action::Snapshot => {
                state.snapshots_left -= 1;
                state.coordinator.handle_request(NOW, RequestId(0));
            }
            Action::Fail => {
                state.failures_left -= 1;
                let epoch = state.coordinator.status().snapshot?;
                state
                    .coordinator
                    .handle_failed(NOW, Process(0), epoch, "no space");
            }
            Action::Rename => {
                let epoch = state.renaming.take()?;
                state.publish(epoch);
                state
                    .coordinator
                    .handle_published(NOW, epoch, Published::Done);
            }
            Action::Unclear(present) => {
                state.failures_left -= 1;
                let epoch = state.renaming.take()?;
                if present {
                    state.publish(epoch);
                }
                let unknown = Published::Unknown(String::new());
                state.coordinator.handle_published(NOW, epoch, unknown);
            }
            Action::LoseProcess => {
                state.losses_left -= 1;
                state.coordinator.handle_lost(NOW, "killed");
                state.act(self);
                // The rename under way goes on; then the epoch is decided.
                if let Some(epoch) = state.renaming.take() {
                    state.publish(epoch);
                    state
                        .coordinator
                        .handle_published(NOW, epoch, Published::Done);
                    state.act(self);
                }
                if !state.coordinator.is_settled() {
                    state.violated("the coordinator is not settled after a loss");
                }
                state.restart(self);
            }
            Action::LoseCoordinator(present) => {
                state.losses_left -= 1;
                if let Some(epoch) = state.renaming.filter(|_| present) {
                    state.publish(epoch);
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
            Property::sometimes("channel state is committed", |_, state: &State| {
                state.saw_channel_state
            }),
            Property::sometimes(
                "every snapshot is committed",
                |model: &Self, state: &State| {
                    let all = Epoch(u64::from(model.limits.snapshots));
                    state
                        .committed
                        .as_ref()
                        .is_some_and(|committed| committed.0 == all)
                },
            ),
        ];
        if self.limits.failures + self.limits.losses > 0 {
            properties.push(Property::sometimes(
                "a snapshot is aborted",
                |_, state: &State| state.saw_abort,
            ));
        }
        properties
    }
}

impl State {
    fn take(&mut self, from: usize, to: usize) {
        let peer = Process(from as u32);
        let Some(packet) = self.links[from][to].pop_front() else {
            return;
        };
        let node = &mut self.nodes[to];
        let outcome = match packet {
            OnLink::Control(control) => node.participant.handle_link(peer, control),
            OnLink::Message(number) => node.participant.handle_data(peer).map(|arrival| {
                if node.received[from] == number {
                    node.received[from] += 1;
                } else {
                    self.violation = Some("a message came twice or out of order".to_owned());
                }
                if let Arrival::Record { epoch } = arrival {
                    let staged = node.staged.iter_mut().find(|staged| staged.0 == epoch);
                    staged.expect("what is recorded was cut").1.channel[from].push(number);
                }
            }),
        };
        if let Err(error) = outcome {
            self.violated(error.to_string());
        }
        self.settle(to);
    }
}
