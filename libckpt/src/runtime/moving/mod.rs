//! Moving ranks between the processes of a running job: what the machine of this process
//! ([`protocol::migration::Mover`]) wants done with ranks that stand still.
//!
//! ```text
//!  source                                       target
//!   Examine: pins, files, image's bytes          Prepare: memory, slot, files there, source's memory readable
//!                                                  or connected to; a thread waits on the line to the source
//!   Transfer: maybe rounds of pages ─────────────▶ copies them, straight from the source, while all ranks go on
//!           ◀──────────────────────────── copied
//!             freeze; describe in a parcel ──────▶ fetches the parcel, the rest of the pages, the files; tells the coordinator
//!   Left: forward, keep the memory               Run
//!   Free: unmap
//! ```
//!
//! All of it happens between the turns of ranks, so that any rank that has come to the library can be frozen at once.
//! Packets and message tables are the engine's affair ([`crate::engine::moving`]).
//!
//! - [`leaving`]: the side of the source.
//! - [`arriving`]: the side of the target.
//! - [`rounds`]: the source's side of copying while the rank runs.
//! - [`stored`]: both sides where the target reads the rank's last checkpoint first.
//! - [`fetch`]: the thread that brings a rank here.
//! - [`behind`]: what it does when the rank runs here already.
//! - [`line`](mod@line): what source and that thread tell each other.
//! - [`memory`]: the line where that thread can read the source's memory.
//! - [`stream`]: the line where it can't: a connection.
//! - [`parcel`]: what the source tells about pages and ranks.
//! - [`doom`]: where tests have a process end.

mod arriving;
mod behind;
mod doom;
mod fetch;
mod leaving;
mod line;
mod memory;
mod parcel;
mod rounds;
mod stored;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use libckpt_rank::Slot;
use libckpt_rank::inspect::descriptors::Descriptors;
use libckpt_transport::Waker;
use protocol::control::{Assignment, Report};
use protocol::ids::{Incarnation, JobId, Move, Process, Rank};
use protocol::migration::{MoveDirective, MoveReport, MoverOutput};
use protocol::slots::SlotLayout;

use self::arriving::{Arrived, Arriving};
use self::behind::Bringing;
use self::doom::Step;
use self::fetch::Came;
use self::leaving::{Frozen, Leaving, Left};
use self::stored::Told;
use super::control::Control;
use super::processors::Processors;
use super::schedule::Scheduler;
use crate::engine::moving::Errand;
use crate::engine::{Attention, Fatal, in_engine};

/// The moves in which this process takes part.
pub(crate) struct Moving {
    control: Control,
    me: Process,
    incarnation: Incarnation,
    job: JobId,
    layout: SlotLayout,
    /// Threads that copy a rank beside each other.
    threads: usize,
    /// The job's store, in which the library has files open.
    store: String,
    /// What was open before the ranks ran.
    opened: Descriptors,
    /// Ranks that are to leave, before it is known whether they do.
    leaving: BTreeMap<Move, Leaving>,
    /// Ranks that stand still here until it is known who runs them.
    frozen: BTreeMap<Rank, Frozen>,
    /// Memory of ranks that have left, as long as it may be read.
    left: BTreeMap<Rank, Left>,
    arriving: BTreeMap<Move, Arriving>,
    /// Ranks that are here as a whole, until it is known who runs them.
    arrived: BTreeMap<Rank, Arrived>,
    /// Ranks that run here while their pages come.
    bringing: BTreeMap<Move, Bringing>,
    news: Receiver<News>,
    tell: Tell,
}

/// What the threads of moves tell the ranks' thread.
enum News {
    /// Target: it is connected with the source, or can't be.
    Reached(Move, Result<(), String>),
    /// Target: a rank has come, or can't come.
    Came(Came),
    /// Target: the last page of a rank has come.
    Complete(Move),
    /// Source: the target has done what it was told on the line.
    Done(Move),
    /// Source: the line is broken.
    NotGiven(Move, String),
    /// Source: it is time to see how much a rank writes.
    Time(Move),
    /// Source: what is known about a rank's last checkpoint.
    Stored(Move, Told),
}

impl News {
    fn id(&self) -> Move {
        match self {
            Self::Came(came) => came.id,
            Self::Reached(id, _)
            | Self::NotGiven(id, _)
            | Self::Complete(id)
            | Self::Done(id)
            | Self::Time(id)
            | Self::Stored(id, _) => *id,
        }
    }
}

/// How the threads of moves tell it.
#[derive(Clone)]
struct Tell {
    news: Sender<News>,
    attention: Arc<Attention>,
    waker: Waker,
}

impl Tell {
    fn tell(&self, news: News) {
        if self.news.send(news).is_ok() {
            (self.attention.directive).store(true, std::sync::atomic::Ordering::SeqCst);
            self.waker.wake();
        }
    }
}

