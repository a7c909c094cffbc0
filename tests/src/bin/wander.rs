//! Moves random ranks of running jobs all the time, and checks that nothing comes of it.
//!
//! `cargo run --release -p tests --bin wander -- --for 60 --on shared` (or `openmpi`, `mpich`: three nodes, as root)

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use tests::nodes::mpi::Mpi;
use tests::wander::journey::{Journey, Kind, Place};
use tests::wander::{BROKEN, MODES, Wandering};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    Shared,
    Openmpi,
    Mpich,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum With {
    /// Nothing else.
    Nothing,
    /// Checkpoints.
    Checkpoints,
    /// Checkpoints, and kill -9 of a random process.
    Kills,
}

/// Ranks on the move: the same bits as undisturbed, no message lost or doubled.
#[derive(Debug, Parser)]
struct Options {
    /// What the processes have in common.
    #[arg(long, value_enum, default_value = "shared")]
    on: Vec<On>,
    /// Only this solver: storm, heat or cg.
    #[arg(long)]
    solver: Option<String>,
    /// What happens beside the moves; all in turn if not told.
    #[arg(long, value_enum)]
    with: Vec<With>,
    /// For how long ranks move in each job, in seconds.
    #[arg(long = "for", default_value_t = 60.0)]
    seconds: f64,
    /// A random rank is moved every so often, in milliseconds.
    #[arg(long, default_value_t = 100)]
    every_ms: u64,
    /// Only in these modes.
    #[arg(long)]
    mode: Vec<String>,
    /// Nodes, over MPI.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many times, with seeds that follow each other.
    #[arg(long, default_value_t = 1)]
    times: u64,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut modes: Vec<&'static str> = MODES.to_vec();
    if !options.mode.is_empty() {
        modes.retain(|mode| options.mode.iter().any(|it| it == mode));
    }
    if modes.is_empty() {
        bail!("--mode has to be of {}", MODES.join(", "));
    }
    let with = match options.with.as_slice() {
        [] => &[With::Nothing, With::Checkpoints, With::Kills],
        with => with,
    };
    let kinds = Kind::ALL.into_iter().filter(|kind| {
        let wanted = options.solver.as_ref();
        wanted.is_none_or(|wanted| *wanted == kind.to_string())
    });
    let kinds: Vec<Kind> = kinds.collect();
    let mut failed = 0;
    for seed in options.seed..options.seed + options.times {
        for &on in &options.on {
            for &with in with {
                for &kind in &kinds {
                    failed += usize::from(!one(&options, on, with, kind, &modes, seed));
                }
            }
        }
    }
    println!("{failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes one journey, and prints a line about it. False if it failed.
fn one(
    options: &Options,
    on: On,
    with: With,
    kind: Kind,
    modes: &[&'static str],
    seed: u64,
) -> bool {
    let place = match on {
        On::Shared => Place::Shared,
        On::Openmpi => Place::Nodes(Mpi::OpenMpi, options.nodes),
        On::Mpich => Place::Nodes(Mpi::Mpich, options.nodes),
    };
    let time = Duration::from_secs_f64(options.seconds);
    let journey = Journey {
        kind,
        place,
        size: None,
        // Moves make it last longer.
        work: time,
        wandering: Wandering {
            time,
            every: Some(Duration::from_millis(options.every_ms)),
            least: 0,
            modes,
            broken: BROKEN,
        },
        options: "",
        checkpoints: (with != With::Nothing).then_some(Duration::from_millis(500)),
        kills: (with == With::Kills)
            .then_some(Duration::from_secs_f64((options.seconds / 5.0).min(5.0))),
        seed,
    };
    if let Some(why) = journey.missing() {
        println!("SKIPPED {journey}: {why}");
        return true;
    }
    let arrived = journey.make();
    match &arrived {
        Ok(arrival) => println!("{journey}: the same bits; {arrival}"),
        Err(error) => println!("{journey}: FAILED: {error:#}"),
    }
    arrived.is_ok()
}
