//! The wall time of `heat` with a checkpoint every 10 s against that of an undisturbed run; nothing is subtracted.
//!
//! With one rank the second core of a machine with two is free for the library; with two ranks none is.

use anyhow::Result;

use crate::Effort;
use crate::pipeline::case::{Case, Place, Way};
use crate::pipeline::run::{self, Trigger};
use crate::record::Record;

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let cases = [1, 2].map(|ranks| Case {
        ranks,
        mib: if effort.quick { 64 } else { 256 },
        changing: 1.0,
        place: Place::Disk,
    });
    effort.each(&cases, |case| measure_case(case, effort))
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]
fn measure_case(case: &Case, effort: &Effort) -> Result<Vec<Record>> {
    let (every_s, seconds) = if effort.quick { (2, 5.0) } else { (10, 65.0) };
    let rounds = effort.rounds.unwrap_or(if effort.quick { 1 } else { 5 });
    let estimate = run::estimate(case, &effort.launcher, 1 << 20)?;
    let steps = (seconds / estimate.step_s).ceil() as u64;
    eprintln!(
        "{case}: a step {:.1} ms; {rounds} times 2 runs of about {seconds:.0} s",
        estimate.step_s * 1e3
    );
    let [mut quiet_s, mut disturbed_s, mut overhead, mut taken] = [const { Vec::new() }; 4];
    for round in 0..rounds {
        let trigger = Trigger::Every(every_s);
        let mut runs = [Way::Undisturbed, Way::Auto];
        if round % 2 == 1 {
            runs.reverse();
        }
        let mut walls_ms = [0.0; 2];
        for way in runs {
            let run = run::run(case, way, steps, trigger, &effort.launcher)?;
            walls_ms[usize::from(way == Way::Auto)] = run.wall_ms;
            if way == Way::Auto {
                taken.push(run.checkpoints.len() as f64);
            }
        }
        let [quiet, disturbed] = walls_ms;
        quiet_s.push(quiet / 1e3);
        disturbed_s.push(disturbed / 1e3);
        overhead.push((disturbed / quiet - 1.0) * 100.0);
    }
    let name = format!("{case}, every {every_s} s");
    let quiet = Record::new(&name, "undisturbed_wall_s", &quiet_s);
    Ok(vec![
        Record::new(&name, "wall_s", &disturbed_s).against(&quiet),
        quiet,
        Record::new(&name, "overhead_percent", &overhead),
        Record::new(&name, "checkpoints", &taken),
    ])
}
