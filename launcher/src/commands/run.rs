//! `ckpt run`: a new job, or with `--resume` the job that is there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coord::child::spawn::{Program, find};
use coord::launch::hosts::OwnEnvironment;
use coord::launch::{self, Request};
use coord::{Every, Plan, record};
use protocol::slots::{STACK_BYTES_DEFAULT, SlotLayout};
use store::{CheckpointState, JobStore};

use super::{Show, restart, run_job, shown};
use crate::args::{CommonArgs, EveryArg, LaunchArgs, RunArgs};
use crate::failure::Failure;
use crate::output::{Output, Report};
use crate::report::RunReport;
use crate::units;

const EVERY: Duration = Duration::from_secs(600);
const KEEP: u32 = 2;

/// Values for what neither the command line nor a job record says.
pub const DEFAULTS: record::Defaults = record::Defaults {
    max_restarts: 3,
    heartbeat_timeout: Duration::from_secs(10),
};

pub fn run(args: &RunArgs, show: Show, output: &mut dyn Output) -> Result<(i32, Report), Failure> {
    let plan = plan(args)?;
    if is_store(&plan.store) {
        if args.resume && is_used(&JobStore::open(&plan.store)?)? {
            return resume(args, show, output);
        }
        clear_if_unused(&plan.store)?;
    }
    let job = record::new_job(&plan)
        .map_err(|error| Failure::internal(format!("no random numbers: {error}")))?;
    let store = JobStore::create(&plan.store, job)?;
    let requeue = args.common.launch.requeue_on_resumable;
    go(&plan, requeue, store, show, output)
}

