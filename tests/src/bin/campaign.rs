//! Kills processes of jobs by plan, and checks that nothing comes of it.
//!
//! `cargo run --release -p tests --bin campaign -- --runs 100`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use tests::campaign::drive::{References, drive};
use tests::campaign::plan::{Load, Plan};
use tests::campaign::tally::Tally;
use tests::matrix;

/// Seeded runs of kill -9 on random processes at aimed and random moments.
#[derive(Debug, Parser)]
struct Options {
    /// How many runs; their seeds follow each other.
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many kills have to fall in each phase for the campaign to count; ten in a hundred runs if not told.
    #[arg(long)]
    hits: Option<usize>,
    /// Only runs of this solver.
    #[arg(long)]
    solver: Option<String>,
    /// A factor on the length of the solvers.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let (load, _folder) = load(options.scale)?;
    let references = References::default();
    let mut tally = Tally::default();
    let start = Instant::now();
    let plans = (options.seed..)
        .map(|seed| Plan::draw(seed, &load))
        .filter(|plan| {
            options
                .solver
                .as_ref()
                .is_none_or(|solver| *solver == plan.solver.name)
        })
        .take(usize::try_from(options.runs)?);
    for plan in plans {
        let seed = plan.seed;
        match drive(&plan, &references) {
            Ok(run) => {
                let hits: Vec<_> = run
                    .kills
                    .iter()
                    .map(|(kill, phase)| format!("{} in {phase}", kill.target))
                    .collect();
                println!(
                    "seed {seed}: {} {}; killed: {}",
                    plan.ways,
                    plan.solver.shown(),
                    hits.join(", ")
                );
                tally.add(&plan, &run);
            }
            Err(error) => {
                println!("seed {seed}: FAILED: {plan}\n{error:#}");
                println!(
                    "again: cargo run --release -p tests --bin campaign -- --runs 1 --seed {seed} --scale {}",
                    options.scale
                );
                tally.add_failed(&plan);
            }
        }
    }
    println!(
        "\n{} runs in {} s\n\n{tally}",
        options.runs,
        start.elapsed().as_secs()
    );
    let wanted = options
        .hits
        .unwrap_or(usize::try_from(options.runs / 10).unwrap_or(usize::MAX));
    let missed = tally.missed(wanted);
    for phase in &missed {
        println!(
            "too few kills in {phase}: {} of {wanted}",
            tally.hits(*phase)
        );
    }
    if !tally.failed_seeds().is_empty() {
        println!("failed seeds: {:?}", tally.failed_seeds());
    }
    Ok(if tally.failed_seeds().is_empty() && missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The matrices beside the checkout, or our own, which is kept in a folder as long as that lives.
fn load(scale: f64) -> Result<(Load, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let mut matrices: Vec<PathBuf> = ["elasticity_bar.mtx", "ldg_diffusion.mtx"]
        .into_iter()
        .filter_map(matrix::shared)
        .collect();
    if matrices.is_empty() {
        println!("the matrices of ../shared/data are not there: cg runs on one of our own");
        let own = folder.path().join("own.mtx");
        matrix::write_own(&own, 30)?;
        matrices.push(own);
    }
    Ok((Load { scale, matrices }, folder))
}