impl Moving {
    /// To be called when all of the library's files are open and no rank has run.
    pub(crate) fn new(assignment: &Assignment, layout: SlotLayout, control: Control) -> Self {
        let (told, news) = channel();
        let mut opened = Descriptors::record();
        if in_engine(|engine| engine.transport.opens_sockets()) {
            opened.leave_sockets_out();
        }
        Self {
            control,
            me: in_engine(|engine| engine.core.me),
            incarnation: assignment.incarnation,
            job: assignment.job,
            layout,
            threads: Processors::of(assignment).share(),
            store: std::fs::canonicalize(&assignment.store)
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_else(|_| assignment.store.clone()),
            opened,
            leaving: BTreeMap::new(),
            frozen: BTreeMap::new(),
            left: BTreeMap::new(),
            arriving: BTreeMap::new(),
            arrived: BTreeMap::new(),
            bringing: BTreeMap::new(),
            news,
            tell: in_engine(|engine| Tell {
                news: told,
                attention: engine.attention.clone(),
                waker: engine.transport.waker(),
            }),
        }
    }
}

impl Scheduler {
    /// The coordinator says something about a move.
    pub(super) fn migrate(&mut self, directive: MoveDirective) -> Result<(), Fatal> {
        // What threads have told comes first: a word of the coordinator may be its answer to them.
        self.take_news()?;
        let (before, after) = self.dooms(&directive);
        self.reach(before);
        in_engine(|engine| engine.handle_move(directive))?;
        self.obey_mover()?;
        self.reach(after);
        Ok(())
    }

    /// Where a test may end this process, before and after a directive is handled.
    fn dooms(&self, directive: &MoveDirective) -> (Option<Step>, Option<Step>) {
        let Some(moving) = &self.moving else {
            return (None, None);
        };
        let leaves = directive
            .id()
            .is_some_and(|id| moving.leaving.contains_key(&id));
        doom::of(directive, moving.me, leaves)
    }

    fn reach(&self, step: Option<Step>) {
        if let (Some(step), Some(moving)) = (step, &self.moving) {
            doom::reach(step, &moving.control);
        }
    }

    /// Does what packets and threads have left to do.
    pub(super) fn run_errands(&mut self) -> Result<(), Fatal> {
        while let Some(errand) = in_engine(|engine| engine.core.transit.next_errand()) {
            match errand {
                Errand::Obey(output) => self.obey(output)?,
                Errand::Safepoint(id, rank) => self.freeze(id, rank, None)?,
            }
            self.obey_mover()?;
        }
        self.take_news()
    }

    fn take_news(&mut self) -> Result<(), Fatal> {
        while let Some(news) = self.moving.as_ref().and_then(|it| it.news.try_recv().ok()) {
            match news {
                News::Reached(id, outcome) => self.reached(id, outcome),
                News::Came(came) => self.take_in(came)?,
                News::Complete(id) => self.complete(id),
                News::NotGiven(id, reason) => {
                    in_engine(|engine| engine.core.mover.failed(id, reason));
                }
                News::Done(id) => self.go_on(id)?,
                News::Time(id) => self.choose(id)?,
                News::Stored(id, told) => self.stored(id, told)?,
            }
            self.obey_mover()?;
        }
        Ok(())
    }

    /// Does what the machine wants, in order.
    fn obey_mover(&mut self) -> Result<(), Fatal> {
        loop {
            // All at once: what is done for one may make the machine want more, which comes after these.
            let mover = |engine: &mut crate::engine::Engine| -> Vec<MoverOutput> {
                std::iter::from_fn(|| engine.core.mover.poll_output()).collect()
            };
            let wanted = in_engine(mover);
            if wanted.is_empty() {
                return in_engine(crate::engine::Engine::settle);
            }
            for output in wanted {
                if let Some(output) = in_engine(|engine| engine.core.obey_mover(output))? {
                    self.obey(output)?;
                }
            }
        }
    }

    /// Puts a slot where the engine puts its rank.
    fn put(&mut self, slot: Slot) {
        let rank = slot.rank();
        let index = self.slots.partition_point(|other| other.rank() < rank);
        self.slots.insert(index, slot);
    }

    fn obey(&mut self, output: MoverOutput) -> Result<(), Fatal> {
        let Some(moving) = &mut self.moving else {
            return Err(Fatal::new("a move without a coordinator"));
        };
        match output {
            // The thread that has received it has said so.
            MoverOutput::Report(MoveReport::Received { .. } | MoveReport::Complete { .. }) => {}
            MoverOutput::Report(report) => moving.control.report(Report::Move(report)),
            MoverOutput::Examine { id, rank, to, mode } => self.examine(id, rank, to, mode),
            MoverOutput::Prepare {
                id,
                rank,
                from,
                mode,
                needs,
            } => moving.prepare(id, rank, from, mode, &needs),
            MoverOutput::Transfer { id, rank, mode, .. } => self.transfer(id, rank, mode)?,
            MoverOutput::Resume { id, rank } => self.thaw(id, rank)?,
            MoverOutput::Discard { id, rank } => moving.discard(id, rank),
            MoverOutput::Run { id, rank } => self.welcome(id, rank)?,
            MoverOutput::Left { id, rank, .. } => self.leave(id, rank)?,
            // Its memory goes, and with it whatever the process knew of it.
            MoverOutput::Free { rank, .. } => drop(moving.left.remove(&rank)),
            MoverOutput::SendLink { .. }
            | MoverOutput::Placed { .. }
            | MoverOutput::Drain { .. } => {
                return Err(Fatal::new("a step of a move that is the engine's own"));
            }
        }
        Ok(())
    }
}
