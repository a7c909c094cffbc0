//! Large messages between ranks that move, by engines on links that are queues: each packet goes through its bytes, and each
//! number is received once.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use libckpt_rank::buffer::RankBytes;
use libckpt_transport::alone::Alone;
use libckpt_transport::{
    BulkDone, BulkError, BulkFrom, BulkInto, BulkSource, Transport, TransportError, Waker, Wakeup,
};
use proptest::prelude::*;
use protocol::ids::{Epoch, Process};
use protocol::migration::{MoveDirective, MoveMode, MoveNeeds, MoverOutput};

use super::super::moving::{Errand, tables_of};
use super::super::{Attention, Engine};
use super::*;

/// Rank r is in process r at first.
const RANKS: u32 = 3;

/// What ranks send from: a constant of the program, because no rank runs here. Message n is its first `LARGE_BYTES + n` bytes.
static FROM: [u8; 64 << 10] = [7; 64 << 10];
const LARGE_BYTES: usize = 20 << 10;

#[derive(Default)]
struct Wires {
    links: BTreeMap<(Process, Process), VecDeque<Vec<u8>>>,
    /// What was sent under a number, by sender, receiver and number; `None` once it was received.
    sent: BTreeMap<(Process, Process, u64), Option<Vec<u8>>>,
    receiving: Vec<(Process, Process, u64, usize)>,
    done: BTreeMap<Process, VecDeque<BulkDone>>,
    /// Numbers under which a rank's memory was sent.
    of_ranks: usize,
}

impl Wires {
    /// Moves what was sent to where it is asked for.
    fn carry(&mut self) {
        for (from, to, number, bytes) in std::mem::take(&mut self.receiving) {
            let Some(payload) = self.sent.get_mut(&(from, to, number)) else {
                self.receiving.push((from, to, number, bytes));
                continue;
            };
            let payload = payload.take().expect("a number is received once");
            assert_eq!(payload.len(), bytes);
            let sent = BulkDone::Sent { peer: to, number };
            self.done.entry(from).or_default().push_back(sent);
            let received = BulkDone::Received {
                peer: from,
                number,
                own: Some(payload),
            };
            self.done.entry(to).or_default().push_back(received);
        }
    }
}

/// The links of one process.
struct Port {
    me: Process,
    wires: Rc<RefCell<Wires>>,
}

impl Transport for Port {
    fn me(&self) -> Process {
        self.me
    }

    fn processes(&self) -> u32 {
        RANKS
    }

    fn packet_bytes_max(&self) -> usize {
        16 << 10
    }

    fn try_send(&mut self, peer: Process, parts: &[&[u8]]) -> Result<bool, TransportError> {
        assert_ne!(peer, self.me);
        let mut wires = self.wires.borrow_mut();
        let link = wires.links.entry((self.me, peer)).or_default();
        link.push_back(parts.concat());
        Ok(true)
    }

