//! `ckpt drain` and `ckpt undrain`: a node or process that is to be used no more, or again.

use coord::record;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::control::{Request, Response};
use store::JobStore;

use super::{Show, ask, ask_and_follow, shown};
use crate::args::{DrainArgs, UndrainArgs};
use crate::failure::Failure;
use crate::output::Report;
use crate::report::{DrainReport, DrainedRow, UndrainReport};

pub fn drain(args: &DrainArgs, show: Show) -> Result<Report, Failure> {
    let DrainArgs { store, what, wait } = args;
    let place = shown(store);
    let store = JobStore::open(store)?;
    let request = Request::Drain {
        what: what.clone(),
        wait: *wait,
    };
    let bar = (show == Show::People && *wait).then(|| progress_bar(what));
    let mut follow = |response: &Response| {
        if let (Some(bar), Response::Draining { done, all }) = (&bar, response) {
            bar.set_length(u64::from(*all));
            bar.set_position(u64::from(*done));
        }
    };
    let answer = ask_and_follow(&store, &request, &mut follow);
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    match answer? {
        Some(Response::Drained(drained)) => Ok(Report::Drained(DrainReport {
            store: place,
            what: what.clone(),
            processes: drained.processes.iter().map(|process| process.0).collect(),
            ranks: drained
                .ranks
                .iter()
                .map(|rank| DrainedRow {
                    rank: rank.rank.0,
                    from: rank.from.0,
                    to: rank.to.0,
                })
                .collect(),
            done: drained.done,
        })),
        Some(Response::Failed { reason }) => {
            Err(Failure::unavailable(format!("{place}: {reason}")))
        }
        Some(_) => Err(Failure::internal(
            "the coordinator answered a question that was not asked",
        )),
        None => Err(Failure::unavailable(format!(
            "{place}: the job is not running, so nothing of it can be drained; `ckpt restart` starts it"
        ))),
    }
}

pub fn undrain(args: &UndrainArgs) -> Result<Report, Failure> {
    let UndrainArgs { store: path, what } = args;
    let place = shown(path);
    let store = JobStore::open(path)?;
    let request = Request::Undrain { what: what.clone() };
    match ask(&store, &request)? {
        Some(Response::Undrained { processes, out }) => Ok(Report::Undrained(UndrainReport {
            store: place,
            what: what.clone(),
            processes: processes.iter().map(|process| process.0).collect(),
            out: out.iter().map(|process| process.0).collect(),
        })),
        Some(Response::Failed { reason }) => {
            Err(Failure::unavailable(format!("{place}: {reason}")))
        }
        Some(_) => Err(Failure::internal(
            "the coordinator answered a question that was not asked",
        )),
        None => {
            // The nodes of a job that does not run are in its record.
            drop(store);
            let mut store = JobStore::open_locked(path)?;
            let mut job = store.job().clone();
            let mut names = record::drained_nodes(&job);
            let before = names.len();
            names.retain(|name| name != what);
            if names.len() == before {
                let drained = match names.is_empty() {
                    true => "no node is drained".to_owned(),
                    false => format!("drained are {}", names.join(", ")),
                };
                return Err(Failure::unavailable(format!(
                    "{place}: {what} is not drained: {drained}"
                )));
            }
            record::set_drained_nodes(&mut job, &names);
            store.replace_job(job)?;
            Ok(Report::Undrained(UndrainReport {
                store: place,
                what: what.clone(),
                processes: Vec::new(),
                out: Vec::new(),
            }))
        }
    }
}

/// A bar on a terminal; nothing elsewhere.
fn progress_bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
    let what = what.replace(['{', '}'], "");
    let template =
        format!("ckpt: draining {what} {{bar:30}} {{pos}} of {{len}} ranks and processes");
    // A wrong template would show as the default style.
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}