/// Runs the plan and tells how it went.
pub fn go(
    plan: &Plan,
    requeue_on_resumable: bool,
    store: JobStore,
    show: Show,
    output: &mut dyn Output,
) -> Result<(i32, Report), Failure> {
    let began = Instant::now();
    let job = store.job().job.to_string();
    let outcome = run_job(plan, store, show, output)?;
    let report = RunReport {
        job,
        store: shown(&plan.store),
        outcome: outcome.name().to_owned(),
        message: outcome.message(),
        ranks: plan.ranks,
        processes: plan.processes,
        restarts: outcome.restarts,
        committed: outcome.committed.map(|epoch| epoch.0),
        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    if requeue_on_resumable {
        requeue(outcome.code(), output);
    }
    Ok((outcome.code(), Report::Run(report)))
}

fn plan(args: &RunArgs) -> Result<Plan, Failure> {
    let common = &args.common;
    let directory = std::env::current_dir()
        .map_err(|error| Failure::usage(format!("the current directory can't be used: {error}")))?;
    let Some(name) = args.program.first() else {
        return Err(Failure::usage("no program given; write it after --"));
    };
    let path =
        find(Path::new(name), &directory).map_err(|error| Failure::usage(error.to_string()))?;
    let slot_bytes = args
        .slot_size
        .unwrap_or_else(|| SlotLayout::fitting_slot_bytes(args.ranks));
    let stack_bytes = args
        .stack_size
        .unwrap_or_else(|| STACK_BYTES_DEFAULT.min(slot_bytes / 2));
    SlotLayout::new(args.ranks, slot_bytes, stack_bytes)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let plan = Plan {
        store: absolute(&args.store)?,
        ranks: args.ranks,
        processes: args.ranks,
        idle: 0,
        program: Program {
            path,
            arguments: args.program.clone(),
            directory,
        },
        slot_bytes,
        stack_bytes,
        compression: Default::default(),
        strict: false,
        tracking: Default::default(),
        capture: Default::default(),
        memory_bytes: None,
        every: Every::Fixed(EVERY),
        keep: KEEP,
        max_restarts: DEFAULTS.max_restarts,
        heartbeat_timeout: DEFAULTS.heartbeat_timeout,
        label: false,
        events: None,
        request: Request::default(),
        launch: None,
        took_over: false,
        walltime: false,
    };
    apply(common, plan)
}

/// The plan with what the command line says.
pub fn apply(common: &CommonArgs, plan: Plan) -> Result<Plan, Failure> {
    let processes = common.procs.unwrap_or(plan.processes);
    if processes > plan.ranks {
        return Err(Failure::usage(format!(
            "{processes} processes for {} ranks: give at most as many --procs as ranks",
            plan.ranks
        )));
    }
    let request = request(&common.launch, plan.request)?;
    let idle = common.idle_procs.unwrap_or(plan.idle);
    let launch = launch::resolve(&request, processes.saturating_add(idle), &OwnEnvironment)
        .map_err(|error| Failure::usage(error.to_string()))?;
    if launch.is_some() && (common.label || plan.label) {
        return Err(Failure::usage(
            "--label marks lines of processes on this machine only; let the launcher do it (--launch-args=--tag-output with Open MPI, -prepend-rank with MPICH, --label with srun)",
        ));
    }
    Ok(Plan {
        request,
        launch,
        walltime: launch::slurm::job(&OwnEnvironment).is_some(),
        processes,
        idle,
        every: every(common, plan.every)?,
        tracking: common.track.unwrap_or(plan.tracking),
        capture: common.capture.unwrap_or(plan.capture),
        memory_bytes: common.memory.or(plan.memory_bytes),
        keep: common.keep.unwrap_or(plan.keep),
        max_restarts: common.max_restarts.unwrap_or(plan.max_restarts),
        compression: common.compress.unwrap_or(plan.compression),
        heartbeat_timeout: common.heartbeat_timeout.unwrap_or(plan.heartbeat_timeout),
        strict: common.strict || plan.strict,
        label: common.label || plan.label,
        events: match &common.events {
            Some(path) => Some(absolute(path)?),
            None => plan.events.clone(),
        },
        ..plan
    })
}

/// How processes are to be launched: as the command line says, else as before.
fn request(args: &LaunchArgs, before: Request) -> Result<Request, Failure> {
    // What was said of other nodes, or to another launcher, is not meant for these.
    let before = match &args.hostfile {
        Some(_) => Request {
            nodes: None,
            spare_nodes: 0,
            min_nodes: None,
            ..before
        },
        None => before,
    };
    let before = match &args.how {
        Some(how) if before.launch.as_ref() != Some(how) => Request {
            arguments: None,
            ..before
        },
        _ => before,
    };
    let hostfile = match &args.hostfile {
        Some(path) => Some(absolute(path)?),
        // Nodes that are named for another way of launching are not meant for this one.
        None if args.how.as_deref() == Some("local") => None,
        None => before.hostfile,
    };
    Ok(Request {
        launch: args.how.clone().or(before.launch),
        hostfile,
        nodes: args.nodes.or(before.nodes),
        spare_nodes: args.spare_nodes.unwrap_or(before.spare_nodes),
        min_nodes: args.min_nodes.or(before.min_nodes),
        arguments: args.launch_args.clone().or(before.arguments),
        control_address: args.control_address.clone().or(before.control_address),
    })
}

/// Has the batch job started again, if that was asked for and the job can go on.
fn requeue(code: i32, output: &mut dyn Output) {
    if code != coord::code::RESUMABLE {
        return;
    }
    let Some(job) = launch::slurm::job(&OwnEnvironment) else {
        output.warning("--requeue-on-resumable: this is no Slurm job (SLURM_JOB_ID is not set)");
        return;
    };
    if let Err(reason) = launch::slurm::requeue(&job) {
        output.warning(&format!(
            "the batch job can't be put back into the queue: {reason}"
        ));
    }
}

/// When snapshots are taken: as the command line says, else as before.
fn every(common: &CommonArgs, before: Every) -> Result<Every, Failure> {
    let every = match common.every {
        None => before,
        Some(EveryArg::Off) => Every::Off,
        Some(EveryArg::Interval(interval)) => Every::Fixed(interval),
        Some(EveryArg::Auto) => Every::Auto(before.bounds()),
    };
    let Every::Auto(mut bounds) = every else {
        if common.every_min.is_some() || common.every_max.is_some() {
            return Err(Failure::usage(
                "--every-min and --every-max bound an interval that is chosen: give --every auto with them",
            ));
        }
        return Ok(every);
    };
    bounds.min = common.every_min.unwrap_or(bounds.min);
    bounds.max = common.every_max.unwrap_or(bounds.max);
    if bounds.min > bounds.max {
        return Err(Failure::usage(format!(
            "--every-min ({}) is longer than --every-max ({})",
            units::time(bounds.min),
            units::time(bounds.max)
        )));
    }
    Ok(Every::Auto(bounds))
}

fn resume(args: &RunArgs, show: Show, output: &mut dyn Output) -> Result<(i32, Report), Failure> {
    let recorded = JobStore::open(&args.store)?;
    let job = recorded.job();
    if job.ranks != args.ranks {
        return Err(Failure::usage(format!(
            "{}: the job there has {} ranks, not {}; give -n {}, or begin anew in another --store",
            shown(&args.store),
            job.ranks,
            args.ranks,
            job.ranks
        )));
    }
    if job.argv != args.program {
        output.warning(
            "the job in the store was started with other arguments; its ranks go on with those of its start",
        );
    }
    restart::go_on(&args.store, false, &args.common, show, output)
}

/// A store whose job never came to a checkpoint has nothing to lose, and makes room for a new job.
fn clear_if_unused(path: &Path) -> Result<(), Failure> {
    let store = JobStore::open_locked(path)?;
    if is_used(&store)? {
        return Err(Failure::usage(format!(
            "{}: the store holds checkpoints of a job; go on with it (`ckpt run --resume` or `ckpt restart`), remove it (`ckpt rm --all`), or use another --store",
            shown(path)
        )));
    }
    Ok(store.destroy()?)
}

/// Whether there is something to go on from, or to lose.
fn is_used(store: &JobStore) -> Result<bool, Failure> {
    let used = |state: &CheckpointState| !matches!(state, CheckpointState::Unpublished);
    let listing = store.list()?;
    Ok(record::is_complete(store.job())
        || listing.checkpoints.iter().any(|found| used(&found.state)))
}

fn is_store(path: &Path) -> bool {
    path.join(store::names::JOB).exists()
}

/// A path that means the same in every process.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::usage(format!("{}: {error}", shown(path))))
}