    fn poll(&mut self, take: &mut dyn FnMut(Process, &[u8])) -> Result<bool, TransportError> {
        for peer in (0..RANKS).map(Process) {
            let mut wires = self.wires.borrow_mut();
            let packet = wires.links.entry((peer, self.me)).or_default().pop_front();
            drop(wires);
            if let Some(packet) = packet {
                take(peer, &packet);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn bulk_read(&mut self, from: BulkSource, _into: &mut [u8]) -> Result<(), BulkError> {
        panic!("{from:?} is read by a transport that does not read")
    }

    fn sends_bulk(&self) -> bool {
        true
    }

    fn bulk_send(
        &mut self,
        peer: Process,
        number: u64,
        from: BulkFrom,
    ) -> Result<(), TransportError> {
        let mut wires = self.wires.borrow_mut();
        let payload = match from {
            BulkFrom::Rank(bytes) => {
                wires.of_ranks += 1;
                FROM[..bytes.len()].to_vec()
            }
            BulkFrom::Own(bytes) => bytes,
        };
        let before = wires.sent.insert((self.me, peer, number), Some(payload));
        assert!(before.is_none(), "a number is used once");
        wires.carry();
        Ok(())
    }

    fn bulk_receive(
        &mut self,
        peer: Process,
        number: u64,
        into: BulkInto,
    ) -> Result<(), TransportError> {
        let BulkInto::Own(into) = into else {
            panic!("there is no memory of ranks here");
        };
        let mut wires = self.wires.borrow_mut();
        wires.receiving.push((peer, self.me, number, into.len()));
        wires.carry();
        Ok(())
    }

    fn bulk_done(&mut self) -> Option<BulkDone> {
        let mut wires = self.wires.borrow_mut();
        wires.done.entry(self.me).or_default().pop_front()
    }

    fn idle(&mut self, _longest: Duration) -> Wakeup {
        Wakeup::Timeout
    }

    fn waker(&self) -> Waker {
        Alone::new().waker()
    }
}

/// A job of [`RANKS`] processes, and its coordinator.
struct Job {
    engines: Vec<Engine>,
    wires: Rc<RefCell<Wires>>,
    moves: u64,
    /// Messages sent so far, by source and destination.
    sent: BTreeMap<(Rank, Rank), u64>,
    /// Messages come so far.
    come: BTreeMap<(Rank, Rank), u64>,
}

/// A move that is under way.
#[derive(Clone, Copy, Debug)]
struct Moving {
    id: Move,
    rank: Rank,
    from: Process,
    to: Process,
}

impl Job {
    fn new() -> Self {
        let wires = Rc::<RefCell<Wires>>::default();
        let placement: Vec<_> = (0..RANKS).map(Process).collect();
        let engine = |&me: &Process| {
            let core = Core::new(me, 1, Epoch(0), &placement, RANKS, 1 << 10);
            let wires = wires.clone();
            let transport = Box::new(Port { me, wires });
            Engine::new(core, transport, Arc::new(Attention::default()))
        };
        Self {
            engines: placement.iter().map(engine).collect(),
            wires,
            moves: 0,
            sent: BTreeMap::new(),
            come: BTreeMap::new(),
        }
    }

    fn home(&self, rank: Rank) -> usize {
        let has = |engine: &Engine| engine.core.index_of(rank).is_some();
        let home = self.engines.iter().position(has);
        home.expect("the rank runs somewhere")
    }

    /// Has a rank send its next message to another, a large one.
    fn send(&mut self, from: Rank, to: Rank) {
        let number = self.sent.entry((from, to)).or_default();
        let bytes = LARGE_BYTES + usize::try_from(*number).unwrap();
        *number += 1;
        let home = self.home(from);
        let engine = &mut self.engines[home];
        let index = engine.core.index_of(from).unwrap();
        // As a message table would bring it: nothing runs here.
        let address = FROM.as_ptr().expose_provenance() as u64;
        let stored = postcard::to_stdvec(&(from, address, bytes as u64)).unwrap();
        let from: RankBytes = postcard::from_bytes(&stored).unwrap();
        let request = engine.core.hosted[index].tables.requests.start();
        let label = engine.core.label(index, to, 0, 0, bytes);
        engine.core.keep(index, label, from, request);
        let announce = Queued::own(Recorded::Announce(label));
        engine.core.dispatch(announce).unwrap();
        engine.settle().unwrap();
    }

    /// Has a process take what is there.
    fn progress(&mut self, process: usize) -> bool {
        let engine = &mut self.engines[process];
        let moved = engine.progress();
        if let Some(fatal) = engine.fatal.take() {
            panic!("process {process}: {fatal}");
        }
        while let Some(errand) = self.engines[process].core.transit.next_errand() {
            match errand {
                Errand::Obey(output) => drop(self.obey(process, output)),
                Errand::Safepoint(..) => panic!("nobody waits for a safepoint"),
            }
        }
        moved
    }

    fn settle(&mut self) {
        // An opening is answered in the round after.
        let mut quiet = 0;
        while quiet < 3 {
            quiet += 1;
            for process in 0..self.engines.len() {
                if self.progress(process) {
                    quiet = 0;
                }
            }
        }
    }

    fn obey(&mut self, process: usize, output: MoverOutput) -> Option<MoverOutput> {
        let engine = &mut self.engines[process];
        match output {
            MoverOutput::Run { rank, .. } => engine.welcome(rank, 0.0).unwrap(),
            MoverOutput::Left { rank, .. } => engine.leave(rank).unwrap(),
            MoverOutput::Resume { rank, .. } => engine.thaw(rank).unwrap(),
            MoverOutput::Discard { rank, .. } => engine.send_away(rank),
            MoverOutput::Free { rank, .. } => {
                assert!(!engine.core.numbered.is_busy_with(rank), "{rank} is needed");
            }
            other => return Some(other),
        }
        None
    }

    fn tell(&mut self, process: usize, directive: MoveDirective) -> Vec<MoverOutput> {
        self.engines[process].handle_move(directive).unwrap();
        let mut left = Vec::new();
        while let Some(output) = self.engines[process].core.mover.poll_output() {
            if let Some(output) = self.engines[process].core.obey_mover(output).unwrap() {
                left.extend(self.obey(process, output));
            }
        }
        self.engines[process].settle().unwrap();
        left
    }

    /// Brings the move of a rank to where it is frozen and everything has come.
    fn freeze(&mut self, rank: Rank, to: usize) -> Moving {
        self.moves += 1;
        let id = Move(self.moves);
        let from = self.home(rank);
        let moving = Moving {
            id,
            rank,
            from: Process(from as u32),
            to: Process(to as u32),
        };
        let mode = MoveMode::Stop;
        let to_process = moving.to;
        let examine = MoveDirective::Examine {
            id,
            rank,
            to: to_process,
            mode,
        };
        self.tell(from, examine);
        let needs = MoveNeeds::default();
        let mover = &mut self.engines[from].core.mover;
        mover.examined(id, Ok(needs.clone()));
        let prepare = MoveDirective::Prepare {
            id,
            rank,
            from: moving.from,
            mode,
            needs,
        };
        self.tell(to, prepare);
        self.engines[to].core.mover.prepared(id, Ok(()));
        self.tell(from, MoveDirective::Transfer { id });
        let engine = &mut self.engines[from];
        assert!(engine.core.mover.frozen(id));
        let index = engine.core.index_of(rank).unwrap();
        let section = engine.freeze(index).unwrap();
        engine.settle().unwrap();
        self.engines[to].arrive(rank, tables_of(&section).unwrap());
        assert!(self.engines[to].core.mover.received(id));
        moving
    }

    fn give_up(&mut self, moving: Moving) {
        for process in [moving.from, moving.to] {
            self.tell(process.index(), MoveDirective::GiveUp { id: moving.id });
        }
    }

    /// Tells a process that the rank has moved, and whether it confirms.
    fn learn(&mut self, process: usize, moving: Moving) -> bool {
        let Moving { id, rank, from, to } = moving;
        let told = self.tell(process, MoveDirective::Moved { id, rank, from, to });
        let confirms = told.iter().find_map(|output| match output {
            MoverOutput::Report(protocol::migration::MoveReport::Learned { confirmed, .. }) => {
                Some(*confirmed)
            }
            _ => None,
        });
        confirms.expect("it reports")
    }

    /// Ends a move of which all have learned. The source must be able to forget without any rank receiving anything.
    fn forget(&mut self, moving: Moving, confirmations: usize) {
        let confirmations = u32::try_from(confirmations).unwrap();
        let id = moving.id;
        let forget = MoveDirective::Forget { id, confirmations };
        self.tell(moving.from.index(), forget);
        self.settle();
        let mover = &self.engines[moving.from.index()].core.mover;
        assert!(!mover.is_moving(), "{moving:?} is not over");
    }

    fn finish(&mut self, moving: Moving) {
        let processes = 0..self.engines.len();
        let confirmed = processes.filter(|&process| self.learn(process, moving));
        let confirmed = confirmed.count();
        self.forget(moving, confirmed);
    }

    /// Receives what has come, and checks that it is what had to come.
    fn receive(&mut self) {
        for rank in (0..RANKS).map(Rank) {
            let home = self.home(rank);
            let core = &mut self.engines[home].core;
            let index = core.index_of(rank).unwrap();
            let unexpected = std::mem::take(&mut core.hosted[index].tables.unexpected);
            for arrived in unexpected {
                let next = self.come.entry((arrived.label.source, rank)).or_default();
                assert_eq!(arrived.label.sequence, *next, "in order");
                let bytes = LARGE_BYTES + usize::try_from(*next).unwrap();
                match arrived.body {
                    Body::Whole(payload) => assert!(payload == FROM[..bytes], "whole"),
                    Body::Announced(place) => panic!("it has not come from {place:?}"),
                }
                *next += 1;
            }
        }
    }

    /// Has all come that was announced, as before a cut, and checks that nothing is missing, nothing doubled, and nothing left.
    fn check(&mut self) {
        self.settle();
        for engine in &mut self.engines {
            let Core {
                hosted, numbered, ..
            } = &mut engine.core;
            for hosted in hosted {
                numbered.fetch_all(hosted, |_, _| true);
            }
            engine.settle().unwrap();
        }
        self.settle();
        // Between ranks of one process nothing is sent.
        for rank in (0..RANKS).map(Rank) {
            let home = self.home(rank);
            let core = &mut self.engines[home].core;
            let index = core.index_of(rank).unwrap();
            let waiting: Vec<Label> = (core.hosted[index].tables.unexpected.iter())
                .filter(|arrived| matches!(arrived.body, Body::Announced(_)))
                .map(|arrived| arrived.label)
                .collect();
            for label in waiting {
                let unacked = core.unacked(&label).map(|unacked| unacked.from.len());
                let bytes = unacked.expect("its sender is here and has it");
                core.bind_payload(index, &label, FROM[..bytes].to_vec());
                core.acknowledge(&label);
            }
        }
        self.settle();
        self.receive();
        assert_eq!(self.come, self.sent);
        let wires = self.wires.borrow();
        assert!(wires.receiving.is_empty());
        let unreceived = wires.sent.iter().filter(|(_, payload)| payload.is_some());
        assert_eq!(unreceived.count(), 0);
        for engine in &self.engines {
            assert!(engine.core.numbered.sending.is_empty());
            assert!(engine.core.numbered.coming.is_empty());
            assert_eq!(engine.core.transit.held_bytes(), 0);
            for hosted in &engine.core.hosted {
                assert!(hosted.tables.unacked.is_empty(), "all sends are complete");
                assert!(hosted.tables.under_way.is_empty());
            }
        }
    }
}

const MOVING: Rank = Rank(1);

#[test]
fn a_message_under_way_to_a_rank_that_leaves_is_received_where_it_was_and_passed_on() {
    let mut job = Job::new();
    job.send(Rank(0), MOVING);
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.settle();
    job.finish(moving);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 1, "sent once by its sender");
    assert_eq!(job.wires.borrow().sent.len(), 2, "and once more whole");
}

#[test]
fn a_message_that_is_announced_when_its_receiver_has_left_is_passed_on() {
    let mut job = Job::new();
    job.send(Rank(0), MOVING);
    job.check();
    let moving = job.freeze(MOVING, 2);
    // One comes while it is frozen, one when it has left.
    job.send(Rank(0), MOVING);
    job.settle();
    let confirmed = [1, 2].map(|process| job.learn(process, moving));
    job.send(Rank(0), MOVING);
    job.settle();
    let last = job.learn(0, moving);
    let confirmed = confirmed.iter().filter(|it| **it).count() + usize::from(last);
    job.forget(moving, confirmed);
    job.send(Rank(0), MOVING);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 4);
}

#[test]
fn a_message_under_way_from_a_rank_that_leaves_is_sent_once_and_the_rank_is_told() {
    let mut job = Job::new();
    job.send(MOVING, Rank(0));
    job.send(MOVING, Rank(2));
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.settle();
    // No receive has asked for them, and the source can forget the rank all the same.
    job.finish(moving);
    let core = &job.engines[2].core;
    let tables = &core.hosted[core.index_of(MOVING).unwrap()].tables;
    assert!(tables.unacked.is_empty());
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 2);
}

