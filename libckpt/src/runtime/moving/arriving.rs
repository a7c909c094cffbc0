//! The side of the target: making room for a rank, taking it in, running it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{Slot, library_thread};
use libckpt_transport::{BulkError, OtherProcess};
use protocol::control::Report;
use protocol::ids::{Move, Process, Rank};
use protocol::migration::{MoveMode, MoveNeeds};

use super::doom::{self, Step};
use super::fetch::{Came, CameFiles, Fetch, Fetched};
use super::line::Line;
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
    /// Where its thread waits for words of a source whose memory it reads.
    line: Option<Line>,
    /// The room for a rank that is given by a connection, and how the thread that is connecting gets it then.
    room: Option<(RestoringSlot, Sender<RestoringSlot>)>,
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

/// A rank that is here as a whole, until it is known who runs it.
pub(super) struct Arrived {
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
    pub(super) fn prepare(&mut self, id: Move, rank: Rank, from: Process, needs: &MoveNeeds) {
        let outcome = match self.make_room(id, rank, from, needs) {
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
        needs: &MoveNeeds,
    ) -> Result<Arriving, String> {
        if let Some(path) = needs.files.iter().find(|path| !fs::is_there(path)) {
            return Err(format!(
                "{rank} has {path} open, which is not found under this path here; files must be seen alike by all processes"
            ));
        }
        let available = available_bytes();
        if needs.image_bytes.saturating_add(SPARE_BYTES) > available {
            return Err(format!(
                "{rank} needs {} MiB while it is copied, and {} MiB of memory are available",
                needs.image_bytes >> 20,
                available >> 20
            ));
        }
        match (
            in_engine(|engine| engine.transport.other(from)),
            &needs.given_at,
        ) {
            (Some(source), _) => self.reach(id, rank, from, source, &needs.line),
            (None, Some(address)) => self.connect(id, rank, address),
            (None, None) => Err(format!("the memory of {from} can't be reached")),
        }
    }

    /// Starts the thread that fetches a rank from memory that it can read.
    fn reach(
        &self,
        id: Move,
        rank: Rank,
        from: Process,
        source: OtherProcess,
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
        let line = Line::take(&source, line)?;
        let stop = Arc::<AtomicBool>::default();
        let fetch = Fetch {
            id,
            rank,
            from,
            source,
            line: line.again().map_err(|error| error.to_string())?,
            slot: self.slot_for(rank)?,
            address,
            threads: self.threads,
            stop: stop.clone(),
        };
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
    fn connect(&self, id: Move, rank: Rank, address: &str) -> Result<Arriving, String> {
        let (room, slot) = channel();
        let stop = Arc::<AtomicBool>::default();
        let (stopped, address) = (stop.clone(), address.to_owned());
        let (tell, control) = (self.tell.clone(), self.control.clone());
        let me = (self.incarnation, id, self.me);
        let take = move || {
            let taker = match Taker::connect(&address, control.token, me, stopped) {
                Ok(taker) => taker,
                Err(reason) => return tell.tell(News::Reached(id, Err(reason))),
            };
            doom::reach(Step::Line, &control);
            tell.tell(News::Reached(id, Ok(())));
            let Ok(slot) = slot.recv() else {
                return;
            };
            let taken = taker.take(rank, slot).and_then(|fetched| {
                let checked = fetched.slot.check();
                checked.map_err(|error| error.to_string())?;
                Ok(fetched)
            });
            Came::tell(id, taken, &tell, &control);
        };
        Ok(Arriving {
            rank,
            line: None,
            room: Some((self.slot_for(rank)?, room)),
            thread: start(rank, take)?,
            stop,
        })
    }

    fn slot_for(&self, rank: Rank) -> Result<RestoringSlot, String> {
        RestoringSlot::create(self.layout, rank).map_err(|error| error.to_string())
    }

    /// A rank does not come: what has come of it goes.
    pub(super) fn discard(&mut self, id: Move, rank: Rank) {
        if let Some(arriving) = self.arriving.remove(&id) {
            arriving.stop.store(true, Ordering::SeqCst);
            if let Some(line) = &arriving.line {
                line.end();
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
        let rank = arriving.rank;
        let _ = arriving.thread.join();
        match came.outcome {
            Ok(fetched) => {
                let arrived = take_apart(rank, *fetched)?;
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
fn take_apart(rank: Rank, fetched: Fetched) -> Result<Arrived, Fatal> {
    // The thread that has received it has looked.
    let slot = fetched.slot.finish(|_| ()).map_err(Fatal::new)?;
    // They name memory of the rank, which has to be here when they are read.
    let tables = tables_of(&fetched.parcel.tables).map_err(Fatal::new)?;
    in_engine(|engine| engine.arrive(rank, tables));
    Ok(Arrived {
        slot,
        files: fetched.files,
        output: fetched.output,
        image_bytes: fetched.image_bytes,
        frozen_us: fetched.parcel.frozen_us,
        mode: fetched.parcel.mode,
        rounds: fetched.parcel.rounds,
    })
}

/// Memory that the machine has to give (proc(5), meminfo); no bound where that can't be read.
fn available_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib.saturating_mul(1024))
}
