//! Output for people: results on standard output, everything about a running job on standard error.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use super::{Output, Report};
use crate::failure::Failure;
use crate::report::{
    CheckpointRow, ComputingRow, DamagedRow, DrainReport, DrainedRow, FileRow, IntervalRow,
    ListReport, MovedReport, NeededRow, ObjectRow, ProcessRow, PsReport, RankRow, RemovedReport,
    RunReport, RunningReport, ShowReport, StatusReport, TakenReport, TotalsRow, UndrainReport,
    VerifyReport,
};
use crate::units;

pub struct People;

impl Output for People {
    fn warning(&mut self, text: &str) {
        let _ = writeln!(std::io::stderr(), "ckpt: warning: {text}");
    }

    fn report(&mut self, _command: &str, _code: i32, report: &Report) {
        if let Report::Run(run) = report {
            let _ = writeln!(std::io::stderr(), "ckpt: {}", tell_run(run));
            return;
        }
        let _ = write!(std::io::stdout(), "{}", tell(report));
    }

    fn failure(&mut self, _command: &str, failure: &Failure) {
        let _ = writeln!(std::io::stderr(), "ckpt: error: {}", failure.message);
    }
}

fn tell(report: &Report) -> String {
    match report {
        Report::Run(run) => tell_run(run),
        Report::List(list) => tell_list(list),
        Report::Show(show) => tell_show(show),
        Report::Verify(verify) => tell_verify(verify),
        Report::Taken(TakenReport { store: _, epoch }) => format!("epoch {epoch} is committed\n"),
        Report::Status(status) => tell_status(status),
        Report::Moved(moved) => tell_moved(moved),
        Report::Processes(ps) => tell_processes(ps),
        Report::Drained(drain) => tell_drained(drain),
        Report::Undrained(undrain) => tell_undrained(undrain),
        Report::Removed(removed) => tell_removed(removed),
    }
}

fn tell_run(run: &RunReport) -> String {
    let RunReport {
        job: _,
        store: _,
        outcome: _,
        message,
        ranks: _,
        processes: _,
        restarts: _,
        committed: _,
        elapsed_ms,
    } = run;
    let elapsed = units::time(Duration::from_millis(*elapsed_ms));
    format!("{message} ({elapsed})")
}

fn tell_list(list: &ListReport) -> String {
    let ListReport {
        store: _,
        job,
        program,
        ranks,
        complete,
        checkpoints,
        totals,
    } = list;
    let mut text = format!(
        "job {job}: {ranks} ranks of {}{}\n",
        program.join(" "),
        if *complete { ", complete" } else { "" }
    );
    // Numbers that were used up by snapshots which came to nothing are of no use to people.
    let mut checkpoints = checkpoints
        .iter()
        .filter(|row| row.state != "unpublished")
        .peekable();
    if checkpoints.peek().is_none() {
        text.push_str("no checkpoints\n");
        return text;
    }
    let _ = writeln!(
        text,
        "{:>6}  {:<11} {:<20} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9}  NEEDS",
        "EPOCH", "STATE", "COMMITTED", "LOGICAL", "CHANGED", "STORED", "STALL", "WAITS", "TOOK"
    );
    for row in checkpoints {
        let _ = writeln!(text, "{}", tell_row(row));
    }
    let TotalsRow {
        usable,
        raw_bytes,
        file_bytes,
        needed_bytes,
    } = totals;
    let _ = write!(
        text,
        "{usable} usable checkpoints of {} in files of {}",
        units::bytes(*raw_bytes),
        units::bytes(*file_bytes)
    );
    let _ = match needed_bytes {
        0 => writeln!(text),
        bytes => writeln!(
            text,
            ", {} of them of older checkpoints",
            units::bytes(*bytes)
        ),
    };
    text
}

/// Epochs in few words.
fn tell_epochs(epochs: &[u64]) -> String {
    match epochs {
        [] => "-".to_owned(),
        [first, .., last] if epochs.len() > 4 => {
            format!("{} from {first} to {last}", epochs.len())
        }
        few => {
            let few: Vec<String> = few.iter().map(u64::to_string).collect();
            few.join(" ")
        }
    }
}

