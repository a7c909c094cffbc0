//! `ckpt migrate`: moves a rank of a running job to another process.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::control::{Request, Response};
use protocol::ids::{Process, Rank};
use protocol::migration::{MoveMode, Step};
use store::JobStore;

use super::{Show, ask_and_watch, shown};
use crate::args::MigrateArgs;
use crate::failure::Failure;
use crate::output::Report;
use crate::report::MovedReport;

pub fn migrate(args: &MigrateArgs, show: Show) -> Result<Report, Failure> {
    if matches!(args.mode, MoveMode::Postcopy | MoveMode::Checkpoint) {
        return Err(Failure::usage(
            "this mode is not there yet; there are stop, precopy, safepoint and auto",
        ));
    }
    let store = JobStore::open(&args.store)?;
    let (rank, to) = (Rank(args.rank), Process(args.to));
    let mode = args.mode;
    let within_us = args
        .within
        .map(|within| u64::try_from(within.as_micros()).unwrap_or(u64::MAX));
    let request = Request::Migrate {
        rank,
        to,
        mode,
        within_us,
    };
    let line = (show == Show::People).then(|| progress_line(rank, to));
    let mut watch = |step: Step| {
        if let Some(line) = &line {
            line.set_message(in_words(step, mode));
        }
    };
    let answer = ask_and_watch(&store, &request, &mut watch);
    if let Some(line) = &line {
        line.finish_and_clear();
    }
    match answer? {
        Some(Response::Moved {
            from,
            to,
            image_bytes,
            stood_us,
            took_us,
            mode,
            rounds,
        }) => Ok(Report::Moved(MovedReport {
            store: shown(&args.store),
            rank: rank.0,
            from: from.0,
            to: to.0,
            image_bytes,
            stood_us,
            took_us,
            mode: mode.to_string(),
            rounds,
        })),
        Some(Response::Failed { reason }) => Err(Failure::unavailable(format!(
            "{}: {rank} was not moved: {reason}",
            shown(&args.store)
        ))),
        Some(_) => Err(Failure::internal(
            "the coordinator answered a question that was not asked",
        )),
        None => Err(Failure::unavailable(format!(
            "{}: the job is not running, so {rank} can't be moved; `ckpt restart` starts it",
            shown(&args.store)
        ))),
    }
}

/// A line on a terminal; nothing elsewhere.
fn progress_line(rank: Rank, to: Process) -> ProgressBar {
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = format!("{{spinner}} ckpt: {rank} to {to}: {{wide_msg}}");
    // A wrong template would show as the default style.
    if let Ok(style) = ProgressStyle::with_template(&template) {
        line.set_style(style);
    }
    line.enable_steady_tick(std::time::Duration::from_millis(100));
    line.set_message("waiting for its turn");
    line
}

fn in_words(step: Step, mode: MoveMode) -> &'static str {
    match step {
        Step::Examining => "looking what pins it",
        Step::Preparing => "making room",
        Step::Transferring => match mode {
            MoveMode::Precopy | MoveMode::Auto => "it is copied",
            MoveMode::Safepoint => "waiting for a safepoint",
            _ => "it stands still and is copied",
        },
        Step::Spreading => "it runs there; the others learn of it",
        Step::Forgetting => "it runs there; its old place is cleared",
        Step::GivingUp => "given up; it goes on where it was",
    }
}
