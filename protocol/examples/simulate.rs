//! Runs the simulator over many seeds: `cargo run --release -p ckpt-protocol --example simulate -- --seeds 10000`.
//!
//! `--seed S` begins at that seed (without `--seeds`, runs it alone). `--fault NAME` builds a deliberate
//! mistake into the machines: then the seeds are told at which it is caught. The exit code is 1 when a
//! sound seed fails, or a mistake is never caught.

#[path = "../tests/simulation/simulator/mod.rs"]
mod simulator;

use std::process::ExitCode;
use std::time::Instant;

use protocol::faults::Fault;
use simulator::{Report, simulate};

const USAGE: &str = "usage: simulate [--seeds N] [--seed S] [--fault NAME]";

struct Arguments {
    first: u64,
    seeds: u64,
    fault: Option<Fault>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
    let (mut first, mut seeds, mut fault) = (None, None, None);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--seed" => first = Some(value.parse().ok()?),
            "--seeds" => seeds = Some(value.parse().ok()?),
            "--fault" => fault = Some(fault_named(&value)?),
            _ => return None,
        }
    }
    Some(Arguments {
        first: first.unwrap_or(0),
        seeds: seeds.unwrap_or(if first.is_some() { 1 } else { 1000 }),
        fault,
    })
}

fn fault_named(name: &str) -> Option<Fault> {
    Fault::ALL
        .into_iter()
        .find(|fault| format!("{fault:?}") == name)
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        let names: Vec<String> = Fault::ALL
            .iter()
            .map(|fault| format!("{fault:?}"))
            .collect();
        eprintln!("faults: {}", names.join(", "));
        return ExitCode::from(64);
    };
    let began = Instant::now();
    let mut sum = Report::default();
    let mut failed = 0;
    for seed in arguments.first..arguments.first.saturating_add(arguments.seeds) {
        match simulate(seed, arguments.fault) {
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
    match (arguments.fault.is_some(), failed) {
        (false, 0) => ExitCode::SUCCESS,
        (true, failed) if failed > 0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
