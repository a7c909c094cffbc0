//! Engines, and the coordinator that moves their ranks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use libckpt_rank::buffer::RankBytes;
use protocol::ids::{Epoch, Move, Process, Rank};
use protocol::migration::{MoveDirective, MoveMode, MoveNeeds, MoverOutput};

use super::wires::{Port, Wires};
use super::{FROM, LARGE_BYTES, RANKS};
use crate::engine::moving::{Errand, tables_of};
use crate::engine::packet::Label;
use crate::engine::tables::{Body, Queued, Recorded};
use crate::engine::{Attention, Core, Engine};

/// A job of [`RANKS`] processes, and its coordinator.
pub(super) struct Job {
    pub(super) engines: Vec<Engine>,
    pub(super) wires: Rc<RefCell<Wires>>,
    moves: u64,
    /// Messages sent so far, by source and destination.
    sent: BTreeMap<(Rank, Rank), u64>,
    /// Messages come so far.
    come: BTreeMap<(Rank, Rank), u64>,
}

/// A move that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moving {
    id: Move,
    pub(super) rank: Rank,
    from: Process,
    pub(super) to: Process,
}

impl Job {
    pub(super) fn new() -> Self {
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

    pub(super) fn home(&self, rank: Rank) -> usize {
        let has = |engine: &Engine| engine.core.index_of(rank).is_some();
        let home = self.engines.iter().position(has);
        home.expect("the rank runs somewhere")
    }

    /// Has a rank send its next message to another, a large one.
    pub(super) fn send(&mut self, from: Rank, to: Rank) {
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
    pub(super) fn progress(&mut self, process: usize) -> bool {
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

    pub(super) fn settle(&mut self) {
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
    pub(super) fn freeze(&mut self, rank: Rank, to: usize) -> Moving {
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

    pub(super) fn give_up(&mut self, moving: Moving) {
        for process in [moving.from, moving.to] {
            self.tell(process.index(), MoveDirective::GiveUp { id: moving.id });
        }
    }

    /// Tells a process that the rank has moved, and whether it confirms.
    pub(super) fn learn(&mut self, process: usize, moving: Moving) -> bool {
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
    pub(super) fn forget(&mut self, moving: Moving, confirmations: usize) {
        let confirmations = u32::try_from(confirmations).unwrap();
        let id = moving.id;
        let forget = MoveDirective::Forget { id, confirmations };
        self.tell(moving.from.index(), forget);
        self.settle();
        let mover = &self.engines[moving.from.index()].core.mover;
        assert!(!mover.is_moving(), "{moving:?} is not over");
    }

    pub(super) fn finish(&mut self, moving: Moving) {
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
    pub(super) fn check(&mut self) {
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
