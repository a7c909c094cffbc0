//! Running a job: the two pure machines, connected to sockets, children, signals, timers and the store.
//!
//! Everything happens in one loop on one thread ([`job`]), which never blocks but in its one wait: the
//! store has a thread of its own ([`crate::storeroom`]). The loop tells the machines what came
//! ([`reports`]) and does what they want ([`job`] for the recovery side, [`snapshots`] for the snapshot
//! side, [`moves`] for the moves of ranks, [`drains`] for processes that are drained, [`listing`] for `ckpt ps`). [`start`] holds what belongs to one incarnation, [`cluster`] what is different where processes run on other nodes,
//! [`peers`] the connections, [`teller`] passes events on.
//!
//! The thread that calls [`run`] starts the processes, and they die with it.

mod cluster;
mod drains;
mod job;
mod listing;
mod moves;
mod peers;
mod reports;
mod snapshots;
mod start;
mod teller;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use protocol::interval::Estimator;
use protocol::recovery::{Config, Proof, Recovery};
use protocol::walltime::Walltime;
use store::{ControlFile, JobStore};
use wire::Address;

use crate::child::spawn::OpenFiles;
use crate::clock;
use crate::errands::Errands;
use crate::error::Error;
use crate::event::{Event, EventLog, Observer};
use crate::outcome::Outcome;
use crate::plan::{PINGS_PER_TIMEOUT, Plan, STOP_GRACE, lease_margin};
use crate::poller::Poller;
use crate::signals::Signals;
use crate::storeroom::StoreRoom;
use crate::token::{Token, random_address};

/// Runs a job to its end: from the newest usable checkpoint in `store` (locked by the caller), or from the
/// beginning if none was ever committed.
///
/// SIGINT, SIGTERM and SIGHUP are taken over while it runs. To be called on a thread that starts no other
/// children, and before other threads that should not see these signals are started.
///
/// # Errors
/// When the job could not be begun at all. Every other end is an [`Outcome`].
pub fn run(
    plan: &Plan,
    mut store: JobStore,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
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
    let wanted = match &plan.launch {
        None => random_address().map_err(random)?,
        Some(launch) => Address::Tcp(launch.listen.to_string()),
    };
    let listener = wanted.listen().map_err(|source| Error::Listen {
        address: wanted.clone(),
        source,
    })?;
    let address = match listener.internet_address() {
        Some(address) => Address::Tcp(address.to_string()),
        None => wanted,
    };
    let job = store.job().job;
    if plan.took_over {
        // From here on, whatever the coordinator before does is known to be of the past.
        let newest = store.newest_usable()?;
        store.begin_incarnation(newest.map(|manifest| manifest.id()))?;
    }
    let drained_nodes = crate::record::drained_nodes(store.job());
    let quarantine = quarantine(plan, &store);
    let mut record = store.job().clone();
    crate::record::set_lease(&mut record, plan.launch.as_ref().map(|_| plan.lease()));
    if record != *store.job() {
        store.replace_job(record)?;
    }
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
        proof: match &plan.launch {
            None => Proof::Child,
            Some(_) => Proof::Lease {
                length: plan.lease(),
                margin: lease_margin(plan.lease()),
            },
        },
        not_before: now + quarantine,
        max_restarts: plan.max_restarts,
        ping_every: plan.ping_every(),
        heartbeat_timeout: plan.heartbeat_timeout,
        start_timeout: plan.start_timeout(),
        stop_grace: STOP_GRACE,
    };
    let mut teller = teller::Teller::new(observer, log);
    teller.tell(&Event::Open {
        job: job.to_string(),
        store: plan.store.display().to_string(),
        ranks: plan.ranks,
        processes: plan.all_processes(),
    });
    if !quarantine.is_zero() {
        teller.warn(format!(
            "the coordinator before did not end as it should, and processes of it may go on for a while: starting in {:.0} s",
            quarantine.as_secs_f64().ceil()
        ));
    }
    let errands = Errands::new().map_err(Error::system("make an event descriptor"))?;
    let fence = Arc::new(AtomicU64::new(0));
    if plan.launch.is_some() {
        cluster::look_after_newer_starts(plan, &errands, &fence)
            .map_err(Error::system("start a thread"))?;
    }
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
        moving: None,
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
        cluster: plan
            .launch
            .as_ref()
            .map(|launch| cluster::Cluster::new(plan, launch, &drained_nodes)),
        drains: drains::Drains::default(),
        errands,
        walltime: plan.walltime.then(|| Walltime::new(now)),
        stops: cluster::Stops::default(),
        fence,
    };
    running.run()
}

/// How long nothing may be started, because processes of the coordinator before may hold their leases still: it has left its
/// control file behind, so it did not see its job to an end.
fn quarantine(plan: &Plan, store: &JobStore) -> Duration {
    let left_behind = !matches!(store.read_control(), Ok(None));
    match crate::record::last_lease(store.job()) {
        Some(lease) if left_behind => {
            // One that hangs may go on, and gives leases until it looks for newer starts.
            let looks = match plan.took_over {
                true => 2 * lease / PINGS_PER_TIMEOUT,
                false => Duration::ZERO,
            };
            lease + lease_margin(lease) + looks
        }
        _ => Duration::ZERO,
    }
}