fn tell_row(row: &CheckpointRow) -> String {
    let CheckpointRow {
        epoch,
        state,
        reason,
        incarnation: _,
        committed_unix_ms,
        file_bytes,
        raw_bytes,
        changed_bytes,
        stall_us,
        faults: _,
        waited_us,
        longest_us: _,
        took_us,
        parent: _,
        needs_epochs,
        needed_by: _,
    } = row;
    let mut text = format!("{epoch:>6}  {state:<11}");
    if let Some(moment) = committed_unix_ms {
        let _ = write!(
            text,
            " {:<20} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9}  {}",
            units::moment(*moment),
            units::bytes(*raw_bytes),
            units::bytes(*changed_bytes),
            units::bytes(*file_bytes),
            units::time_us(*stall_us),
            units::time_us(*waited_us),
            units::time_us(*took_us),
            tell_epochs(needs_epochs)
        );
    }
    if let Some(reason) = reason {
        let _ = write!(text, " {reason}");
    }
    text
}

fn tell_show(show: &ShowReport) -> String {
    let ShowReport {
        store: _,
        job,
        checkpoint,
        from,
        programs,
        files,
        needs,
    } = show;
    let CheckpointRow {
        epoch,
        state,
        reason,
        incarnation,
        committed_unix_ms,
        file_bytes,
        raw_bytes,
        changed_bytes,
        stall_us,
        faults,
        waited_us,
        longest_us,
        took_us,
        parent,
        needs_epochs,
        needed_by,
    } = checkpoint;
    let mut text = format!("epoch {epoch} of job {job}: {state}\n");
    if let Some(reason) = reason {
        let _ = writeln!(text, "  why        {reason}");
    }
    if let Some(moment) = committed_unix_ms {
        let _ = writeln!(text, "  committed  {}", units::moment(*moment));
    }
    if let Some(incarnation) = incarnation {
        let from = match from {
            Some(from) => format!("from epoch {from}"),
            None => "from the beginning".to_owned(),
        };
        let _ = writeln!(
            text,
            "  taken by   incarnation {incarnation}, started {from}"
        );
    }
    let _ = writeln!(
        text,
        "  files      {} for {} changed, images of {}",
        units::bytes(*file_bytes),
        units::bytes(*changed_bytes),
        units::bytes(*raw_bytes)
    );
    if let Some(parent) = parent {
        let _ = writeln!(
            text,
            "  builds on  epoch {parent}, with files of epochs {}",
            tell_epochs(needs_epochs)
        );
    }
    let _ = writeln!(
        text,
        "  cost       ranks stood still for {}, committed after {}",
        units::time_us(*stall_us),
        units::time_us(*took_us)
    );
    if !needed_by.is_empty() {
        let _ = writeln!(text, "  needed by  epochs {}", tell_epochs(needed_by));
    }
    if *faults > 0 {
        let _ = writeln!(
            text,
            "  waits      {faults} writes waited {} for pages to be saved, the longest {}",
            units::time_us(*waited_us),
            units::time_us(*longest_us)
        );
    }
    for ObjectRow {
        path,
        build_id,
        address,
    } in programs
    {
        let _ = writeln!(
            text,
            "  object     {path} at {address:#x}, build {build_id}"
        );
    }
    for FileRow {
        rank,
        name,
        file_bytes,
        raw_bytes,
        changed_bytes,
        digest,
    } in files
    {
        let _ = writeln!(
            text,
            "  rank {rank:<5} {name}  {} for {} of {}  {digest}",
            units::bytes(*file_bytes),
            units::bytes(*changed_bytes),
            units::bytes(*raw_bytes)
        );
    }
    for NeededRow {
        rank,
        epoch: _,
        name,
        file_bytes,
        digest,
    } in needs
    {
        let _ = writeln!(
            text,
            "  needs      {name} of rank {rank}, {}  {digest}",
            units::bytes(*file_bytes)
        );
    }
    text
}

