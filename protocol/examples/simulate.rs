//! Runs the simulator over many seeds: `cargo run --release -p ckpt-protocol --example simulate -- --seeds 10000`.
//!
//! `--seed S` begins at that seed (without `--seeds`, runs it alone). `--mistake NAME` makes a deliberate
//! mistake: then the seeds are told at which it is caught. The exit code is 1 when a
//! sound seed fails, or a mistake is never caught.

#[path = "../tests/simulation/simulator/mod.rs"]
mod simulator;

use std::process::ExitCode;
use std::time::Instant;

use simulator::{Mistake, Report, simulate};

const USAGE: &str = "usage: simulate [--seeds N] [--seed S] [--mistake NAME]";

struct Arguments {
    first: u64,
    seeds: u64,
    mistake: Option<Mistake>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
    let (mut first, mut seeds, mut mistake) = (None, None, None);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--seed" => first = Some(value.parse().ok()?),
            "--seeds" => seeds = Some(value.parse().ok()?),
            "--mistake" => mistake = Some(mistake_named(&value)?),
            _ => return None,
        }
    }
    Some(Arguments {
        first: first.unwrap_or(0),
        seeds: seeds.unwrap_or(if first.is_some() { 1 } else { 1000 }),
        mistake,
    })
}

fn mistake_named(name: &str) -> Option<Mistake> {
    Mistake::all().find(|mistake| mistake.to_string() == name)
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        let names: Vec<String> = Mistake::all().map(|mistake| mistake.to_string()).collect();
        eprintln!("mistakes: {}", names.join(", "));
        return ExitCode::from(64);
    };
    let began = Instant::now();
    let mut sum = Report::default();
    let mut failed = 0;
    for seed in arguments.first..arguments.first.saturating_add(arguments.seeds) {
        match simulate(seed, arguments.mistake) {
            Ok(report) => sum.add(&report),
            Err(violation) => {
                failed += 1;
                println!("seed {seed}: {}", violation.0);
            }
        }
    }
    println!("{sum:#?}");
    println!(
        "{} seeds in {:.1} s, {failed} failed",
        arguments.seeds,
        began.elapsed().as_secs_f64()
    );
    match (arguments.mistake.is_some(), failed) {
        (false, 0) => ExitCode::SUCCESS,
        (true, failed) if failed > 0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
