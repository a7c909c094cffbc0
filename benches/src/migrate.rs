//! How long a rank stands still when it is moved to another process, and how long the move takes.
//!
//! The job is one of two processes. Rank 1 has all the memory, calls the library every fifth of a millisecond and writes to a share of
//! its pages every second; rank 0 waits for a message. Rank 1 moves back and forth. It stands still from the moment at which the
//! source freezes it until the target lets it run. The longest pause is by its own clock: the longest time from its asking to sleep until
//! it has called the library and written, less the sleep, from the begin of the move until after its end. Before a move out of a
//! checkpoint one is taken.
//!
//! - On shared memory: by the library's clock, which both processes read alike. The reference in turn with each move is one thread that
//!   copies as many bytes, to memory that was touched before, while the job is stopped.
//! - Over MPI, between two nodes that are network namespaces of this machine (`tests::nodes`): the target counts from when the rank's
//!   description comes, and adds what the source says. The reference is a plain TCP connection over the same link, with one thread at
//!   each end, by which as many bytes are copied ([`crate::tcp`]). These cases are measured where no case is named, or one by its MPI.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tests::bed::{Bed, PATIENCE};
use tests::job::Job;
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::process;
use tests::solver::Solver;
use tests::wander::MODES;

use crate::checkpoint::while_stopped;
use crate::pipeline::limits::Copies;
use crate::record::Record;
use crate::tcp::Link;
use crate::{Effort, jobs};

/// After a move it is waited so long for what its rank tells.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// So long after a pause the launcher has passed on what a rank tells of it.
const TOLD_AFTER: Duration = Duration::from_millis(500);

/// Percent of the pages that are written every second.
const RATES: [u32; 4] = [0, 1, 10, 100];

const SOLVER: &str = "bench-writer";

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let mut records = memory(effort)?;
    for mpi in Mpi::ALL {
        records.extend(between_nodes(mpi, effort)?);
    }
    Ok(records)
}

/// A rank with so much memory that writes to so many percent of its pages every second.
struct Case {
    name: String,
    mib: usize,
    rate: u32,
    /// In these modes.
    modes: Vec<&'static str>,
}

impl Case {
    /// Those that are wanted. `place` is the last part of their names; a mode may be wanted alone, too.
    fn wanted(place: Option<&str>, effort: &Effort) -> Vec<Self> {
        let sizes: &[usize] = if effort.quick {
            &[64]
        } else {
            &[64, 256, 1024]
        };
        let all = sizes.iter().flat_map(|&mib| RATES.map(|rate| (mib, rate)));
        let named = all.map(|(mib, rate)| {
            let there = place.map_or(String::new(), |place| format!(", {place}"));
            let name = match rate {
                0 => format!("{mib} MiB, idle{there}"),
                100 => format!("{mib} MiB, all pages/s{there}"),
                _ => format!("{mib} MiB, {rate}% of pages/s{there}"),
            };
            let is_wanted = |mode: &&str| {
                let is_named = |words: &String| {
                    let has = |word: &str| {
                        let mut name = name.split([' ', ',']).chain([*mode]);
                        name.any(|it| it == word)
                    };
                    let names_place = place.is_none_or(|place| {
                        let mut words = words.split_whitespace();
                        words.any(|word| place.split(' ').any(|it| it == word))
                    });
                    names_place && words.split_whitespace().all(has)
                };
                effort.cases.is_empty() || effort.cases.iter().any(is_named)
            };
            let modes = MODES.iter().copied().filter(is_wanted).collect();
            Self {
                name,
                mib,
                rate,
                modes,
            }
        });
        named.filter(|case| !case.modes.is_empty()).collect()
    }

    /// The solver of it, which ends when the file is there.
    fn solver(&self, end: &Path) -> Solver {
        let mut solver = Solver::new(SOLVER, 2, &format!("{} {}", self.mib, self.rate));
        solver.arguments.push(end.display().to_string());
        solver
    }