fn tell_verify(verify: &VerifyReport) -> String {
    let VerifyReport {
        store,
        sound,
        files,
        file_bytes,
        damaged,
        strays,
    } = verify;
    let mut text = String::new();
    for DamagedRow {
        path,
        reason,
        checkpoints,
    } in damaged
    {
        let _ = write!(text, "damaged  {path}: {reason}");
        let _ = match checkpoints.len() {
            0 => writeln!(text),
            _ => writeln!(text, " (checkpoints {})", tell_epochs(checkpoints)),
        };
    }
    for stray in strays {
        let _ = writeln!(text, "stray    {stray}");
    }
    let bytes = units::bytes(*file_bytes);
    let _ = match sound {
        true => writeln!(text, "{store}: {files} files, {bytes}: all as written"),
        false => writeln!(
            text,
            "{store}: {} of {files} files damaged; a restart passes over their checkpoints",
            damaged.len()
        ),
    };
    text
}

fn tell_status(status: &StatusReport) -> String {
    let StatusReport {
        store: _,
        job,
        running,
        complete,
        committed,
        status,
    } = status;
    let mut text = format!("job {job}: ");
    let last = match committed {
        Some(epoch) => format!("the last checkpoint is epoch {epoch}"),
        None => "no checkpoint yet".to_owned(),
    };
    let Some(details) = status.as_ref().filter(|_| *running) else {
        let state = if *complete { "complete" } else { "not running" };
        let _ = writeln!(text, "{state}; {last}");
        return text;
    };
    let RunningReport {
        phase,
        incarnation,
        ranks,
        finished,
        pids,
        hosts,
        placement,
        restarts,
        snapshot,
        computing,
        memory_bytes,
        interval,
        next_ms,
        elapsed_ms,
    } = details;
    let elapsed = units::time(Duration::from_millis(*elapsed_ms));
    let _ = writeln!(
        text,
        "{phase} for {elapsed} (incarnation {incarnation}, {restarts} restarts)"
    );
    let _ = writeln!(text, "  ranks      {ranks}, {finished} finished");
    let several_hosts = hosts.windows(2).any(|pair| pair[0] != pair[1]);
    for (process, pid) in pids.iter().enumerate() {
        let hosted: Vec<String> = (0u32..)
            .zip(placement)
            .filter(|&(_, host)| *host as usize == process)
            .map(|(rank, _)| rank.to_string())
            .collect();
        let host = match hosts.get(process) {
            Some(host) if several_hosts => format!(" on {host}"),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "  process {process:<3}pid {pid}{host}, ranks {}",
            hosted.join(" ")
        );
    }
    let _ = writeln!(text, "  checkpoint {last}");
    if let Some(epoch) = snapshot {
        let _ = writeln!(text, "  snapshot   epoch {epoch} is under way");
    }
    let _ = writeln!(text, "  interval   {}", tell_interval(interval));
    if let Some(next_ms) = next_ms {
        let next = units::time(Duration::from_millis(*next_ms));
        let _ = writeln!(text, "  next       in {next}");
    }
    let memory = units::bytes(*memory_bytes);
    let _ = writeln!(
        text,
        "  memory     up to {memory} in each process for storing checkpoints"
    );
    for ComputingRow { rank, since_ms } in computing {
        let since = units::time(Duration::from_millis(*since_ms));
        let _ = writeln!(
            text,
            "  computing  rank {rank} has not called the library for {since}"
        );
    }
    text
}

/// The interval, why it is that, and what there is to choose it by.
fn tell_interval(interval: &IntervalRow) -> String {
    let IntervalRow {
        every_ms,
        ground,
        cost_us,
        durable_us,
        mtbf_ms,
        failures,
        ran_ms,
    } = interval;
    let time = |ms: u64| units::time(Duration::from_millis(ms));
    let mut text = match every_ms {
        None => "off".to_owned(),
        Some(every_ms) => time(*every_ms),
    };
    text.push_str(match *ground {
        "unmeasured" => ", the shortest: too few checkpoints are measured yet",
        "optimum" => ", the optimum of cost and failures",
        "durable" => ", the time that one takes to be committed",
        "shortest" => ", the shortest allowed",
        "longest" => ", the longest allowed",
        _ => "",
    });
    if let (Some(cost_us), Some(durable_us)) = (cost_us, durable_us) {
        let _ = write!(
            text,
            "; one holds ranks up for {}, committed after {}",
            units::time_us(*cost_us),
            units::time_us(*durable_us)
        );
    }
    let _ = write!(
        text,
        "; a failure every {} assumed, {failures} seen in {}",
        time(*mtbf_ms),
        time(*ran_ms)
    );
    text
}

