//! The commands. Each makes a [`Report`] or fails; how that is shown is not its affair.

mod checkpoint;
mod drain;
mod ls;
mod migrate;
mod ps;
mod restart;
mod rm;
mod run;
mod show;
mod status;
mod verify;

use std::collections::BTreeSet;
use std::path::Path;

use coord::client::{self, ClientError};
use coord::token::Token;
use protocol::control::{Request, Response};
use protocol::migration::Step;
use store::{Checkpoint, CheckpointState, JobStore, Manifest};
use wire::Address;

use crate::args::Command;
use crate::failure::Failure;
use crate::output::{Output, Report};
use crate::progress;
use crate::report::CheckpointRow;

/// How much is shown while a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// What people want to see.
    People,
    /// Nothing; warnings go into the record.
    Record,
    /// Nothing.
    Nothing,
}

/// Does a command; the result and the exit code.
pub fn execute(
    command: &Command,
    show: Show,
    output: &mut dyn Output,
) -> Result<(i32, Report), Failure> {
    match command {
        Command::Run(args) => run::run(args, show, output),
        Command::Restart(args) => restart::restart(args, show, output),
        Command::Ls(args) => ls::ls(&args.store, output).map(done),
        Command::Show(args) => show::show(&args.store, args.epoch).map(done),
        Command::Verify(args) => verify::verify(&args.store),
        Command::Checkpoint(args) => checkpoint::checkpoint(&args.store).map(done),
        Command::Status(args) => status::status(&args.store).map(done),
        Command::Migrate(args) => migrate::migrate(args, show).map(done),
        Command::Ps(args) => ps::ps(&args.store).map(done),
        Command::Drain(args) => drain::drain(args, show).map(done),
        Command::Undrain(args) => drain::undrain(args).map(done),
        Command::Rm(args) => rm::rm(args).map(done),
    }
}

fn done(report: Report) -> (i32, Report) {
    (0, report)
}

/// Runs a job and shows it on the way.
fn run_job(
    plan: &coord::Plan,
    store: JobStore,
    show: Show,
    output: &mut dyn Output,
) -> Result<coord::Outcome, Failure> {
    match show {
        Show::People => Ok(coord::run(plan, store, &mut *progress::for_people())?),
        Show::Nothing => Ok(coord::run(plan, store, &mut coord::event::Unobserved)?),
        Show::Record => {
            let mut warnings = progress::Warnings::default();
            let outcome = coord::run(plan, store, &mut warnings);
            for text in warnings.texts {
                output.warning(&text);
            }
            Ok(outcome?)
        }
    }
}

/// Asks the coordinator of a running job; `None` if there is none.
fn ask(store: &JobStore, request: &Request) -> Result<Option<Response>, Failure> {
    ask_and_watch(store, request, &mut |_| ())
}

/// The same for a request that takes its time; `watch` is told of its steps.
fn ask_and_watch(
    store: &JobStore,
    request: &Request,
    watch: &mut dyn FnMut(Step),
) -> Result<Option<Response>, Failure> {
    let mut steps = |response: &Response| {
        if let Response::Moving { step } = response {
            watch(*step);
        }
    };
    ask_and_follow(store, request, &mut steps)
}

/// The same; `follow` is told of every response before the last.
fn ask_and_follow(
    store: &JobStore,
    request: &Request,
    follow: &mut dyn FnMut(&Response),
) -> Result<Option<Response>, Failure> {
    let Some(control) = store.read_control()? else {
        return Ok(None);
    };
    let address: Address = control
        .address
        .parse()
        .map_err(|error| Failure::internal(format!("the control file: {error}")))?;
    let token = Token::from_bytes(control.token);
    match client::ask_and_follow(&address, &token, request, None, follow) {
        Ok(response) => Ok(Some(response)),
        // Left by a coordinator that was lost.
        Err(ClientError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn row(checkpoint: &Checkpoint) -> CheckpointRow {
    let (state, reason) = match &checkpoint.state {
        CheckpointState::Committed => ("committed", None),
        CheckpointState::Bad { reason } => ("bad", Some(reason.clone())),
        CheckpointState::Ignored { newer } => (
            "ignored",
            Some(format!("{newer} of the job began before it")),
        ),
        CheckpointState::Unreadable { error } => ("unreadable", Some(error.to_string())),
        CheckpointState::Unpublished => ("unpublished", None),
    };
    let row = CheckpointRow {
        epoch: checkpoint.epoch.0,
        state: state.to_owned(),
        reason,
        needed_by: checkpoint.needed_by.iter().map(|epoch| epoch.0).collect(),
        ..CheckpointRow::default()
    };
    match &checkpoint.manifest {
        Some(manifest) => with_manifest(row, manifest),
        None => row,
    }
}

fn with_manifest(row: CheckpointRow, manifest: &Manifest) -> CheckpointRow {
    let needed: BTreeSet<u64> = manifest.needs.iter().map(|need| need.epoch.0).collect();
    CheckpointRow {
        incarnation: Some(manifest.incarnation.0),
        committed_unix_ms: Some(manifest.committed_unix_ms),
        file_bytes: manifest.figures.stored_bytes,
        raw_bytes: manifest.figures.raw_bytes,
        changed_bytes: manifest.figures.changed_bytes,
        stall_us: manifest.figures.stall_us,
        faults: manifest.figures.faults,
        waited_us: manifest.figures.waited_us,
        longest_us: manifest.figures.longest_us,
        took_us: manifest.figures.elapsed_us,
        parent: manifest.parent.map(|parent| parent.epoch.0),
        needs_epochs: needed.into_iter().collect(),
        ..row
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