#[test]
fn a_message_on_a_link_whose_sender_has_left_is_received_by_its_number() {
    let mut job = Job::new();
    job.send(MOVING, Rank(0));
    job.check();
    job.send(MOVING, Rank(0));
    let moving = job.freeze(MOVING, 2);
    // The peer learns of the move before it takes the announcement from its link.
    job.finish(moving);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 2);
}

#[test]
fn what_was_under_way_when_a_move_is_given_up_comes_once() {
    let mut job = Job::new();
    job.send(MOVING, Rank(0));
    job.send(Rank(0), MOVING);
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.send(Rank(2), MOVING);
    job.settle();
    job.give_up(moving);
    job.check();
    assert_eq!(job.wires.borrow().of_ranks, 3);
    assert_eq!(job.wires.borrow().sent.len(), 3);
}

#[test]
fn ranks_that_meet_in_one_process_have_what_was_under_way_between_them() {
    let mut job = Job::new();
    job.send(MOVING, Rank(2));
    job.send(Rank(2), MOVING);
    job.settle();
    let moving = job.freeze(MOVING, 2);
    job.finish(moving);
    job.send(MOVING, Rank(2));
    job.check();
    let moving = job.freeze(Rank(2), 1);
    job.send(MOVING, Rank(2));
    job.finish(moving);
    job.send(Rank(2), MOVING);
    job.check();
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Send(u32, u32),
    Progress(u32),
    /// Freezes a rank, if none is under way.
    Freeze(u32, u32),
    /// Tells one process of the move.
    Learn(u32),
    GiveUp,
}

