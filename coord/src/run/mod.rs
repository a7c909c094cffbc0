//! Running a job: the two pure machines, connected to sockets, children, signals, timers and the store.
//!
//! Everything happens in one loop on one thread ([`job`]), which never blocks but in its one wait: the
//! store has a thread of its own ([`crate::storeroom`]). The loop tells the machines what came
//! ([`reports`]) and does what they want ([`job`] for the recovery side, [`snapshots`] for the snapshot
//! side). [`start`] holds what belongs to one incarnation, [`peers`] the connections, [`teller`] passes
//! events on.
//!
//! The thread that calls [`run`] starts the processes, and they die with it.

mod job;
mod peers;
mod reports;
mod snapshots;
mod start;
mod teller;

use protocol::interval::Estimator;
use protocol::recovery::{Config, Proof, Recovery};
use store::{ControlFile, JobStore};

use crate::address::Address;
use crate::child::spawn::OpenFiles;
use crate::clock;
use crate::error::Error;
use crate::event::{Event, EventLog, Observer};
use crate::outcome::Outcome;
use crate::plan::{PINGS_PER_TIMEOUT, Plan, STOP_GRACE};
use crate::poller::Poller;
use crate::signals::Signals;
use crate::storeroom::StoreRoom;
use crate::token::Token;

/// Runs a job to its end: from the newest usable checkpoint in `store` (locked by the caller), or from the
/// beginning if none was ever committed.
///
/// SIGINT, SIGTERM and SIGHUP are taken over while it runs. To be called on a thread that starts no other
/// children, and before other threads that should not see these signals are started.
///
/// # Errors
/// When the job could not be begun at all. Every other end is an [`Outcome`].
pub fn run(plan: &Plan, store: JobStore, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    let log = match &plan.events {
        None => None,
        Some(path) => Some(EventLog::open(path).map_err(|source| Error::Events {
            path: path.clone(),
            source,
        })?),
    };
    let random = |error: getrandom::Error| Error::System {
        what: "draw random numbers",
        source: std::io::Error::other(error),
    };
    let token = Token::draw().map_err(random)?;
    let address = Address::draw().map_err(random)?;
    let listener = address
        .listen()
        .map_err(Error::system("listen on a control socket"))?;
    let job = store.job().job;
    store.sweep()?;
    store.write_control(&ControlFile {
        job,
        address: address.to_string(),
        token: token.bytes(),
        pid: std::process::id(),
    })?;
    let signals = Signals::take_over().map_err(Error::system("take over signals"))?;
    let room = StoreRoom::new(store).map_err(Error::system("start the store's thread"))?;
    let open_files = OpenFiles::raise().map_err(Error::system("read the limit of open files"))?;
    let poller = Poller::new().map_err(Error::system("watch descriptors"))?;
    let now = clock::now();
    let config = Config {
        proof: Proof::Child,
        not_before: now,
        max_restarts: plan.max_restarts,
        ping_every: plan.heartbeat_timeout / PINGS_PER_TIMEOUT,
        heartbeat_timeout: plan.heartbeat_timeout,
        start_timeout: plan.start_timeout(),
        stop_grace: STOP_GRACE,
    };
    let mut teller = teller::Teller::new(observer, log);
    teller.tell(&Event::Open {
        job: job.to_string(),
        store: plan.store.display().to_string(),
        ranks: plan.ranks,
        processes: plan.processes,
    });
    let running = job::Job {
        plan,
        job,
        address,
        token,
        listener,
        open_files,
        poller,
        signals,
        start: start::Start::default(),
        store: room,
        teller,
        recovery: Recovery::new(config, now),
        coordinator: None,
        closing: false,
        chosen: None,
        peers: peers::Peers::default(),
        held: Vec::new(),
        finished_early: Vec::new(),
        cost: job::Cost::default(),
        estimator: Estimator::new(plan.every.bounds()),
        committed: None,
        aborted: Vec::new(),
        began: now,
        next_tick: now,
        outcome: None,
    };
    running.run()
}
