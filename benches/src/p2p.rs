//! Half a round trip of a message between two ranks: 8 B, 64 KiB, 1 MiB.
//!
//! The solver `bench-pingpong` runs as a job of two processes and prints, for each size, the time of every window
//! of round trips. In turn with it runs the transport's own ping-pong, which moves the same bytes without
//! matching, tags and counters: the reference, whose windows also are medians.
//!
//! With the feature `mpi`, the solver `bench-mpi` runs under mpirun as well, and compares itself with plain MPI in turn:
//!
//! ```text
//! MPICC=mpicc MPIRUN=mpirun cargo run --release -p benches --features mpi --bin benches -- p2p
//! ```

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tests::bed::Bed;
use tests::solver::Solver;

use crate::record::Record;
use crate::{Effort, jobs};

/// Sizes as the solver names them, and the case of the bare transport that moves a message of this size as
/// the engine does: a packet up to the eager limit, one copy out of the sender's memory above it.
const CASES: &[(&str, &str)] = &[("8B", "8B"), ("64KiB", "64K-bulk"), ("1MiB", "1M-bulk")];

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let folder = jobs::build(&[
        "-p",
        "benches",
        "--bins",
        "-p",
        "libckpt-transport",
        "--examples",
    ])?;
    let turns = effort.samples.unwrap_or(9);
    let mut engine = vec![Vec::new(); CASES.len()];
    let mut transport = vec![Vec::new(); CASES.len()];
    for _ in 0..turns {
        let ours = run_job(&folder)?;
        for (index, (name, bare_name)) in CASES.iter().enumerate() {
            engine[index].push(find(&ours, name)?);
            transport[index].push(run_transport(&folder, bare_name)?);
        }
    }
    let mut records = Vec::new();
    for (index, (name, _)) in CASES.iter().enumerate() {
        let case = format!("ping-pong {name}");
        let ours = Record::new(&case, "half_round_trip_us", &engine[index]);
        let bare = Record::new(&case, "bare_transport_us", &transport[index]);
        records.push(ours.against(&bare));
        records.push(bare);
    }
    if cfg!(feature = "mpi") {
        records.extend(measure_mpi(effort)?);
    }
    Ok(records)
}

/// The library over MPI against plain MPI, from windows that take turns in one run.
fn measure_mpi(effort: &Effort) -> Result<Vec<Record>> {
    let folder = jobs::build(&["-p", "benches", "--features", "mpi", "--bins"])?;
    let mpirun = std::env::var_os("MPIRUN").unwrap_or_else(|| "mpirun".into());
    let windows = effort.samples.unwrap_or(15);
    let output = Command::new(&mpirun)
        .args(["-np", "2"])
        .arg(folder.join("bench-mpi"))
        .arg(windows.to_string())
        .output()
        .with_context(|| format!("start {}", mpirun.display()))?;
    if !output.status.success() {
        bail!(
            "the solver over MPI failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let mut cases: Vec<(String, Vec<f64>, Vec<f64>)> = Vec::new();
    let mut packets: Vec<(String, Vec<f64>)> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["packets", name, us] = words.as_slice() {
            match packets.iter_mut().find(|case| case.0 == *name) {
                Some(case) => case.1.push(us.parse()?),
                None => packets.push(((*name).to_owned(), vec![us.parse()?])),
            }
        }
        let ["mpi", name, ours, plain] = words.as_slice() else {
            continue;
        };
        let at = cases.iter().position(|case| case.0 == *name);
        let at = at.unwrap_or_else(|| {
            cases.push(((*name).to_owned(), Vec::new(), Vec::new()));
            cases.len() - 1
        });
        cases[at].1.push(ours.parse()?);
        cases[at].2.push(plain.parse()?);
    }
    Ok(cases
        .iter()
        .flat_map(|(name, ours, plain)| {
            let case = format!("over MPI {name}");
            let ours = Record::new(&case, "library_us", ours);
            let plain = Record::new(&case, "plain_mpi_us", plain);
            let bare = packets.iter().find(|packets| packets.0 == *name);
            let bare =
                bare.map(|(_, us)| Record::new(&case, "bare_packets_us", us).against(&plain));
            [ours.against(&plain), plain].into_iter().chain(bare)
        })
        .collect())
}

type Times = Vec<(String, f64)>;

fn find(times: &Times, name: &str) -> Result<f64> {
    times
        .iter()
        .find(|(case, _)| case == name)
        .map(|(_, time)| *time)
        .with_context(|| format!("no time for {name} in {times:?}"))
}

/// Median half round trips of the engine, in microseconds.
fn run_job(folder: &Path) -> Result<Times> {
    let bed = Bed::new()?;
    let mut solver = Solver::new("bench-pingpong", 2, "");
    solver.name = folder.join("bench-pingpong").display().to_string();
    let outcome = bed.run(&solver, "--every off")?.expect_code(0)?;
    Ok(outcome
        .stdout
        .iter()
        .filter_map(|line| {
            let mut words = line.text.strip_prefix("pingpong ")?.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect())
}

/// That of the bare transport: the third column of its table.
fn run_transport(folder: &Path, case: &str) -> Result<f64> {
    let output = Command::new(folder.join("examples/pingpong"))
        .arg(case)
        .output()
        .context("start the transport's ping-pong")?;
    if !output.status.success() {
        bail!(
            "the transport's ping-pong failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let table = String::from_utf8_lossy(&output.stdout);
    table
        .lines()
        .find_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            if *words.first()? != case {
                return None;
            }
            words.get(2)?.parse().ok()
        })
        .with_context(|| format!("no time for {case} in: {table}"))
}
