//! `ckpt migrate`: moves a rank of a running job to another process, or to a node.

use coord::launch::hosts::called;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::control::{JobStatus, Request, Response};
use protocol::ids::{Process, Rank};
use protocol::migration::{MoveMode, Step};
use store::JobStore;

use super::{Show, ask, ask_and_watch, shown};
use crate::args::MigrateArgs;
use crate::failure::Failure;
use crate::output::Report;
use crate::report::MovedReport;

pub fn migrate(args: &MigrateArgs, show: Show) -> Result<Report, Failure> {
    let store = JobStore::open(&args.store)?;
    let rank = Rank(args.rank);
    let not_running = || {
        Failure::unavailable(format!(
            "{}: the job is not running, so {rank} can't be moved; `ckpt restart` starts it",
            shown(&args.store)
        ))
    };
    let to = match args.to.parse() {
        Ok(number) => Process(number),
        Err(_) => match ask(&store, &Request::Status)? {
            Some(Response::Status(status)) => least_laden(&status, &args.to, rank)?,
            Some(_) => return Err(not_asked()),
            None => return Err(not_running()),
        },
    };
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
        Some(_) => Err(not_asked()),
        None => Err(not_running()),
    }
}

fn not_asked() -> Failure {
    Failure::internal("the coordinator answered a question that was not asked")
}

/// The process of a node that has the fewest ranks, the first of them; the rank's own, where it is there already.
fn least_laden(status: &JobStatus, node: &str, rank: Rank) -> Result<Process, Failure> {
    let on_node = |host: &str| called([node], host).is_some();
    let numbers = (0..).map(Process).zip(&status.hosts);
    let processes: Vec<Process> = numbers
        .filter(|(_, host)| !host.is_empty() && on_node(host))
        .map(|(process, _)| process)
        .collect();
    let own = status.placement.get(rank.index());
    if let Some(own) = own.filter(|own| processes.contains(own)) {
        return Ok(*own);
    }
    let ranks = |process: &Process| status.placement.iter().filter(|it| *it == process).count();
    processes.into_iter().min_by_key(ranks).ok_or_else(|| {
        let mut hosts: Vec<&str> = status.hosts.iter().map(String::as_str).collect();
        hosts.sort_unstable();
        hosts.dedup();
        Failure::unavailable(format!(
            "{node} is no node of the job, and no number of a process; its processes are on {}",
            hosts.join(", ")
        ))
    })
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
            MoveMode::Checkpoint => "its checkpoint is read there",
            MoveMode::Safepoint => "waiting for a safepoint",
            _ => "it stands still and is copied",
        },
        Step::Spreading if mode == MoveMode::Postcopy => "it runs there, and its memory comes",
        Step::Spreading => "it runs there; the others learn of it",
        Step::Forgetting => "it runs there; its old place is cleared",
        Step::GivingUp => "given up; it goes on where it was",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_stands_for_its_process_with_the_fewest_ranks() {
        let status = JobStatus {
            hosts: ["node1", "node1", "node2.cluster", ""]
                .map(str::to_owned)
                .to_vec(),
            placement: [0, 0, 1, 2, 2, 2].map(Process).to_vec(),
            ..JobStatus::default()
        };
        let chosen = |node: &str, rank| least_laden(&status, node, Rank(rank));
        assert_eq!(chosen("node1", 3).unwrap(), Process(1));
        assert_eq!(chosen("node2", 0).unwrap(), Process(2));
        assert_eq!(chosen("node1", 0).unwrap(), Process(0), "it is there");
        let told = chosen("node3", 0).unwrap_err().message;
        assert!(
            told.contains("node3") && told.contains("node2.cluster"),
            "{told}"
        );
    }
}
