//! The life of a process of the job: start, join, restore, run, end.
//!
//! - `control`: the connection to the coordinator.
//! - `figures`: what is told of the ranks while they run.
//! - `links`: the links to the other processes of the job.
//! - `moving`: ranks that leave and come while the others run.
//! - `processors`: how the processes of a node share its processors.
//! - `restore`: images and tables out of a checkpoint.
//! - `schedule`: the loop that runs the ranks.
//! - `snapshot`: the cut, and storing what it captured.
//! - `threads`: work that several threads do together, piece by piece.
//! - `ending`: how a rank ends.
//! - `output`: whose output a line is.

mod control;
mod ending;
mod figures;
mod fill;
mod links;
mod moving;
mod output;
mod pipeline;
mod processors;
mod restore;
mod schedule;
mod snapshot;
mod threads;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use libckpt_rank::{Slot, current_rank, identity, in_process, process, startup};
use libckpt_transport::{Transport, alone::Alone};
use protocol::control::{Assignment, Directive, Report, environment, exit};
use protocol::ids::{Incarnation, Process, Rank};
use protocol::slots::{STACK_BYTES_DEFAULT, SlotLayout};

use self::control::Control;
pub use self::ending::{Ending, ExitStatus, Termination};
use self::figures::Figures;
use self::links::Links;
use self::moving::Moving;
use self::output::Output;
use self::schedule::Scheduler;
use self::snapshot::Snapshots;
use crate::comm::World;
use crate::engine::packet::HEADER_BYTES;
use crate::engine::{Attention, Core, Engine, in_engine, visit};
use crate::error::StartError;
use crate::fs::{self, FileError};

/// How many ranks a program that runs without `ckpt run` has; for trying things out. Otherwise one for each process.
const STANDALONE_RANKS: &str = "CKPT_STANDALONE_RANKS";

/// Messages of at most so many bytes are sent eagerly: copied into the ring and out of it. Longer ones
/// are read by the receiver from the sender's memory, which copies once but costs a system call and an
/// acknowledgment. docs/performance.md has the figures.
const EAGER_BYTES_MAX: usize = 16 << 10;

/// Runs a solver: the calling process becomes a process of the job, and each of its ranks calls `solver`.
///
/// What `#[libckpt::main]` expands to. Does not return while the job runs well: the process ends with it.
/// Must be called on the main thread, before any other thread is started. The program's global allocator
/// must be [`crate::rank::Allocator`].
pub fn run<T: Termination + 'static>(solver: fn(World) -> T) -> ExitCode {
    let outcome = startup::run(move || start(solver).map(|scheduler| scheduler.run()));
    let error = match outcome {
        Ok(Err(error)) => error,
        Err(error) => StartError::from(error),
    };
    eprintln!("libckpt: {error}");
    // Not by returning: a communication library that was initialised might wait for others at the exit.
    process::end_now(exit::LIBRARY)
}

fn start<T: Termination + 'static>(solver: fn(World) -> T) -> Result<Scheduler, StartError> {
    name_ranks_in_panics();
    control::hold_signals_of_allocations()
        .map_err(|error| malformed(environment::CONTROL, &error.to_string()))?;
    let job = match std::env::var(environment::CONTROL) {
        Ok(address) => Job::join(&address)?,
        Err(_) => Job::unattended()?,
    };
    job.start(solver)
}

/// A process's part of a job, before its ranks exist.
struct Job {
    process: Process,
    assignment: Assignment,
    transport: Box<dyn Transport>,
    attention: Arc<Attention>,
    control: Option<(Control, Receiver<Directive>)>,
}

impl Job {
    /// Takes part in the job of the coordinator at `address`.
    fn join(address: &str) -> Result<Self, StartError> {
        let token = hexadecimal(&variable(environment::TOKEN)?)
            .ok_or_else(|| malformed(environment::TOKEN, "not 64 hexadecimal digits"))?;
        let identity = identity::program_identity()
            .map_err(|error| StartError::Identity(error.to_string()))?;
        let links = Links::of_job()?;
        let me = links.me();
        let joined = control::join(address, token, me, links.processes(), identity)?;
        let assignment = joined.assignment.clone();
        let transport = links.join()?;
        let attention = Arc::new(Attention::default());
        let (control, inbox) = Control::start(joined, attention.clone(), transport.waker())?;
        Ok(Self {
            process: me,
            assignment,
            transport,
            attention,
            control: Some((control, inbox)),
        })
    }

