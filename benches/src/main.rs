//! The benchmarks: `cargo run --release -p benches -- NAME [--json]`; without a name, the list.
//!
//! Each figure is the median of `n` samples with the least and the greatest. Where something is measured against
//! a reference, both ran in turn in the same run, and the ratio is that of their medians: on a shared machine a
//! figure of yesterday is no reference. `docs/performance.md` holds the tables.

mod alloc;
mod checkpoint;
mod incremental;
mod jobs;
mod latency;
mod migrate;
mod overhead;
mod p2p;
mod pipeline;
mod record;
mod restart;
mod restore;
mod stall;
mod tcp;

use std::cell::Cell;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
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
    /// A table of the main figures in Markdown instead.
    #[arg(long)]
    markdown: bool,
    /// Append the JSON records to this file, too, with `stall` and those after it as soon as a case is done.
    #[arg(long)]
    record: Option<PathBuf>,
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
    /// Where records go as soon as a case is done.
    record: Option<PathBuf>,
    /// Whether a case failed.
    failed: Cell<bool>,
}

impl Effort {
    /// Whether a case is wanted.
    fn wants(&self, case: &Case) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|words| case.is_named_by(words))
    }

    /// Measures those cases that are wanted. One that fails is told, and leaves the others alone.
    ///
    /// # Errors
    /// When the records can't be written.
    pub fn each(
        &self,
        cases: &[Case],
        measure: impl Fn(&Case) -> Result<Vec<Record>>,
    ) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        for case in cases.iter().filter(|case| self.wants(case)) {
            match measure(case) {
                Ok(records) => {
                    self.note(&records)?;
                    all.extend(records);
                }
                Err(error) => {
                    eprintln!("{case}: FAILED: {error:#}");
                    self.failed.set(true);
                }
            }
        }
        Ok(all)
    }

    /// Appends records to the file that was asked for.
    fn note(&self, records: &[Record]) -> Result<()> {
        let Some(path) = &self.record else {
            return Ok(());
        };
        let mut lines = String::new();
        for record in records {
            lines.push_str(&serde_json::to_string(record)?);
            lines.push('\n');
        }
        let mut file = File::options().create(true).append(true).open(path)?;
        file.write_all(lines.as_bytes())?;
        Ok(())
    }
}

/// A benchmark, and the figures that stand in its table in `docs/performance.md`.
struct Benchmark {
    name: &'static str,
    about: &'static str,
    measure: fn(&Effort) -> Result<Vec<Record>>,
    columns: &'static [&'static str],
}

const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "alloc",
        about: "allocation in rank context, against the system allocator",
        measure: alloc::measure,
        columns: &[],
    },
    Benchmark {
        name: "p2p",
        about: "time of a message between two ranks, against the bare transport",
        measure: p2p::measure,
        columns: &[],
    },
    Benchmark {
        name: "restart",
        about: "from kill -9 to the first new step, and where the time goes",
        measure: restart::measure,
        columns: &[],
    },
    Benchmark {
        name: "checkpoint",
        about: "how long the ranks stand still, how long until it is durable, how many bytes",
        measure: checkpoint::measure,
        columns: &[],
    },
    Benchmark {
        name: "stall",
        about: "what heat feels of a checkpoint when all of its memory changes, by each way of capture",
        measure: stall::measure,
        columns: &[
            "pause_ms",
            "pause_by_chance_ms",
            "extra_ms",
            "extra_by_chance_ms",
            "held_up_ms",
            "durable_ms",
            "stored_mib",
            "overhead_per_checkpoint_ms",
            "memory_beyond_ranks_mib",
            "memory_budget_mib",
        ],
    },
    Benchmark {
        name: "incremental",
        about: "the same when 1% or 10% of it changes, and how many bytes that makes",
        measure: incremental::measure,
        columns: &[
            "pause_ms",
            "pause_by_chance_ms",
            "extra_ms",
            "durable_ms",
            "logical_mib",
            "changed_mib",
            "changed_to_pages_ratio",
            "stored_mib",
            "memory_beyond_ranks_mib",
            "memory_budget_mib",
        ],
    },
    Benchmark {
        name: "overhead",
        about: "wall time with a checkpoint every 10 s against that of an undisturbed run",
        measure: overhead::measure,
        columns: &[
            "undisturbed_wall_s",
            "wall_s",
            "overhead_percent",
            "checkpoints",
        ],
    },
    Benchmark {
        name: "latency",
        about: "half a round trip of a message before and after ten moves of each of two ranks",
        measure: latency::measure,
        columns: &[
            "before_us",
            "home_us",
            "home_ratio",
            "elsewhere_us",
            "elsewhere_ratio",
        ],
    },
    Benchmark {
        name: "migrate",
        about: "how long a rank stands still when it moves, how long that takes, by each way of moving",
        measure: migrate::measure,
        columns: &[
            "stood_ms",
            "pause_ms",
            "took_ms",
            "rounds",
            "memcpy_ms",
            "tcp_ms",
        ],
    },
    Benchmark {
        name: "restore",
        about: "how fast processes restore, against plain zstd on all cores",
        measure: restore::measure,
        columns: &[
            "restore_ms",
            "zstd_ms",
            "speed_to_zstd_ratio",
            "zstd_touched_memory_ms",
            "speed_to_zstd_touched_memory_ratio",
            "newest_files_mib",
        ],
    },
];

/// What a machine needs for as many bytes, in the tables of `stall` and `incremental`.
const LIMITS: &[&str] = &[
    "copy_ms",
    "zstd_1_core_mib_s",
    "zstd_1_all_cores_mib_s",
    "write_ms",
    "write_fsync_ms",
    "step_ms",
    "wall_ms",
];

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(name) = &options.name else {
        for Benchmark { name, about, .. } in BENCHMARKS {
            println!("{name:<12} {about}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(benchmark) = BENCHMARKS.iter().find(|known| known.name == name) else {
        eprintln!("{name}: no such benchmark; without a name, the list is printed");
        return Ok(ExitCode::from(64));
    };
    let effort = Effort {
        samples: options.samples,
        rounds: options.rounds,
        quick: options.quick,
        cases: options.cases,
        launcher: options.launcher,
        record: options.record,
        failed: Cell::new(false),
    };
    let records = (benchmark.measure)(&effort)?;
    if benchmark.columns.is_empty() {
        effort.note(&records)?;
    }
    if options.markdown && !benchmark.columns.is_empty() {
        record::print_markdown(&records, benchmark.columns);
        record::print_markdown(&records, LIMITS);
    } else if options.json {
        for record in &records {
            println!("{}", serde_json::to_string(record)?);
        }
    } else {
        record::print_table(&records);
    }
    Ok(if effort.failed.get() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
