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
use protocol::migration::MoveNeeds;

use super::fetch::{Came, CameFiles, Fetch, Fetched};
use super::parcel::now_us;
use super::stream::take::Taker;
use super::{Moving, News};
use crate::engine::packet::Shipment;
use crate::engine::{Fatal, in_engine};
use crate::fs;
use crate::runtime::schedule::Scheduler;

/// Memory that has to be left when a rank has come, in bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// A rank that was announced.
pub(super) struct Arriving {
    rank: Rank,
    /// The source's memory, where it can be read.
    source: Option<OtherProcess>,
    /// Its room, until a thread fills it.
    slot: Option<RestoringSlot>,
    /// How the thread that is connecting with the source gets it then.
    room: Option<Sender<RestoringSlot>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// A rank that is here as a whole, until it is known who runs it.
pub(super) struct Arrived {
    slot: Slot,
    files: CameFiles,
    output: Option<(OwnedFd, OwnedFd)>,
    image_bytes: u64,
    frozen_us: u64,
}

impl Moving {
    /// Makes room for a rank, and answers; where it is given by a connection, when that is there.
    pub(super) fn prepare(&mut self, id: Move, rank: Rank, from: Process, needs: MoveNeeds) {
        let made = self.make_room(rank, from, &needs);
        let outcome = made.and_then(|mut arriving| {
            let given_at = needs.given_at.filter(|_| arriving.source.is_none());
            let is_given = given_at.is_some();
            if let Some(address) = given_at {
                self.connect(id, &mut arriving, address)?;
            }
            self.arriving.insert(id, arriving);
            Ok(is_given)
        });
        let outcome = match outcome {
            Ok(true) => return,
            Ok(false) => Ok(()),
            Err(reason) => Err(reason),
        };
        in_engine(|engine| engine.core.mover.prepared(id, outcome));
    }

    /// Starts the thread that connects with the source, and takes the rank when it is sent. It gets the slot when it is connected:
    /// until then nobody has to wait for it.
    fn connect(&self, id: Move, arriving: &mut Arriving, address: String) -> Result<(), String> {
        let (room, slot) = channel();
        let (rank, stop, tell) = (arriving.rank, arriving.stop.clone(), self.tell.clone());
        let (token, me) = (self.control.token, (self.incarnation, id, self.me));
        let take = move || {
            let taker = match Taker::connect(&address, token, me, stop) {
                Ok(taker) => taker,
                Err(reason) => return tell.tell(News::Reached(id, Err(reason))),
            };
            tell.tell(News::Reached(id, Ok(())));
            let Ok(slot) = slot.recv() else {
                return;
            };
            let outcome = taker.take(rank, slot).map(Box::new);
            tell.tell(News::Came(Came { id, outcome }));
        };
        let thread = library_thread("ckpt-move", take);
        let thread = thread.map_err(|error| format!("no thread can be started for it: {error}"))?;
        arriving.thread = Some(thread);
        arriving.room = Some(room);
        Ok(())
    }

    fn make_room(&self, rank: Rank, from: Process, needs: &MoveNeeds) -> Result<Arriving, String> {
        if let Some(path) = needs.files.iter().find(|path| !fs::is_there(path)) {
            return Err(format!(
                "{rank} has {path} open, which is not found under this path here; files must be seen alike by all processes"
            ));
        }
        let source = in_engine(|engine| engine.transport.other(from));
        if source.is_none() && needs.given_at.is_none() {
            return Err(format!("the memory of {from} can't be reached"));
        }
        let address = self.layout.address(rank);
        // Whether it is allowed at all, before the rank is frozen for it.
        if let Some(source) = source {
            source
                .read(address, &mut [0; 8])
                .map_err(|error| match error {
                    BulkError::Forbidden { .. } => {
                        format!("ranks can't be moved on this machine: {error}")
                    }
                    error => error.to_string(),
                })?;
        }
        let available = available_bytes();
        if needs.image_bytes.saturating_add(SPARE_BYTES) > available {
            return Err(format!(
                "{rank} needs {} MiB while it is copied, and {} MiB of memory are available",
                needs.image_bytes >> 20,
                available >> 20
            ));
        }
        let slot = RestoringSlot::create(self.layout, rank).map_err(|error| error.to_string())?;
        Ok(Arriving {
            rank,
            source,
            slot: Some(slot),
            room: None,
            thread: None,
            stop: Arc::default(),
        })
    }

    /// The rank is frozen: fetches it.
    pub(super) fn fetch(&mut self, from: Process, shipment: Shipment) {
        let id = shipment.id;
        // Given up meanwhile, if there is none.
        let Some(arriving) = self.arriving.get_mut(&id) else {
            return;
        };
        let Some(source) = arriving.source else {
            return;
        };
        let Some(slot) = arriving.slot.take() else {
            return;
        };
        tracing::debug!(%id, %from, "fetching");
        let fetch = Fetch {
            id,
            rank: arriving.rank,
            source,
            slot,
            address: self.layout.address(arriving.rank),
            threads: self.threads,
            stop: arriving.stop.clone(),
        };
        let tell = self.tell.clone();
        match library_thread("ckpt-move", move || fetch.run(shipment, &tell)) {
            Ok(thread) => arriving.thread = Some(thread),
            Err(error) => {
                let reason = format!("no thread can be started to fetch it: {error}");
                in_engine(|engine| engine.core.mover.failed(id, reason));
            }
        }
    }

    /// A rank does not come: what has come of it goes.
    pub(super) fn discard(&mut self, id: Move, rank: Rank) {
        if let Some(mut arriving) = self.arriving.remove(&id) {
            arriving.stop.store(true, Ordering::SeqCst);
            // Its slot may be wanted again at once. A thread that has none may wait for the network.
            if let (None, Some(thread)) = (&arriving.slot, arriving.thread.take()) {
                let _ = thread.join();
            }
        }
        // What the thread has told is of no use any more; what it has told of others stays.
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
            && let (Some(room), Some(slot)) = (arriving.room.take(), arriving.slot.take())
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
        if let Some(thread) = arriving.thread {
            let _ = thread.join();
        }
        let arrived = came.outcome.and_then(|fetched| take_apart(rank, *fetched));
        match arrived {
            Ok(arrived) => {
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
            });
        }
        #[allow(clippy::cast_precision_loss)] // microseconds of a move
        let stood_s = stood_us as f64 / 1e6;
        in_engine(|engine| engine.welcome(rank, stood_s))
    }
}

/// Makes a rank of what has come of one.
fn take_apart(rank: Rank, fetched: Fetched) -> Result<Arrived, String> {
    let slot = fetched
        .slot
        .finish(|_| ())
        .map_err(|error| error.to_string())?;
    in_engine(|engine| engine.arrive(rank, &fetched.parcel.tables))
        .map_err(|error| error.to_string())?;
    Ok(Arrived {
        slot,
        files: fetched.files,
        output: fetched.output,
        image_bytes: fetched.image_bytes,
        frozen_us: fetched.parcel.frozen_us,
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
