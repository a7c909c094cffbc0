//! The side of the source: looking what pins a rank, freezing it, letting it go.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use libckpt_rank::capture::Look;
use libckpt_rank::inspect::pins::pins;
use libckpt_rank::{PAGE_BYTES, Slot};
use protocol::ids::{Move, Process, Rank};
use protocol::migration::rounds::SMALL_IMAGE_BYTES;
use protocol::migration::{MoveMode, MoveNeeds};

use super::doom::{self, Step};
use super::line::{Answer, Ear, Heard, Line, Saying, Word};
use super::memory::{self, ToTarget};
use super::parcel::{Files, Parcel, now_us};
use super::rounds::Rounding;
use super::stored::Reading;
use super::stream::give::{Expected, Giver};
use super::{Moving, News};
use crate::engine::{Engine, Fatal, in_engine};
use crate::fs;
use crate::runtime::schedule::Scheduler;

/// A rank that is to leave. The line to the target ends with it.
pub(super) struct Leaving {
    pub(super) rank: Rank,
    /// How it is moved in fact.
    pub(super) mode: MoveMode,
    image_bytes: u64,
    pub(super) line: Line,
    /// While it is watched: since when.
    pub(super) watched: Option<Instant>,
    /// While the target makes room.
    pub(super) room: bool,
    /// While the target reads its last checkpoint.
    pub(super) reading: Option<Reading>,
    /// What was copied while it ran.
    pub(super) rounding: Option<Rounding>,
}

/// Below this, in bytes, memory is had as fast as it is asked for.
const ROOM_BYTES_MIN: u64 = 2 << 20;

/// A rank that stands still here until it is known who runs it.
pub(super) struct Frozen {
    slot: Slot,
    /// Its standard output and error, where each rank has its own.
    output: Option<(OwnedFd, OwnedFd)>,
}

/// Memory of a rank that has left, as long as it may be read.
pub(super) struct Left {
    /// Where the rank went ahead of it.
    _line: Option<Line>,
    _slot: Slot,
}

impl Scheduler {
    /// Looks whether anything pins a rank, and answers.
    pub(super) fn examine(&mut self, id: Move, rank: Rank, to: Process, mode: MoveMode) {
        let outcome = self.movable(rank, mode);
        let outcome = outcome.and_then(|mut needs| {
            let probes = mode == MoveMode::Auto && needs.image_bytes > SMALL_IMAGE_BYTES;
            let line = self.open_line(id, rank, to, probes)?;
            needs.line = line.name();
            let leaving = Leaving {
                rank,
                mode: match mode {
                    MoveMode::Auto => MoveMode::Stop,
                    mode => mode,
                },
                image_bytes: needs.image_bytes,
                line,
                watched: None,
                room: false,
                reading: None,
                rounding: None,
            };
            let moving = self.moving.as_mut().ok_or("a move without a coordinator")?;
            moving.leaving.insert(id, leaving);
            Ok(needs)
        });
        in_engine(|engine| engine.core.mover.examined(id, outcome));
    }

    /// The line to a target: one that reads our memory, or one that connects. If it `probes`, it finds out how fast that is.
    fn open_line(&self, id: Move, rank: Rank, to: Process, probes: bool) -> Result<Line, String> {
        let moving = self.moving.as_ref().ok_or("there is no coordinator")?;
        let tell = moving.tell.clone();
        let ear: Ear = Arc::new(move |heard| {
            match heard {
                Heard::Answer(Answer::Done) => tell.tell(News::Done(id)),
                Heard::Broken(reason) => tell.tell(News::NotGiven(id, reason)),
                // The line's own affair.
                Heard::Answer(Answer::Want { .. } | Answer::Taken { .. }) => {}
            }
        });
        if in_engine(|engine| engine.transport.other(to)).is_some() {
            let line = ToTarget::new(ear)
                .map_err(|error| format!("no sockets can be had for its move: {error}"))?;
            return Ok(Line::Memory(line));
        }
        if self.output.of(rank).is_some() {
            return Err(format!(
                "{rank} has a standard output of its own (--label), which a process that shares no memory with it can't get"
            ));
        }
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
        let slot = moving.layout.address(rank);
        let giver = Giver::start(interface, (moving.me, slot), expected, probes, ear)?;
        Ok(Line::Connection(giver))
    }

