//! The side of the target: making room for a rank, taking it in, running it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use libckpt_rank::incoming::Incoming;
use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{Slot, library_thread};
use libckpt_transport::{BulkError, OtherProcess};
use protocol::control::Report;
use protocol::ids::{Move, Process, Rank};
use protocol::migration::{MoveMode, MoveNeeds};

use super::behind::Bringing;
use super::doom::{self, Step};
use super::fetch::{Came, CameFiles, Fetch, Fetched};
use super::memory::{self, Memory};
use super::parcel::now_us;
use super::stream::take::Taker;
use super::{Moving, News};
use crate::engine::moving::tables_of;
use crate::engine::{Fatal, in_engine};
use crate::fs;
use crate::runtime::schedule::Scheduler;

/// Memory that has to be left when a rank has come, in bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// A rank that was announced.
pub(super) struct Arriving {
    rank: Rank,
    /// By what its thread, where it reads the source's memory, is kept from waiting for words.
    line: Option<UnixStream>,
    /// The room for a rank that is given by a connection, and how the thread that is connecting gets it then.
    room: Option<(Room, Sender<Room>)>,
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

/// A slot, and where its pages come while the rank runs. That ends before the slot does.
type Room = (Option<Incoming>, RestoringSlot);

/// A rank that is here as a whole, or but for pages that come while it runs, until it is known who runs it.
pub(super) struct Arrived {
    id: Move,
    /// Before the slot: it ends before that is unmapped.
    bringing: Option<Bringing>,
    slot: Slot,
    files: CameFiles,
    output: Option<(OwnedFd, OwnedFd)>,
    image_bytes: u64,
    frozen_us: u64,
    mode: MoveMode,
    rounds: u32,
}

impl Moving {
    /// Makes room for a rank, and answers; where it is given by a connection, when that is there.
    pub(super) fn prepare(
        &mut self,
        id: Move,
        rank: Rank,
        from: Process,
        mode: MoveMode,
        needs: &MoveNeeds,
    ) {
        let outcome = match self.make_room(id, rank, from, mode, needs) {
            Ok(arriving) => {
                doom::reach(Step::Room, &self.control);
                let is_given = arriving.line.is_none();
                self.arriving.insert(id, arriving);
                if is_given {
                    return;
                }
                Ok(())
            }
            Err(reason) => Err(reason),
        };
        in_engine(|engine| engine.core.mover.prepared(id, outcome));
    }

    fn make_room(
        &self,
        id: Move,
        rank: Rank,
        from: Process,
        mode: MoveMode,
        needs: &MoveNeeds,
    ) -> Result<Arriving, String> {
        if let Some(path) = needs.files.iter().find(|path| !fs::is_there(path)) {
            return Err(format!(
                "{rank} has {path} open, which is not found under this path here; files must be seen alike by all processes"
            ));
        }
        let available = wire::memory::available_bytes().unwrap_or(u64::MAX);
        if needs.image_bytes.saturating_add(SPARE_BYTES) > available {
            return Err(format!(
                "{rank} needs {} MiB while it is copied, and {} MiB of memory are available",
                needs.image_bytes >> 20,
                available >> 20
            ));
        }
        let room = self.room_for(rank, mode)?;
        match in_engine(|engine| engine.transport.other(from)) {
            Some(source) => self.reach(id, rank, (from, source), room, &needs.line),
            None => self.connect(id, rank, from, room, &needs.line),
        }
    }

    /// Starts the thread that fetches a rank from memory that it can read.
    fn reach(
        &self,
        id: Move,
        rank: Rank,
        (from, source): (Process, OtherProcess),
        room: Room,
        line: &str,
    ) -> Result<Arriving, String> {
        let address = self.layout.address(rank);
        // Whether it is allowed at all, before the rank is frozen for it.
        source
            .read(address, &mut [0; 8])
            .map_err(|error| match error {
                BulkError::Forbidden { .. } => {
                    format!("ranks can't be moved on this machine: {error}")
                }
                error => error.to_string(),
            })?;
        let stop = Arc::<AtomicBool>::default();
        let source = Memory::reach(source, line, address, self.threads, stop.clone())?;
        let line = source.again().map_err(|error| error.to_string())?;
        let store = self.checkpoints(stop.clone());
        let fetch = Fetch::new((id, rank, from), source, room, store);
        let (tell, control) = (self.tell.clone(), self.control.clone());
        let thread = start(rank, move || fetch.run(&tell, &control))?;
        Ok(Arriving {
            rank,
            line: Some(line),
            room: None,
            thread,
            stop,
        })
    }

    /// Starts the thread that connects with the source, and takes the rank when it is sent. It gets the slot when it is connected:
    /// until then nobody has to wait for it.
    fn connect(
        &self,
        id: Move,
        rank: Rank,
        from: Process,
        slot: Room,
        address: &str,
    ) -> Result<Arriving, String> {
        let (room, given) = channel();
        let stop = Arc::<AtomicBool>::default();
        let (stopped, address) = (stop.clone(), address.to_owned());
        let store = self.checkpoints(stop.clone());
        let (tell, control) = (self.tell.clone(), self.control.clone());
        let me = (self.incarnation, id, self.me);
        let take = move || {
            let taker = match Taker::connect(&address, control.token, me, stopped) {
                Ok(taker) => taker,
                Err(reason) => return tell.tell(News::Reached(id, Err(reason))),
            };
            tell.tell(News::Reached(id, Ok(())));
            let Ok(room) = given.recv() else {
                return;
            };
            Fetch::new((id, rank, from), taker, room, store).run(&tell, &control);
        };
        Ok(Arriving {
            rank,
            line: None,
            room: Some((slot, room)),
            thread: start(rank, take)?,
            stop,
        })
    }

