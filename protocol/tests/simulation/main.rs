//! Runs the simulator over seeds, sound and with deliberate mistakes.

mod simulator;

use simulator::{Report, simulate};

#[test]
fn no_seed_loses_doubles_or_orphans_a_message() {
    let mut sum = Report::default();
    for seed in 0..300 {
        match simulate(seed, None) {
            Ok(report) => sum.add(&report),
            Err(violation) => panic!("seed {seed}: {}", violation.0),
        }
    }
    println!("{sum:?}");
}
