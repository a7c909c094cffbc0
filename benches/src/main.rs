//! The benchmarks: `cargo run --release -p benches -- NAME [--json]`; without a name, the list.
//!
//! Each figure is the median of `n` samples with the least and the greatest. Where something is measured against
//! a reference, both ran in turn in the same run, and the ratio is that of their medians: on a shared machine a
//! figure of yesterday is no reference. `docs/performance.md` holds the tables.

mod alloc;
mod checkpoint;
mod jobs;
mod p2p;
mod record;
mod restart;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::record::Record;

/// Benchmarks of the checkpoint layer.
#[derive(Debug, Parser)]
struct Options {
    /// Which; none for the list.
    name: Option<String>,
    /// One JSON record a line instead of a table.
    #[arg(long)]
    json: bool,
    /// How many samples, where that is a question of patience.
    #[arg(long)]
    samples: Option<usize>,
}

/// How thoroughly to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How many samples; the benchmark's own number if not told.
    pub samples: Option<usize>,
}

type Benchmark = fn(Effort) -> Result<Vec<Record>>;

const BENCHMARKS: &[(&str, &str, Benchmark)] = &[
    (
        "alloc",
        "allocation in rank context, against the system allocator",
        alloc::measure,
    ),
    (
        "p2p",
        "time of a message between two ranks, against the bare transport",
        p2p::measure,
    ),
    (
        "restart",
        "from kill -9 to the first new step, and where the time goes",
        restart::measure,
    ),
    (
        "checkpoint",
        "how long the ranks stand still, how long until it is durable, how many bytes",
        checkpoint::measure,
    ),
];

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(name) = &options.name else {
        for (name, about, _) in BENCHMARKS {
            println!("{name:<12} {about}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some((_, _, measure)) = BENCHMARKS.iter().find(|(known, _, _)| known == name) else {
        eprintln!("{name}: no such benchmark; without a name, the list is printed");
        return Ok(ExitCode::from(64));
    };
    let records = measure(Effort {
        samples: options.samples,
    })?;
    if options.json {
        for record in &records {
            println!("{}", serde_json::to_string(record)?);
        }
    } else {
        record::print_table(&records);
    }
    Ok(ExitCode::SUCCESS)
}
