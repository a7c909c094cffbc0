//! The side of the source: looking what pins a rank, freezing it, letting it go.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Instant;

use libckpt_rank::inspect::pins::pins;
use libckpt_rank::{PAGE_BYTES, Slot};
use protocol::ids::{Move, Process, Rank};
use protocol::migration::{MoveMode, MoveNeeds};

use super::parcel::{Files, Parcel, now_us};
use super::stream::give::{Expected, Freight, Giver};
use super::{Moving, News};
use crate::engine::packet::{Control, Shipment};
use crate::engine::{Fatal, in_engine};
use crate::fs;
use crate::runtime::schedule::Scheduler;

/// A rank that stands still here until it is known who runs it.
pub(super) struct Frozen {
    slot: Slot,
    /// Its standard output and error, where each rank has its own.
    output: Option<(OwnedFd, OwnedFd)>,
    /// What the target reads; empty where it is sent.
    _parcel: Box<[u8]>,
}

impl Scheduler {
    /// Looks whether anything pins a rank, and answers.
    pub(super) fn examine(&mut self, id: Move, rank: Rank, to: Process, mode: MoveMode) {
        let outcome = self.movable(rank, mode).and_then(|mut needs| {
            needs.given_at = self.open_way(id, rank, to)?;
            Ok(needs)
        });
        in_engine(|engine| engine.core.mover.examined(id, outcome));
    }

    /// Listens for a target that can't read our memory. Gives the address.
    fn open_way(&mut self, id: Move, rank: Rank, to: Process) -> Result<Option<String>, String> {
        if in_engine(|engine| engine.transport.other(to)).is_some() {
            return Ok(None);
        }
        if self.output.of(rank).is_some() {
            return Err(format!(
                "{rank} has a standard output of its own (--label), which a process that shares no memory with it can't get"
            ));
        }
        let moving = self.moving.as_mut().ok_or("there is no coordinator")?;
        let interface = moving.control.interface.ok_or_else(|| {
            format!(
                "its process and {to} share no memory, and this one has no address on a network"
            )
        })?;
        let expected = Expected {
            token: moving.control.token,
            incarnation: moving.incarnation,
            id,
            target: to,
        };
        let tell = moving.tell.clone();
        let failed = move |reason| tell.tell(News::NotGiven(id, reason));
        let giver = Giver::start(interface, moving.me, expected, failed)?;
        let address = giver.address().to_owned();
        moving.givers.insert(id, giver);
        Ok(Some(address))
    }

    fn movable(&self, rank: Rank, mode: MoveMode) -> Result<MoveNeeds, String> {
        if mode != MoveMode::Stop {
            return Err("only the mode `stop` is there yet".to_owned());
        }
        let (index, moving) = self.index_of(rank)?;
        let slot = &self.slots[index];
        if let Some(pin) = pins(slot).into_iter().next() {
            return Err(format!("{rank} can't be moved: {pin}"));
        }
        let mut own = fs::descriptors();
        own.extend(self.output.descriptors());
        let opened = moving.opened.opened(&own);
        let by_program = opened.into_iter().filter(|it| !it.contains(&moving.store));
        let by_program: Vec<String> = by_program.collect();
        if !by_program.is_empty() {
            return Err(format!(
                "{rank} can't be moved: its program has opened files or sockets by itself, which would stay behind: {}; open \
                 files by libckpt::fs",
                by_program.join(", ")
            ));
        }
        let files = fs::offer(rank).map_err(|error| error.to_string())?;
        let pages = slot.image().map_err(|error| error.to_string())?;
        let pages: u64 = pages.iter().map(|range| range.end - range.start).sum();
        Ok(MoveNeeds {
            image_bytes: pages * PAGE_BYTES as u64,
            files: files.paths(),
            given_at: None,
        })
    }

    /// Where among the slots a rank is that can be moved.
    fn index_of(&self, rank: Rank) -> Result<(usize, &Moving), String> {
        let index = in_engine(|engine| {
            let index = engine.core.index_of(rank);
            index.filter(|index| !engine.core.hosted[*index].tables.finished)
        });
        match (index, &self.moving) {
            (Some(index), Some(moving)) if !self.slots[index].is_finished() => Ok((index, moving)),
            _ => Err(format!(
                "{rank} has returned from its main function: there is nothing to move"
            )),
        }
    }

