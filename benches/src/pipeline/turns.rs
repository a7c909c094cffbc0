//! Runs of a case that take turns: undisturbed, and with checkpoints by each way of capture.

use std::time::Duration;

use anyhow::Result;

use crate::Effort;
use crate::pipeline::case::{Case, Way};
use crate::pipeline::limits::{self, Copies, Sync};
use crate::pipeline::run::{self, Checkpoint, Estimate, Run, Trigger};
use crate::pipeline::steps::{Felt, Usual, Window};
use crate::record::Record;

const MIB: f64 = (1_u64 << 20) as f64;

/// Bytes of a rank on which zstd is measured.
const SAMPLE: usize = 256 << 20;

/// Figures of one way, over all its runs.
#[derive(Default)]
struct Figures(Vec<(&'static str, Vec<f64>)>);

impl Figures {
    fn add(&mut self, metric: &'static str, sample: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == metric) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((metric, vec![sample])),
        }
    }

    fn records(&self, case: &str) -> impl Iterator<Item = Record> {
        self.0
            .iter()
            .map(move |(metric, samples)| Record::new(case, metric, samples))
    }
}

/// Measures the cases that are wanted.
///
/// # Errors
/// When the records can't be written.
pub fn measure(cases: &[Case], ways: &[Way], effort: &Effort) -> Result<Vec<Record>> {
    effort.each(cases, |case| measure_case(case, ways, effort))
}

#[allow(clippy::cast_precision_loss)] // bytes and times are far below 2^52
fn measure_case(case: &Case, ways: &[Way], effort: &Effort) -> Result<Vec<Record>> {
    let count = 1 + effort.samples.unwrap_or(if effort.quick { 2 } else { 5 });
    let usual_rounds = if effort.quick || case.mib >= 1024 {
        1
    } else {
        2
    };
    let rounds = effort.rounds.unwrap_or(usual_rounds);
    let estimate = run::estimate(case, &effort.launcher, SAMPLE)?;
    let Lengths { steps, gap } = Lengths::new(&estimate, count, effort.quick);
    eprintln!(
        "{case}: a step {:.1} ms, durable after {:.2} s and {:.2} s; {rounds} times {} runs of about {:.0} s",
        estimate.step_s * 1e3,
        estimate.durable_s[0],
        estimate.durable_s[1],
        ways.len() + 1,
        steps as f64 * estimate.step_s
    );
    let mut figures: Vec<Figures> = ways.iter().map(|_| Figures::default()).collect();
    let mut undisturbed = Figures::default();
    let trigger = Trigger::Commands { count, gap };
    for round in 0..rounds {
        let quiet = run::run(case, Way::Undisturbed, steps, trigger, &effort.launcher)?;
        let usual = Usual::of(&quiet.ranks);
        undisturbed.add("wall_ms", quiet.wall_ms);
        undisturbed.add("step_ms", usual.step_ns / 1e6);
        undisturbed.add("memory_mib", quiet.peak_bytes as f64 / MIB);
        // Another way comes first in each round.
        for turn in 0..ways.len() {
            let at = (turn + round) % ways.len();
            let run = run::run(case, ways[at], steps, trigger, &effort.launcher)?;
            add_run(&mut figures[at], &run, &quiet, usual);
        }
    }
    let mut records = limits_of(case, &estimate)?;
    records.extend(undisturbed.records(&format!("{case}, undisturbed")));
    for (way, figures) in ways.iter().zip(&figures) {
        records.extend(figures.records(&format!("{case}, {way}")));
    }
    Ok(records)
}

/// How long runs are.
struct Lengths {
    steps: u64,
    gap: Duration,
}

impl Lengths {
    /// Enough steps for so many checkpoints, with a gap before each of four steps at least.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    fn new(estimate: &Estimate, count: usize, quick: bool) -> Self {
        let least_s = if quick { 0.3 } else { 1.0 };
        let gap_s = (4.0 * estimate.step_s).max(least_s);
        let [first_s, next_s] = estimate.durable_s;
        let checkpoints_s = first_s + (count - 1) as f64 * next_s.max(0.05);
        let seconds = 1.3 * checkpoints_s + (count + 1) as f64 * gap_s;
        Self {
            steps: (seconds / estimate.step_s).ceil() as u64,
            gap: Duration::from_secs_f64(gap_s),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // bytes and times are far below 2^52
fn add_run(figures: &mut Figures, run: &Run, quiet: &Run, usual: Usual) {
    let mut taken = run.checkpoints.iter();
    // The first one touches staging memory for the first time, looks at the program, and is a full one.
    if let Some(first) = taken.next() {
        if let Some(felt) = Felt::new(&run.ranks, first.window, usual) {
            figures.add("first_pause_ms", felt.pause_ms);
            figures.add("first_extra_ms", felt.extra_ms);
        }
        figures.add("first_stall_ms", first.stall_ms);
        figures.add("first_durable_ms", first.durable_ms);
    }
    for checkpoint in taken {
        add_checkpoint(figures, checkpoint, run);
        if let Some(felt) = Felt::new(&run.ranks, checkpoint.window, usual) {
            figures.add("pause_ms", felt.pause_ms);
            figures.add("longest_step_ms", felt.step_ms);
            figures.add("extra_ms", felt.extra_ms);
        }
        // What as long a time of the undisturbed run shows by chance.
        let began_ns = |run: &Run| run.ranks.first().map_or(0, |steps| steps.began_ns);
        let moved = |t_ns: u64| t_ns.saturating_sub(began_ns(run)) + began_ns(quiet);
        let window = Window {
            from_ns: moved(checkpoint.window.from_ns),
            to_ns: moved(checkpoint.window.to_ns),
        };
        if let Some(felt) = Felt::new(&quiet.ranks, window, usual) {
            figures.add("pause_by_chance_ms", felt.pause_ms);
            figures.add("extra_by_chance_ms", felt.extra_ms);
        }
    }
    let more_ms = run.wall_ms - quiet.wall_ms;
    figures.add("wall_ms", run.wall_ms);
    figures.add("overhead_percent", more_ms / quiet.wall_ms * 100.0);
    if !run.checkpoints.is_empty() {
        figures.add(
            "overhead_per_checkpoint_ms",
            more_ms / run.checkpoints.len() as f64,
        );
    }
    // A process has one rank here. Undisturbed processes may have memory in store as well, so that the ranks' own
    // is what an image of them has.
    let image_bytes = run
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.raw_bytes)
        .max();
    let ranks = run.ranks.len() as f64;
    figures.add("memory_mib", run.peak_bytes as f64 / MIB);
    figures.add("memory_budget_mib", run.budget_bytes as f64 / MIB);
    if let Some(bytes) = image_bytes {
        let beyond = run.peak_bytes as f64 - bytes as f64 / ranks;
        figures.add("memory_beyond_ranks_mib", beyond / MIB);
    }
}

#[allow(clippy::cast_precision_loss)]
fn add_checkpoint(figures: &mut Figures, checkpoint: &Checkpoint, run: &Run) {
    figures.add("stall_ms", checkpoint.stall_ms);
    figures.add("faults", checkpoint.faults as f64);
    figures.add("longest_wait_ms", checkpoint.longest_wait_ms);
    figures.add("waited_ms", checkpoint.waited_ms);
    figures.add("held_up_ms", checkpoint.held_up_ms);
    figures.add("durable_ms", checkpoint.durable_ms);
    figures.add("logical_mib", checkpoint.raw_bytes as f64 / MIB);
    figures.add("changed_mib", checkpoint.changed_bytes as f64 / MIB);
    figures.add("stored_mib", checkpoint.file_bytes as f64 / MIB);
    figures.add("needed_files", checkpoint.needs as f64);
    if let Some(pages) = run.pages {
        let bytes = (pages * 4096) as f64;
        figures.add(
            "changed_to_pages_ratio",
            checkpoint.changed_bytes as f64 / bytes,
        );
        figures.add(
            "stored_to_pages_ratio",
            checkpoint.file_bytes as f64 / bytes,
        );
    }
}

/// What the machine needs for as many bytes as change.
#[allow(clippy::cast_precision_loss)]
fn limits_of(case: &Case, estimate: &Estimate) -> Result<Vec<Record>> {
    const SAMPLES: usize = 3;
    let name = format!("{case}, limits");
    let bytes = case.changing_bytes();
    let folder = case.folder()?;
    let path = folder.path().join("reference");
    let mut figures = Figures::default();
    let copies = Copies::new(case.ranks, bytes / case.ranks);
    let zstd_bytes = estimate.image.len();
    for _ in 0..SAMPLES {
        figures.add("copy_ms", copies.run_ms());
        for (metric, threads) in [
            ("zstd_1_core_mib_s", 1),
            ("zstd_1_all_cores_mib_s", limits::cores()),
        ] {
            let ms = limits::compress_ms(&estimate.image, zstd_bytes, threads)?;
            figures.add(metric, zstd_bytes as f64 / MIB / ms * 1e3);
        }
        for (metric, sync) in [("write_ms", Sync::No), ("write_fsync_ms", Sync::Yes)] {
            let each = bytes / case.ranks;
            figures.add(
                metric,
                limits::write_files_ms(&path, case.ranks, each, sync)?,
            );
        }
    }
    Ok(figures.records(&name).collect())
}