    /// Moves rank 1 of a running job in each mode. `reference` does as much in another way, and gives how long that took, in
    /// milliseconds.
    fn measure(
        &self,
        (bed, job): (&Bed, &Job<'_>),
        (metric, reference): (&str, impl Fn() -> Result<f64>),
        effort: &Effort,
    ) -> Result<Vec<Record>> {
        let samples = effort.samples.unwrap_or(if effort.quick { 2 } else { 7 });
        let mut records = Vec::new();
        let mut to = 0;
        for &mode in &self.modes {
            let [mut stood, mut pause, mut took, mut rounds, mut other] = [const { Vec::new() }; 5];
            for sample in 0..=samples {
                if mode == "checkpoint" {
                    bed.json("checkpoint", &[])?;
                }
                // What it tells of having been stopped for the copy before is none of this move's.
                std::thread::sleep(LOOK_AFTER);
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
                let other_ms = reference()?;
                // The first one warms up.
                if sample > 0 {
                    let figure = |field: &str| moved[field].as_f64().context("a figure");
                    stood.push(figure("stood_us")? / 1e3);
                    pause.push(longest_us / 1e3);
                    took.push(figure("took_us")? / 1e3);
                    rounds.push(figure("rounds")?);
                    other.push(other_ms);
                }
            }
            let case = format!("{}, {mode}", self.name);
            let reference = Record::new(&case, metric, &other);
            records.push(Record::new(&case, "stood_ms", &stood).against(&reference));
            records.push(Record::new(&case, "pause_ms", &pause));
            records.push(Record::new(&case, "took_ms", &took));
            records.push(Record::new(&case, "rounds", &rounds));
            records.push(reference);
        }
        effort.note(&records)?;
        Ok(records)
    }
}

fn memory(effort: &Effort) -> Result<Vec<Record>> {
    let cases = Case::wanted(None, effort);
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    let folder = jobs::build_solver(None, SOLVER)?;
    let mut records = Vec::new();
    for case in cases {
        let bed = Bed::new()?;
        let binaries = bed.binaries().with_examples(&folder);
        let bed = bed.with_binaries(binaries);
        let end = bed.join("end");
        let options = format!("--every off {}", effort.launcher);
        let mut job = bed.start_free(&case.solver(&end), &options)?;
        job.wait_lines("its memory", 1, |line| line == "ready")?;
        let copies = Copies::new(1, case.mib << 20);
        let _ = copies.run_ms();
        let reference = || while_stopped(&job, || copies.run_ms());
        records.extend(case.measure((&bed, &job), ("memcpy_ms", reference), effort)?);
        std::fs::write(&end, "")?;
        job.wait(PATIENCE)?.expect_code(0)?;
    }
    Ok(records)
}

/// The nodes by number of which the job has a process each.
const NODES: [usize; 2] = [1, 2];

fn between_nodes(mpi: Mpi, effort: &Effort) -> Result<Vec<Record>> {
    let place = mpi.to_string().to_lowercase();
    let cases = Case::wanted(Some(&place), effort);
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(why) = tests::nodes::missing().or_else(|| mpi.missing()) {
        eprintln!("SKIPPED between nodes over {mpi}: {why}");
        return Ok(Vec::new());
    }
    let folder = jobs::build_solver(Some(mpi), SOLVER)?;
    let mut records = Vec::new();
    for case in cases {
        let cluster = Cluster::up(3)?.with_mpirun(mpi)?;
        let binaries = cluster.binaries().with_examples(&folder);
        let cluster = cluster.with_binaries(binaries);
        let end = cluster.join("end");
        let hosts = cluster.nodes().hostfile(&NODES, 1)?;
        let options = format!(
            "--launch mpirun --hostfile {} --every off {}",
            hosts.display(),
            effort.launcher
        );
        let mut job = cluster.start_free(&case.solver(&end), &options)?;
        job.wait_lines("its memory", 1, |line| line == "ready")?;
        let link = Link::between(&cluster, NODES, case.mib << 20)?;
        let reference = || {
            let pids = cluster.running(SOLVER);
            let signal = |signal| pids.iter().try_for_each(|&pid| process::send(pid, signal));
            signal(Signal::SIGSTOP)?;
            let copied = link.copy_ms();
            signal(Signal::SIGCONT)?;
            // What rank 1 tells of this pause comes through the launcher, and is none of the next move's.
            std::thread::sleep(TOLD_AFTER);
            copied
        };
        records.extend(case.measure((&cluster, &job), ("tcp_ms", reference), effort)?);
        std::fs::write(&end, "")?;
        job.wait(PATIENCE)?.expect_code(0)?;
    }
    Ok(records)
}
