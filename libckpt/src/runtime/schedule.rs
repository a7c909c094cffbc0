//! The scheduler: runs the ranks of this process in turn, and does between their turns what needs all of
//! them to stand still.

use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use libckpt_rank::{Resumed, Slot};
use protocol::control::{Directive, Report, exit};
use protocol::ids::Rank;

use super::Ending;
use super::control::{Control, ENDING};
use super::figures::Figures;
use super::moving::Moving;
use super::output::Output;
use super::snapshot::Snapshots;
use crate::engine::{Engine, Fatal, NO_RANK, SnapshotEvent, in_engine};

/// How often staging memory is made to fit the ranks, at the most. A ping of the coordinator is the
/// occasion.
const MAKE_ROOM_EVERY: Duration = Duration::from_millis(250);

/// How long the processes of a job wait for each other to end their links, once all ranks have ended well.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// How long a process that leaves the job waits until what it has sent has gone out.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// How long ending the links may take, whatever happens.
const END_WITHIN: Duration = Duration::from_secs(15);

/// How often a process without a coordinator whose ranks have ended looks whether all have.
const LOOK_FOR_OTHERS_EVERY: Duration = Duration::from_millis(1);

/// The ranks of this process and what drives them.
pub(crate) struct Scheduler {
    /// In the order of the engine's `hosted`.
    pub(crate) slots: Vec<Slot>,
    /// How to reach the coordinator; `None` for a program that runs alone.
    pub(crate) control: Option<(Control, Receiver<Directive>)>,
    pub(crate) snapshots: Option<Snapshots>,
    /// Ranks that leave and come; where there is a coordinator.
    pub(crate) moving: Option<Moving>,
    pub(crate) output: Output,
    /// What is told of the ranks.
    pub(crate) figures: Figures,
    /// When staging memory was last made to fit the ranks.
    pub(crate) room_made: Instant,
}

/// What the scheduler does next.
enum Next {
    Run(usize),
    Cut(protocol::ids::Epoch),
    Look,
    Idle,
}

impl Scheduler {
    /// Runs until the job ends, and ends the process.
    pub(crate) fn run(mut self) -> Infallible {
        loop {
            match in_engine(Self::next) {
                Next::Run(index) => self.resume(index),
                Next::Cut(epoch) => self.cut(epoch),
                Next::Look => self.look(),
                Next::Idle => in_engine(Engine::idle),
            }
        }
    }

    fn next(engine: &mut Engine) -> Next {
        let moved = engine.progress();
        if engine.fatal.is_some()
            || !engine.ended.is_empty()
            || !engine.snapshot_events.is_empty()
            || engine.core.transit.has_errands()
            || engine.attention.directive.load(Ordering::Relaxed)
        {
            return Next::Look;
        }
        if let Some(epoch) = engine.core.participant.cut_wanted() {
            return Next::Cut(epoch);
        }
        if let Some(index) = engine.core.ready.pop_front() {
            engine.running = index;
            let rank = engine.core.hosted[index].rank;
            engine
                .attention
                .running
                .store(u64::from(rank.0), Ordering::Relaxed);
            return Next::Run(index);
        }
        if moved { Next::Look } else { Next::Idle }
    }

    fn resume(&mut self, index: usize) {
        let rank = self.slots[index].rank();
        self.output.switch_to(rank);
        let resumed = self.slots[index].resume();
        in_engine(|engine| {
            engine.attention.running.store(NO_RANK, Ordering::Relaxed);
            if !matches!(resumed, Resumed::Suspended) {
                // Never to be run again, whatever still arrives for it.
                engine.core.hosted[index].scheduled = true;
            }
        });
    }

    /// Handles what came while ranks ran.
    fn look(&mut self) {
        let (fatal, ended, events) = in_engine(|engine| {
            engine.attention.directive.store(false, Ordering::SeqCst);
            (
                engine.fatal.take(),
                std::mem::take(&mut engine.ended),
                std::mem::take(&mut engine.snapshot_events),
            )
        });
        if let Some(fatal) = fatal {
            self.die(&fatal);
        }
        for (index, ending) in ended {
            self.report_ending(self.slots[index].rank(), ending);
        }
        for event in events {
            if let Some(snapshots) = &mut self.snapshots {
                match event {
                    SnapshotEvent::ChannelsComplete { epoch, links } => {
                        snapshots.channels_complete(epoch, links)
                    }
                    SnapshotEvent::Discard { epoch } => snapshots.discard(epoch),
                }
            }
        }
        if let Err(fatal) = self.run_errands() {
            self.die(&fatal);
        }
        self.take_directives();
        if let Some(snapshots) = &mut self.snapshots
            && self.room_made.elapsed() >= MAKE_ROOM_EVERY
        {
            snapshots.make_room(&self.slots);
            self.room_made = Instant::now();
            let snapshots = &*snapshots;
            self.figures
                .look(&self.slots, |slot| snapshots.image_bytes(slot));
        }
    }