    /// A job without coordinator and checkpoints: of the processes that an MPI launcher started, each a rank, or of
    /// this process alone.
    fn unattended() -> Result<Self, StartError> {
        let links = Links::of_launcher()?;
        let (process, processes) = match &links {
            Some(links) => (links.me(), links.processes()),
            None => (Process(0), 1),
        };
        let ranks = match std::env::var(STANDALONE_RANKS) {
            Ok(_) => number(STANDALONE_RANKS)?,
            Err(_) => processes,
        };
        if ranks < processes {
            let reason = format!("{ranks} ranks do not fill {processes} processes");
            return Err(malformed(STANDALONE_RANKS, &reason));
        }
        if process == Process(0) {
            eprintln!("libckpt: started without `ckpt run`: no checkpoints are taken");
        }
        let home = |rank| u64::from(rank) * u64::from(processes) / u64::from(ranks);
        let assignment = Assignment {
            incarnation: Incarnation(1),
            placement: (0..ranks)
                .map(|rank| Process(u32::try_from(home(rank)).expect("less than processes")))
                .collect(),
            processes,
            slot_bytes: SlotLayout::fitting_slot_bytes(ranks),
            stack_bytes: STACK_BYTES_DEFAULT,
            ..Assignment::default()
        };
        Ok(Self {
            process,
            assignment,
            transport: match links {
                Some(links) => links.join()?,
                None => Box::new(Alone::new()),
            },
            attention: Arc::new(Attention::default()),
            control: None,
        })
    }

    fn start<T: Termination + 'static>(
        self,
        solver: fn(World) -> T,
    ) -> Result<Scheduler, StartError> {
        let Self {
            process,
            assignment,
            transport,
            attention,
            control,
        } = self;
        let ranks = u32::try_from(assignment.placement.len())
            .map_err(|_| StartError::Internal("more ranks than can be numbered".to_owned()))?;
        let layout = SlotLayout::new(ranks, assignment.slot_bytes, assignment.stack_bytes)?;
        let eager_bytes_max = EAGER_BYTES_MAX.min(transport.packet_bytes_max() - HEADER_BYTES);
        let core = Core::new(
            process,
            u32::try_from(assignment.incarnation.0 & u64::from(u32::MAX)).expect("masked"),
            assignment.epoch,
            &assignment.placement,
            assignment.processes,
            eager_bytes_max,
        );
        let hosted: Vec<Rank> = core.hosted.iter().map(|hosted| hosted.rank).collect();
        Engine::new(core, transport, attention).install();
        let output = Output::from_environment()?;

        let mut snapshots = match &control {
            Some((control, _)) => Some(Snapshots::start(&assignment, control.clone())?),
            None => None,
        };
        if control.is_some() {
            fs::keep_until_durable();
        }
        let mut files = Vec::new();
        let (slots, restore_us) = match &assignment.restore {
            None => (fresh_slots(layout, &hosted, solver)?, 0),
            Some(restore) => {
                let digests = snapshots.as_ref().is_some_and(Snapshots::wants_digests);
                let as_stored = |slot: &Slot| {
                    if let Some(snapshots) = &mut snapshots {
                        snapshots.track_restored(restore.epoch, slot);
                    }
                };
                match restore::restore(&assignment, restore, layout, &hosted, digests, as_stored) {
                    Ok(restored) => {
                        if let Some(snapshots) = &snapshots {
                            snapshots.build_on(restore.epoch, restored.bases);
                        }
                        match open_files(restored.files, &assignment) {
                            Ok(opened) => files = opened,
                            Err(error) => {
                                let reason = error.to_string();
                                give_up(control.as_ref(), Report::FilesUnusable { reason })
                            }
                        }
                        (restored.slots, restored.took_us)
                    }
                    Err(failure) => {
                        let failed = Report::RestoreFailed {
                            rank: failure.rank,
                            epoch: restore.epoch,
                            reason: failure.reason,
                        };
                        give_up(control.as_ref(), failed)
                    }
                }
            }
        };
        let mut moving = None;
        let snapshots = match (&control, snapshots) {
            (Some((control, inbox)), Some(mut snapshots)) => {
                control.report(Report::Ready { restore_us });
                let text = snapshots.description().to_owned();
                control.report(Report::Note { text });
                wait_for_go(inbox)?;
                // All processes have found theirs, so that none is changed in vain.
                for files in files {
                    files.go_on()?;
                }
                if assignment.restore.is_none() {
                    snapshots.record_baseline();
                }
                moving = Some(Moving::new(&assignment, layout, control.clone()));
                Some(snapshots)
            }
            _ => None,
        };
        in_engine(|engine| {
            engine.started = Instant::now();
            for index in 0..engine.core.hosted.len() {
                if engine.core.hosted[index].tables.finished {
                    engine.core.hosted[index].scheduled = true;
                    engine.ended.push((index, Ending::Finished));
                } else {
                    engine.core.wake(index);
                }
            }
        });
        Ok(Scheduler {
            slots,
            control,
            snapshots,
            moving,
            output,
            figures: Figures::default(),
            room_made: Instant::now(),
        })
    }
}

