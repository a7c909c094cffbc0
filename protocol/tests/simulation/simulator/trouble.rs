//! How a run is drawn from its seed: sizes, delays, and how much trouble there is.

use std::fmt;
use std::time::Duration;

use protocol::faults::{Broken, Fault};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A deliberate mistake, to be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// In a machine of the protocol.
    Machine(Fault),
    /// In what is around the machines.
    Around(Slip),
}

/// A mistake in what is around the machines: some of these were made, and found by the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    /// The command's storage operations overtake each other: a directory is still being made when its
    /// snapshot has been given up and the next incarnation looks for the highest number.
    StorageOutOfOrder,
    /// Nobody looks whether the files that a snapshot builds on are still there: a process that is
    /// behind with the news may have built on a checkpoint that was removed, or somebody has removed files.
    ParentUnchecked,
    /// Retention removes what is older than the kept checkpoints, whether they need it or not.
    NeedsNotKept,
    /// The commit is announced when the manifest is written, before it is renamed.
    AnnouncedBeforeRename,
    /// A restored rank keeps the addresses of announced messages.
    AddressKept,
    /// A snapshot begins while a rank is being moved.
    SnapshotDuringMove,
    /// A move begins while a snapshot is under way.
    MoveDuringSnapshot,
    /// The snapshot side of the coordinator is not told where a moved rank is.
    RecordKeptBack,
    /// Packets that are queued for the old place of a rank go there, although the process has confirmed that none comes.
    QueueKept,
    /// Nobody announces again to a rank that has moved what it has not acknowledged.
    NotAnnouncedAgain,
    /// The source says that it has forgotten a rank while packets that it forwards wait in its queues.
    NotDrained,
    /// The packets that a moving rank has queued stay behind.
    QueuedStayBehind,
    /// A thread of the target has told the coordinator that a rank has come, and the machine hears the answer before it hears that.
    NewsTakenLate,
    /// The target says that the last page has come when the rank has, so that the source forgets what is still to be read.
    CompleteTooEarly,
    /// Nobody tells the target's machine of a last page that came before its rank ran.
    EarlyCompleteForgotten,
    /// Whoever tells that it can't reach another process counts as lost at once.
    WitnessLost,
}

impl Mistake {
    /// Every mistake there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let slips = [
            Slip::StorageOutOfOrder,
            Slip::ParentUnchecked,
            Slip::NeedsNotKept,
            Slip::AnnouncedBeforeRename,
            Slip::AddressKept,
            Slip::SnapshotDuringMove,
            Slip::MoveDuringSnapshot,
            Slip::RecordKeptBack,
            Slip::QueueKept,
            Slip::NotAnnouncedAgain,
            Slip::NotDrained,
            Slip::QueuedStayBehind,
            Slip::NewsTakenLate,
            Slip::CompleteTooEarly,
            Slip::EarlyCompleteForgotten,
            Slip::WitnessLost,
        ];
        let machines = Fault::ALL.into_iter().map(Self::Machine);
        machines.chain(slips.into_iter().map(Self::Around))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(fault) => write!(f, "{fault:?}"),
            Self::Around(slip) => write!(f, "{slip:?}"),
        }
    }
}

/// A delay that is mostly short and sometimes long.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub usual_us: u64,
    pub longest_us: u64,
}

impl Spread {
    fn of(rng: &mut impl Rng, most_us: u64) -> Self {
        let usual_us = rng.random_range(1..=most_us);
        Self {
            usual_us,
            longest_us: usual_us * rng.random_range(1..30),
        }
    }

    /// Draws a delay.
    pub fn draw(self, rng: &mut impl Rng) -> Duration {
        let most = if rng.random_bool(0.05) {
            self.longest_us
        } else {
            self.usual_us
        };
        Duration::from_micros(rng.random_range(0..=most))
    }
}