    fn movable(&self, rank: Rank, mode: MoveMode) -> Result<MoveNeeds, String> {
        if mode == MoveMode::Checkpoint {
            self.has_checkpoint(rank)?;
        }
        let (index, moving) = self.index_of(rank)?;
        let slot = &self.slots[index];
        if let Some(pin) = pins(slot).into_iter().next() {
            return Err(format!("{rank} can't be moved: {pin}"));
        }
        let mut own = fs::descriptors();
        own.extend(self.output.descriptors());
        let opened = moving.opened.opened(&own);
        // Lines of other moves may be open.
        let is_own = |it: &String| it.contains(&moving.store) || memory::is_line(it);
        let by_program: Vec<String> = opened.into_iter().filter(|it| !is_own(it)).collect();
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
            line: String::new(),
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

    /// The target is ready: sends a rank in this way.
    pub(super) fn transfer(&mut self, id: Move, rank: Rank, mode: MoveMode) -> Result<(), Fatal> {
        let leaving = self.moving.as_mut().and_then(|it| it.leaving.get_mut(&id));
        let Some(leaving) = leaving else {
            return Ok(());
        };
        leaving.line.taken();
        let image_bytes = leaving.image_bytes;
        match mode {
            MoveMode::Precopy => self.begin_rounds(id, rank, None),
            MoveMode::Auto => self.watch(id, rank, image_bytes),
            MoveMode::Postcopy => self.freeze(id, rank, None),
            MoveMode::Checkpoint => self.begin_from_stored(id, rank),
            MoveMode::Stop | MoveMode::Safepoint => self.ask_for_room(id, rank),
        }
    }

    /// There is room at the target for a rank that is not copied while it runs.
    pub(super) fn have_room(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        let leaving = self.moving.as_mut().and_then(|it| it.leaving.get(&id));
        let waits = leaving.is_some_and(|leaving| leaving.mode == MoveMode::Safepoint);
        let want = |engine: &mut Engine| engine.core.transit.want_safepoint(id, rank);
        if !waits || in_engine(want) {
            return self.freeze(id, rank, None);
        }
        Ok(())
    }

    /// Has the target get the memory for a rank that is not copied while it runs, before it stands still for it.
    pub(super) fn ask_for_room(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        let leaving = self.moving.as_mut().and_then(|it| it.leaving.get_mut(&id));
        let Some(leaving) = leaving else {
            return Ok(());
        };
        if leaving.image_bytes < ROOM_BYTES_MIN {
            return self.have_room(id, rank);
        }
        leaving.room = true;
        let slot = self.slots.iter().find(|slot| slot.rank() == rank);
        let pages = slot.and_then(|slot| slot.image().ok());
        // What is wrong with it will be told.
        let Some(pages) = pages else {
            return self.freeze(id, rank, None);
        };
        let pages = pages.into_iter().collect();
        self.say_pages(id, rank, Word::Room, &pages);
        Ok(())
    }

    /// Freezes a rank and has the target fetch it. `look` tells what it has written since its last round.
    pub(super) fn freeze(
        &mut self,
        id: Move,
        rank: Rank,
        look: Option<&Look>,
    ) -> Result<(), Fatal> {
        let frozen_us = now_us();
        let described = self.describe(id, rank, frozen_us, look);
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
        let about = parcel.encode().map_err(Fatal::new)?;
        let slot = self.slots.remove(index);
        let output = self.output.take(rank);
        let Some(moving) = &mut self.moving else {
            return Err(Fatal::new("a move without a coordinator"));
        };
        if let Some(leaving) = moving.leaving.get_mut(&id) {
            let unsynced = match leaving.line.is_connection() {
                true => fs::unsynced_of(rank),
                false => Vec::new(),
            };
            let said = leaving.line.say(Saying {
                word: match leaving.mode {
                    MoveMode::Postcopy => Word::Ahead,
                    _ => Word::Rest,
                },
                about,
                pages: parcel.rest,
                frozen_us: Some(frozen_us),
                unsynced,
            });
            if let Err(reason) = said {
                let reason = format!("it can't be sent: {reason}");
                in_engine(|engine| engine.core.mover.failed(id, reason));
            }
        }
        let frozen = Frozen { slot, output };
        moving.frozen.insert(rank, frozen);
        doom::reach(Step::Frozen, &moving.control);
        in_engine(Engine::settle)
    }

    /// What the target has to know of a rank, but for its message tables.
    fn describe(
        &self,
        id: Move,
        rank: Rank,
        frozen_us: u64,
        look: Option<&Look>,
    ) -> Result<(usize, Parcel), String> {
        // What it has printed belongs before what it will print elsewhere.
        let _ = std::io::stdout().flush();
        let (index, moving) = self.index_of(rank)?;
        let leaving = moving.leaving.get(&id).ok_or("it was given up")?;
        let slot = &self.slots[index];
        // Since it was examined it may have run.
        if let Some(pin) = pins(slot).into_iter().next() {
            return Err(format!("{rank} can't be moved: {pin}"));
        }
        let output = self.output.of(rank);
        let pages = slot.image().map_err(|error| error.to_string())?;
        let rest = match (&leaving.rounding, look) {
            (Some(rounding), Some(look)) => {
                let rest = rounding.rest(&pages.iter().cloned().collect(), look);
                rest.ranges().to_vec()
            }
            _ => pages.clone(),
        };
        let files = match leaving.line.is_connection() {
            true => fs::record(rank).map(Files::Recorded),
            false => fs::offer(rank).map(Files::Offered),
        };
        let parcel = Parcel {
            rank,
            pages,
            rest,
            mode: leaving.mode,
            rounds: leaving.rounding.as_ref().map_or(0, Rounding::count),
            tables: Vec::new(),
            files: files.map_err(|error| error.to_string())?,
            output: output.map(|(out, err)| (out.as_raw_fd(), err.as_raw_fd())),
            frozen_us,
        };
        Ok((index, parcel))
    }

    /// A rank stays. If it was frozen, it goes on.
    pub(super) fn thaw(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        in_engine(|engine| engine.core.transit.forget_safepoint(rank));
        let frozen = match &mut self.moving {
            Some(moving) => {
                moving.leaving.remove(&id);
                moving.frozen.remove(&rank)
            }
            None => None,
        };
        let slot = self.slots.iter().find(|slot| slot.rank() == rank);
        let slot = slot.or(frozen.as_ref().map(|frozen| &frozen.slot));
        if let (Some(slot), Some(snapshots)) = (slot, &mut self.snapshots) {
            snapshots.unfollow(slot);
        }
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
    pub(super) fn leave(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        let Some(moving) = &mut self.moving else {
            return Ok(());
        };
        let leaving = moving.leaving.remove(&id);
        let is_given = (leaving.as_ref()).is_some_and(|leaving| leaving.line.is_connection());
        let ahead = leaving.filter(|leaving| leaving.mode == MoveMode::Postcopy);
        let Some(frozen) = moving.frozen.remove(&rank) else {
            return Err(Fatal::new(format!("{rank} has left and was not frozen")));
        };
        let left = Left {
            _line: ahead.map(|leaving| leaving.line),
            _slot: frozen.slot,
        };
        moving.left.insert(rank, left);
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