    /// Freezes a rank and tells the target where to fetch it.
    pub(super) fn freeze(&mut self, id: Move, rank: Rank, to: Process) -> Result<(), Fatal> {
        let frozen = Instant::now();
        let is_given = (self.moving.as_ref()).is_some_and(|moving| moving.givers.contains_key(&id));
        let described = self.describe(rank, now_us(), is_given);
        let (index, mut parcel) = match described {
            Ok(described) => described,
            Err(reason) => {
                in_engine(|engine| engine.core.mover.failed(id, reason));
                return Ok(());
            }
        };
        if !in_engine(|engine| engine.core.mover.frozen(id)) {
            return Ok(());
        }
        parcel.tables = in_engine(|engine| engine.freeze(index))?;
        let pages = parcel.pages.clone();
        let parcel = parcel.encode().map_err(Fatal::new)?;
        let slot = self.slots.remove(index);
        let output = self.output.take(rank);
        let Some(moving) = &mut self.moving else {
            return Err(Fatal::new("a move without a coordinator"));
        };
        if let Some(giver) = moving.givers.get(&id) {
            giver.give(Freight {
                parcel: parcel.into_vec(),
                pages,
                address: slot.address(),
                unsynced: fs::unsynced_of(rank),
                frozen,
            });
            let parcel = Box::default();
            let frozen = Frozen {
                slot,
                output,
                _parcel: parcel,
            };
            moving.frozen.insert(rank, frozen);
            return in_engine(crate::engine::Engine::settle);
        }
        let shipment = Shipment {
            id,
            address: parcel.as_ptr().addr() as u64,
            bytes: parcel.len() as u64,
        };
        let frozen = Frozen {
            slot,
            output,
            _parcel: parcel,
        };
        moving.frozen.insert(rank, frozen);
        in_engine(|engine| {
            let outbound = &mut engine.core.outbound[to.index()];
            outbound.control.push_back(Control::Ship(shipment));
            engine.core.list(to);
            engine.settle()
        })
    }

    /// What the target has to know of a rank, but for its message tables.
    fn describe(
        &self,
        rank: Rank,
        frozen_us: u64,
        is_given: bool,
    ) -> Result<(usize, Parcel), String> {
        // What it has printed belongs before what it will print elsewhere.
        let _ = std::io::stdout().flush();
        let (index, _) = self.index_of(rank)?;
        let slot = &self.slots[index];
        // Since it was examined it may have run.
        if let Some(pin) = pins(slot).into_iter().next() {
            return Err(format!("{rank} can't be moved: {pin}"));
        }
        let output = self.output.of(rank);
        let files = match is_given {
            true => fs::record(rank).map(Files::Recorded),
            false => fs::offer(rank).map(Files::Offered),
        };
        let parcel = Parcel {
            rank,
            pages: slot.image().map_err(|error| error.to_string())?,
            tables: Vec::new(),
            files: files.map_err(|error| error.to_string())?,
            output: output.map(|(out, err)| (out.as_raw_fd(), err.as_raw_fd())),
            frozen_us,
        };
        Ok((index, parcel))
    }

    /// A rank stays. If it was frozen, it goes on.
    pub(super) fn thaw(&mut self, rank: Rank) -> Result<(), Fatal> {
        let frozen = self.moving.as_mut().and_then(|it| it.frozen.remove(&rank));
        let Some(frozen) = frozen else {
            return Ok(());
        };
        self.put(frozen.slot);
        if let Some(output) = frozen.output {
            self.output.add(rank, output);
        }
        in_engine(|engine| engine.thaw(rank))
    }

    /// A frozen rank is another process's. Its memory stays as long as messages may be read there. One that was given by a
    /// connection has its files open there by descriptors that have nothing to do with ours.
    pub(super) fn leave(&mut self, rank: Rank, is_given: bool) -> Result<(), Fatal> {
        let Some(moving) = &mut self.moving else {
            return Ok(());
        };
        let Some(frozen) = moving.frozen.remove(&rank) else {
            return Err(Fatal::new(format!("{rank} has left and was not frozen")));
        };
        moving.left.insert(rank, frozen.slot);
        match is_given {
            true => fs::release(rank),
            false => fs::let_go(rank),
        }
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.forget(rank);
        }
        in_engine(|engine| engine.leave(rank))
    }
}