fn fresh_slots<T: Termination + 'static>(
    layout: SlotLayout,
    hosted: &[Rank],
    solver: fn(World) -> T,
) -> Result<Vec<Slot>, StartError> {
    hosted
        .iter()
        .map(|rank| {
            let mut slot = Slot::create(layout, *rank)?;
            slot.start(move || live(solver));
            Ok(slot)
        })
        .collect()
}

/// The life of a rank, on its own stack.
fn live<T: Termination>(solver: fn(World) -> T) {
    let ending = match catch_unwind(AssertUnwindSafe(|| solver(World::world()).ending())) {
        Ok(ending) => ending,
        Err(_) => ending::panicked(),
    };
    if let Some(rank) = current_rank() {
        in_process(|| fs::close_all(rank));
    }
    visit(move |engine| {
        let index = engine.running;
        engine.core.hosted[index].tables.finished = true;
        engine.ended.push((index, own(ending)));
    });
}

/// A copy whose memory is the process's: an ending is made by the rank and read by the process.
fn own(ending: Ending) -> Ending {
    ending.clone()
}

/// Opens the files that the restored ranks have open, and changes none.
fn open_files(
    files: Vec<(Rank, fs::OpenFiles)>,
    assignment: &Assignment,
) -> Result<Vec<fs::Reopened>, FileError> {
    let stragglers = match assignment.lease_us {
        Some(_) => fs::Stragglers::HaveEnded,
        None => fs::Stragglers::MayWrite,
    };
    files
        .into_iter()
        .map(|(rank, files)| fs::check(rank, files, stragglers))
        .collect()
}

/// Tells the coordinator why a checkpoint can't be gone on from here, and ends the process.
fn give_up(control: Option<&(Control, Receiver<Directive>)>, why: Report) -> ! {
    if let Some((control, _)) = control {
        control.report(why);
        control.flush();
    }
    process::end_now(exit::LIBRARY)
}

fn wait_for_go(inbox: &Receiver<Directive>) -> Result<(), StartError> {
    match inbox.recv() {
        Ok(Directive::Go) => Ok(()),
        Ok(Directive::End) => process::end_now(0),
        Ok(other) => Err(StartError::Internal(format!(
            "expected to be told to go, not {other:?}"
        ))),
        // The control thread ends the process.
        Err(_) => loop {
            std::thread::park();
        },
    }
}

/// Makes panics name their rank.
fn name_ranks_in_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if let Some(rank) = current_rank() {
            eprintln!("libckpt: {rank} panicked:");
        }
        default(info);
    }));
}

fn malformed(name: &'static str, reason: &str) -> StartError {
    StartError::Environment {
        name,
        reason: reason.to_owned(),
    }
}

fn variable(name: &'static str) -> Result<String, StartError> {
    std::env::var(name).map_err(|error| malformed(name, &error.to_string()))
}

fn number<N: std::str::FromStr<Err: std::fmt::Display>>(
    name: &'static str,
) -> Result<N, StartError> {
    variable(name)?
        .parse()
        .map_err(|error: N::Err| malformed(name, &format!("not a number: {error}")))
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut token = [0; 32];
    for (byte, pair) in token.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_64_hexadecimal_digits() {
        assert_eq!(hexadecimal(&"0a".repeat(32)), Some([10; 32]));
        assert_eq!(hexadecimal(&"0a".repeat(31)), None);
        assert_eq!(hexadecimal(&"0g".repeat(32)), None);
        assert_eq!(hexadecimal(&"é".repeat(32)), None);
    }
}
