//! Half a round trip of a message between two ranks before they have moved, after ten moves of each, when they are where they
//! were started, and after one more of each, when each is where the other was.
//!
//! Jobs of two processes, on shared memory and over each MPI on this node. Ranks change places: one comes to the other's process,
//! and that one goes to the first's. In turn with each such job runs one whose ranks stay, looked at in the same three turns: how far its later turns are from its first is what
//! the machine does by itself. Every figure is the median of the windows of a turn; a ratio is of one job's turns.

use std::path::Path;

use anyhow::{Context as _, Result};
use tests::bed::{Bed, PATIENCE};
use tests::job::Job;
use tests::nodes::cluster::Cluster;
use tests::nodes::mpi::Mpi;
use tests::solver::Solver;

use crate::record::Record;
use crate::{Effort, jobs};

const SOLVER: &str = "bench-latency";

const SIZES: [&str; 2] = ["8B", "64KiB"];

/// Windows of each size in a turn, and those before that are left out.
const WINDOWS: usize = 40;
const WARM_UP: usize = 10;

/// How often the ranks have changed places before each turn.
const CHANGES: [usize; 3] = [0, 10, 1];

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for place in [None, Some(Mpi::OpenMpi), Some(Mpi::Mpich)] {
        let name = place.map_or("shared memory".to_owned(), |mpi| {
            mpi.to_string().to_lowercase()
        });
        let is_named = |words: &String| words.split(' ').all(|word| name.contains(word));
        if !effort.cases.is_empty() && !effort.cases.iter().any(is_named) {
            continue;
        }
        let missing = |mpi: Mpi| tests::nodes::missing().or_else(|| mpi.missing());
        if let Some(why) = place.and_then(missing) {
            eprintln!("SKIPPED {name}: {why}");
            continue;
        }
        records.extend(at(place, &name, effort)?);
    }
    Ok(records)
}

/// Jobs on shared memory, or over an MPI.
fn at(place: Option<Mpi>, name: &str, effort: &Effort) -> Result<Vec<Record>> {
    let folder = jobs::build_solver(place, SOLVER)?;
    let samples = effort.samples.unwrap_or(if effort.quick { 3 } else { 15 });
    // By whether ranks move, and size: the figures of each job's turns.
    let mut figures = [(); 2].map(|()| [const { Vec::new() }; SIZES.len()]);
    for _ in 0..samples {
        for (moves, figures) in figures.iter_mut().enumerate() {
            let of_job = run(place, &folder, effort, moves == 1)?;
            for (index, figures) in figures.iter_mut().enumerate() {
                figures.push(of_job.each_ref().map(|turn| turn[index]));
            }
        }
    }
    let mut records = Vec::new();
    for (moves, figures) in ["ranks that stay", "ranks that move"].iter().zip(&figures) {
        for (size, jobs) in SIZES.iter().zip(figures) {
            let case = format!("{size}, {name}, {moves}");
            let us = |turn: usize| jobs.iter().map(|job| job[turn]).collect::<Vec<_>>();
            let ratio = |turn: usize| {
                jobs.iter()
                    .map(|job| job[turn] / job[0])
                    .collect::<Vec<_>>()
            };
            for (turn, name) in ["before_us", "home_us", "elsewhere_us"].iter().enumerate() {
                records.push(Record::new(&case, name, &us(turn)));
            }
            records.push(Record::new(&case, "home_ratio", &ratio(1)));
            records.push(Record::new(&case, "elsewhere_ratio", &ratio(2)));
        }
    }
    effort.note(&records)?;
    Ok(records)
}

type Turns = [[f64; SIZES.len()]; CHANGES.len()];

/// One job: for each turn the median of each size, in microseconds.
fn run(place: Option<Mpi>, folder: &Path, effort: &Effort, moves: bool) -> Result<Turns> {
    let options = format!("--every off {}", effort.launcher);
    match place {
        None => {
            let bed = Bed::new()?;
            let binaries = bed.binaries().with_examples(folder);
            turns(&bed.with_binaries(binaries), &options, moves)
        }
        Some(mpi) => {
            let cluster = Cluster::up(0)?.with_mpirun(mpi)?;
            let binaries = cluster.binaries().with_examples(folder);
            let cluster = cluster.with_binaries(binaries);
            turns(&cluster, &format!("--launch mpirun {options}"), moves)
        }
    }
}

fn turns(bed: &Bed, options: &str, moves: bool) -> Result<Turns> {
    let end = bed.join("end");
    let mut solver = Solver::new(SOLVER, 2, "");
    solver.arguments.push(end.display().to_string());
    let mut job = bed.start_free(&solver, options)?;
    let mut turns = Turns::default();
    let mut at = 0;
    for (turn, changes) in turns.iter_mut().zip(CHANGES) {
        for _ in 0..if moves { changes } else { 0 } {
            for (rank, to) in [(0, 1 - at), (1, at)] {
                let words = [rank.to_string(), "--to".to_owned(), to.to_string()];
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                bed.json("migrate", &words)?;
            }
            at = 1 - at;
        }
        *turn = look(&mut job)?;
    }
    std::fs::write(&end, "")?;
    job.wait(PATIENCE)?.expect_code(0)?;
    Ok(turns)
}

/// The median of each size in the windows that come now.
fn look(job: &mut Job<'_>) -> Result<[f64; SIZES.len()]> {
    let is_window = |line: &str| line.starts_with("window ");
    let printed = job.stdout();
    let before = printed.iter().filter(|line| is_window(&line.text)).count();
    let first = before + SIZES.len() * WARM_UP;
    let wanted = first + SIZES.len() * WINDOWS;
    job.wait_lines("its windows", wanted, is_window)?;
    let mut medians = [0.0; SIZES.len()];
    for (median, size) in medians.iter_mut().zip(SIZES) {
        let printed = job.stdout();
        let windows = printed.iter().filter(|line| is_window(&line.text));
        let of_size = windows.skip(first).take(wanted - first).filter_map(|line| {
            let (name, us) = line.text.strip_prefix("window ")?.split_once(' ')?;
            (name == size).then(|| us.parse().ok())?
        });
        let mut of_size: Vec<f64> = of_size.collect();
        of_size.sort_by(f64::total_cmp);
        *median = *of_size.get(of_size.len() / 2).context("no window")?;
    }
    Ok(medians)
}
