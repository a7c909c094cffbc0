//! The side of the source: looking what pins a rank, freezing it, letting it go.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};

use libckpt_rank::inspect::pins::pins;
use libckpt_rank::{PAGE_BYTES, Slot};
use protocol::ids::{Move, Process, Rank};
use protocol::migration::{MoveMode, MoveNeeds};

use super::Moving;
use super::parcel::{Parcel, now_us};
use crate::engine::packet::{Control, Shipment};
use crate::engine::{Fatal, in_engine};
use crate::fs;
use crate::runtime::schedule::Scheduler;

/// A rank that stands still here until it is known who runs it.
pub(super) struct Frozen {
    slot: Slot,
    /// Its standard output and error, where each rank has its own.
    output: Option<(OwnedFd, OwnedFd)>,
    /// What the target reads.
    _parcel: Box<[u8]>,
}

impl Scheduler {
    /// Looks whether anything pins a rank, and answers.
    pub(super) fn examine(&mut self, id: Move, rank: Rank, to: Process, mode: MoveMode) {
        let outcome = self.movable(rank, to, mode);
        in_engine(|engine| engine.core.mover.examined(id, outcome));
    }

    fn movable(&self, rank: Rank, to: Process, mode: MoveMode) -> Result<MoveNeeds, String> {
        if mode != MoveMode::Stop {
            return Err("only the mode `stop` is there yet".to_owned());
        }
        if in_engine(|engine| engine.transport.other(to)).is_none() {
            return Err(format!(
                "its process and {to} share no memory: ranks can be moved only between processes that do, on one machine and \
                 without a launcher"
            ));
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
        let frozen_us = now_us();
        let described = self.describe(rank, frozen_us);
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
        let parcel = parcel.encode().map_err(Fatal::new)?;
        let shipment = Shipment {
            id,
            address: parcel.as_ptr().addr() as u64,
            bytes: parcel.len() as u64,
        };
        let frozen = Frozen {
            slot: self.slots.remove(index),
            output: self.output.take(rank),
            _parcel: parcel,
        };
        if let Some(moving) = &mut self.moving {
            moving.frozen.insert(rank, frozen);
        }
        in_engine(|engine| {
            let outbound = &mut engine.core.outbound[to.index()];
            outbound.control.push_back(Control::Ship(shipment));
            engine.core.list(to);
            engine.settle()
        })
    }

    /// What the target has to know of a rank, but for its message tables.
    fn describe(&self, rank: Rank, frozen_us: u64) -> Result<(usize, Parcel), String> {
        // What it has printed belongs before what it will print elsewhere.
        let _ = std::io::stdout().flush();
        let (index, _) = self.index_of(rank)?;
        let slot = &self.slots[index];
        // Since it was examined it may have run.
        if let Some(pin) = pins(slot).into_iter().next() {
            return Err(format!("{rank} can't be moved: {pin}"));
        }
        let output = self.output.of(rank);
        let parcel = Parcel {
            rank,
            pages: slot.image().map_err(|error| error.to_string())?,
            tables: Vec::new(),
            files: fs::offer(rank).map_err(|error| error.to_string())?,
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

    /// A frozen rank is another process's. Its memory stays as long as messages may be read there.
    pub(super) fn leave(&mut self, rank: Rank) -> Result<(), Fatal> {
        let Some(moving) = &mut self.moving else {
            return Ok(());
        };
        let Some(frozen) = moving.frozen.remove(&rank) else {
            return Err(Fatal::new(format!("{rank} has left and was not frozen")));
        };
        moving.left.insert(rank, frozen.slot);
        fs::let_go(rank);
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.forget(rank);
        }
        in_engine(|engine| engine.leave(rank))
    }
}
