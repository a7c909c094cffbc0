//! Changes every byte of a stored checkpoint in turn, and cuts its files off at every length; the same for the files
//! of a chain of incremental checkpoints.
//!
//! `cargo run --release -p tests --bin damage -- [--samples N]`

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tests::damage::{Damage, StoppedJob};
use tests::solver::Solver;

/// Damage to each byte of the newest checkpoint of a stopped job, and of all that an incremental one needs, found by `ckpt verify` each time.
#[derive(Debug, Parser)]
struct Options {
    /// So many bytes and lengths of each file, drawn at random, instead of all.
    #[arg(long)]
    samples: Option<usize>,
    /// What they are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let full = StoppedJob::make(&Solver::heat(2, 16, 64, 4000), 2)?;
    let mut files = vec![(&full, full.files_of(full.newest())?)];
    // A fifth of the pages changes, so that the newest checkpoint needs files of others.
    let mut solver = Solver::heat(2, 16, 512, 100_000);
    solver.arguments.push("--changing=0.2".to_owned());
    let chain = StoppedJob::chain(&solver, 2)?;
    files.push((&chain, chain.images()?));
    let mut failed = 0_usize;
    println!("file                                     bytes    flips  truncations  not found");
    for (job, file) in files
        .into_iter()
        .flat_map(|(job, files)| files.into_iter().map(move |file| (job, file)))
    {
        let start = Instant::now();
        let bytes = usize::try_from(std::fs::metadata(&file)?.len())?;
        let (mut flips, mut truncations, mut missed) = (0, 0, 0);
        for damage in Damage::all(bytes, options.samples, &mut random) {
            match damage {
                Damage::Flip { .. } => flips += 1,
                Damage::Truncate { .. } => truncations += 1,
            }
            if let Err(error) = job.check_detected(&file, damage) {
                println!("FAILED: {error:#}");
                missed += 1;
            }
        }
        failed += missed;
        let name = file
            .strip_prefix(job.bed.store())
            .unwrap_or(&file)
            .display()
            .to_string();
        println!(
            "{name:<36} {bytes:>9} {flips:>8} {truncations:>12} {missed:>10}   ({} s)",
            start.elapsed().as_secs()
        );
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
