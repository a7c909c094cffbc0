//! The benchmarks: `cargo run --release -p benches -- NAME [--json]`; without a name, the list.
//!
//! Each figure is the median of `n` samples with the least and the greatest. Where something is measured against
//! a reference, both ran in turn in the same run, and the ratio is that of their medians: on a shared machine a
//! figure of yesterday is no reference. `docs/performance.md` holds the tables.

mod alloc;
mod checkpoint;
mod incremental;
mod jobs;
mod overhead;
mod p2p;
mod pipeline;
mod record;
mod restart;
mod restore;
mod stall;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::pipeline::case::Case;
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
    /// How many times each run is made, where runs take turns.
    #[arg(long)]
    rounds: Option<usize>,
    /// Small sizes and few samples: to see that it works. The figures are worth nothing.
    #[arg(long)]
    quick: bool,
    /// Only cases in whose name all these words stand, like "2 256 disk"; more than once for more cases.
    #[arg(long = "case")]
    cases: Vec<String>,
    /// More options for `ckpt run`, like "--compress none --memory 64MiB".
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    launcher: String,
}

/// How thoroughly to measure.
#[derive(Clone, Debug)]
pub struct Effort {
    /// How many samples; the benchmark's own number if not told.
    pub samples: Option<usize>,
    /// How many rounds of runs that take turns; the benchmark's own number if not told.
    pub rounds: Option<usize>,
    /// Only to see that it works.
    pub quick: bool,
    /// Words of the cases that are wanted; all if there are none.
    pub cases: Vec<String>,
    /// More options for the launcher.
    pub launcher: String,
}

impl Effort {
    /// Whether a case is wanted.
    #[must_use]
    pub fn wants(&self, case: &Case) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|words| case.is_named_by(words))
    }
}

type Benchmark = fn(&Effort) -> Result<Vec<Record>>;

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
    (
        "stall",
        "what heat feels of a checkpoint when all of its memory changes, by each way of capture",
        stall::measure,
    ),
    (
        "incremental",
        "the same when 1% or 10% of it changes, and how many bytes that makes",
        incremental::measure,
    ),
    (
        "overhead",
        "wall time with a checkpoint every 10 s against that of an undisturbed run",
        overhead::measure,
    ),
    (
        "restore",
        "how fast processes restore, against plain zstd on all cores",
        restore::measure,
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
    let records = measure(&Effort {
        samples: options.samples,
        rounds: options.rounds,
        quick: options.quick,
        cases: options.cases,
        launcher: options.launcher,
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