fn tell_moved(moved: &MovedReport) -> String {
    let MovedReport {
        store: _,
        rank,
        from,
        to,
        image_bytes,
        stood_us,
        took_us,
        mode,
        rounds,
    } = moved;
    if from == to {
        return format!("rank {rank} is in process {to} already\n");
    }
    let how = match rounds {
        0 => mode.clone(),
        1 => format!("{mode}, 1 round"),
        rounds => format!("{mode}, {rounds} rounds"),
    };
    format!(
        "rank {rank} has moved from process {from} to process {to} ({how}): {}, stood still for {}, took {}\n",
        units::bytes(*image_bytes),
        units::time_us(*stood_us),
        units::time_us(*took_us)
    )
}

fn tell_processes(ps: &PsReport) -> String {
    let PsReport {
        store: _,
        job,
        processes,
        ranks,
    } = ps;
    let mut text = format!(
        "job {job}: {} ranks in {} processes\n",
        ranks.len(),
        processes.len()
    );
    let _ = writeln!(
        text,
        "{:>6} {:>8} {:>8}  {:<16} {:>10} {:>6} {:>8}  STATE",
        "RANK", "PROCESS", "PID", "NODE", "IMAGE", "LOAD", "MSG/S"
    );
    let of = |process: u32| processes.iter().find(|row| row.process == process);
    for rank in ranks {
        let (pid, node) = of(rank.process).map_or((0, ""), |row| (row.pid, row.node.as_str()));
        let RankRow {
            rank,
            process,
            finished,
            moving_to,
            image_bytes,
            load_permille,
            messages_per_s,
        } = rank;
        let state = match (moving_to, finished) {
            (Some(to), _) => format!("moves to process {to}"),
            (None, true) => "finished".to_owned(),
            (None, false) => "runs".to_owned(),
        };
        let _ = writeln!(
            text,
            "{rank:>6} {process:>8} {pid:>8}  {node:<16} {:>10} {:>6} {:>8}  {state}",
            image_bytes.map_or_else(|| "-".to_owned(), units::bytes),
            load_permille.map_or_else(|| "-".to_owned(), |load| format!("{}%", (load + 5) / 10)),
            messages_per_s.map_or_else(|| "-".to_owned(), |rate| rate.to_string()),
        );
    }
    for row in processes {
        let ProcessRow {
            process,
            pid,
            node,
            standing,
        } = row;
        let hosts_none = ranks.iter().all(|rank| rank.process != *process);
        let state = match *standing {
            "member" if hosts_none => "idle",
            "member" => continue,
            other => other,
        };
        let _ = writeln!(
            text,
            "{:>6} {process:>8} {pid:>8}  {node:<16} {:>10} {:>6} {:>8}  {state}",
            "-", "-", "-", "-"
        );
    }
    text
}

fn tell_drained(drain: &DrainReport) -> String {
    let DrainReport {
        store: _,
        what,
        processes,
        ranks,
        done,
    } = drain;
    let mut text = String::new();
    let goes = if *done { "has moved" } else { "moves" };
    for DrainedRow { rank, from, to } in ranks {
        let _ = writeln!(
            text,
            "rank {rank} {goes} from process {from} to process {to}"
        );
    }
    let processes: Vec<String> = processes.iter().map(u32::to_string).collect();
    let these = match processes.len() {
        0 => "it has no process".to_owned(),
        1 => format!("process {}", processes.join("")),
        _ => format!("processes {}", processes.join(", ")),
    };
    let _ = match done {
        true => writeln!(
            text,
            "{what} is drained ({these}): nothing of the job is left there"
        ),
        false => writeln!(
            text,
            "{what} is being drained ({these}); `ckpt ps` shows how far that is"
        ),
    };
    text
}

fn tell_undrained(undrain: &UndrainReport) -> String {
    let UndrainReport {
        store: _,
        what,
        processes: _,
        out,
    } = undrain;
    match out.is_empty() {
        true => format!("{what} may be used again\n"),
        false => format!("{what} may be used again, from the next start of the job on\n"),
    }
}

fn tell_removed(removed: &RemovedReport) -> String {
    let RemovedReport { store, epochs, all } = removed;
    if *all {
        return format!("{store} is removed\n");
    }
    epochs
        .iter()
        .map(|epoch| format!("epoch {epoch} is removed\n"))
        .collect()
}
