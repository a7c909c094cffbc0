//! Moves of ranks as a stateright model: the real machines of both sides, snapshots, refusals and losses at every moment.
//!
//! Messages are numbered by the real channels. Each tells where its sender was, as announcements do, so that places are
//! learned from packets as well.

mod command;
mod process;
mod steps;

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