fn deed() -> impl Strategy<Value = Deed> {
    let one = || 0..RANKS;
    prop_oneof![
        6 => (one(), one()).prop_map(|(from, to)| Deed::Send(from, to)),
        8 => one().prop_map(Deed::Progress),
        2 => (one(), one()).prop_map(|(rank, to)| Deed::Freeze(rank, to)),
        3 => one().prop_map(Deed::Learn),
        1 => Just(Deed::GiveUp),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_happens_in_whatever_order_each_message_comes_once_and_in_order(
        deeds in proptest::collection::vec(deed(), 1..120)
    ) {
        let mut job = Job::new();
        let mut moving: Option<(Moving, Vec<(u32, bool)>)> = None;
        for deed in deeds {
            let frozen = moving.as_ref().filter(|(it, learned)| {
                !learned.iter().any(|(process, _)| Process(*process) == it.to)
            });
            let frozen = frozen.map(|(it, _)| it.rank);
            match deed {
                Deed::Send(from, to) if from != to && Some(Rank(from)) != frozen => {
                    job.send(Rank(from), Rank(to));
                }
                Deed::Progress(process) => drop(job.progress(process as usize)),
                Deed::Freeze(rank, to)
                    if moving.is_none() && job.home(Rank(rank)) != to as usize =>
                {
                    moving = Some((job.freeze(Rank(rank), to as usize), Vec::new()));
                }
                Deed::Learn(process) => {
                    if let Some((it, learned)) = &mut moving
                        && !learned.iter().any(|(other, _)| *other == process)
                    {
                        learned.push((process, job.learn(process as usize, *it)));
                    }
                }
                Deed::GiveUp => {
                    if let Some((it, _)) = moving.take_if(|(_, learned)| learned.is_empty()) {
                        job.give_up(it);
                    }
                }
                _ => {}
            }
            if let Some((it, learned)) = moving.take_if(|(_, learned)| learned.len() == RANKS as usize) {
                job.forget(it, learned.iter().filter(|(_, confirmed)| *confirmed).count());
            }
        }
        if let Some((it, learned)) = moving {
            if learned.is_empty() {
                job.give_up(it);
            } else {
                let mut confirmed = learned.iter().filter(|(_, confirmed)| *confirmed).count();
                for process in 0..RANKS {
                    if !learned.iter().any(|(other, _)| *other == process) {
                        confirmed += usize::from(job.learn(process as usize, it));
                    }
                }
                job.forget(it, confirmed);
            }
        }
        job.check();
    }
}
