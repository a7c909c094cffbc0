//! How long a rank stands still when it is moved to another process that shares memory, and how long the move takes.
//!
//! The job is one of two processes. Rank 1 has all the memory, calls the library every fifth of a millisecond and writes to a share of
//! its pages every second; rank 0 waits for a message. Rank 1 moves back and forth. It stands still from the moment at which the
//! source freezes it until the target lets it run, by the library's clock, which both processes read alike. The longest pause is by its
//! own clock: the longest time from its asking to sleep until it has called the library and written, less the sleep, from the begin of the move until
//! after its end. Before a move out of a checkpoint one is taken. The reference in turn with each move is one thread that copies as many
//! bytes, to memory that was touched before, while the job is stopped.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::bed::{Bed, PATIENCE};
use tests::solver::Solver;

use crate::checkpoint::while_stopped;
use crate::pipeline::limits::Copies;
use crate::record::Record;
use crate::{Effort, jobs};

const MODES: [&str; 5] = ["stop", "precopy", "postcopy", "checkpoint", "auto"];

/// After a move it is waited so long for what its rank tells.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// Percent of the pages that are written every second.
const RATES: [u32; 4] = [0, 1, 10, 100];

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let folder = jobs::build(&["-p", "benches", "--bins", "-p", "ckpt-launcher"])?;
    let sizes: &[usize] = if effort.quick {
        &[64]
    } else {
        &[64, 256, 1024]
    };
    let mut records = Vec::new();
    for &mib in sizes {
        for rate in RATES {
            let name = match rate {
                0 => format!("{mib} MiB, idle"),
                100 => format!("{mib} MiB, all pages/s"),
                _ => format!("{mib} MiB, {rate}% of pages/s"),
            };
            let wanted = |words: &String| {
                words
                    .split_whitespace()
                    .all(|word| name.split([' ', ',']).any(|it| it == word))
            };
            if effort.cases.is_empty() || effort.cases.iter().any(wanted) {
                let of_case = case(&folder, &name, mib, rate, effort)?;
                effort.note(&of_case)?;
                records.extend(of_case);
            }
        }
    }
    Ok(records)
}

fn case(
    folder: &std::path::Path,
    name: &str,
    mib: usize,
    rate: u32,
    effort: &Effort,
) -> Result<Vec<Record>> {
    let samples = effort.samples.unwrap_or(if effort.quick { 2 } else { 7 });
    let mut bed = Bed::new()?;
    let mut binaries = bed.binaries().clone();
    folder.clone_into(&mut binaries.examples);
    bed = bed.with_binaries(binaries);
    let end = bed.join("end");
    let mut solver = Solver::new("bench-writer", 2, &format!("{mib} {rate}"));
    solver.arguments.push(end.display().to_string());
    let options = format!("--every off {}", effort.launcher);
    let mut job = bed.start_free(&solver, &options)?;
    job.wait_lines("its memory", 1, |line| line == "ready")?;
    let copies = Copies::new(1, mib << 20);
    let _ = copies.run_ms();
    let mut records = Vec::new();
    let mut to = 0;
    let mut copy = Vec::new();
    for mode in MODES {
        let [mut stood, mut pause, mut took, mut rounds] = [const { Vec::new() }; 4];
        for sample in 0..=samples {
            if mode == "checkpoint" {
                bed.json("checkpoint", &[])?;
            }
            let told = job.stdout().len();
            let words = ["1", "--to", &to.to_string(), "--mode", mode];
            let moved = bed.json("migrate", &words)?;
            to = 1 - to;
            // It looks when it has written, which may be in the middle of the move's end.
            std::thread::sleep(LOOK_AFTER);
            let pauses = job.stdout().split_off(told);
            let pauses = pauses
                .iter()
                .filter_map(|line| line.text.strip_prefix("pause ")?.parse::<f64>().ok());
            let longest_us = pauses.fold(0.0, f64::max);
            let copied_ms = while_stopped(&job, || copies.run_ms())?;
            // The first one warms up.
            if sample > 0 {
                let figure = |field: &str| moved[field].as_f64().context("a figure");
                stood.push(figure("stood_us")? / 1e3);
                pause.push(longest_us / 1e3);
                took.push(figure("took_us")? / 1e3);
                rounds.push(figure("rounds")?);
                copy.push(copied_ms);
            }
        }
        let case = format!("{name}, {mode}");
        let reference = Record::new(&case, "memcpy_ms", &copy);
        records.push(Record::new(&case, "stood_ms", &stood).against(&reference));
        records.push(Record::new(&case, "pause_ms", &pause));
        records.push(Record::new(&case, "took_ms", &took));
        records.push(Record::new(&case, "rounds", &rounds));
        records.push(reference);
        copy.clear();
    }
    std::fs::write(&end, "")?;
    job.wait(PATIENCE)?.expect_code(0)?;
    Ok(records)
}