    fn take_directives(&mut self) {
        let directives: Vec<_> = match &self.control {
            Some((_, inbox)) => inbox.try_iter().collect(),
            None => Vec::new(),
        };
        for directive in directives {
            match directive {
                // A released process that was not told to leave has no links, either.
                Directive::End if in_engine(|engine| engine.core.participant.is_released()) => {
                    leave()
                }
                Directive::End => end_well(),
                Directive::Leave => leave(),
                _ => {}
            }
            if let Directive::Move(directive) = directive {
                if let Err(fatal) = self.migrate(directive) {
                    self.die(&fatal);
                }
                continue;
            }
            let (committed, rebase) = match &directive {
                Directive::Committed { epoch } => (Some(*epoch), false),
                Directive::Abort { rebase, .. } => (None, *rebase),
                _ => (None, false),
            };
            let result = in_engine(|engine| -> Result<(), Fatal> {
                let participant = &mut engine.core.participant;
                match directive {
                    Directive::Snapshot { epoch } => participant.handle_snapshot(epoch),
                    Directive::Abort { epoch, .. } => participant.handle_abort(epoch),
                    Directive::Committed { epoch } => {
                        participant.handle_committed(epoch).map_err(Fatal::new)?;
                    }
                    Directive::Go
                    | Directive::End
                    | Directive::Stop
                    | Directive::Leave
                    | Directive::Ping { .. }
                    | Directive::Assignment(_)
                    | Directive::Move(_)
                    | Directive::Refused { .. } => {
                        return Err(Fatal::new(format!(
                            "an unexpected directive: {directive:?}"
                        )));
                    }
                }
                engine.settle()
            });
            if let Err(fatal) = result {
                self.die(&fatal);
            }
            if let Some(snapshots) = &mut self.snapshots {
                if let Some(epoch) = committed {
                    snapshots.committed(epoch, &self.slots);
                }
                if rebase {
                    snapshots.rebase();
                }
            }
        }
    }

    fn cut(&mut self, epoch: protocol::ids::Epoch) {
        let Some(snapshots) = &mut self.snapshots else {
            self.die(&Fatal::new("a snapshot without a store"));
        };
        let outputs = self.output.descriptors().collect();
        if let Err(fatal) = snapshots.cut(epoch, &self.slots, outputs) {
            self.die(&fatal);
        }
    }

    fn report_ending(&mut self, rank: Rank, ending: Ending) {
        match (&self.control, ending) {
            (Some((control, _)), Ending::Finished) => control.report(Report::RankFinished { rank }),
            (Some((control, _)), Ending::Failed { code, message }) => {
                say_why(rank, &message);
                control.report(Report::RankFailed {
                    rank,
                    code,
                    message,
                });
            }
            (None, Ending::Finished) => {
                let all = in_engine(|engine| {
                    engine
                        .core
                        .hosted
                        .iter()
                        .all(|hosted| hosted.tables.finished)
                });
                if all {
                    self.await_others();
                }
            }
            (None, Ending::Failed { code, message }) => {
                say_why(rank, &message);
                end_now(code);
            }
        }
    }

    /// Serves the ranks of other processes until all of the job have ended, and ends the process. For a process
    /// without a coordinator.
    fn await_others(&self) -> ! {
        loop {
            let (done, fatal) = in_engine(|engine| {
                let moved = engine.progress();
                let done = engine.is_quiet() && engine.transport.all_done();
                if !done && !moved {
                    engine.transport.idle(LOOK_FOR_OTHERS_EVERY);
                }
                (done, engine.fatal.take())
            });
            if let Some(fatal) = fatal {
                self.die(&fatal);
            }
            if done {
                end_well();
            }
        }
    }

    /// Ends the process because it can't go on.
    fn die(&self, fatal: &Fatal) -> ! {
        match (fatal, &self.control) {
            (Fatal::Link(peer, what), Some((control, inbox))) => {
                control.report(Report::Stranded {
                    peer: *peer,
                    reason: what.clone(),
                });
                wait_for_the_end(inbox)
            }
            (Fatal::Link(..), None) => eprintln!("libckpt: {fatal}"),
            (Fatal::Impossible(_), control) => {
                eprintln!("libckpt: internal error, please report it: {fatal}");
                if let Some((control, _)) = control {
                    control.report(Report::Warning {
                        text: fatal.to_string(),
                    });
                    control.flush();
                }
            }
        }
        end_now(exit::LIBRARY)
    }
}

/// Does nothing more until the coordinator ends this process, which it does by the thread that reads, or is gone. That thread
/// answers for it meanwhile.
fn wait_for_the_end(inbox: &Receiver<Directive>) -> ! {
    for directive in inbox {
        // All ranks of the job have ended: what failed was a link that nobody needs any more.
        if matches!(directive, Directive::End | Directive::Leave) {
            end_now(0);
        }
    }
    end_now(exit::LIBRARY)
}

fn say_why(rank: Rank, message: &str) {
    if !message.is_empty() {
        let _ = writeln!(std::io::stderr(), "{rank}: {message}");
    }
}

/// Ends a process whose ranks have ended well, as all others of the job have, with all output written.
fn end_well() -> ! {
    end_links(|engine| {
        // All have heard of the same releases by now, though not all may have come to their end.
        for peer in engine.core.participant.released_peers() {
            engine.transport.part(peer);
        }
        engine.transport.close(CLOSE_WITHIN)
    })
}

/// Ends a process that is released, while the others go on.
fn leave() -> ! {
    end_links(|engine| engine.transport.leave(LEAVE_WITHIN))
}

/// Ends a process with all output written, after its links.
fn end_links(end: impl FnOnce(&mut Engine) -> bool) -> ! {
    ENDING.store(true, Ordering::SeqCst);
    let _ = std::io::stdout().flush();
    // Nobody can be certain that a communication library does not wait for others.
    let _ = std::thread::Builder::new().spawn(|| {
        std::thread::sleep(END_WITHIN);
        end_now(0);
    });
    if !in_engine(end) {
        // Others are gone already, for whatever reason, or go on: an exit in order might wait for them.
        end_now(0);
    }
    std::process::exit(0)
}

/// Ends a process because of a failure, with all output written. It waits for nobody.
fn end_now(code: i32) -> ! {
    ENDING.store(true, Ordering::SeqCst);
    let _ = std::io::stdout().flush();
    libckpt_rank::process::end_now(code)
}