/// Everything about a run that is not drawn on the way.
#[derive(Clone, Debug)]
pub struct Options {
    pub ranks: u32,
    pub processes_most: u32,
    pub messages: u32,
    /// Which part of the messages is announced.
    pub announced: f64,
    pub ring_packets: usize,
    pub turn: Spread,
    pub link_delay: Spread,
    pub control_delay: Spread,
    /// A process that hears the coordinator so many times later than the others do.
    pub laggard: (u32, u32),
    pub store_delay: Spread,
    pub every: Duration,
    /// Whether the interval is estimated, between so many times shorter and longer.
    pub auto: Option<u32>,
    pub keep: usize,
    /// How probable it is that an image takes the pages of its oldest needed file over.
    pub carry_over: f64,
    /// How many kills, hangs, bit flips and lost files there may be.
    pub troubles: u32,
    /// How probable one is at any event.
    pub trouble: f64,
    /// How probable the failure of a storage operation is.
    pub storage_trouble: f64,
    /// How probable it is at any event that somebody asks for a move; 0 in jobs without moves.
    pub moves: f64,
    /// How many moves are asked for. What one move spoils must not be mended by the next.
    pub moves_most: u32,
    /// How long a snapshot waits for moves.
    pub snapshot_patience: Duration,
    /// How long the steps of a move take.
    pub move_delay: Spread,
    /// How probable it is that one of them is refused or fails.
    pub move_trouble: f64,
    /// How probable a kill or a hang of its source or target is at any event of a move.
    pub move_kills: f64,
    /// A deliberate mistake in the machines.
    pub fault: Broken,
    /// A deliberate mistake around them.
    pub slip: Option<Slip>,
}

impl Options {
    /// Draws a run.
    pub fn draw(rng: &mut impl Rng, seed: u64, mistake: Option<Mistake>) -> Self {
        // Drawn apart, so that jobs without moves are the same as they were before there were moves.
        let mut apart = ChaCha8Rng::seed_from_u64(!seed);
        let moves = apart.random_bool(0.6);
        let busier = if moves { apart.random_range(1..6) } else { 1 };
        let (fault, slip) = match mistake {
            None => (None, None),
            Some(Mistake::Machine(fault)) => (Some(fault), None),
            Some(Mistake::Around(slip)) => (None, Some(slip)),
        };
        let calm = rng.random_bool(0.2);
        let mut options = Self {
            ranks: rng.random_range(1..=10),
            processes_most: rng.random_range(1..=8),
            messages: rng.random_range(10..200) * busier,
            announced: rng.random_range(0.0..0.6),
            ring_packets: rng.random_range(1..8),
            turn: Spread::of(rng, 200),
            link_delay: Spread::of(rng, 300),
            control_delay: Spread::of(rng, 500),
            laggard: (rng.random_range(0..4), 1 << rng.random_range(0..6)),
            store_delay: Spread::of(rng, 1000),
            every: Duration::from_micros(50 << rng.random_range(0..8)),
            keep: rng.random_range(1..4),
            carry_over: if rng.random_bool(0.5) {
                0.0
            } else {
                rng.random_range(0.0..0.5)
            },
            troubles: if calm { 0 } else { rng.random_range(0..8) },
            trouble: rng.random_range(0.0001..0.003),
            storage_trouble: if calm {
                0.0
            } else {
                rng.random_range(0.0..0.1)
            },
            moves: if moves {
                apart.random_range(0.001..0.1)
            } else {
                0.0
            },
            moves_most: 4 << apart.random_range(0..8),
            snapshot_patience: Duration::from_micros(500 << apart.random_range(0..7)),
            move_delay: Spread::of(&mut apart, 400),
            move_trouble: if apart.random_bool(0.5) {
                0.0
            } else {
                apart.random_range(0.0..0.2)
            },
            move_kills: if apart.random_bool(0.5) {
                0.0
            } else {
                apart.random_range(0.0001..0.02)
            },
            fault: Broken(fault),
            slip,
            auto: rng.random_bool(0.3).then(|| 1 << rng.random_range(0..5)),
        };
        if moves && apart.random_bool(0.4) {
            options.make_restless(&mut apart);
        }
        options
    }

    /// Ranks move all the time, and packets are on their way for long.
    fn make_restless(&mut self, rng: &mut impl Rng) {
        self.every *= 20;
        self.moves = 0.1;
        self.move_delay = Spread::of(rng, 50);
        self.snapshot_patience = Duration::from_millis(50);
        self.announced = rng.random_range(0.2..0.8);
        self.link_delay.usual_us *= 4;
        self.link_delay.longest_us *= 4;
        self.trouble /= 4.0;
        self.moves_most = 2000;
        // Or only a few times, and nothing comes after it that would mend what they have spoilt.
        if rng.random_bool(0.5) {
            self.moves = 0.01;
            self.moves_most = rng.random_range(1..5);
            self.troubles = 0;
        }
    }
}
