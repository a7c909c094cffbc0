//! The engine: messages between ranks, on the links between their processes.
//!
//! One per process, owned by the thread that runs the ranks. Solver calls arrive in rank context by
//! [`ops`] and are carried out in process context. Nothing of the engine may be borrowed across
//! [`libckpt_rank::slot::suspend`]: a rank that is suspended may go on in another process, where the
//! engine lies elsewhere. So every call is a loop of short visits ([`visit`]) and suspensions.
//!
//! - `packet`: the bytes of a packet.
//! - `tables`, `request`: a rank's message tables, kept with its image.
//! - `core`: matching, sequencing, queues, recording; no transport.
//! - `progress`: links in, queues out, bulk reads.
//! - `numbered`: large messages where links can't read another process's memory.
//! - `relay`: the same, whose sender or receiver moves.
//! - `moving`: ranks that leave and come while the others run, and their packets.
//! - `ops`: what a rank may ask.
//! - `cut`: capturing and restoring what the engine holds of a rank.

pub(crate) mod core;
pub(crate) mod cut;
pub(crate) mod moving;
pub(crate) mod numbered;
pub(crate) mod ops;
pub(crate) mod packet;
pub(crate) mod progress;
mod relay;
pub(crate) mod request;
pub(crate) mod tables;

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libckpt_rank::context;
use libckpt_transport::{Transport, TransportError};
use protocol::control::LinkCount;
use protocol::ids::{Epoch, Process, Rank};

pub(crate) use self::core::Core;
pub(crate) use self::ops::*;
pub use self::ops::{safepoint, wtime, yield_now};
pub(crate) use self::request::{Envelope, RequestId};

/// Why the process can't go on.
#[derive(Debug)]
pub(crate) enum Fatal {
    /// Something that must not be. The process ends: going on could corrupt the job.
    Impossible(String),
    /// A link failed, as it does when the process at its other end is gone: which, where it is known, and what failed.
    Link(Option<Process>, String),
}

impl Fatal {
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self::Impossible(what.to_string())
    }
}

impl From<TransportError> for Fatal {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Mpi { peer, .. } => Self::Link(peer, error.to_string()),
            _ => Self::new(error),
        }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Impossible(what) | Self::Link(_, what) => f.write_str(what),
        }
    }
}

/// What the control thread and the engine tell each other without a lock.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    /// A directive waits: the ranks' thread looks at its inbox at the next visit.
    pub(crate) directive: AtomicBool,
    /// Counts visits to the engine; stands still while a rank computes.
    pub(crate) visits: AtomicU64,
    /// Number of the rank that runs; [`NO_RANK`] while none does.
    pub(crate) running: AtomicU64,
    /// The ranks' thread waits for packets, on behalf of whatever rank.
    pub(crate) idle: AtomicBool,
    /// How the ranks of this process were when they were looked at last.
    pub(crate) looked_at: Mutex<Vec<LookedAt>>,
}

/// What the ranks' thread finds out about a rank now and then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookedAt {
    pub(crate) rank: Rank,
    pub(crate) image_bytes: u64,
    pub(crate) messages_per_s: Option<u64>,
}

/// In [`Attention::running`].
pub(crate) const NO_RANK: u64 = u64::MAX;

/// The engine of this process.
pub(crate) struct Engine {
    pub(crate) core: Core,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) attention: Arc<Attention>,
    pub(crate) started: Instant,
    /// Set where going on is impossible; the scheduler ends the process.
    pub(crate) fatal: Option<Fatal>,
    /// Index into `core.hosted` of the rank that runs.
    pub(crate) running: usize,
    /// Why ranks ended, for the scheduler to report.
    pub(crate) ended: Vec<(usize, crate::runtime::Ending)>,
    /// What the protocol has decided about a snapshot, for the scheduler to act on.
    pub(crate) snapshot_events: Vec<SnapshotEvent>,
    /// More processes on this machine than processors.
    pub(crate) crowded: bool,
    visits: u64,
}

/// What the protocol has decided about the snapshot under way.
#[derive(Debug)]
pub(crate) enum SnapshotEvent {
    /// Every marker is in: the channel state is complete.
    ChannelsComplete { epoch: Epoch, links: Vec<LinkCount> },
    /// The snapshot will not be.
    Discard { epoch: Epoch },
}

/// The longest sleep without a look around. Nothing depends on it: every packet and directive wakes.
const IDLE_LONGEST: Duration = Duration::from_millis(500);

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

impl Engine {
    pub(crate) fn new(
        mut core: Core,
        transport: Box<dyn Transport>,
        attention: Arc<Attention>,
    ) -> Self {
        core.numbered.on = transport.sends_bulk();
        Self {
            crowded: !transport.has_cores(),
            core,
            transport,
            attention,
            started: Instant::now(),
            fatal: None,
            running: 0,
            ended: Vec::new(),
            snapshot_events: Vec::new(),
            visits: 0,
        }
    }

    /// Makes this the engine of the calling thread.
    pub(crate) fn install(self) {
        ENGINE.with(|engine| *engine.borrow_mut() = Some(self));
    }

    /// Waits until a packet comes, there is room on a link, or a directive.
    #[inline]
    pub(crate) fn idle(&mut self) {
        self.attention.idle.store(true, Ordering::Relaxed);
        self.transport.idle(IDLE_LONGEST);
        self.attention.idle.store(false, Ordering::Relaxed);
    }

    /// True where nothing of ours waits for another process.
    pub(crate) fn is_quiet(&self) -> bool {
        self.core.waiting.is_empty() && !self.core.numbered.is_busy()
    }

    /// True where the ranks' thread has something to do that only the scheduler can: a directive, a cut,
    /// the end. A rank that waits suspends itself then.
    #[inline]
    pub(crate) fn scheduler_wanted(&self) -> bool {
        self.attention.directive.load(Ordering::Relaxed)
            || !self.snapshot_events.is_empty()
            || self.core.transit.has_errands()
            || self.core.participant.cut_wanted().is_some()
            || self.fatal.is_some()
    }
}

/// A short visit to the engine, in process context. `None` on a thread that has none.
#[inline]
pub(crate) fn visit<R>(f: impl FnOnce(&mut Engine) -> R) -> Option<R> {
    context::in_process(|| {
        ENGINE.with(|engine| {
            let mut engine = engine.borrow_mut();
            let engine = engine.as_mut()?;
            engine.visits += 1;
            engine
                .attention
                .visits
                .store(engine.visits, Ordering::Relaxed);
            Some(f(engine))
        })
    })
}

/// A visit by the scheduler's side of the ranks' thread, which always has an engine.
pub(crate) fn in_engine<R>(f: impl FnOnce(&mut Engine) -> R) -> R {
    visit(f).expect("the ranks' thread has the engine")
}