    fn room_for(&self, rank: Rank, mode: MoveMode) -> Result<Room, String> {
        let slot = RestoringSlot::create(self.layout, rank).map_err(|error| error.to_string())?;
        let incoming = (mode == MoveMode::Postcopy).then(|| Incoming::new(&slot));
        let incoming = incoming.transpose().map_err(|error| {
            format!(
                "it can't run while its memory still comes: {error}; or take another mode, `auto`, say"
            )
        })?;
        Ok((incoming, slot))
    }

    /// A rank does not come: what has come of it goes.
    pub(super) fn discard(&mut self, id: Move, rank: Rank) {
        if let Some(arriving) = self.arriving.remove(&id) {
            arriving.stop.store(true, Ordering::SeqCst);
            if let Some(line) = &arriving.line {
                memory::end(line);
            }
            // Its slot may be wanted again at once. A thread that has none may wait for the network.
            if arriving.room.is_none() {
                let _ = arriving.thread.join();
            }
        }
        // What the thread has told is of no use any more; what was told of other moves stays.
        let others: Vec<News> = self.news.try_iter().filter(|it| it.id() != id).collect();
        others.into_iter().for_each(|news| self.tell.tell(news));
        if self.arrived.remove(&rank).is_some() {
            in_engine(|engine| engine.send_away(rank));
        }
    }
}

impl Scheduler {
    /// The way to the source of a move is there, or is not.
    pub(super) fn reached(&mut self, id: Move, outcome: Result<(), String>) {
        let Some(moving) = &mut self.moving else {
            return;
        };
        if outcome.is_err() {
            drop(moving.arriving.remove(&id));
        } else if let Some(arriving) = moving.arriving.get_mut(&id)
            && let Some((slot, room)) = arriving.room.take()
        {
            // Without the thread it is told that the rank does not come.
            let _ = room.send(slot);
        }
        in_engine(|engine| engine.core.mover.prepared(id, outcome));
    }

    /// A rank was fetched, or could not be.
    pub(super) fn take_in(&mut self, came: Came) -> Result<(), Fatal> {
        let Some(moving) = &mut self.moving else {
            return Ok(());
        };
        let id = came.id;
        let Some(arriving) = moving.arriving.remove(&id) else {
            return Ok(());
        };
        let Arriving {
            rank, thread, stop, ..
        } = arriving;
        let bringing = match &came.outcome {
            Ok(fetched) => fetched.runs.clone(),
            Err(_) => None,
        };
        let bringing = match bringing {
            Some(runs) => Some(Bringing::new(thread, stop, runs)),
            None => {
                let _ = thread.join();
                None
            }
        };
        match came.outcome {
            Ok(fetched) => {
                let arrived = take_apart(id, rank, *fetched, bringing)?;
                // Else it was given up: then the word to discard it comes.
                moving.arrived.insert(rank, arrived);
                if !in_engine(|engine| engine.core.mover.received(id)) {
                    tracing::debug!(%id, "given up when it had come");
                }
            }
            Err(reason) => in_engine(|engine| engine.core.mover.failed(id, reason)),
        }
        Ok(())
    }

    /// The last page of a rank has come. It may not run yet.
    pub(super) fn complete(&mut self, id: Move) {
        let Some(moving) = &mut self.moving else {
            return;
        };
        if moving.bringing.remove(&id).is_some() {
            in_engine(|engine| engine.core.mover.complete(id));
        } else if let Some(arrived) = moving.arrived.values_mut().find(|it| it.id == id) {
            arrived.bringing = None;
        }
    }

    /// A rank that has come is this process's.
    pub(super) fn welcome(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        let arrived = self.moving.as_mut().and_then(|it| it.arrived.remove(&rank));
        let Some(arrived) = arrived else {
            return Err(Fatal::new(format!(
                "{rank} is to run here and has not come"
            )));
        };
        self.put(arrived.slot);
        arrived.files.adopt();
        if let Some(output) = arrived.output {
            self.output.add(rank, output);
        }
        if let (Some(bringing), Some(moving)) = (arrived.bringing, &mut self.moving) {
            bringing.go();
            moving.bringing.insert(id, bringing);
        } else if arrived.mode == MoveMode::Postcopy {
            in_engine(|engine| engine.core.mover.complete(id));
        }
        let stood_us = now_us().saturating_sub(arrived.frozen_us);
        if let Some(moving) = &self.moving {
            moving.control.report(Report::RankMoved {
                id,
                rank,
                image_bytes: arrived.image_bytes,
                stood_us,
                mode: arrived.mode,
                rounds: arrived.rounds,
            });
        }
        #[allow(clippy::cast_precision_loss)] // microseconds of a move
        let stood_s = stood_us as f64 / 1e6;
        in_engine(|engine| engine.welcome(rank, stood_s))
    }
}

fn start(rank: Rank, receive: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    library_thread("ckpt-move", receive)
        .map_err(|error| format!("no thread can be started to fetch {rank}: {error}"))
}

/// Makes a rank of what has come of one.
fn take_apart(
    id: Move,
    rank: Rank,
    fetched: Fetched,
    bringing: Option<Bringing>,
) -> Result<Arrived, Fatal> {
    // The thread that has received it has looked.
    let slot = fetched.slot.finish(|_| ()).map_err(Fatal::new)?;
    // They name memory of the rank, which has to be here when they are read.
    let tables = tables_of(&fetched.parcel.tables).map_err(Fatal::new)?;
    in_engine(|engine| engine.arrive(rank, tables));
    Ok(Arrived {
        id,
        bringing,
        slot,
        files: fetched.files,
        output: fetched.output,
        image_bytes: fetched.image_bytes,
        frozen_us: fetched.parcel.frozen_us,
        mode: fetched.parcel.mode,
        rounds: fetched.parcel.rounds,
    })
}
